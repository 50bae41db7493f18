"""T5's equations: the encoder-decoder of Raffel et al. (2020), as FLAN-T5 has it.

Computed as in `T5ForConditionalGeneration` of PyTorch transformers: v1.0 (relu, output tied to the input embedding and
scaled) and v1.1 (gated gelu, an output of its own). One set of equations runs the decoder in three modes: over whole
texts (`decode`); for one token of samples, each with its own keys and values; and for one token of beams, which share
them (`step`).

I instructions, S tokens of an instruction, L tokens of a packed row of the decoder, G texts of an instruction decoded
side by side, C columns of a cache, V words of the vocabulary, D model width, H heads, K width of a head.
"""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cappy.errors import InputError
from cappy.model import model_files
from cappy.model.layers import ACTIVATIONS, apply_alike, unchanged
from cappy.model.tensors import tensor_names

# Further names of the shared embedding in PyTorch checkpoints; it is read once.
OTHER_NAMES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
LOGIT_TOKENS = 128  # tokens whose logits [V] are in memory at a time where only one word's probability is needed


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The settings in a published `config.json`, and in the tensors beside it, that decide the equations."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float
    activation: str
    is_gated: bool
    is_tied: bool
    scales_output: bool
    pad_token_id: int
    eos_token_id: int
    decoder_start_token_id: int

    @classmethod
    def from_published(cls, config, source, has_head):
        """The dict of a `config.json` -> T5Config; `source` names the file in errors.

        has_head: whether the tensors include an output of their own (lm_head). Raises InputError for another kind of
        model, a missing field, or a setting that these equations do not have.
        """
        if config.get('model_type') != 't5':
            raise InputError(f'{source}: model_type: found {config.get("model_type")!r}; a generator is a t5')
        defaults = {
            'relative_attention_max_distance': 128,
            'layer_norm_epsilon': 1e-6,
            'feed_forward_proj': 'relu',
            'num_decoder_layers': config.get('num_layers'),
            'pad_token_id': 0,
            'eos_token_id': 1,
            'decoder_start_token_id': 0,
        }
        values = {**defaults, **{name: value for name, value in config.items() if value is not None}}
        kind, _, activation = values['feed_forward_proj'].rpartition('-')
        values |= {'activation': 'gelu_new' if (kind, activation) == ('gated', 'gelu') else activation}
        if kind not in ('', 'gated') or values['activation'] not in ACTIVATIONS:
            raise InputError(
                f'{source}: feed_forward_proj: found {values["feed_forward_proj"]!r}; known are '
                f'{", ".join(ACTIVATIONS)}, and gated- with one of them'
            )
        ties = values.get('tie_word_embeddings', True)
        # Up to transformers 4, exactly the tied outputs are scaled. Since 5 a field of its own says whether to scale,
        # and the tensors show whether the output is tied.
        scales = values.get('scale_decoder_outputs', ties)
        is_tied = not has_head if 'scale_decoder_outputs' in values else ties
        values |= {'is_gated': kind == 'gated', 'is_tied': bool(is_tied), 'scales_output': bool(scales)}
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if values.get(name) is None]
        if missing:
            raise InputError(f'{source}: {missing[0]}: missing; a t5 config has it')
        return cls(**{name: values[name] for name in names})


def distance_buckets(distance, n_buckets, max_distance):
    """The bucket of each distance >= 0: a bucket per distance for the first half of n_buckets, then logarithmic ones up
    to max_distance.

    In float32 on the host: the rounding of the logarithm decides where some buckets begin, and must be PyTorch's.
    """
    distance = np.asarray(distance)
    n_exact = n_buckets // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(n_exact))
    scaled = ratio / np.float32(math.log(max_distance / n_exact)) * np.float32(n_buckets - n_exact)
    far = np.minimum(n_exact + scaled.astype(np.int32), n_buckets - 1)
    return np.where(distance < n_exact, distance, far)


def position_buckets(n_queries, n_keys, config, is_causal):
    """int [n_queries, n_keys]: the bucket of relative_attention_bias for each query and key position."""
    offset = np.arange(n_keys)[None, :] - np.arange(n_queries)[:, None]
    n_buckets, max_distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
    if is_causal:
        return distance_buckets(np.maximum(-offset, 0), n_buckets, max_distance)
    half = n_buckets // 2
    return np.where(offset > 0, half, 0) + distance_buckets(np.abs(offset), half, max_distance)


def attend(logits, visible, values, equation, dtype):
    """Softmax of logits over the visible keys, in float32, times values by `equation`."""
    # float32: bfloat16's 8 bits lose small weights in the sum. The result of a query that sees no key is never read.
    logits = jnp.where(visible, logits.astype(jnp.float32), -1e9)
    axes = tuple(range(-(logits.ndim - 3), 0))  # the axes of keys: one, or two (beams and columns)
    weights = jnp.exp(logits - logits.max(axes, keepdims=True))
    weights = weights / weights.sum(axes, keepdims=True)
    return jnp.einsum(equation, weights.astype(dtype), values)


class RMSNorm(nn.Module):
    """Scale by the root mean square over the last axis; in float32, since bfloat16 gives two digits of a mean of D."""

    epsilon: float

    @nn.compact
    def __call__(self, x):
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.epsilon)
        return (normed * scale.astype(jnp.float32)).astype(x.dtype)


class Block(nn.Module):
    """One layer: self-attention, attention to the instruction (decoder only) and a feed-forward network, each added to
    its input.
    """

    config: T5Config
    dtype: jnp.dtype
    is_decoder: bool
    join: Callable

    def setup(self):
        config = self.config

        def dense(width, name):
            return nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)

        def attention(name):
            inner = config.num_heads * config.d_kv
            return {part: dense(config.d_model if part == 'o' else inner, f'{name}.{part}') for part in 'qkvo'}

        def norm(number):
            return RMSNorm(config.layer_norm_epsilon, name=f'layer.{number}.layer_norm')

        self.self_attention = attention('layer.0.SelfAttention')
        self.self_norm = norm(0)
        if self.is_decoder:
            self.cross = attention('layer.1.EncDecAttention')
            self.cross_norm = norm(1)
        number = 2 if self.is_decoder else 1
        self.ff_norm = norm(number)
        names = ('wi_0', 'wi_1') if config.is_gated else ('wi',)
        self.wi = [dense(config.d_ff, f'layer.{number}.DenseReluDense.{name}') for name in names]
        self.wo = dense(config.d_model, f'layer.{number}.DenseReluDense.wo')

    def heads(self, x, n_rows):
        """[n_rows * M, H * K] -> [n_rows, H, M, K]: heads before tokens, so that each head is one matrix product."""
        return x.reshape(n_rows, -1, self.config.num_heads, self.config.d_kv).transpose(0, 2, 1, 3)

    def flat(self, x):
        """[I, H, M, K] -> [I * M, H * K]."""
        return x.transpose(0, 2, 1, 3).reshape(-1, self.config.num_heads * self.config.d_kv)

    def feed_forward(self, hidden):
        """hidden [N, D] -> [N, D]."""
        normed = self.ff_norm(hidden)
        inner = ACTIVATIONS[self.config.activation](self.wi[0](normed))
        if self.config.is_gated:
            inner = inner * self.wi[1](normed)
        return hidden + self.join(self.wo(inner))

    def whole(self, hidden, bias, visible, source=None, source_visible=None):
        """The layer over whole rows: hidden [I * L, D], bias [H, L, L], visible [I or 1, L, L] -> [I * L, D].

        source [I, S, D], source_visible [I, S]: the instruction's encoder output, for the decoder.
        """
        n_rows = len(hidden) // bias.shape[-1]
        normed = self.self_norm(hidden)
        q, k, v = (self.heads(self.self_attention[part](normed), n_rows) for part in 'qkv')
        logits = jnp.einsum('ihlk,ihmk->ihlm', q, k) + bias
        mixed = attend(logits, visible[:, None], v, 'ihlm,ihmk->ihlk', self.dtype)
        hidden = hidden + self.join(self.self_attention['o'](self.flat(mixed)))
        if source is not None:
            hidden = self.cross_attend(hidden, *self.source_keys(source), source_visible)
        return self.feed_forward(hidden)

    def source_keys(self, source):
        """Keys and values of the instruction, [I, S, D] -> [I, H, S, K] each; all texts of the instruction use them."""
        flat = source.reshape(-1, source.shape[-1])
        return tuple(self.heads(self.cross[part](flat), len(source)) for part in 'kv')

    def cross_attend(self, hidden, keys, values, source_visible):
        """Attention to the instruction: hidden [I * M, D], keys and values [I, H, S, K] -> [I * M, D]."""
        q = self.heads(self.cross['q'](self.cross_norm(hidden)), len(keys))
        logits = jnp.einsum('ihmk,ihsk->ihms', q, keys)
        mixed = attend(logits, source_visible[:, None, None], values, 'ihms,ihsk->ihmk', self.dtype)
        return hidden + self.join(self.cross['o'](self.flat(mixed)))

    def step(self, hidden, cache, column, bias, visible, source_keys, source_visible):
        """The layer for one token of G texts of each instruction: hidden [I * G, D] -> ([I * G, D], cache).

        cache: keys and values [I, H, G, C, K] each, written at `column`; bias [H, C].
        visible [I, G, C]: which of its own columns each text sees; or [I, G, G, C]: which columns of each text of its
        instruction (beams).
        """
        normed = self.self_norm(hidden)
        n_rows = len(cache[0])
        q, *new = (self.heads(self.self_attention[part](normed), n_rows) for part in 'qkv')
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, x[:, :, :, None].astype(old.dtype), column, axis=3)
            for old, x in zip(cache, new, strict=True)
        )
        if visible.ndim == 3:
            logits = jnp.einsum('ihgk,ihgck->ihgc', q, keys) + bias[:, None]
            mixed = attend(logits, visible[:, None], values, 'ihgc,ihgck->ihgk', self.dtype)
        else:
            logits = jnp.einsum('ihgk,ihtck->ihgtc', q, keys) + bias[:, None, None]
            mixed = attend(logits, visible[:, None], values, 'ihgtc,ihtck->ihgk', self.dtype)
        hidden = hidden + self.join(self.self_attention['o'](self.flat(mixed)))
        hidden = self.cross_attend(hidden, *source_keys, source_visible)
        return self.feed_forward(hidden), (keys, values)


class T5(nn.Module):
    """Encoder, decoder and output. All layers of a stack share its table of relative position biases.

    join: `Devices.join`, called where model shards have parts of a sum.
    """

    config: T5Config
    dtype: jnp.dtype = jnp.float32
    join: Callable = unchanged

    def setup(self):
        config = self.config
        self.shared = nn.Embed(config.vocab_size, config.d_model, name='shared')

        def table(stack):
            # Named as part of the first layer, as in the published tensors, but kept outside of it: so all layers are
            # equal, and traced once.
            name = f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias'
            return nn.Embed(config.relative_attention_num_buckets, config.num_heads, name=name)

        def blocks(stack, n_layers):
            is_decoder = stack == 'decoder'
            return [
                Block(config, self.dtype, is_decoder, self.join, name=f'{stack}.block.{i}') for i in range(n_layers)
            ]

        self.tables = {stack: table(stack) for stack in ('encoder', 'decoder')}
        self.encoder = blocks('encoder', config.num_layers)
        self.decoder = blocks('decoder', config.num_decoder_layers)
        self.norms = {
            stack: RMSNorm(config.layer_norm_epsilon, name=f'{stack}.final_layer_norm')
            for stack in ('encoder', 'decoder')
        }
        if not config.is_tied:
            self.lm_head = nn.Dense(config.vocab_size, use_bias=False, name='lm_head')

    def embed(self, tokens):
        """int32 [I, M] -> [I * M, D]."""
        return self.join(self.shared(tokens).astype(self.dtype).reshape(-1, self.config.d_model))

    def bias(self, stack, buckets):
        """int [...] -> float32 [H, ...]: the bias of attention logits in these buckets of relative position."""
        return jnp.moveaxis(self.tables[stack](buckets).astype(jnp.float32), -1, 0)

    def encode(self, tokens, visible):
        """int32 [I, S], bool [I, S] -> [I, S, D]."""
        length = tokens.shape[1]
        bias = self.bias('encoder', position_buckets(length, length, self.config, is_causal=False))
        hidden = self.embed(tokens)
        for block in self.encoder:
            hidden = apply_alike(block, 'whole', hidden, bias, visible[:, None, :])
        return self.norms['encoder'](hidden).reshape(*tokens.shape, -1)

    def decode(self, tokens, segments, source, source_visible):
        """Packed rows of whole texts -> [I * L, D], for `logits`.

        tokens int32 [I, L]: texts of one instruction end to end, each after its start token; segments int32 [I, L]: 1..
        per text, 0 = padding; a text sees itself alone. source [I, S, D]: the output of `encode`; source_visible bool
        [I, S].
        """
        length = tokens.shape[1]
        # The tokens of a text are adjacent, so their distance in the text is their distance in the row.
        bias = self.bias('decoder', position_buckets(length, length, self.config, is_causal=True))
        visible = (segments[:, :, None] == segments[:, None, :]) & np.tri(length, dtype=bool)
        hidden = self.embed(tokens)
        for block in self.decoder:
            hidden = apply_alike(block, 'whole', hidden, bias, visible, source, source_visible)
        return self.norms['decoder'](hidden)

    def source_keys(self, source):
        """[I, S, D] -> keys and values [I, H, S, K] for each layer of the decoder."""
        return [apply_alike(block, 'source_keys', source) for block in self.decoder]

    def column_bias(self, column, n_columns):
        """float32 [H, C]: the bias of each column of a cache for a token at `column`; the cache is a ring."""
        config = self.config
        buckets = distance_buckets(
            np.arange(n_columns), config.relative_attention_num_buckets, config.relative_attention_max_distance
        )
        distance = (column - jnp.arange(n_columns)) % n_columns
        return jnp.take(self.bias('decoder', buckets), distance, axis=1)

    def step(self, tokens, caches, column, visible, source_keys, source_visible):
        """One token of each text: int32 [I, G] -> (logits float32 [I * G, V], caches).

        The other arguments are as for `Block.step`.
        """
        n_columns = caches[0][0].shape[3]
        bias = self.column_bias(column, n_columns)
        hidden, new = self.embed(tokens), []
        for block, cache, keys in zip(self.decoder, caches, source_keys, strict=True):
            hidden, cache = apply_alike(block, 'step', hidden, cache, column, bias, visible, keys, source_visible)
            new.append(cache)
        return self.logits(self.norms['decoder'](hidden)), new

    def logits(self, hidden):
        """[N, D] -> float32 [N, V], the last product accumulated in float32."""
        config = self.config
        if config.scales_output:
            hidden = hidden * config.d_model**-0.5
        if config.is_tied:
            words = self.shared.embedding.astype(self.dtype)
            return jnp.einsum('nd,vd->nv', hidden, words, preferred_element_type=jnp.float32)
        if self.is_initializing():
            return self.lm_head(hidden)
        words = self.lm_head.variables['params']['kernel'].astype(self.dtype)
        return jnp.einsum('nd,dv->nv', hidden, words, preferred_element_type=jnp.float32)

    def log_probabilities(self, hidden, targets):
        """float32 [N]: the log-probability of target word [N] at hidden [N, D], LOGIT_TOKENS at a time."""

        def of_chunk(chunk):
            logits = self.logits(chunk[0])
            picked = jnp.take_along_axis(logits, chunk[1][:, None], axis=1)[:, 0]
            return picked - jax.nn.logsumexp(logits, axis=1)

        size = math.gcd(len(hidden), LOGIT_TOKENS)
        chunks = (hidden.reshape(-1, size, hidden.shape[-1]), targets.reshape(-1, size))
        return jax.lax.map(of_chunk, chunks).reshape(-1)

    def __call__(self, tokens, visible, target_tokens):
        """float32 [I, L, V]: the logits after each of target_tokens int32 [I, L], which begin with the start token."""
        source = self.encode(tokens, visible)
        hidden = self.decode(target_tokens, jnp.ones_like(target_tokens), source, visible)
        return self.logits(hidden).reshape(*target_tokens.shape, -1)


def params_shapes(config):
    """The parameter tree, with a jax.ShapeDtypeStruct for each parameter."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(lambda: T5(config).init(jax.random.key(0), tokens, tokens == 0, tokens))['params']


def load_params(path, devices, dtype):
    """(params on the devices in `dtype`, T5Config) of a model directory.

    Tensors are read one at a time and put on the devices at once, so that the host holds no more than one of them.
    Raises InputError naming the tensors that are missing or have another shape, before any is read.
    """
    lazy = model_files.unwrap_names(model_files.open_tensors(path))
    source = path / 'config.json'
    config = T5Config.from_published(model_files.read_config(path), source, 'lm_head.weight' in lazy)
    other = next((name for name in OTHER_NAMES if name in lazy), None)
    if 'shared.weight' not in lazy and other:  # some converters write only the copies
        lazy['shared.weight'] = lazy[other]
    shapes = params_shapes(config)
    names = tensor_names(shapes)
    expected = {
        name: leaf.shape[::-1] if is_kernel else leaf.shape
        for (name, is_kernel), leaf in zip(names, jax.tree.leaves(shapes), strict=True)
    }
    model_files.expected_name_report(lazy, expected, path)
    shardings = jax.tree.leaves(devices.params_shardings(shapes))
    leaves = []
    for (name, is_kernel), sharding in zip(names, shardings, strict=True):
        tensor = lazy[name].read()
        tensor = np.ascontiguousarray(tensor.T if is_kernel else tensor).astype(dtype, copy=False)
        leaves.append(devices.put(tensor, sharding))
        jax.block_until_ready(leaves[-1])
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves), config
