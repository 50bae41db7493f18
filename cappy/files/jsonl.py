"""JSON lines: read a line at a time, and what error messages say of them."""

import gzip
import json
import re
import zlib
from difflib import get_close_matches

from cappy.errors import InputError

# Only a \u escape can bring half of a surrogate pair into valid UTF-8; tokenizers cannot encode one.
_SURROGATE_ESCAPE = re.compile(rb'\\u[dD][89a-fA-F]')


def numbered_lines(path):
    """Yield (line number from 1, bytes) of each line that is not blank; path: a Path, gzip where it ends in .gz."""
    try:
        with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    raw = raw.removeprefix(b'\xef\xbb\xbf')  # some editors begin UTF-8 with a mark
                if not raw.isspace() and raw:
                    yield number, raw
    except FileNotFoundError as error:
        raise InputError(f'{path}: no such file{near_entries(path)}') from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f'{path}: its gzip data is broken or cut off ({error}); fetch the file again') from error
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from error


def read_objects(path):
    """Yield (line number from 1, dict) of each line that is not blank; InputError names file and line."""
    for number, raw in numbered_lines(path):
        try:
            fields = parse_object(raw)
        except InputError as error:
            raise InputError(f'{path}:{number}: {error}') from error
        yield number, fields


def parse_object(raw):
    """The dict of a line, given as bytes. InputError says what is wrong with it and not where."""
    try:
        line = raw.decode('utf-8')
    except UnicodeDecodeError as error:
        raise InputError(f'not UTF-8 (byte {error.start + 1}); save the file as UTF-8') from error
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        cut_off = '' if raw.endswith(b'\n') else '; the line has no end, so the file may be cut off'
        raise InputError(f'not JSON ({error.msg}), found {line[:60].strip()!r}{cut_off}') from error
    except (RecursionError, ValueError) as error:  # nested too deep; an integer of too many digits
        raise InputError(f'not JSON that can be read ({error})') from error
    if not isinstance(fields, dict):
        raise InputError(f'expected a JSON object, found {shown(fields)}')
    if _SURROGATE_ESCAPE.search(raw):
        _check_encodable(fields)
    return fields


def near_entries(path):
    """What stands near a missing path: its parent's entries, closest names first."""
    parent = path.parent
    if not parent.is_dir():
        return f'; nor is there a folder {parent}'
    return near_names(path.name, [entry.name for entry in parent.iterdir()], parent)


def near_names(name, names, folder):
    """Those of the names in a folder that resemble a missing one, else some of them, for an error message."""
    near = get_close_matches(name, sorted(names), n=3, cutoff=0.5)
    if near:
        return f'; near names in {folder}: {", ".join(near)}'
    return f'; {folder} has {listed(sorted(names))}'


def listed(names, most=6):
    """Names in a row, cut to a number that fits an error message."""
    names = list(names)
    if not names:
        return 'nothing'
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def shown(value, most=60):
    """A JSON value as the file spells it, cut to a length that fits an error message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else text[: most - 2] + '..'


def _check_encodable(fields):
    for key, value in fields.items():
        try:
            json.dumps({key: value}, ensure_ascii=False).encode('utf-8')
        except UnicodeEncodeError as error:
            raise InputError(f'{key}: holds half of a surrogate pair, which is no character') from error
