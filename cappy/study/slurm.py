"""A sweep's cells as arrays of Slurm jobs, through submitit; their states from squeue and from the files they leave.

submitit asks sacct for states, which many clusters do not have; it is used to submit, and in the job to requeue it when
its time runs out. What was preempted, ran out of time or vanished with its node is submitted again, and goes on from
its checkpoint.
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
from cappy.study.sweep import Job, Outcome, Slot

JOB_NAME = 'cappy'
FOLDER = '.slurm'  # of submitit's files, in the results folder; hidden, since the others are generators
LARGEST_ARRAY = 1000  # Slurm's default MaxArraySize is 1001
WARNING_SECONDS = 120  # before a job's time is up, for its checkpoint to be written; a quarter of a short one's time
MAX_TIMEOUTS = 1000  # of one job: a cell may need many short ones
ENDED = ('BOOT_FAIL', 'CANCELLED', 'COMPLETED', 'DEADLINE', 'FAILED', 'NODE_FAIL', 'OUT_OF_MEMORY', 'PREEMPTED')
ENDED += ('REVOKED', 'TIMEOUT')


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """What is asked of Slurm for each cell."""

    partition: str | None = None
    minutes: int = 240
    gpus: int = 1
    cpus: int = 4
    mem_gb: int = 32
    at_once: int = 256  # jobs of an array that may run at the same time
    setup: str | None = None  # shell commands before the cell
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)  # further ones of sbatch
    max_resubmits: int = 10  # of one cell


class CellJob:
    """What runs on a node: one cell. submitit calls `checkpoint` when the job's time runs out or it is preempted."""

    def __init__(self, job: Job, warning_seconds):
        self.job, self.warning_seconds, self.attempt = job, warning_seconds, None

    def __call__(self):
        return sweep.run_job(self.job, Slot(), on_start=self._note).kind

    def _note(self, attempt):
        self.attempt = attempt

    def checkpoint(self):
        """Let the cell write its checkpoint, and say that the same is to be run again."""
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
    """Submits cells, watches them and submits again what was cut short. Its events are those of sweep.Runner.

    Stopping it leaves the jobs to Slurm; the next one finds them by the files {task}.job.
    """

    def __init__(self, jobs: Sequence[Job], folder, options: SlurmOptions, on_event: Callable, poll_seconds=10):
        self.folder, self.options, self.on_event, self.poll_seconds = Path(folder), options, on_event, poll_seconds
        self.jobs, self.ids, self.n_submitted, self.began, self.ended = list(jobs), {}, {}, {}, set()
        self.before = {job.name: sweep.identity(job.paths.result) for job in jobs}  # to tell a new result by

    def run(self):
        """Return when no cell is left in Slurm's hands."""
        states = queue_states()
        known = [job for job in self.jobs if is_queued(read_job_id(job), states)]
        self.ids = {job.name: read_job_id(job) for job in known}
        self.submit([job for job in self.jobs if job.name not in self.ids])
        while self.jobs:
            self.on_event('tick', None, None)
            time.sleep(self.poll_seconds)
            with contextlib.suppress(InputError):  # Slurm may be restarted meanwhile; its jobs go on
                states = queue_states()
                self.submit([again for job in list(self.jobs) if (again := self.look_at(job, states))])

    def submit(self, jobs):
        """Hand cells to Slurm as one array."""
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
        """Tell what became of a cell; -> the Job to submit again, or None."""
        job_id = self.ids[job.name]
        slurm_state = states.get(job_id, 'gone')
        if is_queued(job_id, states):
            if slurm_state == 'RUNNING' and job.name not in self.began:
                self.began[job.name] = time.monotonic()
                self.on_event('started', job, 1)
            return None
        if job.name not in self.ended:  # looked at twice, since a file may be seen late over a network
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
        """The Job to submit once more; None where that is of no use."""
        why = f'Slurm job {job_id}: {slurm_state}'
        once = slurm_state in ('FAILED', 'OUT_OF_MEMORY', 'COMPLETED')
        most = 1 if once else self.options.max_resubmits
        if slurm_state in ('CANCELLED', 'DEADLINE') or self.n_submitted.get(job.name, 0) > most:
            return self.drop(job, 'failed', f'{why} ({self.folder / FOLDER}/{job_id}_0_log.err)')
        self.on_event('again', job, why)
        self.began.pop(job.name, None)
        if slurm_state == 'OUT_OF_MEMORY':
            smaller = dataclasses.replace(job, command=tuple(sweep.with_flags(job.command, job.fewer_tokens)))
            self.jobs[self.jobs.index(job)] = smaller
            return smaller
        return job

    def drop(self, job, event, detail):
        """Have done with a cell."""
        self.jobs.remove(job)
        job.queue_record.unlink(missing_ok=True)
        self.on_event(event, job, detail)


def submit_array(jobs: Sequence[Job], folder, options: SlurmOptions) -> list[str]:
    """Ids of the Slurm jobs of the cells. folder: of results. Raises InputError where Slurm does not take them."""
    import submitit

    place, warning_seconds = Path(folder) / FOLDER, min(WARNING_SECONDS, 15 * options.minutes)
    parameters = {
        'name': JOB_NAME,
        'timeout_min': options.minutes,
        'mem_gb': options.mem_gb,
        'cpus_per_task': options.cpus,
        'slurm_array_parallelism': options.at_once,
        'slurm_signal_delay_s': warning_seconds,
        'slurm_additional_parameters': dict(options.options),
        # The node's Python finds this very code, whether it is installed there or not.
        'slurm_setup': [f'export PYTHONPATH="{Path(__file__).parents[1]}${{PYTHONPATH:+:$PYTHONPATH}}"'],
    }
    parameters['slurm_setup'] += [options.setup] if options.setup else []
    if options.gpus:
        parameters['gpus_per_node'] = options.gpus
    if options.partition:
        parameters['slurm_partition'] = options.partition
    try:
        place.mkdir(parents=True, exist_ok=True)
        executor = submitit.AutoExecutor(place, cluster='slurm', slurm_max_num_timeout=MAX_TIMEOUTS)
        executor.update_parameters(**parameters)
        with executor.batch():
            submitted = [executor.submit(CellJob(job, warning_seconds)) for job in jobs]
        return [job.job_id for job in submitted]
    except (OSError, RuntimeError, submitit.core.utils.FailedJobError) as error:
        words = sweep.last_words(str(error)) or type(error).__name__
        raise InputError(f'Slurm did not take the jobs: {words}') from error


def check_available():
    """Raise InputError where submitit or Slurm is missing."""
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise InputError("--cluster slurm needs submitit: pip install -e '.[cluster]'") from error
    for program in ('sbatch', 'squeue', 'srun'):
        if shutil.which(program) is None:
            raise InputError(f'--cluster slurm: {program} is not found; run this where Slurm jobs are submitted')


def queue_states() -> dict[str, str]:
    """State of each of the user's jobs of this name that Slurm still knows, by id, `12` or `12_3`.

    Jobs that have ended are known for some minutes (MinJobAge). Raises InputError where Slurm does not answer.
    """
    command = ['squeue', '--noheader', '--array', '--states=all', '--format=%i %T']
    command += [f'--name={JOB_NAME}', f'--user={getpass.getuser()}']
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        words = (getattr(error, 'stderr', None) or str(error)).strip().splitlines()[-1:]
        raise InputError(f'squeue does not answer: {" ".join(words)}') from error
    return dict(line.split()[:2] for line in said.splitlines() if len(line.split()) >= 2)


def queued_states(jobs: Sequence[Job]) -> dict[str, str]:
    """What Slurm says of the cells that it has, by name; nothing where there is no Slurm, or no answer."""
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
    """Whether Slurm will run the job, or does."""
    return job_id in states and states[job_id] not in ENDED


def read_job_id(job: Job) -> str | None:
    """The Slurm job that a cell was given to, if any."""
    try:
        return json.loads(job.queue_record.read_text())['job']
    except (OSError, ValueError, TypeError, KeyError):
        return None
