"""Input files: gzip by name or by content, {path}.gz in place of a missing file, and pipes."""

import gzip
import logging
import os
import threading

import pytest

from cappy.errors import InputError
from cappy.files import inputs, jsonl
from cappy.files.inputs import find, is_pipe, opened, stems


@pytest.fixture
def pipe(tmp_path):
    """(name, bytes) -> a named pipe that gives these bytes once."""
    threads = []

    def make(name, content):
        path = tmp_path / name
        os.mkfifo(path)
        threads.append(threading.Thread(target=path.write_bytes, args=(content,), daemon=True))
        threads[-1].start()
        return path

    yield make
    for thread in threads:
        thread.join(timeout=10)


def content_of(path, **more):
    with opened(path, **more) as file:
        return file.read()


def test_a_packed_file_takes_the_place_of_a_missing_one(tmp_path, caplog):
    (tmp_path / 'a.jsonl.gz').write_bytes(gzip.compress(b'{"n": 1}\n'))
    assert find(tmp_path / 'a.jsonl') == tmp_path / 'a.jsonl.gz'
    assert list(jsonl.read(tmp_path / 'a.jsonl')) == [(1, {'n': 1})]
    assert find(tmp_path / 'a.jsonl.gz') == tmp_path / 'a.jsonl.gz'
    assert find(tmp_path / 'b.jsonl') == tmp_path / 'b.jsonl' and caplog.text == ''
    (tmp_path / 'a.jsonl').write_bytes(b'{"n": 2}\n')
    for _ in range(2):
        assert list(jsonl.read(tmp_path / 'a.jsonl')) == [(1, {'n': 2})]
    assert caplog.text.count('a.jsonl is read, and a.jsonl.gz beside it is not; remove one of them') == 1


def test_an_error_in_a_packed_file_names_it(tmp_path):
    (tmp_path / 'a.jsonl.gz').write_bytes(gzip.compress(b'{}\n[1]\n'))
    with pytest.raises(InputError, match=r'a\.jsonl\.gz:2: expected a JSON object'):
        list(jsonl.read(tmp_path / 'a.jsonl'))
    (tmp_path / 'c.jsonl.gz').write_bytes(b'{}\n')
    with pytest.raises(InputError, match=r'c\.jsonl\.gz: its gzip data is broken'):
        list(jsonl.read(tmp_path / 'c.jsonl'))


def test_gzip_is_known_by_its_first_bytes_too(tmp_path):
    (tmp_path / 'a').write_bytes(gzip.compress(b'text'))
    (tmp_path / 'b').write_bytes(b'text')
    (tmp_path / 'c').write_bytes(b'')
    assert [content_of(tmp_path / name) for name in 'abc'] == [b'text', b'text', b'']
    assert inputs.digest(tmp_path / 'a') == inputs.digest(tmp_path / 'b') != inputs.digest(tmp_path / 'c')


def test_stems_are_of_plain_and_packed_files(tmp_path):
    for name in ('a_train.jsonl', 'b_train.jsonl.gz', 'b_train.jsonl', 'c_train.json', 'd_validation.jsonl'):
        (tmp_path / name).touch()
    assert stems(tmp_path, '_train.jsonl') == {'a', 'b'}


def test_a_name_that_no_file_can_have_is_reported(tmp_path):
    with pytest.raises(InputError, match='cannot be read'):
        content_of(find(tmp_path / ('x' * 300)))


def test_a_pipe_can_be_read_again(pipe, tmp_path):
    path = pipe('pipe', b'{"n": 1}\n{"n": 2}\n')
    assert is_pipe(path) and not is_pipe(tmp_path) and not is_pipe(tmp_path / 'none')
    first = jsonl.read(path)
    assert next(first) == (1, {'n': 1})
    assert [fields['n'] for _, fields in jsonl.read(path)] == [1, 2]  # while another reader is amid it
    assert next(first) == (2, {'n': 2})


def test_a_pipe_that_is_read_once_is_not_copied(pipe):
    path = pipe('once', gzip.compress(b'text'))
    assert content_of(path, once=True) == b'text'
    assert not [place for place in inputs._copies if place[0] == str(path)]


def test_halves_of_surrogate_pairs_are_replaced_and_said_once(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    path = tmp_path / 'f.jsonl'
    path.write_bytes(b'{"a": "x\\ud83d", "b\\udc00": [["\\ud83d\\ude00", {"c": "\\ude00"}]], "n": 1}\n{"a": "ok"}\n')
    for _ in range(2):
        (_, first), _ = jsonl.read(path)
        assert first == {'a': 'x\ufffd', 'b\ufffd': [['\U0001f600', {'c': '\ufffd'}]], 'n': 1}
    said = f'{path}: 3 halves of surrogate pairs, which are no characters, replaced by U+FFFD'
    assert caplog.messages == [said]


@pytest.mark.parametrize(
    ('value', 'expected'),
    [(1, True), (-1.5, True), (10**400, False), (float('nan'), False), (float('inf'), False)]
    + [(value, False) for value in (True, None, '1', [1], {})],
)
def test_a_number_is_finite_and_fits_a_float(value, expected):
    assert jsonl.is_number(value) is expected
