"""P3 on the hub, `bigscience/P3`, or a folder laid out like it: a configuration for each template.

A row has `inputs_pretokenized`, `targets_pretokenized` and, where its template has them, `answer_choices`. In the
configurations whose names end in `_score_eval` a row is one choice of a question: `idx` is [question, choice], and
`is_correct` says which is right. Fields as the data set's card tells them.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence

from cappy.errors import InputError
from cappy.files.wording import shown
from cappy.pretrain_data.instances import Line

SCORED = '_score_eval'
_INSTRUCTION, _RESPONSE, _CHOICES = 'inputs_pretokenized', 'targets_pretokenized', 'answer_choices'

logger = logging.getLogger(__name__)


def configurations(hub_name) -> dict[str, str]:
    """{template: its configuration}, in order; where a template has one with scored choices, that one."""
    import datasets  # slow to import, and not needed for files

    logging.getLogger('huggingface_hub').propagate = False  # it shows its messages itself
    names = _ask(hub_name, lambda: datasets.get_dataset_config_names(hub_name))
    found = {name: name for name in names if not name.endswith(SCORED)}
    found |= {name.removesuffix(SCORED): name for name in names if name.endswith(SCORED)}
    return dict(sorted(found.items()))


def read_hub(hub_name, chosen: dict[str, str], limit=None) -> Iterator[Line]:
    """The lines of the chosen {template: configuration}, streamed from their train splits, `limit` of each at most.

    A template without a train split is told and passed over.
    """
    import datasets

    for template, configuration in chosen.items():
        where = f'{hub_name}, {configuration}'
        splits = _ask(where, lambda name=configuration: datasets.load_dataset(hub_name, name, streaming=True))
        if 'train' not in splits:
            logger.warning('%s: has no split train; left out', where)
            continue
        rows = _streamed(where, splits['train'])
        parse = _scored_lines if configuration.endswith(SCORED) else _plain_lines
        yield from itertools.islice(parse(where, template, rows), limit)


def _streamed(where, rows):
    """Yields (number from 0, row)."""
    rows = iter(rows)
    for number in itertools.count():
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise _failure(where, error) from error
        yield number, row


def _plain_lines(where, template, rows):
    for number, row in rows:
        instruction, response = (_text(where, number, row, key) for key in (_INSTRUCTION, _RESPONSE))
        choices = row.get(_CHOICES) or []
        if not isinstance(choices, Sequence) or not all(isinstance(choice, str) for choice in choices):
            raise InputError(f'{where}: row {number}: {_CHOICES}: expected texts, found {shown(choices)}')
        choices = tuple(dict.fromkeys(filter(None, map(str.strip, choices))))
        yield Line(template, instruction, response, choices if response in choices else ())


def _scored_lines(where, template, rows):
    """A line for each right choice of a question, with all its choices."""
    for _, question in itertools.groupby(rows, key=lambda numbered: _question(where, *numbered)):
        question = list(question)
        texts = [_text(where, number, row, _RESPONSE) for number, row in question]
        choices = tuple(dict.fromkeys(filter(None, texts)))
        number, row = question[0]
        instruction = _text(where, number, row, _INSTRUCTION)
        right = [text for text, (_, row) in zip(texts, question, strict=True) if row.get('is_correct')]
        for response in dict.fromkeys(right):
            yield Line(template, instruction, response, choices if response else ())


def _question(where, number, row):
    idx = row.get('idx')
    if not isinstance(idx, Sequence) or len(idx) != 2:
        raise InputError(f'{where}: row {number}: idx: expected [question, choice], found {shown(idx)}')
    return idx[0]


def _text(where, number, row, key):
    if not isinstance(row.get(key), str):
        raise InputError(f'{where}: row {number}: {key}: expected text, found {shown(row.get(key))}')
    return row[key].strip()


def _ask(where, request):
    try:
        return request()
    except Exception as error:  # hub, network, cache and file formats fail by errors of many libraries
        raise _failure(where, error) from error


def _failure(where, error):
    said = ' '.join(str(error).split())[:300]
    return InputError(
        f'{where}: cannot be fetched ({type(error).__name__}: {said}); try again, or give --sources a file'
    )
