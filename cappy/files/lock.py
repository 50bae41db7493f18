"""Who may write a result: one live process, by the kernel's lock.

Some file systems have no locks: Lustre mounted without `flock`, for one. There nothing is written unless the
environment variable CAPPY_ALLOW_NO_LOCKS is set, by which the user sees to it that no two processes write one result.
"""

import fcntl
import glob
import json
import logging
import os
import socket
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from cappy.errors import InputError
from cappy.files.outputs import check_files, existing_folder, file_tried_in, target_of

ALLOW_NO_LOCKS = 'CAPPY_ALLOW_NO_LOCKS'

logger = logging.getLogger(__name__)


class ResultLocked(InputError):
    """A live process works on this result. host, pid and since (ISO time) are None where they are not known."""

    def __init__(self, path, host, pid, since):
        holder = f'process {pid} on {host} since {since}' if pid else 'another process'
        super().__init__(f'{path}: {holder} works on this result; wait for it, or stop it')
        self.host, self.pid, self.since = host, pid, since


@contextmanager
def result_lock(paths):
    """Keep other processes off a result while the block runs.

    The lock is the kernel's (flock), so it ends with its process, however that ends; the file tells others who holds
    it. Raises ResultLocked where a live process holds it, InputError where the file cannot be made or locked.
    """
    path = paths.lock
    file, is_locked = _open_and_lock(path)
    try:
        if is_locked:
            _remove_partial_files(paths)
        _write_holder(file, path)
        yield
    finally:
        # Removed while still held: whoever waits for this file sees that it is gone and makes
        # a new one.
        with suppress(OSError):
            if _is_at(file, path):
                path.unlink()
        if is_locked:
            fcntl.flock(file, fcntl.LOCK_UN)  # a forked child may hold the file open longer
        os.close(file)


def check_result(*all_paths):
    """Raise InputError where the files of a result could not be written or locked, before the work that makes them.

    all_paths: as `result_lock` takes them, one for each result. A lock that is held is no reason.
    """
    tried = set()
    for paths in all_paths:
        check_files(*paths.written, paths.lock)
        folder = existing_folder(paths.lock.parent, paths.lock)
        if folder in tried:
            continue
        tried.add(folder)
        with file_tried_in(folder, paths.lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                _refuse_without_locks(paths.lock, error)


def _refuse_without_locks(path, error):
    """Raise InputError unless the user allows to go on without locks."""
    if os.environ.get(ALLOW_NO_LOCKS, '0') not in ('', '0'):
        return
    raise InputError(
        f'{path}: cannot be locked ({error.strerror}): this file system seems to have no locks, by which two processes '
        f'are kept off one result. Write to another one, or set {ALLOW_NO_LOCKS}=1 and see to it that no two commands '
        'write the same output at the same time'
    ) from error


def _open_and_lock(path):
    """(file descriptor of the file at `path`, whether it is locked: always, but on file systems without locks)."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InputError(
                f'{path}: cannot be written ({error.strerror}); choose a results folder that can'
            ) from error
        ours = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = _is_at(file, path)  # else its holder removed it after we had opened it
            if ours:
                return file, True
        except BlockingIOError:
            raise ResultLocked(path, *_read_holder(file)) from None
        except OSError as error:
            _refuse_without_locks(path, error)
            logger.warning('%s: not locked; no other command may write this output now (%s)', path, ALLOW_NO_LOCKS)
            ours = True
            return file, False
        finally:
            if not ours:
                os.close(file)


def _is_at(file, path):
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _write_holder(file, path):
    holder = {
        'host': socket.gethostname(),
        'pid': os.getpid(),
        'since': datetime.now(UTC).isoformat(timespec='seconds'),
    }
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode(), 0)
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror})') from error


def _read_holder(file):
    try:
        holder = json.loads(os.pread(file, 4096, 0))
        return holder['host'], holder['pid'], holder['since']
    except (OSError, ValueError, TypeError, KeyError):
        return None, None, None  # its holder has not written it yet


def _remove_partial_files(paths):
    """What a killed process left half-written; the caller holds the lock, so nobody writes there."""
    for path in map(target_of, paths.written):
        for partial in path.parent.glob(f'.{glob.escape(path.name)}.*.partial'):
            with suppress(OSError):
                partial.unlink()
