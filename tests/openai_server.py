"""A small server that speaks OpenAI's API as far as the tests need it, and misbehaves where a test says so."""

import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Reply:
    """An HTTP answer: status, headers, body. cut: close the connection after so many bytes of the body."""

    def __init__(self, status=200, body=b'', headers=None, cut=None, chunked=False):
        self.status, self.headers, self.cut, self.chunked = status, headers or {}, cut, chunked
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


def choices(body, texts, logprobs=None):
    """An answer with these texts, in the form of the request's endpoint."""
    if 'messages' in body:
        found = [{'index': i, 'message': {'role': 'assistant', 'content': text}} for i, text in enumerate(texts)]
    else:
        found = [{'index': i, 'text': text} for i, text in enumerate(texts)]
    for choice in found:
        choice |= {'finish_reason': 'stop', 'logprobs': logprobs}
    return Reply(body={'id': 'x', 'object': 'completion', 'model': body['model'], 'choices': found})


def asked(body):
    """The text that a request asks about."""
    return body['messages'][-1]['content'] if 'messages' in body else body['prompt']


def well_behaved(number, body):
    """n different samples, with log-probabilities where they are asked for."""
    kind = 'greedy' if body['temperature'] == 0 else f'at {body["temperature"]:g}'
    if not body.get('logprobs'):
        logprobs = None
    elif 'messages' in body:
        logprobs = {'content': [{'token': 'a', 'logprob': -0.5}, {'token': 'b', 'logprob': -1.5}]}
    else:
        logprobs = {'tokens': ['a', 'b'], 'token_logprobs': [-0.5, -1.5]}
    return choices(body, [f' {kind}, {i}: {asked(body)}\n' for i in range(body.get('n', 1))], logprobs)


class QuietServer(ThreadingHTTPServer):
    """Prints nothing about clients that closed their connection."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class FakeServer:
    """behave: (number of the request from 0, its body) -> Reply. requests: (path, headers, body) each."""

    def __init__(self, behave=well_behaved):
        self.behave, self.requests = behave, []
        self.n_at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._http = QuietServer(('127.0.0.1', 0), self._handler())
        self.base_url = f'http://127.0.0.1:{self._http.server_port}/v1'

    @contextmanager
    def running(self):
        """Serve while the block runs."""
        thread = threading.Thread(target=self._http.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()

    def _take(self, path, headers, body):
        with self._lock:
            number = len(self.requests)
            self.requests.append((path, headers, body))
            self.n_at_once += 1
            self.most_at_once = max(self.most_at_once, self.n_at_once)
        try:
            return self.behave(number, body)
        finally:
            with self._lock:
                self.n_at_once -= 1

    def _handler(self):
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_POST(self):
                length = int(self.headers['Content-Length'])
                sent = self.rfile.read(length)
                if len(sent) < length:
                    raise ConnectionAbortedError('the client left in the middle of its request')
                reply = take(self.path, self.headers, json.loads(sent))
                if reply is None:  # close the connection without an answer
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in ({'Content-Type': 'application/json'} | reply.headers).items():
                    self.send_header(name, value)
                kept = reply.body if reply.cut is None else reply.body[: reply.cut]
                if reply.chunked:
                    self.send_header('Transfer-Encoding', 'chunked')
                    kept = b'%x\r\n%s\r\n' % (len(kept), kept) + (b'' if reply.cut else b'0\r\n\r\n')
                else:
                    self.send_header('Content-Length', str(len(reply.body)))
                self.end_headers()
                self.wfile.write(kept)
                self.close_connection = reply.cut is not None

            def log_message(self, *args):
                pass

        return Handler
