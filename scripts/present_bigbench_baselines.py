"""What a generator's samples give without a scorer: rougeL by way of picking, a generator a column.

    python scripts/present_bigbench_baselines.py
    python scripts/present_bigbench_baselines.py --gen_models flan-t5-xl,flan-t5-xxl --tasks tense,gem --by_task

The rows of the reference first, means over tasks as fractions: beam search, the first sample of each other decoding,
and the sample that the generator finds likeliest (sum or mean of its tokens' log-likelihoods). Then ours: what a sample
drawn at random is expected to have, consensus (the sample most like the others), the oracle (the best there is), and
how many different samples an instruction has. The table goes to standard output, what is missing to standard error.
"""

import sys
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

from cappy.cli import flags, tables
from cappy.cli.process_pool import run_over_files
from cappy.errors import InputError
from cappy.files.jsonl import listed
from cappy.study import cells
from cappy.tasks.candidates import REFERENCE_DECODINGS
from cappy.tasks.picks import TaskBaselines, measure_file

SPLIT = ('validation',)
LIKELIHOODS = {'self_score_sum': 'sum', 'self_score_mean': 'mean'}
OURS = ('random', 'consensus', 'oracle')
DISTINCT = 'distinct_samples'  # mean number of different samples of an instruction


def main(
    bigbench_data_dir='bigbench_data',  # subset_names.json lies here
    bigbench_gen_dir='bigbench_flan_gens',  # {generator}/{task}_validation.jsonl lie here
    tgt_key='response',  # field of a sample's text
    refs_key='references',  # field of the references
    src_key='instruction',  # field of the instruction
    tasks: str | None = None,  # a,b,c; default: all of subset_names.json
    gen_models: str | None = None,  # a,b,c; default: all that have a folder
    format: Literal['table', 'markdown', 'latex', 'csv', 'json'] = 'table',
    by_task=False,  # a row for each task and generator, instead of means over tasks
    rouge_tokenizer: Literal['default', 'unicode'] = 'default',  # default knows a-z and 0-9 only, as the paper's
    n_workers: int | None = None,  # processes; default: one for each core
):
    """Print the baselines that need no scorer."""
    gens_dir = Path(bigbench_gen_dir)
    generators = cells.choose_generators(gen_models, [gens_dir], '--gen_models')
    names = cells.choose_tasks(tasks, bigbench_data_dir, cells.sampled_tasks(gens_dir, generators, SPLIT))
    measured = measure(gens_dir, generators, names, (src_key, tgt_key, refs_key, rouge_tokenizer), n_workers)
    if not any(isinstance(one, TaskBaselines) for one in measured.values()):
        raise InputError(nothing_to_show(gens_dir, generators, names, measured))
    counted = [task for task in names if all(isinstance(measured[name, task], TaskBaselines) for name in generators)]
    ways = ways_of(measured.values())
    if by_task:
        print(task_table(measured, generators, names, ways, format))
    else:
        print(mean_table(measured, generators, counted, ways, format))
    sys.stdout.flush()
    for line in remarks(measured, generators, names, counted, by_task):
        print(line, file=sys.stderr)


def measure(gens_dir, generators, tasks, keys, n_workers):
    """{(generator, task): TaskBaselines, None where there is no file, or the InputError of a bad one}."""
    paths = {(name, task): gens_dir / name / f'{task}_validation.jsonl' for name in generators for task in tasks}
    measured = dict.fromkeys(paths)
    paths = {cell: path for cell, path in paths.items() if path.exists()}
    sizes = [path.stat().st_size for path in paths.values()]
    arguments = [(path, *keys) for path in paths.values()]
    results = run_over_files(measure_file, arguments, sizes, n_workers, progress='reading samples')
    return measured | dict(zip(paths, results, strict=True))


def nothing_to_show(gens_dir, generators, tasks, measured):
    """Why no file could be measured."""
    faults = [str(one) for one in measured.values() if one is not None]
    if faults:
        return faults[0]
    there = sorted(cells.sampled_tasks(gens_dir, generators, SPLIT))
    choose = f'; there are {listed(there)}: choose with --tasks' if there else ''
    return f'{gens_dir}: {listed(generators)} has no samples of {listed(tasks)}{choose}'


def ways_of(measured):
    """{row's name: name in TaskBaselines.rougeL} in the order of the table."""
    found = dict.fromkeys(way for one in measured if isinstance(one, TaskBaselines) for way in one.rougeL)
    decodings = [way.removeprefix('first of ') for way in found if way.startswith('first of ')]
    ordered = [name for name in REFERENCE_DECODINGS if name in decodings]
    ordered += [name for name in decodings if name not in REFERENCE_DECODINGS]
    ways = {name: f'first of {name}' for name in ordered}
    ways |= {name: f'self-score {which}' for name, which in LIKELIHOODS.items()}
    return ways | {name: 'random candidate' if name == 'random' else name for name in OURS}


def values_of(one, ways):
    """A task's row; None where the samples do not give a value."""
    if not isinstance(one, TaskBaselines):
        return dict.fromkeys([*ways, DISTINCT])
    values = {name: one.rougeL.get(way) for name, way in ways.items()}
    return values | {DISTINCT: one.n_candidates / one.n_examples}


def mean_table(measured, generators, tasks, ways, style):
    """Means over the tasks that all generators have, a generator a column."""
    rows = []
    for name in [*ways, DISTINCT]:
        row = {'pick': name}
        for generator in generators:
            values = [values_of(measured[generator, task], ways)[name] for task in tasks]
            row[generator] = float(np.mean(values)) if values and None not in values else None
        rows.append(row)
    columns = [tables.Column('pick', ''), *(tables.Column(name, decimals=6) for name in generators)]
    return tables.format_table(rows, columns, style)


def task_table(measured, generators, tasks, ways, style):
    """A row for each task and generator."""
    rows = []
    for task, generator in product(tasks, generators):
        one = measured[generator, task]
        n_examples = one.n_examples if isinstance(one, TaskBaselines) else None
        rows.append({'task': task, 'generator': generator, 'examples': n_examples, **values_of(one, ways)})
    columns = ['task', 'generator', 'examples', *(tables.Column(name, decimals=4) for name in [*ways, DISTINCT])]
    return tables.format_table(rows, columns, style)


def remarks(measured, generators, tasks, counted, by_task):
    """What a reader should know of the table, a line each."""
    lines = [f'{one}; counted as missing' for one in measured.values() if isinstance(one, InputError)]
    if not by_task:
        lines.append(f'means over {len(counted)} of {len(tasks)} tasks')
    left_out = {}
    for (generator, task), one in measured.items():
        if not isinstance(one, TaskBaselines):
            left_out.setdefault(generator, []).append(task)
    for generator, missing in left_out.items():
        others = '' if by_task or len(generators) == 1 else ', left out for every generator'
        lines.append(f'{generator}: no samples of {listed(missing)}{others}')
    return [
        *lines,
        *(line for generator in generators for line in unknown_likelihoods(measured, generator, counted)),
        *different_examples(measured, tasks),
    ]


def unknown_likelihoods(measured, generator, tasks):
    """Of one generator's samples without a log-likelihood."""
    found = {task: measured[generator, task] for task in tasks}
    for name, which in LIKELIHOODS.items():
        missing = [task for task, one in found.items() if f'self-score {which}' not in one.rougeL]
        if missing:
            yield f'{generator}: {name} is missing: examples without a log-likelihood in {listed(missing)}'
        partly = [task for task, one in found.items() if one.n_unknown[which] and task not in missing]
        if partly:
            n_unknown = sum(found[task].n_unknown[which] for task in partly)
            yield (
                f'{generator}: {n_unknown} samples without a log-likelihood ({which}) or with one that is no number, '
                f'in {listed(partly)}; {name} passes them over'
            )


def different_examples(measured, tasks):
    """Of tasks whose files do not hold the same examples for all generators."""
    different = []
    for task in tasks:
        found = [one for (_, name), one in measured.items() if name == task and isinstance(one, TaskBaselines)]
        if len({one.example_ids for one in found}) > 1:
            different.append(task)
    if different:
        yield f'the generators have other examples of {listed(different)}; their columns are not of the same data'


if __name__ == '__main__':
    flags.run(main)
