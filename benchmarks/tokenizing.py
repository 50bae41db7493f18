"""Pairs to tokens: `encode_pairs`, which tokenizes each text once, against the tokenizer's own encoding of every pair.

    python benchmarks/tokenizing.py
    python benchmarks/tokenizing.py --texts p3

Candidates share their instruction, and answer choices their question. One process, a tokenizer learned from the texts;
everything runs once before it is timed. Figures are in docs/benchmarks.md.
"""

import sys
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from common import DATA, describe_machine, median_seconds, read_pairs, scorer_directory

from cappy.cli.flags import run
from cappy.model.tokens import EncodedPairs, encode_pairs, load_tokenizer


def encode_each_pair(tokenizer, pairs, max_length):
    """As encode_pairs, but every pair is tokenized by itself."""
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_length, strategy='longest_first')
    encodings = backend.encode_batch(pairs)
    offsets = np.cumsum([0, *map(len, encodings)])
    tokens, types = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.uint8)
    for encoding, first, end in zip(encodings, offsets[:-1], offsets[1:], strict=True):
        tokens[first:end], types[first:end] = encoding.ids, encoding.type_ids
    return EncodedPairs(tokens, types, offsets, np.array([bool(encoding.overflowing) for encoding in encodings]))


def main(
    texts: Literal['crows_pairs', 'e2e', 'p3', 'synthetic'] = 'crows_pairs',
    data: str = str(DATA),  # folder with promptsource/, e2e_nlg/ and p3/
    n_pairs=16384,  # as many as scoring tokenizes together
    n_repeats=5,  # the median of these is printed
    max_length=512,
):
    """Time the tokenizing of pairs, each text once and each pair by itself."""
    pairs = read_pairs(texts, data, n_pairs)
    with scorer_directory('minilm', pairs) as directory:
        tokenizer = load_tokenizer(directory)
    sides = {
        'each text once': lambda: encode_pairs(tokenizer, *zip(*pairs, strict=True), max_length),
        'each pair': lambda: encode_each_pair(tokenizer, pairs, max_length),
    }
    ours, theirs = (side() for side in sides.values())
    seconds = median_seconds(sides, n_repeats)
    print(describe_machine('tokenizers', 'numpy'))
    n_texts = len({text for pair in pairs for text in pair})
    print(f'{texts}, {n_pairs} pairs of {ours.lengths.mean():.0f} tokens, {n_texts} texts, median of {n_repeats}')
    for name, s in seconds.items():
        print(f'{name:14} {s:7.3f} s {n_pairs / s:9.0f} pairs/s {s / seconds["each text once"]:6.2f}x')
    fields = ('tokens', 'types', 'offsets', 'truncated')
    differing = sum(int((getattr(ours, field) != getattr(theirs, field)).sum()) for field in fields)
    print(f'numbers that differ: {differing}')


if __name__ == '__main__':
    run(main)
