import dataclasses
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROBERTA, load_script, random_tensors, run_main

from cappy import Cappy
from cappy.errors import InputError
from cappy.model import scoring, self_check
from cappy.model.layers import attend
from cappy.model.training import TrainingSettings

PAIRS = [('a cat', 'sat'), ('a cat', 'sings')]


def attend_all(query, key, value, n_heads, query_segments, key_segments, dropout):
    """Attention that forgets which tokens are of one pair."""
    ones = jnp.ones_like
    return attend(query, key, value, n_heads, ones(query_segments), ones(key_segments), dropout)


def attend_past_one_end(query, key, value, n_heads, query_segments, key_segments, dropout):
    """Attention that sees, besides its own pair, the first token of the next one."""
    begins = jnp.diff(key_segments, prepend=0) > 0
    return attend(
        query, key, value, n_heads, query_segments, jnp.where(begins, key_segments - 1, key_segments), dropout
    )


@pytest.fixture
def other_attention(monkeypatch):
    """(attention) -> from now on scoring programs have it, in this test."""

    def replace(attention):
        monkeypatch.setattr(scoring, 'attention_of', lambda devices, dtype, drops: attention)
        monkeypatch.setattr(self_check, 'attention_of', lambda devices, dtype, drops: attention)
        scoring.score_program.cache_clear()

    yield replace
    scoring.score_program.cache_clear()


@pytest.fixture
def as_gpu(monkeypatch):
    """(scorer) -> the scorer, whose devices say that they are a GPU; nothing is checked yet."""
    monkeypatch.setattr(self_check, '_passed', set())
    monkeypatch.delenv(self_check.SKIP, raising=False)

    @dataclasses.dataclass(frozen=True)
    class Gpu(type(scoring_devices())):
        platform = 'gpu'

    def disguise(scorer):
        scorer.devices = Gpu(scorer.devices.deployer, scorer.devices.mesh)
        return scorer

    return disguise


def scoring_devices():
    from cappy import get_devices

    return get_devices()


def load(directory, dtype='float32'):
    return Cappy.from_pretrained(directory, compute_dtype=dtype, max_length=24)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', ['roberta', 'bert'])
def test_a_cpu_passes_with_no_difference_where_leaking_would_be_seen(tiny_directories, name, dtype):
    found = load(tiny_directories[name], dtype).self_check()
    assert found.passed and found.n_pairs == 12
    assert found.difference <= 1e-6
    assert found.leakage > 10 * found.tolerance
    assert found.path == f'1 x cpu (cpu), 1 process(es), {dtype}, attend_bounded'


@pytest.mark.parametrize('attention', [attend_all, attend_past_one_end])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_attention_that_leaks_is_refused_in_one_line(tiny_cappy, other_attention, attention, dtype):
    other_attention(attention)
    found = load(tiny_cappy, dtype).self_check()
    assert not found.passed and found.difference > 2 * found.tolerance
    with pytest.raises(InputError, match='score apart by .*packed pairs are not kept apart.*upgrade jax') as caught:
        self_check.refuse_failed(found)
    line, other = str(caught.value), {'float32': 'bfloat16', 'bfloat16': 'float32'}[dtype]
    assert line.startswith(f'1 x cpu (cpu), 1 process(es), {dtype}, {attention.__name__}: 12 pairs')
    assert '\n' not in line and f'try compute_dtype {other}' in line and f'{found.difference:.1e}' in line


def test_scores_that_are_not_numbers_do_not_pass():
    assert not self_check.SelfCheck('x', 12, float('nan'), 1.0, 1e-3).passed


def test_a_leak_is_refused_in_an_encoder_whose_attention_changes_little(make_model, other_attention):
    tensors = random_tensors(ROBERTA)
    tensors |= {name: tensors[name] * 0.01 for name in tensors if 'attention.output.dense' in name}
    directory = make_model(tensors=tensors)
    found = load(directory, 'bfloat16').self_check()
    assert found.passed and found.tolerance < self_check.TOLERANCES['bfloat16']
    other_attention(attend_all)
    assert not load(directory, 'bfloat16').self_check().passed


def test_a_new_head_whose_scores_are_all_alike_does_not_hide_a_leak(constant_scorer, other_attention):
    assert np.ptp(load(constant_scorer).score(PAIRS)) == 0
    other_attention(attend_all)
    assert not load(constant_scorer).self_check().passed


def test_a_cpu_is_not_checked_by_itself(tiny_cappy, monkeypatch):
    monkeypatch.setattr(self_check, 'check', None)  # a call would fail
    assert load(tiny_cappy).score(PAIRS).shape == (2,)


def test_an_accelerator_is_checked_once_before_its_first_scores_and_says_its_path(tiny_cappy, as_gpu, caplog):
    expected = load(tiny_cappy).score(PAIRS)
    with caplog.at_level(logging.WARNING, self_check.logger.name):
        scorers = [as_gpu(load(tiny_cappy)) for _ in range(2)]
        scores = [scorer.score(PAIRS) for scorer in scorers for _ in range(2)]
    np.testing.assert_allclose(scores, [expected] * 4, rtol=0, atol=1e-5)
    [message] = [record.getMessage() for record in caplog.records if record.name == self_check.logger.name]
    assert message.startswith('1 x cpu (gpu), 1 process(es), float32, attend: 12 pairs score apart by ')


@pytest.mark.parametrize('first', ['score', 'adapt'])
def test_an_accelerator_that_leaks_scores_and_trains_nothing(tiny_cappy, as_gpu, other_attention, first, monkeypatch):
    other_attention(attend_all)
    scorer = as_gpu(load(tiny_cappy))
    settings = TrainingSettings(per_device_batch_size=1, accumulate_grad_batches=1)

    def act():
        return scorer.score(PAIRS) if first == 'score' else scorer.adapt([(*PAIRS[0], 1.0)], settings, progress=False)

    for _ in range(2):
        with pytest.raises(InputError, match='packed pairs are not kept apart'):
            act()
    assert scorer.params is not None
    monkeypatch.setenv(self_check.SKIP, '1')
    assert act() is not None


@pytest.mark.parametrize(
    ('reason', 'error'),
    [
        ('FAILED_PRECONDITION: DNN library initialization failed.\nLook above.', InputError),
        ('INTERNAL: CUDA_ERROR_UNSUPPORTED_PTX_VERSION: too new', InputError),
        ('INTERNAL: no kernel image is available', InputError),
        ('RESOURCE_EXHAUSTED: Out of memory', jax.errors.JaxRuntimeError),
        ('INTERNAL: the device fell over', jax.errors.JaxRuntimeError),
    ],
)
def test_a_driver_that_does_not_fit_is_told_from_other_failures(tiny_cappy, as_gpu, monkeypatch, reason, error):
    def failing(params, rows):
        raise jax.errors.JaxRuntimeError(reason)

    monkeypatch.setattr(self_check, 'score_program', lambda *_: failing)
    with pytest.raises(error) as caught:
        as_gpu(load(tiny_cappy)).score(PAIRS)
    if error is InputError:
        line = str(caught.value)
        assert line.startswith(f'1 x cpu (gpu), 1 process(es): the first program failed ({reason.splitlines()[0]}); ')
        assert '\n' not in line and 'driver' in line and 'JAX_PLATFORMS=cpu' in line


def test_the_script_prints_what_was_found_and_refuses_a_leak(tiny_cappy, other_attention, capsys):
    main = load_script('scripts/check_device.py').main
    assert run_main(main, ['--model_name_or_path', tiny_cappy]) == 0
    assert capsys.readouterr().out.startswith('1 x cpu (cpu), 1 process(es), float32, attend_bounded: 12 pairs')
    other_attention(attend_all)
    assert run_main(main, ['--model_name_or_path', tiny_cappy]) == 1
    printed = capsys.readouterr()
    assert printed.out == '' and printed.err.splitlines()[-1].startswith('error: 1 x cpu (cpu)')


def test_rows_are_shared_out_over_several_devices(tiny_cappy, monkeypatch):
    scorer, shapes = load(tiny_cappy), []
    program = scoring.score_program(scorer.config, scorer.compute_dtype, scorer.devices)

    def watched(params, rows):
        shapes.append(rows['tokens'].shape)
        return program(params, rows)

    monkeypatch.setattr(self_check, 'score_program', lambda *_: watched)
    monkeypatch.setattr(self_check, 'attention_of', lambda *_, drops: attend)
    many = types.SimpleNamespace(
        n_data=3,
        put=scorer.devices.put,
        put_rows=scorer.devices.put_rows,
        replicated=scorer.devices.replicated,
        platform='cpu',
        description='3',
    )
    found = self_check.check(scorer.params, scorer.tokenizer, scorer.config, many, scorer.compute_dtype)
    assert found.passed and set(shapes) == {(6, 512)}
