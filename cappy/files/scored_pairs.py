"""Files of pairs: rows of jsonl, csv or tsv, read one at a time and written again with a score behind their fields.

A row is written as its own text, then its score, then the file's end of a row, so that what is written of a row can be
recognised without its score: a file that was cut off anywhere is continued from there.
"""

import bisect
import csv
import io
import itertools
import json
import os
import re
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cappy.errors import InputError
from cappy.files.atomic import shortest_float32
from cappy.files.jsonl import parse_object
from cappy.files.wording import listed, not_found, shown

FORMATS = ('jsonl', 'csv', 'tsv')
STANDARD = '-'  # standard input or output
_DELIMITERS = {'csv': ',', 'tsv': '\t'}
_LONGEST_FIELD = 2**24  # characters; an open quote would otherwise take in the rest of a file
_SCORE = re.compile(rb'-?\d+(\.\d+)?(e[+-]?\d+)?(}\n|\n)')
_LONGEST_SCORE = 64  # bytes, the end of the row included


class Row(NamedTuple):
    """A pair and where it stands; text: the row as it is written, up to the score."""

    line: int
    instruction: str
    response: str
    text: bytes


class PairFile:
    """A file of pairs, or standard input, which can be read once.

    format: one of FORMATS, None: what the name of the file says. header: bytes that stand before the rows, known once
    `rows` was called; end: bytes that end a row. Raises InputError for a format that is not known.
    """

    def __init__(self, path, format=None, *, instruction_key='instruction', response_key='response', score_key='score'):
        self.path = path if path == STANDARD else Path(path)
        self.name = 'standard input' if path == STANDARD else str(path)
        self.format = format or self._format_of_name()
        self.keys = {'instruction_key': instruction_key, 'response_key': response_key}
        self.score_key = score_key
        self.header = b''
        self.end = b'}\n' if self.format == 'jsonl' else b'\n'

    def rows(self) -> Iterator[Row]:
        """The rows in order. Raises InputError naming line and field, there where it comes to a bad one."""
        lines = self._lines()
        if self.format == 'jsonl':
            rows = self._json_rows(lines)
        else:
            reader = self._reader(lines)
            rows = self._delimited_rows(reader, self._columns(reader))
        return self._at_least_one(rows)

    def with_score(self, row, score) -> bytes:
        """The row as it is written."""
        return row.text + repr(shortest_float32(score)).encode() + self.end

    def _format_of_name(self):
        ending = '' if self.path == STANDARD else self.path.suffix.removeprefix('.').lower()
        if ending not in FORMATS:
            raise InputError(f'{self.name}: its name does not say how it is laid out; add --format {"|".join(FORMATS)}')
        return ending

    def _lines(self):
        """Lines as bytes, each with its end."""
        is_standard = self.path == STANDARD
        try:
            with open(sys.stdin.fileno() if is_standard else self.path, 'rb', closefd=not is_standard) as file:
                first = next(file, b'')
                # Some editors begin UTF-8 with a mark.
                yield from itertools.chain([first.removeprefix(b'\xef\xbb\xbf')] if first else [], file)
        except FileNotFoundError as error:
            raise InputError(not_found(self.path)) from error
        except OSError as error:
            raise InputError(f'{self.name}: cannot be read ({error.strerror})') from error

    def _json_rows(self, lines):
        field = ', ' + json.dumps(self.score_key, ensure_ascii=False) + ': '
        for number, raw in enumerate(lines, start=1):
            if raw.isspace():
                continue
            try:
                fields = parse_object(raw)
                texts = [self._text(fields, flag) for flag in self.keys]
                self._check_score_is_new(fields)
            except InputError as error:
                raise InputError(f'{self.name}:{number}: {error}') from error
            yield Row(number, *texts, raw.strip()[:-1].rstrip() + field.encode())

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
        """The names in the first row; sets the header."""
        _, columns = next(self._records(reader), (1, None))
        if columns is None:
            raise InputError(f'{self.name}: holds no rows')
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
        """(line it begins on, values) of each row that is not blank."""
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(
                    f'{self.name}:{line}: not a row of {self.format} ({error}); quote a field that holds a quote or a '
                    'newline, and double the quotes in it'
                ) from error
            if values:
                yield line, values

    def _delimited_rows(self, reader, columns):
        places = [columns.index(key) for key in self.keys.values()]
        for line, values in self._records(reader):
            if len(values) != len(columns):
                raise InputError(
                    f'{self.name}:{line}: {len(values)} fields, but the first line names {len(columns)}; quote a field '
                    f'that holds {"a comma" if self.format == "csv" else "a tab"}'
                )
            text = self._delimited(values) + _DELIMITERS[self.format].encode()
            yield Row(line, *(values[place] for place in places), text)

    def _delimited(self, values):
        text = io.StringIO()
        # With this end of a line, both \r and \n are quoted inside a field.
        csv.writer(text, delimiter=_DELIMITERS[self.format], lineterminator='\r\n').writerow(values)
        return text.getvalue().removesuffix('\r\n').encode()

    def _at_least_one(self, rows):
        first = next(rows, None)
        if first is None:
            raise InputError(f'{self.name}: holds no rows')
        yield first
        yield from rows


class Done(NamedTuple):
    """What a file of scored rows holds (n_bytes with the header), and the rows of the input that come next."""

    n_rows: int
    n_bytes: int
    rest: Iterator[Row]


def find_done(path, pairs: PairFile, rows: Iterator[Row], rank=False) -> Done:
    """How far an output that was cut off is good: each row there is the input's, its score behind it.

    rank: groups of rows of one instruction stand in any order; a group that is not whole is not done. Raises InputError
    where the file holds something else.
    """
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        head = file.read(len(pairs.header))
        if head != pairs.header:
            if pairs.header.startswith(head):
                return Done(0, 0, rows)
            raise _not_ours(path, 1, pairs)
        n_rows, n_bytes = 0, len(head)
        groups = _groups(rows, rank)
        for group in groups:
            if not _has_group(file, group, pairs, path):
                return Done(n_rows, n_bytes, itertools.chain(group, itertools.chain.from_iterable(groups)))
            n_rows, n_bytes = n_rows + len(group), file.tell()
        if n_bytes < size:
            raise InputError(f'{path}: holds more than the {n_rows} rows of {pairs.name}; --overwrite begins anew')
    return Done(n_rows, n_bytes, iter(()))


class Runs:
    """Counts the instructions that stand in several places, in 8 bytes for each run of rows of one instruction."""

    def __init__(self):
        self._hashes, self._last = array('q'), None

    def watch(self, rows):
        """The rows, as they pass."""
        for row in rows:
            if row.instruction != self._last:
                self._last = row.instruction
                self._hashes.append(hash(row.instruction))
            yield row

    @property
    def n_again(self) -> int:
        """Runs whose instruction had one before."""
        hashes = np.frombuffer(self._hashes, np.int64) if self._hashes else np.empty(0, np.int64)
        return len(hashes) - len(np.unique(hashes))


def best_first(scored):
    """(row, score) with the rows of one instruction that follow each other sorted, the first of equals first."""
    for _, group in itertools.groupby(scored, key=lambda pair: pair[0].instruction):
        yield from sorted(group, key=lambda pair: -pair[1])


def _groups(rows, rank):
    """Lists of rows that are written together."""
    if not rank:
        yield from ([row] for row in rows)
        return
    group = []
    for row in rows:
        if group and row.instruction != group[0].instruction:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _has_group(file, group, pairs, path):
    """Whether the file holds the whole group next, in any order; it then stands behind it."""
    texts = sorted(row.text for row in group)
    longest = max(map(len, texts))
    while texts:
        place = file.tell()
        found = file.read(longest + _LONGEST_SCORE)
        # No text is the beginning of another one, so the one that it begins with is the last that is not above it.
        i = bisect.bisect_right(texts, found) - 1
        if i < 0 or not found.startswith(texts[i]):
            i = bisect.bisect_left(texts, found)
            is_cut_off = len(found) < longest + _LONGEST_SCORE and i < len(texts) and texts[i].startswith(found)
            if is_cut_off:
                return False
            raise _not_ours(path, group[0].line, pairs)
        score = _SCORE.match(found, len(texts[i]))
        if score and score[0].endswith(pairs.end):
            file.seek(place + score.end())
            del texts[i]
        elif b'\n' not in found[len(texts[i]) :] and len(found) < longest + _LONGEST_SCORE:
            return False  # the file ends within the score
        else:
            raise _not_ours(path, group[0].line, pairs)
    return True


def _not_ours(path, line, pairs):
    return InputError(
        f'{path}: what stands there for {pairs.name}:{line} is another row; --overwrite begins anew, another --output '
        'keeps both'
    )
