"""Labelled pairs: an instruction, a response, and how correct the response is; and their form as a line of a file."""

import json
from collections.abc import Iterator
from typing import NamedTuple

from cappy.errors import InputError
from cappy.files import jsonl
from cappy.files.wording import listed, shown
from cappy.pretrain_data.alterations import ALTERATIONS

# Where a response comes from: the choices of the instance, its references, another instance, a language model; or it
# is an altered reference.
CHOICE, REFERENCE, OTHER, SAMPLE = 'choice', 'reference', 'other', 'sample'
SOURCES = (CHOICE, REFERENCE, OTHER, SAMPLE, *ALTERATIONS)  # in the order of the tables


class LabelledPair(NamedTuple):
    """A pair with its label, 0 (wrong) to 1 (right); template and source are '' where the file has none."""

    instruction: str
    response: str
    label: float
    template: str = ''
    source: str = ''


def as_line(pair: LabelledPair) -> str:
    """The pair as a line of a file, with its end."""
    fields = {
        'template': pair.template,
        'source': pair.source,
        'instruction': pair.instruction,
        'response': pair.response,
        'label': pair.label,
    }
    return json.dumps(fields, ensure_ascii=False) + '\n'


def parse_pair(fields) -> LabelledPair:
    """The pair of a line's fields. Raises InputError naming the field."""
    for key in ('instruction', 'response'):
        if key not in fields:
            raise InputError(f'{key}: missing; the line has {listed(fields)}')
        if not isinstance(fields[key], str) or not fields[key].strip():
            raise InputError(f'{key}: expected text, found {shown(fields[key])}')
    label = fields.get('label')
    if not jsonl.is_number(label):
        raise InputError(f'label: expected a number from 0 to 1, found {shown(label)}')
    if not 0 <= label <= 1:
        raise InputError(f'label: {label} is outside 0 to 1')
    template, source = fields.get('template', ''), fields.get('source', '')
    for key, value in (('template', template), ('source', source)):
        if not isinstance(value, str) or (key in fields and not value.strip()):
            raise InputError(f'{key}: expected a name, found {shown(value)}')
    return LabelledPair(fields['instruction'], fields['response'], float(label), template, source)


def read_pairs(path) -> Iterator[LabelledPair]:
    """The pairs of a file, in order. Raises InputError naming file, line and field."""
    for _, pair in jsonl.read(path, parse_pair):
        yield pair


def folded(text) -> str:
    """The text in one case and with single spaces: texts that differ in nothing else are the same instruction."""
    return ' '.join(text.casefold().split())
