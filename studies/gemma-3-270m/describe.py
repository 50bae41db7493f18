"""Tables of a published study, from its numbers alone; those of README.md and docs/real-llm.md are made by it.

    python studies/gemma-3-270m/describe.py --style markdown

The mean of each pick over the tasks, and how far the adapted scorer is ahead of it. Per task: what was sampled and what
each pick achieves. Then over tasks: how picks grow with the number of samples, what goes along with the scorer's gain,
and what a point of rougeL costs.
"""

import sys
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout, before an installed copy

from cappy.cli import flags, tables
from cappy.errors import InputError
from cappy.files.inputs import stems
from cappy.files.wording import not_found
from cappy.study.cells import ADAPTED, ORACLE
from cappy.study.results import ResultPaths, read_result
from cappy.tasks.candidates import SPLITS
from cappy.tasks.statistics import difference_over_tasks, rank_correlation

PICKS = {
    'random candidate': 'random',
    'first of greedy': 'greedy',
    'self-score mean': 'self-score',
    'consensus': 'consensus',
    'scorer before adapting': 'before',
    ADAPTED: 'adapted',
    ORACLE: 'oracle',
}


def main(
    results_dir='bigbench_cappy_results',
    generator='gemma-3-270m',
    style: Literal['table', 'markdown', 'latex', 'csv', 'json'] = 'table',
):
    """Print the tables of a study."""
    folder = Path(results_dir) / generator
    if not folder.is_dir():
        raise InputError(not_found(folder, 'folder of published results', 'publish.py writes it'))
    found = {
        task: read_result(ResultPaths(results_dir, generator, task).result) for task in sorted(stems(folder, '.json'))
    }
    rows = sorted((task_row(task, result) for task, result in found.items()), key=lambda row: -row['gain'])
    print(
        f'Mean over {len(rows)} tasks, rougeL x 100, and the adapted scorer minus the pick (95% interval over tasks)\n'
    )
    print(
        tables.format_table(
            overview(rows), ['pick', tables.percent('mean', 'rougeL'), 'ahead', 'better', 'worse'], style
        )
    )
    print('\nWhat was sampled\n')
    print(tables.format_table(rows, SAMPLED, style))
    print('\nrougeL x 100 by pick; gain: of the adapted scorer over consensus\n')
    print(tables.format_table([*rows, mean_row(rows)], [*PICKED], style))
    print('\nMean rougeL x 100 over tasks, by the number of samples\n')
    print(tables.format_table(*growth(found.values()), style))
    print('\nRank correlation over tasks of the gain over random and over consensus with ..\n')
    print(tables.format_table(correlations(rows), ['with', tables.Column('random', decimals=2), GAIN_CONSENSUS], style))
    print('\nWhat it costs\n')
    print(tables.format_table(costs(found.values(), rows), ['what', tables.Column('value', decimals=1)], style))


SAMPLED = [
    'task',
    tables.Column('train', 'train\nexamples'),
    tables.Column('validation', 'validation\nexamples'),
    tables.Column('distinct', 'distinct\nof 13', decimals=1),
    tables.Column('empty', '% empty', decimals=1),
    tables.Column('cut', '% cut at\nthe limit', decimals=1),
    tables.Column('tokens', 'tokens per\nsample', decimals=1),
    tables.Column('sampling', 'sampling\n(s)'),
    tables.Column('adapting', 'adapting\n(s)', decimals=0),
]
PICKED = ['task', *(tables.percent(name, short) for name, short in PICKS.items()), tables.percent('gain')]
GAIN_CONSENSUS = tables.Column('consensus', decimals=2)


def task_row(task, result):
    """The row of one task: counts, seconds and rougeL by pick."""
    by_pick = {row['name']: row['rougeL'] for row in result['comparison']}
    counts = result['counts']['faults']
    total = {name: sum(counts[split][name] for split in SPLITS) for name in counts['train']}
    tokens = sum(result['sampling']['response_tokens'].values())
    return {
        'task': task,
        'train': counts['train']['examples'],
        'validation': counts['validation']['examples'],
        'distinct': total['candidates'] / total['examples'],
        'empty': 100 * total['empty_samples'] / total['samples'],
        'cut': 100 * total['cut_samples'] / total['samples'],
        'tokens': tokens / (total['samples'] - total['empty_samples']),
        'sampling': result['sampling']['seconds'],
        'adapting': result['seconds']['adapt'],
        **by_pick,
        'gain': by_pick[ADAPTED] - by_pick['consensus'],
        'gain over random': by_pick[ADAPTED] - by_pick['random candidate'],
        'gap': by_pick[ORACLE] - by_pick['random candidate'],
        'agreement': by_pick['consensus'] - by_pick['random candidate'],
    }


def overview(rows):
    """One row per pick: its mean, how far the adapted scorer is ahead, and in how many tasks it is better and worse."""
    rows = sorted(rows, key=lambda row: row['task'])  # as the presenters have them: a bootstrap depends on the order
    ours = np.array([row[ADAPTED] for row in rows])
    found = []
    for name in PICKS:
        theirs = np.array([row[name] for row in rows])
        gain = difference_over_tasks(ours, theirs)
        interval = '' if gain.low is None else f' ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})'
        other = {'ahead': f'{100 * gain.mean:+.1f}{interval}', 'better': int((ours > theirs).sum())}
        other['worse'] = int((ours < theirs).sum())
        found.append({'pick': name, 'mean': float(theirs.mean())} | (other if name not in (ADAPTED, ORACLE) else {}))
    return found


def mean_row(rows):
    """The means of the picks over tasks."""
    return {'task': f'mean of {len(rows)}'} | {
        name: float(np.mean([row[name] for row in rows])) for name in (*PICKS, 'gain')
    }


def growth(results):
    """(rows, columns): the mean over tasks of each pick, by the number of samples."""
    curves = [result['by_n_samples'] for result in results]
    sizes = curves[0]['n_samples']
    names = [name for name in curves[0]['rougeL'] if all(name in curve['rougeL'] for curve in curves)]
    means = {name: np.mean([curve['rougeL'][name] for curve in curves], axis=0) for name in names}
    rows = [{'samples': size} | {name: float(means[name][i]) for name in names} for i, size in enumerate(sizes)]
    return rows, ['samples', *map(tables.percent, names)]


def correlations(rows):
    """Rank correlations over tasks: of what a user knows beforehand, and of what only references tell."""
    names = {
        'gap': 'random to oracle',
        'random candidate': 'rougeL of a random sample',
        'distinct': 'distinct samples per example',
        'tokens': 'tokens per sample',
        'train': 'training examples',
        'agreement': 'gain of consensus over random',
    }
    found = []
    for key, name in names.items():
        values = [row[key] for row in rows]
        pair = {
            'random': rank_correlation(values, [row['gain over random'] for row in rows]),
            'consensus': rank_correlation(values, [row['gain'] for row in rows]),
        }
        found.append({'with': name, **pair})
    return found


def costs(results, rows):
    """Samples, tokens and seconds, in all and for each point of rougeL x 100 gained over a random sample."""
    faults = [split for result in results for split in result['counts']['faults'].values()]
    n_samples = sum(split['samples'] for split in faults)
    n_tokens = sum(sum(result['sampling']['response_tokens'].values()) for result in results)
    sampling, adapting = sum(row['sampling'] for row in rows), sum(row['adapting'] for row in rows)
    points = 100 * sum(row['gain over random'] for row in rows)
    named = {'samples': n_samples, 'tokens of samples': n_tokens, 'seconds of sampling': sampling}
    named['seconds of adapting'] = adapting
    return [{'what': name, 'value': float(value)} for name, value in named.items()] + [
        {'what': f'{name} per task and point over a random sample', 'value': value / points}
        for name, value in named.items()
    ]


if __name__ == '__main__':
    flags.run(main)
