"""Blends of the scorer with other signals: consensus, and the generator's own likelihood. Not in the paper.

A blend of a candidate is its score plus weighted signals, each in units of its standard deviation among the candidates
of an example. The weights are those that pick best on a tenth of the training instructions, held out from the scorer's
training: on the pairs that it was trained on a scorer looks better than it is, and would get all the weight.

N examples; example i has C_i candidates. Scores and a signal are lists of N arrays [C_i].
"""

import itertools
import random

import numpy as np

from cappy.errors import InputError
from cappy.files.wording import listed
from cappy.tasks.picks import consensus

WEIGHTS = (0, 0.125, 0.25, 0.5, 1, 2, 4)  # tried for each signal, in units of the standard deviations
HELD_OUT_SHARE = 0.1


def self_score(example, rouge=None):
    """Mean log-likelihood of each candidate's tokens by its generator, float64 [C_i]; None where a text lacks one.

    A response that was sampled several times has the highest of its samples' values. A blank response may have no
    tokens, and so no mean: it gets the lowest of the example.
    """
    likelihoods = {}
    for sample in example.samples:
        if sample.log_likelihood_mean is not None:
            known = likelihoods.setdefault(sample.response, sample.log_likelihood_mean)
            likelihoods[sample.response] = max(known, sample.log_likelihood_mean)
        elif sample.response.strip():
            return None
    lowest = min(likelihoods.values(), default=0.0)
    return np.array([likelihoods.get(candidate, lowest) for candidate in example.candidates])


SIGNALS = {'consensus': consensus, 'self_score': self_score}


def check_names(names):
    """The names of signals as a tuple, () for None. Raises InputError for an unknown name and for one given twice."""
    names = () if names is None else tuple(names)
    for name in names:
        if name not in SIGNALS or names.count(name) > 1:
            raise InputError(
                f'combine: found {",".join(names)!r}; give {listed(SIGNALS)}, or both with a comma between'
            )
    return names


def hold_out(examples, seed):
    """(train, held_out): a tenth of the instructions is held out, at least one, with all examples of each.

    Raises InputError where there are fewer than two instructions.
    """
    instructions = list(dict.fromkeys(example.instruction for example in examples))
    if len(instructions) < 2:
        raise InputError('combine: needs a training instruction to hold out, and there is only one; leave combine out')
    n_held_out = max(1, int(HELD_OUT_SHARE * len(instructions)))
    held_out = set(random.Random(seed).sample(instructions, n_held_out))
    return (
        [example for example in examples if example.instruction not in held_out],
        [example for example in examples if example.instruction in held_out],
    )


def signals_of(examples, names, rouge, consensus=None):
    """The signals of all candidates, {name: N arrays [C_i]}, in the order of the names.

    consensus: as `picks.consensus_of` gives it, where it is known. Raises InputError where a sample lacks the
    log-likelihood that a signal needs.
    """
    known = {} if consensus is None else {'consensus': consensus}
    signals = {name: known.get(name) or [SIGNALS[name](example, rouge) for example in examples] for name in names}
    for name, arrays in signals.items():
        missing = next((example for example, array in zip(examples, arrays, strict=True) if array is None), None)
        if missing is not None:
            raise InputError(
                f'combine {name}: example_idx {missing.example_idx!r} has a sample without log_likelihood_mean; both '
                'splits need one for every sample (the published FLAN-T5 files have them in the validation split '
                f'only), so leave {name} out'
            )
    return signals


def choose_weights(scores, signals, rougeL):
    """The weights that pick best, {signal: weight}; among equally good ones, those with the smallest sum.

    scores, signals, rougeL: of the held-out examples. A weight applies to the signal as it is: the number from WEIGHTS,
    times the standard deviation of the scores, divided by that of the signal.
    """
    unit = _deviation(scores)
    scales = {name: unit / _deviation(arrays) for name, arrays in signals.items()}
    highest, best = -1.0, None
    for weights in sorted(itertools.product(WEIGHTS, repeat=len(signals)), key=sum):
        scaled = {name: weight * scales[name] for name, weight in zip(signals, weights, strict=True)}
        mean = np.mean([r[np.argmax(s)] for r, s in zip(rougeL, blend(scores, signals, scaled), strict=True)])
        if mean > highest + 1e-12:
            highest, best = mean, scaled
    return best


def choose_all_weights(scores, signals, rougeL):
    """The weights of the blend with the first signal, the first two, and so on: {name of the pick: {signal: weight}}.

    The arguments are those of `choose_weights`.
    """
    names = list(signals)
    chosen = {}
    for n in range(1, len(names) + 1):
        first = {name: signals[name] for name in names[:n]}
        chosen[pick_name(first)] = choose_weights(scores, first, rougeL)
    return chosen


def blend(scores, signals, weights):
    """Scores plus weighted signals, N float64 arrays [C_i]; signals without a weight do not count."""
    return [
        np.asarray(score, np.float64) + sum(weight * signals[name][number] for name, weight in weights.items())
        for number, score in enumerate(scores)
    ]


def pick_name(names):
    """What a blend with these signals is called among the picks: 'scorer + consensus'."""
    return ' + '.join(['scorer', *(name.replace('_', '-') for name in names)])


def _deviation(arrays):
    """Mean standard deviation among the candidates of an example; 1 where they do not differ."""
    return float(np.mean([np.std(array) for array in arrays])) or 1.0
