"""Settings: numbers that are in range, and what something was made with beside what is asked for now."""

import numbers
import re

from cappy.errors import InputError


def check_at_least(least, **settings):
    """Raise InputError for the first setting that is a number below `least`, or none; None is left to a default."""
    for name, value in settings.items():
        if value is not None and not (isinstance(value, numbers.Real) and value >= least):
            raise InputError(f'{name}: expected {least} or more, found {value!r}')


def differing(made, asked, ignoring=(), found=()):
    """What was made otherwise than it is asked for now, as texts 'learning_rate 1e-05 (asked for: 2e-05)'.

    made, asked: {setting: value}; ignoring: settings that change nothing; found: settings that `made` has as they were
    found where None was asked for. Settings that `made` does not have, since an older version wrote it, do not count.
    """
    return [
        f'{name} {_as_text(made[name])} (asked for: {_as_text(asked[name])})'
        for name in asked
        if name in made
        and name not in ignoring
        and _as_json(made[name]) != _as_json(asked[name])
        and not (name in found and asked[name] is None)
    ]


def _as_json(value):
    """A value as a file of results gives it back, which has lists alone."""
    return list(value) if isinstance(value, tuple) else value


def _as_text(value):
    """A value as an error shows it: of a SHA-256 digest the first twelve digits, which are enough to tell two apart."""
    if isinstance(value, str) and re.fullmatch('[0-9a-f]{64}', value):
        return value[:12]
    return repr(value)
