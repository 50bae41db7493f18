"""Pairs of texts as tokens, with their special tokens, truncated as the reference truncates them."""

import collections
import dataclasses
import functools
import itertools
import logging
from typing import NamedTuple

import numpy as np

from cappy.errors import InputError
from cappy.model import vocabulary

# transformers warns at its import that PyTorch is missing. Only its tokenizers are used here, which do without.
logging.getLogger('transformers').addFilter(lambda record: "Models won't be available" not in record.getMessage())


@dataclasses.dataclass(frozen=True)
class EncodedPairs:
    """n pairs, end to end: tokens int32 [N]; types uint8 [N], 0 the first text, 1 the second; offsets int64 [n + 1]."""

    tokens: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    truncated: np.ndarray  # bool [n]

    @property
    def lengths(self):
        """Tokens of each pair, int64 [n]."""
        return np.diff(self.offsets)

    @functools.cached_property
    def counts(self):
        """{unique_pairs: n, truncated_pairs, made_equal_pairs: those that have the tokens of another one, since one of
        the two was truncated}, where all n pairs differ.
        """
        alike = collections.defaultdict(list)
        if self.truncated.any():
            # Truncated pairs are of one length.
            for i in np.flatnonzero(self.lengths == self.lengths[self.truncated].max()):
                own = slice(self.offsets[i], self.offsets[i + 1])
                alike[self.tokens[own].tobytes(), self.types[own].tobytes()].append(i)
        made_equal = sum(len(group) for group in alike.values() if len(group) > 1 and self.truncated[group].any())
        return {
            'unique_pairs': len(self.truncated),
            'truncated_pairs': int(self.truncated.sum()),
            'made_equal_pairs': made_equal,
        }


def describe_cut(counts, max_length, pairs='pairs'):
    """What to say of pairs that were truncated; counts: as `EncodedPairs.counts` has them, or sums of such."""
    n, n_truncated, n_equal = (counts[name] for name in ('unique_pairs', 'truncated_pairs', 'made_equal_pairs'))
    equal = f', and {n_equal} became equal to another, with the same score' if n_equal else ''
    return f'{n_truncated} of {n} different {pairs} were truncated to {max_length} tokens{equal}'


def load_tokenizer(path):
    """The fast tokenizer of a model directory.

    Raises InputError where there is none, or one without a vocabulary, naming the files that were looked for.
    """
    vocabulary.check_files(path)
    from transformers import AutoTokenizer  # half a second that reading files need not wait for

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # whatever a broken folder makes transformers raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f'{path}: no tokenizer could be read ({reason[0]}); needs tokenizer.json') from error
    if not tokenizer.is_fast:
        raise InputError(f'{path}: its tokenizer has no fast form; save one as tokenizer.json')
    vocabulary.check_tokenizer(path, tokenizer)
    return tokenizer


class _Frame(NamedTuple):
    """The special tokens of a pair: before its first text, between its texts, after the second; (token, type) each."""

    before: list
    between: list
    after: list
    types: tuple  # of the first text's tokens and of the second's

    @property
    def n_special(self):
        return len(self.before) + len(self.between) + len(self.after)


def _frame(backend):
    """The _Frame of a tokenizer, read off a pair that it encodes itself."""
    encoding = backend.encode('a', 'a')
    of_text = [-1 if text is None else text for text in encoding.sequence_ids]
    first, second = of_text.index(0), of_text.index(1)
    n = of_text.count(0)
    special = list(zip(encoding.ids, encoding.type_ids, strict=True))
    types = (encoding.type_ids[first], encoding.type_ids[second])
    return _Frame(special[:first], special[first + n : second], special[second + of_text.count(1) :], types)


def encode_pairs(tokenizer, instructions, responses, max_length):
    """Tokens of (instruction, response) pairs.

    instructions, responses: sequences of str of one length. A pair of more than max_length tokens loses tokens from the
    end of the longer text first, as `truncation=True` does in the reference (cappy_bigbench.py:73-79).
    Each different text is tokenized once: candidates share their instruction, and questions their choices.
    Returns EncodedPairs.
    """
    backend = tokenizer.backend_tokenizer
    # A published tokenizer.json may carry its own padding and limit (MiniLM's: 128 tokens, always).
    backend.no_padding()
    backend.no_truncation()
    number = {}
    first, second = (
        np.array([number.setdefault(text, len(number)) for text in texts], np.int64)
        for texts in (instructions, responses)
    )
    words, own = _encode_texts(backend, list(number))
    frame = _frame(backend)
    kept = _longest_first(own[first], own[second], max_length - frame.n_special)
    lengths = kept[0] + kept[1] + frame.n_special
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens, types = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.uint8)
    starts = np.cumsum(own) - own
    place = offsets[:-1]
    parts = zip((frame.before, frame.between), (first, second), kept, frame.types, strict=True)
    for special, text, n_kept, of_text in parts:
        place = _lay_special(tokens, types, place, special)
        within = np.arange(n_kept.sum()) - np.repeat(np.cumsum(n_kept) - n_kept, n_kept)
        target = np.repeat(place, n_kept) + within
        tokens[target] = words[np.repeat(starts[text], n_kept) + within]
        types[target] = of_text
        place = place + n_kept
    _lay_special(tokens, types, place, frame.after)
    return EncodedPairs(tokens, types, offsets, own[first] + own[second] + frame.n_special > max_length)


def _encode_texts(backend, texts):
    """Tokens of texts without special ones, end to end, int32 [N], and the number of each text's, int64 [n]."""
    encodings = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    own = np.fromiter(map(len, encodings), np.int64, len(encodings))
    return np.fromiter(itertools.chain.from_iterable(encodings), np.int32, own.sum()), own


def _longest_first(first, second, most):
    """How many tokens of each text stay, int64 [n] each, of texts of `first` and `second` tokens, `most` together.

    The shorter text is whole where it has at most half of the room; else both have half, the second text the odd token
    unless it was the shorter. Source: `truncate_encodings` of the tokenizers library.
    """
    shorter, longer = np.minimum(first, second), np.maximum(first, second)
    cut = first + second > most
    few = np.minimum(shorter, most // 2)
    shorter, longer = np.where(cut, few, shorter), np.where(cut, np.minimum(longer, most - few), longer)
    swapped = first > second
    return np.where(swapped, longer, shorter), np.where(swapped, shorter, longer)


def _lay_special(tokens, types, place, special):
    """Write special tokens at a place in each pair, and return the place after them."""
    for token, of_type in special:
        tokens[place], types[place] = token, of_type
        place = place + 1
    return place
