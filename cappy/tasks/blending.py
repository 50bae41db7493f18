"""The scorer together with other ways of picking: consensus, and the generator's own likelihood. Not in the paper.

A candidate's value is its score plus weighted values of the other ways, each in units of its spread among the
candidates of an example. The weights are those that pick best on a tenth of the training instructions, held out from
the scorer's training: on its own training pairs a scorer looks better than it is, and would get all the weight.

N examples; example i has C_i candidates. Values and scores are lists of N arrays [C_i].
"""

import itertools
import random

import numpy as np

from cappy.errors import InputError
from cappy.files.jsonl import listed
from cappy.tasks.picks import candidates_rougeL, consensus

WEIGHTS = (0, 0.125, 0.25, 0.5, 1, 2, 4)
HELD_OUT_SHARE = 0.1


def self_score(example, rouge=None):
    """float64 [C_i]: mean log-likelihood of each candidate's tokens by its generator; None where one is not known."""
    likelihoods = {}
    for sample in example.samples:
        if sample.log_likelihood_mean is None:
            return None
        known = likelihoods.setdefault(sample.response, sample.log_likelihood_mean)
        likelihoods[sample.response] = max(known, sample.log_likelihood_mean)
    return np.array([likelihoods[candidate] for candidate in example.candidates])


WAYS = {'consensus': consensus, 'self_score': self_score}


def parse_ways(text):
    """Names of ways with commas between them, () for None. Raises InputError for another name, or one given twice."""
    ways = () if text is None else tuple(name.strip() for name in text.split(','))
    for name in ways:
        if name not in WAYS or ways.count(name) > 1:
            raise InputError(f'--combine: found {text!r}; give one of {listed(WAYS)}, or both with a comma between')
    return ways


def hold_out(examples, seed):
    """(to train on, held out): a tenth of the instructions, at least one, all examples of each.

    Raises InputError where there are fewer than two instructions.
    """
    instructions = list(dict.fromkeys(example.instruction for example in examples))
    if len(instructions) < 2:
        raise InputError('--combine holds out training instructions, and there is one; leave the flag out')
    n_held = max(1, int(HELD_OUT_SHARE * len(instructions)))
    held = set(random.Random(seed).sample(instructions, n_held))
    return (
        [example for example in examples if example.instruction not in held],
        [example for example in examples if example.instruction in held],
    )


def values_of(examples, ways, rouge):
    """{way: values}. Raises InputError where a candidate has none."""
    values = {way: [WAYS[way](example, rouge) for example in examples] for way in ways}
    for way, arrays in values.items():
        missing = next((example for example, array in zip(examples, arrays, strict=True) if array is None), None)
        if missing is not None:
            raise InputError(
                f'--combine {way}: example_idx {missing.example_idx} has a sample without log_likelihood_mean; both '
                'splits need them (FLAN-T5 files have them in the validation split alone), so leave it out'
            )
    return values


def spread(values):
    """Mean standard deviation among the candidates of an example; 1 where there is none."""
    return float(np.mean([np.std(array) for array in values])) or 1.0


def choose_weights(scores, values, rougeL):
    """{way: weight} that pick best; of equals the smallest sum of weights.

    The weight of a way is for values as they are: that of WEIGHTS over the way's spread, times the scores' spread.
    """
    unit = spread(scores)
    scales = {way: unit / spread(arrays) for way, arrays in values.items()}
    best, chosen = -1.0, None
    for weights in sorted(itertools.product(WEIGHTS, repeat=len(values)), key=sum):
        scaled = {way: weight * scales[way] for way, weight in zip(values, weights, strict=True)}
        reached = np.mean([r[np.argmax(s)] for r, s in zip(rougeL, together(scores, values, scaled), strict=True)])
        if reached > best + 1e-12:
            best, chosen = reached, scaled
    return chosen


def together(scores, values, weights):
    """Scores plus weighted values, N float64 arrays [C_i]."""
    return [
        score + sum(weight * values[way][number] for way, weight in weights.items())
        for number, score in enumerate(np.asarray(score, np.float64) for score in scores)
    ]


def name_of(ways):
    """The row's name in a table."""
    return ' + '.join(['scorer', *(way.replace('_', '-') for way in ways)])


class Together:
    """The scorer with the first of the ways, the first two, and so on, for a task; without ways it does nothing.

    train: the examples to finetune on; held_out: those on which the weights are chosen; weights: {row: {way: weight}},
    once `combine` was called.
    """

    def __init__(self, task, ways, seed, rouge):
        self.train, self.held_out = hold_out(task['train'], seed) if ways else (task['train'], [])
        self._ways = ways
        self._held_values = values_of(self.held_out, ways, rouge)
        self._values = values_of(task['validation'], ways, rouge)
        self._held_rougeL = candidates_rougeL(self.held_out, rouge)
        self.weights = {}

    def combine(self, held_scores, scores):
        """{row: combined scores} of the validation examples, from the scores of the held-out ones and theirs."""
        combined = {}
        for n in range(1, len(self._ways) + 1):
            ways = self._ways[:n]
            held = {way: self._held_values[way] for way in ways}
            weights = self.weights[name_of(ways)] = choose_weights(held_scores, held, self._held_rougeL)
            combined[name_of(ways)] = together(scores, self._values, weights)
        return combined
