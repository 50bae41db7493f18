"""Paths of an output that is written in parts and continued."""

import json
from dataclasses import dataclass
from pathlib import Path

from cappy.errors import InputError


@dataclass(frozen=True)
class OutputPaths:
    """The files beside an output, as `files.lock.result_lock` takes them."""

    result: Path

    @property
    def partial(self) -> Path:
        """What is written so far; renamed to the output when whole."""
        return self.result.with_name(f'{self.result.name}.partial')

    @property
    def settings(self) -> Path:
        """What `partial` is made with."""
        return self.result.with_name(f'{self.result.name}.partial.json')

    @property
    def lock(self) -> Path:
        """Held while a process writes."""
        return self.result.with_name(f'{self.result.name}.lock')

    @property
    def written(self) -> tuple[Path, ...]:
        """The files that `write_atomically` makes."""
        return self.result, self.settings

    def check_continues(self, settings):
        """Raise InputError where `partial` was begun with other settings than these, or with unknown ones."""
        try:
            begun_with = json.loads(self.settings.read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise InputError(
                f'{self.partial}: exists, but {self.settings.name}, which says what it was made with, cannot be read; '
                '--overwrite begins anew'
            ) from error
        settings = json.loads(json.dumps(settings))  # tuples were written as lists
        other = [key for key in settings if begun_with.get(key) != settings[key]]
        if other:
            told = ', '.join(f'{key} {begun_with.get(key)!r} (asked for: {settings[key]!r})' for key in other)
            raise InputError(f'{self.partial}: was begun with {told}; --overwrite begins anew')
