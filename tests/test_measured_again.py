"""Stored results measured by another metric: what was stored for rougeL, and values by hand."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import load_script, run_main

from cappy.errors import InputError
from cappy.study import cells, measured_again
from cappy.study.results import ResultPaths, describe_candidates, write_result
from cappy.tasks import picks
from cappy.tasks.candidates import Example, Sample, write_examples
from cappy.tasks.combining import COMBINED, Combination
from cappy.tasks.metrics import find_metric
from cappy.tasks.rouge import RougeL
from cappy.tasks.statistics import mean_interval

script = load_script('scripts/present_cappy_bigbench_results.py')
COMBINATION = Combination({'scorer': 0.2, 'consensus': 0.7, 'decoding': 1.0}, {'beam4': 0.1}, 'rougeL')


def example(number, references, *texts):
    """Samples of beam4, the first, and of sampling."""
    samples = [
        Sample(text, 'sampling' if place else 'beam4', -1.0 - place, -0.5 - place) for place, text in enumerate(texts)
    ]
    return Example('t', number, f'question {number}', references, tuple(samples))


# exact_match: 'a b' has case and blanks of its own, 'no' is sampled twice.
EXAMPLES = [
    example(0, ('A  b', 'c'), 'x y', 'a b', 'x z', 'no', 'no'),
    example(1, ('yes it is',), 'yes it is', 'yes it', 'it is', 'no'),
    example(2, ('d e f',), 'd e', 'd f', 'g'),
]
SCORES = [np.float32(own) for own in ([0.1, 0.9, 0.3, 0.2], [0.2, 0.7, 0.3, 0.1], [0.25, 0.2, 0.1])]


def write_cell(folder, pick=None, scores=SCORES, task='t', **settings):
    """A cell as cappy_bigbench.py writes it, with the generator's file; returns (paths, result)."""
    settings = {'bigbench_gen_dir': str(folder / 'gens')} | settings
    rouge, own = RougeL(), find_metric(settings.get('metric', 'rougeL'))
    rougeL, consensus = picks.candidates_rougeL(EXAMPLES, rouge), picks.consensus_of(EXAMPLES, own)
    combined = COMBINATION.picks(EXAMPLES, scores, own, consensus) if pick == COMBINED else {}
    values = picks.values_by_pick(EXAMPLES, consensus, None, scores, combined)
    by_pick = picks.rougeL_by_pick(EXAMPLES, rougeL, values)
    ours = pick or cells.ADAPTED
    lines = [
        describe_candidates(
            one, scores[n], rougeL[n], {name: v[n] for name, v in by_pick.items()}, np.argmax(values[ours][n])
        )
        for n, one in enumerate(EXAMPLES)
    ]
    lines = [line | {'pick': int(line['pick'])} for line in lines]
    result = {
        'rougeL': float(by_pick[ours].mean()),
        **({} if pick is None else {'pick': pick, 'combination': dataclasses.asdict(COMBINATION)}),
        'settings': settings,
        'comparison': picks.compare(by_pick, picks.count_ties(rougeL, values)),
    }
    paths = ResultPaths(folder / 'results', 'lm', task)
    write_examples(folder / 'gens' / 'lm' / f'{task}_validation.jsonl', EXAMPLES)
    write_result(paths, result, lines, [])
    return paths, json.loads(paths.result.read_text())


@pytest.mark.parametrize('pick', [None, COMBINED])
@pytest.mark.parametrize('metric', ['rougeL', 'exact_match', 'chrf'])
def test_rougeL_gives_what_was_stored_whatever_metric_made_consensus(pick, metric, tmp_path):
    paths, result = write_cell(tmp_path, pick, metric=metric)
    (made,), examples = measured_again.measure_cell([paths], [result], 'rougeL')
    assert made['comparison'] == result['comparison'] and made['rougeL'] == result['rougeL']
    assert made['pick'] == (pick or cells.ADAPTED)
    stored = cells.examples_of_cell([paths], [result['rougeL']], [made['pick']])
    assert dataclasses.asdict(examples) == dataclasses.asdict(stored)


def test_exact_match_is_that_of_the_picks_by_hand(tmp_path):
    paths, result = write_cell(tmp_path, COMBINED)
    (made,), examples = measured_again.measure_cell([paths], [result], 'exact_match')
    found = {row['name']: row['rougeL'] for row in made['comparison']}
    # By hand: one sample of five, of four, none of three is right.
    assert found['random candidate'] == pytest.approx((1 / 5 + 1 / 4 + 0) / 3)
    assert found['first of beam4'] == found['self-score sum'] == pytest.approx((0 + 1 + 0) / 3)
    assert found['first of sampling'] == found[cells.ADAPTED] == pytest.approx((1 + 0 + 0) / 3)
    assert found['longest'] == pytest.approx((0 + 1 + 0) / 3) and found['oracle'] == pytest.approx(2 / 3)
    # Consensus by rougeL, since the result was made so: 'no', 'yes it is' and 'd e' (of equals the first).
    assert found['consensus'] == pytest.approx(1 / 3)
    rouge = RougeL()
    consensus = picks.consensus_of(EXAMPLES, rouge)
    best = [int(np.argmax(own)) for own in COMBINATION.picks(EXAMPLES, SCORES, rouge, consensus)[COMBINED]]
    right = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0]]
    by_hand = [own[place] for own, place in zip(right, best, strict=True)]
    assert made['rougeL'] == found[COMBINED] == pytest.approx(np.mean(by_hand))
    assert (examples.low, examples.high) == pytest.approx(mean_interval(by_hand))
    gain = examples.differences[cells.ADAPTED]
    assert gain.mean == pytest.approx(np.mean(by_hand) - 1 / 3)
    assert not any('metrics' in row for row in made['comparison'])


def test_of_several_seeds_the_values_are_averaged(tmp_path):
    made = [write_cell(tmp_path / str(seed), scores=own) for seed, own in ((1, SCORES), (2, [-s for s in SCORES]))]
    paths, results = zip(*made, strict=True)
    measured, examples = measured_again.measure_cell(paths, results, 'exact_match')
    # The lowest scores are those of 'x y', 'no' and 'g'.
    assert [result['rougeL'] for result in measured] == pytest.approx([1 / 3, 0])
    assert (examples.low, examples.high) == pytest.approx(mean_interval([0.5, 0, 0]))
    measured, examples = measured_again.measure_cell(paths, (results[0], None), 'exact_match')
    assert measured[1] is None and examples is None and measured[0]['rougeL'] == pytest.approx(1 / 3)


def without_texts(paths, result):
    lines = [json.loads(line) for line in paths.candidates.read_text().splitlines()]
    for line in lines:
        for candidate in line['candidates']:
            candidate['response'] = ''
    paths.candidates.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def without_references(paths, result):
    (paths.candidates.parents[2] / 'gens' / 'lm' / 't_validation.jsonl').unlink()


def without_weights(paths, result):
    result['combination'] = {'weights': {'scorer': 1.0, 'of old': 1.0}, 'decodings': {}, 'metric': 'rougeL'}


def with_another_pick(paths, result):
    result['pick'] = 'some other pick'


BROKEN = {
    without_texts: ['t.candidates.jsonl:1: the candidates have no texts'],
    without_references: ['the references are missing', 'lm/t_validation.jsonl', '--bigbench_gen_dir'],
    without_weights: ['t.json: combination: not one', 'of old'],
    with_another_pick: ["t.json: pick 'some other pick' cannot be measured again"],
}


@pytest.mark.parametrize('spoil', BROKEN)
def test_what_cannot_be_measured_again_is_one_line(spoil, tmp_path, capsys):
    paths, result = write_cell(tmp_path, COMBINED)
    spoil(paths, result)
    with pytest.raises(InputError) as fault:
        measured_again.measure_cell([paths], [result], 'chrf')
    assert all(words in str(fault.value) for words in BROKEN[spoil]) and '\n' not in str(fault.value)
    paths.result.write_text(json.dumps(result))
    write_cell(tmp_path, task='u')
    argv = ['--results_dir', tmp_path / 'results', '--gen_models', 'lm', '--data_dir', 'bigbench_data']
    code = run_main(script.main, [*argv, '--format', 'json', '--metric', 'chrf'])
    out, err = capsys.readouterr()
    assert code == 0 and err.startswith(f'{fault.value}; counted as missing\n')
    assert [(row['task'], row['chrf'] is None) for row in json.loads(out)['cells']] == [('t', True), ('u', False)]
    code = run_main(script.main, [*argv, '--tasks', 't', '--format', 'json', '--metric', 'chrf'])
    out, err = capsys.readouterr()
    assert (code, out, err) == (1, '', f'error: {fault.value}\n')


def test_the_tables_are_those_of_the_metric_with_its_name(tmp_path, capsys, monkeypatch):
    (tmp_path / 'length_metric.py').write_text('def score(references, text):\n    return min(len(text), 10) / 10\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_cell(tmp_path)
    argv = ['--results_dir', tmp_path / 'results', '--gen_models', 'lm', '--nointervals']
    argv += ['--published_dir', tmp_path / 'results', '--against', 'all']  # its figures are of rougeL

    def present(*more):
        assert run_main(script.main, [*argv, *more]) == 0
        return capsys.readouterr()

    ours = (3 + 6 + 3) / 10 / 3  # 'a b', 'yes it', 'd e'
    tables = json.loads(present('--format', 'json', '--metric', 'length_metric:score').out)
    for row in (tables['cells'][0], tables['averages'][0], tables['comparisons'][0]):
        assert row['length_metric_score'] == pytest.approx(ours) and 'rougeL' not in row
    assert tables['cells'][0]['longest'] == pytest.approx((3 + 9 + 3) / 10 / 3)
    assert tables['cells'][0]['n_examples'] is None and 'published' not in tables['cells'][0]
    table = present('--format', 'markdown', '--show', 'cells', '--metric', 'length_metric:score').out
    assert 'ours (length_metric:score)' in table and f'{100 * ours:.1f}' in table
    out = present('--metric', 'length_metric:score').out
    assert json.loads(out[: out.rindex('}') + 1])['lm']['t'] == pytest.approx(ours)
    assert 'Average of length_metric:score on ' in out


def test_a_metric_that_there_is_not_and_a_picture_of_rougeL_are_refused(tmp_path, capsys):
    write_cell(tmp_path)
    argv = ['--results_dir', tmp_path / 'results', '--gen_models', 'lm']
    for more, words in (
        (['--metric', 'chrff'], "--metric: found 'chrff'"),
        (['--metric', 'chrf', '--plot', tmp_path / 'x.svg', '--picture', 'scores'], 'leave --metric out'),
    ):
        assert run_main(script.main, [*argv, *more]) == 1
        out, err = capsys.readouterr()
        assert out == '' and words in err and len(err.splitlines()) == 1


def test_baselines_by_another_metric_are_by_hand_and_so_is_their_consensus(tmp_path, capsys):
    write_cell(tmp_path)
    baselines = load_script('scripts/present_bigbench_baselines.py')
    argv = ['--bigbench_gen_dir', tmp_path / 'gens', '--data_dir', 'bigbench_data', '--format', 'json']
    assert run_main(baselines.main, [*argv, '--metric', 'exact_match']) == 0
    out, err = capsys.readouterr()
    found = {row['pick']: row['lm'] for row in json.loads(out)}
    assert err.splitlines()[0] == 'all values are of exact_match'
    assert found['random candidate'] == pytest.approx((1 / 5 + 1 / 4) / 3)
    assert found['oracle'] == pytest.approx(2 / 3)
    # 'no' was sampled twice; elsewhere no two samples are equal, so that the first is taken.
    assert found['consensus'] == pytest.approx((0 + 1 + 0) / 3) and found['first of sampling'] == pytest.approx(1 / 3)
    assert found['candidates per example'] == pytest.approx(11 / 3)
    assert run_main(baselines.main, argv) == 0
    before = capsys.readouterr()
    assert run_main(baselines.main, [*argv, '--metric', 'rougeL']) == 0
    assert capsys.readouterr() == before
