"""The data side of pretraining without training: pairs/s of checking, reading, tokenizing and packing, and its memory.

    python benchmarks/pretraining_data.py
    python benchmarks/pretraining_data.py --n_pairs 10000000 --n_packed 100000

The pairs are those of `data_dir`, or made up: instructions of 5 to 100 words and responses of 1 to 15, from a made-up
vocabulary of 20,000 words. How many pairs a device consumes is estimated from its speed and the operations of the
model: 3 x 2 x the parameters of its layers for each token, forward and backward (attention is left out, so the rate is
an upper bound), for RoBERTa-large at half of the 70 TFLOP/s of an A10G in bfloat16; half is an assumption.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy import Cappy
from cappy.cli import flags
from cappy.model.packing import fill_rows
from cappy.model.pretraining import Feed, PretrainingSettings
from cappy.pretrain_data.stream import Stream, check_shards, find_shards

ROBERTA_LARGE_LAYER_PARAMETERS = 24 * 12 * 1024**2
A10G_OPERATIONS = 0.5 * 70e12  # per second


def main(
    model_name_or_path='minilm',  # its tokenizer is used, and its sizes for the costs of packed rows
    data_dir: str | None = None,  # folder of shards; pairs are made up if not given
    n_pairs=300_000,  # to make up
    n_packed=100_000,  # how many are tokenized, packed and laid out as well
    global_batch_size=1024,  # pairs per update
    max_length=512,  # tokens per pair
):
    """Print the rate of each stage, and the memory after it."""
    scorer = Cappy.from_pretrained(model_name_or_path)
    with tempfile.TemporaryDirectory() as folder:
        if data_dir is None:
            make_up(Path(folder), n_pairs)
        paths = find_shards(data_dir or folder)
        print(f'memory before {memory():.2f} GiB')
        start = time.perf_counter()
        shards = check_shards(paths, progress=False)
        n_pairs = sum(shard.n_pairs for shard in shards)
        report('checked', n_pairs, start)
        settings = PretrainingSettings(global_batch_size=global_batch_size, max_length=max_length)
        stream = Stream(tuple(shards), 1, settings.window_size, settings.seed)
        start = time.perf_counter()
        for number, _ in enumerate(stream.windows()):
            if number in (9, 99, 299):
                print(f'  memory after {number + 1} windows {memory():.2f} GiB')
        report('read and shuffled', n_pairs, start)
        feed = Feed(stream, scorer.tokenizer, settings, scorer.config, 'gpu', 1)
        start, n_done, n_tokens = time.perf_counter(), 0, 0
        for window in feed.windows():
            pairs_of_plan = np.arange(len(window.labels)).reshape(len(window.plans), -1)
            for plan, pairs in zip(window.plans, pairs_of_plan, strict=True):
                for batch in plan:
                    fill_rows(batch, window.encoded, pairs, scorer.config)
            n_done, n_tokens = n_done + len(window.labels), n_tokens + len(window.encoded.tokens)
            if n_done >= n_packed:
                break
        rate = report('read, tokenized, packed and laid out', n_done, start)
        mean = n_tokens / n_done
        needed = A10G_OPERATIONS / (6 * ROBERTA_LARGE_LAYER_PARAMETERS * mean)
        print(f'{mean:.0f} tokens per pair, packed rows {100 * feed.packing["fill"]:.0f}% full')
        print(f'RoBERTa-large on an A10G takes at most {needed:.0f} pairs/s (estimate): {rate / needed:.1f}x headroom')


def make_up(folder, n_pairs):
    """Write n_pairs made-up pairs in eight shards."""
    generator = np.random.default_rng(0)
    words = [''.join(generator.choice(list('aeioubdfgklmnprst'), generator.integers(3, 9))) for _ in range(20_000)]
    per_shard = -(-n_pairs // 8)
    for shard in range(8):
        with open(folder / f'train-{shard:05d}-of-00008.jsonl', 'w') as file:
            for _ in range(min(per_shard, n_pairs - shard * per_shard)):
                start, n, m = generator.integers(0, 19_800), generator.integers(5, 100), generator.integers(1, 15)
                instruction, response = ' '.join(words[start : start + n]), ' '.join(words[start + n : start + n + m])
                label = generator.random()
                file.write(f'{{"instruction": "{instruction}", "response": "{response}", "label": {label:.3f}}}\n')


def memory():
    """The peak resident set of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def report(stage, n_pairs, start):
    """Print and return the pairs/s of a stage that began at start."""
    rate = n_pairs / (time.perf_counter() - start)
    print(f'{stage}: {n_pairs} pairs, {rate:.0f} pairs/s, memory {memory():.2f} GiB', flush=True)
    return rate


if __name__ == '__main__':
    flags.run(main)
