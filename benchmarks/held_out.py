"""Scorers on held-out templates: squared error, right choices, rank correlation, against chance and the first scorer.

    python benchmarks/held_out.py --models MINILM,pretrained_scorer/best,pretrained_scorer/last

`heldout_file` is one of `scripts/get_pretrain_data.py`, or of its form. Chance is one score for all rows (the
mean label), a choice drawn blindly, no order. 95% bootstrap intervals over instances, paired where two are compared.
`groups` adds the accuracy of templates whose names begin alike.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy import Cappy
from cappy.cli import tables
from cappy.cli.flags import run
from cappy.errors import InputError
from cappy.pretrain_data import evaluation


def main(
    models='',  # folders or hub names, with commas between; the others are compared with the first
    heldout_file='pretrain_data/heldout.jsonl',
    groups='',  # beginnings of templates' names, with commas between
    max_length=256,  # tokens
    seed=11111,  # of a fresh head
):
    """Judge each scorer and print tables."""
    if not models:
        raise InputError('--models: name one or more, with commas between')
    held_out = evaluation.read_held_out(Path(heldout_file))
    pairs = [row[:2] for row in held_out.rows]
    judged = {}
    for model in models.split(','):
        scorer = Cappy.from_pretrained(model, max_length=max_length, seed=seed)
        judged[model] = evaluation.judge(held_out, scorer.score(pairs, progress=model))
    rows = []
    for model, judgement in judged.items():
        for row in evaluation.compare(held_out, next(iter(judged.values())), judgement):
            shown = {'scorer': model, 'measure': row['measure'].replace('_', ' '), 'instances': row['instances']}
            shown['chance'] = f'{row["chance"]:.3f}'
            for title, name in (('value', 'after'), ('over the first', 'gain'), ('over chance', 'above_chance')):
                shown[title] = evaluation.with_interval(row, name)
            rows.append(shown)
    print(tables.format_table(rows, list(rows[0])))
    if groups:
        print()
        print(by_group(held_out, judged, groups.split(',')))


def by_group(held_out, judged, groups):
    """Table of accuracies."""
    judged = {'chance': evaluation.chance(held_out), **judged}
    rows = []
    for group in groups:
        of_group = held_out.is_choice & np.array([template.startswith(group) for template in held_out.templates])
        if not of_group.any():
            raise InputError(f'--groups: no held-out template with choices begins with {group!r}')
        row = {'group': group, 'instances': int(of_group.sum())}
        rows.append(row | {name: f'{of.accuracy[of_group].mean():.3f}' for name, of in judged.items()})
    return tables.format_table(rows, list(rows[0]))


if __name__ == '__main__':
    run(main)
