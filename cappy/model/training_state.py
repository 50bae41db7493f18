"""What lets a training be stopped and continued: its state in one file, and signals that wait for it to be written."""

import contextlib
import dataclasses
import json
import os
import signal
import threading
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cappy.errors import InputError
from cappy.files.settings import differing
from cappy.files.updates import Update


class Checkpoint:
    """The file {folder}/state.safetensors: parameters, optimizer state, and the updates made.

    It is replaced whole, so that a kill at any moment leaves a good one.
    """

    def __init__(self, folder):
        self.path = Path(folder) / 'state.safetensors'

    def exists(self):
        return self.path.exists()

    def write(self, state, fingerprint, updates):
        """state: a tree of device arrays; fingerprint: {setting: value} that a continuation must share.

        Every process takes part, the first one writes. Raises InputError where the file cannot be written.
        """
        leaves = {name: _on_host(leaf) for name, leaf in _named(state)}
        if jax.process_index() != 0:
            return
        metadata = {'fingerprint': json.dumps(fingerprint), 'updates': json.dumps([list(row) for row in updates])}
        partial = self.path.with_suffix('.partial')
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(leaves, partial, metadata=metadata)
            os.replace(partial, self.path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise InputError(f'{self.path}: cannot be written ({error})') from error

    def read(self, like, fingerprint):
        """The state, laid out as the tree of device arrays `like`, and the list of Update.

        Raises InputError where the file is damaged, or was made under another fingerprint, naming what differs.
        """
        with self._opened() as (file, updates):
            self._check(json.loads(file.metadata()['fingerprint']), fingerprint)
            leaves = [_laid_like(file.get_tensor(name), leaf) for name, leaf in _named(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), updates

    def updates(self):
        """The list of Update alone, empty where there is no file. Raises InputError where it is damaged."""
        if not self.exists():
            return []
        with self._opened() as (_, updates):
            return updates

    @contextlib.contextmanager
    def _opened(self):
        try:
            with safe_open(self.path, framework='numpy') as file:
                yield file, [Update(*row) for row in json.loads(file.metadata()['updates'])]
        except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise InputError(f'{self.path}: damaged ({error}); delete it to begin again') from error

    def _check(self, found, wanted):
        if other := differing({name: found.get(name) for name in wanted}, wanted):
            raise InputError(
                f'{self.path}: made with {", ".join(other)}; give the same, or delete it (as --overwrite does) to '
                'begin again'
            )

    def remove(self):
        """Delete the file and its folder, where they are."""
        for leftover in (self.path, self.path.with_suffix('.partial')):
            leftover.unlink(missing_ok=True)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()


@dataclasses.dataclass(frozen=True)
class Saving:
    """Where and when a training's state is kept, so that a stopped one continues.

    checkpoint: Checkpoint; every: updates between two writings, 0: never written, though one that is
    there is continued; fingerprint: {setting: value} that a continuation must share.
    """

    checkpoint: Checkpoint
    every: int = 0
    fingerprint: dict = dataclasses.field(default_factory=dict)


class StopRequest:
    """Ctrl-C and SIGTERM are noted, so that a checkpoint can be written first; a second one stops at once."""

    def __enter__(self):
        self.signal = None
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _named(tree):
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _on_host(leaf):
    if not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf.addressable_data(0) if leaf.is_fully_replicated else leaf)


def _laid_like(array, leaf):
    if array.shape != leaf.shape or array.dtype != leaf.dtype:
        raise TypeError(f'a tensor is {array.dtype} {array.shape}, expected {leaf.dtype} {leaf.shape}')
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])
