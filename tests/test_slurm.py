"""Sweeps under a real Slurm of one node that is started here, with kills, preemption, timeouts, cancelled jobs."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from sweep_cells import (
    SCRIPT,
    check_cells,
    check_tables_pictures_and_page,
    kill_a_cell_and_the_runner,
    sweep_flags,
    wait_for,
)

from cappy.files.updates import read_updates
from cappy.study import results

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
PROGRAMS = ('slurmctld', 'slurmd', 'sbatch', 'squeue', 'srun', 'munged', 'runuser')


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    """The environment of a user of a running Slurm."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f'{os.environ["PATH"]}:/usr/sbin:/sbin') is None]
    if missing:
        pytest.skip(f'needs Slurm (apt-get install slurm-wlm munge); not found: {", ".join(missing)}')
    if os.geteuid():
        pytest.skip('needs root, to start the daemons of Slurm')
    pytest.importorskip('submitit', reason="needs submitit (pip install -e '.[cluster]')")
    folder = tmp_path_factory.mktemp('slurm')
    command = ['bash', ROOT / 'tests' / 'one_node_slurm.sh']
    started = subprocess.run([*command, 'start', folder], capture_output=True, text=True)
    try:
        if started.returncode:
            pytest.skip(f'Slurm does not start here: {started.stderr.strip().splitlines()[-1]}')
        yield {**os.environ, 'SLURM_CONF': str(folder / 'slurm.conf')}
    finally:
        subprocess.run([*command, 'stop', folder], check=True)


def sweep_command(data, folder, *more):
    argv = sweep_flags(
        data, folder, '--cluster', 'slurm', '--slurm_gpus', '0', '--slurm_cpus', '1', '--slurm_mem_gb', '2'
    )
    return [sys.executable, SCRIPT, *argv, '--poll_seconds', '1', *map(str, more)]


def slurm(cluster, *command):
    return subprocess.run(command, env=cluster, check=True, capture_output=True, text=True).stdout


def start(cluster, command):
    return subprocess.Popen(command, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_sweep_is_resumed_under_slurm_without_sacct(cluster, sweep_data, tmp_path, capsys):
    folder = tmp_path / 'out'
    command = sweep_command(sweep_data, folder, '--slurm_setup', 'export SETUP_WAS_RUN=1')
    kill_a_cell_and_the_runner(command, folder, cluster)
    ended = subprocess.run(command, env=cluster, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, '6 done of 6\n'), ended.stderr
    (script,) = (folder / '.slurm').glob('[0-9]*_submission.sh')  # one array: the second runner watched the first's
    assert '--array=0-5%6' in script.read_text() and 'export SETUP_WAS_RUN=1' in script.read_text()
    check_cells(folder)
    check_tables_pictures_and_page(sweep_data, folder, tmp_path, capsys)


def long_cell(data, folder, *more):
    """A sweep of one cell that trains for a while and writes checkpoints."""
    more = ('--tasks', 'tiny_tense', '--gen_models', 'other-lm', '--checkpoint_every', '5', *more)
    command = sweep_command(data, folder, *more)
    command[command.index('--train_size') + 1] = '8000'
    return command


def test_a_cell_that_ran_out_of_time_or_was_preempted_resumes_from_its_checkpoint(cluster, sweep_data, tmp_path):
    command = long_cell(sweep_data, tmp_path)
    state = tmp_path / 'other-lm' / 'tiny_tense.checkpoint' / 'state.safetensors'
    log = tmp_path / 'other-lm' / 'tiny_tense.log'
    with start(cluster, command) as runner:
        wait_for(state.exists)
        status = start(cluster, [*command, '--status'])
        assert '1 running of 1' in status.communicate()[0] and status.returncode == 1
        (job_id,) = slurm(cluster, 'squeue', '--noheader', '--format=%i').split()
        slurm(
            cluster, 'scancel', '--signal=USR2', job_id
        )  # with this signal Slurm announces that the time is nearly up
        wait_for(lambda: 'continuing after update' in log.read_text())
        assert slurm(cluster, 'squeue', '--noheader', '--format=%i').split() == [job_id]
        slurm(cluster, 'sbatch', '--partition=urgent', '--exclusive', '--output=/dev/null', '--wrap=sleep 2')
        out, err = runner.communicate(timeout=300)
    assert runner.returncode == 0, err
    assert err.count('again     ') == 1 and f'again     other-lm/tiny_tense: Slurm job {job_id}: PREEMPTED' in err
    text = log.read_text()
    assert text.count('attempt 1') == 3 and text.count('continuing after update') == 2 and '] stopped' in text
    updates = read_updates(tmp_path / 'other-lm' / 'tiny_tense.train.csv')
    assert [row.update for row in updates] == list(range(500)) and out == '1 done of 1\n'


def test_jobs_outlive_a_stopped_runner_and_a_cancelled_job_fails(cluster, sweep_data, tmp_path):
    command = long_cell(sweep_data, tmp_path)
    state = tmp_path / 'other-lm' / 'tiny_tense.checkpoint' / 'state.safetensors'
    with start(cluster, command) as runner:
        wait_for(state.exists, 120)
        runner.kill()
    (job_id,) = slurm(cluster, 'squeue', '--noheader', '--format=%i').split()
    with start(cluster, command) as runner:
        assert 'started   other-lm/tiny_tense' in ''.join(runner.stderr.readline() for _ in range(2))
        assert slurm(cluster, 'squeue', '--noheader', '--format=%i').split() == [job_id]
        slurm(cluster, 'scancel', job_id)
        err = runner.communicate(timeout=120)[1]
    assert runner.returncode == 1
    assert f'failed    other-lm/tiny_tense: Slurm job {job_id}: CANCELLED' in err
    assert not (tmp_path / 'other-lm' / 'tiny_tense.json').exists()


def test_two_processes_of_one_slurm_job_give_the_result_of_one_process(cluster, sweep_data, tmp_path):
    words = sweep_flags(sweep_data, tmp_path)[2:]  # without --data_dir
    words += ['--bigbench_gen_model', 'flan-t5-tiny', '--bigbench_subset_name', 'tiny_tense']
    words += ['--lr_schedule', 'corrected']  # the other one counts micro-batches
    alone = [tmp_path / 'alone' if word == str(tmp_path) else word for word in words]
    subprocess.run([sys.executable, ROOT / 'cappy_bigbench.py', *alone], check=True)
    words[words.index('--accumulate_grad_batches') + 1] = '1'  # the same 16 pairs on two devices
    # As in docs/sweeps.md, but for both processes on one node.
    batch = f"""#!/bin/bash
#SBATCH --job-name=cappy --nodes=1 --ntasks-per-node=2 --output={tmp_path}/job.log
host0=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun bash -c '{sys.executable} {ROOT}/cappy_bigbench.py {' '.join(words)} \\
    --n_processes $SLURM_NTASKS --process_id $SLURM_PROCID --host0_address '"$host0"' --host0_port 18111'
"""
    (tmp_path / 'job.sh').write_text(batch)
    slurm(cluster, 'sbatch', tmp_path / 'job.sh')
    assert wait_for(lambda: not slurm(cluster, 'squeue', '--noheader'), 300)
    together, alone = (
        results.read_result(results.ResultPaths(folder, 'flan-t5-tiny', 'tiny_tense').result)
        for folder in (tmp_path, tmp_path / 'alone')
    )
    assert '2 process(es)' in together['device'] and '1 process(es)' in alone['device']
    assert together['counts']['updates'] == alone['counts']['updates'] == 32
    assert together['rougeL'] == pytest.approx(alone['rougeL'], abs=1e-6)
