"""A sweep's results beside other picks: rows for each cell, for averages over tasks, and for tests over tasks.

"Ours" is the pick that is the result of a cell, by its name in 'pick': of the adapted scorer, say, or the combined one.
Rows are dictionaries of fractions, by keys without blanks, None (or no key) where there is no value: of a pick such as
'first of beam4' a row has 'first_of_beam4', its rougeL, and 'first_of_beam4_gain' with '_gain_low' and '_gain_high',
ours minus its rougeL with the interval. There is no gain over the oracle, since nothing can exceed it, and in a cell
none of ours over itself. 'n_tied' and 'over_ties': in how many examples the highest score is shared, and ours averaged
over the candidates that share it. Of another metric that all results have, 'chrf' say, 'chrf' is that of ours and
'first_of_beam4_chrf' that of a pick.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cappy.study import cells
from cappy.study.cells import ORACLE, OURS, PUBLISHED, Cell, CellExamples
from cappy.tasks.statistics import (
    MIN_TASKS_FOR_INTERVAL,
    difference_over_tasks,
    holm,
    interval_over_tasks,
    signed_rank_p,
    spread,
)

ROUGEL = 'rougeL'


@dataclass(slots=True)
class Results:
    """What the rows are made of: the cells, and by (generator, task) published rougeL and what the examples give.

    metric: the one of which the values are that are called rougeL.
    """

    folders: list[Path]
    generators: list[str]
    tasks: list[str]
    grid: list[Cell]
    published: dict[tuple, float] = field(default_factory=dict)
    picks: list[str] = field(default_factory=list)  # beside which ours is shown
    examples: dict[tuple, CellExamples] = field(default_factory=dict)
    metric: str = ROUGEL

    @property
    def ours(self) -> str:
        """The pick that is the result in all cells, OURS where they differ."""
        return cells.shared(cell.ours for cell in self.grid if any(cell.results))

    @property
    def metrics(self) -> list[str]:
        """Other metrics that all results have."""
        return cells.common_metrics(self.grid)

    def cells_of(self, generator, tasks) -> list[Cell]:
        """The generator's cells of these tasks."""
        return [cell for cell in self.grid if cell.generator == generator and cell.task in tasks]

    def rougeL_of(self, cell, pick) -> float | None:
        """rougeL of a pick in a cell; None where it is not known."""
        return self.published.get((cell.generator, cell.task)) if pick == PUBLISHED else cell.rougeL_of(pick)

    def whole_tasks(self) -> list[str]:
        """The tasks over which averages are taken."""
        return cells.whole_tasks(self.grid, self.tasks)


def key_of(pick) -> str:
    """The pick's key in a row: 'first of beam4' is 'first_of_beam4'."""
    return re.sub(r'[^\w.]+', '_', pick)


def cell_rows(results: Results) -> list[dict]:
    """One row per cell: ours with its interval over examples, over seeds where there are several, and the picks."""
    return [cell_row(results, cell) for cell in results.grid]


def cell_row(results: Results, cell: Cell) -> dict:
    """The row of one cell. The interval is the one in the result itself, where it has one."""
    row = {'generator': cell.generator, 'task': cell.task, 'pick': cell.ours, 'rougeL': cell.rougeL}
    row['n_results'] = sum(result is not None for result in cell.results)
    if cell.is_whole:
        row |= _over_seeds([result['rougeL'] for result in cell.results])
    examples = results.examples.get((cell.generator, cell.task))
    if examples:
        row |= {'n_examples': examples.n_examples, 'low': examples.low, 'high': examples.high}
    if cell.interval:
        row['low'], row['high'] = cell.interval
    if ties := cell.ties_of(OURS):
        row |= {'n_tied': ties['n_tied'], 'over_ties': ties['rougeL']}
    for pick in results.picks:
        key, theirs = key_of(pick), results.rougeL_of(cell, pick)
        row[key] = theirs
        if pick not in (ORACLE, cell.ours) and None not in (theirs, cell.rougeL):
            row[f'{key}_gain'] = cell.rougeL - theirs
            if examples and pick in examples.differences:
                _, row[f'{key}_gain_low'], row[f'{key}_gain_high'] = examples.differences[pick]
    return row | _by_metrics(results, [cell])


def average_rows(results: Results) -> list[dict]:
    """One row per generator: means over the tasks that no generator lacks, with intervals over tasks.

    A pick that lacks one of these tasks has no mean. Fewer than `MIN_TASKS_FOR_INTERVAL` tasks have no intervals.
    """
    tasks = results.whole_tasks()
    return [_average_row(results, generator, tasks) for generator in results.generators] if tasks else []


def comparison_rows(results: Results) -> list[dict]:
    """One row per generator and pick: ours against it over the whole tasks where both are known.

    The gain with its interval over tasks, in how many tasks ours is better and worse, p of Wilcoxon's signed-rank test,
    and p after Holm's correction for the number of rows; fewer than `MIN_TASKS_FOR_INTERVAL` tasks have neither
    interval nor p.
    """
    tasks = results.whole_tasks()
    rows = []
    for generator in results.generators:
        for pick in results.picks:
            pairs = [(cell.rougeL, results.rougeL_of(cell, pick)) for cell in results.cells_of(generator, tasks)]
            pairs = np.array([pair for pair in pairs if pair[1] is not None])
            if pick != ORACLE and len(pairs):
                rows.append({'generator': generator, 'against': pick, **_comparison_row(*pairs.T)})
    for row, corrected in zip(rows, holm([row['p'] for row in rows]), strict=True):
        row['p_holm'] = corrected
    return rows


def gain_rows(results: Results, pick) -> list[dict]:
    """Ours minus a pick, for each cell where both are known, with the interval where there is one."""
    rows = []
    for cell in results.grid:
        theirs = results.rougeL_of(cell, pick)
        if None in (theirs, cell.rougeL) or pick == cell.ours:
            continue
        row = {'generator': cell.generator, 'task': cell.task, 'gain': cell.rougeL - theirs}
        examples = results.examples.get((cell.generator, cell.task))
        known = examples.differences.get(pick) if examples else None
        rows.append(row | ({'low': known.low, 'high': known.high} if known else {}))
    return rows


def _average_row(results, generator, tasks):
    of_tasks = results.cells_of(generator, tasks)
    ours = [cell.rougeL for cell in of_tasks]
    low, high = interval_over_tasks(ours)
    row = {'generator': generator, 'n_tasks': len(tasks), 'rougeL': float(np.mean(ours)), 'low': low, 'high': high}
    row['n_results'] = len(results.folders)
    ties = [cell.ties_of(OURS) for cell in of_tasks]
    if None not in ties:
        row |= {'n_tied': sum(of_cell['n_tied'] for of_cell in ties)}
        row['over_ties'] = float(np.mean([of_cell['rougeL'] for of_cell in ties]))
    row |= _over_seeds(np.mean([[result['rougeL'] for result in cell.results] for cell in of_tasks], axis=0))
    for pick in results.picks:
        key, theirs = key_of(pick), [results.rougeL_of(cell, pick) for cell in of_tasks]
        if None not in theirs:
            row[key] = float(np.mean(theirs))
            if pick != ORACLE:
                gain = difference_over_tasks(ours, theirs)
                row |= {f'{key}_gain': gain.mean, f'{key}_gain_low': gain.low, f'{key}_gain_high': gain.high}
    return row | _by_metrics(results, of_tasks)


def _by_metrics(results, of_tasks):
    """Ours and the picks by other metrics, means over these cells; None where one of them lacks the value."""
    row = {}
    for metric in results.metrics:
        for pick, key in {OURS: '', **{pick: f'{key_of(pick)}_' for pick in results.picks}}.items():
            values = [cell.metric_of(pick, metric) for cell in of_tasks]
            row[f'{key}{key_of(metric)}'] = None if None in values else float(np.mean(values))
    return row


def _comparison_row(ours, theirs):
    """ours, theirs: float64 [n_tasks]."""
    gain = difference_over_tasks(ours, theirs)
    return {
        'n_tasks': len(ours),
        'rougeL': float(ours.mean()),
        'theirs': float(theirs.mean()),
        'gain': gain.mean,
        'gain_low': gain.low,
        'gain_high': gain.high,
        'n_better': int(np.sum(ours > theirs)),
        'n_worse': int(np.sum(ours < theirs)),
        'p': signed_rank_p(ours, theirs) if len(ours) >= MIN_TASKS_FOR_INTERVAL else None,
    }


def _over_seeds(values: Sequence[float]):
    of_seeds = spread(values)
    return {'std': of_seeds.std, 'seeds_low': of_seeds.low, 'seeds_high': of_seeds.high}
