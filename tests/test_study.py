"""From a task.json to tables: data in BIG-bench's form, a T5's samples, an adapted scorer, and what scripts print."""

import json

import pytest
from conftest import ROOT

RECORDED = ROOT / 'tests' / 'recorded'
pytestmark = pytest.mark.slow

TASK = 'three_words'  # not one of BIG-bench's: a checkout may have tasks of its own


@pytest.fixture(scope='module')
def study(tmp_path_factory, run_python):
    """A folder with the data, the samples and the result of one small task, and what each script printed."""
    folder = tmp_path_factory.mktemp('study')
    task = folder / 'checkout' / 'bigbench' / 'benchmark_tasks' / TASK / 'task.json'
    task.parent.mkdir(parents=True)
    examples = [{'input': f'The {n}th word is', 'target': ['the cat', f'word {n}']} for n in range(20)]
    task.write_text(json.dumps({'task_prefix': 'Say a word.', 'examples': examples}))
    data, gens, results = (str(folder / name) for name in ('data', 'gens', 'results'))
    generator, scorer = str(RECORDED / 'flan-t5-tiny'), str(RECORDED / 'tiny-cappy')
    commands = {
        'get': ['get_bigbench_data.py', '--bigbench_dir', folder / 'checkout', '--output_dir', data, '--tasks', TASK],
        'draw': ['bigbench_flan_generate.py', '--data_dir', data, '--output_dir', gens, '--max_tgt_len', '8'],
        'baselines': ['present_bigbench_baselines.py', '--data_dir', data, '--bigbench_gen_dir', gens],
        'adapt': ['../cappy_bigbench.py', '--bigbench_gen_dir', gens, '--bigbench_gen_model', 'flan-t5-tiny'],
        'present': ['present_cappy_bigbench_results.py', '--gen_models', 'flan-t5-tiny', '--results_dir', results],
    }
    commands['draw'] += ['--model_name_or_path', generator]
    commands['baselines'] += ['--format', 'json']
    commands['adapt'] += ['--bigbench_subset_name', TASK, '--model_name_or_path', scorer, '--results_dir', results]
    commands['adapt'] += ['--train_size', '64', '--accumulate_grad_batches', '1']
    commands['present'] += ['--data_dir', data]
    printed = {}
    for name, (script, *flags) in commands.items():
        process = run_python(ROOT / 'scripts' / script, *map(str, flags))
        printed[name], errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return folder, printed


def read_lines(path):
    return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def test_each_example_goes_from_the_task_file_to_its_pick(study):
    folder, _ = study
    data = read_lines(folder / 'data' / f'{TASK}_validation.jsonl')
    drawn = read_lines(folder / 'gens' / 'flan-t5-tiny' / f'{TASK}_validation.jsonl')
    picked = read_lines(folder / 'results' / 'flan-t5-tiny' / f'{TASK}.candidates.jsonl')
    assert len(data) == len(drawn) == len(picked) == 16
    for example, samples, line in zip(data, drawn, picked, strict=True):
        assert example['instruction'].startswith('Say a word.\nQ: The ')
        assert example == {key: samples[key] for key in example}
        responses = [entry['response'] for entries in samples['flan_samples'].values() for entry in entries]
        assert [candidate['response'] for candidate in line['candidates']] == list(dict.fromkeys(responses))
        assert line['example_idx'] == example['example_idx']


def test_the_tables_have_the_values_of_the_files(study):
    folder, printed = study
    result = json.loads((folder / 'results' / 'flan-t5-tiny' / f'{TASK}.json').read_text())
    presented = json.loads(printed['present'][: printed['present'].rindex('}') + 1])
    assert presented == {'flan-t5-tiny': {TASK: pytest.approx(result['rougeL'], abs=1e-12)}}
    compared = {row['name']: row['rougeL'] for row in result['comparison']}
    table = {row['pick']: row['flan-t5-tiny'] for row in json.loads(printed['baselines'])}
    assert 1 < table.pop('candidates per example') <= 17
    assert len(table) == 10
    assert table == {pick: pytest.approx(compared[pick], abs=1e-12) for pick in table}
