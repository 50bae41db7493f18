import math

import jax
import numpy as np
import optax
import pytest

from cappy.model.optimizer import Optimizer

PARAMS = {'dense': {'kernel': np.float32([[1.0, -2.0], [0.5, 3.0]]), 'bias': np.float32([0.5, -1.0])}}


def test_rates_equal_their_formulas():
    linear = Optimizer(0.1, 2, 6)
    assert [float(linear.schedule(k)) for k in range(7)] == pytest.approx([0, 0.05, 0.1, 0.075, 0.05, 0.025, 0])
    cosine = Optimizer(0.1, 2, 6, decay='cosine')
    expected = [0, 0.05, *(0.05 * (1 + math.cos(math.pi * k / 4)) for k in range(5))]
    assert [float(cosine.schedule(k)) for k in range(7)] == pytest.approx(expected, abs=1e-8)


def steps(optimizer, gradients):
    """Parameters after each step."""
    transformation = optimizer.transformation
    params, state = PARAMS, transformation.init(PARAMS)
    after = []
    for gradient in gradients:
        moves, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, moves)
        after.append(jax.tree.map(np.asarray, params))
    return after


@pytest.mark.parametrize('decay_vectors', [False, True])
def test_a_step_is_adamw_on_the_clipped_gradient_and_spares_vectors_where_asked(decay_vectors):
    generator = np.random.default_rng(0)
    gradients = [jax.tree.map(lambda leaf: np.float32(generator.normal(0, 3, leaf.shape)), PARAMS) for _ in range(3)]
    optimizer = Optimizer(0.1, 0, 1000, weight_decay=0.3, decay_vectors=decay_vectors, clip_norm=1.0)
    by_hand = jax.tree.map(np.array, PARAMS)
    first = jax.tree.map(np.zeros_like, PARAMS)
    second = jax.tree.map(np.zeros_like, PARAMS)
    for number, (gradient, params) in enumerate(zip(gradients, steps(optimizer, gradients), strict=True)):
        norm = math.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
        assert norm > 1
        for name, leaf in by_hand['dense'].items():
            g = gradient['dense'][name] / norm
            first['dense'][name] = 0.9 * first['dense'][name] + 0.1 * g
            second['dense'][name] = 0.999 * second['dense'][name] + 0.001 * g**2
            move = first['dense'][name] / (1 - 0.9 ** (number + 1))
            move /= np.sqrt(second['dense'][name] / (1 - 0.999 ** (number + 1))) + 1e-8
            if name == 'kernel' or decay_vectors:
                move = move + 0.3 * leaf
            by_hand['dense'][name] = leaf - 0.1 * (1 - number / 1000) * move
        for name in by_hand['dense']:
            np.testing.assert_allclose(params['dense'][name], by_hand['dense'][name], rtol=1e-5)


def test_a_gradient_within_the_norm_is_not_clipped():
    gradient = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), PARAMS)
    [clipped], [free] = (steps(Optimizer(0.1, 0, 10, clip_norm=norm), [gradient]) for norm in (1.0, None))
    # Rounding alone, where a clipped gradient would be another by a factor.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), clipped, free)
