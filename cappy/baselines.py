"""Ways of picking one candidate of each example, and how much of what can be gained each gains.

N examples; example i has C_i candidates (unique responses) and S_i samples, S_i >= C_i. `rougeL` is
everywhere a list of N float64 arrays [C_i], candidates in their order; results are float64 [N], an
example each, fractions. Where several candidates are equally good to a way of picking, it takes the
first.
"""

from collections.abc import Sequence

import numpy as np

from cappy.candidates import Example
from cappy.rouge import RougeL

N_RESAMPLES = 10_000
_DRAWS_AT_ONCE = 4_000_000  # bounds the memory of a bootstrap to some 64 MB


def candidates_rougeL(examples: Sequence[Example], rouge: RougeL) -> list[np.ndarray]:
    """Best rougeL over the references of each candidate, N arrays float64 [C_i]."""
    return [rouge.scores(example.references, example.candidates) for example in examples]


def random_rougeL(examples, rougeL) -> np.ndarray:
    """What a sample drawn at random is expected to have: the mean over all samples, repeated ones
    counted.
    """
    return np.array(
        [values[_candidate_of_sample(example)].mean() for example, values in zip(examples, rougeL, strict=True)]
    )


def first_sample_rougeL(examples, rougeL, decoding) -> np.ndarray | None:
    """The decoding's first sample; None where an example has no sample of it."""
    picked = []
    for example, values in zip(examples, rougeL, strict=True):
        samples = (sample for sample in example.samples if sample.decoding == decoding)
        first = next(samples, None)
        if first is None:
            return None
        picked.append(values[example.candidates.index(first.response)])
    return np.array(picked)


def self_score_rougeL(examples, rougeL, which) -> np.ndarray | None:
    """The sample that the generator itself finds likeliest.

    which: 'sum' or 'mean' of the log-likelihoods of its tokens. Samples without a log-likelihood
    are passed over; None where an example has none with one.
    """
    picked = []
    for example, values in zip(examples, rougeL, strict=True):
        likelihoods = [getattr(sample, f'log_likelihood_{which}') for sample in example.samples]
        if all(likelihood is None for likelihood in likelihoods):
            return None
        best = np.argmax([-np.inf if likelihood is None else likelihood for likelihood in likelihoods])
        picked.append(values[_candidate_of_sample(example)[best]])
    return np.array(picked)


def consensus_rougeL(examples, rougeL, rouge: RougeL) -> np.ndarray:
    """The candidate with the highest mean rougeL to the other samples, known as minimum Bayes risk
    decoding.
    """
    return np.array([values[consensus_pick(example, rouge)] for example, values in zip(examples, rougeL, strict=True)])


def consensus_pick(example: Example, rouge: RougeL) -> int:
    """Index of the candidate with the highest mean rougeL to the other samples of the example.

    A response sampled k times meets itself k - 1 times.
    """
    counts = np.bincount(_candidate_of_sample(example))
    pairwise = rouge.pairwise(example.candidates)
    # Row by row, so that candidates of equal tokens have sums equal to the last bit; rounded, since
    # the same terms in another order make another last bit.
    sums = (pairwise * counts).sum(axis=1) - pairwise.diagonal()
    return int(np.argmax(np.round(sums, 9)))


def scorer_rougeL(rougeL, scores) -> np.ndarray:
    """The candidate of the highest score; scores: N arrays [C_i]."""
    return np.array([values[np.argmax(s)] for values, s in zip(rougeL, scores, strict=True)])


def oracle_rougeL(rougeL) -> np.ndarray:
    """The best candidate there is."""
    return np.array([values.max() for values in rougeL])


def bootstrap_means(values, n_resamples=N_RESAMPLES, seed=0) -> np.ndarray:
    """Means over examples drawn with replacement, the same draws for every row.

    values: float64 [M, N]. Returns float64 [M, n_resamples].
    """
    values = np.atleast_2d(np.asarray(values, np.float64))
    n = values.shape[1]
    generator = np.random.default_rng(seed)
    chunk = max(1, _DRAWS_AT_ONCE // n)
    means = []
    for start in range(0, n_resamples, chunk):
        n_rows = min(chunk, n_resamples - start)
        drawn = generator.integers(n, size=(n_rows, n)) + n * np.arange(n_rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n_rows * n).reshape(n_rows, n)
        means.append(values @ counts.T / n)
    return np.concatenate(means, axis=1)


def bootstrap_interval(values, confidence=0.95, n_resamples=N_RESAMPLES, seed=0) -> tuple[float, float]:
    """Percentile interval (low, high) of the mean of values [N] over examples drawn with
    replacement.
    """
    return _percentiles(bootstrap_means(values, n_resamples, seed)[0], confidence)


def gap_closed(method, random, oracle) -> float | None:
    """Share of the way from the random candidate's mean to the oracle's that a method goes; None
    without a way.

    method, random, oracle: float64 [N]. Below 0 where the method is worse than random.
    """
    gap = np.mean(oracle) - np.mean(random)
    # Both are means of the same numbers where all candidates are equal; they then differ by
    # rounding.
    return float((np.mean(method) - np.mean(random)) / gap) if gap > 1e-12 else None


def gap_closed_interval(
    method, random, oracle, confidence=0.95, n_resamples=N_RESAMPLES, seed=0
) -> tuple[float | None, float | None]:
    """Percentile interval (low, high) of `gap_closed`; resamples without a gap are left out."""
    if gap_closed(method, random, oracle) is None:
        return None, None
    return _gap_interval(*bootstrap_means([method, random, oracle], n_resamples, seed), confidence)


def comparison(
    examples: Sequence[Example],
    rougeL,
    rouge: RougeL,
    scores_before=None,
    scores_after=None,
    confidence=0.95,
    n_resamples=N_RESAMPLES,
    seed=0,
) -> list[dict]:
    """All ways of picking side by side, the random candidate first and the oracle last.

    scores_before, scores_after: N arrays [C_i], the scorer's before and after adapting, or None.
    Rows {'name', 'rougeL', 'low', 'high', 'gap_closed', 'gap_low', 'gap_high'}: the mean with its
    interval, the share of the random-to-oracle gap with its own (None where there is no gap). A way
    that does not apply to every example (a decoding that some lack, log-likelihoods that are not
    there) is left out.
    """
    picked = _all_picks(examples, rougeL, rouge, scores_before, scores_after)
    names, values = list(picked), np.array(list(picked.values()))
    means = bootstrap_means(values, n_resamples, seed)
    rows = []
    for name, row, row_means in zip(names, values, means, strict=True):
        low, high = _percentiles(row_means, confidence)
        share = gap_closed(row, values[0], values[-1])
        gap_low, gap_high = (None, None) if share is None else _gap_interval(row_means, means[0], means[-1], confidence)
        rows.append(
            {
                'name': name,
                'rougeL': float(row.mean()),
                'low': low,
                'high': high,
                'gap_closed': share,
                'gap_low': gap_low,
                'gap_high': gap_high,
            }
        )
    return rows


def _all_picks(examples, rougeL, rouge, scores_before, scores_after):
    """rougeL [N] of each way of picking that applies, by name."""
    picked = {'random candidate': random_rougeL(examples, rougeL)}
    for decoding in dict.fromkeys(name for example in examples for name in example.decodings):
        picked[f'first of {decoding}'] = first_sample_rougeL(examples, rougeL, decoding)
    for which in ('sum', 'mean'):
        picked[f'self-score {which}'] = self_score_rougeL(examples, rougeL, which)
    picked['consensus'] = consensus_rougeL(examples, rougeL, rouge)
    for when, scores in (('before', scores_before), ('after', scores_after)):
        picked[f'scorer {when} adapting'] = None if scores is None else scorer_rougeL(rougeL, scores)
    picked['oracle'] = oracle_rougeL(rougeL)
    return {name: values for name, values in picked.items() if values is not None}


def _candidate_of_sample(example):
    """Index of each sample's response among the candidates, int [S_i]."""
    index = {response: number for number, response in enumerate(example.candidates)}
    return np.array([index[sample.response] for sample in example.samples])


def _gap_interval(method_means, random_means, oracle_means, confidence):
    gaps = oracle_means - random_means
    has_gap = gaps > 1e-12
    return _percentiles((method_means - random_means)[has_gap] / gaps[has_gap], confidence)


def _percentiles(values, confidence):
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
