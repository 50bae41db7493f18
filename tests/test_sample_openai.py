"""scripts/sample_openai.py: a server's answers become a candidate file; failures are explained, work done is kept."""

import asyncio
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
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import run_main
from openai_server import FakeServer, Reply, asked, choices, well_behaved

from cappy.cli import flags
from cappy.errors import InputError
from cappy.files.partial import OutputPaths
from cappy.generate import server
from cappy.generate.sample_files import sampled_file
from cappy.generate.server import read_answers
from cappy.tasks.candidates import Example, Sample, read_examples, write_examples

pytest.importorskip('openai', reason='needs the openai package, which asks the server')

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location('sample_openai', ROOT / 'scripts' / 'sample_openai.py')
sample_openai = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sample_openai)

KEY = 'sk-secret-5Kq0'
EXAMPLES = [Example('mine', n, f'Say {word}.', (word,)) for n, word in enumerate(('cat', 'dog', 'cow', 'hen', 'owl'))]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits before retries are short, the key is known, and the loopback address has no proxy."""
    monkeypatch.setattr(server, 'FIRST_WAIT', 0.002)
    monkeypatch.setattr('openai._base_client.INITIAL_RETRY_DELAY', 0.002)
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1,localhost')


@pytest.fixture
def data(tmp_path):
    """A folder with the validation split of a task."""
    write_examples(tmp_path / 'data' / 'mine_validation.jsonl', EXAMPLES)
    return tmp_path / 'data'


@pytest.fixture
def serve():
    """(behaviour) -> a running FakeServer."""
    with contextlib.ExitStack() as stack:
        yield lambda behave=well_behaved: stack.enter_context(FakeServer(behave).running())


def argv(base_url, data, *more):
    words = ('--base_url', base_url, '--model', 'org/tiny-llm', '--tasks', 'mine', '--splits', 'validation')
    return [str(word) for word in (*words, '--data_dir', data, '--output_dir', data.parent / 'gens', *more)]


def run(server, data, *more):
    """The script in this process -> its exit code."""
    return run_main(sample_openai.main, argv(getattr(server, 'base_url', server), data, *more))


def refused(capsys, server, data, *more):
    """The error line of a run that fails, which has one only."""
    capsys.readouterr()
    assert run(server, data, *more) == 1
    out, err = capsys.readouterr()
    assert 'Traceback' not in err and KEY not in err + out
    lines = [line for line in err.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1 and err.strip().splitlines()[-1] == lines[0]
    return lines[0]


def result_path(data):
    return data.parent / 'gens' / 'tiny-llm' / 'mine_validation.jsonl'


def partial_rows(data):
    partial = OutputPaths(result_path(data)).partial
    return [json.loads(line) for line in partial.read_text().splitlines()] if partial.exists() else []


def files_beside(data):
    return sorted(path.name for path in result_path(data).parent.iterdir())


def all_bytes(folder):
    return b''.join(path.read_bytes() for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize('endpoint', ['chat', 'completions'])
def test_samples_are_stored_by_decoding_with_their_log_likelihoods(endpoint, data, serve, capsys):
    server = serve()
    assert run(server, data, '--endpoint', endpoint, '--temperatures', '0.7,1', '--n_samples', 3) == 0
    expected = []
    for example in EXAMPLES:
        kinds = [('greedy', 'greedy', 1), ('temp0.7', 'at 0.7', 3), ('temp1.0', 'at 1', 3)]
        samples = [
            Sample(f'{kind}, {i}: {example.instruction}', name, -2.0, -1.0) for name, kind, n in kinds for i in range(n)
        ]
        expected.append(Example('mine', example.example_idx, example.instruction, example.references, tuple(samples)))
    assert read_examples(result_path(data)) == expected
    assert files_beside(data) == ['mine_validation.jsonl']
    paths = {path for path, _, _ in server.requests}
    assert paths == {'/v1/chat/completions' if endpoint == 'chat' else '/v1/completions'}
    assert len(server.requests) == 15 and '5 examples, 15 requests' in capsys.readouterr().out
    assert server.requests[0][1]['Authorization'] == f'Bearer {KEY}'
    assert KEY.encode() not in all_bytes(data.parent)


def test_the_request_has_the_fields_that_the_flags_say(data, serve, tmp_path):
    (tmp_path / 'prompt.txt').write_text('Q: {instruction}\nJSON: {"a": 1}\nA:\n')
    server = serve()
    more = ('--prompt', tmp_path / 'prompt.txt', '--max_tokens', 9, '--stop', '\\n', '--top_p', 0.9, '--nogreedy')
    assert run(server, data, *more, '--system', 'Be brief.', '--temperatures', 0.5, '--concurrency', 1) == 0
    assert server.requests[0][2] == {
        'model': 'org/tiny-llm',
        'temperature': 0.5,
        'max_tokens': 9,
        'top_p': 0.9,
        'stop': ['\n'],
        'logprobs': True,
        'n': 8,
        'messages': [
            {'role': 'system', 'content': 'Be brief.'},
            {'role': 'user', 'content': 'Q: Say cat.\nJSON: {"a": 1}\nA:'},
        ],
    }
    assert read_examples(result_path(data))[0].decodings == ('temp0.5_topp0.9',)


def supporting(*options, status=400, message='Unsupported: {}'):
    """A server that refuses requests with other options than these or, for status 200, ignores the options."""

    def behave(number, body):
        other = [name for name in ('n', 'logprobs', 'max_tokens') if name in body and name not in options]
        if other and status != 200:
            return Reply(status, {'error': {'message': message.format(', '.join(other))}})
        return well_behaved(number, {name: value for name, value in body.items() if name not in other})

    return behave


@pytest.mark.parametrize(
    ('behave', 'n_known', 'has_likelihoods'),
    [
        (supporting('logprobs', 'max_tokens'), 1, True),
        (supporting('n', 'max_tokens', status=422), 4, False),
        (supporting('max_tokens', message='Bad request'), 1, False),
        (supporting('logprobs', 'max_tokens', message='Bad request'), 1, True),
        (supporting('logprobs', 'max_tokens', status=200), 1, True),
        (supporting('n', 'logprobs', message="use 'max_completion_tokens' instead"), 4, True),
    ],
    ids=['no n', 'no logprobs', 'neither, and it does not say', 'no n, and it does not say', 'n ignored', 'new name'],
)
def test_what_a_server_does_not_support_is_left_out(behave, n_known, has_likelihoods, data, serve, caplog):
    server = serve(behave)
    assert run(server, data, '--n_samples', 4, '--concurrency', 1) == 0
    for example in read_examples(result_path(data)):
        assert [sample.decoding for sample in example.samples] == ['greedy'] + ['temp1.0'] * 4
        assert all((sample.log_likelihood_sum == -2.0) == has_likelihoods for sample in example.samples)
    last = [body for _, _, body in server.requests][-1]
    assert (last.get('n', 1), 'logprobs' in last) == (n_known, has_likelihoods)
    assert len(server.requests) <= 5 * (1 + 4 // n_known) + 4  # found out once, not for each example
    assert 'does not support' in caplog.text


def test_a_server_that_gives_fewer_samples_than_asked_for_is_asked_for_one_at_a_time(data, serve):
    def behave(number, body):
        return well_behaved(number, body | {'n': min(body.get('n', 1), 3)})

    server = serve(behave)
    assert run(server, data, '--concurrency', 1) == 0
    assert {len(example.samples) for example in read_examples(result_path(data))} == {9}


def test_empty_responses_and_null_are_responses_where_they_are_allowed(data, serve):
    serving = serve(lambda number, body: choices(body, ['', None, ' \n', 'x'][: body.get('n', 1)]))
    assert run(serving, data, '--max_empty_share', 1) == 0
    samples = read_examples(result_path(data))[0].samples
    assert {sample.response for sample in samples} == {'', 'x'} and len(samples) == 9


def without_text(message, finish_reason='stop'):
    """A server whose answers have this in place of content."""

    def behave(number, body):
        answers = json.loads(choices(body, [None] * body.get('n', 1)).body)
        for choice in answers['choices']:
            choice['message'] |= message
            choice['finish_reason'] = finish_reason
        return Reply(body=answers)

    return behave


@pytest.mark.parametrize(
    ('message', 'finish_reason', 'words'),
    [
        (
            {'reasoning_content': 'Let me see.'},
            'stop',
            'no content but reasoning (raise --max_tokens, or turn the reasoning',
        ),
        ({'reasoning': 'Let me see.', 'content': ''}, 'length', 'no content but reasoning (raise --max_tokens, or'),
        ({}, 'length', 'nothing before the limit of tokens (raise --max_tokens)'),
        ({'refusal': 'No.'}, 'stop', 'a refusal or a filter in place of content (take another model'),
        ({}, 'content_filter', 'a refusal or a filter in place of content'),
        ({'tool_calls': [{'id': 'a'}]}, 'tool_calls', 'calls of tools in place of content (turn the tools off)'),
        ({'content': []}, 'stop', 'empty content (see what the server answers'),
        ({'content': [{'type': 'thinking', 'thinking': 'x'}]}, 'length', 'nothing before the limit of tokens'),
    ],
)
def test_answers_without_text_end_the_run_with_their_cause(message, finish_reason, words, data, serve, capsys):
    line = refused(capsys, serve(without_text(message, finish_reason)), data, '--n_samples', 2)
    assert f'mine_validation.jsonl: 15 of 15 samples are empty: the answers have {words}' in line
    assert line.endswith('more than --max_empty_share 0.5; nothing is kept')
    assert files_beside(data) == []


def test_a_run_without_text_stops_before_it_has_asked_about_every_example(data, serve, capsys):
    server = serve(without_text({'reasoning_content': 'x'}))
    line = refused(capsys, server, data, '--n_samples', 40, '--concurrency', 1)
    assert '82 of 82 samples are empty' in line and len(server.requests) == 4 and files_beside(data) == []


def test_some_answers_without_text_are_counted_and_more_stop_the_run(data, serve, capsys, caplog):
    def behave(number, body):
        return without_text({'refusal': 'No.'})(number, body) if 'owl' in asked(body) else well_behaved(number, body)

    server = serve(behave)
    line = refused(capsys, server, data, '--max_empty_share', 0.1)
    assert '9 of 45 samples are empty: the answers have a refusal' in line
    assert '5 of 5 examples are done, and the same command continues, with --max_empty_share 1, or with' in line
    n_requests = len(server.requests)
    assert run(server, data) == 0 and len(server.requests) == n_requests
    assert '9 of 45 samples are empty' in caplog.text
    assert [sample.response for sample in read_examples(result_path(data))[4].samples] == [''] * 9


def test_text_may_be_in_the_message_where_the_other_form_is_null_or_in_parts(data, serve):
    def behave(number, body):
        answers = json.loads(well_behaved(number, body).body)
        for choice in answers['choices']:
            parts = [{'type': 'thinking', 'thinking': 'x'}, {'type': 'text', 'text': 'a '}, {'text': 'cat'}]
            choice['text'], choice['message']['content'] = None, parts
        return Reply(body=answers)

    assert run(serve(behave), data) == 0
    assert {sample.response for sample in read_examples(result_path(data))[0].samples} == {'a cat'}


def test_thinking_in_the_text_is_noticed_and_taken_out_on_request(data, serve, caplog):
    def behave(number, body):
        answers = json.loads(well_behaved(number, body).body)
        for i, choice in enumerate(answers['choices']):
            choice['message']['content'] = '<think>\nhm' if i == 7 else f'<think>\nhm\n</think>\n\nanswer {i}'
        return Reply(body=answers)

    assert run(serve(behave), data) == 0
    assert '45 samples have <think> in the text; --strip_thinking takes it out' in caplog.text
    caplog.clear()
    assert run(serve(behave), data, '--strip_thinking', '--overwrite') == 0
    samples = read_examples(result_path(data))[0].samples
    assert [sample.response for sample in samples] == ['answer 0', *(f'answer {i}' for i in range(7)), '']
    assert {sample.log_likelihood_sum for sample in samples} == {None}  # it was that of the thinking, too
    assert '5 of 45 samples are empty: the answers have no text but <think> (raise --max_tokens' in caplog.text
    assert '--strip_thinking' not in caplog.text


def test_draws_that_are_all_the_same_are_noticed(data, serve, caplog):
    same = serve(lambda number, body: choices(body, [f'always {asked(body)}'] * body.get('n', 1)))
    assert run(same, data) == 0
    assert 'all samples of temp1.0 are the same in each of 5 examples (up to 8 samples)' in caplog.text
    assert 'greedy' not in caplog.text


def test_half_of_a_surrogate_pair_in_an_answer_is_replaced_and_said(data, serve, caplog):
    def behave(number, body):
        text = 'half: \ud83d' if 'cow' in asked(body) and body['temperature'] == 0 else f'whole {number}'
        logprobs = {'content': [{'token': '\ud83d', 'logprob': -0.5}]} if 'hen' in asked(body) else None
        return choices(body, [text, *(f'{text} {i}' for i in range(1, body.get('n', 1)))], logprobs)

    server = serve(behave)
    assert run(server, data, '--concurrency', 1) == 0 and len(server.requests) == 10
    assert read_examples(result_path(data))[2].samples[0].response == 'half: \ufffd'
    # The tokens about the hen do not count.
    assert 'the answers held half of a surrogate pair, which is no character, replaced by U+FFFD' in caplog.text


@pytest.mark.parametrize('reply', [Reply(500, b'oh no'), Reply(body=b'<html>'), Reply(body={'choices': [{}]})])
def test_an_example_without_an_answer_does_not_keep_the_others(reply, data, serve, capsys):
    server = serve(lambda number, body: reply if 'cow' in asked(body) else well_behaved(number, body))
    for _ in range(2):
        line = refused(capsys, server, data, '--concurrency', 1, '--max_retries', 1)
        assert line.startswith(f'error: {data}/mine_validation.jsonl:3: example_idx 2: ')
        assert 'in each of 2 tries; change it or take it out of the data; 4 of 5 examples are done' in line
        assert [row['example_idx'] for row in partial_rows(data)] == [0, 1, 3, 4]
    write_examples(data / 'mine_validation.jsonl', [example for example in EXAMPLES if example.example_idx != 2])
    assert run(server, data) == 0


def test_packed_data_and_samples_are_read_as_they_are(data, serve, capsys):
    path = data / 'mine_validation.jsonl'
    path.with_name(f'{path.name}.gz').write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    server = serve()
    assert run(server, data) == 0
    result = result_path(data)
    result.with_name(f'{result.name}.gz').write_bytes(gzip.compress(result.read_bytes()))
    result.unlink()
    n_requests = len(server.requests)
    assert run(server, data) == 0 and len(server.requests) == n_requests
    assert f'{result}.gz exists and holds all 5 examples' in capsys.readouterr().out


def test_samples_cut_off_at_the_limit_are_counted(data, serve, caplog):
    def behave(number, body):
        reply = well_behaved(number, body)
        return Reply(body=reply.body.replace(b'"stop"', b'"length"', 1))

    assert run(serve(behave), data, '--max_tokens', 3) == 0
    assert '10 samples were cut off at --max_tokens 3' in caplog.text
    samples = [sample for example in read_examples(result_path(data)) for sample in example.samples]
    assert sum(sample.was_cut for sample in samples) == 10 < len(samples)


def test_a_wrong_key_stops_at_once_with_one_line(data, serve, capsys, monkeypatch):
    server = serve(lambda number, body: Reply(401, {'error': {'message': f'Incorrect API key provided: {KEY}'}}))
    line = refused(capsys, server, data)
    assert '401 (Incorrect API key provided: ***); check the key in OPENAI_API_KEY; 0 of 5' in line
    assert len(server.requests) <= 8 and files_beside(data) == []
    monkeypatch.delenv('OPENAI_API_KEY')
    server.behave = lambda number, body: Reply(401)
    assert 'put a key into OPENAI_API_KEY' in refused(capsys, server, data)
    monkeypatch.setenv('OTHER_KEY', f' {KEY}\n')
    assert 'check the key in OTHER_KEY' in refused(capsys, server, data, '--api_key_variable', 'OTHER_KEY')
    assert server.requests[-1][1]['Authorization'] == f'Bearer {KEY}'


def failing(reply, n_times=10**9, after=0):
    """Requests from `after` on get this reply so many times, then an answer."""

    def behave(number, body):
        return reply if after <= number < after + n_times else well_behaved(number, body)

    return behave


FAILURES = {
    '429': (Reply(429, {'error': {'message': 'slow down'}}), 'answers 429 (slow down)'),
    '500': (Reply(500, b'oh no', {'Content-Type': 'text/plain'}), 'answers 500 (oh no)'),
    '503 without a body': (Reply(503), 'answers 503 (no message)'),
    'not JSON': (
        Reply(body=b'<html>Hello</html>'),
        "the answer cannot be read: not JSON (Expecting value), found '<ht",
    ),
    'text': (Reply(body=b'Hello', headers={'Content-Type': 'text/plain'}), 'the answer cannot be read: not JSON'),
    'a list': (Reply(body=[1]), 'the answer cannot be read: expected a JSON object'),
    'no choices': (Reply(body={'choices': []}), 'the answer has no choices: {"choices": []}'),
    'other fields': (Reply(body={'result': KEY}), 'the answer has no choices: {"result": "***"}'),
    'no text': (Reply(body={'choices': [{}]}), 'the answer has a choice without text: {}'),
    'a number': (Reply(body={'choices': [{'text': 4}]}), 'the answer has a choice whose text is 4'),
    'an empty body': (Reply(), 'the answer is empty'),
    'no answer': (None, 'the connection failed'),
    'cut': (Reply(body={'choices': [{'text': 'x' * 99}]}, cut=40), 'the connection failed'),
    'cut between chunks': (
        Reply(body={'choices': [{'text': 'x' * 99}]}, cut=40, chunked=True),
        'the connection failed',
    ),
}


@pytest.mark.parametrize('case', FAILURES)
def test_a_failure_that_passes_leaves_no_trace(case, data, serve):
    server = serve(failing(FAILURES[case][0], n_times=3))
    assert run(server, data) == 0
    assert len(server.requests) == 13
    assert [len(example.samples) for example in read_examples(result_path(data))] == [9] * 5


@pytest.mark.parametrize('case', FAILURES)
def test_a_lasting_failure_names_the_example_and_keeps_what_is_done(case, data, serve, capsys):
    reply, words = FAILURES[case]
    server = serve(failing(reply, after=4))
    line = refused(capsys, server, data, '--concurrency', 1, '--max_retries', 2)
    assert line.startswith(f'error: {data}/mine_validation.jsonl:3: example_idx 2: ') and words in line
    assert 'in each of 3 tries; 2 of 5 examples are done, and the same command continues' in line
    # Where the example may be the cause, the next one is asked about before the server is.
    n_requests = 7 if case in ('429', '503 without a body', 'no answer', 'cut', 'cut between chunks') else 10
    assert len(server.requests) == n_requests and not result_path(data).exists()
    assert [(row['example_idx'], len(row['samples'])) for row in partial_rows(data)] == [(0, 9), (1, 9)]
    kept = partial_rows(data)
    assert KEY.encode() not in all_bytes(data.parent)
    server.behave = well_behaved
    assert run(server, data) == 0
    assert len(server.requests) == n_requests + 6  # three examples, two decodings
    examples = read_examples(result_path(data))
    assert [example.example_idx for example in examples] == [0, 1, 2, 3, 4]
    assert [sample.response for sample in examples[0].samples] == [sample['response'] for sample in kept[0]['samples']]
    assert files_beside(data) == ['mine_validation.jsonl']


def test_a_server_that_is_down_is_said_at_once_and_once(data, capsys, caplog):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))  # bound and not listening: connections are refused
        url = f'http://127.0.0.1:{taken.getsockname()[1]}/v1'
        line = refused(capsys, url, data)
    assert f'error: no server answers at {url} (' in line and '); start it, or check the address' in line
    assert caplog.text == '' and not result_path(data).parent.exists()


def test_a_server_that_fails_later_is_warned_of_once_and_not_by_each_request(data, serve, capsys, caplog):
    server = serve(failing(Reply(500, b'oh no'), after=4))
    line = refused(capsys, server, data, '--concurrency', 3)
    assert 'answers 500 (oh no), in each of 7 tries; ' in line
    assert caplog.text.count(f'requests to {server.base_url} fail; each is sent again up to 6 times') == 1


def test_a_server_that_hangs_is_given_up_after_the_timeout(data, serve, capsys):
    server = serve(lambda number, body: time.sleep(1))
    line = refused(capsys, server, data, '--timeout', 0.05, '--max_retries', 1)
    assert 'no answer within 0.05 s, in each of 2 tries' in line


@pytest.mark.parametrize('header', [('Retry-After', '0.4'), ('Retry-After-Ms', '400')], ids=['s', 'ms'])
def test_a_retry_waits_as_long_as_the_server_asks(header, data, serve):
    starts = []

    def behave(number, body):
        starts.append(time.monotonic())
        return well_behaved(number, body) if number else Reply(429, {}, dict([header]))

    assert run(serve(behave), data, '--concurrency', 1) == 0
    assert starts[1] - starts[0] > 0.39  # without the header, 0.002 s


def test_a_wait_of_hours_is_reported_and_not_waited_for(data, serve, capsys):
    server = serve(lambda number, body: Reply(429, {}, {'Retry-After': '7200'}))
    line = refused(capsys, server, data)
    assert 'and asks to wait (Retry-After: 7200); run the same command then; 0 of 5' in line


def test_a_quota_that_is_used_up_is_no_fault_of_an_example(data, serve, capsys):
    body = {'error': {'message': 'You exceeded your quota', 'code': 'insufficient_quota'}}
    server = serve(lambda number, _: Reply(429, body))
    line = refused(capsys, server, data, '--concurrency', 1, '--max_retries', 1)
    assert line.startswith(f'error: {server.base_url} answers 429 (You exceeded your quota); 0 of 5')
    assert len(server.requests) == 2


def test_a_request_that_is_refused_does_not_keep_the_others(data, serve, capsys):
    def behave(number, body):
        if 'cow' in asked(body) or 'owl' in asked(body):
            return Reply(400, {'error': {'message': 'too long'}})
        return well_behaved(number, body)

    line = refused(capsys, serve(behave), data, '--concurrency', 1)
    assert line.startswith(f'error: {data}/mine_validation.jsonl:3: example_idx 2: ')
    assert (
        'answers 400 (too long) (and 1 more examples); change it or take it out of the data; 3 of 5 examples are done'
        in line
    )
    assert [row['example_idx'] for row in partial_rows(data)] == [0, 1, 3]


def test_a_server_that_refuses_every_request_is_asked_about_one_example_alone(data, serve, capsys):
    server = serve(lambda number, body: Reply(400, {'error': {'message': 'temperature must be 1'}}))
    line = refused(capsys, server, data, '--concurrency', 1)
    assert 'example_idx 0: ' in line and 'answers 400 (temperature must be 1); 0 of 5' in line
    assert len(server.requests) == 2 and files_beside(data) == []  # with and without log-probabilities


def test_a_wrong_address_is_named(data, serve, capsys):
    server = serve(lambda number, body: Reply(404, {'detail': 'Not Found'}))
    assert '404 (Not Found); check base_url (most end in /v1)' in refused(capsys, server, data)


def test_as_many_requests_run_at_a_time_as_the_flag_says(data, serve):
    three = threading.Barrier(3)

    def behave(number, body):
        if number < 3:
            three.wait(timeout=60)  # the first three are there together
        return well_behaved(number, body)

    server = serve(behave)
    assert run(server, data, '--concurrency', 3) == 0
    assert server.most_at_once == 3


def test_requests_are_spaced_evenly(monkeypatch):
    clock, waits = SimpleNamespace(now=100.0), []

    async def sleep(seconds):
        waits.append(round(seconds, 6))

    monkeypatch.setattr(server, 'time', SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(server, 'asyncio', SimpleNamespace(sleep=sleep))
    pace = server.Pace(per_minute=1200)
    for now in (100.0, 100.0, 100.0, 100.01, 500.0, 500.0):
        clock.now = now
        asyncio.run(pace.turn())
    assert waits == [0, 0.05, 0.1, 0.14, 0, 0.05]


def test_each_try_of_a_request_waits_for_its_turn(data, serve, monkeypatch):
    turns = []

    async def turn(self):
        turns.append(self)

    monkeypatch.setattr(server.Pace, 'turn', turn)
    fake = serve(failing(Reply(500), n_times=2))
    assert run(fake, data) == 0
    assert len(turns) == len(fake.requests) == 12


def test_a_killed_run_continues_and_a_second_process_keeps_off(data, serve, capsys):
    def behave(number, body):
        if number >= 6:
            time.sleep(30)
        return well_behaved(number, body)

    server = serve(behave)
    words = [sys.executable, str(ROOT / 'scripts' / 'sample_openai.py'), *argv(server.base_url, data)]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    killed = subprocess.Popen([*words, '--concurrency', '1'], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(server.requests) < 7 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert 'works on this result' in refused(capsys, server, data)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [row['example_idx'] for row in partial_rows(data)] == [0, 1, 2]
    with open(OutputPaths(result_path(data)).partial, 'a') as file:
        file.write('{"example_idx": 3, "instr')  # as a kill in the middle of a write leaves it
    server.behave = well_behaved
    assert run(server, data) == 0
    assert len(server.requests) == 7 + 4
    assert [len(example.samples) for example in read_examples(result_path(data))] == [9] * 5


def test_an_interrupted_run_keeps_what_is_done(data, serve):
    server = serve(lambda number, body: well_behaved(number, body) if number < 4 else time.sleep(30))
    words = [sys.executable, str(ROOT / 'scripts' / 'sample_openai.py'), *argv(server.base_url, data)]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen([*words, '--concurrency', '1'], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(server.requests) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err.strip().endswith('interrupted') and 'Traceback' not in err
    assert [row['example_idx'] for row in partial_rows(data)] == [0, 1]


def test_files_begun_or_written_with_other_settings_are_refused(data, serve, capsys):
    server = serve(failing(Reply(500), after=4))
    refused(capsys, server, data, '--concurrency', 1, '--max_retries', 0)
    assert 'max_tokens 256 (asked for: 5)' in refused(capsys, server, data, '--max_tokens', 5)
    write_examples(data / 'mine_validation.jsonl', [*EXAMPLES[1:], Example('mine', 0, 'Say gnu.', ('gnu',))])
    assert 'example_idx 0 with this instruction is no longer in the data' in refused(capsys, server, data)
    server.behave = well_behaved
    assert run(server, data, '--overwrite') == 0
    whole = result_path(data).read_bytes()
    n_requests = len(server.requests)
    assert run(server, data) == 0
    assert 'exists and holds all 5 examples. Skipped' in capsys.readouterr().out
    line = refused(capsys, server, data, '--n_samples', 3)
    assert 'has 1 greedy, 8 temp1.0 (asked for: 1 greedy, 3 temp1.0); --overwrite' in line
    write_examples(data / 'mine_validation.jsonl', EXAMPLES)
    assert 'exists and holds other examples' in refused(capsys, server, data)
    assert result_path(data).read_bytes() == whole and len(server.requests) == n_requests


def test_several_tasks_and_both_splits_are_drawn(data, serve):
    for name in ('mine_train', 'yours_train', 'yours_validation'):
        write_examples(data / f'{name}.jsonl', EXAMPLES[:2])
    assert run(serve(), data, '--generator', 'g', *('--n_samples', 1, '--concurrency', 2)) == 0
    words = argv(serve().base_url, data, '--generator', 'g')
    words[words.index('mine')], words[words.index('validation')] = 'mine,yours', 'train,validation'
    flags.run(sample_openai.main, [*words, '--overwrite'])
    found = {path.name: len(read_examples(path)) for path in (data.parent / 'gens' / 'g').iterdir()}
    expected = {'mine_train.jsonl': 2, 'mine_validation.jsonl': 5, 'yours_train.jsonl': 2, 'yours_validation.jsonl': 2}
    assert found == expected


def test_bad_input_is_refused_before_any_request(data, serve, capsys, tmp_path, monkeypatch):
    server = serve()
    (tmp_path / 'p').write_text('no place')
    for more, words in (
        (('--temperatures', 'warm'), "--temperatures: expected a number, found 'warm'"),
        (('--temperatures', '0'), '--greedy is temperature 0'),
        (('--temperatures', '1,1.0'), '--temperatures: 1.0 is given twice; keep one'),
        (('--temperatures', 'None', '--nogreedy'), '--nogreedy and --temperatures None leave nothing to draw'),
        (('--top_p', '0'), '--top_p: expected more than 0'),
        (('--n_samples', '0'), '--n_samples: expected 1 or more, found 0'),
        (('--prompt', tmp_path / 'p'), 'has no {instruction}'),
        (('--prompt', tmp_path / 'q'), 'cannot be read'),
        (('--endpoint', 'completions', '--system', 'x'), '--system: the completions endpoint has no system message'),
        (('--endpoint', 'complete'), "--endpoint: expected 'chat' or 'completions'"),
        (('--concurrency', '0'), '--concurrency: expected 1 or more'),
        (('--requests_per_minute', '0'), '--requests_per_minute: expected more than 0'),
        (('--api_key_variable', 'NO_SUCH'), 'the environment has no such variable'),
        (('--generator', 'a/b'), "--generator 'a/b': files are named after it; give a name without a slash"),
        (('--max_empty_share', '2'), '--max_empty_share: expected 0 to 1, found 2'),
    ):
        assert words in refused(capsys, server, data, *more)
    for url in ('localhost:8000/v1', 'ftp://x/v1', 'http://user:pass@x/v1', 'http://x/v1?key=1', 'http://'):
        assert '--base_url: expected an address such as' in refused(capsys, url, data)
    monkeypatch.setenv('OPENAI_API_KEY', f'{KEY} ☕')
    assert 'OPENAI_API_KEY: holds characters that no key has' in refused(capsys, server, data)
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    line = '{"example_idx": 9, "instruction": " ", "references": ["x"]}\n'
    (data / 'mine_validation.jsonl').write_text(f'\n{line}')
    assert 'mine_validation.jsonl:2: instruction: is empty' in refused(capsys, server, data)
    (data / 'mine_validation.jsonl').write_text('{"example_idx": 9, "instruction": "x", "references": []}\n')
    assert ':1: references: the list is empty' in refused(capsys, server, data)
    (data / 'mine_validation.jsonl').unlink()
    assert 'mine_validation.jsonl: no such file' in refused(capsys, server, data)
    assert server.requests == []


def test_a_missing_package_is_reported_with_its_pip_line(data, serve, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openai', None)
    assert 'the openai package is not installed; pip install openai' in refused(capsys, serve(), data)


def test_log_likelihoods_that_are_not_all_numbers_are_none():
    def likelihoods(logprobs):
        answer = read_answers(json.dumps({'choices': [{'text': 'a', 'logprobs': logprobs}]}).encode())[0]
        return answer.log_likelihood_sum, answer.log_likelihood_mean

    assert likelihoods({'token_logprobs': [-1, -2.0]}) == (-3.0, -1.5)
    assert likelihoods({'content': [{'logprob': -1.0}]}) == (-1.0, -1.0)
    for logprobs in (None, [], {}, {'token_logprobs': []}, {'token_logprobs': [None, -1]}, {'content': [{}]}):
        assert likelihoods(logprobs) == (None, None)
    assert likelihoods({'token_logprobs': [float('-inf')]}) == (None, None)


def test_a_damaged_partial_file_is_not_continued(tmp_path):
    path = tmp_path / 'x.jsonl'
    with pytest.raises(RuntimeError), sampled_file(path, EXAMPLES, {}) as file:
        file.add(EXAMPLES[1], [Sample('a', 'd')])
        raise RuntimeError
    partial = OutputPaths(path).partial
    written = partial.read_bytes()
    for damage in (b'\x00' * 30 + b'\n', b'{}\n', written.replace(b'response', b'answer')):
        partial.write_bytes(written + damage)
        with (
            pytest.raises(InputError, match='x.jsonl.partial:2: not an example with samples'),
            sampled_file(path, EXAMPLES, {}),
        ):
            pass
    partial.write_bytes(written)
    with sampled_file(path, EXAMPLES[1:2], {}) as file:
        assert file.to_do == [] and file.n_done == 1
    assert read_examples(path)[0].samples == (Sample('a', 'd'),)


def test_debug_logs_do_not_hold_the_key(data, serve, caplog):
    caplog.set_level(logging.DEBUG)
    assert run(serve(failing(Reply(500, {'error': KEY}), n_times=1)), data) == 0
    assert 'chat/completions' in caplog.text and KEY not in caplog.text


@pytest.fixture(scope='module')
def real_server(tmp_path_factory):
    """The address of `transformers serve` with a tiny model, and the model's folder."""
    pytest.importorskip('torch', reason='needs PyTorch, with which the real server runs')
    for module in ('fastapi', 'uvicorn', 'transformers.cli.serve'):
        pytest.importorskip(module, reason='needs the server of transformers 5: pip install transformers[serving]')
    folder = tiny_llm(tmp_path_factory.mktemp('llm') / 'tiny-llm')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    words = ['-m', 'transformers.cli.transformers', 'serve', str(folder), '--host', '127.0.0.1', '--port', str(port)]
    log = open(folder.parent / 'log', 'w+')  # noqa: SIM115 - the server's, as long as it runs
    server = subprocess.Popen([sys.executable, *words, '--device', 'cpu'], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not is_healthy(port) and time.monotonic() < deadline:
            assert server.poll() is None, (folder.parent / 'log').read_text()[-2000:]
            time.sleep(0.2)
        yield f'http://127.0.0.1:{port}/v1', folder
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()


def is_healthy(port):
    with contextlib.suppress(OSError), urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=5) as answer:
        return answer.status == 200
    return False


def tiny_llm(folder):
    """A Llama with random weights and a vocabulary of twenty words, which samples by default."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ['<pad>', '<s>', '</s>', '<unk>', 'user', 'system', 'assistant', 'Say', '.', *'abcdefghijk']
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = {'pad_token': '<pad>', 'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)
    tokenizer.chat_template = (
        '{% for message in messages %}{{ message.role }} {{ message.content }} {% endfor %}'
        '{% if add_generation_prompt %}assistant {% endif %}'
    )
    tokenizer.save_pretrained(folder)
    sizes = {'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2}
    ids = {'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=128, **sizes, **ids))
    model.generation_config = GenerationConfig(do_sample=True, **ids)
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('endpoint', ['chat', 'completions'])
def test_a_real_server_answers_as_the_model_itself_does(endpoint, real_server, data, caplog):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base_url, folder = real_server
    words = argv(base_url, data, '--endpoint', endpoint, '--n_samples', 3, '--temperatures', 2, '--max_tokens', 6)
    words[words.index('org/tiny-llm')] = str(folder)
    flags.run(sample_openai.main, words)
    assert 'the server does not support n' in caplog.text  # it ignores the option
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    drawn = set()
    for example, found in zip(EXAMPLES, read_examples(result_path(data)), strict=True):
        greedy, *others = found.samples
        asked_for = f'user {example.instruction} assistant ' if endpoint == 'chat' else example.instruction
        inputs = tokenizer(asked_for, return_tensors='pt')
        with torch.no_grad():
            tokens = model.generate(inputs.input_ids, do_sample=False, max_new_tokens=6)[0, inputs.input_ids.shape[1] :]
        assert greedy == Sample(tokenizer.decode(tokens, skip_special_tokens=True).strip(), 'greedy')
        assert [sample.decoding for sample in others] == ['temp2.0'] * 3
        drawn |= {sample.response for sample in others}
    assert len(drawn) > 10  # of 15, from nearly equal probabilities of 20 words
