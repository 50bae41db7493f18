"""Questions of several choices: reading, both gradings on every recorded oddity, summaries, the published numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from cappy.errors import InputError
from cappy.tasks import questions
from cappy.tasks.questions import accuracy, count_faults, describe_faults, grade, read_choices, summarise

RECORDED = Path(__file__).parent / 'recorded' / 'promptsource'


def choices(*entries, dataset='d', template='t'):
    """Choices of (example_idx, response, is_gold)."""
    return [
        questions.Choice(number, dataset, template, example_idx, 'i', response, bool(is_gold))
        for number, (example_idx, response, is_gold) in enumerate(entries, start=1)
    ]


def graded(entries, scores, grading):
    return accuracy(grade(entries, np.array(scores, np.float32), grading))['d']


SEVERAL = choices((0, 'a', 1), (0, 'b', 1), (0, 'c', 0))
TWO = choices((0, 'a', 1), (0, 'b', 0))
SAME_TEXT = choices((0, 'a', 0), (0, 'a', 1), (0, 'b', 0))

# name: (choices, scores, what the reference gives (edge_cases of its recording), what is right)
CASES = {
    'several gold choices, best is the first gold': (SEVERAL, [0.9, 0.5, 0.1], 0.0, 1.0),
    'several gold choices, best is the last gold': (SEVERAL, [0.5, 0.9, 0.1], 1.0, 1.0),
    'tie, gold first': (TWO, [0.5, 0.5], 1.0, 0.5),
    'tie, gold last': (TWO[::-1], [0.5, 0.5], 0.0, 0.5),
    'three tied, two of them gold': (SEVERAL, [0.5, 0.5, 0.5], 0.0, 2 / 3),
    'no gold choice': (TWO + choices((1, 'a', 0), (1, 'b', 0)), [0.9, 0.5, 0.1, 0.2], 1.0, 1.0),
    'wrong choice with the gold text': (SAME_TEXT, [0.9, 0.5, 0.1], 1.0, 0.0),
    'example_idx 1 and "1"': (
        choices((1, 'a', 1), (1, 'b', 0), ('1', 'c', 0), ('1', 'a', 1)),
        [0.9, 0.5, 0.6, 0.1],
        1.0,
        0.5,
    ),
    'choices of a question apart': ([TWO[0], *choices((1, 'a', 1)), TWO[1]], [0.1, 0.5, 0.9], 0.5, 0.5),
}


@pytest.mark.parametrize('case', CASES)
def test_the_reference_is_followed_and_exact_grading_is_right(case):
    entries, scores, reference, exact = CASES[case]
    assert graded(entries, scores, 'reference') == reference
    assert graded(entries, scores, 'exact') == pytest.approx(exact, abs=1e-12)


def test_the_recorded_scores_give_the_recorded_accuracies_in_their_order():
    entries = read_choices(RECORDED / 'promptsource_test.jsonl')
    scores = [line['score'] for line in json.loads((RECORDED / 'scores.json').read_text())]
    recorded = json.loads((RECORDED / 'accuracy.json').read_text())
    assert list(accuracy(grade(entries, scores)).items()) == list(recorded.items())


def test_datasets_are_in_the_order_of_their_first_gold_choices():
    entries = choices((0, 'a', 0), dataset='late') + choices((0, 'a', 1), dataset='early')
    entries += choices((0, 'b', 1), dataset='late') + choices((0, 'a', 0), dataset='never')
    assert list(accuracy(grade(entries, [0, 1, 1, 1]))) == ['early', 'late', 'Average']


def test_a_separator_in_a_name_cuts_it_for_the_reference_alone():
    entries = choices((0, 'a', 1), dataset='d|||x') + choices((0, 'b', 1), dataset='d|||y')
    assert accuracy(grade(entries, [1, 1])) == {'d': 1.0, 'Average': 1.0}
    assert accuracy(grade(entries, [1, 1], 'exact')) == {'d|||x': 1.0, 'd|||y': 1.0, 'Average': 1.0}


def test_a_score_that_is_not_a_number_is_refused_with_its_line():
    with pytest.raises(InputError, match='line 2: its score'):
        grade(TWO, [0.5, float('nan')])


def test_faults_are_counted_and_told_in_a_line_each():
    entries = (
        SEVERAL
        + choices((1, 'a', 1), (1, 'b', 0), ('1', 'c', 0))
        + choices((2, 'a', 0))
        + choices((3, 'a', 0), (3, 'a', 1))
    )
    scores = np.array([3, 2, 1, 5, 5, 1, 1, 4, 3], np.float32)
    counts = count_faults(entries, scores)
    assert counts == {
        'several_gold': 1,
        'ties': 1,
        'without_gold': 2,
        'gold_text_on_wrong_row': 1,
        'merged': 2,
        'name_cut': 0,
    }
    lines = describe_faults(counts, 'reference')
    assert lines[0] == (
        '1 question with several right choices: only the last of them counts (--grading exact: each of them is right)'
    )
    assert len(lines) == 5 and '2 questions with no right choice: left out' in lines
    assert 'the reference: only the last of them counts' in describe_faults(counts, 'exact')[0]
    assert describe_faults(count_faults(TWO, np.array([1, 2])), 'reference') == []


GOOD = {
    'dataset_name': 'd',
    'template_name': 't',
    'example_idx': 0,
    'instruction': 'i',
    'response': 'a',
    'label': 1,
}


def written(path, *lines):
    path.write_bytes(
        b''.join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b'\n' for line in lines)
    )
    return path


BAD_ROWS = {
    'not JSON': (b'{"dataset_name": ', 'not JSON'),
    'not an object': (b'[1]', 'expected a JSON object'),
    'not UTF-8': (b'{"instruction": "\xe9"}', 'not UTF-8'),
    'no response': ({key: value for key, value in GOOD.items() if key != 'response'}, 'response is missing'),
    'response a number': ({**GOOD, 'response': 3}, 'response: expected text, found 3'),
    'no label': ({key: value for key, value in GOOD.items() if key != 'label'}, 'label is missing'),
    'label a text': ({**GOOD, 'label': '1'}, 'label: expected the number 1'),
    'label 2': ({**GOOD, 'label': 2}, 'label: expected the number 1'),
    'label null': ({**GOOD, 'label': None}, 'label: expected the number 1'),
    'label NaN': (json.dumps({**GOOD, 'label': float('nan')}).encode(), 'label: expected the number 1'),
    'example_idx a list': ({**GOOD, 'example_idx': [0]}, 'example_idx: expected an integer or text'),
    'dataset_name Average': ({**GOOD, 'dataset_name': 'Average'}, 'dataset_name: Average'),
}


@pytest.mark.parametrize('case', BAD_ROWS)
def test_a_bad_line_is_named_by_file_line_and_field(case, tmp_path):
    line, words = BAD_ROWS[case]
    path = written(tmp_path / 'rows.jsonl', GOOD, line)
    with pytest.raises(InputError) as error:
        read_choices(path)
    assert str(error.value).startswith(f'{path}:2: {words}')


def test_labels_true_and_1_0_are_gold(tmp_path):
    lines = [{**GOOD, 'label': label} for label in (1, 1.0, True, 0, 0.0, False)]
    entries = read_choices(written(tmp_path / 'rows.jsonl', *lines))
    assert [entry.is_gold for entry in entries] == [True, True, True, False, False, False]


def test_a_file_without_choices_or_without_gold_choices_is_refused(tmp_path):
    with pytest.raises(InputError, match='holds no choices'):
        read_choices(written(tmp_path / 'empty.jsonl'))
    with pytest.raises(InputError, match='label: 0 in all 2 lines'):
        read_choices(written(tmp_path / 'none.jsonl', {**GOOD, 'label': 0}, {**GOOD, 'label': False}))
    with pytest.raises(InputError, match=r'near names in .*: none\.jsonl'):
        read_choices(tmp_path / 'nome.jsonl')


def test_the_summary_holds_templates_their_spread_and_an_interval_that_covers_the_mean():
    generator = np.random.default_rng(0)
    verdicts = [
        questions.Verdict('d', template, example_idx, float(generator.random() < p))
        for template, p in (('easy', 0.9), ('hard', 0.4))
        for example_idx in range(400)
        if template == 'easy' or example_idx % 2
    ]
    entry = summarise(verdicts, n_resamples=2000)['d']
    easy, hard = (
        np.mean([verdict.credit for verdict in verdicts if verdict.template_name == name]) for name in ('easy', 'hard')
    )
    assert entry['accuracy'] == pytest.approx((400 * easy + 200 * hard) / 600)
    assert entry['templates_mean'] == pytest.approx((easy + hard) / 2)
    assert entry['templates_std'] == pytest.approx(abs(easy - hard) / 2**0.5)
    assert [entry[key] for key in ('questions', 'examples')] == [600, 400]
    # A binomial's interval is 1.96 standard errors wide on each side.
    half = (entry['templates']['hard']['high'] - entry['templates']['hard']['low']) / 2
    assert half == pytest.approx(1.96 * (hard * (1 - hard) / 200) ** 0.5, rel=0.1)
    assert entry['low'] < entry['accuracy'] < entry['high']


def test_templates_of_one_example_are_drawn_together():
    alike = [questions.Verdict('d', t, e, float(e % 2)) for t in 'abcd' for e in range(50)]
    once = [verdict for verdict in alike if verdict.template_name == 'a']
    assert summarise(alike)['d']['low'] == summarise(once)['d']['low']


def test_a_dataset_of_one_example_has_no_interval_and_no_mean_with_it_has_one():
    one = [questions.Verdict('one', template, 0, 1.0) for template in 'ab']
    many = [questions.Verdict('many', 'a', e, float(e % 2)) for e in range(9)]
    summary = summarise([*one, *many])
    entries = [summary['one'], summary['one']['templates']['a'], summary['Average']]
    assert [(entry['low'], entry['high']) for entry in entries] == [(None, None)] * 3
    assert summary['many']['low'] < summary['many']['high'] and summary['Average']['accuracy'] == pytest.approx(13 / 18)


def test_questions_whose_choices_all_have_one_score_are_counted():
    entries = [*TWO, *choices((1, 'a', 1), (1, 'b', 0), (2, 'a', 1), (2, 'b', 0))]
    entries += choices((3, 'a', 1), (4, 'a', 1), (4, 'a', 0))
    scores = [1.0, 1.0, 2.0, 2.0 + 1e-7, 1.0, 2.0, 3.0, 4.0, 4.0]
    assert questions.count_alike(entries, scores) == (2, 3)


def test_equal_datasets_are_drawn_apart_for_the_average():
    both = [questions.Verdict(d, 't', e, float(e % 2)) for d in 'ab' for e in range(100)]
    summary = summarise(both)
    widths = [entry['high'] - entry['low'] for entry in summary.values()]
    assert widths[2] == pytest.approx(widths[0] / 2**0.5, rel=0.1)


def test_the_published_averages_are_those_of_the_published_tasks():
    published = questions.read_published()
    assert len(published['tasks']) == 11
    for model, average in published['average'].items():
        mean = np.mean([task['accuracy'][model] for task in published['tasks'].values()])
        assert mean == pytest.approx(average, abs=0.07)  # OPT 175B is published as 49.3, its tasks average 49.36


def summary_of(**accuracies):
    entries = {name: {'accuracy': value} for name, value in accuracies.items()}
    return entries | {'Average': {'accuracy': np.mean(list(accuracies.values())), 'low': 0.1, 'high': 0.9}}


def test_missing_tasks_are_missing_and_the_average_is_over_the_shared_ones():
    compared = questions.compare_with_published(
        summary_of(anli_r1=0.3, crows_pairs=0.5, mine=0.7), questions.read_published()
    )
    by_task = {row['task']: row for row in compared}
    assert by_task['ANLI R1']['accuracy'] == 0.3 and by_task['ANLI R1']['Cappy 0.36B'] == 34.3
    assert 'accuracy' not in by_task['CB'] and by_task['CB']['T0 11B'] == 58.5
    assert by_task['mine'] == {'task': 'mine', 'dataset': 'mine', 'accuracy': 0.7}
    assert by_task['Average of these 2']['accuracy'] == pytest.approx(0.4)
    assert by_task['Average of these 2']['T0 11B'] == pytest.approx((42.1 + 24.0) / 2)
    assert 'accuracy' not in by_task['Average of the 11']
    assert by_task['Average of all here']['accuracy'] == pytest.approx(0.5)


def test_all_eleven_tasks_have_the_published_average_beside_their_own():
    names = 'anli_r1 anli_r2 anli_r3 super_glue/cb super_glue/rte story_cloze_2016 wsc.fixed wic winogrande_xl'
    names += ' super_glue_axg crows_pairs'
    compared = questions.compare_with_published(
        summary_of(**dict.fromkeys(names.split(), 0.5)), questions.read_published()
    )
    assert len(compared) == 12 and all(row['accuracy'] == 0.5 for row in compared)
    assert compared[-1]['task'] == 'Average of the 11' and compared[-1]['Cappy 0.36B'] == 56.6
