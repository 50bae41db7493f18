"""A headless Chromium that tests drive, through the pipe of its debugging protocol; needs no driver."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
KEYS = {'ArrowDown': 40, 'ArrowRight': 39, 'Enter': 13, 'Tab': 9, 'End': 35}  # their virtual codes

# The browser reads from descriptor 3 and writes to 4. First both are moved out of the way of that.
PLACE_PIPES = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str | None:
    """The program, or None where there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Page:
    """One page. `messages` are what it wrote to the console and the errors it met."""

    def __init__(self, send, receive):
        self._send, self._receive, self._session = send, receive, None
        self._buffer, self._number, self.messages = b'', 0, []
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Accessibility'):
            self.call(f'{domain}.enable')

    def call(self, method, seconds=60, **parameters):
        """The result of a method of the protocol."""
        self._number += 1
        message = {'id': self._number, 'method': method, 'params': parameters}
        message |= {'sessionId': self._session} if self._session else {}
        os.write(self._send, json.dumps(message).encode() + b'\0')
        end = time.monotonic() + seconds
        while True:
            answer = self._next(end)
            if answer.get('id') == self._number:
                if 'error' in answer:
                    raise RuntimeError(f'{method}: {answer["error"]}')
                return answer['result']
            self._keep(answer)

    def open(self, path, width=1200, height=900, fragment='', seconds=120):
        """Load a file and wait until it has been read whole."""
        metrics = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width < 500}
        self.call('Emulation.setDeviceMetricsOverride', **metrics)
        self.call('Page.navigate', url='about:blank')
        self.call('Page.navigate', url=Path(path).resolve().as_uri() + fragment, seconds=seconds)
        self.wait('document.readyState === "complete"', seconds)

    def run(self, script):
        """The value of an expression, awaited."""
        made = self.call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in made:
            raise RuntimeError(made['exceptionDetails']['exception'].get('description', made['exceptionDetails']))
        return made['result'].get('value')

    def wait(self, condition, seconds=30):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f'Boolean({condition})'):
            if time.monotonic() > end:
                raise TimeoutError(condition)
            time.sleep(0.02)

    def press(self, key, modifiers=0):
        """Press and release a key, as a reader does."""
        event = {'key': key, 'code': key, 'windowsVirtualKeyCode': KEYS[key], 'modifiers': modifiers}
        event |= {'text': '\r'} if key == 'Enter' else {}
        self.call('Input.dispatchKeyEvent', type='keyDown', **event)
        self.call('Input.dispatchKeyEvent', type='keyUp', **event)

    def screenshot(self, path):
        """What is seen, as png."""
        Path(path).write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png')['data']))

    def _next(self, end):
        while b'\0' not in self._buffer:
            if not select.select([self._receive], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError('Chromium does not answer')
            read = os.read(self._receive, 1 << 20)
            if not read:
                raise RuntimeError('Chromium ended')
            self._buffer += read
        answer, _, self._buffer = self._buffer.partition(b'\0')
        return json.loads(answer)

    def _keep(self, event):
        name, values = event.get('method'), event.get('params', {})
        if name == 'Runtime.exceptionThrown':
            self.messages.append(values['exceptionDetails'].get('exception', {}).get('description', 'an error'))
        elif name == 'Log.entryAdded':
            self.messages.append(values['entry']['text'])
        elif name == 'Runtime.consoleAPICalled':
            self.messages.append(' '.join(str(one.get('value')) for one in values['args']))


@contextlib.contextmanager
def chromium_page(folder):
    """A Page, while the block runs; folder: for the browser's own files."""
    to_read, to_send = os.pipe()
    to_receive, to_write = os.pipe()
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run']
    flags += ['--remote-debugging-pipe', f'--user-data-dir={folder}', '--disable-background-networking']

    process = subprocess.Popen(
        [sys.executable, '-c', PLACE_PIPES, str(to_read), str(to_write), find_chromium(), *flags, 'about:blank'],
        pass_fds=(to_read, to_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    try:
        yield Page(to_send, to_receive)
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.close(to_send)
        os.close(to_receive)
