"""Which attention a device computes: the plain equations, or what is equal to them and faster there."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np

from cappy.model.cpu import attend_bounded
from cappy.model.layers import Dropout, attend
from cappy.model.tpu import AttendOnChip

logger = logging.getLogger(__name__)

# Root mean square of the difference over that of the result. bfloat16 has 8 bits, and the two sides round at different
# places: 0.004 on a CPU. With a wrong mask or segment it is about 1.
LARGEST_DIFFERENCE = 0.1


@functools.lru_cache(maxsize=8)
def attention_of(devices, dtype, drops):
    """Attention as `layers.attend` has it, for these Devices; drops: whether it is for training.

    On a TPU the kernel, which is compared with the plain equations on the device before it is used, gradients included;
    where it cannot be compiled there or differs, a warning says so and the plain equations are used.
    """
    if devices.platform == 'cpu' and not drops:
        return attend_bounded
    if devices.platform != 'tpu':
        return attend
    kernel = AttendOnChip(devices.mesh)
    fault = None if devices.is_described else fault_of(kernel, devices, dtype)
    if fault is None:
        return kernel
    logger.warning('the attention kernel for TPUs is not used: %s; slower, and the same numbers', fault)
    return attend


def fault_of(kernel, devices, dtype):
    """What is wrong with a kernel on these devices, in words; None where it agrees with `layers.attend`."""
    R, H, L, K = devices.n_data, 2 * devices.n_model_shards, 64, 64
    generator = np.random.default_rng(0)
    heads = [(generator.normal(size=(R, L, H * K)) * scale).astype(dtype) for scale in (K**-0.5, 1, 1, 1)]
    segments = np.broadcast_to(1 + np.arange(L, dtype=np.int32) // 24, (R, L)).copy()
    rows = {'positions': np.broadcast_to(np.arange(L) % 24, (R, L)), 'pairs': segments.astype(np.uint32)}

    def computed(attention):
        def program(query, key, value, gradient, segments, rows):
            dropout = Dropout.of_update(rows, jnp.uint32(1), 0.1, 0.1)
            context, backward = jax.vjp(
                lambda *heads: attention(*heads, H, segments, segments, dropout), query, key, value
            )
            return context, *backward(gradient)

        program = jax.jit(program, out_shardings=devices.replicated)
        arguments = jax.tree.map(lambda array: devices.put(array, devices.by_row), (*heads, segments, rows))
        return [np.asarray(array, np.float32) for array in program(*arguments)]

    try:
        pairs = zip(computed(kernel), computed(attend), strict=True)
        difference = max(float(np.sqrt(np.square(a - b).mean() / np.square(b).mean())) for a, b in pairs)
    except Exception as error:  # a compiler's, of many classes
        return f'it cannot be compiled here ({type(error).__name__}: {str(error)[:200]})'
    return (
        None
        if difference < LARGEST_DIFFERENCE
        else f'it differs from the plain equations by {difference:.2g} of their size'
    )
