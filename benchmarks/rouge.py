"""rougeL of many candidates of the same instructions: cappy.tasks.rouge against the rouge_score package.

    python benchmarks/rouge.py
    python benchmarks/rouge.py --gens_file bigbench_flan_gens/flan-t5-xxl/operators_validation.jsonl

Both score every candidate against all references of its instruction and take the best, in one process. Ours starts each
repetition with an empty cache ('cold') or with the cache of the one before ('warm'). Prints the median seconds, the
ratio, and the largest difference, which must be 0. Figures are in docs/benchmarks.md.
"""

import platform
import random
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli.flags import run
from cappy.tasks.candidates import Example, Sample, read_examples
from cappy.tasks.rouge import RougeL

SYLLABLES = 'ba ce di fo gu la me ni po ru sta tre vi wor shing tion ed ing able ly'


def made_up_examples(n_instructions, n_candidates, n_references, n_words, seed=0):
    """Examples whose references and candidates are one text with words replaced and two swapped.

    The frequency of a word falls with its rank, as in a language.
    """
    generator = random.Random(seed)
    syllables = SYLLABLES.split()
    vocabulary = [''.join(generator.choices(syllables, k=1 + rank % 4)) for rank in range(5000)]
    frequencies = [1 / (1 + rank) for rank in range(5000)]

    def altered(words):
        others = generator.choices(vocabulary, frequencies, k=len(words))
        words = [generator.choice([word, word, other]) for word, other in zip(words, others, strict=True)]
        i, j = (generator.randrange(len(words)) for _ in range(2))
        words[i], words[j] = words[j], words[i]
        return ' '.join(words).capitalize() + '.'

    examples = []
    for number in range(n_instructions):
        words = generator.choices(vocabulary, frequencies, k=n_words)
        references = tuple(altered(words) for _ in range(n_references))
        samples = tuple(Sample(altered(words), 'sampling') for _ in range(n_candidates))
        examples.append(Example(None, number, f'instruction {number}', references, samples))
    return examples


def median_seconds(score, n_repeats):
    seconds = []
    for _ in range(n_repeats):
        start = time.perf_counter()
        score()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main(
    gens_file: str | None = None,  # a file of examples with samples; default: made-up texts
    n_instructions=300,  # of the made-up texts; of a file, the first ones up to this number
    n_candidates=17,  # per instruction, made up
    n_references=2,  # per instruction, made up
    n_words=20,  # per text, made up
    n_repeats=3,  # repetitions, of which the median is printed
):
    """Time rougeL of all candidates, ours and rouge_score's."""
    if gens_file is None:
        examples = made_up_examples(n_instructions, n_candidates, n_references, n_words)
    else:
        examples = read_examples(gens_file)[:n_instructions]
    theirs, warm = RougeScorer(['rougeL'], use_stemmer=True), RougeL()

    def score_with_rouge_score():
        return [
            theirs.score_multi(example.references, response)['rougeL'].fmeasure
            for example in examples
            for response in example.candidates
        ]

    def score_with(rouge):
        return np.concatenate([rouge.scores(example.references, example.candidates) for example in examples])

    # The first call imports the stemmer and fills the warm cache; not timed.
    difference = np.abs(score_with(warm) - score_with_rouge_score()).max()
    seconds = {
        'rouge_score': median_seconds(score_with_rouge_score, n_repeats),
        'ours, cold': median_seconds(lambda: score_with(RougeL()), n_repeats),
        'ours, warm': median_seconds(lambda: score_with(warm), n_repeats),
    }
    n_scores = sum(len(example.candidates) for example in examples)
    n_pairs = sum(len(example.candidates) * len(example.references) for example in examples)
    print(f'{platform.machine()}, Python {platform.python_version()}', end='')
    print(''.join(f', {name} {version(name)}' for name in ('rouge-score', 'nltk', 'rapidfuzz')))
    print(
        f'{n_scores} candidates of {len(examples)} instructions, {n_pairs} pairs of reference and '
        f'candidate, median of {n_repeats}'
    )
    for name, s in seconds.items():
        ratio = seconds['rouge_score'] / s
        print(f'{name:12} {s:9.4f} s {n_pairs / s:11.0f} pairs/s {ratio:8.1f}x')
    print(f'largest difference {difference}')


if __name__ == '__main__':
    run(main)
