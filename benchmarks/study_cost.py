"""What a study of 45 tasks costs in operations, ours beside the reference's, and hours by an estimate.

    python scripts/get_bigbench_data.py
    python benchmarks/study_cost.py --tokenizer btan2/cappy-large

Counts the tokens of each task's pairs, with its references in place of samples (cut at 64 tokens, as samples are), and
the operations in the matrix products of a RoBERTa-large: train_size pairs with gradients and the validation split's
candidates without, each pair padded to max_length for the reference, its real tokens for ours. Nothing is timed. The
hours assume that both sides do as many operations per second as the reference did on the task of its README, whose
minutes are published. Figures are in docs/reproduction.md.
"""

import random
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from common import scorer_config
from matrix_products import operations

from cappy.cli.flags import run
from cappy.cli.tables import Column, format_table
from cappy.model.config import EncoderConfig
from cappy.model.tokens import encode_pairs, load_tokenizer
from cappy.study.cells import read_task_names
from cappy.tasks.candidates import read_examples

README_TASK, README_MINUTES = 'auto_categorization', 40  # the reference's README: "40 mins", on an A10G
GRADIENTS = 3  # operations with gradients over those without
SAMPLE_TOKENS = 64  # the longest sample in the paper's files
THEIRS, OURS = ('theirs_train', 'theirs_score'), ('ours_train', 'ours_score')  # ours: before and after adapting


def lengths_of(path, tokenizer, max_length, n_examples):
    """Tokens of each pair of an instruction and a reference, int [n], from n_examples; and the examples in the file."""
    examples = read_examples(path, samples_needed=False)
    chosen = random.Random(0).sample(examples, min(n_examples, len(examples)))
    responses = list(dict.fromkeys(reference for example in chosen for reference in example.references))
    ids = tokenizer(responses, add_special_tokens=False, max_length=SAMPLE_TOKENS, truncation=True)['input_ids']
    cut = dict(zip(responses, tokenizer.batch_decode(ids), strict=True))
    pairs = [(example.instruction, cut[reference]) for example in chosen for reference in example.references]
    return encode_pairs(tokenizer, *zip(*pairs, strict=True), max_length).lengths, len(examples)


def padded_operations(max_length, config):
    """Operations per pair without gradients as the reference does it: padded, and the whole last layer."""
    D, F = config.hidden_size, config.intermediate_size
    layer = 2 * max_length * (4 * D * D + 2 * D * F) + 4 * max_length**2 * D
    return config.num_hidden_layers * layer + 2 * (D * D + D)


def measure(folder, task, tokenizer, config, train_size, max_length, n_samples, n_examples):
    """The row of a task: tokens, and operations of both sides."""
    files = {split: Path(folder) / f'{task}_{split}.jsonl' for split in ('train', 'validation')}
    lengths = {split: lengths_of(path, tokenizer, max_length, n_examples) for split, path in files.items()}
    (train, _), (validation, n_validation) = lengths['train'], lengths['validation']
    n_candidates, padded = n_samples * n_validation, padded_operations(max_length, config)
    row = {
        'task': task,
        'tokens': train.mean(),
        'at the limit': (train == max_length).mean(),
        'theirs_train': GRADIENTS * train_size * padded,
        'theirs_score': n_candidates * padded,
        'ours_train': GRADIENTS * train_size * operations(train, config) / len(train),
        'ours_score': 2 * n_candidates * operations(validation, config) / len(validation),
    }
    return row | {'ratio': sum(row[name] for name in THEIRS) / sum(row[name] for name in OURS)}


def main(
    data_dir='bigbench_data',  # folder of {task}_{split}.jsonl and subset_names.json
    tokenizer='btan2/cappy-large',  # hub name or folder
    train_size=102400,
    max_length=512,
    n_samples=17,  # per instruction, counted as all different
    n_generators=5,
    n_examples=400,  # per file, chosen at random, whose tokens are counted
):
    """Count the operations of a study."""
    words = load_tokenizer(tokenizer)
    config = EncoderConfig.from_published(scorer_config('large'), 'RoBERTa-large')
    found = [task for task in read_task_names(data_dir) if (Path(data_dir) / f'{task}_train.jsonl').exists()]
    numbers = (train_size, max_length, n_samples, n_examples)
    rows = [measure(data_dir, task, words, config, *numbers) for task in found]
    columns = ['task', Column('tokens', decimals=0), Column('at the limit', decimals=2)]
    columns += [Column(name, f'{name}, 1e15', 1e-15, 1) for name in (*THEIRS, *OURS)]
    print(format_table(rows, [*columns, Column('ratio', decimals=1)], 'table'))
    tokens = np.mean([row['tokens'] for row in rows])
    print(f'\n{tokens:.0f} tokens per pair, mean over {len(rows)} tasks')
    readme = next(row for row in rows if row['task'] == README_TASK)
    rate = sum(readme[name] for name in THEIRS) / (60 * README_MINUTES)
    print(f'{README_TASK} in {README_MINUTES} minutes: {rate / 1e12:.1f}e12 operations per second')
    print(f'at that rate, hours of {n_generators} x {len(rows)} cells:')
    for name in (*THEIRS, *OURS):
        print(f'  {name:13} {n_generators * sum(row[name] for row in rows) / rate / 3600:7.1f}')


if __name__ == '__main__':
    run(main)
