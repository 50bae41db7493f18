"""Outputs: tried before the work, never replaced where they are no files, never half-written, locked or told."""

import errno
import fcntl
import inspect
import json
import os
import threading

import numpy as np
import pytest
from conftest import ROOT, load_script, run_main
from sweep_cells import GENERATORS, TASKS

from cappy.errors import InputError
from cappy.files import lock as lock_module
from cappy.files.atomic import write_atomically, write_text, write_together
from cappy.files.lock import check_result, result_lock
from cappy.files.outputs import check_files, check_folders, check_places
from cappy.files.partial import OutputPaths, PartialOutput
from cappy.study import sweep
from cappy.study.results import ResultPaths, describe_candidates, write_result
from cappy.tasks.candidates import Example, Sample, write_splits

EXAMPLE = Example('d', 7, 'i', ('a',), (Sample('a b', 'beam4'), Sample('x', 'sampling')))
LINE = describe_candidates(EXAMPLE, np.array([0.1, 0.3], np.float32), np.array([1 / 3, 0.5]))
UPDATE = (0, 16, 2e-5, 0.1, 1.5)
NEVER = '/proc/cappy'  # where not even root can make anything

# Flags that name what a command writes: every one is tried with places that cannot be written.
OUTPUTS = {
    'cappy_bigbench.py': ('results_dir', 'save_dir'),
    'cappy_pretrain.py': ('output_dir', 'tensorboard_dir'),
    'cappy_promptsource.py': ('results_dir',),
    'benchmarks/adapting.py': ('output',),
    'scripts/bigbench_flan_generate.py': ('output_dir',),
    'scripts/check_device.py': (),
    'scripts/get_bigbench_data.py': ('output_dir', 'cache_dir'),
    'scripts/get_e2e_nlg.py': ('output_dir', 'cache_dir'),
    'scripts/get_pretrain_data.py': ('output_dir',),
    'scripts/get_promptsource_data.py': ('output',),
    'scripts/import_samples.py': ('output_dir',),
    'scripts/present_bigbench_baselines.py': (),
    'scripts/present_cappy_bigbench_results.py': ('plot',),
    'scripts/report.py': ('output',),
    'scripts/run_cappy_bigbench.py': ('results_dir', 'save_dir'),
    'scripts/sample_openai.py': ('output_dir',),
    'scripts/score.py': ('output',),
}
# Flags that name what a command reads.
INPUTS = ('data_dir', 'data_file', 'input_file', 'input_files', 'model_name_or_path', 'bigbench_gen_dir')
INPUTS += ('bigbench_dir', 'dataset_dir', 'evaluation_dir', 'published_dir', 'templates_dir')
INPUTS_OF = {'scripts/report.py': ('results_dir',), 'scripts/present_cappy_bigbench_results.py': ('results_dir',)}
LIKE_PATHS = ('output', 'dir', 'file', 'path', 'plot', 'folder', 'log', 'csv', 'page', 'save')
NOT_PATHS = ('log_likelihood',)
SCRIPTS = [path for path in OUTPUTS if not path.startswith('benchmarks')]


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


def main_of(path):
    """The function whose arguments are a script's flags."""
    script = load_script(path)
    return script.with_flags_of_a_cell(script.main) if path == 'scripts/run_cappy_bigbench.py' else script.main


@pytest.fixture(scope='module')
def inputs(tmp_path_factory, sweep_data):
    """{script: flags that it needs to come to its outputs}; no model, server or hub among them is there."""
    folder = tmp_path_factory.mktemp('inputs')
    write_splits({folder / 'data' / f't_{split}.jsonl': [EXAMPLE] for split in ('train', 'validation')})
    model, data = ('--model_name_or_path', 'no-such-model'), ('--data_dir', folder / 'data')
    sampling = (*data, '--tasks', 't')
    cells = ('--data_dir', sweep_data, '--bigbench_gen_dir', sweep_data / 'gens', '--workers', '1', *model)
    return {
        'cappy_bigbench.py': ('--overwrite', *model),
        'cappy_pretrain.py': ('--overwrite', *model),
        'cappy_promptsource.py': ('--overwrite', *model),
        'scripts/bigbench_flan_generate.py': ('--overwrite', '--generator', 'g', *sampling, *model),
        'scripts/get_bigbench_data.py': ('--tasks', 'tense', '--hub_name', 'no/such'),
        'scripts/get_pretrain_data.py': ('--overwrite', '--sources', 'absent.jsonl'),
        'scripts/import_samples.py': ('absent.jsonl', '--task', 't', '--generator', 'g', '--split', 'train'),
        'scripts/run_cappy_bigbench.py': ('--overwrite', *cells),
        'scripts/sample_openai.py': ('--overwrite', 'http://127.0.0.1:9/v1', 'm', *sampling, '--generator', 'g'),
        'scripts/score.py': ('--overwrite', 'absent.jsonl', *model),
    }


def test_every_flag_that_names_a_file_or_folder_is_known_as_input_or_output():
    for path in SCRIPTS:
        flags = inspect.signature(main_of(path)).parameters
        known = {*INPUTS, *INPUTS_OF.get(path, ()), *OUTPUTS[path], *NOT_PATHS}
        found = {name for name in flags if any(part in name.split('_') or part == name for part in LIKE_PATHS)}
        assert found <= known, f'{path}: say in this file whether it writes there'
        assert set(OUTPUTS[path]) <= set(flags)
    assert sorted(SCRIPTS) == sorted(
        [*(path.name for path in ROOT.glob('*.py')), *(f'scripts/{path.name}' for path in ROOT.glob('scripts/*.py'))]
    )


@pytest.mark.parametrize(('path', 'flag'), [(path, flag) for path, flags in OUTPUTS.items() for flag in flags])
def test_an_output_that_cannot_be_written_is_named_before_any_model_or_download(
    path, flag, inputs, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'afile').write_text('mine')
    main = main_of(path)
    for place in ('afile/x', NEVER + '/x'):
        place += '.png' if flag == 'plot' else '.jsonl' if flag == 'output' else ''
        assert run_main(main, [*inputs.get(path, ()), f'--{flag}', place]) == 1
        out, err = capsys.readouterr()
        assert out == '' and err.startswith('error: ') and len(err.splitlines()) == 1, err
        assert place.rpartition('/')[0] in err and 'cannot be written' in err, err
    assert names(tmp_path) == ['afile'] and (tmp_path / 'afile').read_text() == 'mine'


FOLDERS = {
    'cappy_bigbench.py': ('results_dir', 'flan-t5-xxl/auto_categorization.json'),
    'cappy_pretrain.py': ('output_dir', 'train.csv'),
    'cappy_promptsource.py': ('results_dir', 'no-such-model/promptsource_test.scores.jsonl'),
    'scripts/bigbench_flan_generate.py': ('output_dir', 'g/t_validation.jsonl'),
    'scripts/get_bigbench_data.py': ('output_dir', 'tense_train.jsonl'),
    'scripts/get_e2e_nlg.py': ('output_dir', 'e2e_nlg_train.jsonl'),
    'scripts/import_samples.py': ('output_dir', 'g/t_train.jsonl'),
    'scripts/run_cappy_bigbench.py': ('results_dir', f'{GENERATORS[0]}/{TASKS[0]}.log'),
    'scripts/sample_openai.py': ('output_dir', 'g/t_train.jsonl.partial'),
}


@pytest.mark.parametrize('path', FOLDERS)
def test_a_folder_in_the_place_of_a_file_is_named_before_the_work_even_to_be_overwritten(
    path, inputs, tmp_path, capsys
):
    flag, name = FOLDERS[path]
    (tmp_path / 'out' / name).mkdir(parents=True)
    before = names(tmp_path)
    assert run_main(main_of(path), [*inputs.get(path, ()), f'--{flag}', tmp_path / 'out']) == 1
    err = capsys.readouterr().err
    assert f'{tmp_path / "out" / name}: is a folder, and a file is to be written there' in err
    assert names(tmp_path) == before


def test_trying_a_place_leaves_nothing_and_names_what_is_wrong(tmp_path):
    (tmp_path / 'afile').write_text('')
    os.mkfifo(tmp_path / 'fifo')
    (tmp_path / 'gone').symlink_to('not/there/yet')
    (tmp_path / 'loop').symlink_to('loop')
    before = names(tmp_path)
    check_files(tmp_path / 'a' / 'b' / 'c.json', tmp_path / 'afile', tmp_path / 'gone')
    check_files('/dev/null', '/dev/stdout', '-', f'/dev/fd/{os.open(os.devnull, os.O_WRONLY)}', streams=True)
    check_files(tmp_path / 'fifo', streams=True)
    check_places(tmp_path / 'a' / 'folder', tmp_path / 'gone')
    check_folders(tmp_path, tmp_path / 'a')
    for path, message in (
        (tmp_path, 'is a folder'),
        (tmp_path / 'afile' / 'a' / 'x', f'{tmp_path / "afile"} is a file'),
        (tmp_path / 'gone' / 'x', 'gone is a link to nothing'),
        (tmp_path / 'loop', 'loop: cannot be written'),
        (tmp_path / 'fifo', 'is a device or a pipe'),
        ('/dev/null', 'is a device or a pipe'),
        ('/dev/stdout', 'is a device or a pipe'),
        (f'{NEVER}/x', 'cannot be written'),
        (tmp_path / ('x' * 240), 'the name is too long'),
        (tmp_path / ('x' * 300), 'too long'),
    ):
        with pytest.raises(InputError, match='(?s).*' + message):
            check_files(path)
    with pytest.raises(InputError, match='afile is a file'):
        check_folders(tmp_path / 'afile')
    assert names(tmp_path) == before


def test_a_full_disk_is_found_before_the_work(tmp_path, monkeypatch):
    with open('/dev/full', 'wb') as full:
        monkeypatch.setattr('tempfile.TemporaryFile', lambda dir: full)
        with pytest.raises(InputError, match='x: cannot be written in .*No space left'):
            check_files(tmp_path / 'x')


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'real').write_text('old')
    (tmp_path / 'link').symlink_to('data/real')
    (tmp_path / 'chain').symlink_to('link')
    (tmp_path / 'new').symlink_to('other/real')
    write_text(tmp_path / 'chain', 'new')
    write_text(tmp_path / 'new', 'first')
    assert (tmp_path / 'data' / 'real').read_text() == 'new\n'
    assert (tmp_path / 'other' / 'real').read_text() == 'first\n'
    assert os.readlink(tmp_path / 'link') == 'data/real' and os.readlink(tmp_path / 'chain') == 'link'
    assert names(tmp_path) == ['chain', 'data', 'data/real', 'link', 'new', 'other', 'other/real']
    with pytest.raises(ZeroDivisionError), write_atomically(tmp_path / 'link') as file:
        file.write(str(1 / 0))
    assert (tmp_path / 'link').read_text() == 'new\n'
    paths = OutputPaths(tmp_path / 'link')
    assert paths.lock == tmp_path / 'data' / 'real.lock'
    output = PartialOutput(paths, {})
    output.open(b'')
    output.write(b'whole')
    output.finish(1)
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'data' / 'real').read_bytes() == b'whole'


def read_in_a_thread(path):
    """A list that holds what a pipe gave, and the thread that reads it."""
    found = []
    thread = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
    thread.start()
    return found, thread


def test_a_pipe_and_a_descriptor_are_written_in_place(tmp_path):
    os.mkfifo(tmp_path / 'fifo')
    found, thread = read_in_a_thread(tmp_path / 'fifo')
    write_text(tmp_path / 'fifo', 'é')
    thread.join(10)
    assert found == ['é\n'.encode()] and (tmp_path / 'fifo').is_fifo()
    with open(tmp_path / 'log', 'ab') as file:
        file.write(b'before\n')
        file.flush()
        write_text(f'/dev/fd/{file.fileno()}', 'page')
        file.write(b'after\n')
    assert (tmp_path / 'log').read_text() == 'before\npage\nafter\n'  # as a shell's >> has it, and not emptied
    assert names(tmp_path) == ['fifo', 'log']
    with pytest.raises(InputError, match='/dev/full: cannot be written .No space'):
        write_text('/dev/full', 'x')


@pytest.mark.skipif(os.geteuid() != 0, reason='makes a device, which needs root')
def test_a_device_is_written_and_never_replaced(tmp_path):
    null = tmp_path / 'null'
    try:
        os.mknod(null, 0o020666, os.makedev(1, 3))
        write_text(null, 'x')
    except (PermissionError, InputError):
        pytest.skip('devices cannot be made or used here')
    assert null.is_char_device() and names(tmp_path) == ['null']


class FailsAt:
    """In the place of a function: raises at its n-th call."""

    def __init__(self, function, n, error):
        self.function, self.n, self.error = function, n, error

    def __call__(self, *arguments):
        self.n -= 1
        if self.n == 0:
            raise self.error
        return self.function(*arguments)


@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'No space left on device'), KeyboardInterrupt()])
def test_a_result_whose_writing_fails_at_any_point_leaves_the_old_one_whole(tmp_path, monkeypatch, error):
    paths = ResultPaths(tmp_path, 'g', 't')
    write_result(paths, {'rougeL': 0.25}, [LINE], [UPDATE])
    before = {path: path.read_bytes() for path in paths.written}
    for n in (1, 2, 3):  # each file goes to the disk before the first takes its place
        with monkeypatch.context() as patch, pytest.raises((InputError, KeyboardInterrupt)):
            patch.setattr(os, 'fsync', FailsAt(os.fsync, n, error))
            write_result(paths, {'rougeL': 0.5}, [LINE, LINE], [UPDATE, UPDATE])
        assert {path: path.read_bytes() for path in paths.written} == before
        assert names(tmp_path / 'g') == sorted(path.name for path in paths.written)
    write_result(paths, {'rougeL': 0.5}, [LINE, LINE], [UPDATE, UPDATE])
    assert all(path.read_bytes() != old for path, old in before.items())


def test_both_splits_of_a_task_are_replaced_or_none(tmp_path, monkeypatch):
    paths = [tmp_path / 'train', tmp_path / 'validation']
    for path in paths:
        path.write_text('old')
    monkeypatch.setattr(os, 'fsync', FailsAt(os.fsync, 2, OSError(errno.ENOSPC, 'No space left on device')))
    with pytest.raises(InputError, match='validation: cannot be written'):
        write_splits(dict.fromkeys(paths, [EXAMPLE]))
    assert [path.read_text() for path in paths] == ['old', 'old'] and names(tmp_path) == ['train', 'validation']
    with write_together(*paths) as (first, second):
        first.write('1')
        second.write('2')
    assert [path.read_text() for path in paths] == ['1', '2']


def test_a_partial_output_on_a_full_disk_is_named_and_one_without_a_record_leaves_nothing(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, 'No space left on device')
    output = PartialOutput(OutputPaths(tmp_path / 'out'), {})
    for n in (1, 2):  # the settings beside it, and the header
        with monkeypatch.context() as patch, pytest.raises(InputError, match='cannot be written .No space'):
            patch.setattr(os, 'fsync', FailsAt(os.fsync, n, full))
            patch.setattr('pathlib.Path.write_bytes', FailsAt(None, n - 1, full))
            output.open(b'header\n')
        assert names(tmp_path) == []


def test_a_partial_output_that_is_not_what_its_settings_say_is_refused(tmp_path):
    paths = OutputPaths(tmp_path / 'out')
    output = PartialOutput(paths, {})
    output.open(b'')
    output.write(b'first\n')
    output.mark(1)
    output.close()
    paths.partial.write_bytes(b'fir')
    with pytest.raises(InputError, match='is not what out.partial.json says of it .3 bytes.; --overwrite'):
        PartialOutput(paths, {}).open(b'')
    paths.settings.write_text('{"records": "1", "bytes": 2}')
    with pytest.raises(InputError, match='--overwrite begins again'):
        PartialOutput(paths, {}).open(b'')


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_with_a_way_out(tmp_path, monkeypatch, number, caplog):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'flock', flock)
    monkeypatch.delenv(lock_module.ALLOW_NO_LOCKS, raising=False)
    paths = ResultPaths(tmp_path / 'r', 'g', 't')
    with pytest.raises(InputError, match='t.lock: cannot be locked .*CAPPY_ALLOW_NO_LOCKS=1 and see to it'):
        check_result(paths)
    with pytest.raises(InputError, match='t.lock: cannot be locked'), result_lock(paths):
        pass
    monkeypatch.setenv(lock_module.ALLOW_NO_LOCKS, '1')
    check_result(paths)
    other = tmp_path / 'r' / 'g' / '.t.json.0123456789ab.partial'
    other.write_text('of a process that may live')
    with result_lock(paths):
        assert json.loads(paths.lock.read_text())['pid'] == os.getpid()
        write_result(paths, {'rougeL': 0.5}, [LINE], [])
    assert not paths.lock.exists() and other.exists() and paths.result.exists()
    assert 't.lock: not locked; no other command may write this output now' in caplog.text
    assert sweep.lock_holder(paths) is None


@pytest.fixture(scope='module')
def report():
    return load_script('scripts/report.py').main


def test_a_page_goes_to_standard_output_and_is_not_put_in_the_place_of_a_pipe(tmp_path, report, capfd):
    write_result(ResultPaths(tmp_path / 'r', 'g', 't'), {'rougeL': 0.5}, [LINE], [UPDATE])
    os.mkfifo(tmp_path / 'fifo')
    found, thread = read_in_a_thread(tmp_path / 'fifo')
    argv = ['--results_dir', tmp_path / 'r', '--n_workers', '1', '--output']
    assert run_main(report, [*argv, tmp_path / 'fifo']) == 0
    thread.join(10)
    out, _ = capfd.readouterr()
    assert found[0].startswith(b'<!DOCTYPE html>') and found[0].rstrip().endswith(b'</html>')
    assert out == f'{tmp_path / "fifo"}: 1 cell\n' and (tmp_path / 'fifo').is_fifo()
    for name in ('-', '/dev/stdout'):
        assert run_main(report, [*argv, name]) == 0
        out, err = capfd.readouterr()
        assert out.startswith('<!DOCTYPE html>') and err.splitlines()[-1] == f'{name}: 1 cell'
    assert run_main(report, [*argv, '/dev/full']) == 1
    assert capfd.readouterr().err == 'error: /dev/full: cannot be written (No space left on device)\n'
