"""The decodings by name: how a generator or a server draws a response."""

import re
from dataclasses import dataclass

from cappy.errors import InputError

DEFAULT_TOP_K = 50  # transformers' GenerationConfig, where a decoding does not set its own
MAX_BEAMS = 64
# A temperature divides float32 logits: much smaller ones overflow.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3
MAX_TOP_K = 2**31 - 1  # int32 on the devices


@dataclass(frozen=True)
class Decoding:
    """How a response is drawn.

    n_beams: beams of a beam search, which gives one response; 0 for sampling. Of sampling: temperature (0: always the
    most likely token), top_k (0: all tokens) and top_p, applied in this order.
    """

    name: str
    n_beams: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def parse_decoding(name, default_top_k=DEFAULT_TOP_K):
    """beam4, sampling, temp0.9, topk40, topp0.95, or such a name with another number -> Decoding.

    default_top_k: top_k where the name does not give one; the reference leaves it to transformers
    (scripts/bigbench_flan_generate.py:97-103). Raises InputError for any other name.
    """
    match = re.fullmatch(r'([a-z]+)([0-9.]*)', name)
    kind, number = match.groups() if match else ('', '')
    try:
        if kind == 'sampling' and not number:
            return Decoding(name, top_k=default_top_k)
        if kind == 'beam' and 1 <= int(number) <= MAX_BEAMS:
            return Decoding(name, n_beams=int(number))
        if kind == 'topk' and 1 <= int(number) <= MAX_TOP_K:
            return Decoding(name, top_k=int(number))
        if kind == 'temp' and MIN_TEMPERATURE <= float(number) <= MAX_TEMPERATURE:
            return Decoding(name, temperature=float(number), top_k=default_top_k)
        if kind == 'topp' and 0 < float(number) <= 1:
            return Decoding(name, top_p=float(number), top_k=default_top_k)
    except ValueError:
        pass
    raise InputError(
        f'decodings: {name!r} is unknown; use sampling, or beam4, temp0.9, topk40 and topp0.95 or such with another '
        f'number: up to {MAX_BEAMS} beams, temperatures of {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}, top-k of 1 or '
        'more, top-p up to 1'
    )
