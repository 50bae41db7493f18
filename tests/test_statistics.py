"""Statistics against scipy's own, or against small cases worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from cappy.tasks.statistics import (
    bootstrap_means,
    difference_over_tasks,
    holm,
    interval_over_tasks,
    mean_interval,
    paired_bootstrap,
    paired_intervals,
    signed_rank_p,
    spread,
)


def test_a_mean_interval_is_the_normal_one_where_that_holds():
    values = np.random.default_rng(1).standard_normal(2000)
    low, high = mean_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    # Quantiles of 10,000 resamples scatter by some 3% of the half width.
    assert (values.mean() - low) / half == pytest.approx(1, abs=0.1)
    assert (high - values.mean()) / half == pytest.approx(1, abs=0.1)
    assert mean_interval(values) == (low, high)
    assert mean_interval(values, seed=1) != (low, high)


def test_resamples_do_not_depend_on_how_they_are_cut_to_bound_memory(monkeypatch):
    values = np.random.default_rng(2).random((2, 37))
    whole = bootstrap_means(values, 100)
    monkeypatch.setattr('cappy.tasks.statistics._DRAWS_AT_ONCE', 37 * 7)
    np.testing.assert_array_equal(bootstrap_means(values, 100), whole)
    drawn = np.random.default_rng(0).integers(37, size=(100, 37))
    np.testing.assert_allclose(whole, values[:, drawn].mean(axis=-1), rtol=1e-13)


def test_a_row_has_the_same_resampled_means_whatever_is_resampled_with_it():
    values = np.random.default_rng(7).random((5, 300))
    together = bootstrap_means(values, 500)
    for row, means in zip(values, together, strict=True):
        np.testing.assert_array_equal(bootstrap_means(row, 500)[0], means)


def test_a_mean_interval_is_scipys_percentile_interval():
    values = np.random.default_rng(3).exponential(size=60)
    theirs = stats.bootstrap((values,), np.mean, method='percentile', n_resamples=50_000, rng=1).confidence_interval
    # Both are quantiles of random draws; at 50,000 they scatter by some 1% of the half width.
    half = (theirs.high - theirs.low) / 2
    assert mean_interval(values, n_resamples=50_000) == pytest.approx((theirs.low, theirs.high), abs=0.03 * half)


def test_paired_differences_are_of_the_same_examples():
    generator = np.random.default_rng(4)
    ours = generator.random(50)
    near, far = ours - 0.1, generator.random(50)
    interval, ((mean, low, high), other) = paired_bootstrap(ours, [near, far])
    assert interval == pytest.approx(mean_interval(ours), abs=1e-12)
    # A constant difference has no spread, however much the values have.
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-12)
    assert (other.low, other.high) == pytest.approx(mean_interval(ours - far), abs=1e-12)
    assert paired_bootstrap(ours, []) == (pytest.approx(interval, abs=1e-12), [])
    assert other.mean == pytest.approx(ours.mean() - far.mean())

    def difference(x, y, axis):
        return np.mean(x, axis) - np.mean(y, axis)

    theirs = stats.bootstrap((ours, far), difference, paired=True, method='percentile', n_resamples=20_000, rng=1)
    half = (theirs.confidence_interval.high - theirs.confidence_interval.low) / 2
    expected = (theirs.confidence_interval.low, theirs.confidence_interval.high)
    assert (other.low, other.high) == pytest.approx(expected, abs=0.05 * half)


def test_a_single_example_has_no_interval():
    assert mean_interval([0.5]) == (None, None)
    interval, (difference,), (other,) = paired_intervals([0.5], [[0.25]])
    assert interval == other == (None, None) and difference == (0.25, None, None)


def test_fewer_than_five_tasks_have_a_mean_difference_and_no_interval():
    ours, theirs = np.array([0.5, 0.7, 0.2, 0.9, 0.6]), np.array([0.4, 0.7, 0.3, 0.5, 0.1])
    assert difference_over_tasks(ours, theirs)[1:] == mean_interval(ours - theirs) == interval_over_tasks(ours - theirs)
    assert difference_over_tasks(ours[:4], theirs[:4]) == (pytest.approx(0.1), None, None)
    assert interval_over_tasks(ours[:4]) == (None, None)


def test_the_signed_rank_test_by_hand():
    # Of the 2^5 ways to sign five ranks, one is all plus and one all minus.
    assert signed_rank_p([5, 4, 3, 2, 1.5], [0, 0, 0, 0, 0]) == pytest.approx(2 / 32)
    # Ranks 1 to 4, rank 1 negative: W- = 1, reached or beaten by {} and {1}, on both sides.
    assert signed_rank_p([-1, 2, 3, 4], [0] * 4) == pytest.approx(4 / 16)


def test_the_signed_rank_test_is_scipys_and_leaves_out_equal_pairs():
    generator = np.random.default_rng(5)
    for n in (6, 45, 200):
        ours, theirs = generator.random((2, n))
        assert signed_rank_p(ours, theirs) == pytest.approx(stats.wilcoxon(ours, theirs).pvalue, rel=1e-9)
        assert signed_rank_p([*ours, 0.5], [*theirs, 0.5]) == signed_rank_p(ours, theirs)
    assert signed_rank_p([0.1, 0.2], [0.1, 0.2]) is None


def test_differences_that_rounding_parts_share_their_rank():
    ours, theirs = [0.3, 0.2, 0.5, 0.9, 0.4], [0.2, 0.1, 0.8, 0.1, 0.2]
    assert ours[0] - theirs[0] != ours[1] - theirs[1]
    whole = np.round(10 * np.array(ours)) - np.round(10 * np.array(theirs))
    assert signed_rank_p(ours, theirs) == signed_rank_p(whole, np.zeros(5)) == stats.wilcoxon(whole).pvalue


def test_holms_correction_by_hand():
    # Sorted: .005 x 4, .01 x 3, .03 x 2, then .04 x 1 raised to the .06 before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_a_test_that_could_not_be_made_does_not_count_for_holm():
    assert holm([None, 0.01, None, 0.04]) == pytest.approx([None, 0.02, None, 0.04])


def test_the_spread_over_seeds_is_students():
    mean, std, low, high = spread([1.0, 2.0, 3.0])
    assert (mean, std) == (2.0, 1.0)
    assert (low, high) == pytest.approx((2 - 4.302652729696 / 3**0.5, 2 + 4.302652729696 / 3**0.5))
    values = np.random.default_rng(6).random(5)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert spread(values)[2:] == pytest.approx((theirs.low, theirs.high))
    assert spread([0.25]) == (0.25, None, None, None)
