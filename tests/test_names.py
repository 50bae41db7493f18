"""Names that become parts of paths: one rule, used by every script."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import load_script, run_main

from cappy.errors import InputError
from cappy.files.names import LONGEST, check_name
from cappy.study.cells import read_task_names

NAMES = {
    '': 'give a name',
    ' ': 'give a name',
    'a/b': 'without a slash',
    '../t': 'without a slash',
    '/t': 'without a slash',
    'a\\b': 'without a slash',
    '..': 'does not begin with a dot',
    '.t': 'does not begin with a dot',
    'a\nb': 'without control characters',
    'a\x1b[2J': 'without control characters',
    'a\u2028b': 'without control characters',
    'a\udcff': 'without control characters',
    'ä' * (LONGEST // 2 + 1): f'at most {LONGEST} bytes',
}


@pytest.mark.parametrize('name', NAMES)
def test_a_name_that_leaves_its_folder_or_fits_no_file_is_refused(name):
    with pytest.raises(InputError) as raised:
        check_name(name, '--tasks')
    message = str(raised.value)
    assert message.startswith('--tasks ') and NAMES[name] in message and len(message) < 160 and message.isprintable()


@pytest.mark.parametrize('name', ['tense', 'v1..2', 'llama3:8b', 'a b', 'ä', 'हिन्दी', '=cmd', '-x', 'x' * LONGEST])
def test_other_names_are_kept(name, tmp_path):
    path = tmp_path / f'.{check_name(name, "--tasks")}_validation.jsonl.partial.json.0123456789ab.partial'
    path.touch()
    assert path.parent == tmp_path and path.exists()


SCRIPTS = {
    'cappy_bigbench.py': [('bigbench_subset_name', []), ('bigbench_gen_model', [])],
    'scripts/import_samples.py': [('task', ['--split', 'train']), ('generator', ['--split', 'train', '--task', 't'])],
    'scripts/sample_openai.py': [('tasks', []), ('generator', ['--tasks', 't'])],
    'scripts/bigbench_flan_generate.py': [('tasks', []), ('generator', ['--tasks', 't'])],
}
REQUIRED = {
    'scripts/import_samples.py': ['in.jsonl'],
    'scripts/sample_openai.py': ['--base_url', 'http://127.0.0.1:9/v1', '--model', 'm', '--data_dir', '.'],
    'scripts/bigbench_flan_generate.py': ['--data_dir', '.'],
}


@pytest.mark.parametrize('script', SCRIPTS)
@pytest.mark.parametrize('name', ['../t', '..', 'a\tb', 'x' * 300])
def test_flags_that_name_files_are_checked_before_anything_is_read(script, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split in ('train', 'validation'):
        (tmp_path / f't_{split}.jsonl').write_text('{"example_idx": 0, "instruction": "a", "references": ["b"]}\n')
    before = sorted(tmp_path.rglob('*'))
    main = load_script(script).main
    for flag, more in SCRIPTS[script]:
        assert run_main(main, [*REQUIRED.get(script, []), *more, f'--{flag}={name}']) == 1
        err = capsys.readouterr().err
        assert err.startswith(f'error: --{flag} ') and 'files are named after it; give a name' in err
        assert err.count('\n') == 1 and sorted(tmp_path.rglob('*')) == before


def test_the_folder_of_a_scorer_is_checked_where_results_are_named_after_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main = load_script('cappy_promptsource.py').main
    words = ['--results_dir', 'results', '--data_file', 'x.jsonl', '--model_name_or_path', 'models/..']
    assert run_main(main, words) == 1
    assert "--model_name_or_path models/..: '..': files are named after it" in capsys.readouterr().err


def test_the_names_of_a_list_of_tasks_are_checked(tmp_path):
    (tmp_path / 'subset_names.json').write_text(json.dumps(['tense', '../../x']))
    with pytest.raises(InputError, match="subset_names.json: the task '../../x': files are named after it"):
        read_task_names(tmp_path)


def test_a_shard_of_a_model_lies_beside_its_index(tmp_path, tiny_directories):
    from cappy import Cappy

    folder = shutil.copytree(tiny_directories['roberta'], tmp_path / 'model')
    (folder / 'model.safetensors').rename(tmp_path / 'x.safetensors')
    index = Path(folder / 'model.safetensors.index.json')
    for name, words in (('../x.safetensors', "'../x.safetensors': files are named after it"), (5, 'missing shard')):
        index.write_text(json.dumps({'weight_map': {'classifier.dense.weight': name}}))
        with pytest.raises(InputError, match=words):
            Cappy.from_pretrained(folder)
