"""Shards of pretraining data and the order in which their pairs are read."""

import gzip
import json
from collections import Counter

import pytest

from cappy.errors import InputError
from cappy.pretrain_data.labelled_pairs import read_pairs
from cappy.pretrain_data.stream import Stream, check_shards, data_digest, find_shards


def fields_of(number, **changes):
    return {'instruction': f'say {number}', 'response': f'it is {number}', 'label': number % 3 / 2} | changes


def write(path, lines):
    path.write_text(''.join(json.dumps(fields) + '\n' for fields in lines), encoding='utf-8')
    return path


@pytest.fixture
def shards(tmp_path):
    """Three shards of 7, 5 and 9 pairs, numbered consecutively."""
    first = 0
    for i, n in enumerate((7, 5, 9)):
        write(tmp_path / f'train-{i:05d}-of-00003.jsonl', [fields_of(first + k) for k in range(n)])
        first += n
    return check_shards(find_shards(tmp_path), progress=False)


def streamed(shards, first=0, **changes):
    stream = Stream(tuple(shards), **{'n_epochs': 1, 'window_size': 4, 'seed': 3} | changes)
    return [[int(pair.instruction.removeprefix('say ')) for pair in window] for window in stream.windows(first)]


def test_packed_shards_are_the_same_stream(tmp_path):
    folders = [tmp_path / 'plain', tmp_path / 'packed']
    for folder in folders:
        folder.mkdir()
    for i in range(2):
        rows = [{'instruction': f'q{n}', 'response': f'a{i}', 'label': 0.5} for n in range(5)]
        content = ''.join(json.dumps(row) + '\n' for row in rows).encode()
        (folders[0] / f'train-{i:05d}-of-00002.jsonl').write_bytes(content)
        (folders[1] / f'train-{i:05d}-of-00002.jsonl.gz').write_bytes(gzip.compress(content))
    plain, packed = (check_shards(find_shards(folder), progress=False) for folder in folders)
    assert data_digest(plain) == data_digest(packed)
    windows = [list(Stream(tuple(shards), 2, 4, 7).windows()) for shards in (plain, packed)]
    assert windows[0] == windows[1] and sum(map(len, windows[1])) == 20


def test_a_pass_gives_every_pair_once_in_windows_of_the_given_size(shards):
    windows = streamed(shards)
    assert [len(window) for window in windows] == [4, 4, 4, 4, 4, 1]
    assert Counter(sum(windows, [])) == Counter(range(21))
    assert sum(windows, []) != list(range(21))


def test_a_window_may_hold_pairs_of_several_shards_and_passes(shards):
    windows = streamed(shards, n_epochs=2, window_size=6)
    assert [len(window) for window in windows] == [6] * 7
    assert Counter(sum(windows, [])) == Counter(list(range(21)) * 2)
    first, second = sum(windows, [])[:21], sum(windows, [])[21:]
    assert first != second  # each pass has another order


@pytest.mark.parametrize('first', range(8))
def test_reading_can_begin_at_any_window(shards, first):
    assert streamed(shards, first, n_epochs=2, window_size=6) == streamed(shards, n_epochs=2, window_size=6)[first:]


def test_the_order_depends_only_on_the_seed(shards):
    assert streamed(shards) == streamed(shards)
    assert streamed(shards, seed=4) != streamed(shards)


def test_the_digest_of_shards_changes_with_their_content(shards, tmp_path):
    assert [shard.n_pairs for shard in shards] == [7, 5, 9]
    before = data_digest(shards)
    write(tmp_path / 'train-00001-of-00003.jsonl', [fields_of(7 + k) for k in range(4)] + [fields_of(11, label=0.25)])
    assert data_digest(check_shards(find_shards(tmp_path), progress=False)) != before


def test_a_pair_has_the_fields_of_its_line(tmp_path):
    path = write(
        tmp_path / 'train-a.jsonl', [fields_of(4, template='t', source='choice', more=1), fields_of(5, label=1)]
    )
    assert [tuple(pair) for pair in read_pairs(path)] == [
        ('say 4', 'it is 4', 0.5, 't', 'choice'),
        ('say 5', 'it is 5', 1.0, '', ''),
    ]


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'label': 1.5}, 'label: 1.5 is outside 0 to 1'),
        ({'label': -0.1}, 'label: -0.1 is outside 0 to 1'),
        ({'label': '1'}, 'label: expected a number from 0 to 1, found "1"'),
        ({'label': True}, 'label: expected a number from 0 to 1, found true'),
        ({'label': None}, 'label: expected a number from 0 to 1, found null'),
        ({'label': float('nan')}, 'label: expected a number from 0 to 1, found NaN'),
        ({'response': ' '}, 'response: expected text, found " "'),
        ({'instruction': 3}, 'instruction: expected text, found 3'),
        ({'template': ''}, 'template: expected a name, found ""'),
        ({'source': 1}, 'source: expected a name, found 1'),
    ],
)
def test_a_bad_pair_is_named_with_file_line_and_field(tmp_path, fields, message):
    path = write(tmp_path / 'train-a.jsonl', [fields_of(0), fields_of(1, **fields)])
    with pytest.raises(InputError) as caught:
        check_shards([path], progress=False)
    assert str(caught.value) == f'{path}:2: {message}'


def test_a_missing_field_is_named(tmp_path):
    path = tmp_path / 'train-a.jsonl'
    path.write_text('{"instruction": "a", "label": 1}\n')
    with pytest.raises(InputError, match=r'train-a\.jsonl:1: response: missing; the line has instruction, label'):
        check_shards([path], progress=False)


def test_a_shard_that_ends_within_a_line_is_named(tmp_path):
    path = write(tmp_path / 'train-a.jsonl', [fields_of(0), fields_of(1)])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r'train-a\.jsonl:2: not JSON .* the file may be cut off'):
        check_shards([path], progress=False)


def test_a_folder_without_all_its_shards_is_refused(tmp_path):
    with pytest.raises(InputError, match='no such folder'):
        find_shards(tmp_path / 'nothing')
    with pytest.raises(InputError, match=r'has no train-\*\.jsonl'):
        find_shards(tmp_path)
    write(tmp_path / 'train-00000-of-00003.jsonl', [fields_of(0)])
    write(tmp_path / 'train-00002-of-00003.jsonl', [fields_of(0)])
    with pytest.raises(InputError, match='shard 1 of 3 is missing'):
        find_shards(tmp_path)
    write(tmp_path / 'train-00001-of-00002.jsonl', [fields_of(0)])
    with pytest.raises(InputError, match='several sets'):
        find_shards(tmp_path)


def test_an_empty_shard_is_refused(tmp_path):
    (tmp_path / 'train-a.jsonl').write_text('\n')
    with pytest.raises(InputError, match=r'train-a\.jsonl: holds no pairs'):
        check_shards(find_shards(tmp_path), progress=False)
