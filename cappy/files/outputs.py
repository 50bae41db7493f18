"""Where outputs go: tried before the work that makes them; links are followed, devices and pipes written in place."""

import errno
import os
import re
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from cappy.errors import InputError
from cappy.files.inputs import is_pipe

STANDARD = '-'  # standard input or output
BYTES_TRIED = 4096  # a block: none is left on a disk that is full
PARTIAL_BYTES = 22  # that the name of a file has more while it is written
_DESCRIPTORS = {STANDARD: 1, '/dev/stdout': 1, '/dev/stderr': 2}


def target_of(path) -> Path:
    """Where a file is written: at the path itself or, where that is a link, where it points, so that the link stays.

    Raises InputError for a link that leads to itself.
    """
    path = Path(path)
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise InputError(f'{path}: cannot be written, since it is a link that leads to itself')
    return target


def is_stream(path) -> bool:
    """Whether a path is written in place: '-', a descriptor of this process, a pipe, or a device such as /dev/null."""
    return _descriptor(path) is not None or is_pipe(path)


def is_standard_output(path) -> bool:
    """Whether a path is another name of standard output."""
    return _descriptor(path) == 1


def open_stream(path, mode='w', **options):
    """Open what `is_stream` says is written in place, as `open` does.

    A descriptor is written where it stands: opened by its name, the file behind it would be emptied.
    """
    descriptor = _descriptor(path)
    return open(path if descriptor is None else os.dup(descriptor), mode, **options)


def check_files(*paths, streams=False):
    """Raise InputError where one of the files could not be written: rights, space, or what is at its place.

    Neither the files nor the folders above need exist, and nothing is left behind. streams: whether a device or a pipe
    will do.
    """
    tried = set()
    for path in paths:
        mode = _mode(path)
        if streams and is_stream(path):
            if _descriptor(path) is None and not os.access(path, os.W_OK):
                raise InputError(f'{path}: cannot be written ({os.strerror(errno.EACCES)})')
            continue
        if mode and stat.S_ISDIR(mode):
            raise InputError(f'{path}: is a folder, and a file is to be written there; name a file, or move it away')
        if is_stream(path) or (mode and not stat.S_ISREG(mode)):
            raise InputError(f'{path}: is a device or a pipe, and a file is to be written there; name a file')
        _try_place(path, tried)


def check_places(*paths):
    """Raise InputError where nothing could be made, or renamed, to be at one of the paths; nothing is left."""
    tried = set()
    for path in paths:
        _try_place(path, tried)


def check_folders(*paths):
    """Raise InputError where no file could be made in one of the folders, which need not exist; nothing is left."""
    for path in paths:
        with file_tried_in(existing_folder(Path(path), path), path):
            pass


def _try_place(path, tried):
    """Try the folder of a path, unless it is among those tried."""
    target = target_of(path)
    folder = existing_folder(target.parent, path)
    if len(os.fsencode(target.name)) + PARTIAL_BYTES > os.pathconf(folder, 'PC_NAME_MAX'):
        raise InputError(f'{path}: the name is too long for this file system; choose a shorter one')
    if folder not in tried:
        with file_tried_in(folder, path):
            tried.add(folder)


def existing_folder(folder: Path, path) -> Path:
    """The folder, or the first one above that exists; InputError about the path where a file is in its way."""
    while True:
        mode = _mode(folder, path)
        if mode and stat.S_ISDIR(mode):
            return folder
        if mode or folder.is_symlink():
            what = 'a link to nothing' if mode is None else 'a file'
            raise InputError(f'{path}: cannot be written (Not a directory): {folder} is {what}; choose another place')
        folder = folder.parent


@contextmanager
def file_tried_in(folder, path):
    """A file without a name in a folder. Raises InputError about the path where it cannot be made or written."""
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below
        try:
            file.write(bytes(BYTES_TRIED))
            file.flush()
        except OSError:
            with suppress(OSError):  # it writes again what it could not
                file.close()
            raise
    except OSError as error:
        raise InputError(
            f'{path}: cannot be written in {folder} ({error.strerror or error}); choose another place'
        ) from error
    with file:
        yield file


def _mode(path, about=None):
    """What is at a path, as os.stat has it, links followed; None where nothing is."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f'{about or path}: cannot be written ({error.strerror}); choose another place') from error


def _descriptor(path):
    """The number of the descriptor that a path names, None where it names none."""
    number = re.fullmatch('/(?:dev|proc/self)/fd/([0-9]+)', str(path))
    return int(number[1]) if number else _DESCRIPTORS.get(str(path))
