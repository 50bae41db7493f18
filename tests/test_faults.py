"""Faults in the texts of a task: counted by split, and said."""

import pytest

from cappy.tasks.candidates import Example, Sample
from cappy.tasks.faults import FAULTS, count_faults, describe_by_name, describe_faults
from cappy.tasks.rouge import RougeL

RUSSIAN = '\u043a\u0440\u0430\u0441\u043d\u044b\u0439'


def example(number, instruction=None, references=('red',), responses=('red', 'blue')):
    instruction = f'Name colour {number}.' if instruction is None else instruction
    return Example('colours', number, instruction, tuple(references), tuple(Sample(text, 's') for text in responses))


def faults_of(train, validation, tokenizer='default'):
    """({split: {fault: number of examples}} without zeros, what is said)."""
    counts = count_faults({'train': train, 'validation': validation}, RougeL(tokenizer))
    found = {split: {fault: own[fault] for fault in FAULTS if own.get(fault)} for split, own in counts.items()}
    return found, describe_faults(counts.values())


def test_a_sound_task_has_no_faults():
    found, said = faults_of([example(0), example(1)], [example(2), example(3, responses=['red', 'red'])])
    assert found == {'train': {}, 'validation': {'single_candidates': 1}} and said == {}


def test_most_letters_in_another_script_are_a_fault_whatever_the_digits():
    train = [example(0, references=[f'{RUSSIAN} 7'], responses=['7', f'{RUSSIAN} 8']), example(1)]
    validation = [example(2, responses=['blue', RUSSIAN]), example(3, responses=[f'{RUSSIAN} is the Russian for red'])]
    found, said = faults_of(train, validation)
    assert found == {'train': {'unread': 1}, 'validation': {'unread': 1, 'single_candidates': 1}}
    n_letters = 2 * 7 + len('redredblue') + len('redblue') + 7 + len('red') + len('istheRussianforred') + 7
    assert list(said) == ['unread'] and f'{4 * 7 / n_letters:.0%} of all letters are others' in said['unread']
    assert said['unread'].startswith('2 of 4 examples have texts most of whose letters rougeL does not read')
    assert faults_of(train, validation, 'unicode')[1] == {}


@pytest.mark.parametrize('text', ['', ' \n', '+', '?!', '\U0001f44d'])
def test_texts_without_words_are_counted_where_an_example_has_no_others(text):
    train = [example(0, references=[text]), example(1, references=[text, 'red'], responses=[text, 'red'])]
    validation = [example(2, responses=[text, text]), example(3)]
    found, said = faults_of(train, validation)
    assert found['train'] == {'references_without_words': 1}
    assert found['validation'] == {'responses_without_words': 1, 'single_candidates': 1}
    assert said['references_without_words'].startswith('1 of 4 examples have no reference with a word in it')
    assert said['responses_without_words'].startswith('1 of 4 examples have no response with a word in it')


def test_blank_instructions_and_those_of_the_train_split_are_counted():
    train = [example(0), example(1), example(2, instruction=' ')]
    found, said = faults_of(train, [example(1), example(3), example(4, instruction='Name colour 0.')])
    assert found['validation'] == {'instructions_in_train': 2} and found['train'] == {'blank_instructions': 1}
    assert said['blank_instructions'] == '1 of 6 examples have a blank instruction'
    assert said['instructions_in_train'].startswith('2 of 3 validation instructions are in the train split too')


def test_samples_that_are_empty_or_cut_are_counted():
    samples = (Sample('red', 's'), Sample('', 's', was_cut=True), Sample(' ', 's'), Sample('red', 's', was_cut=True))
    counts = count_faults({'train': [Example('colours', 0, 'Name one.', ('red',), samples)]}, RougeL())['train']
    names = ('examples', 'samples', 'candidates', 'empty_samples', 'cut_samples')
    assert [counts[name] for name in names] == [1, 4, 3, 2, 2]


def test_a_task_without_anything_to_pick_is_said():
    _, said = faults_of([example(0)], [example(1, responses=['red', 'red']), example(2, responses=['blue'])])
    assert said['single_candidates'].startswith('2 of 2 validation examples have a single candidate')


def test_a_fault_of_several_tasks_is_one_line_with_their_names():
    counts = {
        name: [count_faults({'validation': examples}, RougeL())['validation']]
        for name, examples in {
            'first': [example(0, references=[RUSSIAN]), example(1)],
            'second': [example(0)],
            'third': [example(0, references=[RUSSIAN], instruction='')],
        }.items()
    }
    unread, blank = describe_by_name(counts)
    assert unread.startswith('first, third: 2 of 3 examples have texts most of whose letters')
    assert blank == 'third: 1 of 1 examples have a blank instruction'
