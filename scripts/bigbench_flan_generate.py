"""Draw a FLAN-T5's samples for every task, {output_dir}/{generator}/{task}_{split}.jsonl, for cappy_bigbench.py.

    python scripts/bigbench_flan_generate.py --model_name_or_path google/flan-t5-small
    python scripts/bigbench_flan_generate.py --data_dir examples/bigbench_data --model_name_or_path examples/tiny-t5

For each example one sample of beam4 and n_sample_gens of each other decoding, on validation examples with their
log-likelihoods (the reference's scripts/bigbench_flan_generate.py). A sample depends on its names alone (jax_seed,
task, split, example_idx, decoding, number): not on batches, devices, or other tasks. Examples that are done go to
{file}.partial, and the same command goes on where a stopped one was; a file that exists is left alone.
"""

import contextlib
import logging
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli import flags
from cappy.errors import InputError
from cappy.generate.sample_files import check_existing, read_instructions, sampled_file
from cappy.model.devices import get_devices, is_first_process
from cappy.study.cells import read_task_names
from cappy.tasks.candidates import REFERENCE_DECODINGS, SPLITS, Sample

ALL_DECODINGS = ','.join(REFERENCE_DECODINGS)

# Flags that decide what is drawn; a file that was begun with others is not continued.
DECIDING = ('model_name_or_path', 'n_sample_gens', 'max_src_len', 'max_tgt_len', 'jax_seed', 'decodings')
DECIDING += ('default_top_k', 'log_likelihood', 'compute_dtype')

logger = logging.getLogger('bigbench_flan_generate')


def main(
    data_dir='bigbench_data',  # {task}_{split}.jsonl and subset_names.json lie here
    src_key='instruction',  # field of the instruction
    tgt_key='response',  # field for a sample's text
    model_name_or_path='google/flan-t5-small',  # hub name or folder of a T5
    n_model_shards=1,  # devices over which each weight is split
    n_sample_gens=4,  # samples of each decoding; a beam search gives one
    per_device_batch_size=8,  # read and not used; --sequences_per_device bounds memory, and samples do not depend on it
    max_src_len=512,  # tokens of an instruction, longer ones are truncated
    max_tgt_len=64,  # tokens of a sample, the start token counted
    output_dir='bigbench_flan_gens',  # {generator}/{task}_{split}.jsonl go here
    jax_seed=42,  # of the samples
    tasks: str | None = None,  # one, or several with commas between; default: those of subset_names.json
    splits='train,validation',
    decodings=ALL_DECODINGS,  # beamN, sampling, tempX, topkN, toppX, with commas between
    default_top_k=True,  # sampling, temp and topp draw from the 50 likeliest words, as the reference's do
    log_likelihood: Literal['retokenized', 'sampled', 'none'] = 'retokenized',  # of validation samples: text or tokens
    generator: str | None = None,  # name of the folder; default: the last part of the model's name
    compute_dtype: Literal['float32', 'bfloat16'] | None = None,  # default: float32 on a CPU, else bfloat16
    sequences_per_device: int | None = None,  # texts decoded at a time: memory; default: what suits the device
    tokens_per_device: int | None = None,  # of a batch of whole texts; default: what suits the device
    window=256,  # examples that are worked on together: what a stopped run loses at most
    overwrite=False,  # begin anew where a file, or a part of it, exists
    n_processes: int | None = None,  # hosts, as redco's Deployer takes them; so the next four
    host0_address: str | None = None,
    host0_port: int | None = None,
    process_id: int | None = None,
    n_local_devices: int | None = None,
):
    """Draw the samples of every task and split."""
    settings = dict(locals())
    check_numbers(settings)
    files = find_files(settings)
    devices = get_devices(n_model_shards, n_processes, host0_address, host0_port, process_id, n_local_devices)
    chosen = choose_decodings(settings)
    files = {name: examples for name, examples in files.items() if not is_done(settings, *name, examples)}
    if not files:
        return
    model = load_generator(settings, devices)
    with Progress(sum(map(len, files.values())), model) as progress:
        for (task, split), examples in files.items():
            draw_file(settings, model, chosen, task, split, list(examples.values()), progress)


def check_numbers(settings):
    """Flags whose type says too little."""
    least = {'n_sample_gens': 1, 'max_src_len': 1, 'window': 1, 'sequences_per_device': 1, 'tokens_per_device': 1}
    for name, number in least.items():
        if settings[name] is not None and settings[name] < number:
            raise InputError(f'--{name}: expected {number} or more, found {settings[name]}')
    if settings['max_tgt_len'] < 2:
        raise InputError(
            f'--max_tgt_len {settings["max_tgt_len"]}: leaves no token behind the start token; give 2 or more'
        )
    for name in ('splits', 'decodings'):
        listed(name, settings)


def listed(name, settings):
    """The parts of a flag with commas."""
    parts = [part.strip() for part in settings[name].split(',')]
    if not all(parts) or len(set(parts)) < len(parts):
        raise InputError(f'--{name} {settings[name]!r}: expected names with commas between, each once')
    return parts


def find_files(settings):
    """{(task, split): {line: Example}}, after every data file was read through."""
    splits = listed('splits', settings)
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise InputError(f'--splits: expected {" or ".join(SPLITS)}, found {unknown[0]!r}')
    folder = Path(settings['data_dir'])
    files = {}
    for task in listed('tasks', settings) if settings['tasks'] else read_task_names(folder):
        for split in splits:
            path = folder / f'{task}_{split}.jsonl'
            if path.resolve() == result_path(settings, task, split).resolve():
                raise InputError(f'{path}: would be written over itself; choose another --output_dir')
            files[task, split] = read_instructions(path, src_key=settings['src_key'])
    return files


def result_path(settings, task, split):
    """Where a task's samples go."""
    generator = settings['generator'] or Path(settings['model_name_or_path']).resolve().name
    if '/' in generator or generator.startswith('.') or not generator:
        raise InputError(f'--generator {generator!r}: cannot be the name of a folder; give another')
    return Path(settings['output_dir']) / generator / f'{task}_{split}.jsonl'


def choose_decodings(settings):
    """The decodings that the flags say."""
    from cappy.generate.decodings import DEFAULT_TOP_K, parse_decoding

    default_top_k = DEFAULT_TOP_K if settings['default_top_k'] else 0
    return [parse_decoding(name, default_top_k) for name in listed('decodings', settings)]


def is_done(settings, task, split, examples):
    """Whether the file is there already, and whole; as the first process finds it."""
    path = result_path(settings, task, split)
    exists = is_first_process() and path.exists() and not settings['overwrite']
    if exists:
        n_each = settings['n_sample_gens']
        n_samples = {name: 1 if name.startswith('beam') else n_each for name in listed('decodings', settings)}
        check_existing(path, list(examples.values()), n_samples)
        print(
            f'{path} exists and holds all {len(examples)} examples. Skipped; --overwrite begins anew.', file=sys.stderr
        )
    return bool(from_first_process(exists))


def from_first_process(value):
    """The number or array that the first process has, on every process."""
    import jax
    from jax.experimental import multihost_utils

    return value if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(value)


def load_generator(settings, devices):
    """The T5 of the flags."""
    from cappy.generate.generator import Generator

    names = ('compute_dtype', 'sequences_per_device', 'tokens_per_device')
    return Generator.from_pretrained(
        settings['model_name_or_path'], devices=devices, **{name: settings[name] for name in names}
    )


class Progress:
    """A bar of examples on the first process, with the tokens drawn in a second."""

    def __init__(self, n_examples, model):
        self.model, self.start = model, time.perf_counter()
        self.bar = tqdm(total=n_examples, unit='example', disable=not is_first_process())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def update(self, n_examples, name):
        seconds = time.perf_counter() - self.start
        self.bar.set_description(name, refresh=False)
        self.bar.set_postfix_str(f'{self.model.n_tokens / seconds:.0f} tokens/s', refresh=False)
        self.bar.update(n_examples)


def draw_file(settings, model, decodings, task, split, examples, progress):
    """Draw the samples of a task's split; the file appears when it is whole."""
    with written(settings, task, split, examples) as (todo, add):
        progress.update(len(examples) - len(todo), f'{task}_{split}')

        def key_of(place, decoding, number):
            from cappy.generate.decodings import sample_key

            return sample_key(settings['jax_seed'], task, split, todo[place].example_idx, decoding, number)

        is_weighed = split == 'validation' and settings['log_likelihood'] != 'none'
        drawn = model.generate(
            [example.instruction for example in todo],
            decodings,
            settings['n_sample_gens'],
            key_of,
            max_source_length=settings['max_src_len'],
            max_length=settings['max_tgt_len'],
            log_likelihood=settings['log_likelihood'] if is_weighed else None,
            window=settings['window'],
        )
        for place, responses in drawn:
            add(todo[place], as_samples(responses))
            progress.update(1, f'{task}_{split}')


def as_samples(responses):
    """{decoding's name: [Response]} -> [Sample]."""
    return [
        Sample(one.text, name, one.log_likelihood_sum, one.log_likelihood_mean)
        for name, some in responses.items()
        for one in some
    ]


@contextlib.contextmanager
def written(settings, task, split, examples):
    """(examples that have no samples yet, a function that keeps an example's samples)."""
    path = result_path(settings, task, split)
    with contextlib.ExitStack() as stack:
        file = None
        if is_first_process():
            deciding = {name: settings[name] for name in DECIDING}
            keys = {'src_key': settings['src_key'], 'tgt_key': settings['tgt_key']}
            file = stack.enter_context(sampled_file(path, examples, deciding, settings['overwrite'], keys))
            if file.n_done:
                logger.warning('%s holds %d examples; going on with the rest', file.paths.partial, file.n_done)
        left = {example.example_idx for example in file.to_do} if file else set()
        mask = from_first_process(np.array([example.example_idx in left for example in examples]))
        todo = [example for example, is_left in zip(examples, mask, strict=True) if is_left]
        yield todo, file.add if file else lambda example, samples: None


if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
    flags.run(main)
