"""scripts/present_bigbench_baselines.py: the reference's rows and ours, and remarks on what is missing."""

import csv
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run_main
from rouge_score.rouge_scorer import RougeScorer

from cappy.cli import process_pool

ROOT = Path(__file__).parents[1]
GENS = ROOT / 'tests' / 'recorded' / 'inputs' / 'bigbench_flan_gens'
_spec = importlib.util.spec_from_file_location('baselines_script', ROOT / 'scripts' / 'present_bigbench_baselines.py')
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)

TASKS = ['tiny_tense', 'tiny_arithmetic']
DECODINGS = ['beam4', 'sampling', 'temp0.9', 'topk40', 'topp0.95']
FIRSTS = [f'first of {name}' for name in DECODINGS]
SELF_SCORES = ['self-score sum', 'self-score mean']
ROWS = ['random candidate', *FIRSTS, *SELF_SCORES, 'consensus', 'oracle', 'candidates per example']


def present(capsys, *argv):
    """(exit code, standard output, standard error) of the script."""
    return run_main(script.main, argv), *capsys.readouterr()


def table(capsys, *argv):
    """({generator: {row: value}}, standard error)."""
    code, out, err = present(capsys, *argv, '--format', 'json')
    assert code == 0, err
    rows = json.loads(out)
    return {name: {row['pick']: row[name] for row in rows} for name in rows[0] if name != 'pick'}, err


def write_tasks(folder, tasks):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'subset_names.json').write_text(json.dumps(tasks))
    return folder


def sample(response, likelihood=None):
    entry = {'response': response}
    return entry if likelihood is None else entry | {f'log_likelihood_{w}': likelihood for w in ('sum', 'mean')}


def write_gens(folder, generator, task, examples):
    """examples: [(reference, {decoding: [sample]})]"""
    path = folder / generator / f'{task}_validation.jsonl'
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {'example_idx': n, 'instruction': f'i{n}', 'references': [reference], 'flan_samples': samples}
        for n, (reference, samples) in enumerate(examples)
    ]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return path


@pytest.fixture
def made(tmp_path):
    """Flags of a folder with two generators, tasks one and two."""
    gens = tmp_path / 'gens'
    for generator in ('flan-t5-xl', 'other-llm'):
        for task in ('one', 'two'):
            right = ('a b c d', {'beam4': [sample('a b c d', -1.0)], 'sampling': [sample('x', -2.0)] * 3})
            half = ('a b c d', {'beam4': [sample('a b', -2.0)], 'sampling': [sample('x', -1.0), sample('a b', -2.0)]})
            write_gens(gens, generator, task, [right, half])
    data = write_tasks(tmp_path / 'data', ['one', 'two'])
    return ['--bigbench_gen_dir', gens, '--data_dir', data]


def reference_rows(task):
    """The seven rows of the reference for one task, in plain code with rouge_score."""
    path = GENS / 'flan-t5-tiny' / f'{task}_validation.jsonl'
    examples = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
    scorer = RougeScorer(['rougeL'], use_stemmer=True)

    def mean(pick):
        texts = [(example['references'], pick(example['flan_samples'])['response']) for example in examples]
        return np.mean([scorer.score_multi(references, text)['rougeL'].fmeasure for references, text in texts])

    rows = {f'first of {name}': mean(lambda samples, name=name: samples[name][0]) for name in DECODINGS}
    for which in ('sum', 'mean'):
        key = f'log_likelihood_{which}'
        rows[f'self-score {which}'] = mean(
            lambda samples, key=key: max((one for name in DECODINGS for one in samples[name]), key=lambda one: one[key])
        )
    return rows


def test_the_first_rows_are_the_references_to_the_last_digit(tmp_path, capsys):
    data = write_tasks(tmp_path, TASKS)
    found, err = table(capsys, '--bigbench_gen_dir', GENS, '--data_dir', data)
    by_task = [reference_rows(task) for task in TASKS]
    expected = {name: np.mean([rows[name] for rows in by_task]) for name in by_task[0]}
    assert list(found) == ['flan-t5-tiny'] and list(found['flan-t5-tiny']) == ROWS
    assert {name: found['flan-t5-tiny'][name] for name in expected} == expected
    means, ties = err.splitlines()
    assert means == 'means over 2 tasks'
    tied = 'picked by consensus in 52 (97.9 over ties) of 60 examples'
    assert ties == f'flan-t5-tiny: the first of several highest values is {tied}'


def test_the_table_has_one_column_per_generator_and_rougeL_times_100(made, capsys):
    code, out, _ = present(capsys, *made)
    assert code == 0
    assert out.splitlines() == [
        'pick                    flan-t5-xl  other-llm',
        '----------------------  ----------  ---------',
        'random candidate              34.7       34.7',
        'first of beam4                83.3       83.3',
        'first of sampling              0.0        0.0',
        'self-score sum                50.0       50.0',
        'self-score mean               50.0       50.0',
        'consensus                     33.3       33.3',
        'oracle                        83.3       83.3',
        'candidates per example         2.0        2.0',
    ]


def test_a_missing_task_is_shown_and_left_out_for_every_generator(made, capsys, tmp_path):
    whole, _ = table(capsys, *made)
    write_gens(tmp_path / 'gens', 'flan-t5-xl', 'two', [('a', {'beam4': [sample('a', -1.0)]})])
    (tmp_path / 'gens' / 'other-llm' / 'two_validation.jsonl').unlink()
    found, err = table(capsys, *made)
    assert found == whole  # of task one alone, whose values are those of both tasks
    assert err.splitlines() == [
        'means over 1 task',
        'other-llm: no samples of two, left out for every generator',
        'flan-t5-xl/two: 1 of 1 validation examples have a single candidate, so that there is nothing to pick',
    ]
    alone, err = table(capsys, *made, '--gen_models', 'flan-t5-xl')
    assert alone['flan-t5-xl']['first of beam4'] == pytest.approx((0.833333 + 1) / 2, abs=1e-6)
    assert 'means over 2 tasks' in err
    code, out, err = present(capsys, *made, '--by_task')
    assert out.splitlines()[1].split()[:5] == ['task', 'generator', 'examples', 'candidate', 'beam4']
    rows = [line.split() for line in out.splitlines()[3:]]
    assert [row[:5] for row in rows] == [
        ['one', 'flan-t5-xl', '2', '34.7', '83.3'],
        ['one', 'other-llm', '2', '34.7', '83.3'],
        ['two', 'flan-t5-xl', '1', '100.0', '100.0'],
        ['two', 'other-llm', '-', '-', '-'],
    ]
    assert 'other-llm: no samples of two\n' in err


def test_likelihoods_that_are_missing_or_no_numbers_are_named_and_never_best(made, capsys, tmp_path):
    nan = sample('x', float('nan'))
    write_gens(tmp_path / 'gens', 'other-llm', 'one', [('a', {'s': [nan, sample('a', -9.0)]})])
    write_gens(tmp_path / 'gens', 'other-llm', 'two', [('a', {'s': [sample('a', -9.0), sample('x')]})])
    argv = [*made, '--gen_models', 'other-llm']
    found, err = table(capsys, *argv)
    assert found['other-llm']['self-score sum'] == 1
    assert 'other-llm: 2 samples of one, two without a finite log-likelihood (sum); self-score sum skips them' in err
    write_gens(tmp_path / 'gens', 'other-llm', 'two', [('a', {'s': [nan, sample('x')]})])
    found, err = table(capsys, *argv)
    assert found['other-llm']['self-score sum'] is None and found['other-llm']['first of s'] == 0
    assert 'other-llm: self-score sum is missing, since two has examples without a log-likelihood' in err
    _, out, _ = present(capsys, *argv)
    assert out.splitlines()[4].split() == ['self-score', 'sum', '-']


def test_a_file_that_cannot_be_read_is_named_and_counted_as_missing(made, capsys, tmp_path):
    bad = tmp_path / 'gens' / 'other-llm' / 'two_validation.jsonl'
    bad.write_text('{"example_idx": 0')
    found, err = table(capsys, *made)
    assert f'{bad}:1: not JSON' in err and 'counted as missing' in err and bad.exists()
    assert found['flan-t5-xl']['first of beam4'] == pytest.approx(0.833333, abs=1e-6)


def test_files_of_other_examples_are_said(made, capsys, tmp_path):
    write_gens(tmp_path / 'gens', 'other-llm', 'two', [('a', {'beam4': [sample('a', -1.0)]})])
    assert 'the generators have different examples of two' in table(capsys, *made)[1]


def test_tasks_and_generators_are_chosen_and_near_names_offered(made, capsys, tmp_path):
    write_gens(tmp_path / 'gens', 'other-llm', 'three', [('a', {'beam4': [sample('a', -1.0)]})])
    found, _ = table(capsys, *made, '--tasks', 'three', '--gen_models', 'other-llm')
    assert found['other-llm']['first of beam4'] == 1
    for argv, words in (
        (['--tasks', 'tow'], '--tasks tow: no such task; near names in the list of tasks: two'),
        (['--gen_models', 'flan-t5-xxl'], '--gen_models flan-t5-xxl: no such generator; near names in'),
        (['--tasks', 'three', '--gen_models', 'flan-t5-xl'], '--tasks three: no such task'),
        (['--data_dir', tmp_path / 'dat'], 'no such file'),
        (['--bigbench_gen_dir', tmp_path / 'gen'], 'near names in'),
        (['--format', 'html'], '--format: expected'),
        (['--n_workers', '0'], 'n_workers 0: expected 1 or more'),
    ):
        kept = [word for word in zip(made[::2], made[1::2], strict=True) if word[0] != argv[0]]
        code, out, err = present(capsys, *(word for pair in kept for word in pair), *argv)
        assert (code, out) == (1, '') and words in err and len(err.splitlines()) == 1


def test_without_a_choice_the_tasks_are_those_with_samples(made, capsys, tmp_path):
    data = write_tasks(tmp_path / 'others', ['tense', 'two', 'gem'])
    argv = [*made[:2], '--data_dir', data, '--by_task', '--format', 'json']
    code, out, err = present(capsys, *argv)
    assert (code, [row['task'] for row in json.loads(out)]) == (0, ['two', 'two', 'one', 'one'])
    assert err == f'2 of the 3 tasks of {data}/subset_names.json have no samples; --tasks all names them\n'
    code, out, err = present(capsys, *argv, '--tasks', 'all')
    assert [row['task'] for row in json.loads(out)][::2] == ['tense', 'two', 'gem', 'one']
    assert err == 'flan-t5-xl: no samples of tense, gem\nother-llm: no samples of tense, gem\n'
    write_tasks(tmp_path / 'others', ['tense'])
    assert present(capsys, *argv)[2] == ''  # who has none of the listed tasks misses none


def test_a_generator_without_samples_of_a_task_says_what_there_is(made, capsys, tmp_path):
    data = write_tasks(tmp_path / 'others', ['tense'])
    code, _, err = present(capsys, *made[:2], '--data_dir', data, '--tasks', 'tense')
    assert code == 1 and 'has validation samples of one, two; none of tense' in err


def test_a_table_by_task_has_all_picks_where_they_are_asked_for(made, capsys):
    headers = {}
    for columns in ('main', 'all'):
        argv = [*made, '--gen_models', 'other-llm', '--by_task', '--columns', columns, '--format', 'markdown']
        headers[columns] = [cell.strip() for cell in present(capsys, *argv)[1].splitlines()[0].strip('| ').split('|')]
    main = ['random candidate', 'first of beam4', 'self-score sum', 'consensus', 'oracle', 'candidates per example']
    assert headers['main'] == ['task', 'examples', *main]
    everything = [*main[:2], 'first of sampling', *SELF_SCORES, *main[3:]]
    assert headers['all'] == ['task', 'examples', *everything]


def test_every_format_holds_the_same_numbers(made, capsys):
    outputs = {style: present(capsys, *made, '--format', style)[1] for style in ('markdown', 'latex', 'csv', 'json')}
    rows = json.loads(outputs['json'])
    assert rows == [
        {key: value if key == 'pick' else float(value) for key, value in row.items()}
        for row in csv.DictReader(io.StringIO(outputs['csv']))
    ]
    assert '| first of beam4         |       83.3 |      83.3 |' in outputs['markdown']
    assert r'first of beam4         &       83.3 &      83.3 \\' in outputs['latex']


def test_several_processes_give_what_one_does(made, capsys, monkeypatch):
    one = present(capsys, *made, '--by_task', '--format', 'json')
    monkeypatch.setattr(process_pool, 'BYTES_WORTH_A_PROCESS', 1)
    assert present(capsys, *made, '--by_task', '--format', 'json', '--n_workers', '2') == one


def test_the_script_runs_as_a_command(made, run_python):
    flags = ['--bigbench_data_dir' if word == '--data_dir' else word for word in made]  # the reference's name
    process = run_python('scripts/present_bigbench_baselines.py', *flags, '--tasks', 'one', '--format', 'csv')
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out.splitlines()[:2], err) == (
        0,
        ['pick,flan-t5-xl,other-llm', 'random candidate,0.3472222222222222,0.3472222222222222'],
        'means over 1 task\n',
    )
