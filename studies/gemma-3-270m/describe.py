"""Tables of a published study, from its numbers alone; those of README.md and docs/real-llm.md are made by it.

    python studies/gemma-3-270m/describe.py --style markdown

The mean of each pick over the tasks, by rougeL and chrF, and how far ours, the pick that the results are of, is ahead
of it. Per task: what was sampled and what each pick achieves. Then over tasks: how picks grow with the number of
samples, what goes along with the gain of ours, and what a point of rougeL costs.
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
from cappy.study.cells import ADAPTED, ORACLE, Cell, ours_of, read_cells, subject_of
from cappy.study.comparisons import Results, average_rows, comparison_rows, key_of
from cappy.tasks.candidates import SPLITS
from cappy.tasks.combining import COMBINED, WEIGHTED
from cappy.tasks.statistics import rank_correlation

PICKS = {
    'random candidate': 'random',
    'first of greedy': 'greedy',
    'self-score mean': 'self-score',
    'consensus': 'consensus',
    'scorer before adapting': 'before',
    ADAPTED: 'adapted',
    WEIGHTED: 'weighted',
    COMBINED: 'combined',
    ORACLE: 'oracle',
}  # those that all results have are shown
CHRF = 'chrf'


def main(
    results_dir='bigbench_cappy_results',
    generator='gemma-3-270m',
    style: Literal['table', 'markdown', 'latex', 'csv', 'json'] = 'table',
):
    """Print the tables of a study."""
    folder = Path(results_dir) / generator
    if not folder.is_dir():
        raise InputError(not_found(folder, 'folder of published results', 'publish.py writes it'))
    tasks = sorted(stems(folder, '.json'))
    if not tasks:
        raise InputError(f'{folder}: holds no results; publish.py writes them')
    grid, faults = read_cells([results_dir], [generator], tasks)
    if faults:
        raise InputError(faults[0])
    found = [cell.results[0] for cell in grid]
    picks = [pick for pick in PICKS if all(pick in cell.picks() for cell in grid)]
    results = Results([Path(results_dir)], [generator], tasks, grid, picks=picks)
    (means,) = average_rows(results)
    rows = [task_row(cell) for cell in grid]
    by_gain = sorted(rows, key=lambda row: -row['gain'])
    ours = subject_of(results.ours)
    print(f'Mean over {len(rows)} tasks, x 100, and the {ours} minus the pick (95% interval over tasks)\n')
    print(tables.format_table(overview(results, means), OVERVIEW, style))
    print('\nWhat was sampled\n')
    print(tables.format_table(by_gain, SAMPLED, style))
    print(f'\nrougeL x 100 by pick; gain: of the {ours} over consensus\n')
    mean = {'task': f'mean of {len(rows)}', 'gain': means['consensus_gain']} | {p: means[key_of(p)] for p in picks}
    picked = ['task', *(tables.percent(pick, PICKS[pick]) for pick in picks), tables.percent('gain')]
    print(tables.format_table([*by_gain, mean], picked, style))
    print('\nMean rougeL x 100 over tasks, by the number of samples\n')
    print(tables.format_table(*growth(found), style))
    print('\nRank correlation over tasks of the gain over random and over consensus with ..\n')
    print(tables.format_table(correlations(rows), ['with', tables.Column('random', decimals=2), GAIN_CONSENSUS], style))
    print('\nWhat it costs\n')
    print(tables.format_table(costs(found, rows), ['what', tables.Column('value', decimals=1)], style))


OVERVIEW = ['pick', tables.percent('mean', 'rougeL'), tables.percent(CHRF, 'chrF'), 'ahead', 'better', 'worse']
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
GAIN_CONSENSUS = tables.Column('consensus', decimals=2)


def task_row(cell: Cell):
    """The row of one task: counts, seconds and rougeL by pick."""
    result = cell.results[0]
    by_pick = {pick: cell.rougeL_of(pick) for pick in cell.picks()}
    ours = by_pick[ours_of(result)]
    counts = result['counts']['faults']
    total = {name: sum(counts[split][name] for split in SPLITS) for name in counts['train']}
    tokens = sum(result['sampling']['response_tokens'].values())
    return {
        'task': cell.task,
        'train': counts['train']['examples'],
        'validation': counts['validation']['examples'],
        'distinct': total['candidates'] / total['examples'],
        'empty': 100 * total['empty_samples'] / total['samples'],
        'cut': 100 * total['cut_samples'] / total['samples'],
        'tokens': tokens / (total['samples'] - total['empty_samples']),
        'sampling': result['sampling']['seconds'],
        'adapting': result['seconds']['adapt'] + result['seconds']['combine'],
        **by_pick,
        'gain': ours - by_pick['consensus'],
        'gain over random': ours - by_pick['random candidate'],
        'gap': by_pick[ORACLE] - by_pick['random candidate'],
        'agreement': by_pick['consensus'] - by_pick['random candidate'],
    }


def overview(results: Results, means):
    """One row per pick: its means, how far ours is ahead, and in how many tasks ours is better and worse."""
    compared = {row['against']: row for row in comparison_rows(results)}  # all but the oracle
    found = []
    for pick in results.picks:
        row = {'pick': pick, 'mean': means[key_of(pick)], CHRF: means.get(f'{key_of(pick)}_{CHRF}')}
        if pick in compared and pick != results.ours:
            gain, low, high = (compared[pick][key] for key in ('gain', 'gain_low', 'gain_high'))
            interval = '' if low is None else f' ({100 * low:+.1f} to {100 * high:+.1f})'
            row |= {'ahead': f'{100 * gain:+.1f}{interval}'}
            row |= {'better': compared[pick]['n_better'], 'worse': compared[pick]['n_worse']}
        found.append(row)
    return found


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
