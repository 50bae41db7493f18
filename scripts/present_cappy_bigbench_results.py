"""Results of cappy_bigbench.py: as the reference prints them, or as tables beside published figures and other picks.

    python scripts/present_cappy_bigbench_results.py --gen_models flan-t5-xxl
    python scripts/present_cappy_bigbench_results.py --gen_models flan-t5-xl,flan-t5-xxl --format table
    python scripts/present_cappy_bigbench_results.py --results_dir R/seed1,R/seed2 --format markdown --show comparisons
    python scripts/present_cappy_bigbench_results.py --gen_models all --format table --plot gain.pdf
    python scripts/present_cappy_bigbench_results.py --gen_models all --format table --metric chrf

Without --format: the JSON and the average that the reference prints (on bigbench_cappy_results/published: 0.236543
0.276178 0.303802 0.332775 0.371678 from small to xxl). With it, tables of rougeL x 100: one row per cell, with its
interval (bootstrap over examples), and their average; and one row per pick that ours is compared with over tasks (the
gain with its interval by bootstrap over tasks, Wilcoxon's signed-rank test, Holm's correction for the number of rows).
Intervals are at 95%. csv and json hold fractions, gains over every pick included. With --metric the stored scores pick
again and the picks are measured by it, without a model. Tables go to standard output, remarks on what is missing or
broken to standard error.
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli import flags, tables
from cappy.cli.process_pool import run_over_files
from cappy.errors import InputError
from cappy.files.inputs import size
from cappy.files.updates import read_updates
from cappy.files.wording import listed, near_names
from cappy.study import cells, comparisons, curves, measured_again, plots
from cappy.study.cells import ADAPTED, ORACLE, OURS, PUBLISHED, Cell
from cappy.study.comparisons import ROUGEL, Results, key_of
from cappy.study.results import ResultPaths
from cappy.study.verdict import common_reference_pick
from cappy.tasks.metrics import find_metric, title
from cappy.tasks.statistics import MIN_TASKS_FOR_INTERVAL

ROOT = Path(__file__).resolve().parents[1]
GENERATOR = 'flan-t5-xxl'  # the default of the reference
RANDOM = 'random candidate'
BEAM = 'first of beam4'
USUAL = (PUBLISHED, RANDOM, BEAM, 'self-score sum', 'consensus', ADAPTED, ORACLE)  # beside which ours is shown


def main(
    data_dir='bigbench_data',  # folder of subset_names.json, the list of tasks
    results_dir: flags.Names = ('bigbench_cappy_results',),  # with {generator}/{task}.json; a,b,c: a folder per seed
    gen_models: flags.Names | None = None,  # generators a,b,c, or all; default: flan-t5-xxl, or all where it is missing
    tasks: flags.Names | None = None,  # a,b,c; default: those with results; all: those of subset_names.json, too
    format: Literal['reference', 'table', 'markdown', 'latex', 'csv', 'json'] = 'reference',
    show: Literal['cells', 'averages', 'comparisons', 'all'] = 'all',  # which tables; csv holds one, by default cells
    columns: Literal['values', 'gains', 'all'] = 'values',  # rougeL of the other picks, gains over them, or both
    against: flags.Names | None = None,  # picks to compare with, a,b,c, or all; default: published and the usual ones
    published_dir: str | None = None,  # folder of the figures called published; default: those of this checkout
    intervals=True,  # read the candidates of each cell, for the intervals of gains over examples
    n_workers: flags.Count | None = None,  # processes; default: one per core
    plot: str | None = None,  # also draw this file, .png, .svg or .pdf; needs matplotlib
    picture: Literal['gain', 'heatmap', 'samples', 'scores', 'training'] = 'gain',  # what the plot shows
    bigbench_gen_dir: str | None = None,  # folder of samples, for that picture and --metric; default: each result's own
    metric: str
    | None = None,  # instead of rougeL: exact_match, chrf, or module:function; measures stored results again
):
    """Print the results of a sweep."""
    if plot:
        plots.check(plot)
    elif picture != 'gain':
        raise InputError(f'--picture {picture}: --plot says which file it goes to')
    if metric:
        find_metric(metric)
        if picture in ('samples', 'scores'):
            raise InputError(f'--picture {picture}: is of rougeL; leave --metric out')
    folders = cells.choose_folders(results_dir)
    generators = choose_generators(gen_models, folders)
    found = cells.found_tasks(folders, generators)
    names = choose_tasks(tasks, data_dir, found, format)
    grid, faults = cells.read_cells(folders, generators, names)
    if not any(cell.is_whole for cell in grid):
        raise InputError(faults[0] if faults else nothing_to_show(folders, generators, names, found))
    results = Results(folders, generators, names, grid)
    if metric:
        faults += measure_again(results, metric, bigbench_gen_dir, n_workers)
        if not any(cell.is_whole for cell in results.grid):
            raise InputError(faults[0])
    notes = [f'{fault}; counted as missing' for fault in faults] + remarks(results, set() if tasks else found)
    if not tasks and format != 'reference':
        notes += cells.missing_tasks(data_dir, names, 'results')
    if format != 'reference' or plot:
        results.published = read_published(results, published_dir) if metric in (None, ROUGEL) else {}
        results.picks = choose_picks(results, against)
        needs_examples = format != 'reference' and show in ('cells', 'all') or plot and picture == 'gain'
        if not intervals:
            results.examples = {}
        elif needs_examples and not metric:
            notes += read_examples(results, n_workers)
    if format == 'reference':
        print_as_reference(results)
    else:
        notes += print_tables(results, format, show, columns)
    if plot:
        figure, more = draw(results, picture, against, bigbench_gen_dir, n_workers)
        plots.save(figure, plot)
        notes += [*more, f'{plot}: written']
    sys.stdout.flush()
    for note in notes:
        print(note, file=sys.stderr)


def choose_generators(asked, folders):
    """The generators asked for; by default the reference's where it has results, else all."""
    if asked is None or asked == ('all',):
        known = cells.choose_generators(None, folders, '--gen_models')
        return [GENERATOR] if asked is None and GENERATOR in known else known
    return cells.choose_generators(asked, folders, '--gen_models')


def choose_tasks(asked, data_dir, found, style):
    """As `cells.choose_tasks`; but the reference's format shows the whole list where there is a result of it."""
    known = cells.listed_tasks(data_dir) if style == 'reference' and asked is None else []
    return known if found & set(known) else cells.choose_tasks(asked, data_dir, found)


def nothing_to_show(folders, generators, tasks, found):
    """Why there is no result at all."""
    where = ', '.join(map(str, folders))
    if not found:
        return f'{where}: no results of {listed(generators)}; cappy_bigbench.py and run_cappy_bigbench.py write them'
    everywhere = ' in every folder' if len(folders) > 1 else ''
    wanted = f'no result of {listed(generators)} for {listed(tasks)}{everywhere}'
    return f'{where}: {wanted}; --tasks takes {listed(sorted(found))}'


def print_as_reference(results):
    """JSON and average as the reference prints them; a missing result is null and not in the average."""
    rougeL = {(cell.generator, cell.task): cell.rougeL for cell in results.grid}
    tasks, counted = results.tasks, results.whole_tasks()
    by_generator = {generator: {task: rougeL[generator, task] for task in tasks} for generator in results.generators}
    measure = '' if results.metric == ROUGEL else f' of {results.metric}'
    print(json.dumps(by_generator, ensure_ascii=False, indent=4))
    over = 'Big-Bench' if len(counted) == len(tasks) else f'{len(counted)} of {len(tasks)} Big-Bench tasks'
    for generator in results.generators:
        whose = f', {generator}' if len(results.generators) > 1 else ''
        average = np.mean([rougeL[generator, task] for task in counted]) if counted else None
        print(f'Average{measure} on {over}{whose}: {average}')


def remarks(results, found):
    """What a reader should know of the results, one line each. found: tasks that might have been shown."""
    missing = {}
    for cell in results.grid:
        for folder, result in zip(results.folders, cell.results, strict=True):
            if result is None:
                missing.setdefault((cell.generator, folder), []).append(cell.task)
    notes = [f'{folder}/{generator}: no result of {listed(names)}' for (generator, folder), names in missing.items()]
    notes += incomplete_tasks(results)
    notes += describe_ours(results)
    notes += cells.describe(results.grid)
    if differing := cells.differing_settings(results.grid):
        values = '; '.join(
            f'{name} ' + ', '.join(f'{value} ({n} result{"" if n == 1 else "s"})' for value, n in counts.items())
            for name, counts in differing.items()
        )
        notes.append(f'results of different settings: {values}')
    if more := sorted(found - set(results.tasks)):
        notes.append(f'not shown, since not in the list of tasks: {listed(more)}; --tasks shows them')
    return notes


def describe_ours(results):
    """A remark on which pick ours is, where it is not that of the adapted scorer in all results; in a list."""
    counts = {}
    for result in (result for cell in results.grid for result in cell.results if result):
        counts[cells.ours_of(result)] = counts.get(cells.ours_of(result), 0) + 1
    if len(counts) > 1:
        of_each = ', '.join(f'{pick} ({n} result{"" if n == 1 else "s"})' for pick, n in counts.items())
        return [f'ours is the {OURS}: {of_each}']
    return [] if set(counts) <= {ADAPTED} else [f'ours is the {cells.subject_of(results.ours)}']


def incomplete_tasks(results):
    """A remark where some tasks are not in the averages, in a list."""
    n_whole, n_tasks = len(results.whole_tasks()), len(results.tasks)
    if n_whole == n_tasks:
        return []
    of_whom = ' of every generator' if len(results.generators) > 1 else ''
    where = ' in every folder' if len(results.folders) > 1 else ''
    if n_whole:
        return [
            f'averages and comparisons are over the {n_whole} of {n_tasks} tasks that have a result{of_whom}{where}'
        ]
    remedy = 'choose fewer generators with --gen_models, or run the missing cells'
    return [f'no averages and comparisons: no task has a result{of_whom}{where}; {remedy}']


def read_published(results, published_dir):
    """{(generator, task): published rougeL}. Raises InputError where a file is not a result."""
    published_dir = Path(published_dir or ROOT / 'bigbench_cappy_results' / PUBLISHED)
    published, faults = cells.read_published(published_dir, results.folders, results.generators, results.tasks)
    if faults:
        raise InputError(faults[0])
    return published


def choose_picks(results, against):
    """Names of the picks beside which ours is shown."""
    known = [PUBLISHED] if any(value is not None for value in results.published.values()) else []
    known += dict.fromkeys(pick for cell in results.grid for pick in cell.picks() if pick != results.ours)
    if against == ('all',):
        return known
    if against is None:
        first = next((pick for pick in known if pick.startswith('first of ')), None)
        usual = [first if pick == BEAM and pick not in known else pick for pick in USUAL]
        return [pick for pick in usual if pick in known]
    picks = []
    for name in against:
        pick = f'first of {name}' if f'first of {name}' in known else name
        if pick not in known:
            raise InputError(f'--against {name}: not in these results{near_names(name, known, "them")}')
        picks.append(pick)
    return picks


def measure_again(results, metric, gens_dir, n_workers):
    """Put the cells in place that another metric gives, with what their examples give; returns what went wrong."""
    known = [cell for cell in results.grid if any(cell.results)]
    paths = [[ResultPaths(folder, cell.generator, cell.task) for folder in results.folders] for cell in known]
    arguments = [(of_cell, cell.results, metric, gens_dir) for of_cell, cell in zip(paths, known, strict=True)]
    sizes = [sum(size(path.candidates) for path in of_cell) for of_cell in paths]
    read = run_over_files(measured_again.measure_cell, arguments, sizes, n_workers, progress=f'measuring {metric}')
    faults, grid = [], {(cell.generator, cell.task): cell for cell in results.grid}
    for cell, made in zip(known, read, strict=True):
        key = cell.generator, cell.task
        if isinstance(made, InputError):
            faults.append(str(made))
        measured, examples = ((None,) * len(cell.results), None) if isinstance(made, InputError) else made
        grid[key] = Cell(*key, measured)
        if examples:
            results.examples[key] = examples
    results.grid, results.metric = list(grid.values()), metric
    return faults


def read_examples(results, n_workers):
    """Fill results.examples from the candidates; returns remarks on files that are broken."""
    arguments, sizes = [], []
    for cell in results.grid:
        if cell.is_whole and all('comparison' in result for result in cell.results):
            paths = [ResultPaths(folder, cell.generator, cell.task) for folder in results.folders]
            picks = [cells.ours_of(result) for result in cell.results]
            arguments.append((paths, [result['rougeL'] for result in cell.results], picks))
            sizes.append(sum(size(path.candidates) for path in paths))
    read = run_over_files(cells.examples_of_cell, arguments, sizes, n_workers, progress='reading candidates')
    notes = []
    for (paths, *_), examples in zip(arguments, read, strict=True):
        if isinstance(examples, InputError):
            notes.append(f'{examples}; no intervals from it')
        else:
            results.examples[paths[0].generator, paths[0].task] = examples
    return notes


def print_tables(results, style, show, columns):
    """Print the tables; returns remarks on them."""
    rows = {
        'cells': comparisons.cell_rows(results),
        'averages': comparisons.average_rows(results),
        'comparisons': comparisons.comparison_rows(results),
    }
    notes = too_few_tasks(results, rows) if show != 'cells' or style not in ('csv', 'json') else []
    if style in ('csv', 'json'):
        print(as_data(results, rows, style, show))
        if style == 'csv' and show == 'all':
            notes.append('csv holds one table, here that of cells; --show averages or comparisons gives the others')
        return notes
    for row in itertools.chain(*rows.values()):
        add_texts(row, results.picks)
    texts = []
    if show in ('cells', 'all'):
        texts += cell_tables(results, rows, style, columns)
    elif show == 'averages':
        texts.append(tables.format_table(rows['averages'], average_columns(results, columns), style))
    # Of published results, say, there is nothing to compare with.
    if show == 'comparisons' or (show == 'all' and rows['comparisons']):
        texts.append(tables.format_table(rows['comparisons'], comparison_columns(results), style))
    print('\n\n'.join(texts))
    return notes


def too_few_tasks(results, rows):
    """A remark where averages and comparisons have no intervals for lack of tasks, in a list."""
    if not rows['averages'] or len(results.whole_tasks()) >= MIN_TASKS_FOR_INTERVAL:
        return []
    n = f'fewer than {MIN_TASKS_FOR_INTERVAL} tasks ({len(results.whole_tasks())})'
    return [f'averages and comparisons have no interval and no p, since there are {n}']


def as_data(results, rows, style, show):
    """The tables as csv or json, with all columns."""
    has_names = any(cell.ours != ADAPTED for cell in results.grid if any(cell.results))
    columns = {
        'cells': ['generator', 'task', *(['pick'] if has_names else []), 'n_examples', *data_columns(results)],
        'averages': ['generator', 'n_tasks', *data_columns(results)],
        'comparisons': [
            *('generator', 'against', 'n_tasks', 'rougeL', 'theirs', 'gain', 'gain_low', 'gain_high'),
            *('n_better', 'n_worse', 'p', 'p_holm'),
        ],
    }
    columns = {
        name: [key_of(results.metric) if key == ROUGEL else key for key in keys] for name, keys in columns.items()
    }
    rows = {name: [row | {key_of(results.metric): row[ROUGEL]} for row in of_table] for name, of_table in rows.items()}
    if show == 'all' and style == 'json':
        values = {name: tables.table_values(rows[name], columns[name]) for name in columns}
        return json.dumps(values, ensure_ascii=False, indent=4)
    name = 'cells' if show == 'all' else show
    return tables.format_table(rows[name], columns[name], style)


def data_columns(results):
    """Keys of ours, of its spread over seeds, and of the picks with the gains over them."""
    seeds = ['n_results', 'std', 'seeds_low', 'seeds_high'] if len(results.folders) > 1 else []
    metrics = list(map(key_of, results.metrics))
    columns = ['rougeL', 'low', 'high', *metrics, 'n_tied', 'over_ties', *seeds]
    for pick in results.picks:
        ends = ('',) if pick == ORACLE else ('', '_gain', '_gain_low', '_gain_high')
        columns += [f'{key_of(pick)}{end}' for end in (*ends, *(f'_{metric}' for metric in metrics))]
    return columns


def add_texts(row, picks):
    """Add intervals, gains and p as a reader sees them, rougeL x 100, and which values are the best of the row."""
    for prefix in ('', *(f'{key_of(pick)}_' for pick in picks)):
        gain, low, high = (row.get(f'{prefix}gain{end}') for end in ('', '_low', '_high'))
        if gain is not None:
            between = '' if low is None else f' ({100 * low:+.1f} to {100 * high:+.1f})'
            row[f'{prefix}gain_text'] = f'{100 * gain:+.1f}{between}'
    if row.get('low') is not None:
        row['interval'] = f'{100 * row["low"]:.1f} to {100 * row["high"]:.1f}'
    for name in ('p', 'p_holm'):
        if row.get(name) is not None:
            row[f'{name}_text'] = f'{row[name]:.2g}'
    values = {key: row.get(key) for key in ('rougeL', *(key_of(pick) for pick in picks if pick != ORACLE))}
    shown = {key: round(100 * value, 1) for key, value in values.items() if value is not None}
    row |= {f'{key}_is_best': value == max(shown.values()) for key, value in shown.items()}


def cell_tables(results, rows, style, columns):
    """A table of each generator's cells, with their average in the last row; headed by its name where several are."""
    heading = {'table': '{}', 'markdown': '**{}**\n', 'latex': '% {}'}[style]
    texts = []
    for generator in results.generators:
        averages = [
            row | {'task': f'average of {row["n_tasks"]} tasks'} for row in rows['averages'] if row['n_tasks'] > 1
        ]
        of_generator = [row for row in (*rows['cells'], *averages) if row['generator'] == generator]
        table = tables.format_table(of_generator, ['task', *cell_columns(results, columns)], style)
        texts.append(f'{heading.format(generator)}\n{table}' if len(results.generators) > 1 else table)
    return texts


def header_of_ours(results):
    """Says of what the values are, where it is not rougeL."""
    return 'ours' if results.metric == ROUGEL else f'ours\n({title(results.metric)})'


def cell_columns(results, columns):
    """Columns of ours and of the picks."""
    made = [tables.percent('rougeL', header_of_ours(results), bold='rougeL_is_best')]
    made.append(tables.Column('interval', '95%\ninterval'))
    if results.ours == OURS:
        made.insert(0, 'pick')
    made += [tables.percent(key_of(name), f'{title(name)}\nx 100') for name in results.metrics]
    if any(ties and ties['n_tied'] for ties in (cell.ties_of(OURS) for cell in results.grid)):
        made.append(tables.percent('over_ties', 'over\nties'))
    if len(results.folders) > 1:
        made.append(tables.percent('std', 'std over\nseeds'))
    if columns == 'all' and results.examples:
        made.append(tables.Column('n_examples', 'examples'))
    for pick in results.picks:
        key, header = key_of(pick), '\n'.join(pick.rsplit(' ', 1))
        if columns != 'gains':
            made.append(tables.percent(key, header, bold=f'{key}_is_best'))
        if columns != 'values' and pick != ORACLE:
            made.append(tables.Column(f'{key}_gain_text', f'gain over\n{pick}'))
    return made


def average_columns(results, columns):
    """Columns of a table of averages alone."""
    return ['generator', tables.Column('n_tasks', 'tasks'), *cell_columns(results, columns)]


def comparison_columns(results):
    """Columns of the table of comparisons."""
    return [
        *(['generator'] if len(results.generators) > 1 else []),
        'against',
        tables.Column('n_tasks', 'tasks'),
        tables.percent('rougeL', header_of_ours(results)),
        tables.percent('theirs'),
        tables.Column('gain_text', 'gain (95% over tasks)'),
        tables.Column('n_better', 'better'),
        tables.Column('n_worse', 'worse'),
        tables.Column('p_text', 'Wilcoxon p'),
        tables.Column('p_holm_text', "Holm's p"),
    ]


def draw(results, picture, against, gens_dir, n_workers):
    """(the picture, remarks on it)."""
    if picture == 'gain' or (picture == 'heatmap' and against):
        pick = results.picks[0] if against else pick_for_picture(results)
        rows = comparisons.gain_rows(results, pick) if pick else []
        if not rows:
            raise InputError(f'--picture {picture}: no cell has {pick or "a pick"} to compare with; see --against')
        notes = without_pick(results, rows, pick)
        if picture == 'gain':
            return plots.gain_per_task(rows, f'{pick}{over_seeds(results)}', results.metric), notes
        values, label = {(row['generator'], row['task']): row['gain'] for row in rows}, f'gain over {pick}'
    elif picture == 'heatmap':
        values, label, notes = {(cell.generator, cell.task): cell.rougeL for cell in results.grid}, results.metric, []
    else:
        return draw_files(results, picture, gens_dir, n_workers)
    table = [[values.get((name, task)) for name in results.generators] for task in results.tasks]
    table = np.array(table, np.float64)  # None becomes NaN
    label = f'{label} x 100{over_seeds(results)}'
    return plots.heat_map(results.generators, results.tasks, table, label, centred=bool(against)), notes


def pick_for_picture(results):
    """The pick over which gains are drawn: that of beam search where the cells have it, as on the page of results."""
    return common_reference_pick(
        [
            [pick for pick in results.picks if pick != ORACLE and results.rougeL_of(cell, pick) is not None]
            for cell in results.grid
            if cell.is_whole
        ]
    )


def without_pick(results, rows, pick):
    """A remark on generators that are not, or not with all cells, in a picture of gains, in a list."""
    drawn = {(row['generator'], row['task']) for row in rows}
    left_out = {}
    for cell in results.grid:
        if cell.is_whole and (cell.generator, cell.task) not in drawn:
            left_out.setdefault(cell.generator, []).append(cell.task)
    return [
        f'{generator}: no {pick} for {listed(tasks)}, so not in the picture' for generator, tasks in left_out.items()
    ]


def over_seeds(results):
    """What the label of a picture adds where values are means over seeds."""
    return f', mean of {len(results.folders)} seeds' if len(results.folders) > 1 else ''


def draw_files(results, picture, gens_dir, n_workers):
    """Pictures made from the cells' files in the first of the folders."""
    known = [cell for cell in results.grid if cell.results[0]]
    paths = [ResultPaths(results.folders[0], cell.generator, cell.task) for cell in known]
    if picture == 'samples':
        work = curves.sample_curves_of_cell
        arguments = [(path, cell.results[0], gens_dir) for path, cell in zip(paths, known, strict=True)]
    elif picture == 'scores':
        work, arguments = curves.read_scores, [(path.candidates,) for path in paths]
    else:
        work, arguments = read_updates, [(path.updates,) for path in paths]
    sizes = [size(path.candidates) for path in paths]
    read = run_over_files(work, arguments, sizes, n_workers, progress='reading for the picture')
    faults = [str(values) for values in read if isinstance(values, InputError)]
    made = {path: values for path, values in zip(paths, read, strict=True) if not isinstance(values, InputError)}
    if not made:
        raise InputError(faults[0])
    notes = [f'{fault}; not in the picture' for fault in faults]
    if len(results.folders) > 1:
        notes.append(f'the picture is of {results.folders[0]} only')
    figure, more = {'samples': draw_samples, 'scores': draw_scores, 'training': draw_training}[picture](made)
    return figure, notes + more


def draw_samples(made):
    """One panel per generator, the mean of its tasks; made: curves.sample_curves_of_cell by ResultPaths."""
    once = [path.task for path, (_, _, are_drawn) in made.items() if not are_drawn]
    note = f'no file of samples of {listed(once)}, so each candidate counts once; --bigbench_gen_dir says where it is'
    panels = {name: mean_curves([values[:2] for values in of_cells]) for name, of_cells in by_generator(made).items()}
    what = 'different samples of an instruction' if once else 'samples of an instruction'
    return plots.sample_curves(panels, what), [note] if once else []


def draw_scores(made):
    """One panel per generator, the candidates of all its tasks; made: curves.read_scores by ResultPaths."""
    panels = {}
    for name, of_cells in by_generator(made).items():
        scores, rougeL = zip(*of_cells, strict=True)
        panels[name] = list(itertools.chain(*scores)), list(itertools.chain(*rougeL))
    return plots.score_against_rougeL(panels), []


def draw_training(made):
    """One line per cell; made: read_updates by ResultPaths."""
    return plots.training_curves({f'{path.generator}, {path.task}': updates for path, updates in made.items()}), []


def by_generator(made):
    """{generator: its cells' values}."""
    grouped = {}
    for path, values in made.items():
        grouped.setdefault(path.generator, []).append(values)
    return grouped


def mean_curves(of_cells):
    """Means over cells, at the sizes and of the picks that all of them have."""
    sizes = [size for size in of_cells[0][0] if all(size in own for own, _ in of_cells)]
    picks = [pick for pick in of_cells[0][1] if all(pick in curves_of for _, curves_of in of_cells)]
    return sizes, {
        pick: np.mean([[curves_of[pick][own.index(size)] for size in sizes] for own, curves_of in of_cells], axis=0)
        for pick in picks
    }


if __name__ == '__main__':
    flags.run(
        main,
        aliases={'bigbench_data_dir': 'data_dir', 'result_dir': 'results_dir', 'gen_model_name': 'gen_models'},
    )
