"""The cells of a sweep, (generator, task): which are asked for, which have results, and what can be compared in them.

A folder of results holds one run of the sweep, or folders seed1, seed2, .. with one run each. Picks are named as
`cappy.tasks.picks` names them. "Ours" is the pick whose rougeL is the result, which a result names ('pick'): that of
the adapted scorer where it names none. Of several results it is the one that they share, else `OURS`: of each its own.

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
from cappy.files.inputs import stems
from cappy.files.jsonl import is_number
from cappy.files.names import check_name
from cappy.files.wording import listed, near_names, not_found
from cappy.study import results
from cappy.study.results import ResultPaths
from cappy.tasks.candidates import GENERATORS_REMEDY, SPLITS
from cappy.tasks.faults import describe_by_name
from cappy.tasks.picks import ADAPTED, TIES, is_constant, sum_ties
from cappy.tasks.statistics import Difference, paired_intervals

OURS = 'pick of each result'  # ours where results have different ones
ORACLE = 'oracle'
PUBLISHED = 'published'  # the folder of published figures among the generators, and their name in a comparison
SHIPPED = {'gemma-3-270m'}  # generators whose results come with the repository
DATA_DIR = 'bigbench_data'  # the default of the flag that says where subset_names.json is
RESULTS_REMEDY = 'scripts/run_cappy_bigbench.py and cappy_bigbench.py write results'
SEED_FOLDER = re.compile(r'seed\d+')  # where a sweep of several seeds puts the results of each
# Settings that may differ between cells of one table: they name the cell, or do not change the result.
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
    """The results of one cell, one from each folder of results (one per seed); None where a folder has none."""

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

    @property
    def ours(self) -> str:
        """The pick whose rougeL is the result."""
        return shared(ours_of(result) for result in self.results if result)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval of rougeL that the result itself gives; None where it gives none, and for several folders."""
        if len(self.results) > 1 or not self.is_whole:
            return None
        row = _comparison(self.results[0]).get(self.ours, {})
        low, high = row.get('low'), row.get('high')
        return (low, high) if is_number(low) and is_number(high) else None

    def rougeL_of(self, pick) -> float | None:
        """Mean over the folders of another pick, by its name; None where a folder's comparison lacks it."""
        rows = [_comparison(result or {}).get(pick) for result in self.results]
        return None if None in rows else float(np.mean([row['rougeL'] for row in rows]))

    def ties_of(self, pick) -> dict | None:
        """Ties of a pick as `picks.count_ties` gives them, summed over the folders, rougeL averaged; None where a
        folder's comparison lacks them. `OURS` is in each folder its own.
        """
        rows = [_row_of(result or {}, pick) for result in self.results]
        of_folders = [ties_of(row or {}) for row in rows]
        return None if None in of_folders else sum_ties(of_folders)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics beside rougeL that ours has in all folders that have a result."""
        rows = [metrics_of(_row_of(result, OURS) or {}) for result in self.results if result]
        return [name for name in rows[0] if all(name in row for row in rows)]

    def metric_of(self, pick, metric) -> float | None:
        """Mean over the folders of a pick by another metric than rougeL; None where a folder's comparison lacks it."""
        values = [metrics_of(_row_of(result or {}, pick) or {}).get(metric) for result in self.results]
        return None if None in values else float(np.mean(values))

    @property
    def faults(self) -> list[dict]:
        """Counts of faults in the texts of each split, as `faults.count_faults` gives them; of several folders the
        first, since all have the same texts.
        """
        return faults_of(self.results[0] or {})

    def picks(self) -> list[str]:
        """Names of the picks in the comparisons, in order."""
        return list(dict.fromkeys(name for result in self.results if result for name in _comparison(result)))


@dataclass(frozen=True, slots=True)
class CellExamples:
    """What a cell's examples give: the interval of its rougeL and, by name, the differences to other picks and the
    intervals of these. The ends of all intervals are None where there is a single example.
    """

    n_examples: int
    low: float | None
    high: float | None
    differences: dict[str, Difference]
    intervals: dict[str, tuple[float | None, float | None]]


def ours_of(result: dict) -> str:
    """The pick whose rougeL is the result."""
    pick = result.get('pick')
    return pick if isinstance(pick, str) and pick else ADAPTED


def shared(picks: Iterable[str]) -> str:
    """The pick that all of these are, `OURS` where they differ; `ADAPTED` of none."""
    picks = set(picks)
    return OURS if len(picks) > 1 else next(iter(picks), ADAPTED)


def subject_of(pick: str) -> str:
    """What a sentence calls ours, after an article: 'adapted scorer', 'combined pick'."""
    return {ADAPTED: 'adapted scorer', OURS: OURS}.get(pick, f'{pick} pick')


def common_metrics(cells: Iterable[Cell]) -> list[str]:
    """The metrics beside rougeL, where all cells that have results have the same ones."""
    named = [cell.metrics for cell in cells if any(cell.results)]
    return named[0] if named and all(set(names) == set(named[0]) for names in named) else []


def choose_folders(names: Sequence[str]) -> list[Path]:
    """The folders of results, one per seed; a single one that holds only folders seed1, seed2, .. means these.

    Raises InputError for a missing one.
    """
    folders = [Path(name) for name in names]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(not_found(folder, 'folder of results', RESULTS_REMEDY))
    if len(folders) == 1:
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
        remedy = 'scripts/get_bigbench_data.py writes it, or name tasks with --tasks'
        raise InputError(not_found(path, remedy=remedy)) from error
    except (OSError, ValueError) as error:
        raise InputError(f'{path}: cannot be read ({error})') from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f'{path}: expected a list of names of tasks')
    return [check_name(name, f'{path}: the task') for name in dict.fromkeys(names)]


def choose_tasks(asked: Sequence[str] | None, data_dir, found: Iterable[str]) -> list[str]:
    """The tasks asked for, or those that have files: first those of {data_dir}/subset_names.json in its order.

    asked: names, or ('all',): those of subset_names.json too, with files or not. found: tasks that have files. Raises
    InputError for a name that neither has, with near ones; for a data_dir without the list of tasks, unless it is the
    default one.
    """
    known = listed_tasks(data_dir)
    found = set(found)
    if asked is None or tuple(asked) == ('all',):
        return [task for task in known if asked or task in found] + sorted(found - set(known))
    for name in asked:
        if name not in found and name not in known:
            raise InputError(f'--tasks {name}: no such task{near_names(name, {*found, *known}, "the list of tasks")}')
    return list(asked)


def listed_tasks(data_dir) -> list[str]:
    """The tasks of {data_dir}/subset_names.json; none where the default folder is not there."""
    is_there = (Path(data_dir) / 'subset_names.json').exists()
    return read_task_names(data_dir) if is_there or str(data_dir) != DATA_DIR else []


def missing_tasks(data_dir, tasks: Iterable[str], what: str) -> list[str]:
    """A remark on the tasks of {data_dir}/subset_names.json of which there is no file, in a list; [] for no remark.

    There is none where all tasks have files, nor where none of the tasks shown is of the list: then the user has other
    tasks. what: the files, in the plural.
    """
    known, tasks = listed_tasks(data_dir), set(tasks)
    missing = [task for task in known if task not in tasks]
    if not missing or len(missing) == len(known):
        return []
    where = Path(data_dir) / 'subset_names.json'
    return [f'{len(missing)} of the {len(known)} tasks of {where} have no {what}; --tasks all names them']


def choose_generators(asked: Sequence[str] | None, folders: Sequence[Path], flag: str) -> list[str]:
    """The generators asked for, or all that have a folder in one of the folders, the FLAN-T5 sizes first.

    Those whose results come with the repository are left out, unless they are asked for or there is no other.

    Raises InputError for a folder that is not there, and for a generator without a folder, with near names.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(not_found(folder, 'folder of generators', GENERATORS_REMEDY))
    found = {entry.name for folder in folders for entry in _subfolders(folder)}
    found = {name for name in found if name != PUBLISHED and not SEED_FOLDER.fullmatch(name)}
    if asked is None:
        if not found:
            raise InputError(f'{folders[0]}: has no folder of a generator')
        return sorted(found - SHIPPED or found, key=_by_size)
    for name in asked:
        if name not in found:
            raise InputError(f'{flag} {name}: no such generator{near_names(name, found, folders[0])}')
    return list(asked)


def read_cells(folders, generators, tasks) -> tuple[list[Cell], list[str]]:
    """The cells, all tasks of one generator after another, and what is wrong with files that are not results.

    Such a file counts as missing.
    """
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


def read_published(published_dir, folders, generators, tasks) -> tuple[dict[tuple[str, str], float], list[str]]:
    """Published rougeL by (generator, task), None where there is none; and what is wrong with the files.

    Empty where the folders of results are themselves the published ones.
    """
    if any(Path(folder).resolve() == Path(published_dir).resolve() for folder in folders):
        return {}, []
    published, faults = read_cells([published_dir], generators, tasks)
    return {(cell.generator, cell.task): cell.rougeL for cell in published}, faults


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
    folders = [Path(gens_dir) / generator for generator in generators]
    return set().union(*(stems(folder, f'_{split}.jsonl') for folder in folders for split in splits))


def whole_tasks(cells: Sequence[Cell], tasks) -> list[str]:
    """The tasks that have a result of every generator in every folder: those over which averages are taken."""
    incomplete = {cell.task for cell in cells if not cell.is_whole}
    return [task for task in tasks if task not in incomplete]


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


def examples_of_cell(
    paths: Sequence[ResultPaths], rougeL: Sequence[float], picks: Sequence[str] | None = None
) -> CellExamples:
    """Bootstrap over the examples of a cell, the values of an example averaged over the folders.

    paths: the cell in each folder; rougeL: its result in each, with which the candidates must agree; picks: that of the
    result in each, by default that of the adapted scorer. Raises InputError where a file of candidates is missing,
    broken, or does not belong to its result.
    """
    ours, by_folder = shared(picks or ()), []
    for cell, expected in zip(paths, rougeL, strict=True):
        lines = results.read_candidates(cell.candidates)
        by_pick = picked_rougeL(lines, ours)
        if not math.isclose(by_pick[ours].mean(), expected, abs_tol=1e-9):
            raise InputError(f'{cell.candidates}: mean rougeL {by_pick[ours].mean()}, but its result has {expected}')
        by_folder.append(([line['example_idx'] for line in lines], by_pick))
    first_examples, _ = by_folder[0]
    for cell, (examples, _) in zip(paths, by_folder, strict=True):
        if examples != first_examples:
            raise InputError(f'{cell.candidates}: other examples than {paths[0].candidates}')
    return compare_examples([by_pick for _, by_pick in by_folder], ours)


def compare_examples(by_folder: Sequence[dict[str, np.ndarray]], ours: str) -> CellExamples:
    """Bootstrap over examples; by_folder: of the same examples what each pick has, [N] by its name."""
    names = [name for name in by_folder[0] if all(name in by_pick for by_pick in by_folder)]
    values = {name: np.mean([by_pick[name] for by_pick in by_folder], axis=0) for name in names}
    own = values.pop(ours)
    (low, high), *of_others = paired_intervals(own, list(values.values()))
    differences, intervals = (dict(zip(values, of_picks, strict=True)) for of_picks in of_others)
    return CellExamples(len(own), low, high, differences, intervals)


def picked_rougeL(lines: Sequence[dict], ours: str = ADAPTED) -> dict[str, np.ndarray]:
    """rougeL of each example, float64 [N], by name of the pick, from the lines of a candidates file.

    ours: the name of the pick that is the result. Where the lines do not give it by pick: that of ours and the oracle,
    and of the first sample of each decoding whose samples are a single candidate in every example, as the one sample of
    beam search is.
    """
    by_pick = {ours: [line['rougeL'] for line in lines]}
    named = (lines[0].get('picked') or {}).keys()
    if named - {ours} and all((line.get('picked') or {}).keys() == named for line in lines):
        by_pick |= {name: [line['picked'][name] for line in lines] for name in named if name != ours}
    else:
        by_pick |= _single_samples(lines)
        by_pick[ORACLE] = [max(candidate['rougeL'] for candidate in line['candidates']) for line in lines]
    return {name: np.array(values, np.float64) for name, values in by_pick.items()}


def _single_samples(lines):
    decodings = dict.fromkeys(name for candidate in lines[0]['candidates'] for name in candidate['decodings'])
    by_pick = {}
    for decoding in decodings:
        sampled = [
            [candidate['rougeL'] for candidate in line['candidates'] if decoding in candidate['decodings']]
            for line in lines
        ]
        if all(len(values) == 1 for values in sampled):
            by_pick[f'first of {decoding}'] = [value for (value,) in sampled]
    return by_pick


def ties_of(row: dict) -> dict | None:
    """The ties in a row of a comparison; None where it has none that are well-formed."""
    ties = row.get('ties')
    ties = ties if isinstance(ties, dict) else {}
    return {key: ties[key] for key in TIES} if all(is_number(ties.get(key)) for key in TIES) else None


def metrics_of(row: dict) -> dict[str, float]:
    """The values by other metrics in a row of a comparison; none where they are not well-formed."""
    metrics = row.get('metrics')
    metrics = metrics if isinstance(metrics, dict) else {}
    return metrics if all(map(is_number, metrics.values())) else {}


def faults_of(result: dict) -> list[dict]:
    """Counts of faults in the texts of each split of a result; none where they are not well-formed."""
    counts = result.get('counts')
    faults = counts.get('faults') if isinstance(counts, dict) else None
    return [
        of_split
        for of_split in (faults.values() if isinstance(faults, dict) else ())
        if isinstance(of_split, dict)
        and {'examples', 'letters', 'unread_letters'} <= of_split.keys()
        and all(map(is_number, of_split.values()))
    ]


def describe(cells: Sequence[Cell]) -> list[str]:
    """What a reader should know of the cells' texts and of ties between scores, one line for each kind."""
    by_name = dict(zip(names_of((cell.generator, cell.task) for cell in cells), cells, strict=True))
    lines = describe_by_name({name: cell.faults for name, cell in by_name.items()})
    for pick in dict.fromkeys(cell.ours for cell in cells):
        known = {name: cell.ties_of(pick) for name, cell in by_name.items() if cell.ours == pick}
        tied = {name: ties for name, ties in known.items() if ties and ties['n_tied']}
        if tied:
            n_tied, n_examples = (sum(ties[key] for ties in tied.values()) for key in ('n_tied', 'n_examples'))
            highest = 'score' if pick == ADAPTED else f'value of the {subject_of(pick)}'
            lines.append(
                f'{listed(tied)}: in {n_tied} of {n_examples} examples the highest {highest} is shared by several '
                'candidates; the first of them is picked'
            )
    of_scorer = {name: cell.ties_of(ADAPTED) for name, cell in by_name.items()}
    if constant := [name for name, ties in of_scorer.items() if ties and ties['n_tied'] and is_constant(ties)]:
        lines.append(
            f'{listed(constant)}: the scorer gives all candidates of an example the same score, so it picks the first '
            'everywhere'
        )
    return lines


def names_of(cells: Iterable[tuple[str, str]]) -> list[str]:
    """A name for each (generator, task): the task, with its generator where there are several."""
    cells = list(cells)
    has_several = len({generator for generator, _ in cells}) > 1
    return [f'{generator}/{task}' if has_several else task for generator, task in cells]


def _comparison(result):
    """{pick: its row of the comparison}, of a result that may have another shape."""
    rows = result.get('comparison')
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return {row['name']: row for row in rows if isinstance(row.get('name'), str) and is_number(row.get('rougeL'))}


def _row_of(result, pick):
    """The row of a pick, or of the result's own; None where there is none."""
    return _comparison(result).get(ours_of(result) if pick == OURS else pick)


def _subfolders(folder):
    return [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith('.')]


def _by_size(name):
    order = ('small', 'base', 'large', 'xl', 'xxl')
    family, _, size = name.rpartition('-')
    return (name != f'flan-t5-{size}' or size not in order, order.index(size) if size in order else 0, name)
