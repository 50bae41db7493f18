"""One HTML page of a folder of results: what of each cell it shows, and how it is put together.

The page is cappy/report.html with a summary of all cells, which is read at once, and for each cell and seed a block of
gzipped JSON in base64, which is decoded when a reader opens that cell. Texts of models are data in both, never markup,
and the page's own policy lets no script run but its own.
"""

import base64
import gzip
import hashlib
import html
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from cappy.errors import InputError
from cappy.files.atomic import write_atomically
from cappy.files.updates import read_updates
from cappy.study import cells, curves
from cappy.study.cells import ADAPTED
from cappy.study.results import ResultPaths
from cappy.tasks.rouge import RougeL
from cappy.tasks.statistics import spread

TEMPLATE = Path(__file__).with_name('report.html')
KEPT = ('settings', 'counts', 'seconds', 'versions', 'device')  # of a result, shown as they are
MAX_UPDATES = 1000  # points of a training curve; more are thinned out


@dataclass(slots=True)
class CellPage:
    """What the page has of a cell: its line of the summary, a block a seed (None without files), what is broken."""

    summary: dict
    blocks: list[str | None] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def build_cell(
    paths: Sequence[ResultPaths], results: Sequence[dict], gens_dir=None, max_examples=1000, n_resamples=2000, seed=0
) -> CellPage:
    """A cell's part of the page. Files that are broken or missing are named in its faults, and the rest is shown.

    paths, results: the cell in each of the results folders (seeds, say). Numbers are means over them, and intervals are
    of these means; each folder has its own block.
    """
    values = [result['rougeL'] for result in results]
    page = CellPage({'generator': paths[0].generator, 'task': paths[0].task, 'rougeL': float(np.mean(values))})
    page.summary['comparison'] = _mean_comparison([_comparison(result) for result in results])
    if len(results) > 1:
        page.summary['seeds'] = {'values': values, **spread(values)._asdict()}
    attempt = _Attempts(page.faults)
    has_files = [path.candidates.exists() or 'comparison' in one for path, one in zip(paths, results, strict=True)]
    # A published figure, or the reference's own result, has no files beside it.
    examples = attempt(cells.examples_of_cell, paths, values, n_resamples, seed) if all(has_files) else None
    if examples:
        gains = {way: list(difference) for way, difference in examples.differences.items()}
        page.summary |= {'n': examples.n_examples, 'low': examples.low, 'high': examples.high, 'gains': gains}
        intervals = {ADAPTED: (examples.low, examples.high), **examples.intervals}
        for row in page.summary['comparison'] if len(results) > 1 else ():
            row |= dict(zip(('low', 'high'), intervals.get(row['name'], ()), strict=False))
    page.blocks = [
        _build_block(path, result, gens_dir, max_examples, seed, attempt) if has else None
        for path, result, has in zip(paths, results, has_files, strict=True)
    ]
    page.faults[:] = dict.fromkeys(page.faults)  # a file that is read twice has its fault twice
    page.summary = _without_nan(page.summary)
    return page


def _build_block(paths, result, gens_dir, max_examples, seed, attempt):
    """What is read when a reader opens the cell."""
    data = {name: result.get(name) for name in KEPT}
    data['training'] = attempt(_training, paths)
    lines = attempt(curves.read_lines, paths.candidates)
    if lines:
        settings = result['settings'] if isinstance(result.get('settings'), dict) else {}
        sources = attempt(curves.read_generator_file, paths, lines, settings, gens_dir)
        data |= attempt(_charts, paths, lines, sources, settings, seed) or {}
        data |= attempt(_browser, paths, lines, sources, max_examples) or {}
    return _pack(data, paths, attempt.faults)


def write_page(path, title: str, summary: dict, pages: Sequence[CellPage]):
    """Write the page. summary: what it says of the folder; the cells' lines are added to it.

    Raises InputError where the file cannot be written.
    """
    numbers, blocks = itertools.count(), {}
    made = summary | {'title': title, 'cells': []}
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


class _Attempts:
    """Calls that may meet a broken file: then None, and the fault is kept."""

    def __init__(self, faults):
        self.faults = faults

    def __call__(self, work, *arguments):
        try:
            return work(*arguments)
        except InputError as error:
            self.faults.append(str(error))
            return None


def _comparison(result):
    """Ways of picking with their values, of a result whose shape is not to be relied on."""
    keys = ('rougeL', 'low', 'high', 'gap_closed', 'gap_low', 'gap_high')
    rows = result.get('comparison')
    return [
        {'name': row['name'], **{key: row[key] for key in keys if _is_number(row.get(key))}}
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and isinstance(row.get('name'), str) and _is_number(row.get('rougeL'))
    ]


def _mean_comparison(of_folders):
    """The ways that all folders have, rougeL and the gap averaged; of several folders without their intervals."""
    if len(of_folders) == 1:
        return of_folders[0]
    kept = []
    for row in of_folders[0]:
        same = [one for rows in of_folders for one in rows if one['name'] == row['name']]
        if len(same) < len(of_folders):
            continue
        keys = [key for key in ('rougeL', 'gap_closed') if all(key in one for one in same)]
        kept.append({'name': row['name'], **{key: float(np.mean([one[key] for one in same])) for key in keys}})
    return kept


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _training(paths):
    rows = read_updates(paths.updates)
    step = math.ceil(len(rows) / MAX_UPDATES) or 1
    return {key: [getattr(row, key) for row in rows[::step]] for key in ('update', 'loss', 'learning_rate')}


def _charts(paths, lines, sources, settings, seed):
    tokenizer = settings.get('rouge_tokenizer') or 'default'
    samples = curves.samples_of(lines, sources, RougeL(tokenizer), paths.candidates)
    sizes, made = curves.sample_curves(samples, seed=seed)
    scores, rougeL = curves.scores_and_rougeL(lines, paths.candidates)
    calibration = asdict(curves.calibrate(scores, rougeL))
    return {
        'curves': {'sizes': sizes, 'ways': made, 'are_drawn': sources is not None},
        'calibration': calibration | {'bins': [list(one) for one in calibration['bins']]},
    }


def _browser(paths, lines, sources, max_examples):
    """The examples of the browser: those with the largest difference to the first of the ways of picking."""
    try:
        picked = cells.picked_rougeL(lines)
        ours, ways = picked.pop(ADAPTED), list(picked)
        first = default_way(ways)
        order = np.argsort(-np.abs(ours - picked[first]), kind='stable')[:max_examples]
        decodings = list(
            dict.fromkeys(name for line in lines for one in line['candidates'] for name in one['decodings'])
        )
        place = {name: number for number, name in enumerate(decodings)}
        examples = [
            _example(lines[number], sources[number] if sources else None, place)
            | {'ours': round(float(ours[number]), 4), 'picked': [round(float(picked[way][number]), 4) for way in ways]}
            for number in sorted(order)
        ]
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f'{paths.candidates}: not lines of candidates ({error})') from error
    return {'examples': examples, 'n_examples': len(lines), 'ways': ways, 'first': first, 'decodings': decodings}


def _example(line, source, place):
    """One example; decodings by their place in the list of all, with the number of samples where it is known."""
    drawn = Counter((sample.response, sample.decoding) for sample in source.samples) if source else {}
    candidates = [
        [
            one['response'],
            float(f'{one["score"]:.6g}'),
            round(one['rougeL'], 4),
            [[place[name], drawn.get((one['response'], name), 1)] for name in one['decodings']],
        ]
        for one in line['candidates']
    ]
    told = {'instruction': source.instruction, 'references': list(source.references)} if source else {}
    return {'idx': line['example_idx'], 'pick': line['pick'], 'candidates': candidates, **told}


def default_way(ways: Iterable[str]) -> str:
    """What picks are compared with first: the beam's sample, else a single sample, a random one, or what there is."""
    ways = list(ways)
    known = [way for way in ways if way.startswith('first of beam')] + [
        way for way in ways if way == 'random candidate'
    ]
    return (known + [way for way in ways if way.startswith('first of ')] + ways)[0]


def _pack(data, paths, faults):
    try:
        text = json.dumps(data, separators=(',', ':'), allow_nan=False)
    except ValueError:
        faults.append(f'{paths.result} and the files beside it: a number that is not finite is shown as missing')
        text = json.dumps(_without_nan(data), separators=(',', ':'))
    return base64.b64encode(gzip.compress(text.encode('ascii'), 6, mtime=0)).decode('ascii')


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
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
