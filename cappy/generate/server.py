"""Samples from a server that speaks OpenAI's API, through the `openai` package.

The package sends a failed request again (408, 409, 429, 5xx, a lost connection, no answer in time), after the wait that
the server asks for or a growing one. Added here: a limit on the rate of requests, one warning where there were eight,
answers that cannot be read, and options that a server does not support, which are found out once and then left out.
"""

import asyncio
import itertools
import logging
import math
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from cappy.errors import InputError
from cappy.files.jsonl import is_number, load_object, without_halves
from cappy.files.wording import cut, shown
from cappy.generate.decodings import Decoding
from cappy.generate.sample_checks import has_thinking, without_thinking
from cappy.tasks.candidates import Sample

logger = logging.getLogger(__name__)

FIRST_WAIT = 0.5  # seconds before an answer that cannot be read is asked for again; doubled each time, as openai does
LONGEST_WAIT = 8.0
CONNECT_TIMEOUT = 10.0  # seconds
RETRY_COUNT = 'x-stainless-retry-count'  # the header in which openai says how often a request was sent before


class Answer(NamedTuple):
    """One choice of an answer. was_cut: it ended at the limit of tokens.

    missing: where the text is empty, why, a key of `sample_checks.CAUSES`; None where there is text. n_halves: halves
    of surrogate pairs in the text that were replaced. (The tokens of the log-probabilities may well be halves.)
    """

    text: str
    log_likelihood_sum: float | None
    log_likelihood_mean: float | None
    was_cut: bool
    missing: str | None = None
    n_halves: int = 0


class ServerError(InputError):
    """The server will not answer any request like this one."""


class RequestRefused(InputError):
    """The server does not accept this request; it may accept others."""


class RequestFailed(InputError):
    """The server did not answer this request, although it was sent again as often as allowed."""


class AnswerFailed(RequestFailed):
    """The server is there and does not make an answer to this request; it may well to others."""


class UnreadableAnswer(InputError):
    """The server answered with something that holds no choices."""


@dataclass(frozen=True)
class ServerSettings:
    """Where and how to ask.

    key_variable: the environment variable of the key, for messages. stop: text that ends a response. max_tokens: per
    response. strip_thinking: take <think>..</think> out of responses. requests_per_minute: None for no limit.
    max_retries: per request. timeout: seconds per request.
    """

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)
    key_variable: str = 'OPENAI_API_KEY'
    endpoint: Literal['chat', 'completions'] = 'chat'
    system: str | None = None
    stop: str | None = None
    max_tokens: int = 256
    logprobs: bool = True
    strip_thinking: bool = False
    requests_per_minute: float | None = None
    max_retries: int = 6
    timeout: float = 600.0

    def __post_init__(self):
        url = urlsplit(self.base_url)
        if url.scheme not in ('http', 'https') or not url.hostname or url.username is not None or url.query:
            raise InputError('base_url: expected an address such as http://localhost:8000/v1, no user and no key in it')
        # The HTTP library shows a header that it refuses, and this one holds the key.
        if self.key is not None and not re.fullmatch('[!-~]+', self.key):
            raise InputError(f'{self.key_variable}: holds characters that no key has; set it again')


class Server:
    """Sends requests to a server.

    n_requests: sent so far, each try counted. counts: of the samples so far, 'cut at the limit' (of tokens), 'halves'
    (of surrogate pairs, replaced), and those without text by their key of `sample_checks.CAUSES`.
    """

    def __init__(self, settings: ServerSettings):
        try:
            import openai
        except ImportError as error:
            raise InputError('the openai package is not installed; pip install openai') from error
        self.settings = settings
        self.n_requests, self.counts = 0, Counter()
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url,
            api_key=settings.key or 'none',  # the package insists on a key; one's own server needs none
            max_retries=settings.max_retries,
            timeout=openai.Timeout(settings.timeout, connect=min(CONNECT_TIMEOUT, settings.timeout)),
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={'request': [self._before_request]}),
        )
        self._pace = Pace(settings.requests_per_minute)
        self._has_warned = False  # that requests are sent again
        self._unsupported = set() if settings.logprobs else {'logprobs'}
        self._supported = set()  # options of requests that were answered

    async def close(self):
        """Close the connections."""
        await self._client.close()

    async def check(self):
        """Raise ServerError where no server is at the address, which a first request would find out after all tries."""
        try:
            await self._client.with_options(max_retries=0).models.with_raw_response.list()
        except (self._openai.APIStatusError, self._openai.APITimeoutError):
            pass  # a server is there; what it makes of requests is seen by sending them
        except self._openai.APIConnectionError as error:
            problem = f'no server answers at {self.settings.base_url} ({_reason(error)})'
            raise ServerError(f'{problem}; start it, or check the address') from error

    async def samples(self, prompt: str, decoding: Decoding, n_samples: int) -> list[Sample]:
        """n_samples responses to a prompt, white space around each removed.

        Raises RequestRefused, RequestFailed or ServerError.
        """
        answers = []
        while len(answers) < n_samples:
            n_missing = n_samples - len(answers)
            answers += (await self._ask(prompt, decoding, n_missing))[:n_missing]
        return [self._as_sample(answer, decoding) for answer in answers]

    def _as_sample(self, answer, decoding):
        """The sample of an answer, which is counted."""
        text, likelihoods = answer.text.strip(), (answer.log_likelihood_sum, answer.log_likelihood_mean)
        missing = answer.missing
        if self.settings.strip_thinking and has_thinking(text):
            text, likelihoods = without_thinking(text), (None, None)  # they are of the thinking, too
            missing = None if text else 'thinking'
        self.counts['cut at the limit'] += answer.was_cut
        self.counts['halves'] += answer.n_halves
        if missing:
            self.counts[missing] += 1
        return Sample(text, decoding.name, *likelihoods, answer.was_cut)

    async def _ask(self, prompt, decoding, n):
        """At most n answers; a request that is refused is sent again without the options that may be the cause."""
        body = self._body(prompt, decoding, n, self._unsupported)
        try:
            answers, left_out = await self._answers(body), set()
        except RequestRefused as refusal:
            answers, left_out = await self._ask_with_fewer_options(prompt, decoding, n, body, refusal)
        n_asked = 1 if 'n' in left_out else body.get('n', 1)
        if len(answers) < n_asked:
            left_out = left_out | {'n'}
        self._supported |= body.keys() - left_out
        if left_out - self._unsupported:
            logger.warning('the server does not support %s', ', '.join(sorted(left_out - self._unsupported)))
            self._unsupported = self._unsupported | left_out
        return answers

    async def _ask_with_fewer_options(self, prompt, decoding, n, body, refusal):
        """(answers, the options left out); raises `refusal` where no set of options helps."""
        for left_out in _possible_causes(body, self._supported, str(refusal)):
            try:
                return await self._answers(self._body(prompt, decoding, n, self._unsupported | left_out)), left_out
            except RequestRefused as error:
                logger.debug('also refused without %s: %s', left_out, error)
        raise refusal

    def _body(self, prompt, decoding, n, unsupported):
        """The fields of a request."""
        settings = self.settings
        is_chat = settings.endpoint == 'chat'
        body = {'model': settings.model, 'temperature': decoding.temperature}
        # The newer name, which OpenAI's reasoning models insist on and many servers do not know.
        body['max_completion_tokens' if 'max_tokens' in unsupported else 'max_tokens'] = settings.max_tokens
        if decoding.top_p < 1:
            body['top_p'] = decoding.top_p
        if settings.stop:
            body['stop'] = [settings.stop]
        if 'logprobs' not in unsupported:
            body['logprobs'] = True if is_chat else 1
        if n > 1 and 'n' not in unsupported:
            body['n'] = n
        if not is_chat:
            return body | {'prompt': prompt}
        messages = [{'role': 'system', 'content': settings.system}] if settings.system else []
        return body | {'messages': [*messages, {'role': 'user', 'content': prompt}]}

    async def _answers(self, body):
        """The answers to a request.

        openai does not send a request again whose answer is of status 200 and makes no sense (an empty body, a proxy's
        page of HTML): that is done here, so that one such answer does not end a long run.
        """
        n_tries = self.settings.max_retries + 1
        for number in range(n_tries):
            if number:
                await asyncio.sleep(min(FIRST_WAIT * 2 ** (number - 1), LONGEST_WAIT))
            content = await self._post(body)
            try:
                return read_answers(content)
            except UnreadableAnswer as error:
                unreadable = error
        raise AnswerFailed(f'{self._without_key(str(unreadable))}, {_in_tries(n_tries)}') from unreadable

    async def _post(self, body):
        """The bytes of the answer to a request."""
        client = self._client.chat if self.settings.endpoint == 'chat' else self._client
        base_url = self.settings.base_url
        try:
            response = await client.completions.with_raw_response.create(**body)
        except self._openai.APIStatusError as error:
            raise self._status_error(error) from error
        except self._openai.APITimeoutError as error:
            problem = f'{base_url}: no answer within {self.settings.timeout:g} s'
            raise RequestFailed(f'{problem}, {_in_tries(_n_tries(error))}') from error
        except self._openai.APIConnectionError as error:
            problem = f'{base_url}: the connection failed ({_reason(error)})'
            raise RequestFailed(f'{problem}, {_in_tries(_n_tries(error))}') from error
        return response.content

    async def _before_request(self, request):
        """Wait for the request's turn, and count it. The HTTP client calls this for each try."""
        if request.method != 'POST':  # of `check`
            return
        await self._pace.turn()
        self.n_requests += 1
        # Once, and not after a single failure: the others of the same moment fail for the same reason.
        if int(request.headers.get(RETRY_COUNT, 0)) >= 2 and not self._has_warned:
            self._has_warned = True
            url, max_retries = self.settings.base_url, self.settings.max_retries
            logger.warning('requests to %s fail; each is sent again up to %d times', url, max_retries)

    def _status_error(self, error):
        """The error to raise for an answer with an error's status."""
        status = error.status_code
        message = self._without_key(_message(error))
        problem = f'{self.settings.base_url} answers {status} ({message})'
        if status == 401:
            variable = self.settings.key_variable
            return ServerError(f'{problem}; {"check the key in" if self.settings.key else "put a key into"} {variable}')
        if status == 403 or 'insufficient_quota' in message or getattr(error, 'code', None) == 'insufficient_quota':
            return ServerError(problem)
        if status == 404:
            return ServerError(f'{problem}; check base_url (most end in /v1), and whether it serves this model')
        if status in (408, 409, 429) or status >= 500:
            wait = error.response.headers.get('retry-after')
            asks = f', and asks to wait (Retry-After: {wait}); run the same command then' if wait else ''
            kind = AnswerFailed if status == 500 and not wait else RequestFailed
            return kind(f'{problem}, {_in_tries(_n_tries(error))}{asks}')
        return RequestRefused(problem)

    def _without_key(self, text):
        """The text without the key, which a server may repeat. Short ones are no secrets ('none', 'EMPTY')."""
        key = self.settings.key
        return text.replace(key, '***') if key and len(key) >= 8 else text


class Pace:
    """Spaces the starts of requests evenly; per_minute: None for no limit."""

    def __init__(self, per_minute: float | None):
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = -math.inf

    async def turn(self):
        """Returns when a request may start."""
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + self._gap
        await asyncio.sleep(start - now)


def read_answers(content: bytes) -> list[Answer]:
    """The choices of an answer of either endpoint. Raises UnreadableAnswer saying what it is instead."""
    if not content.strip():
        raise UnreadableAnswer('the answer is empty')
    try:
        fields = load_object(content + b'\n')
    except InputError as error:
        raise UnreadableAnswer(f'the answer cannot be read: {error}') from error
    choices = fields.get('choices')
    if not isinstance(choices, list) or not choices:
        raise UnreadableAnswer(f'the answer has no choices: {shown(fields)}')
    return [_answer(choice) for choice in choices]


def _answer(choice):
    message = choice.get('message') if isinstance(choice, dict) else None
    message = message if isinstance(message, dict) else {}
    if not isinstance(choice, dict) or not ('text' in choice or message.keys() & {'content', *_INSTEAD_OF_TEXT}):
        raise UnreadableAnswer(f'the answer has a choice without text: {shown(choice)}')
    text = choice.get('text')
    text = message.get('content') if text is None else text
    if isinstance(text, list):  # parts, of which some may be images or thoughts
        text = ''.join(part['text'] for part in text if isinstance(part, dict) and isinstance(part.get('text'), str))
    if text is not None and not isinstance(text, str):
        raise UnreadableAnswer(f'the answer has a choice whose text is {shown(text)}')
    text, n_halves = without_halves(text or '')
    was_cut = choice.get('finish_reason') == 'length'
    missing = None if text.strip() else _cause(message, choice.get('finish_reason'))
    return Answer(text, *_log_likelihoods(choice.get('logprobs')), was_cut, missing, n_halves)


# Fields of a message that servers fill where there is no text, and why; the first that is there counts.
_INSTEAD_OF_TEXT = {
    'reasoning_content': 'reasoning',
    'reasoning': 'reasoning',
    'refusal': 'refusal',
    'tool_calls': 'tool_calls',
    'function_call': 'tool_calls',
}


def _cause(message, finish_reason):
    """Why a choice has no text, a key of `sample_checks.CAUSES`."""
    cause = next((cause for name, cause in _INSTEAD_OF_TEXT.items() if message.get(name)), None)
    by_reason = {
        'length': 'cut',
        'content_filter': 'refusal',
        'tool_calls': 'tool_calls',
        'function_call': 'tool_calls',
    }
    return cause or (by_reason.get(finish_reason) if isinstance(finish_reason, str) else None) or 'empty'


def _log_likelihoods(logprobs) -> tuple[float | None, float | None]:
    """(sum, mean) over the tokens of a choice; None where the server gives none, or one that is not a number."""
    if not isinstance(logprobs, dict):
        return None, None
    values = logprobs.get('token_logprobs')
    if isinstance(logprobs.get('content'), list):
        values = [token.get('logprob') if isinstance(token, dict) else None for token in logprobs['content']]
    if not isinstance(values, list) or not values:
        return None, None
    if not all(map(is_number, values)):
        return None, None
    total = sum(values)
    return (total, total / len(values)) if is_number(total) else (None, None)


def _possible_causes(body, supported, message) -> list[set[str]]:
    """Sets of options that a refusal may be about, those that it names first; none that were accepted before."""
    options = [option for option in ('logprobs', 'n') if option in body and option not in supported]
    if 'max_tokens' in body and 'max_completion_tokens' in message:
        options.insert(0, 'max_tokens')
    sets = [set(chosen) for size in range(1, len(options) + 1) for chosen in itertools.combinations(options, size)]
    named = {option for option in options if re.search(rf'\b{option}\b', message)}
    return sorted(sets, key=lambda chosen: chosen != named)


def _message(error):
    """What the server says, on one line of at most 200 characters."""
    fields = error.body if isinstance(error.body, dict) else {}
    text = next((fields[key] for key in ('message', 'detail', 'error') if isinstance(fields.get(key), str)), None)
    return cut(' '.join((text or error.response.text or 'no message').split()), 200)


def _reason(error):
    """Why a connection failed, in the HTTP library's words."""
    return str(error.__cause__ or error) or type(error.__cause__).__name__


def _n_tries(error):
    """How often the request of an error was sent."""
    return 1 + int(error.request.headers.get(RETRY_COUNT, 0))


def _in_tries(n_tries):
    return 'in 1 try' if n_tries == 1 else f'in each of {n_tries} tries'
