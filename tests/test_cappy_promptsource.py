"""The PromptSource experiment as a user runs it: the recorded run, its files, both gradings, every bad input."""

import gzip
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import run_main

import cappy_promptsource
from cappy.files.lock import result_lock

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / 'tests' / 'recorded' / 'promptsource'
DATA = RECORDED / 'promptsource_test.jsonl'
MODEL = ROOT / 'tests' / 'recorded' / 'tiny-cappy'
ACCURACY = json.loads((RECORDED / 'accuracy.json').read_text())


def run(*argv):
    """The script in this process -> its exit code."""
    return run_main(cappy_promptsource.main, argv)


def job(*more, data=DATA, model=MODEL):
    return ['--data_file', data, '--model_name_or_path', model, *more]


def scores_in(folder):
    lines = (folder / 'tiny-cappy' / 'promptsource_test.scores.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_scores_are_the_recorded_ones(lines):
    recorded = json.loads((RECORDED / 'scores.json').read_text())
    keys = ('dataset_name', 'template_name', 'example_idx', 'response', 'label')
    assert [[line[key] for key in keys] for line in lines] == [[line[key] for key in keys] for line in recorded]
    # Two implementations, in other frameworks, agreed within 2e-5.
    np.testing.assert_allclose(
        [line['score'] for line in lines], [line['score'] for line in recorded], rtol=0, atol=2e-5
    )


def test_the_recorded_run_gives_its_json_alone_on_standard_output_and_every_score(tmp_path, capsys):
    assert run(*job('--results_dir', tmp_path)) == 0
    out, err = capsys.readouterr()
    assert out == json.dumps(ACCURACY, indent=4) + '\n'
    assert_scores_are_the_recorded_ones(scores_in(tmp_path))
    assert [line['line'] for line in scores_in(tmp_path)] == list(range(1, 312))
    result = json.loads((tmp_path / 'tiny-cappy' / 'promptsource_test.json').read_text())
    assert result['accuracy'] == ACCURACY and result['settings']['grading'] == 'reference'
    assert result['counts']['questions']['several_gold'] == 4 and result['counts']['graded_questions'] == 118
    assert result['counts']['truncated_pairs'] == 8 and result['counts']['unique_pairs'] == 309
    nli = result['summary']['tiny_nli']
    assert nli['templates']['GPT-3 style']['accuracy'] == 0.35 and nli['templates_mean'] == 0.275
    assert nli['low'] < 0.275 < nli['high']
    assert 'ANLI R1' in err and '56.6' in err and 'tiny_wsc' in err
    assert '4 questions with several right choices' in err and '2 questions with no right choice: left out' in err


def test_packed_data_and_a_pipe_give_the_same_result(tmp_path):
    lines = DATA.read_bytes().splitlines(keepends=True)[:60]
    plain, packed, pipe = tmp_path / 'few.jsonl', tmp_path / 'packed' / 'few.jsonl.gz', tmp_path / 'few'
    plain.write_bytes(b''.join(lines))
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(plain.read_bytes(),), daemon=True)
    writer.start()
    results = []
    for number, path in enumerate((plain, packed.with_suffix(''), pipe)):
        assert run(*job('--results_dir', tmp_path / str(number), data=path)) == 0
        result = json.loads((tmp_path / str(number) / 'tiny-cappy' / 'few.json').read_text())
        results.append((result['accuracy'], result['data_sha256'], result['counts']))
    writer.join(timeout=10)
    assert results[0] == results[1] == results[2]


def test_two_shards_give_the_same_json_and_scores(tmp_path, run_python):
    process = run_python('cappy_promptsource.py', *job('--n_model_shards', '2', '--results_dir', tmp_path), n_devices=2)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out) == ACCURACY
    assert_scores_are_the_recorded_ones(scores_in(tmp_path))


def test_exact_grading_differs_where_the_reference_errs_and_both_are_told(tmp_path, capsys):
    assert run(*job('--results_dir', tmp_path, '--grading', 'exact')) == 0
    out, err = capsys.readouterr()
    accuracy = json.loads(out)
    assert accuracy['tiny_story_cloze'] == pytest.approx(0.3875) and accuracy['tiny_nli'] == ACCURACY['tiny_nli']
    assert f'graded as exact: Average {100 * accuracy["Average"]:.2f}; as reference: 38.29' in err
    result = json.loads((tmp_path / 'tiny-cappy' / 'promptsource_test.json').read_text())
    assert result['accuracy_by_grading']['reference'] == ACCURACY


def test_without_a_results_dir_nothing_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*job()) == 0
    assert json.loads(capsys.readouterr().out) == ACCURACY
    assert list(tmp_path.iterdir()) == []


def test_an_existing_result_is_given_again_and_one_of_other_settings_is_an_error(tmp_path, capsys):
    assert run(*job('--results_dir', tmp_path)) == 0
    path = tmp_path / 'tiny-cappy' / 'promptsource_test.json'
    before = path.stat().st_mtime_ns
    capsys.readouterr()
    assert run(*job('--results_dir', tmp_path)) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == ACCURACY and f'Result already exists in {path}. Skipped' in err
    assert run(*job('--results_dir', tmp_path, '--grading', 'exact')) == 1
    out, err = capsys.readouterr()
    assert out == '' and "grading 'reference' (asked for: 'exact')" in err and '--overwrite' in err
    assert path.stat().st_mtime_ns == before
    assert run(*job('--results_dir', tmp_path, '--grading', 'exact', '--overwrite')) == 0
    assert json.loads(path.read_text())['settings']['grading'] == 'exact'


def test_other_rows_under_the_same_name_are_not_taken_for_the_result(tmp_path, capsys):
    data = tmp_path / 'rows.jsonl'
    data.write_bytes(b''.join(DATA.read_bytes().splitlines(keepends=True)[:60]))
    assert run(*job('--results_dir', tmp_path / 'out', data=data)) == 0
    data.write_bytes(b''.join(DATA.read_bytes().splitlines(keepends=True)[:57]))
    assert run(*job('--results_dir', tmp_path / 'out', data=data)) == 1
    assert 'data_sha256' in capsys.readouterr().err


def refused(capsys, *argv):
    """The one line of a run that is refused."""
    assert run(*argv) == 1
    out, err = capsys.readouterr()
    assert out == '' and 'Traceback' not in err
    return err.strip().splitlines()[-1]


def test_bad_rows_are_named_before_a_model_is_looked_for(tmp_path, capsys):
    data = tmp_path / 'rows.jsonl'
    argv = job('--results_dir', tmp_path / 'out', data=data, model='no-such-model')
    lines = DATA.read_text().splitlines()
    data.write_text('\n'.join([*lines[:4], '{"dataset_name": "d"}']))
    assert refused(capsys, *argv) == (f'error: {data}:5: template_name is missing; the line has dataset_name')
    data.write_text('\n'.join(line.replace('"label": 1', '"label": 0') for line in lines))
    assert refused(capsys, *argv).startswith(f'error: {data}: label: 0 in all 311 lines')
    assert refused(capsys, *argv, '--sent1_key', 'choice').startswith(f'error: {data}:1: choice is missing')
    assert refused(capsys, *job(data=tmp_path / 'row.jsonl')).startswith(f'error: {tmp_path / "row.jsonl"}: no such')
    assert not (tmp_path / 'out').exists()


def test_bad_flags_and_folders_are_named_and_leave_nothing(tmp_path, capsys):
    assert 'did you mean --grading' in refused(capsys, *job('--gradin', 'exact'))
    assert "--grading: expected 'reference' or 'exact'" in refused(capsys, *job('--grading', 'right'))
    assert '--max_length 640' in refused(capsys, *job('--max_length', '640', '--results_dir', tmp_path / 'out'))
    assert '--n_model_shards 3' in refused(capsys, *job('--n_model_shards', '3'))
    assert 'no-such-model' in refused(capsys, *job('--results_dir', tmp_path / 'out', model='no-such-model'))
    assert [path for path in (tmp_path / 'out').rglob('*') if path.is_file()] == []
    (tmp_path / 'file').write_text('')
    assert str(tmp_path / 'file') in refused(capsys, *job('--results_dir', tmp_path / 'file'))


def test_a_second_process_does_not_repeat_a_running_one(tmp_path, capsys):
    paths = cappy_promptsource.ChoicePaths(tmp_path, 'tiny-cappy', 'promptsource_test')
    with result_lock(paths):
        assert 'works on this result' in refused(capsys, *job('--results_dir', tmp_path))
    assert [path for path in tmp_path.rglob('*') if path.is_file()] == []


def test_a_table_shows_what_is_missing_as_a_dash():
    entry = {'accuracy': 0.5, 'low': 0.25, 'high': 0.75, 'templates_mean': 0.5, 'templates_std': 0.125}
    lines = cappy_promptsource.accuracy_table({'cb': entry, 'Average': {**entry, 'accuracy': 0.25}}).splitlines()
    assert lines[0].split()[:3] == ['task', 'here', '95%'] and lines[0].endswith('Cappy 0.36B')
    cells = {line.split('  ')[0]: line.split(maxsplit=1)[1].split() for line in lines}
    assert ' '.join(cells['CB']) == '50.0 25.0 to 75.0 50.0 ± 12.5 24.6 43.2 38.9 56.4 58.5 59.4'
    assert ' '.join(cells['RTE']) == '- - - 56.4 67.8 54.0 73.4 80.2 71.9'
