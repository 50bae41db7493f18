"""Texts that are almost a reference: truncated, repeated, reordered, or with other names and numbers in it.

Cheap negatives that need no LM: what remains of the reference decides how right they are. Spaces and line breaks stay
with the word before them.
"""

import re
from random import Random

_WORD = re.compile(r'\S+\s*')
_NUMBER = re.compile(r'\d')
_LONG_WORD = 5  # letters; in a text without names and numbers such words are swapped
_MOST_PARTS = 5  # of a text that is reordered
_MOST_REPEATS = 3
_BRACKETS = '()[]{}"\'.,;:!?'


def truncated(text, other, random: Random) -> str:
    """The first words, at least one and not all."""
    words = _WORD.findall(text)
    return _joined(words[: random.randint(1, len(words) - 1)]) if len(words) > 1 else ''


def repeated(text, other, random: Random) -> str:
    """A stretch of words that follows itself up to _MOST_REPEATS times, as a language model loops."""
    words = _WORD.findall(text)
    if not words:
        return ''
    begin = random.randrange(len(words))
    end = random.randint(begin + 1, len(words))
    return _joined([*words[:end], *(words[begin:end] * random.randint(1, _MOST_REPEATS)), *words[end:]])


def reordered(text, other, random: Random) -> str:
    """Two to _MOST_PARTS parts in another order."""
    words = _WORD.findall(text)
    if len(words) < 2:
        return ''
    n_parts = random.randint(2, min(_MOST_PARTS, len(words)))
    bounds = [0, *sorted(random.sample(range(1, len(words)), n_parts - 1)), len(words)]
    parts = [words[begin:end] for begin, end in zip(bounds, bounds[1:], strict=False)]
    order = list(range(n_parts))
    while order == sorted(order):
        random.shuffle(order)
    return _joined([word for i in order for word in parts[i]])


def swapped(text, other, random: Random) -> str:
    """Names and numbers (long words, where there are none) replaced by those of another text, half of them or more.

    A name is a word with a capital that does not begin the text.
    """
    words = _WORD.findall(text)
    for is_kind in (_is_number, _is_name, _is_long):
        places = [i for i, word in enumerate(words) if is_kind(i, word)]
        supply = [_core(word) for i, word in enumerate(_WORD.findall(other)) if is_kind(i, word)]
        here = {_core(words[i]) for i in places}
        supply = [word for word in dict.fromkeys(supply) if word not in here]
        if places and supply:
            chosen = random.sample(places, random.randint((len(places) + 1) // 2, len(places)))
            for i in chosen:
                words[i] = words[i].replace(_core(words[i]), random.choice(supply), 1)
            return _joined(words)
    return ''


# By the name of the row's source. Each is called with a text, another response of the same template, and a generator;
# '' where it cannot alter the text.
ALTERATIONS = {function.__name__: function for function in (truncated, repeated, reordered, swapped)}


def _joined(words):
    """The words with a space where one that ended the text, or a line, has none."""
    return ''.join(word if word[-1].isspace() else f'{word} ' for word in words).strip()


def _core(word):
    return word.strip().strip(_BRACKETS)


def _is_number(_, word):
    return bool(_NUMBER.search(word))


def _is_name(i, word):
    core = _core(word)
    return i > 0 and core[:1].isupper() and len(core) > 1


def _is_long(_, word):
    return len(_core(word)) >= _LONG_WORD
