"""Pairs of texts as tokens, with their special tokens, truncated as the reference truncates them."""

import dataclasses

import numpy as np

from cappy.errors import InputError


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


def load_tokenizer(path):
    """The fast tokenizer of a model directory; raises InputError where there is none."""
    from transformers import AutoTokenizer  # half a second that reading files need not wait for

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # whatever a broken folder makes transformers raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f'{path}: no tokenizer could be read ({reason[0]}); needs tokenizer.json') from error
    if not tokenizer.is_fast:
        raise InputError(f'{path}: its tokenizer has no fast form; save one as tokenizer.json')
    return tokenizer


def encode_pairs(tokenizer, instructions, responses, max_length):
    """Tokens of (instruction, response) pairs.

    instructions, responses: sequences of str of one length. A pair of more than max_length tokens loses tokens from the
    end of the longer text first, as `truncation=True` does in the reference (cappy_bigbench.py:73-79).
    Returns EncodedPairs.
    """
    backend = tokenizer.backend_tokenizer
    # A published tokenizer.json may carry its own padding and limit (MiniLM's: 128 tokens, always).
    backend.no_padding()
    backend.enable_truncation(max_length, strategy='longest_first')
    encodings = backend.encode_batch(list(zip(instructions, responses, strict=True)))
    lengths = np.fromiter((len(encoding) for encoding in encodings), np.int64, len(encodings))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens, types = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.uint8)
    for encoding, first, end in zip(encodings, offsets[:-1], offsets[1:], strict=True):
        tokens[first:end], types[first:end] = encoding.ids, encoding.type_ids
    truncated = np.fromiter((bool(encoding.overflowing) for encoding in encodings), bool, len(encodings))
    return EncodedPairs(tokens, types, offsets, truncated)
