"""Outputs that are written in parts, so that a stopped run continues."""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from cappy.errors import InputError
from cappy.files.atomic import write_json
from cappy.files.outputs import target_of
from cappy.files.settings import differing


@dataclass(frozen=True)
class OutputPaths:
    """The files beside an output, as `files.lock.result_lock` takes them; of a link, beside what it points to."""

    result: Path

    def __post_init__(self):
        object.__setattr__(self, 'result', target_of(self.result))

    @property
    def partial(self) -> Path:
        """What is written so far; renamed to the output when whole."""
        return self.result.with_name(f'{self.result.name}.partial')

    @property
    def settings(self) -> Path:
        """What `partial` is made with."""
        return self.result.with_name(f'{self.result.name}.partial.json')

    @property
    def result_settings(self) -> Path:
        """What the output was made with, where that is kept."""
        return self.result.with_name(f'{self.result.name}.settings.json')

    @property
    def lock(self) -> Path:
        """Held while a process writes."""
        return self.result.with_name(f'{self.result.name}.lock')

    @property
    def written(self) -> tuple[Path, ...]:
        """The files that are written."""
        return self.result, self.partial, self.settings, self.result_settings

    def check_continues(self, settings):
        """Return what `partial` was begun with.

        Raises InputError where it was begun with other settings than these, or with unknown ones.
        """
        begun_with = _read_settings(self.settings, self.partial)
        missing = {name: None for name in settings if name not in begun_with}
        if other := differing(begun_with | missing, settings):
            raise InputError(f'{self.partial}: was begun with {", ".join(other)}; --overwrite begins again')
        return begun_with

    def check_made_with(self, settings):
        """Return what the output was made with. Raises InputError where that is something else, or not known."""
        made_with = _read_settings(self.result_settings, self.result)
        missing = {name: None for name in settings if name not in made_with}
        if other := differing(made_with | missing, settings):
            raise InputError(
                f'{self.result}: exists, made with {", ".join(other)}; --overwrite replaces it, another --output keeps '
                'both'
            )
        return made_with


class PartialOutput:
    """A file that grows by whole records and can be continued after any stop; it takes its place when it is whole.

    settings: JSON values; what was begun with others is not continued. The number of records and bytes that are safely
    on the disk is kept beside it, and `state`: more JSON values of the caller's, as they were at the last mark.
    """

    def __init__(self, paths: OutputPaths, settings: dict):
        self.paths, self.settings, self.n_records, self.state = paths, settings, 0, {}

    def open(self, header: bytes, overwrite=False):
        """Begin with the header, or continue: n_records says with how many. Raises InputError as `check_continues`."""
        if overwrite or not self.paths.partial.exists():
            n_bytes = len(header)
            try:
                self._write_settings(0, n_bytes)
                with self._named():
                    self.paths.partial.write_bytes(header)
            except BaseException:
                self._remove()
                raise
        else:
            n_bytes = self._continue()
        with self._named():
            self._file = open(self.paths.partial, 'r+b')  # noqa: SIM115 - finish or close closes it
            self._file.truncate(n_bytes)
            self._file.seek(n_bytes)

    def _continue(self):
        """Take over what the last mark says; returns the number of bytes before it."""
        begun_with = self.paths.check_continues(self.settings)
        self.n_records, n_bytes = (_count(begun_with, name) for name in ('records', 'bytes'))
        n_there = self.paths.partial.stat().st_size
        if None in (self.n_records, n_bytes) or n_there < n_bytes:
            raise InputError(
                f'{self.paths.partial}: is not what {self.paths.settings.name} says of it ({n_there} bytes); '
                '--overwrite begins again'
            )
        own = {*self.settings, 'records', 'bytes'}
        self.state = {name: value for name, value in begun_with.items() if name not in own}
        return n_bytes

    def write(self, record: bytes):
        """Add a record."""
        with self._named():
            self._file.write(record)

    def mark(self, n_records):
        """Everything up to record n_records is written: a continued run starts behind it."""
        with self._named():
            self._file.flush()
            os.fsync(self._file.fileno())
        self.n_records = n_records
        self._write_settings(n_records, self._file.tell())

    def finish(self, n_records):
        """The output is whole: it takes its place, with what it was made with beside it."""
        self.mark(n_records)
        self._file.close()
        write_json(self.paths.result_settings, {**self.settings, **self.state, 'records': n_records})
        with self._named():
            os.replace(self.paths.partial, self.paths.result)
            self.paths.settings.unlink(missing_ok=True)

    def close(self):
        """Leave it to be continued; where no record is safe yet, nothing stays."""
        with contextlib.suppress(OSError):  # a full disk, which `write` has reported
            self._file.close()
        if not self.n_records:
            self._remove()

    def _remove(self):
        for path in (self.paths.partial, self.paths.settings):
            with contextlib.suppress(OSError):
                path.unlink()

    def _write_settings(self, n_records, n_bytes):
        counts = {'records': n_records, 'bytes': n_bytes}
        write_json(self.paths.settings, {**self.settings, **self.state, **counts})

    @contextlib.contextmanager
    def _named(self):
        try:
            yield
        except OSError as error:
            raise InputError(
                f'{self.paths.partial}: cannot be written ({error.strerror}); make room, and the same command continues'
            ) from error


def _count(settings, name):
    value = settings.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _read_settings(path, of):
    """The settings in a file beside another; InputError where they cannot be read."""
    try:
        settings = json.loads(path.read_text(encoding='utf-8'))
        if not isinstance(settings, dict):
            raise ValueError(f'found a {type(settings).__name__}')
    except (OSError, ValueError) as error:
        raise InputError(
            f'{of}: exists, but {path.name}, which says what it was made with, cannot be read; --overwrite begins again'
        ) from error
    return settings
