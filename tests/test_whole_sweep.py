"""A sweep of 3 tasks and 2 generators that is killed and goes on, and what is read of it: tables, pictures, page."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from chromium import chromium_page, find_chromium
from test_present_bigbench_baselines import script as baselines_script
from test_present_cappy_bigbench_results import present
from test_report import read_page
from test_report import script as report_script
from test_run_cappy_bigbench import GENERATORS, RECORDED, SCRIPT, TASKS, flags_of, sweep_data  # noqa: F401  a fixture

from cappy.cli import flags
from cappy.study import results, sweep

FORMATS = ('reference', 'table', 'markdown', 'latex', 'csv', 'json')
PICTURES = ('gain', 'heatmap', 'samples', 'scores', 'training')


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise TimeoutError


def workers(folder):
    """The processes that make cells."""
    found = set()
    for lock in folder.glob('*/*.lock'):
        if sweep.lock_holder(results.ResultPaths(folder, lock.parent.name, lock.stem)):
            with contextlib.suppress(FileNotFoundError, ValueError):  # gone meanwhile, or not written yet
                found.add(json.loads(lock.read_text())['pid'])
    return found


def kill_a_worker_and_the_runner(command, folder, environment=None):
    """Start a sweep; when it has a result, kill the next cell that begins, and when that is tried again, the runner."""
    seen = set()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as runner:
        wait_for(lambda: seen.update(workers(folder)) or list(folder.glob('*/*.json')))
        worker = wait_for(lambda: workers(folder) - seen).pop()  # one that is not about to end
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: any('] attempt 2: ' in log.read_text() for log in folder.glob('*/*.log')))
        runner.kill()
    assert 0 < len(list(folder.glob('*/*.json'))) < len(TASKS) * len(GENERATORS)


def check_cells(folder):
    """Exactly the cells' files are there, and one is as it was recorded."""
    found = sorted(str(path.relative_to(folder)) for path in folder.glob('*/*') if path.parent.name != '.slurm')
    ends = ('.candidates.jsonl', '.json', '.log', '.train.csv')
    assert found == [f'{name}/{task}{end}' for name in GENERATORS for task in TASKS for end in ends]
    recorded = json.loads((RECORDED / 'bigbench' / 'tiny_tense.result.json').read_text())['rougeL']
    ours = results.read_result(folder / 'flan-t5-tiny' / 'tiny_tense.json')['rougeL']
    assert ours == pytest.approx(recorded, abs=1e-6)


def check_what_is_read(data, folder, place, capsys):
    """Tables, pictures and the page say what the six results say. place: for pictures and page."""
    rougeL = {
        (name, task): results.read_result(folder / name / f'{task}.json')['rougeL']
        for name in GENERATORS
        for task in TASKS
    }
    argv = ['--bigbench_data_dir', data, '--result_dir', folder, '--gen_model_name', ','.join(GENERATORS)]
    by_format = {style: present(capsys, *argv, '--format', style, '--show', 'cells') for style in FORMATS}
    assert {(code, err) for code, _, err in by_format.values()} == {(0, '')}
    out = {style: text for style, (_, text, _) in by_format.items()}
    reference = json.loads(out['reference'][: out['reference'].rindex('}') + 1])
    assert reference == {name: {task: rougeL[name, task] for task in TASKS} for name in GENERATORS}
    tables = json.loads(out['json']), list(csv.DictReader(io.StringIO(out['csv'])))
    for rows in tables:
        made = {(row['generator'], row['task']): float(row['rougeL']) for row in rows}
        means = {(name, 'Average (3)'): np.mean([rougeL[name, task] for task in TASKS]) for name in GENERATORS}
        assert made == pytest.approx(rougeL | means)
    for style in ('table', 'markdown', 'latex'):
        assert all(f'{100 * value:.2f}' in out[style] for value in rougeL.values())
    check_baselines(data, folder, capsys)
    for picture in PICTURES:
        path = place / f'{picture}.png'
        code, _, err = present(capsys, *argv, '--plot', path, '--picture', picture)
        assert code == 0 and f'{path}: written' in err and path.read_bytes().startswith(b'\x89PNG')
    page = place / 'page.html'
    argv = ['--bigbench_data_dir', data, '--result_dir', folder, '--output', page, '--n_resamples', '50']
    flags.run(report_script.main, [str(word) for word in argv])
    assert capsys.readouterr().err == ''
    summary, blocks = read_page(page)
    assert {(cell['generator'], cell['task']): cell['rougeL'] for cell in summary['cells']} == rougeL
    assert {key: (len(block['examples']), len(block['training']['loss'])) for key, block in blocks.items()} == {
        key: (30, 32) for key in rougeL
    }
    return rougeL, page


def check_baselines(data, folder, capsys):
    """What the samples give without a scorer is what the results have beside theirs."""
    argv = ['--bigbench_data_dir', data, '--bigbench_gen_dir', data / 'gens', '--format', 'json']
    flags.run(baselines_script.main, [str(word) for word in argv])
    rows = {row['pick']: row for row in json.loads(capsys.readouterr().out)}
    for name in GENERATORS:
        compared = [results.read_result(folder / name / f'{task}.json')['comparison'] for task in TASKS]
        for way in ('consensus', 'oracle'):
            beside = np.mean([row['rougeL'] for rows in compared for row in rows if row['name'] == way])
            assert rows[way][name] == pytest.approx(beside)


def check_shown_page(path, rougeL, browser_folder):
    """The page in a browser shows the results, and a cell with all its curves."""
    with chromium_page(browser_folder) as page:
        page.open(path)
        shown = page.run('[...document.querySelectorAll("#grid tbody td")].map(one => one.textContent)')
        assert shown == [f'{100 * rougeL[name, task]:.1f}' for task in TASKS for name in GENERATORS]
        page.run('document.querySelector("#grid tbody a").click()')
        page.wait('document.querySelector("#cell article")')
        assert page.run('document.querySelectorAll("#cell svg.chart").length') == 4 and page.messages == []


@pytest.mark.slow
def test_a_sweep_goes_on_after_kills_and_all_tables_pictures_and_the_page_tell_its_results(
    sweep_data,  # noqa: F811
    tmp_path,
    capsys,
):
    folder = tmp_path / 'out'
    command = [sys.executable, SCRIPT, *flags_of(sweep_data, folder, '--workers', '2', '--checkpoint_every', '5')]
    kill_a_worker_and_the_runner(command, folder)
    wait_for(lambda: not workers(folder), 10)  # killed with the runner
    status = subprocess.run([*command, '--status'], capture_output=True, text=True)
    assert status.returncode == 1 and ' stopped' in status.stdout and ' running' not in status.stdout
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, '6 done of 6\n'), ended.stderr
    check_cells(folder)
    rougeL, page_file = check_what_is_read(sweep_data, folder, tmp_path, capsys)
    if find_chromium() is not None:
        check_shown_page(page_file, rougeL, tmp_path / 'browser')
