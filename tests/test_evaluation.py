"""How a scorer is judged on held-out templates."""

import numpy as np
import pytest
from scipy import stats

from cappy.errors import InputError
from cappy.pretrain_data import evaluation
from cappy.pretrain_data.labelled_pairs import LabelledPair


def pairs_of(*instances):
    """Instances as (template, source, labels)."""
    made = []
    for number, (template, source, labels) in enumerate(instances):
        made += [LabelledPair(f'i{number}', f'r{k}', label, template, source) for k, label in enumerate(labels)]
    return made


HELD_OUT = evaluation.group_instances(
    pairs_of(
        ('a', 'choice', [0.0, 1.0, 0.0]),
        ('a', 'choice', [1.0, 0.0]),
        ('b', 'other', [1.0, 0.25, 0.5]),
        ('b', 'reference', [1.0]),
        ('b', 'truncated', [1.0, 0.0]),
        ('c', '', [0.0, 1.0]),
    )
)
SCORES = [0.2, 0.9, 0.1, 0.4, 0.4, 0.9, 0.3, 0.2, 0.5, 0.7, 0.7, 0.6, 0.1]


def test_an_instance_is_a_run_of_pairs_with_one_template_and_one_instruction():
    assert HELD_OUT.starts.tolist() == [0, 3, 5, 8, 9, 11, 13]
    assert HELD_OUT.templates == ['a', 'a', 'b', 'b', 'b', 'c']


def test_a_choice_instance_has_one_right_answer_and_pairs_of_choices_or_of_no_named_source():
    assert HELD_OUT.is_choice.tolist() == [True, True, False, False, False, True]
    assert HELD_OUT.is_ranked.tolist() == [False, False, True, False, True, False]


def test_chance_is_one_score_for_all_pairs_a_random_choice_and_no_order():
    blind = evaluation.chance(HELD_OUT)
    np.testing.assert_allclose(blind.accuracy, [1 / 3, 1 / 2, np.nan, np.nan, np.nan, 1 / 2])
    np.testing.assert_allclose(blind.rank_correlation, [np.nan, np.nan, 0, np.nan, 0, np.nan])
    constant = np.mean([1 / 3, 1 / 2, 1.75 / 3, 1, 1 / 2, 1 / 2])
    np.testing.assert_allclose(blind.squared_error, evaluation.judge(HELD_OUT, [constant] * 13).squared_error)
    others = [evaluation.judge(HELD_OUT, [constant + step] * 13).mean('squared_error') for step in (-0.05, 0.05)]
    assert blind.mean('squared_error') < min(others)  # no other constant is better


def test_an_instance_with_two_right_answers_is_no_choice():
    held_out = evaluation.group_instances(pairs_of(('a', 'choice', [1.0, 1.0, 0.0])))
    assert not held_out.is_choice.any()


def test_measures_equal_their_definitions():
    judgement = evaluation.judge(HELD_OUT, SCORES)
    # The first of equal scores is the pick, so the second instance is right.
    np.testing.assert_array_equal(judgement.accuracy, [1, 1, np.nan, np.nan, np.nan, 0])
    expected = stats.spearmanr([0.9, 0.3, 0.2], [1.0, 0.25, 0.5]).statistic
    np.testing.assert_allclose(judgement.rank_correlation, [np.nan, np.nan, expected, np.nan, 0, np.nan])
    errors = np.square(np.array(SCORES) - HELD_OUT.labels)
    by_hand = [errors[a:b].mean() for a, b in zip(HELD_OUT.starts, HELD_OUT.starts[1:], strict=False)]
    np.testing.assert_allclose(judgement.squared_error, by_hand)
    assert judgement.mean('accuracy') == pytest.approx(2 / 3)


def test_a_measure_that_no_instance_has_is_none():
    held_out = evaluation.group_instances(pairs_of(('a', 'reference', [1.0])))
    judgement = evaluation.judge(held_out, [0.5])
    assert judgement.mean('accuracy') is None
    assert [row['measure'] for row in evaluation.compare(held_out, judgement, judgement)] == ['squared_error']


def test_the_comparison_has_gain_and_chance_with_intervals_that_contain_them():
    before, after = evaluation.judge(HELD_OUT, [0.5] * 13), evaluation.judge(HELD_OUT, SCORES)
    table = {row['measure']: row for row in evaluation.compare(HELD_OUT, before, after)}
    accuracy = table['accuracy']
    assert accuracy['instances'] == 3
    assert accuracy['before'] == pytest.approx(1 / 3)  # the first choice of each
    assert accuracy['gain'] == pytest.approx(accuracy['after'] - accuracy['before'])
    assert accuracy['chance'] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert accuracy['above_chance'] == pytest.approx(accuracy['after'] - accuracy['chance'])
    for row in table.values():
        for name in ('before', 'after', 'gain', 'above_chance'):
            low, high = row[f'{name}_interval']
            assert low <= row[name] <= high


def test_a_measure_of_a_single_instance_has_no_interval():
    held_out = evaluation.group_instances(pairs_of(('a', 'choice', [1.0, 0.0])))
    before, after = evaluation.judge(held_out, [0.1, 0.2]), evaluation.judge(held_out, [0.2, 0.1])
    accuracy = evaluation.compare(held_out, before, after)[-1]
    intervals = [accuracy[f'{name}_interval'] for name in ('before', 'after', 'gain', 'above_chance')]
    assert intervals == [(None, None)] * 4
    assert [evaluation.with_interval(accuracy, name) for name in ('gain', 'chance_less')] == ['1.000', '']


def test_each_template_has_its_own_means():
    before, after = evaluation.judge(HELD_OUT, [0.5] * 13), evaluation.judge(HELD_OUT, SCORES)
    a, b, c = evaluation.by_template(HELD_OUT, before, after)
    assert (a['template'], a['instances'], a['accuracy_before'], a['accuracy_after']) == ('a', 2, 0.5, 1.0)
    assert a['chance'] == pytest.approx(5 / 12)
    assert 'rank_correlation_after' not in a and 'accuracy_after' not in b and 'chance' not in b
    assert c['accuracy_after'] == 0


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / 'heldout.jsonl').write_text('')
    with pytest.raises(InputError, match=r'heldout\.jsonl: holds no pairs'):
        evaluation.read_held_out(tmp_path / 'heldout.jsonl')
