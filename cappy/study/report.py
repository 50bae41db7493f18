"""One HTML page of a folder of results: what it shows of each cell, and how it is put together.

The page is cappy/study/report.html with a summary of all cells, which is read at once, and for each cell and seed a
block of gzipped JSON in base64, which is decoded when a reader opens that cell. Texts of models are data in both, never
markup, and the page's own policy lets no script run but its own.
"""

import base64
import gzip
import hashlib
import html
import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from cappy.errors import InputError
from cappy.files.atomic import write_atomically
from cappy.files.inputs import find
from cappy.files.jsonl import is_number
from cappy.files.updates import read_updates
from cappy.study import cells, curves, preferences, verdict
from cappy.study.cells import ORACLE, PUBLISHED, Cell
from cappy.study.results import ResultPaths, read_candidates, text_settings
from cappy.tasks.faults import describe_faults
from cappy.tasks.picks import describe_ties
from cappy.tasks.statistics import spread

TEMPLATE = Path(__file__).with_name('report.html')
SHOWN_AS_TABLES = ('settings', 'counts', 'seconds', 'versions', 'device')  # keys of a result
MAX_UPDATES = 1000  # points of a training curve; of more updates, evenly spaced ones are kept


@dataclass(slots=True)
class CellPage:
    """The page's part of one cell: its summary, a block per seed (None without files), and the faults of its files."""

    summary: dict
    blocks: list[str | None] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def build_cell(paths: Sequence[ResultPaths], results: Sequence[dict], gens_dir=None, max_examples=1000) -> CellPage:
    """A cell's part of the page. Files that are broken or missing are named in its faults, and the rest is shown.

    paths, results: the cell in each of the results folders (one per seed, say). Numbers are means over them, and
    intervals are of these means; each folder has its own block.
    """
    values = [result['rougeL'] for result in results]
    page = CellPage({'generator': paths[0].generator, 'task': paths[0].task, 'rougeL': float(np.mean(values))})
    page.summary['comparison'] = _mean_comparison([_comparison(result) for result in results])
    cell = Cell(paths[0].generator, paths[0].task, tuple(results))
    page.summary['ours'] = cell.ours
    page.summary['remarks'] = _add_ties(page.summary['comparison'], cell)
    if len(results) > 1:
        page.summary['seeds'] = {'values': values, **spread(values)._asdict()}
    attempt = _Attempts(page.faults)
    has_files = [
        find(path.candidates).exists() or 'comparison' in result for path, result in zip(paths, results, strict=True)
    ]
    # A published number, or the reference implementation's own result, has no files beside it.
    picks = [cells.ours_of(result) for result in results]
    examples = attempt(cells.examples_of_cell, paths, values, picks) if all(has_files) else None
    if examples:
        _add_intervals(page.summary, examples)
    page.blocks = [
        _build_block(path, result, gens_dir, max_examples, attempt) if has else None
        for path, result, has in zip(paths, results, has_files, strict=True)
    ]
    page.faults[:] = dict.fromkeys(page.faults)  # a file that is read twice has its fault twice
    page.summary = _without_nan(page.summary)
    return page


def write_page(path, title: str, summary: dict, pages: Sequence[CellPage]):
    """Write the page. summary: {'folders', 'generators', 'tasks', 'faults', 'notes', 'differing', 'made'}.

    Raises InputError where the file cannot be written.
    """
    numbers, blocks = itertools.count(), {}
    made = summary | describe_sweep(summary, [page.summary for page in pages]) | {'title': title, 'cells': []}
    for page in pages:
        places = [None if block is None else next(numbers) for block in page.blocks]
        blocks |= {place: block for place, block in zip(places, page.blocks, strict=True) if block is not None}
        made['cells'].append(page.summary | {'blocks': places, 'faults': page.faults})
    before, after = _fill(TEMPLATE.read_text(encoding='utf-8'), title, made)
    with write_atomically(path) as file:
        file.write(before)
        for number, block in blocks.items():
            file.write(f'<script type="text/plain" id="cell-{number}">{block}</script>\n')
        file.write(after)


def describe_sweep(summary: dict, cells_shown: Sequence[dict]) -> dict:
    """What the page says of all cells, {'verdict': sentences, 'averages', 'reference', 'ours'}: the pick to compare
    with first, and the one that is the result.

    Adds to each of cells_shown its own 'verdict'.
    """
    ours = verdict.ours_of_all(cells_shown)
    for cell in cells_shown:
        cell['verdict'] = _cell_verdict(cell)
    generators, tasks = summary['generators'], summary['tasks']
    averages = verdict.averages(cells_shown, generators, tasks)
    picks_of_cells = [
        [row['name'] for row in cell['comparison'] if row['name'] not in (cell['ours'], ORACLE)] for cell in cells_shown
    ]
    if len(cells_shown) == 1:
        lines = cells_shown[0]['verdict']
    elif averages:
        n_tasks = averages[0]['n_tasks']
        where = f'Over {_count(n_tasks, "task")}' + (
            f' and {_count(len(generators), "generator")}'
            if len(generators) > 1
            else f', with samples of {generators[0]}'
        )
        note = verdict.NO_INTERVAL if 'low' not in averages[0]['rows'][0] else ''
        lines = verdict.sentences(averages[0]['rows'], where, 'over tasks', note, ours)
        if counted := verdict.tally(cells_shown):
            lines.insert(0 if note else 1, counted)  # with the numbers, or first where the means allow no judgement
        if not any(picks_of_cells) and len(averages) > 1:
            lines.append(verdict.levels(averages[1:], ours))
    else:
        lines = ['No task has a result of all generators, so there are no means over tasks.']
    reference = verdict.common_reference_pick(picks_of_cells, ours)
    return {'verdict': lines, 'averages': averages, 'reference': reference, 'ours': ours}


def _cell_verdict(cell):
    ours = cell['ours']
    rows = [{**row} for row in cell['comparison']]
    for row in rows:
        if row['name'] not in (ours, ORACLE):
            row['gain'] = cell.get('gains', {}).get(row['name']) or [cell['rougeL'] - row['rougeL'], None, None]
    if not any(row['name'] == ours for row in rows):
        rows.append(
            {'name': ours, 'rougeL': cell['rougeL']} | {key: cell[key] for key in ('low', 'high') if key in cell}
        )
    if isinstance(cell.get('published'), float):
        gain = [cell['rougeL'] - cell['published'], None, None]
        rows.append({'name': PUBLISHED, 'rougeL': cell['published'], 'gain': gain})
    n = f'over {_count(cell["n"], "example")}' if 'n' in cell else 'over examples'
    return verdict.sentences(rows, f'On {cell["task"]}, with samples of {cell["generator"]}', n, ours_name=ours)


def _count(n, noun):
    return f'{n:,} {noun}' + ('' if n == 1 else 's')


def _add_intervals(summary, examples):
    """Intervals over examples; a result's own comparison keeps those that it was written with."""
    gains = {
        pick: list(difference)
        for pick, difference in examples.differences.items()
        if pick != ORACLE and math.isfinite(difference.mean)
    }
    intervals = {summary['ours']: (examples.low, examples.high), **examples.intervals}
    for row in summary['comparison']:
        if 'low' not in row:
            row |= dict(zip(('low', 'high'), intervals.get(row['name'], ()), strict=False))
    ours = next((row for row in summary['comparison'] if row['name'] == summary['ours'] and 'low' in row), None)
    low, high = (ours['low'], ours['high']) if ours else (examples.low, examples.high)
    summary |= {'n': examples.n_examples, 'low': low, 'high': high, 'gains': gains}


def _build_block(paths, result, gens_dir, max_examples, attempt):
    """What is read when a reader opens the cell."""
    data = {name: result.get(name) for name in SHOWN_AS_TABLES}
    data['training'] = attempt(_training, paths)
    lines = attempt(read_candidates, paths.candidates)
    if lines:
        settings = text_settings(result)
        sources = attempt(curves.read_generator_file, paths, lines, settings, gens_dir)
        data |= attempt(_charts, paths, lines, sources, settings) or {}
        ours = cells.ours_of(result)
        data |= {'ours': ours, 'preferences': preferences.describe(lines, sources, ours)}
        data |= _examples(lines, sources, max_examples, ours)
    return _pack(data, paths, attempt.faults)


class _Attempts:
    """Calls that may meet a broken file: then they return None, and the fault is kept."""

    def __init__(self, faults):
        self.faults = faults

    def __call__(self, work, *arguments):
        try:
            return work(*arguments)
        except InputError as error:
            self.faults.append(str(error))
            return None


def _comparison(result):
    """The well-formed rows of a result's comparison; the file may have been written by anything."""
    together = (('rougeL',), ('low', 'high'), ('gap_closed',), ('gap_low', 'gap_high'))
    rows = result.get('comparison')
    return [
        {'name': row['name']}
        | {key: row[key] for keys in together if all(is_number(row.get(key)) for key in keys) for key in keys}
        | ({'metrics': metrics} if (metrics := cells.metrics_of(row)) else {})
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and isinstance(row.get('name'), str) and is_number(row.get('rougeL'))
    ]


def _mean_comparison(by_folder):
    """The picks that all folders have, with their mean rougeL and gap closed; several folders have no intervals."""
    if len(by_folder) == 1:
        return by_folder[0]
    kept = []
    for row in by_folder[0]:
        same = [other for rows in by_folder for other in rows if other['name'] == row['name']]
        if len(same) < len(by_folder):
            continue
        keys = [key for key in ('rougeL', 'gap_closed') if all(key in other for other in same)]
        kept.append({'name': row['name'], **{key: float(np.mean([other[key] for other in same])) for key in keys}})
        measured = [other.get('metrics', {}) for other in same]
        common = [name for name in measured[0] if all(name in own for own in measured)]
        if common:
            kept[-1]['metrics'] = {name: float(np.mean([own[name] for own in measured])) for name in common}
    return kept


def _add_ties(rows, cell):
    """Give each row of the cell's comparison its ties; returns what to say of these and of the cell's texts."""
    ties = {row['name']: cell.ties_of(row['name']) for row in rows}
    ties = {name: of_pick for name, of_pick in ties.items() if of_pick}
    for row in rows:
        if ties.get(row['name'], {}).get('n_tied'):
            row['over_ties'] = ties[row['name']]['rougeL']
    return [*describe_faults(cell.faults).values(), *describe_ties(ties)]


def _training(paths):
    rows = read_updates(paths.updates)
    step = math.ceil(len(rows) / MAX_UPDATES) or 1
    return {key: [getattr(row, key) for row in rows[::step]] for key in ('update', 'loss', 'learning_rate')}


def _charts(paths, lines, sources, settings):
    samples = curves.samples_of(lines, sources, curves.rouge_of(paths, settings), paths.candidates)
    sizes, by_pick = curves.sample_curves(samples)
    scores, rougeL = curves.scores_and_rougeL(lines, paths.candidates)
    calibration = asdict(curves.calibrate(scores, rougeL))
    return {
        'curves': {'sizes': sizes, 'picks': by_pick, 'are_drawn': sources is not None},
        'calibration': calibration | {'bins': [group._asdict() for group in calibration['bins']]},
    }


def _examples(lines, sources, max_examples, ours_name):
    """The examples to browse: those with the largest difference to the reference pick."""
    rougeL_by_pick = cells.picked_rougeL(lines, ours_name)
    ours, others = rougeL_by_pick.pop(ours_name), list(rougeL_by_pick)
    reference = verdict.reference_pick(others)
    order = np.argsort(-np.abs(ours - rougeL_by_pick[reference]), kind='stable')[:max_examples]
    names = (name for line in lines for candidate in line['candidates'] for name in candidate['decodings'])
    decodings = list(dict.fromkeys(names))
    place = {name: number for number, name in enumerate(decodings)}
    examples = [
        _example(lines[number], sources[number] if sources else None, place)
        | {
            'rougeL': round(float(ours[number]), 4),
            'rougeL_of_others': [round(float(rougeL_by_pick[pick][number]), 4) for pick in others],
        }
        for number in sorted(order)
    ]
    counts = {'n_examples': len(lines), 'others': others, 'reference': reference}
    return {'examples': examples, 'decodings': decodings, **counts}


def _example(line, source, place):
    """One example; decodings by their place in the list of all, with the number of samples where it is known."""
    drawn = Counter((sample.response, sample.decoding) for sample in source.samples) if source else {}
    candidates = [
        [
            candidate['response'],
            float(f'{candidate["score"]:.6g}'),
            round(candidate['rougeL'], 4),
            [[place[name], drawn.get((candidate['response'], name), 1)] for name in candidate['decodings']],
        ]
        for candidate in line['candidates']
    ]
    texts = {'instruction': source.instruction, 'references': list(source.references)} if source else {}
    return {'idx': line['example_idx'], 'pick': line['pick'], 'candidates': candidates, **texts}


def _pack(data, paths, faults):
    try:
        text = json.dumps(data, separators=(',', ':'), allow_nan=False)
    except ValueError:
        faults.append(f'{paths.result} and the files beside it: a number that is not finite is shown as missing')
        text = json.dumps(_without_nan(data), separators=(',', ':'))
    return base64.b64encode(gzip.compress(text.encode('ascii'), 6, mtime=0)).decode('ascii')


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fill(template, title, summary):
    """The template's text before and after the cells' blocks."""
    script = template.split('<script>', 1)[1].split('</script>', 1)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')
    # No text inside may end the element that holds it, nor begin a comment.
    text = json.dumps(summary, separators=(',', ':'), allow_nan=False).replace('<', '\\u003c')
    before, after = template.split('{{cells}}')
    for name, value in (('digest', digest), ('title', html.escape(title)), ('summary', text)):
        before = before.replace('{{' + name + '}}', value, 1)
    return before, after
