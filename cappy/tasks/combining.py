"""Picks by the scorer together with other signals of how good a candidate is. Not in the paper.

A combination of a candidate is a weighted sum of its score and of signals. The weights are a ridge regression of the
labels on score and signals, both as differences from their means over the example's candidates, since only differences
decide a pick. It is shrunk towards PRIOR, which counts as much as PRIOR_EXAMPLES examples: of few examples the weights
are hardly more than the prior, and no choice among many is made on them.

On pairs that it was trained on a scorer looks better than it is, and would get all the weight. So the scores that the
weights are fitted to are those of other scorers (cross-fitting): the training instructions are divided into folds, and
each fold is scored by a scorer that was trained on the others.

N examples; example i has C_i candidates. Scores and a signal are lists of N arrays [C_i].
"""

import dataclasses
import functools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cappy.errors import InputError
from cappy.files.atomic import write_atomically
from cappy.files.wording import listed
from cappy.tasks.candidates import Example, Sample
from cappy.tasks.metrics import agreement, find_metric
from cappy.tasks.picks import candidate_of_sample, consensus

SIGNALS = ('consensus', 'weighted_consensus', 'self_score', 'decoding', 'times_sampled')
SCORER = 'scorer'
# Weights of differences in score and in consensus, both in units of the labels; of other signals 0.
PRIOR = {SCORER: 0.5, 'consensus': 0.5, 'weighted_consensus': 0.5}
PRIOR_EXAMPLES = 50
TEMPERATURE = 0.2  # of votes: a sample whose score is that much below the best has 1 / e of its vote
COMBINED, WEIGHTED, EQUAL = 'combined', 'score-weighted consensus', 'scorer + consensus'  # names of picks
FILE = 'combination.json'


def check_names(names: Sequence[str] | None, pick: str = SCORER) -> tuple[str, ...]:
    """The names of signals as a tuple, () for None. Raises InputError for an unknown name and for one given twice.

    pick: the one that is to be the result; COMBINED needs signals.
    """
    names = () if names is None else tuple(names)
    for name in names:
        if name not in SIGNALS or names.count(name) > 1:
            raise InputError(
                f'combine: found {",".join(names)!r}; give {listed(SIGNALS)}, or several with commas between'
            )
    if pick == COMBINED and not names:
        raise InputError('pick: combined needs --combine, the signals that the scorer is combined with')
    return names


def cross_fitting_folds(examples: Sequence[Example], n_folds: int, seed: int) -> list[tuple[list, list]]:
    """(train, held_out) of each fold: every example is held out once, with all others of its instruction.

    Raises InputError where there are fewer instructions than folds.
    """
    instructions = list(dict.fromkeys(example.instruction for example in examples))
    if len(instructions) < n_folds or n_folds < 2:
        raise InputError(
            f'combine: {len(instructions)} training instructions cannot be divided into {n_folds} folds; give '
            '--n_folds from 2 to their number, or leave combine out'
        )
    random.Random(seed).shuffle(instructions)
    fold_of = {instruction: number % n_folds for number, instruction in enumerate(instructions)}
    return [
        (
            [example for example in examples if fold_of[example.instruction] != fold],
            [example for example in examples if fold_of[example.instruction] == fold],
        )
        for fold in range(n_folds)
    ]


def weighted_consensus(example: Example, scores, metric, temperature: float = TEMPERATURE) -> np.ndarray:
    """Mean agreement of each candidate with all samples, their votes weighted by exp(score / temperature); [C].

    scores: [C], in units of the labels. A candidate's own samples vote too: else one that the scorer holds for the best
    by far would be judged by the rest alone.
    """
    scores = np.asarray(scores, np.float64)
    votes = np.bincount(candidate_of_sample(example)) * np.exp((scores - scores.max()) / temperature)
    # Rounded, since the same terms in another order give another last bit.
    return np.round((agreement(metric, example) * votes).sum(axis=1) / votes.sum(), 9)


def self_score(example: Example) -> np.ndarray | None:
    """Mean log-likelihood of each candidate's tokens by its generator, float64 [C]; None where a text lacks one.

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


def decoding_gains(examples: Sequence[Example], labels) -> dict[str, float]:
    """How much better the samples of each decoding are than the mean of their example, averaged; labels: N arrays."""
    gains = {}
    for example, own in zip(examples, labels, strict=True):
        of_samples = own[candidate_of_sample(example)]
        for sample, value in zip(example.samples, of_samples - of_samples.mean(), strict=True):
            gains.setdefault(sample.decoding, []).append(value)
    return {decoding: float(np.mean(values)) for decoding, values in gains.items()}


@dataclasses.dataclass(frozen=True)
class Combination:
    """The weights of score and signals, {'scorer': .., signal: ..}, and what its signals need.

    decodings: the gains of each, as `decoding_gains` has them; an unknown one counts as 0. metric, rouge_tokenizer: of
    the metric by which candidates agree, as `metrics.find_metric` takes them.
    """

    weights: dict[str, float]
    decodings: dict[str, float]
    metric: str
    rouge_tokenizer: str = 'default'

    @classmethod
    def fit(cls, names: Sequence[str], examples: Sequence[Example], scores, labels, metric) -> 'Combination':
        """Fit to held-out scores; labels: N arrays, how good each candidate is. Raises InputError as `signals` does."""
        unfitted = cls({}, decoding_gains(examples, labels), metric.name, getattr(metric, 'tokenizer', 'default'))
        columns = {SCORER: scores} | unfitted.signals(names, examples, scores, metric)
        prior = [PRIOR.get(name, 0.0) for name in columns]
        weights = _shrunk_regression(list(columns.values()), labels, prior)
        return dataclasses.replace(unfitted, weights=dict(zip(columns, map(float, weights), strict=True)))

    def signals(self, names: Sequence[str], examples: Sequence[Example], scores, metric) -> dict[str, list]:
        """The signals of all candidates, {name: N arrays [C_i]}.

        Raises InputError where a sample lacks the log-likelihood that self_score needs.
        """
        of_name = {
            'consensus': lambda example, own: consensus(example, metric),
            'weighted_consensus': lambda example, own: weighted_consensus(example, own, metric),
            'self_score': lambda example, own: _known_self_score(example),
            'decoding': lambda example, own: self._of_decodings(example),
            'times_sampled': lambda example, own: np.log(np.bincount(candidate_of_sample(example))),
        }
        pairs = list(zip(examples, scores, strict=True))
        return {name: [of_name[name](example, own) for example, own in pairs] for name in names}

    def values(self, examples: Sequence[Example], scores, metric) -> list[np.ndarray]:
        """The combination of each candidate, N float64 arrays [C_i]: its pick is the highest."""
        names = [name for name in self.weights if name != SCORER]
        return _weighted_sums({SCORER: scores} | self.signals(names, examples, scores, metric), self.weights)

    def picks(self, examples: Sequence[Example], scores, metric, consensus) -> dict[str, list]:
        """By name of the pick, what it takes the highest of.

        The votes weighted by the score, the sum of score and consensus, which needs no weights, and the combination.
        consensus: as `picks.consensus_of` gives it.
        """
        known = {SCORER: scores, 'consensus': consensus}
        names = [name for name in {**self.weights, 'weighted_consensus': 1.0} if name not in known]
        columns = known | self.signals(names, examples, scores, metric)
        by_name = {
            WEIGHTED: {'weighted_consensus': 1.0},
            EQUAL: {SCORER: 1.0, 'consensus': 1.0},
            COMBINED: self.weights,
        }
        return {name: _weighted_sums(columns, weights) for name, weights in by_name.items()}

    def pick(self, scorer, instruction: str, responses: Sequence[str], decodings: Sequence[str] | None = None) -> str:
        """The response with the highest value, the first of equals.

        scorer: anything with score(pairs), such as Cappy. responses: all samples, equal ones as often as they were
        drawn. decodings: the name of each sample's, where it is known. Raises InputError where there is no response.
        """
        if isinstance(responses, str) or not len(responses):
            raise InputError(f'responses: found {responses!r:.60}; give a list of texts')
        candidates = list(dict.fromkeys(responses))
        scores = scorer.score([(instruction, candidate) for candidate in candidates])
        rated = self.rate(responses, dict(zip(candidates, scores, strict=True)), decodings)
        return max(rated, key=rated.get)

    def rate(self, responses: Sequence[str], score_of: dict[str, float], decodings=None) -> dict[str, float]:
        """{response: its value} of the samples of one instruction, in order of first appearance.

        responses, decodings: as `pick` takes them. score_of: the scorer's, by response.
        """
        decodings = [''] * len(responses) if decodings is None else decodings
        samples = tuple(Sample(*sample) for sample in zip(responses, decodings, strict=True))
        example = Example(None, 0, '', ('',), samples)
        scores = np.array([score_of[candidate] for candidate in example.candidates])
        (values,) = self.values([example], [scores], self._metric)
        return dict(zip(example.candidates, values, strict=True))

    @functools.cached_property
    def _metric(self):
        return find_metric(self.metric, self.rouge_tokenizer)

    def save(self, folder):
        """Write {folder}/combination.json."""
        with write_atomically(Path(folder) / FILE) as file:
            file.write(json.dumps(dataclasses.asdict(self), indent=4) + '\n')

    @classmethod
    def load(cls, folder) -> 'Combination':
        """Read {folder}/combination.json. Raises InputError where it is missing or is none."""
        path = Path(folder) / FILE
        try:
            return cls(**json.loads(path.read_text(encoding='utf-8')))
        except FileNotFoundError as error:
            raise InputError(
                f'{path}: no such file; cappy_bigbench.py --combine .. --save_dir writes it beside a scorer'
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f'{path}: not a combination ({error})') from error

    def _of_decodings(self, example):
        gains = [self.decodings.get(sample.decoding, 0.0) for sample in example.samples]
        places = candidate_of_sample(example)
        return np.bincount(places, weights=gains) / np.bincount(places)


def describe(weights: dict[str, float]) -> str:
    """The weights in one line: '0.61 scorer + 0.35 consensus - 0.02 self-score'."""
    parts = [
        f'{"-" if weight < 0 else "+"} {abs(weight):.2f} {name.replace("_", " ")}' for name, weight in weights.items()
    ]
    return ' '.join(parts).removeprefix('+ ')


def _weighted_sums(columns, weights):
    """N arrays [C_i]: the sums of weighted columns, rounded, so that equal candidates have equal sums."""
    n_examples = len(next(iter(columns.values())))
    return [
        np.round(sum(weight * np.asarray(columns[name][i], np.float64) for name, weight in weights.items()), 9)
        for i in range(n_examples)
    ]


def _known_self_score(example):
    found = self_score(example)
    if found is None:
        raise InputError(
            f'{example.place}: combine self_score: a sample without log_likelihood_mean; both splits need one for '
            'every sample (the published FLAN-T5 files have them in the validation split only), so leave self_score out'
        )
    return found


def _shrunk_regression(columns, labels, prior):
    """Weights [K] of K columns, each N arrays [C_i], for the labels; an example weighs 1 whatever its candidates."""

    def centred(arrays):
        return np.concatenate([(np.asarray(a, np.float64) - np.mean(a)) / np.sqrt(len(a)) for a in arrays])

    x, y, prior = np.stack([centred(column) for column in columns], axis=1), centred(labels), np.array(prior)
    products = x.T @ x
    # A column without differences keeps its prior, and adds nothing to any pick.
    shrinkage = PRIOR_EXAMPLES / len(labels) * np.diag(products) + 1e-9
    return np.linalg.solve(products + np.diag(shrinkage), x.T @ y + shrinkage * prior)
