import dataclasses
import logging

import jax
import numpy as np
import pytest
from conftest import fails

from cappy.errors import InputError
from cappy.model import scoring, training
from cappy.model.budgets import device_memory, halved, training_bytes, training_tokens
from cappy.model.config import EncoderConfig
from cappy.model.devices import get_devices
from cappy.model.model_files import read_config
from cappy.model.packing import Batch, cut_batches
from cappy.model.training import TrainingSettings
from cappy.model.training_state import Checkpoint
from cappy.scorer import Cappy

SETTINGS = TrainingSettings(
    learning_rate=1e-3, warmup_rate=0.25, per_device_batch_size=4, accumulate_grad_batches=2, max_length=24, seed=7
)


@pytest.fixture(scope='module')
def examples(texts):
    labels = np.random.default_rng(3).uniform(size=48).round(3)
    pairs = texts(48, seed=5)
    return [(pairs[i // 4][0], pairs[i][1], float(label)) for i, label in enumerate(labels)]


def adapted(directory, examples, settings=SETTINGS, **options):
    scorer = Cappy.from_pretrained(directory, max_length=24)
    options = {'tokens_per_device': 4096, 'progress': False, **options}
    return scorer.adapt(examples, settings, **options), scorer


@pytest.fixture
def failing(monkeypatch):
    """(name of one of DevicePrograms, wanted, donated): trainings from now on fail there."""
    programs = training.device_programs

    def set_up(name, wanted, donated):
        def replaced(*arguments):
            given = programs(*arguments)
            return dataclasses.replace(given, **{name: fails(getattr(given, name), wanted, donated)})

        monkeypatch.setattr(training, 'device_programs', replaced)

    return set_up


def n_tokens(arguments):
    """Tokens of the rows among a program's arguments."""
    return next(rows['tokens'].size for rows in arguments if isinstance(rows, dict) and 'tokens' in rows)


@pytest.mark.parametrize(
    ('objective', 'wanted', 'n_warnings'),
    [
        pytest.param('absolute', lambda call, _: call == 0, 1, id='first batch'),
        pytest.param('listwise', lambda call, _: call == 3, 1, id='later update'),
        # Until it fits; and again when some micro-batches of an update are in the gradients that are lost.
        pytest.param(
            'absolute', lambda call, arguments: n_tokens(arguments) > 72 or call == 10, 5, id='within an update'
        ),
    ],
)
def test_a_training_that_runs_out_of_memory_goes_on_and_loses_nothing(
    failing, tiny_directories, examples, caplog, objective, wanted, n_warnings
):
    settings = dataclasses.replace(SETTINGS, objective=objective)
    straight, straight_scorer = adapted(tiny_directories['roberta-dropout'], examples, settings)
    failing('accumulate', wanted, donated=(0, 1))
    with caplog.at_level(logging.WARNING):
        trained, scorer = adapted(tiny_directories['roberta-dropout'], examples, settings)
    said = [record.getMessage() for record in caplog.records if 'memory ran out' in record.getMessage()]
    assert 1 <= len(said) <= n_warnings and all('(nothing is lost)' in text for text in said)
    rows, other_rows = ([tuple(row) for row in one.updates] for one in (trained, straight))
    np.testing.assert_allclose(rows, other_rows, rtol=2e-5, atol=1e-5)
    pairs = [example[:2] for example in examples]
    scores, other_scores = (one.score(pairs) for one in (scorer, straight_scorer))
    if objective == 'listwise':  # a shift of all scores has no gradient but rounding, of which Adam makes steps
        scores, other_scores = scores - scores.mean(), other_scores - other_scores.mean()
    np.testing.assert_allclose(scores, other_scores, rtol=0, atol=2e-4)
    assert np.ptp([row.loss for row in trained.updates]) > 1e-3


def test_a_row_that_does_not_fit_ends_a_training_with_what_to_do(failing, tiny_directories, examples):
    failing('accumulate', lambda *_: True, donated=(0, 1))
    said = 'memory ran out with .* tokens of a batch on a device, the fewest there can be; use a smaller model'
    with pytest.raises(InputError, match=said):
        adapted(tiny_directories['roberta-dropout'], examples)


def test_after_memory_ran_out_in_the_step_a_training_continues_from_its_checkpoint(
    failing, tiny_directories, examples, tmp_path, monkeypatch
):
    straight, _ = adapted(tiny_directories['roberta-dropout'], examples)
    with monkeypatch.context():
        failing('apply', lambda call, _: call == 4, donated=(0, 1, 2))
        options = {'checkpoint': Checkpoint(tmp_path), 'checkpoint_every': 2}
        with pytest.raises(InputError, match="update 4: memory ran out in the optimizer's step, .*last checkpoint"):
            adapted(tiny_directories['roberta-dropout'], examples, **options)
    failing('apply', lambda *_: False, donated=())
    trained, _ = adapted(tiny_directories['roberta-dropout'], examples, **options)
    rows, other_rows = ([tuple(row) for row in one.updates] for one in (trained, straight))
    np.testing.assert_allclose(rows, other_rows, rtol=2e-5, atol=1e-5)


def test_other_errors_of_a_device_are_not_taken_for_a_lack_of_memory():
    error = jax.errors.JaxRuntimeError('INTERNAL: something else')
    with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
        halved(8, 'tokens', False, 'less', error)


def test_scoring_that_runs_out_of_memory_goes_on_with_less_and_remembers(tiny_directories, texts, caplog, monkeypatch):
    pairs = texts(40, seed=2)
    directory = tiny_directories['roberta']
    expected = Cappy.from_pretrained(directory, max_length=24).score(pairs)
    programs, failed = scoring.score_program, []

    def too_large(call, arguments):
        failed.append(n_tokens(arguments) > 100)
        return failed[-1]

    monkeypatch.setattr(scoring, 'score_program', lambda *model: fails(programs(*model), too_large))
    scorer = Cappy.from_pretrained(directory, max_length=24, tokens_per_device=400)
    with caplog.at_level(logging.WARNING):
        found = scorer.score(pairs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    assert np.ptp(expected) > 0.05
    assert 1 <= len([record for record in caplog.records if 'memory ran out' in record.getMessage()]) <= 3
    n_failed = sum(failed)
    np.testing.assert_allclose(scorer.score(pairs), expected, rtol=0, atol=2e-6)
    assert sum(failed) == n_failed > 0


def test_cut_batches_hold_every_pair_where_it_was():
    pair = np.arange(14, dtype=np.int32).reshape(7, 2)
    batches = [Batch(8, pair, pair * 2), Batch(16, pair[:2], pair[:2])]
    cut = cut_batches(batches, 32, n_data=1)
    assert [batch.shape for batch in cut] == [(4, 8, 2), (4, 8, 2), (2, 16, 2)]
    np.testing.assert_array_equal(np.concatenate([cut[0].pair, cut[1].pair])[:7], pair)
    np.testing.assert_array_equal(np.concatenate([cut[0].start, cut[1].start])[:7], pair * 2)
    assert (cut[1].pair[3] == -1).all()
    assert [batch.shape[0] for batch in cut_batches(batches, 1, n_data=2)] == [2, 2, 2, 2, 2]


def test_a_cpu_keeps_to_its_cache_and_an_unknown_device_to_the_smallest_memory(tiny_directories):
    config = EncoderConfig.from_published(read_config(tiny_directories['roberta']), 'config')
    assert training_tokens(config, get_devices(), np.float32) == 768
    described = dataclasses.replace(get_devices(), is_described=True)
    assert device_memory(described) == 16 * 2**30
    more = [training_bytes(config, np.float32, tokens) for tokens in (512, 1024, 2048)]
    assert more[0] < more[1] < more[2]
