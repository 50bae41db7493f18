"""Result files appear whole or not at all, one process at a time."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cappy.errors import InputError
from cappy.files import atomic
from cappy.files import environment as environment_module
from cappy.files.atomic import shortest_float32, write_atomically
from cappy.files.environment import PACKAGES, environment
from cappy.files.lock import ResultLocked, result_lock
from cappy.files.updates import Update, read_updates
from cappy.study.results import ResultPaths, describe_candidates, read_candidates, read_result, write_result
from cappy.tasks.candidates import Example, Sample

ROOT = Path(__file__).parents[1]
EXAMPLE = Example(
    'd',
    7,
    'i',
    ('a',),
    (Sample('a\u2028b', 'beam4'), Sample('x', 'sampling'), Sample('a\u2028b', 'sampling')),
)
LINE = describe_candidates(EXAMPLE, np.array([0.1, 0.3], np.float32), np.array([1 / 3, 0.5]))
HOLD = """
import sys, time
from cappy.files.lock import result_lock
from cappy.study.results import ResultPaths
with result_lock(ResultPaths(sys.argv[1], 'g', 't')):
    print('held', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def paths(tmp_path):
    return ResultPaths(tmp_path / 'results', 'flan-t5-tiny', 'auto.task')


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_the_files_of_a_cell_are_side_by_side():
    paths = ResultPaths('results', 'g', 'a.b')
    assert [str(path) for path in (paths.result, paths.candidates, paths.updates, paths.lock, paths.checkpoint)] == [
        'results/g/a.b.json',
        'results/g/a.b.candidates.jsonl',
        'results/g/a.b.train.csv',
        'results/g/a.b.lock',
        'results/g/a.b.checkpoint',
    ]


def test_a_result_is_written_as_the_design_says_and_read_again(paths):
    updates = [(1, 16, np.float32(2e-5), np.float32(0.1), 1.5), Update(2, 8, 0.0, 0.25, 3e-9)]
    result = {
        'rougeL': 0.5,
        'device': 'cpu',
        'n': np.int64(3),
        'x': np.float32(0.1),
        'p': Path('a'),
    }
    write_result(paths, result, [LINE], updates)
    assert names(paths.result.parent) == [
        'auto.task.candidates.jsonl',
        'auto.task.json',
        'auto.task.train.csv',
    ]
    assert read_result(paths.result) == {
        'rougeL': 0.5,
        'device': 'cpu',
        'n': 3,
        'x': 0.1,
        'p': 'a',
    }
    assert paths.updates.read_text() == (
        'update,pairs,learning_rate,loss,grad_norm\n1,16,2e-05,0.1,1.5\n2,8,0.0,0.25,3e-09\n'
    )
    assert read_updates(paths.updates) == [(1, 16, 2e-5, 0.1, 1.5), (2, 8, 0.0, 0.25, 3e-9)]
    assert read_candidates(paths.candidates) == [
        {
            'example_idx': 7,
            'pick': 1,
            'rougeL': 0.5,
            'candidates': [
                {
                    'response': 'a\u2028b',
                    'score': 0.1,
                    'rougeL': 1 / 3,
                    'decodings': ['beam4', 'sampling'],
                },
                {'response': 'x', 'score': 0.3, 'rougeL': 0.5, 'decodings': ['sampling']},
            ],
        }
    ]


def test_the_first_of_equal_scores_is_the_pick():
    line = describe_candidates(EXAMPLE, np.array([0.25, 0.25], np.float32), np.array([0.0, 1.0]))
    assert (line['pick'], line['rougeL']) == (0, 0.0)


def test_scores_come_back_as_the_same_float32_and_keep_their_order():
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    values = np.append(values, [np.float32(1e-45), np.float32(3.4e38), np.nextafter(1, 0, dtype=np.float32)])
    shown = np.array([json.loads(json.dumps(shortest_float32(value))) for value in values])
    assert np.array_equal(shown.astype(np.float32), values)
    assert np.array_equal(np.argsort(shown, kind='stable'), np.argsort(values, kind='stable'))


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_never_written(paths, bad):
    broken = describe_candidates(EXAMPLE, np.array([0.1, bad], np.float32), np.array([0.5, 0.5]))
    with pytest.raises(InputError, match='example_idx 7, candidate 1 has score'):
        write_result(paths, {'rougeL': 0.5}, [broken], [])
    with pytest.raises(InputError, match='auto.task.json: not written'):
        write_result(paths, {'rougeL': np.float32(bad)}, [LINE], [])
    with pytest.raises(InputError, match='update 3 is not finite'):
        write_result(paths, {'rougeL': 0.5}, [LINE], [(3, 1, 0.1, bad, 0.1)])
    assert not paths.result.exists()


def test_the_result_appears_only_when_the_other_files_exist(paths, monkeypatch):
    order = []
    replace = os.replace

    def note(source, target):
        order.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, 'replace', note)
    write_result(paths, {'rougeL': 1.0}, [LINE], [])
    assert order == ['auto.task.candidates.jsonl', 'auto.task.train.csv', 'auto.task.json']


@pytest.mark.parametrize('failure', [KeyboardInterrupt, ValueError, SystemExit])
def test_a_file_whose_writing_fails_is_not_there_and_an_old_one_stays(tmp_path, failure):
    path = tmp_path / 'f'
    path.write_text('old')
    with pytest.raises(failure), write_atomically(path) as file:
        file.write('new')
        raise failure
    assert path.read_text() == 'old'
    assert names(tmp_path) == ['f']


def test_a_written_file_has_the_rights_of_any_new_file(tmp_path):
    (tmp_path / 'plain').write_text('x')
    with write_atomically(tmp_path / 'ours') as file:
        file.write('\u00e9\n')
    assert (tmp_path / 'ours').read_bytes() == b'\xc3\xa9\n'
    assert (tmp_path / 'ours').stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    target = tmp_path / 'file' / 'f.json'
    with (
        pytest.raises(InputError, match='file/f.json: cannot be written'),
        write_atomically(target),
    ):
        pass
    with (
        pytest.raises(InputError, match='file/g/t.lock: cannot be written'),
        result_lock(ResultPaths(tmp_path / 'file', 'g', 't')),
    ):
        pass
    with pytest.raises(InputError, match='cannot be written'), write_atomically(tmp_path):
        pass
    assert names(tmp_path) == ['file']


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs a device that is always full')
def test_a_full_disk_is_named_as_such(tmp_path, monkeypatch):
    real_open = open
    monkeypatch.setattr(atomic, 'open', lambda path, *rest, **named: real_open('/dev/full', 'w'), raising=False)
    with (
        pytest.raises(InputError, match='f: cannot be written .No space left'),
        write_atomically(tmp_path / 'f') as file,
    ):
        file.write('x' * 100_000)
    assert names(tmp_path) == []


def test_a_failure_of_the_callers_own_files_keeps_its_kind(tmp_path):
    with pytest.raises(FileNotFoundError), write_atomically(tmp_path / 'f'):
        (tmp_path / 'absent').read_text()
    with pytest.raises(BrokenPipeError), write_atomically(tmp_path / 'f'):
        raise BrokenPipeError(32, 'Broken pipe')
    assert names(tmp_path) == []


def test_a_held_lock_names_its_holder_and_ends_with_the_block(paths):
    with result_lock(paths):
        with pytest.raises(ResultLocked) as raised, result_lock(paths):
            pass
        assert (raised.value.pid, raised.value.host) == (os.getpid(), os.uname().nodename)
        assert f'process {os.getpid()} on {os.uname().nodename} since {raised.value.since}' in str(raised.value)
        assert raised.value.since.endswith('+00:00')
    assert names(paths.lock.parent) == []
    with result_lock(paths):
        assert names(paths.lock.parent) == ['auto.task.lock']


def test_an_interrupted_block_leaves_no_lock(paths):
    with pytest.raises(KeyboardInterrupt), result_lock(paths):
        raise KeyboardInterrupt
    assert names(paths.lock.parent) == []


def test_the_lock_of_a_killed_process_is_taken_over_with_its_partial_files_removed(tmp_path):
    paths = ResultPaths(tmp_path, 'g', 't')
    process = subprocess.Popen([sys.executable, '-c', HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout.readline() == 'held\n'
        with pytest.raises(ResultLocked) as raised, result_lock(paths):
            pass
        assert raised.value.pid == process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (tmp_path / 'g' / '.t.json.0123456789ab.partial').write_text('{')
    (tmp_path / 'g' / '.t2.json.0123456789ab.partial').write_text("another task's")
    assert names(tmp_path / 'g') == [
        '.t.json.0123456789ab.partial',
        '.t2.json.0123456789ab.partial',
        't.lock',
    ]
    with result_lock(paths):
        assert json.loads(paths.lock.read_text())['pid'] == os.getpid()
    assert names(tmp_path / 'g') == ['.t2.json.0123456789ab.partial']


def test_of_many_processes_one_at_a_time_holds_the_lock(tmp_path):
    # Each enters 40 times; inside, a folder that only one may make shows a second holder.
    program = """
import os, sys
from cappy.files.lock import ResultLocked, result_lock
from cappy.study.results import ResultPaths
paths, n = ResultPaths(sys.argv[1], 'g', 't'), 0
while n < 40:
    try:
        with result_lock(paths):
            os.mkdir(sys.argv[1] + '/inside'); os.rmdir(sys.argv[1] + '/inside'); n += 1
    except ResultLocked:
        pass
print(n)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', program, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(4)
    ]
    assert [process.communicate(timeout=60)[0] for process in processes] == ['40\n'] * 4
    assert names(tmp_path / 'g') == []


def test_a_holder_that_has_not_yet_written_itself_down_is_another_process(paths):
    with result_lock(paths):
        paths.lock.write_text('')
        with (
            pytest.raises(ResultLocked, match='another process works on this result'),
            result_lock(paths),
        ):
            pass


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('running...', "not a result .*found 'running...'"),
        ('{"rougeL": 0.3', 'not a result'),
        ('[]', 'expected an object with a number rougeL'),
        ('{"rougeL": null}', 'expected an object with a number rougeL'),
        ('{"rougeL": NaN}', 'expected an object with a number rougeL'),
        ('{"rougeL": 1' + '0' * 400 + '}', 'expected an object with a number rougeL'),
        ('[' * 100_000, 'not a result'),
    ],
)
def test_a_corrupt_result_is_named(tmp_path, text, message):
    path = tmp_path / 't.json'
    path.write_text(text)
    with pytest.raises(InputError, match=f't.json: .*{message}'):
        read_result(path)


def test_corrupt_candidates_and_updates_are_named_with_their_line(tmp_path):
    path = tmp_path / 'f'
    for line, message in [
        ('{', 'f:2: not JSON'),
        (json.dumps(LINE | {'pick': 2}), 'f:2: not a line of candidates .pick 2 of 2'),
        (json.dumps({'candidates': [], 'pick': 0}), 'f:2: not a line of candidates'),
        (
            json.dumps({key: LINE[key] for key in ('pick', 'candidates')}),
            'f:2: example_idx is missing',
        ),
        ('[1]', 'f:2: expected a JSON object'),
        (json.dumps(LINE | {'rougeL': 10**400}), 'f:2: rougeL: expected a number, found one of 401 digits'),
        (json.dumps(LINE | {'picked': {'oracle': '1'}}), 'f:2: oracle: expected a number, found "1"'),
        (json.dumps(LINE | {'example_idx': [1]}), r'f:2: example_idx: expected an integer or text, found \[1\]'),
        (json.dumps(LINE | {'pick': 0.0}), 'f:2: pick: expected the place of a candidate, found 0.0'),
    ]:
        path.write_text(f'{json.dumps(LINE)}\n{line}\n')
        with pytest.raises(InputError, match=message):
            read_candidates(path)
    # How long a field may be is a setting of the process, which reading scored pairs raises.
    too_long = '9' * 200_000, 'f: not a log of updates|f:2: not an update .1 fields, not 5'
    for row, message in (('1,2,0.1,0.1', 'f:2: not an update .4 fields, not 5'), too_long):
        path.write_text(f'update,pairs,learning_rate,loss,grad_norm\n{row}\n')
        with pytest.raises(InputError, match=message):
            read_updates(path)
    path.write_bytes(b'\xff')
    with pytest.raises(InputError, match='f: not UTF-8'):
        read_result(path)
    with pytest.raises(InputError, match='absent: no such file'):
        read_candidates(tmp_path / 'absent')


BAD_VALUES = (None, True, 'x', -1, 1.5, [], {}, [1], {'a': 1}, 10**400)


@pytest.mark.parametrize('key', ['example_idx', 'pick', 'rougeL', 'candidates', 'picked'])
def test_a_field_of_another_kind_is_named_in_a_line_of_candidates(tmp_path, key):
    path, line = tmp_path / 'f', describe_candidates(EXAMPLE, np.array([0.1, 0.3]), np.array([0.5, 0.5]), {'p': 0.5})
    sound = {'example_idx': ('x', -1, 10**400), 'rougeL': (-1, 1.5), 'picked': (None, {}, {'a': 1})}.get(key, ())
    for value in BAD_VALUES:
        path.write_text(json.dumps(line | {key: value}))
        if any(value is one or value == one for one in sound) and not isinstance(value, bool):
            assert read_candidates(path)[0][key] == value
        else:
            with pytest.raises(InputError, match='f:1: .*(expected|not a line of candidates)'):
                read_candidates(path)


@pytest.mark.parametrize('key', ['response', 'score', 'rougeL', 'decodings'])
def test_a_field_of_another_kind_is_named_in_a_candidate(tmp_path, key):
    path, sound = tmp_path / 'f', {'response': ('x',), 'decodings': ([],)}.get(key, (-1, 1.5))
    for value in (*BAD_VALUES, *({'decodings': [[None]]}.get(key, []))):
        line = json.loads(json.dumps(LINE))
        line['candidates'][1][key] = value
        path.write_text(json.dumps(line))
        if value in sound and not isinstance(value, bool):
            assert read_candidates(path)[0]['candidates'][1][key] == value
        else:
            with pytest.raises(InputError, match=f'f:1: {key}: expected'):
                read_candidates(path)
    del line['candidates'][1][key]
    path.write_text(json.dumps(line))
    with pytest.raises(InputError, match=f'f:1: {key} is missing'):
        read_candidates(path)


def test_the_environment_tells_versions_but_no_host(monkeypatch, tmp_path):
    versions = environment()
    assert versions['python'] == '.'.join(map(str, sys.version_info[:3]))
    assert versions['numpy'] == np.__version__
    assert set(versions) - {'commit'} == {'python', *PACKAGES}
    assert os.uname().nodename not in json.dumps(versions)


def test_the_commit_is_told_only_where_the_code_is_tracked(tmp_path, monkeypatch):
    def git(*arguments):
        settings = ('-c', 'user.name=n', '-c', 'user.email=e@example.com')
        return subprocess.run(
            ['git', '-C', str(tmp_path), *settings, *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    module = tmp_path / 'results.py'
    monkeypatch.setattr(environment_module, '__file__', str(module))
    assert 'commit' not in environment()
    git('init', '-q')
    module.write_text('1\n')
    assert 'commit' not in environment()
    git('add', 'results.py')
    git('commit', '-q', '-m', 'm')
    assert environment()['commit'] == git('rev-parse', 'HEAD')
    module.write_text('2\n')
    assert environment()['commit'] == git('rev-parse', 'HEAD') + '+changes'
