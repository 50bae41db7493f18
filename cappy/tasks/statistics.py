"""How certain a mean or a difference is: bootstrap, Wilcoxon's signed-rank test, Holm's correction, spread over seeds.

N values, one per example or one per task; M rows of values of the same N, resampled together. Intervals are (low, high)
at the confidence `CONFIDENCE`: by bootstrap, or by Student's t where there are fewer than `FEW` values, of which the
percentiles of a bootstrap are too narrow. All that users read is made with `N_RESAMPLES` and seed 0, so that one number
has one interval wherever it is shown.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
N_RESAMPLES = 10_000
MIN_TASKS_FOR_INTERVAL = 5  # resamples of fewer tasks take few values: of two tasks, the smaller, the larger, the mean
FEW = 30
_DRAWS_AT_ONCE = 250_000  # 2 MB of counts, which stay in the cache: 20 to 65% less time than with 32 MB


class Difference(NamedTuple):
    """Mean of ours minus theirs, with its interval; low and high are None where there are too few tasks, or
    a single example, for one."""

    mean: float
    low: float | None
    high: float | None


class Spread(NamedTuple):
    """Of several seeds: their mean, their standard deviation (divided by n - 1) and the interval of the mean by
    Student's t. The last three are None for a single seed.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None


def bootstrap_means(values, n_resamples=N_RESAMPLES, seed=0) -> np.ndarray:
    """Means of values [M, N] over N examples drawn with replacement, the same draws for every row.

    Returns float64 [M, n_resamples].
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
        # Not matmul: there the last bit of a row's sums depends on the other rows, and the threads of BLAS in several
        # processes wait for each other.
        means.append(np.einsum('mn,rn->mr', values, counts.astype(np.float64)) / n)
    return np.concatenate(means, axis=1)


def interval_of_mean(values, means) -> tuple[float | None, float | None]:
    """Interval of the mean of values [N]; (None, None) for a single one.

    means: those of its resamples, as `bootstrap_means` gives them; read where N is `FEW` or more.
    """
    if len(values) < 2:
        return None, None
    if len(values) >= FEW:
        return percentiles(means)
    of_values = spread(values)
    return of_values.low, of_values.high


def percentiles(means) -> tuple[float, float]:
    """The interval that holds the middle `CONFIDENCE` of the means."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(values, n_resamples=N_RESAMPLES, seed=0) -> tuple[float | None, float | None]:
    """Interval of the mean of values [N]; (None, None) for N = 1."""
    return interval_of_mean(values, bootstrap_means(values, n_resamples, seed)[0])


def paired_bootstrap(ours, others, n_resamples=N_RESAMPLES, seed=0) -> tuple[tuple[float, float], list[Difference]]:
    """Interval of the mean of ours, and ours minus each of the others, all resampled together.

    ours: float64 [N]; others: float64 [M, N].
    """
    return paired_intervals(ours, others, n_resamples, seed)[:2]


def paired_intervals(
    ours, others, n_resamples=N_RESAMPLES, seed=0
) -> tuple[tuple[float, float], list[Difference], list[tuple[float, float]]]:
    """What `paired_bootstrap` returns, and the interval of the mean of each of the others; (None, None) for N = 1."""
    ours, others = np.asarray(ours, np.float64), np.asarray(others, np.float64).reshape(len(others), len(ours))
    means, *other_means = bootstrap_means([ours, *others], n_resamples, seed)
    differences = [
        Difference(float(np.mean(ours - theirs)), *interval_of_mean(ours - theirs, means - their_means))
        for theirs, their_means in zip(others, other_means, strict=True)
    ]
    intervals = [interval_of_mean(theirs, own) for theirs, own in zip(others, other_means, strict=True)]
    return interval_of_mean(ours, means), differences, intervals


def interval_over_tasks(values) -> tuple[float | None, float | None]:
    """Interval of the mean of values [n_tasks]; (None, None) for fewer than `MIN_TASKS_FOR_INTERVAL` tasks."""
    return mean_interval(values) if len(values) >= MIN_TASKS_FOR_INTERVAL else (None, None)


def difference_over_tasks(ours, theirs) -> Difference:
    """Mean difference over tasks, with its interval unless there are fewer than `MIN_TASKS_FOR_INTERVAL` tasks.

    ours, theirs: float64 [n_tasks].
    """
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return Difference(float(differences.mean()), *interval_over_tasks(differences))


def signed_rank_p(ours, theirs) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test on N pairs; None where no pair differs.

    Pairs that do not differ are left out, as Wilcoxon did. Differences are rounded to 12 decimals first, so that equal
    differences share a rank although rounding separates them.
    """
    from scipy import stats  # here, since importing it takes longer than most tables

    differences = np.round(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64), 12)
    differences = differences[differences != 0]
    return float(stats.wilcoxon(differences).pvalue) if differences.size else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Each p corrected for the number of tests by Holm's step-down method; None stays None and does not count.

    Rejecting where the corrected p is below a level keeps the chance of any false rejection below that level. scipy has
    no such correction (Holm, 1979, Scandinavian Journal of Statistics 6).
    """
    given = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected, largest = [None] * len(p_values), 0.0
    for n_smaller, (p, index) in enumerate(given):
        largest = max(largest, min(1.0, p * (len(given) - n_smaller)))
        corrected[index] = largest
    return corrected


def spread(values) -> Spread:
    """Mean and spread of one number measured with several seeds."""
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Spread(mean, None, None, None)
    from scipy import stats

    std = float(values.std(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * std / np.sqrt(len(values))
    return Spread(mean, std, float(mean - half), float(mean + half))


def rank_correlation(xs, ys) -> float | None:
    """Spearman's rank correlation, float; equal values share their mean rank. None where all xs or all ys are equal."""
    ranks = np.array([_ranks(np.asarray(values, np.float64)) for values in (xs, ys)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    scale = math.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float((ranks[0] * ranks[1]).sum() / scale) if scale else None


def _ranks(values):
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
