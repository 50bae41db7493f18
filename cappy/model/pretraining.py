"""Pretraining: updates over a stream of labelled pairs that is read, tokenized and packed while the devices work.

P pairs of an update, U updates of a window.
"""

import concurrent.futures
import dataclasses
import logging

import numpy as np

from cappy.errors import InputError
from cappy.model.budgets import MOST_TRAINING_TOKENS
from cappy.model.costs import compile_cost, row_cost
from cappy.model.devices import is_first_process
from cappy.model.optimizer import DECAYS, Optimizer, SettingsOfFlags, check_settings
from cappy.model.packing import choose_row_lengths, describe_packing, plan_batches, slots_needed
from cappy.model.tokens import EncodedPairs, encode_pairs
from cappy.model.training import COMPILE_SECONDS, MicroBatches, TrainingRun, run_updates

logger = logging.getLogger(__name__)

MAX_UPDATES = 2**31 - 1  # the optimizer counts in int32
WINDOW = 16384  # pairs that are read, shuffled and tokenized together, at most, but one update at least


@dataclasses.dataclass(frozen=True)
class PretrainingSettings(SettingsOfFlags):
    """What decides the result of pretraining on given pairs; see docs/pretraining.md for where each default is from."""

    learning_rate: float = 1e-6
    warmup_rate: float = 0.1  # share of the updates
    lr_schedule: str = 'linear'
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    global_batch_size: int = 1024  # pairs of an update, whatever the devices
    n_epochs: int = 1
    max_length: int | None = None  # tokens; None: the scorer's
    seed: int = 11111

    @property
    def updates_per_window(self):
        return max(1, WINDOW // self.global_batch_size)

    @property
    def window_size(self):
        """Pairs."""
        return self.updates_per_window * self.global_batch_size

    def n_updates(self, n_pairs):
        """Updates that n_pairs of all epochs fill; the rest is left out."""
        return n_pairs // self.global_batch_size

    def optimizer(self, n_updates):
        """The Optimizer of so many updates: matrices and embeddings decay, biases and norms do not."""
        return Optimizer(
            self.learning_rate,
            int(n_updates * self.warmup_rate),
            n_updates,
            decay=self.lr_schedule,
            weight_decay=self.weight_decay,
            decay_vectors=False,
            clip_norm=self.clip_norm or None,
        )

    def check(self, n_pairs):
        """Raise InputError for settings that train nothing on n_pairs of all epochs."""
        check_settings(self, DECAYS, 'global_batch_size', 'n_epochs', 'max_length')
        if not self.clip_norm >= 0:
            raise InputError(f'clip_norm: found {self.clip_norm}; give 0 or more')
        if self.n_updates(n_pairs) < 1:
            raise InputError(
                f'global_batch_size {self.global_batch_size}: more than the {n_pairs} pairs of all epochs; lower it'
            )
        if self.n_updates(n_pairs) > MAX_UPDATES:
            raise InputError(f'n_epochs {self.n_epochs}: makes {self.n_updates(n_pairs)} updates; lower it')


@dataclasses.dataclass(frozen=True)
class Window:
    """The pairs of U updates, U * P of them in order: their tokens, labels float32, and each update's plan."""

    encoded: EncodedPairs
    labels: np.ndarray
    plans: list


class Feed:
    """Micro-batches of the updates on a stream of labelled pairs, each window prepared while the one before trains.

    stream: `windows(first)` yields lists of (instruction, response, label, ..), `n_pairs` in all. tokens_per_device: of
    a micro-batch, None: the most that are of use.

    Row lengths are chosen once, by the first window, so that the shapes of an update, and with them its sums to the
    last bit, depend on its pairs and not on where a run began.
    """

    def __init__(self, stream, tokenizer, settings, config, platform, n_data, tokens_per_device=None):
        self.stream, self.tokenizer, self.settings, self.config = stream, tokenizer, settings, config
        self.cost = row_cost(config, platform)
        self.tokens = tokens_per_device or MOST_TRAINING_TOKENS[platform]
        self.n_data = n_data
        self.compile_cost = compile_cost(config, platform, COMPILE_SECONDS) / 3  # as training._plan_updates has it
        self.n_truncated = self.n_pairs = 0  # of the windows given so far
        self.row_lengths = self.slots = self.packing = None
        encoded, labels = next(self._encoded(0))
        self._plan_shapes(encoded, labels)
        if encoded.truncated.any() and is_first_process():
            logger.warning(
                '%d of the first %d pairs are truncated to %d tokens',
                encoded.truncated.sum(),
                len(labels),
                settings.max_length,
            )

    def __call__(self, first):
        """Yields, for update number `first` and each after it, its training.MicroBatches."""
        per_window, n_pairs = self.settings.updates_per_window, self.settings.global_batch_size
        n_skipped = first % per_window
        for window in self.windows(first // per_window):
            for number, plan in enumerate(window.plans[n_skipped:], start=n_skipped):
                pairs = np.arange(number * n_pairs, (number + 1) * n_pairs)
                yield MicroBatches(plan, window.encoded, pairs, window.labels[pairs], self.config)
            n_skipped = 0

    def windows(self, first=0):
        """Yields each Window from number `first` on; the next one is prepared meanwhile."""
        prepared = self._prepared(first)
        with concurrent.futures.ThreadPoolExecutor(1) as preparing:
            upcoming = preparing.submit(next, prepared, None)
            while (window := upcoming.result()) is not None:
                upcoming = preparing.submit(next, prepared, None)
                self.n_pairs += len(window.labels)
                self.n_truncated += int(window.encoded.truncated.sum())
                yield window

    def _encoded(self, first):
        """Yields (EncodedPairs, labels) of each window, whole updates only."""
        n_pairs = self.settings.global_batch_size
        for rows in self.stream.windows(first):
            rows = rows[: len(rows) // n_pairs * n_pairs]
            if rows:
                instructions, responses, labels, *_ = zip(*rows, strict=True)
                encoded = encode_pairs(self.tokenizer, instructions, responses, self.settings.max_length)
                yield encoded, np.array(labels, np.float32)

    def _groups(self, lengths):
        return list(lengths.reshape(-1, self.settings.global_batch_size))

    def _plan_shapes(self, encoded, labels):
        groups = self._groups(encoded.lengths)
        self.row_lengths = choose_row_lengths(
            groups,
            self.cost,
            # What compiles for the first window's updates serves them all.
            self.compile_cost * len(groups) / self.settings.n_updates(self.stream.n_pairs),
            self.tokens,
            self.n_data,
            longest=self.settings.max_length,
        )
        plans = [self._plan(lengths) for lengths in groups]
        self.slots = slots_needed(plans)
        self.packing = describe_packing(plans, groups)

    def _plan(self, lengths):
        return plan_batches(lengths, self.row_lengths, self.cost, self.tokens, self.n_data, self.slots)

    def _prepared(self, first):
        for encoded, labels in self._encoded(first):
            yield Window(encoded, labels, [self._plan(lengths) for lengths in self._groups(encoded.lengths)])


def pretrain(
    params, feed, *, config, devices, dtype, gradient_checkpointing=False, saving=None, on_update=None, progress=None
):
    """Train a scorer on a Feed's pairs.

    params: on the devices; they are given up (donated). saving, on_update, progress: as `training.run_updates` takes
    them.
    Returns (params, list of Update). Raises InputError where the loss is not finite, naming the update.
    """
    settings = feed.settings
    n_updates = settings.n_updates(feed.stream.n_pairs)
    optimizer = settings.optimizer(n_updates)
    run = TrainingRun(params, config, devices, dtype, optimizer, settings.seed, gradient_checkpointing)
    updates = run_updates(run, feed, n_updates, saving, on_update, progress)
    return run.params, updates
