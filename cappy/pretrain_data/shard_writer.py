"""Pretraining data written: rows scattered over shards, each shuffled, and the rows of held-out instances.

Everything is made in a folder beside the one that is asked for, which takes its place at the end: a run that was
stopped leaves nothing that looks finished. One shard is held in memory at a time.
"""

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random

import tqdm

from cappy.errors import InputError
from cappy.pretrain_data.rows import Row, folded
from cappy.pretrain_data.stream import HELD_OUT, shard_name

COUNTS = 'counts.json'
_OURS = ('train-*-of-*.jsonl', HELD_OUT, COUNTS)
_DIGEST_BYTES = 8  # of an instruction: two of a billion are the same once in 37 such data sets


class ShardWriter:
    """Takes rows while they are made, and writes them out at the end."""

    def __init__(self, folder, n_shards, seed, files):
        self._folder, self._n_shards, self._seed, self._files = folder, n_shards, seed, files
        self._random = Random(f'{seed}:shards')
        self._held_out_digests = set()

    def add_train(self, rows: Sequence[Row]):
        """Rows to train on, each to a shard drawn for it."""
        for row in rows:
            file = self._files[self._random.randrange(self._n_shards)]
            file.write(f'{_digest(row.instruction)}{_as_line(row)}')

    def add_held_out(self, rows: Sequence[Row]):
        """The rows of one instance, which stay together."""
        self._held_out_digests.update(_digest(row.instruction).encode() for row in rows)
        self._files[-1].writelines(map(_as_line, rows))

    def shuffle(self) -> Counter:
        """Turn what was scattered into shards. Rows to train on whose instruction is held out too (white space and case
        aside) are left out: {(template, source, label): how many} of those.
        """
        for file in self._files:
            file.close()
        removed = Counter()
        for number in tqdm.tqdm(range(self._n_shards), desc='shuffling', unit='shard'):
            scattered = self._folder / _scattered_name(number)
            with open(scattered, 'rb') as file:  # bytes: text with one rare character takes up to four times the memory
                lines = file.readlines()
            Random(f'{self._seed}:shard {number}').shuffle(lines)
            with open(self._folder / shard_name(number, self._n_shards), 'wb') as file:
                for line in lines:
                    digest, line = line[: 2 * _DIGEST_BYTES], line[2 * _DIGEST_BYTES :]
                    if digest in self._held_out_digests:
                        row = json.loads(line)
                        removed[row['template'], row['source'], row['label']] += 1
                    else:
                        file.write(line)
            scattered.unlink()
        return removed

    def write_counts(self, counts: dict):
        """The file of settings and counts."""
        text = json.dumps(counts, ensure_ascii=False, indent=1)
        (self._folder / COUNTS).write_text(text + '\n', encoding='utf-8')


def check_output(output_dir, overwrite):
    """Raises InputError where the folder exists, or holds what is not ours and so must not be replaced."""
    output_dir = Path(output_dir)
    if not output_dir.exists() and not output_dir.is_symlink():
        return
    if not overwrite:
        raise InputError(f'{output_dir}: exists; --overwrite replaces it, another --output_dir keeps both')
    if not output_dir.is_dir() or output_dir.is_symlink():
        raise InputError(f'{output_dir}: is not a folder; give another --output_dir')
    ours = {path for pattern in _OURS for path in output_dir.glob(pattern)}
    other = sorted(set(output_dir.iterdir()) - ours)
    if other:
        raise InputError(f'{output_dir}: holds {other[0].name} too, which is no pretraining data; move it away')


@contextmanager
def shard_writer(output_dir, n_shards, seed) -> Iterator[ShardWriter]:
    """A ShardWriter whose files take their place when the block ends, and vanish where it fails.

    Raises InputError where files cannot be written (rights, space).
    """
    output_dir = Path(output_dir)
    partial = output_dir.with_name(f'.{output_dir.name}.partial')
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        with ExitStack() as stack:
            names = [*map(_scattered_name, range(n_shards)), HELD_OUT]
            files = [
                stack.enter_context(open(partial / name, 'w', encoding='utf-8', newline='\n', buffering=1 << 17))
                for name in names
            ]
            yield ShardWriter(partial, n_shards, seed, files)
        _replace(output_dir, partial)
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(partial)):
            raise  # the caller's block failed on a file of its own
        hint = '; make room or give another --output_dir' if error.errno in (errno.ENOSPC, errno.EDQUOT) else ''
        raise InputError(f'{partial}: cannot be written ({error.strerror or error}){hint}') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(output_dir, partial):
    for path in partial.iterdir():
        with open(path, 'rb+') as file:
            os.fsync(file.fileno())
    old = output_dir.with_name(f'.{output_dir.name}.old')
    shutil.rmtree(old, ignore_errors=True)
    with suppress(FileNotFoundError):
        output_dir.rename(old)
    partial.rename(output_dir)
    shutil.rmtree(old, ignore_errors=True)


def _scattered_name(number):
    return f'scattered-{number:05d}'


def _as_line(row):
    return json.dumps(row._asdict(), ensure_ascii=False) + '\n'


def _digest(instruction):
    return hashlib.blake2b(folded(instruction).encode(), digest_size=_DIGEST_BYTES).hexdigest()
