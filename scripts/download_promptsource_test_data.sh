#!/usr/bin/env bash
# The paper's own test data for cappy_promptsource.py, from its authors' Google Drive.
#
#     bash scripts/download_promptsource_test_data.sh
#
# Writes promptsource_test.jsonl here, where cappy_promptsource.py looks for it, once what came is seen to be rows with
# the fields it reads. Needs gdown (pip install gdown). Such links die: scripts/get_promptsource_data.py builds the
# file from its sources instead.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/drive.sh

FILE_ID=1OjmNOavE6hd4eOAEbW45Clp7Kz3N947T
FILE=promptsource_test.jsonl

fail() {
    echo "error: $1; or build the file from its sources: python scripts/get_promptsource_data.py --help" >&2
    exit 1
}

# Says what is in the file, or why it is not the test data.
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
            sys.exit(f'line {number} lacks {", ".join(missing)}')
        counts[row['dataset_name']] += 1
if not counts:
    sys.exit('it is empty')
for name, count in counts.items():
    print(f'  {name}: {count:,} rows')
print(f'  {counts.total():,} rows of {len(counts)} data sets')
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
