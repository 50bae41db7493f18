"""Pretraining data: shards of rows {"instruction", "response", "label"}, streamed in an order that a seed decides.

A shard's rows were shuffled when it was written (scripts/get_pretrain_data.py). In each pass over the data the shards
come in another order, and rows are shuffled anew within windows; a window is all that is held in memory.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tqdm

from cappy.errors import InputError
from cappy.files import jsonl
from cappy.files.wording import listed, not_found, shown

TRAIN = 'train-*.jsonl'
HELD_OUT = 'heldout.jsonl'
REMEDY = 'python scripts/get_pretrain_data.py makes pretraining data'
_NUMBERED = re.compile(r'train-(\d+)-of-(\d+)\.jsonl')


def shard_name(number, n_shards) -> str:
    """Of a shard, counted from 0."""
    return f'train-{number:05d}-of-{n_shards:05d}.jsonl'


class LabelledRow(NamedTuple):
    """A pair and how correct its response is, 0 to 1; template and source ('choice', 'reference', ..) are '' where the
    file has none.
    """

    instruction: str
    response: str
    label: float
    template: str = ''
    source: str = ''


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of rows that was read once from end to end: how many they are, and the SHA-256 of its bytes."""

    path: Path
    n_rows: int
    digest: str


def find_shards(folder) -> list[Path]:
    """The shards of a folder, in order. Raises InputError where there is none, or one of a numbered set is missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(not_found(folder, 'folder', REMEDY))
    paths = sorted(folder.glob(TRAIN))
    if not paths:
        raise InputError(f'{folder}: has no {TRAIN}; {REMEDY}')
    numbered = [_NUMBERED.fullmatch(path.name) for path in paths]
    if all(numbered):
        n_shards = {int(name[2]) for name in numbered}
        there = {int(name[1]) for name in numbered}
        if len(n_shards) > 1:
            raise InputError(f'{folder}: holds shards of several sets, of {sorted(n_shards)} files; keep one set')
        missing = sorted(set(range(*n_shards)) - there)
        if missing:
            raise InputError(
                f'{folder}: shard {missing[0]} of {n_shards.pop()} is missing; copy it there or make all anew'
            )
    return paths


def check_shards(paths: Sequence[Path], progress=True) -> list[Shard]:
    """Read every row once, so that a bad one is named before any work, and count them.

    Raises InputError naming file, line and field.
    """
    shards = []
    n_bytes = sum(path.stat().st_size for path in paths)
    with tqdm.tqdm(total=n_bytes, desc='checking', unit='B', unit_scale=True, disable=not progress) as bar:
        for path in paths:
            digest, n_rows = hashlib.sha256(), 0
            for number, raw in jsonl.numbered_lines(path):
                jsonl.parse_line(path, number, raw, parse_row)
                digest.update(raw)
                n_rows += 1
                bar.update(len(raw))
            if not n_rows:
                raise InputError(f'{path}: holds no rows; make it anew or leave it out')
            shards.append(Shard(path, n_rows, digest.hexdigest()))
    return shards


def parse_row(fields) -> LabelledRow:
    """The pair of a line's fields. Raises InputError naming the field."""
    for key in ('instruction', 'response'):
        if key not in fields:
            raise InputError(f'{key}: missing; the line has {listed(fields)}')
        if not isinstance(fields[key], str) or not fields[key].strip():
            raise InputError(f'{key}: expected text, found {shown(fields[key])}')
    label = fields.get('label')
    if isinstance(label, bool) or not isinstance(label, int | float) or not math.isfinite(label):
        raise InputError(f'label: expected a number from 0 to 1, found {shown(label)}')
    if not 0 <= label <= 1:
        raise InputError(f'label: {label} is outside 0 to 1')
    template, source = fields.get('template', ''), fields.get('source', '')
    for key, value in (('template', template), ('source', source)):
        if not isinstance(value, str) or (key in fields and not value.strip()):
            raise InputError(f'{key}: expected a name, found {shown(value)}')
    return LabelledRow(fields['instruction'], fields['response'], float(label), template, source)


def read_rows(path) -> Iterator[LabelledRow]:
    """The rows of a file, in order. Raises InputError naming file, line and field."""
    for _, row in jsonl.read(path, parse_row):
        yield row


@dataclass(frozen=True, slots=True)
class Stream:
    """n_epochs passes over shards, cut into windows of window_size rows, each shuffled; the last may be shorter.

    The order hangs on the seed, the number of a pass and that of a window alone, so that reading can begin anywhere.
    """

    shards: tuple[Shard, ...]
    n_epochs: int
    window_size: int
    seed: int

    @property
    def n_rows(self) -> int:
        """Of all passes."""
        return self.n_epochs * sum(shard.n_rows for shard in self.shards)

    def windows(self, first=0) -> Iterator[list[LabelledRow]]:
        """The windows from number `first` on."""
        rows = self._rows(first * self.window_size)
        for number in itertools.count(first):
            window = list(itertools.islice(rows, self.window_size))
            if not window:
                return
            order = np.random.default_rng([self.seed, 1, number]).permutation(len(window))
            yield [window[i] for i in order]

    def _rows(self, n_skipped):
        for epoch in range(self.n_epochs):
            for i in np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.shards)):
                shard = self.shards[i]
                if n_skipped >= shard.n_rows:
                    n_skipped -= shard.n_rows
                    continue
                lines = itertools.islice(jsonl.numbered_lines(shard.path), n_skipped, None)
                n_skipped = 0
                for number, raw in lines:
                    yield jsonl.parse_line(shard.path, number, raw, parse_row)


def data_digest(shards: Sequence[Shard]) -> str:
    """A SHA-256 of all shards' contents, names left out."""
    return hashlib.sha256(json.dumps([shard.digest for shard in shards]).encode()).hexdigest()
