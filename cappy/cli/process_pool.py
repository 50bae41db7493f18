"""Work on many files, distributed over the machine's cores."""

import gc
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import tqdm

from cappy.errors import InputError

BYTES_WORTH_A_PROCESS = 4_000_000  # a smaller amount is read before a process has started


def run_over_files(work: Callable, arguments: Sequence[tuple], n_bytes: Sequence[int], n_workers=None, progress=None):
    """[work(*a) for a in arguments], in their order; a call that raises InputError gives the error as its result.

    work: a function of a module, with arguments and results that can be pickled. n_bytes: size of the files of each
    call; the largest start first. n_workers: processes, one per core if None. progress: text beside a progress bar,
    which only a terminal shows.
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
    # Not forked: a fork of a process with threads, such as jax's, may hang.
    with ProcessPoolExecutor(n_workers, mp_context=get_context('spawn'), initializer=_prepare_process) as pool:
        jobs = {index: pool.submit(_attempt, work, *arguments[index]) for index in order}
        for job in jobs.values():
            job.add_done_callback(lambda _: bar.update())
        try:
            return {index: job.result() for index, job in jobs.items()}
        except BrokenProcessPool as error:
            raise InputError(
                'a process that read files was killed, perhaps for lack of memory; use n_workers 1'
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _prepare_process():
    gc.disable()  # what is read has no cycles, and looking for them takes two fifths of the time
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once; the caller reports it


def _attempt(work, *argument):
    try:
        return work(*argument)
    except InputError as error:
        return error
