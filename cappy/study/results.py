"""Result files of a cell: their paths, how they are written (whole or not at all), and how they are read."""

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cappy.errors import InputError
from cappy.files import jsonl
from cappy.files.atomic import read_text, shortest_float32, to_json, write_together
from cappy.files.jsonl import is_number
from cappy.files.updates import write_rows
from cappy.files.wording import shown


@dataclass(frozen=True, slots=True)
class ResultPaths:
    """The files of one cell, {results_dir}/{generator}/{task} with a suffix for each."""

    results_dir: str | Path
    generator: str
    task: str

    def _with(self, suffix):
        return Path(self.results_dir) / self.generator / f'{self.task}{suffix}'

    @property
    def result(self) -> Path:
        """rougeL, comparison of the picks, settings, counts, seconds, versions, device."""
        return self._with('.json')

    @property
    def candidates(self) -> Path:
        """Score and rougeL of every candidate, one line per example."""
        return self._with('.candidates.jsonl')

    @property
    def updates(self) -> Path:
        """Pairs, learning rate, loss and gradient norm of each update."""
        return self._with('.train.csv')

    @property
    def lock(self) -> Path:
        """Locked while a process works on the cell."""
        return self._with('.lock')

    @property
    def checkpoint(self) -> Path:
        """Folder with the training state from which a stopped training is resumed."""
        return self._with('.checkpoint')

    @property
    def written(self) -> tuple[Path, ...]:
        """The files that are written under a temporary name first, which a killed process may leave behind."""
        return self.result, self.candidates, self.updates


def describe_candidates(example, scores, rougeL, rougeL_by_pick=None, pick=None) -> dict:
    """A line of the candidates file.

    example: a candidates.Example with n candidates; scores: float32 [n]; rougeL: float64 [n], in their order. The pick
    is a place among them, None: the first candidate with the highest score. rougeL_by_pick: of this example, by name of
    the pick, so that picks can be compared example by example.
    """
    by_pick = {} if rougeL_by_pick is None else {'picked': {name: float(v) for name, v in rougeL_by_pick.items()}}
    decodings = {}
    for sample in example.samples:
        decodings.setdefault(sample.response, {})[sample.decoding] = None
    pick = int(np.argmax(scores)) if pick is None else pick
    return {
        'example_idx': example.example_idx,
        'pick': pick,
        'rougeL': float(rougeL[pick]),
        **by_pick,
        'candidates': [
            {
                'response': response,
                'score': shortest_float32(score),
                'rougeL': float(value),
                'decodings': list(decodings[response]),
            }
            for response, score, value in zip(example.candidates, scores, rougeL, strict=True)
        ],
    }


def write_result(paths: ResultPaths, result: dict, candidates: Iterable[dict], updates: Iterable[Sequence]):
    """Write the three files of a cell together, the result last: where it exists, the others do.

    result: JSON values, 'rougeL' among them; candidates: lines as `describe_candidates` makes them, in order; updates:
    as `cappy.files.updates.Update`. Raises InputError where a number is not finite, or a file cannot be written; then
    those of an earlier result stay.
    """
    candidates = list(candidates)
    _check_scores_are_finite(paths.candidates, candidates)
    text = to_json(paths.result, result, indent=4)
    with write_together(paths.candidates, paths.updates, paths.result) as (of_candidates, of_updates, of_result):
        for line in candidates:
            of_candidates.write(to_json(paths.candidates, line) + '\n')
        write_rows(of_updates, paths.updates, updates)
        of_result.write(text + '\n')


def read_result(path) -> dict:
    """The result at `path`. Raises InputError where it is missing, not JSON, or without a rougeL.

    Its other fields may have been written by anything.
    """
    text = read_text(path)
    try:
        result, _ = jsonl.without_halves(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path}: not a result ({error}), found {text[:40].strip()!r}') from error
    if not isinstance(result, dict) or not is_number(result.get('rougeL')):
        raise InputError(f'{path}: not a result; expected an object with a number rougeL')
    return result


def settings_of(result: dict) -> dict:
    """The settings of a result; none where it was written by something else."""
    settings = result.get('settings')
    return settings if isinstance(settings, dict) else {}


def text_settings(result: dict) -> dict[str, str]:
    """Those settings of a result that are texts; none where it was written by something else."""
    return {name: value for name, value in settings_of(result).items() if isinstance(value, str)}


@contextmanager
def shown_result(path):
    """Around what shows the result at `path`: where a field is missing or of another kind, InputError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f'{path}: not a result of this script ({type(error).__name__}: {error}); --overwrite replaces it'
        ) from error


def read_candidates(path) -> list[dict]:
    """The lines of a candidates file, in order. Raises InputError naming the line that is broken.

    Numbers may be NaN.
    """
    lines = [line for _, line in jsonl.read(path, _check_line)]
    if not lines:
        raise InputError(f'{path}: holds no candidates')
    return lines


def _check_line(line):
    _check(line, 'candidates', list, 'a list')
    _check(line, 'pick', int, 'the place of a candidate')
    if not 0 <= line['pick'] < len(line['candidates']):
        raise InputError(f'not a line of candidates (pick {line["pick"]} of {len(line["candidates"])} candidates)')
    _check(line, 'example_idx', int | str, 'an integer or text')
    _check_number(line, 'rougeL')
    for candidate in line['candidates']:
        if not isinstance(candidate, dict):
            raise InputError(f'candidates: expected objects, found {shown(candidate)}')
        _check(candidate, 'response', str, 'text')
        _check_number(candidate, 'score')
        _check_number(candidate, 'rougeL')
        _check(candidate, 'decodings', list, 'a list of names')
        if not all(isinstance(name, str) for name in candidate['decodings']):
            raise InputError(f'decodings: expected a list of names, found {shown(candidate["decodings"])}')
    if line.get('picked') is not None:
        _check(line, 'picked', dict, 'the rougeL of each pick')
        for name in line['picked']:
            _check_number(line['picked'], name)
    return line


def _check(fields, key, kind, expected):
    if key not in fields:
        raise InputError(f'{key} is missing')
    if not isinstance(fields[key], kind) or isinstance(fields[key], bool):
        raise InputError(f'{key}: expected {expected}, found {shown(fields[key])}')


def _check_number(fields, key):
    """NaN is one here: it is shown as missing."""
    _check(fields, key, int | float, 'a number')
    if isinstance(fields[key], int) and not is_number(fields[key]):
        raise InputError(f'{key}: expected a number, found one of {len(str(fields[key]))} digits')


def _check_scores_are_finite(path, lines):
    for line in lines:
        for number, candidate in enumerate(line['candidates']):
            if not math.isfinite(candidate['score']):
                raise InputError(
                    f'{path}: not written; example_idx {line["example_idx"]!r}, candidate {number} '
                    f'has score {candidate["score"]}: the scorer has weights that are not finite'
                )
