from types import SimpleNamespace

import numpy as np
import pytest

from cappy.errors import InputError
from cappy.model.config import EncoderConfig
from cappy.model.packing import (
    ROW_LENGTHS,
    Batch,
    RowCost,
    check_max_length,
    describe_packing,
    fill_rows,
    pack_pairs,
    plan_batches,
    plan_groups,
    row_length_choices,
)
from cappy.model.tokens import EncodedPairs

COST = RowCost(attention=1 / 1000)


def random_lengths(n, seed=0, shortest=3, longest=60):
    return np.random.default_rng(seed).integers(shortest, longest + 1, n)


def encoded_of(*pairs, first=1):
    """EncodedPairs of (first text, second text) token lists."""
    tokens = np.concatenate([np.array(a + b, np.int32) for a, b in pairs])
    types = np.concatenate([np.repeat([0, 1], [len(a), len(b)]) for a, b in pairs]).astype(np.uint8)
    offsets = np.concatenate([[0], np.cumsum([len(a) + len(b) for a, b in pairs])])
    return EncodedPairs(tokens, types, offsets, np.zeros(len(pairs), bool))


def configured(model_type, pad_token_id):
    return SimpleNamespace(model_type=model_type, pad_token_id=pad_token_id)


@pytest.mark.parametrize('row_length', [60, 64, 128, 512])
def test_every_pair_lies_whole_in_its_row_and_overlaps_no_other(row_length):
    lengths = random_lengths(500)
    row, start = pack_pairs(lengths, row_length)
    taken = np.zeros((row.max() + 1, row_length), int)
    for i, length in enumerate(lengths):
        assert start[i] >= 0 and start[i] + length <= row_length
        taken[row[i], start[i] : start[i] + length] += 1
    assert taken.max() == 1
    assert taken.sum() == lengths.sum()
    assert sorted(set(row)) == list(range(row.max() + 1))


def test_rows_are_nearly_as_few_as_their_tokens_need():
    lengths = random_lengths(2000, longest=100)
    row, _ = pack_pairs(lengths, 512)
    assert row.max() + 1 <= 1.02 * np.ceil(lengths.sum() / 512)


def test_pairs_go_longest_first_into_the_fullest_row_with_room():
    row, start = pack_pairs([4, 6, 3, 7, 10], 10)
    assert row.tolist() == [2, 2, 1, 1, 0]
    assert start.tolist() == [6, 0, 7, 0, 0]


def test_packing_is_the_same_each_time_and_keeps_the_order_of_equal_lengths():
    lengths = random_lengths(300)
    first, second = pack_pairs(lengths, 128), pack_pairs(lengths.copy(), 128)
    np.testing.assert_array_equal(first, second)
    row, start = pack_pairs([5] * 6, 10)
    places = row * 10 + start
    assert len(set(places)) == 6
    assert row[:3].tolist() == [0, 1, 2]


@pytest.mark.parametrize(('lengths', 'named'), [([5, 11, 12], 'pair 1 has 11'), ([5, 3, 0], 'pair 2 has 0')])
def test_a_pair_that_fits_no_row_is_named(lengths, named):
    with pytest.raises(ValueError, match=f'{named} tokens; a row holds 1 to 10'):
        pack_pairs(lengths, 10)


def test_no_pairs_need_no_rows():
    row, start = pack_pairs([], 10)
    assert row.tolist() == start.tolist() == []
    assert plan_groups([], np.zeros(0, int), COST, 100, 512) == []


@pytest.mark.parametrize('n_data', [1, 3, 4])
@pytest.mark.parametrize('tokens_per_batch', [64, 1024])
def test_plans_hold_each_pair_of_a_group_once_in_few_shapes(n_data, tokens_per_batch):
    lengths = random_lengths(1000)
    groups = np.random.default_rng(1).permutation(1000)[:960].reshape(20, 48)
    plans = plan_groups(groups, lengths, COST, 1000, tokens_per_batch, n_data)
    assert len(plans) == 20
    shapes = set()
    for group, plan in zip(groups, plans, strict=True):
        numbers = np.concatenate([batch.pair[batch.pair >= 0] for batch in plan])
        assert sorted(numbers) == list(range(48))
        for batch in plan:
            R, L, C = batch.shape
            shapes.add(batch.shape)
            assert R % n_data == 0
            assert R // n_data * L <= max(tokens_per_batch, L)
            row, slot = np.nonzero(batch.pair >= 0)
            end = batch.start[row, slot] + lengths[group][batch.pair[row, slot]]
            assert end.max() <= L
            # Slots are filled from the left, in the order of their tokens.
            filled = batch.pair >= 0
            assert (filled[:, :-1] >= filled[:, 1:]).all()
            following = filled[:, 1:]
            assert (batch.start[:, 1:][following] > batch.start[:, :-1][following]).all()
    row_lengths = {L for _, L, _ in shapes}
    assert len(shapes) <= 2 * len(row_lengths)
    assert len({(L, C) for _, L, C in shapes}) == len(row_lengths)


def test_dear_compilations_make_one_row_length_and_cheap_ones_several():
    lengths = np.concatenate([random_lengths(2000, longest=20), random_lengths(200, shortest=200, longest=300)])
    cost, everything = RowCost(attention=1 / 100), np.arange(2200)
    [dear] = plan_groups([everything], lengths, cost, 1e9, 1024)
    [cheap] = plan_groups([everything], lengths, cost, 0, 1024)
    assert len({batch.row_length for batch in dear}) == 1
    assert len({batch.row_length for batch in cheap}) > 1
    spent = [sum(len(batch.pair) * float(cost(batch.row_length)) for batch in plan) for plan in (dear, cheap)]
    assert spent[1] < 0.75 * spent[0]


def test_long_rows_stand_first_and_slots_can_be_given():
    lengths = np.array([3, 4, 30, 5])
    plan = plan_batches(lengths, (8, 32), COST, 32, slots={8: 4, 32: 2})
    assert [batch.row_length for batch in plan] == sorted((b.row_length for b in plan), reverse=True)
    assert {batch.row_length: batch.shape[2] for batch in plan} == {32: 2, 8: 4}


def test_row_length_choices_ascend_and_the_first_holds_the_longest_pair():
    lengths = random_lengths(3000, longest=290)
    choices = row_length_choices(lengths, RowCost(attention=1 / 50))
    assert choices[0] == (320,)
    assert len(choices) > 2
    for choice in choices:
        assert list(choice) == sorted(set(choice))
        assert choice[-1] >= lengths.max()
        assert set(choice) <= set(ROW_LENGTHS)


def test_row_lengths_are_multiples_of_what_the_device_wants():
    lengths = random_lengths(3000, longest=290)
    by_multiple = {of: row_length_choices(lengths, RowCost(1 / 50, multiple=of))[-1] for of in (4, 8)}
    assert all(length % 8 == 0 for length in by_multiple[8])
    assert any(length % 8 for length in by_multiple[4])
    [plan] = plan_groups([np.arange(3000)], lengths, RowCost(1 / 50, multiple=8), 0, 1024)
    assert all(batch.row_length % 8 == 0 for batch in plan)


def test_a_pair_longer_than_the_grid_gets_a_row_of_its_length():
    assert row_length_choices(np.array([5, 700]), COST)[0] == (700,)


def test_rows_are_filled_as_laid_for_bert():
    encoded = encoded_of(([2, 11], [12]), ([2, 21], [22, 3]), ([2, 31], []))
    batch = Batch(6, np.array([[1, 0], [2, -1]], np.int32), np.array([[0, 3], [1, 0]], np.int32))
    rows = fill_rows(batch, encoded, np.array([0, 2, 1]), configured('bert', 0))
    expected = {
        'tokens': [[2, 31, 0, 2, 11, 12], [0, 2, 21, 22, 3, 0]],
        'positions': [[0, 1, 0, 0, 1, 2], [0, 0, 1, 2, 3, 0]],
        'segments': [[1, 1, 0, 2, 2, 2], [0, 1, 1, 1, 1, 0]],
        'pairs': [[1, 1, 0, 0, 0, 0], [0, 2, 2, 2, 2, 0]],
        'types': [[0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 0]],
        'starts': [[0, 3], [1, 0]],
    }
    assert {name: array.tolist() for name, array in rows.items()} == expected


def test_roberta_positions_begin_after_the_pad_token_and_skip_it_in_text():
    encoded = encoded_of(([0, 5, 1, 6], [2]), ([0, 1, 1], [7]))
    batch = Batch(10, np.array([[0, 1]], np.int32), np.array([[0, 5]], np.int32))
    rows = fill_rows(batch, encoded, np.array([0, 1]), configured('roberta', 1))
    assert rows['positions'].tolist() == [[2, 3, 1, 4, 5, 2, 1, 1, 3, 0]]
    assert rows['tokens'].tolist() == [[0, 5, 1, 6, 2, 0, 1, 1, 7, 1]]
    assert rows['segments'].tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 2, 0]]
    assert 'types' not in rows


def test_a_packing_is_described_by_hand():
    # Two rows of 10 with pairs of 6 + 3 and 5, a row of 4 with a pair of 4.
    plan = [
        Batch(10, np.array([[0, 1], [2, -1]]), np.array([[0, 6], [0, 0]])),
        Batch(4, np.array([[3]]), np.array([[0]])),
    ]
    described = describe_packing([plan], [np.array([6, 3, 5, 4])])
    assert described['rows'] == 3
    assert described['row_lengths'] == [4, 10]
    assert described['fill'] == pytest.approx(18 / 24)
    assert described['attention_between'] == pytest.approx(1 - (36 + 9 + 25 + 16) / (100 + 100 + 16))


@pytest.mark.slow
def test_a_million_pairs_are_all_planned_into_full_rows():
    lengths = np.clip(np.random.default_rng(0).lognormal(4, 0.6, 1_000_000), 4, 512).astype(int)
    [plan] = plan_groups([np.arange(len(lengths))], lengths, COST, 1e5, 16384)
    assert sum(int((batch.pair >= 0).sum()) for batch in plan) == 1_000_000
    assert describe_packing([plan], [lengths])['fill'] > 0.9


def test_a_max_length_beyond_the_positions_is_an_error(recorded):
    config = EncoderConfig(
        model_type='roberta',
        vocab_size=10,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_act='gelu',
        pad_token_id=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.0,
        initializer_range=0.02,
    )
    check_max_length(512, config, 'some/model')
    with pytest.raises(InputError, match='max_length 513: some/model has positions for 512 tokens; give') as caught:
        check_max_length(513, config, 'some/model')
    assert '\n' not in str(caught.value)
