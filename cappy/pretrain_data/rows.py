"""Rows to pretrain on, made from instances: right and wrong choices, references, and responses labelled by rougeL.

Every draw comes from a generator of its own, seeded by (seed, template, number of the instance), so that an instance's
rows do not depend on what else is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from cappy.pretrain_data.alterations import ALTERATIONS
from cappy.pretrain_data.instances import Instance
from cappy.tasks.rouge import RougeL

CHOICE, REFERENCE, OTHER, SAMPLE = 'choice', 'reference', 'other', 'sample'
SOURCES = (CHOICE, REFERENCE, OTHER, SAMPLE, *ALTERATIONS)  # in the order of the tables
N_NEAR = 8  # instances to each side from which the first of the others is drawn
_MOST_DRAWS = 20  # tries to find responses that differ


class Row(NamedTuple):
    """A pair and how correct its response is, 0 to 1."""

    template: str
    source: str
    instruction: str
    response: str
    label: float


@dataclass(frozen=True, slots=True)
class RowMaker:
    """What rows an instance gets. rouge: a RougeL. max_wrong_choices: None keeps all."""

    rouge: RougeL
    seed: int
    max_wrong_choices: int | None
    n_others: int
    n_altered: int
    max_samples: int

    def choice_rows(self, instance: Instance, choices: Sequence[str], all_choices=False) -> list[Row]:
        """Of a choice instance: its references (1) and wrong choices (0), in the order of the choices."""
        right = {folded(reference) for reference in instance.references}
        wrong = [choice for choice in choices if folded(choice) not in right]
        if self.max_wrong_choices is not None and not all_choices and len(wrong) > self.max_wrong_choices:
            wrong = self._random(instance).sample(wrong, self.max_wrong_choices)
        kept = set(wrong)
        return [
            _row(instance, CHOICE, choice, float(choice not in kept))
            for choice in choices
            if choice in kept or choice in instance.references
        ]

    def text_rows(self, window: Sequence[Instance], i) -> list[Row]:
        """Of the window's i-th instance, a generative one: references and samples; without samples, others' responses
        and altered references.

        One of the others comes from an instance near by, which in most data sets is about the same text; the rest from
        the whole window. Empty where rougeL reads no word of a reference (a script other than Latin, without the
        tokenizer `unicode`), since all labels would be 0 then.
        """
        instance, random = window[i], self._random(window[i])
        known = set(instance.references)
        found = [(SAMPLE, text) for text in self._draw_samples(instance, known, random)]
        if not instance.samples:
            found += [(OTHER, text) for text in self._draw_others(window, i, known, random)]
            found += self._alter(window, i, known, random)
        found = [(REFERENCE, text) for text in instance.references] + found
        labels = self.rouge.scores(instance.references, [text for _, text in found])
        if not labels[: len(instance.references)].all():
            return []
        return [_row(instance, source, text, float(label)) for (source, text), label in zip(found, labels, strict=True)]

    def _random(self, instance):
        return Random(f'{self.seed}:{instance.template}:{instance.number}')

    def _draw_samples(self, instance, known, random):
        samples = [text for text in dict.fromkeys(instance.samples) if text not in known]
        samples = samples if len(samples) <= self.max_samples else random.sample(samples, self.max_samples)
        known.update(samples)
        return samples

    def _draw_others(self, window, i, known, random):
        others = []
        for number in range(self.n_others):
            places = (max(i - N_NEAR, 0), min(i + N_NEAR + 1, len(window))) if not number else (0, len(window))
            for _ in range(_MOST_DRAWS):
                text = random.choice(window[random.randrange(*places)].references)
                if text not in known:
                    known.add(text)
                    others.append(text)
                    break
        return others

    def _alter(self, window, i, known, random):
        """(source, text) of each altered reference, each in a way of its own."""
        altered = []
        for source in random.sample(list(ALTERATIONS), len(ALTERATIONS)):
            if len(altered) == self.n_altered:
                break
            other = random.choice(window[random.randrange(len(window))].references)
            text = ALTERATIONS[source](random.choice(window[i].references), other, random)
            if text and text not in known:
                known.add(text)
                altered.append((source, text))
        return altered


def _row(instance, source, response, label):
    return Row(instance.template, source, instance.instruction, response, label)


def folded(text):
    """The text with case and white space aside."""
    return ' '.join(text.casefold().split())
