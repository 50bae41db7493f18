"""Draw a FLAN-T5's samples for every task, {output_dir}/{generator}/{task}_{split}.jsonl, for cappy_bigbench.py.

    python scripts/bigbench_flan_generate.py --model_name_or_path google/flan-t5-small
    python scripts/bigbench_flan_generate.py --tasks my_task --splits validation --model_name_or_path ./my-t5

For each example one sample of beam4 and n_sample_gens of each other decoding, with log-likelihoods on validation
examples (as the reference's scripts/bigbench_flan_generate.py). A sample depends on its names alone (jax_seed, task,
split, example_idx, decoding, number): not on batches, devices, or other tasks. Examples that are done are kept in
{file}.partial, and the same command continues a run that was stopped; a file that exists is left alone.
"""

import contextlib
import logging
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli import flags
from cappy.errors import InputError
from cappy.files.inputs import find, stems
from cappy.files.lock import check_result
from cappy.files.partial import OutputPaths
from cappy.files.wording import listed, not_found
from cappy.generate.decodings import DEFAULT_TOP_K, parse_decoding
from cappy.generate.generator import Generator
from cappy.generate.lost_characters import count_lost, describe_lost
from cappy.generate.sample_files import candidate_path, check_existing, read_instructions, sampled_file
from cappy.generate.sampling import sample_key
from cappy.model.devices import get_devices, is_first_process
from cappy.model.model_files import model_digest
from cappy.study.cells import read_task_names
from cappy.tasks.candidates import REFERENCE_DECODINGS, SPLITS, Sample

# Flags that decide what is drawn; a file that was begun with others is not continued. The model's name is not one of
# them: its digest is.
DECIDING = ('n_sample_gens', 'max_src_len', 'max_tgt_len', 'jax_seed', 'decodings', 'default_top_k', 'log_likelihood')
DECIDING += ('compute_dtype',)
REMEDY = 'python scripts/get_bigbench_data.py writes the tasks of BIG-bench'

logger = logging.getLogger('bigbench_flan_generate')


def main(
    data_dir='bigbench_data',  # folder of {task}_{split}.jsonl and subset_names.json
    src_key='instruction',  # field of the instruction
    tgt_key='response',  # field for a sample's text
    model_name_or_path='google/flan-t5-small',  # hub name or folder of a T5
    n_model_shards: flags.Count = 1,  # devices over which each weight is split
    n_sample_gens: flags.Count = 4,  # samples per example and decoding; a beam search gives one
    per_device_batch_size: flags.Count = 8,  # not used: samples do not depend on batches; see --sequences_per_device
    max_src_len: flags.Count = 512,  # tokens per instruction; longer ones are truncated
    max_tgt_len: Annotated[int, flags.Range(least=2)] = 64,  # tokens per sample, the start token included
    output_dir='bigbench_flan_gens',  # folder that gets {generator}/{task}_{split}.jsonl
    jax_seed: flags.Seed = 42,  # of the samples
    tasks: flags.Names | None = None,  # a,b,c; default: those with data, BIG-bench's in the order of subset_names.json
    splits: flags.Names = SPLITS,
    decodings: flags.Names = REFERENCE_DECODINGS,  # beamN, sampling, tempX, topkN, toppX
    default_top_k=True,  # sampling, temp and topp draw from the 50 most likely words, as the reference's do
    log_likelihood: Literal[
        'retokenized', 'sampled', 'none'
    ] = 'retokenized',  # of validation samples: of text, or drawn tokens
    generator: str | None = None,  # name of the folder; default: the last part of the model's name
    compute_dtype: Literal['float32', 'bfloat16'] | None = None,  # default: float32 on a CPU, else bfloat16
    sequences_per_device: flags.Count | None = None,  # texts decoded at a time; default: by device
    tokens_per_device: flags.Count | None = None,  # of whole texts at a time; likewise; both halved if memory runs out
    window: flags.Count = 256,  # examples worked on together: the most that a stopped run loses
    overwrite=False,  # begin again where a file, or a part of it, exists
    n_processes: flags.Count | None = None,  # hosts, as redco's Deployer takes them; likewise the next four
    host0_address: str | None = None,
    host0_port: flags.Port | None = None,
    process_id: flags.CountFrom0 | None = None,
    n_local_devices: flags.Count | None = None,
):
    """Draw the samples of every task and split."""
    settings = dict(locals())
    chosen = [parse_decoding(name, DEFAULT_TOP_K if default_top_k else 0) for name in decodings]
    generator = generator or Path(model_name_or_path).resolve().name
    files = read_files(settings, generator)
    devices = get_devices(n_model_shards, n_processes, host0_address, host0_port, process_id, n_local_devices)
    n_samples = {decoding.name: 1 if decoding.n_beams else n_sample_gens for decoding in chosen}
    files = {path: examples for path, examples in files.items() if overwrite or not is_done(path, examples, n_samples)}
    if files:
        if is_first_process():
            check_result(*map(OutputPaths, files))
        model = Generator.from_pretrained(
            model_name_or_path,
            devices=devices,
            compute_dtype=compute_dtype,
            sequences_per_device=sequences_per_device,
            tokens_per_device=tokens_per_device,
        )
        deciding = {
            **{name: settings[name] for name in DECIDING},
            'model_digest': model_digest(model_name_or_path) if is_first_process() else None,
        }
        with Progress(sum(map(len, files.values())), model) as progress:
            for path, examples in files.items():
                draw_file(path, examples, model, chosen, settings, deciding, progress)
    if is_first_process():
        if files:
            print(f'{Path(output_dir) / generator}: wrote {listed(path.name for path in files)}')
        for remark in [] if tasks else missing_data(data_dir, splits):
            logger.warning(remark)


def read_files(settings, generator):
    """{path of the candidate file: [Example]}, after every data file was read and checked."""
    data_dir, splits, tasks = Path(settings['data_dir']), settings['splits'], settings['tasks']
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise InputError(f'--splits: expected {" or ".join(SPLITS)}, found {unknown[0]!r}')
    names = [(task, split) for task in tasks for split in splits] if tasks else names_with_data(data_dir, splits)
    files = {}
    for task, split in names:
        path = candidate_path(settings['output_dir'], generator, task, split)
        data = find(data_dir / f'{task}_{split}.jsonl')
        if data.resolve() == path.resolve():
            raise InputError(f'{path}: would be written over itself; choose another --output_dir')
        files[path] = list(read_instructions(data, src_key=settings['src_key']).values())
    return files


def names_with_data(data_dir, splits):
    """[(task, split)] of the data files in a folder: first the tasks of its subset_names.json, in its order."""
    if not data_dir.is_dir():
        raise InputError(not_found(data_dir, 'folder', remedy=REMEDY))
    found = sorted((task, split) for split in splits for task in stems(data_dir, f'_{split}.jsonl'))
    if not found:
        raise InputError(f'{data_dir}: no file {{task}}_{{split}}.jsonl with split {" or ".join(splits)}; {REMEDY}')
    rank = {task: number for number, task in enumerate(listed_tasks(data_dir))}
    return sorted(found, key=lambda name: (rank.get(name[0], len(rank)), name[0], splits.index(name[1])))


def listed_tasks(data_dir):
    """The tasks of subset_names.json; none where there is no such file."""
    return read_task_names(data_dir) if (Path(data_dir) / 'subset_names.json').exists() else []


def missing_data(data_dir, splits):
    """[a remark on the tasks of subset_names.json without data]; [] where all have it, or only other tasks do."""
    tasks = listed_tasks(data_dir)
    names = set(names_with_data(Path(data_dir), splits))
    missing = [task for task in tasks if not {(task, split) for split in splits} <= names]
    if not missing or not {task for task, _ in names} & set(tasks):
        return []
    path = Path(data_dir) / 'subset_names.json'
    return [f'{len(missing)} of the {len(tasks)} tasks of {path} lack files ({listed(missing)}); {REMEDY}']


def is_done(path, examples, n_samples):
    """Whether the candidate file exists, with all that is asked for, as the first process finds it."""
    path = find(path)
    exists = is_first_process() and path.exists()
    if exists:
        check_existing(path, examples, n_samples)
        print(
            f'{path} exists and holds all {len(examples)} examples. Skipped; --overwrite begins again.', file=sys.stderr
        )
    return bool(from_first_process(exists))


def from_first_process(value):
    """The number or array that the first process has, on every process."""
    return value if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(value)


class Progress:
    """A bar of examples on the first process, with the tokens drawn, which move while a window is worked on."""

    def __init__(self, n_examples, model):
        self.model, self.start = model, time.perf_counter()
        self.shown = self.start  # when the bar was last drawn
        # Of the first texts: 20 seconds on two CPU cores.
        self.bar = tqdm(total=n_examples, unit='example', desc='compiling', disable=not is_first_process())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def update(self, name, n_examples=0):
        """Texts of the file `name` were drawn, and n_examples are done."""
        now, n_tokens = time.perf_counter(), self.model.n_tokens
        self.bar.set_description(name, refresh=False)
        self.bar.set_postfix_str(f'{n_tokens} tokens, {n_tokens / (now - self.start):.0f} tokens/s', refresh=False)
        self.bar.update(n_examples)
        if now - self.shown > 0.5:
            self.shown = now
            self.bar.refresh()


def draw_file(path, examples, model, decodings, settings, deciding, progress):
    """Draw the samples of one candidate file, which appears when it is whole."""
    task, _, split = path.stem.rpartition('_')
    tell_lost_characters(path.stem, examples, model.tokenizer)
    n_samples, n_with_unknown = 0, model.n_with_unknown
    with open_file(path, examples, settings, deciding) as (to_do, add):
        if len(to_do) < len(examples):
            progress.update(path.stem, len(examples) - len(to_do))

        def key_of(index, decoding, number):
            return sample_key(settings['jax_seed'], task, split, to_do[index].example_idx, decoding, number)

        has_likelihoods = split == 'validation' and settings['log_likelihood'] != 'none'
        drawn = model.generate(
            [example.instruction for example in to_do],
            decodings,
            settings['n_sample_gens'],
            key_of,
            max_source_length=settings['max_src_len'],
            max_length=settings['max_tgt_len'],
            log_likelihood=settings['log_likelihood'] if has_likelihoods else None,
            window=settings['window'],
            on_drawn=lambda: progress.update(path.stem),
        )
        for index, responses in drawn:
            samples = as_samples(responses)
            n_samples += len(samples)
            add(to_do[index], samples)
            progress.update(path.stem, 1)
    n_with_unknown = model.n_with_unknown - n_with_unknown
    if n_with_unknown and is_first_process():
        logger.warning(
            '%s: %d of %d samples hold an unknown token, which their text leaves out',
            path.stem,
            n_with_unknown,
            n_samples,
        )


def tell_lost_characters(name, examples, tokenizer):
    """Say which characters of the instructions and the references of a file the model does not know."""
    lost = [
        count_lost(tokenizer, texts)
        for texts in (
            [example.instruction for example in examples],
            [reference for example in examples for reference in example.references],
        )
    ]
    for remark in describe_lost(*lost) if is_first_process() else ():
        logger.warning('%s: %s', name, remark)


def as_samples(by_decoding):
    """{name of the decoding: [Response]} -> [Sample]."""
    return [
        Sample(response.text, name, response.log_likelihood_sum, response.log_likelihood_mean)
        for name, responses in by_decoding.items()
        for response in responses
    ]


@contextlib.contextmanager
def open_file(path, examples, settings, deciding):
    """(examples without samples, a function that keeps the samples of an example), the same on every process."""
    with contextlib.ExitStack() as stack:
        file = None
        if is_first_process():
            keys = {'src_key': settings['src_key'], 'tgt_key': settings['tgt_key']}
            file = stack.enter_context(sampled_file(path, examples, deciding, settings['overwrite'], keys))
            if file.n_done:
                logger.warning('%s holds %d examples; continuing with the rest', file.paths.partial, file.n_done)
        left = {example.example_idx for example in file.to_do} if file else set()
        mask = from_first_process(np.array([example.example_idx in left for example in examples]))
        to_do = [example for example, is_left in zip(examples, mask, strict=True) if is_left]
        yield to_do, file.add if file else lambda example, samples: None


if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
    flags.run(main)
