"""Scores of many pairs, in their order: identical pairs once, packed rows, tokenizing beside the device."""

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
from cappy.model.costs import compile_cost, row_cost
from cappy.model.encoder import Scorer, first_tables
from cappy.model.packing import describe_packing, fill_rows, plan_groups
from cappy.model.tokens import encode_pairs

logger = logging.getLogger(__name__)

WINDOW = 16384  # pairs that are planned together; memory is bounded by it
# The first window, where tokenizing costs the device nothing but waiting: a window is tokenized while the one before it
# is scored, and before the first there is none.
FIRST_WINDOW = {'gpu': 2048, 'tpu': 2048}

# Tokens of a batch on each device. CPU: what stays in cache (docs/benchmarks.md). Elsewhere: enough to fill the device
# with RoBERTa-large in bfloat16, and far from its memory.
TOKENS_PER_DEVICE = {'cpu': 1024, 'gpu': 16384, 'tpu': 16384}

MAX_TABLE_BYTES = 2**28  # of the words' table of `encoder.first_tables`


# Of a scoring program: a third of what it takes (docs/benchmarks.md), since the next runs find it on disk.
COMPILE_SECONDS = 0.6


@functools.lru_cache(maxsize=8)
def score_program(config, dtype, devices, with_tables=False):
    """The program (params, rows) -> float32 [R, C] on every device, one for a model, dtype and mesh; and the set of the
    (R, L) it was compiled for, for its caller to keep. with_tables: (params, rows, tables of `encoder.first_tables`).
    """
    model = Scorer(config, dtype, bounded=_float32_cpu(devices, dtype))

    def score(params, rows, tables=None):
        return model.apply({'params': params}, rows, tables=tables)

    return jax.jit(score, out_shardings=devices.replicated), set()


@functools.lru_cache(maxsize=8)
def tables_program(config):
    """The program params -> `encoder.first_tables`."""
    return jax.jit(lambda params: first_tables(params, config))


def tables_pay(n_tokens, config, devices, dtype):
    """Whether to look the first layer's projections up while so many tokens are scored.

    Where products are dear, the tables are small, and a word's products serve several tokens: it saves 4% of MiniLM's
    time (docs/benchmarks.md), and the tables take a fifth of a second for each window.
    """
    return (
        _float32_cpu(devices, dtype)
        and config.num_hidden_layers > 1
        and 12 * config.vocab_size * config.hidden_size <= MAX_TABLE_BYTES
        and n_tokens >= 4 * config.vocab_size
    )


def _float32_cpu(devices, dtype):
    return devices.platform == 'cpu' and dtype == jnp.float32


def score_encoded(params, encoded, config, devices, dtype, tokens_per_device=None, bar=None):
    """float32 [n] scores of EncodedPairs, and the plan they were computed by (a list of packing.Batch)."""
    tokens = tokens_per_device or TOKENS_PER_DEVICE.get(devices.platform, 16384)
    cost = row_cost(config, devices.platform)
    lengths = encoded.lengths
    everything = np.arange(len(lengths))
    compiling = compile_cost(config, devices.platform, COMPILE_SECONDS)
    with_tables = tables_pay(int(lengths.sum()), config, devices, dtype)
    tables = (tables_program(config)(params),) if with_tables else ()
    program, compiled = score_program(config, dtype, devices, with_tables)
    [plan] = plan_groups([everything], lengths, cost, compiling, tokens, devices.n_data, frozenset(compiled))
    compiled.update(batch.shape[:2] for batch in plan)
    scores = np.empty(len(lengths), np.float32)
    waiting = []  # two batches, so that the host lays out the next while the device works

    def collect():
        batch, values = waiting.pop(0)
        filled = batch.pair >= 0
        scores[batch.pair[filled]] = np.asarray(values)[filled]
        if bar is not None:
            bar.update(int(filled.sum()))

    for batch in plan:
        rows = devices.put_rows(fill_rows(batch, encoded, everything, config))
        waiting.append((batch, program(params, rows, *tables)))
        if len(waiting) > 2:
            collect()
    while waiting:
        collect()
    return scores, plan


def score_pairs(params, tokenizer, pairs, config, devices, dtype, max_length, tokens_per_device=None, progress=None):
    """Scores of (instruction, response) pairs in any iterable, WINDOW by WINDOW.

    progress: words for a progress bar on standard error, None for no bar.
    Yields, a window at a time, (float32 [n] scores in input order, counts): counts is a dict of {pairs, unique_pairs,
    truncated_pairs (unique ones), seconds_waiting (in which there were no tokens to score yet)} and what
    `packing.describe_packing` gives. The next window is tokenized while one is scored.
    Raises InputError for a pair that is not two texts, or whose score is not finite.
    """
    n_total = len(pairs) if hasattr(pairs, '__len__') else None
    windows = _encoded_windows(pairs, tokenizer, max_length, FIRST_WINDOW.get(devices.platform, WINDOW))
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
            scores, plan = score_encoded(params, encoded, config, devices, dtype, tokens_per_device, bar)
            bar.update(len(place) - len(scores))
            if not np.isfinite(scores).all():
                bad = int(np.flatnonzero(~np.isfinite(scores[place]))[0])
                raise InputError(f'pair {n_before + bad} has the score {scores[place][bad]}: the weights are not sound')
            counts = {
                'pairs': len(place),
                'unique_pairs': len(scores),
                'truncated_pairs': int(encoded.truncated.sum()),
                'seconds_waiting': waiting,
                **describe_packing([plan], [encoded.lengths]),
            }
            n_before += len(place)
            yield scores[place], counts


def _encoded_windows(pairs, tokenizer, max_length, first_window):
    """Yields (EncodedPairs of the unique pairs, int [n] where each pair of the window is among them)."""
    pairs, first = iter(pairs), 0
    while window := list(itertools.islice(pairs, WINDOW if first else min(first_window, WINDOW))):
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
        if not isinstance(text, str):
            raise InputError(f'pair {number}: {name}: expected text; found {type(text).__name__} {str(text)[:40]!r}')
    return tuple(pair)
