import gzip

import pytest

from cappy.errors import InputError
from cappy.files import jsonl
from cappy.files.wording import cut, listed, near_names, not_found, shown


def write(path, *lines):
    path.write_bytes(b'\n'.join(lines) + b'\n')
    return path


def test_lines_are_read_with_their_numbers_and_blank_ones_are_skipped(tmp_path):
    path = write(tmp_path / 'f.jsonl', b'\xef\xbb\xbf{"a": 1}', b'', b'  ', b'{"a": "\xc3\xa4"}')
    assert list(jsonl.read(path)) == [(1, {'a': 1}), (4, {'a': 'ä'})]
    assert list(jsonl.read(path, lambda fields: fields['a'])) == [(1, 1), (4, 'ä')]


def test_a_gzip_file_reads_as_the_plain_one(tmp_path):
    path = tmp_path / 'f.jsonl.gz'
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert [fields['a'] for _, fields in jsonl.read(path)] == [1, 2]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r'f\.jsonl\.gz: its gzip data is broken or cut off'):
        list(jsonl.read(path))


def test_an_error_of_the_parser_gets_file_and_line_and_keeps_its_cause(tmp_path):
    path = write(tmp_path / 'f.jsonl', b'{"a": 1}', b'', b'{"a": -1}')

    def parse(fields):
        if fields['a'] < 0:
            raise InputError(f'a: {fields["a"]} is below 0')
        return fields['a']

    records = jsonl.read(path, parse)
    assert next(records) == (1, 1)
    with pytest.raises(InputError) as raised:
        next(records)
    assert str(raised.value) == f'{path}:3: a: -1 is below 0'
    assert str(raised.value.__cause__) == 'a: -1 is below 0'


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        (b'{"a": 1', 'not JSON .*found \'{"a": 1\'$'),
        (b'[1]', r'expected a JSON object, found \[1\]'),
        (b'{"a": "\xff"}', 'not UTF-8 \\(byte 8\\); save the file as UTF-8'),
        (b'[' * 100_000, 'not JSON that can be read'),
    ],
)
def test_a_line_that_is_no_json_object_is_named(tmp_path, line, message):
    path = write(tmp_path / 'f.jsonl', b'{}', line)
    with pytest.raises(InputError, match=f'f.jsonl:2: {message}'):
        list(jsonl.read(path))


def test_the_bad_lines_after_the_first_are_named_too(tmp_path):
    def parse(fields):
        if 'a' not in fields:
            raise InputError('a is missing')
        return fields['a']

    lines = [b'{"a": 1}', b'{}', b'{"a": 2}', *[b'{}'] * 7, b'[1]', b'{', b'5', b'6', b'{"a": 3}']
    path = write(tmp_path / 'f.jsonl', *lines)
    records = jsonl.read(path, parse)
    assert next(records) == (1, 1)
    with pytest.raises(InputError) as raised:
        next(records)
    assert str(raised.value) == (
        f'{path}:2: a is missing (lines 4, 5, 6, 7 and 3 more too); line 11: expected a JSON object, found [1]; '
        "line 12: not JSON (Expecting property name enclosed in double quotes), found '{'; 2 more lines are bad"
    )
    write(path, b'[1]', b'[1]')
    with pytest.raises(InputError, match=r'f.jsonl:1: expected a JSON object, found \[1\] \(line 2 too\)$'):
        list(jsonl.read(path))


def test_an_escaped_surrogate_pair_is_a_character(tmp_path):
    path = write(tmp_path / 'f.jsonl', b'{"a": "\\ud83d\\ude00"}')
    assert list(jsonl.read(path)) == [(1, {'a': '😀'})]


def test_a_missing_file_is_named_with_the_close_names_and_not_with_distant_ones(tmp_path):
    for name in ('cappy_promptsource.py', 'promptsource_tests.jsonl', 'other'):
        (tmp_path / name).touch()
    with pytest.raises(InputError) as raised:
        list(jsonl.read(tmp_path / 'promptsource_test.jsonl', remedy='x makes it'))
    assert str(raised.value) == (
        f'{tmp_path}/promptsource_test.jsonl: no such file; near names in {tmp_path}: promptsource_tests.jsonl'
    )


def test_a_missing_path_without_close_names_has_the_remedy_or_what_the_folder_holds(tmp_path, monkeypatch):
    for name in ('cappy_promptsource.py', 'other'):
        (tmp_path / name).touch()
    path = tmp_path / 'promptsource_test.jsonl'
    assert not_found(path, remedy='x makes it') == f'{path}: no such file; x makes it'
    assert not_found(path) == f'{path}: no such file; {tmp_path} has cappy_promptsource.py, other'
    deeper = tmp_path / 'no' / 'x'
    assert (
        not_found(deeper, 'folder', 'y') == f'{deeper}: no such folder; there is no folder {tmp_path / "no"} either; y'
    )


def test_a_relative_path_that_is_missing_is_said_to_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        list(jsonl.read('gens.jsonl', remedy='x makes it'))
    assert str(raised.value) == f'gens.jsonl: no such file (relative to the current folder, {tmp_path}); x makes it'


def test_names_and_values_are_cut_to_what_fits_an_error_message():
    assert listed([]) == 'nothing'
    assert listed('abc') == 'a, b, c'
    assert listed('abcdefgh') == 'a, b, c, d, e, f and 2 more'
    assert shown({'ä': None}) == '{"ä": null}'
    assert shown('x' * 100) == '"' + 'x' * 57 + '..'
    assert cut('abcdef', 5) == 'abc..'
    assert near_names('tens', ['tense', 'operators'], 'data') == '; near names in data: tense'
    assert near_names('zzz', ['tense', 'operators'], 'data') == '; data has operators, tense'
