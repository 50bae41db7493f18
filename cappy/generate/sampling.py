"""Drawing one token of a sample from its logits, and the random numbers that decide it.

The order is that of transformers: temperature, then top-k, then top-p. A token is drawn by inverting the cumulative
distribution at a single uniform number, which is a function of the sample's name and the step alone. (The Gumbel trick
would need one random number per word of the vocabulary.)

N texts, V words of the vocabulary.
"""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 32  # words represented by their largest logit in the first stage of `top_k`
SUM_BLOCK = 128  # words summed first where a cumulative sum runs over the vocabulary


def sample_key(*names):
    """uint32 [2]: a random key made from these names (texts and integers), the same in every run on every machine."""
    digest = hashlib.sha256(json.dumps(names, ensure_ascii=False).encode('utf-8', 'surrogatepass')).digest()
    return np.frombuffer(digest[:8], '<u4').astype(np.uint32)


def uniform(keys, step):
    """float32 in [0, 1): one number for each key uint32 [..., 2] and step int32 [...]."""

    def draw(key, step):
        return jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(key, impl='threefry2x32'), step))

    for _ in range(step.ndim):
        draw = jax.vmap(draw)
    return draw(keys, step)


def top_k(values, k):
    """The same as jax.lax.top_k over the last axis of [N, V], in half its time for a large V.

    Of equal values the first comes first. Correct because the k blocks with the largest maxima hold the k largest
    values: any value outside of these blocks has at least k values before it.
    """
    n, size = values.shape
    if size % BLOCK or size // BLOCK < 4 * k:
        return jax.lax.top_k(values, min(k, size))
    blocks = values.reshape(n, -1, BLOCK)
    # Sorted by position, so that of equal values the first word comes first.
    chosen = jnp.sort(jax.lax.top_k(blocks.max(axis=-1), k)[1], axis=-1)
    candidates = jnp.take_along_axis(blocks, chosen[..., None], axis=1).reshape(n, -1)
    found, position = jax.lax.top_k(candidates, k)
    return found, jnp.take_along_axis(chosen, position // BLOCK, axis=1) * BLOCK + position % BLOCK


def _first_above(weights, target):
    """int32 [N]: where the cumulative sum of weights [N, M] first exceeds target [N].

    Where rounding keeps the sum from exceeding it, the last weight that is not 0.
    """
    position = (jnp.cumsum(weights, axis=-1) <= target[:, None]).sum(axis=-1)
    last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    return jnp.minimum(position, last).astype(jnp.int32)


def invert(weights, u):
    """int32 [N]: the word at which the cumulative sum of weights >= 0 [N, V] passes the share u in [0, 1) [N] of it."""
    n, size = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -size % SUM_BLOCK))).reshape(n, -1, SUM_BLOCK)
    sums = blocks.sum(axis=-1)
    target = u * sums.sum(axis=-1)
    block = _first_above(sums, target)
    before = jnp.where(jnp.arange(sums.shape[1]) < block[:, None], sums, 0).sum(axis=-1)
    chosen = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * SUM_BLOCK + _first_above(chosen, jnp.maximum(target - before, 0))


def nucleus(probabilities, top_p):
    """Top-p filtering: probabilities [N, V] with 0 for all but the most likely words that reach the share top_p [N].

    The smallest kept probability is found by bisection over float32's bit patterns, which are ordered as the numbers
    are; sorting V words would cost many times as much. Words of equal probability are kept or dropped together.
    """

    def halve(_, interval):
        low, high = interval  # the words above `low` sum to top_p or more, those above `high` to less
        middle = (low + high) // 2
        least = jax.lax.bitcast_convert_type(middle, jnp.float32)
        above = jnp.where(probabilities > least[:, None], probabilities, 0).sum(axis=-1)
        return jnp.where(above < top_p, low, middle), jnp.where(above < top_p, middle, high)

    n = len(probabilities)
    bits_of_one = int(np.float32(1).view(np.int32))
    interval = (jnp.full(n, -1, jnp.int32), jnp.full(n, bits_of_one, jnp.int32))
    _, high = jax.lax.fori_loop(0, 31, halve, interval)
    least = jax.lax.bitcast_convert_type(high, jnp.float32)
    return jnp.where((probabilities >= least[:, None]) | (top_p >= 1)[:, None], probabilities, 0)


def draw_words(logits, u, settings, max_top_k, is_open, has_open_nucleus):
    """int32 [N]: a word for each text, drawn from logits float32 [N, V] with u in [0, 1) [N].

    settings: temperature, top_k and top_p, [N] each; max_top_k: the largest top_k; is_open: whether any text has no
    top_k (0); has_open_nucleus: whether one of these has a top_p below 1.
    """
    temperature, k, p = settings
    words = None
    if max_top_k:
        found, position = top_k(logits, max_top_k)
        rank = jnp.arange(found.shape[1])
        kept = jax.nn.softmax(jnp.where(rank < k[:, None], found / temperature[:, None], -jnp.inf), axis=-1)
        before = jnp.cumsum(kept, axis=-1) - kept
        kept = jnp.where((before < p[:, None]) | (rank == 0) | (p >= 1)[:, None], kept, 0)
        words = jnp.take_along_axis(position, _first_above(kept, u * kept.sum(axis=-1))[:, None], axis=1)[:, 0]
    if is_open:
        probabilities = jax.nn.softmax(logits / temperature[:, None], axis=-1)
        if has_open_nucleus:
            probabilities = nucleus(probabilities, p)
        from_all = invert(probabilities, u)
        words = from_all if words is None else jnp.where(k > 0, words, from_all)
    return words
