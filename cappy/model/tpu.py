"""Attention as a kernel for TPUs: logits, weights and masks of a row stay on the chip.

The plain equations (`layers.attend`) write logits and weights to memory, [R, H, L, L] each, and read them again for
each of softmax, dropout and the product; that is most of a layer's traffic where rows are long. A row's logits for a
head fit on the chip, so this needs no online softmax: a step of the grid computes one row's attention for some heads.

Memory is laid out in lines of 128 numbers, so heads of 64 by themselves would take twice the room, and splitting and
merging them would be copies. The kernel reads [R, L, D] as the products with weights leave it, in groups of heads that
fill lines, and computes a head's products with the others' numbers set to zero: a unit that multiplies 128 x 128
matrices takes as long for 64 columns.

R rows, L tokens of a row, D hidden width, H heads, K = D / H.
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

from cappy.model.layers import ELEMENT, HEAD, SITE, attend

LONGEST_ROW = 512  # a head's logits are 1 MB then, a few of which the backward pass holds
LONGEST_BLOCK = 208  # queries whose logits are computed at once: longer programs take minutes to compile
STEP_TOKENS = 512  # rows shorter than this are computed for several groups of heads in a step, lest steps be too small
LANES = 128  # numbers of a line
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

    def __call__(self, query, key, value, n_heads, query_segments, key_segments, dropout):
        n_tokens = key.shape[1]
        fits = query.shape[1] == n_tokens <= LONGEST_ROW and n_heads % self.mesh.shape['mp'] == 0
        if not fits:
            return attend(query, key, value, n_heads, query_segments, key_segments, dropout)
        rate = 0.0 if dropout.seeds is None else dropout.attention_rate
        of_queries, of_keys = [query_segments], [key_segments]
        if rate:
            of_queries.append(_signed(dropout.seeds))
            of_keys.append(_signed(dropout.key_positions * jnp.uint32(ELEMENT)))
        site = _signed(dropout.site * jnp.uint32(SITE))[None]
        heads = _signed(jnp.arange(n_heads, dtype=jnp.uint32) * jnp.uint32(HEAD))
        of_rows, of_heads = P('dp'), P('dp', None, 'mp')
        on_each = jax.shard_map(
            functools.partial(_attend, rate, self.interpret),
            mesh=self.mesh,
            in_specs=(of_heads, of_heads, of_heads, of_rows, of_rows, P(), P('mp')),
            out_specs=of_heads,
            check_vma=False,
        )
        return on_each(query, key, value, jnp.stack(of_queries, -1), jnp.stack(of_keys, 1), site, heads)


def _signed(bits):
    """uint32 as int32, which the kernel computes in."""
    return jax.lax.bitcast_convert_type(bits, jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(rate, interpret, *inputs):
    """inputs: query, key, value [R, L, D]; of queries [R, L, 1 or 2] and of keys [R, 1 or 2, L] the segments, and what
    their dropout is drawn from; the site [1] and heads [H], int32 -> [R, L, D].
    """
    [context] = _call(_forward, rate, interpret, inputs, inputs[:1])
    return context


def _attend_forward(rate, interpret, *inputs):
    return _attend(rate, interpret, *inputs), inputs


def _attend_backward(rate, interpret, inputs, gradient):
    gradients = _call(_backward, rate, interpret, (gradient, *inputs), inputs[:3])
    return *gradients, None, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _call(kernel, rate, interpret, inputs, like):
    """Call a kernel for each row and some heads at a time; its outputs are like `like`, [R, L, D]."""
    *arrays, site, heads = inputs
    R, L, D = like[0].shape
    H = len(heads)
    K = D // H
    in_group = LANES // K if LANES % K == 0 and H % (LANES // K) == 0 else H
    most = max(in_group, STEP_TOKENS // L)
    n_heads = max(n for n in range(in_group, H + 1, in_group) if H % n == 0 and n <= most)
    n_products = 2 if kernel is _forward else 5
    cost = pl.CostEstimate(
        flops=n_products * 2 * R * L * L * D,
        bytes_accessed=sum(array.size * array.dtype.itemsize for array in (*arrays, *like)),
        transcendentals=R * H * L * L,
    )
    whole = pl.BlockSpec(memory_space=pltpu.SMEM)

    def block(array):
        if array.shape == (R, L, D):
            return pl.BlockSpec((1, L, n_heads * K), lambda r, h: (r, 0, h))
        return pl.BlockSpec((1, *array.shape[1:]), lambda r, h: (r, 0, 0))

    return pl.pallas_call(
        functools.partial(kernel, rate, Group(in_group, K, block_length(L))),
        grid=(R, H // n_heads),
        in_specs=[whole, whole, *map(block, arrays)],
        out_specs=[block(array) for array in like],
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in like],
        scratch_shapes=[pltpu.VMEM((L, in_group * K), jnp.float32)] * (len(like) - 1),
        cost_estimate=cost,
        interpret=interpret,
    )(site, heads, *arrays)


def block_length(n_tokens):
    """Queries of a block: a divisor of a row's tokens, of whole tiles of 16."""
    if n_tokens <= LONGEST_BLOCK:
        return n_tokens
    return max((n for n in range(16, LONGEST_BLOCK + 1, 16) if n_tokens % n == 0), default=n_tokens)


@dataclasses.dataclass(frozen=True)
class Group:
    """Heads that are computed from the same lines.

    n_heads: how many; width: of a head; length: queries of a block, whose logits are computed at once.
    """

    n_heads: int
    width: int
    length: int

    def of_step(self, array):
        """(number of its first head, its lines in [1, L, n]) of each group of a step."""
        lines = self.n_heads * self.width
        n_groups = array.shape[2] // lines
        for index in range(n_groups):
            first = (pl.program_id(1) * n_groups + index) * self.n_heads
            yield first, slice(index * lines, (index + 1) * lines)

    def each(self, n_tokens, compute):
        """Call compute(head of the group, slice of queries) for all of them, in a loop that is not unrolled."""
        n_blocks = n_tokens // self.length

        def step(i, _):
            block = pl.multiple_of(jax.lax.rem(i, n_blocks) * self.length, 16) if n_blocks > 1 else 0
            compute(jax.lax.div(i, n_blocks), pl.ds(block, self.length))

        jax.lax.fori_loop(0, self.n_heads * n_blocks, step, None)

    def of_head(self, head, x, others=0.0):
        """x [M, lines] in float32; the lines of heads but this one from `others`."""
        if self.n_heads == 1:
            return x.astype(jnp.float32)
        of_column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        own = (of_column >= head * self.width) & (of_column < (head + 1) * self.width)
        return jnp.where(own, x.astype(jnp.float32), others)


def _product(a, b, contracted):
    """In float32, of float32 operands with all their bits."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, contracted, precision=precision, preferred_element_type=jnp.float32)


def _weights(query, key, of_queries, of_keys):
    """Attention weights [M, L] of one head; of_queries int32 [M, 1 or 2], of_keys [1 or 2, L]."""
    same_pair = of_queries[:, :1] == of_keys[:1]
    logits = jnp.where(same_pair, _product(query, key, CONTRACT_LAST), -1e9)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _bits(site, head, of_queries, of_keys):
    """int32 [M, L], which decides about each weight as `Dropout.attention` draws it; None where nothing is dropped."""
    if of_keys.shape[0] == 1:
        return None
    return _mixed(_mixed(_mixed(of_queries[:, 1:] + head) + site) ^ of_keys[1:])


def _kept(weights, rate, bits):
    """weights [M, L] as `layers.drop` leaves them; bits: as `_bits` gives them."""
    if bits is None:
        return weights
    # An unsigned comparison by signed numbers: both sides with the highest bit turned over.
    lowest = np.int32(min(round(rate * 2**32), 2**32 - 1) - 2**31)
    return jnp.where((bits ^ np.int32(-(2**31))) >= lowest, weights / (1 - rate), 0)


def _mixed(bits):
    """`layers.mix_bits` of int32."""
    for factor in (0x7FEB352D, 0x846CA68B - 2**32):
        bits = (bits ^ jax.lax.shift_right_logical(bits, np.int32(16 if factor > 0 else 15))) * np.int32(factor)
    return bits ^ jax.lax.shift_right_logical(bits, np.int32(16))


def _forward(rate, group, site, heads, query, key, value, of_queries, of_keys, context):
    dtype = value.dtype
    for first, lines in group.of_step(query):

        def compute(head, block, lines=lines, first=first):
            asking = group.of_head(head, query[0, block, lines]).astype(dtype)
            weights = _weights(asking, key[0, :, lines], of_queries[0, block], of_keys[0])
            weights = _kept(weights, rate, _bits(site[0], heads[first + head], of_queries[0, block], of_keys[0]))
            mixed = _product(weights.astype(dtype), value[0, :, lines], CONTRACT_INNER)
            context[0, block, lines] = group.of_head(head, mixed, context[0, block, lines]).astype(dtype)

        group.each(query.shape[1], compute)


def _backward(
    rate,
    group,
    site,
    heads,
    gradient,
    query,
    key,
    value,
    of_queries,
    of_keys,
    query_gradient,
    key_gradient,
    value_gradient,
    key_sum,
    value_sum,
):
    dtype = value.dtype
    for first, lines in group.of_step(query):
        key_sum[...], value_sum[...] = jnp.zeros_like(key_sum), jnp.zeros_like(value_sum)

        def compute(head, block, lines=lines, first=first):
            of_context, asking = (group.of_head(head, x[0, block, lines]).astype(dtype) for x in (gradient, query))
            weights = _weights(asking, key[0, :, lines], of_queries[0, block], of_keys[0])
            bits = _bits(site[0], heads[first + head], of_queries[0, block], of_keys[0])
            value_sum[...] += _product(_kept(weights, rate, bits).astype(dtype), of_context, CONTRACT_FIRST)
            of_weights = _kept(_product(of_context, value[0, :, lines], CONTRACT_LAST), rate, bits)
            of_logits = weights * (of_weights - (of_weights * weights).sum(-1, keepdims=True))
            of_logits = of_logits.astype(dtype)
            of_query = _product(of_logits, key[0, :, lines], CONTRACT_INNER)
            of_query = group.of_head(head, of_query, query_gradient[0, block, lines])
            query_gradient[0, block, lines] = of_query.astype(dtype)
            key_sum[...] += _product(of_logits, asking, CONTRACT_FIRST)

        group.each(query.shape[1], compute)
        key_gradient[0, :, lines] = key_sum[...].astype(dtype)
        value_gradient[0, :, lines] = value_sum[...].astype(dtype)
