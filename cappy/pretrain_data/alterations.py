"""Altered references: truncated, repeated, reordered, or with other names and numbers in them.

They are wrong responses that need no language model; how much of the reference is left decides how wrong. Spaces and
line breaks stay with the word before them.

Every alteration takes a text, another response of the same template, and a random generator, and returns the altered
text, or '' where it cannot alter the text.
"""

import re
from random import Random

_WORD = re.compile(r'\S+\s*')
_NUMBER = re.compile(r'\d')
_MIN_LONG_WORD = 5  # letters; in a text without names and numbers, words of this length or longer are swapped
_MAX_PARTS = 5  # of a text that is reordered
_MAX_REPEATS = 3
_BRACKETS = '()[]{}"\'.,;:!?'


def truncated(text, other, random: Random) -> str:
    """The first words of the text: at least one, and not all."""
    words = _WORD.findall(text)
    return _joined(words[: random.randint(1, len(words) - 1)]) if len(words) > 1 else ''


def repeated(text, other, random: Random) -> str:
    """The text with some of its words repeated up to _MAX_REPEATS times, as when a language model loops."""
    words = _WORD.findall(text)
    if not words:
        return ''
    begin = random.randrange(len(words))
    end = random.randint(begin + 1, len(words))
    return _joined([*words[:end], *(words[begin:end] * random.randint(1, _MAX_REPEATS)), *words[end:]])


def reordered(text, other, random: Random) -> str:
    """The text cut into two to _MAX_PARTS parts, in another order."""
    words = _WORD.findall(text)
    if len(words) < 2:
        return ''
    n_parts = random.randint(2, min(_MAX_PARTS, len(words)))
    bounds = [0, *sorted(random.sample(range(1, len(words)), n_parts - 1)), len(words)]
    parts = [words[begin:end] for begin, end in zip(bounds, bounds[1:], strict=False)]
    order = list(range(n_parts))
    while order == sorted(order):
        random.shuffle(order)
    return _joined([word for i in order for word in parts[i]])


def swapped(text, other, random: Random) -> str:
    """The text with half or more of its numbers replaced by those of the other text.

    Names are replaced where one of the texts has no numbers, and long words where one has no names either. A name is a
    capitalized word that is not the first of the text.
    """
    words = _WORD.findall(text)
    for is_kind in (_is_number, _is_name, _is_long):
        places = [i for i, word in enumerate(words) if is_kind(i, word)]
        supply = [_core(word) for i, word in enumerate(_WORD.findall(other)) if is_kind(i, word)]
        own = {_core(words[i]) for i in places}
        supply = [word for word in dict.fromkeys(supply) if word not in own]
        if places and supply:
            chosen = random.sample(places, random.randint((len(places) + 1) // 2, len(places)))
            for i in chosen:
                words[i] = words[i].replace(_core(words[i]), random.choice(supply), 1)
            return _joined(words)
    return ''


# By name, which is the source of the pair.
ALTERATIONS = {function.__name__: function for function in (truncated, repeated, reordered, swapped)}


def _joined(words):
    """The words as one text, with a space after the one that ended the text before and so has none."""
    return ''.join(word if word[-1].isspace() else f'{word} ' for word in words).strip()


def _core(word):
    return word.strip().strip(_BRACKETS)


def _is_number(_, word):
    return bool(_NUMBER.search(word))


def _is_name(i, word):
    core = _core(word)
    return i > 0 and core[:1].isupper() and len(core) > 1


def _is_long(_, word):
    return len(_core(word)) >= _MIN_LONG_WORD
