"""The commands of docs/your-own-llm.md, run in order as they stand; the scorer is tiny, the server the tests' own."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from openai_server import FakeServer, asked, choices

from cappy.tasks.candidates import read_examples

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'your-own-llm.md'
SUBJECTS, VERBS = ('cat', 'bird', 'man', 'child'), {'sees': 'saw', 'sings': 'sang', 'tells': 'told', 'is': 'was'}


def questions():
    """(question, answer) each; half of what the fake LLM says to one is right."""
    for subject in SUBJECTS:
        for verb, past in VERBS.items():
            yield f'Rewrite in the past tense: The {subject} {verb}.', f'The {subject} {past}.'


def fake_llm(number, body):
    """Every other sample in the past tense, the rest unchanged."""
    right = dict(questions()).get(asked(body), 'We saw it.')
    wrong = asked(body).rpartition(': ')[2]
    return choices(body, [wrong if (number + i) % 2 else right for i in range(body.get('n', 1))])


def blocks(language):
    return re.findall(rf'```{language}\n(.*?)```', PAGE.read_text(), re.S)


def write(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def test_the_commands_lead_from_a_file_of_inputs_to_ranked_samples(tmp_path, make_model):
    pytest.importorskip('openai', reason='needs the openai package, which asks the server')
    write(tmp_path / 'mine.jsonl', [{'question': q, 'answers': [a]} for q, a in questions()])
    (tmp_path / 'new.jsonl').write_text(blocks('json')[1])
    call = {'gen_args_0': {'arg_0': '', 'arg_1': {'do_sample': True}}}
    row = {'target': 'a', 'resps': [['b']]}
    logs = [row | {'doc_id': n, 'arguments': json.loads(json.dumps(call).replace('""', f'"{n}"'))} for n in range(9)]
    write(tmp_path / 'samples_mine.jsonl', logs)
    drawn = [{'question': f'{n % 3}', 'answers': 'a', 'output': f'{n}', 'temperature': 0.5} for n in range(9)]
    write(tmp_path / 'drawn.jsonl', drawn)
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'NO_PROXY': '127.0.0.1', 'OPENAI_API_KEY': 'none'}

    with FakeServer(fake_llm).running() as server:
        instead = {
            'http://localhost:8000/v1': server.base_url,
            'btan2/cappy-large': str(make_model({'max_position_embeddings': 514})),
            '10240': '1280',  # pairs to train on
        }

        def run(words):
            done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout

        commands = blocks('bash')
        assert len(commands) == 6
        outputs = []
        for command in commands:
            python, script, *words = shlex.split(command.replace('\\\n', ' '))
            assert python == 'python'
            outputs.append(run([sys.executable, ROOT / script, *(instead.get(word, word) for word in words)]))
        program = blocks('python')[0]
        for word, ours in instead.items():
            program = program.replace(word, ours)
        assert run([sys.executable, '-c', program]).strip() in ('We saw it.', 'We see it.')

    assert 'scorer after adapting' in outputs[2] and 'first of temp0.7' in outputs[2]
    samples = read_examples(tmp_path / 'bigbench_flan_gens' / 'my-llm' / 'mine_train.jsonl')
    assert {(len(example.samples), example.decodings) for example in samples} == {
        (17, ('greedy', 'temp0.7', 'temp1.0'))
    }
    ranked = [json.loads(line) for line in (tmp_path / 'ranked.jsonl').read_text().splitlines()]
    assert len(ranked) == 2 and ranked[0]['score'] >= ranked[1]['score']
    assert [len(read_examples(path)) for path in sorted((tmp_path / 'bigbench_flan_gens').rglob('*_train.jsonl'))] == [
        2,
        6,
        11,
    ]
