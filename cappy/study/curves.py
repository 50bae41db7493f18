"""What the pictures of a cell show: rougeL against the number of samples, and how scores relate to rougeL.

An example has S samples, some of which may be the same text. Sizes are numbers of samples, K of them. All values are
fractions, float64.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cappy.errors import InputError
from cappy.files.inputs import find
from cappy.study.results import ResultPaths, read_candidates
from cappy.tasks.candidates import Example, read_examples
from cappy.tasks.rouge import RougeL
from cappy.tasks.statistics import rank_correlation

N_SUBSETS = 32  # drawn per size and example for the consensus, whose pick depends on the whole subset
MAX_ENUMERATED = 150  # subsets of a size; up to as many, all are taken instead
N_BINS = 10


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one example: their scores, rougeL and log-likelihoods [S], and the rougeL between each two [S, S].

    likelihoods: -inf for a sample without one, None where no sample has one.
    """

    scores: np.ndarray
    rougeL: np.ndarray
    likelihoods: np.ndarray | None
    pairwise: np.ndarray


class Bin(NamedTuple):
    """A tenth of the candidates, neighbours by score: how many, their mean score and mean rougeL, and the lower and
    upper quartile of their rougeL.
    """

    n: int
    score: float
    rougeL: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How scores relate to rougeL.

    spearman: rank correlation over all candidates; within: its mean over the n_within examples whose scores and rougeL
    both vary; None where nothing varies. error: mean distance between a bin's score and rougeL, weighted by n.
    """

    spearman: float | None
    within: float | None
    n_within: int
    error: float
    bins: list[Bin]


def read_lines(path) -> list[dict]:
    """The lines of a candidates file. Raises InputError naming the lines that are broken."""
    return read_candidates(path)


def read_generator_file(paths: ResultPaths, lines: Sequence[dict], settings: dict, gens_dir=None):
    """The examples of a cell's lines of candidates, with instruction and samples; None where their file is missing.

    settings: those of the result, which name the file's fields, and its folder where gens_dir is None. Returns a list
    of candidates.Example. Raises InputError where they are not the examples that were scored.
    """
    settings = {name: value for name, value in settings.items() if isinstance(value, str)}  # others name nothing
    folder = gens_dir or settings.get('bigbench_gen_dir')
    path = find(Path(folder or '') / paths.generator / f'{paths.task}_validation.jsonl')
    if not folder or not path.exists():
        return None
    keys = {name: settings[name] for name in ('src_key', 'tgt_key', 'refs_key') if settings.get(name)}
    by_idx = {example.example_idx: example for example in read_examples(path, **keys)}
    examples = []
    for line in lines:
        example = by_idx.get(line['example_idx'])
        if example is None or set(example.candidates) != {candidate['response'] for candidate in line['candidates']}:
            where = f'{path}: example_idx {line["example_idx"]!r}'
            raise InputError(f'{where}: other samples than those in {paths.candidates}; were they drawn again since?')
        examples.append(example)
    return examples


def sample_curves_of_cell(paths: ResultPaths, result: dict, gens_dir=None, n_subsets=N_SUBSETS, seed=0):
    """(sizes, curves) as `sample_curves` returns them, and whether samples that were drawn twice count twice.

    They count once, and there is no self-score, where the generator's file is missing. Raises InputError where a file
    is broken.
    """
    lines, settings = read_lines(paths.candidates), result.get('settings') or {}
    examples = read_generator_file(paths, lines, settings, gens_dir)
    rouge = RougeL(settings.get('rouge_tokenizer') or 'default')
    samples = samples_of(lines, examples, rouge, paths.candidates)
    return *sample_curves(samples, n_subsets, seed), examples is not None


def read_scores(path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(scores, rougeL) of a candidates file, one array per line each. Raises InputError where the file is broken."""
    return scores_and_rougeL(read_lines(path), path)


def samples_of(lines: Sequence[dict], examples: Sequence[Example] | None, rouge: RougeL, path='') -> list[Samples]:
    """The samples of each line of candidates: as often as its example has them, or once each without examples.

    path: the file of the lines, for messages.
    """
    scores, rougeL = scores_and_rougeL(lines, path)
    samples = []
    for number, line in enumerate(lines):
        responses = [one['response'] for one in line['candidates']]
        unique = Samples(scores[number], rougeL[number], None, rouge.pairwise(responses))
        samples.append(unique if examples is None else _as_drawn(unique, responses, examples[number]))
    return samples


def sample_sizes(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, .. as long as 1.2 times a size is below `most`, and `most`."""
    sizes = sorted({step * 2**power for step in (2, 3) for power in range(most.bit_length())} | {1})
    return [size for size in sizes if 1.2 * size < most] + [most]


def sample_curves(samples: Sequence[Samples], n_subsets=N_SUBSETS, seed=0) -> tuple[list[int], dict[str, list[float]]]:
    """(sizes, {pick: mean rougeL at each size}) of a pick among so many samples, drawn without replacement.

    Those of scorer, self-score and oracle are exact; that of the consensus is over all subsets of a size, or over
    n_subsets seeded ones per example where there are many. An example with fewer samples takes all of them. The last
    value is that of all samples.
    """
    sizes = sample_sizes(max(len(example.rougeL) for example in samples))
    generator = np.random.default_rng(seed)
    by_pick = {'scorer': [], 'self-score sum': [], 'consensus': [], 'oracle': []}
    for example in samples:
        rougeL = example.rougeL
        own = tuple(min(size, len(rougeL)) for size in sizes)
        by_pick['scorer'].append(best_of_subsets(example.scores, rougeL, own))
        if example.likelihoods is not None:
            by_pick['self-score sum'].append(best_of_subsets(example.likelihoods, rougeL, own))
        by_pick['consensus'].append(consensus_of_subsets(example.pairwise, rougeL, own, n_subsets, generator))
        by_pick['oracle'].append(best_of_subsets(rougeL, rougeL, own))
    complete = {pick: values for pick, values in by_pick.items() if len(values) == len(samples)}
    return sizes, {pick: np.mean(values, axis=0).tolist() for pick, values in complete.items()}


def best_of_subsets(values, outcomes, sizes: tuple[int, ...]) -> np.ndarray:
    """Expected outcome [K] of the sample with the highest value, over all subsets of each size; of equals the first.

    values, outcomes: float64 [S]; sizes at most S.
    """
    return _best_weights(len(values), sizes) @ outcomes[np.argsort(-values, kind='stable')]


def consensus_of_subsets(pairwise, outcomes, sizes: tuple[int, ...], n_subsets, generator) -> np.ndarray:
    """Expected outcome [K] of the sample with the highest mean rougeL to the others of its subset.

    pairwise: float64 [S, S]; outcomes: float64 [S]; generator: numpy's, which draws n_subsets subsets of a size that
    has more than MAX_ENUMERATED.
    """
    n = len(outcomes)
    groups = [_all_subsets(n, size) for size in sizes]
    groups = [
        _drawn_subsets(n, size, n_subsets, generator) if group is None else group
        for size, group in zip(sizes, groups, strict=True)
    ]
    subsets = np.concatenate(groups)
    # Rounded as picks.consensus rounds, so that equal samples stay equal.
    sums = np.where(subsets, np.round(subsets @ pairwise - pairwise.diagonal(), 9), -np.inf)
    lengths = [len(group) for group in groups]
    starts = np.cumsum([0, *lengths[:-1]])
    return np.add.reduceat(outcomes[np.argmax(sums, axis=1)], starts) / lengths


def calibrate(scores: Sequence, rougeL: Sequence, n_bins=N_BINS) -> Calibration:
    """How scores relate to rougeL; scores, rougeL: one array per example, of its candidates."""
    correlations = [rank_correlation(s, r) for s, r in zip(scores, rougeL, strict=True)]
    known = [correlation for correlation in correlations if correlation is not None]
    scores, rougeL = np.concatenate(scores), np.concatenate(rougeL)
    order = np.argsort(scores, kind='stable')
    bins = [
        Bin(len(part), float(scores[part].mean()), float(rougeL[part].mean()), *_quartiles(rougeL[part]))
        for part in np.array_split(order, min(n_bins, len(order)))
    ]
    error = sum(group.n * abs(group.score - group.rougeL) for group in bins) / len(order)
    within = float(np.mean(known)) if known else None
    return Calibration(rank_correlation(scores, rougeL), within, len(known), error, bins)


def _quartiles(values):
    return tuple(float(value) for value in np.quantile(values, [0.25, 0.75]))


def scores_and_rougeL(lines: Sequence[dict], path='') -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(scores, rougeL), one array per line of candidates each; path: the file of the lines, for messages."""
    by_key = {'score': [], 'rougeL': []}
    for number, line in enumerate(lines, start=1):
        for key, values in by_key.items():
            try:
                values.append(np.array([candidate[key] for candidate in line['candidates']], np.float64))
            except (TypeError, ValueError) as error:
                raise InputError(f'{path}:{number}: a {key} is not a number ({error})') from error
    return by_key['score'], by_key['rougeL']


def _as_drawn(unique, responses, example):
    """The samples of the example, repeated ones as often as they were drawn; unique: those of its different texts."""
    place = {response: number for number, response in enumerate(responses)}
    index = np.array([place[sample.response] for sample in example.samples])
    known = [sample.log_likelihood_sum for sample in example.samples]
    likelihoods = np.array([-np.inf if value is None else value for value in known])
    are_known = np.isfinite(likelihoods).any()
    pairwise = unique.pairwise[np.ix_(index, index)]
    return Samples(unique.scores[index], unique.rougeL[index], likelihoods if are_known else None, pairwise)


@lru_cache
def _best_weights(n, sizes):
    """Probability [K, n] that the sample of rank r (from 0) is the best of a random subset: C(n-1-r, k-1) / C(n, k)."""
    return np.array([[math.comb(n - 1 - rank, size - 1) / math.comb(n, size) for rank in range(n)] for size in sizes])


@lru_cache
def _all_subsets(n, size):
    """Membership of samples in subsets, 0 or 1, float64 [subsets, n]; None where there are too many subsets."""
    if math.comb(n, size) > MAX_ENUMERATED:
        return None
    return _members(n, np.array(list(itertools.combinations(range(n), size))))


def _drawn_subsets(n, size, n_subsets, generator):
    return _members(n, np.argsort(generator.random((n_subsets, n)), axis=1)[:, :size])


def _members(n, chosen):
    members = np.zeros((len(chosen), n))
    np.put_along_axis(members, chosen, 1, axis=1)
    return members
