"""Prompts, references and splits of tasks in the form of task.json."""

import json
import random
from pathlib import Path

import pytest

from cappy.errors import InputError
from cappy.tasks import bigbench
from cappy.tasks.bigbench import compose_prompt, find_tasks_dir, read_task

SHARED = Path(__file__).parents[1].parent / 'shared' / 'data' / 'bigbench_tasks'


def make_examples(n, start=0):
    return [{'input': f'{i} and one', 'target': str(i + 1)} for i in range(start, start + n)]


def write_task(folder, examples=None, **fields):
    folder.mkdir(parents=True)
    if examples is not None:
        fields['examples'] = examples
    (folder / 'task.json').write_text(json.dumps(fields), 'utf-8')
    return folder


def write_raw(folder, content):
    folder.mkdir(parents=True)
    (folder / 'task.json').write_bytes(content)


def numbers(examples):
    """The i of each `make_examples` example, in order."""
    return [int(example.references[0]) - 1 for example in examples]


def test_a_prompt_has_the_prefixes_of_bigbench_where_the_task_has_none_and_is_stripped():
    assert compose_prompt({}, 'Which?') == 'Q: Which?\nA:'
    assert compose_prompt({'task_prefix': 'Answer.\n'}, 'Which? ') == 'Answer.\n\nQ: Which? \nA:'


def test_a_prompt_has_the_prefixes_of_its_task_even_empty_ones():
    fields = {'task_prefix': ' Compute.\n', 'example_input_prefix': '\n', 'example_output_prefix': ' = '}
    assert compose_prompt(fields, 'op 3') == 'Compute.\n\nop 3 ='
    assert compose_prompt({'example_input_prefix': '', 'example_output_prefix': ''}, ' The word is ') == 'The word is'


def test_each_target_is_a_reference_stripped(tmp_path):
    examples = [*make_examples(30), {'input': 'both', 'target': [' 3', 'three\n', '']}]
    write_task(tmp_path / 'sums', examples)
    task = read_task(tmp_path, 'sums')
    references = {example.instruction: example.references for example in task.train + task.validation}
    assert references['Q: both\nA:'] == ('3', 'three', '')
    assert references['Q: 7 and one\nA:'] == ('8',)


def test_the_last_fifth_of_the_shuffled_examples_validates_and_each_split_is_numbered_from_0(tmp_path):
    write_task(tmp_path / 'sums', make_examples(104))
    task = read_task(tmp_path, 'sums')
    order = list(range(104))
    random.seed(42)  # as bigbench_bridge.py shuffles
    random.shuffle(order)
    assert (numbers(task.train), numbers(task.validation)) == (order[:84], order[84:])
    assert [example.example_idx for example in task.validation] == list(range(20))
    assert {example.dataset for example in task.train} == {'sums'}
    assert numbers(read_task(tmp_path, 'sums', seed=1).validation) != order[84:]


@pytest.mark.parametrize(('n', 'n_validation'), [(17, 16), (79, 16), (84, 16), (85, 17)])
def test_at_least_16_examples_validate(tmp_path, n, n_validation):
    write_task(tmp_path / 'sums', make_examples(n))
    task = read_task(tmp_path, 'sums')
    assert (len(task.train), len(task.validation)) == (n - n_validation, n_validation)


def test_a_task_with_nothing_left_to_train_on_is_refused(tmp_path):
    write_task(tmp_path / 'sums', make_examples(16))
    with pytest.raises(InputError, match=r'sums/task\.json: 16 examples, of which at least 16 are for validation'):
        read_task(tmp_path, 'sums')


def test_a_duplicate_is_left_out_and_counted(tmp_path):
    write_task(tmp_path / 'sums', make_examples(40) + make_examples(3))
    task = read_task(tmp_path, 'sums')
    assert (sorted(numbers(task.train + task.validation)), task.n_duplicates) == (list(range(40)), 3)


def test_each_subtask_is_split_and_the_splits_are_joined_in_the_order_of_the_folders(tmp_path):
    write_task(tmp_path / 'sums', task_prefix='not of the subtasks')
    write_task(tmp_path / 'sums' / 'b', make_examples(50, 100), task_prefix='B ')
    write_task(tmp_path / 'sums' / 'a', make_examples(40), example_input_prefix='A ')
    task = read_task(tmp_path, 'sums')
    # 16 // 2 = 8 of 40 and a fifth of 50
    assert [number >= 100 for number in numbers(task.validation)] == [False] * 8 + [True] * 10
    assert (len(task.train), {example.dataset for example in task.train}) == (72, {'sums'})
    assert task.train[0].instruction.startswith('A ') and task.train[-1].instruction.startswith('B \nQ: 1')


def test_many_small_subtasks_have_16_validation_examples_together(tmp_path):
    write_task(tmp_path / 'sums')
    for part in range(3):  # a fifth of 10 is 2, and 16 // 3 is 5: one too few in all
        write_task(tmp_path / 'sums' / f'part{part}', make_examples(10, 10 * part))
    task = read_task(tmp_path, 'sums')
    assert (len(task.train), len(task.validation)) == (12, 18)


def choices(**scores):
    return {'input': 'Pick', 'target_scores': scores}


def test_multiple_choice_examples_are_left_out_and_counted_and_do_not_move_the_split(tmp_path):
    write_task(tmp_path / 'sums', make_examples(40))
    mixed = make_examples(40)
    mixed[7:7] = [choices(yes=1, no=0), {**choices(no=1, yes=0), 'target': 'no'}]
    write_task(tmp_path / 'mixed', mixed)
    plain, task = read_task(tmp_path, 'sums'), read_task(tmp_path, 'mixed')
    assert (numbers(task.train), numbers(task.validation)) == (numbers(plain.train), numbers(plain.validation))
    assert (plain.n_multiple_choice, task.n_multiple_choice) == (0, 2)


def test_a_subtask_with_only_multiple_choice_examples_is_left_out(tmp_path):
    write_task(tmp_path / 'sums')
    write_task(tmp_path / 'sums' / 'choose', [choices(yes=1, no=0)])
    write_task(tmp_path / 'sums' / 'tell', make_examples(40))
    task = read_task(tmp_path, 'sums')
    assert (len(task.train), len(task.validation), task.n_multiple_choice) == (24, 16, 1)


def test_a_task_with_only_multiple_choice_examples_is_refused(tmp_path):
    write_task(tmp_path / 'sums', [choices(yes=1, no=0), choices(yes=0, no=1)])
    with pytest.raises(InputError, match=r'sums/task\.json: all 2 examples are multiple choice'):
        read_task(tmp_path, 'sums')


def test_multiple_choice_examples_are_kept_with_their_choices_on_request(tmp_path):
    write_task(tmp_path / 'sums', [*make_examples(40), choices(c=0, d=1, b=1, a=0)], choice_prefix='\n- ')
    task = read_task(tmp_path, 'sums', multiple_choice=True)
    references = {example.instruction: example.references for example in task.train + task.validation}
    # numpy's RandomState(42) takes [a, b, c, d] to [b, d, a, c]; d is the first of the best in the file's order.
    assert references['Q: Pick\n- b\n- d\n- a\n- c\nA:'] == ('d',)
    assert (len(references), task.n_multiple_choice) == (41, 0)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'{"examples": [\n{"input": "a", "target": "b"},\n', r'task\.json:\d: not JSON \(.*; fetch the file again'),
        (b'\xff{}', r'task\.json: not UTF-8 \(byte 1\)'),
        (b'[1]', r'task\.json: expected a JSON object, found \[1\]'),
        (b'{"name": "sums"}', r'task\.json: has no examples and no subtask .*; has name'),
        (b'{"examples": {}}', r'task\.json: examples: expected a list that is not empty, found \{\}'),
        (b'{"examples": []}', r'task\.json: examples: expected a list that is not empty, found \[\]'),
        (b'{"examples": ["a"]}', r'example 1: expected a JSON object, found "a"'),
        (
            b'{"examples": [{"input": "a", "target": "b"}, {"target": "b"}]}',
            r'example 2: input is missing; the example has ',
        ),
        (
            b'{"examples": [{"input": "a", "answer": "b"}]}',
            'target is missing; the example has input, answer',
        ),
        (b'{"examples": [{"input": 3, "target": "b"}]}', r'example 1: input: expected text, found 3'),
        (b'{"examples": [{"input": "a", "target": ["b", 3]}]}', r'example 1: target: expected text, found 3'),
        (b'{"examples": [{"input": "a", "target": []}]}', r'example 1: target: the list is empty'),
        (b'{"task_prefix": null, "examples": []}', r'task\.json: task_prefix: expected text, found null'),
    ],
)
def test_a_bad_task_is_named_with_its_file_and_example(tmp_path, content, message):
    write_raw(tmp_path / 'sums', content)
    with pytest.raises(InputError, match=message):
        read_task(tmp_path, 'sums')


@pytest.mark.parametrize(
    ('scores', 'message'),
    [({}, 'no choice is better'), ({'a': 1, 'b': 1}, 'no choice is better'), ({'a': 'x'}, 'a number for each choice')],
)
def test_choices_without_a_best_one_are_refused(tmp_path, scores, message):
    write_task(tmp_path / 'sums', [{'input': 'Pick', 'target_scores': scores}])
    with pytest.raises(InputError, match=f'example 1: target_scores: .*{message}'):
        read_task(tmp_path, 'sums', multiple_choice=True)


def test_a_task_that_is_not_there_is_named_with_near_names(tmp_path):
    for name in ('word_sorting', 'tense'):
        write_task(tmp_path / name, make_examples(20))
    with pytest.raises(InputError, match='no such file; near names in .*: word_sorting'):
        read_task(tmp_path, 'word_sortin')


@pytest.mark.parametrize('inner', ['bigbench/benchmark_tasks', 'benchmark_tasks', '.'])
def test_the_tasks_are_found_in_a_checkout_a_package_or_their_own_folder(tmp_path, inner):
    write_task(tmp_path / inner / 'sums', make_examples(20))
    assert find_tasks_dir(tmp_path) == tmp_path / inner
    assert bigbench.task_names(find_tasks_dir(tmp_path)) == ['sums']


def test_a_folder_without_tasks_is_named_with_what_it_should_have(tmp_path):
    with pytest.raises(InputError, match=r'has no task; expected bigbench/benchmark_tasks in it'):
        find_tasks_dir(tmp_path)
    with pytest.raises(InputError, match='nowhere: no such folder; give a checkout'):
        find_tasks_dir(tmp_path / 'nowhere')


@pytest.mark.skipif(not SHARED.is_dir(), reason='the shared data is not here')
def test_seven_real_tasks_have_the_counts_of_the_hub():
    tasks = {name: read_task(SHARED, name) for name in bigbench.task_names(SHARED)}
    assert {name: (len(task.train), len(task.validation)) for name, task in tasks.items()} == {
        'gender_inclusive_sentences_german': (160, 40),
        'linguistics_puzzles': (1600, 400),
        'object_counting': (800, 200),
        'operators': (168, 42),
        'tense': (229, 57),
        'word_sorting': (1520, 380),
        'word_unscrambling': (7134, 1783),
    }
