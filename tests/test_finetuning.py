"""Finetuning examples against those that the reference implementation built."""

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from cappy.errors import InputError
from cappy.tasks.candidates import Example, Sample, read_task
from cappy.tasks.finetuning import FinetuningExample, build_finetuning_examples, check_can_teach
from cappy.tasks.rouge import RougeL

RECORDED = Path(__file__).parent / 'recorded'


def example(idx, instruction, references, *responses):
    samples = tuple(Sample(response, 'sampling') for response in responses)
    return Example('d', idx, instruction, tuple(references), samples)


def built(examples, train_size=None, **settings):
    """The unique examples, in an order that the shuffle does not touch."""
    results = build_finetuning_examples(examples, train_size or 1000, 0, RougeL(), **settings)
    return sorted({(e.instruction, e.response, e.label) for e in results})


@pytest.mark.parametrize('task', ['tiny_tense', 'tiny_arithmetic'])
def test_examples_equal_the_recorded_ones_to_the_last_label_and_position(task):
    recorded = json.loads((RECORDED / 'bigbench' / f'{task}.dataset.json').read_text())
    train = read_task(RECORDED / 'inputs' / 'bigbench_flan_gens', 'flan-t5-tiny', task)['train']
    examples = build_finetuning_examples(train, 512, 11111, RougeL())
    assert [(e.instruction, e.response, e.label) for e in examples] == [
        (e['instruction'], e['response'], e['label']) for e in recorded['train']
    ]


def test_validation_pairs_of_the_recorded_tasks_are_the_samples_in_file_order():
    for task in ('tiny_tense', 'tiny_arithmetic'):
        recorded = json.loads((RECORDED / 'bigbench' / f'{task}.dataset.json').read_text())
        split = read_task(RECORDED / 'inputs' / 'bigbench_flan_gens', 'flan-t5-tiny', task)
        assert [
            (e.example_idx, e.instruction, sample.response) for e in split['validation'] for sample in e.samples
        ] == [(p['example_idx'], p['instruction'], p['response']) for p in recorded['validation']]


def test_an_objective_of_differences_needs_an_instruction_with_two_labels():
    alike = [FinetuningExample('i', 'a', 0.5), FinetuningExample('j', 'b', 0.1), FinetuningExample('j', 'c', 0.1)]
    check_can_teach(alike)
    for objective in ('centred', 'listwise'):
        with pytest.raises(InputError, match=f'objective {objective}: none of 2 training instructions has two'):
            check_can_teach(alike, objective)
        check_can_teach([*alike, FinetuningExample('i', 'd', 0.6)], objective)


def test_a_duplicate_reference_stays_and_a_repeated_sample_does_not():
    examples = build_finetuning_examples([example(0, 'i', ['a', 'a'], 'b', 'b', 'a')], 3, 0, RougeL())
    assert Counter((e.response, e.label) for e in examples) == {('a', 1.0): 2, ('b', 0.0): 1}


def test_a_reference_drawn_for_another_instruction_stays_negative_as_a_sample():
    examples = [
        example(0, 'i', ['the red dog'], 'the red cat'),
        example(1, 'j', ['the red cat'], 'x'),
    ]
    # With two references, a negative of i can only be j's reference, which is a sample of i too.
    for seed in range(20):
        draws = random.Random(seed)
        drawn = [draws.choice(['the red cat', 'the red dog']) for _ in range(2)]
        results = build_finetuning_examples(examples, 100, seed, RougeL())
        labels = {e.label for e in results if (e.instruction, e.response) == ('i', 'the red cat')}
        assert labels == {0.0 if drawn[0] == 'the red cat' else RougeL().score(['the red dog'], 'the red cat')}


def test_examples_are_repeated_in_the_same_order_and_cut_to_train_size():
    examples = [example(n, f'i{n}', [f'r{n}']) for n in range(5)]
    once = build_finetuning_examples(examples, 5, 3, RougeL())
    n = len({(e.instruction, e.response) for e in build_finetuning_examples(examples, 500, 3, RougeL())})
    many = build_finetuning_examples(examples, 3 * n + 2, 3, RougeL())
    assert once == many[:5]
    assert many == many[:n] * 3 + many[:2]


def test_texts_that_hold_the_references_separator_do_not_collide():
    # Joined by '|||', (i, a|||b) and (i|||a, b) would be one.
    pairs = built([example(0, 'i', ['a|||b']), example(1, 'i|||a', ['x'], 'b')])
    assert ('i|||a', 'b', 0.0) in pairs


def test_leave_one_out_labels_a_reference_by_the_others_of_its_example():
    examples = [
        example(0, 'i', ['the red dog', 'the red cat', 'a bird'], 'the dog'),
        example(1, 'j', ['alone']),
        example(2, 'k', ['twice', 'twice']),
    ]
    pairs = built(examples, reference_labels='leave_one_out')
    labels = {(instruction, response): label for instruction, response, label in pairs}
    assert labels['i', 'the red dog'] == labels['i', 'the red cat'] == pytest.approx(2 / 3)
    assert labels['i', 'a bird'] == 0.0
    assert labels['i', 'the dog'] == 0.8
    assert labels['j', 'alone'] == labels['k', 'twice'] == 1.0


def test_skip_takes_samples_alone_and_draws_no_negatives():
    examples = [example(0, 'i', ['a b'], 'a', 'a b'), example(1, 'j', ['c'], 'd')]
    assert built(examples, reference_labels='skip') == [
        ('i', 'a', pytest.approx(2 / 3)),
        ('i', 'a b', 1.0),
        ('j', 'd', 0.0),
    ]


def test_another_seed_gives_another_order_of_the_same_references():
    examples = [example(n, f'i{n}', ['same']) for n in range(30)]
    first, second = (build_finetuning_examples(examples, 30, seed, RougeL()) for seed in (0, 1))
    assert first != second
    assert set(first) == set(second) == {FinetuningExample(f'i{n}', 'same', 1.0) for n in range(30)}


def test_settings_that_give_nothing_are_named():
    with pytest.raises(InputError, match='train_size 0: expected 1 or more'):
        build_finetuning_examples([example(0, 'i', ['a'])], 0, 0, RougeL())
    with pytest.raises(InputError, match="reference_labels 'two': choose one of one, leave_one_out"):
        build_finetuning_examples([example(0, 'i', ['a'])], 1, 0, RougeL(), 'two')
    with pytest.raises(InputError, match='no finetuning examples'):
        build_finetuning_examples([], 1, 0, RougeL())
    with pytest.raises(InputError, match='no finetuning examples'):
        build_finetuning_examples([example(0, 'i', ['a'])], 1, 0, RougeL(), 'skip')


def test_labels_that_are_all_equal_can_teach_nothing():
    check_can_teach(build_finetuning_examples([example(0, 'i', ['a'], 'b')], 10, 0, RougeL()))
    right = build_finetuning_examples([example(0, 'i', ['a'], 'a'), example(1, 'j', ['a'], 'a')], 10, 0, RougeL())
    wrong = build_finetuning_examples([example(0, 'i', ['a'], 'b', '')], 10, 0, RougeL(), 'skip')
    for examples, label in ((right, 1), (wrong, 0)):
        with pytest.raises(InputError, match=f'all 10 finetuning examples the label {label}, from which no scorer'):
            check_can_teach(examples)


def test_the_time_is_linear_in_the_examples():
    examples = [example(n, f'instruction {n}', [f'reference {n}']) for n in range(32_000)]

    def seconds(n):
        start = time.process_time()
        build_finetuning_examples(examples[:n], n, 0, RougeL())
        return time.process_time() - start

    # A sort of all references for each positive would take 4,000 examples 8 s and 64 times that
    # here.
    assert seconds(4_000) < 1
    assert seconds(32_000) < 4
