"""Who may write a result: one live process, by the kernel's lock."""

import fcntl
import glob
import json
import os
import socket
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from cappy.errors import InputError


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
    it. Raises ResultLocked where a live process holds it, InputError where the file cannot be made.
    """
    path = paths.lock
    file = _open_and_lock(path)
    try:
        _remove_partial_files(paths)
        _write_holder(file, path)
        yield
    finally:
        # Removed while still held: whoever waits for this file sees that it is gone and makes
        # a new one.
        with suppress(OSError):
            if _is_at(file, path):
                path.unlink()
        fcntl.flock(file, fcntl.LOCK_UN)  # a forked child may hold the file open longer
        os.close(file)


def _open_and_lock(path):
    """File descriptor of the locked file, which is the one at `path`."""
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
                return file
        except BlockingIOError:
            raise ResultLocked(path, *_read_holder(file)) from None
        except OSError as error:
            raise InputError(f'{path}: cannot be locked ({error.strerror})') from error
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
    for path in paths.written:
        for partial in path.parent.glob(f'.{glob.escape(path.name)}.*.partial'):
            with suppress(OSError):
                partial.unlink()
