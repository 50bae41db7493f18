"""The attention kernel for TPUs against the plain equations, its steps run as plain operations.

As a script: on several devices, as a test starts it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cappy.model.attention import fault_of
from cappy.model.devices import get_devices
from cappy.model.layers import Dropout, attend
from cappy.model.tpu import LONGEST_ROW, AttendOnChip

H = 4  # heads


def inputs(L, dtype=jnp.float32, K=64, rate=0.1, R=3):
    """Rows of one pair and padding, of several pairs, full ones. And a gradient of what attention gives.

    Logits and their gradients have a spread of 4, whatever K is.
    """
    generator = np.random.default_rng(0)
    spread = 4 * K**-0.5
    arrays = [generator.normal(size=(R, L, H * K)) * scale for scale in (spread, 1, 1, spread)]
    query, key, value, gradient = (jnp.asarray(array, dtype) for array in arrays)
    tokens = np.arange(L)
    segments = [tokens < L // 3, np.where(tokens < L - 2, 1 + tokens // 7, 0), *np.ones((R - 2, L))]
    segments = np.stack(segments).astype(np.int32)
    rows = {'positions': jnp.asarray(tokens % 7 + np.zeros((R, 1), int)), 'pairs': jnp.asarray(segments, jnp.uint32)}
    dropout = Dropout.of_update(rows, None if rate is None else jnp.uint32(5), 0.1, rate or 0.0).at(6)
    return (query, key, value), (H, jnp.asarray(segments), jnp.asarray(segments), dropout), gradient


def with_gradients(compute, heads, others, gradient):
    """What attention gives, and the gradients of query, key and value."""
    context, backward = jax.vjp(lambda *heads: compute(*heads, *others), *heads)
    return context, *backward(gradient)


# Heads of 16 and 48 all together, of 64 by twos, of 128 one by one; in rows of 24 all four heads in a step.
@pytest.mark.parametrize(
    'L, K', [(24, 16), (200, 16), (320, 16), (24, 64), (200, 64), (320, 64), (320, 48), (24, 128), (200, 128)]
)
@pytest.mark.parametrize('rate', [None, pytest.param(0.0, marks=pytest.mark.slow), 0.1])
def test_the_kernel_and_its_gradients_equal_the_plain_equations(L, K, rate):
    heads, others, gradient = inputs(L, K=K, rate=rate)
    found, expected = on_both_sides(get_devices(), heads, others, gradient)
    for one, other in zip(found, expected, strict=True):
        # Sums of up to 320 float32 in another order.
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)
        assert np.abs(other).max() > 0.5


def on_both_sides(devices, heads, others, gradient):
    """What the kernel, and what the plain equations give, with their gradients."""
    kernel = AttendOnChip(devices.mesh, interpret=True)
    found = jax.jit(lambda heads: with_gradients(kernel, heads, others, gradient))(heads)
    return found, with_gradients(attend, heads, others, gradient)


def test_the_kernel_on_two_devices_with_two_shards_each_equals_the_plain_equations(run_python):
    process = run_python(__file__, n_devices=4)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    differences = [float(word) for word in output.split()]
    assert len(differences) == 4 and max(differences) < 2e-5


@pytest.mark.slow
def test_the_kernel_in_bfloat16_is_as_near_to_float32_as_the_plain_equations():
    kernel = AttendOnChip(get_devices().mesh, interpret=True)
    heads, others, gradient = inputs(96, jnp.bfloat16)
    heads32, gradient32 = jax.tree.map(lambda x: x.astype(jnp.float32), (heads, gradient))
    exact = with_gradients(attend, heads32, others, gradient32)
    plain, found = (with_gradients(compute, heads, others, gradient) for compute in (attend, kernel))

    def distances(results):
        return [
            np.sqrt(np.mean(np.square(np.asarray(one, np.float32) - np.asarray(other, np.float32))))
            for one, other in zip(results, exact, strict=True)
        ]

    for ours, theirs in zip(distances(found), distances(plain), strict=True):
        assert 0 < ours < 1.1 * theirs


@pytest.mark.parametrize('n_asking', [1, 5])
def test_tokens_that_are_read_alone_and_long_rows_are_left_to_the_plain_equations(n_asking):
    kernel = AttendOnChip(get_devices().mesh, interpret=True)
    (query, key, value), (_, segments, _, dropout), _ = inputs(LONGEST_ROW + 8 if n_asking == 5 else 24)
    if n_asking == 1:
        places = jnp.zeros((3, 1), jnp.int32)
        query, asking, dropout = query[:, :1], segments[:, :1], dropout.read_at(places)
    else:
        asking = segments
    arguments = query, key, value, H, asking, segments, dropout
    np.testing.assert_array_equal(kernel(*arguments), attend(*arguments))


def test_a_kernel_that_is_wrong_on_a_device_is_found_before_it_is_used():
    def without_segments(query, key, value, n_heads, query_segments, key_segments, dropout):
        return attend(query, key, value, n_heads, query_segments * 0, key_segments * 0, dropout)

    def uncompilable(*arguments):
        raise NotImplementedError('no such operation')

    devices = get_devices()
    assert fault_of(AttendOnChip(devices.mesh, interpret=True), devices, jnp.bfloat16) is None
    assert 'it differs from the plain equations by' in fault_of(without_segments, devices, jnp.bfloat16)
    assert 'cannot be compiled here (NotImplementedError: no such' in fault_of(uncompilable, devices, jnp.bfloat16)


if __name__ == '__main__':
    for pair in zip(*on_both_sides(get_devices(n_model_shards=2), *inputs(40, R=4)), strict=True):
        print(np.abs(np.subtract(*map(np.asarray, pair))).max())
