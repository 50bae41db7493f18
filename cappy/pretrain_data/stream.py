"""Pretraining data as a stream: shards of labelled pairs, read in an order that depends on a seed alone.

A shard is a file of pairs that were shuffled when it was written (scripts/get_pretrain_data.py). In each pass over the
data the shards come in another order, and the pairs are shuffled again within windows. Memory holds one window.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tqdm

from cappy.errors import InputError
from cappy.files import jsonl
from cappy.files.inputs import find, stems
from cappy.files.wording import not_found
from cappy.pretrain_data.labelled_pairs import LabelledPair, parse_pair

SHARD_PATTERN = 'train-*.jsonl'
HELD_OUT_FILE = 'heldout.jsonl'
REMEDY = 'python scripts/get_pretrain_data.py makes pretraining data'
_SHARD_OF_A_SET = re.compile(r'train-(\d+)-of-(\d+)\.jsonl')


def shard_name(number, n_shards) -> str:
    """The file name of a shard, counted from 0."""
    return f'train-{number:05d}-of-{n_shards:05d}.jsonl'


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard that was read once from end to end: its pairs were counted, and digest is the SHA-256 of its lines."""

    path: Path
    n_pairs: int
    digest: str


def find_shards(folder) -> list[Path]:
    """The shards of a folder, in order. Raises InputError where there is none, or one of a numbered set is missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(not_found(folder, 'folder', REMEDY))
    beginning, ending = SHARD_PATTERN.split('*')
    names = sorted(f'{stem}{ending}' for stem in stems(folder, ending) if stem.startswith(beginning))
    if not names:
        raise InputError(f'{folder}: has no {SHARD_PATTERN}; {REMEDY}')
    numbered = [_SHARD_OF_A_SET.fullmatch(name) for name in names]
    if all(numbered):
        n_shards = {int(name[2]) for name in numbered}
        if len(n_shards) > 1:
            raise InputError(f'{folder}: holds shards of several sets, of {sorted(n_shards)} files; keep one set')
        missing = sorted(set(range(*n_shards)) - {int(name[1]) for name in numbered})
        if missing:
            raise InputError(
                f'{folder}: shard {missing[0]} of {n_shards.pop()} is missing; copy it there or make all of them again'
            )
    return [find(folder / name) for name in names]


def check_shards(paths: Sequence[Path], progress=True) -> list[Shard]:
    """Read every pair once and count them, so that a bad line is named before any work.

    Raises InputError naming file, lines and fields.
    """
    shards = []
    n_bytes = sum(path.stat().st_size for path in paths)
    with tqdm.tqdm(total=n_bytes, desc='checking', unit='B', unit_scale=True, disable=not progress) as bar:
        for path in paths:
            digest, n_pairs = hashlib.sha256(), 0
            faults, halves = jsonl.Faults(path), jsonl.Halves()
            for number, raw in jsonl.numbered_lines(path):
                try:
                    parse_pair(jsonl.parse_object(raw, halves))
                except InputError as error:
                    faults.add(number, error)
                digest.update(raw)
                n_pairs += 1
                bar.update(len(raw))
            faults.check()
            halves.say(path)
            if not n_pairs:
                raise InputError(f'{path}: holds no pairs; make it again or delete it')
            shards.append(Shard(path, n_pairs, digest.hexdigest()))
    return shards


@dataclass(frozen=True, slots=True)
class Stream:
    """n_epochs passes over shards, cut into windows of window_size pairs, each shuffled; the last may be shorter.

    The order depends only on the seed, the number of the pass and that of the window, so that reading can begin at any
    window.
    """

    shards: tuple[Shard, ...]
    n_epochs: int
    window_size: int
    seed: int

    @property
    def n_pairs(self) -> int:
        """Pairs of all passes together."""
        return self.n_epochs * sum(shard.n_pairs for shard in self.shards)

    def windows(self, first=0) -> Iterator[list[LabelledPair]]:
        """The windows from number `first` on."""
        pairs = self._pairs(first * self.window_size)
        for number in itertools.count(first):
            window = list(itertools.islice(pairs, self.window_size))
            if not window:
                return
            order = np.random.default_rng([self.seed, 1, number]).permutation(len(window))
            yield [window[i] for i in order]

    def _pairs(self, n_skipped):
        for epoch in range(self.n_epochs):
            for i in np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.shards)):
                shard = self.shards[i]
                if n_skipped >= shard.n_pairs:
                    n_skipped -= shard.n_pairs
                    continue
                lines = itertools.islice(jsonl.numbered_lines(shard.path), n_skipped, None)
                n_skipped = 0
                for number, raw in lines:
                    try:
                        yield parse_pair(jsonl.parse_object(raw))
                    except InputError as error:  # it was sound when it was checked
                        raise InputError(f'{shard.path}:{number}: {error}') from error


def data_digest(shards: Sequence[Shard]) -> str:
    """A SHA-256 of the contents of all shards, whatever their names."""
    return hashlib.sha256(json.dumps([shard.digest for shard in shards]).encode()).hexdigest()
