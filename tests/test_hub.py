"""Errors of the hub: one that answers is not reported as unreachable."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from conftest import ROOT

PROGRAM = """
from cappy.errors import InputError
from cappy.files import hub
try:
    hub.load_dataset('nobody/nothing', 'x', remedy='take another')
except InputError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def endpoint():
    """The address of a hub that has nothing."""

    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = HTTPServer(('127.0.0.1', 0), NotFound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def load_in_a_process(endpoint, home, offline='0'):
    """What PROGRAM prints, with the hub at this address and an empty cache."""
    hub = {'HF_HUB_OFFLINE': offline, 'HF_ENDPOINT': endpoint, 'HF_HOME': str(home), 'PYTHONPATH': str(ROOT)}
    ended = subprocess.run([sys.executable, '-c', PROGRAM], env=os.environ | hub, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_hub_without_the_data_set_is_not_reported_as_unreachable(endpoint, tmp_path):
    message = load_in_a_process(endpoint, tmp_path)
    assert message.startswith('InputError nobody/nothing, x: cannot be fetched (')
    assert message.endswith('); try again, or take another\n')


@pytest.mark.parametrize('offline', ['0', '1'])
def test_a_hub_that_does_not_answer_is_reported_as_unreachable(tmp_path, offline):
    message = load_in_a_process('http://127.0.0.1:9', tmp_path, offline)
    assert message.startswith('Unreachable nobody/nothing, x: cannot be fetched, since the hub does not answer (')
    assert message.endswith('); take another\n')
