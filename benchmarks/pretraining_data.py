"""The data side of pretraining alone: rows/s of checking, reading, tokenizing and packing, and the memory they hold.

    python benchmarks/pretraining_data.py --model_name_or_path MINILM
    python benchmarks/pretraining_data.py --model_name_or_path MINILM --n_rows 10000000 --n_fed 100000

Rows are made up: instructions of 5 to 100 words and responses of 1 to 15, of a made-up vocabulary of 20,000 words; or
they are those of `data_dir`. What a device consumes is estimated from its speed and the model's operations: 3 x 2 x the
weights of its layers for each token, forward and backward (attention left out, so an upper bound of the rate), for
RoBERTa-large at half of an A10G's 70 TFLOP/s in bfloat16; half is an assumption.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy import Cappy
from cappy.cli.flags import run
from cappy.model.packing import fill_rows
from cappy.model.pretraining import Feed, PretrainingSettings
from cappy.pretrain_data.stream import Stream, check_shards, find_shards

ROBERTA_LARGE_LAYER_WEIGHTS = 24 * 12 * 1024**2
A10G_OPERATIONS = 0.5 * 70e12  # per second


def main(
    model_name_or_path='',  # its tokenizer and its rows' costs are used
    data_dir: str | None = None,  # shards; made up if not given
    n_rows=300_000,  # made-up ones
    n_fed=100_000,  # rows that are tokenized, packed and laid out too
    global_batch_size=1024,
    max_length=512,
):
    """Time each stage and tell the memory after it."""
    scorer = Cappy.from_pretrained(model_name_or_path)
    with tempfile.TemporaryDirectory() as folder:
        if data_dir is None:
            make_up(Path(folder), n_rows)
        paths = find_shards(data_dir or folder)
        print(f'memory before {memory():.2f} GiB')
        start = time.perf_counter()
        shards = check_shards(paths, progress=False)
        n_rows = sum(shard.n_rows for shard in shards)
        tell('checked', n_rows, start)
        settings = PretrainingSettings(global_batch_size=global_batch_size, max_length=max_length)
        stream = Stream(tuple(shards), 1, settings.window_size, settings.seed)
        start = time.perf_counter()
        for number, _ in enumerate(stream.windows()):
            if number in (9, 99, 299):
                print(f'  memory after {number + 1} windows {memory():.2f} GiB')
        tell('read and shuffled', n_rows, start)
        feed = Feed(stream, scorer.tokenizer, settings, scorer.config, 'gpu', 1)
        start, fed, n_tokens = time.perf_counter(), 0, 0
        for window in feed.windows():
            which = np.arange(len(window.labels)).reshape(len(window.plans), -1)
            for plan, pairs in zip(window.plans, which, strict=True):
                for batch in plan:
                    fill_rows(batch, window.encoded, pairs, scorer.config)
            fed, n_tokens = fed + len(window.labels), n_tokens + len(window.encoded.tokens)
            if fed >= n_fed:
                break
        rate = tell('read, tokenized, packed and laid out', fed, start)
        mean = n_tokens / fed
        needed = A10G_OPERATIONS / (6 * ROBERTA_LARGE_LAYER_WEIGHTS * mean)
        print(f'{mean:.0f} tokens a row, rows {100 * feed.packing["fill"]:.0f}% full')
        print(f'RoBERTa-large on an A10G takes at most {needed:.0f} rows/s (estimate): {rate / needed:.1f}x headroom')


def make_up(folder, n_rows):
    """Eight shards."""
    generator = np.random.default_rng(0)
    words = [''.join(generator.choice(list('aeioubdfgklmnprst'), generator.integers(3, 9))) for _ in range(20_000)]
    per_shard = -(-n_rows // 8)
    for shard in range(8):
        with open(folder / f'train-{shard:05d}-of-00008.jsonl', 'w') as file:
            for _ in range(min(per_shard, n_rows - shard * per_shard)):
                start, n, m = generator.integers(0, 19_800), generator.integers(5, 100), generator.integers(1, 15)
                instruction, response = ' '.join(words[start : start + n]), ' '.join(words[start + n : start + n + m])
                label = generator.random()
                file.write(f'{{"instruction": "{instruction}", "response": "{response}", "label": {label:.3f}}}\n')


def memory():
    """Peak resident set of this process, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def tell(what, n, start):
    """Print and return rows/s."""
    rate = n / (time.perf_counter() - start)
    print(f'{what}: {n} rows, {rate:.0f} rows/s, memory {memory():.2f} GiB', flush=True)
    return rate


if __name__ == '__main__':
    run(main)
