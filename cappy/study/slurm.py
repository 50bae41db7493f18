"""A sweep's cells as arrays of Slurm jobs, through submitit; their states from squeue and from the cells' files.

submitit reads states from sacct, which many clusters do not have. So it only submits the jobs and, inside a job,
requeues it when its time runs out. A job that was preempted, ran out of time or lost its node is submitted again and
resumes from its checkpoint. A job that is in the queue with other flags than those given now is never taken for ours.
"""

import dataclasses
import getpass
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cappy.errors import InputError
from cappy.files.atomic import write_atomically
from cappy.files.lock import ALLOW_NO_LOCKS
from cappy.files.settings import differing
from cappy.study import sweep
from cappy.study.sweep import Job, Outcome, Worker

JOB_NAME = 'cappy'
FOLDER = '.slurm'  # submitit's files, in the results folder; hidden, because the other folders are generators
LARGEST_ARRAY = 1000  # Slurm's default MaxArraySize is 1001
WARNING_SECONDS = 120  # for the checkpoint, before a job's time is up; at most a quarter of that time
MAX_TIMEOUTS = 1000  # requeues of one job: with a short time limit a cell may need many
ENDED = ('BOOT_FAIL', 'CANCELLED', 'COMPLETED', 'DEADLINE', 'FAILED', 'NODE_FAIL', 'OUT_OF_MEMORY', 'PREEMPTED')
ENDED += ('REVOKED', 'TIMEOUT')
HELD_STATES = ('REQUEUE_HOLD', 'SPECIAL_EXIT')
# Slurm's reasons for a job to wait that do not pass by themselves, beside those with 'held' in them.
NEVER_STARTS = ('DependencyNeverSatisfied', 'BadConstraints', 'InvalidAccount', 'InvalidQOS')
LOCK_SECONDS = 600  # for the lock of a node that has vanished: NFS keeps it for 90 s, or as its server is set
N_SHOWN = 3  # jobs of other flags that an error describes
SILENT_SECONDS = 600  # in which Slurm must answer again


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """The resources of each cell's job, and how jobs are submitted."""

    partition: str | None = None
    minutes: int = 240
    gpus: int = 1
    cpus: int = 4
    mem_gb: int = 32
    at_once: int = 256  # jobs of an array that may run at the same time
    setup: str | None = None  # shell commands before the cell
    options: Mapping[str, str | bool] = dataclasses.field(default_factory=dict)  # of sbatch; True: one without a value
    max_resubmits: int = 10  # per cell

    def of_a_job(self) -> dict:
        """What each job is submitted with, by flag."""
        names = ('partition', 'minutes', 'gpus', 'cpus', 'mem_gb', 'setup', 'options')
        return {f'slurm_{name}': getattr(self, name) for name in names}


class QueueState(NamedTuple):
    """Slurm's state of a job, such as PENDING, and its reason for that."""

    state: str
    reason: str = ''

    @property
    def held(self) -> str | None:
        """Why the job will not start by itself, if so."""
        if self.state in HELD_STATES:
            return self.reason or self.state
        waits = self.state == 'PENDING'
        return self.reason if waits and ('held' in self.reason.lower() or self.reason in NEVER_STARTS) else None


class CellJob:
    """One cell on a node. submitit calls `checkpoint` when the job is preempted or its time runs out."""

    def __init__(self, job: Job, warning_seconds):
        self.job, self.warning_seconds, self.attempt = job, warning_seconds, None

    def __call__(self):
        return sweep.run_job(self.job, Worker(), on_start=self._note).kind

    def _note(self, attempt):
        self.attempt = attempt

    def checkpoint(self):
        """Let the cell write its checkpoint; returns the job that submitit is to submit again."""
        from submitit.helpers import DelayedSubmission

        if self.attempt is not None:
            self.attempt.ask_to_stop()
            deadline = time.monotonic() + 0.75 * self.warning_seconds
            while self.attempt.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            self.attempt.kill()
            self.attempt.record(Outcome('stopped'))
        return DelayedSubmission(CellJob(self.job, self.warning_seconds))


class SlurmRunner:
    """Submits cells, watches them, and submits again those that were interrupted. Its events are those of sweep.Runner.

    Jobs outlive it: the next runner finds them by the files {task}.job. A cell that another process works on is left to
    it, and made here where that ends without a result. Two more events: 'held' (a job that Slurm will not start by
    itself) and 'waiting' (a job has ended and its lock has not).
    """

    def __init__(self, jobs: Sequence[Job], folder, options: SlurmOptions, on_event: Callable, poll_seconds=10):
        self.folder, self.options, self.on_event, self.poll_seconds = Path(folder), options, on_event, poll_seconds
        self.jobs, self.ids, self.n_submitted, self.began, self.ended = list(jobs), {}, {}, {}, set()
        self.elsewhere, self.held, self.waiting = [], {}, {}
        self.answered = time.monotonic()  # when Slurm did so last
        self.before = {job.name: sweep.identity(job.paths.result) for job in jobs}  # by which a new result is known

    def run(self):
        """Return when Slurm has no more cells that may run. Raises InputError where it does not answer any more."""
        states = queue_states()
        known = [job for job in self.jobs if is_queued(read_job_id(job), states)]
        refuse_other_flags(known, self.options)
        self.ids = {job.name: read_job_id(job) for job in known}
        self.submit()
        while self.jobs:
            self.on_event('tick', None, None)
            time.sleep(self.poll_seconds)
            self.look()

    def look(self):
        """Look once at all cells."""
        try:
            states = queue_states()
            for job in [job for job in self.jobs if job.name in self.ids]:
                self.look_at(job, states)
            self.take_up()
            self.submit()
        except InputError as error:  # Slurm may be restarting; its jobs run on
            if time.monotonic() - self.answered > SILENT_SECONDS:
                raise InputError(f'{error}; its jobs may run on, and the same command watches them again') from error
            return
        self.answered = time.monotonic()
        if self.jobs and all(self.held.get(job.name, 0) > 1 for job in self.jobs):  # seen twice: time to read of it
            for job in list(self.jobs):
                self.drop(job, 'failed', self.describe_held(job, states), forget=False)

    def submit(self):
        """Submit the cells that are not in the queue as one array."""
        free = []
        for job in [job for job in self.jobs if job.name not in self.ids]:
            holder = sweep.lock_holder(job.paths)
            if holder:
                self.leave(job, holder)
            else:
                free.append(job)
        for first in range(0, len(free), LARGEST_ARRAY):
            part = free[first : first + LARGEST_ARRAY]
            job_ids = submit_array(part, self.folder, self.options)
            self.ids |= zip([job.name for job in part], job_ids, strict=True)
            for job in part:
                self.n_submitted[job.name] = self.n_submitted.get(job.name, 0) + 1
            for job, job_id in zip(part, job_ids, strict=True):  # a full disk may end this
                record = {'job': job_id, 'command': job.command, **self.options.of_a_job()}
                with write_atomically(job.queue_record) as file:
                    json.dump(record, file)

    def leave(self, job, holder):
        """Leave a cell to another process for as long as that works on it."""
        self.drop(job, 'elsewhere', holder)
        self.elsewhere.append(job)

    def take_up(self):
        """Watch again the cells that were left to other processes which have ended; of those made, say so."""
        free = [job for job in self.elsewhere if not sweep.lock_holder(job.paths)]
        self.elsewhere = [job for job in self.elsewhere if job not in free]
        self.jobs += free
        for job in free:
            if sweep.identity(job.paths.result) not in (None, self.before[job.name]):
                self.drop(job, 'done', None)

    def look_at(self, job, states):
        """Report a cell that has started or ended; one that was interrupted leaves the queue, to be submitted again."""
        job_id = self.ids[job.name]
        slurm_state = states.get(job_id, QueueState('gone'))
        if is_queued(job_id, states):
            self.note_held(job, states)
            if slurm_state.state == 'RUNNING' and job.name not in self.began:
                self.began[job.name] = time.monotonic()
                self.on_event('started', job, 1)
            return
        self.held.pop(job.name, None)
        if job.name not in self.ended:  # checked twice, because files appear late on some network disks
            self.ended.add(job.name)
            return
        state = sweep.find_state(job)
        if state.kind == 'running':
            self.wait_for_lock(job, f'Slurm job {job_id}: {slurm_state.state}', state.why)
            return
        self.ended.discard(job.name)
        self.waiting.pop(job.name, None)
        if state.kind == 'done' and sweep.identity(job.paths.result) != self.before[job.name]:
            began = self.began.get(job.name)
            self.drop(job, 'done', began and time.monotonic() - began)
        elif state.kind in ('failed', 'corrupt'):
            self.drop(job, 'failed', state.why)
        else:
            self.again(job, job_id, slurm_state.state)

    def note_held(self, job, states):
        """Count the looks at which a job was held, and say so at the first."""
        if states[self.ids[job.name]].held is None:
            self.held.pop(job.name, None)
            return
        self.held[job.name] = self.held.get(job.name, 0) + 1
        if self.held[job.name] == 1:
            self.on_event('held', job, self.describe_held(job, states))

    def describe_held(self, job, states):
        """Why a job does not start, and what to do."""
        job_id = self.ids[job.name]
        return (
            f'Slurm job {job_id} does not start by itself ({states[job_id].held}): scontrol release {job_id} lets it '
            f'run, and the same command watches it; after scancel {job_id} it submits the cell again'
        )

    def wait_for_lock(self, job, why, holder):
        """Wait for the lock of a job that has ended: its node may have vanished. Later the cell is left to the lock."""
        if job.name not in self.waiting:
            self.waiting[job.name] = time.monotonic()
            self.on_event('waiting', job, f'{why}; {holder} has its lock still, waited for {LOCK_SECONDS // 60} min')
        elif time.monotonic() - self.waiting[job.name] > LOCK_SECONDS:
            self.ended.discard(job.name)
            del self.waiting[job.name]
            self.leave(job, f'{why}; {holder} has its lock still')

    def again(self, job, job_id, slurm_state):
        """Take a job that has ended out of the queue, so that its cell is submitted again, where that can help."""
        why = f'Slurm job {job_id}: {slurm_state}'
        is_crash = slurm_state in ('FAILED', 'OUT_OF_MEMORY', 'COMPLETED')
        max_resubmits = 1 if is_crash else self.options.max_resubmits
        if slurm_state in ('CANCELLED', 'DEADLINE') or self.n_submitted.get(job.name, 0) > max_resubmits:
            self.drop(job, 'failed', f'{why} ({self.folder / FOLDER}/{job_id}_0_log.err)')
            return
        self.on_event('again', job, why)
        self.began.pop(job.name, None)
        del self.ids[job.name]
        if slurm_state == 'OUT_OF_MEMORY':
            smaller = dataclasses.replace(job, command=tuple(sweep.with_flags(job.command, job.fewer_tokens)))
            self.jobs[self.jobs.index(job)] = smaller

    def drop(self, job, event, detail, forget=True):
        """Report how a cell ended and stop watching it. forget: its job is not in the queue any more."""
        self.jobs.remove(job)
        self.ids.pop(job.name, None)
        if forget:
            job.queue_record.unlink(missing_ok=True)
        self.on_event(event, job, detail)


def refuse_other_flags(jobs: Sequence[Job], options: SlurmOptions):
    """Raise InputError where a job in the queue was submitted with other flags than its cell is to be made with now."""
    different = {}
    for job in jobs:
        record = _read_record(job)
        if not isinstance(record.get('command'), list):
            continue  # of an older version, or broken
        resources = json.loads(json.dumps(options.of_a_job()))
        made = {name: record.get(name) for name in resources} | _flags_of(record['command'])
        asked = resources | _flags_of(job.command)
        fewer = _flags_of(job.fewer_tokens)  # of a job that ran out of memory: the same result
        names = [name for name in {**made, **asked} if name not in fewer and name != 'results_dir']
        made, asked = ({name: values.get(name, 'default') for name in names} for values in (made, asked))
        if other := differing(made, asked):
            different[record['job']] = f'{job.name} with {", ".join(other)}'
    if different:
        shown = '; '.join(list(different.values())[:N_SHOWN]) + ('; ..' if len(different) > N_SHOWN else '')
        raise InputError(
            f'{len(different)} Slurm jobs in the queue were submitted with other flags: {shown}. Give the same '
            f'flags or another results folder; or end the jobs, scancel {" ".join(different)}, and the same command '
            'submits their cells with the new flags'
        )


def _flags_of(command):
    """{flag: value} of a command's words --flag=value."""
    words = [str(word).removeprefix('--').partition('=') for word in command if str(word).startswith('--')]
    return {name: value if equals else 'True' for name, equals, value in words}


def submit_array(jobs: Sequence[Job], folder, options: SlurmOptions) -> list[str]:
    """Submit the cells; returns their Slurm ids. folder: the results. Raises InputError where Slurm refuses them."""
    import submitit

    slurm_folder, warning_seconds = Path(folder) / FOLDER, min(WARNING_SECONDS, 15 * options.minutes)
    parameters = {
        'name': JOB_NAME,
        'timeout_min': options.minutes,
        'mem_gb': options.mem_gb,
        'cpus_per_task': options.cpus,
        'slurm_array_parallelism': options.at_once,
        'slurm_signal_delay_s': warning_seconds,
        'slurm_additional_parameters': dict(options.options),
        # The Python on the node imports this code, whether or not it is installed there.
        'slurm_setup': [f'export PYTHONPATH="{Path(__file__).parents[2]}${{PYTHONPATH:+:$PYTHONPATH}}"'],
    }
    if ALLOW_NO_LOCKS in os.environ:  # which sbatch may be set not to hand on
        parameters['slurm_setup'].append(f'export {ALLOW_NO_LOCKS}={shlex.quote(os.environ[ALLOW_NO_LOCKS])}')
    parameters['slurm_setup'] += [options.setup] if options.setup else []
    if options.gpus:
        parameters['gpus_per_node'] = options.gpus
    if options.partition:
        parameters['slurm_partition'] = options.partition
    try:
        slurm_folder.mkdir(parents=True, exist_ok=True)
        executor = submitit.AutoExecutor(slurm_folder, cluster='slurm', slurm_max_num_timeout=MAX_TIMEOUTS)
        executor.update_parameters(**parameters)
        with executor.batch():
            submitted = [executor.submit(CellJob(job, warning_seconds)) for job in jobs]
        return [job.job_id for job in submitted]
    except (OSError, RuntimeError, submitit.core.utils.FailedJobError) as error:
        message = sweep.last_error(str(error)) or type(error).__name__
        raise InputError(f'Slurm refused the jobs: {message}') from error


def check_available():
    """Raise InputError unless submitit and Slurm are installed."""
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise InputError("--cluster slurm needs submitit: pip install -e '.[cluster]'") from error
    for program in ('sbatch', 'squeue', 'srun'):
        if shutil.which(program) is None:
            raise InputError(f'--cluster slurm: {program} is not found; run this where Slurm jobs are submitted')


def queue_states() -> dict[str, QueueState]:
    """{id: QueueState} of the user's jobs of this name; an id is `12`, or `12_3` in an array.

    Slurm remembers jobs that have ended for some minutes (MinJobAge). Raises InputError where Slurm does not answer.
    """
    command = ['squeue', '--noheader', '--array', '--states=all', '--format=%i %T %r']
    command += [f'--name={JOB_NAME}', f'--user={getpass.getuser()}']
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        last_line = (getattr(error, 'stderr', None) or str(error)).strip().splitlines()[-1:]
        raise InputError(f'squeue does not answer: {" ".join(last_line)}') from error
    lines = [line.split(maxsplit=2) for line in output.splitlines()]
    return {words[0]: QueueState(*words[1:]) for words in lines if len(words) > 1}


def queued_states(jobs: Sequence[Job]) -> dict[str, str]:
    """{cell: state} of the cells that Slurm has; empty without Slurm, or where it does not answer."""
    ids = {job.name: job_id for job in jobs if (job_id := read_job_id(job))}
    if not ids or shutil.which('squeue') is None:
        return {}
    try:
        states = queue_states()
    except InputError:
        return {}
    return {
        name: f'{states[job_id].state.lower()}, Slurm job {job_id}'
        + (f', does not start by itself ({states[job_id].held})' if states[job_id].held else '')
        for name, job_id in ids.items()
        if is_queued(job_id, states)
    }


def is_queued(job_id: str | None, states: Mapping[str, QueueState]) -> bool:
    """Whether the job waits or runs."""
    return job_id in states and states[job_id].state not in ENDED


def read_job_id(job: Job) -> str | None:
    """The Slurm job that makes a cell, if any."""
    return _read_record(job).get('job')


def _read_record(job):
    """What the file of a cell's Slurm job holds: its id and the flags it was submitted with; {} where it is none."""
    try:
        record = json.loads(job.queue_record.read_text())
        return record if isinstance(record, dict) and isinstance(record.get('job'), str) else {}
    except (OSError, ValueError):
        return {}
