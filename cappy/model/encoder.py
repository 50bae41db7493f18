"""The scorer's equations: a RoBERTa or BERT encoder over packed rows, with a one-output head.

As `RobertaForSequenceClassification` and `BertForSequenceClassification` of PyTorch transformers compute them, with two
differences that change no number: a row may hold several pairs, each seen by itself alone; and what the head does not
read (every token but a pair's first, after the last layer's keys and values) is not computed.

R rows, L tokens of a row, C pairs of a row, V words, D hidden width, F feed-forward width, H heads, K = D / H.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cappy.errors import InputError


def gelu(x):
    """By erf, as PyTorch has it and 2% of a micro-batch faster than jax's erfc; in float32, since 1 + erf cancels."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)


ACTIVATIONS = {
    'gelu': gelu,
    'gelu_new': lambda x: jax.nn.gelu(x, approximate=True),
    'gelu_pytorch_tanh': lambda x: jax.nn.gelu(x, approximate=True),
    'relu': jax.nn.relu,
    'silu': jax.nn.silu,
    'swish': jax.nn.silu,
}
# XLM-R and CamemBERT are RoBERTa under other names; their checkpoints use the `roberta.` prefix too.
ROBERTA_TYPES = ('roberta', 'xlm-roberta', 'camembert')
MODEL_TYPES = (*ROBERTA_TYPES, 'bert')


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """What of a published `config.json` decides the scorer's equations."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: str
    pad_token_id: int
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    classifier_dropout: float
    initializer_range: float

    @classmethod
    def from_published(cls, config, source):
        """The dict of a `config.json` -> EncoderConfig; `source` names the file in errors.

        Raises InputError for another kind of model, a missing field, or a setting these equations do not have.
        """
        model_type = config.get('model_type')
        if model_type not in MODEL_TYPES:
            raise InputError(f'{source}: model_type: found {model_type!r}; a scorer is one of {", ".join(MODEL_TYPES)}')
        positions = config.get('position_embedding_type', 'absolute')
        if positions not in (None, 'absolute'):
            raise InputError(f'{source}: position_embedding_type: found {positions!r}; only absolute is known')
        if config.get('hidden_act') not in ACTIVATIONS:
            raise InputError(
                f'{source}: hidden_act: found {config.get("hidden_act")!r}; known are {", ".join(ACTIVATIONS)}'
            )
        defaults = {
            'type_vocab_size': 2,
            'initializer_range': 0.02,
            'layer_norm_eps': 1e-12,
            'pad_token_id': 0,
        }
        values = {**defaults, **config}
        if values.get('classifier_dropout') is None:
            values['classifier_dropout'] = values.get('hidden_dropout_prob')
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if values.get(name) is None]
        if missing:
            raise InputError(f'{source}: {missing[0]}: missing; a {model_type} config has it')
        if values['hidden_size'] % values['num_attention_heads']:
            raise InputError(
                f'{source}: num_attention_heads: {values["num_attention_heads"]} does not divide hidden_size '
                f'{values["hidden_size"]}'
            )
        return cls(**{name: values[name] for name in names})

    @property
    def prefix(self):
        """The base model's name, with which its tensors' names begin."""
        return 'bert' if self.model_type == 'bert' else 'roberta'

    @property
    def max_length(self):
        """Tokens of the longest pair that has a position for each token."""
        # RoBERTa counts positions from pad_token_id + 1 on, so that many of the table's rows are never used.
        unused = 0 if self.model_type == 'bert' else self.pad_token_id + 1
        return self.max_position_embeddings - unused


def mix_bits(bits):
    """uint32 -> uint32, a bijection in which every input bit moves every output bit ("lowbias32", C. Wellons)."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def dropout(x, rate, noise, site, elements=None):
    """Inverted dropout of x [..., N] whose mask hangs on the token, the site and the element alone.

    noise: uint32 [...], a number of its own for each token and update, broadcast against x without its last axis, or
    None for no dropout. elements: uint32, broadcast against x; None: 0..N-1. A mask drawn from (update, pair, position,
    site) and not from the batch makes an update the same however its pairs are cut into rows, micro-batches and
    devices; it costs a few integer operations, fused into the product.
    """
    if noise is None or rate == 0:
        return x
    if elements is None:
        elements = jnp.arange(x.shape[-1], dtype=jnp.uint32)
    token = mix_bits(noise + jnp.uint32(site) * jnp.uint32(0x9E3779B9))
    bits = mix_bits(token[..., None] ^ (elements * jnp.uint32(0x85EBCA6B)))
    keep = bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def moments(x, epsilon):
    """Mean of a float32 array over its last axis, and one over its deviation; both keep the axis."""
    mean = x.mean(axis=-1, keepdims=True)
    return mean, jax.lax.rsqrt(jnp.square(x - mean).mean(axis=-1, keepdims=True) + epsilon)


class LayerNorm(nn.Module):
    """Over the last axis. In float32: the mean of D bfloat16 squares is off in the third digit."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x):
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
        bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        mean, inverse = moments(wide, self.config.layer_norm_eps)
        return ((wide - mean) * inverse * scale + bias).astype(x.dtype)


def dense(config, width, name, dtype):
    """An affine map with the reference's initial weights."""
    init = nn.initializers.normal(config.initializer_range)
    return nn.Dense(width, dtype=dtype, kernel_init=init, name=name)


PROJECTIONS = tuple(f'attention.self.{name}' for name in ('query', 'key', 'value'))


def first_tables(params, config):
    """The first layer's query, key and value of every word and every place: {words [V, 3D], places [P * types, 3D],
    ones [3D], bias [3D]}.

    They are linear in the normed sum of three embeddings, and the norm, once a token's mean and deviation are known, is
    linear too: (word + place - mean) s W / deviation + b W + c. With the products of each word and place at hand, a
    token costs a lookup where it cost 3 D^2.
    """
    encoder = params[config.prefix]
    layer = encoder['encoder.layer.0']
    kernel = jnp.concatenate([layer[name]['kernel'] for name in PROJECTIONS], axis=1)
    bias = jnp.concatenate([layer[name]['bias'] for name in PROJECTIONS])
    norm = encoder['embeddings.LayerNorm']
    scaled = norm['scale'][:, None] * kernel
    words, positions, types = (
        encoder[f'embeddings.{name}_embeddings']['embedding'] @ scaled for name in ('word', 'position', 'token_type')
    )
    return {
        'words': words,
        'places': (positions[:, None] + types[None]).reshape(-1, scaled.shape[1]),
        'ones': scaled.sum(axis=0),
        'bias': norm['bias'] @ kernel + bias,
    }


def look_up(tables, rows, embedded, config):
    """The first layer's (query, key, value), [R * L, D] each, of rows as `Scorer` takes them.

    tables: of `first_tables`; embedded: float32 [R, L, D], the sum of each token's embeddings, before its norm.
    """
    mean, inverse = moments(embedded, config.layer_norm_eps)
    places = rows['positions'] * config.type_vocab_size + rows.get('types', 0)
    projected = tables['words'][rows['tokens']] + tables['places'][places] - mean * tables['ones']
    return jnp.split((projected * inverse + tables['bias']).reshape(-1, 3 * config.hidden_size), 3, axis=1)


SAFE_LOGIT = 60  # exp of it or of its negative, summed over a row, keeps float32's precision


def attend_bounded(query, key, value, same_pair):
    """softmax(query key') value, [R, H, L or C, K]; on a CPU 3 to 7% of a layer faster (docs/benchmarks.md).

    Softmax subtracts the largest logit lest exp overflow; that is a pass over all logits. The norms of queries and keys
    bound every logit (Cauchy-Schwarz), and where the bound is small the pass is left out.
    """
    bound = jnp.sqrt(jnp.square(query).sum(-1).max() * jnp.square(key).sum(-1).max())
    logits = jnp.where(same_pair, jnp.einsum('rhlk,rhmk->rhlm', query, key), -1e9)
    largest = jax.lax.cond(bound < SAFE_LOGIT, lambda x: jnp.zeros(x.shape[:-1]), lambda x: x.max(-1), logits)
    weights = jnp.exp(logits - largest[..., None])
    return jnp.einsum('rhlm,rhmk->rhlk', weights, value) / weights.sum(-1)[..., None]


class Layer(nn.Module):
    """One encoder layer: attention inside each pair, then a feed-forward net, each added and normed after.

    bounded: whether to attend by `attend_bounded`, for scoring in float32 on a CPU.
    """

    config: EncoderConfig
    dtype: jnp.dtype
    bounded: bool = False

    def heads(self, x, n_rows):
        """[R * L, D] -> [R, H, L, K]; heads before tokens, so that each head's product is one plain matrix product."""
        H = self.config.num_attention_heads
        return x.reshape(n_rows, -1, H, x.shape[-1] // H).transpose(0, 2, 1, 3)

    def attend(self, query, key, value, same_pair, rows, noise, site):
        """softmax(query key') value with dropout, [R, H, L or C, K]."""
        config, H = self.config, self.config.num_attention_heads
        logits = jnp.einsum('rhlk,rhmk->rhlm', query, key)
        # float32: bfloat16's 8 bits lose small weights in the sum. Padding sees only padding, and is never read.
        weights = jax.nn.softmax(jnp.where(same_pair, logits.astype(jnp.float32), -1e9), axis=-1)
        if noise is not None:
            head = jnp.arange(H, dtype=jnp.uint32)[:, None] * jnp.uint32(0xC2B2AE35)
            weights = dropout(
                weights,
                config.attention_probs_dropout_prob,
                mix_bits(noise.reshape(len(query), 1, -1) + head),
                site,
                rows['positions'].astype(jnp.uint32)[:, None, None, :],
            )
        return jnp.einsum('rhlm,rhmk->rhlk', weights.astype(self.dtype), value)

    @nn.compact
    def __call__(self, hidden, rows, noise, site, reads=None, projected=None):
        """hidden [R * L, D], rows as `Scorer` takes them, noise uint32 [R * L] or None -> [R * L, D].

        Rows are flat: the gradient of a kernel over [R, L, D] would be a product of two transposed matrices, 5% of a
        micro-batch on a CPU. site: uint32 [], the number of its first dropout. reads int32 [R, C]: this layer answers
        at these tokens of each row alone -> [R * C, D]. projected: its (query, key, value) where they are known.
        """
        config, dtype = self.config, self.dtype
        D, H = config.hidden_size, config.num_attention_heads
        asking = rows['segments']
        R = len(asking)
        of_query, of_key, of_value = (dense(config, D, name, dtype) for name in PROJECTIONS)
        key, value = projected[1:] if projected else (of_key(hidden), of_value(hidden))
        if reads is not None:
            hidden = jnp.take_along_axis(hidden.reshape(R, -1, D), reads[..., None], axis=1).reshape(-1, D)
            asking = jnp.take_along_axis(asking, reads, axis=1)
            noise = None if noise is None else jnp.take_along_axis(noise.reshape(R, -1), reads, axis=1).reshape(-1)
        query = projected[0] if projected else of_query(hidden)
        query, key, value = (self.heads(x, R) for x in (query, key, value))

        same_pair = asking[:, None, :, None] == rows['segments'][:, None, None, :]  # [R, 1, L or C, L]
        query = query * (D // H) ** -0.5
        if self.bounded:
            mixed = attend_bounded(query, key, value, same_pair)
        else:
            mixed = self.attend(query, key, value, same_pair, rows, noise, site)
        mixed = mixed.transpose(0, 2, 1, 3).reshape(hidden.shape)

        attended = dense(config, D, 'attention.output.dense', dtype)(mixed)
        attended = dropout(attended, config.hidden_dropout_prob, noise, site + 1)
        hidden = LayerNorm(config, name='attention.output.LayerNorm')(attended + hidden)
        wide = dense(config, config.intermediate_size, 'intermediate.dense', dtype)(hidden)
        narrow = dense(config, D, 'output.dense', dtype)(ACTIVATIONS[config.hidden_act](wide))
        narrow = dropout(narrow, config.hidden_dropout_prob, noise, site + 2)
        return LayerNorm(config, name='output.LayerNorm')(narrow + hidden)


RematerialisedLayer = nn.remat(Layer)


@functools.partial(jax.jit, static_argnums=0)
def apply_layer(layer, params, *inputs):
    """A layer's output, traced once for all layers: each shape of a batch would cost a second of tracing otherwise."""
    return layer.apply({'params': params}, *inputs)


class Encoder(nn.Module):
    """Embeddings and layers; answers at each pair's first token."""

    config: EncoderConfig
    dtype: jnp.dtype
    rematerialise: bool
    bounded: bool

    def setup(self):
        config = self.config
        init = nn.initializers.normal(config.initializer_range)

        def table(size, name):
            return nn.Embed(size, config.hidden_size, embedding_init=init, name=name)

        self.words = table(config.vocab_size, 'embeddings.word_embeddings')
        self.positions = table(config.max_position_embeddings, 'embeddings.position_embeddings')
        self.types = table(config.type_vocab_size, 'embeddings.token_type_embeddings')
        self.norm = LayerNorm(config, name='embeddings.LayerNorm')
        layer = RematerialisedLayer if self.rematerialise else Layer
        self.layers = [
            layer(config, self.dtype, self.bounded, name=f'encoder.layer.{index}')
            for index in range(config.num_hidden_layers)
        ]

    def __call__(self, word_vectors, rows, noise, tables=None):
        """word_vectors float32 [R, L, D], noise uint32 [R, L] or None, tables of `first_tables` or None -> [R * C, D].

        Tables are for scoring a model of two layers or more.
        """
        config = self.config
        hidden = word_vectors + self.positions(rows['positions'])
        hidden = hidden + (self.types(rows['types']) if 'types' in rows else self.types.embedding[0])
        projected = None if tables is None else look_up(tables, rows, hidden, config)
        hidden = self.norm(hidden).astype(self.dtype).reshape(-1, config.hidden_size)
        noise = None if noise is None else noise.reshape(-1)
        hidden = dropout(hidden, config.hidden_dropout_prob, noise, 3 * config.num_hidden_layers)
        for index, layer in enumerate(self.layers):
            reads = rows['starts'] if layer is self.layers[-1] else None
            inputs = (hidden, rows, noise, jnp.uint32(3 * index), reads, projected if index == 0 else None)
            if self.is_initializing():
                hidden = layer(*inputs)
            else:
                hidden = apply_layer(layer.clone(parent=None, name=None), layer.variables['params'], *inputs)
        return hidden


class Scorer(nn.Module):
    """A packed batch -> a score for each pair, unbounded, as the finetuned head gives it.

    rows is a dict: tokens int32 [R, L]; positions int32 [R, L], rows of the position table; segments int32 [R, L], 1..C
    a pair and 0 padding; starts int32 [R, C], each pair's first token (0 where a row has fewer pairs); for BERT also
    types int32 [R, L]; with dropout also pairs uint32 [R, L], a number for each token's pair.
    """

    config: EncoderConfig
    dtype: jnp.dtype = jnp.float32
    rematerialise: bool = False
    bounded: bool = False  # see Layer

    def setup(self):
        config = self.config
        self.encoder = Encoder(config, self.dtype, self.rematerialise, self.bounded, name=config.prefix)
        if config.model_type == 'bert':
            self.hidden_head = dense(config, config.hidden_size, 'bert.pooler.dense', self.dtype)
            self.output_head = dense(config, 1, 'classifier', jnp.float32)
        else:
            self.hidden_head = dense(config, config.hidden_size, 'classifier.dense', self.dtype)
            self.output_head = dense(config, 1, 'classifier.out_proj', jnp.float32)

    def embed(self, tokens):
        """int32 [R, L] -> float32 [R, L, D]; apart from `score`, so that its gradient can be added row by row."""
        return self.encoder.words(tokens)

    def score(self, word_vectors, rows, key=None, tables=None):
        """word_vectors as `embed` gives them, key uint32 [] for dropout or None -> float32 [R, C].

        tables: None, or those of `first_tables` for the same parameters (see Encoder).
        """
        config = self.config
        noise = None
        if key is not None:
            noise = mix_bits(mix_bits(rows['pairs'] + key) + rows['positions'].astype(jnp.uint32))
        first = self.encoder(word_vectors, rows, noise, tables)  # [R * C, D]
        noise = None if noise is None else jnp.take_along_axis(noise, rows['starts'], axis=1).reshape(-1)
        site = 3 * config.num_hidden_layers + 1
        if config.model_type != 'bert':
            first = dropout(first, config.classifier_dropout, noise, site)
        pooled = jnp.tanh(self.hidden_head(first))
        pooled = dropout(pooled, config.classifier_dropout, noise, site + 1)
        # The last product in float32: bfloat16 would leave scores near 1 on a grid of 1/128, full of ties.
        return self.output_head(pooled.astype(jnp.float32)).reshape(rows['starts'].shape)

    def __call__(self, rows, key=None, tables=None):
        return self.score(self.embed(rows['tokens']), rows, key, tables)


LEAF_NAMES = {'kernel': 'weight', 'embedding': 'weight', 'scale': 'weight', 'bias': 'bias'}


def params_shapes(config):
    """The tree of the scorer's parameters, as jax.ShapeDtypeStruct."""
    rows = {name: jnp.zeros((1, 1), jnp.int32) for name in ('tokens', 'positions', 'segments', 'starts', 'types')}
    return jax.eval_shape(lambda: Scorer(config).init(jax.random.key(0), rows))['params']


def tensor_names(params):
    """[(name, is_kernel)] of each leaf of a tree of parameters, in its order, as PyTorch transformers names them.

    A kernel is [in, out] here and [out, in] there.
    """
    names = []
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        *parents, leaf = (entry.key for entry in path)
        names.append(('.'.join([*parents, LEAF_NAMES[leaf]]), leaf == 'kernel'))
    return names


def expected_tensors(config):
    """{name: shape} of the tensors that a scorer with this config has, in PyTorch's layout."""
    shapes = params_shapes(config)
    return {
        name: leaf.shape[::-1] if is_kernel else leaf.shape
        for (name, is_kernel), leaf in zip(tensor_names(shapes), jax.tree.leaves(shapes), strict=True)
    }


def head_tensors(config, names):
    """Those of `names` that belong to the head and not to the encoder."""
    return [name for name in names if name.startswith(('classifier', f'{config.prefix}.pooler'))]


def params_from_tensors(tensors, config):
    """Named tensors (float32, PyTorch's layout) -> the tree of parameters; kernels are views, transposed."""
    shapes = params_shapes(config)
    leaves = [tensors[name].T if is_kernel else tensors[name] for name, is_kernel in tensor_names(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def tensors_from_params(params):
    """The tree of parameters as host arrays -> named tensors in PyTorch's layout."""
    return {
        name: np.ascontiguousarray(leaf.T if is_kernel else leaf)
        for (name, is_kernel), leaf in zip(tensor_names(params), jax.tree.leaves(params), strict=True)
    }
