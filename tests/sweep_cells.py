"""A small sweep, 3 tasks with the samples of 2 generators: its flags, and checks of its cells, tables and page.

The tests of sweeps on this machine and under Slurm share them.
"""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from conftest import RECORDED, ROOT, load_script, run_main
from test_report import read_page

from cappy.study import results, sweep

SCRIPT = ROOT / 'scripts' / 'run_cappy_bigbench.py'
TASKS = ('tiny_arithmetic', 'tiny_tense', 'tiny_third')
GENERATORS = ('flan-t5-tiny', 'other-lm')
# An update of 16 pairs, as in the recorded run.
CELL_FLAGS = ('--train_size', '512', '--accumulate_grad_batches', '2', '--learning_rate', '5e-5', '--nocompare_before')
SHARED = 'validation instructions are in the train split too'  # 22 of 60 of one task
FORMATS = ('reference', 'table', 'markdown', 'latex', 'csv', 'json')
PICTURES = ('gain', 'heatmap', 'samples', 'scores', 'training')


def sweep_flags(data, results_dir, *more):
    """Flags of a sweep over the fixture sweep_data."""
    argv = ('--data_dir', data, '--bigbench_gen_dir', data / 'gens', '--results_dir', results_dir)
    argv += ('--model_name_or_path', RECORDED / 'tiny-cappy', *CELL_FLAGS, *more)
    return [str(word) for word in argv]


def wait_for(condition, seconds=120):
    """The condition's value as soon as it is true. Raises TimeoutError after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise TimeoutError(f'not within {seconds} s')


def cell_processes(folder):
    """Ids of the processes that make cells."""
    found = set()
    for lock in folder.glob('*/*.lock'):
        if sweep.lock_holder(results.ResultPaths(folder, lock.parent.name, lock.stem)):
            with contextlib.suppress(FileNotFoundError, ValueError):  # it has ended, or not written its id yet
                found.add(json.loads(lock.read_text())['pid'])
    return found


def kill_a_cell_and_the_runner(command, folder, environment=None):
    """Start a sweep; when it has a result, kill the next cell that begins, and when that is tried again, the runner."""
    seen = set()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as runner:
        wait_for(lambda: seen.update(cell_processes(folder)) or list(folder.glob('*/*.json')))
        process = wait_for(lambda: cell_processes(folder) - seen).pop()  # one that is not about to end
        os.kill(process, signal.SIGKILL)
        wait_for(lambda: any('] attempt 2: ' in log.read_text() for log in folder.glob('*/*.log')))
        runner.kill()
    assert 0 < len(list(folder.glob('*/*.json'))) < len(TASKS) * len(GENERATORS)


def check_cells(folder):
    """Exactly the cells' files are there, and one result is as it was recorded."""
    found = sorted(str(path.relative_to(folder)) for path in folder.glob('*/*') if path.parent.name != '.slurm')
    ends = ('.candidates.jsonl', '.json', '.log', '.train.csv')
    assert found == [f'{name}/{task}{end}' for name in GENERATORS for task in TASKS for end in ends]
    recorded = json.loads((RECORDED / 'bigbench' / 'tiny_tense.result.json').read_text())['rougeL']
    ours = results.read_result(folder / 'flan-t5-tiny' / 'tiny_tense.json')['rougeL']
    assert ours == pytest.approx(recorded, abs=1e-6)


def run_script(capsys, name, *argv):
    """(exit code, standard output, standard error) of a script."""
    return run_main(load_script(f'scripts/{name}').main, argv), *capsys.readouterr()


def check_tables_pictures_and_page(data, folder, output_dir, capsys):
    """They show what the six results are. output_dir: for pictures and page. Returns ({cell: rougeL}, the page)."""
    rougeL = {
        (name, task): results.read_result(folder / name / f'{task}.json')['rougeL']
        for name in GENERATORS
        for task in TASKS
    }
    argv = ['--data_dir', data, '--results_dir', folder, '--gen_models', ','.join(GENERATORS)]

    def present(*more):
        return run_script(capsys, 'present_cappy_bigbench_results.py', *argv, *more)

    by_format = {style: present('--format', style, '--show', 'cells') for style in FORMATS}
    assert {code for code, _, _ in by_format.values()} == {0}
    remarks = {style: err for style, (_, _, err) in by_format.items()}
    assert all(SHARED in err for err in remarks.values())
    few = 'no interval and no p, since there are fewer than 5 tasks (3)'
    with_averages = {'table', 'markdown', 'latex'}  # below the cells
    assert {style for style, err in remarks.items() if few in err} == with_averages
    out = {style: text for style, (_, text, _) in by_format.items()}
    reference = json.loads(out['reference'][: out['reference'].rindex('}') + 1])
    assert reference == {name: {task: rougeL[name, task] for task in TASKS} for name in GENERATORS}
    made = {(row['generator'], row['task']): row['rougeL'] for row in json.loads(out['json'])}
    assert {cell: made[cell] for cell in rougeL} == pytest.approx(rougeL)
    made = {(row['generator'], row['task']): row['rougeL'] for row in csv.DictReader(io.StringIO(out['csv']))}
    assert {cell: float(made[cell]) for cell in rougeL} == pytest.approx(rougeL)
    for style in ('table', 'markdown', 'latex'):
        assert all(f'{100 * value:.1f}' in out[style] for value in rougeL.values())
    check_baselines(data, folder, capsys)
    for picture in PICTURES:
        path = output_dir / f'{picture}.png'
        code, _, err = present('--plot', path, '--picture', picture)
        assert code == 0 and f'{path}: written' in err and path.read_bytes().startswith(b'\x89PNG')
    page = output_dir / 'page.html'
    argv = ['--data_dir', data, '--results_dir', folder, '--output', page]
    code, _, err = run_script(capsys, 'report.py', *argv)
    assert code == 0 and [line for line in err.splitlines() if SHARED not in line] == []
    summary, blocks = read_page(page)
    assert {(cell['generator'], cell['task']): cell['rougeL'] for cell in summary['cells']} == rougeL
    assert {key: (len(block['examples']), len(block['training']['loss'])) for key, block in blocks.items()} == {
        key: (30, 32) for key in rougeL
    }
    return rougeL, page


def check_baselines(data, folder, capsys):
    """What the samples give without a scorer is what the results have in their comparisons."""
    argv = ['--data_dir', data, '--bigbench_gen_dir', data / 'gens', '--format', 'json']
    code, out, err = run_script(capsys, 'present_bigbench_baselines.py', *argv)
    assert code == 0, err
    rows = {row['pick']: row for row in json.loads(out)}
    for name in GENERATORS:
        compared = [results.read_result(folder / name / f'{task}.json')['comparison'] for task in TASKS]
        for pick in ('consensus', 'oracle'):
            expected = np.mean([row['rougeL'] for rows in compared for row in rows if row['name'] == pick])
            assert rows[pick][name] == pytest.approx(expected)
