"""Instances of instruction data, in the order of their templates, a window at a time.

They come from files of lines {"template", "instruction", "response", "choices"?}, in which the lines of a template
follow each other, or from candidate files, where a task is a template.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from cappy.errors import InputError
from cappy.files import jsonl
from cappy.files.wording import listed, not_found, shown
from cappy.tasks.candidates import read_examples

KEYS = ('template', 'instruction', 'response')
TRAIN = '_train.jsonl'  # how the names of the candidate files end that are read


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
    """Instances of one template that are worked on together.

    is_first: of their template. n_lines: that were read for them, n_empty of them with an empty text.
    """

    template: str
    is_first: bool
    instances: list[Instance]
    n_lines: int
    n_empty: int


class Line(NamedTuple):
    """One line of a source, texts stripped. Instruction and response may be empty."""

    template: str
    instruction: str
    response: str
    choices: tuple[str, ...] = ()


def read_lines(paths: Sequence[Path]) -> Iterator[Line]:
    """The lines of the files, in order. Raises InputError naming file, line and field."""
    for path in paths:
        for _, line in jsonl.read(path, _parse_line):
            yield line


def check_sources(paths: Sequence[Path]) -> dict[str, int]:
    """{template: lines} of the files, in order, every line having been read.

    Raises InputError naming file, line and field; also where lines of a template stand apart, or there is none.
    """
    counts, ends = {}, {}
    previous = None
    for path in paths:
        n_before = sum(counts.values())
        for number, line in jsonl.read(path, _parse_line):
            template = line.template
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


def sample_files(folder) -> dict[str, list[Path]]:
    """{task: files} of candidates to train on in a folder: {task}_train.jsonl, or {generator}/{task}_train.jsonl."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(not_found(folder, 'folder', 'give one of candidate files'))
    files = {}
    for path in sorted([*folder.glob(f'*{TRAIN}'), *folder.glob(f'*/*{TRAIN}')], key=lambda path: (path.name, path)):
        files.setdefault(path.name.removesuffix(TRAIN), []).append(path)
    if not files:
        raise InputError(f'{folder}: has no {{task}}{TRAIN} or {{generator}}/{{task}}{TRAIN}')
    return files


def sample_windows(files: Mapping[str, Sequence[Path]], size, limit=None) -> Iterator[Window]:
    """The examples of candidate files {task: files}; those of several generators with one instruction are one instance.

    All files of a task are in memory together.
    """
    for task, paths in files.items():
        merged = {}
        n_lines = 0
        for path in paths:
            for example in read_examples(path):
                n_lines += 1
                references, samples = merged.setdefault(example.instruction.strip(), ({}, {}))
                references |= dict.fromkeys(filter(None, map(str.strip, example.references)))
                samples |= dict.fromkeys(filter(None, map(str.strip, example.candidates)))
        n_empty = sum(not (instruction and references) for instruction, (references, _) in merged.items())
        instances = [
            Instance(task, number, instruction, tuple(references), samples=tuple(samples))
            for number, (instruction, (references, samples)) in enumerate(merged.items())
            if instruction and references
        ][:limit]
        for begin in range(0, max(len(instances), 1), size):
            is_first = not begin
            window = instances[begin : begin + size]
            yield Window(task, is_first, window, n_lines if is_first else 0, n_empty if is_first else 0)


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


def _parse_line(fields):
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
    merged, n_empty = {}, 0
    for number, line in numbered:
        if not (line.response and line.instruction):
            n_empty += 1
            continue
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
    return Window(template, is_first, instances, len(numbered), n_empty)


def _near_pattern(pattern, names):
    stem = pattern.strip('*')
    shortened = {name[: len(stem)] for name in names}
    near = get_close_matches(stem, sorted(shortened), n=3, cutoff=0.6)
    chosen = [name for name in names if any(name.startswith(start) for start in near)] or names
    return f'; {"near names" if near else "there are"}: {listed(chosen)}'
