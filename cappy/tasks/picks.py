"""Methods of picking one candidate of each example, and how much of the possible gain each achieves.

N examples; example i has C_i candidates (unique responses) and S_i samples, S_i >= C_i. `rougeL` is everywhere a list
of N float64 arrays [C_i], candidates in their order; results are float64 [N], one value per example, fractions. Where
several candidates are equally good by a method, it picks the first; `count_ties` says how often, and what the value
would be on average over them.

The picks, by the names that files and tables give them:

- random candidate: what a sample drawn at random is expected to have, the mean over all samples.
- first of D: the first sample of decoding D.
- self-score sum, self-score mean: the sample to which the generator itself gives the highest log-likelihood, summed or
  averaged over its tokens (the paper's self-scoring baseline).
- longest, shortest: by characters. They read nothing, so a pick that is no better has learned nothing but length.
- consensus: the candidate with the highest mean rougeL to the other samples (minimum Bayes risk decoding), or of the
  metric that is used instead; equal samples that are not blank agree also where they have no word that rougeL reads.
- scorer before adapting, scorer after adapting: the candidate with the highest score.
- score-weighted consensus, scorer + consensus, combined: by the scorer together with other signals
  (`cappy.tasks.combining`).
- oracle: the best candidate by its own rougeL. It knows the references, so it bounds every method.

Gap closed: the share of the way from the random candidate's mean to the oracle's that a method achieves.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import tqdm

from cappy.files.scored_pairs import SAME_SCORE
from cappy.tasks.candidates import Example, read_examples
from cappy.tasks.faults import count_faults
from cappy.tasks.metrics import agreement, find_metric, measure
from cappy.tasks.statistics import FEW, bootstrap_means, interval_of_mean, mean_interval, percentiles

TIES = ('n_examples', 'n_several', 'n_tied', 'n_alike', 'rougeL')  # what `count_ties` says of a pick
ADAPTED = 'scorer after adapting'
SCORER_PICKS = ('scorer before adapting', ADAPTED)
LENGTH_PICKS = ('longest', 'shortest')  # whose ties are of no interest
BAR_AFTER = 2  # seconds; a shorter job shows no bar


@dataclass(frozen=True, slots=True)
class TaskBaselines:
    """What a task's samples give without a scorer.

    rougeL: mean rougeL by pick; ties: those of `count_ties`. n_candidates: candidates of all examples. n_unknown:
    samples without a log-likelihood, by 'sum' and 'mean'. example_ids: a digest that is equal where the examples are.
    faults: counts of `faults.count_faults`.
    """

    rougeL: dict[str, float]
    ties: dict[str, dict]
    n_examples: int
    n_samples: int
    n_candidates: int
    n_unknown: dict[str, int]
    example_ids: str
    faults: dict[str, int]


def measure_file(path, src_key, tgt_key, refs_key, rouge_tokenizer, metric='rougeL') -> TaskBaselines:
    """The baselines of a file of examples. Raises InputError naming file, line and field.

    metric: a name that `metrics.find_metric` knows, by which the values are, and consensus is made.
    """
    examples = read_examples(path, src_key=src_key, tgt_key=tgt_key, refs_key=refs_key)
    measured_by = _metric(metric, rouge_tokenizer)
    rougeL = candidates_rougeL(examples, measured_by)
    values = values_by_pick(examples, consensus_of(examples, measured_by))
    samples = [sample for example in examples for sample in example.samples]
    ids = sorted(repr(example.example_idx) for example in examples)
    return TaskBaselines(
        rougeL={name: float(np.mean(own)) for name, own in rougeL_by_pick(examples, rougeL, values).items()},
        ties=count_ties(rougeL, values),
        n_examples=len(examples),
        n_samples=len(samples),
        n_candidates=sum(len(example.candidates) for example in examples),
        n_unknown={
            which: sum(getattr(sample, f'log_likelihood_{which}') is None for sample in samples)
            for which in ('sum', 'mean')
        },
        example_ids=hashlib.sha256('\n'.join(ids).encode()).hexdigest(),
        faults=count_faults({'validation': examples}, _metric('rougeL', rouge_tokenizer))['validation'],
    )


@lru_cache
def _metric(name, rouge_tokenizer):
    return find_metric(name, rouge_tokenizer)  # one per process: the stems of one file serve the next


def candidates_rougeL(examples: Sequence[Example], metric) -> list[np.ndarray]:
    """Best rougeL over the references of each candidate, or what another metric gives; N arrays float64 [C_i]."""
    return [measure(metric, example, example.candidates) for example in examples]


def random_rougeL(examples, rougeL) -> np.ndarray:
    """What a sample drawn at random is expected to have: the mean over all samples, with repetitions."""
    return np.array(
        [values[candidate_of_sample(example)].mean() for example, values in zip(examples, rougeL, strict=True)]
    )


def first_sample_rougeL(examples, rougeL, decoding) -> np.ndarray | None:
    """That of the decoding's first sample; None where an example has no sample of it."""
    picked = []
    for example, values in zip(examples, rougeL, strict=True):
        samples = (sample for sample in example.samples if sample.decoding == decoding)
        first = next(samples, None)
        if first is None:
            return None
        picked.append(values[example.candidates.index(first.response)])
    return np.array(picked)


def self_score_rougeL(examples, rougeL, which) -> np.ndarray | None:
    """That of the sample to which the generator itself gives the highest log-likelihood.

    which: 'sum' or 'mean', over its tokens. Samples without a log-likelihood are skipped; None where no sample of an
    example has one.
    """
    picked = []
    for example, values in zip(examples, rougeL, strict=True):
        likelihoods = [getattr(sample, f'log_likelihood_{which}') for sample in example.samples]
        if all(likelihood is None for likelihood in likelihoods):
            return None
        best = np.argmax([-np.inf if likelihood is None else likelihood for likelihood in likelihoods])
        picked.append(values[candidate_of_sample(example)[best]])
    return np.array(picked)


def consensus_of(examples, metric, progress=None) -> list[np.ndarray]:
    """`consensus` of each example. progress: text beside a progress bar, which a terminal shows if it takes long."""
    bar = tqdm.tqdm(examples, desc=progress, unit='example', delay=BAR_AFTER, disable=None if progress else True)
    return [consensus(example, metric) for example in bar]


def consensus(example: Example, metric) -> np.ndarray:
    """Mean agreement of each candidate with the other samples of the example, float64 [C_i]; 0 where there is no other.

    A response that was sampled k times is compared with itself k - 1 times, and agrees with itself wholly.
    """
    counts = np.bincount(candidate_of_sample(example))
    agreeing = agreement(metric, example)
    # Row by row, so that candidates of equal tokens have sums equal to the last bit; rounded, since the same terms in
    # another order give another last bit.
    sums = (agreeing * counts).sum(axis=1) - agreeing.diagonal()
    return np.round(sums, 9) / max(counts.sum() - 1, 1)


def scorer_rougeL(rougeL, scores) -> np.ndarray:
    """That of the candidate with the highest score; scores: N arrays [C_i]."""
    return np.array([values[np.argmax(s)] for values, s in zip(rougeL, scores, strict=True)])


def oracle_rougeL(rougeL) -> np.ndarray:
    """That of the best candidate."""
    return np.array([values.max() for values in rougeL])


def gap_closed(method, random, oracle) -> float | None:
    """Share of the way from the random candidate's mean to the oracle's that a method achieves; None without a gap.

    method, random, oracle: float64 [N]. Below 0 where the method is worse than random.
    """
    gap = np.mean(oracle) - np.mean(random)
    # Both are means of the same numbers where all candidates are equal; they then differ by rounding.
    return float((np.mean(method) - np.mean(random)) / gap) if gap > 1e-12 else None


def all_picks(examples, rougeL, rouge, scores_before=None, scores_after=None, combined=None) -> dict[str, np.ndarray]:
    """rougeL [N] of every pick by its name; the arguments are those of `values_by_pick` and `rougeL_by_pick`."""
    values = values_by_pick(examples, consensus_of(examples, rouge), scores_before, scores_after, combined)
    return rougeL_by_pick(examples, rougeL, values)


def values_by_pick(examples, consensus, scores_before=None, scores_after=None, combined=None) -> dict[str, list]:
    """What a pick takes the highest of, by its name: N arrays [C_i] of each candidate's value.

    consensus: as `consensus_of` gives it. scores_before, scores_after: the scorer's before and after adapting, or None.
    combined: by name of the pick, the values of the scorer with other signals (`cappy.tasks.combining`). A pick that is
    not defined for every example, for want of log-likelihoods, is left out.
    """
    lengths = [np.array([float(len(text)) for text in example.candidates]) for example in examples]
    values = {'longest': lengths, 'shortest': [-own for own in lengths]}
    values |= {f'self-score {which}': _likelihoods(examples, which) for which in ('sum', 'mean')}
    values |= {'consensus': consensus, 'scorer before adapting': scores_before, ADAPTED: scores_after}
    return {name: own for name, own in (values | (combined or {})).items() if own is not None}


def rougeL_by_pick(examples, rougeL, values) -> dict[str, np.ndarray]:
    """rougeL [N] of every pick by its name, that of the random candidate first and that of the oracle last.

    values: as `values_by_pick` gives them. The first sample of a decoding that some example lacks is left out.
    """
    found = {'random candidate': random_rougeL(examples, rougeL)}
    for decoding in dict.fromkeys(name for example in examples for name in example.decodings):
        found[f'first of {decoding}'] = first_sample_rougeL(examples, rougeL, decoding)
    for name, own in values.items():
        which = name.removeprefix('self-score ')
        # Of equal likelihoods the first sample counts, which need not be the first candidate.
        found[name] = scorer_rougeL(rougeL, own) if which == name else self_score_rougeL(examples, rougeL, which)
    found['oracle'] = oracle_rougeL(rougeL)
    return {name: of_pick for name, of_pick in found.items() if of_pick is not None}


def count_ties(rougeL, values) -> dict[str, dict]:
    """How often several candidates have a pick's highest value, by name of the pick.

    values: as `values_by_pick` gives them; those that differ by SAME_SCORE or less count as the same, so that a scorer
    is not taken for alive by the noise of its sums (the picks themselves follow the noise). {'n_examples': N,
    'n_several': examples with several candidates, 'n_tied': those in which several have the highest value, 'n_alike':
    those in which all have the same, 'rougeL': the mean of rougeL where a pick is the mean over the candidates with the
    highest value}.
    """
    return {name: _count_ties(rougeL, own) for name, own in values.items() if name not in LENGTH_PICKS}


def sum_ties(parts: Sequence[dict]) -> dict:
    """The ties of one pick in several tasks or seeds as one: counts summed, rougeL averaged."""
    summed = {key: sum(ties[key] for ties in parts) for key in TIES}
    return summed | {'rougeL': summed['rougeL'] / len(parts)}


def describe_ties(ties: dict[str, dict]) -> list[str]:
    """What to say of ties, one line for each pick by the scorer and one for the others; ties: as `count_ties`."""
    lines, others = [], []
    for name, own in ties.items():
        if own['n_tied'] and name in SCORER_PICKS:
            lines.append(
                f'{name}: in {own["n_tied"]} of {own["n_examples"]} examples the highest score is shared by several '
                f'candidates; the first of them is picked ({100 * own["rougeL"]:.1f} over ties)'
            )
            if is_constant(own):
                lines[-1] += '. It gives all candidates of an example the same score, so it picks the first everywhere'
        elif own['n_tied']:
            others.append(f'{name} in {own["n_tied"]} ({100 * own["rougeL"]:.1f} over ties)')
    if others:
        n_examples = max(own['n_examples'] for own in ties.values())
        lines.append(f'the first of several highest values is picked by {"; ".join(others)} of {n_examples} examples')
    return lines


def is_constant(ties: dict) -> bool:
    """Whether a pick does not tell the candidates of any example apart; ties: its part of `count_ties`."""
    return 0 < ties['n_several'] == ties['n_alike']


def compare(
    rougeL_by_pick: dict[str, np.ndarray],
    ties: dict[str, dict] | None = None,
    others: dict[str, dict[str, np.ndarray]] | None = None,
) -> list[dict]:
    """The picks side by side, one row each.

    rougeL_by_pick: [N] by name, that of the random candidate first and that of the oracle last, as the function of that
    name returns them. ties: as `count_ties`. others: by name of another metric, what the same picks have by it. Rows
    {'name', 'rougeL', 'low', 'high', 'gap_closed', 'gap_low', 'gap_high', 'metrics'?, 'ties'?}: the mean and the gap
    closed, each with its interval over examples (None for the gap closed where there is no gap, and for the intervals
    of a single example), the means by the other metrics, and the pick's ties.
    """
    names, values = list(rougeL_by_pick), np.array(list(rougeL_by_pick.values()))
    means = bootstrap_means(values)
    rows = []
    for name, row, row_means in zip(names, values, means, strict=True):
        low, high = interval_of_mean(row, row_means)
        share = gap_closed(row, values[0], values[-1])
        gap_low, gap_high = None, None
        if share is not None and values.shape[1] > 1:
            gap_low, gap_high = _gap_interval(row, values[0], values[-1], row_means, means[0], means[-1])
        rows.append(
            {
                'name': name,
                'rougeL': float(row.mean()),
                'low': low,
                'high': high,
                'gap_closed': share,
                'gap_low': gap_low,
                'gap_high': gap_high,
                **({'metrics': {other: float(of[name].mean()) for other, of in others.items()}} if others else {}),
                **({'ties': ties[name]} if ties and name in ties else {}),
            }
        )
    return rows


def candidate_of_sample(example):
    """Index of each sample's response among the candidates, int [S_i]."""
    index = {response: number for number, response in enumerate(example.candidates)}
    return np.array([index[sample.response] for sample in example.samples])


def _likelihoods(examples, which):
    """The highest log-likelihood of each candidate's samples, -inf where none is known; None as `self_score_rougeL`."""
    found = []
    for example in examples:
        highest = np.full(len(example.candidates), -np.inf)
        known = [getattr(sample, f'log_likelihood_{which}') for sample in example.samples]
        for place, likelihood in zip(candidate_of_sample(example), known, strict=True):
            if likelihood is not None:
                highest[place] = max(highest[place], likelihood)
        if np.isneginf(highest).all():
            return None
        found.append(highest)
    return found


def _count_ties(rougeL, values):
    tied = [_tied_best(own) for own in values]
    n_tied = np.array([len(places) for places in tied])
    n_candidates = np.array([len(own) for own in values])
    return {
        'n_examples': len(values),
        'n_several': int((n_candidates > 1).sum()),
        'n_tied': int((n_tied > 1).sum()),
        'n_alike': int(((n_tied == n_candidates) & (n_candidates > 1)).sum()),
        'rougeL': float(np.mean([own[places].mean() for own, places in zip(rougeL, tied, strict=True)])),
    }


def _tied_best(values):
    """Indices of the candidates with the highest value; of values that are no numbers, the one that argmax takes."""
    tied = np.flatnonzero(np.max(values) - values <= SAME_SCORE)
    return tied if tied.size else [int(np.argmax(values))]


def _gap_interval(own, random, oracle, own_means, random_means, oracle_means):
    """Interval of the gap closed: over the resamples [n_resamples] that have a gap; of few examples by Student's t.

    own, random, oracle: float64 [N], and the means of their resamples.
    """
    if len(own) < FEW:
        share = gap_closed(own, random, oracle)
        # A ratio of means is, to first order, as uncertain as the mean of what its examples add to it.
        added = share + (own - random - share * (oracle - random)) / np.mean(oracle - random)
        return mean_interval(added)
    gaps = oracle_means - random_means
    has_gap = gaps > 1e-12
    return percentiles((own_means - random_means)[has_gap] / gaps[has_gap])
