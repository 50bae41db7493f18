"""scripts/report.py on synthetic results of a whole sweep: 45 tasks x 5 generators x 1,000 examples.

    python benchmarks/report.py
    python benchmarks/report.py --folder results_for_report     # keeps the files for the next run

Each example has 17 samples of 10 words, 12 of them different, and an instruction of 30 words. Prints the seconds of the
whole command, the size of the page and, where Chromium is installed: the seconds until it has painted the overview,
until it has read the page, until a cell is shown after a click and until the list of examples turns its page, and the
memory of its script. Recorded numbers are in docs/benchmarks.md.
"""

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from baselines import DECODINGS, GENERATORS, PICKS, write_missing
from common import SYLLABLES, describe_machine, seconds_of

from cappy.cli.flags import run
from cappy.study.results import ResultPaths, describe_candidates, write_result
from cappy.tasks.candidates import Example, Sample, write_examples

ROOT = Path(__file__).parents[1]
N_DIFFERENT, N_UPDATES = 12, 800


def write_cell(folder, name, task, n_examples):
    """Write the result of one cell, and its generator's file."""
    generator = random.Random(f'{name} {task}')
    examples = [make_example(generator, task, number) for number in range(n_examples)]
    write_examples(folder / 'gens' / name / f'{task}_validation.jsonl', examples)
    lines = []
    for example in examples:
        rougeL = np.array([generator.random() for _ in example.candidates])
        scores = np.array([generator.random() for _ in example.candidates], np.float32)
        picked = {pick: generator.choice(rougeL) for pick in PICKS} | {
            'scorer after adapting': rougeL[np.argmax(scores)],
            'oracle': rougeL.max(),
        }
        lines.append(describe_candidates(example, scores, rougeL, picked))
    rows = [
        {'name': pick, 'rougeL': sum(line['picked'][pick] for line in lines) / n_examples, 'low': 0.0, 'high': 1.0}
        for pick in PICKS
    ]
    result = {'rougeL': float(np.mean([line['rougeL'] for line in lines])), 'comparison': rows}
    result['settings'] = {'seed': 11111, 'bigbench_gen_dir': str(folder / 'gens')}
    updates = [(number, 128, 2e-5, 1 / (number + 1), 1.0) for number in range(N_UPDATES)]
    write_result(ResultPaths(folder / 'results', name, task), result, lines, updates)


def make_example(generator, task, number):
    """An example with its samples."""
    syllables = SYLLABLES.split()
    texts = [' '.join(generator.choices(syllables, k=10)) for _ in range(N_DIFFERENT)]
    samples = tuple(
        Sample(texts[place % N_DIFFERENT], decoding, -place, -place) for place, decoding in enumerate(DECODINGS)
    )
    return Example(task, number, ' '.join(generator.choices(syllables, k=30)), (texts[0],), samples)


def write_cells(folder, n_tasks, n_examples):
    """Write all results; existing ones are kept."""
    arguments = {}
    for name in GENERATORS:
        for task in (f'task_{number:02}' for number in range(n_tasks)):
            arguments[ResultPaths(folder / 'results', name, task).result] = folder, name, task, n_examples
    write_missing(write_cell, arguments)


def browse(page_file, folder):
    """Seconds and MiB that a browser takes, by name; None without one."""
    sys.path.insert(0, str(ROOT / 'tests'))
    from chromium import chromium_page, find_chromium

    if find_chromium() is None:
        return None
    with chromium_page(folder) as page:
        page.open(page_file, seconds=600)
        painted = page.run('performance.getEntriesByName("first-contentful-paint")[0].startTime') / 1000
        read = page.run('performance.getEntriesByType("navigation")[0].domContentLoadedEventEnd') / 1000
        fragment = f'#/{GENERATORS[-1]}/task_00'
        start = time.perf_counter()
        page.run(f'location.hash = {json.dumps(fragment)}')
        page.wait('document.querySelector("#cell article")')
        opened = time.perf_counter() - start
        start = time.perf_counter()
        page.run('document.querySelector(".pager button:last-child").click()')
        turned = time.perf_counter() - start
        memory = page.run('performance.memory.usedJSHeapSize')
    return {'painted': painted, 'read': read, 'cell opened': opened, 'page turned': turned, 'memory': memory / 2**20}


def main(
    folder: str | None = None,  # where the files are written, or exist already; default: a temporary folder
    n_tasks=45,
    n_examples=1000,  # per cell
    n_workers: int | None = None,  # processes; default: one per core
):
    """Time the page of a sweep."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        folder = Path(folder or scratch / 'sweep')
        write_cells(folder, n_tasks, n_examples)
        n_bytes = sum(path.stat().st_size for path in (folder / 'results').glob('*/*.jsonl'))
        output = folder / 'report.html'
        argv = [sys.executable, ROOT / 'scripts' / 'report.py', '--results_dir', folder / 'results', '--output', output]
        argv += [] if n_workers is None else ['--n_workers', n_workers]
        seconds = seconds_of(lambda: subprocess.run([*map(str, argv)], check=True, capture_output=True))
        browsed = browse(output, scratch / 'browser')
        size = output.stat().st_size
    print(describe_machine('numpy', 'scipy'))
    n_cells = n_tasks * len(GENERATORS)
    print(f'{n_cells} cells x {n_examples} examples, candidates: {n_bytes / 2**20:.0f} MiB')
    print(f'written in {seconds:.1f} s, {size / 2**20:.1f} MiB')
    for name, value in (browsed or {}).items():
        print(f'{name:12} {value:8.2f} {"MiB of script" if name == "memory" else "s"}')
    if browsed is None:
        print('no Chromium (apt-get install chromium), so the page was not opened')


if __name__ == '__main__':
    run(main)
