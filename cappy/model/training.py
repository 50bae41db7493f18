"""Training over packed rows, interruptible; and finetuning by it: the reference's optimizer, order and rate.

An update is defined by its pairs: its loss is the mean squared error over them, however they are cut into rows and
micro-batches. P pairs of an update, R rows, C slots of a row.
"""

import dataclasses
import functools
import logging
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from cappy.errors import InputError
from cappy.files.updates import Update
from cappy.model.costs import compile_cost, row_cost
from cappy.model.encoder import Scorer
from cappy.model.optimizer import Optimizer
from cappy.model.packing import describe_packing, fill_rows, plan_groups

logger = logging.getLogger(__name__)

LR_SCHEDULES = ('reference', 'corrected')

# Tokens of a micro-batch on each device. CPU: what stays in cache (docs/benchmarks.md). Elsewhere: RoBERTa-large in
# bfloat16 within 16 GB, by the compiler's own account of memory (docs/benchmarks.md).
TOKENS_PER_DEVICE = {'cpu': 768, 'gpu': 2048, 'tpu': 2048}

# Of a program with gradients: tracing, and a part of compiling (docs/benchmarks.md); later runs find it on disk.
COMPILE_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """What decides the result of training, with the paper's values (reference, cappy_bigbench.py:113-131)."""

    learning_rate: float = 2e-5
    warmup_rate: float = 0.1  # share of the steps
    weight_decay: float = 0.0
    lr_schedule: str = 'reference'
    per_device_batch_size: int = 8  # pairs of a micro-batch, on each data-parallel device
    accumulate_grad_batches: int = 16  # micro-batches of an update
    max_length: int = 512  # tokens
    seed: int = 11111

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
        """Raise InputError for settings that train nothing."""
        if self.lr_schedule not in LR_SCHEDULES:
            raise InputError(f'--lr_schedule: found {self.lr_schedule!r}; choose one of {", ".join(LR_SCHEDULES)}')
        for name in ('per_device_batch_size', 'accumulate_grad_batches', 'max_length'):
            if getattr(self, name) < 1:
                raise InputError(f'--{name}: found {getattr(self, name)}; give 1 or more')
        if not 0 <= self.warmup_rate <= 1:
            raise InputError(f'--warmup_rate: found {self.warmup_rate}; give a share from 0 to 1')
        if not self.learning_rate > 0:
            raise InputError(f'--learning_rate: found {self.learning_rate}; give more than 0')
        if self.seed < 0:
            raise InputError(f'--seed: found {self.seed}; give 0 or more')
        if not self.weight_decay >= 0:
            raise InputError(f'--weight_decay: found {self.weight_decay}; give 0 or more')
        if self.n_updates(train_size, n_data) < 1:
            raise InputError(
                f'--train_size {train_size}: less than one update of {self.pairs_per_update(n_data)} pairs '
                f'({self.per_device_batch_size} x {n_data} x {self.accumulate_grad_batches}); '
                f'raise it, or lower --accumulate_grad_batches'
            )


def reference_order(n, seed):
    """The permutation [n] in which the reference trains on its examples: redco's first key, jax's old bits."""
    with jax.threefry_partitionable(False), jax.default_device(jax.local_devices(backend='cpu')[0]):
        _, key = jax.random.split(jax.random.PRNGKey(seed))
        return np.asarray(jax.random.permutation(key, n))


def split_words(params, prefix):
    """The tree of parameters -> (word embedding table [V, D], the tree without it)."""
    encoder = dict(params[prefix])
    words = encoder.pop('embeddings.word_embeddings')
    return words['embedding'], {**params, prefix: encoder}


def join_words(table, rest, prefix):
    """The inverse of `split_words`."""
    return {**rest, prefix: {**rest[prefix], 'embeddings.word_embeddings': {'embedding': table}}}


@functools.lru_cache(maxsize=4)
def training_programs(config, dtype, devices, rematerialise, optimizer):
    """Two programs, to be compiled.

    accumulate(grads, loss, params, rows, labels, weights, key) -> grads, loss: adds a micro-batch; labels and weights
    float32 [R, C], weights 1 / P where a slot holds a pair; key uint32, the update's dropout.
    apply(params, opt_state, grads) -> params, opt_state, zeroed grads, norm: one step of the Optimizer; norm: of the
    gradient, before any clipping. Also returns optax's form of the optimizer.
    """
    model = Scorer(config, dtype, rematerialise)
    has_dropout = max(config.hidden_dropout_prob, config.attention_probs_dropout_prob, config.classifier_dropout) > 0
    transformation = optimizer.transformation

    def squared_error(rest, vectors, rows, labels, weights, key):
        scores = model.apply({'params': rest}, vectors, rows, key if has_dropout else None, method='score')
        return jnp.sum(weights * jnp.square(scores - labels))

    def accumulate(grads, loss, params, rows, labels, weights, key):
        table, rest = split_words(params, config.prefix)
        vectors = table[rows['tokens']]
        more, (rest_grads, vector_grads) = jax.value_and_grad(squared_error, argnums=(0, 1))(
            rest, vectors, rows, labels, weights, key
        )
        table_sum, rest_sum = split_words(grads, config.prefix)
        # Row by row into the sum: a dense gradient of the table for each micro-batch would cost more than a layer.
        table_sum = table_sum.at[rows['tokens']].add(vector_grads)
        return join_words(table_sum, jax.tree.map(jnp.add, rest_sum, rest_grads), config.prefix), loss + more

    def apply(params, opt_state, grads):
        moves, opt_state = transformation.update(grads, opt_state, params)
        norm = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(grads)))
        return optax.apply_updates(params, moves), opt_state, jax.tree.map(jnp.zeros_like, grads), norm

    return accumulate, apply, transformation


class StopRequest:
    """Ctrl-C and SIGTERM noted and not obeyed at once, so that a checkpoint can be written first; a second one is."""

    def __enter__(self):
        self.signal = None
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)


@dataclasses.dataclass
class Trained:
    """What training leaves: parameters on the devices, a row for each update, and how full the rows were."""

    params: dict
    updates: list
    packing: dict


def train(
    params,
    encoded,
    which,
    labels,
    *,
    config,
    devices,
    dtype,
    settings,
    tokens_per_device=None,
    progress=True,
    **options,
):
    """Finetune a scorer on pairs in order.

    params: on the devices; they are given up (donated). encoded: EncodedPairs; which: int [train_size], the pair of
    each example; labels: float [train_size]. Examples are taken in `reference_order`. options: gradient_checkpointing,
    checkpoint, checkpoint_every, fingerprint, on_update, as `run_updates` takes them.
    Returns Trained. Raises InputError where the loss is not finite, naming the update.
    """
    n_data = devices.n_data
    settings.check(len(which), n_data)
    n_pairs, n_updates = settings.pairs_per_update(n_data), settings.n_updates(len(which), n_data)
    order = reference_order(len(which), settings.seed)[: n_updates * n_pairs].reshape(n_updates, n_pairs)
    plans, packing = _plan_updates(order, encoded, which, config, devices, tokens_per_device)

    def feed(first):
        for pairs, plan in zip(order[first:], plans[first:], strict=True):
            yield micro_batches(plan, encoded, which[pairs], labels[pairs], config)

    params, updates = run_updates(
        params,
        feed,
        n_updates,
        n_pairs,
        config=config,
        devices=devices,
        dtype=dtype,
        optimizer=settings.optimizer(len(which), n_data),
        seed=settings.seed,
        progress='adapting' if progress else None,
        **options,
    )
    return Trained(params, updates, packing)


def micro_batches(plan, encoded, which, labels, config):
    """Yields (rows, labels, weights) of each Batch of an update's plan, as `training_programs` takes them.

    which: int [P], where in `encoded` each pair of the update lies; labels: float [P].
    """
    for batch in plan:
        yield fill_rows(batch, encoded, which, config), *_targets(batch, labels, len(which))


def run_updates(
    params,
    feed,
    n_updates,
    n_pairs,
    *,
    config,
    devices,
    dtype,
    optimizer,
    seed,
    gradient_checkpointing=False,
    checkpoint=None,
    checkpoint_every=0,
    fingerprint='',
    on_update=None,
    progress=None,
):
    """Make n_updates of n_pairs each.

    params: on the devices; they are given up (donated). feed: number of an update -> an iterable of, for that update
    and each one after it, the micro-batches as `micro_batches` gives them. optimizer: Optimizer; seed: of dropout.
    checkpoint: a checkpointing.Checkpoint or None; with checkpoint_every N it is written after each N updates and, when
    the process is asked to stop, before it does. fingerprint: what else must be the same for one to be continued.
    on_update: called with (Update, params) after each, e.g. to evaluate. progress: words for a progress bar, or None.
    Returns (params, list of results.Update). Raises InputError where the loss is not finite, naming the update.
    """
    run = _Run(config, dtype, devices, gradient_checkpointing, optimizer, seed, params)
    rate = optimizer.schedule
    updates = run.restore(checkpoint, fingerprint)
    shown = progress is not None and jax.process_index() == 0
    with (
        StopRequest() as stop,
        tqdm.tqdm(total=n_updates, initial=len(updates), desc=progress, unit='update', disable=not shown) as bar,
    ):
        n_saved, began = len(updates), time.perf_counter()
        for number, batches in zip(range(len(updates), n_updates), feed(len(updates)), strict=False):
            measured = run.update(number, batches, stop)
            if measured is None:
                break
            row = Update(number, n_pairs, float(rate(number)), *measured)
            if not np.isfinite(row.loss) or not np.isfinite(row.grad_norm):
                raise InputError(
                    f'update {number}: the loss is {row.loss} and its gradient {row.grad_norm}; nothing was written. '
                    f'Try a lower --learning_rate, or --compute_dtype float32'
                )
            updates.append(row)
            pairs_per_second = (len(updates) - n_saved) * n_pairs / (time.perf_counter() - began)
            told = {'loss': f'{row.loss:.4f}', 'rate': f'{row.learning_rate:.2e}', 'pairs_s': f'{pairs_per_second:.0f}'}
            bar.set_postfix(told, refresh=False)  # else each update is a line of a log
            bar.update()
            if on_update is not None:
                on_update(row, run.params)
            if checkpoint_every and len(updates) % checkpoint_every == 0:
                run.save(checkpoint, fingerprint, updates)
            if stop.signal is not None:
                break
        if stop.signal is not None:
            if checkpoint_every:
                run.save(checkpoint, fingerprint, updates)
            raise KeyboardInterrupt
    return run.params, updates


def _plan_updates(order, encoded, which, config, devices, tokens_per_device):
    """The batches of each update, of shapes that are alike from update to update; and a description of them."""
    tokens = tokens_per_device or TOKENS_PER_DEVICE.get(devices.platform, 2048)
    lengths = encoded.lengths[which]
    plans = plan_groups(
        order,
        lengths,
        row_cost(config, devices.platform),
        compile_cost(config, devices.platform, COMPILE_SECONDS) / 3,  # with gradients, a token is three times the work
        tokens,
        devices.n_data,
    )
    return plans, describe_packing(plans, [lengths[pairs] for pairs in order])


def _targets(batch, labels, n_pairs):
    """float32 [R, C]: label of each slot, and 1 / P where it holds a pair."""
    filled = batch.pair >= 0
    return (
        np.where(filled, labels[batch.pair], 0).astype(np.float32),
        (filled / n_pairs).astype(np.float32),
    )


class _Run:
    """The state of training on the devices: parameters, optimizer state and the sum of gradients."""

    def __init__(self, config, dtype, devices, rematerialise, optimizer, seed, params):
        self.devices, self.seed = devices, seed
        accumulate, apply, transformation = training_programs(config, dtype, devices, rematerialise, optimizer)
        lay = devices.params_shardings(params)
        self.params = params
        opt_state_shape = jax.eval_shape(transformation.init, params)
        params_structure = jax.tree.structure(params)
        state_lay = jax.tree.map(
            lambda node: lay if jax.tree.structure(node) == params_structure else devices.replicated,
            opt_state_shape,
            is_leaf=lambda node: jax.tree.structure(node) == params_structure,
        )
        whole = devices.replicated
        self.opt_state = jax.jit(transformation.init, out_shardings=state_lay)(params)
        self.grads = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), out_shardings=lay)(params)
        self._accumulate = jax.jit(accumulate, donate_argnums=(0, 1), out_shardings=(lay, whole))
        self._apply = jax.jit(apply, donate_argnums=(0, 1, 2), out_shardings=(lay, state_lay, lay, whole))

    def update(self, number, batches, stop):
        """One update -> (loss before it, norm of its gradient); None where a stop was asked for in its midst."""
        key = np.random.SeedSequence([self.seed, number]).generate_state(1)[0]
        put, whole = self.devices.put, self.devices.replicated
        loss, key = put(np.float32(0), whole), put(key, whole)
        for rows, labels, weights in batches:
            if stop.signal is not None:
                return None
            by_row = self.devices.by_row
            self.grads, loss = self._accumulate(
                self.grads,
                loss,
                self.params,
                self.devices.put_rows(rows),
                put(labels, by_row),
                put(weights, by_row),
                key,
            )
        self.params, self.opt_state, self.grads, norm = self._apply(self.params, self.opt_state, self.grads)
        return float(loss), float(norm)

    def save(self, checkpoint, fingerprint, updates):
        checkpoint.write({'params': self.params, 'opt_state': self.opt_state}, fingerprint, updates)

    def restore(self, checkpoint, fingerprint):
        """Take over a checkpoint's state, if there is one; returns its updates."""
        if checkpoint is None or not checkpoint.exists():
            return []
        state, updates = checkpoint.read({'params': self.params, 'opt_state': self.opt_state}, fingerprint)
        self.params, self.opt_state = state['params'], state['opt_state']
        logger.warning('continuing after update %d of %s', len(updates) - 1, checkpoint.path)
        return updates
