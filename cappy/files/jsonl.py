"""JSON lines: one JSON object per line, gzip or not, read with the line's number in every error."""

import gzip
import json
import re
import zlib
from pathlib import Path

from cappy.errors import InputError
from cappy.files.wording import not_found, shown

# Only a \u escape can bring half of a surrogate pair into valid UTF-8; tokenizers cannot encode one.
_SURROGATE_ESCAPE = re.compile(rb'\\u[dD][89a-fA-F]')


def read(path, parse=None, *, remedy=''):
    """Yield (line number from 1, parse(fields)) of each line that is not blank; the fields themselves without parse.

    parse: called with the dict of a line; its InputError says what is wrong with the fields and not where. remedy: the
    next step if there is no such file, as `wording.not_found` takes it. Raises InputError that begins with the path and
    the line number.
    """
    for number, raw in numbered_lines(path, remedy=remedy):
        yield number, parse_line(path, number, raw, parse)


def parse_line(path, number, raw, parse=None):
    """What `read` yields for one line, given as bytes, for a reader that needs the bytes too."""
    try:
        fields = parse_object(raw)
        return fields if parse is None else parse(fields)
    except InputError as error:
        raise InputError(f'{path}:{number}: {error}') from error


def numbered_lines(path, *, remedy=''):
    """Yield (line number from 1, bytes) of each line that is not blank; gzip where the path ends in .gz.

    Raises InputError for a file that is missing or cannot be read.
    """
    path = Path(path)
    try:
        with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    raw = raw.removeprefix(b'\xef\xbb\xbf')  # the mark with which some editors begin UTF-8
                if not raw.isspace() and raw:
                    yield number, raw
    except FileNotFoundError as error:
        raise InputError(not_found(path, remedy=remedy)) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f'{path}: its gzip data is broken or cut off ({error}); fetch the file again') from error
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from error


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


def _check_encodable(fields):
    for key, value in fields.items():
        try:
            json.dumps({key: value}, ensure_ascii=False).encode('utf-8')
        except UnicodeEncodeError as error:
            raise InputError(f'{key}: holds half of a surrogate pair, which is no character') from error
