"""Scores of many pairs, in their order: identical pairs once, packed rows, tokenizing beside the device."""

import collections
import concurrent.futures
import functools
import itertools
import logging
import time

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from cappy.errors import InputError
from cappy.model import cpu
from cappy.model.attention import attention_of
from cappy.model.budgets import Budget, scoring_tokens
from cappy.model.costs import compile_cost, row_cost
from cappy.model.encoder import Scorer, rounded
from cappy.model.packing import describe_packing, fill_rows, plan_groups
from cappy.model.tokens import encode_pairs

logger = logging.getLogger(__name__)

WINDOW = 16384  # pairs that are planned together; memory is bounded by it
# Pairs of the first window where the device would otherwise wait: each window is tokenized while the one before it is
# scored, and before the first there is none.
FIRST_WINDOW = {'gpu': 2048, 'tpu': 2048}

# Of a scoring program: a third of what it takes (docs/benchmarks.md), since the next runs find it on disk.
COMPILE_SECONDS = 0.6


@functools.lru_cache(maxsize=8)
def score_program(config, dtype, devices):
    """The program (params, rows) -> float32 [R, C] on every device, one for each model, dtype and mesh.

    params: the model's, or what `encoder.rounded` makes of them.
    """
    model = Scorer(
        config,
        dtype,
        attend=attention_of(devices, dtype, drops=False),
        join=devices.join,
        dot_general=cpu.dot_general if devices.platform == 'cpu' and dtype == jnp.bfloat16 else jax.lax.dot_general,
    )
    return jax.jit(lambda params, rows: model.apply({'params': params}, rows), out_shardings=devices.replicated)


def score_encoded(
    params, encoded, config, devices, dtype, tokens_per_device=None, compiled=None, bar=None, budget=None
):
    """Scores of tokenized pairs, and the batches they were computed in.

    params: on the devices; encoded: EncodedPairs; tokens_per_device: of a batch, None: `budgets.scoring_tokens`;
    compiled: set of the shapes (R, L) that this model was compiled for, preferred in planning and added to; bar: a tqdm
    bar of pairs; budget: Budget, which remembers for later calls that memory ran out.
    Returns (float32 [n], list of packing.Batch as they were planned).
    Raises InputError where a single row runs out of memory.
    """
    budget = budget or Budget(devices.n_data)
    tokens = budget(tokens_per_device or scoring_tokens(config, devices, dtype))
    compiled = set() if compiled is None else compiled
    lengths = encoded.lengths
    all_pairs = np.arange(len(lengths))
    [plan] = plan_groups(
        [all_pairs],
        lengths,
        row_cost(config, devices.platform, is_bfloat16=dtype == jnp.bfloat16),
        compile_cost(config, devices.platform, COMPILE_SECONDS),
        tokens,
        devices.n_data,
        frozenset(compiled),
    )
    compiled.update(batch.shape[:2] for batch in plan)
    program, params = score_program(config, dtype, devices), rounded(params, config, dtype)
    scores = np.empty(len(lengths), np.float32)
    to_do, waiting = collections.deque(plan), collections.deque()
    while to_do or waiting:
        try:
            # Two batches wait, so that the host lays out the next while the device works.
            while to_do and len(waiting) < 3:
                rows = devices.put_rows(fill_rows(to_do[0], encoded, all_pairs, config))
                waiting.append((to_do[0], program(params, rows)))
                to_do.popleft()
            n_pairs = waiting[0][0].collect(waiting[0][1], scores)
        except jax.errors.JaxRuntimeError as error:
            left = [*(batch for batch, _ in waiting), *to_do]
            waiting.clear()
            budget.halve(error, left)
            to_do = collections.deque(budget.cut(left))
            continue
        waiting.popleft()
        if bar is not None:
            bar.update(n_pairs)
    return scores, plan


def score_pairs(
    params,
    tokenizer,
    pairs,
    config,
    devices,
    dtype,
    max_length,
    tokens_per_device=None,
    compiled=None,
    progress=None,
    window_size=None,
    budget=None,
):
    """Scores of (instruction, response) pairs in any iterable, one window after the other.

    The next window is tokenized while one is scored. max_length: tokens per pair, longer ones are truncated;
    tokens_per_device, compiled, budget: as `score_encoded` takes them; progress: words for a progress bar on standard
    error, None for no bar; window_size: pairs that are planned together, None: WINDOW.
    Yields for each window (float32 [n] scores in input order, counts): counts is a dict of {pairs, seconds_waiting (in
    which there were no tokens to score yet)}, what `tokens.EncodedPairs.counts` has of the unique pairs, and what
    `packing.describe_packing` gives.
    Raises InputError for a pair that is not two texts, or whose score is not finite.
    """
    n_total = len(pairs) if hasattr(pairs, '__len__') else None
    window_size, budget = window_size or WINDOW, budget or Budget(devices.n_data)
    tokens_per_device = tokens_per_device or scoring_tokens(config, devices, dtype)  # hosts agree once, not per window
    first_window = min(FIRST_WINDOW.get(devices.platform, window_size), window_size)
    windows = _encoded_windows(pairs, tokenizer, max_length, first_window, window_size)
    n_before = 0
    shown = progress is not None and jax.process_index() == 0
    with (
        concurrent.futures.ThreadPoolExecutor(1) as tokenizing,
        tqdm.tqdm(total=n_total, desc=progress, unit='pair', disable=not shown) as bar,
    ):
        upcoming = tokenizing.submit(next, windows, None)
        while True:
            start = time.perf_counter()
            window = upcoming.result()
            waiting = time.perf_counter() - start
            if window is None:
                return
            upcoming = tokenizing.submit(next, windows, None)
            encoded, place = window
            scores, plan = score_encoded(
                params, encoded, config, devices, dtype, tokens_per_device, compiled, bar, budget
            )
            bar.update(len(place) - len(scores))
            if not np.isfinite(scores).all():
                bad = int(np.flatnonzero(~np.isfinite(scores[place]))[0])
                raise InputError(f'pair {n_before + bad} has the score {scores[place][bad]}: the weights are not sound')
            counts = {
                'pairs': len(place),
                **encoded.counts,
                'seconds_waiting': waiting,
                **describe_packing([plan], [encoded.lengths]),
            }
            n_before += len(place)
            yield scores[place], counts


def _encoded_windows(pairs, tokenizer, max_length, first_window, window_size):
    """Yields (EncodedPairs of the unique pairs, int [n] index of each pair of the window among them)."""
    pairs, first = iter(pairs), 0
    while window := list(itertools.islice(pairs, window_size if first else first_window)):
        unique = {}
        place = np.empty(len(window), np.int64)
        for i, pair in enumerate(window):
            place[i] = unique.setdefault(_checked(pair, first + i), len(unique))
        instructions, responses = zip(*unique, strict=True)
        yield encode_pairs(tokenizer, instructions, responses, max_length), place
        first += len(window)


def _checked(pair, number):
    """A pair as a tuple of two str; InputError names its place."""
    if isinstance(pair, str) or not hasattr(pair, '__len__') or len(pair) != 2:
        raise InputError(f'pair {number}: expected (instruction, response), two texts; found {str(pair)[:60]!r}')
    for name, text in zip(('instruction', 'response'), pair, strict=True):
        check_text(text, f'pair {number}: {name}')
    return tuple(pair)


def check_text(text, place):
    """Raise InputError, which begins with the place, for what is no text that a tokenizer can take."""
    if not isinstance(text, str):
        raise InputError(f'{place}: expected text; found {type(text).__name__} {str(text)[:40]!r}')
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f'{place}: holds half of a surrogate pair, which is no character, at {error.start}; '
                "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') mends it"
            ) from error
