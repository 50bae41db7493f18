"""The program that measures a GPU or TPU, at a tiny size on a CPU."""

import json
import math
import types

import pytest
from conftest import load_script, run_main


@pytest.fixture
def script():
    """The module of benchmarks/device.py."""
    return load_script('benchmarks/device.py')


TINY = {'size': 'tiny', 'texts': 'synthetic', 'n_pairs': 16, 'n_updates': 1, 'pairs_per_update': 8, 'n_repeats': 1}
TINY |= {'n_padded': 8, 'product_width': 32, 'peak_tflops': 1}


def flags_of(values):
    return [f'--{name}={value}' for name, value in values.items()]


@pytest.mark.slow
def test_a_tiny_size_on_a_cpu_measures_every_part_without_pytorch(script, tmp_path, capsys):
    output = tmp_path / 'device.json'
    cell = {'torch_device': 'none', 'cell': True, 'cell_pairs': 128, 'output': output}
    assert run_main(script.main, flags_of(TINY | cell)) == 0
    printed = capsys.readouterr().out
    figures = json.loads(output.read_text())
    parts = ['device', 'peak', 'scoring synthetic', 'memory of scoring', 'training synthetic', 'memory of training']
    assert list(figures) == [*parts, 'cell']
    device = figures['device']
    assert device['self-check'].startswith('passed: 1 x cpu (cpu), 1 process(es), float32, attend_bounded: 12 pairs')
    assert device['PyTorch'] == 'left out: not asked for' and 'jax ' in device['machine']
    assert f'device: machine: {device["machine"]}' in printed
    scoring, training = figures['scoring synthetic'], figures['training synthetic']
    assert set(scoring) == set(training) == {'pairs', 'packed', 'padded to 512'}
    assert scoring['padded to 512']['largest difference'] < 1e-5
    assert scoring['packed']['packed is faster by'] == 1
    ratio = scoring['packed']['pairs/s'] / scoring['padded to 512']['pairs/s']
    assert math.isclose(scoring['padded to 512']['packed is faster by'], ratio)
    for figure in (scoring['packed'], training['packed']):
        # One device whose data sheet says 1 TFLOP/s.
        assert math.isclose(figure['share of the data sheet'], figure['TFLOP/s'])
        assert figure['share of a large product'] > 0
    assert training['packed']['tokens/s'] > training['packed']['pairs/s'] > 0
    assert math.isclose(training['packed']['first loss'], training['padded to 512']['first loss'], rel_tol=1e-4)
    assert (figures['cell']['updates'], figures['cell']['scored']) == (1, 16)


@pytest.mark.slow
def test_cross_encoder_and_pytorchs_update_are_sides_where_pytorch_is(script, tmp_path, capsys):
    for peer in ('torch', 'sentence_transformers'):
        pytest.importorskip(peer)
    output = tmp_path / 'device.json'
    flags = flags_of(TINY | {'n_padded': 0, 'torch_device': 'cpu', 'output': output})
    assert run_main(script.main, flags) == 0
    figures = json.loads(output.read_text())
    scoring, training = figures['scoring synthetic'], figures['training synthetic']
    peers = [f'CrossEncoder, bfloat16, batches of {size}' for size in (32, 128)]
    assert list(scoring) == ['pairs', 'packed', *peers]
    # Its products are in bfloat16, ours on a CPU in float32.
    assert 1e-7 < scoring[peers[0]]['largest difference'] < 0.05
    losses = [training[name]['first loss'] for name in ('packed', 'PyTorch, 32 per micro-batch')]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)  # with other dropout
    assert 'left out' not in figures['device']['PyTorch']


def test_wrong_flags_are_named_before_any_work(script, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(script, 'made_up_pairs', None)  # a call would fail
    for flags, message in (
        (['--texts', 'p3_like,other'], "texts: found 'other'; choose of synthetic,p3_like,e2e_like"),
        (['--cell_texts', 'other'], "texts: found 'other'"),
        (['--n_pairs', '256'], 'n_pairs 256: half of them do not fill 4 updates of 128, a multiple of 8'),
        (['--pairs_per_update', '12'], 'n_pairs 4096: half of them do not fill 4 updates of 12'),
        (['--output', tmp_path], 'is a folder'),
    ):
        assert run_main(script.main, flags) == 1
        printed = capsys.readouterr()
        assert printed.out == '' and len(printed.err.splitlines()) == 1 and message in printed.err


@pytest.mark.parametrize(
    ('kind', 'peak'),
    [
        ('NVIDIA H100 80GB HBM3', 989e12),
        ('NVIDIA H100 PCIe', 756e12),
        ('NVIDIA L40S', 362e12),
        ('NVIDIA L4', 121e12),
        ('Tesla T4', 65e12),
        ('TPU v5 lite', 197e12),
        ('TPU v5p', 459e12),
        ('cpu', None),
    ],
)
def test_a_cards_data_sheet_is_found_by_its_name_and_counts_once_a_device(script, monkeypatch, kind, peak):
    monkeypatch.setattr(script, 'product_rate', lambda device, dtype, width: 5e11)
    cards = types.SimpleNamespace(flat=[types.SimpleNamespace(device_kind=kind)], size=4)
    found = script.Peak(types.SimpleNamespace(mesh=types.SimpleNamespace(devices=cards)), None, 64)
    assert (found.sheet, found.measured) == (peak and 4 * peak, 2e12)
    shares = found.shares(n_operations=4e12, seconds=2.0)
    assert (shares['TFLOP/s'], shares['share of a large product']) == (2.0, 1.0)
    assert shares.get('share of the data sheet') == (peak and 2e12 / (4 * peak))
