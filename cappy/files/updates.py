"""The log of a training: one row per update."""

import csv
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cappy.errors import InputError
from cappy.files.atomic import read_text, shortest_float32, write_atomically


class Update(NamedTuple):
    """One optimizer step: learning_rate is the rate applied, loss the mean over its pairs before the step."""

    update: int
    pairs: int
    learning_rate: float
    loss: float
    grad_norm: float


def write_updates(path, updates: Iterable[Sequence]):
    """Write rows as `Update` has them. Raises InputError where a number is not finite."""
    with write_atomically(path) as file:
        write_rows(file, path, updates)


def write_rows(file, path, updates: Iterable[Sequence]):
    """As `write_updates`, to a file that is open."""
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(Update._fields)
    for row in updates:
        row = Update(*row)
        numbers = [shortest_float32(value) for value in row[2:]]
        if not all(map(math.isfinite, numbers)):
            raise InputError(f'{path}: update {row.update} is not finite: {numbers}')
        writer.writerow([int(row.update), int(row.pairs), *numbers])


def read_updates(path) -> list[Update]:
    """The rows of an updates file, in order. Raises InputError naming the line that is broken."""
    try:
        rows = list(csv.reader(read_text(path).splitlines()))
    except csv.Error as error:
        raise InputError(f'{path}: not a log of updates ({error})') from error
    if not rows or tuple(rows[0]) != Update._fields:
        raise InputError(f'{path}:1: expected the columns {",".join(Update._fields)}')
    updates = []
    for number, row in enumerate(rows[1:], start=2):
        try:
            if len(row) != len(Update._fields):
                raise ValueError(f'{len(row)} fields, not {len(Update._fields)}')
            update, pairs, *numbers = row
            updates.append(Update(int(update), int(pairs), *map(float, numbers)))
        except (ValueError, TypeError) as error:
            raise InputError(f'{path}:{number}: not an update ({error})') from error
    return updates
