"""What the layers of a model are made of: activations, norms, attention inside each pair, and dropout.

R rows, L tokens per row, Q tokens per row that ask (all L, or only the C that are read), D hidden width, H heads,
K = D / H.
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


def gelu(x):
    """By erf, as PyTorch has it and 2% of a micro-batch faster than jax's erfc; in float32, since 1 + erf cancels."""
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1 + jax.lax.erf(x32 * np.float32(0.5**0.5)))).astype(x.dtype)


ACTIVATIONS = {
    'gelu': gelu,
    'gelu_new': lambda x: jax.nn.gelu(x, approximate=True),
    'gelu_pytorch_tanh': lambda x: jax.nn.gelu(x, approximate=True),
    'relu': jax.nn.relu,
    'silu': jax.nn.silu,
    'swish': jax.nn.silu,
}


class LayerNorm(nn.Module):
    """Over the last axis. In float32: the mean of D bfloat16 squares is off in the third digit."""

    epsilon: float

    @nn.compact
    def __call__(self, x):
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
        bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(axis=-1, keepdims=True)
        deviation_inverse = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + self.epsilon)
        return (centred * deviation_inverse * scale + bias).astype(x.dtype)


def split_heads(x, n_heads):
    """[R, L, D] -> [R, H, L, K]; heads before tokens, so that each head's product is one plain matrix product."""
    return x.reshape(*x.shape[:2], n_heads, -1).transpose(0, 2, 1, 3)


def merge_heads(x):
    """[R, H, Q, K] -> [R, Q, D]."""
    R, H, Q, K = x.shape
    return x.transpose(0, 2, 1, 3).reshape(R, Q, H * K)


def attend(query, key, value, n_heads, query_segments, key_segments, dropout):
    """softmax(query key') value of each head, each token seeing the tokens of its own pair alone.

    query [R, Q, D], scaled by K ** -0.5; key, value [R, L, D]; query_segments int32 [R, Q] and key_segments [R, L]: the
    number of each token's pair in its row, 0 for padding; dropout: Dropout of the asking tokens.
    Returns [R, Q, D]. What computes the same in another way has this signature and is handed to the Scorer.
    """
    query, key, value = (split_heads(x, n_heads) for x in (query, key, value))
    logits = jnp.einsum('rhqk,rhlk->rhql', query, key)
    same_pair = query_segments[:, None, :, None] == key_segments[:, None, None, :]
    # float32: bfloat16's 8 bits lose small weights in the sum. Padding sees only padding, and is never read.
    weights = jax.nn.softmax(jnp.where(same_pair, logits.astype(jnp.float32), -1e9), axis=-1)
    return merge_heads(jnp.einsum('rhql,rhlk->rhqk', dropout.attention(weights).astype(value.dtype), value))


def mix_bits(bits):
    """uint32 -> uint32, a bijection in which every input bit moves every output bit ("lowbias32", C. Wellons)."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


# Odd numbers that spread sites, elements and heads over 32 bits.
SITE, ELEMENT, HEAD = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35


def drop(x, rate, seeds, site, elements):
    """Inverted dropout of x [..., N] whose mask depends on seed, site and element alone.

    seeds: uint32, broadcast against x without its last axis; elements: uint32, broadcast against x.
    """
    seeds = mix_bits(seeds + jnp.uint32(site) * jnp.uint32(SITE))
    bits = mix_bits(seeds[..., None] ^ elements * jnp.uint32(ELEMENT))
    keep = bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


@flax.struct.dataclass
class Dropout:
    """Dropout at one place of the network.

    seeds: uint32 [R, Q], a number for each (update, pair, position); None: nothing is dropped. A mask drawn from this
    and not from the batch makes an update the same however its pairs are cut into rows, micro-batches and devices; it
    costs a few integer operations, fused into the product. key_positions: uint32 [R, L], the elements of attention
    weights. site: uint32, the number of the place; a layer's places are counted from it.
    """

    seeds: jax.Array | None
    key_positions: jax.Array
    site: jax.Array
    hidden_rate: float = flax.struct.field(pytree_node=False)
    attention_rate: float = flax.struct.field(pytree_node=False)

    @classmethod
    def of_update(cls, rows, key, hidden_rate, attention_rate):
        """For a batch as `encoder.Scorer` takes it; key: uint32, the update's, or None for no dropout."""
        positions = rows['positions'].astype(jnp.uint32)
        seeds = None if key is None else mix_bits(mix_bits(rows['pairs'] + key) + positions)
        return cls(seeds, positions, jnp.uint32(0), hidden_rate, attention_rate)

    def at(self, site):
        """The same at another place."""
        return self.replace(site=jnp.uint32(site))

    def read_at(self, places):
        """Of the tokens at places int32 [R, C] of their row alone."""
        return self.replace(seeds=None if self.seeds is None else jnp.take_along_axis(self.seeds, places, axis=1))

    def hidden(self, x, place=0, rate=None):
        """x [R * Q, N] with elements dropped; rate: hidden_rate, unless another is given."""
        rate = self.hidden_rate if rate is None else rate
        if self.seeds is None or rate == 0:
            return x
        elements = jnp.arange(x.shape[-1], dtype=jnp.uint32)
        return drop(x, rate, self.seeds.reshape(-1), self.site + place, elements)

    def attention(self, weights):
        """Attention weights [R, H, Q, L] with elements dropped."""
        if self.seeds is None or self.attention_rate == 0:
            return weights
        heads = jnp.arange(weights.shape[1], dtype=jnp.uint32)[:, None] * jnp.uint32(HEAD)
        seeds = mix_bits(self.seeds[:, None, :] + heads)
        return drop(weights, self.attention_rate, seeds, self.site, self.key_positions[:, None, None, :])


def unchanged(x):
    """`Devices.join` of a model that is not in shards."""
    return x


def apply_alike(module, method, *inputs):
    """A layer's method, traced once for all layers that differ in name and parameters alone.

    Each shape of a batch would otherwise cost a second of tracing.
    """
    if module.is_initializing():
        return getattr(module, method)(*inputs)
    return _apply(module.clone(parent=None, name=None), method, module.variables['params'], *inputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(module, method, params, *inputs):
    return module.apply({'params': params}, *inputs, method=method)
