"""Score a file of (instruction, response) pairs: the same rows come out, in order, with a score behind their fields.

    python scripts/score.py pairs.jsonl --output scored.jsonl
    python scripts/score.py samples.csv --response_key sample --rank
    zcat pairs.tsv.gz | python scripts/score.py - --format tsv

Rows pass through memory a few windows of 16,384 at a time, whatever the file's length. A file is read through once
before the scorer is loaded, so that a bad line is named first. With --output, rows go to {output}.partial until all are
there; the same command then goes on where a stopped one was.
"""

import collections
import contextlib
import itertools
import json
import logging
import os
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli import flags
from cappy.errors import InputError
from cappy.files.atomic import write_atomically
from cappy.files.lock import result_lock
from cappy.files.partial import OutputPaths
from cappy.files.scored_pairs import STANDARD, PairFile, Runs, best_first, find_done
from cappy.model.devices import get_devices, is_first_process

logger = logging.getLogger('score')

# Flags that decide what a scored file holds; one that was begun with others is not continued.
DECIDING = ('model_name_or_path', 'max_length', 'compute_dtype', 'instruction_key', 'response_key', 'score_key', 'rank')


def main(
    input_file: str,  # jsonl, csv or tsv; - is standard input
    output=STANDARD,  # the scored file; - is standard output
    format: Literal['jsonl', 'csv', 'tsv'] | None = None,  # of both; default: what the input's name says
    instruction_key='instruction',  # field or column of the instruction
    response_key='response',  # field or column of the response
    score_key='score',  # field or column for the score
    rank=False,  # sort rows of one instruction that follow each other, best first; each such group fits memory
    model_name_or_path='btan2/cappy-large',  # hub name or folder of the scorer
    n_model_shards=1,  # devices over which each weight is split
    max_length: int | None = None,  # tokens of a pair, longer ones are truncated; default: 512, or all the model has
    compute_dtype: Literal['float32', 'bfloat16'] | None = None,  # default: float32 on a CPU, else bfloat16
    tokens_per_device: int | None = None,  # of a batch; default: what suits the device
    seed=11111,  # of a fresh head, for an encoder without one
    overwrite=False,  # begin anew where the output, or a part of it, exists
    n_processes: int | None = None,  # hosts, as redco's Deployer takes them; so the next four
    host0_address: str | None = None,
    host0_port: int | None = None,
    process_id: int | None = None,
    n_local_devices: int | None = None,
):
    """Score a file of pairs."""
    settings = dict(locals())
    keys = {'instruction_key': instruction_key, 'response_key': response_key, 'score_key': score_key}
    pairs = PairFile(input_file, format, **keys)
    paths = None if output == STANDARD else OutputPaths(Path(output))
    check_output(paths, pairs)
    n_rows = check_rows(pairs, rank)
    if paths and paths.result.exists() and not overwrite:
        return confirm_existing(paths, pairs, rank)

    devices = start_devices(settings)
    runs = Runs()
    with writing(paths, pairs, settings) as (write, n_done, rows):
        scorer = load_scorer(settings, devices)
        n_to_come = None if n_rows is None else n_rows - n_done
        with contextlib.closing(score_rows(scorer, runs.watch(rows) if rank else rows, n_to_come)) as scored:
            for row, score in best_first(scored) if rank else scored:
                write(pairs.with_score(row, score))
    if rank and n_rows is None:
        warn_of_split_groups(runs.n_again)


def check_output(paths, pairs):
    """The output is not the input, and its folder is there, before a long file is read."""
    if not paths:
        return
    if pairs.path != STANDARD and paths.result.exists() and pairs.path.exists() and paths.result.samefile(pairs.path):
        raise InputError(f'--output {paths.result}: is the input itself; name another file')
    if paths.result.is_dir():
        raise InputError(f'--output {paths.result}: is a folder; name a file in it')


def check_rows(pairs, rank):
    """The number of rows, each of which is sound; None for standard input, which cannot be read twice."""
    if pairs.path == STANDARD:
        return None
    runs = Runs()
    n_rows = sum(1 for _ in (runs.watch(pairs.rows()) if rank else pairs.rows()))
    if rank:
        warn_of_split_groups(runs.n_again)
    return n_rows


def warn_of_split_groups(n_again):
    """--rank sorts rows that follow each other; sorting a whole file would take its size in memory."""
    if n_again:
        logger.warning(
            '%d groups have an instruction that an earlier group has, and are ranked by themselves; sort the file by '
            'instruction to rank such rows together',
            n_again,
        )


def confirm_existing(paths, pairs, rank):
    """An output that is there and whole is left alone; one of another input is an error."""
    done = find_done(paths.result, pairs, pairs.rows(), rank)
    if next(done.rest, None) is not None:
        raise InputError(
            f'{paths.result}: exists and holds {done.n_rows} rows of {pairs.name}, not all; --overwrite begins anew'
        )
    print(f'{paths.result} exists and holds all {done.n_rows} rows. Skipped; --overwrite begins anew.', file=sys.stderr)


def start_devices(settings):
    """processes.start_devices, where every process can read the input."""
    if settings['n_processes'] not in (None, 1) and settings['input_file'] == STANDARD:
        raise InputError('standard input reaches one process; give a file that all of them can read')
    hosts = ('n_processes', 'host0_address', 'host0_port', 'process_id', 'n_local_devices')
    return get_devices(settings['n_model_shards'], *(settings[name] for name in hosts))


def load_scorer(settings, devices):
    """The scorer as it is."""
    from cappy import Cappy

    return Cappy.from_pretrained(
        settings['model_name_or_path'],
        devices=devices,
        **{name: settings[name] for name in ('compute_dtype', 'max_length', 'tokens_per_device', 'seed')},
    )


def score_rows(scorer, rows, n_rows):
    """(row, score) in order; n_rows: None where it is not known."""
    waiting = collections.deque()  # rows that are tokenized or being scored: three windows at most

    class Pairs:
        def __iter__(self):
            for row in rows:
                waiting.append(row)
                yield row.instruction, row.response

    class CountedPairs(Pairs):
        def __len__(self):
            return n_rows

    n_scored = n_truncated = 0
    for scores, counts in scorer.score_stream((Pairs if n_rows is None else CountedPairs)(), progress='scoring'):
        n_scored, n_truncated = n_scored + len(scores), n_truncated + counts['truncated_pairs']
        for score in scores:
            yield waiting.popleft(), score
    if n_truncated:
        logger.warning('%d of %d pairs were truncated to %d tokens', n_truncated, n_scored, scorer.max_length)


@contextlib.contextmanager
def writing(paths, pairs, settings):
    """(a function that writes bytes, number of rows done, rows to come); the output appears when the block ends."""
    with contextlib.ExitStack() as stack:
        if paths and is_first_process():
            stack.enter_context(result_lock(paths))
            done, file = open_partial(paths, pairs, settings)
            stack.callback(close_partial, file, paths, len(pairs.header))
            n_done, rows = done.n_rows, done.rest
        else:
            n_done, rows, file = 0, pairs.rows(), None
        n_done = from_first_process(n_done)
        if not is_first_process():
            yield (lambda text: None), n_done, itertools.islice(rows, n_done, None)
        elif paths is None:
            sys.stdout.buffer.write(pairs.header)
            yield sys.stdout.buffer.write, 0, rows
            sys.stdout.buffer.flush()
        else:
            yield writer(file, paths.partial), n_done, rows
            finish(file, paths)


def from_first_process(number):
    """The number that the first process has, on every process."""
    import jax

    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(number))


def open_partial(paths, pairs, settings):
    """(pairfiles.Done, the partial file open at its end); an interrupted one is cut behind its last whole row."""
    deciding = {name: settings[name] for name in DECIDING} | {'format': pairs.format}
    rows = pairs.rows()
    begins_anew = settings['overwrite'] or not paths.partial.exists()
    if begins_anew:
        with write_atomically(paths.settings) as file:
            json.dump(deciding, file, indent=4)
        paths.partial.write_bytes(pairs.header)
    else:
        paths.check_continues(deciding)
    done = find_done(paths.partial, pairs, rows, settings['rank'])
    if done.n_rows:
        print(f'{paths.partial} holds {done.n_rows} rows; going on behind them', file=sys.stderr)
    file = open(paths.partial, 'r+b')  # noqa: SIM115 - close_partial closes it
    file.truncate(done.n_bytes)
    file.seek(done.n_bytes)
    if not done.n_bytes:
        file.write(pairs.header)
    return done, file


def close_partial(file, paths, n_header_bytes):
    """Of a run that failed before its first row nothing stays."""
    is_empty = file.tell() <= n_header_bytes
    with contextlib.suppress(OSError):  # a full disk, of which `writer` has told
        file.close()
    if is_empty:
        paths.partial.unlink(missing_ok=True)
        paths.settings.unlink(missing_ok=True)


@contextlib.contextmanager
def writes_to(path):
    """A full disk is told by the file's name."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f'{path}: cannot be written ({error.strerror}); make room, and the same command goes on'
        ) from error


def writer(file, path):
    """file.write, with a full disk told."""

    def write(text):
        with writes_to(path):
            file.write(text)

    return write


def finish(file, paths):
    """The partial file is whole."""
    with writes_to(paths.partial):
        file.flush()
        os.fsync(file.fileno())
        os.replace(paths.partial, paths.result)
        paths.settings.unlink(missing_ok=True)


if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
    flags.run(main)
