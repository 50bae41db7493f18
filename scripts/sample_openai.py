"""Draw samples from any LLM behind a server that speaks OpenAI's API: vLLM, llama.cpp, transformers serve, hosted ones.

    python scripts/sample_openai.py --base_url http://localhost:8000/v1 --model my-llm --tasks my_task

Reads {data_dir}/{task}_{split}.jsonl and writes {output_dir}/{generator}/{task}_{split}.jsonl for cappy_bigbench.py.
Each of --temperatures is a decoding with n_samples samples, named temp0.7 (temp0.7_topp0.9 with a --top_p below 1);
`greedy` is one more sample, of the most likely tokens. Examples that are done are kept in {file}.partial: the same
command continues a run that was stopped or whose server failed. The key comes from the environment and goes to the
server alone.
"""

import asyncio
import logging
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli import flags
from cappy.errors import InputError
from cappy.files.inputs import find
from cappy.files.jsonl import describe_halves
from cappy.files.lock import check_result
from cappy.files.partial import OutputPaths
from cappy.generate.decodings import Decoding
from cappy.generate.sample_checks import (
    CAUSES,
    EMPTY_SHARE,
    MIN_JUDGED,
    describe_empty,
    describe_thinking,
    equal_draws,
    has_thinking,
)
from cappy.generate.sample_files import SampledFile, candidate_path, check_existing, read_instructions, sampled_file
from cappy.generate.server import AnswerFailed, RequestFailed, RequestRefused, Server, ServerError, ServerSettings
from cappy.tasks.candidates import SPLITS, Example

KEY_VARIABLE = 'OPENAI_API_KEY'
PLACEHOLDER = '{instruction}'  # in a prompt file

logger = logging.getLogger('sample_openai')


class Job(NamedTuple):
    """A data file, its examples by line, and the candidate file to make of it."""

    data: Path
    examples: dict[int, Example]
    path: Path


def main(
    base_url: str,  # address of the server, with the /v1 that most have
    model: str,  # the server's name for the model
    tasks: flags.Names,  # a,b,c
    data_dir='bigbench_data',  # folder of {task}_{split}.jsonl
    output_dir='bigbench_flan_gens',  # folder that gets {generator}/{task}_{split}.jsonl
    generator: str | None = None,  # name of the folder; default: the last part of the model's name
    splits: flags.Names = SPLITS,
    endpoint: Literal['chat', 'completions'] = 'chat',  # completions: for base models
    system: str | None = None,  # text of the system message; chat only
    prompt: str | None = None,  # file with what is asked, {instruction} in it; default: the instruction as it is
    stop: str | None = None,  # text that ends a response; \n is a new line
    max_tokens: flags.Count = 256,  # tokens per response, the reasoning included
    greedy=True,  # one sample at temperature 0
    temperatures: flags.Names | None = ('1.0',),  # of the other decodings, 0.7,1.0; None: no others
    top_p: Annotated[float, flags.Range(above=0, most=1)] = 1.0,  # of the decodings of --temperatures
    n_samples: flags.Count = 8,  # samples per instruction and temperature
    strip_thinking=False,  # take <think>..</think> out of the responses
    max_empty_share: flags.Share = EMPTY_SHARE,  # of samples without text, above which the run stops; 1: never
    logprobs=True,  # ask for log-probabilities, which the self-score baseline needs
    concurrency: flags.Count = 8,  # requests at a time
    requests_per_minute: flags.Positive | None = None,  # default: no limit
    max_retries: flags.CountFrom0 = 6,  # times that a failed request is sent again
    timeout: Annotated[float, flags.Range(above=0, most=86400)] = 600.0,  # seconds per request
    api_key_variable: str | None = None,  # environment variable of the key; default: OPENAI_API_KEY, where it is set
    overwrite=False,  # begin again where a file, or a part of it, exists
):
    """Draw samples from an LLM behind a server."""
    settings = dict(locals())
    decodings = choose_decodings(greedy, temperatures or (), top_p, n_samples)
    template = read_template(prompt)
    server_settings = check_server(settings)
    jobs = [job for job in find_jobs(settings) if overwrite or not is_done(job, decodings)]
    check_result(*(OutputPaths(job.path) for job in jobs))
    if jobs:
        asyncio.run(draw_files(server_settings, jobs, template, decodings, settings))


def choose_decodings(greedy, temperatures, top_p, n_samples) -> dict[Decoding, int]:
    """{decoding: number of samples}, the greedy one first; temperatures: texts."""
    decodings = {Decoding('greedy', temperature=0.0): 1} if greedy else {}
    for text in temperatures:
        temperature = flags.convert(text, float, '--temperatures')
        if not temperature > 0:
            raise InputError(f'--temperatures: expected numbers above 0, found {text}; --greedy is temperature 0')
        name = f'temp{temperature}' + (f'_topp{top_p}' if top_p < 1 else '')
        decoding = Decoding(name, temperature=temperature, top_p=top_p)
        if decoding in decodings:
            raise InputError(f'--temperatures: {text} is given twice; keep one')
        decodings[decoding] = n_samples
    if not decodings:
        raise InputError('--nogreedy and --temperatures None leave nothing to draw; give one or both')
    return decodings


def read_template(path):
    """The text of a prompt file; the placeholder alone where there is none."""
    if path is None:
        return PLACEHOLDER
    try:
        template = Path(path).read_text(encoding='utf-8').removesuffix('\n')
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'--prompt {path}: cannot be read ({error})') from error
    if PLACEHOLDER not in template:
        raise InputError(f'--prompt {path}: has no {PLACEHOLDER}; write it where the instruction goes')
    return template


def check_server(settings):
    """The ServerSettings of the flags and of the key in the environment."""
    if settings['system'] and settings['endpoint'] == 'completions':
        raise InputError('--system: the completions endpoint has no system message; write it into a --prompt file')
    variable = settings['api_key_variable']
    key = os.environ.get(variable or KEY_VARIABLE, '').strip()
    if variable and not key:
        raise InputError(f'--api_key_variable {variable}: the environment has no such variable, or it is empty')
    names = ('base_url', 'model', 'endpoint', 'system', 'max_tokens', 'strip_thinking', 'logprobs')
    return ServerSettings(
        key=key or None,
        key_variable=variable or KEY_VARIABLE,
        stop=settings['stop'] and settings['stop'].replace('\\n', '\n'),
        **{name: settings[name] for name in (*names, 'requests_per_minute', 'max_retries', 'timeout')},
    )


def find_jobs(settings):
    """The files to draw, after all data was read and checked."""
    generator = settings['generator'] or Path(settings['model']).name
    unknown = [split for split in settings['splits'] if split not in SPLITS]
    if unknown:
        raise InputError(f'--splits: expected {" or ".join(SPLITS)}, found {unknown[0]!r}')
    jobs = []
    for task in settings['tasks']:
        for split in settings['splits']:
            path = candidate_path(settings['output_dir'], generator, task, split)
            data = find(Path(settings['data_dir']) / f'{task}_{split}.jsonl')
            jobs.append(Job(data, read_instructions(data), path))
            if data.resolve() == path.resolve():
                raise InputError(f'{path}: would be written over itself; choose another --output_dir')
    return jobs


def is_done(job, decodings):
    """Whether the candidate file exists, with all that is asked for."""
    path = find(job.path)
    if not path.exists():
        return False
    check_existing(path, list(job.examples.values()), {decoding.name: n for decoding, n in decodings.items()})
    print(f'{path} exists and holds all {len(job.examples)} examples. Skipped; --overwrite begins again.')
    return True


def deciding_settings(settings, template, decodings):
    """What decides the samples; a file that was begun with other settings is not continued."""
    names = ('model', 'endpoint', 'system', 'stop', 'max_tokens', 'strip_thinking', 'logprobs')
    return {
        **{name: settings[name] for name in names},
        'prompt': template,
        'decodings': [[decoding.name, decoding.temperature, decoding.top_p, n] for decoding, n in decodings.items()],
    }


async def draw_files(server_settings, jobs, template, decodings, settings):
    """Draw one file after the other; what the first request finds out about the server holds for all."""
    server = Server(server_settings)
    deciding = deciding_settings(settings, template, decodings)
    try:
        await server.check()
        for job in jobs:
            n_requests, server.counts = server.n_requests, Counter()
            with sampled_file(job.path, list(job.examples.values()), deciding, settings['overwrite']) as file:
                drawing = Drawing(server, job, file, template, decodings, settings['max_empty_share'])
                await drawing.run(settings['concurrency'])
            print(f'{job.path}: {len(job.examples)} examples, {server.n_requests - n_requests} requests')
            for remark in remarks(file.whole, server.counts, settings['max_tokens']):
                logger.warning('%s', remark)
    finally:
        await server.close()


def remarks(examples, counts, max_tokens):
    """What a user should know of the samples of a file. counts: those of the server, of this run."""
    responses = [sample.response for example in examples for sample in example.samples]
    if n_cut := counts['cut at the limit']:
        yield f'{n_cut} samples were cut off at --max_tokens {max_tokens}'
    if n_empty := responses.count(''):
        yield describe_empty(n_empty, len(responses), {cause: counts[cause] for cause in CAUSES})
    if n_thinking := sum(map(has_thinking, responses)):
        yield describe_thinking(n_thinking)
    if counts['halves']:
        yield f'the answers held {describe_halves(counts["halves"])}'
    yield from equal_draws(examples)


class Drawing:
    """The samples of one file, drawn by several requests at a time. set_aside: one error per example without answer."""

    def __init__(self, server: Server, job: Job, file: SampledFile, template, decodings, max_empty_share):
        self.server, self.file, self.decodings, self.max_empty_share = server, file, decodings, max_empty_share
        self.set_aside = []
        self._failed = []  # of these, those that failed since the last answer
        self._data, self._template = job.data, template
        self._line_of = {example.example_idx: line for line, example in job.examples.items()}
        responses = [sample.response for example in file.whole for sample in example.samples]
        self._n_samples, self._n_empty = len(responses), responses.count('')

    async def run(self, concurrency):
        """Draw the samples of all examples that have none. Raises InputError saying how many are done."""
        file, to_do = self.file, self.file.to_do
        if file.n_done:
            logger.warning('%s holds %d examples; continuing with the rest', file.paths.partial, file.n_done)
        with tqdm(total=len(file.examples), initial=file.n_done, unit='example', desc='sampling') as bar:
            waiting = iter(to_do)
            workers = [asyncio.create_task(self._work(waiting, bar)) for _ in range(min(concurrency, len(to_do)))]
            try:
                await asyncio.gather(*workers)
            except ServerError as error:
                raise InputError(f'{error}; {self._progress}') from error
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        self._check_text()
        if self.set_aside:
            more = f' (and {len(self.set_aside) - 1} more examples)' if len(self.set_aside) > 1 else ''
            raise InputError(f'{self.set_aside[0]}{more}; change it or take it out of the data; {self._progress}')

    async def _work(self, waiting, bar):
        """Take examples off those waiting until none is left; the requests of an example follow each other."""
        for example in waiting:
            try:
                samples = []
                for decoding, n_samples in self.decodings.items():
                    samples += await self.server.samples(self._prompt(example), decoding, n_samples)
            except AnswerFailed as error:
                self._failed.append(InputError(f'{self._name(example)}: {error}'))
                if len(self._failed) > 1:  # the server's fault, and not that of an example
                    raise InputError(f'{self._failed[0]}; {self._progress}') from error
                self.set_aside += self._failed
                continue
            except RequestFailed as error:
                raise InputError(f'{self._name(example)}: {error}; {self._progress}') from error
            except RequestRefused as error:
                refusal = InputError(f'{self._name(example)}: {error}')
                if not self.file.n_done:  # it may well refuse every example
                    raise InputError(f'{refusal}; {self._progress}') from error
                self.set_aside.append(refusal)
                continue
            self._failed.clear()
            self.file.add(example, samples)
            bar.update()
            self._n_samples += len(samples)
            self._n_empty += sum(not sample.response for sample in samples)
            if self._n_samples >= MIN_JUDGED:
                self._check_text()

    def _check_text(self):
        """Raise InputError where too many samples are empty; where all are, none is kept."""
        if self._n_empty <= self.max_empty_share * self._n_samples:
            return
        counts = self.server.counts
        empty = describe_empty(self._n_empty, self._n_samples, {cause: counts[cause] for cause in CAUSES})
        if self._n_empty == self._n_samples:
            self.file.discard()
            kept = 'nothing is kept'
        else:
            kept = f'{self._progress}, with --max_empty_share 1, or with other flags and --overwrite'
        raise InputError(f'{self._data}: {empty}; more than --max_empty_share {self.max_empty_share:g}; {kept}')

    def _prompt(self, example):
        """The text to send."""
        return self._template.replace(PLACEHOLDER, example.instruction)

    def _name(self, example):
        """How messages name an example."""
        return f'{self._data}:{self._line_of[example.example_idx]}: example_idx {example.example_idx!r}'

    @property
    def _progress(self):
        """The end of a message: how many examples are done."""
        n_done, n = self.file.n_done, len(self.file.examples)
        return f'{n_done} of {n} examples are done' + (', and the same command continues' if n_done else '')


if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
    flags.run(main)
