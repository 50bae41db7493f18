"""The cells of a sweep, (generator, task): which are asked for, which have results, and what can be compared in them.

The reference is scripts/present_cappy_bigbench_results.py of github.com/tanyuqian/cappy.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cappy.errors import InputError
from cappy.files.jsonl import near_entries, near_names
from cappy.study import results
from cappy.study.results import ResultPaths
from cappy.tasks.candidates import SPLITS
from cappy.tasks.statistics import Difference, paired_intervals

ADAPTED = 'scorer after adapting'  # the way of picking that a result is about
PUBLISHED = 'published'  # the folder of published figures among the generators, and their name in a comparison
SEED_FOLDER = re.compile(r'seed\d+')  # where a sweep of several seeds puts the results of each
# Settings that may differ between cells of one table: they name the cell, or do not touch the result.
HARMLESS_SETTINGS = (
    'bigbench_gen_dir',
    'bigbench_gen_model',
    'bigbench_subset_name',
    'results_dir',
    'save_dir',
    'overwrite',
    'compare_before',
    'label_key',
    'eval_per_device_batch_size',
    'tokens_per_device',
    'eval_tokens_per_device',
    'gradient_checkpointing',
    'checkpoint_every',
    'n_model_shards',
    'n_processes',
    'host0_address',
    'host0_port',
    'process_id',
    'n_local_devices',
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell's result from each of the results folders (seeds, say); None where a folder has none."""

    generator: str
    task: str
    results: tuple[dict | None, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every folder has a result."""
        return all(result is not None for result in self.results)

    @property
    def rougeL(self) -> float | None:
        """Mean over the folders; None where one lacks the result."""
        return float(np.mean([result['rougeL'] for result in self.results])) if self.is_whole else None

    def picked(self, name) -> float | None:
        """Mean over the folders of another way of picking, as their comparisons have it."""
        values = [_compared(result, name) for result in self.results]
        return None if None in values else float(np.mean(values))

    def ways(self) -> list[str]:
        """Names of the ways of picking in the comparisons, in order."""
        return list(dict.fromkeys(name for result in self.results if result for name in _comparison(result)))


@dataclass(frozen=True, slots=True)
class CellExamples:
    """What a cell's examples say: the interval of its rougeL, its differences to other ways of picking, by name, and
    the intervals of these.
    """

    n_examples: int
    low: float
    high: float
    differences: dict[str, Difference]
    intervals: dict[str, tuple[float, float]]


def split_names(text: str, flag: str) -> list[str]:
    """The names in `a,b,c`, each once."""
    names = [name.strip() for name in text.split(',')]
    if not all(names):
        raise InputError(f'{flag} {text!r}: an empty name; write a,b,c')
    return list(dict.fromkeys(names))


def choose_folders(text: str, flag='--result_dir') -> list[Path]:
    """The results folders `a,b,c`, one a seed; of one that holds nothing but folders seed1, seed2, .. these."""
    folders = [Path(name) for name in split_names(text, flag)]
    if len(folders) == 1 and folders[0].is_dir():
        inside = [entry for entry in _subfolders(folders[0]) if entry.name != PUBLISHED]
        if inside and all(SEED_FOLDER.fullmatch(entry.name) for entry in inside):
            return sorted(inside, key=lambda entry: int(entry.name.removeprefix('seed')))
    return folders


def read_task_names(data_dir) -> list[str]:
    """The tasks of {data_dir}/subset_names.json, in its order."""
    path = Path(data_dir) / 'subset_names.json'
    try:
        names = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        told = f'{path}: no such file{near_entries(path)}; scripts/get_bigbench_data.py writes it'
        raise InputError(f'{told}, or name tasks with --tasks') from error
    except (OSError, ValueError) as error:
        raise InputError(f'{path}: cannot be read ({error})') from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f'{path}: expected a list of names of tasks')
    return list(dict.fromkeys(names))


def choose_tasks(asked: str | None, data_dir, found: Iterable[str]) -> list[str]:
    """The tasks asked for, `a,b,c`, or all that the data folder names.

    found: tasks that have files, which may be asked for too. Raises InputError for a name that neither has, with near
    ones.
    """
    if asked is None:
        return read_task_names(data_dir)
    has_names = (Path(data_dir) / 'subset_names.json').exists()
    known = set(found) | set(read_task_names(data_dir) if has_names else [])
    names = split_names(asked, '--tasks')
    for name in names:
        if name not in known:
            raise InputError(f'--tasks {name}: no such task{near_names(name, known, "the list of tasks")}')
    return names


def choose_generators(asked: str | None, folders: Sequence[Path], flag: str) -> list[str]:
    """The generators asked for, `a,b,c`, or all that have a folder in one of the folders, the FLAN-T5 sizes first.

    Raises InputError for a folder that is not there, and for a name without one, with near ones.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f'{folder}: no such folder{near_entries(folder)}')
    found = {entry.name for folder in folders for entry in _subfolders(folder)}
    found = {name for name in found if name != PUBLISHED and not SEED_FOLDER.fullmatch(name)}
    if asked is None:
        if not found:
            raise InputError(f'{folders[0]}: has no folder of a generator')
        return sorted(found, key=_by_size)
    names = split_names(asked, flag)
    for name in names:
        if name not in found:
            raise InputError(f'{flag} {name}: no such generator{near_names(name, found, folders[0])}')
    return names


def read_cells(folders, generators, tasks) -> tuple[list[Cell], list[str]]:
    """The cells, generators outside, and what is wrong with files that are no results (they count as missing)."""
    cells, faults = [], []
    for generator in generators:
        for task in tasks:
            found = []
            for folder in folders:
                path = ResultPaths(folder, generator, task).result
                try:
                    found.append(results.read_result(path) if path.exists() else None)
                except InputError as error:
                    faults.append(str(error))
                    found.append(None)
            cells.append(Cell(generator, task, tuple(found)))
    return cells, faults


def found_tasks(folders, generators) -> set[str]:
    """Tasks that have a result of one of the generators."""
    return {
        path.stem
        for folder in folders
        for generator in generators
        for path in (Path(folder) / generator).glob('*.json')
        if not path.name.startswith('.')
    }


def sampled_tasks(gens_dir, generators, splits=SPLITS) -> set[str]:
    """Tasks of which one of the generators has a file of samples, of one of the splits."""
    return {
        path.name.removesuffix(f'_{split}.jsonl')
        for generator in generators
        for split in splits
        for path in (Path(gens_dir) / generator).glob(f'*_{split}.jsonl')
    }


def whole_tasks(cells: Sequence[Cell], tasks) -> list[str]:
    """The tasks that all generators have, from every folder: those that averages may be taken over."""
    lacking = {cell.task for cell in cells if not cell.is_whole}
    return [task for task in tasks if task not in lacking]


def differing_settings(cells: Sequence[Cell]) -> dict[str, dict]:
    """Settings that are not the same in all cells: {name: {value: number of results}}.

    The seed may differ between folders, but not within one.
    """
    made_with = [
        (folder, cell.results[folder]['settings'])
        for cell in cells
        for folder in range(len(cell.results))
        if cell.results[folder] and isinstance(cell.results[folder].get('settings'), dict)
    ]
    differing = {}
    for name in dict.fromkeys(name for _, settings in made_with for name in settings):
        if name in HARMLESS_SETTINGS:
            continue
        counts, by_folder = {}, {}
        for folder, settings in made_with:
            value = json.dumps(settings.get(name))
            counts[value] = counts.get(value, 0) + 1
            by_folder.setdefault(folder, set()).add(value)
        if len(counts) > 1 and not (name == 'seed' and all(len(values) == 1 for values in by_folder.values())):
            differing[name] = counts
    return differing


def examples_of_cell(paths: Sequence[ResultPaths], rougeL: Sequence[float], n_resamples, seed=0) -> CellExamples:
    """Bootstrap over the examples of a cell, its folders' values of an example averaged.

    paths: the cell in each folder; rougeL: its results there, which the candidates must give too. Raises InputError
    where a file of candidates is missing, broken, or not of its result.
    """
    by_folder = []
    for cell, expected in zip(paths, rougeL, strict=True):
        lines = results.read_candidates(cell.candidates)
        try:
            picked = picked_rougeL(lines)
        except (TypeError, ValueError) as error:
            raise InputError(f'{cell.candidates}: a rougeL is no number ({error})') from error
        if not math.isclose(picked[ADAPTED].mean(), expected, abs_tol=1e-9):
            raise InputError(f'{cell.candidates}: mean rougeL {picked[ADAPTED].mean()}, but its result has {expected}')
        by_folder.append(([line['example_idx'] for line in lines], picked))
    examples = by_folder[0][0]
    for cell, (others, _) in zip(paths, by_folder, strict=True):
        if others != examples:
            raise InputError(f'{cell.candidates}: other examples than {paths[0].candidates}')
    names = [name for name in by_folder[0][1] if all(name in picked for _, picked in by_folder)]
    values = {name: np.mean([picked[name] for _, picked in by_folder], axis=0) for name in names}
    ours = values.pop(ADAPTED)
    (low, high), *of_others = paired_intervals(ours, list(values.values()), n_resamples=n_resamples, seed=seed)
    differences, intervals = (dict(zip(values, of_ways, strict=True)) for of_ways in of_others)
    return CellExamples(len(ours), low, high, differences, intervals)


def picked_rougeL(lines: Sequence[dict]) -> dict[str, np.ndarray]:
    """rougeL of each example, float64 [N], by way of picking: the lines of a candidates file.

    Ways that the lines do not name: the scorer's and the oracle, and the first sample of a decoding all of whose
    samples are one candidate in each example, as beam search's single one is.
    """
    picked = {ADAPTED: [line['rougeL'] for line in lines]}
    named = lines[0].get('picked') or {}
    if all(isinstance(line.get('picked'), dict) and line['picked'].keys() == named.keys() for line in lines) and named:
        for name in named:
            if name != ADAPTED:
                picked[name] = [line['picked'][name] for line in lines]
    else:
        picked |= _single_samples(lines)
        picked['oracle'] = [max(candidate['rougeL'] for candidate in line['candidates']) for line in lines]
    return {name: np.array(values, np.float64) for name, values in picked.items()}


def _single_samples(lines):
    decodings = dict.fromkeys(name for candidate in lines[0]['candidates'] for name in candidate['decodings'])
    picked = {}
    for decoding in decodings:
        of_it = [[one['rougeL'] for one in line['candidates'] if decoding in one['decodings']] for line in lines]
        if all(len(values) == 1 for values in of_it):
            picked[f'first of {decoding}'] = [value for (value,) in of_it]
    return picked


def _comparison(result):
    rows = result.get('comparison')
    if not isinstance(rows, list):
        return {}
    rows = [row for row in rows if isinstance(row, dict) and isinstance(row.get('rougeL'), int | float)]
    return {row['name']: row['rougeL'] for row in rows if isinstance(row.get('name'), str)}


def _compared(result, name):
    return None if result is None else _comparison(result).get(name)


def _subfolders(folder):
    return [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith('.')]


def _by_size(name):
    order = ('small', 'base', 'large', 'xl', 'xxl')
    family, _, size = name.rpartition('-')
    return (name != f'flan-t5-{size}' or size not in order, order.index(size) if size in order else 0, name)
