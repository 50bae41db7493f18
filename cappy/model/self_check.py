"""Whether a device keeps packed pairs apart: pairs of the check's own making, packed together and each alone.

Packing rests on a pair's score being the same beside any others. The tests see to that on a CPU; another device has
compilers and products of its own, which no test may have run on. So an accelerator is checked before its first scores
are used.
"""

import dataclasses
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np

from cappy.errors import InputError
from cappy.model.attention import attention_of
from cappy.model.devices import is_first_process, refuse_misfit
from cappy.model.packing import Batch, fill_rows
from cappy.model.scoring import score_program
from cappy.model.tokens import encode_pairs

logger = logging.getLogger(__name__)

SKIP = 'CAPPY_SKIP_SELF_CHECK'  # environment variable of a user who knows better

# Four instructions of uneven lengths, which share three responses.
SENTENCE = 'The quick brown fox jumps over the lazy dog while seven old wizards mix 42 jugs of liquid. '
INSTRUCTIONS = ('Who jumps?', f'Summarise: {SENTENCE * 4}', f'Which is right? {SENTENCE}', f'Translate: {SENTENCE * 2}')
RESPONSES = ('yes', 'It is not the dog but the fox that jumps.', 'wizards ' * 12)

PAIRS_PER_ROW = 4  # in each row pairs of two instructions
PAIR_TOKENS = 128  # at most
ROW_LENGTH = PAIRS_PER_ROW * PAIR_TOKENS  # the longest that the planner uses for pairs of up to 512 tokens
N_ROWS = 4  # one more than the pairs fill, so that a row of padding is there too

# Packed and alone, a pair has the same row and place, and all other tokens have the weight 0 exactly, so that a sound
# device gives the same number (a CPU does). Allowed is the last bit of an operand of a product, for scores of scale 1;
# of float32 that of TF32, in which NVIDIA's cards multiply it.
TOLERANCES = {'float32': 2**-11, 'bfloat16': 2**-8}
LEAKAGE_SHARE = 1 / 4  # and less, where an encoder's attention changes so little that a leak would hide in that

_passed = set()  # (config, dtype, devices), each of which is one scoring program


@dataclasses.dataclass(frozen=True)
class SelfCheck:
    """What a check found.

    path: device, dtype of products and attention, in words; difference: the largest between a pair's packed score and
    its score alone; leakage: what the difference would be if the pairs of a row saw each other; tolerance: the largest
    difference that is still sound.
    """

    path: str
    n_pairs: int
    difference: float
    leakage: float
    tolerance: float

    @property
    def passed(self):
        """Whether scores of packed pairs may be used; not where the difference is nan."""
        return self.difference <= self.tolerance

    def __str__(self):
        return (
            f'{self.path}: {self.n_pairs} pairs score apart by {self.difference:.1e} packed and alone (at most '
            f'{self.tolerance:.1e} is sound; if they saw each other, {self.leakage:.1e})'
        )


def check_once(params, tokenizer, config, devices, dtype):
    """Check an accelerator before its first scores are used, once in a process for each scoring program.

    The arguments are those of `check`. A line of the log tells the path that is used. A CPU is left alone, and so is
    any device where the environment variable SKIP is set. Raises InputError where the check fails, or its program does
    since the driver does not fit.
    """
    program = (config, dtype, devices)
    if devices.platform == 'cpu' or program in _passed or os.environ.get(SKIP):
        return
    found = check(params, tokenizer, config, devices, dtype)
    refuse_failed(found)
    _passed.add(program)
    if is_first_process():
        # A warning, since the scripts show nothing below it: which path made the scores belongs into every log.
        logger.warning('%s', found)


def refuse_failed(found):
    """Raise InputError where a SelfCheck has not passed."""
    if not found.passed:
        name = 'float32' if 'bfloat16' in found.path else 'bfloat16'
        raise InputError(
            f'{found}: packed pairs are not kept apart, and scores would be wrong; upgrade jax and the driver, try '
            f'compute_dtype {name}, or set JAX_PLATFORMS=cpu ({SKIP}=1 goes on all the same)'
        )


def check(params, tokenizer, config, devices, dtype):
    """Score a dozen pairs on the devices, packed and alone.

    params: a scorer's, on the devices. Its encoder is used, with a head of the check's own, since scores of a new or a
    narrowly adapted head may all be alike, whatever a pair sees.
    Returns SelfCheck. Raises InputError where the program fails since the driver does not fit.
    """
    pairs = [(instruction, response) for instruction in INSTRUCTIONS for response in RESPONSES]
    encoded = encode_pairs(tokenizer, *zip(*pairs, strict=True), min(PAIR_TOKENS, config.max_length))
    packed = _packed(encoded.lengths, -(-N_ROWS // devices.n_data) * devices.n_data)
    program, params = score_program(config, dtype, devices), {**params, **_head(config, devices)}
    numbers = np.arange(len(pairs))

    def score_into(scores, batch, apart=True):
        rows = fill_rows(batch, encoded, numbers, config)
        if not apart:
            rows['segments'] = np.minimum(rows['segments'], 1)
        batch.collect(program(params, devices.put_rows(rows)), scores)

    together, alone, leaking = np.full((3, len(pairs)), np.nan, np.float32)
    try:
        score_into(together, packed)
        score_into(leaking, packed, apart=False)
        for slot in range(PAIRS_PER_ROW):
            is_it = np.arange(PAIRS_PER_ROW) == slot
            score_into(alone, dataclasses.replace(packed, pair=np.where(is_it, packed.pair, -1)))
    except RuntimeError as error:
        refuse_misfit(devices.description, error)
        raise
    name = jnp.dtype(dtype).name
    attention = attention_of(devices, dtype, drops=False)
    path = f'{devices.description}, {name}, {getattr(attention, "__name__", type(attention).__name__)}'
    difference, leakage = (float(np.abs(scores - alone).max()) for scores in (together, leaking))
    return SelfCheck(path, len(pairs), difference, leakage, min(TOLERANCES[name], LEAKAGE_SHARE * leakage))


def _packed(lengths, n_rows):
    """Batch of n_rows rows, PAIRS_PER_ROW pairs to a row as they come, the last rows empty."""
    pair = np.full((n_rows, PAIRS_PER_ROW), -1, np.int32)
    pair.ravel()[: len(lengths)] = np.arange(len(lengths))
    own = np.where(pair >= 0, lengths[pair], 0)
    return Batch(ROW_LENGTH, pair, (np.cumsum(own, axis=1) - own).astype(np.int32))


def _head(config, devices):
    """Parameters of a head whose scores have the scale 1, on the devices."""
    D, generator, params = config.hidden_size, np.random.default_rng(0), {}
    for name, width in zip(config.head_names, (D, 1), strict=True):
        kernel = generator.normal(0, D**-0.5, (D, width)).astype(np.float32)
        params[name] = {'kernel': kernel, 'bias': np.zeros(width, np.float32)}
    return jax.tree.map(lambda array: devices.put(array, devices.replicated), params)
