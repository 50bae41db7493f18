"""How a scorer does on templates that it was not trained on: squared error, right choices, ranks within an instruction.

N rows, in G instances: rows that follow each other with one template and instruction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cappy.errors import InputError
from cappy.pretrain_data.rows import CHOICE
from cappy.pretrain_data.stream import LabelledRow, read_rows
from cappy.tasks.statistics import bootstrap_interval, paired_bootstrap, rank_correlation

MEASURES = ('squared_error', 'accuracy', 'rank_correlation')


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows [N] and where their instances begin: starts int [G + 1].

    is_choice bool [G]: whether an instance asks for a choice, one right (1) and the others wrong (0).
    is_ranked bool [G]: whether it is another one, with labels that differ.
    """

    rows: Sequence[LabelledRow]
    starts: np.ndarray
    is_choice: np.ndarray
    is_ranked: np.ndarray

    @property
    def labels(self):
        """float64 [N]."""
        return np.array([row.label for row in self.rows])

    @property
    def templates(self):
        """Of each instance, list [G]."""
        return [self.rows[start].template for start in self.starts[:-1]]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of each instance, float64 [G], NaN where it does not apply.

    squared_error: mean over its rows; accuracy: 1 where the best scored choice (the first of equals) is the right one,
    else 0; rank_correlation: of scores and labels, 0 where all scores are equal.
    """

    squared_error: np.ndarray
    accuracy: np.ndarray
    rank_correlation: np.ndarray

    def mean(self, name) -> float | None:
        """The mean of a measure over the instances that have it; None where none has."""
        values = getattr(self, name)
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else None


def read_held_out(path) -> HeldOut:
    """The HeldOut of a file. Raises InputError naming file and line of a bad row, or where there is none."""
    rows = list(read_rows(path))
    if not rows:
        raise InputError(f'{path}: holds no rows')
    return group_instances(rows)


def group_instances(rows) -> HeldOut:
    """The HeldOut of rows whose instances stand together."""
    keys = [(row.template, row.instruction) for row in rows]
    starts = [i for i, key in enumerate(keys) if not i or key != keys[i - 1]]
    bounds = [*starts, len(rows)]
    is_choice, is_ranked = [], []
    for start, end in zip(bounds, bounds[1:], strict=False):
        labels = [row.label for row in rows[start:end]]
        of_choice = all(row.source in (CHOICE, '') for row in rows[start:end])
        is_choice.append(of_choice and len(labels) > 1 and sorted(labels) == [0] * (len(labels) - 1) + [1])
        is_ranked.append(not is_choice[-1] and len(set(labels)) > 1)
    return HeldOut(rows, np.array(bounds), np.array(is_choice, bool), np.array(is_ranked, bool))


def judge(held_out: HeldOut, scores) -> Judgement:
    """scores: float [N]."""
    labels, scores = held_out.labels, np.asarray(scores, np.float64)
    starts = held_out.starts
    accuracy, ranks = np.full((2, len(starts) - 1), np.nan)
    for g, (start, end) in enumerate(zip(starts, starts[1:], strict=False)):
        if held_out.is_choice[g]:
            accuracy[g] = labels[start + np.argmax(scores[start:end])]
        elif held_out.is_ranked[g]:
            ranks[g] = rank_correlation(scores[start:end], labels[start:end]) or 0.0
    return Judgement(_instance_means(held_out, np.square(scores - labels)), accuracy, ranks)


def chance(held_out: HeldOut) -> Judgement:
    """What needs no reading: one score for all rows (the mean label), a choice drawn blindly, no order."""
    labels = held_out.labels
    constant = _instance_means(held_out, labels).mean()
    return Judgement(
        _instance_means(held_out, np.square(constant - labels)),
        np.where(held_out.is_choice, 1 / np.diff(held_out.starts), np.nan),
        np.where(held_out.is_ranked, 0.0, np.nan),
    )


def _instance_means(held_out, values):
    """float64 [N] -> [G]."""
    return np.add.reduceat(values, held_out.starts[:-1]) / np.diff(held_out.starts)


def compare(held_out: HeldOut, before: Judgement, after: Judgement, seed=0) -> list[dict]:
    """Rows of a table: each measure before and after, the gain, and chance, with 95% intervals over instances."""
    rows, blind = [], chance(held_out)
    for name in MEASURES:
        ours, theirs, by_chance = getattr(after, name), getattr(before, name), getattr(blind, name)
        there = ~np.isnan(ours)
        if not there.any():
            continue
        ours, theirs, by_chance = ours[there], theirs[there], by_chance[there]
        interval, differences = paired_bootstrap(ours, [theirs, by_chance], seed=seed)
        row = {
            'measure': name,
            'instances': int(there.sum()),
            'before': float(theirs.mean()),
            'before_interval': bootstrap_interval(theirs, seed=seed),
            'after': float(ours.mean()),
            'after_interval': interval,
            'gain': differences[0].mean,
            'gain_interval': tuple(differences[0][1:]),
            'chance': float(by_chance.mean()),
            'above_chance': differences[1].mean,
            'above_chance_interval': tuple(differences[1][1:]),
        }
        rows.append(row)
    return rows


def with_interval(row: dict, name) -> str:
    """A number of a row of `compare` and its interval, as text; '' where the row lacks it, as older results may."""
    if name not in row:
        return ''
    low, high = row[f'{name}_interval']
    return f'{row[name]:.3f} ({low:.3f} to {high:.3f})'


def by_template(held_out: HeldOut, before: Judgement, after: Judgement) -> list[dict]:
    """Rows of a table: each template's instances and means."""
    templates, by_chance = np.array(held_out.templates), chance(held_out).accuracy
    rows = []
    for template in dict.fromkeys(held_out.templates):
        of_template = templates == template
        row = {'template': template, 'instances': int(of_template.sum())}
        for name in MEASURES:
            values = {'before': getattr(before, name)[of_template], 'after': getattr(after, name)[of_template]}
            if not np.isnan(values['after']).all():
                row |= {f'{name}_{when}': float(np.nanmean(of)) for when, of in values.items()}
        if (is_choice := held_out.is_choice & of_template).any():
            row['chance'] = float(by_chance[is_choice].mean())
        rows.append(row)
    return rows
