"""A sweep's cells as processes: the state of each cell, what its log says, and making the missing ones side by side.

A job is one cell to be made by a process of its own. Its state is read from the files that the process leaves: the
result, the lock (held by a live process, or left behind by a dead one) and the log, in which lines that begin with
MARK say when an attempt began and how it ended.
"""

import collections
import contextlib
import ctypes
import dataclasses
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cappy.cli import flags
from cappy.errors import InputError
from cappy.files.lock import result_lock
from cappy.study import results
from cappy.study.results import ResultPaths

MARK = '[sweep '
TAIL_BYTES = 1 << 20  # of a log: more than any traceback, or the progress bars of an attempt
PROGRESS_BYTES = 1 << 12  # of a log: more than one line of a progress bar
STOP_SECONDS = 60  # for a process to write its checkpoint after it was asked to stop
FULL_BYTES = 1 << 20  # a disk with less free space than this is full
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# The device's memory is one cell's, as in the reference; and progress bars must not fill the log.
CELL_DEFAULTS = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '.95', 'TQDM_MININTERVAL': '10'}
# A log that can be read while it grows; and one host, whatever job a sweep runs in (redco counts the nodes of Slurm's).
CELL_ENVIRONMENT = {'PYTHONUNBUFFERED': '1', 'SLURM_JOB_NUM_NODES': '1', 'SLURM_NODEID': '0'}

_ERROR_LINE = re.compile(r'error: |(\w+\.)*\w*(Error|Exception|Interrupt|Exit)\b(: |$)')
_BAR = re.compile(r'(?P<phase>[^%|\r\n]+?):\s+\d+%\|[^|]*\|\s+(?P<count>\d+/\d+) \[[^<\]]*<(?P<left>[\d:?]+)')
_prctl = ctypes.CDLL(None).prctl  # found here, because little is safe to call between fork and exec


@dataclass(frozen=True, slots=True)
class Job:
    """A cell to be made: its files, the command that makes it, and the flags that a second attempt adds."""

    paths: ResultPaths
    command: tuple[str, ...]
    fewer_tokens: tuple[str, ...] = ()  # smaller micro-batches: less memory and the same result
    save_dir: str | None = None
    overwrite: bool = False  # make the cell again if it has a result
    seed: int | None = None  # None in a sweep of one seed

    @property
    def name(self) -> str:
        """The cell as messages name it: generator/task, with the seed's folder where there are several."""
        of_seed = '' if self.seed is None else f'seed{self.seed}/'
        return f'{of_seed}{self.paths.generator}/{self.paths.task}'

    @property
    def log(self) -> Path:
        """The output of its processes."""
        return self.paths.result.with_name(f'{self.paths.task}.log')

    @property
    def queue_record(self) -> Path:
        """The file that holds the id of the cluster job that makes the cell."""
        return self.paths.result.with_name(f'{self.paths.task}.job')


@dataclass(frozen=True, slots=True)
class State:
    """kind: done, corrupt, running, queued, failed, stopped or missing. why: one line of explanation."""

    kind: str
    why: str = ''
    rougeL: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: done, stopped, locked (another process has the cell), failed, or crashed.

    Crashed is what may succeed with less memory or at another time: a signal, lack of memory, a fault of the device.
    """

    kind: str
    why: str = ''


@dataclass(frozen=True, slots=True)
class Worker:
    """A device, or a share of the cores: it makes one cell at a time."""

    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: frozenset[int] | None = None


def lock_holder(paths: ResultPaths) -> str | None:
    """The live process that works on a cell, in words; None for a lock file that a dead process has left."""
    try:
        with open(paths.lock, 'rb') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _holder(file.read(4096))
    except OSError:
        pass
    return None


def find_state(job: Job, queued: Mapping[str, str] | None = None) -> State:
    """The state of a cell by its files. queued: {job name: state} of the cells that are in a cluster's queue."""
    holder = lock_holder(job.paths)
    if holder:
        return State('running', holder)
    if job.paths.result.exists():
        try:
            return State('done', rougeL=results.read_result(job.paths.result)['rougeL'])
        except InputError as error:
            return State('corrupt', str(error))
    if queued and job.name in queued:
        return State('queued', queued[job.name])
    return _state_in_log(job)


def _state_in_log(job):
    tail = read_tail(job.log)
    marks = [line for line in tail.splitlines() if line.startswith(MARK)]
    if not marks:
        return State('missing')
    when, _, what = marks[-1].removeprefix(MARK).partition('] ')
    if what.startswith('failed: '):
        return State('failed', f'{what.removeprefix("failed: ")} ({job.log})')
    return State('stopped', f'began {when}' if what.startswith('attempt') else f'{what} {when}')


def count_kinds(states: Sequence[State]) -> str:
    """`4 done, 1 running, 2 failed of 7`: the kinds that occur, and done always."""
    counts = collections.Counter(state.kind for state in states)
    order = ('done', 'running', 'queued', 'failed', 'corrupt', 'stopped', 'missing')
    shown = [f'{counts[kind]} {kind}' for kind in order if counts[kind] or kind == 'done']
    return f'{", ".join(shown)} of {len(states)}'


def read_tail(path, start=0, n_bytes=TAIL_BYTES) -> str:
    """The last n_bytes of a log after its first `start` bytes, which may begin inside a line; empty without a log."""
    try:
        with open(path, 'rb') as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - n_bytes))
            return file.read().decode('utf-8', 'replace')
    except OSError:
        return ''


def read_progress(log) -> str:
    """`adapting 12/32, 0:40 left`: where the latest attempt is by the last progress bar of its log.

    Empty before the first bar, while data and model are read.
    """
    text = read_tail(log, n_bytes=PROGRESS_BYTES).rpartition(MARK)[2]
    bars = list(_BAR.finditer(text))
    if not bars:
        return ''
    phase, count, left = bars[-1].group('phase', 'count', 'left')
    return f'{phase.strip()} {count}' + ('' if '?' in left else f', {left} left')


def last_error(log_text: str) -> str:
    """The last line of a log that reports an error, else its last line; lines of progress bars do not count.

    A progress bar overwrites itself with carriage returns, so what follows the last one in a line counts.
    """
    lines = [line.rstrip().rpartition('\r')[2].strip() for line in log_text.split('\n')]
    lines = [line for line in lines if line and not line.startswith(MARK) and not re.search(r'\d%\|', line)]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    last = (errors or lines or [''])[-1]
    return last.removeprefix('error: ')[:400]


def judge(returncode: int, message: str, is_done: bool, holder: str | None = None) -> Outcome:
    """How an attempt ended, by its exit code (see cappy.cli.flags.run).

    message: the last error in its log, for the report only. holder: the other process that has the cell, if any.
    """
    if is_done:
        return Outcome('done')
    if returncode in (flags.INTERRUPTED, -signal.SIGINT):
        return Outcome('stopped', 'interrupted')
    if returncode < 0:
        hint = ', often for lack of memory' if returncode == -signal.SIGKILL else ''
        last = f'; last line of its log: {message}' if message else ''
        return Outcome('crashed', f'killed by {_signal_name(-returncode)}{hint}{last}')
    if holder:
        return Outcome('locked', holder)
    why = message or f'exit code {returncode}, and nothing was printed'
    return Outcome('crashed' if returncode == flags.DEVICE_FAILURE else 'failed', why)


class Attempt:
    """A process that makes a cell; `poll` gives the Outcome when it has ended. number: 1, or 2 after a crash."""

    def __init__(self, job: Job, worker: Worker, number=1):
        self.job, self.worker, self.number, self.began = job, worker, number, time.monotonic()
        self._before = identity(job.paths.result)
        command = list(job.command) + (['--overwrite'] if is_save_dir_unfinished(job) else [])
        if number > 1:
            command = with_flags(command, job.fewer_tokens)
        with _opened(job.log) as log:
            self._start = log.tell()
            _mark(log, f'attempt {number}: {shlex.join(command)}')
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**CELL_DEFAULTS, **os.environ, **CELL_ENVIRONMENT, **worker.environment},
                start_new_session=True,  # its own processes can be ended with it, and Ctrl-C reaches the runner alone
                preexec_fn=_prepare(os.getpid(), worker.cores),
            )

    def poll(self) -> Outcome | None:
        """How it ended; None while it runs."""
        returncode = self.process.poll()
        if returncode is None:
            return None
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)  # processes of its own that still run
        result = self.job.paths.result
        is_done = identity(result) is not None and (not self.job.overwrite or identity(result) != self._before)
        message = last_error(read_tail(self.job.log, self._start))
        outcome = judge(returncode, message, is_done, lock_holder(self.job.paths))
        saved = self.job.save_dir
        if is_done and saved and (not os.path.isdir(saved) or message.startswith(f'{saved}: ')):
            return Outcome('failed', f'it has a result, but its scorer is not in {saved}: {message}')
        if outcome.kind not in ('done', 'stopped', 'locked') and _is_full(self.job.log.parent):
            outcome = dataclasses.replace(outcome, why=f'{outcome.why}; the disk of {self.job.log.parent} is full')
        return outcome

    def record(self, outcome: Outcome):
        """Write to the log how the cell ended."""
        if outcome.kind == 'locked':
            return  # the other process records how it ends
        text = outcome.kind if outcome.kind in ('done', 'stopped') else f'failed: {" ".join(outcome.why.split())}'
        with contextlib.suppress(InputError), _opened(self.job.log) as log:
            _mark(log, text)

    def ask_to_stop(self):
        """Ask it to write its checkpoint and end."""
        with contextlib.suppress(OSError):
            os.kill(self.process.pid, signal.SIGINT)

    def kill(self):
        """End it and every process that it has started."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def may_retry(outcome: Outcome, number: int) -> bool:
    """Whether another attempt is worth it: once, after a crash."""
    return number == 1 and outcome.kind == 'crashed'


def run_job(job: Job, worker: Worker, on_start: Callable = lambda attempt: None, poll_seconds=0.2) -> Outcome:
    """Make one cell here, with a second attempt after a crash, and return how it ended.

    on_start: called with each Attempt, so that the caller can stop it.
    """
    for number in (1, 2):
        attempt = Attempt(job, worker, number)
        on_start(attempt)
        while (outcome := attempt.poll()) is None:
            time.sleep(poll_seconds)
        if not may_retry(outcome, number):
            attempt.record(outcome)
            return outcome


class Runner:
    """Makes cells side by side, one on each worker at a time.

    A cell that another process works on is left to it, and checked again when nothing else is left to do.
    on_event(name, job, detail): 'started' (number of the attempt), 'again' (why), 'done' (seconds; None where another
    process made it), 'failed' (why), 'elsewhere' (which process), and 'tick' at every poll.
    """

    def __init__(self, jobs: Sequence[Job], workers: Sequence[Worker], on_event: Callable, poll_seconds=0.2):
        self.waiting = collections.deque(jobs)
        self.free, self.running, self.elsewhere = list(workers), [], {}
        self.on_event, self.poll_seconds = on_event, poll_seconds

    def run(self):
        """Make all cells that can be made here. However it ends, none of their processes is left running."""
        try:
            while True:
                self._collect()
                self._fill()
                if not self.running:
                    return
                self.on_event('tick', None, None)
                time.sleep(self.poll_seconds)
        finally:
            self._stop()

    def _fill(self):
        if not self.waiting and self.free:
            self.waiting.extend(job for job, _ in self.elsewhere.values() if not lock_holder(job.paths))
        while self.waiting and self.free:
            job = self.waiting.popleft()
            holder = lock_holder(job.paths)
            if holder:
                self._leave(job, holder)
            elif self._is_made(job):
                self.elsewhere.pop(job.name, None)
                self.on_event('done', job, None)
            else:
                self._begin(job, self.free.pop(0), 1)

    def _begin(self, job, worker, number):
        self.elsewhere.pop(job.name, None)
        try:
            self.running.append(Attempt(job, worker, number))
        except InputError as error:  # the log cannot be written
            self.free.append(worker)
            self.on_event('failed', job, str(error))
        else:
            self.on_event('started', job, number)

    def _collect(self):
        for attempt in list(self.running):
            outcome = attempt.poll()
            if outcome is None:
                continue
            self.running.remove(attempt)
            if may_retry(outcome, attempt.number):
                self.on_event('again', attempt.job, outcome.why)
                self._begin(attempt.job, attempt.worker, 2)
                continue
            self.free.append(attempt.worker)
            attempt.record(outcome)
            if outcome.kind == 'done':
                self.on_event('done', attempt.job, time.monotonic() - attempt.began)
            elif outcome.kind == 'locked':
                self._leave(attempt.job, outcome.why)
            else:
                self.on_event('failed', attempt.job, outcome.why)

    def _leave(self, job, holder):
        if job.name not in self.elsewhere:
            self.on_event('elsewhere', job, holder)
            self.elsewhere[job.name] = job, identity(job.paths.result)

    def _is_made(self, job):
        """Whether another process has made the cell since it was left to it."""
        found = identity(job.paths.result)
        before = self.elsewhere.get(job.name, (job, found))[1] if job.overwrite else None
        return found is not None and found != before

    def _stop(self):
        for attempt in self.running:
            attempt.ask_to_stop()
        deadline = time.monotonic() + STOP_SECONDS
        try:
            while time.monotonic() < deadline and any(attempt.poll() is None for attempt in self.running):
                time.sleep(0.05)
        finally:  # a second Ctrl-C does not wait for checkpoints
            for attempt in self.running:
                attempt.kill()
                attempt.record(Outcome('done' if attempt.poll().kind == 'done' else 'stopped'))


def tidy(job: Job):
    """Remove the files of a finished cell that only an unfinished one needs, where a killed process left them."""
    with contextlib.suppress(OSError):
        job.queue_record.unlink()
    if job.paths.checkpoint.exists() or job.paths.lock.exists():
        with contextlib.suppress(InputError), result_lock(job.paths):
            if job.paths.result.exists():
                shutil.rmtree(job.paths.checkpoint, ignore_errors=True)


def share_cores(n_workers: int) -> list[frozenset[int]]:
    """The cores of this process in n_workers parts, whose sizes differ by at most one."""
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= n_workers <= len(cores):
        raise InputError(f'--workers {n_workers}: expected 1 to {len(cores)}, the number of cores')
    return [frozenset(cores[n * len(cores) // n_workers : (n + 1) * len(cores) // n_workers]) for n in range(n_workers)]


def n_nvidia_devices() -> int:
    """Number of devices that the NVIDIA driver shows; 0 without a driver."""
    with contextlib.suppress(OSError):
        return len(list(Path('/proc/driver/nvidia/gpus').iterdir()))
    return 0


def with_flags(command: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The command with the given flags `--name=value`, which replace its own of the same names."""
    names = tuple(flag.partition('=')[0] + '=' for flag in flags)
    return [word for word in command if not word.startswith(names)] + list(flags) if flags else command


def is_save_dir_unfinished(job: Job) -> bool:
    """Whether save_dir holds the scorer of an attempt that was killed before it wrote its result.

    Only then may the next attempt replace the folder. The log says so: its last mark is of an attempt that did not end
    by itself, and names this folder. Any other folder that is not empty is the user's.
    """
    if job.save_dir is None or job.overwrite or job.paths.result.exists() or not os.path.isdir(job.save_dir):
        return False
    tail = read_tail(job.log)
    last = tail[tail.rfind(MARK) :].partition('] ')[2].split('\n')[0] if MARK in tail else ''
    was_killed = last.startswith(('attempt', 'stopped', 'failed: killed by'))
    return was_killed and f'--save_dir={job.save_dir}' in tail


def _prepare(parent, cores):
    """What a child process does between fork and exec: ask to be killed with its parent, and choose its cores."""

    def prepare():
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the request
            os._exit(1)
        for number in (signal.SIGUSR1, signal.SIGUSR2):  # from a cluster, for the process above
            signal.signal(number, signal.SIG_IGN)
        if cores:
            os.sched_setaffinity(0, cores)

    return prepare


@contextlib.contextmanager
def _opened(log):
    """The log, open for appending, which two processes may do at once."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, 'ab', buffering=0) as file:
            yield file
    except OSError as error:
        raise InputError(f'{log}: cannot be written ({error.strerror}); choose another results folder') from error


def _mark(log, text):
    end = '' if log.tell() == 0 else '\n'  # a progress bar leaves its line unfinished
    log.write(f'{end}{MARK}{datetime.now(UTC).isoformat(timespec="seconds")}] {text}\n'.encode())


def _holder(raw):
    try:
        holder = json.loads(raw)
        return f'process {holder["pid"]} on {holder["host"]} since {holder["since"]}'
    except (ValueError, TypeError, KeyError):
        return 'a process that has not written its id yet'


def identity(path) -> tuple | None:
    """A value that changes when a file is replaced; None without a file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _is_full(folder):
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < FULL_BYTES
    return False


def _signal_name(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return f'signal {number}'
