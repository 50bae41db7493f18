#!/usr/bin/env bash
# The paper's own FLAN-T5 samples of the 45 BIG-bench tasks, from its authors' Google Drive.
#
#     bash scripts/download_bigbench_flan_gens.sh
#
# Writes bigbench_flan_gens/{generator}/{task}_{split}.jsonl in the repository's root, where cappy_bigbench.py looks for
# them. The archive is checked before anything of it is kept: no path outside the folder, no links, candidates in every
# file. A generator that is there already stays as it is; missing files are named, with exit code 1. Needs gdown
# (pip install gdown). Should the link be dead, scripts/bigbench_flan_generate.py draws new samples.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/drive.sh

FILE_ID=150v5Z9GSD7GU0f2Lr71BagsyC1ytkvI5
FOLDER=bigbench_flan_gens

fail() {
    echo "error: $1; or draw new samples: python scripts/bigbench_flan_generate.py --help" >&2
    exit 1
}

# files check FOLDER: names what is missing in the folder, if anything. files unpack ZIP PARTIAL FOLDER: moves the
# generators of the archive into the folder, by way of PARTIAL.
files() {
    "${PYTHON:-python3}" - "$@" << 'EOF'
import json
import pathlib
import stat
import sys
import zipfile

GENERATORS = [f'flan-t5-{size}' for size in ('small', 'base', 'large', 'xl', 'xxl')]
TASKS = json.loads(pathlib.Path('bigbench_data/subset_names.json').read_text())
FIELDS = {'example_idx', 'instruction', 'references', 'flan_samples'}


def check(folder):
    wanted = [f'{generator}/{task}_{split}.jsonl'
              for generator in GENERATORS for task in TASKS for split in ('train', 'validation')]
    missing = [name for name in wanted if not (folder / name).is_file()]
    print(f'  {len(wanted) - len(missing)} of {len(wanted)} files of {len(GENERATORS)} generators')
    if missing:
        more = f' and {len(missing) - 5} more' if len(missing) > 5 else ''
        sys.exit(f'missing: {", ".join(missing[:5])}{more}')


def inner_path(member, folder):
    """(generator, file name) of a member; None where it holds no samples. Ends the script where it is unsafe."""
    parts = pathlib.PurePosixPath(member.filename.replace('\\', '/')).parts
    if parts and (parts[0] == '/' or ':' in parts[0] or '..' in parts):
        sys.exit(f'{member.filename!r} points outside of the folder')
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        sys.exit(f'{member.filename!r} is a link or another special file')
    holds_samples = len(parts) == 3 and parts[0] == folder.name and parts[2].endswith('.jsonl')
    return parts[1:] if holds_samples and not member.is_dir() else None


def check_samples(archive, member):
    with archive.open(member) as file:
        line = file.readline()
    try:
        row = json.loads(line)
    except ValueError:
        sys.exit(f'{member.filename!r}: line 1 is not JSON: {line[:60]!r}')
    missing = sorted(FIELDS - row.keys()) if isinstance(row, dict) else sorted(FIELDS)
    if missing:
        sys.exit(f'{member.filename!r}: line 1 has no {", ".join(missing)}')


def unpack(path, partial, folder):
    with zipfile.ZipFile(path) as archive:
        members = [(member, inner_path(member, folder)) for member in archive.infolist()]
        inner = [(member, parts) for member, parts in members if parts]
        others = [member.filename for member, parts in members if not parts and not member.is_dir()]
        if not inner:
            sys.exit(f'it holds no {folder.name}/GENERATOR/TASK_SPLIT.jsonl, only {", ".join(others[:3]) or "nothing"}')
        if others:
            print(f'  {len(others)} files that hold no samples are left out, the first {others[0]!r}')
        for member, _ in inner:
            check_samples(archive, member)
        for member, (generator, name) in inner:
            (partial / generator).mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(partial / generator / name, 'xb') as target:
                while block := source.read(1 << 20):
                    target.write(block)
    folder.mkdir(exist_ok=True)
    for generator in sorted(path.name for path in partial.iterdir()):
        if (folder / generator).exists():
            print(f'  {generator}: exists, left as it is')
        else:
            (partial / generator).rename(folder / generator)
            print(f'  {generator}: {len(list((folder / generator).iterdir()))} files')


command, *arguments = sys.argv[1:]
try:
    {'check': check, 'unpack': unpack}[command](*map(pathlib.Path, arguments))
except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
    sys.exit(f'it is no archive that can be read ({error})')
except OSError as error:
    sys.exit(f'cannot be unpacked ({error})')
EOF
}

if files check "$FOLDER" > /dev/null 2>&1; then
    echo "$FOLDER exists:"
    files check "$FOLDER"
    exit 0
fi
partial=.$FOLDER.$$.partial
trap 'rm -rf "$partial"' EXIT
mkdir "$partial"
fetch "$FILE_ID" "$partial/archive.zip"
echo "$FOLDER:"
files unpack "$partial/archive.zip" "$partial/generators" "$FOLDER" || fail 'the archive from the Drive does not hold the samples (see above)'
files check "$FOLDER" || fail "$FOLDER is incomplete (see above)"
