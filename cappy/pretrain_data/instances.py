"""Instances of instruction data, template by template, in chunks that fit in memory.

They come from files of lines {"template", "instruction", "response", "choices"?}, in which the lines of a template
follow each other, or from candidate files, where a task counts as a template.
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
from cappy.files.inputs import find, stems
from cappy.files.wording import listed, not_found, shown
from cappy.tasks.candidates import read_examples

KEYS = ('template', 'instruction', 'response')
CHUNK_SIZE = 5000  # lines of a template that are in memory together
CANDIDATES_ENDING = '_train.jsonl'  # of the names of candidate files


@dataclass(frozen=True, slots=True)
class Instance:
    """An instruction with its right responses; all texts are stripped and not empty.

    number: of its first line among the lines of its template, from 0. choices: those that its line gives, the
    references among them; empty where it gives none. samples: responses of language models.
    """

    template: str
    number: int
    instruction: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()


class Chunk(NamedTuple):
    """Instances of one template that are in memory together.

    is_first: whether it is the first chunk of the template. n_lines: lines that were read for it, n_empty of them with
    an empty instruction or response.
    """

    template: str
    is_first: bool
    instances: list[Instance]
    n_lines: int
    n_empty: int


class Line(NamedTuple):
    """One line of a source; its texts are stripped, and instruction and response may be empty."""

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
    """Read every line of the files; returns the number of lines of each template, in order.

    Raises InputError naming file, line and field; also where lines of other templates are between those of a template,
    and for a file without lines.
    """
    counts, ends = {}, {}
    previous = None
    for path in paths:
        n_before = sum(counts.values())
        for number, line in jsonl.read(path, _parse_line):
            template = line.template
            if template != previous and template in counts:
                raise InputError(
                    f'{path}:{number}: template: {template!r} has lines up to {ends[template]} and again here, with '
                    'other templates between; sort the lines by template, since one template at a time is in memory'
                )
            counts[template] = counts.get(template, 0) + 1
            ends[template] = f'{path}:{number}'
            previous = template
        if sum(counts.values()) == n_before:
            raise InputError(f'{path}: holds no lines; write one JSON object per line')
    return counts


def chunks(lines: Iterable[Line], size=CHUNK_SIZE, limit=None) -> Iterator[Chunk]:
    """The chunks of each template: `size` lines in each, and at most `limit` lines of a template.

    Lines of a chunk that have the same instruction become one instance with several references. Lines with an empty
    instruction or response are left out.
    """
    for template, of_template in itertools.groupby(lines, key=lambda line: line.template):
        of_template = itertools.islice(enumerate(of_template), limit)
        for is_first in itertools.chain([True], itertools.repeat(False)):
            numbered = list(itertools.islice(of_template, size))
            if not numbered:
                break
            yield _make_chunk(template, is_first, numbered)


def sample_files(folder) -> dict[str, list[Path]]:
    """{task: candidate files} of a folder: its {task}_train.jsonl and {generator}/{task}_train.jsonl.

    Raises InputError where the folder is missing or has no such file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(not_found(folder, 'folder', 'give one of candidate files'))
    files = {}
    folders = [folder, *(inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith('.'))]
    places = [(task, inner) for inner in folders for task in stems(inner, CANDIDATES_ENDING)]
    paths = [(task, find(inner / f'{task}{CANDIDATES_ENDING}')) for task, inner in places]
    for task, path in sorted(paths, key=lambda named: (named[1].name, named[1])):
        files.setdefault(task, []).append(path)
    if not files:
        raise InputError(f'{folder}: has no {{task}}{CANDIDATES_ENDING} or {{generator}}/{{task}}{CANDIDATES_ENDING}')
    return files


def sample_chunks(files: Mapping[str, Sequence[Path]], size=CHUNK_SIZE, limit=None) -> Iterator[Chunk]:
    """The chunks of candidate files {task: files}: `size` instances in each, at most `limit` instances of a task.

    Examples that several generators answered become one instance with the samples of all. All files of a task are in
    memory together.
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
            counts = (n_lines, n_empty) if is_first else (0, 0)
            yield Chunk(task, is_first, instances[begin : begin + size], *counts)


def match_names(names: Iterable[str], patterns: Sequence[str], flag, *, all_must_match=True) -> list[str]:
    """The names that one of the shell patterns matches, in their order.

    all_must_match: whether a pattern that matches no name is an error, an InputError that begins with flag.
    """
    names = list(names)
    matches = {pattern: {name for name in names if fnmatchcase(name, pattern)} for pattern in patterns}
    for pattern, found in matches.items():
        if not found and all_must_match:
            raise InputError(f'{flag}: {pattern!r} matches no template{_near_pattern(pattern, names)}')
    return [name for name in names if any(name in found for found in matches.values())]


def _parse_line(fields):
    for key in KEYS:
        if key not in fields:
            raise InputError(f'{key}: missing; the line has {listed(fields)}')
        if not isinstance(fields[key], str):
            raise InputError(f'{key}: expected text, found {shown(fields[key])}')
    for key in KEYS[:2]:
        if not fields[key].strip():
            raise InputError(f'{key}: is empty; delete the line')
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
            raise InputError(f'choices: {shown(choice)} is there twice; keep one')
    if response and response not in choices:
        raise InputError(f'choices: the response {shown(response)} is not among them')
    return choices


def _make_chunk(template, is_first, numbered):
    merged, n_empty = {}, 0
    for number, line in numbered:
        if not (line.response and line.instruction):
            n_empty += 1
            continue
        # The choices are part of the key: the same question with other choices is another instance.
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
    return Chunk(template, is_first, instances, len(numbered), n_empty)


def _near_pattern(pattern, names):
    stem = pattern.strip('*')
    shortened = {name[: len(stem)] for name in names}
    near = get_close_matches(stem, sorted(shortened), n=3, cutoff=0.6)
    chosen = [name for name in names if any(name.startswith(start) for start in near)] or names
    return f'; {"near names" if near else "there are"}: {listed(chosen)}'
