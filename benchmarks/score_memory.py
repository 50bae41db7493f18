"""Peak memory of scripts/score.py on many short pairs, and whether a killed run continues to the same file.

    python benchmarks/score_memory.py
    python benchmarks/score_memory.py --n_rows 100000

Writes a file of pairs, scores it with a scorer of random weights (3 layers of width 96) in a process of its own that is
killed on the way, starts the same command again, and compares every row. Figures are in docs/benchmarks.md.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli.flags import run
from cappy.files.partial import OutputPaths

ROOT = Path(__file__).parents[1]
WORDS = 'the cat sat on a mat and saw two red birds paint sing tell me what is it yes no'


def write_pairs(path, n_rows):
    """n_rows short pairs, four responses for each instruction; few are alike."""
    generator, words = np.random.default_rng(0), WORDS.split()
    with open(path, 'w') as file:
        for first in range(0, n_rows, 4):
            instruction = f'question {first}: {" ".join(generator.choice(words, 4))}'
            for n in range(first, min(first + 4, n_rows)):
                response = ' '.join(generator.choice(words, generator.integers(1, 4)))
                file.write(json.dumps({'id': n, 'instruction': instruction, 'response': response}) + '\n')


def start(source, out, model):
    command = [sys.executable, ROOT / 'scripts' / 'score.py', source, '--output', out, '--model_name_or_path', model]
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)


def n_lines(path):
    if not path.exists():
        return 0
    with open(path, 'rb') as file:
        return sum(1 for _ in file)


def main(
    n_rows=1_000_000,
    killed_at=0.4,  # share of the rows after which the first process is killed
    model=str(ROOT / 'tests' / 'recorded' / 'tiny-cappy'),  # of the scorer
):
    """Measure the memory of scoring a file, killed once."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, 'pairs.jsonl'), Path(folder, 'scored.jsonl')
        write_pairs(source, n_rows)
        print(f'{n_rows} rows, {source.stat().st_size / 2**20:.0f} MiB', flush=True)
        began = time.perf_counter()
        process = start(source, out, model)
        while process.poll() is None and n_lines(OutputPaths(out).partial) < killed_at * n_rows:
            time.sleep(0.5)
        process.kill()
        process.wait()
        n_done, first_seconds = n_lines(OutputPaths(out).partial), time.perf_counter() - began
        print(f'killed after {n_done} rows and {first_seconds:.0f} s', flush=True)
        began = time.perf_counter()
        status = start(source, out, model).wait()
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # Linux counts in KiB
        with open(source) as rows, open(out) as scored:
            same = all(
                {**json.loads(row), 'score': (line := json.loads(text))['score']} == line
                for row, text in zip(rows, scored, strict=True)
            )
    print(f'went on to the end in {seconds:.0f} s (exit code {status}), {(n_rows - n_done) / seconds:.0f} rows/s')
    print(f'rows equal and in order: {same}; peak memory of the larger process {peak:.2f} GiB')


if __name__ == '__main__':
    run(main)
