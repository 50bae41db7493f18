"""scripts/present_cappy_bigbench_results.py: the reference's output, tables beside other picks, and pictures."""

import csv
import importlib.util
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import run_main
from scipy import stats

from cappy.cli import process_pool
from cappy.study import cells, results
from cappy.study.results import ResultPaths
from cappy.tasks.candidates import Example, Sample
from cappy.tasks.picks import candidates_rougeL, compare, consensus_of, count_ties, rougeL_by_pick, values_by_pick
from cappy.tasks.rouge import RougeL
from cappy.tasks.statistics import mean_interval

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / 'bigbench_cappy_results' / 'published'
_spec = importlib.util.spec_from_file_location('results_script', ROOT / 'scripts' / 'present_cappy_bigbench_results.py')
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)

# The last row of the paper's BIG-bench table, as the reference's README has it.
AVERAGES = {'small': 23.6543, 'base': 27.6178, 'large': 30.3802, 'xl': 33.2775, 'xxl': 37.1678}
TASKS = [f'task_{n}' for n in range(6)]
WORDS = list('abcdefgh')


def present(capsys, *argv):
    """(exit code, standard output, standard error) of the script."""
    return run_main(script.main, argv), *capsys.readouterr()


def as_json(capsys, *argv):
    """(the tables, standard error)."""
    code, out, err = present(capsys, *argv, '--format', 'json')
    assert code == 0, err
    return json.loads(out), err


def write_result(folder, generator, task, seed=0, *, keeps_picks=True, pick=None, metrics=(), **settings):
    """A cell as cappy_bigbench.py writes it, with scores that know something of rougeL.

    pick: what the result says of its own, None: nothing, as older ones; with 'combined' there is that pick too.
    metrics: names of more of them.
    """
    data = np.random.default_rng([len(generator), TASKS.index(task)])  # all seeds have the same examples
    rouge, examples = RougeL(), []
    for number in range(20):
        words = [' '.join(data.choice(WORDS, 4)) for _ in range(6)]
        decodings = ['beam4', *['sampling'] * 4]
        samples = tuple(
            Sample(text, name, -float(n), -float(n))
            for n, (text, name) in enumerate(zip(words[1:], decodings, strict=True))
        )
        examples.append(Example(task, number, 'i', (words[0],), samples))
    rougeL = candidates_rougeL(examples, rouge)
    noise = np.random.default_rng([seed, TASKS.index(task)])
    scores = [(values + noise.normal(0, 0.3, len(values))).astype(np.float32) for values in rougeL]
    combined = [own + 0.2 * values for own, values in zip(scores, rougeL, strict=True)]
    values = values_by_pick(
        examples, consensus_of(examples, rouge), None, scores, {'combined': combined} if pick == 'combined' else None
    )
    picked, ours = rougeL_by_pick(examples, rougeL, values), pick or cells.ADAPTED
    of_example = [{name: values[n] for name, values in picked.items()} for n in range(len(examples))]
    lines = [
        results.describe_candidates(example, s, r, named if keeps_picks else None, int(np.argmax(own)))
        for example, s, r, named, own in zip(examples, scores, rougeL, of_example, values[ours], strict=True)
    ]
    also = {name: {one: own / 2 for one, own in picked.items()} for name in metrics}
    rows = compare(picked, count_ties(rougeL, values), also)
    result = {
        'rougeL': float(picked[ours].mean()),
        **({} if pick is None else {'pick': pick}),
        'settings': {'seed': seed, 'learning_rate': 2e-5, 'tokens_per_device': 5 * seed, **settings},
        'comparison': rows,
    }
    results.write_result(ResultPaths(folder, generator, task), result, lines, [])
    return picked


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
    """(folder of data, results and published figures; {(generator, task): rougeL by pick})."""
    folder = tmp_path_factory.mktemp('sweep')
    (folder / 'data').mkdir()
    (folder / 'data' / 'subset_names.json').write_text(json.dumps(TASKS))
    picked = {}
    for generator in ('flan-t5-xl', 'flan-t5-xxl'):
        for number, task in enumerate(TASKS):
            picked[generator, task] = write_result(folder / 'results', generator, task)
            path = folder / 'published' / generator / f'{task}.json'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({'rougeL': 0.3 + 0.01 * number}))
    return folder, picked


@pytest.fixture
def flags_of(sweep):
    """The flags that say where the sweep's data and published figures are."""
    folder, _ = sweep
    return ['--data_dir', folder / 'data', '--published_dir', folder / 'published']


@pytest.fixture
def own_results(sweep, tmp_path):
    """A copy of the results, to be changed."""
    return shutil.copytree(sweep[0] / 'results', tmp_path / 'results')


@pytest.mark.parametrize('size', AVERAGES)
def test_the_published_results_are_printed_as_the_reference_prints_them(size, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    generator = f'flan-t5-{size}'
    argv = ['--results_dir', 'bigbench_cappy_results/published', '--gen_models', generator]
    code, out, err = present(capsys, *argv)
    names = json.loads((ROOT / 'bigbench_data' / 'subset_names.json').read_text())
    rougeL = {name: json.loads((PUBLISHED / generator / f'{name}.json').read_text())['rougeL'] for name in names}
    average = np.mean(list(rougeL.values()))
    assert (code, err) == (0, '')
    assert out == json.dumps({generator: rougeL}, indent=4) + f'\nAverage on Big-Bench: {average}\n'
    assert round(100 * float(out.split()[-1]), 4) == AVERAGES[size]


def test_every_published_file_names_its_source_and_nothing_else_is_there():
    names = set(json.loads((ROOT / 'bigbench_data' / 'subset_names.json').read_text()))
    for size in AVERAGES:
        files = {path.stem: json.loads(path.read_text()) for path in (PUBLISHED / f'flan-t5-{size}').iterdir()}
        assert files.keys() == names
        for name, content in files.items():
            assert content.keys() == {'rougeL', 'source'}
            assert content['source'].endswith(f'c6793d6/bigbench_cappy_results/flan-t5-{size}/{name}.json')


def test_the_published_files_are_the_shared_figures(shared):
    figures = json.loads((shared / 'published' / 'bigbench_cappy_rougeL.json').read_text())
    for generator, of_tasks in figures.items():
        for task, rougeL in of_tasks.items():
            assert json.loads((PUBLISHED / generator / f'{task}.json').read_text())['rougeL'] == rougeL


def test_the_default_generator_is_the_references(sweep, flags_of, capsys):
    code, out, err = present(capsys, *flags_of, '--results_dir', sweep[0] / 'results')
    shown, average = out.rsplit('\n', 2)[:2]
    ours = [sweep[1]['flan-t5-xxl', task][cells.ADAPTED].mean() for task in TASKS]
    assert json.loads(shown) == {'flan-t5-xxl': dict(zip(TASKS, ours, strict=True))}
    assert (code, average, err) == (0, f'Average on Big-Bench: {np.mean(ours)}', '')


def test_several_generators_have_an_average_each(sweep, flags_of, capsys):
    argv = [*flags_of, '--results_dir', sweep[0] / 'results', '--gen_models', 'all']
    _, out, _ = present(capsys, *argv)
    for generator in ('flan-t5-xl', 'flan-t5-xxl'):
        average = np.mean([sweep[1][generator, task][cells.ADAPTED].mean() for task in TASKS])
        assert f'Average on Big-Bench, {generator}: {average}\n' in out


def test_a_cell_has_published_figures_and_other_picks_with_paired_intervals(sweep, flags_of, capsys):
    folder, picked = sweep
    tables, err = as_json(capsys, *flags_of, '--results_dir', folder / 'results')
    row = tables['cells'][2]
    by_pick = picked['flan-t5-xxl', 'task_2']
    ours = by_pick[cells.ADAPTED]
    assert (row['task'], row['n_examples'], row['rougeL']) == ('task_2', 20, ours.mean())
    assert (row['low'], row['high']) == mean_interval(ours)
    assert (row['published'], row['published_gain']) == (0.32, pytest.approx(ours.mean() - 0.32))
    assert row['published_gain_low'] is None  # of the published picks there is only the mean
    assert row['oracle'] == pytest.approx(by_pick['oracle'].mean()) and 'oracle_gain' not in row
    for pick in ('random candidate', 'first of beam4', 'self-score sum', 'consensus'):
        key = pick.replace(' ', '_').replace('-', '_')
        assert row[key] == pytest.approx(by_pick[pick].mean(), abs=1e-12)
        assert row[f'{key}_gain'] == pytest.approx(ours.mean() - by_pick[pick].mean(), abs=1e-12)
        interval = (row[f'{key}_gain_low'], row[f'{key}_gain_high'])
        assert interval == pytest.approx(mean_interval(ours - by_pick[pick]), abs=1e-12)
    assert err == ''


def test_averages_and_comparisons_are_over_tasks(sweep, flags_of, capsys):
    folder, picked = sweep
    tables, _ = as_json(capsys, *flags_of, '--results_dir', folder / 'results', '--gen_models', 'all')
    p_values = []
    for generator in ('flan-t5-xl', 'flan-t5-xxl'):
        ours = np.array([picked[generator, task][cells.ADAPTED].mean() for task in TASKS])
        beam = np.array([picked[generator, task]['first of beam4'].mean() for task in TASKS])
        average = next(row for row in tables['averages'] if row['generator'] == generator)
        assert average['n_tasks'] == 6
        assert average['rougeL'] == pytest.approx(ours.mean())
        assert (average['low'], average['high']) == pytest.approx(mean_interval(ours))
        rows = {row['against']: row for row in tables['comparisons'] if row['generator'] == generator}
        assert list(rows) == ['published', 'random candidate', 'first of beam4', 'self-score sum', 'consensus']
        row = rows['first of beam4']
        assert row['gain'] == pytest.approx((ours - beam).mean()) == average['first_of_beam4_gain']
        interval = pytest.approx(mean_interval(ours - beam))
        assert (row['gain_low'], row['gain_high']) == interval
        assert row['p'] == pytest.approx(stats.wilcoxon(ours, beam).pvalue)
        assert (row['n_tasks'], row['n_better'], row['n_worse']) == (6, (ours > beam).sum(), (ours < beam).sum())
        p_values += [row['p'] for row in rows.values()]
    smallest = min(tables['comparisons'], key=lambda row: row['p'])
    assert smallest['p_holm'] == pytest.approx(min(1, 10 * smallest['p']))
    assert smallest['p'] == min(p_values)


def test_a_missing_cell_is_shown_and_left_out_on_both_sides(sweep, flags_of, own_results, capsys):
    (own_results / 'flan-t5-xl' / 'task_3.json').unlink()
    (own_results / 'flan-t5-xxl' / 'task_5.json').unlink()
    argv = [*flags_of, '--results_dir', own_results, '--gen_models', 'flan-t5-xl,flan-t5-xxl']
    tables, err = as_json(capsys, *argv)
    missing = next(row for row in tables['cells'] if (row['generator'], row['task']) == ('flan-t5-xl', 'task_3'))
    assert (missing['rougeL'], missing['published'], missing['published_gain']) == (None, 0.3 + 0.01 * 3, None)
    rest = [0, 1, 2, 4]
    for generator in ('flan-t5-xl', 'flan-t5-xxl'):
        row = next(
            row for row in tables['comparisons'] if (row['generator'], row['against']) == (generator, 'published')
        )
        ours = np.mean([sweep[1][generator, TASKS[n]][cells.ADAPTED].mean() for n in rest])
        assert (row['n_tasks'], row['rougeL']) == (4, pytest.approx(ours))
        assert row['theirs'] == pytest.approx(np.mean([0.3 + 0.01 * n for n in rest]))
    assert err.splitlines() == [
        f'{own_results}/flan-t5-xl: no result of task_3',
        f'{own_results}/flan-t5-xxl: no result of task_5',
        'averages and comparisons are over the 4 of 6 tasks that have a result of every generator',
        'averages and comparisons have no interval and no p, since there are fewer than 5 tasks (4)',
    ]
    code, out, _ = present(capsys, *argv)
    shown = json.loads(out[: out.rindex('}') + 1])
    assert code == 0 and shown['flan-t5-xl']['task_3'] is None
    assert 'Average on 4 of 6 Big-Bench tasks, flan-t5-xl: 0.' in out


def test_an_unpublished_figure_leaves_its_task_out_of_that_comparison_only(sweep, capsys, tmp_path):
    folder, picked = sweep
    published = tmp_path / 'published' / 'flan-t5-xxl'
    published.mkdir(parents=True)
    for task in TASKS[:5]:
        (published / f'{task}.json').write_text('{"rougeL": 0.25}')
    argv = ['--data_dir', folder / 'data', '--published_dir', tmp_path / 'published']
    tables, _ = as_json(capsys, *argv, '--results_dir', folder / 'results')
    rows = {row['against']: row for row in tables['comparisons']}
    assert (rows['published']['n_tasks'], rows['consensus']['n_tasks']) == (5, 6)
    ours = np.mean([picked['flan-t5-xxl', task][cells.ADAPTED].mean() for task in TASKS[:5]])
    assert rows['published']['gain'] == pytest.approx(ours - 0.25)
    assert tables['averages'][0]['published'] is None  # its mean would be of other tasks than ours


@pytest.mark.parametrize('content', ['running...', '{"rougeL": NaN}', '{"rougeL": "0.5"}', '[]', '', '{"rougeL": 0.'])
def test_a_corrupt_result_is_named_and_not_counted_and_not_deleted(content, sweep, flags_of, own_results, capsys):
    path = own_results / 'flan-t5-xxl' / 'task_1.json'
    path.write_text(content)
    code, out, err = present(capsys, *flags_of, '--results_dir', own_results)
    assert code == 0 and err.startswith(f'{path}: not a result') and 'counted as missing' in err.splitlines()[0]
    rest = [sweep[1]['flan-t5-xxl', task][cells.ADAPTED].mean() for task in TASKS if task != 'task_1']
    assert out.endswith(f'Average on 5 of 6 Big-Bench tasks: {np.mean(rest)}\n')
    assert path.read_text() == content


def with_ties(folder, task, **ties):
    """Give the scorer's row of a cell of flan-t5-xxl these ties."""
    path = folder / 'flan-t5-xxl' / f'{task}.json'
    result = json.loads(path.read_text())
    (row,) = [row for row in result['comparison'] if row['name'] == cells.ADAPTED]
    row['ties'] = {'n_examples': 20, 'n_several': 20, 'n_tied': 0, 'n_alike': 0, 'rougeL': row['rougeL'], **ties}
    path.write_text(json.dumps(result))


def test_ties_are_a_column_and_a_remark_where_there_are_some(flags_of, own_results, capsys):
    argv = [*flags_of, '--results_dir', own_results, '--nointervals']
    _, out, err = present(capsys, *argv, '--format', 'table')
    assert err == '' and 'ties' not in out
    for task in TASKS:
        with_ties(own_results, task)
    assert present(capsys, *argv, '--format', 'table') == (0, out, '')
    with_ties(own_results, 'task_1', n_tied=20, n_alike=20, rougeL=0.125)
    with_ties(own_results, 'task_3', n_tied=2, rougeL=0.25)
    _, out, err = present(capsys, *argv, '--format', 'table')
    assert err.splitlines() == [
        'task_1, task_3: in 22 of 40 examples the highest score is shared by several candidates; the first of them is '
        'picked',
        'task_1: the scorer gives all candidates of an example the same score, so it picks the first everywhere',
    ]
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert (rows['task'][3], rows['task_1'][5], rows['task_3'][5]) == ('ties', '12.5', '25.0')
    tables, _ = as_json(capsys, *argv)
    assert [row['n_tied'] for row in tables['cells']] == [0, 20, 0, 2, 0, 0]
    assert [tables['cells'][n]['over_ties'] for n in (1, 3)] == [0.125, 0.25]
    assert tables['averages'][0]['n_tied'] == 22
    assert tables['averages'][0]['over_ties'] == pytest.approx(np.mean([row['over_ties'] for row in tables['cells']]))


def test_faults_of_texts_are_a_line_each_with_their_tasks(flags_of, own_results, capsys):
    for task, n_unread in (('task_1', 4), ('task_2', 0), ('task_3', 16)):
        path = own_results / 'flan-t5-xxl' / f'{task}.json'
        counts = {'examples': 20, 'letters': 100, 'unread_letters': 5 * n_unread, 'unread': n_unread}
        result = json.loads(path.read_text()) | {'counts': {'faults': {'train': counts, 'validation': counts}}}
        path.write_text(json.dumps(result))
    _, _, err = present(capsys, *flags_of, '--results_dir', own_results)
    assert err.startswith('task_1, task_3: 40 of 80 examples have texts most of whose letters rougeL does not read')
    assert '50% of all letters' in err and len(err.splitlines()) == 1


SHAPES = ('comparison', 'settings', 'counts', 'faults', 'row', 'ties', 'name', 'rougeL')


@pytest.mark.parametrize('value', [None, 7, 'x', [1], {'a': None}])
def test_results_of_another_shape_are_shown_as_far_as_they_go(value, flags_of, own_results, capsys):
    paths = sorted(own_results.rglob('*.json'))
    for key, path in zip(SHAPES, paths, strict=False):  # one key in each cell
        result = json.loads(path.read_text())
        if key in ('ties', 'name', 'rougeL'):
            result['comparison'][-2][key] = value
        elif key == 'row':
            result['comparison'][1] = value
        else:
            result |= {'counts': {'faults': value}} if key == 'faults' else {key: value}
        path.write_text(json.dumps(result))
    argv = [*flags_of, '--results_dir', own_results, '--gen_models', 'all', '--nointervals']
    tables, err = as_json(capsys, *argv)
    assert err.startswith('results of different settings') or err == ''
    assert len(tables['cells']) == 12 and all(row['rougeL'] is not None for row in tables['cells'])


def test_results_of_different_settings_are_said_in_one_line(flags_of, own_results, capsys):
    write_result(own_results, 'flan-t5-xxl', 'task_1', learning_rate=1e-4, max_length=128, results_dir='elsewhere')
    _, _, err = present(capsys, *flags_of, '--results_dir', own_results)
    assert err == (
        'results of different settings: learning_rate 2e-05 (5 results), 0.0001 (1 result); '
        'max_length null (5 results), 128 (1 result)\n'
    )


def test_seeds_in_several_folders_give_mean_and_spread(sweep, flags_of, capsys, tmp_path):
    picked = {}
    for seed in (1, 2, 3):
        for task in TASKS[:2]:
            picked[seed, task] = write_result(tmp_path / f'seed{seed}', 'flan-t5-xxl', task, seed)
    folders = ','.join(str(tmp_path / f'seed{seed}') for seed in (1, 2, 3))
    argv = [*flags_of, '--results_dir', folders, '--tasks', 'task_0,task_1']
    tables, err = as_json(capsys, *argv)
    # Other seeds in other folders are no mixture.
    assert err == 'averages and comparisons have no interval and no p, since there are fewer than 5 tasks (2)\n'
    assert as_json(capsys, *argv[:-3], tmp_path, *argv[-2:])[0] == tables  # of their folder
    ours = np.array([[picked[seed, task][cells.ADAPTED].mean() for task in TASKS[:2]] for seed in (1, 2, 3)])
    row, average = tables['cells'][0], tables['averages'][0]
    assert (row['rougeL'], row['std']) == pytest.approx((ours[:, 0].mean(), ours[:, 0].std(ddof=1)))
    assert (average['rougeL'], average['std']) == pytest.approx((ours.mean(), ours.mean(axis=1).std(ddof=1)))
    of_examples = np.mean([picked[seed, 'task_0'][cells.ADAPTED] for seed in (1, 2, 3)], axis=0)
    assert (row['low'], row['high']) == pytest.approx(mean_interval(of_examples))
    _, out, _ = present(capsys, *argv, '--format', 'table', '--show', 'cells')
    assert 'std over' in out.splitlines()[0]
    low, high = 100 * row['low'], 100 * row['high']
    shown = f'{100 * ours[:, 0].mean():.1f} {low:.1f} to {high:.1f} {100 * ours[:, 0].std(ddof=1):.1f}'
    assert out.splitlines()[3].split()[1:6] == shown.split()
    ResultPaths(tmp_path / 'seed2', 'flan-t5-xxl', 'task_0').result.unlink()
    tables, err = as_json(capsys, *argv)
    assert [(row['rougeL'] is None, row['n_results']) for row in tables['cells']] == [(True, 2), (False, 3)]
    assert f'{tmp_path}/seed2/flan-t5-xxl: no result of task_0\n' in err
    average = tables['averages'][0]
    assert (average['n_tasks'], average['rougeL']) == (1, pytest.approx(ours[:, 1].mean()))


def test_seeds_mixed_in_one_folder_are_said(flags_of, own_results, capsys):
    write_result(own_results, 'flan-t5-xxl', 'task_1', 7)
    assert (
        'different settings: seed 0 (5 results), 7 (1 result)'
        in present(capsys, *flags_of, '--results_dir', own_results)[2]
    )


def test_candidates_without_picks_give_what_they_can(sweep, flags_of, own_results, capsys):
    picked = write_result(own_results, 'flan-t5-xxl', 'task_1', keeps_picks=False)
    tables, _ = as_json(capsys, *flags_of, '--results_dir', own_results)
    row = tables['cells'][1]
    interval = mean_interval(picked[cells.ADAPTED] - picked['first of beam4'])
    assert (row['first_of_beam4_gain_low'], row['first_of_beam4_gain_high']) == pytest.approx(interval, abs=1e-12)
    assert row['consensus_gain'] is not None and row['consensus_gain_low'] is None


def test_missing_or_foreign_candidates_give_no_interval_of_gains(flags_of, own_results, capsys):
    ResultPaths(own_results, 'flan-t5-xxl', 'task_0').candidates.unlink()
    other = ResultPaths(own_results, 'flan-t5-xl', 'task_1').candidates
    other.rename(ResultPaths(own_results, 'flan-t5-xxl', 'task_1').candidates)
    tables, err = as_json(capsys, *flags_of, '--results_dir', own_results)
    assert [row['consensus_gain_low'] is None for row in tables['cells'][:3]] == [True, True, False]
    assert [row['low'] is None for row in tables['cells'][:3]] == [False] * 3  # these are in the results themselves
    first, second = err.splitlines()
    assert 'task_0.candidates.jsonl: no such file' in first and first.endswith('; no intervals from it')
    assert 'task_1.candidates.jsonl: mean rougeL' in second and 'but its result has' in second


def test_every_format_shows_the_same(sweep, flags_of, capsys):
    argv = [*flags_of, '--results_dir', sweep[0] / 'results', '--against', 'beam4']
    out = {style: present(capsys, *argv, '--format', style) for style in ('table', 'markdown', 'latex', 'csv', 'json')}
    of_cells = json.loads(out['json'][1])['cells']
    for row, read in zip(of_cells, csv.DictReader(io.StringIO(out['csv'][1])), strict=True):
        assert read == {key: '' if value is None else str(value) for key, value in row.items()}
    assert 'csv holds one table' in out['csv'][2]
    first = of_cells[0]
    texts = {name: f'{100 * first[f"first_of_beam4_gain{name}"]:+.1f}' for name in ('', '_low', '_high')}
    words = f'{texts[""]} ({texts["_low"]} to {texts["_high"]})'
    minus = re.sub(r'-(?=\d)', '$-$', words)
    for style in ('table', 'markdown', 'latex'):
        gains = present(capsys, *argv, '--format', style, '--columns', 'gains')[1]
        assert (minus if style == 'latex' else words) in gains and words not in out[style][1]
        assert f'{100 * first["rougeL"]:.1f}' in out[style][1] and "Holm's p" in out[style][1]
    _, comparisons, _ = present(capsys, *argv, '--format', 'csv', '--show', 'comparisons')
    assert comparisons.splitlines()[0].startswith('generator,against,n_tasks,rougeL,theirs,gain')


def test_all_picks_can_be_shown_and_the_candidates_left_unread(sweep, flags_of, capsys):
    argv = [*flags_of, '--results_dir', sweep[0] / 'results', '--against', 'all', '--nointervals']
    tables, _ = as_json(capsys, *argv)
    picks = [
        'published',
        'random candidate',
        'first of beam4',
        'first of sampling',
        'longest',
        'shortest',
        'self-score sum',
        'self-score mean',
    ]
    assert [row['against'] for row in tables['comparisons']] == [*picks, 'consensus']
    row = tables['cells'][0]
    assert row['n_examples'] is None and row['consensus_gain'] is not None and row['consensus_gain_low'] is None


def test_names_that_are_unknown_get_near_ones(sweep, flags_of, capsys, tmp_path):
    argv = {'--results_dir': sweep[0] / 'results', '--gen_models': 'flan-t5-xl', '--format': 'table'}
    for flag, value, words in (
        ('--gen_models', 'flan-t5-xll', '--gen_models flan-t5-xll: no such generator; near names in'),
        ('--tasks', 'task_9', '--tasks task_9: no such task; near names in the list of tasks: task_'),
        ('--against', 'consensos', '--against consensos: not in these results; near names in them: consensus'),
        ('--results_dir', sweep[0] / 'result', 'near names in'),
    ):
        code, out, err = present(capsys, *flags_of, *(word for item in (argv | {flag: value}).items() for word in item))
        assert (code, out) == (1, '') and words in err and len(err.splitlines()) == 1


def test_a_task_that_is_not_on_the_list_is_said_and_can_be_chosen(flags_of, own_results, capsys):
    folder = own_results / 'flan-t5-xxl'
    (folder / 'mine.json').write_text('{"rougeL": 0.5}')
    _, out, err = present(capsys, *flags_of, '--results_dir', own_results)
    assert err == 'not shown, since not in the list of tasks: mine; --tasks shows them\n'
    _, out, err = present(capsys, *flags_of, '--results_dir', own_results, '--tasks', 'mine')
    assert json.loads(out[: out.rindex('}') + 1]) == {'flan-t5-xxl': {'mine': 0.5}}
    for task in TASKS:
        (folder / f'{task}.json').unlink()
    code, out, err = present(capsys, *flags_of, '--results_dir', own_results)
    assert json.loads(out[: out.rindex('}') + 1]) == {'flan-t5-xxl': {'mine': 0.5}}
    code, _, err = present(capsys, *flags_of, '--results_dir', own_results, '--tasks', 'task_1')
    assert code == 1 and 'no result of flan-t5-xxl for task_1; --tasks takes mine' in err


def test_tables_have_the_tasks_with_results_and_count_the_missing_ones(flags_of, own_results, capsys):
    folder = own_results / 'flan-t5-xxl'
    for task in TASKS[1:]:
        (folder / f'{task}.json').unlink()
    shutil.copy(folder / 'task_0.json', folder / 'mine.json')
    tables, err = as_json(capsys, *flags_of, '--results_dir', own_results)
    assert [row['task'] for row in tables['cells']] == ['task_0', 'mine']
    assert f'5 of the 6 tasks of {flags_of[1]}/subset_names.json have no results; --tasks all names them\n' in err
    tables, err = as_json(capsys, *flags_of, '--results_dir', own_results, '--tasks', 'all')
    assert [row['task'] for row in tables['cells']] == [*TASKS, 'mine']
    assert f'{own_results}/flan-t5-xxl: no result of {", ".join(TASKS[1:])}\n' in err


def test_without_a_common_task_it_says_what_to_do(flags_of, own_results, capsys):
    for generator, tasks in (('flan-t5-xl', TASKS[:3]), ('flan-t5-xxl', TASKS[3:])):
        for task in tasks:
            (own_results / generator / f'{task}.json').unlink()
    argv = [*flags_of, '--results_dir', own_results, '--gen_models', 'all']
    tables, err = as_json(capsys, *argv)
    assert (tables['averages'], tables['comparisons']) == ([], [])
    assert 'no task has a result of every generator; choose fewer generators with --gen_models' in err


def test_the_generator_is_the_one_there_is_where_the_references_is_not(flags_of, own_results, capsys):
    shutil.rmtree(own_results / 'flan-t5-xxl')
    (own_results / 'flan-t5-xl').rename(own_results / 'my-llm')
    tables, _ = as_json(capsys, *flags_of, '--results_dir', own_results)
    assert {row['generator'] for row in tables['cells']} == {'my-llm'}


def test_a_table_fits_120_characters_with_long_task_names(flags_of, own_results, capsys):
    for generator in ('flan-t5-xl', 'flan-t5-xxl'):
        for suffix in ('.json', '.candidates.jsonl'):
            (own_results / generator / f'task_0{suffix}').rename(own_results / generator / f'{"long_" * 6}task{suffix}')
    argv = [*flags_of, '--results_dir', own_results, '--gen_models', 'all', '--format', 'table']
    _, out, _ = present(capsys, *argv)
    lines = out.splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0] == 'flan-t5-xl' and lines.count('flan-t5-xxl') == 1
    assert sum(line.startswith('average of 6 tasks') for line in lines) == 2
    assert 'random' in lines[1] and 'oracle' in lines[2]


def test_the_best_pick_but_the_oracle_is_bold_in_latex(flags_of, own_results, sweep, capsys):
    argv = [*flags_of, '--results_dir', own_results, '--format', 'latex', '--show', 'cells', '--against']
    _, out, _ = present(capsys, *argv, 'random candidate,beam4,oracle')
    by_pick = sweep[1]['flan-t5-xxl', 'task_3']
    picks = (cells.ADAPTED, 'random candidate', 'first of beam4')
    best = max(picks, key=lambda pick: by_pick[pick].mean())
    line = next(line for line in out.splitlines() if line.startswith(r'task\_3'))
    assert re.findall(r'\\textbf{(.*?)}', line) == [f'{100 * by_pick[best].mean():.1f}']


def test_data_has_no_blanks_in_its_keys_and_no_averages_among_the_cells(sweep, flags_of, capsys):
    argv = [*flags_of, '--results_dir', sweep[0] / 'results', '--format', 'csv', '--against', 'all']
    for show, n_rows in (('cells', 6), ('averages', 1), ('comparisons', 9)):
        header, *lines = present(capsys, *argv, '--show', show)[1].splitlines()
        assert ' ' not in header and len(lines) == n_rows


def test_several_processes_give_what_one_does(sweep, flags_of, capsys, monkeypatch):
    argv = [*flags_of, '--results_dir', sweep[0] / 'results', '--gen_models', 'all']
    one = as_json(capsys, *argv)
    monkeypatch.setattr(process_pool, 'BYTES_WORTH_A_PROCESS', 1)
    assert as_json(capsys, *argv, '--n_workers', '2') == one


def drawn(monkeypatch):
    """The figures that the script saves, in place of files."""
    figures = []
    monkeypatch.setattr(script.plots, 'save', lambda figure, path: figures.append(figure))
    return figures


def test_the_picture_of_gains_shows_what_the_table_of_cells_does(sweep, flags_of, capsys, monkeypatch):
    pytest.importorskip('matplotlib')
    figures = drawn(monkeypatch)
    argv = [*flags_of, '--results_dir', sweep[0] / 'results', '--plot', 'gain.pdf']
    tables, err = as_json(capsys, *argv)
    assert err == 'gain.pdf: written\n'
    axes = figures[0].axes[0]
    by_task = {row['task']: row for row in tables['cells']}
    tasks = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(tasks) == TASKS and 'first of beam4' in figures[0].get_supxlabel()
    points = axes.containers[0].lines[0].get_xydata()
    shown = {tasks[round(height)]: gain for gain, height in points}
    assert shown == pytest.approx({task: 100 * by_task[task]['first_of_beam4_gain'] for task in TASKS})
    whisker = axes.containers[0].lines[2][0].get_segments()[0][:, 0]
    row = by_task[tasks[round(points[0][1])]]
    assert whisker == pytest.approx([100 * row['first_of_beam4_gain_low'], 100 * row['first_of_beam4_gain_high']])


def test_gains_are_over_a_random_candidate_where_a_generator_has_no_beam(flags_of, own_results, capsys, monkeypatch):
    pytest.importorskip('matplotlib')
    figures = drawn(monkeypatch)
    for task in TASKS:
        path = own_results / 'flan-t5-xl' / f'{task}.json'
        path.write_text(path.read_text().replace('first of beam4', 'first of greedy').replace('first of sampling', 'x'))
    argv = [*flags_of, '--results_dir', own_results, '--gen_models', 'all', '--plot', 'gain.png']
    assert present(capsys, *argv)[0] == 0
    assert 'random candidate' in figures[0].get_supxlabel()
    _, _, err = present(capsys, *argv, '--against', 'beam4')
    assert f'flan-t5-xl: no first of beam4 for {", ".join(TASKS)}, so not in the picture\n' in err


def test_the_heat_map_shows_rougeL_or_the_gain_that_is_asked_for(sweep, flags_of, own_results, capsys, monkeypatch):
    pytest.importorskip('matplotlib')
    figures = drawn(monkeypatch)
    (own_results / 'flan-t5-xl' / 'task_3.json').unlink()
    argv = [
        *flags_of,
        '--results_dir',
        own_results,
        '--gen_models',
        'all',
        '--plot',
        'h.svg',
        '--picture',
        'heatmap',
    ]
    for more in ([], ['--against', 'consensus']):
        assert present(capsys, *argv, *more)[0] == 0
    rougeL, gains = (figure.axes[0].images[0].get_array() for figure in figures)
    assert rougeL.shape == (6, 2) and np.argwhere(rougeL.mask).tolist() == [[3, 0]]
    picked = sweep[1]['flan-t5-xxl', 'task_4']
    assert rougeL[4, 1] == pytest.approx(100 * picked[cells.ADAPTED].mean())
    assert gains[4, 1] == pytest.approx(100 * (picked[cells.ADAPTED] - picked['consensus']).mean())


def test_the_picture_of_samples_ends_in_what_the_cells_have(sweep, flags_of, capsys, monkeypatch):
    pytest.importorskip('matplotlib')
    figures = drawn(monkeypatch)
    argv = [*flags_of, '--results_dir', sweep[0] / 'results', '--plot', 's.png', '--picture', 'samples']
    code, _, err = present(capsys, *argv)
    assert code == 0 and err.startswith('no file of samples of task_0, task_1, task_2')
    lines = {line.get_label(): line.get_ydata()[-1] for line in figures[0].axes[0].lines}
    ours = np.mean([sweep[1]['flan-t5-xxl', task][cells.ADAPTED].mean() for task in TASKS])
    oracle = np.mean([sweep[1]['flan-t5-xxl', task]['oracle'].mean() for task in TASKS])
    assert (lines['scorer'], lines['oracle']) == pytest.approx((100 * ours, 100 * oracle))


def test_a_broken_file_is_named_and_left_out_of_the_picture(flags_of, own_results, capsys, monkeypatch):
    pytest.importorskip('matplotlib')
    figures = drawn(monkeypatch)
    path = ResultPaths(own_results, 'flan-t5-xxl', 'task_1').candidates
    path.write_text('{')
    argv = [*flags_of, '--results_dir', own_results, '--plot', 's.png', '--picture', 'scores']
    code, _, err = present(capsys, *argv)
    assert code == 0 and err.startswith(f'{path}:1: not JSON') and 'not in the picture\n' in err
    others = [ResultPaths(own_results, 'flan-t5-xxl', task).candidates for task in TASKS if task != 'task_1']
    n = sum(len(line['candidates']) for other in others for line in results.read_candidates(other))
    tenths = figures[0].axes[0].lines[1]
    assert len(tenths.get_xdata()) == 10
    every = np.sort(
        [one['score'] for other in others for line in results.read_candidates(other) for one in line['candidates']]
    )
    assert tenths.get_xdata()[0] == pytest.approx(every[: -(-n // 10)].mean(), abs=1e-6)


def test_a_picture_that_cannot_be_made_is_said_before_anything_is_read(sweep, flags_of, capsys):
    argv = [*flags_of, '--results_dir', sweep[0] / 'nothing', '--plot', 'plot.gif']
    code, out, err = present(capsys, *argv)
    assert (code, out) == (1, '') and err.startswith('error: plot.gif: not a format of pictures')
    code, out, err = present(capsys, *flags_of, '--results_dir', sweep[0] / 'results', '--picture', 'scores')
    assert (code, out, err) == (1, '', 'error: --picture scores: --plot says which file it goes to\n')


def test_the_script_runs_as_a_command(sweep, flags_of, run_python):
    # The names of the reference's flags.
    argv = [
        '--bigbench_data_dir',
        *flags_of[1:],
        '--result_dir',
        sweep[0] / 'results',
        '--gen_model_name',
        'flan-t5-xxl',
    ]
    argv += ['--format', 'table', '--tasks', 'task_4']
    process = run_python('scripts/present_cappy_bigbench_results.py', *argv)
    out, err = process.communicate(timeout=120)
    ours = 100 * sweep[1]['flan-t5-xxl', 'task_4'][cells.ADAPTED].mean()
    assert process.returncode == 0 and err.count('\n') == 1 and 'fewer than 5 tasks (1)' in err
    assert out.splitlines()[3].split()[:2] == ['task_4', f'{ours:.1f}']


COMBINED = 'combined'


def write_sweep(folder, picks, **more):
    """A result of flan-t5-xxl for each task with its pick; returns rougeL by pick of each task."""
    made = {
        task: write_result(folder / 'results', 'flan-t5-xxl', task, pick=pick, **more)
        for task, pick in zip(TASKS, picks, strict=False)
    }
    return made, ['--results_dir', folder / 'results', '--published_dir', folder / 'none', '--data_dir', folder]


@pytest.fixture
def own_list(tmp_path):
    """A folder with the list of tasks."""
    (tmp_path / 'subset_names.json').write_text(json.dumps(TASKS))
    return tmp_path


def test_the_combined_pick_is_ours_where_the_results_say_so(own_list, capsys):
    made, argv = write_sweep(own_list, [COMBINED] * 6)
    tables, err = as_json(capsys, *argv)
    ours, adapted = ([made[task][name].mean() for task in TASKS] for name in (COMBINED, cells.ADAPTED))
    assert ours != adapted and [row['rougeL'] for row in tables['cells']] == pytest.approx(ours)
    assert {row['pick'] for row in tables['cells']} == {COMBINED} and err == 'ours is the combined pick\n'
    first = made['task_0']
    assert (tables['cells'][0]['low'], tables['cells'][0]['high']) == pytest.approx(mean_interval(first[COMBINED]))
    gain = [tables['cells'][0][f'scorer_after_adapting_gain{end}'] for end in ('', '_low', '_high')]
    differences = first[COMBINED] - first[cells.ADAPTED]
    assert gain == pytest.approx([differences.mean(), *mean_interval(differences)])
    against = {row['against']: row for row in tables['comparisons']}
    assert COMBINED not in against and against[cells.ADAPTED]['theirs'] == pytest.approx(np.mean(adapted))
    assert against[cells.ADAPTED]['gain'] == pytest.approx(np.mean(ours) - np.mean(adapted))


def test_where_results_have_different_picks_each_cell_has_its_own(own_list, capsys):
    picks = [COMBINED, cells.ADAPTED, None, COMBINED, COMBINED, None]
    made, argv = write_sweep(own_list, picks)
    tables, err = as_json(capsys, *argv)
    ours = [made[task][pick or cells.ADAPTED].mean() for task, pick in zip(TASKS, picks, strict=True)]
    assert [row['rougeL'] for row in tables['cells']] == pytest.approx(ours)
    assert [row['pick'] for row in tables['cells']] == [pick or cells.ADAPTED for pick in picks]
    assert tables['averages'][0]['rougeL'] == pytest.approx(np.mean(ours))
    assert err.startswith('ours is the pick of each result: combined (3 results), scorer after adapting (3 results)\n')
    gains = [row['scorer_after_adapting_gain'] for row in tables['cells']]
    assert [gain is None for gain in gains] == [pick != COMBINED for pick in picks]  # none over itself
    adapted = next(row for row in tables['comparisons'] if row['against'] == cells.ADAPTED)
    assert adapted['n_tasks'] == 6
    assert adapted['gain'] == pytest.approx(
        np.mean(ours) - np.mean([made[task][cells.ADAPTED].mean() for task in TASKS])
    )
    _, out, _ = present(capsys, *argv, '--format', 'table')
    assert [line.split()[1] for line in out.splitlines() if line.startswith('task_')][:2] == [COMBINED, 'scorer']


def test_seeds_with_different_picks_have_each_their_own(own_list, capsys):
    by_seed = [
        write_result(own_list / f'seed{seed}', 'flan-t5-xxl', 'task_0', seed, pick=pick)
        for seed, pick in ((1, COMBINED), (2, None))
    ]
    argv = ['--results_dir', f'{own_list}/seed1,{own_list}/seed2', '--published_dir', own_list, '--data_dir', own_list]
    tables, err = as_json(capsys, *argv)
    values = np.mean([by_seed[0][COMBINED], by_seed[1][cells.ADAPTED]], axis=0)
    (row,) = tables['cells']
    assert (row['pick'], row['rougeL']) == (cells.OURS, pytest.approx(values.mean()))
    assert (row['low'], row['high']) == pytest.approx(mean_interval(values)) and 'not' not in err
    differences = values - np.mean([by_pick[cells.ADAPTED] for by_pick in by_seed], axis=0)
    gain = [row[f'scorer_after_adapting_gain{end}'] for end in ('', '_low', '_high')]
    assert gain == pytest.approx([differences.mean(), *mean_interval(differences)])


def test_a_result_that_names_the_adapted_scorer_gives_what_one_without_a_pick_gives(own_list, capsys):
    shown = []
    for pick in (None, cells.ADAPTED):
        _, argv = write_sweep(own_list, [pick] * 6)
        for style in FORMATS:
            shown.append((pick, present(capsys, *argv, '--format', style)))
    half = len(shown) // 2
    assert [one for _, one in shown[:half]] == [one for _, one in shown[half:]]


FORMATS = ('reference', 'table', 'markdown', 'latex', 'csv', 'json')


def test_a_second_metric_that_all_results_have_is_a_column_of_ours(own_list, capsys):
    made, argv = write_sweep(own_list, [None] * 6, metrics=['chrf', 'my_metric:score'])
    tables, _ = as_json(capsys, *argv)
    ours = [made[task][cells.ADAPTED].mean() / 2 for task in TASKS]
    assert [row['chrf'] for row in tables['cells']] == pytest.approx(ours)
    assert [row['my_metric_score'] for row in tables['cells']] == pytest.approx(ours)
    consensus = [made[task]['consensus'].mean() / 2 for task in TASKS]
    assert [row['consensus_chrf'] for row in tables['cells']] == pytest.approx(consensus)
    assert tables['averages'][0]['chrf'] == pytest.approx(np.mean(ours))
    assert tables['averages'][0]['oracle_chrf'] == pytest.approx(np.mean([made[t]['oracle'].mean() / 2 for t in TASKS]))
    _, out, _ = present(capsys, *argv, '--format', 'markdown', '--show', 'cells')
    header, _, *lines = out.splitlines()
    place = [title.strip() for title in header.split('|')].index('chrF x 100')
    shown = [line.split('|')[place].strip() for line in lines]
    assert shown == [f'{100 * value:.1f}' for value in (*ours, np.mean(ours))]


def test_a_metric_that_some_results_lack_is_not_shown(own_list, capsys):
    _, argv = write_sweep(own_list, [None] * 6)
    before = present(capsys, *argv, '--format', 'csv')
    write_result(own_list / 'results', 'flan-t5-xxl', 'task_1', metrics=['chrf'])
    assert present(capsys, *argv, '--format', 'csv') == before
