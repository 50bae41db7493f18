"""The runner and a queue of Slurm that is played here: jobs cut short, held or of other flags, locks that stay."""

import contextlib
import json
import subprocess

import pytest

from cappy.errors import InputError
from cappy.files.lock import ALLOW_NO_LOCKS, result_lock
from cappy.study import slurm
from cappy.study.results import ResultPaths, write_result
from cappy.study.slurm import QueueState, SlurmOptions, SlurmRunner
from cappy.study.sweep import MARK, Job, find_state

LINE = {'example_idx': 0, 'pick': 0, 'rougeL': 0.5}
LINE['candidates'] = [{'response': 'a', 'score': 0.5, 'rougeL': 0.5, 'decodings': ['beam4']}]


class Queue:
    """Slurm's queue: states by id, and the cells that were submitted."""

    def __init__(self):
        self.states, self.submitted = {}, []

    def submit(self, jobs, folder, options):
        ids = [f'{10 + len(self.submitted)}_{number}' for number in range(len(jobs))]
        self.submitted.append([job.paths.task for job in jobs])
        self.states |= dict.fromkeys(ids, QueueState('PENDING', 'Resources'))
        return ids


@pytest.fixture
def queue(monkeypatch):
    queue = Queue()
    monkeypatch.setattr(slurm, 'queue_states', lambda: dict(queue.states))
    monkeypatch.setattr(slurm, 'submit_array', queue.submit)
    return queue


@pytest.fixture
def make_job(tmp_path):
    def make(task, *flags):
        command = ('python', 'cell.py', f'--results_dir={tmp_path}', f'--bigbench_subset_name={task}', *flags)
        return Job(ResultPaths(tmp_path, 'lm', task), command, ('--tokens_per_device=4',))

    return make


@pytest.fixture
def run(monkeypatch, tmp_path):
    """(jobs, steps: what happens in the queue before each look) -> events, as (event, task, detail)."""

    def run(jobs, *steps, options=None):
        events, left = [], list(steps)
        monkeypatch.setattr(slurm.time, 'sleep', lambda seconds: left.pop(0)())

        def note(event, job, detail):
            if event != 'tick':
                events.append((event, job.paths.task, detail))

        SlurmRunner(jobs, tmp_path, options or SlurmOptions(), note).run()
        assert not left
        return events

    return run


def make(job):
    write_result(job.paths, {'rougeL': 0.5}, [LINE], [])


def nothing():
    pass


def ends(queue, job_id, state='COMPLETED', job=None):
    """A step: a job ends, with a result where its Job is given."""

    def step():
        queue.states[job_id] = QueueState(state)
        if job:
            make(job)

    return step


def kinds(events, task):
    return [event for event, of, _ in events if of == task]


def test_jobs_cut_short_are_submitted_again_and_failed_ones_are_not(queue, make_job, run, tmp_path):
    jobs = {task: make_job(task) for task in ('good', 'bad', 'slow', 'lost', 'cancelled')}

    def first():
        make(jobs['good'])
        jobs['bad'].log.write_text(f'{MARK}2026-01-01T00:00:00+00:00] failed: gens:3: no\n')
        ended = {'10_0': 'COMPLETED', '10_1': 'COMPLETED', '10_2': 'TIMEOUT', '10_4': 'CANCELLED'}
        queue.states |= {job_id: QueueState(state) for job_id, state in ended.items()}
        del queue.states['10_3']  # its node died long ago

    def second():
        make(jobs['slow'])
        make(jobs['lost'])
        queue.states.clear()

    events = run(jobs.values(), nothing, first, nothing, second, nothing)
    assert queue.submitted == [list(jobs), ['slow', 'lost']]
    assert [event[:2] for event in events] == [
        *(('done', 'good'), ('failed', 'bad'), ('again', 'slow'), ('again', 'lost'), ('failed', 'cancelled')),
        *(('done', 'slow'), ('done', 'lost')),
    ]
    assert any('gens:3: no' in str(detail) for _, _, detail in events)
    assert not list(tmp_path.rglob('*.job'))


def test_a_cell_that_slurm_keeps_cutting_short_is_given_up_after_max_resubmits(queue, make_job, run):
    def cut():
        queue.states = dict.fromkeys(queue.states, QueueState('TIMEOUT'))

    events = run([make_job('a')], *[cut] * 6, options=SlurmOptions(max_resubmits=2))
    assert queue.submitted == [['a']] * 3 and kinds(events, 'a') == ['again', 'again', 'failed']


def test_jobs_of_other_flags_are_refused_and_those_of_the_same_are_watched(queue, make_job, run):
    first = make_job('a', '--train_size=512')
    with pytest.raises(IndexError):  # the runner is stopped at its first look
        run([first])
    assert queue.submitted == [['a']] and json.loads(first.queue_record.read_text())['command'] == list(first.command)
    for job, options, words in (
        (make_job('a', '--train_size=1024'), None, "lm/a with train_size '512' (asked for: '1024')"),
        (make_job('a'), None, "train_size '512' (asked for: 'default')"),
        (make_job('a', '--train_size=512', '--save_dir=s'), None, "save_dir 'default' (asked for: 's')"),
        (first, SlurmOptions(minutes=60, options={'qos': 'x'}), 'slurm_minutes 240 (asked for: 60), slurm_options {}'),
    ):
        with pytest.raises(InputError) as raised:
            run([job, make_job('b')], options=options)
        assert words in str(raised.value) and 'scancel 10_0, and the same command submits' in str(raised.value)
    assert queue.submitted == [['a']] and not make_job('b').queue_record.exists()
    retried = make_job('a', '--train_size=512', '--tokens_per_device=4')  # as a job that ran out of memory has it
    assert kinds(run([retried], ends(queue, '10_0', job=first), nothing), 'a') == ['done']
    assert queue.submitted == [['a']] and not first.queue_record.exists()


def test_a_job_of_an_older_version_whose_flags_are_not_known_is_watched_and_one_that_is_gone_is_not(
    queue, make_job, run
):
    jobs = make_job('a'), make_job('gone')
    for number, job in enumerate(jobs):
        job.queue_record.parent.mkdir(exist_ok=True)
        job.queue_record.write_text(f'{{"job": "7_{number}"}}')
    queue.states['7_0'] = QueueState('RUNNING')
    events = run(jobs, nothing, ends(queue, '7_0', job=jobs[0]), ends(queue, '10_0', job=jobs[1]), nothing)
    assert kinds(events, 'a') == ['started', 'done'] and kinds(events, 'gone') == ['done']
    assert queue.submitted == [['gone']]


def test_a_held_job_is_told_at_once_and_not_waited_for_when_nothing_else_is_left(queue, make_job, run):
    jobs = make_job('a'), make_job('b')

    def hold():
        queue.states['10_0'] = QueueState('PENDING', 'JobHeldUser')

    events = run(jobs, hold, nothing, nothing, ends(queue, '10_1', job=jobs[1]), nothing)
    assert events[0][:2] == ('held', 'a') and 'scontrol release 10_0 lets it run' in events[0][2]
    assert kinds(events, 'b') == ['done'] and kinds(events, 'a') == ['held', 'failed']
    assert events[-1][2].startswith('Slurm job 10_0 does not start by itself (JobHeldUser)')
    assert jobs[0].queue_record.exists()  # the next runner finds the job
    queue.states['10_0'] = QueueState('PENDING', 'Priority')
    assert kinds(run(jobs[:1], nothing, ends(queue, '10_0', job=jobs[0]), nothing), 'a') == ['done']
    assert queue.submitted == [['a', 'b']]


def test_a_released_job_counts_as_waiting_again(queue, make_job, run):
    job = make_job('a')

    def state(*words):
        return lambda: queue.states.update({'10_0': QueueState(*words)})

    held, waits = state('REQUEUE_HOLD'), state('PENDING', 'Resources')
    events = run([job], held, waits, held, waits, ends(queue, '10_0', job=job), nothing)
    assert kinds(events, 'a') == ['held', 'held', 'done']


def test_the_lock_of_a_vanished_node_is_waited_for_and_its_cell_submitted_again(queue, make_job, run):
    job, held = make_job('a'), contextlib.ExitStack()

    def vanish():
        queue.states['10_0'] = QueueState('NODE_FAIL')
        held.enter_context(result_lock(job.paths))

    steps = vanish, nothing, nothing, nothing, held.close, ends(queue, '11_0', job=job), nothing
    events = run([job], *steps)
    assert kinds(events, 'a') == ['waiting', 'again', 'done'] and queue.submitted == [['a'], ['a']]
    assert 'Slurm job 10_0: NODE_FAIL; process ' in events[0][2] and 'waited for 10 min' in events[0][2]


def test_a_cell_whose_lock_stays_is_left_to_it_and_taken_up_when_it_is_gone(queue, make_job, run, monkeypatch):
    monkeypatch.setattr(slurm, 'LOCK_SECONDS', -1)
    jobs = make_job('a'), make_job('b')
    held = contextlib.ExitStack()

    def vanish():
        queue.states['10_0'] = QueueState('NODE_FAIL')
        held.enter_context(result_lock(jobs[0].paths))

    steps = vanish, nothing, nothing, held.close, ends(queue, '11_0', job=jobs[0]), nothing
    events = run(jobs, *steps, ends(queue, '10_1', job=jobs[1]), nothing)
    assert kinds(events, 'a') == ['waiting', 'elsewhere', 'done'] and kinds(events, 'b') == ['done']
    assert queue.submitted == [['a', 'b'], ['a']]


def test_a_cell_of_another_process_is_not_submitted_and_its_result_is_noticed(queue, make_job, run):
    jobs, held = (make_job('a'), make_job('b')), contextlib.ExitStack()
    held.enter_context(result_lock(jobs[0].paths))

    def made_elsewhere():
        make(jobs[0])
        held.close()

    events = run(jobs, made_elsewhere, ends(queue, '10_0', job=jobs[1]), nothing)
    assert kinds(events, 'a') == ['elsewhere', 'done'] and queue.submitted == [['b']]
    held.enter_context(result_lock(make_job('c').paths))
    assert kinds(run([make_job('c')]), 'c') == ['elsewhere']  # nothing else to wait for
    held.close()


def test_slurm_may_fail_for_a_while_but_not_for_ever(queue, make_job, run, monkeypatch):
    job = make_job('a')

    def fail(*arguments):
        raise InputError('Slurm refused the jobs: too many')

    def refuse():
        queue.states['10_0'] = QueueState('PREEMPTED')
        monkeypatch.setattr(slurm, 'submit_array', fail)

    def accept():
        monkeypatch.setattr(slurm, 'submit_array', queue.submit)

    steps = refuse, nothing, nothing, accept, ends(queue, '11_0', job=job), nothing
    assert kinds(run([job], *steps), 'a') == ['again', 'done'] and queue.submitted == [['a'], ['a']]
    monkeypatch.setattr(slurm, 'SILENT_SECONDS', -1)
    with pytest.raises(InputError, match='too many; its jobs may run on, and the same command watches them again'):
        run([make_job('b')], lambda: monkeypatch.setattr(slurm, 'queue_states', fail))


def test_jobs_whose_records_cannot_be_written_are_submitted_once(queue, make_job, run, monkeypatch):
    jobs = make_job('a'), make_job('b')
    write = slurm.write_atomically

    def cut():
        queue.states |= dict.fromkeys(('10_0', '10_1'), QueueState('PREEMPTED'))
        monkeypatch.setattr(slurm, 'write_atomically', full)

    def full(path):
        raise InputError(f'{path}: cannot be written (No space left on device)')

    def make_room():
        monkeypatch.setattr(slurm, 'write_atomically', write)
        ends(queue, '11_0', job=jobs[0])()
        ends(queue, '11_1', job=jobs[1])()

    events = run(jobs, cut, nothing, make_room, nothing)
    assert kinds(events, 'a') == kinds(events, 'b') == ['again', 'done'] and queue.submitted == [['a', 'b']] * 2


def test_the_queue_is_read_with_the_reasons_for_which_jobs_wait(monkeypatch, make_job):
    output = '12_0 PENDING Resources\n12_1 PENDING launch failed requeued held\n12_2 RUNNING None\n13 COMPLETED\n\n'
    monkeypatch.setattr(subprocess, 'run', lambda command, **rest: subprocess.CompletedProcess(command, 0, output, ''))
    monkeypatch.setattr(slurm.shutil, 'which', lambda name: name)
    states = slurm.queue_states()
    assert [states[name].held for name in states] == [None, 'launch failed requeued held', None, None]
    assert [name for name in states if slurm.is_queued(name, states)] == ['12_0', '12_1', '12_2']
    job = make_job('a')
    job.queue_record.parent.mkdir()
    job.queue_record.write_text('{"job": "12_1"}')
    state = find_state(job, slurm.queued_states([job]))
    assert state.kind == 'queued' and state.why == (
        'pending, Slurm job 12_1, does not start by itself (launch failed requeued held)'
    )
    job.queue_record.write_text('{"job": 12}')
    assert slurm.read_job_id(job) is None


def test_a_sweep_that_goes_without_locks_hands_that_to_its_jobs(monkeypatch, make_job, tmp_path):
    submitit = pytest.importorskip('submitit')
    asked = {}

    class Executor:
        def __init__(self, *arguments, **options):
            pass

        def update_parameters(self, **parameters):
            asked.update(parameters)

        def batch(self):
            return contextlib.nullcontext()

        def submit(self, job):
            return type('Submitted', (), {'job_id': '1_0'})

    monkeypatch.setattr(submitit, 'AutoExecutor', Executor)
    monkeypatch.setenv(ALLOW_NO_LOCKS, '1')
    assert slurm.submit_array([make_job('a')], tmp_path, SlurmOptions()) == ['1_0']
    assert f'export {ALLOW_NO_LOCKS}=1' in asked['slurm_setup']
