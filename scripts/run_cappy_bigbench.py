"""Sweep: adapt a scorer to each task with each generator's samples, and keep every device busy until all are done.

    python scripts/run_cappy_bigbench.py --gpus 0,1,2,3
    python scripts/run_cappy_bigbench.py --workers 2 --tasks tense,gem --train_size 4096
    python scripts/run_cappy_bigbench.py --cluster slurm --slurm_partition gpu --slurm_gpus 1
    python scripts/run_cappy_bigbench.py --status

Every flag of cappy_bigbench.py may be given and is passed to each cell. A cell is a process of its own, with a log
beside its result. Cells that have a result are kept, cells that another process works on are left to it, and the same
command resumes a sweep that was stopped. See docs/sweeps.md. One cell took the reference 40 minutes on an A10G, so its
225 cells take 150 hours.
"""

import functools
import inspect
import logging
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout, before an installed copy

import cappy_bigbench
from cappy import TrainingSettings
from cappy.cli import flags, tables
from cappy.errors import InputError
from cappy.files.inputs import find
from cappy.files.lock import check_result
from cappy.files.outputs import check_files, check_folders
from cappy.files.settings import differing
from cappy.files.wording import listed
from cappy.model.budgets import FEWEST_TOKENS, MOST_SCORING_TOKENS, MOST_TRAINING_TOKENS
from cappy.model.model_files import check_writable, find_model
from cappy.study import cells, results, slurm, sweep
from cappy.tasks import combining
from cappy.tasks.candidates import SPLITS
from cappy.tasks.metrics import find_metric

CELL_DEFAULTS = {name: p.default for name, p in inspect.signature(cappy_bigbench.main).parameters.items()}
# Flags of a cell that the sweep sets itself, or that spread one cell over several hosts.
NOT_PASSED = ('bigbench_gen_model', 'bigbench_subset_name', 'n_processes', 'host0_address', 'host0_port', 'process_id')
CHECKPOINT_EVERY = 200  # updates: a quarter of the paper's training
PROGRESS_SECONDS = 60  # between reports of running cells where standard error is not a terminal
MAX_SHOWN = 8  # running cells whose progress is shown


def main(
    data_dir='bigbench_data',  # folder of subset_names.json, the list of tasks
    cuda_idx: flags.CountFrom0 = 0,  # the device, unless --gpus names several
    gpus: flags.Names | None = None,  # devices, e.g. 0,1,2: one cell on each (on N each with --n_model_shards N)
    workers: flags.Count | None = None,  # cells at a time on the CPU, each on its share of the cores
    gen_models: flags.Names | None = None,  # a,b,c; default: all in bigbench_gen_dir, the largest FLAN-T5 first
    tasks: flags.Names | None = None,  # a,b,c; default: those with samples; all: every task of subset_names.json
    seeds: flags.Names | None = None,  # e.g. 1,2,3, with results in {results_dir}/seed1, ..; a single one is as --seed
    status=False,  # print the state of each cell and end
    cluster: Literal['local', 'slurm'] = 'local',  # where the cells run
    slurm_partition: str | None = None,  # default: Slurm's own
    slurm_minutes: flags.Count = 240,  # time limit of a job; a cell that needs more is resumed from its checkpoint
    slurm_gpus: flags.CountFrom0 = 1,  # GPUs per cell
    slurm_cpus: flags.Count = 4,  # cores per cell
    slurm_mem_gb: flags.Count = 32,  # GB of memory per cell
    slurm_at_once: flags.Count = 256,  # cells that may run at the same time
    slurm_setup: str | None = None,  # shell commands before each cell, e.g. 'module load cuda'
    slurm_options: flags.Names | None = None,  # more options of sbatch, e.g. account=a,qos=b
    poll_seconds: Annotated[float, flags.Range(above=0, most=86400)] = 10.0,  # between looks at Slurm's queue
    **cell_flags,
):
    """Adapt a scorer to each task with each generator's samples."""
    settings = CELL_DEFAULTS | {'checkpoint_every': CHECKPOINT_EVERY} | cell_flags
    wanted, notes = choose_cells(settings, data_dir, gen_models, tasks, read_seeds(seeds, settings))
    settings['seed'] = wanted[0][0].number  # with several, each job has its own
    if status:
        sys.exit(show_status([make_job(*cell, settings, cell_flags) for cell in wanted], notes))
    devices = choose_workers(gpus, workers, cuda_idx, settings['n_model_shards']) if cluster == 'local' else []
    options = slurm_options_of(locals()) if cluster == 'slurm' else None
    fewer = fewer_tokens(settings, options.gpus if options else workers is None and sweep.n_nvidia_devices())
    jobs = [make_job(*cell, settings, cell_flags, fewer) for cell in wanted]
    todo = choose_todo(jobs, settings)
    n_failed = 0
    if todo:
        check_outputs(settings, todo, cluster)
        check_cells(settings, todo, options.gpus if options else settings['n_model_shards'])
        with Progress(jobs, todo, notes) as progress:
            if cluster == 'slurm':
                watch_slurm(todo, settings['results_dir'], options, progress, poll_seconds)
            else:
                sweep.Runner(todo, devices, progress.on_event).run()
        n_failed = progress.n_failed
    kept = [job for job in jobs if job not in todo]
    finish(jobs, n_failed, [*notes, *describe_kept(kept, settings)])


def with_flags_of_a_cell(main):
    """main, whose **cell_flags are the flags of cappy_bigbench.py on the command line."""

    @functools.wraps(main)
    def joined(**values):
        return main(**values)

    ours = [p for p in inspect.signature(main).parameters.values() if p.kind is not p.VAR_KEYWORD]
    theirs = dict(inspect.signature(cappy_bigbench.main).parameters)
    theirs['checkpoint_every'] = theirs['checkpoint_every'].replace(default=CHECKPOINT_EVERY)
    passed = [parameter for name, parameter in theirs.items() if name not in NOT_PASSED]
    joined.__signature__ = inspect.Signature([*ours, *passed])
    joined.__annotations__ = {**cappy_bigbench.main.__annotations__, **main.__annotations__}
    joined.__doc__ += '\n\nThe flags after --poll_seconds are those of cappy_bigbench.py and are passed to each cell.'
    joined.sources = (main, cappy_bigbench.main)  # where --help finds the comments beside the flags
    joined.presets = cappy_bigbench.main.presets  # so that the sweep checks what its cells will do
    return joined


def choose_cells(settings, data_dir, gen_models, tasks, seeds):
    """The cells, (Seed, generator, task) each, and remarks on tasks without samples.

    With --tasks they are all combinations; else a generator has the tasks of which it has samples of both splits.
    """
    gens_dir = Path(settings['bigbench_gen_dir'])
    generators = choose_generators(gens_dir, gen_models)
    sampled = {name: cells.sampled_tasks(gens_dir, [name]) for name in generators}
    names = cells.choose_tasks(tasks, data_dir, set().union(*sampled.values()))
    if not names:
        raise InputError(f'{gens_dir}: {listed(generators)} has no files of samples, {{task}}_train.jsonl')
    pairs = [(generator, task) for generator in generators for task in names]
    notes = []
    if tasks is None:
        notes = cells.missing_tasks(data_dir, names, 'samples')
        lacking = [f'{generator}/{task}' for generator, task in pairs if task not in sampled[generator]]
        if lacking:
            notes.append(f'left out for lack of samples: {listed(lacking)} ({len(lacking)} of {len(pairs)} cells)')
        pairs = [(generator, task) for generator, task in pairs if task in sampled[generator]]
    return [(seed, *pair) for seed in seeds for pair in pairs], notes


def choose_generators(gens_dir, asked):
    """Those asked for, or all that have a folder, the largest FLAN-T5 first, as in the reference."""
    generators = cells.choose_generators(asked, [gens_dir], '--gen_models')
    if asked:
        return generators
    of_flan = [name for name in generators if name.startswith('flan-t5-')]
    return of_flan[::-1] + [name for name in generators if name not in of_flan]


class Seed(NamedTuple):
    """A seed and the folder of its results. label: the seed itself where the sweep has several, else None."""

    number: int
    results_dir: Path
    label: int | None = None


def read_seeds(seeds, settings):
    """The Seed of --seed, or those of --seeds."""
    root = Path(settings['results_dir'])
    if seeds is not None and settings['seed'] != CELL_DEFAULTS['seed']:
        raise InputError('--seed and --seeds: give one')
    names = [str(settings['seed'])] if seeds is None else seeds
    numbers = list(dict.fromkeys(flags.convert(name, flags.Seed, '--seeds') for name in names))
    if len(numbers) == 1:
        return [Seed(numbers[0], root)]
    return [Seed(number, root / f'seed{number}', number) for number in numbers]


def make_job(seed, generator, task, settings, given, fewer=()):
    """The job that makes a cell. given: the flags of the command line that are passed to each cell."""
    own = {'bigbench_gen_model': generator, 'bigbench_subset_name': task, 'results_dir': seed.results_dir}
    own |= {'seed': seed.number, 'checkpoint_every': settings['checkpoint_every']}
    save_dir = settings['save_dir']
    if save_dir:
        folder = Path(save_dir) if seed.label is None else Path(save_dir, f'seed{seed.label}')
        own['save_dir'] = save_dir = str(folder / generator / task)
    values = {name: value for name, value in {**without_presets(given), **own}.items() if name != 'overwrite'}
    command = [sys.executable, str(ROOT / 'cappy_bigbench.py')]
    command += [f'--{name}={as_flag(value)}' for name, value in values.items()]
    command += ['--overwrite'] if settings['overwrite'] else []
    paths = results.ResultPaths(seed.results_dir, generator, task)
    return sweep.Job(paths, tuple(command), fewer, save_dir, settings['overwrite'], seed.label)


def without_presets(given):
    """What the user gave: without the values that a flag such as --recipe brings, which it brings to each cell, too."""
    brought = {}
    for name, by_value in cappy_bigbench.main.presets.items():
        brought |= by_value.get(given.get(name), {})
    return {name: value for name, value in given.items() if name not in brought or value != brought[name]}


def as_flag(value):
    """The value as the command line spells it."""
    return ','.join(value) if isinstance(value, tuple) else value


def fewer_tokens(settings, on_gpu):
    """Flags for the second attempt at a cell: half the tokens per micro-batch and scoring batch.

    Of a GPU's memory a cell finds out by itself how many fit; what failed then may not even be known here.
    """
    most = {'tokens_per_device': MOST_TRAINING_TOKENS['cpu'], 'eval_tokens_per_device': MOST_SCORING_TOKENS['cpu']}
    halves = {name: (settings[name] or n_tokens) // 2 for name, n_tokens in most.items()}
    if on_gpu:
        halves |= {name: FEWEST_TOKENS for name in most if not settings[name]}
    return tuple(f'--{name}={max(1, n_tokens)}' for name, n_tokens in halves.items())


def choose_workers(gpus, workers, cuda_idx, n_shards):
    """The sweep.Worker of each device, or of each share of the cores."""
    if gpus is not None and workers is not None:
        raise InputError('--gpus and --workers: give one; --workers is for cells on the CPU')
    if workers is not None:
        if n_shards > 1:
            raise InputError(f'--n_model_shards {n_shards}: needs as many devices, and --workers has one for each cell')
        return [sweep.Worker({'JAX_PLATFORMS': 'cpu'}, cores) for cores in sweep.share_cores(workers)]
    names = [str(cuda_idx)] if gpus is None else list(gpus)
    found = sweep.n_nvidia_devices()
    for name in names:
        if found and name.isdecimal() and int(name) >= found:
            raise InputError(f'--gpus {name}: no such device; there are {found}, from 0 to {found - 1}')
    if gpus is not None and len(names) % n_shards:
        raise InputError(f'--gpus: {len(names)} devices are not a multiple of --n_model_shards {n_shards}')
    if gpus is None and n_shards > 1:
        raise InputError(f'--n_model_shards {n_shards}: name the devices, --gpus 0,1 for two')
    if gpus is not None and not found:
        print('no NVIDIA device found: the cells run on the CPU; --workers would share its cores', file=sys.stderr)
    groups = [','.join(names[first : first + n_shards]) for first in range(0, len(names), n_shards)]
    return [sweep.Worker({'CUDA_VISIBLE_DEVICES': group}) for group in groups]


def slurm_options_of(values):
    """slurm.SlurmOptions of the flags that begin with slurm_. values: all flags, and settings."""
    slurm.check_available()
    if max(1, values['slurm_gpus']) % values['settings']['n_model_shards']:
        raise InputError(f'--slurm_gpus {values["slurm_gpus"]}: expected a multiple of --n_model_shards, or 0')
    more = [option.partition('=') for option in values['slurm_options'] or ()]
    chosen = {name.removeprefix('slurm_'): value for name, value in values.items() if name.startswith('slurm_')}
    # An option without a value is a switch of sbatch.
    chosen['options'] = {name.lstrip('-'): value if equals else True for name, equals, value in more}
    return slurm.SlurmOptions(**chosen)


def watch_slurm(todo, results_dir, options, progress, poll_seconds):
    """Submit the cells and report how they end; stopping this leaves the jobs in Slurm."""
    try:
        slurm.SlurmRunner(todo, results_dir, options, progress.on_event, poll_seconds).run()
    except KeyboardInterrupt:
        print(
            f'the jobs continue: the same command watches them, scancel --name={slurm.JOB_NAME} ends them',
            file=sys.stderr,
        )
        raise


def choose_todo(jobs, settings):
    """The cells without a result. A file that is not a result is reported and kept, and its cell is not made."""
    todo = []
    for job in jobs:
        state = sweep.find_state(job)
        if settings['overwrite'] or state.kind not in ('done', 'corrupt'):
            todo.append(job)
        elif state.kind == 'done':
            sweep.tidy(job)
        else:
            print(f'{state.why}; counted as missing and kept (--overwrite replaces it)', file=sys.stderr)
    return todo


def describe_kept(jobs, settings):
    """One line for each setting, or other weights, with which results that were kept were made."""
    names_by_difference = {}
    made = {job: results.read_result(job.paths.result) for job in jobs if sweep.find_state(job).kind == 'done'}
    digest = digest_of_model(settings) if any('model_digest' in result for result in made.values()) else None
    for job, result in made.items():
        asked = settings | ({} if job.seed is None else {'seed': job.seed})
        differences = differing(results.settings_of(result), asked, cells.HARMLESS_SETTINGS, found=('max_length',))
        if digest and result.get('model_digest') not in (None, digest):
            name = settings['model_name_or_path']
            differences.append(f'weights {result["model_digest"][:12]} ({name} now has {digest[:12]})')
        for difference in differences:
            names_by_difference.setdefault(difference, []).append(job.name)
    lines = [
        f'made with {difference}: {listed(names)} ({len(names)} {"result" if len(names) == 1 else "results"})'
        for difference, names in names_by_difference.items()
    ]
    return lines + ['these results are kept; --overwrite replaces them'] if lines else []


def digest_of_model(settings):
    """Digest of the scorer that the sweep would adapt; None where it is not here."""
    from cappy.model.model_files import model_digest

    with suppress(InputError):
        return model_digest(find_model(settings['model_name_or_path']))


def check_outputs(settings, todo, cluster):
    """Check before any cell starts that the files of each can be written."""
    check_result(*(job.paths for job in todo))
    check_files(*(path for job in todo for path in (job.log, job.queue_record)))
    if settings['checkpoint_every']:
        check_folders(*{job.paths.checkpoint.parent for job in todo})
    if cluster == 'slurm':
        check_folders(Path(settings['results_dir']) / slurm.FOLDER)
    for job in todo:
        if job.save_dir and not sweep.lock_holder(job.paths):  # else another process may be saving it
            check_writable(job.save_dir, job.overwrite or sweep.is_save_dir_unfinished(job))


def check_cells(settings, todo, n_devices):
    """Check before any cell starts what would make every cell fail, and that each has its files of samples."""
    find_metric(settings['metric'], settings['rouge_tokenizer'])
    combining.check_names(settings['combine'], settings['pick'])
    folder, missing = Path(settings['bigbench_gen_dir']), []
    for job in todo:
        names = [f'{job.paths.generator}/{job.paths.task}_{split}.jsonl' for split in SPLITS]
        paths = {name: find(folder / name) for name in names}
        missing += [name for name, path in paths.items() if not path.is_file() or not path.stat().st_size]
    if missing:
        missing = list(dict.fromkeys(missing))
        raise InputError(
            f'{folder}: {len(missing)} files of samples are missing or empty: {listed(missing)}; make them, or choose '
            f'others with --gen_models and --tasks'
        )
    n_data = max(1, n_devices // settings['n_model_shards'])
    TrainingSettings.of(settings).check(settings['train_size'], n_data)
    find_model(settings['model_name_or_path'])  # downloaded once here, if at all, and not by every cell


class Progress:
    """Reports each event in one line and how far each running cell is: below a bar on a terminal, else each minute."""

    def __init__(self, jobs, todo, notes=()):
        self.n_cells, self.n_done, self.n_made, self.n_failed = len(jobs), len(jobs) - len(todo), 0, 0
        self.running, self.notes = {}, notes
        self.began = self.shown_at = time.monotonic()
        self.bar = tqdm.tqdm(total=self.n_cells, initial=self.n_done, unit='cell', disable=None, miniters=1)
        self.lines = []  # a bar without a count for each running cell

    def __enter__(self):
        # A terminal that closes and a `kill` end the cells as Ctrl-C does.
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, signal.default_int_handler)
        for note in self.notes:
            write(note)
        write(f'{self.n_done} of {self.n_cells} cells have results')
        return self

    def __exit__(self, *exception):
        for line in reversed(self.lines):
            line.close()
        self.bar.close()

    def on_event(self, event, job, detail):
        """Events as sweep.Runner gives them."""
        if event == 'tick':
            self.show_running()
            return
        if event == 'started':
            self.running[job.name] = job
        else:
            self.running.pop(job.name, None)
        self.n_failed += event == 'failed'
        if event == 'done':
            self.n_done, self.n_made = self.n_done + 1, self.n_made + (detail is not None)
            self.bar.update()
        self.bar.set_postfix(running=len(self.running), failed=self.n_failed)
        write(f'{event:<9} {job.name}{self.describe(event, job, detail)}')

    def show_running(self):
        """Show the progress of each running cell, once a second on a terminal."""
        now = time.monotonic()
        if now - self.shown_at < (PROGRESS_SECONDS if self.bar.disable else 1):
            return
        self.shown_at = now
        shown = [
            f'{name}: {sweep.read_progress(job.log) or "reading data and model, or compiling"}'
            for name, job in list(self.running.items())[:MAX_SHOWN]
        ]
        if self.bar.disable:
            for text in shown:
                write(f'running   {text}')
            return
        while len(self.lines) < len(shown):
            self.lines.append(tqdm.tqdm(position=len(self.lines) + 1, bar_format='{desc}', leave=False))
        for line, text in zip(self.lines, shown + [''] * len(self.lines), strict=False):
            line.set_description_str(f'  {text}' if text else '')
        self.bar.refresh()

    def describe(self, event, job, detail):
        """What follows the name of the cell."""
        if event == 'started':
            return '' if detail == 1 else ', second attempt'
        if event != 'done':
            return f': {detail}' + (f' ({job.log})' if event == 'failed' else '')
        rougeL = sweep.find_state(job).rougeL
        how = 'by another process' if detail is None else f'in {duration(detail)}'
        return f': {"" if rougeL is None else f"rougeL {100 * rougeL:.2f} (x 100) "}{how}; {self.count()}'

    def count(self):
        """`3 of 6 done, 2 running, 1 failed, about 5 min left`."""
        left = self.n_cells - self.n_done - self.n_failed
        counts = f'{self.n_done} of {self.n_cells} done, {len(self.running)} running, {self.n_failed} failed'
        seconds = time.monotonic() - self.began
        return f'{counts}, about {duration(seconds / self.n_made * left)} left' if left and self.n_made else counts


def write(text):
    """A line on standard error, above the bars."""
    tqdm.tqdm.write(text, file=sys.stderr)


def duration(seconds):
    """`42 s`, `5 min` or `3.2 h`."""
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'


def show_status(jobs, notes):
    """Print the state of each cell; returns the exit code."""
    queued = slurm.queued_states(jobs)
    states = {job: sweep.find_state(job, queued) for job in jobs}
    rows, columns = {}, {}
    for job, state in states.items():
        column = job.name.removesuffix(f'/{job.paths.task}')
        columns[column] = None
        text = state.kind if state.rougeL is None else f'{100 * state.rougeL:.2f}'
        rows.setdefault(job.paths.task, {'task': job.paths.task})[column] = text
    print(f'rougeL x 100 of the cells that are done\n\n{tables.format_table(rows.values(), ["task", *columns])}')
    print(f'\n{sweep.count_kinds(list(states.values()))}')
    for job, state in states.items():
        progress = sweep.read_progress(job.log) if state.kind == 'running' else ''
        if state.why:
            print(f'{state.kind:<8} {job.name}: {f"{progress}; " if progress else ""}{state.why}')
    for note in notes:
        print(note)
    return 0 if all(state.kind == 'done' for state in states.values()) else 1


def finish(jobs, n_failed, notes):
    """Print the counts, then remarks on what was kept or left out.

    Raises InputError where a cell has no result, or kept one that was to be replaced.
    """
    states = [sweep.find_state(job) for job in jobs]
    counts = sweep.count_kinds(states)
    is_complete = not n_failed and all(state.kind == 'done' for state in states)
    if is_complete:
        print(counts, flush=True)
    for note in notes:
        print(note, file=sys.stderr)
    if not is_complete:
        raise InputError(f'{counts}; --status shows which and why, and the same command makes the missing ones')


if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
    flags.run(with_flags_of_a_cell(main), aliases={'bigbench_data_dir': 'data_dir'})
