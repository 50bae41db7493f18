"""Peak memory of a training run: a scorer of RoBERTa-base's size, loaded and adapted for a few updates.

    python benchmarks/memory.py
    python benchmarks/memory.py --texts p3

Runs in a process of its own and prints its largest resident memory, interpreter and libraries included. Figures are in
docs/benchmarks.md.
"""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from common import DATA, describe_machine, read_pairs, scorer_directory

from cappy.cli.flags import run


def adapt(directory, texts, data, pairs_per_update, n_updates):
    """Load, adapt, and print this process's peak memory: GiB after loading, and at the end."""
    from cappy import Cappy
    from cappy.model.training import TrainingSettings

    pairs = read_pairs(texts, data, pairs_per_update * n_updates)
    labels = np.random.default_rng(0).random(len(pairs)).tolist()
    scorer = Cappy.from_pretrained(directory)
    loaded = peak_gib()
    scorer.adapt(
        [(*pair, label) for pair, label in zip(pairs, labels, strict=True)],
        TrainingSettings(accumulate_grad_batches=pairs_per_update // 8),
        progress=False,
    )
    print(f'{loaded:.2f} GiB when loaded, {peak_gib():.2f} GiB at the end')


def peak_gib():
    """GiB of this process's largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def main(
    size: Literal['minilm', 'base'] = 'base',
    texts: Literal['e2e', 'p3', 'synthetic'] = 'e2e',
    data: str = str(DATA),  # folder with e2e_nlg/ and p3/
    pairs_per_update=128,
    n_updates=2,
    directory: str | None = None,  # of a scorer, measured in this process; default: random weights, in another process
):
    """Measure the peak memory of a training run."""
    if directory is not None:
        adapt(directory, texts, data, pairs_per_update, n_updates)
        return
    print(describe_machine('jax', 'numpy'))
    print(f'{size}, {texts}, {n_updates} updates of {pairs_per_update} pairs: ', end='', flush=True)
    flags = ['--texts', texts, '--data', data, '--pairs_per_update', pairs_per_update, '--n_updates', n_updates]
    with scorer_directory(size, read_pairs(texts, data, pairs_per_update * n_updates)) as made:
        subprocess.run([sys.executable, __file__, *map(str, flags), '--directory', str(made)], check=True)


if __name__ == '__main__':
    run(main)
