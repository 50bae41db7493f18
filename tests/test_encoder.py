import dataclasses
import functools
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cappy.model
from cappy.errors import InputError
from cappy.model import cpu
from cappy.model.config import EncoderConfig
from cappy.model.devices import get_devices
from cappy.model.encoder import Scorer, rounded
from cappy.model.layers import Dropout, attend, drop, mix_bits, split_heads
from cappy.model.model_files import read_config, read_tensors
from cappy.model.packing import Batch, RowCost, fill_rows, plan_batches
from cappy.model.scoring import score_program
from cappy.model.tensors import expected_tensors, params_from_tensors, tensors_from_params
from cappy.model.tokens import EncodedPairs, encode_pairs, load_tokenizer
from cappy.model.tpu import AttendOnChip
from cappy.model.training import TrainingSettings, device_programs, training_programs

COST = RowCost(attention=0)


def load(path):
    """The config and parameters of a model directory."""
    config = EncoderConfig.from_published(read_config(path), path)
    return config, params_from_tensors(read_tensors(path), config)


def random_pairs(config, n=7, seed=0, longest=22):
    """EncodedPairs of random tokens, of all lengths from 4 on."""
    generator = np.random.default_rng(seed)
    lengths = generator.permutation(np.linspace(4, longest, n).astype(int))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = generator.integers(5, config.vocab_size, offsets[-1]).astype(np.int32)
    types = np.concatenate([np.arange(length) >= length // 2 for length in lengths]).astype(np.uint8)
    return EncodedPairs(tokens, types, offsets, np.zeros(n, bool))


def packed_scores(config, params, encoded, row_length, dtype=jnp.float32, which=None):
    """Score of each pair, all in one batch of rows of one length; which: their order."""
    which = np.arange(len(encoded.lengths)) if which is None else which
    [batch] = plan_batches(encoded.lengths[which], (row_length,), COST, 10_000, slots={row_length: 9})
    rows = fill_rows(batch, encoded, which, config)
    scores = np.empty(len(which), np.float32)
    filled = batch.pair >= 0
    scores[which[batch.pair[filled]]] = np.asarray(forward(config, dtype)(params, rows, None))[filled]
    return scores, batch


@functools.cache
def forward(config, dtype=jnp.float32):
    """The compiled program (params, rows, key) -> scores."""
    return jax.jit(lambda params, rows, key: Scorer(config, dtype).apply({'params': params}, rows, key))


def one_a_row(lengths, row_length, n_rows):
    """Batches of n_rows rows, each with one pair."""
    numbers = np.arange(len(lengths), dtype=np.int32)[:, None]
    cuts = [numbers[first : first + n_rows] for first in range(0, len(lengths), n_rows)]
    return [Batch(row_length, cut, np.zeros_like(cut)) for cut in cuts]


def torch_batch(config, encoded):
    """Padded input of a PyTorch model, as its tokenizer would give it."""
    import torch

    lengths = encoded.lengths
    inputs = {
        'input_ids': np.full((len(lengths), lengths.max()), config.pad_token_id),
        'attention_mask': np.arange(lengths.max()) < lengths[:, None],
        'token_type_ids': np.zeros((len(lengths), lengths.max())),
    }
    for i, length in enumerate(lengths):
        inputs['input_ids'][i, :length] = encoded.tokens[encoded.offsets[i] :][:length]
        if config.model_type == 'bert':
            inputs['token_type_ids'][i, :length] = encoded.types[encoded.offsets[i] :][:length]
    return {name: torch.tensor(array.astype(np.int64)) for name, array in inputs.items()}


def torch_model(path):
    """PyTorch's own model of the directory; every tensor of ours must be one of its, and none of its be missing."""
    transformers = pytest.importorskip('transformers')
    pytest.importorskip('torch')
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=1, output_loading_info=True, attn_implementation='eager'
    )
    assert not report['missing_keys'] and not report['unexpected_keys'] and not report['mismatched_keys']
    return model.eval()


def torch_scores(path, config, encoded):
    torch = pytest.importorskip('torch')
    with torch.no_grad():
        return torch_model(path)(**torch_batch(config, encoded)).logits[:, 0].numpy()


@pytest.mark.parametrize('name', ['roberta', 'bert'])
def test_scores_equal_pytorch_transformers(tiny_directories, name):
    config, params = load(tiny_directories[name])
    encoded = random_pairs(config)
    expected = torch_scores(tiny_directories[name], config, encoded)
    assert expected.std() > 0.1
    scores, _ = packed_scores(config, params, encoded, 24)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('activation', ['gelu_new', 'relu', 'silu'])
def test_activations_equal_pytorch_transformers(make_model, tiny_directories, activation):
    path = make_model({'hidden_act': activation})
    config, params = load(path)
    encoded = random_pairs(config)
    scores, _ = packed_scores(config, params, encoded, 24)
    np.testing.assert_allclose(scores, torch_scores(path, config, encoded), rtol=0, atol=1e-5)
    # 1e-4: gelu_new is that near to gelu; the others are further off.
    others, _ = packed_scores(dataclasses.replace(config, hidden_act='gelu'), params, encoded, 24)
    assert np.abs(scores - others).max() > 3e-5


def test_a_pad_token_inside_a_text_is_scored_as_pytorch_scores_it(tiny_directories):
    path = tiny_directories['roberta']
    config, params = load(path)
    tokenizer = load_tokenizer(path)
    pairs = [('the <pad> cat', 'sat <pad><pad>on'), ('<pad>', 'a mat'), ('the cat', 'sat on')]
    encoded = encode_pairs(tokenizer, *zip(*pairs, strict=True), 64)
    assert (encoded.tokens == config.pad_token_id).sum() == 4
    scores, _ = packed_scores(config, params, encoded, 64)
    expected = torch_scores(path, config, encoded)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    assert np.ptp(scores) > 0.05


def test_the_longest_pair_of_each_kind_uses_the_last_position(tiny_directories):
    for name, longest in (('roberta', 98), ('bert', 100)):
        config, params = load(tiny_directories[name])
        assert config.max_length == longest
        encoded = random_pairs(config, n=2, longest=longest)
        scores, _ = packed_scores(config, params, encoded, longest)
        np.testing.assert_allclose(scores, torch_scores(tiny_directories[name], config, encoded), rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', ['roberta', 'bert'])
def test_a_pair_scores_alike_alone_and_in_any_order_row_and_slot(tiny_directories, name):
    config, params = load(tiny_directories[name])
    encoded = random_pairs(config, n=9)
    [batch] = one_a_row(encoded.lengths, 24, 9)
    alone = np.asarray(forward(config)(params, fill_rows(batch, encoded, np.arange(9), config), None))[:, 0]
    for row_length in (24, 40, 200):
        for seed in (0, 1):
            order = np.random.default_rng(seed).permutation(9)
            scores, batch = packed_scores(config, params, encoded, row_length, which=order)
            np.testing.assert_allclose(scores, alone, rtol=0, atol=5e-6, err_msg=f'row length {row_length}')
    assert (batch.pair >= 0).sum(axis=1).max() == 9  # in the longest rows all pairs lie side by side


@pytest.mark.parametrize('name', ['roberta', 'bert'])
def test_bfloat16_scores_are_close_to_float32(tiny_directories, name):
    config, params = load(tiny_directories[name])
    encoded = random_pairs(config, n=9)
    exact, _ = packed_scores(config, params, encoded, 40)
    rounded, _ = packed_scores(config, params, encoded, 40, dtype=jnp.bfloat16)
    assert rounded.dtype == np.float32
    assert 1e-5 < np.abs(rounded - exact).max() < 0.1 * exact.std()


@functools.cache
def accumulation(config):
    optimizer = TrainingSettings().optimizer(1024, 1)
    accumulate, _, _ = training_programs(config, jnp.float32, get_devices(), False, optimizer)
    return jax.jit(accumulate)


def accumulated(config, params, plan, encoded, which, labels, key=0):
    """Loss of an update's pairs and its gradients, from the batches of a plan one after the other."""
    accumulate = accumulation(config)
    grads, loss = jax.tree.map(jnp.zeros_like, params), jnp.float32(0)
    for batch in plan:
        filled = batch.pair >= 0
        targets = np.where(filled, labels[batch.pair], 0).astype(np.float32)
        weights = (filled / len(which)).astype(np.float32)
        rows = fill_rows(batch, encoded, which, config)
        grads, loss = accumulate(grads, loss, params, rows, targets, weights, np.uint32(key))
    return float(loss), tensors_from_params(jax.device_get(grads))


def full_batch(config, row_length=24):
    """Rows of all of nine pairs in one batch, with padding; and labels and weights of the slots."""
    encoded = random_pairs(config, n=9)
    [batch] = plan_batches(encoded.lengths, (row_length,), COST, 10_000, slots={row_length: 9})
    labels = np.random.default_rng(2).uniform(size=batch.pair.shape).astype(np.float32)
    return fill_rows(batch, encoded, np.arange(9), config), labels, (batch.pair >= 0).astype(np.float32) / 9


@pytest.mark.parametrize(
    ('recomputed', 'on_chip'),
    [
        pytest.param('cheap', False, marks=pytest.mark.slow),
        pytest.param('layers', False, marks=pytest.mark.slow),
        ('cheap', True),
    ],
)
def test_what_accelerators_compute_again_or_on_the_chip_changes_no_gradient(tiny_directories, recomputed, on_chip):
    config, params = load(tiny_directories['roberta-dropout'])
    rows, labels, weights = full_batch(config)

    def gradients(**how):
        def squared_error(params):
            scores = Scorer(config, **how).apply({'params': params}, rows, jnp.uint32(3))
            return jnp.sum(weights * jnp.square(scores - labels))

        loss, grads = jax.jit(jax.value_and_grad(squared_error))(params)
        return loss, tensors_from_params(jax.device_get(grads))

    loss, grads = gradients()
    attention = AttendOnChip(get_devices().mesh, interpret=True) if on_chip else attend
    found_loss, found = gradients(recomputed=recomputed, attend=attention)
    np.testing.assert_allclose(found_loss, loss, rtol=1e-6)
    for name in grads:
        np.testing.assert_allclose(found[name], grads[name], rtol=0, atol=2e-6, err_msg=name)
    assert max(np.abs(grad).max() for grad in grads.values()) > 0.01


@pytest.mark.slow
def test_weights_rounded_once_an_update_give_the_gradients_of_weights_rounded_for_every_product(tiny_directories):
    config, params = load(tiny_directories['roberta-dropout'])
    rows, labels, weights = full_batch(config)
    optimizer = TrainingSettings().optimizer(1024, 1)
    programs = device_programs(params, config, jnp.bfloat16, get_devices(), False, optimizer)
    rounded = programs.rounded(params)
    layer = rounded['roberta.encoder.layer.0']
    assert layer['attention.self.query']['kernel'].dtype == jnp.bfloat16
    kept = layer['attention.output.LayerNorm']['bias'], rounded['classifier.out_proj']['kernel']
    assert [leaf.dtype for leaf in kept] == [np.float32] * 2
    sums = [
        programs.accumulate(programs.zeros(params), jnp.float32(0), of, rows, labels, weights, np.uint32(3))
        for of in (params, rounded)
    ]
    jax.tree.map(np.testing.assert_array_equal, sums[1], sums[0])
    assert {leaf.dtype for leaf in jax.tree.leaves(sums[1])} == {np.dtype(np.float32)} and sums[0][1] > 0


@pytest.mark.parametrize('name', ['roberta', 'bert'])
def test_gradients_of_every_parameter_equal_pytorch(tiny_directories, name):
    torch = pytest.importorskip('torch')
    config, params = load(tiny_directories[name])
    encoded, everything = random_pairs(config, n=9), np.arange(9)
    labels = np.random.default_rng(1).uniform(size=9)
    plan = plan_batches(encoded.lengths, (48,), COST, 10_000)
    loss, grads = accumulated(config, params, plan, encoded, everything, labels)

    model = torch_model(tiny_directories[name])
    scores = model(**torch_batch(config, encoded)).logits[:, 0]
    expected_loss = torch.nn.functional.mse_loss(scores, torch.tensor(labels, dtype=torch.float32))
    expected_loss.backward()
    assert loss == pytest.approx(float(expected_loss.detach()), abs=1e-5)
    expected = {name: tensor.grad.numpy() for name, tensor in model.named_parameters()}
    assert sorted(grads) == sorted(expected)
    for name, grad in expected.items():
        # Sums of some hundred terms in another order; keys' biases have no gradient but for rounding.
        scale = np.abs(grad).max()
        np.testing.assert_allclose(grads[name], grad, rtol=0, atol=2e-5 * max(scale, 0.05), err_msg=name)
        assert scale > 1e-3 or name.endswith('key.bias'), name


ELEMENTS = jnp.arange(64, dtype=jnp.uint32)


def test_a_dropped_share_is_the_rate_and_the_rest_is_scaled_up():
    x = jnp.ones((300, 64))
    seeds = mix_bits(jnp.arange(300, dtype=jnp.uint32))
    for rate in (0.1, 0.5):
        dropped = np.asarray(drop(x, rate, seeds, 4, ELEMENTS))
        spread = 4 * (rate * (1 - rate) / x.size) ** 0.5
        assert abs((dropped == 0).mean() - rate) < spread
        np.testing.assert_allclose(np.unique(dropped), [0, 1 / (1 - rate)], rtol=1e-6)
        assert abs(dropped.mean() - 1) < spread / (1 - rate)


def test_nothing_is_dropped_without_seeds_or_at_rate_zero():
    x, weights, positions = jnp.ones((6, 64)), jnp.ones((2, 4, 3, 3)), jnp.zeros((2, 3), jnp.uint32)
    for seeds, rate in ((None, 0.5), (positions, 0.0)):
        dropout = Dropout(seeds, positions, 0, rate, rate)
        assert dropout.hidden(x) is x
        assert dropout.attention(weights) is weights
    assert (Dropout(positions, positions, 0, 0.5, 0.5).hidden(x) != x).any()


def test_masks_of_tokens_sites_updates_and_elements_are_independent():
    def mask(first, site):
        seeds = mix_bits(mix_bits(jnp.arange(200, dtype=jnp.uint32) + np.uint32(first)))
        return np.asarray(drop(jnp.ones((200, 64)), 0.5, seeds, site, ELEMENTS) > 0)

    first = mask(0, 3)
    assert (first == mask(0, 3)).all()
    others = {
        'site': mask(0, 4),
        'update': mask(987654321, 3),
        'next token': np.roll(first, 1, axis=0),
        'next element': np.roll(first, 1, axis=1),
    }
    for name, other in others.items():
        # Coins agree half the time; five standard deviations.
        assert abs((first == other).mean() - 0.5) < 5 * 0.5 / first.size**0.5, name


@pytest.mark.parametrize('name', ['roberta-dropout', pytest.param('bert-dropout', marks=pytest.mark.slow)])
def test_an_update_with_dropout_is_the_same_however_its_pairs_are_laid_out(tiny_directories, name):
    config, params = load(tiny_directories[name])
    encoded = random_pairs(config, n=9)
    which, labels = np.random.default_rng(2).permutation(9), np.linspace(0, 1, 9)
    lengths = encoded.lengths[which]
    one_row = plan_batches(lengths, (200,), COST, 200)
    alone = one_a_row(lengths, 24, 3)
    assert [len(one_row), one_row[0].shape[0], len(alone)] == [1, 1, 3]
    loss, grads = accumulated(config, params, one_row, encoded, which, labels, key=5)
    for plan in (alone, alone[::-1]):
        other_loss, other_grads = accumulated(config, params, plan, encoded, which, labels, key=5)
        assert other_loss == pytest.approx(loss, abs=1e-5)
        for name, grad in grads.items():
            np.testing.assert_allclose(other_grads[name], grad, rtol=0, atol=1e-4 * max(np.abs(grad).max(), 0.05))
    next_loss, _ = accumulated(config, params, alone, encoded, which, labels, key=6)
    assert abs(next_loss - loss) > 1e-3


def test_dropout_differs_between_the_copies_of_a_pair_in_an_update(tiny_directories):
    config, params = load(tiny_directories['roberta-dropout'])
    encoded = random_pairs(config, n=1, longest=12)
    which = np.zeros(8, np.int64)
    [batch] = plan_batches(encoded.lengths[which], (24,), COST, 1000)
    rows = fill_rows(batch, encoded, which, config)
    keys = np.random.default_rng(0).integers(2**32, size=200, dtype=np.uint32)
    scores = np.stack([forward(config)(params, rows, key)[batch.pair >= 0] for key in keys])
    assert len(np.unique(scores.round(6))) > 0.99 * scores.size
    # Copies vary as much as updates do, and independently of each other.
    correlations = np.corrcoef(scores.T)[np.triu_indices(scores.shape[1], 1)]
    assert np.abs(correlations).max() < 5 / 200**0.5


def test_each_rate_of_dropout_acts_by_itself(tiny_directories):
    config, params = load(tiny_directories['roberta'])
    encoded = random_pairs(config)
    [batch] = plan_batches(encoded.lengths, (200,), COST, 200)
    rows = fill_rows(batch, encoded, np.arange(7), config)
    dry = np.asarray(forward(config)(params, rows, None))
    for part in ('hidden_dropout_prob', 'attention_probs_dropout_prob', 'classifier_dropout'):
        wet = forward(dataclasses.replace(config, **{part: 0.3}))(params, rows, np.uint32(1))
        assert np.abs(wet - dry).max() > 1e-3, part


def test_tensors_and_parameters_are_each_others_inverse(tiny_directories):
    for name in ('roberta', 'bert'):
        config, params = load(tiny_directories[name])
        tensors = read_tensors(tiny_directories[name])
        back = tensors_from_params(params)
        assert {name: tensor.shape for name, tensor in back.items()} == expected_tensors(config)
        for key in tensors:
            np.testing.assert_array_equal(back[key], tensors[key])


@pytest.mark.parametrize(
    ('changes', 'found'),
    [
        ({'model_type': 'gpt2'}, "model_type: found 'gpt2'; a scorer is one of roberta"),
        ({'position_embedding_type': 'relative_key'}, "position_embedding_type: found 'relative_key'"),
        ({'hidden_act': 'mish'}, "hidden_act: found 'mish'; known are gelu"),
        ({'vocab_size': None}, 'vocab_size: missing'),
        ({'num_attention_heads': 5}, 'num_attention_heads: 5 does not divide hidden_size 32'),
    ],
)
def test_configs_of_other_models_are_refused_with_the_field_named(tiny_directories, changes, found):
    published = {**read_config(tiny_directories['roberta']), **changes}
    with pytest.raises(InputError) as caught:
        EncoderConfig.from_published(published, 'model/config.json')
    assert str(caught.value).startswith(f'model/config.json: {found}')
    assert '\n' not in str(caught.value)


N_HEADS = 3


def attention_inputs(spread):
    """query, key, value [2, 12, N_HEADS * 8], and the segments of three stretches of each row, the last one padding."""
    generator = np.random.default_rng(0)
    query, key, value = (jnp.asarray(generator.normal(0, spread, (2, 12, N_HEADS * 8)), jnp.float32) for _ in range(3))
    return query, key, value, jnp.asarray(np.repeat([[1, 2, 0]], 4, axis=1) * np.ones((2, 1), int))


@pytest.mark.parametrize(('spread', 'is_bounded'), [(0.5, True), (20.0, False)])
def test_attention_without_the_largest_logit_equals_the_plain_one(spread, is_bounded):
    query, key, value, segments = attention_inputs(spread)
    heads = [split_heads(x, N_HEADS) for x in (query, key)]
    logits = np.einsum('rhqk,rhlk->rhql', *heads)
    norms = [np.linalg.norm(x, axis=-1).max() for x in heads]
    assert (norms[0] * norms[1] < cpu.SAFE_LOGIT) == is_bounded
    # Without the largest logit subtracted, exp would overflow in the second case.
    assert np.isfinite(np.exp(logits)).all() == is_bounded
    dropout = Dropout(None, segments, 0, 0.0, 0.0)
    expected = attend(query, key, value, N_HEADS, segments, segments, dropout)
    bounded = jax.jit(cpu.attend_bounded, static_argnums=3)(query, key, value, N_HEADS, segments, segments, dropout)
    np.testing.assert_allclose(bounded, expected, rtol=2e-5, atol=1e-6 * spread)


# Every way to compute attention, also one that is written later, since each has the signature of `layers.attend`.
ATTENTIONS = [
    function
    for module in pkgutil.iter_modules(cappy.model.__path__, 'cappy.model.')
    for name, function in vars(importlib.import_module(module.name)).items()
    if name.startswith('attend') and getattr(function, '__module__', None) == module.name
]


def test_all_attentions_are_found():
    assert {attend, cpu.attend_bounded} <= set(ATTENTIONS)


def attend_on_chip(*inputs):
    return AttendOnChip(get_devices().mesh, interpret=True)(*inputs)


@pytest.mark.parametrize('attention', [*ATTENTIONS, attend_on_chip])
@pytest.mark.parametrize('spread', [pytest.param(0.5, marks=pytest.mark.slow), 20.0])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('rate', [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_no_bit_of_a_pair_and_of_its_gradients_depends_on_its_neighbours_in_the_row(attention, spread, dtype, rate):
    if attention is cpu.attend_bounded and rate:
        pytest.skip('is for scoring, where nothing is dropped')
    query, key, value, segments = attention_inputs(spread)
    query, key, value = (x.astype(dtype) for x in (query, key, value))
    positions = jnp.tile(jnp.arange(12, dtype=jnp.uint32), (2, 1))
    dropout = Dropout(mix_bits(positions) if rate else None, positions, 0, rate, rate)

    def first_pair(query, key, value):
        context = attention(query, key, value, N_HEADS, segments, segments, dropout)
        return jnp.square(context[:, :4].astype(jnp.float32)).sum(), context

    run = jax.value_and_grad(first_pair, argnums=(0, 1, 2), has_aux=True)
    # The neighbours' keys keep their norms, on which the bound of one way of computing depends.
    others = (query.at[:, 4:].multiply(-1), key.at[:, 4:].multiply(-1), value.at[:, 4:].add(9.0))
    (_, before), grads = run(query, key, value)
    (_, after), other_grads = run(*others)
    before, after = np.asarray(before, np.float32), np.asarray(after, np.float32)
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert (after[:, 4:8] != before[:, 4:8]).any(axis=2).all()
    for grad, other in zip(grads, other_grads, strict=True):
        grad, other = np.asarray(grad, np.float32), np.asarray(other, np.float32)
        np.testing.assert_array_equal(other[:, :4], grad[:, :4])
        assert not grad[:, 4:].any() and grad[:, :4].any()


def test_products_in_bfloat16_on_a_cpu_are_exact_sums_rounded_once():
    generator = np.random.default_rng(0)
    lhs, rhs = (jnp.asarray(generator.normal(size=shape), jnp.bfloat16) for shape in ((96, 300), (300, 128)))
    found = jax.jit(lambda *both: cpu.dot_general(*both, (((1,), (0,)), ((), ()))))(lhs, rhs)
    assert found.dtype == jnp.bfloat16
    exact = np.asarray(lhs, np.float64) @ np.asarray(rhs, np.float64)
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize('name', ['roberta', 'bert'])
def test_scores_in_bfloat16_on_a_cpu_are_those_of_the_plain_equations_in_bfloat16(tiny_directories, name):
    config, params = load(tiny_directories[name])
    encoded = random_pairs(config, n=40)
    [batch] = plan_batches(encoded.lengths, (64,), COST, 10_000, slots={64: 9})
    rows = fill_rows(batch, encoded, np.arange(40), config)
    program, filled = score_program(config, jnp.bfloat16, get_devices()), batch.pair >= 0
    found = np.asarray(program(params, rows))[filled]
    plain, exact = (
        np.asarray(jax.jit(Scorer(config, dtype).apply)({'params': params}, rows))[filled]
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert np.abs(found - plain).max() < 0.02 * np.ptp(exact) and (found != plain).any()
    errors, plain_errors = found - exact, plain - exact
    assert np.sqrt(np.square(errors).mean()) < 1.2 * np.sqrt(np.square(plain_errors).mean())
    np.testing.assert_array_equal(np.asarray(program(rounded(params, config, jnp.bfloat16), rows))[filled], found)


def test_a_neighbour_beyond_the_bound_moves_a_pair_by_rounding_alone():
    query, key, value, segments = attention_inputs(0.5)
    dropout = Dropout(None, segments, 0, 0.0, 0.0)
    before = cpu.attend_bounded(query, key, value, N_HEADS, segments, segments, dropout)
    after = cpu.attend_bounded(query, key.at[:, 4:].multiply(1e3), value, N_HEADS, segments, segments, dropout)
    np.testing.assert_allclose(after[:, :4], before[:, :4], rtol=1e-5, atol=1e-6)


def neighbours_changed(rows, config):
    """A batch of rows, and the same with other tokens in all pairs of each row but the first."""
    others = np.random.default_rng(7).integers(5, config.vocab_size, rows['tokens'].shape).astype(np.int32)
    is_other = rows['segments'] > 1
    return rows, rows | {'tokens': np.where(is_other, others, rows['tokens'])}


@pytest.mark.parametrize('name', ['roberta', 'bert'])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_no_bit_of_a_score_depends_on_the_neighbours_in_the_row(tiny_directories, name, dtype):
    config, params = load(tiny_directories[name])
    encoded = random_pairs(config, n=9)
    [batch] = plan_batches(encoded.lengths, (64,), COST, 10_000, slots={64: 9})
    program = score_program(config, dtype, get_devices())  # which chooses the attention
    rows = neighbours_changed(fill_rows(batch, encoded, np.arange(9), config), config)
    before, after = (np.asarray(program(params, of)) for of in rows)
    filled = batch.pair >= 0
    assert filled[:, 1].any()
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    assert (after != before)[filled & (np.arange(9) > 0)].all()


@pytest.mark.parametrize('name', ['roberta-dropout', 'bert-dropout'])
def test_no_bit_of_a_pairs_gradient_depends_on_the_neighbours_in_the_row(tiny_directories, name):
    config, params = load(tiny_directories[name])
    encoded = random_pairs(config, n=9)
    [batch] = plan_batches(encoded.lengths, (64,), COST, 10_000, slots={64: 9})
    weights = np.where(np.arange(9) == 0, 0.25, 0.0).astype(np.float32) * (batch.pair >= 0)  # the first of each row
    zeros = jax.tree.map(jnp.zeros_like, params)
    rows = neighbours_changed(fill_rows(batch, encoded, np.arange(9), config), config)
    (grads, loss), (other_grads, other_loss) = (
        accumulation(config)(zeros, jnp.float32(0), params, of, np.zeros_like(weights), weights, np.uint32(3))
        for of in rows
    )
    assert float(loss) == float(other_loss) > 0
    words = f'{config.prefix}.embeddings.word_embeddings'
    of_others = np.unique(np.concatenate([of['tokens'][of['segments'] > 1] for of in rows]))
    own = rows[0]['tokens'][rows[0]['segments'] == 1]
    assert not np.asarray(grads[words]['embedding'])[np.setdiff1d(of_others, own)].any()
    jax.tree.map(np.testing.assert_array_equal, other_grads, grads)


def test_bounded_attention_refuses_dropout():
    query, key, value, segments = attention_inputs(0.5)
    with pytest.raises(ValueError, match='drops nothing'):
        cpu.attend_bounded(query, key, value, N_HEADS, segments, segments, Dropout(segments, segments, 0, 0.1, 0.1))


def test_attention_drops_other_weights_in_each_head_query_and_update():
    query, key, value, segments = attention_inputs(0.5)
    positions = jnp.tile(jnp.arange(12, dtype=jnp.uint32), (2, 1))
    masks = [
        np.asarray(
            Dropout(mix_bits(positions + update), positions, 0, 0.0, 0.5).attention(jnp.ones((2, 3, 12, 12))) > 0
        )
        for update in (0, 10**6)
    ]
    for others in (masks[1], np.roll(masks[0], 1, axis=1), np.roll(masks[0], 1, axis=2), np.roll(masks[0], 1, axis=3)):
        assert abs((masks[0] == others).mean() - 0.5) < 0.1
