"""scripts/import_samples.py: logs of lm-evaluation-harness and other jsonl become candidate files."""

import importlib.util
import json
from pathlib import Path

import pytest
from conftest import run_main

from cappy.tasks.candidates import Example, Sample, read_examples

_path = Path(__file__).parents[1] / 'scripts' / 'import_samples.py'
_spec = importlib.util.spec_from_file_location('import_samples', _path)
import_samples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(import_samples)

SAMPLING = {'until': ['\n'], 'do_sample': True, 'temperature': 0.7, 'top_p': 0.9}
GREEDY = {'until': ['\n'], 'do_sample': False, 'temperature': 0.0}


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*argv):
    """The script in this process -> its exit code."""
    return run_main(import_samples.main, argv)


def refused(capsys, *argv):
    """The only line of a run that fails and writes nothing."""
    before = sorted(Path.cwd().rglob('*'))
    capsys.readouterr()
    assert run(*argv) == 1
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('error: ') and err.count('\n') == 1
    assert sorted(Path.cwd().rglob('*')) == before
    return err


def write(name, lines):
    Path(name).write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return name


def read(split, folder='bigbench_flan_gens/llm'):
    return read_examples(Path(folder) / f'mine_{split}.jsonl', samples_needed=False)


def logged(doc_id, prompt, target, responses, filter='none', given=GREEDY, **more):
    """A line as `lm_eval --log_samples` writes it now."""
    return {
        'doc_id': doc_id,
        'doc': {'question': f'{prompt}?', 'answers': [target, 'other']},
        'target': target,
        'arguments': {'gen_args_0': {'arg_0': prompt, 'arg_1': given}},
        'resps': [responses],
        'filtered_resps': [text.upper() for text in responses],
        'filter': filter,
        'metrics': ['exact_match'],
        'exact_match': 1.0,
        **more,
    }


COMMAND = ('--task', 'mine', '--generator', 'llm', '--split', 'train')


def test_a_log_becomes_candidates_under_the_decoding_of_its_arguments():
    lines = [logged(0, 'What is red', 'a cat', ['a cat']), logged(7, 'What is big', "['a cow', 'it']", ['a dog'])]
    more = [logged(0, 'What is red', 'a cat', ['a hen', '', 'a hen'], given=SAMPLING)]
    files = write('samples_mine_1.jsonl', lines) + ',' + write('samples_mine_2.jsonl', more)
    assert run(files, *COMMAND) == 0
    drawn = tuple(Sample(text, 'temp0.7_topp0.9') for text in ('a hen', '', 'a hen'))
    assert read('train') == [
        Example('mine', 0, 'What is red', ('a cat',), (Sample('a cat', 'greedy'), *drawn)),
        Example('mine', 1, 'What is big', ('a cow', 'it'), (Sample('a dog', 'greedy'),)),
    ]


@pytest.mark.parametrize(
    ('given', 'name'),
    [
        (GREEDY, 'greedy'),
        ({'until': []}, 'greedy'),
        ({'do_sample': True}, 'temp1.0'),
        ({'temperature': 1}, 'temp1.0'),
        ({'do_sample': False, 'temperature': 0.8}, 'greedy'),
        ({'do_sample': False, 'num_beams': 4}, 'beam4'),
        ({'temperature': 0.5, 'top_p': 1.0}, 'temp0.5'),
    ],
)
def test_the_decoding_is_named_after_the_arguments_of_the_generation(given, name):
    write('log.jsonl', [logged(0, 'a', 'b', ['c'], given=given)])
    assert run('log.jsonl', *COMMAND) == 0
    assert read('train')[0].decodings == (name,)


def test_older_logs_have_lists_of_arguments():
    line = logged(0, '', 'b', ['c']) | {'arguments': [['Say b', GREEDY]], 'target': ['b', 'B']}
    del line['filter']
    write('log.jsonl', [line])
    assert run('log.jsonl', *COMMAND) == 0
    assert read('train') == [Example('mine', 0, 'Say b', ('b', 'B'), (Sample('c', 'greedy'),))]


def test_the_instruction_of_a_chat_is_the_last_message_of_the_user():
    chat = [
        {'role': 'system', 'content': 'Be brief.'},
        {'role': 'user', 'content': 'Say a'},
        {'role': 'assistant', 'content': 'a'},
        {'role': 'user', 'content': 'Say b'},
    ]
    write('log.jsonl', [logged(0, json.dumps(chat), 'b', ['c']), logged(1, [json.dumps(chat)], 'B', ['d'])])
    assert run('log.jsonl', *COMMAND) == 0
    samples = (Sample('c', 'greedy'), Sample('d', 'greedy'))
    assert read('train') == [Example('mine', 0, 'Say b', ('b', 'B'), samples)]


@pytest.mark.parametrize('prompt', ['5', '"text"', '{"role": "user"}', '[1, 2]', '[', '[]'])
def test_a_prompt_that_only_looks_like_a_chat_is_text(prompt):
    write('log.jsonl', [logged(0, prompt, '[a] b', ['c'])])
    assert run('log.jsonl', *COMMAND) == 0
    assert (read('train')[0].instruction, read('train')[0].references) == (prompt, ('[a] b',))


def test_a_document_that_is_logged_once_for_each_filter_counts_once(capsys):
    lines = [logged(n, f'Say {n}', 'b', ['c', 'd'], name, SAMPLING) for n in range(2) for name in ('strict', 'loose')]
    lines[2]['filtered_resps'] = ['x']
    write('log.jsonl', lines)
    assert run('log.jsonl', *COMMAND) == 0
    assert [[sample.response for sample in example.samples] for example in read('train')] == [['c', 'd']] * 2
    filtered = (*COMMAND, '--overwrite', '--response_key', 'filtered_resps')
    assert (
        'log.jsonl:4: filtered_resps: not the samples of an earlier line of the same doc_id, with another filter'
        in refused(capsys, 'log.jsonl', *filtered)
    )
    assert run('log.jsonl', *filtered, '--filter', 'strict') == 0
    assert [[sample.response for sample in example.samples] for example in read('train')] == [['C', 'D'], ['x']]
    assert "holds no examples of the filter 'no'" in refused(capsys, 'log.jsonl', *filtered, '--filter', 'no')


def test_two_runs_in_one_log_are_told_apart_from_two_filters(capsys):
    lines = [logged(n, f'Say {n}', 'b', [f'{run} {n}'], given=SAMPLING) for run in 'ab' for n in range(2)]
    write('log.jsonl', lines)
    message = refused(capsys, 'log.jsonl', *COMMAND)
    assert (
        'log.jsonl:3: resps: not the samples of an earlier line of the same doc_id, with the same filter ("none"); '
        in message
    )
    assert 'two runs, put each into a file of its own, and give both with a comma between them (line 4 too)' in message
    write('a.jsonl', lines[:2])
    write('b.jsonl', lines[2:])
    assert run('a.jsonl,b.jsonl', *COMMAND) == 0
    assert [[sample.response for sample in example.samples] for example in read('train')] == [
        ['a 0', 'b 0'],
        ['a 1', 'b 1'],
    ]
    for line in lines:
        del line['filter']
    write('log.jsonl', lines)
    assert 'doc_id, without a filter; if these are two runs' in refused(capsys, 'log.jsonl', *COMMAND, '--overwrite')


def test_samples_without_text_are_counted_and_too_many_are_refused(capsys, caplog):
    rows = [{'instruction': f'Say {n}', 'references': 'b', 'response': ['c', '', ' '][n % 3]} for n in range(6)]
    write('mine.jsonl', rows)
    message = refused(capsys, 'mine.jsonl', *COMMAND)
    assert 'mine.jsonl: 4 of 6 samples are empty; more than --max_empty_share 0.5' in message
    assert run('mine.jsonl', *COMMAND, '--max_empty_share', 0.7) == 0
    assert caplog.messages == ['4 of 6 samples are empty']


def test_thinking_is_noticed_and_taken_out_on_request(caplog):
    row = {'instruction': 'a', 'references': 'b', 'response': '<think>c</think> d', 'log_likelihood_sum': -1.0}
    write('mine.jsonl', [row, row | {'response': 'e', 'log_likelihood_sum': -2.0}])
    assert run('mine.jsonl', *COMMAND) == 0
    assert caplog.messages == ['1 sample has <think> in the text; --strip_thinking takes it out']
    assert run('mine.jsonl', *COMMAND, '--strip_thinking', '--overwrite') == 0
    assert read('train')[0].samples == (Sample('d', 'sampling'), Sample('e', 'sampling', -2.0))


def test_equal_draws_are_noticed(caplog):
    write('mine.jsonl', [{'instruction': f'{n}', 'references': 'b', 'response': ['c', 'c']} for n in range(3)])
    assert run('mine.jsonl', *COMMAND) == 0
    assert 'all samples of sampling are the same in each of 3 examples (up to 2 samples)' in caplog.text


def test_half_of_a_surrogate_pair_is_replaced_and_every_bad_line_is_named(capsys, caplog):
    write('mine.jsonl', [GOOD | {'response': 'x \ud83d', 'instruction': f'{n}'} for n in range(2)])
    assert run('mine.jsonl', *COMMAND) == 0
    assert [example.samples[0].response for example in read('train')] == ['x \ufffd'] * 2
    assert 'mine.jsonl: 2 halves of surrogate pairs' in caplog.text
    write('mine.jsonl', [GOOD, {}, GOOD | {'response': 4}, {}])
    message = refused(capsys, 'mine.jsonl', *COMMAND, '--overwrite')
    assert 'mine.jsonl:2: instruction is missing' in message and '(line 4 too)' in message
    assert 'line 3: response: expected text or a list of texts, found 4' in message


def test_keys_reach_into_the_document_of_a_log():
    write('log.jsonl', [logged(0, 'a', 'b', ['c'])])
    keys = ('--instruction_key', 'doc.question', '--references_key', 'doc.answers', '--decoding', 'mine')
    assert run('log.jsonl', *COMMAND, *keys) == 0
    assert read('train') == [Example('mine', 0, 'a?', ('b', 'other'), (Sample('c', 'mine'),))]


def test_lines_of_one_sample_are_joined_by_their_instruction():
    lines = [
        {'q': 'one', 'a': 'x', 'gold': '1', 'how': 'greedy', 'log_likelihood_sum': -2, 'log_likelihood_mean': -1.0},
        {'q': 'two', 'a': 'y', 'gold': ['2', 'II'], 'how': 'greedy', 'log_likelihood_sum': float('-inf')},
        {'q': 'one', 'a': ['z', 'x'], 'gold': ['I', '1'], 'how': 0.7},
    ]
    write('flat.jsonl', lines)
    keys = ('--instruction_key', 'q', '--response_key', 'a', '--references_key', 'gold', '--decoding_key', 'how')
    assert run('flat.jsonl', *COMMAND, *keys) == 0
    ones = (Sample('x', 'greedy', -2.0, -1.0), Sample('z', '0.7'), Sample('x', '0.7'))
    assert read('train') == [
        Example('mine', 0, 'one', ('1', 'I'), ones),
        Example('mine', 1, 'two', ('2', 'II'), (Sample('y', 'greedy'),)),
    ]


def test_labels_of_people_or_tests_are_read(capsys):
    lines = [
        {'instruction': 'i', 'references': ['a'], 'response': ['x', 'y'], 'passed': [True, 0.25]},
        {'instruction': 'i', 'references': ['a'], 'response': '<think>no</think>z', 'passed': 0},
    ]
    source = write('f.jsonl', lines)
    argv = [source, '--task', 'mine', '--generator', 'llm', '--split', 'train', '--label_key', 'passed']
    assert run(*argv, '--strip_thinking') == 0
    (example,) = read('train')
    assert [(sample.response, sample.label) for sample in example.samples] == [('x', 1), ('y', 0.25), ('z', 0)]
    write('f.jsonl', [{**lines[0], 'passed': [1]}])
    assert 'f.jsonl:1: passed: 1 labels of 2 responses; give one for each' in refused(capsys, *argv, '--overwrite')
    write('f.jsonl', [lines[1], {**lines[1], 'passed': 'yes'}])
    assert 'f.jsonl:2: passed: found "yes"; give a number from 0 to 1' in refused(capsys, *argv, '--overwrite')


def test_without_a_generator_the_data_to_sample_for_is_divided_by_the_seed():
    write('mine.jsonl', [{'instruction': f'Say {n}', 'references': f'{n}'} for n in range(10)])
    command = ('mine.jsonl', '--task', 'mine', '--validation_share', 0.3)
    assert run(*command) == 0
    train, validation = read('train', 'bigbench_data'), read('validation', 'bigbench_data')
    assert (len(train), len(validation)) == (7, 3)
    both = sorted([*train, *validation], key=lambda example: example.example_idx)
    assert both == [Example('mine', n, f'Say {n}', (f'{n}',)) for n in range(10)]
    assert [example.example_idx for example in train] == sorted(example.example_idx for example in train)
    assert run(*command, '--output_dir', 'again') == 0
    assert read('validation', 'again') == validation
    assert run(*command, '--output_dir', 'other', '--seed', 2) == 0
    assert read('validation', 'other') != validation


def test_bad_flags_are_named(capsys):
    write('mine.jsonl', [{'instruction': 'a', 'references': ['b'], 'response': 'c'}])
    base = ('mine.jsonl', '--task', 'mine', '--generator', 'llm')
    for argv, words in (
        (base, 'give either --split, for one split, or --validation_share, for both'),
        ((*base, '--split', 'train', '--validation_share', 0.5), 'give either --split, for one split, or'),
        (('mine.jsonl', '--task', '../x', '--split', 'train'), "--task '../x': files are named after it"),
        (('mine.jsonl', '--task', 'x', '--generator', '', '--split', 'train'), "--generator '': files are named"),
        ((*base, '--split', 'train', '--max_empty_share', -1), '--max_empty_share: expected 0 to 1, found -1'),
        ((*base, '--split', 'test'), "--split: expected 'train' or 'validation'"),
        ((*base, '--validation_share', 1), '--validation_share: expected more than 0 and less than 1, found 1'),
        ((*base, '--validation_share', 0.5), '--validation_share 0.5 of 1 examples leaves a split empty'),
        (('mine.jsonl', *COMMAND, '--decoding', 'a', '--decoding_key', 'b'), '--decoding and --decoding_key both'),
        (('nine.jsonl', *COMMAND), 'nine.jsonl: no such file; near names in .: mine.jsonl'),
    ):
        assert words in refused(capsys, *argv)
    assert run('mine.jsonl', *COMMAND) == 0
    assert 'mine_train.jsonl: exists; --overwrite replaces it' in refused(capsys, 'mine.jsonl', *COMMAND)
    assert run('mine.jsonl', *COMMAND, '--overwrite') == 0


GOOD = {'instruction': 'a', 'references': ['b'], 'response': 'c'}
BAD = {
    'no instruction': (
        [GOOD, {'references': []}],
        ':2: instruction is missing; the line has references; --instruction_key',
    ),
    'an empty instruction': ([GOOD | {'instruction': ' '}], ':1: instruction: is empty'),
    'a number': ([GOOD | {'instruction': 4}], ':1: instruction: expected text, found 4'),
    'no response': ([{'instruction': 'a', 'references': 'b'}], ':1: response is missing'),
    'responses': ([GOOD | {'response': ['a', 4]}], ':1: response: expected text or a list of texts, found ["a", 4]'),
    'references': ([GOOD | {'references': {'a': 1}}], ':1: references: expected text or a list of texts'),
    'no references': ([GOOD | {'references': []}], ': no line of the instruction "a" has references'),
    'no samples': ([GOOD | {'response': []}], ': no line of the instruction "a" has samples'),
    'nothing': ([], ': holds no examples'),
    'not an object': ([GOOD, [1]], ':2: expected a JSON object'),
    'a choice': (
        [logged(0, 'a', '1', ['-1.5', 'False'], given=' yes')],
        ':1: arguments: expected those of a generation, found {"gen_args_0"',
    ),
    'no prompt': ([logged(0, None, '1', ['a'])], ':1: arguments: expected a prompt, found {"gen_args_0"'),
    'arguments null': ([logged(0, 'a', '1', ['a'], arguments=None)], ':1: arguments: expected a prompt, found null'),
    'a huge temperature': (
        [logged(0, 'a', '1', ['a'], given=SAMPLING | {'temperature': 10**400})],
        ':1: arguments: temperature: expected a number, found 1000',
    ),
    'no arguments': ([logged(0, 'a', '1', ['a'], arguments=[])], ':1: arguments: expected a prompt, found []'),
    'an index': ([logged(0, 'a', 1, ['a'])], ':1: target: expected text, found 1; --references_key'),
}


@pytest.mark.parametrize('case', BAD)
def test_a_bad_line_is_refused_by_number(case, capsys):
    lines, words = BAD[case]
    assert f'error: {write("in.jsonl", lines)}{words}' in refused(capsys, 'in.jsonl', *COMMAND)
