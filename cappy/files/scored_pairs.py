"""Files of pairs in jsonl, csv or tsv, read one record at a time and written again with a score behind their fields."""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cappy.errors import InputError
from cappy.files import inputs, jsonl
from cappy.files.atomic import shortest_float32
from cappy.files.outputs import STANDARD, is_stream
from cappy.files.wording import listed, shown

FORMATS = ('jsonl', 'csv', 'tsv')
_DELIMITERS = {'csv': ',', 'tsv': '\t'}
# Scores that differ by no more tell nothing: the sums of float32 differ as much when a pair meets others in its row.
SAME_SCORE = 1e-6
_LONGEST_FIELD = 2**24  # characters; an open quote would otherwise take in the rest of a file


class Pair(NamedTuple):
    """A record of the file. line: where it begins, from 1; text: the record as it is written, up to the score."""

    line: int
    instruction: str
    response: str
    text: bytes


class PairFile:
    """A file of pairs, gzip or not; or standard input or a pipe, which can be read once (is_stream).

    format: one of FORMATS, None: what the name of the file says. header: bytes before the records, known once the first
    of `pairs` was read; end: bytes that end a record. Raises InputError for a format that is not known.
    """

    def __init__(self, path, format=None, *, instruction_key='instruction', response_key='response', score_key='score'):
        self.path = path if path == STANDARD else inputs.find(path)
        self.name = 'standard input' if path == STANDARD else str(self.path)
        self.is_stream = is_stream(path)
        self.format = format or self._format_of_name()
        self.keys = {'instruction_key': instruction_key, 'response_key': response_key}
        self.score_key = score_key
        self.header = b''
        self.end = b'}\n' if self.format == 'jsonl' else b'\n'

    def pairs(self) -> Iterator[Pair]:
        """The pairs in order. Raises InputError naming line and field of a bad one: of a stream when it comes to it,

        of a file at the end, with the other bad lines.
        """
        lines = self._lines()
        if self.format == 'jsonl':
            pairs = self._json_pairs(lines)
        else:
            reader = self._reader(lines)
            pairs = self._delimited_pairs(reader, self._columns(reader))
        return self._at_least_one(pairs)

    def digest(self) -> str:
        """SHA-256 of the file's bytes, in hexadecimal. Raises InputError where it cannot be read."""
        digest = hashlib.sha256()
        for line in self._lines():
            digest.update(line)
        return digest.hexdigest()

    def with_score(self, pair, score) -> bytes:
        """The record as it is written."""
        return pair.text + repr(shortest_float32(score)).encode() + self.end

    def _format_of_name(self):
        name = '' if self.path == STANDARD else self.path.name.lower().removesuffix(inputs.GZIP_ENDING)
        ending = Path(name).suffix.removeprefix('.')
        if ending not in FORMATS:
            raise InputError(f'{self.name}: its name does not say how it is laid out; add --format {"|".join(FORMATS)}')
        return ending

    def _lines(self):
        """Lines as bytes, each with its end."""
        with self._opened() as file:
            first = next(file, b'')
            # Some editors begin UTF-8 with a mark.
            yield from itertools.chain([first.removeprefix(b'\xef\xbb\xbf')] if first else [], file)

    @contextlib.contextmanager
    def _opened(self):
        if self.path != STANDARD:
            with inputs.opened(self.path, once=True) as file:
                yield file
            return
        try:
            with open(sys.stdin.fileno(), 'rb', closefd=False) as file:
                yield file
        except OSError as error:
            raise InputError(f'{self.name}: cannot be read ({error.strerror})') from error

    def _json_pairs(self, lines):
        field = ', ' + json.dumps(self.score_key, ensure_ascii=False) + ': '
        faults, halves = jsonl.Faults(self.name), jsonl.Halves()
        for number, raw in enumerate(lines, start=1):
            if raw.isspace():
                continue
            try:
                fields = jsonl.parse_object(raw, halves)
                texts = [self._text(fields, flag) for flag in self.keys]
                self._check_score_is_new(fields)
            except InputError as error:
                self._add(faults, number, error)
            if not faults:
                yield Pair(number, *texts, raw.strip()[:-1].rstrip() + field.encode())
        faults.check()
        halves.say(self.name)

    def _add(self, faults, line, error):
        faults.add(line, error)
        if self.is_stream:  # of which earlier pairs are scored already, and which may have no end
            faults.check()

    def _text(self, fields, flag):
        key = self.keys[flag]
        if key not in fields:
            raise InputError(f'{key} is missing; there is {listed(fields)}; --{flag} names another field')
        if not isinstance(fields[key], str):
            raise InputError(f'{key}: expected text, found {shown(fields[key])}')
        return fields[key]

    def _check_score_is_new(self, fields):
        if self.score_key in fields:
            raise InputError(f'{self.score_key}: there is such a field; --score_key names another one for the scores')

    def _reader(self, lines):
        csv.field_size_limit(_LONGEST_FIELD)
        return csv.reader(self._decoded(lines), delimiter=_DELIMITERS[self.format], strict=True)

    def _decoded(self, lines):
        for number, raw in enumerate(lines, start=1):
            try:
                yield raw.decode('utf-8')
            except UnicodeDecodeError as error:
                raise InputError(
                    f'{self.name}:{number}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8'
                ) from error

    def _columns(self, reader):
        """The names in the first line; sets the header."""
        _, columns = next(self._records(reader), (1, None))
        if columns is None:
            raise InputError(f'{self.name}: holds no pairs')
        try:
            for flag, key in self.keys.items():
                self._text(dict.fromkeys(columns, ''), flag)
                if columns.count(key) > 1:
                    raise InputError(f'{key}: {columns.count(key)} columns have this name; rename all but one')
            self._check_score_is_new(columns)
        except InputError as error:
            raise InputError(f'{self.name}:1: {error}') from error
        self.header = self._delimited([*columns, self.score_key]) + self.end
        return columns

    def _records(self, reader):
        """(line it begins on, values) of each record that is not blank."""
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(
                    f'{self.name}:{line}: not a record of {self.format} ({error}); quote a field that holds a quote or '
                    'a newline, and double the quotes in it'
                ) from error
            if values:
                yield line, values

    def _delimited_pairs(self, reader, columns):
        places = [columns.index(key) for key in self.keys.values()]
        faults, holds = jsonl.Faults(self.name), 'a comma' if self.format == 'csv' else 'a tab'
        for line, values in self._records(reader):
            if len(values) != len(columns):
                wrong = (
                    f'{len(values)} fields, but the first line names {len(columns)}; quote a field that holds {holds}'
                )
                self._add(faults, line, InputError(wrong))
            if not faults:
                text = self._delimited(values) + _DELIMITERS[self.format].encode()
                yield Pair(line, *(values[place] for place in places), text)
        faults.check()

    def _delimited(self, values):
        text = io.StringIO()
        # With this end of a line, both \r and \n are quoted inside a field.
        csv.writer(text, delimiter=_DELIMITERS[self.format], lineterminator='\r\n').writerow(values)
        return text.getvalue().removesuffix('\r\n').encode()

    def _at_least_one(self, pairs):
        first = next(pairs, None)
        if first is None:
            raise InputError(f'{self.name}: holds no pairs')
        yield first
        yield from pairs


class PairsDigest:
    """What tells the pairs of an input that cannot be read twice from others, in any order: a sum of their digests."""

    def __init__(self, pairs=()):
        self._sum = 0
        for pair in pairs:
            self.add(pair)

    def add(self, pair):
        """Count a pair in."""
        self._sum += int.from_bytes(hashlib.blake2b(pair.text, digest_size=32).digest())
        self._sum %= 1 << 256

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return f'{self._sum:064x}'


class Runs:
    """Counts instructions that are in several places of a file, in 8 bytes per run of pairs of one instruction."""

    def __init__(self):
        self._hashes, self._last = array('q'), None

    def watch(self, pairs):
        """The pairs, as they pass."""
        for pair in pairs:
            if pair.instruction != self._last:
                self._last = pair.instruction
                self._hashes.append(hash(pair.instruction))
            yield pair

    @property
    def n_again(self) -> int:
        """Runs whose instruction had one before."""
        hashes = np.frombuffer(self._hashes, np.int64) if self._hashes else np.empty(0, np.int64)
        return len(hashes) - len(np.unique(hashes))


class TopTies:
    """Counts runs of one instruction in which several different responses have the highest score, to SAME_SCORE.

    n_runs: runs with several different responses; n_tied: those of them in which the highest score is shared; n_alike:
    those in which all have it.
    """

    def __init__(self):
        self.n_runs = self.n_tied = self.n_alike = 0

    def watch(self, ranked):
        """(pair, score) as they pass, in the order of `best_first`."""
        for _, run in itertools.groupby(ranked, key=lambda scored_pair: scored_pair[0].instruction):
            best, all_responses, highest = set(), set(), None
            for pair, score in run:
                highest = score if highest is None else highest
                all_responses.add(pair.response)
                if highest - score <= SAME_SCORE:
                    best.add(pair.response)
                yield pair, score
            self.n_runs += len(all_responses) > 1
            self.n_tied += len(best) > 1
            self.n_alike += len(best) == len(all_responses) > 1


def best_first(scored):
    """(pair, score) with the pairs of each run of one instruction sorted, the first of equals first."""
    for _, run in itertools.groupby(scored, key=lambda scored_pair: scored_pair[0].instruction):
        yield from sorted(run, key=lambda scored_pair: -scored_pair[1])
