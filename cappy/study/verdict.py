"""What a sweep shows, in a few sentences and one table: means over tasks, gains over the other picks, the gap closed.

A row describes one pick: {'name', 'rougeL', 'low', 'high', 'gain', 'gap_closed', 'gap_low', 'gap_high'}. rougeL is a
fraction with its interval; 'gain' is [mean, low, high] of ours minus this pick; keys without a value are left out. Ours
is the pick that is the result (`cells.ours_of`): by default that of the adapted scorer. Intervals of means over tasks
are over tasks, and there are none for few tasks (`MIN_TASKS_FOR_INTERVAL`); those of a cell are over its examples.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from cappy.study.cells import ADAPTED, ORACLE, PUBLISHED, shared, subject_of
from cappy.tasks import picks
from cappy.tasks.statistics import MIN_TASKS_FOR_INTERVAL, difference_over_tasks, interval_over_tasks

RANDOM, CONSENSUS = 'random candidate', 'consensus'
# Gains that the sentence names, beside that over the reference pick.
JUDGED = (RANDOM, 'self-score sum', CONSENSUS, 'scorer before adapting', ADAPTED)
NO_INTERVAL = f'No interval over tasks: fewer than {MIN_TASKS_FOR_INTERVAL} tasks.'


def reference_pick(names: Iterable[str], ours: str = ADAPTED) -> str | None:
    """The pick to compare with first: the sample of beam search or greedy decoding, else the random candidate, else the
    first sample of another decoding, else the first name; None without names. Ours does not count.
    """
    names = [name for name in names if name != ours]
    for is_wanted in (
        lambda name: name.startswith('first of beam'),
        lambda name: name.startswith('first of greedy'),
        lambda name: name == RANDOM,
        lambda name: name.startswith('first of '),
        lambda name: True,
    ):
        if found := [name for name in names if is_wanted(name)]:
            return found[0]
    return None


def common_reference_pick(names_by_cell: Sequence[Iterable[str]], ours: str = ADAPTED) -> str | None:
    """The reference pick among the names that most cells have; a generator without beam search keeps its gains."""
    counts = {}
    for names in names_by_cell:
        for name in dict.fromkeys(names):
            counts[name] = counts.get(name, 0) + 1
    most = max((n for name, n in counts.items() if name != ours), default=0)
    return reference_pick((name for name, n in counts.items() if n == most), ours)


def averages(cells: Sequence[dict], generators: Sequence[str], tasks: Sequence[str]) -> list[dict]:
    """Means over the tasks that all generators have: of all generators together, where there are several, and of each.

    cells: summaries of cells, {'generator', 'task', 'rougeL', 'comparison': rows, 'ours'?: the pick that is the result,
    'published'?}. Returns {'generator': None for all, 'n_tasks', 'rows', 'left_out': picks that some of the cells
    lack}; an empty list without a common task. Ours has the name that `ours_of_all` gives it.
    """
    ours = ours_of_all(cells)
    by_key = {(cell['generator'], cell['task']): _rougeL_by_pick(cell, ours) for cell in cells}
    counted = [task for task in tasks if all((generator, task) in by_key for generator in generators)]
    groups = [(None, list(generators))] if len(generators) > 1 else []
    groups += [(generator, [generator]) for generator in generators]
    return [
        {'generator': name, 'n_tasks': len(counted)}
        | _average([[by_key[generator, task] for generator in own] for task in counted], ours)
        for name, own in (groups if counted else ())
    ]


def ours_of_all(cells: Sequence[dict]) -> str:
    """The pick that is the result in all of these summaries, `cells.OURS` where they differ."""
    return shared(cell.get('ours', ADAPTED) for cell in cells)


def sentences(rows: Sequence[dict], where: str, over: str, note: str = '', ours_name: str = ADAPTED) -> list[str]:
    """The verdict: which picks ours beats as far as the intervals tell, then the numbers, then the note.

    where: 'Over 45 tasks and 5 generators', say; over: what the intervals are over, 'over tasks', say; ours_name: the
    pick that is the result.
    """
    by_name = {row['name']: row for row in rows}
    ours, subject = by_name[ours_name], subject_of(ours_name)
    judged = _judged(by_name, ours_name)
    gains = {name: by_name[name]['gain'] for name in judged if 'gain' in by_name[name]}
    numbers = [_gain(name, gain) for name, gain in gains.items()]
    interval = _between([ours.get('low'), ours.get('high')], _percent)
    whose = 'picks of the adapted scorer' if ours_name == ADAPTED else subject.replace('pick', 'picks')
    text = f'{where}, the {whose} have mean rougeL {_percent(ours["rougeL"])}{interval}'
    if numbers:
        text += f': {_listed(numbers)}'
    if ours.get('gap_closed') is not None:
        closed = _share(ours['gap_closed']) + _between([ours.get('gap_low'), ours.get('gap_high')], _share)
        text += f'. They close {closed} of the gap between a random candidate and the oracle'
    notes = [f'In brackets: 95% intervals {over}.'] if ' to ' in text else []
    return [line for line in (_judgement(gains, subject), f'{text}.', *notes, note) if line]


def tally(cells: Sequence[dict]) -> str:
    """In how many cells ours is better or worse than the common reference pick, by the intervals over examples.

    cells: summaries, {'gains': {pick: [mean, low, high]}, 'ours'?}; an empty text where no cell has such intervals.
    """
    ours = ours_of_all(cells)
    known = [cell['gains'] for cell in cells if cell.get('gains')]
    reference = common_reference_pick([[name for name in gains if name != ORACLE] for gains in known], ours)
    gains = [by_pick[reference] for by_pick in known if reference in by_pick and by_pick[reference][1] is not None]
    if not gains:
        return ''
    n_better, n_worse = sum(low > 0 for _, low, _ in gains), sum(high < 0 for _, _, high in gains)
    n_unclear = len(gains) - n_better - n_worse
    unclear = f', not clearly different in {n_unclear}' if n_unclear else ''
    counts = f'better than {_named(reference)} in {n_better}, worse in {n_worse}{unclear}'
    return f'Of {len(gains)} cells, by their intervals over examples, the {subject_of(ours)} is {counts}.'


def levels(of_generators: Sequence[dict], ours: str = ADAPTED) -> str:
    """Mean rougeL of ours with each generator; of_generators: as `averages` returns them."""
    values = [
        f'{_percent(row["rougeL"])} with {average["generator"]}'
        for average in of_generators
        for row in average['rows']
        if row['name'] == ours
    ]
    return f'By generator: {_listed(values)}.'


def _rougeL_by_pick(cell, ours):
    """rougeL of a cell by pick, the random candidate first and the oracle last, as `picks.compare` wants them."""
    values = {row['name']: row['rougeL'] for row in cell['comparison']} | {ours: cell['rougeL']}
    if cell.get('published') is not None:
        values[PUBLISHED] = cell['published']
    ends = {name: values.pop(name) for name in (RANDOM, ORACLE) if name in values}
    first, last = ({name: ends[name]} if name in ends else {} for name in (RANDOM, ORACLE))
    return first | values | last


def _average(by_task, ours):
    """Rows of the means; by_task: of each task rougeL by pick, for each generator."""
    names = list(dict.fromkeys(name for of_task in by_task for cell in of_task for name in cell))
    common = [name for name in names if all(name in cell for of_task in by_task for cell in of_task)]
    values = {name: np.array([np.mean([cell[name] for cell in of_task]) for of_task in by_task]) for name in common}
    if RANDOM in values and ORACLE in values:
        ends = {name: values.pop(name) for name in (RANDOM, ORACLE)}
        values = {RANDOM: ends[RANDOM], **values, ORACLE: ends[ORACLE]}
        rows = picks.compare(values)
    else:
        rows = [{'name': name, 'rougeL': float(of_pick.mean())} for name, of_pick in values.items()]
    for row in rows:
        row['low'], row['high'] = interval_over_tasks(values[row['name']])
        if len(by_task) < MIN_TASKS_FOR_INTERVAL:
            row['gap_low'] = row['gap_high'] = None
        if row['name'] not in (ours, ORACLE):  # nothing can exceed the oracle
            row['gain'] = list(difference_over_tasks(values[ours], values[row['name']]))
    rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
    return {'rows': rows, 'left_out': [name for name in names if name not in common]}


def _judged(names, ours):
    """The picks that the verdict names, in order."""
    reference = reference_pick((name for name in names if name not in (PUBLISHED, ORACLE)), ours)
    return [name for name in dict.fromkeys([RANDOM, reference, *JUDGED[1:], PUBLISHED]) if name in names]


def _judgement(gains, subject):
    """Which picks are worse or better than ours by their intervals; nothing without intervals."""
    known = {name: gain for name, gain in gains.items() if gain[1] is not None and name != PUBLISHED}
    worse = [_named(name) for name, (_, low, _) in known.items() if low > 0]
    better = [_named(name) for name, (_, _, high) in known.items() if high < 0]
    undecided = [_named(name) for name, (_, low, high) in known.items() if low <= 0 <= high]
    parts = [f'better than {_listed(worse)}'] if worse else []
    parts += [f'worse than {_listed(better)}'] if better else []
    parts += [f'not clearly different from {_listed(undecided)}'] if undecided else []
    return f'The {subject} is {"; ".join(parts)}.' if parts else ''


def _named(pick):
    """The pick's name inside a sentence."""
    if pick.startswith('first of '):
        return f'the {pick}'
    articles = {RANDOM: 'a', 'self-score sum': 'the', 'scorer before adapting': 'the', ADAPTED: 'the', PUBLISHED: 'the'}
    names = {'self-score sum': 'self-score (sum)', ADAPTED: subject_of(ADAPTED), PUBLISHED: 'published result'}
    name = names.get(pick, pick)
    return f'{articles[pick]} {name}' if pick in articles else name


def _gain(pick, gain):
    return f'{_signed(gain[0])}{_between(gain[1:], _signed)} {"against" if gain[0] < 0 else "over"} {_named(pick)}'


def _listed(parts):
    return parts[0] if len(parts) == 1 else f'{", ".join(parts[:-1])} and {parts[-1]}'


def _between(interval, show):
    low, high = interval
    return '' if low is None or high is None else f' ({show(low)} to {show(high)})'


def _percent(value):
    return f'{100 * value:.1f}'.replace('-', '−')


def _signed(value):
    return f'{100 * value:+.1f}'.replace('-', '−').replace('−0.0', '+0.0')


def _share(value):
    return f'{100 * value:.0f}%'.replace('-', '−').replace('−0%', '0%')
