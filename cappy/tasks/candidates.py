"""Examples of a task with a generator's samples, read from JSON lines, checked, and written."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from cappy.errors import InputError
from cappy.files import jsonl
from cappy.files.atomic import write_together
from cappy.files.inputs import find, stems
from cappy.files.names import check_name
from cappy.files.wording import listed, near_names, not_found, shown

SAMPLES_KEYS = ('flan_samples', 'samples')  # two names of one field; the first is written
SPLITS = ('train', 'validation')
GENERATORS_REMEDY = (
    'bash scripts/download_bigbench_flan_gens.sh fetches the samples of the paper, '
    'python scripts/bigbench_flan_generate.py draws new ones'
)
REFERENCE_DECODINGS = ('beam4', 'sampling', 'temp0.9', 'topk40', 'topp0.95')  # in the order of its tables


@dataclass(frozen=True, slots=True)
class Sample:
    """One response of a generator by a decoding.

    The log-likelihoods are natural logarithms, summed and averaged over the tokens of the response; None where the file
    has none, null or a number that is not finite. was_cut: the response ended at the limit of tokens; False also where
    the file does not say. label: how good it is, 0 to 1, by people, tests or a judge; None where the file has none.
    """

    response: str
    decoding: str
    log_likelihood_sum: float | None = None
    log_likelihood_mean: float | None = None
    was_cut: bool = False
    label: float | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """An instruction with its references and all its samples, those of one decoding together, in file order.

    line: 'path:number' of the file that it was read from.
    """

    dataset: str | None
    example_idx: int | str
    instruction: str
    references: tuple[str, ...]
    samples: tuple[Sample, ...] = ()
    line: str | None = field(default=None, compare=False)

    @property
    def place(self) -> str:
        """Where it is, for a message: its line, or its example_idx where it is from no file."""
        return self.line or f'example_idx {self.example_idx!r}'

    @property
    def labels(self) -> np.ndarray | None:
        """The label of each candidate, float64 [C], the mean over its samples; None where the samples have none."""
        if not self.samples or self.samples[0].label is None:
            return None
        by_response = {}
        for sample in self.samples:
            by_response.setdefault(sample.response, []).append(sample.label)
        return np.array([np.mean(by_response[response]) for response in self.candidates])

    @property
    def decodings(self) -> tuple[str, ...]:
        """Names of the decodings that have a sample, in order."""
        return tuple(dict.fromkeys(sample.decoding for sample in self.samples))

    @property
    def candidates(self) -> tuple[str, ...]:
        """Unique responses, in order of first appearance."""
        return tuple(dict.fromkeys(sample.response for sample in self.samples))


def candidate_pairs(examples: Sequence[Example]) -> list[tuple[str, str]]:
    """(instruction, candidate) of all candidates of the examples, in order."""
    return [(example.instruction, candidate) for example in examples for candidate in example.candidates]


def by_example(values: np.ndarray, examples: Sequence[Example]) -> list[np.ndarray]:
    """What an array has for `candidate_pairs`, as one array for each example."""
    return np.split(values, np.cumsum([len(example.candidates) for example in examples])[:-1])


def read_examples(
    path,
    *,
    src_key='instruction',
    tgt_key='response',
    refs_key='references',
    label_key='label',
    samples_needed=True,
) -> list[Example]:
    """Read a file of examples, one JSON object per line, in file order; blank lines are skipped.

    src_key, tgt_key, refs_key, label_key: names of the fields of an instruction, of a sample's response, of the
    references and of a sample's label. Either all samples of a file have a label or none. samples_needed: whether an
    example without samples is an error. Raises InputError naming file, lines and fields. A file {path}.gz is read where
    there is none at path.
    """
    path = find(path)
    line_of = {}
    keys = {'src_key': src_key, 'tgt_key': tgt_key, 'refs_key': refs_key, 'label_key': label_key}
    parse = partial(_parse_example, **keys, samples_needed=samples_needed)
    labelled = {}

    def check(number, example):
        first = line_of.setdefault(example.example_idx, number)
        if first != number:
            raise InputError(f'example_idx {example.example_idx!r} is on line {first} too; give every example its own')
        if example.samples:
            has_labels = example.samples[0].label is not None
            labelled.setdefault(has_labels, number)
            first_has, first = next(iter(labelled.items()))
            if has_labels != first_has:
                own, others = (f'no {label_key}', 'have one') if first_has else (f'a {label_key}', 'have none')
                raise InputError(f'its samples have {own}, and those of line {first} {others}; label all or none')

    examples = [replace(example, line=f'{path}:{number}') for number, example in jsonl.read(path, parse, check=check)]
    if not examples:
        raise InputError(f'{path}: holds no examples; write one JSON object per line')
    return examples


def read_task(
    gens_dir,
    generator,
    task,
    *,
    src_key='instruction',
    tgt_key='response',
    refs_key='references',
    label_key='label',
) -> dict[str, list[Example]]:
    """Read both splits of a task from {gens_dir}/{generator}/{task}_{split}.jsonl: {'train': .., 'validation': ..}.

    Raises InputError for a folder or file that is missing, with near names, and for the bad lines of both files as
    `read_examples` does.
    """
    check_name(generator, 'generator')
    check_name(task, 'task')
    gens_dir = Path(gens_dir)
    _check_is_folder(gens_dir, 'folder of generators', GENERATORS_REMEDY)
    _check_is_folder(gens_dir / generator, 'generator')
    paths = {split: find(gens_dir / generator / f'{task}_{split}.jsonl') for split in SPLITS}
    for path in paths.values():
        if not path.exists():
            raise InputError(f'{path}: no such file{_near_tasks(path.parent, task)}')
    keys = {'src_key': src_key, 'tgt_key': tgt_key, 'refs_key': refs_key, 'label_key': label_key}
    splits, faults = {}, []
    for split, path in paths.items():
        try:
            splits[split] = read_examples(path, **keys)
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError('; '.join(faults))
    return splits


def parse_label(value, name) -> float | None:
    """The label that a JSON value means, 0 to 1; None for null. InputError begins with the name."""
    if value is None or isinstance(value, bool):
        return None if value is None else float(value)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f'{name}: found {shown(value)}; give a number from 0 to 1, true or false')
    return float(value)


def write_examples(path, examples: Iterable[Example], src_key='instruction', tgt_key='response'):
    """Write examples as `read_examples` reads them, samples by decoding; the file appears whole or not at all."""
    write_splits({path: examples}, src_key, tgt_key)


def write_splits(examples: Mapping[Path, Iterable[Example]], src_key='instruction', tgt_key='response'):
    """Write the examples of several files, which appear together or not at all."""
    with write_together(*examples) as files:
        for file, of_file in zip(files, examples.values(), strict=True):
            for example in of_file:
                file.write(json.dumps(_as_json(example, src_key, tgt_key), ensure_ascii=False, allow_nan=False) + '\n')


def _parse_example(fields, src_key, tgt_key, refs_key, label_key, samples_needed):
    for key in ('example_idx', src_key, refs_key):
        if key not in fields:
            raise InputError(f'{key} is missing; the line has {listed(fields)}')
    dataset = fields.get('dataset')
    if dataset is not None and not isinstance(dataset, str):
        raise InputError(f'dataset: expected text, found {shown(dataset)}')
    example_idx = fields['example_idx']
    if isinstance(example_idx, bool) or not isinstance(example_idx, int | str):
        raise InputError(f'example_idx: expected an integer or text, found {shown(example_idx)}')
    instruction = fields[src_key]
    if not isinstance(instruction, str):
        raise InputError(f'{src_key}: expected text, found {shown(instruction)}')
    references = _parse_references(fields[refs_key], refs_key)
    samples = _parse_samples(fields, tgt_key, label_key, samples_needed)
    return Example(dataset, example_idx, instruction, references, samples)


def _parse_references(references, refs_key):
    if not isinstance(references, list):
        raise InputError(f'{refs_key}: expected a list of texts, found {shown(references)}')
    if not references:
        raise InputError(f'{refs_key}: the list is empty; at least one reference is needed')
    for reference in references:
        if not isinstance(reference, str):
            raise InputError(f'{refs_key}: expected a list of texts, found {shown(reference)} in it')
    return tuple(references)


def _parse_samples(fields, tgt_key, label_key, samples_needed):
    keys = [key for key in SAMPLES_KEYS if key in fields]
    if len(keys) > 1:
        raise InputError(f'{keys[0]} and {keys[1]} are two names of one field; keep one of them')
    if not keys:
        if samples_needed:
            raise InputError(
                f'{SAMPLES_KEYS[0]} is missing, so there is nothing to pick from; the line has {listed(fields)}'
            )
        return ()
    by_decoding = fields[keys[0]]
    if not isinstance(by_decoding, dict):
        raise InputError(f'{keys[0]}: expected lists of samples by decoding, found {shown(by_decoding)}')
    samples = []
    for decoding, entries in by_decoding.items():
        where = f'{keys[0]}, decoding {decoding!r}'
        if not isinstance(entries, list):
            raise InputError(f'{where}: expected a list of samples, found {shown(entries)}')
        samples += [_parse_sample(entry, decoding, tgt_key, label_key, where) for entry in entries]
    if samples_needed and not samples:
        raise InputError(f'{keys[0]}: no sample under any decoding, so there is nothing to pick from')
    n_labelled = sum(sample.label is not None for sample in samples)
    if 0 < n_labelled < len(samples):
        raise InputError(f'{keys[0]}: {n_labelled} of {len(samples)} samples have a {label_key}; label all or none')
    return tuple(samples)


def _parse_sample(entry, decoding, tgt_key, label_key, where):
    if not isinstance(entry, dict):
        raise InputError(f'{where}: expected a sample with {tgt_key}, found {shown(entry)}')
    if tgt_key not in entry:
        raise InputError(f'{where}: a sample without {tgt_key}; it has {listed(entry)}')
    response = entry[tgt_key]
    if not isinstance(response, str):
        raise InputError(f'{where}: {tgt_key}: expected text, found {shown(response)}')
    return Sample(
        response,
        decoding,
        _parse_log_likelihood(entry, 'log_likelihood_sum', where),
        _parse_log_likelihood(entry, 'log_likelihood_mean', where),
        _parse_was_cut(entry, where),
        parse_label(entry.get(label_key), f'{where}: {label_key}'),
    )


def _parse_log_likelihood(entry, key, where):
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f'{where}: {key}: expected a number, found {shown(value)}')
    return float(value) if jsonl.is_number(value) else None


def _parse_was_cut(entry, where):
    value = entry.get('was_cut', False)
    if not isinstance(value, bool):
        raise InputError(f'{where}: was_cut: expected true or false, found {shown(value)}')
    return value


def _as_json(example, src_key, tgt_key):
    by_decoding = {}
    for sample in example.samples:
        entry = {tgt_key: sample.response}
        if sample.log_likelihood_sum is not None:
            entry['log_likelihood_sum'] = sample.log_likelihood_sum
        if sample.log_likelihood_mean is not None:
            entry['log_likelihood_mean'] = sample.log_likelihood_mean
        if sample.was_cut:
            entry['was_cut'] = True
        if sample.label is not None:
            entry['label'] = sample.label
        by_decoding.setdefault(sample.decoding, []).append(entry)
    fields = {} if example.dataset is None else {'dataset': example.dataset}
    fields |= {
        'example_idx': example.example_idx,
        src_key: example.instruction,
        'references': list(example.references),
    }
    return fields | ({SAMPLES_KEYS[0]: by_decoding} if by_decoding else {})


def _check_is_folder(folder, kind, remedy=''):
    if not folder.is_dir():
        is_file = folder.exists()
        raise InputError(f'{folder}: is a file, not a folder' if is_file else not_found(folder, kind, remedy))


def _near_tasks(folder, task):
    tasks = set().union(*(stems(folder, f'_{split}.jsonl') for split in SPLITS))
    if task in tasks:
        return f'; {folder} has only the other split of {task}'
    return near_names(task, tasks, folder)
