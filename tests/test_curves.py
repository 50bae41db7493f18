"""cappy/study/curves.py: expected picks among a number of samples, rank correlation, calibration."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from cappy.errors import InputError
from cappy.study import curves
from cappy.study.results import ResultPaths, describe_candidates, write_result
from cappy.tasks import picks
from cappy.tasks.candidates import Example, Sample, write_examples
from cappy.tasks.rouge import RougeL
from cappy.tasks.statistics import rank_correlation


def by_hand(values, outcomes, size):
    """Mean over all subsets of the outcome of the first highest value."""
    picks = [max(subset, key=lambda i: (values[i], -i)) for subset in itertools.combinations(range(len(values)), size)]
    return np.mean([outcomes[i] for i in picks])


def test_the_best_of_a_random_subset_is_expected_as_all_subsets_give_it():
    # Of the pairs of three samples, scores 3 1 2: {0,1} and {0,2} pick the first, {1,2} the third.
    made = curves.best_of_subsets(np.array([3.0, 1.0, 2.0]), np.array([0.9, 0.3, 0.0]), (1, 2, 3))
    assert made == pytest.approx([0.4, 0.6, 0.9])
    generator = np.random.default_rng(0)
    values, outcomes = generator.integers(0, 4, 8).astype(float), generator.random(8)  # with equal values
    sizes = tuple(range(1, 9))
    assert curves.best_of_subsets(values, outcomes, sizes) == pytest.approx(
        [by_hand(values, outcomes, size) for size in sizes]
    )


def consensus_by_hand(pairwise, outcomes, size):
    picks = []
    for subset in itertools.combinations(range(len(outcomes)), size):
        sums = [round(sum(pairwise[i][j] for j in subset if j != i), 9) for i in subset]
        picks.append(outcomes[subset[int(np.argmax(sums))]])
    return np.mean(picks)


def test_the_consensus_of_a_subset_looks_at_that_subset_alone():
    responses = ['a b c', 'a b d', 'a b c', 'x y', 'x b c', 'q']
    pairwise = RougeL().pairwise(responses)
    outcomes = np.array([0.1, 0.2, 0.1, 0.7, 0.4, 0.9])
    made = curves.consensus_of_subsets(pairwise, outcomes, (1, 2, 3, 6), 32, np.random.default_rng(0))
    assert made == pytest.approx([consensus_by_hand(pairwise, outcomes, size) for size in (1, 2, 3, 6)])


def test_drawn_subsets_come_near_all_of_them_and_are_the_same_for_the_same_seed(monkeypatch):
    generator = np.random.default_rng(3)
    pairwise = generator.random((7, 7))
    pairwise, outcomes = pairwise + pairwise.T, generator.random(7)
    monkeypatch.setattr(curves, 'MAX_ENUMERATED', 1)
    curves._all_subsets.cache_clear()
    made = [
        curves.consensus_of_subsets(pairwise, outcomes, (3, 5), 20_000, np.random.default_rng(seed)) for seed in (0, 0)
    ]
    curves._all_subsets.cache_clear()
    assert made[0].tolist() == made[1].tolist()
    # 20,000 draws of values between 0 and 1: a standard error of 0.0036 at most
    assert made[0] == pytest.approx([consensus_by_hand(pairwise, outcomes, size) for size in (3, 5)], abs=0.015)


def test_sizes_grow_by_steps_and_end_with_all_samples():
    assert curves.sample_sizes(17) == [1, 2, 3, 4, 6, 8, 12, 17]
    assert curves.sample_sizes(1) == [1] and curves.sample_sizes(2) == [1, 2]
    assert curves.sample_sizes(33) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 33]


def make_examples():
    """Two examples of 5 and 3 samples, one text sampled twice."""
    texts = (['a b c', 'a b', 'a b c', 'x', 'a c'], ['b', 'c b', 'd'])
    likelihoods = ([-3.0, -1.0, -3.0, None, -2.0], [-5.0, -4.0, -6.0])
    return [
        Example(
            't',
            number,
            f'instruction {number}',
            ('a b c',),
            tuple(
                Sample(text, 'beam4' if place == 0 else 'sampling', likelihood, likelihood)
                for place, (text, likelihood) in enumerate(zip(texts[number], likelihoods[number], strict=True))
            ),
        )
        for number in (0, 1)
    ]


@pytest.fixture
def cell(tmp_path):
    """(paths, result, examples, rougeL, scores) of a cell with its generator's file."""
    examples, rouge = make_examples(), RougeL()
    rougeL = picks.candidates_rougeL(examples, rouge)
    scores = [np.array([0.2, 0.9, 0.1, 0.5], np.float32), np.array([0.1, 0.2, 0.3], np.float32)]
    picked = picks.all_picks(examples, rougeL, rouge, None, scores)
    lines = [
        describe_candidates(example, s, r, {name: values[number] for name, values in picked.items()})
        for number, (example, s, r) in enumerate(zip(examples, scores, rougeL, strict=True))
    ]
    write_examples(tmp_path / 'gens' / 'lm' / 'mine_validation.jsonl', examples)
    paths = ResultPaths(tmp_path / 'results', 'lm', 'mine')
    result = {'rougeL': float(picked['scorer after adapting'].mean()), 'settings': {}, 'comparison': []}
    write_result(paths, result, lines, [])
    return paths, result, examples, rougeL, scores


def test_a_cells_curves_end_in_what_its_picks_have_and_begin_in_a_random_sample(cell, tmp_path):
    paths, result, examples, rougeL, scores = cell
    sizes, made, are_drawn = curves.sample_curves_of_cell(paths, result, tmp_path / 'gens')
    assert (sizes, are_drawn) == ([1, 2, 3, 4, 5], True)
    picked = picks.all_picks(examples, rougeL, RougeL(), None, scores)
    for pick, name in (
        ('scorer', 'scorer after adapting'),
        ('self-score sum', 'self-score sum'),
        ('consensus', 'consensus'),
        ('oracle', 'oracle'),
    ):
        assert made[pick][-1] == pytest.approx(picked[name].mean())
        assert made[pick][0] == pytest.approx(picked['random candidate'].mean())
    # Two samples: of the first example 10 subsets, of the second 3; its three are all it has for 3 and more.
    own = [
        np.array([values[example.candidates.index(sample.response)] for sample in example.samples])
        for example, values in zip(examples, rougeL, strict=True)
    ]
    likelihoods = np.array([-3.0, -1.0, -3.0, -np.inf, -2.0]), np.array([-5.0, -4.0, -6.0])
    expected = np.mean([by_hand(of_one, values, 2) for of_one, values in zip(likelihoods, own, strict=True)])
    assert made['self-score sum'][1] == pytest.approx(expected)


def test_without_the_generators_file_each_text_counts_once(cell, tmp_path):
    paths, result, _, rougeL, scores = cell
    sizes, made, are_drawn = curves.sample_curves_of_cell(paths, result, tmp_path / 'elsewhere')
    assert (sizes, are_drawn, list(made)) == ([1, 2, 3, 4], False, ['scorer', 'consensus', 'oracle'])
    assert made['scorer'][0] == pytest.approx(np.mean([values.mean() for values in rougeL]))


def test_a_generators_file_with_other_samples_is_named(cell, tmp_path):
    paths, result, examples, *_ = cell
    write_examples(tmp_path / 'gens' / 'lm' / 'mine_validation.jsonl', examples[:1])
    with pytest.raises(
        InputError, match=r'mine_validation.jsonl: example_idx 1: other samples than those in .*; were they drawn again'
    ):
        curves.sample_curves_of_cell(paths, result, tmp_path / 'gens')


def test_a_score_that_is_not_a_number_is_named_with_its_line(cell):
    paths, *_ = cell
    lines = [json.loads(line) for line in paths.candidates.read_text().splitlines()]
    lines[1]['candidates'][0]['score'] = 'high'
    with pytest.raises(InputError, match=r'mine.candidates.jsonl:2: a score is not a number'):
        curves.scores_and_rougeL(lines, paths.candidates)


def test_rank_correlation_is_scipys():
    generator = np.random.default_rng(1)
    xs, ys = generator.integers(0, 5, 40), generator.random(40)
    assert rank_correlation(xs, ys) == pytest.approx(stats.spearmanr(xs, ys).statistic)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 1], [3, 2, 1]) is None


def test_calibration_has_bins_of_neighbouring_scores():
    scores = [np.array([0.1, 0.4]), np.array([0.2, 0.3]), np.array([0.5, 0.5])]
    rougeL = [np.array([0.0, 1.0]), np.array([0.4, 0.2]), np.array([0.5, 0.7])]
    made = curves.calibrate(scores, rougeL, n_bins=3)
    assert [group.n for group in made.bins] == [2, 2, 2]
    assert [group.score for group in made.bins] == pytest.approx([0.15, 0.35, 0.5])
    assert [group.rougeL for group in made.bins] == pytest.approx([0.2, 0.6, 0.6])
    # Quartiles between two values are at a quarter of the way from each.
    quartiles = [(0.1, 0.3), (0.4, 0.8), (0.55, 0.65)]
    assert [(group.low, group.high) for group in made.bins] == [pytest.approx(pair) for pair in quartiles]
    assert made.error == pytest.approx((0.05 + 0.25 + 0.1) / 3)
    # Within examples +1, -1; the third has equal scores and says nothing.
    assert (made.within, made.n_within) == (pytest.approx(0), 2)
    assert made.spearman == pytest.approx(stats.spearmanr(np.concatenate(scores), np.concatenate(rougeL)).statistic)
