"""The scorer's equations: a RoBERTa or BERT encoder over packed rows, with a one-output head.

As `RobertaForSequenceClassification` and `BertForSequenceClassification` of PyTorch transformers compute them, with two
differences that change no number: a row may hold several pairs, each of which sees itself alone; and what the head does
not read (every token but a pair's first, after the last layer's keys and values) is not computed.

R rows, L tokens per row, C pairs per row, D hidden width, F feed-forward width, H heads, K = D / H.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cappy.model.config import EncoderConfig
from cappy.model.layers import ACTIVATIONS, Dropout, LayerNorm, apply_alike, attend, unchanged


class Layer(nn.Module):
    """One encoder layer: x becomes norm(x + attention(x)), then norm(x + feed_forward(x))."""

    config: EncoderConfig
    dtype: jnp.dtype
    attend: Callable = attend
    join: Callable = unchanged
    dot_general: Callable = jax.lax.dot_general

    @nn.compact
    def __call__(self, x, rows, dropout, read_at=None):
        """x [R * L, D] -> [R * L, D]; with read_at int32 [R, C], at these tokens of each row alone: [R * C, D].

        rows: as `Scorer` takes them. Rows are flat: the gradient of a kernel over [R, L, D] would be a product of two
        transposed matrices, 5% of a micro-batch on a CPU.
        """
        config, D, H = self.config, self.config.hidden_size, self.config.num_attention_heads
        segments = asking_segments = rows['segments']
        R = len(segments)

        key, value = self.dense('attention.self.key', D)(x), self.dense('attention.self.value', D)(x)
        if read_at is not None:
            x = jnp.take_along_axis(x.reshape(R, -1, D), read_at[..., None], axis=1).reshape(-1, D)
            asking_segments, dropout = jnp.take_along_axis(segments, read_at, axis=1), dropout.read_at(read_at)
        query = self.dense('attention.self.query', D)(x) * (D // H) ** -0.5
        query, key, value = (flat.reshape(R, -1, D) for flat in (query, key, value))
        context = self.attend(query, key, value, H, asking_segments, segments, dropout).reshape(-1, D)
        context = checkpoint_name(context, 'context')
        attended = self.dense('attention.output.dense', D)(context)
        x = self.norm('attention.output.LayerNorm')(x + dropout.hidden(self.join(attended), place=1))

        inner = ACTIVATIONS[config.hidden_act](self.dense('intermediate.dense', config.intermediate_size)(x))
        outer = self.dense('output.dense', D)(inner)
        return self.norm('output.LayerNorm')(x + dropout.hidden(self.join(outer), place=2))

    def dense(self, name, width):
        return dense(name, width, self.config, self.dtype, self.dot_general)

    def norm(self, name):
        return LayerNorm(self.config.layer_norm_eps, name=name)


def dense(name, width, config, dtype, dot_general=jax.lax.dot_general):
    """An affine map with the reference's initial weights."""
    init = nn.initializers.normal(config.initializer_range)
    return nn.Dense(width, dtype=dtype, kernel_init=init, dot_general=dot_general, name=name)


# What the backward pass computes again, instead of reading what the forward pass kept. 'cheap': all but the products
# with weights and attention's result; so attention's logits and masks, [R, H, L, L] in each layer, are not kept, nor
# what norms, activations and dropout give. 'layers': everything but the layers' inputs.
LAYERS = {
    'nothing': Layer,
    'cheap': nn.remat(
        Layer,
        policy=jax.checkpoint_policies.save_from_both_policies(
            jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
            jax.checkpoint_policies.save_only_these_names('context'),
        ),
    ),
    'layers': nn.remat(Layer),
}


class Scorer(nn.Module):
    """A packed batch -> a score for each pair, unbounded, as the finetuned head gives it.

    rows is a dict: tokens int32 [R, L]; positions int32 [R, L], rows of the position table; segments int32 [R, L], 1..C
    for pairs and 0 for padding; starts int32 [R, C], each pair's first token (0 where a row has fewer pairs); for BERT
    also types int32 [R, L]; with dropout also pairs uint32 [R, L], a number for each token's pair.
    recomputed: a key of LAYERS; attend: how attention is computed, see `layers.attend`; join: `Devices.join`, called
    where model shards have parts of a sum; dot_general: the product with weights, as `jax.lax.dot_general`.
    """

    config: EncoderConfig
    dtype: jnp.dtype = jnp.float32
    recomputed: str = 'nothing'
    attend: Callable = attend
    join: Callable = unchanged
    dot_general: Callable = jax.lax.dot_general

    def setup(self):
        config, base = self.config, self.config.prefix
        self.words = self.table('word_embeddings', config.vocab_size)
        self.positions = self.table('position_embeddings', config.max_position_embeddings)
        self.types = self.table('token_type_embeddings', config.type_vocab_size)
        self.norm = LayerNorm(config.layer_norm_eps, name=f'{base}.embeddings.LayerNorm')
        self.layers = [
            LAYERS[self.recomputed](
                config, self.dtype, self.attend, self.join, self.dot_general, name=f'{base}.encoder.layer.{index}'
            )
            for index in range(config.num_hidden_layers)
        ]
        hidden_head, output_head = config.head_names
        self.hidden_head = dense(hidden_head, config.hidden_size, config, self.dtype)
        self.output_head = dense(output_head, 1, config, jnp.float32)

    def table(self, name, size):
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        return nn.Embed(size, config.hidden_size, embedding_init=init, name=f'{config.prefix}.embeddings.{name}')

    def embed(self, tokens):
        """int32 [R, L] -> float32 [R, L, D]; apart from `score`, so that its gradient can be added row by row."""
        return self.words(tokens)

    def score(self, word_vectors, rows, key=None):
        """word_vectors as `embed` gives them; key uint32 [] for dropout, or None -> float32 [R, C]."""
        config, N = self.config, self.config.num_hidden_layers
        dropout = Dropout.of_update(rows, key, config.hidden_dropout_prob, config.attention_probs_dropout_prob)

        types = self.types(rows['types']) if 'types' in rows else self.types.embedding[0]
        x = self.norm(self.join(word_vectors) + self.positions(rows['positions']) + types).astype(self.dtype)
        x = dropout.at(3 * N).hidden(x.reshape(-1, config.hidden_size))
        for index, layer in enumerate(self.layers):
            read_at = rows['starts'] if layer is self.layers[-1] else None
            x = apply_alike(layer, '__call__', x, rows, dropout.at(3 * index), read_at)

        dropout = dropout.read_at(rows['starts']).at(3 * N + 1)
        if config.drops_before_head:
            x = dropout.hidden(x, rate=config.classifier_dropout)
        pooled = dropout.hidden(jnp.tanh(self.hidden_head(x)), place=1, rate=config.classifier_dropout)
        # The last product in float32: bfloat16 would leave scores near 1 on a grid of 1/128, full of ties.
        return self.output_head(pooled.astype(jnp.float32)).reshape(rows['starts'].shape)

    def __call__(self, rows, key=None):
        return self.score(self.embed(rows['tokens']), rows, key)


# No placement of the results is asked for, so that what stays in float32 is passed on and not copied.
@functools.partial(jax.jit, static_argnames=('config', 'dtype'))
def rounded(params, config, dtype):
    """The parameters with the weights of affine maps in dtype, as every product would round them, but once for all.

    The head's last map stays in float32, as it is computed; so do norms and tables.
    """
    last = config.head_names[1]

    def of(name, tree):
        if not isinstance(tree, dict) or name == last:
            return tree
        if 'kernel' in tree:
            return {part: leaf.astype(dtype) for part, leaf in tree.items()}
        return {part: of(part, leaf) for part, leaf in tree.items()}

    return of(None, params)
