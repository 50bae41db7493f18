"""How well a scorer does on held-out templates: squared error, right choices, rank correlation within an instruction.

N pairs of G instances; the pairs of an instance follow each other and have its template and its instruction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cappy.errors import InputError
from cappy.pretrain_data.labelled_pairs import CHOICE, LabelledPair, read_pairs
from cappy.tasks.statistics import mean_interval, paired_bootstrap, rank_correlation

MEASURES = ('squared_error', 'accuracy', 'rank_correlation')


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out pairs [N], and for their instances:

    starts int [G + 1]: the number of the first pair of each, and N. is_choice bool [G]: whether the pairs are choices,
    one right (1) and the others wrong (0). is_ranked bool [G]: whether they are no choices and have different labels.
    """

    pairs: Sequence[LabelledPair]
    starts: np.ndarray
    is_choice: np.ndarray
    is_ranked: np.ndarray

    @property
    def labels(self):
        """float64 [N]."""
        return np.array([pair.label for pair in self.pairs])

    @property
    def templates(self):
        """The template of each instance, list [G]."""
        return [self.pairs[start].template for start in self.starts[:-1]]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Measures of each instance, float64 [G]; NaN where a measure does not apply.

    squared_error: the mean over its pairs. accuracy: 1 where the choice with the highest score (the first of equals) is
    the right one, else 0. rank_correlation: of scores and labels, 0 where all scores are equal.
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
    """The HeldOut of a file. Raises InputError naming file and line of a bad pair; also where the file has no pairs."""
    pairs = list(read_pairs(path))
    if not pairs:
        raise InputError(f'{path}: holds no pairs')
    return group_instances(pairs)


def group_instances(pairs) -> HeldOut:
    """The HeldOut of pairs in which those of an instance follow each other."""
    keys = [(pair.template, pair.instruction) for pair in pairs]
    starts = [i for i, key in enumerate(keys) if not i or key != keys[i - 1]]
    bounds = [*starts, len(pairs)]
    is_choice, is_ranked = [], []
    for start, end in zip(bounds, bounds[1:], strict=False):
        labels = [pair.label for pair in pairs[start:end]]
        are_choices = all(pair.source in (CHOICE, '') for pair in pairs[start:end])
        is_choice.append(are_choices and len(labels) > 1 and sorted(labels) == [0] * (len(labels) - 1) + [1])
        is_ranked.append(not is_choice[-1] and len(set(labels)) > 1)
    return HeldOut(pairs, np.array(bounds), np.array(is_choice, bool), np.array(is_ranked, bool))


def judge(held_out: HeldOut, scores) -> Judgement:
    """The measures of a scorer that gave the pairs these scores, float [N]."""
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
    """The expected measures of a scorer that does not read: one score for all pairs, and a choice drawn at random.

    The score is the mean over instances of their mean label, which has the least squared error of all single scores.
    """
    labels = held_out.labels
    constant = _instance_means(held_out, labels).mean()
    return Judgement(
        _instance_means(held_out, np.square(constant - labels)),
        np.where(held_out.is_choice, 1 / np.diff(held_out.starts), np.nan),
        np.where(held_out.is_ranked, 0.0, np.nan),
    )


def _instance_means(held_out, values):
    """The mean of the values float64 [N] over the pairs of each instance, [G]."""
    return np.add.reduceat(values, held_out.starts[:-1]) / np.diff(held_out.starts)


def compare(held_out: HeldOut, before: Judgement, after: Judgement, seed=0) -> list[dict]:
    """A dict for each measure: before, after, the gain, and chance, with 95% bootstrap intervals over instances."""
    table, at_chance = [], chance(held_out)
    for name in MEASURES:
        ours, theirs, by_chance = getattr(after, name), getattr(before, name), getattr(at_chance, name)
        is_measured = ~np.isnan(ours)
        if not is_measured.any():
            continue
        ours, theirs, by_chance = ours[is_measured], theirs[is_measured], by_chance[is_measured]
        interval, differences = paired_bootstrap(ours, [theirs, by_chance], seed=seed)
        row = {
            'measure': name,
            'instances': int(is_measured.sum()),
            'before': float(theirs.mean()),
            'before_interval': mean_interval(theirs, seed=seed),
            'after': float(ours.mean()),
            'after_interval': interval,
            'gain': differences[0].mean,
            'gain_interval': tuple(differences[0][1:]),
            'chance': float(by_chance.mean()),
            'above_chance': differences[1].mean,
            'above_chance_interval': tuple(differences[1][1:]),
        }
        table.append(row)
    return table


def with_interval(row: dict, name) -> str:
    """A number of a dict of `compare` and its interval, as text; '' where it is missing, as in older results."""
    if name not in row:
        return ''
    low, high = row[f'{name}_interval']
    if low is None:  # of a single instance
        return f'{row[name]:.3f}'
    return f'{row[name]:.3f} ({low:.3f} to {high:.3f})'


def by_template(held_out: HeldOut, before: Judgement, after: Judgement) -> list[dict]:
    """A dict for each template: the number of its instances, and the means of their measures."""
    templates, by_chance = np.array(held_out.templates), chance(held_out).accuracy
    table = []
    for template in dict.fromkeys(held_out.templates):
        of_template = templates == template
        row = {'template': template, 'instances': int(of_template.sum())}
        for name in MEASURES:
            values = {'before': getattr(before, name)[of_template], 'after': getattr(after, name)[of_template]}
            if not np.isnan(values['after']).all():
                row |= {f'{name}_{when}': float(np.nanmean(of)) for when, of in values.items()}
        if (is_choice := held_out.is_choice & of_template).any():
            row['chance'] = float(by_chance[is_choice].mean())
        table.append(row)
    return table
