"""P3 from the hub (`bigscience/P3`), or from a folder with the same layout: one configuration per template.

A record has `inputs_pretokenized`, `targets_pretokenized` and, where its template has choices, `answer_choices`. In the
configurations whose names end in `_score_eval`, a record is one choice of a question: `idx` is [question, choice], and
`is_correct` says whether it is right. The fields are those that the card of the data set names.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence

from cappy.errors import InputError
from cappy.files import hub
from cappy.files.wording import shown
from cappy.pretrain_data.instances import Line

SCORED = '_score_eval'
_INSTRUCTION, _RESPONSE, _CHOICES = 'inputs_pretokenized', 'targets_pretokenized', 'answer_choices'
_REMEDY = 'give --sources a file of instruction data'

logger = logging.getLogger(__name__)


def configurations(hub_name) -> dict[str, str]:
    """{template: configuration} in alphabetic order; the one with scored choices where a template has two.

    Raises InputError where the data set cannot be fetched.
    """
    names = hub.configuration_names(hub_name, remedy=_REMEDY)
    found = {name: name for name in names if not name.endswith(SCORED)}
    found |= {name.removesuffix(SCORED): name for name in names if name.endswith(SCORED)}
    return dict(sorted(found.items()))


def read_hub(hub_name, chosen: dict[str, str], limit=None) -> Iterator[Line]:
    """The lines of the chosen {template: configuration}, streamed from their train splits, at most `limit` of each.

    A template without a train split is left out with a warning. Raises InputError where a configuration cannot be
    fetched, and naming it and the record, counted from 0, where a field is wrong.
    """
    for template, configuration in chosen.items():
        where = f'{hub_name}, {configuration}'
        splits = hub.load_dataset(hub_name, configuration, remedy=_REMEDY, streaming=True)
        if 'train' not in splits:
            logger.warning('%s: has no split train; left out', where)
            continue
        records = _streamed(where, splits['train'])
        parse = _scored_lines if configuration.endswith(SCORED) else _plain_lines
        yield from itertools.islice(parse(where, template, records), limit)


def _streamed(where, records):
    """Yield (number from 0, record)."""
    records = iter(records)
    for number in itertools.count():
        try:
            record = next(records)
        except StopIteration:
            return
        except Exception as error:  # network and file formats fail by errors of many libraries
            raise hub.failure(where, error, _REMEDY) from error
        yield number, record


def _plain_lines(where, template, records):
    for number, record in records:
        instruction, response = (_text(where, number, record, key) for key in (_INSTRUCTION, _RESPONSE))
        choices = record.get(_CHOICES) or []
        if not isinstance(choices, Sequence) or not all(isinstance(choice, str) for choice in choices):
            raise InputError(f'{where}: record {number}: {_CHOICES}: expected texts, found {shown(choices)}')
        choices = tuple(dict.fromkeys(filter(None, map(str.strip, choices))))
        yield Line(template, instruction, response, choices if response in choices else ())


def _scored_lines(where, template, records):
    """One line for each right choice of a question, with all choices of the question."""
    for _, question in itertools.groupby(records, key=lambda numbered: _question(where, *numbered)):
        question = list(question)
        texts = [_text(where, number, record, _RESPONSE) for number, record in question]
        choices = tuple(dict.fromkeys(filter(None, texts)))
        number, record = question[0]
        instruction = _text(where, number, record, _INSTRUCTION)
        right = [text for text, (_, record) in zip(texts, question, strict=True) if record.get('is_correct')]
        for response in dict.fromkeys(right):
            yield Line(template, instruction, response, choices if response else ())


def _question(where, number, record):
    idx = record.get('idx')
    if not isinstance(idx, Sequence) or len(idx) != 2:
        raise InputError(f'{where}: record {number}: idx: expected [question, choice], found {shown(idx)}')
    return idx[0]


def _text(where, number, record, key):
    if not isinstance(record.get(key), str):
        raise InputError(f'{where}: record {number}: {key}: expected text, found {shown(record.get(key))}')
    return record[key].strip()
