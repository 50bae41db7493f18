"""One HTML page of a folder of results, to be read in a browser without a network.

    python scripts/report.py --results_dir bigbench_cappy_results --output report.html
    python scripts/report.py --results_dir R/seed1,R/seed2,R/seed3

The page begins with a verdict and the gains over the other picks, as means over tasks. It shows all cells as a grid and
as a table that sorts and filters; of each cell the intervals of all picks, published numbers, curves, settings, and its
examples with every candidate. Of several seeds it shows means and spreads, and the curves and examples of each.
Instructions, references and how often a sample was drawn come from the generators' files where they are available. What
is broken is named in the page and on standard error.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli import flags
from cappy.cli.process_pool import run_over_files
from cappy.errors import InputError
from cappy.files.inputs import size
from cappy.files.outputs import check_files, is_standard_output, is_stream
from cappy.files.wording import listed
from cappy.study import cells, report
from cappy.study.cells import PUBLISHED
from cappy.study.results import ResultPaths

ROOT = Path(__file__).resolve().parents[1]


def main(
    results_dir: flags.Names = ('bigbench_cappy_results',),  # {generator}/{task}.json; a,b,c: one folder per seed
    output='report.html',  # the page; a device or a pipe is written as it is, - is standard output
    data_dir='bigbench_data',  # folder of subset_names.json, the list of tasks
    gen_models: flags.Names | None = None,  # generators; default: those that have a folder
    tasks: flags.Names | None = None,  # default: all with results; all: those of subset_names.json without, too
    bigbench_gen_dir: str | None = None,  # the generators' files; default: where each result read them
    published_dir: str | None = None,  # the published numbers; default: those of this checkout
    max_examples: flags.Count = 1000,  # examples per cell, those of the largest differences
    n_workers: flags.Count | None = None,  # processes; default: one per core
):
    """Write one HTML page of the results of a sweep."""
    check_files(output, streams=True)
    folders = cells.choose_folders(results_dir)
    generators = cells.choose_generators(gen_models, folders, '--gen_models')
    names = cells.choose_tasks(tasks, data_dir, cells.found_tasks(folders, generators))
    grid, faults = cells.read_cells(folders, generators, names)
    known = [cell for cell in grid if cell.is_whole]
    if not known:
        raise InputError(faults[0] if faults else f'{listed(map(str, folders))}: no result of {listed(generators)}')
    faults += missing_seeds(folders, grid)
    pages = build_pages(folders, known, bigbench_gen_dir, max_examples, n_workers)
    published_dir = Path(published_dir or ROOT / 'bigbench_cappy_results' / PUBLISHED)
    published, more = cells.read_published(published_dir, folders, generators, names)
    faults += more
    for page in pages:
        faults += page.faults
        page.summary['published'] = published.get((page.summary['generator'], page.summary['task']))
    summary = {'folders': list(map(str, folders)), 'generators': generators, 'tasks': names, 'faults': faults}
    summary['made'] = datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC')
    summary['differing'] = cells.differing_settings(known)
    summary['notes'] = [] if tasks else cells.missing_tasks(data_dir, names, 'results')
    summary['remarks'] = cells.describe(known)
    report.write_page(output, f'Cappy: {title_of(folders)}', summary, pages)
    print_summary(output, known, grid, faults + summary['notes'] + summary['remarks'])


def title_of(folders):
    """The folder's name, or that of the folder that contains those of several seeds."""
    above = {folder.resolve().parent.name for folder in folders}
    if len(folders) > 1 and len(above) == 1:
        return f'{above.pop()}, {len(folders)} seeds'
    return ', '.join(folder.resolve().name for folder in folders)


def missing_seeds(folders, grid):
    """One line per result that a folder lacks and another has; such cells are not shown."""
    paths = [
        ResultPaths(folder, cell.generator, cell.task).result
        for cell in grid
        if any(cell.results)
        for folder in folders
    ]
    return [f'{path}: missing, so this cell is not shown' for path in paths if not path.exists()]


def build_pages(folders, known, gens_dir, max_examples, n_workers):
    """report.CellPage of each cell."""
    arguments, sizes = [], []
    for cell in known:
        paths = [ResultPaths(folder, cell.generator, cell.task) for folder in folders]
        arguments.append((paths, cell.results, gens_dir, max_examples))
        sizes.append(sum(size(path.candidates) for path in paths))
    return run_over_files(report.build_cell, arguments, sizes, n_workers, progress='reading candidates')


def print_summary(output, known, grid, remarks):
    """What is wrong with the files or missing, and what was written."""
    for remark in remarks:
        print(remark, file=sys.stderr)
    missing = f', {len(grid) - len(known)} without a result' if len(known) < len(grid) else ''
    written = '' if is_stream(output) else f', {Path(output).stat().st_size / 2**20:.1f} MiB'
    print(
        f'{output}: {len(known)} cell{"" if len(known) == 1 else "s"}{missing}{written}',
        file=sys.stderr if is_standard_output(output) else sys.stdout,
    )


if __name__ == '__main__':
    flags.run(main)
