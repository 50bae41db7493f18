"""How a sample is drawn: the decodings by name, the random numbers behind them, and one word from its logits.

Transformers' order: temperature, then top-k, then top-p. A word is drawn by inverting the cumulative distribution at
one uniform number, which comes from the names of what is drawn alone; Gumbel noise would need one for each word.

N texts, V words, Q samples of an instruction.
"""

import dataclasses
import hashlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np

from cappy.errors import InputError
from cappy.tasks.candidates import REFERENCE_DECODINGS

DEFAULT_TOP_K = 50  # transformers' GenerationConfig, where a decoding does not set its own
BLOCK = 32  # words whose largest logit stands for them in the first stage of `top_k`
SUM_BLOCK = 128  # words that are summed first where a cumulative sum runs over the vocabulary


@dataclasses.dataclass(frozen=True)
class Decoding:
    """n_beams of a beam search, or 0; else temperature, top_k (0: all words) and top_p of sampling."""

    name: str
    n_beams: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def parse_decoding(name, default_top_k=DEFAULT_TOP_K):
    """beam4, sampling, temp0.9, topk40, topp0.95, or such a name with another number -> Decoding.

    default_top_k: of those whose name says none (the reference's scripts/bigbench_flan_generate.py:97-103 leaves it to
    transformers). Raises InputError for another name.
    """
    match = re.fullmatch(r'([a-z]+)([0-9.]*)', name)
    kind, number = match.groups() if match else ('', '')
    try:
        if kind == 'sampling' and not number:
            return Decoding(name, top_k=default_top_k)
        if kind == 'beam' and 1 <= int(number) <= 64:
            return Decoding(name, n_beams=int(number))
        if kind == 'topk' and int(number) >= 1:
            return Decoding(name, top_k=int(number))
        if kind == 'temp' and float(number) > 0:
            return Decoding(name, temperature=float(number), top_k=default_top_k)
        if kind == 'topp' and 0 < float(number) <= 1:
            return Decoding(name, top_p=float(number), top_k=default_top_k)
    except ValueError:
        pass
    raise InputError(
        f'--decodings: found {name!r}; name them as {", ".join(REFERENCE_DECODINGS)}, with these or other numbers'
    )


def sample_key(*names):
    """uint32 [2]: the random key of what these names say (texts and integers), the same on every machine and run."""
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
    """As jax.lax.top_k over the last axis of [N, V], the first of equals first; half its time for a long one.

    The k blocks with the largest maxima hold the k largest values: a value outside of them has k values before it.
    """
    n, size = values.shape
    if size % BLOCK or size // BLOCK < 4 * k:
        return jax.lax.top_k(values, min(k, size))
    blocks = values.reshape(n, -1, BLOCK)
    # In their order, so that of equal values the first word comes first.
    chosen = jnp.sort(jax.lax.top_k(blocks.max(axis=-1), k)[1], axis=-1)
    some = jnp.take_along_axis(blocks, chosen[..., None], axis=1).reshape(n, -1)
    found, place = jax.lax.top_k(some, k)
    return found, jnp.take_along_axis(chosen, place // BLOCK, axis=1) * BLOCK + place % BLOCK


def _first_above(weights, target):
    """int32 [N]: where the cumulative sum of weights [N, M] first exceeds target [N]; where none does, by rounding,
    the last weight that is not 0.
    """
    place = (jnp.cumsum(weights, axis=-1) <= target[:, None]).sum(axis=-1)
    last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    return jnp.minimum(place, last).astype(jnp.int32)


def invert(weights, u):
    """int32 [N]: the word in whose share of the sum of weights >= 0 [N, V] the number u in [0, 1) [N] falls."""
    n, size = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -size % SUM_BLOCK))).reshape(n, -1, SUM_BLOCK)
    sums = blocks.sum(axis=-1)
    target = u * sums.sum(axis=-1)
    block = _first_above(sums, target)
    before = jnp.where(jnp.arange(sums.shape[1]) < block[:, None], sums, 0).sum(axis=-1)
    chosen = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * SUM_BLOCK + _first_above(chosen, jnp.maximum(target - before, 0))


def nucleus(probabilities, top_p):
    """Probabilities [N, V] of the likeliest words that come before a share top_p [N] is reached, 0 for the others.

    The least kept probability is found by halving an interval of float32's bit patterns, which are in order; sorting V
    words would cost many times as much. Equal words are kept together.
    """

    def halve(_, interval):
        low, high = interval  # more than top_p lies above low, less above high
        middle = (low + high) // 2
        least = jax.lax.bitcast_convert_type(middle, jnp.float32)
        above = jnp.where(probabilities > least[:, None], probabilities, 0).sum(axis=-1)
        return jnp.where(above < top_p, low, middle), jnp.where(above < top_p, middle, high)

    n = len(probabilities)
    one = int(np.float32(1).view(np.int32))
    _, high = jax.lax.fori_loop(0, 31, halve, (jnp.full(n, -1, jnp.int32), jnp.full(n, one, jnp.int32)))
    least = jax.lax.bitcast_convert_type(high, jnp.float32)
    return jnp.where((probabilities >= least[:, None]) | (top_p >= 1)[:, None], probabilities, 0)


def draw_words(logits, u, settings, most, is_open, has_open_nucleus):
    """int32 [N]: a word for each text from logits float32 [N, V] and u in [0, 1) [N].

    settings: temperature, top_k and top_p [N]; most: the largest top_k; is_open: whether some have none (0), and
    has_open_nucleus: and a top_p below 1 with it.
    """
    temperature, k, p = settings
    words = None
    if most:
        found, place = top_k(logits, most)
        rank = jnp.arange(found.shape[1])
        kept = jax.nn.softmax(jnp.where(rank < k[:, None], found / temperature[:, None], -jnp.inf), axis=-1)
        before = jnp.cumsum(kept, axis=-1) - kept
        kept = jnp.where((before < p[:, None]) | (rank == 0) | (p >= 1)[:, None], kept, 0)
        words = jnp.take_along_axis(place, _first_above(kept, u * kept.sum(axis=-1))[:, None], axis=1)[:, 0]
    if is_open:
        probabilities = jax.nn.softmax(logits / temperature[:, None], axis=-1)
        if has_open_nucleus:
            probabilities = nucleus(probabilities, p)
        of_all = invert(probabilities, u)
        words = of_all if words is None else jnp.where(k > 0, words, of_all)
    return words
