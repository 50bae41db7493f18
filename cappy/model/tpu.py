"""Attention as a kernel for TPUs: logits, weights and masks of a row stay on the chip.

The plain equations (`layers.attend`) write logits and weights to memory, [R, H, L, L] each, and read them again for
each of softmax, dropout and the product; that is most of a layer's traffic where rows are long. A row's logits for a
head fit on the chip, so this needs no online softmax: a step of the grid computes one row's attention for some heads.

R rows, L tokens of a row, H heads, K width of a head.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cappy.model.layers import attend

LONGEST_ROW = 512  # a head's logits are 1 MB then, a few of which the backward pass holds
LONGEST_BLOCK = 208  # queries whose logits are computed at once: longer programs take minutes to compile
STEP_TOKENS = 512  # rows shorter than this are computed for several heads in a step, lest steps be too small
CONTRACT_LAST = (((1,), (1,)), ((), ()))  # [M, K], [N, K] -> [M, N]
CONTRACT_FIRST = (((0,), (0,)), ((), ()))  # [M, K], [M, N] -> [K, N]
CONTRACT_INNER = (((1,), (0,)), ((), ()))  # [M, K], [K, N] -> [M, N]


@dataclasses.dataclass(frozen=True)
class AttendOnChip:
    """As `layers.attend`, by the kernel where every token of the row asks and the row is not too long.

    mesh: [dp, mp], over which rows and heads are split; interpret: run the kernel's steps as plain operations, on any
    device, as the tests do.
    """

    mesh: Mesh
    interpret: bool = False

    def __call__(self, query, key, value, query_segments, key_segments, dropout):
        n_heads, n_tokens = key.shape[1:3]
        fits = query.shape[2] == n_tokens <= LONGEST_ROW and n_heads % self.mesh.shape['mp'] == 0
        if not fits:
            return attend(query, key, value, query_segments, key_segments, dropout)
        rate = 0.0 if dropout.seeds is None else dropout.attention_rate
        if rate:
            seeds, elements = dropout.attention_bits(n_heads)
        else:
            seeds, elements = jnp.zeros((len(key), n_heads, 1), jnp.uint32), jnp.zeros((len(key), 1), jnp.uint32)
        of_rows, of_heads = P('dp'), P('dp', 'mp')
        on_each = jax.shard_map(
            functools.partial(_attend, rate, self.interpret),
            mesh=self.mesh,
            in_specs=(of_heads, of_heads, of_heads, of_rows, of_rows, of_heads, of_rows),
            out_specs=of_heads,
            check_vma=False,
        )
        return on_each(query, key, value, query_segments, key_segments, seeds, elements)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(rate, interpret, query, key, value, query_segments, key_segments, seeds, elements):
    """query, key, value [R, H, L, K]; segments int32 [R, L]; seeds uint32 [R, H, L] and elements [R, L], or one of each
    where nothing is dropped -> [R, H, L, K].
    """
    inputs = _laid_out(query, key, value, query_segments, key_segments, seeds, elements)
    [context] = _call(_forward, rate, interpret, inputs, [query])
    return context


def _attend_forward(rate, interpret, *inputs):
    return _attend(rate, interpret, *inputs), inputs


def _attend_backward(rate, interpret, inputs, gradient):
    query, key, value, *others = inputs
    laid_out = _laid_out(query, key, value, *others)
    gradients = _call(_backward, rate, interpret, (gradient, *laid_out), [query, key, value])
    return *gradients, None, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _laid_out(query, key, value, query_segments, key_segments, seeds, elements):
    """What belongs to queries as columns, what belongs to keys as rows; bits as int32, which the kernel computes in."""
    bits = [jax.lax.bitcast_convert_type(bits, jnp.int32) for bits in (seeds, elements)]
    columns = query_segments[:, None, :, None], bits[0][..., None]
    rows = key_segments[:, None, None, :], bits[1][:, None, None, :]
    return query, key, value, columns[0], rows[0], columns[1], rows[1]


def _call(kernel, rate, interpret, inputs, outputs):
    """Call a kernel for each row and some heads at a time; inputs and outputs [R, H or 1, ...]."""
    R, H, L, _ = outputs[0].shape
    n_heads = next(n for n in range(min(H, max(1, STEP_TOKENS // L)), 0, -1) if H % n == 0)

    def block(array):
        of_all_heads = array.shape[1] == 1 and H > 1
        shape = (1, 1 if of_all_heads else n_heads, *array.shape[2:])
        return pl.BlockSpec(shape, (lambda r, h: (r, 0, 0, 0)) if of_all_heads else (lambda r, h: (r, h, 0, 0)))

    return pl.pallas_call(
        functools.partial(kernel, rate, n_heads, block_length(L)),
        grid=(R, H // n_heads),
        in_specs=[block(array) for array in inputs],
        out_specs=[block(array) for array in outputs],
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in outputs],
        scratch_shapes=[pltpu.VMEM(array.shape[2:], jnp.float32) for array in outputs[1:]],
        interpret=interpret,
    )(*inputs)


def block_length(n_tokens):
    """Queries of a block: a divisor of a row's tokens, of whole tiles of 16."""
    if n_tokens <= LONGEST_BLOCK:
        return n_tokens
    return max((n for n in range(16, LONGEST_BLOCK + 1, 16) if n_tokens % n == 0), default=n_tokens)


def _product(a, b, contracted):
    """In float32, of float32 operands with all their bits."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, contracted, precision=precision, preferred_element_type=jnp.float32)


def _weights(query, key, same_pair):
    """Attention weights [L, L] of one head."""
    logits = jnp.where(same_pair, _product(query, key, CONTRACT_LAST), -1e9)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _kept(weights, rate, seeds, elements):
    """weights [L, L] as `layers.drop` leaves them; seeds int32 [L, 1], elements int32 [1, L]."""
    if not rate:
        return weights
    bits = _mixed(seeds ^ elements)
    # An unsigned comparison by signed numbers: both sides with the highest bit turned over.
    lowest = np.int32(min(round(rate * 2**32), 2**32 - 1) - 2**31)
    return jnp.where((bits ^ np.int32(-(2**31))) >= lowest, weights / (1 - rate), 0)


def _mixed(bits):
    """`layers.mix_bits` of int32."""
    for factor in (0x7FEB352D, 0x846CA68B - 2**32):
        bits = (bits ^ jax.lax.shift_right_logical(bits, np.int32(16 if factor > 0 else 15))) * np.int32(factor)
    return bits ^ jax.lax.shift_right_logical(bits, np.int32(16))


def _of_blocks(n_blocks, length, compute):
    """Call compute(slice) for the queries of each block, in a loop that is not unrolled."""
    if n_blocks == 1:
        compute(pl.ds(0, length))
    else:
        jax.lax.fori_loop(0, n_blocks, lambda i, _: compute(pl.ds(pl.multiple_of(i * length, 16), length)), None)


def _forward(rate, n_heads, length, query, key, value, query_segments, key_segments, seeds, elements, context):
    for head in range(n_heads):

        def compute(block, head=head):
            same_pair = query_segments[0, 0, block] == key_segments[0, 0]
            weights = _weights(query[0, head, block], key[0, head], same_pair)
            weights = _kept(weights, rate, seeds[0, head, block] if rate else None, elements[0, 0])
            heads = value[0, head]
            mixed = _product(weights.astype(heads.dtype), heads, CONTRACT_INNER)
            context[0, head, block] = mixed.astype(context.dtype)

        _of_blocks(query.shape[2] // length, length, compute)


def _backward(
    rate,
    n_heads,
    length,
    gradient,
    query,
    key,
    value,
    query_segments,
    key_segments,
    seeds,
    elements,
    query_gradient,
    key_gradient,
    value_gradient,
    key_sum,
    value_sum,
):
    dtype = value.dtype
    for head in range(n_heads):
        key_sum[...], value_sum[...] = jnp.zeros_like(key_sum), jnp.zeros_like(value_sum)

        def compute(block, head=head):
            of_context, asking = gradient[0, head, block], query[0, head, block]
            same_pair = query_segments[0, 0, block] == key_segments[0, 0]
            weights = _weights(asking, key[0, head], same_pair)
            bits = seeds[0, head, block] if rate else None, elements[0, 0]
            kept = _kept(weights, rate, *bits).astype(dtype)
            value_sum[...] += _product(kept, of_context, CONTRACT_FIRST)
            of_weights = _kept(_product(of_context, value[0, head], CONTRACT_LAST), rate, *bits)
            of_logits = weights * (of_weights - (of_weights * weights).sum(-1, keepdims=True))
            of_logits = of_logits.astype(dtype)
            query_gradient[0, head, block] = _product(of_logits, key[0, head], CONTRACT_INNER).astype(dtype)
            key_sum[...] += _product(of_logits, asking, CONTRACT_FIRST)

        _of_blocks(query.shape[2] // length, length, compute)
        key_gradient[0, head], value_gradient[0, head] = key_sum[...].astype(dtype), value_sum[...].astype(dtype)
