"""How many tokens a batch may have on a device: from its memory, and fewer where memory runs out after all.

N layers, D hidden width, F feed-forward width, H heads, L tokens of a row.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np

from cappy.errors import InputError
from cappy.model.devices import from_first_process, is_first_process
from cappy.model.packing import cut_batches

logger = logging.getLogger(__name__)

# A CPU: what stays in its cache (docs/benchmarks.md). Elsewhere the most that is of use: a training micro-batch of so
# many tokens spreads what each costs, whatever it holds, and a scoring batch fills the device.
MOST_TRAINING_TOKENS = {'cpu': 768, 'gpu': 16384, 'tpu': 16384}
MOST_SCORING_TOKENS = {'cpu': 1024, 'gpu': 16384, 'tpu': 16384}
FEWEST_TOKENS = 512  # that are asked for; where they do not fit, memory runs out and `Budget` halves them

# Bytes of a device that does not report its memory, by its kind as jax has it, from the makers' pages.
PUBLISHED_MEMORY = {
    'TPU v2': 8 * 2**30,
    'TPU v3': 16 * 2**30,
    'TPU v4': 32 * 2**30,
    'TPU v5 lite': 16 * 2**30,
    'TPU v5': 95 * 2**30,
    'TPU v6 lite': 32 * 2**30,
}
UNKNOWN_MEMORY = 16 * 2**30
ROW_LENGTH = 512  # the longest rows of the planner, for which the attention of a token takes most
USED = 0.92  # of the memory: the rest is for what the formula misses (it is within 10%) and for what lies about


def device_memory(devices):
    """Bytes that programs may have on each device: the least that a local one reports, or as published for its kind."""
    found = []
    for device in devices.mesh.devices.flat:
        if devices.is_described or device.process_index == jax.process_index():
            statistics = None if devices.is_described else device.memory_stats()
            published = PUBLISHED_MEMORY.get(device.device_kind, UNKNOWN_MEMORY)
            found.append((statistics or {}).get('bytes_limit', published))
    return min(found)


def n_params(config):
    """(parameters in the layers, all parameters)."""
    D, F = config.hidden_size, config.intermediate_size
    layers = config.num_hidden_layers * (4 * D * D + 2 * D * F + 9 * D + F)
    tables = (config.vocab_size + config.max_position_embeddings + config.type_vocab_size) * D
    return layers, layers + tables + D * D + 5 * D


def training_bytes(config, dtype, n_tokens, row_length=ROW_LENGTH, platform='gpu', rematerialise=False, n_shards=1):
    """Bytes on a device at the peak of a training whose micro-batches have n_tokens on it.

    The parameters, Adam's two means and the sum of gradients in float32; the layers' weights in dtype; what the
    backward pass reads of each layer (`encoder.LAYERS`); and what one layer needs while it is worked on.
    """
    N, D, F = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    of_layers, of_all = n_params(config)
    size = jnp.dtype(dtype).itemsize
    state = 16 * of_all + _rounded_bytes(size, of_layers)
    # Layer's input, attended and outer; of the shards' own: query, key, value and context, and inner.
    kept = size * (D if rematerialise else 3 * D + (4 * D + F) / n_shards)
    return state / n_shards + n_tokens * (N * kept + _working_bytes(config, size, row_length, platform, n_shards))


def scoring_bytes(config, dtype, n_tokens, row_length=ROW_LENGTH, platform='gpu', n_shards=1):
    """As `training_bytes`, of scoring: the parameters, the layers' weights in dtype, and one layer's results."""
    of_layers, of_all = n_params(config)
    size = jnp.dtype(dtype).itemsize
    state = 4 * of_all + _rounded_bytes(size, of_layers)
    if platform == 'tpu':  # of a forward pass that keeps attention on the chip
        working = 5 * config.hidden_size + size * config.intermediate_size / n_shards
    else:
        working = _working_bytes(config, size, row_length, platform, n_shards)
    return state / n_shards + n_tokens * working


def _rounded_bytes(size, of_layers):
    """Of what `encoder.rounded` makes: nothing where the weights are of that size already."""
    return 0 if size == 4 else size * of_layers


def _working_bytes(config, size, row_length, platform, n_shards):
    """Bytes a token of one layer's backward pass: the feed-forward's and attention's inner results, a few of each."""
    D, F = config.hidden_size, config.intermediate_size
    # The kernel for TPUs keeps logits on the chip; elsewhere they are in memory, in float32, and their gradient too.
    logits = 0 if platform == 'tpu' else 4 * config.num_attention_heads * row_length / n_shards
    return 8 * D + max(2 * size * F / n_shards, logits)


def training_tokens(config, devices, dtype, rematerialise=False):
    """Tokens of a training micro-batch on each device."""

    def needed(n_tokens):
        shards = devices.n_model_shards
        return training_bytes(config, dtype, n_tokens, ROW_LENGTH, devices.platform, rematerialise, shards)

    return _most(MOST_TRAINING_TOKENS, needed, devices)


def scoring_tokens(config, devices, dtype):
    """Tokens of a scoring batch on each device."""

    def needed(n_tokens):
        return scoring_bytes(config, dtype, n_tokens, ROW_LENGTH, devices.platform, devices.n_model_shards)

    return _most(MOST_SCORING_TOKENS, needed, devices)


def _most(limits, needed, devices):
    most = limits.get(devices.platform, limits['gpu'])
    if devices.platform == 'cpu':
        return most
    room = USED * device_memory(devices) - needed(0)
    fitting = int(room / (needed(1) - needed(0))) // FEWEST_TOKENS * FEWEST_TOKENS
    return from_first_process(int(np.clip(fitting, FEWEST_TOKENS, most)))


def is_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether a program failed since the memory of a device ran out."""
    return 'RESOURCE_EXHAUSTED' in str(error)


def halved(n, unit, is_least, remedy, error):
    """Half of n for a program that ran out of memory with n of a unit on a device; says so.

    Raises the error again where it is another one, or several processes would have to agree; and InputError with a
    remedy where n is the least that there can be.
    """
    if not is_out_of_memory(error) or jax.process_count() > 1:
        raise error
    if is_least:
        raise InputError(
            f'memory ran out with {n} {unit} on a device, the fewest there can be; use a smaller model, {remedy}, or '
            'model shards over several devices'
        ) from error
    if is_first_process():
        logger.warning('memory ran out with %d %s on a device; it goes on with %d (nothing is lost)', n, unit, n // 2)
    return n // 2


class Budget:
    """The most tokens that a batch may have on each of n_data devices; halved where memory runs out."""

    def __init__(self, n_data):
        self.n_data = n_data
        self.tokens = None  # None: as it was planned

    def __call__(self, tokens):
        """The fewer of planned tokens and this budget's."""
        return tokens if self.tokens is None else min(tokens, self.tokens)

    def cut(self, plan):
        """A list of Batch within the budget: as it was planned, or cut."""
        return plan if self.tokens is None else cut_batches(plan, self.tokens, self.n_data)

    def halve(self, error, plan):
        """Take half of the largest batch of a plan that ran out of memory; raises as `halved`."""
        rows, length, _ = max((batch.shape for batch in plan), key=lambda shape: shape[0] * shape[1])
        is_least = all(len(batch.pair) <= self.n_data for batch in plan)
        remedy = 'a lower max_length, gradient checkpointing in training'
        self.tokens = halved(rows // self.n_data * length, 'tokens of a batch', is_least, remedy, error)
