"""Reading and writing examples, and what is said of bad ones."""

import gzip
import json
from pathlib import Path

import pytest

from cappy.errors import InputError
from cappy.study.cells import sampled_tasks
from cappy.tasks.candidates import Example, Sample, read_examples, read_task, write_examples

GENS = Path(__file__).parent / 'recorded' / 'inputs' / 'bigbench_flan_gens'
GOOD = {
    'dataset': 'd',
    'example_idx': 0,
    'instruction': 'i',
    'references': ['a', 'b'],
    'flan_samples': {
        'beam4': [{'response': 'a'}],
        'sampling': [{'response': ''}, {'response': 'a'}],
    },
}


def write_lines(path, *lines):
    path.write_bytes(
        b''.join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b'\n' for line in lines)
    )
    return path


def without(key):
    return {name: value for name, value in GOOD.items() if name != key}


def test_a_recorded_file_is_read_in_file_order():
    task = read_task(GENS, 'flan-t5-tiny', 'tiny_tense')
    lines = [
        json.loads(line) for line in (GENS / 'flan-t5-tiny' / 'tiny_tense_validation.jsonl').read_text().splitlines()
    ]
    assert [len(task['train']), len(task['validation'])] == [60, len(lines)] == [60, 30]
    for example, line in zip(task['validation'], lines, strict=True):
        assert example.instruction == line['instruction']
        assert example.references == tuple(line['references'])
        assert example.decodings == tuple(line['flan_samples'])
        assert [
            (
                sample.decoding,
                sample.response,
                sample.log_likelihood_sum,
                sample.log_likelihood_mean,
            )
            for sample in example.samples
        ] == [
            (name, entry['response'], entry['log_likelihood_sum'], entry['log_likelihood_mean'])
            for name, entries in line['flan_samples'].items()
            for entry in entries
        ]


def test_candidates_are_unique_responses_in_order_of_first_appearance(tmp_path):
    line = GOOD | {
        'flan_samples': {
            'x': [{'response': r} for r in 'bab'],
            'y': [{'response': 'c'}, {'response': 'a'}],
        }
    }
    (example,) = read_examples(write_lines(tmp_path / 'f', line))
    assert example.candidates == ('b', 'a', 'c')
    assert example.decodings == ('x', 'y')


def test_samples_is_another_name_of_flan_samples(tmp_path):
    path = write_lines(tmp_path / 'f', without('flan_samples') | {'samples': GOOD['flan_samples']})
    assert read_examples(path) == read_examples(write_lines(tmp_path / 'g', GOOD))


def test_other_field_names_can_be_given(tmp_path):
    line = {'example_idx': 'x', 'q': 'i', 'gold': ['a'], 'samples': {'s': [{'text': 't'}]}}
    path = write_lines(tmp_path / 'f', line)
    assert read_examples(path, src_key='q', tgt_key='text', refs_key='gold') == [
        Example(None, 'x', 'i', ('a',), (Sample('t', 's'),))
    ]


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path):
    path = tmp_path / 'f'
    path.write_bytes(b'\xef\xbb\xbf' + json.dumps(GOOD).encode() + b'\r\n \n\n' + b'[]\n')
    with pytest.raises(InputError, match=r'f:4: expected a JSON object, found \[\]'):
        read_examples(path)
    path.write_bytes(path.read_bytes().removesuffix(b'[]\n'))
    assert [example.instruction for example in read_examples(path)] == ['i']


def test_a_log_likelihood_that_is_null_or_not_finite_is_unknown(tmp_path):
    path = tmp_path / 'f'
    samples = ','.join(
        f'{{"response": "r", "log_likelihood_sum": {value}}}' for value in ('-1.5', 'NaN', '-Infinity', 'null', '-2')
    )
    text = json.dumps(without('flan_samples'))[:-1] + f', "samples": {{"s": [{samples}]}}}}'
    path.write_text(text)
    (example,) = read_examples(path)
    assert [sample.log_likelihood_sum for sample in example.samples] == [
        -1.5,
        None,
        None,
        None,
        -2.0,
    ]


def test_what_is_written_is_read_again_the_same(tmp_path):
    examples = read_examples(GENS / 'flan-t5-tiny' / 'tiny_tense_validation.jsonl')
    path = tmp_path / 'new' / 'tiny_tense_validation.jsonl'
    write_examples(path, examples)
    assert read_examples(path) == examples
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert json.loads(path.read_text().splitlines()[0]) == json.loads(
        (GENS / 'flan-t5-tiny' / 'tiny_tense_validation.jsonl').read_text().splitlines()[0]
    )


def test_which_samples_were_cut_is_kept(tmp_path):
    samples = (Sample('red', 's'), Sample('re', 's', -1.5, -0.75, was_cut=True))
    path = tmp_path / 'tiny_train.jsonl'
    write_examples(path, [Example('tiny', 0, 'Name a colour.', ('red',), samples)])
    assert json.loads(path.read_text())['flan_samples']['s'][0] == {'response': 'red'}
    assert read_examples(path)[0].samples == samples


def labelled(*labels, idx=0):
    return without('flan_samples') | {
        'example_idx': idx,
        'flan_samples': {'s': [{'response': str(n), 'label': label} for n, label in enumerate(labels)]},
    }


def test_labels_are_read_written_and_averaged_over_equal_samples(tmp_path):
    line = without('flan_samples') | {
        'flan_samples': {
            's': [{'response': r, 'good': label} for r, label in (('a', True), ('b', 0.25), ('a', 0), ('c', False))]
        }
    }
    (example,) = read_examples(write_lines(tmp_path / 'f', line), label_key='good')
    assert example.labels.tolist() == [0.5, 0.25, 0]
    write_examples(tmp_path / 'g', [example])
    assert read_examples(tmp_path / 'g') == [example]
    assert read_examples(write_lines(tmp_path / 'h', GOOD))[0].labels is None
    assert read_examples(write_lines(tmp_path / 'h', labelled(None, None)))[0].labels is None


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ([labelled(0.5, None)], ':1: flan_samples: 1 of 2 samples have a label; label all or none'),
        ([labelled(1.5)], ":1: flan_samples, decoding 's': label: found 1.5; give a number from 0 to 1"),
        ([labelled(float('nan'))], ":1: flan_samples, decoding 's': label: found NaN; give a number from 0 to 1"),
        ([labelled('good')], 'label: found "good"; give a number from 0 to 1'),
        (
            [labelled(1), labelled(None, idx=1)],
            ':2: its samples have no label, and those of line 1 have one; label all',
        ),
        (
            [labelled(None), labelled(1, idx=1), labelled(None, idx=2)],
            ':2: its samples have a label, and those of line 1 have none; label all or none',
        ),
    ],
)
def test_labels_that_are_none_or_only_there_in_part_are_named(tmp_path, lines, message):
    path = write_lines(tmp_path / 'f', *lines)
    with pytest.raises(InputError) as raised:
        read_examples(path)
    assert message in str(raised.value) and str(path) in str(raised.value)


def test_an_example_knows_its_line(tmp_path):
    path = write_lines(tmp_path / 'f', GOOD, b'', GOOD | {'example_idx': 1})
    assert [example.place for example in read_examples(path)] == [f'{path}:1', f'{path}:3']
    assert Example('d', 'x', 'i', ('a',)).place == "example_idx 'x'"


def test_examples_without_samples_are_read_where_none_are_needed(tmp_path):
    path = write_lines(tmp_path / 'f', without('flan_samples'))
    (example,) = read_examples(path, samples_needed=False)
    assert example.samples == () and example.candidates == () and example.decodings == ()


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        (b'{"example_idx": 1, ', 'not JSON (Expecting property name'),
        (b'{"example_idx": 1, "instruction": "\xff"}', 'not UTF-8 (byte 36)'),
        (b'[' * 100_000, 'not JSON that can be read'),
        (b'3', 'expected a JSON object, found 3'),
        (b'NaN', 'expected a JSON object, found NaN'),
        (without('example_idx'), 'example_idx is missing; the line has dataset, instruction'),
        (GOOD | {'example_idx': 1.5}, 'example_idx: expected an integer or text, found 1.5'),
        (GOOD | {'example_idx': True}, 'example_idx: expected an integer or text, found true'),
        (GOOD | {'dataset': 3}, 'dataset: expected text, found 3'),
        (without('instruction'), 'instruction is missing'),
        (GOOD | {'instruction': None}, 'instruction: expected text, found null'),
        (without('references'), 'references is missing'),
        (GOOD | {'references': []}, 'references: the list is empty'),
        (GOOD | {'references': 'abc'}, 'references: expected a list of texts, found "abc"'),
        (GOOD | {'references': ['a', 7]}, 'references: expected a list of texts, found 7 in it'),
        (without('flan_samples'), 'flan_samples is missing, so there is nothing to pick from'),
        (GOOD | {'flan_samples': {}}, 'flan_samples: no sample under any decoding'),
        (GOOD | {'flan_samples': {'a': [], 'b': []}}, 'flan_samples: no sample under any decoding'),
        (
            GOOD | {'flan_samples': [1]},
            'flan_samples: expected lists of samples by decoding, found [1]',
        ),
        (
            GOOD | {'flan_samples': {'s': 'r'}},
            "flan_samples, decoding 's': expected a list of samples",
        ),
        (
            GOOD | {'flan_samples': {'s': ['r']}},
            "flan_samples, decoding 's': expected a sample with response, found",
        ),
        (GOOD | {'samples': {}}, 'flan_samples and samples are two names of one field'),
        (
            GOOD | {'flan_samples': {'s': [{'text': 'r'}]}},
            "flan_samples, decoding 's': a sample without response; it has text",
        ),
        (
            GOOD | {'flan_samples': {'s': [{'response': None}]}},
            "flan_samples, decoding 's': response: expected text, found null",
        ),
        (
            GOOD | {'flan_samples': {'s': [{'response': 'r', 'log_likelihood_sum': '-3'}]}},
            'flan_samples, decoding \'s\': log_likelihood_sum: expected a number, found "-3"',
        ),
        (
            GOOD | {'flan_samples': {'s': [{'response': 'r', 'was_cut': 'length'}]}},
            'flan_samples, decoding \'s\': was_cut: expected true or false, found "length"',
        ),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path, bad, message):
    path = write_lines(tmp_path / 'bad.jsonl', GOOD, b'', bad)
    with pytest.raises(InputError) as raised:
        read_examples(path)
    assert str(raised.value).startswith(f'{path}:3: {message}')
    assert '\n' not in str(raised.value)


def test_a_surrogate_pair_in_escapes_is_a_character(tmp_path):
    path = write_lines(tmp_path / 'f', GOOD | {'instruction': '\U0001f600'})
    assert rb'\ud83d\ude00' in path.read_bytes()
    assert read_examples(path)[0].instruction == '\U0001f600'


def test_a_file_that_ends_amid_a_line_is_called_cut_off(tmp_path):
    path = tmp_path / 'f'
    path.write_bytes((json.dumps(GOOD) + '\n' + json.dumps(GOOD)[:50]).encode())
    with pytest.raises(InputError, match='f:2: not JSON .*may be cut off'):
        read_examples(path)


def test_an_example_idx_that_repeats_is_named_with_both_lines(tmp_path):
    path = write_lines(tmp_path / 'f', GOOD, GOOD | {'example_idx': 1}, GOOD)
    with pytest.raises(InputError, match='f:3: example_idx 0 is on line 1 too'):
        read_examples(path)


def test_the_bad_lines_of_both_files_are_named(tmp_path):
    folder = tmp_path / 'gens' / 'g'
    folder.mkdir(parents=True)
    write_lines(folder / 't_train.jsonl', {}, GOOD, {}, GOOD)
    write_lines(folder / 't_validation.jsonl', GOOD, b'{')
    with pytest.raises(InputError) as raised:
        read_task(tmp_path / 'gens', 'g', 't')
    assert str(raised.value) == (
        f'{folder}/t_train.jsonl:1: example_idx is missing; the line has nothing (line 3 too); line 4: example_idx 0 '
        f'is on line 2 too; give every example its own; {folder}/t_validation.jsonl:2: not JSON (Expecting property '
        "name enclosed in double quotes), found '{'"
    )


def test_packed_candidate_files_are_read_and_found(tmp_path):
    folder = tmp_path / 'gens' / 'g'
    folder.mkdir(parents=True)
    for split in ('train', 'validation'):
        path = write_lines(folder / 'f', GOOD)
        (folder / f't_{split}.jsonl.gz').write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert [len(examples) for examples in read_task(tmp_path / 'gens', 'g', 't').values()] == [1, 1]
    assert sampled_tasks(tmp_path / 'gens', ['g']) == {'t'}
    with pytest.raises(InputError, match='tt_train.jsonl: no such file; near names in .*: t$|has t$'):
        read_task(tmp_path / 'gens', 'g', 'tt')


def test_an_empty_split_is_an_error(tmp_path):
    (tmp_path / 'f').write_bytes(b'\n  \n')
    with pytest.raises(InputError, match='f: holds no examples'):
        read_examples(tmp_path / 'f')


def test_missing_names_are_told_with_the_near_ones_that_exist(tmp_path):
    folder = tmp_path / 'gens' / 'flan-t5-xxl'
    folder.mkdir(parents=True)
    write_lines(folder / 'auto_categorization_train.jsonl', GOOD)
    write_lines(folder / 'auto_categorization_validation.jsonl', GOOD)
    write_lines(folder / 'operators_train.jsonl', GOOD)
    for gens_dir, generator, task, found in [
        (
            'gen',
            'flan-t5-xxl',
            'auto_categorization',
            'gen: no such folder of generators; near names .*: gens',
        ),
        (
            'gens',
            'flan-t5-xl',
            'auto_categorization',
            'flan-t5-xl: no such generator; near names .*: flan-t5-xxl',
        ),
        (
            'gens',
            'flan-t5-xxl',
            'auto_categorisation',
            'no such file; near names .*: auto_categorization',
        ),
        ('gens', 'flan-t5-xxl', 'zzz', 'no such file; .* has auto_categorization, operators'),
        (
            'gens',
            'flan-t5-xxl',
            'operators',
            'operators_validation.jsonl: no such file; .* only the other split',
        ),
        (
            'nowhere/gens',
            'flan-t5-xxl',
            'x',
            'no such folder of generators; there is no folder .*nowhere either',
        ),
    ]:
        with pytest.raises(InputError, match=found):
            read_task(tmp_path / gens_dir, generator, task)
    with pytest.raises(InputError, match='near names .*: operators_train.jsonl'):
        read_examples(folder / 'operator_train.jsonl')
    with pytest.raises(InputError, match='is a file, not a folder'):
        read_task(folder / 'operators_train.jsonl', 'x', 'y')
    with pytest.raises(InputError, match='cannot be read'):
        read_examples(folder)
