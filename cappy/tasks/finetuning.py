"""The labelled pairs that a scorer is finetuned on, built from a task's train split."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cappy.errors import InputError
from cappy.tasks.candidates import Example, Sample
from cappy.tasks.metrics import find_metric, labels_of

REFERENCE_LABELS = ('one', 'leave_one_out', 'skip')


@dataclass(frozen=True, slots=True)
class FinetuningExample:
    """A pair of instruction and response, and its label: how correct the response is, 0 to 1."""

    instruction: str
    response: str
    label: float


def build_finetuning_examples(
    examples: Sequence[Example],
    train_size: int,
    seed: int,
    metric,
    reference_labels: str = 'one',
) -> list[FinetuningExample]:
    """Label references, references of other instructions, and samples; shuffle; repeat or cut to train_size pairs.

    reference_labels: 'one' labels a reference 1 and, as the paper does, a reference of another instruction 0;
    'leave_one_out' labels a reference by its rougeL against the others of its example (1 where it is the only one);
    'skip' uses samples only. A sample has its own label or, where the file has none, its best rougeL over the
    references, or what another metric gives (`cappy.tasks.metrics`). The pairs and their order are
    those of the reference implementation (cappy_bigbench.py:15-57), which joins pairs by '|||' to compare them where we
    compare tuples: there, a text that holds '|||' can lose a sample. Raises InputError where train_size is below 1 or
    there is no pair.
    """
    if train_size < 1:
        raise InputError(f'train_size {train_size}: expected 1 or more')
    if reference_labels not in REFERENCE_LABELS:
        raise InputError(f'reference_labels {reference_labels!r}: choose one of {", ".join(REFERENCE_LABELS)}')
    generator = random.Random(seed)
    seen, built = set(), []
    if reference_labels != 'skip':
        built += _positives(examples, metric, reference_labels)
        seen.update((positive.instruction, positive.response) for positive in built)
        built += _negatives(built, examples, generator, seen)
    built += _labelled_samples(examples, metric, seen)
    if not built:
        raise InputError('the train split gives no finetuning examples; it needs references or samples')
    generator.shuffle(built)
    n_repeats = -(-train_size // len(built))
    return (built * n_repeats)[:train_size]


def label_samples(
    instructions: Sequence[str],
    samples: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    metric: str = 'rougeL',
) -> list[FinetuningExample]:
    """Finetuning examples, as `Cappy.adapt` takes them, from samples and references that a program has.

    samples, references: those of each instruction. metric: a name as `cappy.tasks.metrics.find_metric` takes it. Equal
    samples of an instruction become one example. Raises InputError where the lists differ in length, or an
    instruction has no sample or no reference.
    """
    found = find_metric(metric)
    if not len(instructions) == len(samples) == len(references):
        raise InputError(
            f'found {len(instructions)} instructions, samples of {len(samples)} and references of {len(references)}; '
            'give a list of samples and a list of references for each instruction'
        )
    examples = []
    for number, (instruction, texts, wanted) in enumerate(zip(instructions, samples, references, strict=True)):
        for name, given in (('samples', texts), ('references', wanted)):
            if isinstance(given, str) or not given or not all(isinstance(text, str) for text in given):
                raise InputError(f'{name} of instruction {number}: found {str(given)[:60]!r}; give a list of texts')
        drawn = tuple(Sample(text, 'sample') for text in texts)
        examples.append(Example(None, number, instruction, tuple(wanted), drawn))
    return _labelled_samples(examples, found, set())


def check_can_teach(examples: Sequence[FinetuningExample], objective: str = 'absolute'):
    """Raise InputError where all labels are equal: a scorer then learns one number, whatever the response is.

    For an objective that is about differences within an instruction, where each instruction's labels are equal.
    """
    of_instruction = {}
    for example in examples:
        of_instruction.setdefault(example.instruction, set()).add(example.label)
    if objective != 'absolute' and all(len(labels) == 1 for labels in of_instruction.values()):
        raise InputError(
            f'objective {objective}: none of {len(of_instruction)} training instructions has two responses with '
            'different labels, so there is no difference to learn; draw more samples, or take objective absolute'
        )
    labels = {example.label for example in examples}
    if len(labels) == 1:
        raise InputError(
            f'the train split gives all {len(examples)} finetuning examples the label {labels.pop():g}, from which no '
            'scorer can learn to tell responses apart; look at its references and samples'
        )


def _positives(examples, metric, reference_labels):
    """Each reference of each example; duplicates stay, as in the reference implementation (cappy_bigbench.py:25-29)."""
    positives = []
    for example in examples:
        labels = [1.0] * len(example.references)
        if reference_labels == 'leave_one_out':
            labels = _leave_one_out_labels(example.references, metric)
        positives += [
            FinetuningExample(example.instruction, reference, label)
            for reference, label in zip(example.references, labels, strict=True)
        ]
    return positives


def _leave_one_out_labels(references, metric):
    if len(references) == 1:
        return [1.0]
    against = metric.agreement(references)
    np.fill_diagonal(against, -1.0)
    return against.max(axis=1).tolist()


def _negatives(positives, examples, generator, seen):
    """For each positive one reference drawn from all, kept where the pair is new.

    The draw is made whether it is kept or not, so that the later draws are those of the reference implementation
    (cappy_bigbench.py:31-36).
    """
    references = sorted({reference for example in examples for reference in example.references})
    negatives = []
    for positive in positives:
        pair = (positive.instruction, generator.choice(references))
        if pair not in seen:
            seen.add(pair)
            negatives.append(FinetuningExample(*pair, 0.0))
    return negatives


def _labelled_samples(examples, metric, seen):
    """Every sample whose pair is new, with its label; one that was drawn as a negative keeps its 0."""
    labelled = []
    for example in examples:
        labels = labels_of(metric, example).tolist()
        for response, label in zip(example.candidates, labels, strict=True):
            if (example.instruction, response) not in seen:
                seen.add((example.instruction, response))
                labelled.append(FinetuningExample(example.instruction, response, label))
    return labelled
