"""Writes pretraining data: training pairs scattered over shards, each shuffled, and the pairs of held-out instances.

All files are made in a folder beside the output folder, which it replaces at the end: a run that was stopped leaves
nothing that looks finished. Memory holds one shard at a time, while it is shuffled.
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
from cappy.files.outputs import check_places
from cappy.pretrain_data.labelled_pairs import LabelledPair, as_line, folded
from cappy.pretrain_data.stream import HELD_OUT_FILE, SHARD_PATTERN, shard_name

COUNTS_FILE = 'counts.json'
_OUR_FILES = (SHARD_PATTERN, HELD_OUT_FILE, COUNTS_FILE)
# Of an instruction's digest: in one of 37 data sets of a billion instructions, two of them would share a digest.
_DIGEST_BYTES = 8


class ShardWriter:
    """Takes pairs while they are made, and writes the shards at the end. `shard_writer` opens one."""

    def __init__(self, folder, n_shards, seed, files):
        self._folder, self._n_shards, self._seed, self._files = folder, n_shards, seed, files
        self._random = Random(f'{seed}:shards')
        self._held_out_digests = set()

    def add_train(self, pairs: Sequence[LabelledPair]):
        """Put each training pair into a shard drawn at random."""
        for pair in pairs:
            file = self._files[self._random.randrange(self._n_shards)]
            file.write(f'{_digest(pair.instruction)}{as_line(pair)}')

    def add_held_out(self, pairs: Sequence[LabelledPair]):
        """Write the pairs of one held-out instance, which stay together."""
        self._held_out_digests.update(_digest(pair.instruction).encode() for pair in pairs)
        self._files[-1].writelines(map(as_line, pairs))

    def shuffle(self) -> Counter:
        """Turn the scattered pairs into shuffled shards.

        Training pairs whose instruction is held out too (white space and case aside) are left out; returns their number
        by (template, source, label).
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
                        fields = json.loads(line)
                        removed[fields['template'], fields['source'], fields['label']] += 1
                    else:
                        file.write(line)
            scattered.unlink()
        return removed

    def write_counts(self, counts: dict):
        """Write the file of settings and counts."""
        text = json.dumps(counts, ensure_ascii=False, indent=1)
        (self._folder / COUNTS_FILE).write_text(text + '\n', encoding='utf-8')


def check_output(output_dir, overwrite):
    """Raise InputError where the folder cannot be written, exists and is not to be replaced, or holds other files,
    which never are.
    """
    output_dir = Path(output_dir)
    check_places(output_dir)
    if not output_dir.exists() and not output_dir.is_symlink():
        return
    if not overwrite:
        raise InputError(f'{output_dir}: exists; --overwrite replaces it, another --output_dir keeps both')
    if not output_dir.is_dir() or output_dir.is_symlink():
        raise InputError(f'{output_dir}: is not a folder; give another --output_dir')
    ours = {path for pattern in _OUR_FILES for path in output_dir.glob(pattern)}
    other = sorted(set(output_dir.iterdir()) - ours)
    if other:
        raise InputError(f'{output_dir}: holds {other[0].name} too, which is no pretraining data; move it elsewhere')


@contextmanager
def shard_writer(output_dir, n_shards, seed) -> Iterator[ShardWriter]:
    """A ShardWriter whose files appear in output_dir when the block ends, and are deleted where it fails.

    Raises InputError where files cannot be written (permissions, space).
    """
    output_dir = Path(output_dir)
    partial = output_dir.with_name(f'.{output_dir.name}.partial')
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        with ExitStack() as stack:
            names = [*map(_scattered_name, range(n_shards)), HELD_OUT_FILE]
            files = [
                stack.enter_context(open(partial / name, 'w', encoding='utf-8', newline='\n', buffering=1 << 17))
                for name in names
            ]
            yield ShardWriter(partial, n_shards, seed, files)
        _replace(output_dir, partial)
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(partial)):
            raise  # the block of the caller failed on a file of its own
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


def _digest(instruction):
    return hashlib.blake2b(folded(instruction).encode(), digest_size=_DIGEST_BYTES).hexdigest()
