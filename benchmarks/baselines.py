"""scripts/present_bigbench_baselines.py on made-up files of BIG-bench's size: 45 tasks x 5 generators.

    python benchmarks/baselines.py
    python benchmarks/baselines.py --folder /tmp/baselines     # keeps the files for the next run

Assumptions about the real files: the 45 validation splits have 16 to 4,000 examples, evenly spread in logarithm but for
a bend that makes their sum 20,000; texts have 2 to 33 words, equally many within a task; each example has one to three
references and 17 samples, nearly all different (real ones repeat, which costs less). Prints the seconds of the whole
command in a new process and, for scale, those of rouge_score in one process, extrapolated from examples spread over the
files of one generator: for the seven rows that the reference prints, and for all rows. Figures are in
docs/benchmarks.md.
"""

import contextlib
import json
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from rouge_score.rouge_scorer import RougeScorer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from common import describe_machine, seconds_of
from rouge import made_up_examples

from cappy.cli.flags import run
from cappy.tasks.candidates import read_examples, write_examples

SCRIPT = Path(__file__).parents[1] / 'scripts' / 'present_bigbench_baselines.py'
GENERATORS = [f'flan-t5-{size}' for size in ('small', 'base', 'large', 'xl', 'xxl')]
DECODINGS = ['beam4', *(['sampling'] * 4), *(['temp0.9'] * 4), *(['topk40'] * 4), *(['topp0.95'] * 4)]
PICKS = ['random candidate', *(f'first of {name}' for name in dict.fromkeys(DECODINGS))]
PICKS += ['self-score sum', 'self-score mean', 'consensus', 'scorer before adapting', 'scorer after adapting', 'oracle']
SMALLEST, LARGEST = 16, 4000


def task_sizes(n_tasks, n_examples):
    """Numbers of examples per task: a geometric series, its middle bent so that the sum is n_examples."""
    steps = [number / (n_tasks - 1) for number in range(n_tasks)]
    low, high = 0.1, 10.0
    for _ in range(60):
        bend = (low + high) / 2
        sizes = [round(SMALLEST * (LARGEST / SMALLEST) ** (step**bend)) for step in steps]
        low, high = (bend, high) if sum(sizes) > n_examples else (low, bend)
    return sizes


def write_task(path, n_examples, number, seed):
    """A validation file of one generator."""
    generator = random.Random(seed)
    n_words = 1 + round(2 ** (5 * generator.random()))
    examples = made_up_examples(n_examples, len(DECODINGS), 1 + number % 3, n_words, seed)
    write_examples(path, (with_decodings(example, generator) for example in examples))


def with_decodings(example, generator):
    """The example with log-likelihoods and the reference's decodings."""
    samples = []
    for sample, decoding in zip(example.samples, DECODINGS, strict=True):
        mean = -generator.expovariate(1)
        total = mean * (1 + sample.response.count(' '))
        samples.append(replace(sample, decoding=decoding, log_likelihood_sum=total, log_likelihood_mean=mean))
    return replace(example, samples=tuple(samples))


def write_names(folder, n_tasks):
    """Write the list of tasks where scripts look for it; returns the list."""
    tasks = [f'task_{number:02}' for number in range(n_tasks)]
    (folder / 'data').mkdir(parents=True, exist_ok=True)
    (folder / 'data' / 'subset_names.json').write_text(json.dumps(tasks))
    return tasks


def write_missing(write, arguments_by_path):
    """Call write(*arguments) for each path that does not exist, in parallel."""
    with ProcessPoolExecutor() as pool:
        jobs = [pool.submit(write, *arguments) for path, arguments in arguments_by_path.items() if not path.exists()]
        for job in jobs:
            job.result()


def write_files(folder, n_tasks, n_examples):
    """Write all validation files and the list of tasks; existing files stay."""
    arguments = {}
    sizes = task_sizes(n_tasks, n_examples)
    for number, (task, size) in enumerate(zip(write_names(folder, n_tasks), sizes, strict=True)):
        for generator, name in enumerate(GENERATORS):
            path = folder / 'gens' / name / f'{task}_validation.jsonl'
            arguments[path] = path, size, number, 1000 * generator + number
    write_missing(write_task, arguments)


def spread_examples(paths, n_examples):
    """About n_examples examples, evenly spread over the files."""
    examples = [example for path in paths for example in read_examples(path)]
    return examples[:: len(examples) // n_examples]


def plain_seconds(examples):
    """Seconds per example that rouge_score takes: (for the reference's seven rows, for all rows)."""
    scorer = RougeScorer(['rougeL'], use_stemmer=True)

    def score_seven():
        for example in examples:
            for sample in example.samples[:7]:
                scorer.score_multi(example.references, sample.response)

    def score_all():
        for example in examples:
            for response in example.candidates:
                scorer.score_multi(example.references, response)
            for pair in combinations(example.candidates, 2):
                scorer.score(*pair)

    return seconds_of(score_seven) / len(examples), seconds_of(score_all) / len(examples)


def main(
    folder: str | None = None,  # folder in which the files are made and kept; default: a temporary one
    n_tasks=45,
    n_examples=20_000,  # per generator, over all its tasks
    n_workers: int | None = None,  # processes; default: one per core
    n_plain=200,  # examples from which rouge_score's time is extrapolated
):
    """Time the table of baselines."""
    with contextlib.ExitStack() as stack:
        folder = Path(folder or stack.enter_context(tempfile.TemporaryDirectory()))
        write_files(folder, n_tasks, n_examples)
        paths = sorted((folder / 'gens').glob('*/*.jsonl'))
        n_bytes = sum(path.stat().st_size for path in paths)
        argv = [sys.executable, SCRIPT, '--data_dir', folder / 'data', '--bigbench_gen_dir', folder / 'gens']
        argv += [] if n_workers is None else ['--n_workers', n_workers]
        seconds = seconds_of(lambda: subprocess.run([str(word) for word in argv], check=True))
        n_all = sum(task_sizes(n_tasks, n_examples)) * len(GENERATORS)
        seven, every = plain_seconds(spread_examples(paths[:n_tasks], n_plain))  # of one generator
    print(describe_machine('rapidfuzz', 'rouge-score', 'numpy'))
    print(f'{len(paths)} files, {n_all} examples, {len(DECODINGS)} samples each, {n_bytes / 2**20:.0f} MiB')
    print(f'all rows                  {seconds:8.1f} s')
    print(f'rouge_score, seven rows   {seven * n_all:8.0f} s')
    print(f'rouge_score, all rows     {every * n_all:8.0f} s')


if __name__ == '__main__':
    run(main)
