import contextlib
import dataclasses
import functools
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cappy.errors import InputError
from cappy.model import training
from cappy.model.encoder import Scorer
from cappy.model.packing import Batch, fill_rows
from cappy.model.tensors import tensors_from_params
from cappy.model.tokens import encode_pairs
from cappy.model.training import TrainingSettings, reference_order
from cappy.model.training_state import Checkpoint, StopRequest
from cappy.scorer import Cappy
from cappy.tasks.candidates import read_task
from cappy.tasks.rouge import RougeL

TASKS = ('tiny_tense', 'tiny_arithmetic')
# Eight pairs an update, six updates of 48 examples; warmed up after 3 of 12 micro-batches, or after 1 of 6 updates.
SETTINGS = TrainingSettings(
    learning_rate=1e-3, warmup_rate=0.25, per_device_batch_size=4, accumulate_grad_batches=2, max_length=24, seed=7
)


def read(recorded, task, what):
    return json.loads((recorded / 'bigbench' / f'{task}.{what}.json').read_text())


@pytest.fixture(scope='module')
def examples(texts):
    labels = np.random.default_rng(3).uniform(size=48).round(3)
    return [(*pair, float(label)) for pair, label in zip(texts(48, seed=5), labels, strict=True)]


@pytest.fixture(scope='module')
def adapt(tiny_directories, examples):
    """(name='roberta-dropout', settings=SETTINGS, ...) -> Trained and the scorer; an update is one micro-batch."""

    def run(name='roberta-dropout', settings=SETTINGS, examples=examples, tokens_per_device=4096, **options):
        scorer = Cappy.from_pretrained(tiny_directories[name], max_length=24)
        options = {'tokens_per_device': tokens_per_device, 'progress': False, **options}
        return scorer.adapt(examples, settings, **options), scorer

    return run


@pytest.fixture(scope='module')
def straight(adapt):
    """The losses of a run that nothing interrupts, and the tensors it leaves."""
    trained, scorer = adapt()
    return losses(trained), tensors(scorer.params)


def losses(trained):
    return [(row.update, row.loss, row.grad_norm) for row in trained.updates]


def tensors(params):
    return tensors_from_params(jax.device_get(params))


@contextlib.contextmanager
def optimised():
    """Programs are compiled as they are for users, and not as conftest.py has it."""
    before = jax.config.read('jax_disable_most_optimizations')
    jax.config.update('jax_disable_most_optimizations', False)
    try:
        yield
    finally:
        jax.config.update('jax_disable_most_optimizations', before)


@pytest.fixture(scope='module', params=[TASKS[0], pytest.param(TASKS[1], marks=pytest.mark.slow)])
def recorded_run(request, recorded, tiny_cappy):
    """A recorded job done again: the recorded files, the updates, and the scores of the validation pairs."""
    task = request.param
    files = {name: read(recorded, task, name) for name in ('dataset', 'train_metrics', 'schedule', 'scores', 'result')}
    scorer = Cappy.from_pretrained(tiny_cappy)
    settings = TrainingSettings(learning_rate=5e-5, accumulate_grad_batches=2)
    train = [(row['instruction'], row['response'], row['label']) for row in files['dataset']['train']]
    with optimised():
        trained = scorer.adapt(train, settings, progress=False)
        scores = scorer.score([(row['instruction'], row['response']) for row in files['dataset']['validation']])
    validation = read_task(recorded / 'inputs' / 'bigbench_flan_gens', 'flan-t5-tiny', task)['validation']
    return files, trained, scores, validation


def test_every_loss_equals_the_recorded_one(recorded_run):
    files, trained, _, _ = recorded_run
    # Of each micro-step of 8 pairs; an update takes the mean of two.
    expected = np.array([step['loss'] for step in files['train_metrics']]).reshape(32, 2).mean(axis=1)
    np.testing.assert_allclose([row.loss for row in trained.updates], expected, rtol=0, atol=5e-5)
    assert expected.std() > 0.1
    assert {row.pairs for row in trained.updates} == {16}
    assert [row.update for row in trained.updates] == list(range(32))


def test_every_rate_equals_the_recorded_one(recorded_run):
    files, trained, _, _ = recorded_run
    rates = [row.learning_rate for row in trained.updates]
    np.testing.assert_allclose(rates, files['schedule']['lr_used_by_update_k'], rtol=1e-6, atol=0)


def test_every_final_score_equals_the_recorded_one(recorded_run):
    files, _, scores, _ = recorded_run
    np.testing.assert_allclose(scores, [row['score'] for row in files['scores']], rtol=0, atol=2e-5)


def test_every_pick_and_rougeL_equals_the_recorded_one(recorded_run):
    files, _, scores, validation = recorded_run
    best = {}
    for row, score in zip(files['dataset']['validation'], scores, strict=True):
        if row['example_idx'] not in best or score > best[row['example_idx']][0]:
            best[row['example_idx']] = score, row['response']
    picks = [best[example.example_idx][1] for example in validation]
    assert picks == [row['pred'] for row in files['result']['per_example']]
    rouge = RougeL()
    rougeL = [rouge.score(example.references, pick) for example, pick in zip(validation, picks, strict=True)]
    np.testing.assert_allclose(rougeL, [row['rougeL'] for row in files['result']['per_example']], rtol=0, atol=1e-6)
    assert np.mean(rougeL) == pytest.approx(files['result']['rougeL'], abs=1e-6)


@pytest.mark.parametrize('partitionable', [False, True])
def test_the_order_is_the_recorded_one_whichever_random_bits_jax_prefers(recorded, partitionable):
    for task in TASKS:
        with jax.threefry_partitionable(partitionable):
            assert reference_order(512, 11111).tolist() == read(recorded, task, 'train_order')


def test_schedules_equal_their_formulas():
    def rates(lr_schedule, **changes):
        settings = dataclasses.replace(SETTINGS, lr_schedule=lr_schedule, **changes)
        return [float(settings.optimizer(50, 1).schedule(k)) for k in range(6)]

    third, ninth, fifth = 1e-3 / 3, 1e-3 / 9, 1e-3 / 5
    # 50 examples are 12 micro-batches of 4, and 6 updates of 8: the rest counts in neither.
    expected = [0, third, 2 * third, 9 * ninth, 8 * ninth, 7 * ninth]
    np.testing.assert_allclose(rates('reference'), expected, rtol=1e-6)
    np.testing.assert_allclose(rates('corrected'), [0, *(k * fifth for k in (5, 4, 3, 2, 1))], rtol=1e-6)
    np.testing.assert_allclose(rates('corrected', warmup_rate=1.0), np.arange(6) / 6 * 1e-3, rtol=1e-6)
    np.testing.assert_allclose(rates('corrected', warmup_rate=0.0), np.arange(6, 0, -1) / 6 * 1e-3, rtol=1e-6)


def test_the_papers_settings_never_leave_the_reference_warm_up():
    settings = TrainingSettings()
    assert (settings.pairs_per_update(1), settings.n_updates(102400, 1)) == (128, 800)
    last = float(settings.optimizer(102400, 1).schedule(799))
    assert last == pytest.approx(2e-5 * 799 / 1280, rel=1e-6)


@functools.cache
def gradient(config):
    """The compiled gradient of an update's loss by its definition."""

    def loss(params, rows, labels):
        return jnp.mean(jnp.square(Scorer(config).apply({'params': params}, rows)[:, 0] - labels))

    return jax.jit(jax.grad(loss))


def update_gradient(scorer, params, pairs, labels):
    """The gradient of an update's loss, each pair in a row of its own."""
    encoded = encode_pairs(scorer.tokenizer, *zip(*pairs, strict=True), 24)
    numbers = np.arange(len(pairs), dtype=np.int32)[:, None]
    rows = fill_rows(Batch(24, numbers, np.zeros_like(numbers)), encoded, numbers[:, 0], scorer.config)
    return tensors(gradient(scorer.config)(params, rows, np.array(labels, np.float32)))


@pytest.mark.parametrize(
    ('lr_schedule', 'weight_decay', 'rates'),
    [('reference', 0.0, [0, 1e-3 / 3, 2e-3 / 3]), ('corrected', 0.1, [0, 1e-3, 0.8e-3])],
)
def test_each_step_is_adams_at_the_rate_of_the_formula(adapt, examples, lr_schedule, weight_decay, rates):
    settings = dataclasses.replace(SETTINGS, lr_schedule=lr_schedule, weight_decay=weight_decay)
    seen = []
    trained, scorer = adapt('roberta', settings, on_update=lambda row, params: seen.append(jax.device_get(params)))
    before = jax.device_get(Cappy.from_pretrained(scorer.source).params)
    order = reference_order(48, 7).reshape(6, 8)
    first, second = {}, {}
    for k, rate in enumerate(rates):
        batch = [examples[i] for i in order[k]]
        grads = update_gradient(scorer, before, [row[:2] for row in batch], [row[2] for row in batch])
        was, now = tensors(before), tensors(seen[k])
        for name, grad in grads.items():
            grad = grad.astype(np.float64)
            first[name] = 0.9 * first.get(name, 0) + 0.1 * grad
            second[name] = 0.999 * second.get(name, 0) + 0.001 * grad**2
            scale = np.sqrt(second[name] / (1 - 0.999 ** (k + 1)))
            step = first[name] / (1 - 0.9 ** (k + 1)) / (scale + 1e-8) + weight_decay * was[name]
            # Where the gradient is rounding alone, as that of the keys' biases is, so is Adam's step.
            sure = ((scale > 1e-4) | (grad == 0)) & (not name.endswith('key.bias'))
            error = np.abs(now[name] - (was[name] - rate * step))[sure]
            assert error.max(initial=0) <= 0.01 * rate + 2e-7 * np.abs(was[name]).max(), (k, name)
        before = seen[k]
    assert trained.updates[2].learning_rate == pytest.approx(rates[2], rel=1e-6)


def test_the_first_update_moves_nothing_and_the_next_does(adapt, tiny_directories):
    seen = []
    adapt('roberta', on_update=lambda row, params: seen.append(tensors(params)))
    start = load_file(tiny_directories['roberta'] / 'model.safetensors')
    assert all((seen[0][name] == start[name]).all() for name in start)
    moved = [name for name in start if (seen[1][name] != start[name]).any()]
    assert sorted(moved) == sorted(start)


def test_the_size_of_micro_batches_changes_nothing(adapt, straight):
    trained, scorer = adapt(tokens_per_device=64)
    assert_same_course(trained, scorer, straight)


def test_gradient_checkpointing_changes_nothing(adapt, straight):
    trained, scorer = adapt(gradient_checkpointing=True)
    assert_same_course(trained, scorer, straight)


def assert_same_course(trained, scorer, straight):
    np.testing.assert_allclose(losses(trained), straight[0], rtol=2e-5, atol=1e-5)
    for name, tensor in tensors(scorer.params).items():
        if not name.endswith('key.bias'):  # its gradient is rounding alone, which Adam makes steps of
            error = np.abs(tensor - straight[1][name])
            assert np.quantile(error, 0.99) < 2e-5 and error.max() < 1e-3, name


def test_dropout_is_drawn_anew_by_seed(adapt, straight):
    trained, _ = adapt(settings=dataclasses.replace(SETTINGS, seed=8))
    assert abs(trained.updates[0].loss - straight[0][0][1]) > 1e-3
    again, _ = adapt()
    assert losses(again) == straight[0]


def test_pairs_that_fill_no_update_are_left_out(adapt, examples, straight):
    order = reference_order(55, 7)
    grown = [None] * 55
    for place, example in zip(order, [*(examples[i] for i in reference_order(48, 7)), *examples[:7]], strict=True):
        grown[place] = example
    trained, _ = adapt(examples=grown)
    # The rate's steps are 13 where they were 12, so only the first losses can be alike.
    assert len(trained.updates) == 6
    np.testing.assert_allclose(losses(trained)[:2], straight[0][:2], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('changes', 'found'),
    [
        ({'accumulate_grad_batches': 13}, 'train_size 48: less than one update of 52 pairs (4 x 1 x 13); raise it'),
        ({'lr_schedule': 'cosine'}, "lr_schedule: found 'cosine'; choose one of reference, corrected"),
        ({'per_device_batch_size': 0}, 'per_device_batch_size: found 0; give 1 or more'),
        ({'warmup_rate': 1.5}, 'warmup_rate: found 1.5'),
        ({'learning_rate': float('nan')}, 'learning_rate: found nan'),
        ({'learning_rate': 0.0}, 'learning_rate: found 0.0'),
        ({'weight_decay': -1.0}, 'weight_decay: found -1.0'),
        ({'max_length': 99}, 'max_length 99: '),
    ],
)
def test_settings_that_train_nothing_are_refused_before_training(tiny_directories, examples, changes, found):
    scorer = Cappy.from_pretrained(tiny_directories['roberta'], max_length=24)
    with pytest.raises(InputError) as caught:
        scorer.adapt(examples, dataclasses.replace(SETTINGS, **changes))
    assert str(caught.value).startswith(found)
    assert '\n' not in str(caught.value)
    assert np.isfinite(scorer.score([('still', 'whole')])).all()


def test_a_loss_that_is_not_finite_stops_with_the_update_named(adapt, make_model, tiny_directories, examples):
    with pytest.raises(InputError, match='^update 2: the loss is (inf|nan) .* lower learning_rate') as caught:
        adapt('roberta', dataclasses.replace(SETTINGS, learning_rate=1e30))
    assert '\n' not in str(caught.value)
    broken = load_file(tiny_directories['roberta'] / 'model.safetensors')
    broken['classifier.out_proj.bias'][:] = np.nan
    scorer = Cappy.from_pretrained(make_model(tensors=broken), max_length=24)
    with pytest.raises(InputError, match='^update 0: the loss is nan'):
        scorer.adapt(examples, SETTINGS, progress=False)


class Interrupted(Exception):
    pass


def stop_after(update, how):
    def on_update(row, params):
        if row.update == update:
            if how == 'exception':
                raise Interrupted
            signal.raise_signal(how)

    return on_update


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGTERM, 'exception'])
def test_a_stopped_training_continues_to_the_same_result(adapt, straight, tmp_path, how):
    checkpoint = Checkpoint(tmp_path / 'job.checkpoint')
    expected = Interrupted if how == 'exception' else KeyboardInterrupt
    with pytest.raises(expected):
        adapt(checkpoint=checkpoint, checkpoint_every=2, on_update=stop_after(2, how))
    assert os.listdir(tmp_path / 'job.checkpoint') == ['state.safetensors']
    again = []
    trained, scorer = adapt(
        checkpoint=checkpoint, checkpoint_every=2, on_update=lambda row, _: again.append(row.update)
    )
    # Asked to stop, it saves what it has; thrown out, what it saved last.
    assert again == [2, 3, 4, 5] if how == 'exception' else [3, 4, 5]
    assert losses(trained) == straight[0]
    for name, tensor in tensors(scorer.params).items():
        np.testing.assert_array_equal(tensor, straight[1][name], err_msg=name)
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_stop_amid_an_update_leaves_that_update_undone(adapt, straight, tmp_path, monkeypatch):
    checkpoint, filled = Checkpoint(tmp_path / 'job'), []

    def fill_then_stop(*arguments):
        filled.append(len(filled))
        if len(filled) == 8:
            signal.raise_signal(signal.SIGTERM)
        return fill_rows(*arguments)

    monkeypatch.setattr(training, 'fill_rows', fill_then_stop)
    with pytest.raises(KeyboardInterrupt):
        adapt(checkpoint=checkpoint, checkpoint_every=100, tokens_per_device=64)
    monkeypatch.undo()
    again = []
    trained, _ = adapt(checkpoint=checkpoint, tokens_per_device=64, on_update=lambda row, _: again.append(row.update))
    assert 0 < len(again) < 6
    np.testing.assert_allclose(losses(trained), straight[0], rtol=2e-5, atol=1e-5)


def test_without_a_checkpoint_asked_for_a_stop_leaves_nothing(adapt, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        adapt(checkpoint=Checkpoint(tmp_path / 'job'), on_update=stop_after(1, signal.SIGINT))
    assert list(tmp_path.iterdir()) == []


def test_signals_are_the_users_again_after_training(adapt):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        adapt('roberta', on_update=stop_after(0, signal.SIGINT))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        signal.raise_signal(signal.SIGINT)  # a second one is obeyed at once


JOB = """
import json, sys, time
from cappy.model.training import TrainingSettings
from cappy.model.training_state import Checkpoint
from cappy.scorer import Cappy

model, folder, job = sys.argv[1:]
job = json.loads(job)
scorer = Cappy.from_pretrained(model, max_length=24)


def on_update(row, params):
    print(row.update, flush=True)
    time.sleep(0.3)


scorer.adapt(job['examples'], TrainingSettings(**job['settings']), progress=False, on_update=on_update,
             checkpoint=Checkpoint(folder), checkpoint_every=100, tokens_per_device=4096)
"""


@pytest.mark.slow
def test_a_process_that_is_terminated_leaves_a_checkpoint_to_continue(
    adapt, straight, examples, run_python, tiny_directories, tmp_path
):
    job = json.dumps({'examples': examples, 'settings': dataclasses.asdict(SETTINGS)})
    model = tiny_directories['roberta-dropout']
    process = run_python('-c', JOB, model, tmp_path / 'job', job)
    assert process.stdout.readline() == '0\n'
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert 'KeyboardInterrupt' in errors
    again = []
    trained, _ = adapt(checkpoint=Checkpoint(tmp_path / 'job'), on_update=lambda row, _: again.append(row.update))
    assert 0 < len(again) < 6
    assert losses(trained) == straight[0]


@pytest.fixture(scope='module')
def stopped(adapt, tmp_path_factory):
    """The bytes of a checkpoint after two updates."""
    folder = tmp_path_factory.mktemp('stopped')
    with pytest.raises(KeyboardInterrupt):
        adapt(checkpoint=Checkpoint(folder), checkpoint_every=100, on_update=stop_after(1, signal.SIGINT))
    return (folder / 'state.safetensors').read_bytes()


@pytest.mark.parametrize(
    ('changes', 'found'),
    [
        ({'learning_rate': 2e-3}, 'made with learning_rate 0.001 (asked for: 0.002)'),
        ({'seed': 8}, 'made with seed 7 (asked for: 8)'),
        ({'lr_schedule': 'corrected'}, "made with lr_schedule 'reference' (asked for: 'corrected')"),
        ({'accumulate_grad_batches': 1}, 'made with accumulate_grad_batches 2 (asked for: 1)'),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_with_the_setting_named(adapt, stopped, tmp_path, changes, found):
    (tmp_path / 'state.safetensors').write_bytes(stopped)
    with pytest.raises(InputError) as caught:
        adapt(settings=dataclasses.replace(SETTINGS, **changes), checkpoint=Checkpoint(tmp_path))
    assert str(caught.value).startswith(f'{tmp_path / "state.safetensors"}: {found}; ')
    assert '\n' not in str(caught.value)
    assert (tmp_path / 'state.safetensors').read_bytes() == stopped


def test_a_checkpoint_of_other_examples_or_another_model_is_refused(adapt, stopped, examples, tmp_path):
    (tmp_path / 'state.safetensors').write_bytes(stopped)
    with pytest.raises(InputError, match='made with train_data'):
        adapt(examples=[*examples[:-1], ('the cat', 'sat', 0.5)], checkpoint=Checkpoint(tmp_path))
    with pytest.raises(InputError, match=r'made with model_digest [0-9a-f]{12} \(asked for: [0-9a-f]{12}\)'):
        adapt('roberta', checkpoint=Checkpoint(tmp_path))


def test_a_damaged_checkpoint_is_named(adapt, stopped, tmp_path):
    path = tmp_path / 'state.safetensors'
    path.write_bytes(stopped)
    whole = load_file(path)
    name = next(name for name in whole if 'word_embeddings' in name)

    def without_metadata():
        save_file(whole, path)

    def cut_off():
        path.write_bytes(stopped[: len(stopped) // 2])

    def nothing():
        path.write_bytes(b'')

    def other_shape():
        from safetensors import safe_open

        path.write_bytes(stopped)
        with safe_open(path, framework='numpy') as file:
            metadata = file.metadata()
        save_file({**whole, name: np.zeros((2, 2), np.float32)}, path, metadata=metadata)

    for damage in (without_metadata, cut_off, nothing, other_shape):
        damage()
        with pytest.raises(InputError, match='damaged .*; delete it to begin again') as caught:
            adapt(checkpoint=Checkpoint(tmp_path))
        assert str(caught.value).startswith(f'{path}: '), damage.__name__
        assert '\n' not in str(caught.value)


def test_weight_decay_shrinks_what_no_pair_uses(adapt):
    settings = dataclasses.replace(SETTINGS, weight_decay=0.1, lr_schedule='corrected')
    seen = []
    adapt('roberta', settings, on_update=lambda row, params: seen.append((row.learning_rate, tensors(params))))
    unused = 1999  # a token of no text here: its row has no gradient
    name = 'roberta.embeddings.word_embeddings.weight'
    for (_, before), (rate, after) in zip(seen[:-1], seen[1:], strict=True):
        np.testing.assert_allclose(after[name][unused], before[name][unused] * (1 - rate * 0.1), rtol=3e-7)


def test_a_checkpoint_that_cannot_be_written_is_named(adapt, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='file/job/state.safetensors: cannot be written') as caught:
        adapt('roberta', checkpoint=Checkpoint(tmp_path / 'file' / 'job'), checkpoint_every=1)
    assert '\n' not in str(caught.value)
