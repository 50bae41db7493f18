#!/usr/bin/env bash
# The paper's own test data for cappy_promptsource.py, from its authors' Google Drive.
#
#     bash scripts/download_promptsource_test_data.sh
#
# Writes promptsource_test.jsonl in the repository's root, where cappy_promptsource.py looks for it, after checking that
# every line has the fields that script reads. Needs gdown (pip install gdown). Should the link be dead,
# scripts/get_promptsource_data.py builds the file from its sources.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/drive.sh

FILE_ID=1OjmNOavE6hd4eOAEbW45Clp7Kz3N947T
FILE=promptsource_test.jsonl

fail() {
    echo "error: $1; or build the file from its sources: python scripts/get_promptsource_data.py --help" >&2
    exit 1
}

# check FILE: prints what the file holds, or why it is not the test data.
check() {
    "${PYTHON:-python3}" - "$1" << 'EOF'
import collections
import json
import sys

FIELDS = {'dataset_name', 'template_name', 'example_idx', 'instruction', 'response', 'label'}
counts = collections.Counter()
with open(sys.argv[1], encoding='utf-8', errors='replace') as file:
    for number, line in enumerate(file, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            sys.exit(f'line {number} is not JSON: {line[:60].strip()!r}')
        missing = sorted(FIELDS - row.keys()) if isinstance(row, dict) else sorted(FIELDS)
        if missing:
            sys.exit(f'line {number} has no {", ".join(missing)}')
        counts[row['dataset_name']] += 1
if not counts:
    sys.exit('it is empty')
for name, count in counts.items():
    print(f'  {name}: {count:,} choices')
print(f'  {counts.total():,} choices from {len(counts)} data sets')
EOF
}

if [ -e "$FILE" ]; then
    echo "$FILE exists:"
    check "$FILE" || fail "$FILE is not the test data (see above); remove it"
    exit 0
fi
partial=.$FILE.$$.partial
trap 'rm -f "$partial"' EXIT
fetch "$FILE_ID" "$partial"
checked=$(check "$partial") || fail 'what came from the Drive is not the test data (see above)'
mv "$partial" "$FILE"
echo "$FILE:"
echo "$checked"
