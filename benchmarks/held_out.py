"""Scorers on held-out templates: squared error, right choices, rank correlation, against chance and the first scorer.

    python benchmarks/held_out.py --models minilm,pretrained_scorer/best,pretrained_scorer/last

`heldout_file` is the one that `scripts/get_pretrain_data.py` writes, or has its form. Chance is one score for all pairs
(the mean label), a choice drawn at random, and no order. Intervals are 95% bootstrap intervals over instances, paired
where two scorers are compared. `groups` adds the accuracy of templates whose names begin with the same letters.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy import Cappy
from cappy.cli import flags, tables
from cappy.errors import InputError
from cappy.pretrain_data import evaluation


def main(
    models: flags.Names,  # folders or hub names; the first is the one that the others are compared with
    heldout_file='pretrain_data/heldout.jsonl',
    groups: flags.Names | None = None,  # beginnings of the names of templates
    max_length=256,  # tokens per pair
    seed=11111,  # of the head of a model that has none
):
    """Judge each scorer and print the tables."""
    held_out = evaluation.read_held_out(Path(heldout_file))
    pairs = [(pair.instruction, pair.response) for pair in held_out.pairs]
    judgements = {}
    for model in models:
        scorer = Cappy.from_pretrained(model, max_length=max_length, seed=seed)
        judgements[model] = evaluation.judge(held_out, scorer.score(pairs, progress=model))
    rows = []
    for model, judgement in judgements.items():
        for row in evaluation.compare(held_out, judgements[models[0]], judgement):
            cells = {'scorer': model, 'measure': row['measure'].replace('_', ' '), 'instances': row['instances']}
            cells['chance'] = f'{row["chance"]:.3f}'
            for title, name in (('value', 'after'), ('over the first', 'gain'), ('over chance', 'above_chance')):
                cells[title] = evaluation.with_interval(row, name)
            rows.append(cells)
    print(tables.format_table(rows, list(rows[0])))
    if groups:
        print()
        print(by_group(held_out, judgements, groups))


def by_group(held_out, judgements, groups):
    """A table with the accuracy of every scorer, and of chance, in each group of templates."""
    judgements = {'chance': evaluation.chance(held_out), **judgements}
    rows = []
    for group in groups:
        of_group = held_out.is_choice & np.array([template.startswith(group) for template in held_out.templates])
        if not of_group.any():
            raise InputError(f'--groups: no held-out template with choices begins with {group!r}')
        row = {'group': group, 'instances': int(of_group.sum())}
        rows.append(row | {name: f'{judged.accuracy[of_group].mean():.3f}' for name, judged in judgements.items()})
    return tables.format_table(rows, list(rows[0]))


if __name__ == '__main__':
    flags.run(main)
