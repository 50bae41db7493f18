"""Draw samples from any LLM behind a server that speaks OpenAI's API: vLLM, llama.cpp, transformers serve, hosted ones.

    python scripts/sample_openai.py --base_url http://localhost:8000/v1 --model my-llm --tasks my_task

Reads {data_dir}/{task}_{split}.jsonl and writes {output_dir}/{generator}/{task}_{split}.jsonl for cappy_bigbench.py.
Each of --temperatures is a decoding of n_samples, named temp0.7 for one (temp0.7_topp0.9 with a --top_p below 1);
`greedy` is one more sample, the likeliest. Examples that are done go to {file}.partial; a run that was stopped, or
whose server failed, is continued by the same command. The key comes from the environment and goes to the server alone.
"""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli import flags
from cappy.errors import InputError
from cappy.generate.sample_files import check_existing, read_instructions, sampled_file
from cappy.generate.server import GaveUp, RequestRefused, Server, ServerDecoding, ServerError, ServerSettings
from cappy.tasks.candidates import SPLITS, Example

KEY_VARIABLE = 'OPENAI_API_KEY'
PLACE = '{instruction}'  # in a prompt template

logger = logging.getLogger('sample_openai')


class Job(NamedTuple):
    """A data file, the candidate file to make of it, and its examples by line."""

    data: Path
    path: Path
    examples: dict[int, Example]


def main(
    base_url: str,  # of the server, with the /v1 that most have
    model: str,  # as the server calls it
    tasks: str,  # one, or several with commas between
    data_dir='bigbench_data',  # {task}_{split}.jsonl lie here
    output_dir='bigbench_flan_gens',  # {generator}/{task}_{split}.jsonl go here
    generator: str | None = None,  # default: the last part of the model's name
    splits='train,validation',
    endpoint: Literal['chat', 'completions'] = 'chat',
    system: str | None = None,  # text of the system's message, chat only
    prompt: str | None = None,  # file with what is asked, {instruction} in it; default: the instruction as it is
    stop: str | None = None,  # text that ends a response; \n is a new line
    max_tokens=256,  # of a response
    greedy=True,  # one sample at temperature 0
    temperatures='1.0',  # of the other decodings, commas between; '' for none
    top_p=1.0,  # of those decodings
    n_samples=8,  # of each of those decodings
    logprobs=True,  # ask for log-probabilities, which the self-score baseline needs
    concurrency=8,  # requests at a time
    requests_per_minute: float | None = None,  # default: as many as the server answers
    max_retries=6,  # of a request that failed in a way that may pass
    timeout=600.0,  # seconds for a request
    api_key_variable: str | None = None,  # variable of the environment with the key; default: OPENAI_API_KEY, if set
    overwrite=False,  # begin anew where a file, or a part of it, exists
):
    """Draw samples from an LLM behind a server."""
    settings = dict(locals())
    decodings = choose_decodings(greedy, temperatures, top_p, n_samples)
    template = read_template(prompt)
    server = check_server(settings)
    jobs = [job for job in find_jobs(settings) if overwrite or not is_there(job, decodings)]
    if jobs:
        asyncio.run(draw_files(server, jobs, template, decodings, settings))


def choose_decodings(greedy, temperatures, top_p, n_samples):
    """The decodings that the flags say, the greedy one first."""
    if not 0 < top_p <= 1:
        raise InputError(f'--top_p: expected more than 0 and at most 1, found {top_p:g}')
    if n_samples < 1:
        raise InputError(f'--n_samples: expected 1 or more, found {n_samples}')
    decodings = [ServerDecoding('greedy', 0.0, 1.0, 1)] if greedy else []
    for text in filter(None, (part.strip() for part in temperatures.split(','))):
        temperature = flags.convert(text, float, '--temperatures')
        if not 0 < temperature < float('inf'):
            raise InputError(f'--temperatures: expected numbers above 0, found {text}; --greedy is temperature 0')
        name = f'temp{temperature}' + (f'_topp{top_p}' if top_p < 1 else '')
        decodings.append(ServerDecoding(name, temperature, top_p, n_samples))
    names = [decoding.name for decoding in decodings]
    if not names or len(set(names)) < len(names):
        raise InputError(f'--temperatures {temperatures!r}: {"one stands there twice" if names else "nothing to draw"}')
    return decodings


def read_template(path):
    """The text of a prompt file; the instruction alone where there is none."""
    if path is None:
        return PLACE
    try:
        template = Path(path).read_text(encoding='utf-8').removesuffix('\n')
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'--prompt {path}: cannot be read ({error})') from error
    if PLACE not in template:
        raise InputError(f'--prompt {path}: has no {PLACE}; write it where the instruction goes')
    return template


def check_server(settings):
    """What to tell the server, the key from the environment."""
    if settings['system'] and settings['endpoint'] == 'completions':
        raise InputError('--system: the completions endpoint has no system message; write it into a --prompt file')
    for name, least in (('max_tokens', 1), ('concurrency', 1), ('max_retries', 0)):
        if settings[name] < least:
            raise InputError(f'--{name}: expected {least} or more, found {settings[name]}')
    for name in ('timeout', 'requests_per_minute'):
        if settings[name] is not None and not settings[name] > 0:
            raise InputError(f'--{name}: expected more than 0, found {settings[name]:g}')
    variable = settings['api_key_variable']
    key = os.environ.get(variable or KEY_VARIABLE, '').strip()
    if variable and not key:
        raise InputError(f'--api_key_variable {variable}: the environment has no such variable, or it is empty')
    names = ('base_url', 'model', 'endpoint', 'system', 'max_tokens', 'logprobs', 'requests_per_minute')
    return ServerSettings(
        key=key or None,
        key_variable=variable or KEY_VARIABLE,
        stop=settings['stop'] and settings['stop'].replace('\\n', '\n'),
        **{name: settings[name] for name in (*names, 'max_retries', 'timeout')},
    )


def find_jobs(settings):
    """The files to draw, after all data was read through."""
    generator = settings['generator'] or Path(settings['model']).name
    if not generator or '/' in generator or generator.startswith('.'):
        raise InputError(f'--generator {generator!r}: cannot be the name of a folder; give another')
    tasks, splits = listed_flag('tasks', settings), listed_flag('splits', settings)
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise InputError(f'--splits: expected {" or ".join(SPLITS)}, found {unknown[0]!r}')
    jobs = []
    for name in [f'{task}_{split}.jsonl' for task in tasks for split in splits]:
        data, path = Path(settings['data_dir']) / name, Path(settings['output_dir']) / generator / name
        jobs.append(Job(data, path, read_instructions(data)))
        if data.resolve() == path.resolve():
            raise InputError(f'{path}: would be written over itself; choose another --output_dir')
    return jobs


def is_there(job, decodings):
    """Whether the candidate file exists, with all that is asked for."""
    if not job.path.exists():
        return False
    check_existing(job.path, list(job.examples.values()), {d.name: d.n_samples for d in decodings})
    print(f'{job.path} exists and holds all {len(job.examples)} examples. Skipped; --overwrite begins anew.')
    return True


def listed_flag(name, settings):
    """The parts of a flag with commas."""
    parts = [part.strip() for part in settings[name].split(',')]
    if not all(parts) or len(set(parts)) < len(parts):
        raise InputError(f'--{name} {settings[name]!r}: expected names with commas between, each once')
    return parts


def describe(settings, template, decodings):
    """What decides the samples; a file that was begun with other settings is not continued."""
    names = ('model', 'endpoint', 'system', 'stop', 'max_tokens', 'logprobs')
    return {
        **{name: settings[name] for name in names},
        'prompt': template,
        'decodings': [list(decoding) for decoding in decodings],
    }


async def draw_files(server_settings, jobs, template, decodings, settings):
    """Draw one file after the other; what the first request finds out about the server holds for all."""
    server = Server(server_settings)
    deciding = describe(settings, template, decodings)
    try:
        for job in jobs:
            with sampled_file(job.path, list(job.examples.values()), deciding, settings['overwrite']) as file:
                n_requests, n_cut = server.n_requests, server.n_cut
                await draw(server, Asking(job, file, template, decodings), settings['concurrency'])
            print(f'{job.path}: {len(job.examples)} examples, {server.n_requests - n_requests} requests')
            if server.n_cut > n_cut:
                limit = settings['max_tokens']
                logger.warning('%d samples were cut off at --max_tokens %d', server.n_cut - n_cut, limit)
    finally:
        await server.close()


class Asking:
    """What is asked of the server for one file, and what messages say of it."""

    def __init__(self, job, file, template, decodings):
        self.data, self.file, self.decodings = job.data, file, decodings
        self._template = template
        self._line_of = {example.example_idx: line for line, example in job.examples.items()}
        self.refused = []  # errors, an example each

    def prompt(self, example):
        """The text to send."""
        return self._template.replace(PLACE, example.instruction)

    def name(self, example):
        """How messages call an example."""
        return f'{self.data}:{self._line_of[example.example_idx]}: example_idx {example.example_idx!r}'

    @property
    def kept(self):
        """What a message says of the examples that are done."""
        n_done, n = self.file.n_done, len(self.file.examples)
        return f'{n_done} of {n} examples are done' + (', and the same command goes on' if n_done else '')


async def draw(server, asking, concurrency):
    """Draw the samples of all examples that have none."""
    file, to_do = asking.file, asking.file.to_do
    if file.n_done:
        logger.warning('%s holds %d examples; going on with the rest', file.paths.partial, file.n_done)
    with tqdm(total=len(file.examples), initial=file.n_done, unit='example', desc='sampling') as bar:
        waiting = iter(to_do)
        workers = [asyncio.create_task(work(server, asking, waiting, bar)) for _ in range(min(concurrency, len(to_do)))]
        try:
            await asyncio.gather(*workers)
        except ServerError as error:
            raise InputError(f'{error}; {asking.kept}') from error
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    if asking.refused:
        others = f' (and {len(asking.refused) - 1} more examples)' if len(asking.refused) > 1 else ''
        raise InputError(f'{asking.refused[0]}{others}; change it or take it out of the data; {asking.kept}')


async def work(server, asking, waiting, bar):
    """Take examples off those waiting until none is left; an example's requests follow each other."""
    for example in waiting:
        try:
            samples = []
            for decoding in asking.decodings:
                samples += await server.samples(asking.prompt(example), decoding)
        except GaveUp as error:
            raise InputError(f'{asking.name(example)}: {error}; {asking.kept}') from error
        except RequestRefused as error:
            refusal = InputError(f'{asking.name(example)}: {error}')
            if not asking.file.n_done:  # nothing says that it would take any
                raise InputError(f'{refusal}; {asking.kept}') from error
            asking.refused.append(refusal)
            continue
        asking.file.add(example, samples)
        bar.update()


if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
    flags.run(main)
