"""Input files as bytes: plain or gzip, and pipes, which are read once however often they are opened."""

import contextlib
import gzip
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import zlib
from pathlib import Path

from cappy.errors import InputError
from cappy.files.wording import not_found

logger = logging.getLogger(__name__)

GZIP_ENDING = '.gz'
_GZIP_BEGINNING = b'\x1f\x8b'
_copies = {}  # {(path, device, inode) of a pipe: temporary file of what it held}
_left = set()  # files of which it was said that they are not read


def find(path) -> Path:
    """The file at `path` or, where there is none, {path}.gz; the path itself where neither is there.

    Where both are there, the plain one is taken, and the log says once that the other one is not read.
    """
    path = Path(path)
    packed = path.with_name(path.name + GZIP_ENDING) if path.name else path
    try:
        if packed == path or not packed.exists():
            return path
        if not path.exists():
            return packed
    except OSError:  # a name that is too long, or a folder that may not be read; opening it says so
        return path
    if packed not in _left:
        _left.add(packed)
        logger.warning('%s is read, and %s beside it is not; remove one of them', path, packed.name)
    return path


def stems(folder, ending) -> set[str]:
    """The names of a folder's files with this ending, gzip or not, without it."""
    return {
        path.name.removesuffix(GZIP_ENDING).removesuffix(ending)
        for pattern in (f'*{ending}', f'*{ending}{GZIP_ENDING}')
        for path in Path(folder).glob(pattern)
    }


def size(path) -> int:
    """Bytes of the file that `find` gives, as it lies there; 0 where there is none."""
    path = find(path)
    return path.stat().st_size if path.exists() else 0


def is_pipe(path) -> bool:
    """Whether `path` is a pipe or a device, which is read once and written in place, as what a shell makes of <(..)."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


@contextlib.contextmanager
def opened(path, *, remedy='', once=False):
    """The bytes of a file, unpacked where its name or its beginning says gzip.

    What a pipe holds is kept in a temporary file until the process ends, so that it can be opened again; with `once` it
    is read as it comes. remedy: as `wording.not_found` takes it. Raises InputError, also from the block that reads,
    where the file is missing, damaged or cannot be read.
    """
    path = Path(path)
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(_copied(path) if is_pipe(path) and not once else path, 'rb'))
            if path.suffix == GZIP_ENDING or file.peek(2)[:2] == _GZIP_BEGINNING:
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            yield file
    except FileNotFoundError as error:
        raise InputError(not_found(path, remedy=remedy)) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f'{path}: its gzip data is broken or cut off ({error}); fetch the file again') from error
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror or error})') from error


def digest(path) -> str:
    """SHA-256 of the file's bytes, unpacked, in hexadecimal. Raises InputError as `opened` does."""
    with opened(find(path)) as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _copied(path):
    """The name of a file of what a pipe holds, or held when it was first opened."""
    status = os.stat(path)
    place = str(path), status.st_dev, status.st_ino
    if place not in _copies:
        _copies[place] = copy = tempfile.NamedTemporaryFile()  # noqa: SIM115 - it goes with the process
        with open(path, 'rb') as pipe:
            shutil.copyfileobj(pipe, copy)
        copy.flush()
    return _copies[place].name
