"""Training over packed rows, interruptible; and finetuning by it: the reference's optimizer, order and rate.

An update is defined by its pairs: its loss is the mean squared error over them, or what `objectives` has, however they
are cut into rows and micro-batches. P pairs of an update, R rows, C slots of a row.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from cappy.errors import InputError
from cappy.files.updates import Update
from cappy.model import objectives
from cappy.model.attention import attention_of
from cappy.model.budgets import Budget, is_out_of_memory, training_tokens
from cappy.model.config import EncoderConfig
from cappy.model.costs import compile_cost, row_cost
from cappy.model.encoder import Scorer, rounded
from cappy.model.optimizer import Optimizer, SettingsOfFlags, check_settings
from cappy.model.packing import describe_packing, fill_rows, plan_groups
from cappy.model.tokens import EncodedPairs
from cappy.model.training_state import StopRequest

logger = logging.getLogger(__name__)

LR_SCHEDULES = ('reference', 'corrected')

# Of a program with gradients: tracing, and a part of compiling (docs/benchmarks.md); later runs find it on disk.
COMPILE_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class TrainingSettings(SettingsOfFlags):
    """What decides the result of training, with the paper's values (reference, cappy_bigbench.py:113-131)."""

    learning_rate: float = 2e-5
    warmup_rate: float = 0.1  # share of the steps
    weight_decay: float = 0.0
    lr_schedule: str = 'reference'
    per_device_batch_size: int = 8  # pairs of a micro-batch, on each data-parallel device
    accumulate_grad_batches: int = 16  # micro-batches of an update
    max_length: int | None = None  # tokens; None: the scorer's
    seed: int = 11111
    objective: str = 'absolute'  # 'centred', 'listwise': see `objectives`

    def pairs_per_update(self, n_data):
        return self.per_device_batch_size * n_data * self.accumulate_grad_batches

    def n_updates(self, train_size, n_data):
        """Updates that train_size pairs fill; the rest is left out, as by the reference."""
        return train_size // self.pairs_per_update(n_data)

    def optimizer(self, train_size, n_data):
        """The Optimizer of train_size pairs.

        'reference': linear warm-up and decay over as many steps as there are micro-batches, asked by the update's
        number, so that the warm-up is accumulate_grad_batches times too long (reference, cappy_bigbench.py:152-161,
        with redco 0.4.13, deployer.py:177). 'corrected': over the updates. Both start from 0, so the first update moves
        nothing.
        """
        if self.lr_schedule == 'reference':
            n_steps = train_size // (self.per_device_batch_size * n_data)
        else:
            n_steps = self.n_updates(train_size, n_data)
        return Optimizer(self.learning_rate, int(n_steps * self.warmup_rate), n_steps, weight_decay=self.weight_decay)

    def check(self, train_size, n_data):
        """Raise InputError for settings that train nothing, or for a value out of range."""
        check_settings(self, LR_SCHEDULES, 'per_device_batch_size', 'accumulate_grad_batches', 'max_length')
        if self.objective not in objectives.OBJECTIVES:
            raise InputError(f'objective: found {self.objective!r}; choose one of {", ".join(objectives.OBJECTIVES)}')
        if self.n_updates(train_size, n_data) < 1:
            raise InputError(
                f'train_size {train_size}: less than one update of {self.pairs_per_update(n_data)} pairs '
                f'({self.per_device_batch_size} x {n_data} x {self.accumulate_grad_batches}); '
                f'raise it, or lower accumulate_grad_batches'
            )


def reference_order(n, seed):
    """The permutation [n] in which the reference trains on its examples: redco's first key, jax's old bits."""
    with jax.threefry_partitionable(False), jax.default_device(jax.local_devices(backend='cpu')[0]):
        _, key = jax.random.split(jax.random.PRNGKey(seed))
        return np.asarray(jax.random.permutation(key, n))


@functools.lru_cache(maxsize=4)
def training_programs(config, dtype, devices, rematerialise, optimizer):
    """The two programs of an update, to be compiled, and the optimizer as optax has it.

    accumulate(grads, loss, params, rows, labels, weights, key) -> grads, loss: adds the squared error of a micro-batch
    and its gradient; params: the model's, or what `encoder.rounded` makes of them; labels and weights float32 [R, C],
    weights 1 / P where a slot holds a pair; key uint32, the update's dropout.
    apply(params, opt_state, grads) -> params, opt_state, zeroed grads, norm: one step of the optimizer; norm: of the
    gradient, before any clipping.
    """
    # A CPU waits for its units and not for memory.
    recomputed = 'layers' if rematerialise else 'nothing' if devices.platform == 'cpu' else 'cheap'
    model = Scorer(config, dtype, recomputed, attention_of(devices, dtype, drops=True), devices.join)
    transformation = optimizer.transformation
    words = f'{config.prefix}.embeddings.word_embeddings'

    def accumulate(grads, loss, params, rows, labels, weights, key):
        def squared_error(word_vectors, others):
            scores = model.apply(
                {'params': others}, word_vectors, rows, key if config.has_dropout else None, method='score'
            )
            return jnp.sum(weights * jnp.square(scores - labels))

        others = {name: tree for name, tree in params.items() if name != words}
        word_vectors = params[words]['embedding'][rows['tokens']]
        error, (word_grads, other_grads) = jax.value_and_grad(squared_error, argnums=(0, 1))(word_vectors, others)
        # Row by row into the sum: a dense gradient of the table for each micro-batch would cost more than a layer.
        table = grads[words]['embedding'].at[rows['tokens']].add(word_grads)
        summed = jax.tree.map(jnp.add, {name: grads[name] for name in others}, other_grads)
        return {**summed, words: {'embedding': table}}, loss + error

    def apply(params, opt_state, grads):
        moves, opt_state = transformation.update(grads, opt_state, params)
        norm = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(grads)))
        return optax.apply_updates(params, moves), opt_state, jax.tree.map(jnp.zeros_like, grads), norm

    return accumulate, apply, transformation


@dataclasses.dataclass(frozen=True)
class DevicePrograms:
    """The programs of a training with where everything is placed and what is given up, each to be called or lowered.

    init(params) -> opt_state; zeros(params) -> a sum of no gradients; rounded(params) -> the parameters that accumulate
    takes; accumulate, apply: see `training_programs`. state_shardings: of opt_state.
    """

    init: Callable
    zeros: Callable
    rounded: Callable
    accumulate: Callable
    apply: Callable
    state_shardings: object


def device_programs(params, config, dtype, devices, rematerialise, optimizer):
    """DevicePrograms; params: a tree of arrays or of their shapes."""
    accumulate, apply, transformation = training_programs(config, dtype, devices, rematerialise, optimizer)
    shardings, replicated = devices.params_shardings(params), devices.replicated

    def like_params(tree):
        return jax.tree.structure(tree) == jax.tree.structure(params)

    state_shardings = jax.tree.map(
        lambda tree: shardings if like_params(tree) else replicated,
        jax.eval_shape(transformation.init, params),
        is_leaf=like_params,
    )
    return DevicePrograms(
        init=jax.jit(transformation.init, out_shardings=state_shardings),
        zeros=jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), out_shardings=shardings),
        rounded=functools.partial(rounded, config=config, dtype=dtype),
        accumulate=jax.jit(accumulate, donate_argnums=(0, 1), out_shardings=(shardings, replicated)),
        apply=jax.jit(
            apply, donate_argnums=(0, 1, 2), out_shardings=(shardings, state_shardings, shardings, replicated)
        ),
        state_shardings=state_shardings,
    )


@functools.lru_cache(maxsize=4)
def score_in_training(config, dtype, devices):
    """(params, rows, key) -> float32 [R, C] with an update's dropout, to be compiled.

    For an objective that needs the scores of an update before it knows their gradient.
    """
    model = Scorer(config, dtype, attend=attention_of(devices, dtype, drops=True), join=devices.join)
    return lambda params, rows, key: model.apply({'params': params}, rows, key if config.has_dropout else None)


@dataclasses.dataclass
class Trained:
    """What finetuning leaves: parameters on the devices, a row for each update, how full the packed rows were."""

    params: dict
    updates: list
    packing: dict
    n_truncated: int = 0  # different pairs that were cut at max_length
    n_made_equal: int = 0  # those that became equal to another by it


def train(
    params,
    encoded,
    pair_index,
    labels,
    group,
    *,
    config,
    devices,
    dtype,
    settings,
    tokens_per_device=None,
    gradient_checkpointing=False,
    saving=None,
    on_update=None,
    progress=None,
):
    """Finetune a scorer on examples: in `reference_order`, or with a listwise objective by `objectives.whole_groups`.

    params: on the devices; they are given up (donated). encoded: EncodedPairs; pair_index: int [train_size], the pair
    of each example; labels: float [train_size]; group: int [train_size], the instruction of each; settings:
    TrainingSettings; tokens_per_device: of a micro-batch, None: `budgets.training_tokens`; saving, on_update, progress:
    as `run_updates` takes them.
    Returns Trained. Raises InputError where the loss is not finite, naming the update.
    """
    n_data = devices.n_data
    settings.check(len(pair_index), n_data)
    n_pairs, n_updates = settings.pairs_per_update(n_data), settings.n_updates(len(pair_index), n_data)
    if settings.objective == 'listwise':
        _, unique = np.unique(pair_index, return_index=True)  # twice in a list, a pair would count twice
        order = [unique[places] for places in objectives.whole_groups(group[unique], n_updates, n_pairs, settings.seed)]
    else:
        order = reference_order(len(pair_index), settings.seed)[: n_updates * n_pairs].reshape(n_updates, n_pairs)
    if settings.objective == 'centred':
        labels = objectives.centred(labels, group)
    tokens = tokens_per_device or training_tokens(config, devices, dtype, gradient_checkpointing)
    plans, packing = _plan_updates(order, encoded, pair_index, config, devices, tokens)

    def batches_from(first):
        for examples, plan in zip(order[first:], plans[first:], strict=True):
            yield MicroBatches(plan, encoded, pair_index[examples], labels[examples], config, group[examples])

    optimizer = settings.optimizer(len(pair_index), n_data)
    of_scores = objectives.listwise if settings.objective == 'listwise' else None
    state = TrainingRun(params, config, devices, dtype, optimizer, settings.seed, gradient_checkpointing, of_scores)
    updates = run_updates(state, batches_from, n_updates, saving, on_update, progress)
    counts = encoded.counts
    return Trained(state.params, updates, packing, counts['truncated_pairs'], counts['made_equal_pairs'])


@dataclasses.dataclass
class MicroBatches:
    """The pairs of an update and their micro-batches.

    plan: list of Batch; encoded: EncodedPairs; pair_index: int [P], where in `encoded` each pair is; labels: float [P];
    group: int [P], the instruction of each, None where the objective does not ask.
    """

    plan: list
    encoded: EncodedPairs
    pair_index: np.ndarray
    labels: np.ndarray
    config: EncoderConfig
    group: np.ndarray | None = None

    def __iter__(self):
        """Yields (rows, labels, weights) of each Batch, as `training_programs` takes them."""
        for batch in self.plan:
            filled = batch.pair >= 0
            slot_labels = np.where(filled, self.labels[batch.pair], 0).astype(np.float32)
            slot_weights = (filled / len(self.pair_index)).astype(np.float32)
            yield fill_rows(batch, self.encoded, self.pair_index, self.config), slot_labels, slot_weights

    def gather(self, of_slots):
        """[P]: what arrays [R, C], one for each Batch, have for each pair."""
        gathered = np.empty(len(self.pair_index), np.float32)
        for batch, values in zip(self.plan, of_slots, strict=True):
            batch.collect(values, gathered)
        return gathered


def run_updates(run, batches_from, n_updates, saving=None, on_update=None, progress=None):
    """Make n_updates.

    run: TrainingRun. batches_from: number of an update -> an iterable of, for that update and each one after it, its
    MicroBatches. saving: Saving or None; when the process is asked to stop, the state is written before it does.
    on_update: called with (Update, params) after each. progress: words for a bar, or None.
    Returns the list of Update. Raises InputError where the loss is not finite, naming the update; KeyboardInterrupt
    when it was asked to stop.
    """
    updates = run.restore(saving) if saving else []
    n_restored, n_pairs, start = len(updates), 0, time.perf_counter()
    every = saving.every if saving else 0
    hidden = not progress or jax.process_index() != 0
    with (
        StopRequest() as stop,
        tqdm.tqdm(total=n_updates, initial=n_restored, desc=progress, unit='update', disable=hidden) as bar,
    ):
        for number, batches in zip(range(n_restored, n_updates), batches_from(n_restored), strict=False):
            update = run.update(number, batches, stop)
            if update is None:
                break
            updates.append(update)
            n_pairs += update.pairs
            _show(bar, update, n_pairs / (time.perf_counter() - start))
            if on_update is not None:
                on_update(update, run.params)
            if every and len(updates) % every == 0:
                run.save(saving, updates)
            if stop.signal is not None:
                break
        if stop.signal is not None:
            if every:
                run.save(saving, updates)
            raise KeyboardInterrupt
    return updates


def _show(bar, update, pairs_per_second):
    shown = {'loss': f'{update.loss:.4f}', 'rate': f'{update.learning_rate:.2e}', 'pairs_s': f'{pairs_per_second:.0f}'}
    bar.set_postfix(shown, refresh=False)  # else each update is a line of a log
    bar.update()


def _plan_updates(order, encoded, pair_index, config, devices, tokens_per_device):
    """The batches of each update, of shapes that are alike from update to update; and a description of them."""
    lengths = encoded.lengths[pair_index]
    plans = plan_groups(
        order,
        lengths,
        row_cost(config, devices.platform),
        compile_cost(config, devices.platform, COMPILE_SECONDS) / 3,  # with gradients, a token is three times the work
        tokens_per_device,
        devices.n_data,
    )
    return plans, describe_packing(plans, [lengths[examples] for examples in order])


class TrainingRun:
    """The state of a training on the devices: parameters, optimizer state and the sum of gradients.

    params: a tree of device arrays; they are given up (donated). of_scores: (scores, labels, group) -> (loss, its
    gradient by the scores) as `objectives.listwise` has it; None: the mean squared error on the labels.
    """

    def __init__(self, params, config, devices, dtype, optimizer, seed, rematerialise=False, of_scores=None):
        self.params, self.devices, self.seed, self._of_scores = params, devices, seed, of_scores
        self.learning_rate = optimizer.schedule
        programs = device_programs(params, config, dtype, devices, rematerialise, optimizer)
        self.opt_state, self.grads = programs.init(params), programs.zeros(params)
        self.budget = Budget(devices.n_data)
        self._zeros = programs.zeros
        self._rounded, self._accumulate, self._apply = programs.rounded, programs.accumulate, programs.apply
        self._score = jax.jit(score_in_training(config, dtype, devices), out_shardings=devices.replicated)

    def update(self, number, batches, stop):
        """Make one update from its MicroBatches; number: from 0.

        stop: StopRequest; asked to stop before the update is whole, it is given up.
        Where memory runs out, its micro-batches are cut in halves and it begins again: parameters and optimizer state
        change in its last step alone, which is not begun before all gradients are there.
        Returns Update with the loss before it, or None where it was given up. Raises InputError where the loss is not
        finite, and where less memory than for a single row, or for the optimizer's step, is free.
        """
        while True:
            batches = dataclasses.replace(batches, plan=self.budget.cut(batches.plan))
            try:
                loss = self._gradients(number, batches, stop)
                break
            except jax.errors.JaxRuntimeError as error:
                self.grads = None  # given to a program that failed
                self.budget.halve(error, batches.plan)
            self.grads = self._zeros(self.params)
        if loss is None:
            return None
        try:
            self.params, self.opt_state, self.grads, norm = self._apply(self.params, self.opt_state, self.grads)
            norm = float(norm)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"update {number}: memory ran out in the optimizer's step, which does not depend on tokens_per_device; "
                'model shards over several devices need less. The same command continues from its last checkpoint, '
                'where it writes any'
            ) from error
        update = Update(number, len(batches.pair_index), float(self.learning_rate(number)), loss, norm)
        if not np.isfinite([update.loss, update.grad_norm]).all():
            raise InputError(
                f'update {number}: the loss is {update.loss} and its gradient {update.grad_norm}; nothing was written. '
                f'Try a lower learning_rate, or compute_dtype float32'
            )
        return update

    def _gradients(self, number, batches, stop):
        """Add an update's gradients to `grads`; returns its loss when they are there, None where it was given up."""
        put, by_row, replicated = self.devices.put, self.devices.by_row, self.devices.replicated
        key = put(np.random.SeedSequence([self.seed, number]).generate_state(1)[0], replicated)
        loss = put(np.float32(0), replicated)
        params = self._rounded(self.params)
        known_loss = None
        if self._of_scores is not None:
            known_loss, batches = self._with_targets(batches, key)
        for rows, labels, weights in batches:
            if stop.signal is not None:
                return None
            rows = self.devices.put_rows(rows)
            labels, weights = put(labels, by_row), put(weights, by_row)
            self.grads, loss = self._accumulate(self.grads, loss, params, rows, labels, weights, key)
        loss = float(loss)
        return loss if known_loss is None else known_loss

    def _with_targets(self, batches, key):
        """(loss of an update, its MicroBatches with labels whose squared error has the gradient of that loss)."""
        scores = batches.gather([self._score(self.params, self.devices.put_rows(rows), key) for rows, *_ in batches])
        loss, gradient = self._of_scores(scores, batches.labels, batches.group)
        return loss, dataclasses.replace(batches, labels=objectives.targets(scores, gradient))

    def save(self, saving, updates):
        """Write the state and the updates made."""
        saving.checkpoint.write({'params': self.params, 'opt_state': self.opt_state}, saving.fingerprint, updates)

    def restore(self, saving):
        """Take over the state of a checkpoint, where there is one; returns the updates made."""
        if not saving.checkpoint.exists():
            return []
        state = {'params': self.params, 'opt_state': self.opt_state}
        state, updates = saving.checkpoint.read(state, saving.fingerprint)
        self.params, self.opt_state = state['params'], state['opt_state']
        logger.warning('continuing after update %d of %s', len(updates) - 1, saving.checkpoint.path)
        return updates
