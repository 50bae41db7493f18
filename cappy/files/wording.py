"""Words for error messages: what is near a missing path or name, lists of names, and JSON values, cut to fit."""

import json
from difflib import get_close_matches
from pathlib import Path

_MIN_SIMILARITY = 0.66  # of difflib, 0 to 1: slips of the pen are above, other names with a common part below


def not_found(path, kind='file', remedy='') -> str:
    """What to say of a missing path: the similar names beside it or, where there are none, how to get it.

    path: a Path. kind: what was expected there ('file', 'folder of generators'). remedy: the next step, a part of a
    sentence such as 'python scripts/get_bigbench_data.py makes it'.
    """
    message, parent = f'{path}: no such {kind}', path.parent
    entries = parent.iterdir() if parent.is_dir() else ()
    names = sorted(entry.name for entry in entries if not entry.name.startswith('.'))
    near = _near(path.name, names)
    if near:
        return f'{message}; near names in {parent}: {", ".join(near)}'
    if not path.is_absolute():
        message += f' (relative to the current folder, {Path.cwd()})'
    if not parent.is_dir():
        message += f'; there is no folder {parent} either'
    elif not remedy:
        message += f'; {parent} has {listed(names)}'
    return message + (f'; {remedy}' if remedy else '')


def near_names(name, names, place) -> str:
    """The end of a message about a missing name: the names in a place that resemble it, or the first ones."""
    names = sorted(names)
    near = _near(name, names)
    return f'; near names in {place}: {", ".join(near)}' if near else f'; {place} has {listed(names)}'


def listed(names, max_names=6) -> str:
    """Names with commas between them, long ones cut; those beyond max_names are counted."""
    names = [cut(str(name)) for name in names]
    if not names:
        return 'nothing'
    n_more = len(names) - max_names
    return ', '.join(names[:max_names]) + (f' and {n_more} more' if n_more > 0 else '')


def shown(value, max_characters=60) -> str:
    """A JSON value as the file spells it, cut to max_characters."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (RecursionError, ValueError):  # nested too deep; an integer of too many digits
        text = f'a {type(value).__name__} that is nested too deep, or of too many digits'
    return cut(text, max_characters)


def cut(text, max_characters=60) -> str:
    """A text, its end replaced by two points where it is longer than max_characters."""
    return text if len(text) <= max_characters else text[: max_characters - 2] + '..'


def first_line(error: Exception) -> str:
    """The first line of an error's message; its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _near(name, names):
    return get_close_matches(name, names, n=3, cutoff=_MIN_SIMILARITY)
