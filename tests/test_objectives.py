"""Objectives against plain formulas, and a training by them against the same made pair by pair."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from cappy.errors import InputError
from cappy.model import objectives
from cappy.model.encoder import Scorer
from cappy.model.packing import fill_rows, plan_batches
from cappy.model.tensors import read_params, tensors_from_params
from cappy.model.tokens import encode_pairs
from cappy.model.training import TrainingSettings
from cappy.scorer import Cappy

SETTINGS = TrainingSettings(
    learning_rate=1e-3,
    warmup_rate=0.0,
    lr_schedule='corrected',
    per_device_batch_size=4,
    accumulate_grad_batches=2,
    max_length=24,
    seed=7,
    objective='listwise',
)
GROUP = np.array([3, 3, 5, 3, 9, 5, 5, 5])
LABELS = np.array([0.0, 1.0, 0.5, 0.25, 1.0, 0.5, 0.0, 0.9])
SCORES = np.array([0.3, 0.2, -0.4, 0.9, 2.0, 0.1, 0.2, 0.3])


def plain_listwise(scores, labels, group):
    """Group by group, in the words of the docstring."""
    loss = 0.0
    for name in sorted(set(group.tolist())):
        own = np.flatnonzero(group == name)
        wanted = jax.nn.softmax(labels[own] / objectives.TEMPERATURE)
        found = jax.nn.log_softmax(scores[own] / objectives.TEMPERATURE)
        loss += -objectives.TEMPERATURE * jnp.sum(wanted * found) * len(own) / len(group)
    return loss


def test_centred_labels_have_the_mean_of_a_half_in_every_group():
    found = objectives.centred(LABELS, GROUP)
    for name in set(GROUP.tolist()):
        own = name == GROUP
        np.testing.assert_allclose(found[own], LABELS[own] - LABELS[own].mean() + 0.5, rtol=0, atol=1e-15)


def test_the_listwise_loss_and_its_gradient_are_those_of_the_formula():
    with jax.enable_x64(True):
        expected, slope = jax.value_and_grad(plain_listwise)(jnp.array(SCORES), jnp.array(LABELS), GROUP)
    loss, gradient = objectives.listwise(SCORES, LABELS, GROUP)
    assert loss == pytest.approx(float(expected), rel=1e-9)
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=1e-9)
    assert gradient[GROUP == 9] == 0 and np.abs(gradient).max() > 0.01


def test_a_shift_of_all_scores_of_a_group_changes_nothing_and_large_ones_do_not_overflow():
    loss, gradient = objectives.listwise(SCORES, LABELS, GROUP)
    shifted = objectives.listwise(SCORES + np.where(GROUP == 5, 1e4, -1e4), LABELS, GROUP)
    assert shifted[0] == pytest.approx(loss, rel=1e-9)
    np.testing.assert_allclose(shifted[1], gradient, rtol=0, atol=1e-9)


def test_the_squared_error_on_the_targets_has_the_gradient():
    _, gradient = objectives.listwise(SCORES, LABELS, GROUP)
    targets = objectives.targets(SCORES, gradient)
    np.testing.assert_allclose(2 / len(SCORES) * (SCORES - targets), gradient, rtol=1e-12)


def test_updates_take_whole_groups_and_each_group_before_any_twice():
    group = np.repeat(np.arange(10), 3)[np.random.default_rng(0).permutation(30)]
    updates = objectives.whole_groups(group, 8, 7, seed=1)
    assert [len(pairs) for pairs in updates] == [6, 9, 6, 6, 9, 6, 6, 9]  # to half a group, 7 an update
    for pairs in updates:
        assert len(set(pairs.tolist())) == len(pairs)
        assert all((group == name).sum() == (group[pairs] == name).sum() for name in set(group[pairs].tolist()))
    order = [name for pairs in updates for name in dict.fromkeys(group[pairs].tolist())]
    assert sorted(order[:10]) == list(range(10)) and len(set(order[10:])) == len(order) - 10
    assert order[: len(order) - 10] != order[10:]
    again, other = (objectives.whole_groups(group, 8, 7, seed) for seed in (1, 2))
    assert [pairs.tolist() for pairs in again] == [pairs.tolist() for pairs in updates]
    assert [pairs.tolist() for pairs in other] != [pairs.tolist() for pairs in updates]


def test_groups_of_one_pair_are_left_out_unless_there_are_no_others():
    updates = objectives.whole_groups(np.array([0, 1, 1, 2]), 5, 2, seed=0)
    assert [sorted(pairs.tolist()) for pairs in updates] == [[1, 2]] * 5
    assert sorted(np.concatenate(objectives.whole_groups(np.array([0, 1, 2]), 1, 3, seed=0))) == [0, 1, 2]


@pytest.mark.parametrize(('objective', 'label'), [('absolute', 0), ('centred', 0.5), ('listwise', 0.4)])
def test_a_fresh_head_starts_at_the_mean_label_and_a_trained_one_where_it_is(tiny_directories, objective, label):
    scorer = Cappy.from_pretrained(tiny_directories['bert'])
    examples = [('i', 'a', 0.0), ('i', 'b', 0.5), ('j', 'c', 0.3), ('j', 'd', 0.8)]
    settings = TrainingSettings(
        objective=objective, per_device_batch_size=4, accumulate_grad_batches=1, learning_rate=1e-12, max_length=16
    )
    name = scorer.config.head_names[1]
    for bias, expected in ((0.0, label), (0.25, 0.25)):
        head = scorer.params[name]
        scorer.params = {**scorer.params, name: {**head, 'bias': jnp.full_like(head['bias'], bias)}}
        scorer.adapt(examples, settings, progress=None)
        assert np.asarray(scorer.params[name]['bias']) == pytest.approx(expected)


@pytest.fixture(scope='module')
def examples(texts):
    """Twelve instructions of four responses each, with labels; some pairs are twice in the list."""
    pairs, labels = texts(48, seed=5), np.random.default_rng(3).uniform(size=48).round(3)
    found = [(pairs[i - i % 4][0], pairs[i][1], float(labels[i])) for i in range(48)]
    assert len({pair[:2] for pair in found}) == 48
    return [*found, *found[:8]]


@pytest.fixture(scope='module')
def adapt(tiny_directories, examples):
    """(name, settings, ...) -> Trained and the scorer."""

    def run(name, settings=SETTINGS, examples=examples, **options):
        scorer = Cappy.from_pretrained(tiny_directories[name], max_length=24)
        return scorer.adapt(examples, settings, **{'tokens_per_device': 4096, 'progress': None, **options}), scorer

    return run


def test_the_first_update_is_that_of_the_plain_loss(adapt, examples, tiny_directories):
    """The gradient is taken in two passes over micro-batches; here in one, through the formula."""
    seen = []
    trained, scorer = adapt(
        'roberta', on_update=lambda row, params: seen.append(tensors_from_params(jax.device_get(params)))
    )
    instructions, responses, labels = zip(*examples[:48], strict=True)
    group = np.unique(instructions, return_inverse=True)[1]
    first_seen = np.array([instructions.index(text) for text in instructions])
    numbers = np.unique(first_seen, return_inverse=True)[1]  # as adapt numbers them, by first appearance
    chosen = objectives.whole_groups(numbers, 1, 8, seed=7)[0]
    encoded = encode_pairs(scorer.tokenizer, instructions, responses, 24)
    (batch,) = plan_batches(encoded.lengths[chosen], (512,), lambda length: np.asarray(length, float), 4096)
    rows = fill_rows(batch, encoded, chosen, scorer.config)
    params = read_params(tiny_directories['roberta'], scorer.config, 0)
    filled = batch.pair >= 0

    def loss_of(params):
        scores = Scorer(scorer.config).apply({'params': params}, rows)[filled]
        return plain_listwise(scores, np.array(labels)[chosen][batch.pair[filled]], group[chosen][batch.pair[filled]])

    loss, grads = jax.value_and_grad(loss_of)(params)
    assert trained.updates[0].loss == pytest.approx(float(loss), rel=1e-5)
    assert trained.updates[0].grad_norm == pytest.approx(
        float(np.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(grads)))), rel=1e-4
    )
    optimizer = SETTINGS.optimizer(len(examples), 1).transformation
    moves, _ = optimizer.update(grads, optimizer.init(params), params)
    expected = tensors_from_params(jax.device_get(optax.apply_updates(params, moves)))
    start = load_file(tiny_directories['roberta'] / 'model.safetensors')
    grads = tensors_from_params(jax.device_get(grads))
    for name, tensor in seen[0].items():
        sure = np.abs(grads[name]) > 1e-5  # where the gradient is rounding alone, so is Adam's step
        np.testing.assert_allclose(tensor[sure], expected[name][sure], rtol=0, atol=2e-5, err_msg=name)
    assert any((seen[0][name] != start[name]).any() for name in start)


@pytest.mark.parametrize('objective', objectives.OBJECTIVES)
def test_the_size_of_micro_batches_changes_nothing(adapt, objective):
    settings = dataclasses.replace(SETTINGS, objective=objective)
    (at_once, _), (in_parts, scorer) = (
        adapt('roberta-dropout', settings, tokens_per_device=tokens) for tokens in (4096, 64)
    )
    rows = [[(row.pairs, row.loss, row.grad_norm) for row in trained.updates] for trained in (at_once, in_parts)]
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-4, atol=1e-5)
    assert len(rows[0]) == 7 and np.isfinite(scorer.score([('still', 'whole')])).all()


def test_centred_is_absolute_on_centred_labels(adapt, examples):
    """Labels of 0.4 to 0.6, which stay from 0 to 1 when they are centred."""
    examples = [(*pair, 0.4 + 0.2 * label) for *pair, label in examples[:48]]
    group = [examples.index(next(e for e in examples if e[0] == example[0])) for example in examples]
    labels = objectives.centred([example[2] for example in examples], group)
    moved = [(*example[:2], float(label)) for example, label in zip(examples, labels, strict=True)]
    centred, _ = adapt('roberta', dataclasses.replace(SETTINGS, objective='centred'), examples)
    absolute, _ = adapt('roberta', dataclasses.replace(SETTINGS, objective='absolute'), moved)
    plain, _ = adapt('roberta', dataclasses.replace(SETTINGS, objective='absolute'), examples)
    losses = [[row.loss for row in trained.updates] for trained in (centred, absolute, plain)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert np.abs(np.subtract(losses[0], losses[2])).max() > 1e-4


def test_a_listwise_training_orders_the_candidates(adapt, examples):
    settings = dataclasses.replace(SETTINGS, learning_rate=3e-3)
    _, scorer = adapt('roberta', settings, examples[:48] * 10)
    scores = scorer.score([example[:2] for example in examples[:48]]).reshape(12, 4)
    labels = np.array([example[2] for example in examples[:48]]).reshape(12, 4)
    assert np.mean(scores.argmax(axis=1) == labels.argmax(axis=1)) > 0.7


def test_an_unknown_objective_is_refused(adapt):
    with pytest.raises(InputError, match="^objective: found 'pairs'; choose one of absolute, centred, listwise"):
        adapt('roberta', dataclasses.replace(SETTINGS, objective='pairs'))
