"""The sweep as a user runs it: flags passed on and checked first, real cells side by side, states, kills."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import RECORDED, load_script
from sweep_cells import SCRIPT, sweep_flags

from cappy.cli import flags
from cappy.files.lock import result_lock
from cappy.study import results, sweep

script = load_script('scripts/run_cappy_bigbench.py')


@pytest.fixture
def run(capsys):
    """(arguments) -> (exit code, standard output, standard error) of the script in this process."""

    def run(*argv):
        code = 0
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        try:
            flags.run(script.with_flags_of_a_cell(script.main), [str(word) for word in argv])
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def planned(monkeypatch):
    """(jobs, workers) of each sweep that the script hands to the runner, which makes nothing."""
    handed = []

    class Planned:
        def __init__(self, jobs, workers, on_event):
            handed.append((jobs, workers))

        def run(self):
            pass

    monkeypatch.setattr(sweep, 'Runner', Planned)
    return handed


def test_a_sweep_makes_the_missing_cells_and_reports_each(sweep_data, tmp_path, run):
    made = results.ResultPaths(tmp_path, 'other-lm', 'tiny_tense').result
    made.parent.mkdir()
    made.write_text('{"rougeL": 0.125, "settings": {"learning_rate": 1e-05}}')
    argv = sweep_flags(sweep_data, tmp_path, '--workers', '1', '--tasks', 'tiny_tense')
    code, out, err = run(*argv)
    assert code == 0, err
    recorded = json.loads((RECORDED / 'bigbench' / 'tiny_tense.result.json').read_text())
    ours = results.read_result(tmp_path / 'flan-t5-tiny' / 'tiny_tense.json')
    assert ours['rougeL'] == pytest.approx(recorded['rougeL'], abs=1e-6)
    assert ours['settings']['train_size'] == 512 and ours['settings']['checkpoint_every'] == 200
    assert json.loads(made.read_text())['rougeL'] == 0.125
    assert '1 of 2 cells have results' in err
    assert f'done      flan-t5-tiny/tiny_tense: rougeL {100 * ours["rougeL"]:.2f} (x 100) in ' in err
    assert err.splitlines()[-2:] == [
        'made with learning_rate 1e-05 (asked for: 5e-05): other-lm/tiny_tense (1 result)',
        'these results are kept; --overwrite replaces them',
    ]
    assert out == '2 done of 2\n'
    log = (tmp_path / 'flan-t5-tiny' / 'tiny_tense.log').read_text()
    assert 'Cappy + flan-t5-tiny on tiny_tense' in log
    assert 1 <= log.count('adapting:') < ours['counts']['updates'] / 2  # not one line per update
    code, out, _ = run(*argv, '--status')
    assert code == 0 and out.splitlines()[4].split() == ['tiny_tense', f'{100 * ours["rougeL"]:.2f}', '12.50']


def test_every_flag_of_a_cell_is_passed_on_with_its_type(sweep_data, tmp_path, run, planned):
    run(*sweep_flags(sweep_data, tmp_path, '--max_length', '64', '--reference_labels', 'skip', '--tasks', 'tiny_tense'))
    ((jobs, _),) = planned
    given = flags.parse_flags(script.cappy_bigbench.main, jobs[0].command[2:])
    assert given == {
        **{'bigbench_gen_dir': str(sweep_data / 'gens'), 'bigbench_gen_model': 'flan-t5-tiny'},
        **{'bigbench_subset_name': 'tiny_tense', 'model_name_or_path': str(RECORDED / 'tiny-cappy')},
        **{'results_dir': str(tmp_path), 'seed': 11111, 'checkpoint_every': 200, 'train_size': 512},
        **{'accumulate_grad_batches': 2, 'learning_rate': 5e-5, 'compare_before': False, 'max_length': 64},
        'reference_labels': 'skip',
    }
    passed = set(script.inspect.signature(script.with_flags_of_a_cell(script.main)).parameters)
    assert set(script.CELL_DEFAULTS) - passed == set(script.NOT_PASSED)


RECIPE = ('--recipe', 'picks', '--metric', 'chrf', '--n_folds', '3')


def test_a_recipe_reaches_each_cell_once_and_what_is_given_beside_it_stays(sweep_data, tmp_path, run, planned):
    argv = sweep_flags(sweep_data, tmp_path, '--tasks', 'tiny_tense', '--gen_models', 'other-lm', *RECIPE)
    run(*argv, '--pick', 'scorer', '--lr_schedule', 'corrected')
    (((job,), _),) = planned
    words = [word for word in job.command[2:] if not word.startswith(('--bigbench', '--results', '--model', '--seed'))]
    assert sorted(words) == [
        '--accumulate_grad_batches=2',
        '--checkpoint_every=200',
        '--compare_before=False',
        '--learning_rate=5e-05',
        '--metric=chrf',
        '--n_folds=3',
        '--pick=scorer',
        '--recipe=picks',
        '--train_size=512',
    ]
    recipe = script.cappy_bigbench.RECIPES['picks']
    given = flags.parse_flags(script.cappy_bigbench.main, job.command[2:])
    assert {name: given[name] for name in recipe} == recipe | {'train_size': 512, 'pick': 'scorer'}
    assert (given['metric'], given['n_folds']) == ('chrf', 3)


def test_a_cell_without_a_recipe_gets_the_flags_of_its_picks_as_they_are_given(sweep_data, tmp_path, run, planned):
    more = ('--combine', 'consensus,decoding', '--pick', 'combined', '--n_folds', '4', '--metric', 'exact_match')
    run(*sweep_flags(sweep_data, tmp_path, '--tasks', 'tiny_tense', '--gen_models', 'other-lm', *more))
    (((job,), _),) = planned
    given = flags.parse_flags(script.cappy_bigbench.main, job.command[2:])
    assert (given['combine'], given['pick']) == (('consensus', 'decoding'), 'combined')
    assert (given['n_folds'], given['metric'], given['train_size']) == (4, 'exact_match', 512)
    assert 'objective' not in given and 'recipe' not in given


def test_results_that_a_recipe_made_are_kept_without_a_remark_on_what_it_brings(sweep_data, tmp_path, run, planned):
    argv = sweep_flags(sweep_data, tmp_path, '--tasks', 'tiny_tense', '--gen_models', 'other-lm', *RECIPE)
    recipe = script.cappy_bigbench.RECIPES['picks']
    settings = script.CELL_DEFAULTS | recipe | {'recipe': 'picks', 'metric': 'chrf', 'n_folds': 3, 'train_size': 512}
    settings |= {'accumulate_grad_batches': 2, 'learning_rate': 5e-5, 'compare_before': False}
    settings |= {'model_name_or_path': str(RECORDED / 'tiny-cappy')}
    path = results.ResultPaths(tmp_path, 'other-lm', 'tiny_tense').result
    path.parent.mkdir()
    path.write_text(json.dumps({'rougeL': 0.5, 'pick': 'combined', 'settings': settings}))
    code, out, err = run(*argv)
    assert (code, out, err, planned) == (0, '1 done of 1\n', '', [])
    _, _, err = run(*argv, '--objective', 'centred')
    assert err.splitlines()[0] == (
        "made with objective 'listwise' (asked for: 'centred'): other-lm/tiny_tense (1 result)"
    )
    index = argv.index('--train_size')
    del argv[index : index + 2]  # then the recipe's counts, not the paper's
    _, _, err = run(*argv)
    assert err.startswith('made with train_size 512 (asked for: 10240): ')


def test_the_help_says_what_a_recipe_brings(run):
    code, out, _ = run('--help')
    assert code == 0 and '--recipe picks: --train_size 10240 --objective listwise' in out
    assert '--combine weighted_consensus --pick combined' in ' '.join(out.split())


def test_generators_are_swept_from_the_largest_as_in_the_reference(tmp_path, run, planned):
    for size in ('small', 'xxl', 'base', 'xl', 'large'):
        place = tmp_path / 'gens' / f'flan-t5-{size}'
        place.mkdir(parents=True)
        for split in ('train', 'validation'):
            (place / f'tense_{split}.jsonl').write_text('{}\n')
    (tmp_path / 'subset_names.json').write_text('["tense"]')
    run(*sweep_flags(tmp_path, tmp_path / 'out'))
    ((jobs, workers),) = planned
    assert [job.name for job in jobs] == [f'flan-t5-{size}/tense' for size in ('xxl', 'xl', 'large', 'base', 'small')]
    assert [dict(worker.environment) for worker in workers] == [{'CUDA_VISIBLE_DEVICES': '0'}]


def test_several_seeds_have_a_folder_each_and_one_seed_has_none(sweep_data, tmp_path, run, planned):
    more = ('--tasks', 'tiny_tense', '--gen_models', 'other-lm', '--save_dir', tmp_path / 'saved')
    run(*sweep_flags(sweep_data, tmp_path, *more, '--seeds', '1,2'))
    run(*sweep_flags(sweep_data, tmp_path, *more, '--seeds', '3'))
    jobs = [job for jobs, _ in planned for job in jobs]
    assert [str(job.paths.results_dir) for job in jobs] == [f'{tmp_path}/seed1', f'{tmp_path}/seed2', str(tmp_path)]
    assert [job.save_dir for job in jobs] == [
        str(tmp_path / 'saved' / part / 'other-lm' / 'tiny_tense') for part in ('seed1', 'seed2', '.')
    ]
    assert [next(word for word in job.command if word.startswith('--seed=')) for job in jobs] == [
        f'--seed={number}' for number in (1, 2, 3)
    ]
    assert [job.name for job in jobs] == [f'{name}other-lm/tiny_tense' for name in ('seed1/', 'seed2/', '')]


def test_devices_are_grouped_by_the_number_of_model_shards(sweep_data, tmp_path, run, planned, monkeypatch):
    monkeypatch.setattr(sweep, 'n_nvidia_devices', lambda: 4)
    run(*sweep_flags(sweep_data, tmp_path, '--gpus', '0,1,2,3'))
    run(*sweep_flags(sweep_data, tmp_path, '--gpus', '0,1,2,3', '--n_model_shards', '2'))
    run(*sweep_flags(sweep_data, tmp_path, '--cuda_idx', '3'))
    groups = [[worker.environment['CUDA_VISIBLE_DEVICES'] for worker in workers] for _, workers in planned]
    assert groups == [['0', '1', '2', '3'], ['0,1', '2,3'], ['3']]
    # The fewest that a GPU is given, for a cell that runs out of memory.
    assert planned[0][0][0].fewer_tokens == ('--tokens_per_device=512', '--eval_tokens_per_device=512')
    code, _, err = run(*sweep_flags(sweep_data, tmp_path, '--gpus', '0,4'))
    assert code == 1 and '--gpus 4: no such device; there are 4, from 0 to 3' in err


BAD = {
    'misspelt': (['--trainsize', '5'], ['trainsize', 'train_size']),
    'ill-typed flag of a cell': (['--max_length', 'long'], ['--max_length', 'integer', 'long']),
    'unknown choice': (['--lr_schedule', 'cosine'], ['--lr_schedule', 'corrected', 'cosine']),
    'unknown metric': (['--metric', 'chrff'], ['--metric', 'chrff', 'chrf']),
    'unknown signal': (['--recipe', 'picks', '--combine', 'consensos'], ['--combine', 'consensos']),
    'a combined pick of nothing': (['--pick', 'combined'], ['--pick', '--combine']),
    'unknown task': (['--tasks', 'tiny_tens'], ['tiny_tens', 'tiny_tense']),
    'unknown generator': (['--gen_models', 'other-ln'], ['other-ln', 'other-lm']),
    'a flag that the sweep sets': (['--bigbench_gen_model', 'x'], ['no flag --bigbench_gen_model']),
    'no model': (['--model_name_or_path', '/nowhere'], ['/nowhere']),
    'train_size below an update': (['--train_size', '8'], ['train_size 8', '16']),
    'seeds': (['--seeds', '1,two'], ['--seeds', 'two']),
    'an empty name': (['--tasks', 'tiny_tense,'], ['tiny_tense,']),
    'seed and seeds': (['--seed', '1', '--seeds', '1,2'], ['--seed and --seeds']),
    'devices and workers': (['--gpus', '0', '--workers', '1'], ['--gpus and --workers']),
    'too many workers': (['--workers', '1000'], ['--workers 1000']),
    'shards without devices': (['--n_model_shards', '2'], ['--n_model_shards 2', '--gpus']),
    'devices that do not divide': (['--gpus', '0,1,2', '--n_model_shards', '2'], ['3 devices', '2']),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line_before_anything_begins(case, sweep_data, tmp_path, run):
    argv, named = BAD[case]
    given = sweep_flags(sweep_data, tmp_path / 'out')
    for name in argv[::2]:
        if name in given:
            del given[given.index(name) : given.index(name) + 2]
    code, _, err = run(*given, *argv)
    assert code == 1 and err.splitlines()[-1].startswith('error: ')
    for word in named:
        assert word in err.splitlines()[-1]
    assert not (tmp_path / 'out').exists()


def remove_samples(data):
    """Without a train file of one cell and with an empty validation file of another."""
    (data / 'gens' / 'other-lm' / 'tiny_tense_train.jsonl').unlink()
    (data / 'gens' / 'other-lm' / 'tiny_third_validation.jsonl').write_text('')


def test_files_of_samples_that_are_missing_are_named_before_anything_begins(sweep_data, tmp_path, run):
    data = tmp_path / 'data'
    shutil.copytree(sweep_data, data)
    remove_samples(data)
    code, _, err = run(*sweep_flags(data, tmp_path / 'out', '--tasks', 'all'))
    assert code == 1 and '2 files of samples are missing or empty' in err
    assert 'other-lm/tiny_tense_train.jsonl, other-lm/tiny_third_validation.jsonl' in err
    assert not (tmp_path / 'out').exists()


def test_without_tasks_each_generator_has_those_of_which_it_has_samples(sweep_data, tmp_path, run, planned):
    data = tmp_path / 'data'
    shutil.copytree(sweep_data, data)
    (data / 'subset_names.json').write_text('["tiny_third", "tense", "tiny_tense", "gem"]')
    for split in ('train', 'validation'):
        (data / 'gens' / 'other-lm' / f'tiny_third_{split}.jsonl').unlink()
    _, _, err = run(*sweep_flags(data, tmp_path / 'out'))
    ((jobs, _),) = planned
    assert [job.name for job in jobs] == [
        *(f'flan-t5-tiny/{task}' for task in ('tiny_third', 'tiny_tense', 'tiny_arithmetic')),
        *(f'other-lm/{task}' for task in ('tiny_tense', 'tiny_arithmetic')),
    ]
    assert '2 of the 4 tasks of ' in err
    assert 'left out for lack of samples: other-lm/tiny_third (1 of 6 cells)' in err


def test_results_of_other_weights_are_reported_last(sweep_data, tmp_path, run, monkeypatch):
    monkeypatch.setattr(script, 'digest_of_model', lambda settings: 'b' * 64)
    for task, digest in (('tiny_tense', 'a'), ('tiny_third', 'b')):
        paths = results.ResultPaths(tmp_path, 'other-lm', task)
        paths.result.parent.mkdir(exist_ok=True)
        paths.result.write_text(json.dumps({'rougeL': 0.5, 'model_digest': digest * 64, 'settings': {}}))
    argv = sweep_flags(sweep_data, tmp_path, '--gen_models', 'other-lm', '--tasks', 'tiny_tense,tiny_third')
    code, out, err = run(*argv)
    assert (code, out) == (0, '2 done of 2\n')
    (line, _) = err.splitlines()
    assert line.startswith('made with weights aaaaaaaaaaaa (') and line.endswith('): other-lm/tiny_tense (1 result)')


def test_running_cells_are_shown_with_their_phase_and_updates(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, 'PROGRESS_SECONDS', 0)
    jobs = [sweep.Job(results.ResultPaths(tmp_path, 'lm', task), ()) for task in ('a', 'b')]
    (tmp_path / 'lm').mkdir()
    mark = f'{sweep.MARK}2026-01-01T00:00:00+00:00] attempt 1: x\n'
    jobs[0].log.write_text(f'{mark}adapting:  37%|###   | 12/32 [00:05<00:09, 2.2it/s]')
    jobs[1].log.write_text(mark)
    progress = script.Progress(jobs, jobs)
    for job in jobs:
        progress.on_event('started', job, 1)
    progress.on_event('tick', None, None)
    progress.on_event('failed', jobs[1], 'why')
    progress.on_event('tick', None, None)
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith('running')]
    assert shown == [
        'running   lm/a: adapting 12/32, 00:09 left',
        'running   lm/b: reading data and model, or compiling',
        'running   lm/a: adapting 12/32, 00:09 left',
    ]


def test_status_shows_each_kind_of_cell_and_ends_with_1_while_one_is_missing(sweep_data, tmp_path, run):
    def paths(generator, task):
        paths = results.ResultPaths(tmp_path, generator, task)
        paths.result.parent.mkdir(exist_ok=True)
        return paths

    paths('flan-t5-tiny', 'tiny_tense').result.write_text('{"rougeL": 0.25}')
    corrupt = paths('flan-t5-tiny', 'tiny_arithmetic').result
    corrupt.write_text('{"rougeL": ')
    mark = f'{sweep.MARK}2026-01-01T00:00:00+00:00] '
    log = paths('other-lm', 'tiny_tense').result.with_suffix('.log')
    log.write_text(f'{mark}attempt 1: x\nerror: bad\n{mark}failed: bad\n')
    paths('other-lm', 'tiny_third').result.with_suffix('.log').write_text(f'{mark}attempt 1: x\n')
    with result_lock(paths('other-lm', 'tiny_arithmetic')):
        code, out, _ = run(*sweep_flags(sweep_data, tmp_path, '--status'))
    assert code == 1
    assert [line.split() for line in out.splitlines()[4:7]] == [
        ['tiny_arithmetic', 'corrupt', 'running'],
        ['tiny_tense', '25.00', 'failed'],
        ['tiny_third', 'missing', 'stopped'],
    ]
    assert '1 done, 1 running, 1 failed, 1 corrupt, 1 stopped, 1 missing of 6' in out
    assert f'failed   other-lm/tiny_tense: bad ({log})' in out
    assert f'running  other-lm/tiny_arithmetic: process {os.getpid()} on ' in out and str(corrupt) in out


def test_a_corrupt_result_is_kept_and_named_and_the_exit_code_is_1(sweep_data, tmp_path, run, planned):
    corrupt = results.ResultPaths(tmp_path, 'other-lm', 'tiny_tense').result
    corrupt.parent.mkdir()
    corrupt.write_text('{"rougeL": ')
    code, _, err = run(*sweep_flags(sweep_data, tmp_path))
    assert code == 1 and f'{corrupt}: not a result' in err and 'kept (--overwrite replaces it)' in err
    assert len(planned[0][0]) == 5 and corrupt.read_text() == '{"rougeL": '


def test_a_cluster_without_its_tools_is_said_in_one_line(sweep_data, tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'submitit', None)
    code, _, err = run(*sweep_flags(sweep_data, tmp_path, '--cluster', 'slurm'))
    assert code == 1 and err == "error: --cluster slurm needs submitit: pip install -e '.[cluster]'\n"


def test_help_explains_the_flags_of_the_sweep_and_of_a_cell(run):
    code, out, _ = run('--help')
    assert code == 0 and '--gpus' in out and '--learning_rate' in out and '200' in out
    assert 'cells at a time on the CPU' in out  # a comment of the sweep's
    assert 'hub name or folder of the scorer to adapt' in out  # a comment of cappy_bigbench.py


@pytest.mark.slow
def test_after_kills_of_real_sweeps_there_are_exactly_the_results_of_the_cells(sweep_data, tmp_path):
    command = [sys.executable, SCRIPT, *sweep_flags(sweep_data, tmp_path / 'killed', '--workers', '2')]
    command += ['--checkpoint_every', '5', '--train_size=2048']
    index = command.index('--train_size')
    del command[index : index + 2]
    generator = random.Random(1)
    n_done = []
    for _ in range(8):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as runner:
            time.sleep(generator.uniform(2, 12))
            runner.send_signal(generator.choice([signal.SIGKILL, signal.SIGTERM]))
        done = [path for path in (tmp_path / 'killed').glob('*/*.json')]
        for path in done:
            assert 0 <= results.read_result(path)['rougeL'] <= 1
        n_done.append(len(done))
    assert n_done == sorted(n_done)
    subprocess.run(command, check=True)
    whole = [tmp_path / 'whole' if word == str(tmp_path / 'killed') else word for word in command]
    subprocess.run(whole, check=True)
    names = sorted(str(path.relative_to(tmp_path / 'whole')) for path in (tmp_path / 'whole').rglob('*.*'))
    assert names == sorted(str(path.relative_to(tmp_path / 'killed')) for path in (tmp_path / 'killed').rglob('*.*'))
    assert len([name for name in names if name.endswith('.json')]) == 6
    for name in names:
        if name.endswith(('.jsonl', '.csv')):
            assert (tmp_path / 'killed' / name).read_text() == (tmp_path / 'whole' / name).read_text()
