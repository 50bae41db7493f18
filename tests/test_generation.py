"""Samples, beams and log-likelihoods. Tests of several devices run this file's `main` in processes of their own."""

import functools
import itertools
import json
import logging
import socket
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import fails

from cappy.errors import InputError
from cappy.generate import generator
from cappy.generate.decoding_loop import Engine, Lengths
from cappy.generate.decodings import Decoding, parse_decoding
from cappy.generate.generator import Generator
from cappy.generate.sampling import draw_words, invert, nucleus, sample_key, top_k, uniform
from cappy.generate.t5 import T5, T5Config, params_shapes
from cappy.model.devices import get_devices
from cappy.tasks.candidates import REFERENCE_DECODINGS

RECORDED = Path(__file__).parent / 'recorded'
DECODINGS = [parse_decoding(name) for name in REFERENCE_DECODINGS]


def recorded_beams():
    return json.loads((RECORDED / 't5' / 'beam4.json').read_text())


def instructions():
    """24 recorded instructions, not in the order of their lengths."""
    return [row['instruction'] for row in recorded_beams()[::4]] + ['']


def key_of(index, decoding, number):
    return sample_key(42, 'task', 'train', index, decoding, number)


def texts_of(generated):
    """{index: {decoding: [text]}}, sorted by index."""
    return {
        index: {name: [response.text for response in responses] for name, responses in by_decoding.items()}
        for index, by_decoding in sorted(generated)
    }


@functools.cache
def tiny():
    return Generator.from_pretrained(RECORDED / 'flan-t5-tiny', sequences_per_device=32)


@functools.cache
def drawn():
    return dict(tiny().generate(instructions(), DECODINGS, 2, key_of, log_likelihood='sampled'))


def test_log_likelihoods_are_the_recorded_ones():
    rows = json.loads((RECORDED / 't5' / 'log_likelihoods.json').read_text())
    model = tiny()
    indices = {text: index for index, text in enumerate(dict.fromkeys(row['instruction'] for row in rows))}
    sources = dict(enumerate(model.encode(model.encode_texts(indices, 512))))
    texts = {index: {'all': []} for index in sources}
    for row in rows:
        texts[indices[row['instruction']]]['all'].append(row['response'])
    found = model.log_likelihoods(sources, texts, max_length=64)
    others = []
    for row in rows:
        if model.encode_texts([row['response']], 64)[0].tolist() != row['target_ids']:
            others.append(row['response'])
            continue
        total, mean = found[indices[row['instruction']]][row['response']]
        # The agreement of two independent implementations when these values were recorded.
        assert abs(total - row['log_likelihood_sum']) < 2e-4
        assert abs(mean - row['log_likelihood_mean']) < 2e-4
    # Today's tokenizer gives no token for a lone space, that of 2023 gave one.
    assert others == [' ']


def test_beam_search_finds_the_recorded_texts():
    rows = recorded_beams()
    found = dict(tiny().generate([row['instruction'] for row in rows], DECODINGS[:1], 0, key_of))
    texts = [found[index]['beam4'][0].text for index in range(len(rows))]
    assert texts == [row['beam4_batch1'] for row in rows]
    # In a batch, Flax transformers continues all searches until none can improve; one finds another text that way.
    others = [
        (row['task'], row['example_idx']) for row, text in zip(rows, texts, strict=True) if text != row['beam4_batch8']
    ]
    assert others == [('tiny_arithmetic', 6)]


def test_beam_search_stops_where_pytorchs_continues():
    """Once a text is finished, Flax ignores unfinished beams; PyTorch ranks them too, up to the full length."""
    torch = pytest.importorskip('torch')
    from transformers import T5ForConditionalGeneration

    rows = [row for row in recorded_beams() if row['task'] == 'tiny_tense']
    rows = [row for row in rows if row['example_idx'] in (0, 1, 12)]
    theirs = T5ForConditionalGeneration.from_pretrained(RECORDED / 'flan-t5-tiny').eval()
    tokenizer, others = tiny().tokenizer, []
    for row in rows:
        batch = tokenizer([row['instruction']], return_tensors='pt')
        batch.pop('token_type_ids', None)
        with torch.no_grad():
            # 4 bars the end for three tokens, as 3 does in Flax.
            ids = theirs.generate(**batch, num_beams=4, min_length=4, max_length=64)[0]
        if tokenizer.decode(ids, skip_special_tokens=True) != row['beam4_batch1']:
            others.append((row['task'], row['example_idx']))
    assert others == [('tiny_tense', 1), ('tiny_tense', 12)]


@pytest.mark.slow
def test_samples_drawn_alone_are_those_of_batches_of_32():
    alone = Generator.from_pretrained(RECORDED / 'flan-t5-tiny', sequences_per_device=4)
    last = instructions()[-8:]  # the empty one among them
    first = len(instructions()) - len(last)
    generated = alone.generate(last, DECODINGS, 2, lambda index, *names: key_of(first + index, *names), window=1)
    expected = texts_of((index - first, by) for index, by in drawn().items() if index >= first)
    assert texts_of(generated) == expected


def test_samples_do_not_depend_on_other_instructions_and_decodings():
    chosen = [7, 3, 20]
    texts = [instructions()[index] for index in chosen]
    generated = tiny().generate(
        texts, [DECODINGS[4], DECODINGS[2]], 2, lambda index, *names: key_of(chosen[index], *names)
    )
    found, expected = texts_of(generated), texts_of(drawn().items())
    for index, place in enumerate(chosen):
        assert found[index] == {name: expected[place][name] for name in ('temp0.9', 'topp0.95')}


@pytest.fixture(scope='module')
def jobs(run_python):
    """{name: processes that run `main`}, all at the same time."""
    hosts = {'n_processes': 2, 'host0_address': '127.0.0.1', 'host0_port': free_port()}
    arguments = {
        'two shards': (4, [{'n_model_shards': 2}]),
        'two processes': (2, [{**hosts, 'process_id': 0}, {**hosts, 'process_id': 1}]),
    }
    started = {
        name: [run_python(__file__, json.dumps(own), n_devices=n_devices) for own in each]
        for name, (n_devices, each) in arguments.items()
    }
    yield started
    for process in itertools.chain(*started.values()):
        process.kill()


def free_port():
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['two shards', 'two processes'])
def test_the_same_is_drawn_on_four_devices(jobs, name):
    expected = json.loads(json.dumps(texts_of((index, by) for index, by in drawn().items() if index < 6)))
    for process in jobs[name]:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        mesh, query, texts = json.loads(output.splitlines()[-1])  # gloo writes its own lines
        assert mesh == ([2, 2] if name == 'two shards' else [4, 1])
        assert query == ([None, 'mp'] if name == 'two shards' else [])
        assert texts == expected


def test_samples_differ_from_each_other_and_by_seed():
    other = dict(tiny().generate(instructions()[:6], DECODINGS[1:2], 2, lambda *names: sample_key(43, *names)))
    same = [other[i]['sampling'][n].text == drawn()[i]['sampling'][n].text for i in range(6) for n in range(2)]
    assert sum(same) < 6
    firsts, seconds = ([by['sampling'][n].text for by in drawn().values()] for n in range(2))
    assert firsts != seconds


def test_log_likelihoods_of_sampled_tokens_are_those_of_the_whole_text():
    model = tiny()
    sources = dict(enumerate(model.encode(model.encode_texts(instructions(), 512))))
    lengths = Lengths()
    found = model.draw(sources, DECODINGS, 2, key_of, lengths, keeps_likelihood=True)
    targets = {
        (index, (name, number)): sequence.tokens
        for index, by_decoding in found.items()
        for name, sequences in by_decoding.items()
        for number, sequence in enumerate(sequences)
    }
    whole = model.target_log_probabilities(sources, targets)
    assert len(whole) == 24 * 9
    for (index, (name, number)), log_probs in whole.items():
        sequence = found[index][name][number]
        n_tokens = len(sequence.tokens)
        assert abs(sequence.log_likelihood - log_probs.sum()) < 2e-4
        response = drawn()[index][name][number]
        assert response.log_likelihood_mean == pytest.approx(sequence.log_likelihood / n_tokens)
        # The end token is barred from the first three tokens, and comes last.
        ends = np.flatnonzero(sequence.tokens == 1)
        assert n_tokens == 63 or ends.tolist() == [n_tokens - 1]
        assert n_tokens > 3


@pytest.mark.parametrize(('max_length', 'min_length'), [(2, 3), (9, 20)])
def test_lengths_are_kept(max_length, min_length):
    model = tiny()
    sources = dict(enumerate(model.encode(model.encode_texts(instructions()[:5], 512))))
    found = model.draw(sources, DECODINGS[:2], 3, key_of, Lengths(max_length, min_length), False)
    texts = [sequence.tokens for by in found.values() for sequences in by.values() for sequence in sequences]
    assert len(texts) == 5 * 4
    assert {len(tokens) for tokens in texts} == {max_length - 1}
    assert not any((tokens == 1).any() for tokens in texts)


def test_half_a_surrogate_pair_in_an_instruction_is_refused_with_its_place():
    with pytest.raises(InputError, match='^instruction 1: holds half of a surrogate pair'):
        next(tiny().generate(['fine', 'half \ud83d'], DECODINGS[:1], 1, key_of))


def test_numbers_below_one_are_refused():
    for name in ('sequences_per_device', 'tokens_per_device'):
        with pytest.raises(InputError, match=f'^{name}: expected 1 or more, found 0'):
            Generator.from_pretrained(RECORDED / 'flan-t5-tiny', **{name: 0})


def generator_that_fails(monkeypatch, most_sequences, most_tokens):
    """A Generator of 128 texts and 4,096 tokens at a time, whose device has memory for fewer."""

    class FailingEngine(Engine):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            n_texts = self.loop.texts_per_lane
            self.run = fails(
                self.run, lambda _, given: len(given[1]['lanes']['token']) * n_texts > most_sequences, donated=(1,)
            )

    monkeypatch.setattr(generator, 'Engine', FailingEngine)
    model = Generator.from_pretrained(RECORDED / 'flan-t5-tiny', sequences_per_device=128, tokens_per_device=4096)
    for name in ('_encode', '_log_probabilities'):
        monkeypatch.setattr(model, name, fails(getattr(model, name), lambda _, given: given[1].size > most_tokens))
    return model


def test_sampling_that_runs_out_of_memory_goes_on_with_less_and_draws_the_same(monkeypatch, caplog):
    def generated(model):
        texts = instructions()[:8]
        return dict(model.generate(texts, DECODINGS[1:2], 1, key_of, log_likelihood='retokenized', window=5))

    model = generator_that_fails(monkeypatch, most_sequences=10, most_tokens=1100)
    with caplog.at_level(logging.WARNING):
        found = generated(model)
    said = [record.getMessage() for record in caplog.records if 'memory ran out' in record.getMessage()]
    assert said == [
        f'memory ran out with {n} {unit} on a device; it goes on with {n // 2} (nothing is lost)'
        for n, unit in (
            (4096, 'tokens of whole texts'),
            (2048, 'tokens of whole texts'),
            (128, 'texts at a time'),
            (64, 'texts at a time'),
        )
    ]
    expected = generated(tiny())
    assert texts_of(found.items()) == texts_of(expected.items())
    assert len({text for by_decoding in texts_of(found.items()).values() for [text] in by_decoding.values()}) > 4
    sums = [[by['sampling'][0].log_likelihood_sum for _, by in sorted(of.items())] for of in (found, expected)]
    np.testing.assert_allclose(*sums, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ('most_sequences', 'most_tokens', 'said'),
    [(0, 4096, '16 texts at a time'), (128, 0, '512 tokens of whole texts')],
)
def test_memory_for_no_text_is_told_with_what_to_do(monkeypatch, most_sequences, most_tokens, said):
    model = generator_that_fails(monkeypatch, most_sequences, most_tokens)
    with pytest.raises(InputError, match=f'^memory ran out with {said} on a device, the fewest there can be; use'):
        next(model.generate(instructions(), DECODINGS[:1], 1, key_of))


def test_a_length_without_room_for_a_token_is_refused():
    with pytest.raises(InputError, match='^max_length 1: leaves no token after the start token; give 2 or more'):
        Lengths(max_length=1)


# Drawing a word


def small_model(n_words=14, seed=3):
    """A model with few words and no tokenizer, whose logits are spread enough that decodings differ."""
    published = {
        **{'model_type': 't5', 'vocab_size': n_words, 'd_model': 16, 'd_kv': 4, 'd_ff': 24, 'num_layers': 1},
        **{'num_heads': 2, 'relative_attention_num_buckets': 8, 'tie_word_embeddings': False},
    }
    config = T5Config.from_published(published, 'config', has_head=True)
    generator = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(0, 0.45, leaf.shape), jnp.float32), params_shapes(config)
    )
    return Generator(params, config, None, get_devices(), jnp.float32, 'small')


def allowed(logits, decoding):
    """Probabilities of the words under a decoding, from its definition."""
    scaled = logits.astype(np.float64) / decoding.temperature
    order = np.argsort(-scaled, kind='stable')
    kept = order[: decoding.top_k or None]
    probabilities = np.exp(scaled[kept] - scaled[kept].max())
    probabilities /= probabilities.sum()
    n_kept = 1 + np.count_nonzero(np.cumsum(probabilities)[:-1] < decoding.top_p) if decoding.top_p < 1 else len(kept)
    found = np.zeros(len(logits))
    found[kept[:n_kept]] = probabilities[:n_kept] / probabilities[:n_kept].sum()
    return found


def probabilities_of_two(model, source, decoding, end=1):
    """{tokens: probability} of texts of at most two tokens."""
    apply = functools.partial(T5(model.config).apply, {'params': model.params})
    n_words = model.config.vocab_size
    tokens = np.array([[0, word] for word in range(n_words)])
    logits = np.asarray(apply(np.tile(source, (n_words, 1)), np.ones((n_words, len(source)), bool), tokens))
    first = allowed(logits[0, 0], decoding)
    found = {}
    for word in range(n_words):
        if word == end:
            found[(word,)] = first[word]
            continue
        second = allowed(logits[word, 1], decoding)
        found |= {(word, next_word): first[word] * second[next_word] for next_word in range(n_words)}
    return found


SMALL_DECODINGS = [
    Decoding('sampling'),
    Decoding('temp', temperature=0.6),
    Decoding('topk', top_k=4),
    Decoding('topp', top_p=0.8),
    Decoding('all', temperature=1.3, top_k=9, top_p=0.9),
]


@functools.cache
def many_texts(n_samples=1500):
    """(model, instruction, {decoding: [tokens]}): many samples of one instruction, all decodings in one batch."""
    model = small_model()
    source = np.array([5, 7, 3, 1])
    sources = dict(enumerate(model.encode([source])))
    found = model.draw(sources, SMALL_DECODINGS, n_samples, key_of, Lengths(3, 0), False)[0]
    texts = {name: [tuple(sequence.tokens.tolist()) for sequence in sequences] for name, sequences in found.items()}
    return model, source, texts


def chi_square(texts, expected):
    """The p-value of texts under {tokens: probability}; rare texts are counted together."""
    probabilities = np.array(list(expected.values()))
    counts = np.array([texts.count(tokens) for tokens in expected])
    assert counts.sum() == len(texts)
    is_rare = probabilities * len(texts) < 5
    assert counts[probabilities == 0].sum() == 0
    counts = [*counts[~is_rare], counts[is_rare].sum()]
    wanted = np.array([*probabilities[~is_rare], probabilities[is_rare].sum()]) * len(texts)
    possible = wanted > 0
    wanted = wanted[possible]
    return scipy.stats.chisquare(np.array(counts)[possible], wanted * len(texts) / wanted.sum()).pvalue


@pytest.mark.parametrize('decoding', SMALL_DECODINGS, ids=lambda decoding: decoding.name)
def test_frequencies_of_texts_are_the_models_probabilities(decoding):
    model, source, texts = many_texts()
    expected = probabilities_of_two(model, source, decoding)
    assert sum(expected.values()) == pytest.approx(1)
    assert chi_square(texts[decoding.name], expected) > 0.01


def test_the_test_of_frequencies_distinguishes_decodings():
    model, source, texts = many_texts()
    smooth = Decoding('smooth', temperature=1.4)
    assert chi_square(texts['sampling'], probabilities_of_two(model, source, smooth)) < 1e-3


@pytest.mark.parametrize(('n_words', 'k'), [(32128, 50), (4096, 8), (1000, 50), (30, 50)])
def test_top_k_equals_a_stable_sort_of_all_words(n_words, k):
    generator = np.random.default_rng(0)
    # Few different values, so that many words equal the k-th, in its block and in others.
    values = jnp.asarray(generator.integers(0, 40, (5, n_words)).astype(np.float32))
    values = values.at[:, ::3].set(-jnp.inf)
    found, positions = jax.jit(top_k, static_argnums=1)(values, k)
    order = np.argsort(-np.asarray(values), axis=1, kind='stable')[:, :k]
    np.testing.assert_array_equal(positions, order)
    np.testing.assert_array_equal(found, np.take_along_axis(np.asarray(values), order, axis=1))


def test_exactly_k_words_are_kept_where_several_equal_the_kth():
    logits = jnp.zeros((400, 64)).at[:, 40].set(1.0)
    u = (jnp.arange(400) + 0.5) / 400
    ones = jnp.ones(400)
    words = draw_words(logits, u, (ones, jnp.full(400, 3), ones), max_top_k=3, is_open=False, has_open_nucleus=False)
    assert sorted(set(words.tolist())) == [0, 1, 40]


def test_inverting_the_distribution_gives_each_word_its_share():
    generator = np.random.default_rng(0)
    weights = generator.gamma(0.3, size=1000).astype(np.float32)
    weights[generator.random(1000) < 0.3] = 0
    u = (np.arange(20000) + 0.5) / 20000
    words = jax.jit(invert)(jnp.broadcast_to(weights, (20000, 1000)), jnp.asarray(u, jnp.float32))
    assert np.all(np.diff(words) >= 0)
    shares = np.bincount(words, minlength=1000) / 20000
    np.testing.assert_allclose(shares, weights / weights.sum(), rtol=0, atol=1.01 / 20000)
    edges = invert(jnp.broadcast_to(weights, (2, 1000)), jnp.array([0.0, np.nextafter(np.float32(1), 0)]))
    assert edges.tolist() == [np.flatnonzero(weights)[0], np.flatnonzero(weights)[-1]]


@pytest.mark.parametrize('top_p', [1e-6, 0.3, 0.95, 1.0])
def test_the_nucleus_is_the_one_found_by_sorting(top_p):
    logits = np.random.default_rng(0).normal(size=(6, 700)).astype(np.float32) * 3
    probabilities = jax.nn.softmax(logits)
    kept = jax.jit(nucleus)(probabilities, jnp.full(6, top_p, jnp.float32)) > 0
    for row, found in zip(logits, kept, strict=True):
        np.testing.assert_array_equal(found, allowed(row, Decoding('', top_p=top_p)) > 0)


def test_uniform_numbers_depend_on_names_and_steps_alone():
    names = list(itertools.product(['a', 'b'], [0, 1, '1'], range(20)))
    keys = np.stack([sample_key(*key_names) for key_names in names])
    assert len({tuple(key) for key in keys.tolist()}) == len(names)
    assert sample_key(42, 'tâche', 'train', 0, 'sampling', 1).tolist() == [2138356514, 3370533074]
    u = uniform(keys, jnp.arange(len(keys)) % 7)
    assert uniform(keys[5:6], jnp.array([5])) == u[5]
    many = np.asarray(uniform(np.repeat(keys, 63, axis=0), np.tile(np.arange(63), len(keys))))
    assert len(set(many.tolist())) > 0.99 * many.size
    assert scipy.stats.kstest(many, 'uniform').pvalue > 0.01


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('beam4', {'n_beams': 4}),
        ('sampling', {'top_k': 50}),
        ('temp0.9', {'top_k': 50, 'temperature': 0.9}),
        ('topk40', {'top_k': 40}),
        ('topp0.95', {'top_k': 50, 'top_p': 0.95}),
    ],
)
def test_decodings_are_the_references(name, expected):
    assert parse_decoding(name) == Decoding(name, **expected)
    if 'top_k' in expected and name != 'topk40':
        assert parse_decoding(name, default_top_k=0) == Decoding(name, **{**expected, 'top_k': 0})


@pytest.mark.parametrize('name', ['', 'beam', 'beam0', 'beam4.5', 'temp0', 'topp1.5', 'topk', 'greedy', 'temp-1'])
def test_an_unknown_decoding_is_refused(name):
    with pytest.raises(InputError, match=f"^decodings: '{name}' is unknown; use sampling, or beam4, "):
        parse_decoding(name)


def main(arguments):
    devices = get_devices(**arguments)
    model = Generator.from_pretrained(RECORDED / 'flan-t5-tiny', devices=devices, sequences_per_device=16)
    texts = texts_of(model.generate(instructions()[:6], DECODINGS, 2, key_of))
    query = model.params['encoder.block.0']['layer.0.SelfAttention.q']['kernel'].sharding.spec
    print(json.dumps([[devices.n_data, devices.n_model_shards], list(query), texts]))


if __name__ == '__main__':
    main(json.loads(sys.argv[1]))
