"""Files that appear whole or not at all."""

import json
import os
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from cappy.errors import InputError
from cappy.files.outputs import is_stream, open_stream, target_of

TEXT = {'encoding': 'utf-8', 'newline': '\n'}


@contextmanager
def write_atomically(path, mode='w'):
    """A file that takes its place at `path` when the block ends, and vanishes if it fails; text is UTF-8.

    Makes the folders above. A link stays, and what it points to is replaced; a device or a pipe is written in place.
    mode: 'w', or 'wb' for bytes. Raises InputError where the file cannot be written (rights, space).
    """
    options = {} if 'b' in mode else TEXT
    if is_stream(path):
        with _writing(path, path), open_stream(path, mode, **options) as file:
            yield file
        return
    target = target_of(path)
    partial = target.with_name(f'.{target.name}.{uuid.uuid4().hex[:12]}.partial')
    try:
        with _writing(path, target, partial):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, mode, **options) as file:
                yield file
                _to_disk(file)
            os.replace(partial, target)
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def write_together(*paths):
    """Text files (UTF-8) that take their places together when the block ends, in the order of the paths.

    All are on the disk before the first takes its place: where one cannot be written, the old ones all stay.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(write_atomically(path)) for path in reversed(paths)][::-1]
        yield files
        for path, file in zip(paths, files, strict=True):
            with _writing(path, path):
                _to_disk(file)


@contextmanager
def _writing(path, *places):
    """Turn an OSError about one of the places into an InputError that names the path."""
    try:
        yield
    except OSError as error:
        if not _is_about(error, *places):
            raise  # the caller's block failed on a file or pipe of its own
        raise InputError(f'{path}: cannot be written ({error.strerror or error})') from error


def _to_disk(file):
    file.flush()
    os.fsync(file.fileno())


def shortest_float32(value) -> float:
    """The number of fewest digits that becomes `value` again when read as float32."""
    return float(str(np.float32(value)))


def write_json(path, value):
    """Write a value as JSON, whole or not at all. Raises InputError where a number is not finite."""
    write_text(path, to_json(path, value, indent=4))


def read_fields(path, names: Sequence[str]) -> dict:
    """The result of a script at `path`. Raises InputError where it is not JSON, or lacks one of the fields."""
    try:
        result = json.loads(Path(path).read_text(encoding='utf-8'))
        for name in names:
            result[name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f'{path}: not a result of this script ({error}); --overwrite replaces it') from error
    return result


def write_text(path, text):
    """Write a text and the end of its last line, whole or not at all."""
    with write_atomically(path) as file:
        file.write(text + '\n')


def to_json(path, value, indent=None) -> str:
    """A value as JSON, arrays as lists. Raises InputError naming the path where a number is not finite."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, default=_plain)
    except ValueError as error:
        raise InputError(f'{path}: not written, since it would hold a number that is not finite') from error


def _is_about(error, *places):
    if error.filename is None:  # a write that failed, by lack of space for one
        return not isinstance(error, ConnectionError)
    return str(error.filename) in {str(part) for place in places for part in (place, *Path(place).parents)}


def _plain(value):
    """What JSON can hold in place of an array, a scalar of an array's type, or a path."""
    if isinstance(value, np.float32):
        return shortest_float32(value)
    return value.tolist() if hasattr(value, 'tolist') else str(value)


def read_text(path) -> str:
    """A text file (UTF-8). Raises InputError where it is missing, damaged or cannot be read."""
    try:
        return Path(path).read_text(encoding='utf-8')
    except FileNotFoundError as error:
        raise InputError(f'{path}: no such file') from error
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: not UTF-8; the file is damaged') from error
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from error
