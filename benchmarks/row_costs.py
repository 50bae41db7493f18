"""What packing must know about a device: cost of dense layers and of attention, best micro-batch, compilation.

    python benchmarks/row_costs.py
    python benchmarks/row_costs.py --size base

Times rows of several lengths L with the same number of tokens in all, forward alone and with gradients; fits
seconds per token = c (1 + a L) and prints ATTENTION_FACTOR = a 6 D for hidden size D (cappy/model/costs.py). Then times
one row length with several numbers of tokens, for the constants of a CPU in cappy/model/budgets.py.
Compilations are timed without their cache. Figures are in docs/benchmarks.md.
"""

import statistics
import sys
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from common import describe_machine, median_seconds, read_pairs, scorer_directory, seconds_of

from cappy import Cappy
from cappy.cli.flags import run
from cappy.model.scoring import score_program
from cappy.model.training import TrainingSettings, training_programs

ROW_LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512)
TOKENS = (192, 384, 576, 768, 1152, 1536, 2304)


def random_rows(n_rows, row_length, config, seed=0):
    """Full rows of one pair each."""
    generator = np.random.default_rng(seed)
    ones = np.ones((n_rows, row_length), np.int32)
    rows = {
        'tokens': generator.integers(5, config.vocab_size, ones.shape, np.int32),
        'positions': ones * np.arange(row_length, dtype=np.int32),
        'segments': ones,
        'pairs': (ones * np.arange(n_rows)[:, None]).astype(np.uint32),
        'starts': np.zeros((n_rows, 1), np.int32),
    }
    return rows | ({'types': 0 * ones} if config.model_type == 'bert' else {})


class Forward:
    """Scoring of rows, compiled."""

    def __init__(self, scorer, shape):
        self.params, self.n_tokens = scorer.params, shape[0] * shape[1]
        self.rows = scorer.devices.put_rows(random_rows(*shape, scorer.config))
        program = score_program(scorer.config, scorer.compute_dtype, scorer.devices).lower(self.params, self.rows)
        self.compile_seconds = seconds_of(lambda: setattr(self, 'program', program.compile()))

    def __call__(self):
        self.program(self.params, self.rows).block_until_ready()


class WithGradients:
    """A micro-batch of training, compiled."""

    def __init__(self, scorer, shape):
        self.params, self.n_tokens = scorer.params, shape[0] * shape[1]
        settings = TrainingSettings()
        accumulate, _, _ = training_programs(
            scorer.config,
            scorer.compute_dtype,
            scorer.devices,
            False,
            settings.optimizer(settings.pairs_per_update(1), 1),
        )
        self.rows = scorer.devices.put_rows(random_rows(*shape, scorer.config))
        self.labels = jnp.ones((shape[0], 1), jnp.float32)
        self.sums = jax.tree.map(jnp.zeros_like, self.params), jnp.float32(0)
        program = jax.jit(accumulate, donate_argnums=(0, 1)).lower(*self._arguments())
        self.compile_seconds = seconds_of(lambda: setattr(self, 'program', program.compile()))

    def _arguments(self):
        return *self.sums, self.params, self.rows, self.labels, self.labels, jnp.uint32(1)

    def __call__(self):
        self.sums = self.program(*self._arguments())
        self.sums[1].block_until_ready()


def seconds_per_token(kind, scorer, shapes, n_repeats):
    """Seconds per token, float64 [n_shapes], and seconds of each compilation; medians of n_repeats of several calls."""
    programs = {shape: kind(scorer, shape) for shape in shapes}
    first = {shape: (program(), seconds_of(program))[1] for shape, program in programs.items()}
    # Repeats of a quarter of a second or more: the times of single calls of milliseconds vary much.
    calls = {shape: max(1, round(0.25 / seconds)) for shape, seconds in first.items()}

    def repeated(shape):
        for _ in range(calls[shape]):
            programs[shape]()

    seconds = median_seconds({shape: lambda shape=shape: repeated(shape) for shape in shapes}, n_repeats)
    per_token = [seconds[shape] / calls[shape] / programs[shape].n_tokens for shape in shapes]
    return np.array(per_token), [program.compile_seconds for program in programs.values()]


def listed(counts, seconds):
    return ', '.join(f'{count}: {s * 1e6:.1f}' for count, s in zip(counts, seconds, strict=True)) + ';'


def main(
    size: Literal['minilm', 'base'] = 'minilm',
    n_tokens=768,  # of a micro-batch, where row lengths are compared
    row_length=96,  # where micro-batches are compared
    n_repeats=5,  # the median of these is printed
):
    """Time rows of several lengths and micro-batches of several sizes."""
    jax.config.update('jax_enable_compilation_cache', False)
    with scorer_directory(size, read_pairs('synthetic', '', 1000)) as directory:
        scorer = Cappy.from_pretrained(directory)
    print(describe_machine('jax', 'numpy'), jax.devices()[0].device_kind)
    lengths = np.array([length for length in ROW_LENGTHS if length <= n_tokens])
    for name, kind in (('forward', Forward), ('with gradients', WithGradients)):
        print(f'\n{size}, {name}: microseconds per token, median of {n_repeats}')
        by_length, compile_seconds = seconds_per_token(
            kind, scorer, [(n_tokens // int(length), int(length)) for length in lengths], n_repeats
        )
        slope, dense = np.polyfit(lengths, by_length, 1)
        factor = slope / dense * 6 * scorer.config.hidden_size
        print(f'{n_tokens} tokens, rows of', listed(lengths, by_length))
        print(f'dense layers {dense * 1e6:.1f}, attention {slope * 1e6:.4f} per token of the row', end='')
        print(f', ATTENTION_FACTOR {factor:.2f}')
        by_tokens, more_seconds = seconds_per_token(
            kind, scorer, [(tokens // row_length, row_length) for tokens in TOKENS], n_repeats
        )
        print(f'rows of {row_length}, tokens', listed(TOKENS, by_tokens), f'best {TOKENS[np.argmin(by_tokens)]}')
        print(f'compilation: {statistics.median(compile_seconds + more_seconds):.1f} s, the median of its shapes')


if __name__ == '__main__':
    run(main)
