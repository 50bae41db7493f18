"""Getting the tasks of BIG-bench from every source, and the samples of the paper for them."""

import importlib.util
import json
import logging
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import conftest
import pytest

from cappy.errors import InputError
from cappy.tasks.candidates import read_examples

ROOT = Path(__file__).parents[1]
NAMES = json.loads((ROOT / 'bigbench_data' / 'subset_names.json').read_text('utf-8'))
PUBLISHED = ROOT.parent / 'shared' / 'published' / 'bigbench_cappy_rougeL.json'
DOWNLOAD = 'download_bigbench_flan_gens.sh'
# gdown without a network: it breaks its message anywhere.
UNREACHABLE = r"printf 'Max retries\n\texceeded (Failed to\n\tresolve it)' >&2; exit 1"

_spec = importlib.util.spec_from_file_location('get_bigbench_data', ROOT / 'scripts' / 'get_bigbench_data.py')
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)


def make_examples(n):
    return [{'input': f'{i} and one', 'target': str(i + 1)} for i in range(n)]


def write_tasks(folder, names, n=40):
    """A checkout of BIG-bench with these tasks; returns it."""
    for name in names:
        path = folder / 'bigbench' / 'benchmark_tasks' / name / 'task.json'
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({'name': name, 'examples': make_examples(n)}), 'utf-8')
    return folder


def read_lines(path):
    return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def run(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, ROOT / 'scripts' / 'get_bigbench_data.py', *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={'PATH': '', **environment},
    )


@pytest.fixture(autouse=True)
def logged(caplog):
    caplog.set_level(logging.INFO)


@pytest.mark.skipif(not PUBLISHED.is_file(), reason='the published figures are not here')
def test_the_shipped_names_are_the_45_of_the_published_figures_in_their_order():
    for figures in json.loads(PUBLISHED.read_text()).values():
        assert list(figures) == NAMES
    assert len(NAMES) == 45


def test_a_line_has_the_fields_of_the_reference_and_reads_as_an_example(tmp_path):
    checkout = write_tasks(tmp_path / 'checkout', ['tense'])
    script.main(output_dir=str(tmp_path / 'out'), bigbench_dir=str(checkout), tasks=('tense',))
    lines = read_lines(tmp_path / 'out' / 'tense_train.jsonl')
    answer = int(lines[3]['references'][0])
    assert lines[3] == {
        'dataset': 'tense',
        'example_idx': 3,
        'instruction': f'Q: {answer - 1} and one\nA:',
        'references': [str(answer)],
    }
    assert list(lines[0]) == ['dataset', 'example_idx', 'instruction', 'references']
    examples = read_examples(tmp_path / 'out' / 'tense_train.jsonl', samples_needed=False)
    assert [example.example_idx for example in examples] == list(range(24))
    assert json.loads((tmp_path / 'out' / 'subset_names.json').read_text()) == ['tense']


def test_a_failed_task_is_named_the_others_are_made_and_the_next_run_makes_only_what_is_missing(tmp_path, caplog):
    checkout, out = write_tasks(tmp_path / 'checkout', ['operators', 'rephrase', 'tense']), tmp_path / 'out'
    bad = checkout / 'bigbench' / 'benchmark_tasks' / 'rephrase' / 'task.json'
    whole = bad.read_text()
    bad.write_text(whole[:-20])
    flags = {'output_dir': str(out), 'bigbench_dir': str(checkout), 'tasks': ('tense', 'rephrase', 'operators')}
    with pytest.raises(InputError, match=r'^1 of 3 tasks failed \(rephrase\) for the causes ab'):
        script.main(**flags)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        f'rephrase: failed: {bad}:1: not JSON (Unterminated string starting at); fetch the file again'
    ]
    names = ['operators', 'tense']  # in the order of the shipped list
    assert files_of(out) == sorted(
        ['subset_names.json', *(f'{name}_{split}.jsonl' for name in names for split in ('train', 'validation'))]
    )
    assert json.loads((out / 'subset_names.json').read_text()) == names
    bad.write_text(whole)
    kept = list(out.glob('*.jsonl'))
    for path in kept:
        path.write_text('as it was')
    caplog.clear()
    script.main(**flags)
    assert [record.getMessage() for record in caplog.records] == [
        f'{out}: 2 of 3 tasks are there already',
        'rephrase: 24 train, 16 validation',
    ]
    assert {path.read_text() for path in kept} == {'as it was'}
    assert json.loads((out / 'subset_names.json').read_text()) == ['operators', 'rephrase', 'tense']


def test_a_task_with_only_one_of_its_files_is_made_again(tmp_path):
    checkout, out = write_tasks(tmp_path / 'checkout', ['tense']), tmp_path / 'out'
    flags = {'output_dir': str(out), 'bigbench_dir': str(checkout), 'tasks': ('tense',)}
    script.main(**flags)
    whole = (out / 'tense_validation.jsonl').read_bytes()
    (out / 'tense_validation.jsonl').unlink()
    (out / 'tense_train.jsonl').write_text('{}\n')
    script.main(**flags)
    assert (out / 'tense_validation.jsonl').read_bytes() == whole
    assert len(read_lines(out / 'tense_train.jsonl')) == 24


def test_where_the_second_file_cannot_be_written_the_first_is_not_made(tmp_path):
    checkout, out = write_tasks(tmp_path / 'checkout', ['tense']), tmp_path / 'out'
    (out / 'tense_validation.jsonl').mkdir(parents=True)
    with pytest.raises(InputError, match='tense_validation.jsonl: is a folder'):
        script.main(output_dir=str(out), bigbench_dir=str(checkout), tasks=('tense',))
    assert files_of(out) == ['tense_validation.jsonl']


def test_tasks_that_a_folder_lacks_are_named_in_one_line(tmp_path, caplog):
    checkout = write_tasks(tmp_path / 'checkout', [name for name in NAMES if name not in ('gem', 'tellmewhy')])
    with pytest.raises(InputError, match=r'^2 of 45 tasks failed \(gem, tellmewhy\)'):
        script.main(output_dir=str(tmp_path / 'out'), bigbench_dir=str(checkout))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        f'not in {checkout}/bigbench/benchmark_tasks: gem, tellmewhy; the hub has all 45 (--source hub)'
    ]
    assert len(files_of(tmp_path / 'out')) == 2 * 43 + 1


def test_another_task_of_the_checkout_may_be_named_and_an_unknown_name_gets_near_names(tmp_path):
    checkout = write_tasks(tmp_path / 'checkout', ['my_task'])
    script.main(output_dir=str(tmp_path / 'out'), bigbench_dir=str(checkout), tasks=('my_task',))
    assert len(read_lines(tmp_path / 'out' / 'my_task_train.jsonl')) == 24
    with pytest.raises(InputError, match=r"--tasks: no task 'tens'; near names in .*: tense"):
        script.main(output_dir=str(tmp_path / 'out'), tasks=('codenames', 'tens'))


@pytest.mark.parametrize('flags', [{'seed': 1}, {'multiple_choice': True}])
def test_flags_that_have_no_effect_on_the_hub_are_refused(tmp_path, flags):
    with pytest.raises(InputError, match='--seed and --multiple_choice are for task.json files'):
        script.main(output_dir=str(tmp_path / 'out'), **flags)


def test_names_that_are_in_the_list_already_are_kept(tmp_path):
    path = tmp_path / 'subset_names.json'
    path.write_text('["my_task", "tense"]')
    script.add_names(path, ['gem', 'tense'])
    assert json.loads(path.read_text()) == ['gem', 'tense', 'my_task']
    path.write_text('["gem",  "tense"]')
    script.add_names(path, ['gem'])
    assert path.read_text() == '["gem",  "tense"]'  # nothing to add, so not written again


def test_an_output_folder_that_is_a_file_and_a_broken_list_of_names_are_named(tmp_path):
    checkout, out = write_tasks(tmp_path / 'checkout', ['tense']), tmp_path / 'out'
    out.write_text('')
    flags = {'output_dir': str(out), 'bigbench_dir': str(checkout), 'tasks': ('tense',)}
    with pytest.raises(InputError, match='out: is a file; give --output_dir a folder'):
        script.main(**flags)
    out.unlink()
    out.mkdir()
    for content, message in (('[', 'cannot be read as JSON'), ('{}', r'expected a list of names, found \{\}')):
        (out / 'subset_names.json').write_text(content)
        with pytest.raises(InputError, match=rf'out/subset_names\.json: {message}'):
            script.main(**flags)


def test_the_installed_package_is_found_and_not_imported(tmp_path):
    write_tasks(tmp_path / 'site', ['tense'])
    (tmp_path / 'site' / 'bigbench' / '__init__.py').write_text('raise SystemExit("imported")')
    flags = ('--source', 'package', '--tasks', 'tense', '--output_dir', 'out')
    done = run(*flags, cwd=tmp_path, PYTHONPATH=f'{tmp_path}/site')
    assert (done.returncode, done.stdout) == (0, 'out: 1 tasks\n')
    assert len(read_lines(tmp_path / 'out' / 'tense_validation.jsonl')) == 16


def test_without_the_package_one_line_says_how_to_get_it(tmp_path):
    done = run('--source', 'package', cwd=tmp_path)
    assert (done.returncode, done.stderr.count('\n'), files_of(tmp_path)) == (1, 1, [])
    assert 'uv pip install --no-deps --target bigbench_package bigbench==1.0.0' in done.stderr
    assert 'give --bigbench_dir bigbench_package' in done.stderr


def write_hub(folder, tasks):
    """A data set as the hub's: {task: {split: [record]}} as parquet, one folder per task, listed in the README."""
    import pyarrow
    from pyarrow import parquet

    texts = pyarrow.list_(pyarrow.string())
    schema = pyarrow.schema(
        {'inputs': pyarrow.string(), 'targets': texts, 'multiple_choice_targets': texts}
        | {'multiple_choice_scores': pyarrow.list_(pyarrow.int32())}
    )
    lines = ['---', 'configs:']
    for task, splits in tasks.items():
        (folder / task).mkdir(parents=True)
        lines += [f'- config_name: {task}', '  data_files:']
        for split, records in splits.items():
            parquet.write_table(
                pyarrow.Table.from_pylist(records, schema), folder / task / f'{split}-00000-of-00001.parquet'
            )
            lines += [f'  - split: {split}', f'    path: {task}/{split}-*']
    (folder / 'README.md').write_text('\n'.join([*lines, '---']) + '\n', 'utf-8')
    return folder


def hub_record(text, *targets, choices=()):
    return {
        'inputs': text,
        'targets': list(targets),
        'multiple_choice_targets': list(choices),
        'multiple_choice_scores': [0] * len(choices),
    }


def test_the_splits_of_the_hub_are_kept_and_a_task_that_fails_there_is_named(tmp_path, caplog):
    splits = {
        'train': [hub_record('Q: é\n\nA:', 'one', ' two '), hub_record('Q: pick\nA:', 'b', choices='ab')],
        'validation': [hub_record('Q: ?\nA:', '')],
    }
    hub = write_hub(
        tmp_path / 'hub',
        {
            'tense': splits,
            'gem': {'train': [hub_record('Q', 'b', choices='ab')], 'validation': splits['validation']},
            'rephrase': {'train': [hub_record('Q')], 'validation': splits['validation']},
            'operators': {'train': splits['train']},
        },
    )
    flags = {'cache_dir': str(tmp_path / 'cache'), 'output_dir': str(tmp_path / 'out'), 'hub_name': str(hub)}
    with pytest.raises(InputError, match=r'^4 of 5 tasks failed \(gem, rephrase, operators, codenames\)'):
        script.main(**flags, tasks=('tense', 'gem', 'rephrase', 'operators', 'codenames'))
    assert read_lines(tmp_path / 'out' / 'tense_train.jsonl') == [
        {'dataset': 'tense', 'example_idx': 0, 'instruction': 'Q: é\n\nA:', 'references': ['one', ' two ']},
        {'dataset': 'tense', 'example_idx': 1, 'instruction': 'Q: pick\nA:', 'references': ['b']},
    ]
    assert read_lines(tmp_path / 'out' / 'tense_validation.jsonl') == [
        {'dataset': 'tense', 'example_idx': 0, 'instruction': 'Q: ?\nA:', 'references': ['']}
    ]
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors[:3] == [
        f'gem: failed: {hub}: the task is multiple choice there, so there is nothing to generate',
        f'rephrase: failed: {hub}: train, record 0: targets: expected texts, found []',
        f'operators: failed: {hub}: no examples in split validation; it has train',
    ]
    assert errors[3].startswith(f'codenames: failed: {hub}, codenames: cannot be fetched (ValueError: BuilderConfig')
    assert len(files_of(tmp_path / 'out')) == 3


@pytest.mark.parametrize('offline', ['0', '1'])
def test_a_hub_that_does_not_answer_is_two_lines_with_the_way_without_it(tmp_path, offline):
    hub = {'HF_HUB_OFFLINE': offline, 'HF_ENDPOINT': 'http://127.0.0.1:9', 'HF_HOME': str(tmp_path / 'home')}
    done = run(cwd=tmp_path, **hub)
    first, last = done.stderr.splitlines()  # the library alone prints two for each of its six requests
    assert first.startswith(
        'ascii_word_recognition: failed: tasksource/bigbench, ascii_word_recognition: cannot be fetched, since the hub '
        'does not answer ('
    )
    assert first.endswith(
        '); take --source package, or --bigbench_dir with a checkout of BIG-bench; 44 more tasks are not tried'
    )
    assert (done.returncode, last[:31]) == (1, 'error: 45 of 45 tasks failed (a')
    assert not (tmp_path / 'bigbench_data').exists()


def test_a_copy_of_the_hub_that_is_not_there_is_named(tmp_path):
    done = run('--hub_name', tmp_path / 'none', '--tasks', 'tense', cwd=tmp_path, HF_HUB_OFFLINE='1')
    first, last = done.stderr.splitlines()
    assert first.startswith(f'tense: failed: {tmp_path}/none, tense: cannot be fetched')
    assert (done.returncode, last[:29]) == (1, 'error: 1 of 1 tasks failed (t')


# ---- scripts/download_bigbench_flan_gens.sh


GENERATORS = [f'flan-t5-{size}' for size in ('small', 'base', 'large', 'xl', 'xxl')]
ROW = {'example_idx': 0, 'instruction': 'a', 'references': ['b'], 'flan_samples': {'beam4': [{'response': 'c'}]}}


def members_of(generators):
    return {
        f'bigbench_flan_gens/{generator}/{task}_{split}.jsonl': json.dumps({'dataset': task, **ROW}) + '\n'
        for generator in generators
        for task in NAMES
        for split in ('train', 'validation')
    }


def write_archive(path, members):
    """members: {name or ZipInfo: text}."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.mkdir('bigbench_flan_gens')
        for member, text in members.items():
            archive.writestr(member, text)


def run_download(folder, gdown='cp drive "$3"'):
    """conftest.run_download, with the list of tasks in its place."""
    (folder / 'bigbench_data').mkdir(exist_ok=True)
    (folder / 'bigbench_data' / 'subset_names.json').write_text(json.dumps(NAMES))
    return conftest.run_download(DOWNLOAD, folder, gdown)


def nothing_is_left(folder):
    return [name for name in files_of(folder) if name not in ('scripts', 'bin', 'bigbench_data', 'drive')] == []


def test_the_samples_are_unpacked_after_the_archive_was_found_safe_and_whole(tmp_path):
    members = members_of(GENERATORS)
    write_archive(tmp_path / 'drive', {**members, '__MACOSX/._x': '', 'bigbench_flan_gens/notes.txt': ''})
    done = run_download(tmp_path, '[ $1 = 150v5Z9GSD7GU0f2Lr71BagsyC1ytkvI5 ] && cp drive "$3"')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.splitlines()[:2] == [
        'bigbench_flan_gens:',
        "  2 files that hold no samples are left out, the first '__MACOSX/._x'",
    ]
    assert done.stdout.splitlines()[-1] == '  450 of 450 files of 5 generators'
    written = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.glob('bigbench_flan_gens/*/*')}
    assert written == members
    assert files_of(tmp_path) == ['bigbench_data', 'bigbench_flan_gens', 'bin', 'drive', 'scripts']
    again = run_download(tmp_path, 'exit 9')
    assert (again.returncode, again.stdout.splitlines()[0]) == (0, 'bigbench_flan_gens exists:')


def test_a_generator_that_is_there_is_left_and_what_is_missing_is_named(tmp_path):
    members = members_of(['flan-t5-small', 'flan-t5-xl'])
    del members['bigbench_flan_gens/flan-t5-xl/tense_train.jsonl']
    write_archive(tmp_path / 'drive', members)
    mine = tmp_path / 'bigbench_flan_gens' / 'flan-t5-small' / 'tense_train.jsonl'
    mine.parent.mkdir(parents=True)
    mine.write_text('mine')
    done = run_download(tmp_path)
    assert (done.returncode, mine.read_text(), files_of(mine.parent)) == (1, 'mine', ['tense_train.jsonl'])
    assert done.stdout.splitlines()[1:] == [
        '  flan-t5-small: exists, left as it is',
        '  flan-t5-xl: 89 files',
        '  90 of 450 files of 5 generators',
    ]
    assert 'missing: flan-t5-small/ascii_word_recognition_train.jsonl' in done.stderr
    assert 'and 355 more' in done.stderr


def link_to_passwords():
    member = zipfile.ZipInfo('bigbench_flan_gens/flan-t5-xl/tense_train.jsonl')
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    ('member', 'message'),
    [
        ('../evil.jsonl', "'../evil.jsonl' points outside of the folder"),
        ('bigbench_flan_gens/../../evil.jsonl', 'points outside of the folder'),
        ('/tmp/evil.jsonl', "'/tmp/evil.jsonl' points outside of the folder"),
        ('C:\\evil.jsonl', 'points outside of the folder'),
        ('bigbench_flan_gens\\..\\..\\evil.jsonl', 'points outside of the folder'),
        (link_to_passwords(), "'bigbench_flan_gens/flan-t5-xl/tense_train.jsonl' is a link or another special file"),
    ],
)
def test_an_archive_that_points_outside_or_holds_a_link_is_refused_whole(tmp_path, member, message):
    write_archive(tmp_path / 'drive', {**members_of(['flan-t5-small']), member: '/etc/passwd'})
    done = run_download(tmp_path)
    assert (done.returncode, message in done.stderr, nothing_is_left(tmp_path)) == (1, True, True)
    assert not (tmp_path.parent / 'evil.jsonl').exists()


@pytest.mark.parametrize(
    ('gdown', 'message'),
    [
        ('echo too many users >&2; exit 1', 'the Drive does not give the file'),
        (UNREACHABLE, 'error: no network: the Drive cannot be reached (see above); run this again where it can'),
        ('true', 'nothing came from the Drive'),
        ('echo "<html>sorry</html>" > "$3"', 'it is no archive that can be read (File is not a zip file)'),
        (None, 'gdown is not installed'),
    ],
)
def test_a_download_that_fails_leaves_nothing_and_says_what_to_do(tmp_path, gdown, message):
    done = run_download(tmp_path, gdown)
    assert (done.returncode, message in done.stderr, nothing_is_left(tmp_path)) == (1, True, True)
    assert done.stderr.splitlines()[-1].endswith('python scripts/bigbench_flan_generate.py --help')


@pytest.mark.parametrize(
    ('members', 'message'),
    [
        (
            {'other/tense_train.jsonl': ''},
            'it holds no bigbench_flan_gens/GENERATOR/TASK_SPLIT.jsonl, only other',
        ),
        ({'bigbench_flan_gens/a/tense_train.jsonl': '<html>'}, 'line 1 is not JSON'),
        (
            {'bigbench_flan_gens/a/tense_train.jsonl': '{"example_idx": 0}'},
            'line 1 has no flan_samples, instruction, ',
        ),
    ],
)
def test_an_archive_of_something_else_is_refused_whole(tmp_path, members, message):
    write_archive(tmp_path / 'drive', members)
    done = run_download(tmp_path)
    assert (done.returncode, message in done.stderr, nothing_is_left(tmp_path)) == (1, True, True)


def test_an_archive_that_is_cut_off_is_refused_whole(tmp_path):
    write_archive(tmp_path / 'whole', members_of(['flan-t5-small']))
    (tmp_path / 'drive').write_bytes((tmp_path / 'whole').read_bytes()[:-500])
    (tmp_path / 'whole').unlink()
    done = run_download(tmp_path)
    assert (done.returncode, nothing_is_left(tmp_path)) == (1, True)
