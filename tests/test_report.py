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
from cappy.study import cells, report
from cappy.study.results import ResultPaths, describe_candidates, write_result
from cappy.tasks import picks
from cappy.tasks.candidates import Example, Sample, write_examples
from cappy.tasks.rouge import RougeL
from cappy.tasks.statistics import bootstrap_interval

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location('report_script', ROOT / 'scripts' / 'report.py')
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)

GENERATORS, TASKS, N_EXAMPLES = ('flan-t5-small', 'flan-t5-xl'), ('birds', 'cats', 'numbers'), 45
HOSTILE = '<img src=x onerror="window.harmed=1"></script><script>window.harmed=2</script><!-- &amp; \u202e \ud800'


def make_cell(folder, generator, task, is_hostile=False, seed=1, results='results'):
    """A cell with all its files, and its generator's; -> rougeL by way of picking. seed: of the scorer's errors."""
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
    picked = picks.all_picks(examples, rougeL, rouge, None, scores)
    lines = [
        describe_candidates(example, s, r, {name: values[n] for name, values in picked.items()})
        for n, (example, s, r) in enumerate(zip(examples, scores, rougeL, strict=True))
    ]
    write_examples(folder / 'gens' / generator / f'{task}_validation.jsonl', examples)
    result = {
        'rougeL': float(picked[cells.ADAPTED].mean()),
        'settings': {'seed': seed, 'bigbench_gen_dir': str(folder / 'gens')},
        'comparison': picks.compare(picked, n_resamples=50),
        'device': 'a <b>device</b>',
    }
    updates = [Update(n, 8, 2e-5 * (1 - n / 60), 0.5 / (n + 1), 1.0) for n in range(60)]
    write_result(ResultPaths(folder / results, generator, task), result, lines, updates)
    return picked


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
    """(folder of results, generators' files, published figures; {(generator, task): rougeL by way})."""
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
    argv = [] if '--result_dir' in more else ['--result_dir', folder / 'results']
    argv += ['--published_dir', folder / 'published', '--output', output]
    argv += ['--bigbench_data_dir', folder / 'none', '--n_resamples', '50', *more]
    code = 0
    try:
        flags.run(script.main, [str(word) for word in argv])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def read_page(path):
    """(summary, {(generator, task): block}) of a page; (generator, task, place of the seed) where there are several."""
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
        by_way = picked[cell['generator'], cell['task']]
        ours = by_way[cells.ADAPTED]
        assert (cell['rougeL'], cell['published'], cell['n']) == (ours.mean(), 0.25, N_EXAMPLES)
        assert (cell['low'], cell['high']) == pytest.approx(bootstrap_interval(ours, n_resamples=50))
        assert cell['gains']['consensus'][0] == pytest.approx((ours - by_way['consensus']).mean())
        assert {row['name']: row['rougeL'] for row in cell['comparison']} == pytest.approx(
            {way: values.mean() for way, values in by_way.items()}
        )
        block = data[cell['generator'], cell['task']]
        assert block['curves']['ways']['scorer'][-1] == pytest.approx(ours.mean())
        assert block['curves']['ways']['self-score sum'][-1] == pytest.approx(by_way['self-score sum'].mean())
        assert block['curves']['are_drawn'] and block['first'] == 'first of beam4'
        consensus = block['ways'].index('consensus')
        assert [one['picked'][consensus] for one in block['examples']] == by_way['consensus'].round(4).tolist()
        assert [one['ours'] for one in block['examples']] == ours.round(4).tolist()
    assert [line.split(': ')[0] for line in err.splitlines()] == [
        f'{folder}/results/flan-t5-small/broken_one.json',
        f'{folder}/results/flan-t5-xl/birds.train.csv:1',
    ]
    assert summary['faults'] == err.splitlines()


@pytest.fixture(scope='module')
def seeds(tmp_path_factory):
    """(folder with the results of three seeds of two cells; {(task, seed): rougeL by way})."""
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
        ours = np.array([by_way[cells.ADAPTED].mean() for by_way in by_seed])
        assert cell['rougeL'] == pytest.approx(ours.mean()) and cell['seeds']['values'] == pytest.approx(ours)
        assert cell['seeds']['std'] == pytest.approx(ours.std(ddof=1)) and ours.std() > 0
        of_examples = np.mean([by_way[cells.ADAPTED] for by_way in by_seed], axis=0)
        interval = pytest.approx(bootstrap_interval(of_examples, n_resamples=50))
        rows = {row['name']: row for row in cell['comparison']}
        assert (cell['low'], cell['high']) == (rows[cells.ADAPTED]['low'], rows[cells.ADAPTED]['high']) == interval
        assert rows[cells.ADAPTED]['rougeL'] == pytest.approx(ours.mean()) and 'gap_low' not in rows[cells.ADAPTED]
        assert rows['oracle']['rougeL'] == pytest.approx(by_seed[0]['oracle'].mean())
        interval = bootstrap_interval(by_seed[0]['oracle'], n_resamples=50)
        assert (rows['oracle']['low'], rows['oracle']['high']) == pytest.approx(interval)
        for place, by_way in enumerate(by_seed):
            examples = data['flan-t5-xl', cell['task'], place]['examples']
            assert [one['ours'] for one in examples] == by_way[cells.ADAPTED].round(4).tolist()


def test_a_cell_that_one_seed_lacks_is_not_shown_and_said(seeds, capsys, tmp_path):
    folder, _ = seeds
    make_cell(tmp_path, 'flan-t5-xl', 'birds', results='seed1')
    broken = ResultPaths(tmp_path / 'seed1', 'flan-t5-xl', 'cats').result
    broken.write_text('{"rougeL": ')
    given = f'{tmp_path}/seed1,{folder}/results/seed2,{folder}/results/seed3'
    code, out, err = write_page(capsys, folder, tmp_path / 'page.html', '--result_dir', given)
    assert code == 0 and '1 cells, 1 without a result' in out
    assert err.startswith(f'{broken}: not a result') and len(err.splitlines()) == 1
    broken.unlink()
    _, _, err = write_page(capsys, folder, tmp_path / 'page.html', '--result_dir', given)
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


def test_no_text_of_a_model_stands_in_the_page_as_markup(sweep, capsys, tmp_path):
    write_page(capsys, sweep[0], tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text()
    assert 'onerror' not in text and '<i>' not in text
    assert text.count('</script>') == 2 + 5  # the summary, the page's own, a block for each cell


def test_of_more_examples_than_are_asked_for_the_largest_differences_stay(sweep, capsys, tmp_path):
    folder, picked = sweep
    write_page(capsys, folder, tmp_path / 'page.html', '--max_examples', '7')
    by_way = picked['flan-t5-small', 'birds']
    differences = np.abs(by_way[cells.ADAPTED] - by_way['first of beam4'])
    block = read_page(tmp_path / 'page.html')[1]['flan-t5-small', 'birds']
    kept = [one['idx'] for one in block['examples']]
    assert (len(kept), block['n_examples']) == (7, N_EXAMPLES)
    assert sorted(kept) == kept and min(differences[kept]) >= max(np.delete(differences, kept))


def test_broken_candidates_are_named_and_the_rest_of_the_cell_is_shown(tmp_path, capsys):
    make_cell(tmp_path, 'flan-t5-xl', 'birds')
    paths = ResultPaths(tmp_path / 'results', 'flan-t5-xl', 'birds')
    lines = paths.candidates.read_text().splitlines(keepends=True)
    for content, words in (
        ('{', 'birds.candidates.jsonl:1: not a line of candidates'),
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
        (['--max_examples', '0'], '--max_examples 0: expected 1 or more'),
        (['--tasks', 'cat'], '--tasks cat: no such task; near names in the list of tasks: cats'),
        (['--gen_model_name', 'flan-t5-xxl'], 'near names in'),
    ):
        code, out, err = write_page(capsys, folder, tmp_path / 'page.html', *more)
        assert (code, out) == (1, '') and words in err and len(err.splitlines()) == 1
    (tmp_path / 'file').write_text('')
    code, _, err = write_page(capsys, folder, tmp_path / 'file' / 'page.html')
    assert code == 1 and 'page.html: cannot be written' in err


def test_the_way_compared_with_first_is_the_beams_or_what_there_is():
    assert report.default_way(['random candidate', 'first of beam8', 'oracle']) == 'first of beam8'
    assert report.default_way(['first of a', 'random candidate', 'oracle']) == 'random candidate'
    assert report.default_way(['oracle', 'first of a']) == 'first of a'
    assert report.default_way(['oracle']) == 'oracle'


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
    return page.run(f'[...document.querySelectorAll({json.dumps(selector)})].map(one => one.textContent)')


def give(page, selector, value, event):
    """Type or choose a value."""
    box = f'document.querySelector({json.dumps(selector)})'
    page.run(f'{box}.value = {json.dumps(value)}; {box}.dispatchEvent(new Event({json.dumps(event)}))')


def open_cell(page, fragment):
    page.run(f'location.hash = {json.dumps(fragment)}')
    page.wait('document.querySelector("#cell article")')


def test_the_grid_shows_each_cells_rougeL_and_what_is_missing(shown, sweep):
    picked = sweep[1]
    rows = shown.run(
        '[...document.querySelectorAll("#grid tbody tr")].map(row => [...row.children].map(one => one.textContent))'
    )
    value = {key: f'{100 * by_way[cells.ADAPTED].mean():.1f}' for key, by_way in picked.items()}
    assert rows == [
        [task, *(value.get((generator, task), 'none') for generator in GENERATORS)]
        for task in ('birds', 'broken_one', 'cats', 'numbers')
    ]
    assert 'broken_one.json: not a result' in texts(shown, '#overview .faults')[0]
    assert shown.messages == []


def test_the_grid_is_walked_and_opened_by_keys_and_the_reader_comes_back_to_it(shown):
    shown.run('document.querySelector("#grid [tabindex=\'0\']").focus()')
    assert shown.run('document.querySelectorAll("#grid [tabindex=\'0\']").length') == 1  # one stop for Tab
    for key in ('ArrowDown', 'ArrowDown', 'ArrowRight'):
        shown.press(key)
    assert shown.run('document.activeElement.getAttribute("aria-label")').startswith('cats, flan-t5-xl: rougeL ')
    shown.press('Enter')
    shown.wait('document.querySelector("#cell article")')
    assert shown.run('document.activeElement.textContent') == 'cats, flan-t5-xl'
    assert shown.run('document.getElementById("overview").hidden')
    shown.run('history.back()')
    shown.wait('!document.getElementById("overview").hidden')
    assert shown.run('document.activeElement.getAttribute("aria-label")').startswith('cats, flan-t5-xl')


def test_the_table_sorts_by_its_headings_and_filters_by_words(shown, sweep):
    shown.run('document.querySelector("#cells button[data-key=rougeL]").click()')
    ours = [float(text) for text in texts(shown, '#cells tbody td:nth-child(4)')]
    assert ours == sorted(ours, reverse=True) and len(ours) == 5
    assert shown.run('document.querySelector("#cells [aria-sort]").getAttribute("aria-sort")') == 'descending'
    assert shown.run('document.activeElement.dataset.key') == 'rougeL'
    shown.run('document.activeElement.click()')
    assert [float(text) for text in texts(shown, '#cells tbody td:nth-child(4)')] == ours[::-1]
    give(shown, '#filter', 'CAT', 'input')
    assert texts(shown, '#cells tbody th') == ['cats', 'cats']
    assert texts(shown, '#shown') == ['2 of 5 cells shown']


def test_a_cell_shows_its_baselines_published_figure_and_curves(shown, sweep):
    open_cell(shown, '#/flan-t5-small/birds')
    by_way = sweep[1]['flan-t5-small', 'birds']
    rows = dict(zip(texts(shown, '#cell tbody th'), texts(shown, '#cell tbody td:nth-child(2)'), strict=False))
    assert rows['consensus'] == f'{100 * by_way["consensus"].mean():.1f}' and rows['published'] == '25.0'
    labels = shown.run('[...document.querySelectorAll("svg.chart")].map(one => one.getAttribute("aria-label"))')
    assert [label.split(':')[0] for label in labels] == [
        'rougeL against the number of samples',
        'Score against rougeL',
        'Loss',
        'Learning rate applied',
    ]
    ends = float(f'{100 * by_way["oracle"].mean():.4g}')
    assert re.search(r'oracle from [\d.]+ to ([\d.]+)\.', labels[0])[1] == f'{ends:g}'
    assert shown.messages == []


def test_examples_come_with_the_largest_wins_and_losses_first_and_the_pick_marked(shown, sweep):
    open_cell(shown, '#/flan-t5-small/birds')
    by_way = sweep[1]['flan-t5-small', 'birds']
    by = by_way[cells.ADAPTED].round(4) - by_way['first of beam4'].round(4)
    order = np.argsort(-np.abs(by), kind='stable')
    heads = texts(shown, 'article h4')
    assert len(heads) == 20 and heads[0].startswith(f'Example {order[0]}: {"win" if by[order[0]] > 0 else "loss"} ')
    sizes = [abs(float(re.search(r'[+−]([\d.]+)', head)[1])) for head in heads]
    assert sizes == sorted(sizes, reverse=True)
    assert shown.run(
        '[...document.querySelectorAll("article")].every(one => one.querySelectorAll("tr.pick").length === 1)'
    )
    picks = texts(shown, 'article tr.pick td:nth-child(1)')
    assert all(pick.endswith('✓ pick') for pick in picks)
    give(shown, '#cell label:nth-of-type(2) select', 'losses', 'change')
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
    assert 'Against' in by_role['combobox'] and by_role['article'][0].startswith('Example ')


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
    label = browser.run('document.querySelector("#grid tbody a").getAttribute("aria-label")')
    assert label == f'birds, flan-t5-xl: rougeL {100 * np.mean(list(ours.values())):.1f} ± {std}'
    assert texts(browser, '#cells tbody tr:first-child td:nth-child(5)') == [std]
    assert all('mean of 3 seeds' in text for text in texts(browser, 'caption'))
    open_cell(browser, '#/flan-t5-xl/birds')
    told = next(text for text in texts(browser, '#cell p') if text.startswith('Mean of 3 seeds'))
    assert all(f'{100 * value:.1f} (seed{seed})' in told for seed, value in ours.items())
    for seed in (1, 3):
        give(browser, '#cell select', str(seed - 1), 'change')
        by = picked['birds', seed][cells.ADAPTED].round(4) - picked['birds', seed]['first of beam4'].round(4)
        tally = ', '.join(
            f'{(np.sign(by) == sign).sum()} {name}' for sign, name in ((1, 'wins'), (-1, 'losses'), (0, 'ties'))
        )
        browser.wait(f'document.querySelector("#cell [role=status]")?.textContent.includes({json.dumps(tally)})')
    assert browser.messages == []
