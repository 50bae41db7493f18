"""Sweep: adapt a scorer to each task with each generator's samples, and keep every device busy until all are done.

    python scripts/run_cappy_bigbench.py --gpus 0,1,2,3
    python scripts/run_cappy_bigbench.py --workers 2 --tasks tense,gem --train_size 4096
    python scripts/run_cappy_bigbench.py --cluster slurm --slurm_partition gpu --slurm_gpus 1
    python scripts/run_cappy_bigbench.py --status

Every flag of cappy_bigbench.py may be given and goes to each cell. A cell is a process of its own with a log beside its
result; what has a result is kept, what another process works on is left to it, and the same command goes on where a
stopped one was. See docs/sweeps.md. The reference took 40 minutes a cell on an A10G: 150 hours for 225.
"""

import functools
import inspect
import itertools
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Literal, NamedTuple

import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cappy_bigbench  # noqa: E402
from cappy.cli import flags, tables  # noqa: E402
from cappy.errors import InputError  # noqa: E402
from cappy.files.jsonl import listed  # noqa: E402
from cappy.study import cells, results, slurm, sweep  # noqa: E402
from cappy.tasks.candidates import SPLITS  # noqa: E402

CELL_DEFAULTS = {name: p.default for name, p in inspect.signature(cappy_bigbench.main).parameters.items()}
# Flags of a cell that the sweep gives itself, or that make one task of several hosts.
NOT_PASSED = ('bigbench_gen_model', 'bigbench_subset_name', 'n_processes', 'host0_address', 'host0_port', 'process_id')
CHECKPOINT_EVERY = 200  # updates: a quarter of the paper's training


def main(
    bigbench_data_dir='./bigbench_data',  # subset_names.json lies here
    cuda_idx=0,  # the device, where --gpus names none
    gpus: str | None = None,  # 0,1,2: a cell a device (with --n_model_shards N: a cell N devices)
    workers: int | None = None,  # cells at a time on the CPU, each on its share of the cores
    gen_models: str | None = None,  # a,b,c; default: all that have a folder, the largest FLAN-T5 first
    tasks: str | None = None,  # a,b,c; default: all of subset_names.json
    seeds: str | None = None,  # 1,2,3: results go to {results_dir}/seed1 and so on; one seed: as --seed
    status=False,  # show the state of each cell and end
    cluster: Literal['local', 'slurm'] = 'local',  # where cells run
    slurm_partition: str | None = None,
    slurm_minutes=240,  # a cell that needs more goes on from its checkpoint
    slurm_gpus=1,  # of a cell
    slurm_cpus=4,
    slurm_mem_gb=32,
    slurm_at_once=256,  # cells that may run at the same time
    slurm_setup: str | None = None,  # shell commands before each cell, e.g. 'module load cuda'
    slurm_options: str | None = None,  # further ones of sbatch: account=a,qos=b
    poll_seconds=10.0,  # between looks at Slurm's queue
    **cell_flags,
):
    """Adapt a scorer to each task with each generator's samples."""
    settings = CELL_DEFAULTS | {'checkpoint_every': CHECKPOINT_EVERY} | cell_flags
    generators = choose_generators(settings, gen_models)
    names = choose_tasks(settings, bigbench_data_dir, tasks, generators)
    wanted = list(itertools.product(read_seeds(seeds, settings), generators, names))
    settings['seed'] = wanted[0][0].number  # of several, each job has its own
    if status:
        sys.exit(show_status([make_job(*cell, settings, cell_flags) for cell in wanted]))
    slots = choose_slots(gpus, workers, cuda_idx, settings['n_model_shards']) if cluster == 'local' else []
    options = slurm_options_of(locals()) if cluster == 'slurm' else None
    fewer = fewer_tokens(settings, options.gpus if options else workers is None and sweep.n_nvidia_devices())
    jobs = [make_job(*cell, settings, cell_flags, fewer) for cell in wanted]
    todo = choose_todo(jobs, settings)
    if todo:
        check_cells(settings, todo, options.gpus if options else settings['n_model_shards'])
        with Progress(jobs, todo) as progress:
            if cluster == 'slurm':
                watch_slurm(todo, settings['results_dir'], options, progress, poll_seconds)
            else:
                sweep.Runner(todo, slots, progress.on_event).run()
    finish(jobs, progress.n_failed if todo else 0)


def with_flags_of_a_cell(main):
    """main, whose **cell_flags are shown to the command line as those of cappy_bigbench.py."""

    @functools.wraps(main)
    def joined(**values):
        return main(**values)

    ours = [p for p in inspect.signature(main).parameters.values() if p.kind is not p.VAR_KEYWORD]
    theirs = dict(inspect.signature(cappy_bigbench.main).parameters)
    theirs['checkpoint_every'] = theirs['checkpoint_every'].replace(default=CHECKPOINT_EVERY)
    passed = [parameter for name, parameter in theirs.items() if name not in NOT_PASSED]
    joined.__signature__ = inspect.Signature([*ours, *passed])
    joined.__annotations__ = {**cappy_bigbench.main.__annotations__, **main.__annotations__}
    joined.__doc__ += (
        '\n\nFlags without a comment are those of cappy_bigbench.py, see its --help; they go to each cell.'
    )
    return joined


def choose_generators(settings, asked):
    """Those asked for, or all that have a folder, the largest FLAN-T5 first, as in the reference."""
    folders = [Path(settings['bigbench_gen_dir'])]
    generators = cells.choose_generators(asked, folders, '--gen_models')
    if asked:
        return generators
    of_flan = [name for name in generators if name.startswith('flan-t5-')]
    return of_flan[::-1] + [name for name in generators if name not in of_flan]


def choose_tasks(settings, data_dir, asked, generators):
    """Those asked for, or all that the data folder names."""
    return cells.choose_tasks(asked, data_dir, cells.sampled_tasks(settings['bigbench_gen_dir'], generators))


class Seed(NamedTuple):
    """A seed and where its results go; label: the seed itself, where there are several."""

    number: int
    results_dir: Path
    label: int | None = None


def read_seeds(text, settings):
    """The Seed of --seed, or those of --seeds."""
    root = Path(settings['results_dir'])
    if text is not None and settings['seed'] != CELL_DEFAULTS['seed']:
        raise InputError('--seed and --seeds: give one')
    names = [str(settings['seed'])] if text is None else cells.split_names(text, '--seeds')
    for name in names:
        if not name.isdecimal():
            raise InputError(f'--seeds: expected integers such as 1,2,3, from 0 on; found {name!r}')
    numbers = list(dict.fromkeys(map(int, names)))
    if len(numbers) == 1:
        return [Seed(numbers[0], root)]
    return [Seed(number, root / f'seed{number}', number) for number in numbers]


def make_job(seed, generator, task, settings, given, fewer=()):
    """The process that makes a cell. given: the flags of the command line that go to each cell."""
    own = {'bigbench_gen_model': generator, 'bigbench_subset_name': task, 'results_dir': seed.results_dir}
    own |= {'seed': seed.number, 'checkpoint_every': settings['checkpoint_every']}
    save_dir = settings['save_dir']
    if save_dir:
        folder = Path(save_dir) if seed.label is None else Path(save_dir, f'seed{seed.label}')
        own['save_dir'] = save_dir = str(folder / generator / task)
    values = {name: value for name, value in {**given, **own}.items() if name != 'overwrite'}
    command = [sys.executable, str(ROOT / 'cappy_bigbench.py')]
    command += [f'--{name}={value}' for name, value in values.items()]
    command += ['--overwrite'] if settings['overwrite'] else []
    paths = results.ResultPaths(seed.results_dir, generator, task)
    return sweep.Job(paths, tuple(command), fewer, save_dir, settings['overwrite'], seed.label)


def fewer_tokens(settings, on_gpu):
    """Flags for a cell that ran out of memory: half the tokens that it had."""
    from cappy.model import scoring, training

    platform = 'gpu' if on_gpu else 'cpu'
    budgets = {'tokens_per_device': training, 'eval_tokens_per_device': scoring}
    return tuple(
        f'--{name}={max(1, (settings[name] or module.TOKENS_PER_DEVICE[platform]) // 2)}'
        for name, module in budgets.items()
    )


def choose_slots(gpus, workers, cuda_idx, n_shards):
    """Where cells run at the same time."""
    if gpus is not None and workers is not None:
        raise InputError('--gpus and --workers: give one; --workers is for cells on the CPU')
    if workers is not None:
        if n_shards > 1:
            raise InputError(f'--n_model_shards {n_shards}: needs as many devices, and --workers has one for each cell')
        return [sweep.Slot({'JAX_PLATFORMS': 'cpu'}, cores) for cores in sweep.share_cores(workers)]
    names = [str(cuda_idx)] if gpus is None else cells.split_names(gpus, '--gpus')
    found = sweep.n_nvidia_devices()
    for name in names:
        if found and name.isdecimal() and int(name) >= found:
            raise InputError(f'--gpus {name}: no such device; there are {found}, from 0 to {found - 1}')
    if gpus is not None and len(names) % n_shards:
        raise InputError(f'--gpus {gpus}: {len(names)} devices do not make groups of {n_shards} (--n_model_shards)')
    if gpus is None and n_shards > 1:
        raise InputError(f'--n_model_shards {n_shards}: name the devices, --gpus 0,1 for two')
    if gpus is not None and not found:
        print('no NVIDIA device is found; cells run on the CPU, where --workers shares out the cores', file=sys.stderr)
    groups = [','.join(names[first : first + n_shards]) for first in range(0, len(names), n_shards)]
    return [sweep.Slot({'CUDA_VISIBLE_DEVICES': group}) for group in groups]


def slurm_options_of(values):
    """slurm.SlurmOptions of the flags that begin with slurm_."""
    slurm.check_available()
    for name in ('slurm_minutes', 'slurm_cpus', 'slurm_mem_gb', 'slurm_at_once'):
        if values[name] < 1:
            raise InputError(f'--{name} {values[name]}: expected 1 or more')
    if values['slurm_gpus'] < 0 or max(1, values['slurm_gpus']) % values['settings']['n_model_shards']:
        raise InputError(f'--slurm_gpus {values["slurm_gpus"]}: expected a multiple of --n_model_shards, or 0')
    if values['poll_seconds'] <= 0:
        raise InputError(f'--poll_seconds {values["poll_seconds"]}: expected more than 0')
    words = values['slurm_options']
    more = [part.partition('=') for part in cells.split_names(words, '--slurm_options')] if words else []
    chosen = {name.removeprefix('slurm_'): value for name, value in values.items() if name.startswith('slurm_')}
    # An option without a value is a switch of sbatch.
    chosen['options'] = {name.lstrip('-'): value if equals else True for name, equals, value in more}
    return slurm.SlurmOptions(**chosen)


def watch_slurm(todo, results_dir, options, progress, poll_seconds):
    """Submit the cells and tell what becomes of them; stopping this leaves them to Slurm."""
    try:
        slurm.SlurmRunner(todo, results_dir, options, progress.on_event, poll_seconds).run()
    except KeyboardInterrupt:
        told = f'the jobs go on; the same command watches them, scancel --name={slurm.JOB_NAME} ends them'
        print(told, file=sys.stderr)
        raise


def choose_todo(jobs, settings):
    """The cells without a result; says what is odd with those that have one."""
    todo, differing = [], {}
    for job in jobs:
        state = sweep.find_state(job)
        if settings['overwrite'] or state.kind not in ('done', 'corrupt'):
            todo.append(job)
        elif state.kind == 'done':
            sweep.tidy(job)
            made_with = results.read_result(job.paths.result).get('settings')
            for name in differing_settings(made_with, settings, job):
                differing.setdefault(name, []).append(job.name)
        else:
            print(f'{state.why}; counted as missing, and left as it is (--overwrite replaces it)', file=sys.stderr)
    for name, made in differing.items():
        print(f'{len(made)} results were made with another --{name}: {listed(made)}; they are kept', file=sys.stderr)
    return todo


def differing_settings(made_with, settings, job):
    """Names of the settings that a result does not share with this sweep."""
    if not isinstance(made_with, dict):
        return []
    ours = settings | ({} if job.seed is None else {'seed': job.seed})
    names = [name for name in made_with if name in ours and name not in cells.HARMLESS_SETTINGS]
    return [name for name in names if made_with[name] != ours[name]]


def check_cells(settings, todo, n_devices):
    """What would fail in every cell, or in one for want of its files, is named before any begins."""
    from cappy.model.model_files import find_model

    folder, missing = Path(settings['bigbench_gen_dir']), []
    for job in todo:
        names = [f'{job.paths.generator}/{job.paths.task}_{split}.jsonl' for split in SPLITS]
        missing += [name for name in names if not (folder / name).is_file() or not (folder / name).stat().st_size]
    if missing:
        missing = list(dict.fromkeys(missing))
        raise InputError(
            f'{folder}: {len(missing)} files of candidates are missing or empty: {listed(missing)}; make them, or name '
            f'what there is with --gen_models and --tasks'
        )
    n_data = max(1, n_devices // settings['n_model_shards'])
    cappy_bigbench.training_settings(settings).check(settings['train_size'], n_data)
    find_model(settings['model_name_or_path'])  # fetched here once, if it has to be, and not by all cells at once


class Progress:
    """Tells of events a line each, and shows a bar beneath them on a terminal."""

    def __init__(self, jobs, todo):
        self.n_cells, self.n_done, self.n_made, self.n_failed = len(jobs), len(jobs) - len(todo), 0, 0
        self.running, self.began = set(), time.monotonic()
        self.bar = tqdm.tqdm(total=self.n_cells, initial=self.n_done, unit='cell', disable=None, miniters=1)

    def __enter__(self):
        # A terminal that closes and a `kill` end the cells as Ctrl-C does.
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, signal.default_int_handler)
        tqdm.tqdm.write(f'{self.n_done} of {self.n_cells} cells have results', file=sys.stderr)
        return self

    def __exit__(self, *exception):
        self.bar.close()

    def on_event(self, event, job, detail):
        """Events as sweep.Runner gives them."""
        if event == 'tick':
            self.bar.refresh()
            return
        (self.running.add if event == 'started' else self.running.discard)(job.name)
        self.n_failed += event == 'failed'
        if event == 'done':
            self.n_done, self.n_made = self.n_done + 1, self.n_made + (detail is not None)
            self.bar.update()
        self.bar.set_postfix(running=len(self.running), failed=self.n_failed)
        tqdm.tqdm.write(f'{event:<9} {job.name}{self.told(event, job, detail)}', file=sys.stderr)

    def told(self, event, job, detail):
        """What stands behind a cell's name."""
        if event == 'started':
            return '' if detail == 1 else ', second attempt'
        if event != 'done':
            return f': {detail}' + (f' ({job.log})' if event == 'failed' else '')
        rougeL = sweep.find_state(job).rougeL
        took = 'by another process' if detail is None else f'in {duration(detail)}'
        return f'{"" if rougeL is None else f" {100 * rougeL:.2f}"} {took}; {self.count()}'

    def count(self):
        """`3 of 6 done, 2 running, 1 failed, about 5 min left`."""
        left = self.n_cells - self.n_done - self.n_failed
        told = f'{self.n_done} of {self.n_cells} done, {len(self.running)} running, {self.n_failed} failed'
        seconds = time.monotonic() - self.began
        return f'{told}, about {duration(seconds / self.n_made * left)} left' if left and self.n_made else told


def duration(seconds):
    """`42 s`, `5 min` or `3.2 h`."""
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'


def show_status(jobs):
    """The grid on standard output; -> the exit code."""
    queued = slurm.queued_states(jobs)
    states = {job: sweep.find_state(job, queued) for job in jobs}
    rows, columns = {}, {}
    for job, state in states.items():
        column = job.name.removesuffix(f'/{job.paths.task}')
        columns[column] = None
        text = state.kind if state.rougeL is None else f'{100 * state.rougeL:.2f}'
        rows.setdefault(job.paths.task, {'task': job.paths.task})[column] = text
    print(tables.format_table(rows.values(), ['task', *columns]))
    print(f'\n{sweep.count_kinds(list(states.values()))}')
    for job, state in states.items():
        if state.why:
            print(f'{state.kind:<8} {job.name}: {state.why}')
    return 0 if all(state.kind == 'done' for state in states.values()) else 1


def finish(jobs, n_failed):
    """Say what is there; InputError where a cell is missing, or one that was to be replaced is not."""
    states = [sweep.find_state(job) for job in jobs]
    told = sweep.count_kinds(states)
    if n_failed or any(state.kind != 'done' for state in states):
        raise InputError(f'{told}; --status shows which and why, and the same command makes what is missing')
    print(told)


if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
    flags.run(with_flags_of_a_cell(main))
