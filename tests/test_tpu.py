"""The attention kernel for TPUs against the plain equations, its steps run as plain operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cappy.model.attention import fault_of
from cappy.model.devices import get_devices
from cappy.model.layers import Dropout, attend
from cappy.model.tpu import LONGEST_ROW, AttendOnChip


def inputs(L, dtype=jnp.float32, R=3, H=4, K=16, rate=0.1):
    """Three rows: one pair and padding; several pairs; full. And a gradient of what attention gives."""
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=(R, H, L, K)) for _ in range(4)]
    query, key, value, gradient = (jnp.asarray(array, dtype) for array in arrays)
    tokens = np.arange(L)
    segments = np.stack([tokens < L // 3, np.where(tokens < L - 2, 1 + tokens // 7, 0), np.ones(L)]).astype(np.int32)
    rows = {'positions': jnp.asarray(tokens % 7 + np.zeros((R, 1), int)), 'pairs': jnp.asarray(segments, jnp.uint32)}
    dropout = Dropout.of_update(rows, None if rate is None else jnp.uint32(5), 0.1, rate or 0.0).at(6)
    return (query, key, value), (jnp.asarray(segments), jnp.asarray(segments), dropout), gradient


def with_gradients(compute, heads, others, gradient):
    """What attention gives, and the gradients of query, key and value."""
    context, backward = jax.vjp(lambda *heads: compute(*heads, *others), *heads)
    return context, *backward(gradient)


@pytest.mark.parametrize('L', [24, 200, 320])  # all four heads in a step, two, one
@pytest.mark.parametrize('rate', [None, 0.0, 0.1])
def test_the_kernel_and_its_gradients_equal_the_plain_equations(L, rate):
    kernel = AttendOnChip(get_devices().mesh, interpret=True)
    heads, others, gradient = inputs(L, rate=rate)
    expected = with_gradients(attend, heads, others, gradient)
    found = jax.jit(lambda heads: with_gradients(kernel, heads, others, gradient))(heads)
    for one, other in zip(found, expected, strict=True):
        # Sums of up to 320 float32 in another order.
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)
        assert np.abs(other).max() > 0.5


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
    (query, key, value), (segments, _, dropout), _ = inputs(LONGEST_ROW + 8 if n_asking == 5 else 24)
    if n_asking == 1:
        places = jnp.zeros((3, 1), jnp.int32)
        query, asking, dropout = query[:, :, :1], segments[:, :1], dropout.read_at(places)
    else:
        asking = segments
    arguments = query, key, value, asking, segments, dropout
    np.testing.assert_array_equal(kernel(*arguments), attend(*arguments))


def test_a_kernel_that_is_wrong_on_a_device_is_found_before_it_is_used():
    def without_segments(query, key, value, query_segments, key_segments, dropout):
        return attend(query, key, value, query_segments * 0, key_segments * 0, dropout)

    def uncompilable(*arguments):
        raise NotImplementedError('no such operation')

    devices = get_devices()
    assert fault_of(AttendOnChip(devices.mesh, interpret=True), devices, jnp.bfloat16) is None
    assert 'it differs from the plain equations by' in fault_of(without_segments, devices, jnp.bfloat16)
    assert 'cannot be compiled here (NotImplementedError: no such' in fault_of(uncompilable, devices, jnp.bfloat16)
