"""The commands and programs of docs/your-own-llm.md, run in order, with tiny scorers and the tests' own server."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from openai_server import FakeServer, Reply, asked, choices

from cappy.tasks.candidates import read_examples

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'your-own-llm.md'
SUBJECTS, VERBS = ('cat', 'bird', 'man', 'child'), {'sees': 'saw', 'sings': 'sang', 'tells': 'told', 'is': 'was'}
EXAMPLE = 'Rewrite in the past tense: I have a dog.\nAnswer: I had a dog.\n\n'


def questions():
    """(question, right answer) each."""
    for subject in SUBJECTS:
        for verb, past in VERBS.items():
            yield f'Rewrite in the past tense: The {subject} {verb}.', f'The {subject} {past}.'


def fake_llm(number, body):
    """Every other sample in the past tense, the rest unchanged; a base model that gets no example is refused."""
    question = asked(body)
    if 'prompt' in body:
        if not (question.startswith(EXAMPLE) and question.endswith('\nAnswer:') and body['stop'] == ['\n']):
            return Reply(400, {'error': {'message': 'expected an example, a question, and where to stop'}})
        question = question.removeprefix(EXAMPLE).removesuffix('\nAnswer:')
    right = dict(questions()).get(question, 'We saw it.')
    wrong = question.rpartition(': ')[2]
    return choices(body, [f' {wrong if (number + i) % 2 else right}' for i in range(body.get('n', 1))])


def blocks(language):
    return re.findall(rf'```{language}\n(.*?)```', PAGE.read_text(), re.S)


def write(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def write_inputs(folder):
    """The files that the page's commands read."""
    write(folder / 'mine.jsonl', [{'question': q, 'answers': [a]} for q, a in questions()])
    (folder / 'new.jsonl').write_text(blocks('json')[1])
    (folder / 'prompt.txt').write_text(blocks('text')[0])
    call = {'gen_args_0': {'arg_0': '', 'arg_1': {'do_sample': True}}}
    row = {'target': 'a', 'resps': [['b']]}
    logs = [row | {'doc_id': n, 'arguments': json.loads(json.dumps(call).replace('""', f'"{n}"'))} for n in range(9)]
    write(folder / 'samples_mine.jsonl', logs)
    drawn = [{'question': f'{n % 3}', 'answers': 'a', 'output': f'{n}', 'temperature': 0.5} for n in range(9)]
    write(folder / 'drawn.jsonl', drawn)


@pytest.mark.slow
def test_the_commands_lead_from_a_file_of_inputs_to_ranked_samples(tmp_path, make_model):
    pytest.importorskip('openai', reason='needs the openai package, which asks the server')
    write_inputs(tmp_path)
    environment = {**os.environ, 'NO_PROXY': '127.0.0.1'}
    environment.pop('OPENAI_API_KEY', None)

    with FakeServer(fake_llm).running() as server:
        replaced = {
            'http://localhost:8000/v1': server.base_url,
            'btan2/cappy-large': str(make_model({'max_position_embeddings': 514})),
            'minilm': str(make_model({'max_position_embeddings': 514})),
        }

        def run(words, **more):
            done = subprocess.run(words, cwd=tmp_path, env=environment | more, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout

        outputs = {}
        for command in blocks('bash'):
            python, script, *words = shlex.split(command.replace('\\\n', ' '))
            assert python == 'python'
            if '--recipe' in words:  # fewer pairs than its own
                words += ['--train_size', '640', '--accumulate_grad_batches', '4']
            if '--save_dir' in words and (tmp_path / 'my-scorer').exists():
                words.append('--overwrite')  # the page's second way to adapt
            output = run([sys.executable, ROOT / script, *(replaced.get(word, word) for word in words)])
            outputs.setdefault(Path(script).stem, []).append(output)
        assert {script: len(printed) for script, printed in outputs.items()} == {
            'import_samples': 3,
            'sample_openai': 2,
            'cappy_bigbench': 2,
            'score': 1,
        }
        programs = blocks('python')
        for program in programs:
            program = program.replace('http://localhost:8000/v1', server.base_url)
            picked = run([sys.executable, '-c', program], PYTHONPATH=str(ROOT))  # in place of an installation
            assert picked.strip() in ('We saw it.', 'We see it.')
        assert len(programs) == 2

    for printed in outputs['cappy_bigbench']:
        assert 'scorer after adapting' in printed and 'first of temp0.7' in printed
    gens = tmp_path / 'bigbench_flan_gens'
    for generator in ('my-llm', 'my-base-llm'):
        samples = read_examples(gens / generator / 'mine_train.jsonl')
        counts = {(len(example.samples), example.decodings) for example in samples}
        assert counts == {(17, ('greedy', 'temp0.7', 'temp1.0'))}
    ranked = [json.loads(line) for line in (tmp_path / 'ranked.jsonl').read_text().splitlines()]
    assert len(ranked) == 2 and ranked[0]['score'] >= ranked[1]['score']
    found = {str(path.relative_to(gens)): len(read_examples(path)) for path in gens.rglob('*_train.jsonl')}
    assert found == {
        'my-llm/mine_train.jsonl': 11,
        'my-base-llm/mine_train.jsonl': 11,
        'my-llm/logged_train.jsonl': 6,
        'my-llm/drawn_train.jsonl': 2,
    }
