"""Work on many files, spread over the machine's cores."""

import gc
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import tqdm

from cappy.errors import InputError

BYTES_WORTH_A_PROCESS = 4_000_000  # less is read sooner than a process starts


def run_over_files(work: Callable, arguments: Sequence[tuple], n_bytes: Sequence[int], n_workers=None, progress=None):
    """[work(*a) for a in arguments], in their order, where a call that raises InputError gives the error itself.

    work: a function of a module, its arguments and results fit to be sent to another process. n_bytes: how large the
    files of each are; the largest is begun first. n_workers: as many as there are cores, if None. progress: words
    beside a bar on a terminal.
    """
    if n_workers is not None and n_workers < 1:
        raise InputError(f'n_workers {n_workers}: expected 1 or more')
    most = n_workers or len(os.sched_getaffinity(0))
    n_workers = min(most, len(arguments), max(1, sum(n_bytes) // BYTES_WORTH_A_PROCESS))
    order = sorted(range(len(arguments)), key=lambda index: -n_bytes[index])
    with tqdm.tqdm(total=len(arguments), desc=progress, unit='file', disable=None if progress else True) as bar:
        if n_workers < 2:
            results = {}
            for index in order:
                results[index] = _attempt(work, *arguments[index])
                bar.update()
        else:
            results = _run_in_processes(work, arguments, order, n_workers, bar)
    return [results[index] for index in range(len(arguments))]


def _run_in_processes(work, arguments, order, n_workers, bar):
    # Not forked: the caller may have threads, jax's among them.
    with ProcessPoolExecutor(n_workers, mp_context=get_context('spawn'), initializer=_prepare_process) as pool:
        jobs = {index: pool.submit(_attempt, work, *arguments[index]) for index in order}
        for job in jobs.values():
            job.add_done_callback(lambda _: bar.update())
        try:
            return {index: job.result() for index, job in jobs.items()}
        except BrokenProcessPool as error:
            raise InputError('a process that read files was killed, by lack of memory maybe; --n_workers 1') from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _prepare_process():
    gc.disable()  # a file's rows hold no cycles, and looking for some takes two fifths of the time
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once; the caller says so


def _attempt(work, *argument):
    try:
        return work(*argument)
    except InputError as error:
        return error
