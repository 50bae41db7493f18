"""Samples from a server that speaks OpenAI's API, through the `openai` package.

A request that fails in a way that may pass (429, 5xx, no connection, an answer that makes no sense) is sent again,
later each time. What a server does not support of `n`, `logprobs` and `max_tokens` is found out once, then left out.
"""

import asyncio
import itertools
import logging
import math
import random
import re
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from cappy.errors import InputError
from cappy.files.jsonl import parse_object
from cappy.files.wording import shown
from cappy.tasks.candidates import Sample

logger = logging.getLogger(__name__)

FIRST_WAIT = 1.0  # seconds before the second try; doubled for each further one
LONGEST_WAIT = 60.0
LONGEST_RETRY_AFTER = 600.0  # seconds; a server that asks for more is not waited for


class ServerDecoding(NamedTuple):
    """How samples are drawn; temperature 0 takes the likeliest token."""

    name: str
    temperature: float
    top_p: float
    n_samples: int


class Answer(NamedTuple):
    """One choice of an answer. was_cut: it ended at the limit of tokens."""

    text: str
    log_likelihood_sum: float | None
    log_likelihood_mean: float | None
    was_cut: bool


class ServerError(InputError):
    """The server will not answer any request like this one."""


class RequestRefused(InputError):
    """The server does not take this one request; it may take others."""


class GaveUp(InputError):
    """The server did not answer this request in all the tries it was given."""


class _Trouble(Exception):
    """A request failed in a way that may pass. retry_after: the seconds that the server asks for, if it does."""

    def __init__(self, message, retry_after=None):
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class ServerSettings:
    """Where and what to ask. key_variable: the environment variable that the key came from, for messages."""

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)
    key_variable: str = 'OPENAI_API_KEY'
    endpoint: Literal['chat', 'completions'] = 'chat'
    system: str | None = None
    stop: str | None = None
    max_tokens: int = 256
    logprobs: bool = True
    requests_per_minute: float | None = None
    max_retries: int = 6
    timeout: float = 600.0  # seconds for one request

    def __post_init__(self):
        url = urlsplit(self.base_url)
        if url.scheme not in ('http', 'https') or not url.hostname or url.username is not None or url.query:
            raise InputError('base_url: expected an address such as http://localhost:8000/v1, no user and no key in it')
        # The HTTP library shows a header that it refuses, and this one holds the key.
        if self.key is not None and not re.fullmatch('[!-~]+', self.key):
            raise InputError(f'{self.key_variable}: holds characters that no key has; set it anew')


class Server:
    """Asks a server. n_requests: those sent, each try counted; n_cut: samples that ended at max_tokens."""

    def __init__(self, settings: ServerSettings):
        try:
            import openai
        except ImportError as error:
            raise InputError('the openai package is not installed; pip install openai') from error
        self.settings = settings
        self.n_requests = self.n_cut = 0
        self._openai = openai
        # Without a key the package refuses to start; servers of one's own need none.
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url, api_key=settings.key or 'none', max_retries=0, timeout=settings.timeout
        )
        self._pace = Pace(settings.requests_per_minute)
        self._lacks = set() if settings.logprobs else {'logprobs'}
        self._known = set()  # options that an answered request has had

    async def close(self):
        """Close the connections."""
        await self._client.close()

    async def samples(self, prompt: str, decoding: ServerDecoding) -> list[Sample]:
        """So many samples as the decoding has, white space around them taken off.

        Raises RequestRefused, GaveUp or ServerError.
        """
        answers = []
        while len(answers) < decoding.n_samples:
            wanted = decoding.n_samples - len(answers)
            answers += (await self._ask(prompt, decoding, wanted))[:wanted]
        self.n_cut += sum(answer.was_cut for answer in answers)
        return [
            Sample(answer.text.strip(), decoding.name, answer.log_likelihood_sum, answer.log_likelihood_mean)
            for answer in answers
        ]

    async def _ask(self, prompt, decoding, n):
        """Answers, at most n; where the request is refused, without the options that may be the cause."""
        body = self._body(prompt, decoding, n, self._lacks)
        try:
            answers, left_out = await self._answers(body), set()
        except RequestRefused as refusal:
            answers, left_out = await self._ask_for_less(prompt, decoding, n, body, refusal)
        n_asked = 1 if 'n' in left_out else body.get('n', 1)
        if len(answers) < n_asked:
            left_out = left_out | {'n'}
        self._known |= body.keys() - left_out
        if left_out - self._lacks:
            logger.warning('the server does not support %s', ', '.join(sorted(left_out - self._lacks)))
            self._lacks = self._lacks | left_out
        return answers

    async def _ask_for_less(self, prompt, decoding, n, body, refusal):
        for left_out in _suspects(body, self._known, str(refusal)):
            try:
                return await self._answers(self._body(prompt, decoding, n, self._lacks | left_out)), left_out
            except RequestRefused as further:
                logger.debug('refused without %s, too: %s', left_out, further)
        raise refusal

    def _body(self, prompt, decoding, n, lacks):
        settings = self.settings
        is_chat = settings.endpoint == 'chat'
        body = {'model': settings.model, 'temperature': decoding.temperature}
        # The newer name, which OpenAI's reasoning models insist on and many servers do not know.
        body['max_completion_tokens' if 'max_tokens' in lacks else 'max_tokens'] = settings.max_tokens
        if decoding.top_p < 1:
            body['top_p'] = decoding.top_p
        if settings.stop:
            body['stop'] = [settings.stop]
        if 'logprobs' not in lacks:
            body['logprobs'] = True if is_chat else 1
        if n > 1 and 'n' not in lacks:
            body['n'] = n
        if not is_chat:
            return body | {'prompt': prompt}
        messages = [{'role': 'system', 'content': settings.system}] if settings.system else []
        return body | {'messages': [*messages, {'role': 'user', 'content': prompt}]}

    async def _answers(self, body):
        """The answers to a request, which is sent again where that may help."""
        for attempt in itertools.count(1):
            await self._pace.turn()
            self.n_requests += 1
            try:
                return read_answers(await self._post(body))
            except _Trouble as trouble:
                problem = self._without_key(str(trouble))
                if attempt > self.settings.max_retries:
                    raise GaveUp(f'{problem}, in each of {attempt} tries') from trouble
                await self._wait(trouble.retry_after, attempt, problem)

    async def _wait(self, retry_after, attempt, problem):
        if retry_after is not None and retry_after > LONGEST_RETRY_AFTER:
            raise ServerError(f'{problem}, and asks to wait {retry_after:.0f} s; run the same command then')
        wait = min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) * random.uniform(0.75, 1)
        if retry_after:  # 0 is no help: it has just failed
            wait = retry_after
            self._pace.hold(wait)  # whoever else would ask now
        if wait >= 10:
            logger.warning('%s; trying again in %.0f s', problem, wait)
        await asyncio.sleep(wait)

    async def _post(self, body):
        """The bytes of the answer."""
        client = self._client.chat if self.settings.endpoint == 'chat' else self._client
        try:
            response = await client.completions.with_raw_response.create(**body)
        except self._openai.APIStatusError as error:
            raise self._of_status(error) from error
        except self._openai.APITimeoutError as error:
            raise _Trouble(f'{self._place}: no answer within {self.settings.timeout:g} s') from error
        except self._openai.APIConnectionError as error:
            cause = str(error.__cause__ or error) or type(error.__cause__).__name__
            raise _Trouble(f'{self._place}: the connection failed ({cause})') from error
        return response.content

    @property
    def _place(self):
        return self.settings.base_url

    def _of_status(self, error):
        """What an answer with an error's status means."""
        status, headers = error.status_code, error.response.headers
        said = self._without_key(_message(error))
        problem = f'{self._place} answers {status} ({said})'
        if status == 401:
            variable = self.settings.key_variable
            return ServerError(f'{problem}; {"check the key in" if self.settings.key else "put a key into"} {variable}')
        if status == 403 or 'insufficient_quota' in said or getattr(error, 'code', None) == 'insufficient_quota':
            return ServerError(problem)
        if status == 404:
            return ServerError(f'{problem}; is --base_url right (most end in /v1), and does it serve this --model?')
        if status in (408, 409, 429) or status >= 500:
            return _Trouble(problem, _retry_after(headers))
        return RequestRefused(problem)

    def _without_key(self, text):
        """A server may repeat the key in what it says. Shorter ones are no secrets ('none', 'EMPTY')."""
        key = self.settings.key
        return text.replace(key, '***') if key and len(key) >= 8 else text


class Pace:
    """Spaces the starts of requests; per_minute: None for as fast as they come."""

    def __init__(self, per_minute: float | None):
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = -math.inf

    async def turn(self):
        """Returns when a request may start."""
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + self._gap
        await asyncio.sleep(start - now)

    def hold(self, seconds):
        """No request starts for so long."""
        self._next = max(self._next, time.monotonic() + seconds)


def read_answers(content: bytes) -> list[Answer]:
    """The choices of an answer in either endpoint's form. Raises _Trouble where it makes no sense."""
    if not content.strip():
        raise _Trouble('the answer is empty')
    try:
        fields = parse_object(content + b'\n')
    except InputError as error:
        raise _Trouble(f'the answer is {error}') from error
    choices = fields.get('choices')
    if not isinstance(choices, list) or not choices:
        raise _Trouble(f'the answer has no choices: {shown(fields)}')
    return [_answer(choice) for choice in choices]


def _answer(choice):
    try:
        text = choice['text'] if 'text' in choice else choice['message']['content']
    except (TypeError, KeyError) as error:
        raise _Trouble(f'the answer has a choice without text: {shown(choice)}') from error
    if text is not None and not isinstance(text, str):  # null: the model has nothing to say
        raise _Trouble(f'the answer has a choice whose text is {shown(text)}')
    return Answer(text or '', *_log_likelihoods(choice.get('logprobs')), choice.get('finish_reason') == 'length')


def _log_likelihoods(given) -> tuple[float | None, float | None]:
    """Sum and mean over the tokens; None where the server gives none, or one that is no number."""
    if not isinstance(given, dict):
        return None, None
    values = given.get('token_logprobs')
    if isinstance(given.get('content'), list):
        values = [token.get('logprob') if isinstance(token, dict) else None for token in given['content']]
    if not isinstance(values, list) or not values:
        return None, None
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return None, None
    total = math.fsum(values)
    return total, total / len(values)


def _suspects(body, known, message) -> list[set[str]]:
    """Sets of options that a refusal may be about, those that it names first; none that were taken before."""
    options = [option for option in ('logprobs', 'n') if option in body and option not in known]
    if 'max_tokens' in body and 'max_completion_tokens' in message:
        options.insert(0, 'max_tokens')
    sets = [set(chosen) for size in range(1, len(options) + 1) for chosen in itertools.combinations(options, size)]
    named = {option for option in options if re.search(rf'\b{option}\b', message)}
    return sorted(sets, key=lambda chosen: chosen != named)


def _message(error):
    """What the server says, in one line of bearable length."""
    said = error.body if isinstance(error.body, dict) else {}
    text = next((said[key] for key in ('message', 'detail', 'error') if isinstance(said.get(key), str)), None)
    text = ' '.join((text or error.response.text or 'nothing said').split())
    return text if len(text) <= 200 else text[:198] + '..'


def _retry_after(headers) -> float | None:
    """The seconds of a Retry-After header, which is a number or a date."""
    for name, unit in (('retry-after-ms', 0.001), ('retry-after', 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except (TypeError, ValueError):
                continue
        if not math.isnan(seconds):
            return max(seconds, 0.0)
    return None
