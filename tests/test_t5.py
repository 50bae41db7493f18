import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cappy.errors import InputError
from cappy.generate.generator import Generator
from cappy.generate.t5 import T5, T5Config, distance_buckets, load_params, params_shapes, position_buckets, tensor_names
from cappy.model import model_files
from cappy.model.devices import get_devices

TINY = {
    'model_type': 't5',
    'architectures': ['T5ForConditionalGeneration'],
    'vocab_size': 96,
    'd_model': 24,
    'd_kv': 8,
    'd_ff': 40,
    'num_layers': 2,
    'num_decoder_layers': 3,
    'num_heads': 4,
    'relative_attention_num_buckets': 8,
    'relative_attention_max_distance': 20,
    'feed_forward_proj': 'gated-gelu',
    'tie_word_embeddings': False,
    'decoder_start_token_id': 0,
    'pad_token_id': 0,
    'eos_token_id': 1,
}
V1_0 = {'feed_forward_proj': 'relu', 'tie_word_embeddings': True}
# How transformers 5 describes a v1.1 model with a tied output.
TIED_V1_1 = {'tie_word_embeddings': True, 'scale_decoder_outputs': False}


def random_tensors(config, seed=0):
    generator = np.random.default_rng(seed)
    shapes = params_shapes(config)
    tensors = {}
    for (name, is_kernel), leaf in zip(tensor_names(shapes), jax.tree.leaves(shapes), strict=True):
        shape = leaf.shape[::-1] if is_kernel else leaf.shape
        tensors[name] = generator.normal(1.0 if 'norm' in name else 0.0, 0.2, shape).astype(np.float32)
    return tensors


def make_t5(folder, changes=None, tensors=None):
    """A model directory without a tokenizer."""
    published = {**TINY, **(changes or {})}
    config = T5Config.from_published(published, 'config', has_head=not published['tie_word_embeddings'])
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(published))
    save_file(random_tensors(config) if tensors is None else tensors, folder / 'model.safetensors', {'format': 'pt'})
    return folder


def a_batch(config, seed=1):
    """Instructions of different lengths, padded, and decoder inputs."""
    generator = np.random.default_rng(seed)
    lengths = np.array([37, 12, 1])
    source = generator.integers(2, config.vocab_size, (3, 37))
    visible = np.arange(37) < lengths[:, None]
    target = generator.integers(2, config.vocab_size, (3, 26))
    target[:, 0] = config.decoder_start_token_id
    return np.where(visible, source, 0), visible, target


@pytest.mark.parametrize('changes', [{}, V1_0, TIED_V1_1], ids=['v1.1', 'v1.0', 'v1.1 tied'])
def test_logits_are_pytorchs(tmp_path, changes):
    torch = pytest.importorskip('torch')
    from transformers import T5ForConditionalGeneration

    folder = make_t5(tmp_path / 'model', changes)
    params, config = load_params(folder, get_devices(), jnp.float32)
    source, visible, target = a_batch(config)
    ours = T5(config).apply({'params': params}, source, visible, target)
    theirs = T5ForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(source),
            attention_mask=torch.tensor(visible.astype(int)),
            decoder_input_ids=torch.tensor(target),
        ).logits.numpy()
    # float32 sums of five layers in another order; logits are up to about 10.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
    assert np.abs(expected).max() > 0.5
    assert (config.is_tied, config.scales_output) == (bool(changes), changes == V1_0)


@pytest.mark.parametrize(('n_buckets', 'max_distance'), [(32, 128), (16, 128), (8, 20)])
def test_buckets_of_relative_positions_are_pytorchs(n_buckets, max_distance):
    torch = pytest.importorskip('torch')
    from transformers.models.t5.modeling_t5 import T5Attention

    published = {'relative_attention_num_buckets': n_buckets, 'relative_attention_max_distance': max_distance}
    config = T5Config.from_published({**TINY, **published}, 'config', has_head=True)
    offset = torch.arange(600)[None, :] - torch.arange(600)[:, None]
    for is_causal in (True, False):
        expected = T5Attention._relative_position_bucket(offset, not is_causal, n_buckets, max_distance)
        np.testing.assert_array_equal(position_buckets(600, 600, config, is_causal), expected)
    assert distance_buckets([0, max_distance, 10**6], n_buckets, max_distance).tolist() == [0, *[n_buckets - 1] * 2]


def test_texts_packed_into_a_row_have_the_same_hidden_states_as_alone(tmp_path):
    params, config = load_params(make_t5(tmp_path / 'model'), get_devices(), jnp.float32)
    model = T5(config)
    source, visible, target = a_batch(config)
    hidden = model.apply({'params': params}, source[:1], visible[:1], method='encode')
    parts = [target[0, :9], target[1, :4], target[2, :11]]
    tokens = np.concatenate([*parts, [0, 0]])[None]
    segments = np.repeat([1, 2, 3, 0], [9, 4, 11, 2])[None]
    packed = model.apply({'params': params}, tokens, segments, hidden, visible[:1], method='decode')
    alone = [
        model.apply({'params': params}, part[None], np.ones((1, len(part))), hidden, visible[:1], method='decode')
        for part in parts
    ]
    np.testing.assert_allclose(packed[:24], np.concatenate(alone), rtol=0, atol=1e-5)
    # No bit of the second text depends on what the others are.
    others = np.where(segments == 2, tokens, 95 - tokens)
    changed = model.apply({'params': params}, others, segments, hidden, visible[:1], method='decode')
    np.testing.assert_array_equal(changed[9:13], packed[9:13])
    assert (np.abs(changed - packed)[[0, 8, 13, 23]].max(axis=1) > 1e-3).all()


def test_tensors_inside_a_wrapper_are_read(tmp_path):
    whole = make_t5(tmp_path / 'whole')
    tensors = load_file(whole / 'model.safetensors')
    wrapped = make_t5(tmp_path / 'wrapped', tensors={f'model.{name}': tensor for name, tensor in tensors.items()})
    (params, _), (expected, _) = (load_params(folder, get_devices(), jnp.float32) for folder in (wrapped, whole))
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_step_with_a_cache_has_the_logits_of_the_whole_text(tmp_path):
    params, config = load_params(make_t5(tmp_path / 'model'), get_devices(), jnp.float32)
    model = T5(config)
    source, visible, target = a_batch(config)
    expected = model.apply({'params': params}, source, visible, target)
    hidden = model.apply({'params': params}, source, visible, method='encode')
    keys = model.apply({'params': params}, hidden, method='source_keys')
    # Two texts per instruction, the second begun 5 steps later; both wrap around the ring of columns.
    C, later = 32, 5
    caches = [(jnp.full((3, 4, 2, C, 8), 7.0),) * 2 for _ in range(3)]
    step = jax.jit(lambda *inputs: model.apply({'params': params}, *inputs, method='step'))
    for time in range(26 + later):
        column = (time + 20) % C
        age = np.array([time, time - later])
        tokens = np.stack([target[:, min(age[0], 25)], target[:, max(age[1], 0)]], axis=1)
        distance = (column - np.arange(C)) % C
        seen = np.broadcast_to(distance <= np.maximum(age, 0)[:, None], (3, 2, C))
        logits, caches = step(tokens, caches, jnp.int32(column), seen, keys, visible)
        logits = logits.reshape(3, 2, -1)
        for text in range(2):
            if 0 <= age[text] < 26:
                np.testing.assert_allclose(logits[:, text], expected[:, age[text]], rtol=0, atol=2e-5)
    assert age.tolist() == [30, 25]


def test_log_probabilities_in_chunks_equal_the_log_softmax(tmp_path):
    params, config = load_params(make_t5(tmp_path / 'model', V1_0), get_devices(), jnp.float32)
    model = T5(config)
    hidden = np.random.default_rng(0).normal(size=(48, 24)).astype(np.float32)
    targets = np.random.default_rng(1).integers(0, 96, 48)
    found = model.apply({'params': params}, hidden, targets, method='log_probabilities')
    logits = model.apply({'params': params}, hidden, method='logits')
    np.testing.assert_allclose(found, jax.nn.log_softmax(logits)[np.arange(48), targets], rtol=0, atol=2e-6)


def test_tensors_are_read_one_at_a_time_from_shards(tmp_path, monkeypatch):
    whole = make_t5(tmp_path / 'whole')
    tensors = load_file(whole / 'model.safetensors')
    folder = tmp_path / 'shards'
    folder.mkdir()
    shutil.copy(whole / 'config.json', folder)
    names = sorted(tensors)
    file_of = {name: f'model-0000{1 + i % 2}-of-00002.safetensors' for i, name in enumerate(names)}
    for file in set(file_of.values()):
        save_file({name: tensors[name] for name in names if file_of[name] == file}, folder / file)
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': file_of}))
    expected, _ = load_params(whole, get_devices(), jnp.float32)

    events = []
    opened, put = model_files.open_tensors(folder), type(get_devices()).put
    watched = {
        name: model_files.LazyTensor(tensor.shape, lambda tensor=tensor: events.append('read') or tensor.read())
        for name, tensor in opened.items()
    }
    monkeypatch.setattr(model_files, 'open_tensors', lambda path: watched)
    monkeypatch.setattr(type(get_devices()), 'put', lambda *inputs: events.append('put') or put(*inputs))
    params, _ = load_params(folder, get_devices(), jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert events == ['read', 'put'] * len(names)


def test_weights_are_on_the_device_in_the_compute_dtype(tmp_path):
    folder = make_t5(tmp_path / 'model')
    tensors = load_file(folder / 'model.safetensors')
    save_file({name: tensor.astype(jnp.bfloat16) for name, tensor in tensors.items()}, folder / 'model.safetensors')
    params, config = load_params(folder, get_devices(), jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    source, visible, target = a_batch(config)
    exact, _ = load_params(folder, get_devices(), jnp.float32)
    logits = T5(config, jnp.bfloat16).apply({'params': params}, source, visible, target)
    expected = T5(config).apply({'params': exact}, source, visible, target)
    assert logits.dtype == jnp.float32
    # bfloat16 has 8 bits: about a percent of logits up to 10.
    assert 0 < np.abs(logits - expected).mean() < 0.1


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ('changes', 'change_tensors', 'message'),
    [
        ({'model_type': 'bart'}, None, "config.json: model_type: found 'bart'; a generator is a t5"),
        ({'d_kv': None}, None, 'config.json: d_kv: missing; a t5 config has it'),
        ({'feed_forward_proj': 'gated-tanh'}, None, "feed_forward_proj: found 'gated-tanh'; known are gelu, "),
        ({}, without('lm_head.weight'), 'missing lm_head.weight; use the config.json'),
        (
            {},
            without('decoder.block.2.layer.1.EncDecAttention.q.weight'),
            'tensors do not fit the config: missing decoder.block.2.layer.1.EncDecAttention.q.weight; ',
        ),
        ({'vocab_size': 97}, None, r'lm_head.weight has shape [96, 24], not [97, 24]'),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_the_reason(tmp_path, changes, change_tensors, message):
    folder = make_t5(tmp_path / 'model')
    published = {key: value for key, value in {**TINY, **changes}.items() if value is not None}
    (folder / 'config.json').write_text(json.dumps(published))
    if change_tensors:
        save_file(change_tensors(load_file(folder / 'model.safetensors')), folder / 'model.safetensors')
    with pytest.raises(InputError) as error:
        load_params(folder, get_devices(), jnp.float32)
    assert message in str(error.value)


def test_a_tokenizer_with_more_words_than_the_weights_is_refused(tmp_path):
    folder = make_t5(tmp_path / 'model')
    for name in ('tokenizer.json', 'tokenizer_config.json'):
        shutil.copy(Path(__file__).parent / 'recorded' / 'flan-t5-tiny' / name, folder)
    with pytest.raises(InputError, match=r'vocab_size: 96 in config.json, but its tokenizer has tokens up to 1099'):
        Generator.from_pretrained(folder)
