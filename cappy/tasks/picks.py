"""Methods of picking one candidate of each example, and how much of the possible gain each achieves.

N examples; example i has C_i candidates (unique responses) and S_i samples, S_i >= C_i. `rougeL` is everywhere a list
of N float64 arrays [C_i], candidates in their order; results are float64 [N], one value per example, fractions. Where
several candidates are equally good by a method, it picks the first.

The picks, by the names that files and tables give them:

- random candidate: what a sample drawn at random is expected to have, the mean over all samples.
- first of D: the first sample of decoding D.
- self-score sum, self-score mean: the sample to which the generator itself gives the highest log-likelihood, summed or
  averaged over its tokens (the paper's self-scoring baseline).
- consensus: the candidate with the highest mean rougeL to the other samples (minimum Bayes risk decoding).
- scorer before adapting, scorer after adapting: the candidate with the highest score.
- oracle: the best candidate by its own rougeL. It knows the references, so it bounds every method.

Gap closed: the share of the way from the random candidate's mean to the oracle's that a method achieves.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cappy.tasks.candidates import Example, read_examples
from cappy.tasks.rouge import RougeL
from cappy.tasks.statistics import bootstrap_means, percentiles


@dataclass(frozen=True, slots=True)
class TaskBaselines:
    """What a task's samples give without a scorer.

    rougeL: mean rougeL by pick. n_candidates: candidates of all examples. n_unknown: samples without a log-likelihood,
    by 'sum' and 'mean'. example_ids: a digest that is equal where the examples are.
    """

    rougeL: dict[str, float]
    n_examples: int
    n_samples: int
    n_candidates: int
    n_unknown: dict[str, int]
    example_ids: str


def measure_file(path, src_key, tgt_key, refs_key, rouge_tokenizer) -> TaskBaselines:
    """The baselines of a file of examples. Raises InputError naming file, line and field."""
    examples = read_examples(path, src_key=src_key, tgt_key=tgt_key, refs_key=refs_key)
    rouge = _rouge(rouge_tokenizer)
    rougeL_by_pick = all_picks(examples, candidates_rougeL(examples, rouge), rouge)
    samples = [sample for example in examples for sample in example.samples]
    ids = sorted(repr(example.example_idx) for example in examples)
    return TaskBaselines(
        rougeL={name: float(np.mean(values)) for name, values in rougeL_by_pick.items()},
        n_examples=len(examples),
        n_samples=len(samples),
        n_candidates=sum(len(example.candidates) for example in examples),
        n_unknown={
            which: sum(getattr(sample, f'log_likelihood_{which}') is None for sample in samples)
            for which in ('sum', 'mean')
        },
        example_ids=hashlib.sha256('\n'.join(ids).encode()).hexdigest(),
    )


@lru_cache
def _rouge(tokenizer):
    return RougeL(tokenizer)  # one per process: the stems of one file serve the next


def candidates_rougeL(examples: Sequence[Example], rouge: RougeL) -> list[np.ndarray]:
    """Best rougeL over the references of each candidate, N arrays float64 [C_i]."""
    return [rouge.scores(example.references, example.candidates) for example in examples]


def random_rougeL(examples, rougeL) -> np.ndarray:
    """What a sample drawn at random is expected to have: the mean over all samples, with repetitions."""
    return np.array(
        [values[_candidate_of_sample(example)].mean() for example, values in zip(examples, rougeL, strict=True)]
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
        picked.append(values[_candidate_of_sample(example)[best]])
    return np.array(picked)


def consensus_rougeL(examples, rougeL, rouge: RougeL) -> np.ndarray:
    """That of the candidate with the highest mean rougeL to the other samples (minimum Bayes risk decoding)."""
    return np.array([values[consensus_pick(example, rouge)] for example, values in zip(examples, rougeL, strict=True)])


def consensus(example: Example, rouge: RougeL) -> np.ndarray:
    """Mean rougeL of each candidate to the other samples of the example, float64 [C_i]; 0 where there is no other.

    A response that was sampled k times is compared with itself k - 1 times.
    """
    counts = np.bincount(_candidate_of_sample(example))
    pairwise = rouge.pairwise(example.candidates)
    # Row by row, so that candidates of equal tokens have sums equal to the last bit; rounded, since the same terms in
    # another order give another last bit.
    sums = (pairwise * counts).sum(axis=1) - pairwise.diagonal()
    return np.round(sums, 9) / max(counts.sum() - 1, 1)


def consensus_pick(example: Example, rouge: RougeL) -> int:
    """Index of the candidate with the highest mean rougeL to the other samples of the example."""
    return int(np.argmax(consensus(example, rouge)))


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


def all_picks(examples, rougeL, rouge, scores_before=None, scores_after=None, blends=None) -> dict[str, np.ndarray]:
    """rougeL [N] of every pick by its name, that of the random candidate first and that of the oracle last.

    scores_before, scores_after: N arrays [C_i], the scorer's before and after adapting, or None. blends: such arrays by
    name of the pick, of the scorer with other signals (`cappy.tasks.blending`). A pick that is not defined for every
    example (a decoding that some lack, missing log-likelihoods) is left out.
    """
    rougeL_by_pick = {'random candidate': random_rougeL(examples, rougeL)}
    for decoding in dict.fromkeys(name for example in examples for name in example.decodings):
        rougeL_by_pick[f'first of {decoding}'] = first_sample_rougeL(examples, rougeL, decoding)
    for which in ('sum', 'mean'):
        rougeL_by_pick[f'self-score {which}'] = self_score_rougeL(examples, rougeL, which)
    rougeL_by_pick['consensus'] = consensus_rougeL(examples, rougeL, rouge)
    for when, scores in (('before', scores_before), ('after', scores_after)):
        rougeL_by_pick[f'scorer {when} adapting'] = None if scores is None else scorer_rougeL(rougeL, scores)
    rougeL_by_pick |= {name: scorer_rougeL(rougeL, scores) for name, scores in (blends or {}).items()}
    rougeL_by_pick['oracle'] = oracle_rougeL(rougeL)
    return {name: values for name, values in rougeL_by_pick.items() if values is not None}


def compare(rougeL_by_pick: dict[str, np.ndarray]) -> list[dict]:
    """The picks side by side, one row each.

    rougeL_by_pick: [N] by name, that of the random candidate first and that of the oracle last, as `all_picks` returns
    them. Rows {'name', 'rougeL', 'low', 'high', 'gap_closed', 'gap_low', 'gap_high'}: the mean and the gap closed, each
    with its interval over examples (None for the gap closed where there is no gap).
    """
    names, values = list(rougeL_by_pick), np.array(list(rougeL_by_pick.values()))
    means = bootstrap_means(values)
    rows = []
    for name, row, row_means in zip(names, values, means, strict=True):
        low, high = percentiles(row_means)
        share = gap_closed(row, values[0], values[-1])
        gap_low, gap_high = (None, None) if share is None else _gap_interval(row_means, means[0], means[-1])
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


def _candidate_of_sample(example):
    """Index of each sample's response among the candidates, int [S_i]."""
    index = {response: number for number, response in enumerate(example.candidates)}
    return np.array([index[sample.response] for sample in example.samples])


def _gap_interval(method_means, random_means, oracle_means):
    """Interval of the gap closed over the resamples [n_resamples] that have a gap."""
    gaps = oracle_means - random_means
    has_gap = gaps > 1e-12
    return percentiles((method_means - random_means)[has_gap] / gaps[has_gap])
