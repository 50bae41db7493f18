"""The script from flags to files, on shards made up here; interruptions and devices as processes of their own."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
from conftest import ROOT, run_main

import cappy_pretrain
from cappy import Cappy
from cappy.files.updates import read_updates
from cappy.model.pretraining import Feed, PretrainingSettings
from cappy.pretrain_data.stream import Stream, check_shards, find_shards

SCRIPT = ROOT / 'cappy_pretrain.py'
FLAGS = ('--global_batch_size', 8, '--max_length', 40, '--learning_rate', 1e-3, '--eval_every', 5)
N_ROWS, N_UPDATES = 107, 13


def write(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.fixture(scope='module')
def data(texts, tmp_path_factory):
    """Three shards of texts of uneven lengths, and 12 instances held out."""
    folder = tmp_path_factory.mktemp('data')
    generator = np.random.default_rng(5)
    rows = [
        {'instruction': f'{a} cat', 'response': f'{b} mat', 'label': float(generator.integers(5)) / 4}
        for a, b in texts(N_ROWS, seed=3)
    ]
    for i, (start, end) in enumerate(((0, 40), (40, 70), (70, N_ROWS))):
        write(folder / f'train-{i:05d}-of-00003.jsonl', rows[start:end])
    held_out = []
    for number, (instruction, _) in enumerate(texts(12, seed=4)):
        source = 'choice' if number % 2 else 'other'
        for k, word in enumerate(('yes', 'no', 'it is red')):
            label = float(k == number % 3) if number % 2 else k / 2
            held_out.append({'template': f't{number % 4}', 'source': source, 'label': label, 'response': word})
            held_out[-1]['instruction'] = f'{instruction} {number}'
    write(folder / 'heldout.jsonl', held_out)
    return folder


@pytest.fixture(scope='module')
def pretrained(data, tiny_directories, tmp_path_factory):
    """A run from beginning to end, with dropout."""
    folder = tmp_path_factory.mktemp('runs') / 'straight'
    argv = ['--data_dir', data, '--model_name_or_path', tiny_directories['roberta-dropout'], '--output_dir', folder]
    assert run_main(cappy_pretrain.main, [*argv, *FLAGS]) == 0
    return folder


def losses(folder):
    return [(row.update, row.learning_rate, row.loss, row.grad_norm) for row in read_updates(folder / 'train.csv')]


def evaluations(folder):
    return [json.loads(line) for line in (folder / 'evaluations.jsonl').read_text().splitlines()]


def test_a_run_leaves_scorers_curves_and_a_result(pretrained):
    result = json.loads((pretrained / 'result.json').read_text())
    assert result['counts']['updates'] == N_UPDATES == len(losses(pretrained))
    assert result['counts']['pairs_trained_on'] == 8 * N_UPDATES
    assert result['counts']['pairs_left_out'] == N_ROWS - 8 * N_UPDATES
    assert [line['update'] for line in evaluations(pretrained)] == [0, 5, 10, 13]
    assert sorted(path.name for path in pretrained.iterdir()) == [
        'best', 'evaluations.jsonl', 'last', 'result.json', 'train.csv'
    ]  # fmt: skip
    assert losses(pretrained)[0][1] == 0 and losses(pretrained)[1][1] == pytest.approx(1e-3)
    assert losses(pretrained)[-1][2] < losses(pretrained)[0][2]


def test_the_best_weights_are_those_of_the_best_line(pretrained, data):
    lines = evaluations(pretrained)
    best = min(lines, key=lambda line: line['squared_error'])
    assert json.loads((pretrained / 'result.json').read_text())['best'] == best
    assert f'Updates: {best["update"]} ' in (pretrained / 'best' / 'README.md').read_text()
    rows = [json.loads(line) for line in (data / 'heldout.jsonl').read_text().splitlines()]
    for name, line in (('best', best), ('last', lines[-1])):
        scores = Cappy.from_pretrained(pretrained / name, max_length=40).score(
            [(row['instruction'], row['response']) for row in rows]
        )
        errors = np.square(scores - [row['label'] for row in rows])  # instances are of one size
        assert errors.mean() == pytest.approx(line['squared_error'], rel=1e-4)


def test_the_table_and_what_is_there_already_are_told(pretrained, data, capsys):
    assert run_main(cappy_pretrain.main, ['--data_dir', data, '--output_dir', pretrained]) == 0
    told = capsys.readouterr().out
    assert 'Result already exists' in told and 'rank correlation' in told and 'accuracy' in told


def test_a_result_that_another_process_made_meanwhile_is_left_alone(
    pretrained, data, tiny_directories, tmp_path, capsys, monkeypatch
):
    start = cappy_pretrain.get_devices

    def start_slowly(*flags):
        shutil.copytree(pretrained, tmp_path / 'run')
        return start(*flags)

    monkeypatch.setattr(cappy_pretrain, 'get_devices', start_slowly)
    argv = ['--data_dir', data, '--model_name_or_path', tiny_directories['roberta'], '--output_dir', tmp_path / 'run']
    assert run_main(cappy_pretrain.main, [*argv, *FLAGS]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith('Result already exists')
    assert (tmp_path / 'run' / 'result.json').read_text() == (pretrained / 'result.json').read_text()
    assert not (tmp_path / 'run' / 'lock').exists()


def test_a_damaged_result_is_told_in_one_line(tmp_path, data, capsys):
    (tmp_path / 'result.json').write_text('{"settings": {')
    assert run_main(cappy_pretrain.main, ['--data_dir', data, '--output_dir', tmp_path]) == 1
    assert f'error: {tmp_path}/result.json: not a result of this script' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize('n_devices', [4])
def test_losses_are_the_same_on_several_devices(pretrained, data, tiny_directories, run_python, tmp_path, n_devices):
    argv = ['--data_dir', data, '--model_name_or_path', tiny_directories['roberta-dropout'], '--output_dir', tmp_path]
    process = run_python(SCRIPT, *argv, *FLAGS, n_devices=n_devices)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert f'{n_devices} x ' in json.loads((tmp_path / 'result.json').read_text())['device']
    np.testing.assert_allclose(losses(tmp_path), losses(pretrained), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('kills', [(signal.SIGKILL,), (signal.SIGKILL, signal.SIGTERM)])
def test_a_killed_run_is_resumed_with_the_losses_of_an_uninterrupted_one(
    pretrained, data, tiny_directories, run_python, tmp_path, kills
):
    """Killed soon after a checkpoint was written, each time another one, until it ends."""
    model = tiny_directories['roberta-dropout']
    argv = [SCRIPT, '--data_dir', data, '--model_name_or_path', model, '--output_dir', tmp_path, *FLAGS]
    generator = np.random.default_rng(0)
    state = tmp_path / 'checkpoint' / 'state.safetensors'
    for sent in kills:
        process = run_python(*argv, '--checkpoint_every', 2)
        before = state.stat().st_mtime_ns if state.exists() else None
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            if state.exists() and state.stat().st_mtime_ns != before:
                time.sleep(generator.uniform(0, 0.05))
                process.send_signal(sent)
                break
            time.sleep(0.001)
        process.communicate(timeout=100)
    process = run_python(*argv, '--checkpoint_every', 2)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert losses(tmp_path) == losses(pretrained)
    assert evaluations(tmp_path) == evaluations(pretrained)
    assert not state.exists()


@pytest.fixture(scope='module')
def stopped(data, tiny_directories, run_python, tmp_path_factory):
    """A run that was terminated, with its checkpoint."""
    folder = tmp_path_factory.mktemp('runs') / 'stopped'
    model = tiny_directories['roberta-dropout']
    argv = [SCRIPT, '--data_dir', data, '--model_name_or_path', model, '--output_dir', folder, *FLAGS]
    process = run_python(*argv, '--checkpoint_every', 1)
    state = folder / 'checkpoint' / 'state.safetensors'
    while process.poll() is None and not state.exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, 'Traceback' in errors, errors.rstrip().endswith('interrupted')) == (130, False, True)
    assert state.exists()
    return folder


@pytest.mark.parametrize(
    ('flags', 'told'),
    [
        (('--learning_rate', 2e-3), 'made with learning_rate 0.001 (asked for: 0.002)'),
        (('--n_epochs', 2), 'made with n_epochs 1 (asked for: 2)'),
        (('--seed', 5), 'made with seed 11111 (asked for: 5)'),
        (('--data_dir', 'other'), 'made with pairs of data_dir '),
        (('--from_scratch',), 'made with from_scratch False (asked for: True)'),
    ],
)
def test_going_on_with_other_data_or_settings_is_refused(
    stopped, data, tiny_directories, tmp_path, capsys, flags, told
):
    shutil.copytree(stopped, tmp_path / 'run')
    shutil.copytree(data, tmp_path / 'other')
    lines = (data / 'train-00001-of-00003.jsonl').read_text().splitlines(keepends=True)
    (tmp_path / 'other' / 'train-00001-of-00003.jsonl').write_text(''.join(reversed(lines)))
    flags = [tmp_path / 'other' if word == 'other' else word for word in flags]
    argv = {'--data_dir': data, '--model_name_or_path': tiny_directories['roberta-dropout']}
    argv |= dict(zip(FLAGS[::2], FLAGS[1::2], strict=True)) | {'--output_dir': tmp_path / 'run'}
    argv |= dict(zip(flags[::2], flags[1::2] or ['True'], strict=True))
    assert run_main(cappy_pretrain.main, [word for pair in argv.items() for word in pair]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'state.safetensors: ' + told in error and '--overwrite' in error
    assert (tmp_path / 'run' / 'checkpoint' / 'state.safetensors').exists()


def test_weights_from_scratch_need_a_config_and_a_tokenizer_alone(data, tiny_directories, tmp_path):
    model = shutil.copytree(tiny_directories['bert'], tmp_path / 'model')
    (model / 'model.safetensors').unlink()
    argv = ['--data_dir', data, '--model_name_or_path', model, '--output_dir', tmp_path / 'run', '--from_scratch']
    assert run_main(cappy_pretrain.main, [*argv, *FLAGS]) == 0
    scorer = Cappy.from_pretrained(tmp_path / 'run' / 'last')
    embedding = np.asarray(scorer.params['bert.embeddings.word_embeddings']['embedding'])
    assert 0.01 < embedding.std() < 0.04


@pytest.mark.parametrize(
    ('flags', 'told'),
    [
        (('--global_batch_size', 500), '--global_batch_size 500: more than the 107 pairs of all epochs; lower it'),
        (('--global_batch_size', 0), '--global_batch_size: found 0; give 1 or more'),
        (('--max_length', 4), '--max_length 4: special tokens alone fill it'),
        (('--clip_norm', -1), '--clip_norm: found -1.0; give 0 or more'),
        (('--tensorboard_dir', 'logs'), 'pip install tensorflow tensorboard'),
        (('--data_dir', 'nowhere'), 'nowhere: no such folder'),
    ],
)
def test_a_users_mistake_is_one_line(data, tiny_directories, tmp_path, capsys, flags, told):
    argv = {'--data_dir': data, '--model_name_or_path': tiny_directories['roberta'], '--output_dir': tmp_path / 'run'}
    argv |= {'--global_batch_size': 8} | dict(zip(flags[::2], flags[1::2], strict=True))
    assert run_main(cappy_pretrain.main, [word for pair in argv.items() for word in pair]) == 1
    assert told in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / 'run' / 'result.json').exists()


def make_feed(data, scorer, **changes):
    settings = PretrainingSettings(**{'global_batch_size': 8, 'max_length': 40, 'n_epochs': 2} | changes)
    shards = tuple(check_shards(find_shards(data), progress=False))
    stream = Stream(shards, settings.n_epochs, settings.window_size, settings.seed)
    return Feed(stream, scorer.tokenizer, settings, scorer.config, 'cpu', 1, tokens_per_device=96)


def gathered(batches):
    """What an update's micro-batches hold: {(tokens of a pair): (label, weight)} as a sorted list."""
    pairs = []
    for rows, labels, weights in batches:
        for row, slot in zip(*np.nonzero(weights), strict=True):
            tokens = rows['tokens'][row][rows['segments'][row] == slot + 1]
            pairs.append((tokens.tolist(), float(labels[row, slot]), float(weights[row, slot])))
    return sorted(pairs)


def test_a_feed_gives_every_pair_of_each_update_once_and_alike_from_any_update_on(data, tiny_directories, monkeypatch):
    monkeypatch.setattr('cappy.model.pretraining.WINDOW', 24)
    scorer = Cappy.from_pretrained(tiny_directories['roberta'])
    feed = make_feed(data, scorer)
    updates = [gathered(batches) for batches in feed(0)]
    assert len(updates) == 2 * N_ROWS // 8
    assert {(len(pairs), *{weight for *_, weight in pairs}) for pairs in updates} == {(8, 1 / 8)}
    for first in (1, 3, 17, 25):
        assert [gathered(batches) for batches in make_feed(data, scorer)(first)] == updates[first:]


def test_a_feeds_labels_go_with_their_texts(data, tiny_directories):
    scorer = Cappy.from_pretrained(tiny_directories['roberta'])
    expected = {}
    for path in find_shards(data):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            ids = scorer.tokenizer(row['instruction'], row['response'], truncation=True, max_length=40)['input_ids']
            expected.setdefault(tuple(ids), set()).add(row['label'])
    held = [pair for batches in make_feed(data, scorer, n_epochs=1)(0) for pair in gathered(batches)]
    assert len(held) == 8 * N_UPDATES
    assert all(label in expected[tuple(tokens)] for tokens, label, _ in held)


def test_shapes_stay_within_those_of_the_first_window(data, tiny_directories, monkeypatch):
    monkeypatch.setattr('cappy.model.pretraining.WINDOW', 24)
    feed = make_feed(data, Cappy.from_pretrained(tiny_directories['roberta']))
    shapes = {batch.shape for window in feed.windows() for plan in window.plans for batch in plan}
    assert {length for _, length, _ in shapes} <= set(feed.row_lengths)
    assert max(feed.row_lengths) >= 40
