"""ROUGE-L as the rouge_score package computes it, many times as fast."""

import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist

from cappy.errors import InputError

TOKENIZERS = ('default', 'unicode')

# Scripts written without spaces between words: there each letter is a token, with the marks that belong to it.
_SPACELESS_BLOCKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # Han radicals
    (0x3005, 0x3007),  # Han iteration mark and zero
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han compatibility
    (0x20000, 0x3FFFF),  # Han supplements
)
_WORTH_THREADS = 1e9  # products of tokens, a tenth of a second
_ZERO_WIDTH_SPACE = '\u200b'  # of category Cf, but it separates words
# Marks that writers of Hebrew, Arabic and Syriac may leave out: points, accents and signs for reciting, and the stroke
# that only stretches a word. Not the hamza and madda, which belong to the spelling, nor the vowel signs and tone marks
# of other scripts (Devanagari, Thai, the accents of Latin), by which words differ.
_OPTIONAL_MARKS = (
    (0x0591, 0x05BD),  # Hebrew accents and points
    (0x05BF, 0x05BF),
    (0x05C1, 0x05C2),
    (0x05C4, 0x05C5),
    (0x05C7, 0x05C7),
    (0x0610, 0x061A),  # Arabic honorifics and signs for reciting
    (0x0640, 0x0640),  # tatweel
    (0x064B, 0x0652),  # Arabic points
    (0x0670, 0x0670),
    (0x06D6, 0x06DC),  # signs for reciting
    (0x06DF, 0x06E4),
    (0x06E7, 0x06E8),
    (0x06EA, 0x06ED),
    (0x0730, 0x074A),  # Syriac points
)
_DEFAULT_TOKEN = re.compile('[a-z0-9]+')


class RougeL:
    """ROUGE-L F-measures, equal to the last bit to those of RougeScorer(['rougeL'], use_stemmer=True) of rouge_score.

    tokenizer: 'default' is that of rouge_score, which reads only the letters a to z and digits, so that a text in
    another script has no tokens and scores 0 even against itself; 'unicode' reads all scripts, and takes Hebrew, Arabic
    and Syriac words with and without points as the same. Texts and stems are cached, up to max_cached of each. An
    object must not be used by several threads at once.
    """

    name = 'rougeL'

    def __init__(self, tokenizer='default', max_cached=400_000):
        if tokenizer not in TOKENIZERS:
            raise InputError(f'rouge tokenizer {tokenizer!r}: choose one of {", ".join(TOKENIZERS)}')
        self.tokenizer = tokenizer
        self.max_cached = max_cached
        self._words = _default_words if tokenizer == 'default' else _unicode_words
        self._character_of_word, self._character_of_stem, self._encoded = {}, {}, {}

    def score(self, references: Sequence[str], response: str) -> float:
        """F-measure of a response against the best of its references."""
        return float(self.scores(references, [response])[0])

    def scores(self, references: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """F-measure of each response against the best of the references, float64 [n_responses]."""
        if isinstance(references, str) or isinstance(responses, str):
            raise TypeError('references and responses are lists of texts, not one text')
        if not len(references):
            raise InputError('references: the list is empty; at least one reference is needed')
        if not len(responses):
            return np.zeros(0)
        return self._measures(references, responses).max(axis=0)

    def pairwise(self, responses: Sequence[str]) -> np.ndarray:
        """F-measure of each response (column) against each as reference (row), float64 [n, n].

        Symmetric; 1 on the diagonal except for texts without tokens, which score 0 against all.
        """
        if not len(responses):
            return np.zeros((0, 0))
        return self._measures(responses, responses)

    def agreement(self, texts: Sequence[str]) -> np.ndarray:
        """How far each text agrees with each, float64 [n, n]: `pairwise`, and 1 for equal texts without tokens.

        So that a text agrees with itself whether it has words or not. Texts without tokens are equal where they differ
        in case and space alone; blank ones say nothing, and agree with none.
        """
        agreement = self.pairwise(texts)
        alike = {}
        for number, text in enumerate(texts):
            if not self._encode(text):
                alike.setdefault(' '.join(text.casefold().split()), []).append(number)
        alike.pop('', None)
        for numbers in alike.values():
            agreement[np.ix_(numbers, numbers)] = 1.0
        return agreement

    def unread_letters(self, text: str) -> tuple[int, int]:
        """(letters that are in no token, all letters) of a text; of a text without letters its digits instead."""
        text = text.lower()
        letters = list(filter(str.isalpha, text)) or list(filter(str.isalnum, text))
        is_all_read = self.tokenizer == 'unicode' or text.isascii()
        return 0 if is_all_read else sum(not letter.isascii() for letter in letters), len(letters)

    def is_unread(self, text: str) -> bool:
        """Whether most letters of a text are in no token, so that its score says little or nothing of it."""
        return most_unread(*self.unread_letters(text))

    def _measures(self, references, responses):
        self._make_room()
        encoded_references = [self._encode(text) for text in references]
        encoded_responses = (
            encoded_references if responses is references else [self._encode(text) for text in responses]
        )
        n_products = sum(map(len, encoded_references)) * sum(map(len, encoded_responses))
        n_threads = len(os.sched_getaffinity(0)) if n_products > _WORTH_THREADS else 1
        # Length of the longest common subsequence, [n_references, n_responses].
        common = cdist(
            encoded_references, encoded_responses, scorer=LCSseq.similarity, dtype=np.int32, workers=n_threads
        )
        n_reference_tokens = np.array([max(len(text), 1) for text in encoded_references])
        n_response_tokens = np.array([max(len(text), 1) for text in encoded_responses])
        precision = common / n_response_tokens
        recall = common / n_reference_tokens[:, None]
        # rouge_score's order of operations, for equality to the last bit. 0 / 0 becomes 0 / 1.
        total = precision + recall
        return 2 * precision * recall / np.where(common, total, 1.0)

    def _encode(self, text):
        """The text's tokens, one character per token."""
        encoded = self._encoded.get(text)
        if encoded is None:
            characters = self._character_of_word
            words = self._words(text)
            try:
                encoded = ''.join([characters[word] for word in words])
            except KeyError:
                encoded = ''.join([characters.get(word) or self._learn(word) for word in words])
            self._encoded[text] = encoded
        return encoded

    def _learn(self, word):
        token = _porter_stemmer()(word) if len(word) > 3 and word.isascii() else word
        # A stem without letters is dropped, as rouge_score drops it.
        character = self._character_of_stem.setdefault(token, chr(len(self._character_of_stem))) if token else ''
        self._character_of_word[word] = character
        return character

    def _make_room(self):
        # Only between calls: within one, equal words must keep equal characters.
        if max(len(self._encoded), len(self._character_of_word)) > self.max_cached:
            self._encoded.clear()
            self._character_of_word.clear()
            self._character_of_stem.clear()


def most_unread(n_unread: int, n_letters: int) -> bool:
    """Whether most of a text's letters, as `RougeL.unread_letters` counts them, are in no token."""
    return 2 * n_unread > n_letters


def _default_words(text):
    return _DEFAULT_TOKEN.findall(text.lower())


def _unicode_words(text):
    text = unicodedata.normalize('NFKC', unicodedata.normalize('NFKC', text).casefold())
    if text.isascii():
        return _DEFAULT_TOKEN.findall(text)
    token, left_out = _unicode_patterns()
    return token.findall(left_out.sub('', text))


@lru_cache(maxsize=1)
def _unicode_patterns():
    """Patterns of a token (a letter of a spaceless script with its marks, or a word of letters, marks and digits) and
    of the format characters that occur inside words (joiners, soft hyphens, directions).
    """
    categories = [unicodedata.category(chr(code)) for code in range(sys.maxunicode + 1)]
    marks = _character_class(code for code, category in enumerate(categories) if category[0] == 'M')
    optional = {code for first, last in _OPTIONAL_MARKS for code in range(first, last + 1)}
    left_out = _character_class(
        code
        for code, category in enumerate(categories)
        if (category == 'Cf' and chr(code) != _ZERO_WIDTH_SPACE) or code in optional
    )
    alone = _character_class(
        code
        for first, last in _SPACELESS_BLOCKS
        for code in range(first, last + 1)
        if categories[code][0] == 'L' or categories[code] == 'Nl'
    )
    letter = rf'(?![{alone}])[^\W_]'
    token = rf'[{alone}][{marks}]*|{letter}(?:{letter}|[{marks}])*'
    return re.compile(token), re.compile(f'[{left_out}]')


def _character_class(codes):
    """The inside of a regular expression's [..] that holds these characters, given in order."""
    runs = []
    for code in codes:
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return ''.join(rf'\U{first:08x}-\U{last:08x}' for first, last in runs)


@lru_cache(maxsize=1)
def _porter_stemmer():
    from nltk.stem.porter import PorterStemmer  # here, since importing nltk takes two seconds

    return PorterStemmer().stem
