"""BIG-bench's 45 generative tasks as `bigbench_data/{task}_{train,validation}.jsonl`.

    python scripts/get_bigbench_data.py
    python scripts/get_bigbench_data.py --bigbench_dir BIG-bench
    python scripts/get_bigbench_data.py --source package

Writes one line per example: {"dataset", "example_idx", "instruction", "references"}. The examples come from the hub, as
in the reference (scripts/get_bigbench_data.py), or from the task.json files of a checkout of BIG-bench or of its
package, which give the same lines; docs/reproduction.md has the counts and the differences. Licence of the texts:
Apache-2.0, and what the README of each task says. If a task fails, its cause is reported and the other tasks are made;
the exit code is then 1, and a second run makes only what is missing.
"""

import importlib.util
import json
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli import flags
from cappy.errors import InputError
from cappy.files import hub
from cappy.files.atomic import write_atomically
from cappy.files.inputs import find
from cappy.files.names import check_name
from cappy.files.outputs import check_files, check_folders
from cappy.files.wording import listed, near_names, shown
from cappy.tasks.bigbench import SPLIT_SEED, Task, find_tasks_dir, read_task, task_names
from cappy.tasks.candidates import SPLITS, Example, write_splits

NAMES_FILE = Path(__file__).parents[1] / 'bigbench_data' / 'subset_names.json'
PACKAGE_DIR = 'bigbench_package'
# pip refuses the package for a dependency that it names by address.
INSTALL = f'uv pip install --no-deps --target {PACKAGE_DIR} bigbench==1.0.0'

logger = logging.getLogger(__name__)


def main(
    cache_dir='./cache',  # where the library `datasets` keeps what it fetches from the hub
    output_dir='./bigbench_data',
    source: Literal['hub', 'package'] = 'hub',  # package: the installed package bigbench, which has 44 of the 45 tasks
    bigbench_dir: str | None = None,  # a checkout of BIG-bench, or the folder its package was installed into
    hub_name='tasksource/bigbench',  # or a copy of it, a folder of parquet files, for a machine without the hub
    tasks: flags.Names | None = None,  # default: all 45
    seed: flags.SeedOf32Bits = SPLIT_SEED,  # of the split of task.json files; the default is that of the hub's splits
    multiple_choice=False,  # keep the multiple-choice examples of task.json files, as the hub's files do
):
    """Write the generative tasks of BIG-bench, one file per task and split."""
    logging.basicConfig(format='%(message)s')
    logger.setLevel(logging.INFO)
    if Path(output_dir).exists() and not Path(output_dir).is_dir():
        raise InputError(f'{output_dir}: is a file; give --output_dir a folder')
    folder = find_tasks_dir(bigbench_dir) if bigbench_dir else find_package() if source == 'package' else None
    if folder is None and (multiple_choice or seed != SPLIT_SEED):
        raise InputError('--seed and --multiple_choice are for task.json files; the hub has splits of its own')
    chosen = choose_tasks(tasks, folder)
    missing = [name for name in chosen if not all(find(path).is_file() for path in task_paths(output_dir, name))]
    if len(missing) < len(chosen):
        logger.info('%s: %d of %d tasks are there already', output_dir, len(chosen) - len(missing), len(chosen))
    check_outputs(output_dir, missing, cache_dir if folder is None else None)
    if folder is None:
        failed = write_tasks(output_dir, missing, partial(read_hub_task, hub_name, cache_dir=cache_dir))
    else:
        absent = [name for name in missing if name not in task_names(folder)]
        if absent:
            logger.error('not in %s: %s; the hub has all 45 (--source hub)', folder, ', '.join(absent))
        present = [name for name in missing if name not in absent]
        read = partial(read_task, folder, seed=seed, multiple_choice=multiple_choice)
        failed = absent + write_tasks(output_dir, present, read)
    add_names(Path(output_dir) / NAMES_FILE.name, [name for name in chosen if name not in failed])
    if failed:
        raise InputError(
            f'{len(failed)} of {len(chosen)} tasks failed ({listed(failed)}) for the causes above; '
            'a second run makes only what is missing'
        )
    print(f'{output_dir}: {len(chosen)} tasks')


def check_outputs(output_dir, names, cache_dir):
    """Find out before anything is fetched that a file of these tasks, or the cache, cannot be written."""
    if names:
        paths = [path for name in names for path in task_paths(output_dir, name)]
        check_files(*paths, Path(output_dir) / NAMES_FILE.name)
        check_folders(*([cache_dir] if cache_dir else []))


def find_package():
    """The folder of the tasks in the installed package, which is not imported: that would need TensorFlow."""
    spec = importlib.util.find_spec('bigbench')
    for location in (spec and spec.submodule_search_locations) or ():
        folder = Path(location) / 'benchmark_tasks'
        if task_names(folder):
            return folder
    raise InputError(
        'the package bigbench is not installed; install it into a folder of its own (358 MB to fetch, 1.8 GB on disk): '
        f'{INSTALL}; then give --bigbench_dir {PACKAGE_DIR}'
    )


def choose_tasks(names, folder):
    """The tasks of these names, in order, or all 45 for None; names: of the 45, and of other tasks of the folder."""
    known = read_names(NAMES_FILE)
    if names is None:
        return known
    in_folder = task_names(folder) if folder else []
    for name in names:
        if name not in known and name not in in_folder:
            near = near_names(name, {*known, *in_folder}, folder or NAMES_FILE)
            raise InputError(f'--tasks: no task {name!r}{near}')
    return list(names)


def task_paths(output_dir, name):
    """The files of a task, in the order of SPLITS."""
    return [Path(output_dir) / f'{check_name(name, "tasks")}_{split}.jsonl' for split in SPLITS]


def write_tasks(output_dir, names, read):
    """Write the tasks that read(name) returns; returns the names of those that failed."""
    failed = []
    for number, name in enumerate(names):
        try:
            task = read(name)
            write_splits(dict(zip(task_paths(output_dir, name), (task.train, task.validation), strict=True)))
        except hub.Unreachable as error:
            failed += names[number:]
            logger.error('%s: failed: %s; %d more tasks are not tried', name, error, len(names) - number - 1)
            break
        except InputError as error:
            failed.append(name)
            logger.error('%s: failed: %s', name, error)
            continue
        left_out = {'duplicate': task.n_duplicates, 'multiple-choice': task.n_multiple_choice}
        counts = f'{len(task.train):,} train, {len(task.validation):,} validation'
        counts += ''.join(f', {n:,} {kind} left out' for kind, n in left_out.items() if n)
        logger.info('%s: %s', name, counts)
    return failed


def read_hub_task(hub_name, name, cache_dir):
    """A task of the data set on the hub, or of a folder with its layout: the data set's own splits, in their order.

    Multiple-choice records are kept, as in the reference, which looks only at the first record of a task.
    """
    remedy = 'take --source package, or --bigbench_dir with a checkout of BIG-bench'
    splits = hub.load_dataset(hub_name, name, remedy=remedy, cache_dir=cache_dir)
    missing = [split for split in SPLITS if split not in splits or not len(splits[split])]
    if missing:
        raise InputError(f'{hub_name}: no examples in split {" and ".join(missing)}; it has {listed(splits)}')
    if splits['train'][0].get('multiple_choice_targets'):
        raise InputError(f'{hub_name}: the task is multiple choice there, so there is nothing to generate')
    return Task(*(tuple(parse_hub_records(hub_name, name, split, splits[split])) for split in SPLITS))


def parse_hub_records(hub_name, name, split, records):
    """Yield an example for each record, which has `inputs` (text) and `targets` (texts)."""
    for number, record in enumerate(records):
        where = f'{hub_name}: {split}, record {number}'
        prompt, references = record.get('inputs'), record.get('targets')
        if not isinstance(prompt, str):
            raise InputError(f'{where}: inputs: expected text, found {shown(prompt)}')
        if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
            raise InputError(f'{where}: targets: expected texts, found {shown(references)}')
        yield Example(name, number, prompt, tuple(references))


def add_names(path, names):
    """Add the tasks that are missing to a file of names, in the order of the shipped list."""
    old = read_names(path) if path.exists() else []
    order = {name: number for number, name in enumerate(read_names(NAMES_FILE))}
    new = sorted({**dict.fromkeys(old), **dict.fromkeys(names)}, key=lambda name: order.get(name, len(order)))
    if set(new) != set(old):
        with write_atomically(path) as file:
            file.write(json.dumps(new, indent=4) + '\n')


def read_names(path):
    """The names of a JSON list. Raises InputError where the file is none."""
    try:
        names = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise InputError(f'{path}: cannot be read as JSON ({error}); delete it, and it is made again') from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f'{path}: expected a list of names, found {shown(names)}; delete it, and it is made again')
    return names


if __name__ == '__main__':
    flags.run(main)
