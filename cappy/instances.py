"""Instances of instruction data: read from JSON lines in the order of their templates, a window at a time.

A source is a file of lines {"template", "instruction", "response", "choices"?}, in which the lines of a template follow
each other.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from cappy.errors import InputError
from cappy.jsonl import listed, numbered_lines, parse_object, shown

KEYS = ('template', 'instruction', 'response')


@dataclass(frozen=True, slots=True)
class Instance:
    """An instruction with its right responses, texts stripped and not empty.

    number: of its first line among those of its template, from 0. choices: given with it, the references among them;
    empty where none are. samples: of a language model.
    """

    template: str
    number: int
    instruction: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()


class Window(NamedTuple):
    """Instances of one template that are worked on together. is_first: of their template. n_lines: that were read for
    them; n_empty of those had an empty response, and n_repeated the instruction of another one.
    """

    template: str
    is_first: bool
    instances: list[Instance]
    n_lines: int
    n_empty: int
    n_repeated: int


class Line(NamedTuple):
    """One line of a source, texts stripped; the response may be empty."""

    template: str
    instruction: str
    response: str
    choices: tuple[str, ...] = ()


def read_lines(paths: Sequence[Path]) -> Iterator[Line]:
    """The lines of the files, in order. Raises InputError naming file, line and field."""
    for path in paths:
        for number, raw in numbered_lines(path):
            try:
                yield _parse_line(raw)
            except InputError as error:
                raise InputError(f'{path}:{number}: {error}') from error


def check_sources(paths: Sequence[Path]) -> dict[str, int]:
    """{template: lines} of the files, in order, every line having been read.

    Raises InputError naming file, line and field; also where lines of a template stand apart, or there is none.
    """
    counts, ends = {}, {}
    previous = None
    for path in paths:
        n_before = sum(counts.values())
        for number, raw in numbered_lines(path):
            try:
                template = _parse_line(raw).template
            except InputError as error:
                raise InputError(f'{path}:{number}: {error}') from error
            if template != previous and template in counts:
                raise InputError(
                    f'{path}:{number}: template: {template!r} stood before, up to {ends[template]}, with others '
                    'between; sort the lines by template, since one template at a time is held in memory'
                )
            counts[template] = counts.get(template, 0) + 1
            ends[template] = f'{path}:{number}'
            previous = template
        if sum(counts.values()) == n_before:
            raise InputError(f'{path}: holds no lines; write one JSON object a line')
    return counts


def windows(lines: Iterable[Line], size, limit=None) -> Iterator[Window]:
    """The instances of each template, so many lines at a time and at most `limit` lines of a template.

    Lines of one instruction in a window become one instance with several references. Lines with an empty response are
    left out.
    """
    for template, of_template in itertools.groupby(lines, key=lambda line: line.template):
        of_template = itertools.islice(enumerate(of_template), limit)
        for is_first in itertools.chain([True], itertools.repeat(False)):
            window = list(itertools.islice(of_template, size))
            if not window:
                break
            yield _as_window(template, is_first, window)


def match_names(names: Iterable[str], patterns: Sequence[str], flag, *, all_must_match=True) -> list[str]:
    """The names that a shell pattern fits, in their order.

    Raises InputError for a pattern that fits none, with near names, unless only some must.
    """
    names = list(names)
    fits = {pattern: {name for name in names if fnmatchcase(name, pattern)} for pattern in patterns}
    for pattern, found in fits.items():
        if not found and all_must_match:
            raise InputError(f'{flag}: {pattern!r} fits no template{_near_pattern(pattern, names)}')
    return [name for name in names if any(name in found for found in fits.values())]


def _parse_line(raw):
    fields = parse_object(raw)
    for key in KEYS:
        if key not in fields:
            raise InputError(f'{key}: missing; has {listed(fields)}')
        if not isinstance(fields[key], str):
            raise InputError(f'{key}: expected text, found {shown(fields[key])}')
    for key in KEYS[:2]:
        if not fields[key].strip():
            raise InputError(f'{key}: is empty; take the line out')
    response = fields['response'].strip()
    choices = _parse_choices(fields.get('choices'), response)
    return Line(fields['template'], fields['instruction'].strip(), response, choices)


def _parse_choices(choices, response):
    if choices is None:
        return ()
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise InputError(f'choices: expected a list of texts, found {shown(choices)}')
    choices = tuple(choice.strip() for choice in choices)
    for i, choice in enumerate(choices):
        if choice in choices[:i]:
            raise InputError(f'choices: {shown(choice)} stands there twice; keep one')
    if response and response not in choices:
        raise InputError(f'choices: the response {shown(response)} is not among them')
    return choices


def _as_window(template, is_first, numbered):
    merged, n_empty, n_read = {}, 0, 0
    for number, line in numbered:
        if not line.response:
            n_empty += 1
            continue
        n_read += 1
        # Choices belong to the key: the same question with other choices is another one.
        merged.setdefault((line.instruction, frozenset(line.choices)), []).append((number, line))
    instances = [
        Instance(
            template,
            group[0][0],
            instruction,
            tuple(dict.fromkeys(line.response for _, line in group)),
            group[0][1].choices,
        )
        for (instruction, _), group in merged.items()
    ]
    return Window(template, is_first, instances, len(numbered), n_empty, n_read - len(instances))


def _near_pattern(pattern, names):
    from difflib import get_close_matches

    stem = pattern.strip('*')
    shortened = {name[: len(stem)] for name in names}
    near = get_close_matches(stem, sorted(shortened), n=3, cutoff=0.6)
    chosen = [name for name in names if any(name.startswith(start) for start in near)] or names
    return f'; {"near names" if near else "there are"}: {listed(chosen)}'
