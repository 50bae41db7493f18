"""JSON lines: one JSON object per line, gzip or not, read with the line's number in every error."""

import json
import logging
import math
import re

from cappy.errors import InputError
from cappy.files.inputs import find, opened
from cappy.files.wording import shown

logger = logging.getLogger(__name__)

# Only a \u escape can bring half of a surrogate pair into valid UTF-8.
_SURROGATE_ESCAPE = re.compile(rb'\\u[dD][89a-fA-F]')
_HALF = re.compile('[\ud800-\udfff]')
REPLACEMENT = '\ufffd'  # what Unicode has for a character that is lost

MAX_FAULTS, MAX_LINES = 3, 4  # different faults of a file that a message names, and lines of each


class Halves:
    """Counts the halves of surrogate pairs that were replaced in what was read from one place."""

    _said = set()  # places, so that a file that is read twice has one warning

    def __init__(self):
        self.n = 0

    def replaced(self, value):
        """A JSON value without its halves, which are counted."""
        value, n = without_halves(value)
        self.n += n
        return value

    def say(self, place):
        """Warn of them, once for a place."""
        if self.n and place not in self._said:
            self._said.add(place)
            logger.warning('%s: %s', place, describe_halves(self.n))


class Faults:
    """What is wrong with the lines of a file: the first faults are named, each with its lines, the others counted."""

    def __init__(self, path):
        self.path, self.n = path, 0
        self._lines, self._first = {}, None  # {message: its lines, but for the first few their number alone}

    def __bool__(self):
        return self.n > 0

    def add(self, line, error: InputError):
        """A line, and what is wrong with it."""
        self.n += 1
        self._first = self._first or error
        message = str(error)
        if message in self._lines or len(self._lines) < MAX_FAULTS:
            self._lines.setdefault(message, []).append(line)

    def check(self):
        """Raise InputError where a line is bad; it begins with the path and the first line."""
        if not self.n:
            return
        parts = []
        for message, (line, *others) in self._lines.items():
            n_more = len(others) - MAX_LINES
            more = ', '.join(map(str, others[:MAX_LINES])) + (f' and {n_more} more' if n_more > 0 else '')
            where = f'line {line}: ' if parts else f'{self.path}:{line}: '
            parts.append(where + message + (f' (line{"s" if len(others) > 1 else ""} {more} too)' if others else ''))
        if n_others := self.n - sum(map(len, self._lines.values())):
            parts.append(f'{n_others} more line{"s are" if n_others > 1 else " is"} bad')
        raise InputError('; '.join(parts)) from self._first


def read(path, parse=None, *, check=None, remedy=''):
    """Yield (line number from 1, parse(fields)) of each line that is not blank; the fields themselves without parse.

    parse: called with the dict of a line; its InputError says what is wrong with the fields and not where. check:
    called with the number and what was parsed, likewise. remedy: the next step if there is no such file, as
    `wording.not_found` takes it. From the first bad line on nothing is yielded, but the rest is read, so that the
    InputError at the end names the other bad lines too. Half of a surrogate pair is read as U+FFFD, which is logged.
    """
    path = find(path)
    faults, halves = Faults(path), Halves()
    for number, raw in numbered_lines(path, remedy=remedy):
        try:
            fields = parse_object(raw, halves)
            value = fields if parse is None else parse(fields)
            if check is not None:
                check(number, value)
        except InputError as error:
            faults.add(number, error)
            continue
        if not faults:
            yield number, value
    faults.check()
    halves.say(path)


def numbered_lines(path, *, remedy=''):
    """Yield (line number from 1, bytes) of each line that is not blank; of {path}.gz where there is no file at path.

    Raises InputError for a file that is missing or cannot be read.
    """
    with opened(find(path), remedy=remedy) as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(b'\xef\xbb\xbf')  # the mark with which some editors begin UTF-8
            if not raw.isspace() and raw:
                yield number, raw


def parse_object(raw, halves: Halves | None = None):
    """The dict of a line, given as bytes. InputError says what is wrong with it and not where.

    Half of a surrogate pair, which is no character and which no tokenizer can encode, becomes U+FFFD; halves counts it.
    """
    fields = load_object(raw)
    if _SURROGATE_ESCAPE.search(raw):
        try:
            fields = (halves or Halves()).replaced(fields)
        except RecursionError as error:
            raise InputError(f'not JSON that can be read ({error})') from error
    return fields


def load_object(raw):
    """As `parse_object`, with the halves of surrogate pairs as they are."""
    try:
        line = raw.decode('utf-8')
    except UnicodeDecodeError as error:
        raise InputError(f'not UTF-8 (byte {error.start + 1}); save the file as UTF-8') from error
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        cut_off = '' if raw.endswith(b'\n') else '; the line has no end, so the file may be cut off'
        raise InputError(f'not JSON ({error.msg}), found {line[:60].strip()!r}{cut_off}') from error
    except (RecursionError, ValueError) as error:  # nested too deep; an integer of too many digits
        raise InputError(f'not JSON that can be read ({error})') from error
    if not isinstance(fields, dict):
        raise InputError(f'expected a JSON object, found {shown(fields)}')
    return fields


def without_halves(value):
    """(a JSON value with U+FFFD for each half of a surrogate pair in its texts and keys, their number)."""
    if isinstance(value, str):
        return _HALF.subn(REPLACEMENT, value)
    if isinstance(value, list):
        parts = [without_halves(part) for part in value]
        return [part for part, _ in parts], sum(n for _, n in parts)
    if isinstance(value, dict):
        pairs = [(without_halves(key), without_halves(part)) for key, part in value.items()]
        return {key: part for (key, _), (part, _) in pairs}, sum(n + m for (_, n), (_, m) in pairs)
    return value, 0


def describe_halves(n) -> str:
    """What was done with n halves of surrogate pairs."""
    of = 'half of a surrogate pair' if n == 1 else f'{n} halves of surrogate pairs'
    return f'{of}, which {"is" if n == 1 else "are"} no character{"" if n == 1 else "s"}, replaced by U+FFFD'


def is_number(value) -> bool:
    """Whether a JSON value is a number that is finite and fits a float; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
