"""scripts/present_bigbench_baselines.py: the reference's rows, ours beside them, and what is missing said."""

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
ROWS = [*DECODINGS, 'self_score_sum', 'self_score_mean', 'random', 'consensus', 'oracle', 'distinct_samples']


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
    return ['--bigbench_gen_dir', gens, '--bigbench_data_dir', data]


def reference_rows(task):
    """The seven rows of the reference for one task, in plain code with rouge_score."""
    path = GENS / 'flan-t5-tiny' / f'{task}_validation.jsonl'
    examples = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
    scorer = RougeScorer(['rougeL'], use_stemmer=True)

    def mean(pick):
        texts = [(example['references'], pick(example['flan_samples'])['response']) for example in examples]
        return np.mean([scorer.score_multi(references, text)['rougeL'].fmeasure for references, text in texts])

    rows = {name: mean(lambda samples, name=name: samples[name][0]) for name in DECODINGS}
    for which in ('sum', 'mean'):
        key = f'log_likelihood_{which}'
        rows[f'self_score_{which}'] = mean(
            lambda samples, key=key: max((one for name in DECODINGS for one in samples[name]), key=lambda one: one[key])
        )
    return rows


def test_the_first_rows_are_the_references_to_the_last_digit(tmp_path, capsys):
    data = write_tasks(tmp_path, TASKS)
    found, err = table(capsys, '--bigbench_gen_dir', GENS, '--bigbench_data_dir', data)
    by_task = [reference_rows(task) for task in TASKS]
    expected = {name: np.mean([rows[name] for rows in by_task]) for name in by_task[0]}
    assert list(found) == ['flan-t5-tiny'] and list(found['flan-t5-tiny']) == ROWS
    assert {name: found['flan-t5-tiny'][name] for name in expected} == expected
    assert err == 'means over 2 of 2 tasks\n'


def test_the_table_has_a_generator_a_column_and_six_decimals(made, capsys):
    code, out, _ = present(capsys, *made)
    assert code == 0
    assert out.splitlines() == [
        '                  flan-t5-xl  other-llm',
        '----------------  ----------  ---------',
        'beam4               0.833333   0.833333',
        'sampling            0.000000   0.000000',
        'self_score_sum      0.500000   0.500000',
        'self_score_mean     0.500000   0.500000',
        'random              0.347222   0.347222',
        'consensus           0.333333   0.333333',
        'oracle              0.833333   0.833333',
        'distinct_samples    2.000000   2.000000',
    ]


def test_a_missing_task_is_shown_and_left_out_for_every_generator(made, capsys, tmp_path):
    whole, _ = table(capsys, *made)
    write_gens(tmp_path / 'gens', 'flan-t5-xl', 'two', [('a', {'beam4': [sample('a', -1.0)]})])
    (tmp_path / 'gens' / 'other-llm' / 'two_validation.jsonl').unlink()
    found, err = table(capsys, *made)
    assert found == whole  # of task one alone, which is like the whole
    assert err.splitlines() == [
        'means over 1 of 2 tasks',
        'other-llm: no samples of two, left out for every generator',
    ]
    alone, err = table(capsys, *made, '--gen_models', 'flan-t5-xl')
    assert alone['flan-t5-xl']['beam4'] == pytest.approx((0.833333 + 1) / 2, abs=1e-6)
    assert 'means over 2 of 2' in err
    code, out, err = present(capsys, *made, '--by_task')
    rows = [line.split() for line in out.splitlines()[2:]]
    assert [row[:4] for row in rows] == [
        ['one', 'flan-t5-xl', '2', '0.8333'],
        ['one', 'other-llm', '2', '0.8333'],
        ['two', 'flan-t5-xl', '1', '1.0000'],
        ['two', 'other-llm', '-', '-'],
    ]
    assert 'other-llm: no samples of two\n' in err


def test_likelihoods_that_are_missing_or_no_numbers_are_named_and_never_best(made, capsys, tmp_path):
    nan = sample('x', float('nan'))
    write_gens(tmp_path / 'gens', 'other-llm', 'one', [('a', {'s': [nan, sample('a', -9.0)]})])
    write_gens(tmp_path / 'gens', 'other-llm', 'two', [('a', {'s': [sample('a', -9.0), sample('x')]})])
    argv = [*made, '--gen_models', 'other-llm']
    found, err = table(capsys, *argv)
    assert found['other-llm']['self_score_sum'] == 1
    assert 'other-llm: 2 samples without a log-likelihood (sum) or with one that is no number, in one, two; ' in err
    write_gens(tmp_path / 'gens', 'other-llm', 'two', [('a', {'s': [nan, sample('x')]})])
    found, err = table(capsys, *argv)
    assert found['other-llm']['self_score_sum'] is None and found['other-llm']['s'] == 0
    assert 'other-llm: self_score_sum is missing: examples without a log-likelihood in two' in err
    _, out, _ = present(capsys, *argv)
    assert out.splitlines()[3].split() == ['self_score_sum', '-']


def test_a_file_that_cannot_be_read_is_named_and_counted_as_missing(made, capsys, tmp_path):
    bad = tmp_path / 'gens' / 'other-llm' / 'two_validation.jsonl'
    bad.write_text('{"example_idx": 0')
    found, err = table(capsys, *made)
    assert f'{bad}:1: not JSON' in err and 'counted as missing' in err and bad.exists()
    assert found['flan-t5-xl']['beam4'] == pytest.approx(0.833333, abs=1e-6)


def test_files_of_other_examples_are_said(made, capsys, tmp_path):
    write_gens(tmp_path / 'gens', 'other-llm', 'two', [('a', {'beam4': [sample('a', -1.0)]})])
    assert 'the generators have other examples of two' in table(capsys, *made)[1]


def test_tasks_and_generators_are_chosen_and_near_names_offered(made, capsys, tmp_path):
    write_gens(tmp_path / 'gens', 'other-llm', 'three', [('a', {'beam4': [sample('a', -1.0)]})])
    found, _ = table(capsys, *made, '--tasks', 'three', '--gen_models', 'other-llm')
    assert found['other-llm']['beam4'] == 1
    for argv, words in (
        (['--tasks', 'tow'], '--tasks tow: no such task; near names in the list of tasks: two'),
        (['--gen_models', 'flan-t5-xxl'], '--gen_models flan-t5-xxl: no such generator; near names in'),
        (['--gen_models', 'flan-t5-xl,'], 'an empty name'),
        (['--tasks', 'three', '--gen_models', 'flan-t5-xl'], '--tasks three: no such task'),
        (['--bigbench_data_dir', tmp_path / 'dat'], 'no such file'),
        (['--bigbench_gen_dir', tmp_path / 'gen'], 'near names in'),
        (['--format', 'html'], '--format: expected'),
        (['--n_workers', '0'], 'n_workers 0: expected 1 or more'),
    ):
        kept = [word for word in zip(made[::2], made[1::2], strict=True) if word[0] != argv[0]]
        code, out, err = present(capsys, *(word for pair in kept for word in pair), *argv)
        assert (code, out) == (1, '') and words in err and len(err.splitlines()) == 1


def test_a_generator_without_any_of_the_tasks_says_what_there_is(made, capsys, tmp_path):
    data = write_tasks(tmp_path / 'others', ['tense'])
    code, _, err = present(capsys, *made[:2], '--bigbench_data_dir', data)
    assert code == 1 and 'has no samples of tense; there are one, two: choose with --tasks' in err


def test_every_format_holds_the_same_numbers(made, capsys):
    outputs = {style: present(capsys, *made, '--format', style)[1] for style in ('markdown', 'latex', 'csv', 'json')}
    rows = json.loads(outputs['json'])
    assert rows == [
        {key: value if key == 'pick' else float(value) for key, value in row.items()}
        for row in csv.DictReader(io.StringIO(outputs['csv']))
    ]
    assert '| beam4            |   0.833333 |  0.833333 |' in outputs['markdown']
    assert r'self\_score\_sum' in outputs['latex']


def test_several_processes_give_what_one_does(made, capsys, monkeypatch):
    one = present(capsys, *made, '--by_task', '--format', 'json')
    monkeypatch.setattr(process_pool, 'BYTES_WORTH_A_PROCESS', 1)
    assert present(capsys, *made, '--by_task', '--format', 'json', '--n_workers', '2') == one


def test_the_script_runs_as_a_command(made, run_python):
    process = run_python('scripts/present_bigbench_baselines.py', *made, '--tasks', 'one', '--format', 'csv')
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out.splitlines()[:2], err) == (
        0,
        ['pick,flan-t5-xl,other-llm', 'beam4,0.8333333333333333,0.8333333333333333'],
        'means over 1 of 1 tasks\n',
    )
