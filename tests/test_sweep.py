"""The runner of a sweep, with small scripts as cells: which cells it keeps, tries again, leaves alone, takes over."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cappy.errors import InputError
from cappy.files.lock import result_lock
from cappy.study import results, sweep
from cappy.study.sweep import Job, Runner, Worker, find_state, judge

ROOT = Path(__file__).parents[1]

# What cappy_bigbench.py does as a cell: look for the result, take the lock, work, write, report errors.
CELL = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from cappy.cli import flags
from cappy.errors import InputError
from cappy.files.lock import result_lock
from cappy.study import results
def main(results_dir='', generator='', task='', seconds=0.0, what='ok', tokens_per_device=8, save_dir='',
         overwrite=False):
    paths = results.ResultPaths(results_dir, generator, task)
    if paths.result.exists() and not overwrite:
        return
    with result_lock(paths):
        print('working', tokens_per_device, sorted(os.sched_getaffinity(0)), os.environ.get('CUDA_VISIBLE_DEVICES'))
        if what == 'child':
            import subprocess
            print('child', subprocess.Popen(['sleep', '600']).pid, flush=True)
        time.sleep(seconds)
        if what == 'refuse':
            raise InputError('gens/a.jsonl:3: not JSON')
        if what == 'memory' and tokens_per_device > 4:
            raise MemoryError('no room for 1 byte')
        if what == 'segfault':
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == 'bar':
            import tqdm
            for _ in tqdm.tqdm(range(32), 'adapting', mininterval=0):
                time.sleep(0.002)
        if what == 'bug':
            raise KeyError('no such key')
        line = {'example_idx': 0, 'pick': 0, 'rougeL': 0.5,
                'candidates': [{'response': 'a', 'score': 0.5, 'rougeL': 0.5, 'decodings': ['beam4']}]}
        results.write_result(paths, {'rougeL': 0.5}, [line], [(0, 8, 0.0, 0.1, 0.2)])
        with open(f'{results_dir}/made', 'a') as file:
            file.write(f'{generator}/{task}\\n')
flags.run(main, sys.argv[2:])
"""


@pytest.fixture
def make_job(tmp_path):
    script = tmp_path / 'cell.py'
    script.write_text(CELL)

    def make(task, folder=tmp_path / 'out', overwrite=False, **given):
        paths = results.ResultPaths(folder, 'lm', task)
        given |= {'results_dir': folder, 'generator': 'lm', 'task': task}
        words = [f'--{name}={value}' for name, value in given.items()] + (['--overwrite'] if overwrite else [])
        command = (sys.executable, str(script), str(ROOT), *words)
        return Job(paths, command, ('--tokens_per_device=4',), given.get('save_dir'), overwrite)

    return make


@pytest.fixture
def run():
    """(jobs, workers) -> events of a sweep, as (event, name of the task, detail)."""

    def run(jobs, workers=2):
        events = []

        def note(event, job, detail):
            if event != 'tick':
                events.append((event, job.paths.task, detail))

        Runner(jobs, [Worker()] * workers if isinstance(workers, int) else workers, note, poll_seconds=0.02).run()
        return events

    return run


def kinds(events, task):
    return [event for event, of, _ in events if of == task]


def test_all_cells_are_made_and_one_that_fails_stops_no_other(make_job, run):
    jobs = [make_job('a'), make_job('b', what='refuse'), make_job('c')]
    events = run(jobs)
    assert [find_state(job).kind for job in jobs] == ['done', 'failed', 'done']
    assert find_state(jobs[1]).why == f'gens/a.jsonl:3: not JSON ({jobs[1].log})'
    assert kinds(events, 'a') == kinds(events, 'c') == ['started', 'done']
    assert kinds(events, 'b') == ['started', 'failed']
    assert {job.paths.task: job.paths.lock.exists() for job in jobs} == {'a': False, 'b': False, 'c': False}


def test_a_finished_cell_is_kept_and_a_failed_one_is_tried_by_the_next_sweep(make_job, run):
    assert kinds(run([make_job('a'), make_job('b', what='refuse')]), 'b') == ['started', 'failed']
    before = make_job('a').paths.result.stat()
    events = run([make_job('a'), make_job('b')])
    assert kinds(events, 'a') == ['done'] and kinds(events, 'b') == ['started', 'done']
    assert make_job('a').paths.result.stat() == before
    assert (make_job('a').paths.results_dir / 'made').read_text() == 'lm/a\nlm/b\n'


def test_a_cell_out_of_memory_is_tried_once_more_with_fewer_tokens(make_job, run):
    job = make_job('a', what='memory')
    events = run([job])
    assert kinds(events, 'a') == ['started', 'again', 'started', 'done']
    printed = [line for line in job.log.read_text().splitlines() if line.startswith('working')]
    assert [line.split()[1] for line in printed] == ['8', '4']


def test_a_crash_is_tried_once_more_and_then_named(make_job, run):
    job = make_job('a', what='segfault', tokens_per_device=16)
    events = run([job])
    assert kinds(events, 'a') == ['started', 'again', 'started', 'failed']
    assert (
        events[-1][2]
        == 'killed by SIGSEGV; last line of its log: '
        + [line for line in job.log.read_text().splitlines() if line.startswith('working')][-1]
    )
    printed = [line for line in job.log.read_text().splitlines() if line.startswith('working')]
    assert [line.split()[1] for line in printed] == ['16', '4']


@pytest.mark.parametrize('what, why', [('refuse', 'gens/a.jsonl:3: not JSON'), ('bug', "KeyError: 'no such key'")])
def test_bad_input_and_bugs_are_not_tried_again(what, why, make_job, run):
    events = run([make_job('a', what=what)])
    assert events == [('started', 'a', 1), ('failed', 'a', why)]


def test_a_cell_that_a_live_process_holds_is_left_to_it_and_reported(make_job, run):
    job = make_job('a')
    with result_lock(job.paths):
        events = run([job, make_job('b')])
        assert kinds(events, 'a') == ['elsewhere'] and kinds(events, 'b') == ['started', 'done']
        assert f'process {os.getpid()} on ' in events[0][2]
        assert find_state(job).kind == 'running'
    assert find_state(job).kind == 'missing'


def test_a_cell_that_is_made_elsewhere_meanwhile_is_not_made_twice(make_job, run):
    with subprocess.Popen(make_job('a', seconds=1).command) as other:
        while not sweep.lock_holder(make_job('a').paths):
            time.sleep(0.01)
        events = run([make_job('a'), make_job('b', seconds=1.5)])
    assert other.returncode == 0
    assert kinds(events, 'a') == ['elsewhere', 'done']
    assert sorted((make_job('a').paths.results_dir / 'made').read_text().split()) == ['lm/a', 'lm/b']


def test_the_lock_of_a_dead_process_is_taken_over(make_job, run):
    job = make_job('a')
    job.paths.lock.parent.mkdir(parents=True)
    job.paths.lock.write_text(json.dumps({'host': 'elsewhere', 'pid': 1, 'since': '2026-01-01T00:00:00+00:00'}))
    assert find_state(job).kind == 'missing'
    assert kinds(run([job]), 'a') == ['started', 'done'] and not job.paths.lock.exists()


def test_a_corrupt_result_is_named_and_neither_counted_nor_deleted(make_job):
    job = make_job('a')
    job.paths.result.parent.mkdir(parents=True)
    job.paths.result.write_text('{"rougeL": 0.')
    state = find_state(job)
    assert state.kind == 'corrupt' and str(job.paths.result) in state.why
    assert job.paths.result.read_text() == '{"rougeL": 0.'


def test_with_overwrite_an_old_result_does_not_make_a_failed_cell_look_done(make_job, run):
    assert kinds(run([make_job('a')]), 'a') == ['started', 'done']
    assert kinds(run([make_job('a', what='refuse', overwrite=True)]), 'a') == ['started', 'failed']
    assert kinds(run([make_job('a', overwrite=True)]), 'a') == ['started', 'done']
    assert (make_job('a').paths.results_dir / 'made').read_text() == 'lm/a\nlm/a\n'


def test_each_worker_has_its_cores_and_device_and_runs_one_cell_at_a_time(make_job, run):
    cores = sweep.share_cores(min(2, len(os.sched_getaffinity(0))))
    workers = [Worker({'CUDA_VISIBLE_DEVICES': str(number)}, part) for number, part in enumerate(cores)]
    jobs = [make_job(name, seconds=0.2) for name in 'abcd']
    n_running, most = 0, 0
    for event, _, _ in run(jobs, workers):
        n_running += {'started': 1, 'done': -1}[event]
        most = max(most, n_running)
    assert most == len(workers)
    seen = {job.log.read_text().split('working 8 ')[1].splitlines()[0] for job in jobs}
    assert seen == {f'{sorted(part)} {number}' for number, part in enumerate(cores)}
    assert sorted(core for part in cores for core in part) == sorted(os.sched_getaffinity(0))


def test_more_workers_than_cores_are_refused():
    with pytest.raises(InputError, match='--workers 100000: expected 1 to'):
        sweep.share_cores(100000)


def test_processes_that_a_cell_started_end_with_it(make_job, run):
    job = make_job('a', what='child')
    run([job])
    pid = int(job.log.read_text().split('\nchild ')[1].split()[0])
    assert wait_until(lambda: not is_alive(pid))


def is_alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_log_that_cannot_be_written_fails_its_cell_alone(make_job, run, tmp_path):
    (tmp_path / 'file').write_text('')
    events = run([make_job('a', folder=tmp_path / 'file' / 'out'), make_job('b')])
    assert kinds(events, 'a') == ['failed'] and 'a.log: cannot be written' in events[0][2]
    assert kinds(events, 'b') == ['started', 'done']


def test_a_full_disk_fails_the_cell_and_leaves_no_result(make_job, run, tmp_path):
    folder = tmp_path / 'small'
    folder.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', folder], capture_output=True)
    if mounted.returncode:
        pytest.skip('needs the right to mount a small tmpfs')
    try:
        job = make_job('a', folder=folder)
        job.log.parent.mkdir()
        filler = folder / 'filler'
        with open(filler, 'wb', buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(1024))
        os.truncate(filler, filler.stat().st_size - 8192)  # room for the log and the lock, a page each
        events = run([job])
        assert kinds(events, 'a')[-1] == 'failed' and not job.paths.result.exists()
        assert 'cannot be written (No space left on device)' in events[-1][2]
        filler.unlink()
        assert kinds(run([job]), 'a') == ['started', 'done']
        assert find_state(job).kind == 'done' and not job.paths.lock.exists()
    finally:
        subprocess.run(['umount', folder], check=True)


def test_a_cell_whose_scorer_could_not_be_saved_has_a_result_and_is_reported_as_failed(make_job, run, tmp_path):
    saved = tmp_path / 'saved'
    events = run([make_job('a', save_dir=str(saved))])  # the cell of these tests saves none
    assert kinds(events, 'a') == ['started', 'failed'] and f'its scorer is not in {saved}' in events[-1][2]
    saved.mkdir()
    assert kinds(run([make_job('b', save_dir=str(saved))]), 'b') == ['started', 'done']


def test_only_a_scorer_saved_by_a_killed_attempt_is_replaced(make_job, tmp_path):
    saved = tmp_path / 'saved'
    saved.mkdir()
    job = make_job('a', save_dir=str(saved))
    job.log.parent.mkdir(parents=True)
    assert not sweep.is_save_dir_unfinished(job)
    mark = f'{sweep.MARK}2026-01-01T00:00:00+00:00] attempt 1: {" ".join(job.command)}\n'
    job.log.write_text(mark)
    assert sweep.is_save_dir_unfinished(job)
    job.log.write_text(f'{mark}{sweep.MARK}2026-01-01T00:00:00+00:00] failed: {saved}: exists and is not empty\n')
    assert not sweep.is_save_dir_unfinished(job)


ENDS = {  # exit code, the last error in the log, another process that has the cell -> kind, why
    'input error': ((1, 'a.jsonl:3: no', None), ('failed', 'a.jsonl:3: no')),
    'out of memory': ((75, 'RESOURCE_EXHAUSTED: x', None), ('crashed', 'RESOURCE_EXHAUSTED: x')),
    'an input error about memory': (
        (1, 'a.jsonl:1: found "MemoryError"', None),
        ('failed', 'a.jsonl:1: found "MemoryError"'),
    ),
    'killed': (
        (-9, 'loading', None),
        ('crashed', 'killed by SIGKILL, often for lack of memory; last line of its log: loading'),
    ),
    'aborted': ((-6, '', None), ('crashed', 'killed by SIGABRT')),
    'interrupted': ((130, 'interrupted', None), ('stopped', 'interrupted')),
    'interrupted before Python runs': ((-2, '', None), ('stopped', 'interrupted')),
    'locked': ((1, 'x.lock: process 1 works on this', 'process 1'), ('locked', 'process 1')),
    'silent': ((3, '', None), ('failed', 'exit code 3, and nothing was printed')),
    'no result and exit code 0': ((0, 'finished', None), ('failed', 'finished')),
}


@pytest.mark.parametrize('case', ENDS)
def test_how_an_attempt_ended_is_decided_by_its_exit_code(case):
    (returncode, message, holder), expected = ENDS[case]
    outcome = judge(returncode, message, is_done=False, holder=holder)
    assert (outcome.kind, outcome.why) == expected
    assert judge(returncode, message, is_done=True, holder=holder) == sweep.Outcome('done')


LOGS = {
    'adapting: 3%|\r adapting: 9%|\nerror: a.jsonl:3: no\n': 'a.jsonl:3: no',
    'Traceback:\n  File "x"\nKeyError: 3\n\nnote': 'KeyError: 3',
    'E\njax.errors.JaxRuntimeError: INTERNAL: x\n----\nFor simplicity': 'jax.errors.JaxRuntimeError: INTERNAL: x',
    'loading\nadapting:  37%|###  | 12/32': 'loading',
    f'{sweep.MARK}now] attempt 1: x\n': '',
}


@pytest.mark.parametrize('log', LOGS)
def test_the_last_error_of_a_log_is_found_among_bars_and_remarks(log):
    assert sweep.last_error(log) == LOGS[log]


def test_progress_is_that_of_the_last_bar_of_the_latest_attempt(tmp_path, make_job, run):
    job = make_job('a', what='bar')
    assert sweep.read_progress(job.log) == ''
    run([job])
    assert sweep.read_progress(job.log) == ''  # the attempt has ended
    text = job.log.read_text()
    assert sweep.read_progress(write(tmp_path / 'log', text[: text.rindex(sweep.MARK)])) == 'adapting 32/32, 00:00 left'
    bars = 'scoring (before):   0%|          | 0/90 [00:00<?, ?pair/s]'
    assert sweep.read_progress(write(tmp_path / 'log', f'{text}{bars}')) == 'scoring (before) 0/90'
    bars += '\rscoring (before):  50%|#####     | 45/90 [01:00<01:02, 1.3s/pair]'
    assert sweep.read_progress(write(tmp_path / 'log', f'{text}{bars}')) == 'scoring (before) 45/90, 01:02 left'


def write(path, text):
    path.write_text(text)
    return path


DRIVER = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
from cappy.study import sweep
import signal
signal.signal(signal.SIGTERM, signal.default_int_handler)
jobs = pickle.load(open(sys.argv[2], 'rb'))
sweep.Runner(jobs, [sweep.Worker()] * 2, lambda *event: None, poll_seconds=0.01).run()
"""


@pytest.fixture
def start_driver(tmp_path):
    """jobs -> a runner in a process of its own."""
    import pickle

    (tmp_path / 'driver.py').write_text(DRIVER)

    def start(jobs):
        (tmp_path / 'jobs').write_bytes(pickle.dumps(jobs))
        return subprocess.Popen([sys.executable, tmp_path / 'driver.py', ROOT, tmp_path / 'jobs'])

    return start


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_runner_ends_its_cells_and_the_next_one_makes_them(number, make_job, start_driver):
    jobs = [make_job(name, seconds=30, what='ok') for name in 'ab']
    runner = start_driver(jobs)
    # A lock is written to a moment after it is taken.
    assert wait_until(lambda: all(sweep.lock_holder(job.paths) and job.paths.lock.read_text() for job in jobs))
    pids = [json.loads(job.paths.lock.read_text())['pid'] for job in jobs]
    runner.send_signal(number)
    runner.wait(20)
    assert wait_until(lambda: not any(map(is_alive, pids)))
    # A process's files are closed when the last of its threads is gone, which may be later.
    assert wait_until(lambda: [find_state(job).kind for job in jobs] == ['stopped', 'stopped'])
    again = start_driver([make_job(name) for name in 'ab'])
    assert again.wait(30) == 0
    assert [find_state(job).kind for job in jobs] == ['done', 'done']


@pytest.mark.parametrize('n_kills', [3, pytest.param(20, marks=pytest.mark.slow)])
def test_after_kills_at_random_moments_there_are_exactly_the_results_of_the_cells(n_kills, make_job, start_driver):
    names = 'abcdefghijkl' if n_kills > 3 else 'abcd'
    jobs = [make_job(name, seconds=0.1) for name in names]
    generator = random.Random(0)
    for _ in range(n_kills):
        runner = start_driver(jobs)
        time.sleep(generator.uniform(0.05, 0.8))
        runner.send_signal(generator.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        runner.wait(20)
        for job in jobs:  # a result that exists is whole
            if job.paths.result.exists():
                assert results.read_result(job.paths.result) and results.read_candidates(job.paths.candidates)
    assert start_driver(jobs).wait(60) == 0
    for job in jobs:
        sweep.tidy(job)
    place = jobs[0].paths.result.parent
    ends = ('.candidates.jsonl', '.json', '.log', '.train.csv')
    assert sorted(path.name for path in place.iterdir()) == sorted(f'{name}{end}' for name in names for end in ends)
    assert [find_state(job).kind for job in jobs] == ['done'] * len(names)
