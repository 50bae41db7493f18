"""Candidate files while their samples are drawn: what is done is kept when a run stops, and the next run continues it.

Examples are finished in any order. {file}.partial takes each one as it is done; when all are there, the candidate file
is written in the order of the data.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from cappy.errors import InputError
from cappy.files.atomic import write_atomically
from cappy.files.inputs import find
from cappy.files.jsonl import Faults, numbered_lines, parse_object
from cappy.files.lock import result_lock
from cappy.files.names import check_name
from cappy.files.partial import OutputPaths
from cappy.tasks.candidates import Example, Sample, read_examples, write_examples


def read_instructions(path, src_key='instruction') -> dict[int, Example]:
    """{line number from 1: Example} of the examples to draw samples for, in file order, without samples they may have.

    src_key: the field of the instruction. Raises InputError as `candidates.read_examples` does, and for an instruction
    that is empty or white space.
    """
    path = find(path)
    examples = read_examples(path, src_key=src_key, samples_needed=False)
    by_line, faults = {}, Faults(path)
    for (number, _), example in zip(numbered_lines(path), examples, strict=True):
        if not example.instruction.strip():
            faults.add(number, InputError(f'{src_key}: is empty, so there is nothing to answer; write one'))
        by_line[number] = replace(example, samples=())
    faults.check()
    return by_line


def candidate_path(output_dir, generator, task, split) -> Path:
    """Where the samples of a task's split go. Raises InputError where a name would leave the folder."""
    check_name(generator, 'generator')
    check_name(task, 'tasks')
    return Path(output_dir) / generator / f'{task}_{split}.jsonl'


def check_existing(path, examples: Sequence[Example], n_samples: dict[str, int]):
    """Raise InputError unless a candidate file holds these examples, each with so many samples of each decoding.

    n_samples: {name of the decoding: number of samples}.
    """
    found = read_examples(path)
    if [(e.example_idx, e.instruction) for e in found] != [(e.example_idx, e.instruction) for e in examples]:
        raise InputError(f'{path}: exists and holds other examples; --overwrite replaces it')
    for example in found:
        counts = {name: sum(sample.decoding == name for sample in example.samples) for name in example.decodings}
        if counts != n_samples:
            raise InputError(
                f'{path}: exists, and example_idx {example.example_idx!r} has {_counted(counts)} (asked for: '
                f'{_counted(n_samples)}); --overwrite replaces it'
            )


class SampledFile:
    """A candidate file whose samples are being drawn."""

    def __init__(self, paths, examples, done, file, keys):
        self.paths, self.examples, self.keys = paths, examples, keys
        self._done, self._file = done, file
        self.is_discarded = False

    @property
    def n_done(self) -> int:
        """Number of examples that have their samples."""
        return len(self._done)

    @property
    def whole(self) -> list[Example]:
        """Examples with their samples, in order, of those that are done."""
        return [replace(e, samples=self._done[e.example_idx]) for e in self.examples if e.example_idx in self._done]

    @property
    def to_do(self) -> list[Example]:
        """Examples without samples, in order."""
        return [example for example in self.examples if example.example_idx not in self._done]

    def add(self, example: Example, samples: Sequence[Sample]):
        """Keep the samples of an example; they are in the partial file before this returns."""
        record = {'example_idx': example.example_idx, 'instruction': example.instruction}
        record['samples'] = [asdict(sample) for sample in samples]
        try:
            self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b'\n')
            self._file.flush()
        except OSError as error:
            raise InputError(
                f'{self.paths.partial}: cannot be written ({error.strerror}); make room, and the same command continues'
            ) from error
        self._done[example.example_idx] = tuple(samples)

    def discard(self):
        """Leave no partial file behind when the run stops."""
        self.is_discarded = True

    def finish(self):
        """Write the candidate file, which needs the samples of all examples, and remove the partial one."""
        write_examples(self.paths.result, self.whole, **self.keys)
        self.paths.partial.unlink()
        self.paths.settings.unlink()


@contextlib.contextmanager
def sampled_file(path, examples: Sequence[Example], settings: dict, overwrite=False, keys=None):
    """The SampledFile of a path, locked; the candidate file appears when the block ends.

    settings: JSON values that decide what samples are drawn; a partial file that was begun with others is refused.
    overwrite: discard what a stopped run has done. keys: names of fields, as write_examples takes them.
    Raises InputError where the partial file is of other examples, or cannot be written; lock.ResultLocked where a live
    process draws the same samples.
    """
    paths = OutputPaths(Path(path))
    with result_lock(paths):
        continues = paths.partial.exists() and not overwrite
        if continues:
            paths.check_continues(settings)
        done, n_bytes = _read_partial(paths.partial, examples) if continues else ({}, 0)
        try:
            file = open(paths.partial, 'r+b' if continues else 'wb')  # noqa: SIM115 - closed below, before it is removed
        except OSError as error:
            raise InputError(f'{paths.partial}: cannot be written ({error.strerror})') from error
        sampled = SampledFile(paths, examples, done, file, keys or {})
        try:
            if not continues:
                with write_atomically(paths.settings) as settings_file:
                    json.dump(settings, settings_file, indent=4)
            file.truncate(n_bytes)  # drops a line that a killed run had not finished
            file.seek(n_bytes)
            yield sampled
            sampled.finish()
        finally:
            with contextlib.suppress(OSError):  # a full disk, which `add` has reported
                file.close()
            if not done or sampled.is_discarded:
                paths.partial.unlink(missing_ok=True)
                paths.settings.unlink(missing_ok=True)


def _read_partial(path, examples):
    """({example_idx: samples}, number of bytes of whole lines)."""
    instruction_of = {example.example_idx: example.instruction for example in examples}
    done, n_bytes = {}, 0
    for number, raw in numbered_lines(path):
        if not raw.endswith(b'\n'):
            break
        try:
            record = parse_object(raw)
            samples = tuple(Sample(**sample) for sample in record['samples'])
            if not all(isinstance(text, str) for sample in samples for text in (sample.response, sample.decoding)):
                raise TypeError('a response or decoding that is no text')
            is_ours = instruction_of.get(record['example_idx']) == record['instruction']
        except (InputError, KeyError, TypeError) as error:
            raise InputError(f'{path}:{number}: not an example with samples; --overwrite begins again') from error
        if not is_ours:
            raise InputError(
                f'{path}:{number}: example_idx {record["example_idx"]!r} with this instruction is no longer in the '
                'data; --overwrite begins again'
            )
        done[record['example_idx']] = samples
        n_bytes += len(raw)
    return done, n_bytes


def _counted(counts):
    return ', '.join(f'{n} {name}' for name, n in counts.items()) or 'no samples'
