"""Each method of picking against its definition, worked out by hand or in plain Python."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from cappy.tasks.candidates import Example, Sample, read_task
from cappy.tasks.picks import (
    all_picks,
    candidates_rougeL,
    compare,
    consensus,
    consensus_of,
    count_ties,
    describe_ties,
    first_sample_rougeL,
    gap_closed,
    is_constant,
    oracle_rougeL,
    random_rougeL,
    scorer_rougeL,
    self_score_rougeL,
    values_by_pick,
)
from cappy.tasks.rouge import RougeL
from cappy.tasks.statistics import bootstrap_means, mean_interval

RECORDED = Path(__file__).parent / 'recorded'


def example(*samples):
    """samples: (decoding, response[, sum, mean]); the reference is 'a b c d'."""
    return Example(
        'd',
        0,
        'i',
        ('a b c d',),
        tuple(Sample(response, decoding, *ll) for decoding, response, *ll in samples),
    )


FIRST = example(('beam4', 'a b', -3.0, -1.5), ('sampling', 'x', -5.0, -1.0), ('sampling', 'a b', -3.0, -1.5))
SECOND = example(('beam4', 'x', -1.0, -9.0), ('sampling', 'a b c d', -2.0, -8.0), ('sampling', 'x', None, None))
EXAMPLES = [FIRST, SECOND]
ROUGEL = candidates_rougeL(EXAMPLES, RougeL())


def test_rougeL_of_candidates_is_in_their_order():
    assert [values.tolist() for values in ROUGEL] == [[pytest.approx(2 / 3), 0], [0, 1]]


def test_the_random_candidate_counts_a_repeated_sample_as_often_as_it_was_drawn():
    assert random_rougeL(EXAMPLES, ROUGEL).tolist() == pytest.approx([4 / 9, 1 / 3])


def test_the_first_sample_is_that_of_the_decoding():
    assert first_sample_rougeL(EXAMPLES, ROUGEL, 'beam4').tolist() == pytest.approx([2 / 3, 0])
    assert first_sample_rougeL(EXAMPLES, ROUGEL, 'sampling').tolist() == [0, 1]
    assert first_sample_rougeL(EXAMPLES, ROUGEL, 'topk40') is None


def test_self_score_takes_the_likeliest_sample_and_passes_over_unknown_likelihoods():
    assert self_score_rougeL(EXAMPLES, ROUGEL, 'sum').tolist() == pytest.approx([2 / 3, 0])
    assert self_score_rougeL(EXAMPLES, ROUGEL, 'mean').tolist() == [0, 1]
    unknown = [FIRST, example(('beam4', 'x'))]
    assert self_score_rougeL(unknown, candidates_rougeL(unknown, RougeL()), 'sum') is None


def test_self_score_takes_the_first_of_equals():
    equal = [example(('s', 'x', -1.0, -1.0), ('s', 'a b c d', -1.0, -1.0))]
    assert self_score_rougeL(equal, candidates_rougeL(equal, RougeL()), 'sum').tolist() == [0]


def test_consensus_equals_its_definition_over_all_samples():
    generator, rouge = random.Random(0), RougeL()
    for _ in range(50):
        responses = [
            ' '.join(generator.choices('abcd', k=generator.randrange(4))) for _ in range(generator.randrange(2, 12))
        ]
        made = example(*(('s', response) for response in responses))
        means = {}
        for candidate in made.candidates:
            others = responses.copy()
            others.remove(candidate)
            means[candidate] = sum(rouge.score([other], candidate) for other in others) / len(others)
        best = max(means.values())
        expected = next(n for n, mean in enumerate(means.values()) if mean > best - 1e-9)
        assert np.argmax(consensus(made, rouge)) == expected


def test_consensus_counts_repeated_samples_and_a_single_candidate_picks_itself():
    made = [
        example(('s', 'x'), ('s', 'a b'), ('s', 'a b')),
        example(('s', 'a b c d')),
        example(('s', '...'), ('s', '')),
    ]
    assert [np.argmax(values) for values in consensus_of(made, RougeL())] == [1, 0, 0]
    rougeL = candidates_rougeL(made, RougeL())
    assert scorer_rougeL(rougeL, consensus_of(made, RougeL())).tolist() == pytest.approx([2 / 3, 1, 0])


@pytest.mark.parametrize(
    ('responses', 'picked'),
    [
        (['maybe', '+', '+', '+', '+'], '+'),
        (['no', '\U0001f44d', ' \U0001f44d'], '\U0001f44d'),
        (['a', '\u4e2d', '\u4e2d'], '\u4e2d'),
        (['b', '', ''], 'b'),  # blank texts say nothing
        (['...', '+', 'b c', 'b d'], 'b c'),
    ],
)
def test_equal_texts_without_words_agree_in_the_consensus(responses, picked):
    made = example(*(('s', response) for response in responses))
    assert made.candidates[np.argmax(consensus(made, RougeL()))] == picked


def test_ties_are_counted_for_every_pick_by_a_value_and_averaged_over():
    made = [
        example(('beam4', 'a b', -2.0, -1.0), ('s', 'a b c d', -2.0, -2.0), ('s', 'x', -3.0, -3.0)),
        example(('beam4', 'x', -1.0, -1.0), ('s', 'a b c d', -1.0, -1.0)),
        example(('beam4', 'a b', -1.0, -1.0), ('s', 'a b', -1.0, -1.0)),  # one candidate: no tie
    ]
    rougeL = candidates_rougeL(made, RougeL())
    constant = [np.array([0, 1e-7, 1e-12], np.float32), np.zeros(2, np.float32), np.zeros(1, np.float32)]
    after = [np.array([0.1, 0.3, 0.3], np.float32), np.array([0.1, 0.2], np.float32), np.zeros(1, np.float32)]
    combined = {'combined': after}
    values = values_by_pick(made, consensus_of(made, RougeL()), constant, after, combined)
    ties = count_ties(rougeL, values)
    assert ties['scorer before adapting'] == {
        'n_examples': 3,
        'n_several': 2,
        'n_tied': 2,
        'n_alike': 2,
        'rougeL': pytest.approx(((2 / 3 + 1 + 0) / 3 + (0 + 1) / 2 + 2 / 3) / 3),
    }
    assert (ties['scorer after adapting']['n_tied'], ties['scorer after adapting']['n_alike']) == (1, 0)
    assert ties['scorer after adapting']['rougeL'] == pytest.approx((1 / 2 + 1 + 2 / 3) / 3)
    assert ties['combined'] == ties['scorer after adapting']
    assert 'longest' not in ties
    # 'a b' and 'a b c d' agree with each other alike, and so do any two candidates.
    assert (ties['consensus']['n_tied'], ties['consensus']['n_alike']) == (2, 1)
    assert [ties[f'self-score {which}']['n_tied'] for which in ('sum', 'mean')] == [2, 1]
    assert ties['self-score mean']['rougeL'] == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
    assert [is_constant(ties[f'scorer {when} adapting']) for when in ('before', 'after')] == [True, False]
    rows = {row['name']: row for row in compare(all_picks(made, rougeL, RougeL(), constant, after, combined), ties)}
    assert rows['consensus']['ties'] == ties['consensus'] and 'ties' not in rows['oracle']
    before, later, others = describe_ties(ties)
    assert before.startswith(
        'scorer before adapting: in 2 of 3 examples the highest score is shared by several candidates; the first of '
        'them is picked (57.4 over ties). It gives all candidates of an example the same score'
    )
    assert later.startswith('scorer after adapting: in 1 of 3') and later.endswith('over ties)')
    assert others.endswith('of 3 examples') and 'consensus in 2 (' in others and 'combined in 1 (' in others


def test_without_ties_nothing_is_said():
    scores = [np.array([0.5, 0.1]), np.array([0.1, 0.2])]
    assert describe_ties(count_ties(ROUGEL, {'scorer after adapting': scores})) == []
    # A scorer of broken weights is named where its scores are written.
    broken = count_ties(ROUGEL, {'scorer after adapting': [np.array([np.nan, 1.0]), np.array([0.1, 0.2])]})
    assert broken['scorer after adapting']['n_tied'] == 0


def test_a_single_example_has_no_intervals():
    rows = compare(all_picks([SECOND], ROUGEL[1:], RougeL(), [np.array([0.5, 0.6])]))
    assert {row[key] for row in rows for key in ('low', 'high', 'gap_low', 'gap_high')} == {None}
    assert rows[-1]['gap_closed'] == 1


def test_the_scorer_takes_the_first_of_the_highest_scores_and_the_oracle_the_best():
    scores = [np.array([0.5, 0.5], np.float32), np.array([0.1, 0.2], np.float32)]
    assert scorer_rougeL(ROUGEL, scores).tolist() == pytest.approx([2 / 3, 1])
    assert oracle_rougeL(ROUGEL).tolist() == pytest.approx([2 / 3, 1])


@pytest.mark.parametrize('task', ['tiny_tense', 'tiny_arithmetic'])
def test_recorded_scores_give_the_recorded_picks_and_rougeL(task):
    examples = read_task(RECORDED / 'inputs' / 'bigbench_flan_gens', 'flan-t5-tiny', task)['validation']
    scores = json.loads((RECORDED / 'bigbench' / f'{task}.scores.json').read_text())
    result = json.loads((RECORDED / 'bigbench' / f'{task}.result.json').read_text())
    score_of = {(pair['example_idx'], pair['response']): pair['score'] for pair in scores}
    rougeL = candidates_rougeL(examples, RougeL())
    by_example = [
        np.array([score_of[example.example_idx, text] for text in example.candidates]) for example in examples
    ]
    picked = scorer_rougeL(rougeL, by_example)
    assert picked.tolist() == [one['rougeL'] for one in result['per_example']]
    assert picked.mean() == pytest.approx(result['rougeL'], abs=1e-12)
    assert [example.candidates[np.argmax(values)] for example, values in zip(examples, by_example, strict=True)] == [
        one['pred'] for one in result['per_example']
    ]


def test_the_gap_closed_is_0_for_random_1_for_the_oracle_and_none_without_a_gap():
    low, high = np.array([0.2, 0.4]), np.array([0.6, 1.0])
    assert gap_closed(low, low, high) == 0
    assert gap_closed(high, low, high) == 1
    assert gap_closed((low + high) / 2, low, high) == pytest.approx(0.5)
    assert gap_closed(low - 0.25, low, high) == pytest.approx(-0.5)
    assert gap_closed(low, high, high) is None


def test_the_interval_of_the_gap_closed_is_that_of_the_resamples():
    generator = np.random.default_rng(0)
    low = generator.uniform(0.1, 0.4, 40)
    high, mixed = low + generator.uniform(0.1, 0.5, 40), low + generator.uniform(0, 0.3, 40)
    *_, row, oracle = compare({'random': low, 'mixed': mixed, 'oracle': high})
    of_random, of_mixed, of_oracle = bootstrap_means([low, mixed, high])
    expected = np.quantile((of_mixed - of_random) / (of_oracle - of_random), [0.025, 0.975])
    assert (row['gap_low'], row['gap_high']) == pytest.approx(tuple(expected))
    assert (oracle['gap_low'], oracle['gap_high']) == (1, 1)
    # Of few examples it is Student's, about as wide as the resamples' where both hold.
    *_, few, _ = compare({'random': low[:29], 'mixed': mixed[:29], 'oracle': high[:29]})
    *_, more, _ = compare({'random': low[:30], 'mixed': mixed[:30], 'oracle': high[:30]})
    assert few['gap_high'] - few['gap_low'] == pytest.approx(more['gap_high'] - more['gap_low'], rel=0.2)
    low, high = np.array([0.2, 0.4]), np.array([0.6, 1.0])
    without_gap = compare({'random': high, 'mixed': low, 'oracle': high})
    assert [(row['gap_closed'], row['gap_low'], row['gap_high']) for row in without_gap] == [(None, None, None)] * 3


def test_the_comparison_has_every_pick_in_order_with_its_interval():
    scores = [np.array([0.5, 0.6]), np.array([0.5, 0.6])]
    rows = compare(all_picks(EXAMPLES, ROUGEL, RougeL(), scores, [-s for s in scores]))
    assert [(row['name'], pytest.approx(row['rougeL'])) for row in rows] == [
        ('random candidate', (4 / 9 + 1 / 3) / 2),
        ('first of beam4', 1 / 3),
        ('first of sampling', 1 / 2),
        ('longest', 5 / 6),
        ('shortest', 0),
        ('self-score sum', 1 / 3),
        ('self-score mean', 1 / 2),
        ('consensus', 1 / 3),
        ('scorer before adapting', 1 / 2),
        ('scorer after adapting', 1 / 3),
        ('oracle', 5 / 6),
    ]
    assert [rows[0]['gap_closed'], rows[-1]['gap_closed']] == [0, 1]
    of_oracle = mean_interval([2 / 3, 1])
    assert [rows[-1][key] for key in ('low', 'high', 'gap_low', 'gap_high')] == pytest.approx([*of_oracle, 1, 1])
    for row in rows:
        assert row['low'] <= row['rougeL'] <= row['high']


def test_the_comparison_leaves_out_picks_that_some_example_lacks():
    examples = [example(('a', 'x'), ('b', 'x')), example(('a', 'a b'))]
    rows = compare(all_picks(examples, candidates_rougeL(examples, RougeL()), RougeL()))
    assert [(row['name'], row['gap_closed']) for row in rows] == [
        ('random candidate', None),
        ('first of a', None),
        ('longest', None),
        ('shortest', None),
        ('consensus', None),
        ('oracle', None),
    ]
