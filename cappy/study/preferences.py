"""What a pick prefers: long or short responses, copies of the instruction or of a reference, and which decodings.

N examples; each pick is a weight of every candidate, float64 [C_i] that sum to 1: one candidate alone, or the shares of
a draw among the samples.

- length: characters of a response.
- copies the instruction: a response of `MIN_COPIED` words or more that stand in this order, with none between, in the
  instruction. Shorter ones may be a choice that the instruction names.
- copies a reference: a response that equals one of the references.
- decodings: a response that several decodings gave counts for each by its share of the response's samples, so that a
  random pick has each decoding as often as it was sampled.

Words are what white space separates, and upper and lower case are the same.
"""

from collections.abc import Sequence

import numpy as np

from cappy.tasks.candidates import Example
from cappy.tasks.picks import ADAPTED

MIN_COPIED = 5
RANDOM, ORACLE = 'random candidate', 'oracle'


def describe(lines: Sequence[dict], examples: Sequence[Example] | None, ours: str = ADAPTED) -> dict:
    """The preferences of ours, the adapted scorer, the random candidate and the oracle.

    lines: of a candidates file; examples: those of the lines, None where their texts are not known: then each candidate
    counts as sampled once by each of its decodings, and copies are not known. ours: the name of the lines' picks.
    Returns {'are_drawn': whether samples are counted, 'rows': [{'name', 'length', 'instruction'?, 'reference'?}],
    'decodings': [{'name', 'sampled', 'picked'}]}: means over the examples, shares as fractions.
    """
    counts = [_counts(line, example) for line, example in zip(lines, examples or [None] * len(lines), strict=True)]
    samples = [sum(of_line.values()) for of_line in counts]
    picks = {ours: [_one(line['pick'], line) for line in lines]}
    picks.setdefault(ADAPTED, [_one(_highest(line, 'score'), line) for line in lines])
    picks[RANDOM] = [own / own.sum() for own in samples]
    picks[ORACLE] = [_one(_highest(line, 'rougeL'), line) for line in lines]
    measures = {'length': [np.array([float(len(one['response'])) for one in line['candidates']]) for line in lines]}
    if examples is not None:
        pairs = list(zip(lines, examples, strict=True))
        measures['instruction'] = [_each(line, _copies_instruction, example.instruction) for line, example in pairs]
        measures['reference'] = [_each(line, _copies_reference, example.references) for line, example in pairs]
    return {
        'are_drawn': examples is not None,
        'rows': [
            {'name': pick, **{measure: _mean(weights, values) for measure, values in measures.items()}}
            for pick, weights in picks.items()
        ],
        'decodings': [
            {
                'name': decoding,
                'sampled': _mean(picks[RANDOM], [_shares(of_line, decoding) for of_line in counts]),
                'picked': _mean(picks[ours], [_shares(of_line, decoding) for of_line in counts]),
            }
            for decoding in dict.fromkeys(name for of_line in counts for name in of_line)
        ],
    }


def copies(text: str, of: str) -> bool:
    """Whether a text is a passage of the other, of `MIN_COPIED` words or more."""
    words = _words(text)
    # Blanks around both, so that a passage begins and ends with whole words.
    return len(words) >= MIN_COPIED and f' {" ".join(words)} ' in f' {" ".join(_words(of))} '


def _copies_instruction(text, instruction):
    return copies(text, instruction)


def _copies_reference(text, references):
    return _words(text) in [_words(reference) for reference in references]


def _words(text):
    return text.casefold().split()


def _each(line, measure, given):
    return np.array([float(measure(one['response'], given)) for one in line['candidates']])


def _mean(weights, values):
    return float(np.mean([own @ of_line for own, of_line in zip(weights, values, strict=True)]))


def _one(place, line):
    weights = np.zeros(len(line['candidates']))
    weights[place] = 1
    return weights


def _highest(line, key):
    return int(np.argmax([one[key] for one in line['candidates']]))


def _counts(line, example):
    """{decoding: its samples of each candidate, float64 [C]}."""
    place = {one['response']: number for number, one in enumerate(line['candidates'])}
    if example is None:
        drawn = [(name, one['response']) for one in line['candidates'] for name in dict.fromkeys(one['decodings'])]
        drawn += [('', one['response']) for one in line['candidates'] if not one['decodings']]
    else:
        drawn = [(sample.decoding, sample.response) for sample in example.samples]
    counts = {}
    for decoding, response in drawn:
        counts.setdefault(decoding, np.zeros(len(place)))[place[response]] += 1
    return counts


def _shares(counts, decoding):
    """The share of each candidate's samples that the decoding drew."""
    samples = sum(counts.values())
    return counts.get(decoding, np.zeros(len(samples))) / samples
