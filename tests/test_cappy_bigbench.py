"""The main experiment as a user runs it: the recorded run to its files, every bad input, stopping and going on."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import run_main

import cappy_bigbench
from cappy.errors import InputError
from cappy.files.lock import result_lock
from cappy.files.updates import read_updates
from cappy.model import model_files
from cappy.study import results

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / 'tests' / 'recorded'
GENS = RECORDED / 'inputs' / 'bigbench_flan_gens'
MODEL = RECORDED / 'tiny-cappy'
# The flags of the recorded run (tests/recorded/README.md).
RECORDED_FLAGS = ['--train_size', '512', '--accumulate_grad_batches', '2', '--learning_rate', '5e-5']


def run(*argv):
    """The script in this process -> its exit code."""
    return run_main(cappy_bigbench.main, argv)


def job(results_dir, task='tiny_tense', gens=GENS, model=MODEL):
    return [
        *('--bigbench_gen_dir', gens, '--bigbench_gen_model', 'flan-t5-tiny', '--bigbench_subset_name', task),
        *('--model_name_or_path', model, '--results_dir', results_dir),
    ]


def example(number, **changes):
    fields = {
        'dataset': 'colours',
        'example_idx': number,
        'instruction': f'Name colour {number}.',
        'references': ['red'],
        'flan_samples': {'beam4': [{'response': 'red'}], 'sampling': [{'response': 'blue'}, {'response': ''}]},
    }
    return {key: value for key, value in {**fields, **changes}.items() if value is not None}


def written(folder, train=None, validation=None):
    """Candidate files of the task `colours` in folder/flan-t5-tiny -> folder. Lines are objects, or raw bytes."""
    place = folder / 'flan-t5-tiny'
    place.mkdir(parents=True)
    for split, lines in (('train', train), ('validation', validation)):
        lines = [example(0), example(1)] if lines is None else lines
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (place / f'colours_{split}.jsonl').write_bytes(b''.join(line + b'\n' for line in raw))
    return folder


def test_a_scorer_that_cannot_be_saved_costs_neither_the_result_nor_the_checkpoint(
    tmp_path, capsys, caplog, monkeypatch
):
    def fail(directory, *rest, **options):
        raise InputError(f'{directory}: cannot be written (No space left on device); free some space')

    argv = [*job(tmp_path / 'out', 'colours', written(tmp_path / 'gens')), '--train_size', '4', '--nocompare_before']
    argv += ['--per_device_batch_size', '4', '--accumulate_grad_batches', '1', '--checkpoint_every', '1']
    argv += ['--save_dir', tmp_path / 'saved']
    with monkeypatch.context() as patch:
        patch.setattr(model_files, 'write_model', fail)
        assert run(*argv) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    paths = results.ResultPaths(tmp_path / 'out', 'flan-t5-tiny', 'colours')
    assert 'saved: cannot be written (No space' in message and f'The result is there, {paths.result}; delete' in message
    first = results.read_result(paths.result)
    assert paths.candidates.exists() and paths.updates.exists() and not (tmp_path / 'saved').exists()
    paths.result.unlink()
    assert run(*argv) == 0 and 'continuing after update 0' in caplog.text
    assert (tmp_path / 'saved' / 'model.safetensors').exists() and not paths.checkpoint.exists()
    assert results.read_result(paths.result)['rougeL'] == first['rougeL']


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize('task', ['tiny_tense', pytest.param('tiny_arithmetic', marks=pytest.mark.slow)])
def test_the_recorded_run_gives_the_recorded_picks_and_rougeL_in_its_three_files(task, tmp_path, capsys):
    assert run(*job(tmp_path, task), *RECORDED_FLAGS, '--nocompare_before') == 0
    recorded = json.loads((RECORDED / 'bigbench' / f'{task}.result.json').read_text())
    paths = results.ResultPaths(tmp_path, 'flan-t5-tiny', task)
    result = results.read_result(paths.result)
    assert result['rougeL'] == pytest.approx(recorded['rougeL'], abs=1e-6)
    picked = results.read_candidates(paths.candidates)
    assert [line['candidates'][line['pick']]['response'] for line in picked] == [
        one['pred'] for one in recorded['per_example']
    ]
    np.testing.assert_allclose([line['rougeL'] for line in picked], [one['rougeL'] for one in recorded['per_example']])
    with open(paths.updates) as file:
        updates = list(csv.DictReader(file))
    assert len(updates) == 32 and updates[0]['learning_rate'] == '0.0' and updates[1]['pairs'] == '16'
    assert result['counts']['samples'] == 510
    assert files_in(tmp_path) == [f'flan-t5-tiny/{task}{end}' for end in ('.candidates.jsonl', '.json', '.train.csv')]
    assert f'Cappy + flan-t5-tiny on {task}: {100 * recorded["rougeL"]:.2f} (rougeL x 100)' in capsys.readouterr().out


def test_an_existing_result_is_left_alone_and_said_with_exit_code_0(tmp_path, capsys):
    place = tmp_path / 'flan-t5-tiny' / 'tiny_tense.json'
    place.parent.mkdir()
    place.write_text('{"rougeL": 0.25, "settings": {"learning_rate": 1e-05}}')
    assert run(*job(tmp_path)) == 0
    out = capsys.readouterr().out
    assert f'Result already exists in {place}. Skipped' in out
    assert 'learning_rate 1e-05 (asked for: 2e-05)' in out and '--overwrite' in out
    assert json.loads(place.read_text())['rougeL'] == 0.25


BAD_LINES = {
    'not JSON': (b'{"example_idx": 1,}', ['colours_train.jsonl:2', 'JSON']),
    'cut off': (b'{"example_idx": 1, "instruction": "Na', ['colours_train.jsonl:2', 'JSON']),
    'not an object': (b'[1, 2]', ['colours_train.jsonl:2', 'object']),
    'not UTF-8': (b'{"example_idx": 1, "instruction": "caf\xe9"}', ['colours_train.jsonl:2', 'UTF-8']),
    'no references': (example(1, references=None), ['colours_train.jsonl:2', 'references']),
    'empty references': (example(1, references=[]), ['colours_train.jsonl:2', 'references']),
    'a string for references': (example(1, references='red'), ['colours_train.jsonl:2', 'references', 'list']),
    'no samples': (example(1, flan_samples=None), ['colours_train.jsonl:2', 'flan_samples']),
    'empty samples': (example(1, flan_samples={'beam4': []}), ['colours_train.jsonl:2', 'flan_samples']),
    'a sample without response': (
        example(1, flan_samples={'beam4': [{'text': 'red'}]}),
        ['colours_train.jsonl:2', 'response'],
    ),
    'a duplicate example_idx': (example(0), ['colours_train.jsonl:2', 'example_idx']),
}


@pytest.mark.parametrize('case', BAD_LINES)
def test_a_bad_line_is_one_line_of_error_and_leaves_nothing(case, tmp_path, capsys):
    line, words = BAD_LINES[case]
    gens = written(tmp_path / 'gens', train=[example(0), line])
    assert_refused(capsys, tmp_path / 'out', words, *job(tmp_path / 'out', 'colours', gens))


def assert_refused(capsys, results_dir, words, *argv):
    """The script ends with 1 and one line on standard error that holds the words; no file is left."""
    assert run(*argv) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith('error: ')
    for word in words:
        assert word in message, message
    assert 'Traceback' not in message
    assert not results_dir.is_dir() or files_in(results_dir) == []


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_an_empty_split_is_named(split, tmp_path, capsys):
    gens = written(tmp_path / 'gens', **{split: []})
    assert_refused(
        capsys, tmp_path / 'out', [f'colours_{split}.jsonl', 'empty'], *job(tmp_path / 'out', 'colours', gens)
    )


def test_missing_folders_and_files_are_named_with_near_ones(tmp_path, capsys):
    gens = written(tmp_path / 'gens')
    out = tmp_path / 'out'
    assert_refused(capsys, out, [str(tmp_path / 'gone')], *job(out, 'colours', tmp_path / 'gone'))
    assert_refused(capsys, out, ['colors_train.jsonl', 'colours'], *job(out, 'colors', gens))
    wrong = ['flan-t5-tinny' if word == 'flan-t5-tiny' else word for word in job(out, 'colours', gens)]
    assert_refused(capsys, out, ['flan-t5-tinny', 'flan-t5-tiny'], *wrong)
    assert_refused(capsys, out, ['no-such-model'], *job(out, 'colours', gens, tmp_path / 'no-such-model'))


BAD_FLAGS = {
    'misspelt': (['--trainsize', '5'], ['trainsize', 'train_size']),
    'repeated': (['--seed', '1', '--seed', '2'], ['--seed', 'twice']),
    'ill-typed': (['--train_size', 'many'], ['--train_size', 'integer', 'many']),
    'unknown choice': (['--lr_schedule', 'cosine'], ['--lr_schedule', 'corrected', 'cosine']),
    'train_size below an update': (['--train_size', '100'], ['--train_size 100', '128']),
    'max_length beyond the positions': (['--max_length', '640', '--train_size', '128'], ['--max_length 640', '512']),
    'shards that do not divide devices': (['--n_model_shards', '3', '--train_size', '128'], ['--n_model_shards 3']),
    'no positive rate': (['--learning_rate', '0.0', '--train_size', '128'], ['--learning_rate']),
}


@pytest.mark.parametrize('case', BAD_FLAGS)
def test_a_bad_flag_is_named_before_any_work(case, tmp_path, capsys):
    argv, words = BAD_FLAGS[case]
    assert_refused(capsys, tmp_path, words, *job(tmp_path), *argv)


def test_a_checkpoint_that_does_not_fit_its_config_names_the_tensor(tmp_path, capsys):
    model = tmp_path / 'model'
    model.mkdir()
    for file in MODEL.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / 'config.json').read_text())
    (model / 'config.json').write_text(json.dumps({**config, 'intermediate_size': 128}))
    words = ['intermediate.dense', '256', '128']
    assert_refused(capsys, tmp_path / 'out', words, *job(tmp_path / 'out', model=model), '--train_size', '128')


def test_a_results_folder_that_cannot_be_written_is_named_before_training(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert run(*job(tmp_path / 'file' / 'results'), '--train_size', '128') == 1
    error = capsys.readouterr().err
    assert str(tmp_path / 'file') in error and 'adapting' not in error


def test_a_second_process_does_not_repeat_a_running_one(tmp_path, capsys):
    with result_lock(results.ResultPaths(tmp_path, 'flan-t5-tiny', 'tiny_tense')):
        assert run(*job(tmp_path), '--train_size', '128') == 1
        assert f'process {os.getpid()}' in capsys.readouterr().err
    assert files_in(tmp_path) == []


def test_a_result_that_appears_while_this_process_starts_is_not_made_again(tmp_path, capsys, monkeypatch):
    paths = results.ResultPaths(tmp_path, 'flan-t5-tiny', 'tiny_tense')
    start = cappy_bigbench.get_devices

    def start_slowly(*flags):
        paths.result.parent.mkdir(parents=True)
        paths.result.write_text('{"rougeL": 0.5}')
        return start(*flags)

    monkeypatch.setattr(cappy_bigbench, 'get_devices', start_slowly)
    assert run(*job(tmp_path), *RECORDED_FLAGS) == 0
    assert capsys.readouterr().out.startswith(f'Result already exists in {paths.result}. Skipped')
    assert json.loads(paths.result.read_text()) == {'rougeL': 0.5}
    assert not paths.lock.exists()


def test_texts_that_rougeL_cannot_read_are_counted_in_one_warning(tmp_path, caplog):
    samples = {'beam4': [{'response': 'красный'}]}
    gens = written(tmp_path / 'gens', validation=[example(0), example(1, references=['красный'], flan_samples=samples)])
    argv = [*job(tmp_path / 'out', 'colours', gens), '--train_size', '4', '--per_device_batch_size', '4']
    argv += ['--accumulate_grad_batches', '1', '--nocompare_before']
    assert run(*argv) == 0
    warnings = [record.message for record in caplog.records if 'rouge_tokenizer' in record.message]
    assert len(warnings) == 1 and '1 of 4 examples' in warnings[0]
    assert run(*argv, '--rouge_tokenizer', 'unicode', '--overwrite') == 0
    result = results.read_result(tmp_path / 'out' / 'flan-t5-tiny' / 'colours.json')
    assert {row['name']: row['rougeL'] for row in result['comparison']}['oracle'] == 1.0


def test_faults_of_the_texts_are_said_before_any_work_and_kept_in_the_result(tmp_path, caplog):
    empty = {'beam4': [{'response': ''}], 'sampling': [{'response': '...'}]}
    gens = written(tmp_path / 'gens', validation=[example(1), example(2, instruction='', flan_samples=empty)])
    argv = [*job(tmp_path / 'out', 'colours', gens), '--train_size', '4', '--per_device_batch_size', '4']
    assert run(*argv, '--accumulate_grad_batches', '1', '--nocompare_before') == 0
    said = [record.message for record in caplog.records]
    assert '1 of 4 examples have no response with a word in it, so that each has rougeL 0' in said
    assert '1 of 4 examples have a blank instruction' in said
    assert any(message.startswith('1 of 2 validation instructions are in the train split too') for message in said)
    faults = results.read_result(tmp_path / 'out' / 'flan-t5-tiny' / 'colours.json')['counts']['faults']
    assert (faults['validation']['instructions_in_train'], faults['train']['responses_without_words']) == (1, 0)


def test_labels_that_can_teach_nothing_are_refused(tmp_path, capsys):
    wrong = {'sampling': [{'response': 'blue'}, {'response': ''}]}
    gens = written(tmp_path / 'gens', train=[example(0, flan_samples=wrong), example(1, flan_samples=wrong)])
    argv = [*job(tmp_path / 'out', 'colours', gens), '--reference_labels', 'skip']
    assert_refused(capsys, tmp_path / 'out', ['all 102400 finetuning examples the label 0'], *argv)


def test_a_scorer_that_says_the_same_of_all_is_called_so(tmp_path, capsys, constant_scorer):
    argv = [*job(tmp_path / 'out', 'colours', written(tmp_path / 'gens'), constant_scorer), '--train_size', '4']
    argv += ['--accumulate_grad_batches', '1', '--per_device_batch_size', '4']
    assert run(*argv, '--learning_rate', '1e-12') == 0
    out = capsys.readouterr().out
    for when in ('before', 'after'):
        assert f'scorer {when} adapting: in 2 of 2 examples the highest score is shared by several candidates;' in out
    assert out.count('It gives all candidates of an example the same score') == 2
    result = results.read_result(tmp_path / 'out' / 'flan-t5-tiny' / 'colours.json')
    (ties,) = [row['ties'] for row in result['comparison'] if row['name'] == 'scorer after adapting']
    assert ties == {'n_examples': 2, 'n_several': 2, 'n_tied': 2, 'n_alike': 2, 'rougeL': pytest.approx(1 / 3)}
    rows = {line[:23].strip(): line[23:].split() for line in out.splitlines()}
    assert rows['pick'][:3] == ['rougeL', 'over', 'ties']
    assert rows['scorer after adapting'][:2] == ['100.0', '33.3'] and rows['oracle'][:2] == ['100.0', '-']


@pytest.mark.parametrize(
    'content', ['{"rougeL": 0.5, "comparison": 3}', '{"rougeL": 0.5, "comparison": [], "counts": 1}']
)
def test_an_existing_result_of_another_shape_is_named(content, tmp_path, capsys):
    place = tmp_path / 'flan-t5-tiny' / 'tiny_tense.json'
    place.parent.mkdir()
    place.write_text(content)
    assert run(*job(tmp_path)) == 1
    assert capsys.readouterr().err.startswith(f'error: {place}: not a result of this script (')
    assert place.read_text() == content


def start(*argv):
    return subprocess.Popen(
        [sys.executable, ROOT / 'cappy_bigbench.py', *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_that_goes_on_to_the_result_of_an_unbroken_run(tmp_path):
    argv = [*RECORDED_FLAGS, '--train_size', '1024', '--nocompare_before', '--checkpoint_every', '5']
    argv = argv[2:]
    broken = start(*job(tmp_path / 'broken'), *argv)
    state = tmp_path / 'broken' / 'flan-t5-tiny' / 'tiny_tense.checkpoint' / 'state.safetensors'
    deadline = time.time() + 120
    while not state.exists() and time.time() < deadline:
        time.sleep(0.05)
    broken.send_signal(signal.SIGINT)
    output, _ = broken.communicate(timeout=60)
    assert broken.returncode == 130 and output.splitlines()[-1] == 'interrupted'
    assert files_in(tmp_path / 'broken') == ['flan-t5-tiny/tiny_tense.checkpoint/state.safetensors']
    for folder in ('broken', 'unbroken'):
        assert run(*job(tmp_path / folder), *argv) == 0
    ours, theirs = (
        results.ResultPaths(tmp_path / folder, 'flan-t5-tiny', 'tiny_tense') for folder in ('broken', 'unbroken')
    )
    assert ours.updates.read_text() == theirs.updates.read_text()
    assert ours.candidates.read_text() == theirs.candidates.read_text()
    assert len(read_updates(ours.updates)) == 64
    assert not ours.checkpoint.exists()


def test_a_saved_scorer_scores_as_it_did_and_tells_where_it_comes_from(tmp_path):
    saved = tmp_path / 'saved'
    assert run(*job(tmp_path / 'out'), *RECORDED_FLAGS, '--save_dir', saved) == 0
    from cappy import Cappy

    lines = results.read_candidates(tmp_path / 'out' / 'flan-t5-tiny' / 'tiny_tense.candidates.jsonl')
    validation = (GENS / 'flan-t5-tiny' / 'tiny_tense_validation.jsonl').read_text().splitlines()
    instructions = [json.loads(line)['instruction'] for line in validation]
    pairs = [
        (instruction, candidate['response'])
        for instruction, line in zip(instructions, lines, strict=True)
        for candidate in line['candidates']
    ]
    scores = [candidate['score'] for line in lines for candidate in line['candidates']]
    np.testing.assert_allclose(Cappy.from_pretrained(saved).score(pairs), scores, atol=2e-6)
    card = (saved / 'README.md').read_text()
    assert 'tiny_tense' in card and 'flan-t5-tiny' in card and '512 pairs in 32 updates' in card


def test_truncated_pairs_are_said_for_both_splits_with_those_that_became_equal(tmp_path, caplog, capsys):
    long = 'the colour of the sky at night ' * 12
    samples = {'beam4': [{'response': f'{long}{end}'} for end in ('red', 'blue')], 'sampling': [{'response': 'red'}]}
    gens = written(tmp_path / 'gens', validation=[example(0), example(1, flan_samples=samples)])
    argv = [*job(tmp_path / 'out', 'colours', gens), '--train_size', '4', '--per_device_batch_size', '4']
    argv += ['--accumulate_grad_batches', '1', '--max_length', '32', '--save_dir', tmp_path / 'saved']
    assert run(*argv) == 0
    said = [message for message in caplog.messages if 'truncated' in message]
    assert said == [
        '2 of 6 different validation pairs were truncated to 32 tokens, and 2 became equal to another, with the same '
        'score'
    ]
    paths = results.ResultPaths(tmp_path / 'out', 'flan-t5-tiny', 'colours')
    counts = results.read_result(paths.result)['counts']
    assert counts['truncated_pairs'] == {'train': 0, 'validation': 2}
    assert counts['made_equal_pairs'] == {'train': 0, 'validation': 2}
    assert 'at most 32 tokens a pair' in (tmp_path / 'saved' / 'README.md').read_text()
    assert 'All truncate pairs to\n32 tokens' in (tmp_path / 'saved' / 'README.md').read_text()

    # The length that the scorer was adapted with is the next run's, and a result made with it is not another.
    again = [*job(tmp_path / 'again', 'colours', gens, tmp_path / 'saved'), *argv[10:14], '--nocompare_before']
    again += ['--accumulate_grad_batches', '1']
    assert run(*again) == 0
    result = results.read_result(results.ResultPaths(tmp_path / 'again', 'flan-t5-tiny', 'colours').result)
    assert result['settings']['max_length'] == 32
    capsys.readouterr()
    assert run(*again) == 0
    assert 'It was made with' not in capsys.readouterr().out


@pytest.mark.parametrize(
    ('flag', 'number'),
    [('seed', '99999999999999999999'), ('seed', '-1'), ('n_model_shards', '0'), ('tokens_per_device', '-5')],
)
def test_a_number_out_of_range_is_named_before_any_file_is_looked_for(tmp_path, capsys, flag, number):
    assert_refused(capsys, tmp_path, [f'--{flag}: expected ', number], *job(tmp_path, gens='none'), f'--{flag}', number)
