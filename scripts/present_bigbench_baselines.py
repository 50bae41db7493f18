"""What a generator's samples give without a scorer: mean rougeL x 100 of each way to pick, one column per generator.

    python scripts/present_bigbench_baselines.py
    python scripts/present_bigbench_baselines.py --gen_models flan-t5-xl,flan-t5-xxl --tasks tense,gem --by_task
    python scripts/present_bigbench_baselines.py --metric exact_match

The picks (`cappy/tasks/picks.py` defines them): a random candidate, the first sample of each decoding, the sample with
the highest self-score (the generator's own log-likelihood, summed or averaged over its tokens), consensus (minimum
Bayes risk) and the oracle (the best candidate there is). Last, how many different samples an example has. The first
sample of each decoding and the two self-scores are the rows of the reference's table, which gives fractions; csv and
json give them here, too. --metric measures by another metric, by which consensus is made, too. The table goes to
standard output, remarks on what is missing to standard error.
"""

import sys
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli import flags, tables
from cappy.cli.process_pool import run_over_files
from cappy.errors import InputError
from cappy.files.inputs import find
from cappy.files.wording import listed
from cappy.study import cells
from cappy.tasks.candidates import REFERENCE_DECODINGS
from cappy.tasks.faults import describe_by_name
from cappy.tasks.metrics import find_metric
from cappy.tasks.picks import TaskBaselines, describe_ties, measure_file, sum_ties

SPLIT = ('validation',)
MAIN_PICKS = ('random candidate', 'self-score sum', 'consensus', 'oracle')  # and the first decoding
N_CANDIDATES = 'candidates per example'  # different samples, a mean


def main(
    data_dir='bigbench_data',  # folder of subset_names.json, the list of tasks
    bigbench_gen_dir='bigbench_flan_gens',  # folder of samples, {generator}/{task}_validation.jsonl
    tgt_key='response',  # field of a sample's text
    refs_key='references',  # field of the references
    src_key='instruction',  # field of the instruction
    tasks: flags.Names | None = None,  # a,b,c; default: those with samples; all: those of subset_names.json, too
    gen_models: flags.Names | None = None,  # generators a,b,c; default: all that have a folder
    format: Literal['table', 'markdown', 'latex', 'csv', 'json'] = 'table',  # csv, json: fractions, else x 100
    by_task=False,  # one row per task and generator, instead of means over tasks
    columns: Literal['main', 'all'] = 'main',  # picks in a table by task; csv and json have all
    rouge_tokenizer: Literal['default', 'unicode'] = 'default',  # default reads a-z and 0-9 only, as the paper's
    n_workers: flags.Count | None = None,  # processes; default: one per core
    metric='rougeL',  # what is measured, and consensus made by: rougeL, exact_match, chrf, or module:function
):
    """Print what each way to pick a sample gives without a scorer."""
    find_metric(metric, rouge_tokenizer)
    gens_dir = Path(bigbench_gen_dir)
    generators = cells.choose_generators(gen_models, [gens_dir], '--gen_models')
    names = cells.choose_tasks(tasks, data_dir, cells.sampled_tasks(gens_dir, generators, SPLIT))
    measured = measure(gens_dir, generators, names, (src_key, tgt_key, refs_key, rouge_tokenizer), n_workers, metric)
    if not any(isinstance(baselines, TaskBaselines) for baselines in measured.values()):
        raise InputError(nothing_to_show(gens_dir, generators, names, measured))
    counted = [task for task in names if all(isinstance(measured[name, task], TaskBaselines) for name in generators)]
    picks = order_picks(measured.values())
    if by_task:
        shown = picks if columns == 'all' or format in ('csv', 'json') else main_picks(picks)
        print(task_table(measured, generators, names, shown, format))
    else:
        print(mean_table(measured, generators, counted, picks, format))
    sys.stdout.flush()
    missing = [] if tasks else cells.missing_tasks(data_dir, names, 'samples')
    notes = [] if metric == 'rougeL' else [f'all values are of {metric}']
    for line in [*notes, *remarks(measured, generators, names, counted, by_task), *missing]:
        print(line, file=sys.stderr)


def measure(gens_dir, generators, tasks, keys, n_workers, metric):
    """{(generator, task): TaskBaselines, None where there is no file, or the InputError of a broken one}."""
    paths = {(name, task): find(gens_dir / name / f'{task}_validation.jsonl') for name in generators for task in tasks}
    measured = dict.fromkeys(paths)
    paths = {cell: path for cell, path in paths.items() if path.exists()}
    sizes = [path.stat().st_size for path in paths.values()]
    arguments = [(path, *keys, metric) for path in paths.values()]
    results = run_over_files(measure_file, arguments, sizes, n_workers, progress='reading samples')
    return measured | dict(zip(paths, results, strict=True))


def nothing_to_show(gens_dir, generators, tasks, measured):
    """Why no file could be measured."""
    faults = [str(fault) for fault in measured.values() if fault is not None]
    if faults:
        return faults[0]
    there = sorted(cells.sampled_tasks(gens_dir, generators, SPLIT))
    found = f'has validation samples of {listed(there)}' if there else 'has no {task}_validation.jsonl'
    wanted = f'; none of {listed(tasks)}' if tasks else ''
    return f'{gens_dir}: {listed(generators)} {found}{wanted}'


def order_picks(measured):
    """Names of the picks in the order of the table, decodings as the reference orders them."""
    found = dict.fromkeys(pick for of_task in measured if isinstance(of_task, TaskBaselines) for pick in of_task.rougeL)
    firsts = [pick for pick in found if pick.startswith('first of ')]
    known = [f'first of {name}' for name in REFERENCE_DECODINGS if f'first of {name}' in firsts]
    firsts = known + [pick for pick in firsts if pick not in known]
    return ['random candidate', *firsts, 'self-score sum', 'self-score mean', 'consensus', 'oracle']


def main_picks(picks):
    """Those that fit a terminal."""
    first = next((pick for pick in picks if pick.startswith('first of ')), None)
    return [pick for pick in picks if pick in (*MAIN_PICKS, first)]


def values_of(baselines, picks, style):
    """{column: value} of a task, rougeL x 100 for people; None where the samples do not give a value."""
    if not isinstance(baselines, TaskBaselines):
        return dict.fromkeys([*picks, N_CANDIDATES])
    scale = 1 if style in ('csv', 'json') else 100
    values = {pick: scale * baselines.rougeL[pick] if pick in baselines.rougeL else None for pick in picks}
    return values | {N_CANDIDATES: baselines.n_candidates / baselines.n_examples}


def mean_table(measured, generators, tasks, picks, style):
    """Means over the tasks that all generators have, one row per pick and one column per generator."""
    of_tasks = {
        generator: [values_of(measured[generator, task], picks, style) for task in tasks] for generator in generators
    }
    rows = []
    for name in [*picks, N_CANDIDATES]:
        row = {'pick': name}
        for generator in generators:
            values = [values[name] for values in of_tasks[generator]]
            row[generator] = float(np.mean(values)) if values and None not in values else None
        rows.append(row)
    return tables.format_table(rows, ['pick', *(tables.Column(name, decimals=1) for name in generators)], style)


def task_table(measured, generators, tasks, picks, style):
    """One row per task and generator, one column per pick."""
    rows = []
    for task, generator in product(tasks, generators):
        baselines = measured[generator, task]
        n_examples = baselines.n_examples if isinstance(baselines, TaskBaselines) else None
        rows.append(
            {'task': task, 'generator': generator, 'examples': n_examples, **values_of(baselines, picks, style)}
        )
    is_data = style in ('csv', 'json')
    columns = ['task', *(['generator'] if is_data or len(generators) > 1 else []), 'examples']
    # Two lines of a header make narrow columns: first of / beam4.
    columns += [tables.Column(name, '\n'.join(name.rsplit(' ', 1)), decimals=1) for name in (*picks, N_CANDIDATES)]
    return tables.format_table(rows, columns, style)


def remarks(measured, generators, tasks, counted, by_task):
    """What a reader should know of the table, one line each."""
    lines = [f'{fault}; counted as missing' for fault in measured.values() if isinstance(fault, InputError)]
    if not by_task:
        lines.append(f'means over {count(len(counted), "task")}')
    left_out = {}
    for (generator, task), baselines in measured.items():
        if not isinstance(baselines, TaskBaselines):
            left_out.setdefault(generator, []).append(task)
    for generator, missing in left_out.items():
        others = '' if by_task or len(generators) == 1 else ', left out for every generator'
        lines.append(f'{generator}: no samples of {listed(missing)}{others}')
    known = {cell: baselines for cell, baselines in measured.items() if isinstance(baselines, TaskBaselines)}
    faults = [[baselines.faults] for baselines in known.values()]
    return [
        *lines,
        *describe_by_name(dict(zip(cells.names_of(known), faults, strict=True))),
        *(line for generator in generators for line in unknown_likelihoods(measured, generator, counted)),
        *(line for generator in generators for line in ties(measured, generator, counted)),
        *different_examples(measured, tasks),
    ]


def ties(measured, generator, tasks):
    """Remarks on the examples of one generator in which several candidates have a pick's highest value."""
    of_tasks = [measured[generator, task].ties for task in tasks]
    common = [pick for pick in (of_tasks[0] if of_tasks else ()) if all(pick in own for own in of_tasks)]
    summed = {pick: sum_ties([own[pick] for own in of_tasks]) for pick in common}
    return [f'{generator}: {line}' for line in describe_ties(summed)]


def unknown_likelihoods(measured, generator, tasks):
    """Remarks on one generator's samples without a log-likelihood."""
    found = {task: measured[generator, task] for task in tasks}
    for which in ('sum', 'mean'):
        pick = f'self-score {which}'
        missing = [task for task, baselines in found.items() if pick not in baselines.rougeL]
        if missing:
            yield f'{generator}: {pick} is missing, since {listed(missing)} has examples without a log-likelihood'
        partly = [task for task, baselines in found.items() if baselines.n_unknown[which] and task not in missing]
        if partly:
            n_unknown = sum(found[task].n_unknown[which] for task in partly)
            yield (
                f'{generator}: {count(n_unknown, "sample")} of {listed(partly)} without a finite log-likelihood '
                f'({which}); {pick} skips them'
            )


def different_examples(measured, tasks):
    """A remark on tasks whose files do not hold the same examples for all generators."""
    different = []
    for task in tasks:
        found = [
            baselines
            for (_, name), baselines in measured.items()
            if name == task and isinstance(baselines, TaskBaselines)
        ]
        if len({baselines.example_ids for baselines in found}) > 1:
            different.append(task)
    if different:
        yield f'the generators have different examples of {listed(different)}, so their columns cannot be compared'


def count(n, noun):
    """'1 task', '2 tasks'."""
    return f'{n} {noun}{"" if n == 1 else "s"}'


if __name__ == '__main__':
    flags.run(main, aliases={'bigbench_data_dir': 'data_dir'})
