"""The programs compiled for a TPU that is only described, by libtpu, which .ci/run installs in .venv-tpu."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, load_script

OWN = ROOT / '.venv-tpu' / 'bin' / 'python'
PYTHON = sys.executable if importlib.util.find_spec('libtpu') else str(OWN) if OWN.exists() else None
SMALL, LARGE = 'v5e/1/score-base/2048x128', 'v5e/1/train-base/8192x512'


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason='libtpu is not installed; .ci/run installs it in .venv-tpu')
def test_a_small_and_a_large_program_compile_for_a_tpu_and_need_the_memory_that_is_expected(tmp_path):
    output = tmp_path / 'rows.jsonl'
    command = [PYTHON, str(ROOT / 'benchmarks' / 'accelerators.py'), '--cases', f'{SMALL},{LARGE}', '--output', output]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(('JAX_', 'XLA_'))}
    for _ in range(2):  # the second time, nothing is compiled
        subprocess.run(command, check=True, capture_output=True, env=environment, timeout=1500)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    rows = {row['case']: row for row in lines}
    assert len(lines) == 2 and rows.keys() == {SMALL, LARGE}
    for row in lines:
        assert row['operations'] > 1e11 and row['bytes'] > 1e9 and row['collectives'] == {}
    # RoBERTa-base's parameters, rounded weights, Adam's two means and the gradients; then what the backward pass reads.
    large = rows[LARGE]
    assert large['argument'] + large['elsewhere'] == pytest.approx(2.16e9, rel=0.02)
    assert sum(large[part] for part in ('argument', 'elsewhere', 'temp', 'output')) == pytest.approx(3.98e9, rel=0.15)


def test_the_recorded_figures_of_compilers_are_within_a_tenth_of_what_the_budgets_expect():
    from cappy.model.budgets import scoring_bytes, training_bytes
    from cappy.model.config import EncoderConfig

    scorer_config = load_script('benchmarks/common.py').scorer_config
    rows = [json.loads(line) for line in (ROOT / 'benchmarks' / 'accelerators.jsonl').read_text().splitlines()]
    expecting = {'train': training_bytes, 'score': scoring_bytes}
    checked = set()
    for row in rows:
        card, devices, program, *shape = row['case'].split('/')
        program, size = program.split('-')
        if program not in expecting or 'refused' in row:
            continue
        config = EncoderConfig.from_published(scorer_config(size), size)
        tokens, row_length = map(int, shape[0].split('x'))
        platform = 'tpu' if card.startswith('v') else 'gpu'
        n_shards = int(devices.partition('x')[2] or 1)
        expected = expecting[program](config, 'bfloat16', tokens, row_length, platform, n_shards=n_shards)
        found = sum(row[part] for part in ('argument', 'elsewhere', 'temp', 'output'))
        assert expected == pytest.approx(found, rel=0.1), row['case']
        checked.add((program, platform, n_shards))
    assert len(checked) == 8  # training and scoring, on TPUs and GPUs, whole and in two shards
