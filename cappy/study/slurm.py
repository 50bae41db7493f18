"""A sweep's cells as arrays of Slurm jobs, through submitit; their states from squeue and from the cells' files.

submitit reads states from sacct, which many clusters do not have. So it only submits the jobs and, inside a job,
requeues it when its time runs out. A job that was preempted, ran out of time or lost its node is submitted again and
resumes from its checkpoint.
"""

import contextlib
import dataclasses
import getpass
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cappy.errors import InputError
from cappy.files.atomic import write_atomically
from cappy.study import sweep
from cappy.study.sweep import Job, Outcome, Worker

JOB_NAME = 'cappy'
FOLDER = '.slurm'  # submitit's files, in the results folder; hidden, because the other folders are generators
LARGEST_ARRAY = 1000  # Slurm's default MaxArraySize is 1001
WARNING_SECONDS = 120  # for the checkpoint, before a job's time is up; at most a quarter of that time
MAX_TIMEOUTS = 1000  # requeues of one job: with a short time limit a cell may need many
ENDED = ('BOOT_FAIL', 'CANCELLED', 'COMPLETED', 'DEADLINE', 'FAILED', 'NODE_FAIL', 'OUT_OF_MEMORY', 'PREEMPTED')
ENDED += ('REVOKED', 'TIMEOUT')


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

    Jobs outlive it: the next runner finds them by the files {task}.job.
    """

    def __init__(self, jobs: Sequence[Job], folder, options: SlurmOptions, on_event: Callable, poll_seconds=10):
        self.folder, self.options, self.on_event, self.poll_seconds = Path(folder), options, on_event, poll_seconds
        self.jobs, self.ids, self.n_submitted, self.began, self.ended = list(jobs), {}, {}, {}, set()
        self.before = {job.name: sweep.identity(job.paths.result) for job in jobs}  # by which a new result is known

    def run(self):
        """Return when Slurm has no more cells."""
        states = queue_states()
        known = [job for job in self.jobs if is_queued(read_job_id(job), states)]
        self.ids = {job.name: read_job_id(job) for job in known}
        self.submit([job for job in self.jobs if job.name not in self.ids])
        while self.jobs:
            self.on_event('tick', None, None)
            time.sleep(self.poll_seconds)
            with contextlib.suppress(InputError):  # Slurm may be restarting; its jobs run on
                states = queue_states()
                self.submit([again for job in list(self.jobs) if (again := self.look_at(job, states))])

    def submit(self, jobs):
        """Submit cells as one array."""
        free = []
        for job in jobs:
            holder = sweep.lock_holder(job.paths)
            if holder:
                self.drop(job, 'elsewhere', holder)
            else:
                free.append(job)
        for first in range(0, len(free), LARGEST_ARRAY):
            part = free[first : first + LARGEST_ARRAY]
            for job, job_id in zip(part, submit_array(part, self.folder, self.options), strict=True):
                self.ids[job.name] = job_id
                self.n_submitted[job.name] = self.n_submitted.get(job.name, 0) + 1
                with write_atomically(job.queue_record) as file:
                    json.dump({'job': job_id}, file)

    def look_at(self, job, states):
        """Report a cell that has started or ended; returns the Job to submit again, or None."""
        job_id = self.ids[job.name]
        slurm_state = states.get(job_id, 'gone')
        if is_queued(job_id, states):
            if slurm_state == 'RUNNING' and job.name not in self.began:
                self.began[job.name] = time.monotonic()
                self.on_event('started', job, 1)
            return None
        if job.name not in self.ended:  # checked twice, because files appear late on some network disks
            self.ended.add(job.name)
            return None
        self.ended.discard(job.name)
        state = sweep.find_state(job)
        if state.kind == 'done' and sweep.identity(job.paths.result) != self.before[job.name]:
            began = self.began.get(job.name)
            return self.drop(job, 'done', began and time.monotonic() - began)
        if state.kind == 'running':
            return self.drop(job, 'elsewhere', state.why)
        if state.kind in ('failed', 'corrupt'):
            return self.drop(job, 'failed', state.why)
        return self.again(job, job_id, slurm_state)

    def again(self, job, job_id, slurm_state):
        """The Job to submit again; None where that cannot help."""
        why = f'Slurm job {job_id}: {slurm_state}'
        is_crash = slurm_state in ('FAILED', 'OUT_OF_MEMORY', 'COMPLETED')
        max_resubmits = 1 if is_crash else self.options.max_resubmits
        if slurm_state in ('CANCELLED', 'DEADLINE') or self.n_submitted.get(job.name, 0) > max_resubmits:
            return self.drop(job, 'failed', f'{why} ({self.folder / FOLDER}/{job_id}_0_log.err)')
        self.on_event('again', job, why)
        self.began.pop(job.name, None)
        if slurm_state == 'OUT_OF_MEMORY':
            smaller = dataclasses.replace(job, command=tuple(sweep.with_flags(job.command, job.fewer_tokens)))
            self.jobs[self.jobs.index(job)] = smaller
            return smaller
        return job

    def drop(self, job, event, detail):
        """Report how a cell ended and stop watching it."""
        self.jobs.remove(job)
        job.queue_record.unlink(missing_ok=True)
        self.on_event(event, job, detail)


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


def queue_states() -> dict[str, str]:
    """{id: state} of the user's jobs of this name; an id is `12`, or `12_3` in an array.

    Slurm remembers jobs that have ended for some minutes (MinJobAge). Raises InputError where Slurm does not answer.
    """
    command = ['squeue', '--noheader', '--array', '--states=all', '--format=%i %T']
    command += [f'--name={JOB_NAME}', f'--user={getpass.getuser()}']
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        last_line = (getattr(error, 'stderr', None) or str(error)).strip().splitlines()[-1:]
        raise InputError(f'squeue does not answer: {" ".join(last_line)}') from error
    return dict(line.split()[:2] for line in output.splitlines() if len(line.split()) >= 2)


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
        name: f'{states[job_id].lower()}, Slurm job {job_id}'
        for name, job_id in ids.items()
        if is_queued(job_id, states)
    }


def is_queued(job_id: str | None, states: Mapping[str, str]) -> bool:
    """Whether the job waits or runs."""
    return job_id in states and states[job_id] not in ENDED


def read_job_id(job: Job) -> str | None:
    """The Slurm job that makes a cell, if any."""
    try:
        return json.loads(job.queue_record.read_text())['job']
    except (OSError, ValueError, TypeError, KeyError):
        return None
