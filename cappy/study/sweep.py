"""A sweep's cells as processes: what state each is in, what its log says, and running the missing ones side by side.

A job is one cell to be made by a process of its own. Its state is read from the files that the process leaves: the
result, the lock (held by a live process, or left behind by a dead one) and the log, in which lines that begin with
MARK tell when an attempt began and how it ended.
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

from cappy.errors import InputError
from cappy.files.lock import result_lock
from cappy.study import results
from cappy.study.results import ResultPaths

MARK = '[sweep '
TAIL_BYTES = 1 << 20  # of a log: more than any traceback, or the bars of an attempt
STOP_SECONDS = 60  # for a checkpoint to be written after the process was asked to stop
FULL_BYTES = 1 << 20  # less free space than this is a full disk
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# The device's memory is one cell's, as in the reference; and bars of progress are not to fill the log.
CELL_DEFAULTS = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '.95', 'TQDM_MININTERVAL': '10'}
# A log that can be read while it grows; and one host, whatever job a sweep runs in (redco counts the nodes of Slurm's).
CELL_ENVIRONMENT = {'PYTHONUNBUFFERED': '1', 'SLURM_JOB_NUM_NODES': '1', 'SLURM_NODEID': '0'}

_OUT_OF_MEMORY = re.compile(r'RESOURCE_EXHAUSTED|MemoryError|out of memory|bad_alloc', re.IGNORECASE)
_CRASH = re.compile(r'CUDA_ERROR|CUDNN_STATUS|(Xla|Jax)RuntimeError: (INTERNAL|ABORTED|UNAVAILABLE|UNKNOWN)')
_EXCEPTION = re.compile(r'(\w+\.)*\w*(Error|Exception|Interrupt|Exit|Locked)\b(: |$)')
_prctl = ctypes.CDLL(None).prctl  # looked up here, since nothing may be between fork and exec


@dataclass(frozen=True, slots=True)
class Job:
    """A cell to be made: its files, the command that makes it, and flags to add when it ran out of memory."""

    paths: ResultPaths
    command: tuple[str, ...]
    fewer_tokens: tuple[str, ...] = ()
    save_dir: str | None = None
    overwrite: bool = False  # make it although it has a result
    seed: int | None = None  # where a sweep has several

    @property
    def name(self) -> str:
        """What a reader calls the cell."""
        of_seed = '' if self.seed is None else f'seed{self.seed}/'
        return f'{of_seed}{self.paths.generator}/{self.paths.task}'

    @property
    def log(self) -> Path:
        """What its processes print."""
        return self.paths.result.with_name(f'{self.paths.task}.log')

    @property
    def queue_record(self) -> Path:
        """Which job of a cluster it was given to."""
        return self.paths.result.with_name(f'{self.paths.task}.job')


@dataclass(frozen=True, slots=True)
class State:
    """kind: one of done, corrupt, running, queued, failed, stopped, missing. why: a line beside it."""

    kind: str
    why: str = ''
    rougeL: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: done, locked (another process has the cell), stopped, refused, crashed or memory."""

    kind: str
    why: str = ''


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one process at a time runs: a device, or a share of the cores."""

    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: frozenset[int] | None = None


def lock_holder(paths: ResultPaths) -> str | None:
    """Who works on a cell, in words; None where nobody does, though a dead process may have left its lock."""
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
    """What the files say of a cell. queued: state in a cluster's queue, by job name, of those that are there."""
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
    """`4 done, 1 running, 0 failed, ..`, of the kinds that there are."""
    counts = collections.Counter(state.kind for state in states)
    order = ('done', 'running', 'queued', 'failed', 'corrupt', 'stopped', 'missing')
    told = [f'{counts[kind]} {kind}' for kind in order if counts[kind] or kind == 'done']
    return f'{", ".join(told)} of {len(states)}'


def read_tail(path, start=0) -> str:
    """The end of a log, of what follows byte `start`, its first line maybe cut; empty where there is none."""
    try:
        with open(path, 'rb') as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().decode('utf-8', 'replace')
    except OSError:
        return ''


def last_words(log_text: str) -> str:
    """The line of a log that says why its process ended: its last error, else its last line that says something.

    Bars of progress overwrite themselves with carriage returns; what stood last in such a line counts.
    """
    lines = [line.rstrip().rpartition('\r')[2].strip() for line in log_text.split('\n')]
    lines = [line for line in lines if line and not line.startswith(MARK) and not re.search(r'\d%\|', line)]
    errors = [line for line in lines if line.startswith('error: ') or _EXCEPTION.match(line)]
    last = (errors or lines or [''])[-1]
    return last.removeprefix('error: ')[:400]


def judge(returncode: int, log_text: str, is_done: bool) -> Outcome:
    """What an attempt that ended means. log_text: what it printed."""
    if is_done:
        return Outcome('done')
    words = last_words(log_text)
    if returncode in (130, -signal.SIGINT):
        return Outcome('stopped', 'interrupted')
    if returncode < 0:
        name = _signal_name(-returncode)
        memory = returncode == -signal.SIGKILL or _OUT_OF_MEMORY.search(log_text)
        hint = ', often for lack of memory' if returncode == -signal.SIGKILL else ''
        after = f'; it said last: {words}' if words else ''
        return Outcome('memory' if memory else 'crashed', f'killed by {name}{hint}{after}')
    if 'works on this result; wait for it' in words:
        return Outcome('locked', words)
    why = words or f'exit code {returncode}, and nothing was printed'
    if not re.search(r'^error: ', log_text, re.MULTILINE):  # which tells of bad input: trying again is no use
        if _OUT_OF_MEMORY.search(words):
            return Outcome('memory', why)
        if _CRASH.search(words):
            return Outcome('crashed', why)
    return Outcome('refused', why)


class Attempt:
    """A process that makes a cell, or tries to, until `poll` gives an Outcome."""

    def __init__(self, job: Job, slot: Slot, number=1):
        self.job, self.slot, self.number, self.began = job, slot, number, time.monotonic()
        self._before = identity(job.paths.result)
        command = list(job.command) + (['--overwrite'] if left_by_the_dead(job) else [])
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
                env={**CELL_DEFAULTS, **os.environ, **CELL_ENVIRONMENT, **slot.environment},
                start_new_session=True,  # so that its own processes end with it, and Ctrl-C is the runner's to pass on
                preexec_fn=_prepare(os.getpid(), slot.cores),
            )

    def poll(self) -> Outcome | None:
        """How it ended; None while it runs."""
        returncode = self.process.poll()
        if returncode is None:
            return None
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what it may have left behind
        result = self.job.paths.result
        is_done = identity(result) is not None and (not self.job.overwrite or identity(result) != self._before)
        outcome = judge(returncode, self._printed(), is_done)
        if outcome.kind not in ('done', 'stopped', 'locked') and _is_full(self.job.log.parent):
            outcome = dataclasses.replace(outcome, why=f'{outcome.why}; the disk of {self.job.log.parent} is full')
        return outcome

    def record(self, outcome: Outcome):
        """Write into the log how the cell ended."""
        if outcome.kind == 'locked':
            return  # the log is the other process's to end
        text = outcome.kind if outcome.kind in ('done', 'stopped') else f'failed: {" ".join(outcome.why.split())}'
        with contextlib.suppress(InputError), _opened(self.job.log) as log:
            _mark(log, text)

    def ask_to_stop(self):
        """Let it write its checkpoint and end."""
        with contextlib.suppress(OSError):
            os.kill(self.process.pid, signal.SIGINT)

    def kill(self):
        """End it, and whatever it has started."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _printed(self):
        return read_tail(self.job.log, self._start)


def may_retry(outcome: Outcome, number: int) -> bool:
    """Whether an attempt that ended so is worth another one: once, after a crash or where memory was lacking."""
    return number == 1 and outcome.kind in ('crashed', 'memory')


def run_job(job: Job, slot: Slot, on_start: Callable = lambda attempt: None, poll_seconds=0.2) -> Outcome:
    """Make one cell here, trying again where that is of use, and return how it ended.

    on_start: called with each Attempt, so that the caller can stop it.
    """
    number = 1
    while True:
        attempt = Attempt(job, slot, number)
        on_start(attempt)
        while (outcome := attempt.poll()) is None:
            time.sleep(poll_seconds)
        if not may_retry(outcome, number):
            attempt.record(outcome)
            return outcome
        job, number = _for_retry(job, outcome), 2


class Runner:
    """Makes cells side by side, one in each slot.

    Cells that another process works on are left to it, and looked at again when nothing else is left to do.
    on_event(name, job, detail): 'started', 'again' (why), 'done' (seconds), 'failed' (why), 'elsewhere' (who), 'tick'.
    """

    def __init__(self, jobs: Sequence[Job], slots: Sequence[Slot], on_event: Callable, poll_seconds=0.2):
        self.waiting = collections.deque(jobs)
        self.free, self.running, self.elsewhere = list(slots), [], {}
        self.on_event, self.poll_seconds = on_event, poll_seconds

    def run(self):
        """Return when no cell is left that could be made here. However it ends, no process stays behind."""
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

    def _begin(self, job, slot, number):
        self.elsewhere.pop(job.name, None)
        try:
            self.running.append(Attempt(job, slot, number))
        except InputError as error:  # the log cannot be written
            self.free.append(slot)
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
                self._begin(_for_retry(attempt.job, outcome), attempt.slot, 2)
                continue
            self.free.append(attempt.slot)
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
        """Whether another process has made it meanwhile."""
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
    """Remove what processes that were killed after a result was written left beside it."""
    with contextlib.suppress(OSError):
        job.queue_record.unlink()
    if job.paths.checkpoint.exists() or job.paths.lock.exists():
        with contextlib.suppress(InputError), result_lock(job.paths):
            if job.paths.result.exists():
                shutil.rmtree(job.paths.checkpoint, ignore_errors=True)


def share_cores(n_workers: int) -> list[frozenset[int]]:
    """The cores of this process, cut into n_workers parts that differ by one at most."""
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= n_workers <= len(cores):
        raise InputError(f'--workers {n_workers}: expected 1 to {len(cores)}, the cores that there are')
    return [frozenset(cores[n * len(cores) // n_workers : (n + 1) * len(cores) // n_workers]) for n in range(n_workers)]


def n_nvidia_devices() -> int:
    """Devices that the NVIDIA driver shows here; 0 without one."""
    with contextlib.suppress(OSError):
        return len(list(Path('/proc/driver/nvidia/gpus').iterdir()))
    return 0


def _for_retry(job, outcome):
    """The second attempt keeps its budget of tokens where memory was not what it lacked."""
    return job if outcome.kind == 'memory' else dataclasses.replace(job, fewer_tokens=())


def with_flags(command: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The command with flags --name=value in place of those of the same names, since none may be given twice."""
    names = tuple(flag.partition('=')[0] + '=' for flag in flags)
    return [word for word in command if not word.startswith(names)] + list(flags) if flags else command


def left_by_the_dead(job: Job) -> bool:
    """Whether an earlier attempt was killed after it had saved its scorer and before its result was whole.

    Its folder would be refused as somebody's; without a log that says so, it is.
    """
    if job.save_dir is None or job.overwrite or job.paths.result.exists() or not os.path.isdir(job.save_dir):
        return False
    tail = read_tail(job.log)
    last = tail[tail.rfind(MARK) :].partition('] ')[2].split('\n')[0] if MARK in tail else ''
    was_killed = last.startswith(('attempt', 'stopped', 'failed: killed by'))
    return was_killed and f'--save_dir={job.save_dir}' in tail


def _prepare(parent, cores):
    """What the child does between fork and exec: ask to be killed with its parent, and keep to its cores."""

    def prepare():
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the request
            os._exit(1)
        for number in (signal.SIGUSR1, signal.SIGUSR2):  # a cluster's word to the process above, which passes it on
            signal.signal(number, signal.SIG_IGN)
        if cores:
            os.sched_setaffinity(0, cores)

    return prepare


@contextlib.contextmanager
def _opened(log):
    """The log, to append to: two processes may do so at once."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, 'ab', buffering=0) as file:
            yield file
    except OSError as error:
        raise InputError(f'{log}: cannot be written ({error.strerror}); choose a results folder that can') from error


def _mark(log, text):
    end = '' if log.tell() == 0 else '\n'  # a bar of progress leaves its line open
    log.write(f'{end}{MARK}{datetime.now(UTC).isoformat(timespec="seconds")}] {text}\n'.encode())


def _holder(raw):
    try:
        holder = json.loads(raw)
        return f'process {holder["pid"]} on {holder["host"]} since {holder["since"]}'
    except (ValueError, TypeError, KeyError):
        return 'a process that has not said which'


def identity(path) -> tuple | None:
    """What changes when a file is replaced; None where there is none."""
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
