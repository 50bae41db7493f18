"""scripts/present_cappy_bigbench_results.py on made-up results of a whole sweep: 45 tasks x 5 generators.

    python benchmarks/present_results.py
    python benchmarks/present_results.py --folder /tmp/results     # keeps the files for the next run

Examples as in benchmarks/baselines.py: 20,000 per generator, 16 to 4,000 per task; 12 different candidates each, texts
of 10 words. Prints the seconds of the whole command in a new process: with the results only, and with every file of
candidates read for the intervals of gains (10,000 resamples). Figures are in docs/benchmarks.md.
"""

import contextlib
import random
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from baselines import DECODINGS, GENERATORS, PICKS, task_sizes, write_missing, write_names
from common import SYLLABLES, describe_machine, seconds_of

from cappy.cli.flags import run
from cappy.study.results import ResultPaths, write_result

SCRIPT = Path(__file__).parents[1] / 'scripts' / 'present_cappy_bigbench_results.py'
N_CANDIDATES = 12


def write_cell(paths, n_examples, seed):
    """Write the result of one cell."""
    generator = random.Random(seed)
    texts = [' '.join(generator.choices(SYLLABLES.split(), k=10)) for _ in range(200)]
    lines = [candidates_line(generator, texts, number) for number in range(n_examples)]
    rows = [
        {'name': name, 'rougeL': sum(line['picked'][name] for line in lines) / n_examples, 'low': 0.0, 'high': 1.0}
        for name in PICKS
    ]
    rougeL = sum(line['rougeL'] for line in lines) / n_examples
    write_result(paths, {'rougeL': rougeL, 'settings': {'seed': 11111}, 'comparison': rows}, lines, [])


def candidates_line(generator, texts, number):
    """The line of one example."""
    candidates = [
        {
            'response': generator.choice(texts),
            'score': generator.random(),
            'rougeL': generator.random(),
            'decodings': generator.sample(DECODINGS[::4], 2),
        }
        for _ in range(N_CANDIDATES)
    ]
    pick = max(range(N_CANDIDATES), key=lambda index: candidates[index]['score'])
    picked = {name: generator.choice(candidates)['rougeL'] for name in PICKS}
    rougeL = picked['scorer after adapting'] = candidates[pick]['rougeL']
    return {'example_idx': number, 'pick': pick, 'rougeL': rougeL, 'picked': picked, 'candidates': candidates}


def write_cells(folder, n_tasks, n_examples):
    """Write all results; existing ones stay."""
    arguments = {}
    for task, size in zip(write_names(folder, n_tasks), task_sizes(n_tasks, n_examples), strict=True):
        for name in GENERATORS:
            paths = ResultPaths(folder / 'results', name, task)
            arguments[paths.result] = paths, size, f'{name} {task}'
    write_missing(write_cell, arguments)


def main(
    folder: str | None = None,  # folder in which the files are made and kept; default: a temporary one
    n_tasks=45,
    n_examples=20_000,  # per generator, over all its tasks
    n_workers: int | None = None,  # processes; default: one per core
):
    """Time the tables of a sweep."""
    with contextlib.ExitStack() as stack:
        folder = Path(folder or stack.enter_context(tempfile.TemporaryDirectory()))
        write_cells(folder, n_tasks, n_examples)
        n_bytes = sum(path.stat().st_size for path in (folder / 'results').glob('*/*.jsonl'))
        argv = [sys.executable, SCRIPT, '--data_dir', folder / 'data', '--results_dir', folder / 'results']
        argv += ['--gen_models', 'all', '--format', 'table']
        argv += [] if n_workers is None else ['--n_workers', n_workers]
        seconds = {}
        for name, more in (('results only', ['--nointervals']), ('with intervals', [])):
            command = [str(word) for word in [*argv, *more]]
            seconds[name] = seconds_of(lambda command=command: subprocess.run(command, check=True, capture_output=True))
    print(describe_machine('numpy', 'scipy'))
    n_cells = n_tasks * len(GENERATORS)
    print(f'{n_cells} cells, {n_examples * len(GENERATORS)} examples, candidates: {n_bytes / 2**20:.0f} MiB')
    for name, s in seconds.items():
        print(f'{name:15} {s:8.2f} s')


if __name__ == '__main__':
    run(main)
