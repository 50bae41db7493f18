"""Scoring against the time of its matrix products alone, to see what everything else costs.

    python benchmarks/matrix_products.py --size base --texts p3
    python benchmarks/matrix_products.py --size minilm --texts e2e --n_pairs 2048

The machine's float32 rate is the best that JAX or numpy reaches in this run, on products of 2048 x 2048 matrices and of
the model's own shapes. The products counted are those of the real tokens, without padding: the dense layers, and
attention inside each pair; in the last layer only keys, values and each pair's first token. Prints the scoring time,
tokenizing included, divided by the time that these products take at that rate. Figures are in docs/benchmarks.md.
"""

import statistics
import sys
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from common import DATA, describe_machine, read_pairs, scorer_directory, seconds_of

from cappy import Cappy
from cappy.cli.flags import run
from cappy.model.tokens import encode_pairs


def operations(lengths, config):
    """Floating-point operations of the matrix products that scoring needs, two for a multiplication and addition.

    lengths: int [n], tokens of each pair.
    """
    D, F = config.hidden_size, config.intermediate_size
    n_tokens, n_squared, n_pairs = lengths.sum(), np.square(lengths).sum(), len(lengths)
    whole_layer = 2 * n_tokens * (4 * D * D + 2 * D * F) + 4 * n_squared * D
    last_layer = 2 * n_tokens * 2 * D * D + 2 * n_pairs * (2 * D * D + 2 * D * F) + 4 * n_tokens * D
    head = 2 * n_pairs * (D * D + D)
    return int((config.num_hidden_layers - 1) * whole_layer + last_layer + head)


def product_rates(config, n_tokens, n_repeats):
    """{name: operations per second} of single matrix products, the best of the repeats."""
    D, F = config.hidden_size, config.intermediate_size
    generator = np.random.default_rng(0)
    multiply = jax.jit(jnp.matmul)
    rates = {}
    for rows, inner, columns in ((2048, 2048, 2048), (n_tokens, D, D), (n_tokens, D, F), (n_tokens, F, D)):
        left, right = (generator.random(shape, np.float32) for shape in ((rows, inner), (inner, columns)))
        on_device = jax.device_put(left), jax.device_put(right)
        works = {'jax': lambda a=on_device: multiply(*a).block_until_ready(), 'numpy': lambda a=left, b=right: a @ b}
        n_operations = 2 * rows * inner * columns
        n_calls = max(1, int(1e10 / n_operations))
        for name, work in works.items():
            work()

            def repeated(work=work, n_calls=n_calls):
                for _ in range(n_calls):
                    work()

            best = min(seconds_of(repeated) for _ in range(n_repeats))
            rates[f'{name} {rows}x{inner}x{columns}'] = n_operations * n_calls / best
    return rates


def main(
    size: Literal['minilm', 'base'] = 'minilm',
    texts: Literal['e2e', 'p3', 'synthetic'] = 'e2e',
    data: str = str(DATA),  # folder with e2e_nlg/ and p3/
    n_pairs=192,
    n_tokens=1024,  # rows of the products of the model's own shapes
    n_repeats=5,  # the median of these is printed, and the best rate
):
    """Time scoring and the machine's matrix products."""
    pairs = read_pairs(texts, data, n_pairs)
    with scorer_directory(size, pairs) as directory:
        scorer = Cappy.from_pretrained(directory)
    lengths = encode_pairs(scorer.tokenizer, *zip(*pairs, strict=True), scorer.max_length).lengths
    scorer.score(pairs)  # compiles
    before = product_rates(scorer.config, n_tokens, n_repeats)
    seconds = statistics.median(seconds_of(lambda: scorer.score(pairs)) for _ in range(n_repeats))
    after = product_rates(scorer.config, n_tokens, n_repeats)
    rates = {name: max(before[name], after[name]) for name in before}
    best, n_operations = max(rates.values()), operations(lengths, scorer.config)
    print(describe_machine('jax', 'numpy'))
    for name, rate in rates.items():
        print(f'{name:24} {rate / 1e9:7.1f} GFLOP/s')
    print(f'{size}, {texts}, {n_pairs} pairs of {lengths.mean():.0f} tokens, median of {n_repeats}')
    print(f'products {n_operations / 1e9:.1f} GFLOP, {n_operations / best:.3f} s at the best rate')
    print(f'scoring {seconds:.3f} s, {n_operations / seconds / 1e9:.1f} GFLOP/s, {seconds * best / n_operations:.2f}x')


if __name__ == '__main__':
    run(main)
