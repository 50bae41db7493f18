"""Labelled pairs from instances: right and wrong choices, references, and other responses labelled by rougeL.

Every instance has a random generator of its own, seeded by (seed, template, number of the instance), so that its pairs
do not depend on what else is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from cappy.pretrain_data.alterations import ALTERATIONS
from cappy.pretrain_data.instances import Instance
from cappy.pretrain_data.labelled_pairs import CHOICE, OTHER, REFERENCE, SAMPLE, LabelledPair, folded
from cappy.tasks.rouge import RougeL

N_NEAR = 8  # instances to each side from which the first of the others' responses is drawn
_MAX_DRAWS = 20  # attempts to draw a response that the instance does not have yet


@dataclass(frozen=True, slots=True)
class PairMaker:
    """Makes the pairs of an instance.

    max_wrong_choices: of a choice instance; None keeps all. n_others: responses of other instances, n_altered: altered
    references, both for an instance that has no samples. max_samples: of an instance that has some.
    """

    rouge: RougeL
    seed: int
    max_wrong_choices: int | None
    n_others: int
    n_altered: int
    max_samples: int

    def choice_pairs(self, instance: Instance, choices: Sequence[str], all_choices=False) -> list[LabelledPair]:
        """The pairs of a choice instance: its references (1) and wrong choices (0), in the order of the choices."""
        right = {folded(reference) for reference in instance.references}
        wrong = [choice for choice in choices if folded(choice) not in right]
        if self.max_wrong_choices is not None and not all_choices and len(wrong) > self.max_wrong_choices:
            wrong = self._random(instance).sample(wrong, self.max_wrong_choices)
        wrong = set(wrong)
        return [
            _pair(instance, CHOICE, choice, float(choice not in wrong))
            for choice in choices
            if choice in wrong or choice in instance.references
        ]

    def text_pairs(self, instances: Sequence[Instance], i) -> list[LabelledPair]:
        """The pairs of instances[i], a generative instance; the others are of its template.

        They are its references and samples or, without samples, its references, responses of the other instances and
        altered references. The first of the others' responses comes from an instance near by, which in most data sets
        is about the same text; the rest from any of the instances. Empty where rougeL finds no word in a reference, or
        does not read most of its letters (a script other than Latin, without the tokenizer `unicode`), since labels
        would be 0, or those of its digits, then.
        """
        instance, random = instances[i], self._random(instances[i])
        known = set(instance.references)
        found = [(SAMPLE, text) for text in self._draw_samples(instance, known, random)]
        if not instance.samples:
            found += [(OTHER, text) for text in self._draw_others(instances, i, known, random)]
            found += self._alter(instances, i, known, random)
        found = [(REFERENCE, text) for text in instance.references] + found
        labels = self.rouge.scores(instance.references, [text for _, text in found])
        is_read = labels[: len(instance.references)].all() and not any(map(self.rouge.is_unread, instance.references))
        if not is_read:
            return []
        return [
            _pair(instance, source, text, float(label)) for (source, text), label in zip(found, labels, strict=True)
        ]

    def _random(self, instance):
        return Random(f'{self.seed}:{instance.template}:{instance.number}')

    def _draw_samples(self, instance, known, random):
        samples = [text for text in dict.fromkeys(instance.samples) if text not in known]
        samples = samples if len(samples) <= self.max_samples else random.sample(samples, self.max_samples)
        known.update(samples)
        return samples

    def _draw_others(self, instances, i, known, random):
        others = []
        for number in range(self.n_others):
            is_near = number == 0
            bounds = (max(i - N_NEAR, 0), min(i + N_NEAR + 1, len(instances))) if is_near else (0, len(instances))
            for _ in range(_MAX_DRAWS):
                text = random.choice(instances[random.randrange(*bounds)].references)
                if text not in known:
                    known.add(text)
                    others.append(text)
                    break
        return others

    def _alter(self, instances, i, known, random):
        """(source, text) of each altered reference, no two altered in the same way."""
        altered = []
        for source in random.sample(list(ALTERATIONS), len(ALTERATIONS)):
            if len(altered) == self.n_altered:
                break
            other = random.choice(instances[random.randrange(len(instances))].references)
            text = ALTERATIONS[source](random.choice(instances[i].references), other, random)
            if text and text not in known:
                known.add(text)
                altered.append((source, text))
        return altered


def _pair(instance, source, response, label):
    return LabelledPair(instance.instruction, response, label, instance.template, source)
