"""Scoring pairs: `Cappy.score` against sentence-transformers' CrossEncoder, and against rows padded to 512 tokens.

    python benchmarks/scoring.py --size base --texts p3
    python benchmarks/scoring.py --size base --texts e2e --n_pairs 384
    python benchmarks/scoring.py --size minilm --texts e2e --n_pairs 2048
    python benchmarks/scoring.py --size minilm --texts crows_pairs --n_pairs 16384 --n_repeats 1
    python benchmarks/scoring.py --size minilm --texts synthetic --n_pairs 1024

All have the same random weights, in one process; tokenizing is included. Ours is in float32, as are CrossEncoder by
PyTorch and padded to 512; and once more in bfloat16. CrossEncoder's other backends are those that its manual advises
for a CPU: PyTorch in bfloat16, ONNX with the optimisations O3, OpenVINO; one whose packages are missing is left out,
and said. All pairs differ, since ours scores equal pairs once. CrossEncoder sorts by length and pads each batch of 32
to its longest pair. Padded to 512 is the reference's way: our encoder, one pair per row, batches of 32. Everything runs
once before it is timed. Figures are in docs/benchmarks.md.
"""

import sys
import warnings
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from common import (
    DATA,
    describe_machine,
    median_seconds,
    padded_batches,
    read_pairs,
    scorer_directory,
    seconds_of,
)
from cross_encoders import BACKENDS, load_cross_encoders

from cappy import Cappy
from cappy.cli.flags import Names, run
from cappy.model.packing import describe_packing, fill_rows
from cappy.model.scoring import score_encoded, score_program
from cappy.model.tokens import encode_pairs

PACKAGES = ('jax', 'torch', 'sentence-transformers', 'transformers', 'numpy')
PACKAGES += ('optimum-onnx', 'onnxruntime', 'optimum-intel', 'openvino')


def score_padded(scorer, pairs, batch_size):
    """float32 [n] scores, one pair per row of 512 tokens."""
    encoded = encode_pairs(scorer.tokenizer, *zip(*pairs, strict=True), scorer.max_length)
    program = score_program(scorer.config, scorer.compute_dtype, scorer.devices)
    scores = []
    for batch in padded_batches(len(pairs), batch_size):
        rows = scorer.devices.put_rows(fill_rows(batch, encoded, np.arange(len(pairs)), scorer.config))
        scores.append(np.asarray(program(scorer.params, rows))[batch.pair >= 0])
    return np.concatenate(scores)


def main(
    size: Literal['minilm', 'base'] = 'minilm',
    texts: Literal['e2e', 'p3', 'crows_pairs', 'synthetic'] = 'e2e',
    data: str = str(DATA),  # folder with e2e_nlg/, p3/ and promptsource/
    n_pairs=192,
    n_padded=32,  # so many of them padded to 512, where each takes the same time
    n_repeats=3,  # the median of these is printed
    padded_batch_size=32,  # the reference's per_device_eval_batch_size
    backends: Names = tuple(BACKENDS),  # of CrossEncoder
):
    """Time the scoring of pairs, ours, CrossEncoder's and padded to 512."""
    warnings.filterwarnings('ignore', category=FutureWarning)
    pairs = read_pairs(texts, data, n_pairs)
    with scorer_directory(size, pairs) as directory:
        ours = Cappy.from_pretrained(directory)
        in_bfloat16 = Cappy.from_pretrained(directory, compute_dtype='bfloat16')
        theirs, skipped = load_cross_encoders(directory, backends)
    sides = {
        'packed': lambda: ours.score(pairs),
        'packed, bfloat16': lambda: in_bfloat16.score(pairs),
        **{name: lambda model=model: model.predict(pairs, show_progress_bar=False) for name, model in theirs.items()},
        'padded to 512': lambda: score_padded(ours, pairs[:n_padded], padded_batch_size),
    }
    scores = {}

    def keep(name):
        scores[name] = sides[name]()

    first = {name: seconds_of(lambda name=name: keep(name)) for name in sides}
    seconds = median_seconds(sides, n_repeats)
    print(describe_machine(*PACKAGES))
    print(*skipped, sep='\n', end='\n' if skipped else '')
    encoded = encode_pairs(ours.tokenizer, *zip(*pairs, strict=True), ours.max_length)
    print(f'{size}, {texts}, {n_pairs} pairs of {encoded.lengths.mean():.0f} tokens, median of {n_repeats}')
    _, plan = score_encoded(ours.params, encoded, ours.config, ours.devices, ours.compute_dtype)
    print(f'packing {describe_packing([plan], [encoded.lengths])}')
    waiting = ours.score_with_counts(pairs)[1]['seconds_waiting']
    print(f'waiting for tokens {waiting:.2f} s of {seconds["packed"]:.2f} s')
    for name, s in seconds.items():
        per_pair = s / len(scores[name])
        difference = np.abs(scores[name] - scores['packed'][: len(scores[name])]).max()
        print(f'{name:30} {s:8.3f} s {1 / per_pair:7.1f} pairs/s', end='')
        print(
            f' {per_pair * n_pairs / seconds["packed"]:6.2f}x packed; the first run took {first[name] - s:.1f} s more',
            end='',
        )
        print(f'; largest difference {difference:.1e}')


if __name__ == '__main__':
    run(main)
