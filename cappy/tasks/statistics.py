"""How sure a mean or a difference is: bootstrap, Wilcoxon's signed-rank test, Holm's correction, spread over seeds.

N values, an example or a task each; M rows of values that belong to the same N, and so are drawn together. Intervals
are (low, high) of the given confidence.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

N_RESAMPLES = 10_000
_DRAWS_AT_ONCE = 4_000_000  # bounds the memory of a bootstrap to some 64 MB


class Difference(NamedTuple):
    """Mean of ours minus theirs, with its interval."""

    mean: float
    low: float
    high: float


class Spread(NamedTuple):
    """Of several seeds: their mean, their standard deviation (n - 1 below the line; None of one) and the mean's
    interval by Student's t (None of one).
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None


def bootstrap_means(values, n_resamples=N_RESAMPLES, seed=0) -> np.ndarray:
    """Means over examples drawn with replacement, the same draws for every row.

    values: float64 [M, N]. Returns float64 [M, n_resamples].
    """
    values = np.atleast_2d(np.asarray(values, np.float64))
    n = values.shape[1]
    generator = np.random.default_rng(seed)
    chunk = max(1, _DRAWS_AT_ONCE // n)
    means = []
    for start in range(0, n_resamples, chunk):
        n_rows = min(chunk, n_resamples - start)
        drawn = generator.integers(n, size=(n_rows, n)) + n * np.arange(n_rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n_rows * n).reshape(n_rows, n)
        means.append(values @ counts.T / n)
    return np.concatenate(means, axis=1)


def percentiles(means, confidence=0.95) -> tuple[float, float]:
    """The interval that holds the middle of the means."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_interval(values, confidence=0.95, n_resamples=N_RESAMPLES, seed=0) -> tuple[float, float]:
    """Percentile interval of the mean of values [N] over examples drawn with replacement."""
    return percentiles(bootstrap_means(values, n_resamples, seed)[0], confidence)


def paired_bootstrap(
    ours, others, confidence=0.95, n_resamples=N_RESAMPLES, seed=0
) -> tuple[tuple[float, float], list[Difference]]:
    """Interval of the mean of ours, and ours minus each of the others, all on the same draws of examples.

    ours: float64 [N]; others: float64 [M, N].
    """
    return paired_intervals(ours, others, confidence, n_resamples, seed)[:2]


def paired_intervals(
    ours, others, confidence=0.95, n_resamples=N_RESAMPLES, seed=0
) -> tuple[tuple[float, float], list[Difference], list[tuple[float, float]]]:
    """What `paired_bootstrap` gives, and the interval of the mean of each of the others."""
    ours, others = np.asarray(ours, np.float64), np.asarray(others, np.float64).reshape(len(others), len(ours))
    means, *other_means = bootstrap_means([ours, *others], n_resamples, seed)
    differences = [
        Difference(float(np.mean(ours - theirs)), *percentiles(means - their_means, confidence))
        for theirs, their_means in zip(others, other_means, strict=True)
    ]
    return percentiles(means, confidence), differences, [percentiles(own, confidence) for own in other_means]


def signed_rank_p(ours, theirs) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test on N pairs; None where no pair differs.

    Pairs that do not differ are left out, as Wilcoxon did. Differences are rounded to 12 decimals first, lest the same
    difference of two pairs of numbers be two ranks.
    """
    from scipy import stats  # here, since importing it takes longer than most tables

    differences = np.round(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64), 12)
    differences = differences[differences != 0]
    return float(stats.wilcoxon(differences).pvalue) if differences.size else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Each p corrected for the number of them, by Holm's step-down way; None stays None and does not count.

    Rejecting where the corrected p is below a level keeps the chance of any false rejection below it. scipy has no such
    correction (Holm, 1979, Scandinavian Journal of Statistics 6).
    """
    given = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected, largest = [None] * len(p_values), 0.0
    for n_smaller, (p, index) in enumerate(given):
        largest = max(largest, min(1.0, p * (len(given) - n_smaller)))
        corrected[index] = largest
    return corrected


def spread(values, confidence=0.95) -> Spread:
    """Mean and spread of one number measured under several seeds."""
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Spread(mean, None, None, None)
    from scipy import stats

    std = float(values.std(ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * std / np.sqrt(len(values))
    return Spread(mean, std, float(mean - half), float(mean + half))


def rank_correlation(xs, ys) -> float | None:
    """Spearman's, equal values sharing their mean rank; None where one of the two does not differ."""
    ranks = np.array([_ranks(np.asarray(values, np.float64)) for values in (xs, ys)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    spread = math.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float((ranks[0] * ranks[1]).sum() / spread) if spread else None


def _ranks(values):
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
