"""scripts/report.py: what the page holds, and how a browser shows it."""

import base64
import gzip
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from chromium import chromium_page, find_chromium

from cappy.cli import flags
from cappy.files.updates import Update
from cappy.study import cells, verdict
from cappy.study.results import ResultPaths, describe_candidates, write_result
from cappy.tasks import picks
from cappy.tasks.candidates import Example, Sample, write_examples
from cappy.tasks.rouge import RougeL
from cappy.tasks.statistics import mean_interval, paired_bootstrap

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location('report_script', ROOT / 'scripts' / 'report.py')
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)

GENERATORS, TASKS, N_EXAMPLES = ('flan-t5-small', 'flan-t5-xl'), ('birds', 'cats', 'numbers'), 45
HOSTILE = '<img src=x onerror="window.harmed=1"></script><script>window.harmed=2</script><!-- &amp; \u202e \ud800'


def make_cell(folder, generator, task, is_hostile=False, seed=1, results='results', pick=None):
    """A cell with all its files, and its generator's; returns rougeL by pick. seed: of the scorer's errors.

    pick: what the result says of its own, None: nothing, as older ones.
    """
    draw = np.random.default_rng([len(generator), TASKS.index(task)])
    rouge, examples = RougeL(), []
    for number in range(N_EXAMPLES):
        words = [' '.join(draw.choice(list('abcdef'), 4)) for _ in range(6)]
        if is_hostile and number == 0:
            words[1:3] = HOSTILE[:-1], ''
        samples = tuple(
            Sample(text, 'beam4' if n == 0 else 'sampling', -float(n), -float(n)) for n, text in enumerate(words[1:])
        )
        instruction = HOSTILE[:-2] if is_hostile and number == 0 else f'say {words[0]}' + ' please' * 80 * (number == 1)
        examples.append(Example(task, number, instruction, (words[0], 'f f'), samples))
    rougeL = picks.candidates_rougeL(examples, rouge)
    draw = np.random.default_rng([len(generator), TASKS.index(task), seed])
    scores = [(values + draw.normal(0, 0.2, len(values))).astype(np.float32) for values in rougeL]
    combined = {'combined': [s + 0.2 * r for s, r in zip(scores, rougeL, strict=True)]} if pick == 'combined' else {}
    picked = picks.all_picks(examples, rougeL, rouge, None, scores, combined)
    lines = [
        describe_candidates(
            example,
            s,
            r,
            {name: values[n] for name, values in picked.items()},
            int(np.argmax(combined[pick][n] if combined else s)),
        )
        for n, (example, s, r) in enumerate(zip(examples, scores, rougeL, strict=True))
    ]
    write_examples(folder / 'gens' / generator / f'{task}_validation.jsonl', examples)
    result = {
        'rougeL': float(picked[pick or cells.ADAPTED].mean()),
        **({} if pick is None else {'pick': pick}),
        'settings': {'seed': seed, 'bigbench_gen_dir': str(folder / 'gens')},
        'comparison': picks.compare(picked),
        'counts': {'truncated_pairs': {'train': 3, 'validation': 0}},
        'device': 'a <b>device</b>',
    }
    updates = [Update(n, 8, 2e-5 * (1 - n / 60), 0.5 / (n + 1), 1.0) for n in range(60)]
    write_result(ResultPaths(folder / results, generator, task), result, lines, updates)
    return picked


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
    """(folder of results, generators' files and published numbers; {(generator, task): rougeL by pick})."""
    folder = tmp_path_factory.mktemp('sweep')
    picked = {}
    for generator in GENERATORS:
        for task in TASKS:
            if (generator, task) != ('flan-t5-xl', 'numbers'):
                picked[generator, task] = make_cell(folder, generator, task, is_hostile=task == 'cats')
            path = folder / 'published' / generator / f'{task}.json'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"rougeL": 0.25}')
    broken = folder / 'results' / 'flan-t5-small' / 'broken_one.json'
    broken.write_text('running <i>...')
    ResultPaths(folder / 'results', 'flan-t5-xl', 'birds').updates.write_text('update,loss\n')
    return folder, picked


def write_page(capsys, folder, output, *more):
    """(exit code, standard output, standard error) of the script."""
    argv = [] if '--results_dir' in more else ['--results_dir', folder / 'results']
    argv += ['--published_dir', folder / 'published', '--output', output]
    argv += list(more)
    code = 0
    try:
        flags.run(script.main, [str(word) for word in argv])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def read_page(path):
    """(summary, {(generator, task): block}) of a page; {(generator, task, number of the seed): ..} of several seeds."""
    text = Path(path).read_text(encoding='utf-8')
    summary = json.loads(re.search(r'<script type="application/json" id="summary">(.*?)</script>', text, re.S)[1])
    blocks = dict(re.findall(r'<script type="text/plain" id="cell-(\d+)">([A-Za-z0-9+/=]*)</script>', text))
    data = {
        (cell['generator'], cell['task'], place)[: 2 + (len(cell['blocks']) > 1)]: json.loads(
            gzip.decompress(base64.b64decode(blocks[str(number)]))
        )
        for cell in summary['cells']
        for place, number in enumerate(cell['blocks'])
        if number is not None
    }
    return summary, data


def test_the_page_holds_what_the_files_say(sweep, capsys, tmp_path):
    folder, picked = sweep
    code, out, err = write_page(capsys, folder, tmp_path / 'page.html')
    summary, data = read_page(tmp_path / 'page.html')
    assert code == 0 and out.startswith(f'{tmp_path}/page.html: 5 cells, 3 without a result')
    assert summary['generators'] == list(GENERATORS) and summary['tasks'] == ['birds', 'broken_one', 'cats', 'numbers']
    assert data.keys() == picked.keys()
    for cell in summary['cells']:
        by_pick = picked[cell['generator'], cell['task']]
        ours = by_pick[cells.ADAPTED]
        assert (cell['rougeL'], cell['published'], cell['n']) == (ours.mean(), 0.25, N_EXAMPLES)
        assert (cell['low'], cell['high']) == pytest.approx(mean_interval(ours))
        assert cell['gains']['consensus'] == pytest.approx(paired_bootstrap(ours, [by_pick['consensus']])[1][0])
        assert {row['name']: row['rougeL'] for row in cell['comparison']} == pytest.approx(
            {pick: values.mean() for pick, values in by_pick.items()}
        )
        block = data[cell['generator'], cell['task']]
        assert block['curves']['picks']['scorer'][-1] == pytest.approx(ours.mean())
        assert block['curves']['picks']['self-score sum'][-1] == pytest.approx(by_pick['self-score sum'].mean())
        assert block['curves']['are_drawn'] and block['reference'] == 'first of beam4'
        consensus = block['others'].index('consensus')
        of_consensus = [example['rougeL_of_others'][consensus] for example in block['examples']]
        assert of_consensus == by_pick['consensus'].round(4).tolist()
        assert [example['rougeL'] for example in block['examples']] == ours.round(4).tolist()
    assert [line.split(': ')[0] for line in err.splitlines()] == [
        f'{folder}/results/flan-t5-small/broken_one.json',
        f'{folder}/results/flan-t5-xl/birds.train.csv:1',
    ]
    assert summary['faults'] == err.splitlines()


def test_headline_table_and_verdict_give_the_interval_of_the_result(tmp_path, capsys):
    make_cell(tmp_path, 'flan-t5-xl', 'birds')
    path = ResultPaths(tmp_path / 'results', 'flan-t5-xl', 'birds').result
    result = json.loads(path.read_text())
    ours = next(row for row in result['comparison'] if row['name'] == cells.ADAPTED)
    ours['low'], ours['high'] = 0.1234, 0.9876  # as of another bootstrap
    path.write_text(json.dumps(result))
    write_page(capsys, tmp_path, tmp_path / 'page.html')
    summary, _ = read_page(tmp_path / 'page.html')
    (cell,) = summary['cells']
    row = next(row for row in cell['comparison'] if row['name'] == cells.ADAPTED)
    assert (cell['low'], cell['high']) == (row['low'], row['high']) == (0.1234, 0.9876)
    assert '(12.3 to 98.8)' in cell['verdict'][1] and summary['verdict'] == cell['verdict']


def test_on_the_page_of_combined_results_the_adapted_scorer_is_one_of_the_others(tmp_path, capsys):
    picked = {task: make_cell(tmp_path, 'flan-t5-xl', task, pick='combined') for task in TASKS}
    code, _, err = write_page(capsys, tmp_path, tmp_path / 'page.html')
    summary, data = read_page(tmp_path / 'page.html')
    assert (code, err) == (0, '') and (summary['ours'], summary['reference']) == ('combined', 'first of beam4')
    assert summary['verdict'][0].startswith(
        'Of 3 cells, by their intervals over examples, the combined pick is better '
    )
    assert summary['verdict'][1].startswith('Over 3 tasks, with samples of flan-t5-xl, the combined picks have mean')
    assert ' over the adapted scorer' in summary['verdict'][1]
    rows = {row['name']: row for row in summary['averages'][0]['rows']}
    ours, adapted = (
        np.mean([by_pick[name].mean() for by_pick in picked.values()]) for name in ('combined', cells.ADAPTED)
    )
    assert rows['combined']['rougeL'] == pytest.approx(ours) and 'gain' not in rows['combined']
    assert rows[cells.ADAPTED]['gain'][0] == pytest.approx(ours - adapted)
    for cell in summary['cells']:
        by_pick = picked[cell['task']]
        assert cell['ours'] == 'combined' and (cell['low'], cell['high']) == pytest.approx(
            mean_interval(by_pick['combined'])
        )
        expected = paired_bootstrap(by_pick['combined'], [by_pick[cells.ADAPTED]])[1][0]
        assert cell['gains'][cells.ADAPTED] == pytest.approx(expected) and 'combined' not in cell['gains']
        block = data['flan-t5-xl', cell['task']]
        assert block['ours'] == 'combined' and cells.ADAPTED in block['others'] and 'combined' not in block['others']
        assert [example['rougeL'] for example in block['examples']] == by_pick['combined'].round(4).tolist()


def test_where_results_have_different_picks_each_cell_has_its_own_and_the_means_take_them(tmp_path, capsys):
    own = dict(zip(TASKS, ('combined', None, cells.ADAPTED), strict=True))
    picked = {task: make_cell(tmp_path, 'flan-t5-xl', task, pick=pick) for task, pick in own.items()}
    write_page(capsys, tmp_path, tmp_path / 'page.html')
    summary, _ = read_page(tmp_path / 'page.html')
    assert summary['ours'] == cells.OURS and 'the pick of each result is better than' in summary['verdict'][0]
    assert [cell['ours'] for cell in summary['cells']] == ['combined', cells.ADAPTED, cells.ADAPTED]
    assert 'the combined picks have' in ' '.join(summary['cells'][0]['verdict'])
    assert 'the picks of the adapted scorer have' in ' '.join(summary['cells'][1]['verdict'])
    (average,) = summary['averages']
    rows = {row['name']: row for row in average['rows']}
    ours = np.mean([picked[task][pick or cells.ADAPTED].mean() for task, pick in own.items()])
    adapted = np.mean([by_pick[cells.ADAPTED].mean() for by_pick in picked.values()])
    assert rows[cells.OURS]['rougeL'] == pytest.approx(ours) and average['left_out'] == ['combined']
    assert rows[cells.ADAPTED]['gain'][0] == pytest.approx(ours - adapted)


def test_a_result_that_names_the_adapted_scorer_has_the_page_of_one_without_a_pick(tmp_path, capsys):
    pages = []
    for pick in (None, cells.ADAPTED):
        make_cell(tmp_path, 'flan-t5-xl', 'birds', pick=pick)
        write_page(capsys, tmp_path, tmp_path / 'page.html')
        summary, data = read_page(tmp_path / 'page.html')
        summary.pop('made')
        pages.append((summary, data))
    assert pages[0] == pages[1]


def test_means_by_other_metrics_are_in_the_comparison_of_a_cell(tmp_path, capsys):
    for seed in (1, 2):
        make_cell(tmp_path, 'flan-t5-xl', 'birds', seed=seed, results=f'results/seed{seed}')
        path = ResultPaths(tmp_path / f'results/seed{seed}', 'flan-t5-xl', 'birds').result
        result = json.loads(path.read_text())
        for row in result['comparison']:
            row['metrics'] = {'chrf': 0.25 * seed, **({'label': 0.5} if seed == 1 else {})}
        path.write_text(json.dumps(result))
    for given, expected in (('results/seed1', {'chrf': 0.25, 'label': 0.5}), ('results', {'chrf': 0.375})):
        write_page(capsys, tmp_path, tmp_path / 'page.html', '--results_dir', tmp_path / given)
        (cell,) = read_page(tmp_path / 'page.html')[0]['cells']
        assert [row['metrics'] for row in cell['comparison']] == [expected] * len(cell['comparison'])


def test_what_a_pick_prefers_is_in_the_block_of_its_cell(sweep, capsys, tmp_path):
    write_page(capsys, sweep[0], tmp_path / 'page.html')
    _, data = read_page(tmp_path / 'page.html')
    for key, block in data.items():
        found = block['preferences']
        names = [row['name'] for row in found['rows']]
        assert found['are_drawn'] and names == [cells.ADAPTED, 'random candidate', 'oracle'], key
        shares = {row['name']: (row['sampled'], row['picked']) for row in found['decodings']}
        assert shares.keys() == {'beam4', 'sampling'} and shares['beam4'][0] == pytest.approx(0.2)
        assert np.sum(list(shares.values()), axis=0) == pytest.approx([1, 1])


@pytest.fixture(scope='module')
def seeds(tmp_path_factory):
    """(folder with the results of three seeds of two cells; {(task, seed): rougeL by pick})."""
    folder = tmp_path_factory.mktemp('seeds')
    picked = {
        (task, seed): make_cell(folder, 'flan-t5-xl', task, seed=seed, results=f'results/seed{seed}')
        for task in TASKS[:2]
        for seed in (1, 2, 3)
    }
    return folder, picked


def test_of_several_seeds_the_page_has_means_spreads_and_a_block_each(seeds, capsys, tmp_path):
    folder, picked = seeds
    code, out, err = write_page(capsys, folder, tmp_path / 'page.html')
    summary, data = read_page(tmp_path / 'page.html')
    assert (code, err) == (0, '') and out.startswith(f'{tmp_path}/page.html: 2 cells, ')
    assert summary['title'] == 'Cappy: results, 3 seeds' and summary['differing'] == {}
    assert summary['folders'] == [f'{folder}/results/seed{seed}' for seed in (1, 2, 3)]
    for cell in summary['cells']:
        by_seed = [picked[cell['task'], seed] for seed in (1, 2, 3)]
        ours = np.array([by_pick[cells.ADAPTED].mean() for by_pick in by_seed])
        assert cell['rougeL'] == pytest.approx(ours.mean()) and cell['seeds']['values'] == pytest.approx(ours)
        assert cell['seeds']['std'] == pytest.approx(ours.std(ddof=1)) and ours.std() > 0
        of_examples = np.mean([by_pick[cells.ADAPTED] for by_pick in by_seed], axis=0)
        interval = pytest.approx(mean_interval(of_examples))
        rows = {row['name']: row for row in cell['comparison']}
        assert (cell['low'], cell['high']) == (rows[cells.ADAPTED]['low'], rows[cells.ADAPTED]['high']) == interval
        assert rows[cells.ADAPTED]['rougeL'] == pytest.approx(ours.mean()) and 'gap_low' not in rows[cells.ADAPTED]
        assert rows['oracle']['rougeL'] == pytest.approx(by_seed[0]['oracle'].mean())
        interval = mean_interval(by_seed[0]['oracle'])
        assert (rows['oracle']['low'], rows['oracle']['high']) == pytest.approx(interval)
        for place, by_pick in enumerate(by_seed):
            examples = data['flan-t5-xl', cell['task'], place]['examples']
            assert [example['rougeL'] for example in examples] == by_pick[cells.ADAPTED].round(4).tolist()


def test_a_cell_that_one_seed_lacks_is_not_shown_and_said(seeds, capsys, tmp_path):
    folder, _ = seeds
    make_cell(tmp_path, 'flan-t5-xl', 'birds', results='seed1')
    broken = ResultPaths(tmp_path / 'seed1', 'flan-t5-xl', 'cats').result
    broken.write_text('{"rougeL": ')
    given = f'{tmp_path}/seed1,{folder}/results/seed2,{folder}/results/seed3'
    code, out, err = write_page(capsys, folder, tmp_path / 'page.html', '--results_dir', given)
    assert code == 0 and '1 cell, 1 without a result' in out
    assert err.startswith(f'{broken}: not a result') and len(err.splitlines()) == 1
    broken.unlink()
    _, _, err = write_page(capsys, folder, tmp_path / 'page.html', '--results_dir', given)
    assert err == f'{broken}: missing, so this cell is not shown\n'
    assert read_page(tmp_path / 'page.html')[0]['faults'] == err.splitlines()


def test_every_candidate_is_there_with_its_decodings_and_how_often_it_was_drawn(sweep, capsys, tmp_path):
    folder, _ = sweep
    write_page(capsys, folder, tmp_path / 'page.html', '--tasks', 'cats')
    _, data = read_page(tmp_path / 'page.html')
    block = data['flan-t5-xl', 'cats']
    paths = ResultPaths(folder / 'results', 'flan-t5-xl', 'cats')
    lines = [json.loads(line) for line in paths.candidates.read_text().splitlines()]
    for line, example in zip(lines, block['examples'], strict=True):
        assert (example['idx'], example['pick']) == (line['example_idx'], line['pick'])
        assert [candidate[0] for candidate in example['candidates']] == [one['response'] for one in line['candidates']]
        for candidate, one in zip(example['candidates'], line['candidates'], strict=True):
            assert candidate[1] == pytest.approx(one['score'], rel=1e-5) and candidate[2] == round(one['rougeL'], 4)
            assert [block['decodings'][place] for place, _ in candidate[3]] == one['decodings']
        assert sum(n for candidate in example['candidates'] for _, n in candidate[3]) == 5
    assert block['examples'][1]['instruction'].startswith('say ') and block['examples'][1]['references'][1] == 'f f'


def test_no_text_of_a_model_is_markup_in_the_page(sweep, capsys, tmp_path):
    write_page(capsys, sweep[0], tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text()
    assert 'onerror' not in text and '<i>' not in text
    assert text.count('</script>') == 2 + 5  # the summary, the page's own, a block for each cell


def test_of_more_examples_than_are_asked_for_the_largest_differences_stay(sweep, capsys, tmp_path):
    folder, picked = sweep
    write_page(capsys, folder, tmp_path / 'page.html', '--max_examples', '7')
    by_pick = picked['flan-t5-small', 'birds']
    differences = np.abs(by_pick[cells.ADAPTED] - by_pick['first of beam4'])
    block = read_page(tmp_path / 'page.html')[1]['flan-t5-small', 'birds']
    kept = [one['idx'] for one in block['examples']]
    assert (len(kept), block['n_examples']) == (7, N_EXAMPLES)
    assert sorted(kept) == kept and min(differences[kept]) >= max(np.delete(differences, kept))


def add_to_result(folder, generator, task, ties=None, ends=0.9, **fields):
    """Change the result of a cell; ties: of the scorer's row; ends: the upper ones of its intervals."""
    path = ResultPaths(folder / 'results', generator, task).result
    result = json.loads(path.read_text())
    for row in result['comparison']:
        if ties and row['name'] == cells.ADAPTED:
            row |= {'ties': ties, 'high': ends, 'gap_high': ends}
    path.write_text(json.dumps(result | fields))


TIES = {'n_examples': N_EXAMPLES, 'n_several': N_EXAMPLES, 'n_tied': N_EXAMPLES, 'n_alike': N_EXAMPLES, 'rougeL': 0.125}
UNREAD = {'examples': N_EXAMPLES, 'letters': 100, 'unread_letters': 70, 'unread': 30}


def test_ties_and_texts_that_rougeL_does_not_read_are_said_of_the_cell_and_of_all(tmp_path, capsys):
    for task in TASKS[:2]:
        make_cell(tmp_path, 'flan-t5-xl', task)
    add_to_result(tmp_path, 'flan-t5-xl', 'birds', ties=TIES, counts={'faults': {'validation': UNREAD}})
    code, _, err = write_page(capsys, tmp_path, tmp_path / 'page.html')
    summary, _ = read_page(tmp_path / 'page.html')
    birds, cats = summary['cells']
    assert code == 0 and summary['remarks'] == err.splitlines() and cats['remarks'] == []
    assert [line.split(': ', 1)[0] for line in summary['remarks']] == ['birds'] * 3
    unread, tied = birds['remarks']
    assert unread.startswith('30 of 45 examples have texts most of whose letters') and '70% of all letters' in unread
    assert tied.startswith('scorer after adapting: in 45 of 45 examples the highest score is shared')
    over_ties = {row['name']: row['over_ties'] for row in birds['comparison'] if 'over_ties' in row}
    assert over_ties == {cells.ADAPTED: 0.125}


@pytest.mark.parametrize('value', [None, 7, 'x', [1]])
def test_results_of_another_shape_have_a_page(value, tmp_path, capsys):
    for task in TASKS[:2]:
        make_cell(tmp_path, 'flan-t5-xl', task)
    fields = ('settings', 'counts', 'seconds', 'comparison')
    add_to_result(tmp_path, 'flan-t5-xl', 'birds', **dict.fromkeys(fields, value))
    names = ('rouge_tokenizer', 'bigbench_gen_dir', 'src_key', 'refs_key')
    add_to_result(tmp_path, 'flan-t5-xl', 'cats', ends=value, ties=value, settings=dict.fromkeys(names, value))
    code, _, err = write_page(capsys, tmp_path, tmp_path / 'page.html', '--n_workers', 1)
    summary, _ = read_page(tmp_path / 'page.html')
    assert code == 0 and len(summary['cells']) == 2 and all(cell['remarks'] == [] for cell in summary['cells'])
    tokenizer = f'{tmp_path}/results/flan-t5-xl/cats.json: settings: rouge tokenizer'
    assert err == '' if value != 'x' else err.startswith(tokenizer)


def test_a_cell_of_one_example_has_no_intervals(tmp_path, capsys):
    make_cell(tmp_path, 'flan-t5-xl', 'birds')
    paths = ResultPaths(tmp_path / 'results', 'flan-t5-xl', 'birds')
    line = json.loads(paths.candidates.read_text().splitlines()[0])
    paths.candidates.write_text(json.dumps(line) + '\n')
    comparison = picks.compare({name: np.array([value]) for name, value in line['picked'].items()})
    paths.result.write_text(json.dumps({'rougeL': line['rougeL'], 'comparison': comparison}))
    code, _, err = write_page(capsys, tmp_path, tmp_path / 'page.html')
    (cell,) = read_page(tmp_path / 'page.html')[0]['cells']
    assert (code, err, cell['n'], cell['low'], cell['high']) == (0, '', 1, None, None)
    assert all(low is None and high is None for _, low, high in cell['gains'].values())
    assert ' to ' not in ' '.join(cell['verdict'])


def test_broken_candidates_are_named_and_the_rest_of_the_cell_is_shown(tmp_path, capsys):
    make_cell(tmp_path, 'flan-t5-xl', 'birds')
    paths = ResultPaths(tmp_path / 'results', 'flan-t5-xl', 'birds')
    lines = paths.candidates.read_text().splitlines(keepends=True)
    for content, words in (
        ('{', 'birds.candidates.jsonl:1: not JSON'),
        (''.join(lines[:-1]), 'birds.candidates.jsonl: mean rougeL'),
        (''.join(lines).replace('"score": 0.', '"score": "0.', 1).replace(', "rougeL"', '", "rougeL"', 1), 'birds'),
        (re.sub(r'"score": [^,]*', '"score": NaN', ''.join(lines), count=1), 'a number that is not finite'),
        (re.sub(r'"consensus": [^,]*', '"consensus": NaN', ''.join(lines), count=1), 'a number that is not finite'),
        (''.join(lines).replace('["beam4"]', '7', 1), 'birds.candidates.jsonl:1: decodings: expected a list of names'),
        (re.sub(r'"response": "[^"]*"', '"response": [1]', ''.join(lines), count=1), ':1: response: expected text'),
    ):
        paths.candidates.write_text(content)
        code, _, err = write_page(capsys, tmp_path, tmp_path / 'page.html')
        summary, data = read_page(tmp_path / 'page.html')
        assert code == 0 and words in err and summary['cells'][0]['faults'] == err.splitlines()
        assert len(data['flan-t5-xl', 'birds']['training']['loss']) == 60


def test_a_folder_of_bare_results_has_a_page_without_blocks(tmp_path, capsys):
    (tmp_path / 'results' / 'lm').mkdir(parents=True)
    (tmp_path / 'results' / 'lm' / 'mine.json').write_text('{"rougeL": 0.5}')
    code, _, err = write_page(capsys, tmp_path, tmp_path / 'page.html')
    summary, data = read_page(tmp_path / 'page.html')
    assert (code, err, data) == (0, '', {}) and summary['cells'][0]['rougeL'] == 0.5


def test_what_is_wrong_with_the_flags_is_one_line(sweep, capsys, tmp_path):
    folder, _ = sweep
    for more, words in (
        (['--max_examples', '0'], '--max_examples: expected 1 or more, found 0'),
        (['--tasks', 'cat'], '--tasks cat: no such task; near names in the list of tasks: cats'),
        (['--gen_models', 'flan-t5-xxl'], '--gen_models flan-t5-xxl: no such generator; near names in'),
    ):
        code, out, err = write_page(capsys, folder, tmp_path / 'page.html', *more)
        assert (code, out) == (1, '') and words in err and len(err.splitlines()) == 1
    (tmp_path / 'file').write_text('')
    code, _, err = write_page(capsys, folder, tmp_path / 'file' / 'page.html')
    assert code == 1 and 'page.html: cannot be written' in err


def test_the_pick_compared_with_first_is_beam_searchs_or_the_next_best_that_exists():
    assert verdict.reference_pick([cells.ADAPTED, 'random candidate', 'first of beam8', 'oracle']) == 'first of beam8'
    assert verdict.reference_pick(['random candidate', 'first of a', 'first of greedy']) == 'first of greedy'
    assert verdict.reference_pick(['first of a', 'random candidate', 'oracle']) == 'random candidate'
    assert verdict.reference_pick(['oracle', 'first of a']) == 'first of a'
    assert verdict.reference_pick(['oracle']) == 'oracle' and verdict.reference_pick([cells.ADAPTED]) is None


def test_the_common_reference_exists_for_every_generator_also_one_without_beam_search():
    with_beam = ['random candidate', 'first of beam4', 'consensus']
    assert verdict.common_reference_pick([with_beam, with_beam]) == 'first of beam4'
    assert verdict.common_reference_pick([with_beam, ['random candidate', 'first of sampling']]) == 'random candidate'
    assert verdict.common_reference_pick([[], []]) is None


def summary_of(generator, task, ours, **others):
    """A cell's summary; the names of others with underscores for blanks."""
    rows = {cells.ADAPTED: ours} | {name.replace('_', ' '): value for name, value in others.items()}
    comparison = [{'name': name, 'rougeL': value} for name, value in rows.items()]
    return {'generator': generator, 'task': task, 'rougeL': ours, 'comparison': comparison}


def test_averages_are_over_tasks_that_all_generators_have_and_picks_that_all_cells_have():
    made = [
        summary_of(generator, task, 0.5 + 0.01 * n, random_candidate=0.3, oracle=0.7, consensus=0.4)
        for generator in ('a', 'b')
        for n, task in enumerate('vwxyz')
    ]
    made.append(summary_of('a', 'only_of_a', 0.0, random_candidate=0.9, oracle=1.0))
    made[1]['comparison'].append({'name': 'first of beam4', 'rougeL': 0.1})
    both, of_a, of_b = verdict.averages(made, ['a', 'b'], [*'vwxyz', 'only_of_a'])
    assert [average['generator'] for average in (both, of_a, of_b)] == [None, 'a', 'b']
    assert (both['n_tasks'], both['left_out'], of_b['left_out']) == (5, ['first of beam4'], [])
    rows = {row['name']: row for row in both['rows']}
    ours = [0.5, 0.51, 0.52, 0.53, 0.54]
    assert rows[cells.ADAPTED]['rougeL'] == pytest.approx(0.52)
    assert (rows[cells.ADAPTED]['low'], rows[cells.ADAPTED]['high']) == pytest.approx(mean_interval(ours))
    assert rows['consensus']['gain'] == pytest.approx([0.12, *(end - 0.4 for end in mean_interval(ours))])
    assert rows[cells.ADAPTED]['gap_closed'] == pytest.approx(0.22 / 0.4)
    assert 'gain' not in rows['oracle'] and 'gain' not in rows[cells.ADAPTED]


def test_fewer_than_five_tasks_have_no_interval_over_tasks_and_the_verdict_says_why():
    made = [summary_of('lm', task, 0.5, random_candidate=0.3, oracle=0.7, consensus=0.55) for task in 'wxyz']
    (average,) = verdict.averages(made, ['lm'], 'wxyz')
    assert all(not {'low', 'high', 'gap_low', 'gap_high'} & row.keys() for row in average['rows'])
    assert verdict.sentences(average['rows'], 'Over 4 tasks', 'over tasks', verdict.NO_INTERVAL) == [
        'Over 4 tasks, the picks of the adapted scorer have mean rougeL 50.0: +20.0 over a random candidate and −5.0 '
        'against consensus. They close 50% of the gap between a random candidate and the oracle.',
        'No interval over tasks: fewer than 5 tasks.',
    ]


def test_the_verdict_claims_only_what_the_intervals_support():
    rows = [
        {'name': 'random candidate', 'rougeL': 0.3, 'gain': [0.2, 0.1, 0.3]},
        {'name': 'first of beam4', 'rougeL': 0.51, 'gain': [-0.01, -0.05, 0.03]},
        {'name': 'consensus', 'rougeL': 0.6, 'gain': [-0.1, -0.15, -0.05]},
        {
            'name': cells.ADAPTED,
            'rougeL': 0.5,
            'low': 0.45,
            'high': 0.55,
            'gap_closed': 0.5,
            'gap_low': 0.4,
            'gap_high': 0.6,
        },
    ]
    lead, numbers, note = verdict.sentences(rows, 'On t', 'over 9 examples')
    assert lead == (
        'The adapted scorer is better than a random candidate; worse than consensus; '
        'not clearly different from the first of beam4.'
    )
    assert numbers.startswith('On t, the picks of the adapted scorer have mean rougeL 50.0 (45.0 to 55.0): ')
    assert '−1.0 (−5.0 to +3.0) against the first of beam4' in numbers and '50% (40% to 60%)' in numbers
    assert note == 'In brackets: 95% intervals over 9 examples.'


def test_the_verdict_names_the_pick_that_is_the_result():
    rows = [
        {'name': 'random candidate', 'rougeL': 0.25, 'gain': [0.25, 0.1, 0.4]},
        {'name': cells.ADAPTED, 'rougeL': 0.45, 'gain': [0.05, 0.01, 0.09]},
        {'name': 'combined', 'rougeL': 0.5, 'low': 0.45, 'high': 0.55},
    ]
    lead, numbers, _ = verdict.sentences(rows, 'On t', 'over 9 examples', ours_name='combined')
    assert lead == 'The combined pick is better than a random candidate and the adapted scorer.'
    assert numbers.startswith('On t, the combined picks have mean rougeL 50.0 (45.0 to 55.0): +25.0 ')
    made = [{'gains': {'random candidate': [0.1, 0.05, 0.2]}, 'ours': 'combined'}]
    assert 'the combined pick is better than a random candidate in 1' in verdict.tally(made)


def test_the_tally_counts_the_cells_whose_interval_excludes_no_gain():
    gains = ([0.1, 0.05, 0.2], [0.1, -0.1, 0.3], [-0.1, -0.2, -0.05], [0.2, 0.1, 0.3])
    made = [{'gains': {'first of beam4': gain, 'oracle': [-1, -1, -1]}} for gain in gains]
    assert verdict.tally([*made, {}]) == (
        'Of 4 cells, by their intervals over examples, the adapted scorer is better than the first of beam4 in 2, '
        'worse in 1, not clearly different in 1.'
    )
    assert verdict.tally([{}]) == ''


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    """One page of a headless Chromium for all tests."""
    if find_chromium() is None:
        pytest.skip('needs Chromium (apt-get install chromium)')
    with chromium_page(tmp_path_factory.mktemp('browser')) as page:
        yield page


@pytest.fixture
def shown(sweep, browser, capsys, tmp_path):
    """The browser with the page opened."""
    write_page(capsys, sweep[0], tmp_path / 'page.html')
    browser.messages.clear()
    browser.open(tmp_path / 'page.html')
    return browser


def texts(page, selector):
    return page.run(f'[...document.querySelectorAll({json.dumps(selector)})].map(element => element.textContent)')


def give(page, selector, value, event):
    """Type or choose a value."""
    box = f'document.querySelector({json.dumps(selector)})'
    page.run(f'{box}.value = {json.dumps(value)}; {box}.dispatchEvent(new Event({json.dumps(event)}))')


def open_cell(page, fragment):
    page.run(f'location.hash = {json.dumps(fragment)}')
    page.wait('document.querySelector("#cell article")')


def grid_texts(page):
    return page.run(
        '[...document.querySelectorAll("#grid tbody tr")].map(row => [...row.children].map(field => field.textContent))'
    )


def test_the_grid_shows_gains_first_rougeL_if_wanted_and_what_is_missing(shown, sweep):
    picked, tasks = sweep[1], ('birds', 'broken_one', 'cats', 'numbers')

    def expected(show):
        value = {key: show(by_pick) for key, by_pick in picked.items()}
        return [[task, *(value.get((generator, task), 'none') for generator in GENERATORS)] for task in tasks]

    def gain(by_pick):
        return f'{100 * (by_pick[cells.ADAPTED] - by_pick["first of beam4"]).mean():+.1f}'.replace('-', '−')

    assert grid_texts(shown) == expected(gain)
    assert 'broken_one.json: not a result' in texts(shown, '#overview .faults')[0]
    give(shown, '#overview .controls:has(+ #scale) label:first-child select', 'rougeL', 'change')
    assert grid_texts(shown) == expected(lambda by_pick: f'{100 * by_pick[cells.ADAPTED].mean():.1f}')
    assert shown.messages == []


def test_the_page_begins_with_the_verdict_and_draws_every_pick_of_the_means(shown, sweep):
    assert shown.run('document.querySelector("#overview").firstElementChild.className') == 'verdict'
    lead, numbers, reason = texts(shown, '#overview .verdict p')
    picked = sweep[1]
    both = [picked[generator, task] for generator in GENERATORS for task in ('birds', 'cats')]  # 2 tasks that both have
    ours, beam = (np.mean([by_pick[name].mean() for by_pick in both]) for name in (cells.ADAPTED, 'first of beam4'))
    assert lead.startswith('Of 5 cells, by their intervals over examples, the adapted scorer is better than ')
    assert numbers.startswith(
        f'Over 2 tasks and 2 generators, the picks of the adapted scorer have mean rougeL {100 * ours:.1f}: '
    )
    assert f'{100 * (ours - beam):+.1f} over the first of beam4' in numbers
    assert reason == 'No interval over tasks: fewer than 5 tasks.'
    names = texts(shown, '#averages tbody th')
    assert (names[0], names[-1], set(names)) == ('random candidate', 'oracle', {*both[0], 'published'})
    drawn = shown.run(
        '[...document.querySelectorAll("#averages tbody tr")].map(row => row.querySelectorAll("circle").length)'
    )
    assert drawn == [0 if name in (cells.ADAPTED, 'oracle') else 1 for name in names]


def test_a_cell_draws_the_interval_of_each_pick_at_its_place_on_the_axis(shown, sweep):
    open_cell(shown, '#/flan-t5-small/birds')
    names = texts(shown, '#cell .intervals tbody th')
    plot = 'row.querySelector("td:nth-child(4) svg")'
    drawn = shown.run(
        f'[...document.querySelectorAll("#cell .intervals tbody tr")].map(row => [{plot}.querySelector("circle")'
        f'.getAttribute("cx"), {plot}.querySelector(".whisker")?.getAttribute("d")])'
    )
    by_pick = sweep[1]['flan-t5-small', 'birds']
    values, places = [], []
    for name, (mean, whisker) in zip(names, drawn, strict=True):
        if name in by_pick:  # the published number has no interval
            values += [by_pick[name].mean(), *mean_interval(by_pick[name])]
            places += [mean, *re.search(r'M([\d.]+),15H([\d.]+)', whisker).groups()]
    places = np.array(places, float)
    slope, start = np.polyfit(values, places, 1)
    assert len(values) == 3 * len(by_pick) and slope > 0
    assert places == pytest.approx(slope * np.array(values) + start, abs=0.01)


def test_the_grid_is_walked_and_opened_by_keys_and_the_reader_comes_back_to_it(shown):
    shown.run('document.querySelector("#grid [tabindex=\'0\']").focus()')
    assert shown.run('document.querySelectorAll("#grid [tabindex=\'0\']").length') == 1  # one stop for Tab
    for key in ('ArrowDown', 'ArrowDown', 'ArrowRight'):
        shown.press(key)
    assert shown.run('document.activeElement.getAttribute("aria-label")').startswith('cats, flan-t5-xl: gain ')
    shown.press('Enter')
    shown.wait('document.querySelector("#cell article")')
    assert shown.run('document.activeElement.textContent') == 'cats, flan-t5-xl'
    assert shown.run('document.getElementById("overview").hidden')
    shown.run('history.back()')
    shown.wait('!document.getElementById("overview").hidden')
    assert shown.run('document.activeElement.getAttribute("aria-label")').startswith('cats, flan-t5-xl')


def test_the_table_sorts_by_its_headings_and_filters_by_words(shown, sweep):
    shown.run('document.querySelector("#cells button[data-key=rougeL]").click()')
    ours = [float(text) for text in texts(shown, '#cells tbody td:nth-child(3)')]
    assert ours == sorted(ours, reverse=True) and len(ours) == 5
    assert shown.run('document.querySelector("#cells [aria-sort]").getAttribute("aria-sort")') == 'descending'
    assert shown.run('document.activeElement.dataset.key') == 'rougeL'
    shown.run('document.activeElement.click()')
    assert [float(text) for text in texts(shown, '#cells tbody td:nth-child(3)')] == ours[::-1]
    give(shown, '#filter', 'CAT', 'input')
    assert texts(shown, '#cells tbody th') == ['cats', 'cats']
    assert texts(shown, '#shown') == ['2 of 5 cells shown']


def test_a_cell_shows_its_baselines_published_figure_and_curves(shown, sweep):
    open_cell(shown, '#/flan-t5-small/birds')
    by_pick = sweep[1]['flan-t5-small', 'birds']
    rows = dict(zip(texts(shown, '#cell tbody th'), texts(shown, '#cell tbody td:nth-child(2)'), strict=False))
    assert rows['consensus'] == f'{100 * by_pick["consensus"].mean():.1f}' and rows['published'] == '25.0'
    labels = shown.run('[...document.querySelectorAll("svg.chart")].map(chart => chart.getAttribute("aria-label"))')
    assert [label.split(':')[0] for label in labels] == [
        'rougeL against the number of samples',
        'Score against rougeL',
        'Training loss',
        'Learning rate applied',
    ]
    ends = float(f'{100 * by_pick["oracle"].mean():.4g}')
    assert re.search(r'oracle from [\d.]+ to ([\d.]+)\.', labels[0])[1] == f'{ends:g}'
    assert shown.messages == []


def test_examples_come_with_the_largest_wins_and_losses_first_and_the_pick_marked(shown, sweep):
    open_cell(shown, '#/flan-t5-small/birds')
    by_pick = sweep[1]['flan-t5-small', 'birds']
    by = by_pick[cells.ADAPTED].round(4) - by_pick['first of beam4'].round(4)
    order = np.argsort(-np.abs(by), kind='stable')
    heads = texts(shown, 'article h4')
    assert len(heads) == 20 and heads[0].startswith(f'Example {order[0]}: {"win" if by[order[0]] > 0 else "loss"} ')
    sizes = [abs(float(re.search(r'[+−]([\d.]+)', head)[1])) for head in heads]
    assert sizes == sorted(sizes, reverse=True)
    assert shown.run(
        '[...document.querySelectorAll("article")].every(article => article.querySelectorAll("tr.pick").length === 1)'
    )
    picks = texts(shown, 'article tr.pick td:nth-child(1)')
    assert all(pick.endswith('✓ pick') for pick in picks)
    give(shown, '#cell .controls label:nth-of-type(2) select', 'losses', 'change')
    losses = int((by < 0).sum())
    assert texts(shown, '#cell [role=status]')[0].startswith(f'{losses} example')
    assert all(': loss −' in head for head in texts(shown, 'article h4'))


def test_texts_of_models_are_shown_as_they_are_and_run_nothing(shown):
    open_cell(shown, '#/flan-t5-xl/cats')
    give(shown, '#cell input', 'onerror', 'input')
    assert HOSTILE[:-1] in texts(shown, 'article td .text') and HOSTILE[:-2] in texts(shown, 'article .text')
    assert texts(shown, 'article .empty') == ['(empty)']
    assert shown.run(
        '[window.harmed === undefined, document.images.length, document.querySelectorAll("b").length]'
    ) == [True, 0, 0]
    assert shown.messages == []


def test_a_script_that_came_in_all_the_same_would_not_run(shown):
    shown.run(
        'document.body.append(Object.assign(document.createElement("script"), {textContent: "window.harmed = 1"}))'
    )
    assert shown.run('window.harmed === undefined')
    assert any('Content Security Policy' in message for message in shown.messages)


@pytest.mark.parametrize('fragment', ['', '#/flan-t5-small/cats'])
def test_a_narrow_window_needs_no_sideways_scrolling(fragment, sweep, browser, capsys, tmp_path):
    write_page(capsys, sweep[0], tmp_path / 'page.html')
    browser.open(tmp_path / 'page.html', width=340, height=700, fragment=fragment)
    browser.wait('document.querySelector("article, #cells")')
    assert browser.run('document.documentElement.scrollWidth') == 340


def test_a_reader_of_the_screen_finds_names_on_everything_that_can_be_worked(shown):
    open_cell(shown, '#/flan-t5-small/birds')
    nodes = shown.call('Accessibility.getFullAXTree')['nodes']
    worked = ('button', 'link', 'combobox', 'searchbox', 'textbox', 'image', 'article', 'table', 'region')
    found = [(node['role']['value'], node.get('name', {}).get('value')) for node in nodes if not node.get('ignored')]
    by_role = {}
    for role, name in found:
        by_role.setdefault(role, []).append(name)
    assert {'link', 'combobox', 'searchbox', 'image', 'article'} <= by_role.keys()
    unnamed = [role for role in worked if role not in ('table',) and not all(by_role.get(role, ['x']))]
    assert unnamed == []
    assert {'Compare with', 'Theme'} <= set(by_role['combobox']) and by_role['article'][0].startswith('Example ')


def test_candidates_come_by_score_and_all_but_the_first_five_the_pick_and_the_best_are_folded(
    browser, capsys, tmp_path
):
    n = 9
    words = ['right answer', *(f'wrong {number}' for number in range(n - 1))]
    samples = tuple(Sample(text, 'sampling', -1.0, -1.0) for text in words)
    example = Example('t', 0, 'say it', ('right answer',), samples)
    rougeL = RougeL().scores(example.references, example.candidates)
    scores = np.arange(n, dtype=np.float32)  # the best candidate has the lowest score
    line = describe_candidates(example, scores, rougeL, {cells.ADAPTED: 0.0, 'random candidate': 1 / n, 'oracle': 1.0})
    paths = ResultPaths(tmp_path / 'results', 'lm', 't')
    write_examples(tmp_path / 'gens' / 'lm' / 't_validation.jsonl', [example])
    write_result(paths, {'rougeL': 0.0, 'settings': {'bigbench_gen_dir': str(tmp_path / 'gens')}}, [line], [])
    write_page(capsys, tmp_path, tmp_path / 'page.html')
    browser.open(tmp_path / 'page.html', fragment='#/lm/t')
    browser.wait('document.querySelector("#cell article")')
    visible = 'article tbody tr:not([hidden]) .text'
    assert texts(browser, visible) == ['wrong 7', 'wrong 6', 'wrong 5', 'wrong 4', 'wrong 3', 'right answer']
    assert texts(browser, 'article .more') == ['Show 3 more candidates']
    browser.run('document.querySelector("article .more").click()')
    assert texts(browser, visible) == words[:0:-1] + words[:1]
    assert browser.run('document.querySelector("article .more").getAttribute("aria-expanded")') == 'true'


def test_words_are_marked_in_which_candidates_and_their_closest_reference_differ(browser, capsys, tmp_path):
    samples = tuple(Sample(text, 'sampling', -1.0, -1.0) for text in ('The old cat, asleep!', 'a dog'))
    example = Example('t', 0, 'say it', ('a big dog', 'the cat is asleep'), samples)
    rougeL = RougeL().scores(example.references, example.candidates)
    line = describe_candidates(example, np.float32([2, 1]), rougeL, {cells.ADAPTED: rougeL[0], 'oracle': rougeL.max()})
    write_examples(tmp_path / 'gens' / 'lm' / 't_validation.jsonl', [example])
    result = {'rougeL': float(rougeL[0]), 'settings': {'bigbench_gen_dir': str(tmp_path / 'gens')}}
    write_result(ResultPaths(tmp_path / 'results', 'lm', 't'), result, [line], [])
    write_page(capsys, tmp_path, tmp_path / 'page.html')
    browser.open(tmp_path / 'page.html', fragment='#/lm/t')
    browser.wait('document.querySelector("#cell article")')
    marked = browser.run(
        '[...document.querySelectorAll("article .text")].map(text => [text.textContent, '
        '[...text.querySelectorAll("mark")].map(mark => mark.textContent)])'
    )
    assert marked == [
        ['say it', []],
        ['a big dog', []],  # not the reference closest to the pick
        ['the cat is asleep', ['is']],
        ['The old cat, asleep!', ['old']],
        ['a dog', []],
    ]


def test_an_address_leads_to_one_example_on_whichever_page_of_the_list_it_is(shown, sweep):
    by_pick = sweep[1]['flan-t5-small', 'birds']
    by = by_pick[cells.ADAPTED].round(4) - by_pick['first of beam4'].round(4)
    last = int(np.argsort(-np.abs(by), kind='stable')[-1])  # on the last page
    shown.run(f'location.hash = "#/flan-t5-small/birds/{last}"')
    shown.wait('document.querySelector("article.target")')
    assert texts(shown, 'article.target h4 a') == [f'Example {last}']
    assert shown.run('document.activeElement === document.querySelector("article.target")')
    assert shown.run('document.querySelector("article.target h4 a").hash') == f'#/flan-t5-small/birds/{last}'
    shown.run('location.hash = "#/flan-t5-small/birds/none"')
    shown.wait(
        'document.querySelector("#cell [role=status]")?.textContent.startsWith("Example none is not in this page")'
    )


def test_the_theme_follows_the_system_until_the_reader_chooses(sweep, browser, capsys, tmp_path):
    write_page(capsys, sweep[0], tmp_path / 'page.html')
    ground = 'getComputedStyle(document.body).backgroundColor'
    try:
        seen = {}
        for scheme in ('light', 'dark'):
            features = [{'name': 'prefers-color-scheme', 'value': scheme}]
            browser.call('Emulation.setEmulatedMedia', features=features)
            browser.open(tmp_path / 'page.html')
            seen[scheme] = browser.run(ground)
        assert seen == {'light': 'rgb(255, 255, 255)', 'dark': 'rgb(20, 24, 29)'}
        centre = browser.run('getComputedStyle(document.querySelector("#scale .bar")).backgroundImage')
        give(browser, 'header select', 'light', 'change')
        assert browser.run(ground) == seen['light']
        assert browser.run('getComputedStyle(document.querySelector("#scale .bar")).backgroundImage') != centre
    finally:
        give(browser, 'header select', 'system', 'change')
        browser.call('Emulation.setEmulatedMedia', features=[])


def test_settings_are_tables_and_not_json(shown):
    open_cell(shown, '#/flan-t5-small/birds')
    rows = dict(zip(texts(shown, '.made th'), texts(shown, '.made td'), strict=True))
    assert rows['seed'] == '1' and rows['truncated_pairs, train'] == '3' and rows['device'] == 'a <b>device</b>'
    assert shown.run('document.querySelectorAll("pre").length') == 0


def test_the_words_are_explained_in_one_place_that_every_view_links_to(shown):
    for fragment in ('#/', '#/flan-t5-small/birds'):
        shown.run(f'location.hash = {json.dumps(fragment)}; document.getElementById("terms").open = false')
        section = '#cell' if fragment != '#/' else '#overview'
        shown.wait(f'document.querySelector("{section}:not([hidden]) a[href=\'#terms\']")')
        shown.run(f'document.querySelector("{section} a[href=\'#terms\']").click()')
        shown.wait('document.getElementById("terms").open')
        assert not shown.run(f'document.querySelector("{section}").hidden')
    terms = set(texts(shown, '#terms dt'))
    assert {'Cell', 'Consensus', 'Self-score', 'Oracle', 'Gap closed', 'Random candidate'} <= terms


def test_published_results_alone_have_a_grid_and_no_empty_columns(sweep, browser, capsys, tmp_path):
    published = sweep[0] / 'published'
    write_page(capsys, sweep[0], tmp_path / 'page.html', '--results_dir', published)
    browser.messages.clear()
    browser.open(tmp_path / 'page.html', fragment='#/flan-t5-xl/cats')
    assert grid_texts(browser) == [[task, '25.0', '25.0'] for task in TASKS]
    assert browser.run('document.querySelectorAll("#cell table").length') == 0
    assert texts(browser, '#cell .verdict') == [
        'On cats, with samples of flan-t5-xl, the picks of the adapted scorer have mean rougeL 25.0.'
    ]
    assert browser.messages == []


@pytest.mark.parametrize('width', [390, 1200])
def test_the_text_of_charts_is_at_least_12_pixels_large(width, sweep, browser, capsys, tmp_path):
    write_page(capsys, sweep[0], tmp_path / 'page.html')
    browser.open(tmp_path / 'page.html', width=width, fragment='#/flan-t5-small/birds')
    browser.wait('document.querySelector("#cell article")')
    sizes = browser.run(
        '[...document.querySelectorAll("#cell svg text")]'
        '.map(text => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a)'
    )
    assert len(sizes) > 20 and min(sizes) >= 12


def test_on_a_phone_names_break_at_underscores_and_keys_are_not_mentioned(browser, capsys, tmp_path):
    name = 'ascii_word_recognition'
    for generator in GENERATORS:
        path = tmp_path / 'results' / generator / f'{name}.json'
        path.parent.mkdir(parents=True)
        path.write_text('{"rougeL": 0.5, "comparison": [{"name": "random candidate", "rougeL": 0.25}]}')
    write_page(capsys, tmp_path, tmp_path / 'page.html')
    hint = 'getComputedStyle(document.querySelector(".keys")).display'
    browser.open(tmp_path / 'page.html', width=1200)
    assert browser.run(hint) == 'block'
    browser.call('Emulation.setTouchEmulationEnabled', enabled=True)
    try:
        browser.open(tmp_path / 'page.html', width=390)
        assert browser.run(hint) == 'none'
        assert texts(browser, '#grid tbody th') == [name]
        # Each part of the name is on one line: all of its letters have the same top.
        tops = browser.run(
            '[...document.querySelectorAll("#grid tbody th, #cells tbody th a")].flatMap(cell => [...cell.childNodes])'
            '.filter(node => node.nodeType === Node.TEXT_NODE).map(node => [...node.data].map((_, i) => {'
            'const range = document.createRange(); range.setStart(node, i); range.setEnd(node, i + 1);'
            'return range.getBoundingClientRect().top; }))'
        )
    finally:
        browser.call('Emulation.setTouchEmulationEnabled', enabled=False)
    assert len(tops) == 9 and all(len(set(letters)) == 1 for letters in tops)
    assert len({letters[0] for letters in tops[:3]}) > 1  # and the name does need several


def test_ties_and_faults_of_texts_are_shown_where_they_are(browser, capsys, tmp_path):
    for task in TASKS[:2]:
        make_cell(tmp_path, 'flan-t5-xl', task)
    add_to_result(tmp_path, 'flan-t5-xl', 'birds', ties=TIES, counts={'faults': {'validation': UNREAD}})
    write_page(capsys, tmp_path, tmp_path / 'page.html')
    browser.messages.clear()
    browser.open(tmp_path / 'page.html')
    assert len(texts(browser, '#overview .faults li')) == 3
    (place,) = [n for n, name in enumerate(texts(browser, '#cells thead th')) if name.startswith('over ties')]
    assert texts(browser, f'#cells tbody td:nth-child({place + 1})') == ['12.5', '']
    for task, said, shown in (('birds', 2, ['12.5']), ('cats', 0, [])):
        open_cell(browser, f'#/flan-t5-xl/{task}')
        assert len(texts(browser, '#cell .faults li')) == said
        has_column = 'over ties' in texts(browser, '#cell .intervals thead th')
        assert has_column == bool(shown)
        if has_column:
            assert texts(browser, '#cell .intervals tr.pick td:nth-child(3)') == shown
    assert browser.messages == []


def test_a_page_that_is_cut_off_says_so_in_place_of_the_cell(sweep, browser, capsys, tmp_path):
    write_page(capsys, sweep[0], tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text()
    (tmp_path / 'cut.html').write_text(text[: text.index('<script type="text/plain" id="cell-2"') + 200])
    browser.open(tmp_path / 'cut.html', fragment='#/flan-t5-xl/cats')
    browser.wait('document.querySelector("#cell [role=alert]")')
    assert texts(browser, '#cell [role=alert]')[0].startswith('This cell cannot be shown: ')


def test_the_browser_shows_spreads_and_the_examples_of_the_seed_that_is_chosen(seeds, browser, capsys, tmp_path):
    folder, picked = seeds
    write_page(capsys, folder, tmp_path / 'page.html')
    browser.messages.clear()
    browser.open(tmp_path / 'page.html')
    ours = {seed: picked['birds', seed][cells.ADAPTED].mean() for seed in (1, 2, 3)}
    std = f'{100 * np.std(list(ours.values()), ddof=1):.1f}'
    assert texts(browser, '#cells tbody tr:first-child td')[:2] == [f'{100 * np.mean(list(ours.values())):.1f}', std]
    assert '× 100, mean of 3 seeds.' in texts(browser, '#overview > p')[0]
    open_cell(browser, '#/flan-t5-xl/birds')
    shown = next(text for text in texts(browser, '#cell p') if text.startswith('Mean of 3 seeds'))
    assert all(f'{100 * value:.1f} (seed{seed})' in shown for seed, value in ours.items())
    for seed in (1, 3):
        give(browser, '#cell select', str(seed - 1), 'change')
        by = picked['birds', seed][cells.ADAPTED].round(4) - picked['birds', seed]['first of beam4'].round(4)
        tally = ', '.join(
            f'{(np.sign(by) == sign).sum()} {name}' for sign, name in ((1, 'wins'), (-1, 'losses'), (0, 'ties'))
        )
        browser.wait(f'document.querySelector("#cell [role=status]")?.textContent.includes({json.dumps(tally)})')
    assert browser.messages == []
