"""The runner of a sweep, with cells that are small scripts: what it keeps, repeats, leaves alone and takes over."""

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
from cappy.study.sweep import Job, Runner, Slot, find_state, judge

ROOT = Path(__file__).parents[1]

# A cell as cappy_bigbench.py is one to the runner: it looks for its result, takes the lock, works, writes, says errors.
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
            raise RuntimeError('RESOURCE_EXHAUSTED: out of memory while trying to allocate 1 byte')
        if what == 'segfault':
            os.kill(os.getpid(), signal.SIGSEGV)
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
    """(jobs, n_slots) -> events of a sweep, as (event, name of the task, detail)."""

    def run(jobs, slots=2):
        events = []

        def note(event, job, detail):
            if event != 'tick':
                events.append((event, job.paths.task, detail))

        Runner(jobs, [Slot()] * slots if isinstance(slots, int) else slots, note, poll_seconds=0.02).run()
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


def test_a_crash_is_tried_once_more_with_the_same_tokens_and_then_named(make_job, run):
    job = make_job('a', what='segfault', tokens_per_device=16)
    events = run([job])
    assert kinds(events, 'a') == ['started', 'again', 'started', 'failed']
    assert (
        events[-1][2]
        == 'killed by SIGSEGV; it said last: '
        + [line for line in job.log.read_text().splitlines() if line.startswith('working')][-1]
    )
    assert job.log.read_text().count('\nworking 16') == 2


@pytest.mark.parametrize('what, words', [('refuse', 'gens/a.jsonl:3: not JSON'), ('bug', "KeyError: 'no such key'")])
def test_bad_input_and_bugs_are_not_tried_again(what, words, make_job, run):
    events = run([make_job('a', what=what)])
    assert events == [('started', 'a', 1), ('failed', 'a', words)]


def test_a_cell_that_a_live_process_holds_is_left_alone_and_said(make_job, run):
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


def test_each_slot_has_its_cores_and_device_and_runs_one_cell_at_a_time(make_job, run):
    cores = sweep.share_cores(min(2, len(os.sched_getaffinity(0))))
    slots = [Slot({'CUDA_VISIBLE_DEVICES': str(number)}, part) for number, part in enumerate(cores)]
    jobs = [make_job(name, seconds=0.2) for name in 'abcd']
    n_running, most = 0, 0
    for event, _, _ in run(jobs, slots):
        n_running += {'started': 1, 'done': -1}[event]
        most = max(most, n_running)
    assert most == len(slots)
    seen = {job.log.read_text().split('working 8 ')[1].splitlines()[0] for job in jobs}
    assert seen == {f'{sorted(part)} {number}' for number, part in enumerate(cores)}
    assert sorted(core for part in cores for core in part) == sorted(os.sched_getaffinity(0))


def test_more_workers_than_cores_are_refused():
    with pytest.raises(InputError, match='--workers 100000: expected 1 to'):
        sweep.share_cores(100000)


def test_what_a_cell_leaves_running_ends_with_it(make_job, run):
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


def test_a_full_disk_fails_the_cell_by_name_and_leaves_no_result(make_job, run, tmp_path):
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


def test_a_scorer_saved_by_a_killed_attempt_is_replaced_and_somebody_elses_is_not(make_job, tmp_path):
    saved = tmp_path / 'saved'
    saved.mkdir()
    job = make_job('a', save_dir=str(saved))
    job.log.parent.mkdir(parents=True)
    assert not sweep.left_by_the_dead(job)
    mark = f'{sweep.MARK}2026-01-01T00:00:00+00:00] attempt 1: {" ".join(job.command)}\n'
    job.log.write_text(mark)
    assert sweep.left_by_the_dead(job)
    job.log.write_text(f'{mark}{sweep.MARK}2026-01-01T00:00:00+00:00] failed: {saved}: exists and is not empty\n')
    assert not sweep.left_by_the_dead(job)


ENDS = {
    'error line': (1, 'adapting: 3%|\r adapting: 9%|\nerror: a.jsonl:3: no\n', 'refused', 'a.jsonl:3: no'),
    'traceback': (1, 'Traceback:\n  File "x"\nKeyError: 3\n\nnote', 'refused', 'KeyError: 3'),
    'xla out of memory': (
        1,
        'E\njax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: x\n----\nFor simplicity',
        'memory',
        'jax.',
    ),
    'MemoryError': (1, 'Traceback\nMemoryError\n', 'memory', 'MemoryError'),
    'a text about memory': (1, 'error: a.jsonl:1: found "RESOURCE_EXHAUSTED"', 'refused', 'a.jsonl:1'),
    'device fault': (1, 'XlaRuntimeError: INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS', 'crashed', 'XlaRuntimeError'),
    'killed': (-9, 'loading', 'memory', 'killed by SIGKILL, often for lack of memory; it said last: loading'),
    'aborted for memory': (-6, 'terminate: std::bad_alloc\n', 'memory', 'killed by SIGABRT'),
    'bus error': (-7, '', 'crashed', 'killed by SIGBUS'),
    'interrupted': (130, 'interrupted', 'stopped', 'interrupted'),
    'locked': (
        1,
        'error: x.lock: process 1 on a since b works on this result; wait for it, or stop it',
        'locked',
        'x.lock',
    ),
    'silent': (3, '', 'refused', 'exit code 3, and nothing was printed'),
    'no result and exit code 0': (0, 'done\n', 'refused', 'done'),
}


@pytest.mark.parametrize('case', ENDS)
def test_how_a_process_ended_is_judged_by_its_exit_code_and_last_words(case):
    returncode, text, kind, words = ENDS[case]
    outcome = judge(returncode, text, is_done=False)
    assert outcome.kind == kind and outcome.why.startswith(words), outcome


DRIVER = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
from cappy.study import sweep
import signal
signal.signal(signal.SIGTERM, signal.default_int_handler)
jobs = pickle.load(open(sys.argv[2], 'rb'))
sweep.Runner(jobs, [sweep.Slot()] * 2, lambda *event: None, poll_seconds=0.01).run()
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
def test_a_killed_runner_takes_its_cells_with_it_and_the_next_one_goes_on(number, make_job, start_driver):
    jobs = [make_job(name, seconds=30, what='ok') for name in 'ab']
    runner = start_driver(jobs)
    assert wait_until(lambda: all(sweep.lock_holder(job.paths) for job in jobs))
    pids = [json.loads(job.paths.lock.read_text())['pid'] for job in jobs]
    runner.send_signal(number)
    runner.wait(20)
    assert wait_until(lambda: not any(map(is_alive, pids)))
    # A process's files are closed when the last of its threads is gone, which may be later.
    assert wait_until(lambda: [find_state(job).kind for job in jobs] == ['stopped', 'stopped'])
    again = start_driver([make_job(name) for name in 'ab'])
    assert again.wait(30) == 0
    assert [find_state(job).kind for job in jobs] == ['done', 'done']


def test_after_twenty_kills_at_random_moments_there_are_exactly_the_cells_results(make_job, start_driver):
    jobs = [make_job(name, seconds=0.1) for name in 'abcdefghijkl']
    generator = random.Random(0)
    for _ in range(20):
        runner = start_driver(jobs)
        time.sleep(generator.uniform(0.05, 0.8))
        runner.send_signal(generator.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        runner.wait(20)
        for job in jobs:  # none falsely done
            if job.paths.result.exists():
                assert results.read_result(job.paths.result) and results.read_candidates(job.paths.candidates)
    assert start_driver(jobs).wait(60) == 0
    for job in jobs:
        sweep.tidy(job)
    place = jobs[0].paths.result.parent
    ends = ('.candidates.jsonl', '.json', '.log', '.train.csv')
    assert sorted(path.name for path in place.iterdir()) == sorted(
        f'{name}{end}' for name in 'abcdefghijkl' for end in ends
    )
    assert [find_state(job).kind for job in jobs] == ['done'] * 12
