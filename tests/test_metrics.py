"""The metrics against their definitions, and what is said of one that fails."""

import json
import math

import numpy as np
import pytest

from cappy.errors import InputError
from cappy.tasks.candidates import Example, Sample, read_examples
from cappy.tasks.finetuning import build_finetuning_examples, label_samples
from cappy.tasks.metrics import METRICS, FunctionMetric, agreement, find_metric, measure
from cappy.tasks.picks import consensus
from cappy.tasks.rouge import RougeL


def shared_letters(references, response):
    """A metric of one's own: the share of the first reference's letters that the response has."""
    return len(set(references[0]) & set(response)) / max(len(set(references[0])), 1)


def chrf_by_hand(reference, response, order=6, beta=2):
    """chrF of two texts: the mean precision and recall of character n-grams without spaces, beta = 2."""
    one, other = (''.join(text.split()) for text in (reference, response))
    precisions, recalls = [], []
    for n in range(1, order + 1):
        wanted, found = ([text[i : i + n] for i in range(len(text) - n + 1)] for text in (one, other))
        common = sum(min(wanted.count(gram), found.count(gram)) for gram in set(wanted))
        if wanted and found:  # orders that one of the texts is too short for are left out
            precisions.append(common / len(found))
            recalls.append(common / len(wanted))
    precision, recall = np.mean(precisions), np.mean(recalls)
    below = beta**2 * precision + recall
    return (1 + beta**2) * precision * recall / below if below else 0.0


def example(*responses, references=('the cat sat',), labels=None):
    labels = labels or [None] * len(responses)
    samples = [Sample(text, 'sampling', label=label) for text, label in zip(responses, labels, strict=True)]
    return Example('d', 3, 'i', tuple(references), tuple(samples))


def test_chrf_is_that_of_its_definition_against_the_best_reference():
    metric = find_metric('chrf')
    references, response = ['the cat sat on the mat', 'a cat was sitting there'], 'the cats sat there'
    expected = max(chrf_by_hand(reference, response) for reference in references)
    assert metric.scores(references, [response, references[1]]) == pytest.approx([expected, 1])


def test_exact_match_passes_over_case_and_white_space_alone():
    metric = find_metric('exact_match')
    assert metric.scores(['The  cat', 'dog'], ['the cat', 'dog ', 'dogs', '', 'the cat.']).tolist() == [1, 1, 0, 0, 0]
    assert metric.agreement(['a', 'A ', 'b', '', ' ']).tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize('name', METRICS)
def test_a_metric_takes_no_responses_one_and_empty_texts(name):
    metric = find_metric(name)
    assert metric.name == name
    assert metric.scores(['a b'], []).shape == (0,)
    assert metric.scores(['a b'], ['a b', '']).tolist() == [1, 0]
    assert metric.agreement(['a b', 'c d', '']) == pytest.approx(np.diag([1.0, 1, 0]))


def test_a_function_of_a_module_of_the_working_directory_is_a_metric(tmp_path, monkeypatch):
    (tmp_path / 'metric_of_a_user.py').write_text('def half(references, response):\n    return 0.5\n')
    monkeypatch.chdir(tmp_path)
    metric = find_metric('metric_of_a_user:half')
    assert metric.scores(['a'], ['b', 'c']).tolist() == [0.5, 0.5] and metric.name == 'metric_of_a_user:half'


def test_agreement_has_the_other_text_as_the_reference():
    metric = FunctionMetric('letters', shared_letters)
    made = example('ab', 'abcd', 'ab')
    assert agreement(metric, made).tolist() == [[1, 0.5], [1, 1]]
    # 'ab' was drawn twice: it agrees with itself wholly, and with 'abcd' by half.
    assert consensus(made, metric).tolist() == [(1 + 0.5) / 2, 1]


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('rouge', "metric: found 'rouge'; choose rougeL, exact_match, chrf, or module:function"),
        (':f', "found ':f'; give module:function"),
        ('no_such_module_here:f', 'no_such_module_here cannot be imported (ModuleNotFoundError'),
        ('json:no_such', 'json has no function no_such'),
    ],
)
def test_a_metric_that_cannot_be_had_is_named(name, message):
    with pytest.raises(InputError) as raised:
        find_metric(name)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (math.nan, 'it returned nan'),
        (1.5, 'it returned 1.5; a metric gives a number from 0 to 1'),
        (None, 'it returned None'),
        ('1', "it returned '1'"),
        (ZeroDivisionError('by hand'), 'it raised ZeroDivisionError: by hand'),
    ],
)
def test_a_metric_that_fails_is_told_with_file_line_and_response(tmp_path, value, message):
    def fails(references, response):
        if isinstance(value, Exception):
            raise value
        return value

    path = tmp_path / 'f_train.jsonl'
    lines = [
        {'example_idx': n, 'instruction': 'i', 'references': ['r'], 'samples': {'s': [{'response': 'x y'}]}}
        for n in range(2)
    ]
    path.write_text('\n'.join(map(json.dumps, lines)))
    second = read_examples(path)[1]
    with pytest.raises(InputError) as raised:
        measure(FunctionMetric('m:f', fails), second, second.candidates)
    assert str(raised.value).startswith(f"{path}:2: metric m:f, response 'x y': ") and message in str(raised.value)
    with pytest.raises(InputError, match='f_train.jsonl:2: metric m:f'):
        consensus(second, FunctionMetric('m:f', fails))


def test_finetuning_labels_are_the_metrics_or_the_files_own():
    made = [example('the cat sat', 'the dog', 'no')]
    by_metric = build_finetuning_examples(made, 3, 0, find_metric('exact_match'), 'skip')
    assert {one.response: one.label for one in by_metric} == {'the cat sat': 1, 'the dog': 0, 'no': 0}
    # A sample that was drawn and judged twice has the mean of its labels.
    labelled = [example('the cat sat', 'the dog', 'the dog', labels=[0.25, 1.0, 0.5])]
    own = build_finetuning_examples(labelled, 2, 0, RougeL(), 'skip')
    assert {one.response: one.label for one in own} == {'the cat sat': 0.25, 'the dog': 0.75}


def test_samples_of_a_program_are_labelled_as_those_of_a_file():
    samples = [['the cat sat', 'no', 'no'], ['x']]
    labelled = label_samples(['i', 'j'], samples, [['the cat sat'], ['x y']])
    assert [(one.instruction, one.response, pytest.approx(one.label)) for one in labelled] == [
        ('i', 'the cat sat', 1),
        ('i', 'no', 0),
        ('j', 'x', 2 / 3),
    ]
    for arguments, message in (
        ((['i'], samples, [['r']]), 'found 1 instructions, samples of 2'),
        ((['i'], ['text'], [['r']]), 'samples of instruction 0'),
        ((['i'], [['text']], [[]]), 'references of instruction 0'),
    ):
        with pytest.raises(InputError, match=message):
            label_samples(*arguments)
