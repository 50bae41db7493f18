"""Results of cappy_bigbench.py: as the reference prints them, and beside published figures and other ways of picking.

    python scripts/present_cappy_bigbench_results.py --gen_model_name flan-t5-xxl
    python scripts/present_cappy_bigbench_results.py --gen_model_name flan-t5-xl,flan-t5-xxl --format table
    python scripts/present_cappy_bigbench_results.py --result_dir R/seed1,R/seed2 --format markdown --show comparisons
    python scripts/present_cappy_bigbench_results.py --gen_model_name all --format table --plot gain.pdf

Without --format: the JSON and the average that the reference prints (on bigbench_cappy_results/published: 0.236543
0.276178 0.303802 0.332775 0.371678). With it, tables of rougeL x 100: a row for each cell with its interval (bootstrap
over examples) and its gains over other ways of picking (paired bootstrap); and a row for each way that ours is compared
with over tasks (bootstrap over tasks, Wilcoxon's signed-rank test, Holm's correction for the number of rows). Tables go
to standard output, what is missing or broken to standard error.
"""

import itertools
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from cappy.cli import flags, tables
from cappy.cli.process_pool import run_over_files
from cappy.errors import InputError
from cappy.files.jsonl import listed, near_names
from cappy.files.updates import read_updates
from cappy.study import cells, curves, plots
from cappy.study.cells import ADAPTED, PUBLISHED, Cell, CellExamples
from cappy.study.results import ResultPaths
from cappy.tasks.statistics import bootstrap_interval, holm, paired_bootstrap, signed_rank_p, spread

ROOT = Path(__file__).resolve().parents[1]
ORACLE = 'oracle'  # knows the references, so nothing is tested against it
USUAL = (PUBLISHED, 'first of beam4', 'self-score sum', 'consensus', ORACLE)  # what ours is shown beside


def main(
    bigbench_data_dir='bigbench_data',  # subset_names.json lies here
    result_dir='bigbench_cappy_results',  # {generator}/{task}.json, or seed1, .. with these; a,b,c: a folder a seed
    gen_model_name='flan-t5-xxl',  # a,b,c for several; all: those that have a folder
    tasks: str | None = None,  # a,b,c; default: all of subset_names.json
    format: Literal['reference', 'table', 'markdown', 'latex', 'csv', 'json'] = 'reference',
    show: Literal['cells', 'comparisons', 'both'] = 'both',  # of the two tables
    against: str | None = None,  # ways to compare with, a,b,c, or all; default: published and the usual ones
    published_dir: str | None = None,  # the figures called published; default: those of this checkout
    intervals=True,  # bootstrap over the examples of each cell, from its candidates
    n_resamples=2000,  # of each bootstrap
    seed=0,  # of the bootstraps
    n_workers: int | None = None,  # processes; default: one for each core
    plot: str | None = None,  # also draw this file, .png, .svg or .pdf; needs matplotlib
    picture: Literal['gain', 'heatmap', 'samples', 'scores', 'training'] = 'gain',  # what it shows
    bigbench_gen_dir: str | None = None,  # the samples, for that of samples; default: where each result's were read
):
    """Print the results of a sweep."""
    if plot:
        plots.check(plot)
    elif picture != 'gain':
        raise InputError(f'--picture {picture}: --plot says which file it goes to')
    if n_resamples < 1:
        raise InputError(f'--n_resamples {n_resamples}: expected 1 or more')
    folders = cells.choose_folders(result_dir)
    generators = cells.choose_generators(
        None if gen_model_name == 'all' else gen_model_name, folders, '--gen_model_name'
    )
    found = cells.found_tasks(folders, generators)
    names = cells.choose_tasks(tasks, bigbench_data_dir, found)
    grid, faults = cells.read_cells(folders, generators, names)
    if not any(cell.is_whole for cell in grid):
        raise InputError(faults[0] if faults else nothing_to_show(folders, generators, names, found))
    notes = [f'{fault}; counted as missing' for fault in faults] + remarks(
        grid, folders, names, set() if tasks else found
    )
    sweep = Sweep(folders, generators, names, grid, n_resamples, seed)
    if format != 'reference' or plot:
        sweep.published = read_published(sweep, published_dir)
        sweep.ways = choose_ways(sweep, against)
        if intervals and (show != 'comparisons' and format != 'reference' or plot and picture == 'gain'):
            notes += read_examples(sweep, n_workers)
    if format == 'reference':
        print_as_reference(grid, generators, names)
    else:
        notes += print_tables(sweep, format, show)
    if plot:
        figure, more = draw(sweep, picture, against, bigbench_gen_dir, n_workers)
        plots.save(figure, plot)
        notes += [*more, f'{plot}: written']
    sys.stdout.flush()
    for note in notes:
        print(note, file=sys.stderr)


@dataclass(slots=True)
class Sweep:
    """What the tables are made of. Dictionaries are by (generator, task)."""

    folders: list[Path]
    generators: list[str]
    tasks: list[str]
    grid: list[Cell]
    n_resamples: int
    seed: int
    published: dict = field(default_factory=dict)
    ways: list[str] = field(default_factory=list)  # of picking, that ours is shown beside
    examples: dict[tuple, CellExamples] = field(default_factory=dict)

    def cells_of(self, generator, tasks):
        """The generator's cells of these tasks."""
        return [cell for cell in self.grid if cell.generator == generator and cell.task in tasks]

    def value(self, cell, way):
        """rougeL of a way of picking; None where it is not known."""
        return self.published.get((cell.generator, cell.task)) if way == PUBLISHED else cell.picked(way)

    def differences(self, ours, theirs):
        """Ours minus theirs over tasks, with its interval."""
        return paired_bootstrap(ours, [theirs], n_resamples=self.n_resamples, seed=self.seed)[1][0]


def nothing_to_show(folders, generators, tasks, found):
    """Why there is no result at all."""
    there = f'; there are {listed(sorted(found))}: choose with --tasks' if found else '; cappy_bigbench.py makes them'
    where = ', '.join(map(str, folders))
    return f'{where}: no task of {listed(tasks)} has its result of {listed(generators)}{there}'


def print_as_reference(grid, generators, tasks):
    """JSON and average as the reference prints them; a missing result is null and not in the average."""
    rougeL = {(cell.generator, cell.task): cell.rougeL for cell in grid}
    by_generator = {generator: {task: rougeL[generator, task] for task in tasks} for generator in generators}
    print(json.dumps(by_generator, ensure_ascii=False, indent=4))
    counted = cells.whole_tasks(grid, tasks)
    over = 'Big-Bench' if len(counted) == len(tasks) else f'{len(counted)} of {len(tasks)} Big-Bench tasks'
    for generator in generators:
        whose = f', {generator}' if len(generators) > 1 else ''
        average = np.mean([rougeL[generator, task] for task in counted]) if counted else None
        print(f'Average on {over}{whose}: {average}')


def remarks(grid, folders, tasks, found):
    """What a reader should know of the results, a line each."""
    missing = {}
    for cell in grid:
        for folder, result in zip(folders, cell.results, strict=True):
            if result is None:
                missing.setdefault((cell.generator, folder), []).append(cell.task)
    notes = [f'{folder}/{generator}: no result of {listed(names)}' for (generator, folder), names in missing.items()]
    counted = cells.whole_tasks(grid, tasks)
    if len(counted) < len(tasks):
        notes.append(f'averages and comparisons are over the {len(counted)} of {len(tasks)} tasks that nobody lacks')
    if differing := cells.differing_settings(grid):
        told = '; '.join(
            f'{name} ' + ', '.join(f'{value} ({n} results)' for value, n in counts.items())
            for name, counts in differing.items()
        )
        notes.append(f'results of different settings: {told}')
    if more := sorted(found - set(tasks)):
        notes.append(f'not shown, since not among the tasks: {listed(more)}; --tasks shows them')
    return notes


def read_published(sweep, published_dir):
    """{(generator, task): published rougeL}; nothing where the results are themselves the published ones."""
    published_dir = Path(published_dir or ROOT / 'bigbench_cappy_results' / PUBLISHED)
    if any(folder.resolve() == published_dir.resolve() for folder in sweep.folders):
        return {}
    published, faults = cells.read_cells([published_dir], sweep.generators, sweep.tasks)
    if faults:
        raise InputError(faults[0])
    return {(cell.generator, cell.task): cell.rougeL for cell in published}


def choose_ways(sweep, against):
    """Ways of picking that ours is shown beside, as the comparisons name them."""
    known = [PUBLISHED] if any(value is not None for value in sweep.published.values()) else []
    known += dict.fromkeys(way for cell in sweep.grid for way in cell.ways() if way != ADAPTED)
    if against == 'all':
        return known
    if against is None:
        first = next((way for way in known if way.startswith('first of ')), None)
        usual = [first if way == 'first of beam4' and way not in known else way for way in USUAL]
        return [way for way in usual if way in known]
    ways = []
    for name in cells.split_names(against, '--against'):
        way = f'first of {name}' if f'first of {name}' in known else name
        if way not in known:
            raise InputError(f'--against {name}: not in these results{near_names(name, known, "them")}')
        ways.append(way)
    return ways


def read_examples(sweep, n_workers):
    """Fill sweep.examples from the candidates; -> what is wrong with them."""
    arguments, sizes = [], []
    for cell in sweep.grid:
        if cell.is_whole and all('comparison' in result for result in cell.results):
            paths = [ResultPaths(folder, cell.generator, cell.task) for folder in sweep.folders]
            rougeL = [result['rougeL'] for result in cell.results]
            arguments.append((paths, rougeL, sweep.n_resamples, sweep.seed))
            sizes.append(sum(path.candidates.stat().st_size for path in paths if path.candidates.exists()))
    read = run_over_files(cells.examples_of_cell, arguments, sizes, n_workers, progress='reading candidates')
    notes = []
    for (paths, *_), examples in zip(arguments, read, strict=True):
        if isinstance(examples, InputError):
            notes.append(f'{examples}; no interval')
        else:
            sweep.examples[paths[0].generator, paths[0].task] = examples
    return notes


def cell_rows(sweep):
    """A row for each cell and, after each generator's, one of the means over the tasks that no generator lacks."""
    counted = cells.whole_tasks(sweep.grid, sweep.tasks)
    rows = []
    for generator in sweep.generators:
        rows += [cell_row(sweep, cell) for cell in sweep.cells_of(generator, sweep.tasks)]
        if counted:
            rows.append(average_row(sweep, generator, counted))
    return rows


def cell_row(sweep, cell):
    """Fractions; None where there is no value."""
    row = {'generator': cell.generator, 'task': cell.task, 'rougeL': cell.rougeL}
    row['n_results'] = sum(result is not None for result in cell.results)
    if cell.is_whole:
        over_seeds = spread([result['rougeL'] for result in cell.results])
        row |= {'std': over_seeds.std, 'seeds_low': over_seeds.low, 'seeds_high': over_seeds.high}
    examples = sweep.examples.get((cell.generator, cell.task))
    if examples:
        row |= {'n_examples': examples.n_examples, 'low': examples.low, 'high': examples.high}
    for way in sweep.ways:
        theirs = sweep.value(cell, way)
        row[way] = theirs
        if None not in (theirs, cell.rougeL):
            row[f'{way} gain'] = cell.rougeL - theirs
        if examples and way in examples.differences:
            row |= {
                f'{way} gain_low': examples.differences[way].low,
                f'{way} gain_high': examples.differences[way].high,
            }
    return row


def average_row(sweep, generator, tasks):
    """Means over tasks, with intervals over tasks; a way that lacks one of them has none."""
    of_tasks = sweep.cells_of(generator, tasks)
    ours = [cell.rougeL for cell in of_tasks]
    low, high = bootstrap_interval(ours, n_resamples=sweep.n_resamples, seed=sweep.seed)
    over_seeds = spread(np.mean([[result['rougeL'] for result in cell.results] for cell in of_tasks], axis=0))
    row = {'generator': generator, 'task': f'Average ({len(tasks)})', 'rougeL': float(np.mean(ours))}
    row |= {'low': low, 'high': high, 'n_results': len(sweep.folders)}
    row |= {'std': over_seeds.std, 'seeds_low': over_seeds.low, 'seeds_high': over_seeds.high}
    for way in sweep.ways:
        theirs = [sweep.value(cell, way) for cell in of_tasks]
        if None not in theirs:
            gain = sweep.differences(ours, theirs)
            row |= {way: float(np.mean(theirs)), f'{way} gain': gain.mean}
            row |= {f'{way} gain_low': gain.low, f'{way} gain_high': gain.high}
    return row


def comparison_rows(sweep):
    """A row for each generator and way of picking: ours against it over the tasks where both are known."""
    counted = cells.whole_tasks(sweep.grid, sweep.tasks)
    rows = []
    for generator in sweep.generators:
        for way in sweep.ways:
            pairs = [(cell.rougeL, sweep.value(cell, way)) for cell in sweep.cells_of(generator, counted)]
            pairs = np.array([pair for pair in pairs if pair[1] is not None])
            if way != ORACLE and len(pairs):
                rows.append({'generator': generator, 'against': way, **comparison_row(sweep, *pairs.T)})
    for row, corrected in zip(rows, holm([row['p'] for row in rows]), strict=True):
        row['p_holm'] = corrected
    return rows


def comparison_row(sweep, ours, theirs):
    """ours, theirs: float64 [tasks]."""
    gain = sweep.differences(ours, theirs)
    return {
        'n_tasks': len(ours),
        'rougeL': float(ours.mean()),
        'theirs': float(theirs.mean()),
        'gain': gain.mean,
        'gain_low': gain.low,
        'gain_high': gain.high,
        'n_better': int(np.sum(ours > theirs)),
        'n_worse': int(np.sum(ours < theirs)),
        'p': signed_rank_p(ours, theirs),
    }


def print_tables(sweep, style, show):
    """The tables; -> what should be said of them."""
    made = {}
    if show != 'comparisons':
        made['cells'] = (cell_rows(sweep), cell_columns(sweep, style))
    if show != 'cells':
        made['comparisons'] = (comparison_rows(sweep), comparison_columns(sweep, style))
    if show == 'both' and style != 'json' and not made['comparisons'][0]:
        del made['comparisons']  # of published results, say, there is nothing to compare with
    if style == 'json' and len(made) > 1:
        both = {name: tables.table_values(rows, columns) for name, (rows, columns) in made.items()}
        print(json.dumps(both, ensure_ascii=False, indent=4))
        return []
    notes = []
    if style == 'csv' and len(made) > 1:
        del made['comparisons']  # two tables are no csv
        notes.append('csv holds one table, here that of cells; --show comparisons gives the other')
    for rows, _ in made.values() if style not in ('csv', 'json') else ():
        for row in rows:
            add_texts(row, sweep.ways)
    print('\n\n'.join(tables.format_table(rows, columns, style) for rows, columns in made.values()))
    return notes


def add_texts(row, ways):
    """Intervals, gains and p as a reader sees them, rougeL x 100."""
    for name in ('', *(f'{way} ' for way in ways)):
        gain, low, high = (row.get(f'{name}gain{end}') for end in ('', '_low', '_high'))
        if gain is not None:
            between = '' if low is None else f' ({100 * low:+.2f} to {100 * high:+.2f})'
            row[f'{name}gain_text'] = f'{100 * gain:+.2f}{between}'
    if row.get('low') is not None:
        row['interval'] = f'{100 * row["low"]:.2f} to {100 * row["high"]:.2f}'
    for name in ('p', 'p_holm'):
        if row.get(name) is not None:
            row[f'{name}_text'] = f'{row[name]:.2g}'


def cell_columns(sweep, style):
    """Columns of the table of cells: all that is known for programs, texts for readers."""
    whose = ['generator'] if len(sweep.generators) > 1 or style in ('csv', 'json') else []
    seeds = ['n_results', 'std', 'seeds_low', 'seeds_high'] if len(sweep.folders) > 1 else []
    if style in ('csv', 'json'):
        ends = ('', ' gain', ' gain_low', ' gain_high')
        ways = [f'{way}{end}' for way in sweep.ways for end in ends]
        return [*whose, 'task', 'n_examples', 'rougeL', 'low', 'high', *seeds, *ways]
    ways = []
    for way in sweep.ways:
        ways += [two_decimals(way, way.removeprefix('first of ')), tables.Column(f'{way} gain_text', 'gain')]
    over_seeds = [tables.Column('n_results', 'seeds'), two_decimals('std', 'std over seeds')] if seeds else []
    examples = [tables.Column('n_examples', 'examples')] if sweep.examples else []
    ours = [two_decimals('rougeL', 'ours'), tables.Column('interval', '95%')]
    return [*whose, 'task', *examples, *ours, *over_seeds, *ways]


def comparison_columns(sweep, style):
    """Columns of the table of comparisons."""
    whose = ['generator'] if len(sweep.generators) > 1 or style in ('csv', 'json') else []
    if style in ('csv', 'json'):
        gains = ['gain', 'gain_low', 'gain_high', 'n_better', 'n_worse', 'p', 'p_holm']
        return [*whose, 'against', 'n_tasks', 'rougeL', 'theirs', *gains]
    return [
        *whose,
        'against',
        tables.Column('n_tasks', 'tasks'),
        two_decimals('rougeL', 'ours'),
        two_decimals('theirs', 'theirs'),
        tables.Column('gain_text', 'gain (95% over tasks)'),
        tables.Column('n_better', 'better'),
        tables.Column('n_worse', 'worse'),
        tables.Column('p_text', 'Wilcoxon p'),
        tables.Column('p_holm_text', "Holm's p"),
    ]


def draw(sweep, picture, against, gens_dir, n_workers):
    """(the picture, what should be said of it)."""
    if picture == 'gain' or (picture == 'heatmap' and against):
        way = next((way for way in sweep.ways if against or way not in (PUBLISHED, ORACLE)), PUBLISHED)
        rows = gain_rows(sweep, way)
        if not rows:
            raise InputError(f'--picture {picture}: no cell has {way} to compare with; see --against')
        if picture == 'gain':
            return plots.gain_per_task(rows, f'{way}{over_seeds(sweep)}'), []
        values, label = {(row['generator'], row['task']): row['gain'] for row in rows}, f'gain over {way}'
    elif picture == 'heatmap':
        values, label = {(cell.generator, cell.task): cell.rougeL for cell in sweep.grid}, 'rougeL'
    else:
        return draw_files(sweep, picture, gens_dir, n_workers)
    table = [[values.get((name, task)) for name in sweep.generators] for task in sweep.tasks]
    table = np.array(table, np.float64)  # None becomes NaN
    label = f'{label} x 100{over_seeds(sweep)}'
    return plots.heat_map(sweep.generators, sweep.tasks, table, label, centred=bool(against)), []


def over_seeds(sweep):
    """What a picture says of values that are means."""
    return f', mean of {len(sweep.folders)} seeds' if len(sweep.folders) > 1 else ''


def gain_rows(sweep, way):
    """Ours minus a way of picking, of each cell where both are known, with its interval where there is one."""
    rows = []
    for cell in sweep.grid:
        theirs = sweep.value(cell, way)
        if None in (theirs, cell.rougeL):
            continue
        examples = sweep.examples.get((cell.generator, cell.task))
        known = examples.differences.get(way) if examples else None
        interval = {'low': known.low, 'high': known.high} if known else {}
        rows.append({'generator': cell.generator, 'task': cell.task, 'gain': cell.rougeL - theirs} | interval)
    return rows


def draw_files(sweep, picture, gens_dir, n_workers):
    """Pictures made from the cells' files in the first of the folders."""
    known = [cell for cell in sweep.grid if cell.results[0]]
    paths = [ResultPaths(sweep.folders[0], cell.generator, cell.task) for cell in known]
    if picture == 'samples':
        work = curves.sample_curves_of_cell
        arguments = [(path, cell.results[0], gens_dir) for path, cell in zip(paths, known, strict=True)]
    elif picture == 'scores':
        work, arguments = curves.read_scores, [(path.candidates,) for path in paths]
    else:
        work, arguments = read_updates, [(path.updates,) for path in paths]
    sizes = [path.candidates.stat().st_size if path.candidates.exists() else 0 for path in paths]
    read = run_over_files(work, arguments, sizes, n_workers, progress='reading for the picture')
    faults = [str(values) for values in read if isinstance(values, InputError)]
    made = {path: values for path, values in zip(paths, read, strict=True) if not isinstance(values, InputError)}
    if not made:
        raise InputError(faults[0])
    notes = [f'{fault}; not in the picture' for fault in faults]
    if len(sweep.folders) > 1:
        notes.append(f'the picture is of {sweep.folders[0]} alone')
    figure, more = {'samples': draw_samples, 'scores': draw_scores, 'training': draw_training}[picture](made)
    return figure, notes + more


def draw_samples(made):
    """A panel a generator, the mean of its tasks; made: curves.sample_curves_of_cell by ResultPaths."""
    once = [path.task for path, (_, _, are_drawn) in made.items() if not are_drawn]
    note = f'no file of samples of {listed(once)}, so each different one counts once; --bigbench_gen_dir says where'
    panels = {name: mean_curves([values[:2] for values in of_cells]) for name, of_cells in by_generator(made).items()}
    what = 'different samples of an instruction' if once else 'samples of an instruction'
    return plots.sample_curves(panels, what), [note] if once else []


def draw_scores(made):
    """A panel a generator, the candidates of all its tasks; made: curves.read_scores by ResultPaths."""
    panels = {}
    for name, of_cells in by_generator(made).items():
        scores, rougeL = zip(*of_cells, strict=True)
        panels[name] = list(itertools.chain(*scores)), list(itertools.chain(*rougeL))
    return plots.score_against_rougeL(panels), []


def draw_training(made):
    """A line a cell; made: results.read_updates by ResultPaths."""
    return plots.training_curves({f'{path.generator}, {path.task}': updates for path, updates in made.items()}), []


def by_generator(made):
    """{generator: its cells' values}."""
    grouped = {}
    for path, values in made.items():
        grouped.setdefault(path.generator, []).append(values)
    return grouped


def mean_curves(of_cells):
    """Means over cells, at the sizes and of the ways that all of them have."""
    sizes = [size for size in of_cells[0][0] if all(size in own for own, _ in of_cells)]
    ways = [way for way in of_cells[0][1] if all(way in made for _, made in of_cells)]
    return sizes, {
        way: np.mean([[made[way][own.index(size)] for size in sizes] for own, made in of_cells], axis=0) for way in ways
    }


def two_decimals(key, header):
    """A column of fractions times 100."""
    return tables.Column(key, header, scale=100, decimals=2)


if __name__ == '__main__':
    flags.run(main)
