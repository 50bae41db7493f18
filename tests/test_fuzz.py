"""Readers of files and answers, fed with what is cut, repeated, reordered, mistyped or garbled.

Whatever they get, they end with an InputError in one line, or with a result that holds every line: never with another
error, never in silence. They are called as main calls them, with the model replaced. Some dozen inputs each are tried
by default, ten thousand by the slow tests; both are the same in every run, and a failure shows its input.
"""

import json
import re
import shutil
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import load_script, run_main

import cappy_bigbench
import cappy_pretrain
import cappy_promptsource
from cappy.cli import flags
from cappy.errors import InputError
from cappy.files import atomic, partial
from cappy.generate import server
from cappy.study.results import ResultPaths
from cappy.tasks import questions
from cappy.tasks.candidates import read_examples

FEW, MANY = 60, 10_000


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


# What takes the place of a field.
ODD = (None, True, False, 0, 1, -1, 2, 0.5, 1e308, -1e-320, 10**400, 2**63, float('nan'), float('inf'))
ODD += (
    '',
    ' ',
    '\n',
    'text',
    '0',
    '\ud83d',
    'a\udc00b',
    '\x00',
    '../x',
    '\u2028',
    'None',
    '<think>',
    '[1',
    '{"role": 1}',
)
ODD += ([], {}, [None], [[]], ['a', 1], [{}], {'a': 1}, {'': []}, [['a'], ['b']], nested(300), nested(900))
# What gets between the bytes of a file.
JUNK = (
    b'\x00',
    b'\xff',
    b'\n',
    b'\r',
    b'\n\n',
    b'"',
    b'{',
    b'}',
    b',',
    b'\\',
    b'\\ud800',
    b'\xef\xbb\xbf',
    b'\x1f\x8b',
)
JUNK += (b'1' * 5000, b'[' * 2000, b'\xe2\x80\xa8', b'{}\n', b'[]\n', b'null\n', b'\t', b'nan')


def fresh(value):
    """A copy of a JSON value, however deep it is."""
    return json.loads(json.dumps(value)) if isinstance(value, dict | list) else value


def places(value, place=()):
    """The places of a JSON value and of those in it, but for very deep ones."""
    yield place
    if isinstance(value, dict | list) and len(place) < 8:
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*place, key))


def change(random, rows):
    """Change one thing in a list of JSON values."""
    number = random.randrange(len(rows))
    kind = random.choice(('set', 'set', 'set', 'delete', 'rename', 'reverse', 'wrap', 'copy', 'repeat', 'drop'))
    if kind == 'repeat':
        rows.insert(random.randint(0, len(rows)), fresh(rows[number]))
    elif kind == 'drop':
        del rows[number]
    else:
        change_field(random, rows, number, kind)


def change_field(random, rows, number, kind):
    """Change a value in the row of a number: set, delete, rename, reverse or wrap it, or put a row in its place."""
    *way, last = random.choice(list(places(rows[number], (number,))))
    inside = rows
    for key in way:
        inside = inside[key]
    value = inside[last]
    if kind == 'delete' and way:
        del inside[last]
    elif kind == 'rename' and isinstance(inside, dict):
        inside[random.choice(('x', '', 'samples', 'score', '\ud83d'))] = inside.pop(last)
    elif kind == 'reverse' and isinstance(value, dict):
        inside[last] = dict(reversed(value.items()))
    elif kind == 'reverse' and isinstance(value, list | str):
        inside[last] = value[::-1]
    elif kind == 'wrap':
        inside[last] = random.choice(([value], {'a': value}, f'{type(value)}'))
    elif kind == 'copy':
        inside[last] = fresh(random.choice(rows))
    else:
        inside[last] = fresh(random.choice(ODD))


def garbled(random, content):
    """Bytes, cut or with others between them."""
    for _ in range(random.randint(0, 2)):
        at, junk = random.randint(0, len(content)), random.choice(JUNK)
        kind = random.choice(('cut', 'insert', 'replace'))
        content = {
            'cut': content[:at],
            'insert': content[:at] + junk + content[at:],
            'replace': content[:at] + junk + content[at + len(junk) :],
        }[kind]
    return content


def lines_of(rows):
    """A file of JSON lines."""
    return b''.join(json.dumps(row).encode() + b'\n' for row in rows)


# A maker takes a Random and makes an input.


def spoilt(rows):
    """The maker of files of JSON lines: some changed, repeated or dropped, and in a few some bytes garbled."""

    def make(random):
        made = fresh(list(rows))
        for _ in range(random.choice((0, 1, 1, 2, 3))):
            if made:
                change(random, made)
        is_ascii = random.random() < 0.5
        lines = [json.dumps(row, ensure_ascii=is_ascii).encode('utf-8', 'surrogatepass') for row in made]
        content = b''.join(line + b'\n' for line in lines)
        return garbled(random, content) if random.random() < 0.25 else content

    return make


def spoilt_table(header, rows, delimiter):
    """The maker of csv or tsv files of fields that need no quotes: some changed, in some a few bytes garbled."""

    def make(random):
        lines = [header, *rows]
        for _ in range(random.randint(0, 2)):
            at = random.randrange(len(lines))
            field = random.choice(('', 'x', '"', '"a', 'a"b', '"a"', 'é', '\n', '\x00', 'score', '1e999', '-1'))
            lines[at] = [*lines[at][:1], field, *lines[at][1 + random.randint(0, 2) :]]
        content = ''.join(delimiter.join(fields) + '\n' for fields in lines).encode()
        return garbled(random, content) if random.random() < 0.5 else content

    return make


def either(*makers):
    """One of the makers; a value stands for itself."""

    def make(random):
        chosen = random.choice(makers)
        return chosen(random) if callable(chosen) else chosen

    return make


def fuzz(n, check, **makers):
    """Call `check` with n inputs. Of an InputError it looks whether the message is one that a user can read."""
    for number in range(n):
        random = Random(f'{check.__qualname__} {number}')
        case = {name: make(random) for name, make in makers.items()}
        try:
            check(**case)
        except InputError as error:
            message = ' '.join(str(error).split())
            assert message and len(message) < 2500, (number, case, message)
        except BaseException as error:
            error.add_note(f'input {number}: {case}')
            raise


@pytest.fixture(params=[FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=['few', 'many'])
def n(request):
    return request.param


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Nothing waits for a disk or a server, and what is relative lies in a folder of its own."""
    monkeypatch.setattr(atomic, 'os', SimpleNamespace(**vars(atomic.os) | {'fsync': lambda file: None}))
    monkeypatch.setattr(partial, 'os', SimpleNamespace(**vars(partial.os) | {'fsync': lambda file: None}))
    monkeypatch.setattr(server, 'FIRST_WAIT', 0)
    monkeypatch.chdir(tmp_path)


class Read(BaseException):
    """Raised in place of the model's work: all input was read."""


def stop(*args, **kwargs):
    raise Read


def n_lines(content):
    """Lines of a file that are not blank."""
    content = content.removeprefix(b'\xef\xbb\xbf')
    return sum(bool(line.strip()) for line in content.split(b'\n'))


EXAMPLES = [
    {
        'dataset': 't',
        'example_idx': number,
        'instruction': f'Say {word}.',
        'references': [word, f'a {word}'],
        'flan_samples': {
            'beam4': [{'response': word, 'log_likelihood_sum': -1.0, 'log_likelihood_mean': -0.5}],
            'sampling': [{'response': f'the {word}'}, {'response': 'no'}],
        },
    }
    for number, word in enumerate(('cat', 'dog', 'cow'))
]

LOG = [
    {
        'doc_id': number,
        'doc': {'question': word},
        'target': target,
        'arguments': {'gen_args_0': {'arg_0': f'Say {word}', 'arg_1': {'do_sample': True, 'temperature': 0.7}}},
        'resps': [[word, 'no']],
        'filtered_resps': [word],
        'filter': 'none',
    }
    for number, (word, target) in enumerate((('cat', 'cat'), ('dog', "['dog', 'a dog']"), ('cow', ['cow'])))
]
LOG[2]['arguments'] = [['[{"role": "user", "content": "Say cow"}]', {'num_beams': 4}]]
FLAT = [
    {'instruction': f'Say {word}', 'references': [word], 'response': word, 'how': 0.7, 'log_likelihood_sum': -1}
    for word in ('cat', 'dog', 'cow')
]


def test_import_samples(n, tmp_path):
    main = load_script('scripts/import_samples.py').main
    path, out = tmp_path / 'in.jsonl', tmp_path / 'out'

    def check(content, more):
        path.write_bytes(content)
        shutil.rmtree(out, ignore_errors=True)
        more = {'split': 'train'} | more
        if 'validation_share' in more:
            del more['split']
        try:
            main((str(path),), 't', output_dir=str(out), **more)
        except InputError:
            assert not list(out.rglob('*'))
            raise
        written = sorted(out.rglob('*.jsonl'))
        assert len(written) == (2 if 'validation_share' in more else 1)
        for file in written:
            assert read_examples(file, samples_needed='generator' in more)

    flags_of_runs = [
        {},
        {'generator': 'g'},
        {'generator': 'g', 'response_key': 'filtered_resps', 'instruction_key': 'doc.question'},
        {'generator': 'g', 'decoding_key': 'how', 'validation_share': 0.4},
        {'generator': 'g', 'strip_thinking': True, 'max_empty_share': 1.0, 'filter': 'none'},
    ]
    fuzz(n, check, content=either(spoilt(LOG), spoilt(FLAT)), more=either(*flags_of_runs))


def answer(texts, endpoint):
    likelihoods = {'content': [{'token': 'a', 'logprob': -0.5}], 'token_logprobs': [-0.5]}
    choices = [
        {'index': i, 'finish_reason': 'stop', 'logprobs': likelihoods}
        | ({'text': text} if endpoint == 'completions' else {'message': {'role': 'assistant', 'content': text}})
        for i, text in enumerate(texts)
    ]
    for choice in choices[1:]:
        choice.get('message', {}).update(reasoning_content='hm', tool_calls=[{}], refusal=None)
    return {'id': 'x', 'object': 'chat.completion', 'model': 'm', 'choices': choices}


def test_sample_openai(n, tmp_path, monkeypatch):
    script = load_script('scripts/sample_openai.py')
    data, out = tmp_path / 't_train.jsonl', tmp_path / 'out'
    answers = []

    class Fake(server.Server):
        """A server without connections; it gives the answers one after the other, again and again."""

        def __init__(self, settings):
            self.settings, self.n_requests = settings, 0
            self._unsupported, self._supported = set(), set()

        async def check(self):
            pass

        close = check

        async def _post(self, body):
            self.n_requests += 1
            return answers[self.n_requests % len(answers)]

    monkeypatch.setattr(script, 'Server', Fake)

    def check(content, of_server, more):
        data.write_bytes(content)
        answers[:] = of_server
        shutil.rmtree(out, ignore_errors=True)
        words = {'data_dir': str(tmp_path), 'output_dir': str(out), 'splits': ('train',), 'max_retries': 1}
        path = out / 'm' / 't_train.jsonl'
        try:
            script.main('http://127.0.0.1/v1', 'm', ('t',), n_samples=2, concurrency=1, **words, **more)
        except InputError:
            assert not path.exists()
            raise
        examples = read_examples(path)
        assert len(examples) == n_lines(content)
        assert {len(example.samples) for example in examples} == {3}

    plain = [{key: value for key, value in example.items() if key != 'flan_samples'} for example in EXAMPLES[:2]]
    answered = [
        spoilt([answer(texts, endpoint)]) for texts in (('a', 'b'), ('a',)) for endpoint in ('chat', 'completions')
    ]
    fuzz(
        n,
        check,
        content=either(lines_of(plain), lines_of(plain), spoilt(plain)),
        of_server=lambda random: [either(*answered)(random) for _ in range(random.randint(1, 2))],
        more=either({}, {'strip_thinking': True}, {'max_empty_share': 1.0}, {'endpoint': 'completions'}),
    )


PAIRS = [{'id': number, 'instruction': f'Say {number // 2}', 'response': word} for number, word in enumerate('abcd')]
TABLE = [[str(value) for value in pair.values()] for pair in PAIRS]


def test_score(n, tmp_path, monkeypatch):
    script = load_script('scripts/score.py')
    monkeypatch.setattr(script, 'Cappy', SimpleNamespace(from_pretrained=lambda *args, **kwargs: None))
    monkeypatch.setattr(script, 'get_devices', lambda *args: None)
    monkeypatch.setattr(script, 'model_digest', lambda name: 'digest')
    monkeypatch.setattr(script, 'score_pairs', lambda scorer, pairs, n: ((p, len(p.response) / 7) for p in pairs))
    out = tmp_path / 'out'

    def check(case, rank, to_file):
        format, content = case
        path = tmp_path / f'in.{format}'
        path.write_bytes(content)
        for left in tmp_path.glob('out*'):
            left.unlink()
        try:
            script.main(str(path), output=str(out) if to_file else '-', rank=rank)
        except InputError:
            assert not list(tmp_path.glob('out*'))
            raise
        if to_file and format == 'jsonl':
            scored = [json.loads(line) for line in out.read_bytes().split(b'\n') if line]
            assert len(scored) == n_lines(content)
            assert all(line['score'] == np.float32(len(line['response']) / 7) for line in scored)

    makers = {'jsonl': spoilt(PAIRS)}
    makers |= {name: spoilt_table(list(PAIRS[0]), TABLE, mark) for name, mark in (('csv', ','), ('tsv', '\t'))}
    of_formats = [lambda random, name=name, make=make: (name, make(random)) for name, make in makers.items()]
    fuzz(n, check, case=either(*of_formats), rank=either(True, False), to_file=either(True, True, True, False))


def test_cappy_bigbench(n, tmp_path, monkeypatch):
    monkeypatch.setattr(cappy_bigbench, 'get_devices', stop)
    folder = tmp_path / 'gens' / 'g'
    folder.mkdir(parents=True)
    read = {}

    def keep(*args, **kwargs):
        read.update(read_task(*args, **kwargs))
        return read

    read_task = cappy_bigbench.read_task
    monkeypatch.setattr(cappy_bigbench, 'read_task', keep)

    def check(train, validation, more):
        (folder / 't_train.jsonl').write_bytes(train)
        (folder / 't_validation.jsonl').write_bytes(validation)
        with pytest.raises(Read):
            cappy_bigbench.main(str(tmp_path / 'gens'), 'g', 't', results_dir=str(tmp_path / 'r'), train_size=8, **more)
        assert [len(read['train']), len(read['validation'])] == [n_lines(train), n_lines(validation)]

    more = [{}, {'rouge_tokenizer': 'unicode'}, {'combine': ('consensus', 'self_score')}]
    more += [{'reference_labels': kind} for kind in ('leave_one_out', 'skip')]
    train = either(lines_of(EXAMPLES), spoilt(EXAMPLES))
    fuzz(n, check, train=train, validation=spoilt(EXAMPLES), more=either(*more))


CHOICES = [
    {'dataset_name': name, 'template_name': 'x', 'example_idx': i, 'instruction': f'{i}?', 'response': r, 'label': k}
    for name, i in (('cb', 0), ('cb', 1), ('rte', 0))
    for k, r in enumerate(('no', 'yes'))
]


def test_cappy_promptsource(n, tmp_path, monkeypatch):
    monkeypatch.setattr(cappy_promptsource, 'get_devices', stop)
    path, read = tmp_path / 'in.jsonl', []
    read_choices = questions.read_choices
    monkeypatch.setattr(questions, 'read_choices', lambda *args, **keys: read.append(read_choices(*args, **keys)))

    def check(content, results_dir):
        path.write_bytes(content)
        read.clear()
        with pytest.raises(Read):
            cappy_promptsource.main(str(path), model_name_or_path='m', results_dir=results_dir)
        (choices,) = read
        assert len(choices) == n_lines(content)
        scores = np.arange(len(choices), dtype=np.float32) % 3
        for grading in questions.GRADINGS:
            verdicts = questions.grade(choices, scores, grading)
            assert questions.accuracy(verdicts)[questions.AVERAGE] >= 0
            questions.compare_with_published(questions.summarise(verdicts, n_resamples=3), questions.read_published())
        questions.describe_faults(questions.count_faults(choices, scores), grading)
        with open(tmp_path / 'scores.jsonl', 'w') as file:
            questions.write_choice_scores(file, choices, scores)

    fuzz(n, check, content=spoilt(CHOICES), results_dir=either(None, 'results'))


LABELLED = [
    {'template': 't', 'source': source, 'instruction': f'Say {i}', 'response': f'{i}', 'label': label}
    for i, (source, label) in enumerate((('choice', 1), ('choice', 0), ('other', 0.5), ('sample', 0.25)))
]
HELD_OUT = [row | {'instruction': f'Say {i // 2}'} for i, row in enumerate(LABELLED)]


def test_cappy_pretrain(n, tmp_path, monkeypatch):
    monkeypatch.setattr(cappy_pretrain, 'get_devices', stop)
    folder, read = tmp_path / 'data', []
    folder.mkdir()
    read_stream = cappy_pretrain.read_stream

    def keep(*args):
        read.append(read_stream(*args))
        return read[-1]

    monkeypatch.setattr(cappy_pretrain, 'read_stream', keep)

    def check(shards, held_out):
        for number, content in enumerate(shards):
            (folder / f'train-{number:05d}-of-00002.jsonl').write_bytes(content)
        (folder / 'heldout.jsonl').write_bytes(held_out)
        read.clear()
        with pytest.raises(Read):
            cappy_pretrain.main(str(folder), global_batch_size=1, output_dir=str(tmp_path / 'scorer'))
        (stream,) = read
        assert sum(map(len, stream.windows())) == stream.n_pairs == sum(map(n_lines, shards))

    makers = spoilt(LABELLED), spoilt(LABELLED[:2])
    fuzz(n, check, shards=lambda random: [make(random) for make in makers], held_out=spoilt(HELD_OUT))


RESULT = {
    'rougeL': 0.5,
    'settings': {'seed': 1, 'src_key': 'instruction', 'bigbench_gen_dir': 'gens', 'rouge_tokenizer': 'default'},
    'counts': {'validation_examples': 2, 'truncated_pairs': {'train': 0}},
    'comparison': [
        {'name': name, 'rougeL': value, 'low': 0.1, 'high': 0.9, 'gap_closed': 0.5, 'gap_low': 0, 'gap_high': 1}
        for name, value in (
            ('random candidate', 0.25),
            ('first of beam4', 0.5),
            ('scorer after adapting', 0.5),
            ('oracle', 1.0),
        )
    ],
    'seconds': {'data': 1.5},
    'versions': {'jax': '0'},
    'device': 'cpu',
}
SCORED = [
    {
        'example_idx': number,
        'pick': 0,
        'rougeL': rougeL,
        'picked': {'random candidate': 0.25, 'first of beam4': rougeL, 'scorer after adapting': rougeL, 'oracle': 1.0},
        'candidates': [
            {'response': word, 'score': 0.5, 'rougeL': rougeL, 'decodings': ['beam4']},
            {'response': f'the {word}', 'score': 0.25, 'rougeL': 1.0, 'decodings': ['sampling']},
            {'response': 'no', 'score': 0.1, 'rougeL': 0.0, 'decodings': ['sampling']},
        ],
    }
    for number, (word, rougeL) in enumerate((('cat', 0.25), ('dog', 0.75)))
]
UPDATES = [['update', 'pairs', 'learning_rate', 'loss', 'grad_norm'], ['0', '8', '1e-5', '0.5', '1.0']]


def test_presenters(n, tmp_path, capsys):
    baselines = load_script('scripts/present_bigbench_baselines.py').main
    results = load_script('scripts/present_cappy_bigbench_results.py').main
    report = load_script('scripts/report.py').main
    paths = ResultPaths(tmp_path / 'results', 'g', 't')
    gens = tmp_path / 'gens' / 'g'
    for folder in (paths.result.parent, gens):
        folder.mkdir(parents=True)
    samples = gens / 't_validation.jsonl'
    of = {'results_dir': (str(tmp_path / 'results'),), 'n_workers': 1}

    def check(result, candidates, updates, drawn, which, gens_dir):
        paths.result.write_bytes(result)
        paths.candidates.write_bytes(candidates)
        paths.updates.write_bytes(updates)
        samples.write_bytes(drawn)
        if which == 'baselines':
            baselines(bigbench_gen_dir=str(tmp_path / 'gens'), n_workers=1, by_task=True, columns='all')
            shown, _ = capsys.readouterr()
            assert re.search(r'\bt\b', shown)
        elif which == 'report':
            report(output='page.html', bigbench_gen_dir=gens_dir, **of)
            assert (tmp_path / 'page.html').stat().st_size > 1000
        else:
            results(format=which, columns='all', **of)
            shown, _ = capsys.readouterr()
            assert re.search(r'\bt\b', shown)

    def mostly(whole, make):
        return either(whole, whole, make)

    log = b'\n'.join(','.join(fields).encode() for fields in UPDATES)
    fuzz(
        n,
        check,
        result=mostly(lines_of([RESULT]), spoilt([RESULT])),
        candidates=mostly(lines_of(SCORED), spoilt(SCORED)),
        updates=mostly(log, spoilt_table(UPDATES[0], UPDATES[1:], ',')),
        drawn=mostly(lines_of(EXAMPLES[:2]), spoilt(EXAMPLES[:2])),
        which=either('baselines', 'report', 'reference', 'table', 'csv', 'json', 'latex'),
        gens_dir=either(None, 'gens'),
    )


def test_what_is_no_utf8_is_no_flag(capsys):
    def main(name: str = '', names: flags.Names = ()):
        pass

    for word in ('--name=a\udcff', '--names=a,b\udcff'):
        assert run_main(main, [word]) == 1
        assert capsys.readouterr().err.startswith('error: --name')
