"""Result files of a cell: where they lie, who may write them, and that they appear whole or not at
all.
"""

import csv
import fcntl
import glob
import json
import math
import os
import platform
import socket
import subprocess
import uuid
from collections.abc import Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cappy.errors import InputError

PACKAGES = ('cappy', 'jax', 'flax', 'optax', 'transformers', 'redco', 'numpy', 'rouge-score')


@dataclass(frozen=True, slots=True)
class ResultPaths:
    """The files of one cell: {results_dir}/{generator}/{task} and what follows."""

    results_dir: str | Path
    generator: str
    task: str

    def _with(self, suffix):
        return Path(self.results_dir) / self.generator / f'{self.task}{suffix}'

    @property
    def result(self) -> Path:
        """rougeL, settings, counts, seconds, versions, device."""
        return self._with('.json')

    @property
    def candidates(self) -> Path:
        """Score and rougeL of every candidate."""
        return self._with('.candidates.jsonl')

    @property
    def updates(self) -> Path:
        """What each update applied."""
        return self._with('.train.csv')

    @property
    def lock(self) -> Path:
        """Held while a process works on the cell."""
        return self._with('.lock')

    @property
    def checkpoint(self) -> Path:
        """Folder from which a stopped training goes on."""
        return self._with('.checkpoint')

    @property
    def written(self) -> tuple[Path, ...]:
        """The files that `write_atomically` makes."""
        return self.result, self.candidates, self.updates


class Update(NamedTuple):
    """One optimizer step: learning_rate is the rate applied, loss the mean over its pairs before
    the step.
    """

    update: int
    pairs: int
    learning_rate: float
    loss: float
    grad_norm: float


class ResultLocked(InputError):
    """A live process works on this result. host, pid and since (ISO time) are None where they are
    not known.
    """

    def __init__(self, path, host, pid, since):
        holder = f'process {pid} on {host} since {since}' if pid else 'another process'
        super().__init__(f'{path}: {holder} works on this result; wait for it, or stop it')
        self.host, self.pid, self.since = host, pid, since


@contextmanager
def write_atomically(path):
    """A text file (UTF-8) that takes its place at `path` when the block ends, and vanishes if it
    fails.

    Makes the folders above. Raises InputError where the file cannot be written (rights, space).
    """
    path = Path(path)
    partial = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:12]}.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, 'w', encoding='utf-8', newline='\n') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if not _is_about(error, path, partial):
            raise  # the caller's block failed on a file or pipe of its own
        raise InputError(f'{path}: cannot be written ({error.strerror or error})') from error
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def result_lock(paths: ResultPaths):
    """Keep other processes off a result while the block runs.

    The lock is the kernel's (flock), so it ends with its process, however that ends; the file tells
    others who holds it. Raises ResultLocked where a live process holds it, InputError where the
    file cannot be made.
    """
    path = paths.lock
    file = _open_and_lock(path)
    try:
        _remove_partial_files(paths)
        _write_holder(file, path)
        yield
    finally:
        # Removed while still held: whoever waits for this file sees that it is gone and makes
        # a new one.
        with suppress(OSError):
            if _lies_at(file, path):
                path.unlink()
        fcntl.flock(file, fcntl.LOCK_UN)  # a forked child may hold the file open longer
        os.close(file)


def describe_candidates(example, scores, rougeL, picked=None) -> dict:
    """A line of the candidates file.

    example: a candidates.Example with n candidates; scores: float32 [n]; rougeL: float64 [n], in
    their order. The pick is the first of the highest scores. picked: rougeL of this example by each
    way of picking, by name, so that ways can be compared example by example.
    """
    decodings = {}
    for sample in example.samples:
        decodings.setdefault(sample.response, {})[sample.decoding] = None
    pick = int(np.argmax(scores))
    return {
        'example_idx': example.example_idx,
        'pick': pick,
        'rougeL': float(rougeL[pick]),
        **({} if picked is None else {'picked': {name: float(value) for name, value in picked.items()}}),
        'candidates': [
            {
                'response': response,
                'score': shortest_float32(score),
                'rougeL': float(value),
                'decodings': list(decodings[response]),
            }
            for response, score, value in zip(example.candidates, scores, rougeL, strict=True)
        ],
    }


def shortest_float32(value) -> float:
    """The number of fewest digits that becomes `value` again when read as float32."""
    return float(str(np.float32(value)))


def write_result(paths: ResultPaths, result: dict, candidates: Iterable[dict], updates: Iterable[Sequence]):
    """Write the three files of a cell, the result last: where it exists, the others do.

    result: JSON values, 'rougeL' among them; candidates: lines as `describe_candidates` makes them,
    in order;
    updates: rows as `Update`. Raises InputError where a number is not finite, or a file cannot be
    written.
    """
    candidates = list(candidates)
    _check_scores_are_finite(paths.candidates, candidates)
    text = _to_json(paths.result, result, indent=4)
    with write_atomically(paths.candidates) as file:
        for line in candidates:
            file.write(_to_json(paths.candidates, line) + '\n')
    write_updates(paths.updates, updates)
    _write_text(paths.result, text)


def write_updates(path, updates: Iterable[Sequence]):
    """Write rows as `Update` has them. Raises InputError where a number is not finite."""
    with write_atomically(path) as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(Update._fields)
        for row in updates:
            row = Update(*row)
            numbers = [shortest_float32(value) for value in row[2:]]
            if not all(map(math.isfinite, numbers)):
                raise InputError(f'{path}: update {row.update} is not finite: {numbers}')
            writer.writerow([int(row.update), int(row.pairs), *numbers])


def write_json(path, value):
    """Write a value as JSON, whole or not at all. Raises InputError where a number is not finite."""
    _write_text(path, _to_json(path, value, indent=4))


def read_fields(path, names: Sequence[str]) -> dict:
    """The result of a script at `path`. Raises InputError where it is not JSON, or lacks one of the fields."""
    try:
        result = json.loads(Path(path).read_text(encoding='utf-8'))
        for name in names:
            result[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path}: not a result of this script ({error}); --overwrite replaces it') from error
    return result


def read_result(path) -> dict:
    """The result at `path`. Raises InputError where it is missing, not JSON, or without a
    rougeL.
    """
    text = _read_text(path)
    try:
        result = json.loads(text)
    except ValueError as error:
        raise InputError(f'{path}: not a result ({error}), found {text[:40].strip()!r}') from error
    rougeL = result.get('rougeL') if isinstance(result, dict) else None
    if isinstance(rougeL, bool) or not isinstance(rougeL, int | float) or not math.isfinite(rougeL):
        raise InputError(f'{path}: not a result; expected an object with a number rougeL')
    return result


def read_candidates(path) -> list[dict]:
    """The lines of a candidates file, in order. Raises InputError naming the line that is
    broken.
    """
    lines = []
    # Not splitlines, which would also cut at line separators inside a response.
    for number, text in enumerate(_read_text(path).removesuffix('\n').split('\n'), start=1):
        try:
            line = json.loads(text)
            candidates = line['candidates']
            if not 0 <= line['pick'] < len(candidates):
                raise ValueError(f'pick {line["pick"]} of {len(candidates)} candidates')
            for candidate in candidates:
                (
                    candidate['response'],
                    candidate['score'],
                    candidate['rougeL'],
                    candidate['decodings'],
                )
            line['example_idx'], line['rougeL']
        except KeyError as error:
            raise InputError(f'{path}:{number}: {error.args[0]} is missing') from error
        except (ValueError, TypeError) as error:
            raise InputError(f'{path}:{number}: not a line of candidates ({error})') from error
        lines.append(line)
    if not lines:
        raise InputError(f'{path}: holds no candidates')
    return lines


def read_updates(path) -> list[Update]:
    """The rows of an updates file, in order. Raises InputError naming the line that is broken."""
    rows = list(csv.reader(_read_text(path).splitlines()))
    if not rows or tuple(rows[0]) != Update._fields:
        raise InputError(f'{path}:1: expected the columns {",".join(Update._fields)}')
    updates = []
    for number, row in enumerate(rows[1:], start=2):
        try:
            update, pairs, *numbers = row
            updates.append(Update(int(update), int(pairs), *map(float, numbers)))
        except (ValueError, TypeError) as error:
            raise InputError(f'{path}:{number}: not an update ({error})') from error
    return updates


def environment() -> dict:
    """Versions of Python and of the packages that matter, None where not installed; and the
    checkout's commit, with '+changes' where its files differ from it, if Cappy runs from a
    checkout."""
    versions = {'python': platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    commit = _commit()
    return versions | ({'commit': commit} if commit else {})


def _commit():
    def git(*arguments):
        process = subprocess.run(
            ['git', '-C', str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return process.stdout.strip()

    try:
        # Installed into an environment inside someone's checkout, this file is not tracked there.
        git('ls-files', '--error-unmatch', Path(__file__).name)
        changed = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', 'HEAD') + ('+changes' if changed else '')
    except (OSError, subprocess.SubprocessError):
        return None


def _check_scores_are_finite(path, lines):
    for line in lines:
        for number, candidate in enumerate(line['candidates']):
            if not math.isfinite(candidate['score']):
                raise InputError(
                    f'{path}: not written; example_idx {line["example_idx"]!r}, candidate {number} '
                    f'has score {candidate["score"]}: the weights of the scorer are broken'
                )


def _open_and_lock(path):
    """File descriptor of the locked file, which is the one that lies at `path`."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InputError(
                f'{path}: cannot be written ({error.strerror}); choose a results folder that can'
            ) from error
        ours = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = _lies_at(file, path)  # else its holder removed it after we had opened it
            if ours:
                return file
        except BlockingIOError:
            raise ResultLocked(path, *_read_holder(file)) from None
        except OSError as error:
            raise InputError(f'{path}: cannot be locked ({error.strerror})') from error
        finally:
            if not ours:
                os.close(file)


def _lies_at(file, path):
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _write_holder(file, path):
    holder = {
        'host': socket.gethostname(),
        'pid': os.getpid(),
        'since': datetime.now(UTC).isoformat(timespec='seconds'),
    }
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode(), 0)
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror})') from error


def _read_holder(file):
    try:
        holder = json.loads(os.pread(file, 4096, 0))
        return holder['host'], holder['pid'], holder['since']
    except (OSError, ValueError, TypeError, KeyError):
        return None, None, None  # it has not written itself down yet


def _remove_partial_files(paths):
    """What a killed process left half-written; the caller holds the lock, so nobody writes
    there.
    """
    for path in paths.written:
        for partial in path.parent.glob(f'.{glob.escape(path.name)}.*.partial'):
            with suppress(OSError):
                partial.unlink()


def _is_about(error, path, partial):
    if error.filename is None:  # a write that failed, by lack of space for one
        return not isinstance(error, ConnectionError)
    return str(error.filename) in map(str, (partial, path, *path.parents))


def _write_text(path, text):
    with write_atomically(path) as file:
        file.write(text + '\n')


def _to_json(path, value, indent=None):
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, default=_plain)
    except ValueError as error:
        raise InputError(f'{path}: not written, it would hold a number not finite') from error


def _plain(value):
    """What JSON can hold in place of an array, a scalar of an array's type, or a path."""
    if isinstance(value, np.float32):
        return shortest_float32(value)
    return value.tolist() if hasattr(value, 'tolist') else str(value)


def _read_text(path):
    try:
        return Path(path).read_text(encoding='utf-8')
    except FileNotFoundError as error:
        raise InputError(f'{path}: no such file') from error
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: not UTF-8; the file is damaged') from error
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from error
