"""scripts/present_cappy_bigbench_results.py on made-up results of a whole sweep: 45 tasks x 5 generators.

    python benchmarks/present_results.py
    python benchmarks/present_results.py --folder /tmp/results     # keeps the files for the next run

Examples as in benchmarks/baselines.py: 20,000 of a generator, 16 to 4,000 of a task; 12 different candidates each,
texts of 10 words. Prints the seconds of the whole command, made from a fresh process: without intervals (results
alone), and with them (every file of candidates read, 2,000 resamples). Figures are in docs/benchmarks.md.
"""

import contextlib
import random
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from baselines import DECODINGS, GENERATORS, WAYS, task_sizes, write_missing, write_names
from common import SYLLABLES, describe_machine, seconds_of

from cappy.cli.flags import run
from cappy.study.results import ResultPaths, write_result

SCRIPT = Path(__file__).parents[1] / 'scripts' / 'present_cappy_bigbench_results.py'
N_CANDIDATES = 12


def write_cell(paths, n_examples, seed):
    """A result of one cell."""
    generator = random.Random(seed)
    texts = [' '.join(generator.choices(SYLLABLES.split(), k=10)) for _ in range(200)]
    lines = [candidates_line(generator, texts, number) for number in range(n_examples)]
    rows = [
        {'name': way, 'rougeL': sum(line['picked'][way] for line in lines) / n_examples, 'low': 0.0, 'high': 1.0}
        for way in WAYS
    ]
    rougeL = sum(line['rougeL'] for line in lines) / n_examples
    write_result(paths, {'rougeL': rougeL, 'settings': {'seed': 11111}, 'comparison': rows}, lines, [])


def candidates_line(generator, texts, number):
    """One example."""
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
    picked = {way: generator.choice(candidates)['rougeL'] for way in WAYS}
    rougeL = picked['scorer after adapting'] = candidates[pick]['rougeL']
    return {'example_idx': number, 'pick': pick, 'rougeL': rougeL, 'picked': picked, 'candidates': candidates}


def write_cells(folder, n_tasks, n_examples):
    """All results; those that are there stay."""
    arguments = {}
    for task, size in zip(write_names(folder, n_tasks), task_sizes(n_tasks, n_examples), strict=True):
        for name in GENERATORS:
            paths = ResultPaths(folder / 'results', name, task)
            arguments[paths.result] = paths, size, f'{name} {task}'
    write_missing(write_cell, arguments)


def main(
    folder: str | None = None,  # where the files are made, or lie already; a temporary one if None
    n_tasks=45,
    n_examples=20_000,  # of a generator, all its tasks together
    n_workers: int | None = None,  # processes; as many as cores if None
):
    """Time the tables of a sweep."""
    with contextlib.ExitStack() as stack:
        folder = Path(folder or stack.enter_context(tempfile.TemporaryDirectory()))
        write_cells(folder, n_tasks, n_examples)
        n_bytes = sum(path.stat().st_size for path in (folder / 'results').glob('*/*.jsonl'))
        argv = [sys.executable, SCRIPT, '--bigbench_data_dir', folder / 'data', '--result_dir', folder / 'results']
        argv += ['--gen_model_name', 'all', '--format', 'table']
        argv += [] if n_workers is None else ['--n_workers', n_workers]
        seconds = {}
        for name, more in (('results alone', ['--nointervals']), ('with intervals', [])):
            command = [str(word) for word in [*argv, *more]]
            seconds[name] = seconds_of(lambda command=command: subprocess.run(command, check=True, capture_output=True))
    print(describe_machine('numpy', 'scipy'))
    n_cells = n_tasks * len(GENERATORS)
    print(f'{n_cells} cells, {n_examples * len(GENERATORS)} examples, candidates: {n_bytes / 2**20:.0f} MiB')
    for name, s in seconds.items():
        print(f'{name:15} {s:8.2f} s')


if __name__ == '__main__':
    run(main)
