"""Answer choices: those that an instruction lists, and those of a template whose responses are a small closed set.

Instruction data often comes without its choices. They are taken from it only where they are certain: the right response
must be among them. Nothing here depends on labels or files.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

MAX_CHOICES = 50  # of a closed set; TREC's fine labels are 47
N_PER_CHOICE = 20  # instances for each choice of a closed set
MIN_LISTED = 0.9  # share of a template's instances that must list their response among others
_MAX_COMPARED = 500  # instances whose lines are compared to find those that all of them have

_ITEM = re.compile(
    r'[ \t]*(?P<bullet>[-*\u2022][ \t]+)?(?:\(?(?P<label>[A-Z]|[1-9]\d?)[.):][ \t]+)?(?P<text>\S.*?)[ \t\r]*'
)
_QUOTED = re.compile(r'"[^"\n]{1,200}"(?:\s*(?:,\s*(?:and|or)?|and|or)\s*"[^"\n]{1,200}")+')
_MARKED = re.compile(
    r'(?:choices|options|categories|possible answers|answer choices)[ \t]*(?:are[ \t]*[-:]?|[-:])[ \t]*'
    r'(?P<items>\S[^\n()]*)',
    re.IGNORECASE,
)
_COMMAS = re.compile(r'\s*,\s*(?:or\s+)?|\s+or\s+')
_CLAUSE_END = re.compile(r'[?!;:()\n]|\.(?:\s|$)|\s-\s')
_ARTICLE = re.compile(r'^(?:an?|the)\s+', re.IGNORECASE)
# Words that may come before the first choice of a clause.
_BEFORE = re.compile(
    'about|are|as|between|by|categories|category|choices|either|from|is|of|options|regarding|to', re.IGNORECASE
)


class ListedChoices(NamedTuple):
    """The choices of one instruction; kind: how they are written, 'lines', 'letters', 'quotes' or 'commas'."""

    kind: str
    choices: tuple[str, ...]


def find_listed(instruction, response) -> ListedChoices | None:
    """The choices that an instruction lists, if the response is one of several; else None.

    They are looked for in this order: in the last block of lines that begin with a bullet or with A., A:, (A), 1.
    (blank lines between them are allowed), by their texts or by their letters; in texts in double quotes, joined by a
    comma, `and` or `or`; in what follows `choices are`, `options:` and the like on a line, with commas or `or` between.
    """
    return _in_lines(instruction, response) or _in_quotes(instruction, response) or _in_commas(instruction, response)


class TemplateChoices:
    """How the choices of a template's instances are found, decided from a sample of its instances.

    kind is the first of these that applies:

    'listed': each instance lists its own choices, at least MIN_LISTED of the sample. Of comma lists only those of the
    most frequent length are counted, since a choice may contain a comma itself.

    'closed': all instances have the set `choices`. There are 2 to MAX_CHOICES different responses, N_PER_CHOICE
    instances for each of them on average, and each is seen at least twice. Names and titles repeat too, when several
    instances are about one text, but then only a few times each: the 13 titles of 200 questions about 13 films are no
    choices. A text that all instances share may list further choices ('World News, Sports, Business, or Science and
    Technology?'); if all responses seen are in such a list, the list is the set.

    'single': there is one response only, and no list with it, so that nothing can be learned from the template.

    'open': the responses are texts.
    """

    def __init__(self, instructions: Sequence[str], responses: Sequence[str]):
        """instructions, responses: those of a sample of at least one instance, stripped and not empty."""
        listed = [find_listed(*pair) for pair in zip(instructions, responses, strict=True)]
        lengths = Counter(len(found.choices) for found in listed if found and found.kind == 'commas')
        self.comma_length = lengths.most_common(1)[0][0] if lengths else 0
        self.choices = ()
        if sum(map(self._is_sound, listed)) >= MIN_LISTED * len(listed):
            self.kind = 'listed'
            return
        counts = Counter(responses)
        n, rarest = len(responses), min(counts.values())
        if len(counts) == 1 and n > 1:
            self.choices = find_shared(instructions, tuple(counts))
            self.kind = 'closed' if self.choices else 'single'
        elif 2 <= len(counts) <= MAX_CHOICES and n >= N_PER_CHOICE * len(counts) and rarest > 1:
            observed = tuple(sorted(counts))
            self.choices = find_shared(instructions, observed) or observed
            self.kind = 'closed'
        else:
            self.kind = 'open'

    def choices_of(self, instruction, responses: Sequence[str]) -> tuple[str, ...]:
        """The choices of an instance, its responses among them; empty where they are not known."""
        choices = self.choices
        if self.kind == 'listed':
            found = find_listed(instruction, responses[0])
            choices = found.choices if self._is_sound(found) else ()
        return choices if all(response in choices for response in responses) else ()

    def _is_sound(self, found):
        return found is not None and (found.kind != 'commas' or len(found.choices) == self.comma_length)


def find_shared(instructions: Sequence[str], observed: Sequence[str]) -> tuple[str, ...]:
    """The choices listed in a text that all instructions share, if all observed responses are among them; else ().

    Case and articles may differ: observed responses keep their spelling, and where all of them begin with a capital, so
    do the other choices.
    """
    wanted = {_plain(response): response for response in observed}
    best = ()
    for text in _shared_texts(instructions):
        for clause in _CLAUSE_END.split(text):
            items = _items_of_clause(clause, wanted)
            if len(items) > len(best) and wanted.keys() <= set(map(_plain, items)):
                best = items
    is_capital = all(response[0].isupper() for response in observed)
    return tuple(wanted.get(_plain(item)) or (item[0].upper() + item[1:] if is_capital else item) for item in best)


def _in_lines(instruction, response):
    for block in reversed(_blocks(instruction)):
        texts = tuple(dict.fromkeys(text for _, text in block))
        if len(texts) > 1 and response in texts:
            return ListedChoices('lines', texts)
        labels = tuple(label for label, _ in block)
        if len(labels) > 1 and response in labels and _is_sequence(labels):
            return ListedChoices('letters', labels)
    return None


def _blocks(instruction):
    """A list of (label or None, text) for each run of lines with a bullet or a label."""
    blocks, open_block = [], None
    for line in instruction.split('\n'):
        if not line.strip():
            continue
        item = _ITEM.fullmatch(line)
        if item is None or not (item['bullet'] or item['label']):
            open_block = None
            continue
        if open_block is None:
            open_block = []
            blocks.append(open_block)
        open_block.append((item['label'], item['text']))
    return blocks


def _is_sequence(labels):
    """Whether the labels are A, B, C, .. or 1, 2, 3, .."""
    expected = [chr(ord('A') + i) for i in range(len(labels))], [str(i + 1) for i in range(len(labels))]
    return list(labels) in expected


def _in_quotes(instruction, response):
    for found in _QUOTED.finditer(instruction):
        items = tuple(dict.fromkeys(re.findall(r'"([^"\n]*)"', found[0])))
        if len(items) > 1 and response in items:
            return ListedChoices('quotes', items)
    return None


def _in_commas(instruction, response):
    for found in _MARKED.finditer(instruction):
        items = tuple(dict.fromkeys(filter(None, _COMMAS.split(found['items'].strip(' .:?')))))
        if len(items) > 1 and response in items:
            return ListedChoices('commas', items)
    return None


def _shared_texts(instructions):
    """What all instructions have in common: a beginning, an end, and whole lines."""
    texts = [os.path.commonprefix(instructions), os.path.commonprefix([text[::-1] for text in instructions])[::-1]]
    lines = dict.fromkeys(instructions[0].split('\n'))
    for text in instructions[:_MAX_COMPARED]:
        own = set(text.split('\n'))
        lines = {line: None for line in lines if line in own}
    return [*texts, *lines]


def _items_of_clause(clause, wanted):
    """The items of the list in a clause, each once; () if there are fewer than two.

    wanted: plain texts of known items, which help to find where the list begins and ends.
    """
    parts = list(map(_bare, _COMMAS.split(clause.strip(' "'))))
    joins = _COMMAS.findall(clause.strip(' "'))
    ors = [i for i, join in enumerate(joins) if 'or' in join]
    if not all(parts) or not (ors or len(parts) > 2):
        return ()
    if ors:  # what follows the item after the last `or` is not part of the list
        parts = parts[: ors[-1] + 2]
    first, *middle, last = parts
    first = _trim_first(first, [*middle, last], wanted)
    last = _trim_last(last, [first, *middle], wanted)
    items = {_plain(item): item for item in reversed([first, *middle, last])}
    return tuple(reversed(items.values())) if first and last and len(items) > 1 else ()


def _trim_first(first, others, wanted):
    """The first item without the words of the sentence before it."""
    words = first.split()
    for text in wanted:
        if f' {_plain(first)}'.endswith(f' {text}'):
            return ' '.join(words[-len(text.split()) :])
    begin = max((i + 1 for i, word in enumerate(words) if _BEFORE.fullmatch(word)), default=0)
    words = words[begin:]
    lengths = [len(other.split()) for other in others]
    if len(words) > max(lengths):
        words = words[-min(lengths) :]
    return _bare(' '.join(words))


def _trim_last(last, others, wanted):
    """The last item without the words after it; '' where it is much longer than the others and not known."""
    words = last.split()
    for text in wanted:
        if f'{_plain(last)} '.startswith(f'{text} '):
            return ' '.join(words[: len(text.split())])
    return last if len(words) <= max(len(other.split()) for other in others) + 1 else ''


def _bare(text):
    """The text without quotes and article."""
    return _ARTICLE.sub('', text.strip(' "\''))


def _plain(text):
    """The text in one case, without quotes and article."""
    return _bare(text).casefold()
