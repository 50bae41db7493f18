import logging
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cappy.errors import InputError
from cappy.model import scoring
from cappy.model.scoring import score_pairs
from cappy.scorer import SUMMED_COUNTS, Cappy


@pytest.fixture(scope='module')
def scorer(tiny_directories):
    return Cappy.from_pretrained(tiny_directories['roberta'], max_length=24)


def scored(scorer, pairs, params=None, **options):
    """Scores and counts of each window."""
    windows = score_pairs(
        scorer.params if params is None else params,
        scorer.tokenizer,
        pairs,
        scorer.config,
        scorer.devices,
        scorer.compute_dtype,
        scorer.max_length,
        **options,
    )
    windows = list(windows)
    return np.concatenate([scores for scores, _ in windows] or [np.empty(0)]), [counts for _, counts in windows]


@pytest.fixture(scope='module')
def one_by_one(scorer, texts):
    pairs = texts(24)
    return pairs, np.array([scored(scorer, [pair])[0][0] for pair in pairs])


@pytest.mark.parametrize('tokens_per_device', [None, 48])
def test_many_pairs_score_as_each_does_alone_and_in_order(scorer, one_by_one, tokens_per_device):
    pairs, alone = one_by_one
    scores, _ = scored(scorer, pairs, tokens_per_device=tokens_per_device)
    assert scores.dtype == np.float32
    assert alone.std() > 0.15  # else any order would do
    np.testing.assert_allclose(scores, alone, rtol=0, atol=5e-6)
    backwards, _ = scored(scorer, pairs[::-1], tokens_per_device=tokens_per_device)
    np.testing.assert_allclose(backwards[::-1], alone, rtol=0, atol=5e-6)


def test_identical_pairs_are_scored_once_and_counted(scorer, one_by_one):
    pairs, alone = one_by_one
    scores, [counts] = scored(scorer, pairs + pairs[:5] + [list(pairs[0])])
    np.testing.assert_allclose(scores, np.concatenate([alone, alone[:5], alone[:1]]), rtol=0, atol=5e-6)
    assert scores[24:29].tolist() == scores[:5].tolist()
    assert (counts['pairs'], counts['unique_pairs']) == (30, len(set(pairs)))
    full = [len(ids) for ids in scorer.tokenizer(*map(list, zip(*set(pairs), strict=True)))['input_ids']]
    assert counts['truncated_pairs'] == sum(length > 24 for length in full) > 0
    [row_length] = counts['row_lengths']
    assert counts['fill'] == pytest.approx(sum(min(length, 24) for length in full) / (counts['rows'] * row_length))


def test_few_pairs_take_the_shapes_that_were_compiled_before(scorer, one_by_one):
    pairs, alone = one_by_one
    short = min(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    compiled, fresh = set(), set()
    scored(scorer, pairs, compiled=compiled)
    before = set(compiled)
    scores, _ = scored(scorer, [pairs[short]], compiled=compiled)
    assert compiled == before
    scored(scorer, [pairs[short]], compiled=fresh)
    assert not fresh <= before  # by itself, the pair would have another shape
    np.testing.assert_allclose(scores, alone[short], rtol=0, atol=5e-6)


def test_swapping_instruction_and_response_is_another_pair(scorer):
    scores, [counts] = scored(scorer, [('the cat', 'two birds'), ('two birds', 'the cat')])
    assert counts['unique_pairs'] == 2
    assert abs(scores[0] - scores[1]) > 1e-3


def test_windows_follow_one_another_in_order(scorer, one_by_one):
    pairs, alone = one_by_one
    scores, counts = scored(scorer, (pair for pair in pairs), window_size=10)
    np.testing.assert_allclose(scores, alone, rtol=0, atol=5e-6)
    assert [count['pairs'] for count in counts] == [10, 10, 4]


def test_a_generator_is_read_as_a_list_is(scorer, one_by_one):
    pairs, alone = one_by_one
    np.testing.assert_allclose(scored(scorer, iter(pairs))[0], alone, rtol=0, atol=5e-6)


def test_no_pairs_have_no_scores(scorer):
    scores, counts = scored(scorer, [])
    assert len(scores) == 0 and counts == []
    scores, counts = scorer.score_with_counts(iter(()))
    assert (scores.dtype, scores.shape) == (np.float32, (0,))
    assert counts == dict.fromkeys(SUMMED_COUNTS, 0)


def test_where_tokenizing_costs_only_waiting_the_first_window_is_short(scorer, one_by_one, monkeypatch):
    pairs, alone = one_by_one
    monkeypatch.setattr(scoring, 'FIRST_WINDOW', {scorer.devices.platform: 4})
    scores, counts = scored(scorer, pairs[:24], window_size=12)
    np.testing.assert_allclose(scores, alone[:24], rtol=0, atol=5e-6)
    assert [count['pairs'] for count in counts] == [4, 12, 8]


def test_waiting_for_tokens_is_counted_in_the_window_that_waited(scorer, one_by_one, monkeypatch):
    pairs, _ = one_by_one
    encode, waits, now = scoring.encode_pairs, threading.Event(), [0.0]

    def read_clock():
        waits.set()
        return now[0]

    def encode_late(*arguments):
        waits.wait()  # tokenizing is done by another thread
        now[0] += 100 if now[0] == 0 else 0
        return encode(*arguments)

    monkeypatch.setattr(scoring, 'time', types.SimpleNamespace(perf_counter=read_clock))
    monkeypatch.setattr(scoring, 'encode_pairs', encode_late)
    _, counts = scored(scorer, pairs[:16], window_size=8)
    assert [count['seconds_waiting'] for count in counts] == [100, 0]


@pytest.mark.parametrize(
    ('pair', 'found'),
    [
        ('ab', 'expected (instruction, response)'),
        (('a', 'b', 'c'), 'expected (instruction, response)'),
        (None, 'expected (instruction, response)'),
        (('a', None), 'response: expected text; found NoneType'),
        ((3, 'b'), 'instruction: expected text; found int'),
    ],
)
def test_what_is_no_pair_is_named_by_its_place(scorer, one_by_one, pair, found):
    with pytest.raises(InputError) as caught:
        scored(scorer, one_by_one[0][:3] + [pair], window_size=2)
    assert str(caught.value).startswith('pair 3: ')
    assert found in str(caught.value)
    assert '\n' not in str(caught.value)


def test_weights_that_are_not_finite_are_an_error(scorer, one_by_one):
    broken = jax.tree.map(lambda leaf: leaf, scorer.params)
    broken['classifier.out_proj'] = {**broken['classifier.out_proj'], 'bias': jnp.full(1, jnp.nan)}
    with pytest.raises(InputError, match='pair 0 has the score nan: the weights are not sound'):
        scored(scorer, one_by_one[0][:3], params=broken)


def test_a_score_that_is_not_finite_is_named_by_its_place_in_all_windows(scorer, one_by_one, monkeypatch):
    score = scoring.score_encoded
    windows = []

    def third_window_is_wrong(params, encoded, *others):
        scores, plan = score(params, encoded, *others)
        windows.append(len(scores))
        return (scores if len(windows) < 3 else scores + np.float32(np.inf)), plan

    monkeypatch.setattr(scoring, 'score_encoded', third_window_is_wrong)
    with pytest.raises(InputError, match='pair 4 has the score inf'):
        scored(scorer, one_by_one[0][:6], window_size=2)


def test_bfloat16_scores_are_close_and_in_float32(tiny_directories, one_by_one):
    pairs, alone = one_by_one
    half = Cappy.from_pretrained(tiny_directories['roberta'], max_length=24, compute_dtype='bfloat16')
    scores = half.score(pairs)
    assert scores.dtype == np.float32
    assert 0 < np.abs(scores - alone).max() < 0.1 * alone.std()
    # On bfloat16's own grid all scores would be equal to themselves rounded to 8 bits.
    assert (scores != np.asarray(scores.astype(jnp.bfloat16), np.float32)).any()


def test_a_scorer_says_nothing_on_the_root_log_when_it_scores(scorer, one_by_one, caplog, capsys):
    with caplog.at_level(logging.WARNING):
        scores = scorer.score(one_by_one[0][:3])
    np.testing.assert_allclose(scores, one_by_one[1][:3], rtol=0, atol=5e-6)
    assert [record for record in caplog.records if record.name == 'root'] == []
    assert capsys.readouterr() == ('', '')
