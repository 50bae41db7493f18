"""Make candidate files from existing samples: logs of lm-evaluation-harness, or any jsonl.

    python scripts/import_samples.py samples_gsm8k_x.jsonl --task gsm8k --generator my-llm --validation_share 0.2
    python scripts/import_samples.py mine.jsonl --task mine --generator my-llm --split train --response_key answer
    python scripts/import_samples.py mine.jsonl --task mine --validation_share 0.2

The third has no generator: it takes inputs and references alone, and writes the data that scripts/sample_openai.py
reads. Lines with the same instruction become one example with all their references and samples. A key may reach into an
object: `doc.question`. A log of lm-evaluation-harness (`lm_eval --log_samples`) is recognized by its fields: there the
instruction is the prompt, the references are `target`, the samples are all `resps`, and the decoding is named after the
generation's arguments.
"""

import ast
import functools
import json
import logging
import random
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli import flags
from cappy.errors import InputError
from cappy.files import jsonl
from cappy.files.inputs import find
from cappy.files.names import check_name
from cappy.files.outputs import check_files
from cappy.files.wording import listed, shown
from cappy.generate.sample_checks import (
    EMPTY_SHARE,
    describe_empty,
    describe_thinking,
    equal_draws,
    has_thinking,
    without_thinking,
)
from cappy.tasks.candidates import Example, Sample, parse_label, write_splits

logger = logging.getLogger('import_samples')

LOG_FIELDS = {'doc_id', 'target', 'arguments', 'resps'}  # of each line of a log
LIKELIHOODS = ('log_likelihood_sum', 'log_likelihood_mean')


def main(
    input_files: flags.Names,  # jsonl files, a,b,c; of logs, one file per run
    task: str,  # name of the task: files are {task}_{split}.jsonl
    generator: str | None = None,  # name of the LLM that drew the samples; default: samples are not read
    output_dir: str | None = None,  # default: bigbench_flan_gens; bigbench_data without a generator
    split: Literal['train', 'validation'] | None = None,  # write all examples as this split
    validation_share: flags.InnerShare | None = None,  # write both splits; share of the examples in validation
    seed: flags.Seed = 11111,  # of the random division into splits
    instruction_key: str | None = None,  # field of the instruction; default: instruction; in a log, the prompt
    response_key: str | None = None,  # field of a text or a list of texts; default: response; in a log, resps
    references_key: str | None = None,  # field of a text or a list of texts; default: references; in a log, target
    label_key: str | None = None,  # field of a response's label, 0 to 1, or a list of them; default: none is read
    decoding_key: str | None = None,  # field of the decoding's name; default: --decoding names it
    decoding: str | None = None,  # name of the decoding of all samples; default: sampling; in a log, by its arguments
    filter: str | None = None,  # in a log with several filters: the name of the one whose lines are read
    strip_thinking=False,  # take <think>..</think> out of the responses
    max_empty_share: flags.Share = EMPTY_SHARE,  # of samples without text, above which nothing is written; 1: never
    overwrite=False,  # replace files that exist
):
    """Make candidate files from existing samples."""
    settings = dict(locals())
    check_flags(settings)
    examples = {}
    for path in input_files:
        logged = {}  # (samples, filter) by doc_id
        for _ in jsonl.read(path, functools.partial(add_line, examples, logged, settings)):
            pass
    check_examples(examples, settings)
    whole = finished(examples, settings)
    notices = check_samples(whole, settings)
    divided = divide(whole, split, validation_share, seed)
    files = {output_path(settings, name): chosen for name, chosen in divided.items()}
    write_splits(files)
    for path, chosen in files.items():
        print(f'{path}: {len(chosen)} examples, {sum(len(example.samples) for example in chosen)} samples')
    for notice in notices:
        logger.warning('%s', notice)


def check_flags(settings):
    """Raise InputError for flags that exclude each other, and for files that would be replaced."""
    if (settings['split'] is None) == (settings['validation_share'] is None):
        raise InputError('give either --split, for one split, or --validation_share, for both')
    for name in ('task', 'generator'):
        if settings[name] is not None:
            check_name(settings[name], f'--{name}')
    if settings['decoding'] and settings['decoding_key']:
        raise InputError('--decoding and --decoding_key both name the decoding; give one of them')
    for name in (settings['split'],) if settings['split'] else ('train', 'validation'):
        check_files(output_path(settings, name))
        path = find(output_path(settings, name))
        if path.exists() and not settings['overwrite']:
            raise InputError(f'{path}: exists; --overwrite replaces it, another --task or --generator keeps both')


def output_path(settings, split):
    """Where the examples of a split are written."""
    generator, folder = settings['generator'], settings['output_dir']
    folder = Path(folder or ('bigbench_flan_gens' if generator else 'bigbench_data'))
    return (folder / generator if generator else folder) / f'{settings["task"]}_{split}.jsonl'


def add_line(examples, logged, settings, fields):
    """Add a line to the example of its instruction; examples: {instruction: {'references', 'samples'}}.

    logged: {doc_id: (samples, filter)} of the lines of a log before this one.
    """
    is_log = fields.keys() >= LOG_FIELDS
    if is_log and settings['filter'] not in (None, fields.get('filter')):
        return
    instruction = find_instruction(fields, settings['instruction_key'], is_log)
    example = examples.setdefault(instruction, {'references': {}, 'samples': []})
    example['references'] |= dict.fromkeys(find_references(fields, settings['references_key'], is_log))
    if settings['generator'] is None:
        return
    key = settings['response_key'] or ('resps' if is_log else 'response')
    samples = find_samples(fields, key, find_decoding(fields, settings, is_log), settings['label_key'])
    if settings['strip_thinking']:
        samples = [stripped(sample) if has_thinking(sample.response) else sample for sample in samples]
    if not (is_log and is_logged_again(logged, fields, key, samples)):
        example['samples'] += samples


def is_logged_again(logged, fields, key, samples):
    """Whether an earlier line has these samples: a log has one line per document and filter, with the same resps."""
    doc_id, filter = shown(fields['doc_id']), fields.get('filter')
    before, filter_before = logged.setdefault(doc_id, (samples, filter))
    if before == samples:
        return before is not samples
    if filter == filter_before:
        why = f'with the same filter ({shown(filter)})' if 'filter' in fields else 'without a filter'
        remedy = 'if these are two runs, put each into a file of its own, and give both with a comma between them'
    else:
        why = f'with another filter ({shown(filter_before)})'
        remedy = 'read the lines of one --filter alone'
    raise InputError(f'{key}: not the samples of an earlier line of the same doc_id, {why}; {remedy}')


def find_instruction(fields, key, is_log):
    """The text of a line's instruction, which is not empty."""
    if is_log and key is None:
        key, text = 'arguments', logged_prompt(fields['arguments'])
    else:
        key = key or 'instruction'
        text = look_up(fields, key, 'instruction_key')
    if not isinstance(text, str):
        raise InputError(f'{key}: expected text, found {shown(text)}')
    if not text.strip():
        raise InputError(f'{key}: is empty, so there is nothing to answer; remove the line')
    return text


def find_references(fields, key, is_log):
    """The references of a line, a list of texts."""
    if is_log and key is None:
        return logged_target(fields['target'])
    key = key or 'references'
    value = look_up(fields, key, 'references_key')
    references = [value] if isinstance(value, str) else value
    if not isinstance(references, list) or not all(isinstance(reference, str) for reference in references):
        raise InputError(f'{key}: expected text or a list of texts, found {shown(value)}')
    return references


def find_samples(fields, key, decoding, label_key):
    """The samples of a line with their labels; a single one with its log-likelihoods, where the line has them."""
    responses = look_up(fields, key, 'response_key')
    while isinstance(responses, list) and len(responses) == 1 and isinstance(responses[0], list):
        responses = responses[0]  # a log has one list per request, and a generation is one request
    if isinstance(responses, str):
        likelihoods = {name: float(fields[name]) for name in LIKELIHOODS if jsonl.is_number(fields.get(name))}
        return [Sample(responses, decoding, **likelihoods, label=find_labels(fields, label_key, 1)[0])]
    if not isinstance(responses, list) or not all(isinstance(response, str) for response in responses):
        raise InputError(f'{key}: expected text or a list of texts, found {shown(responses)}')
    labels = find_labels(fields, label_key, len(responses))
    return [Sample(response, decoding, label=label) for response, label in zip(responses, labels, strict=True)]


def find_labels(fields, key, n):
    """The labels of n responses, each a number or None."""
    if key is None:
        return [None] * n
    value = look_up(fields, key, 'label_key')
    labels = value if isinstance(value, list) else [value]
    if len(labels) != n:
        raise InputError(f'{key}: {len(labels)} labels of {n} responses; give one for each')
    return [parse_label(label, key) for label in labels]


def find_decoding(fields, settings, is_log):
    """The name of the decoding of a line's samples."""
    logged = logged_decoding(fields['arguments']) if is_log else 'sampling'
    key = settings['decoding_key']
    if key:
        name = look_up(fields, key, 'decoding_key')
        if isinstance(name, bool) or not isinstance(name, str | int | float) or name == '':
            raise InputError(f'{key}: expected the name of a decoding, found {shown(name)}')
        return str(name)
    return settings['decoding'] or logged


def look_up(fields, key, flag):
    """The value of a field or, for a key with dots, of a field inside an object."""
    value = fields
    for part in [key] if key in fields else key.split('.'):
        if not isinstance(value, dict) or part not in value:
            has = f'; the line has {listed(value)}' if isinstance(value, dict) else ''
            raise InputError(f'{key} is missing{has}; --{flag} chooses another field')
        value = value[part]
    return value


def logged_arguments(arguments):
    """(prompt, settings) of the first request; newer logs have objects with numbered keys instead of lists."""
    first = arguments.get('gen_args_0') if isinstance(arguments, dict) else arguments
    first = first[0] if isinstance(arguments, list) and arguments else first
    if isinstance(first, dict):
        return first.get('arg_0'), first.get('arg_1')
    return (*first, None)[:2] if isinstance(first, list) and first else (None, None)


def logged_prompt(arguments):
    """The prompt; of a chat, which is logged as JSON, the last message of the user."""
    prompt, _ = logged_arguments(arguments)
    text = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt
    if not isinstance(text, str):
        raise InputError(f'arguments: expected a prompt, found {shown(arguments)}; --instruction_key chooses a field')
    try:
        messages = [message['content'] for message in json.loads(text) if message['role'] == 'user']
    except (ValueError, TypeError, KeyError):
        return text  # not a chat
    return messages[-1] if messages else text


def logged_target(target):
    """The references; a log has several of them as the text of a Python list."""
    if isinstance(target, list) and all(isinstance(part, str) for part in target):
        return target
    if not isinstance(target, str):
        raise InputError(f'target: expected text, found {shown(target)}; --references_key chooses another field')
    if target.startswith('['):
        try:
            parts = ast.literal_eval(target)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return [target]
        if parts and all(isinstance(part, str) for part in parts):
            return parts
    return [target]


def logged_decoding(arguments):
    """A name made from the generation's arguments: greedy, beam4, temp0.7, temp0.7_topp0.9."""
    _, settings = logged_arguments(arguments)
    if not isinstance(settings, dict):
        raise InputError(
            f'arguments: expected those of a generation, found {shown(arguments)}; only texts can be ranked'
        )
    for name in ('temperature', 'top_p', 'num_beams'):
        if settings.get(name) is not None and not jsonl.is_number(settings[name]):
            raise InputError(f'arguments: {name}: expected a number, found {shown(settings[name])}')
    temperature, top_p, do_sample = (settings.get(name) for name in ('temperature', 'top_p', 'do_sample'))
    if (settings.get('num_beams') or 1) > 1:
        return f'beam{settings["num_beams"]}'
    if do_sample is False or temperature == 0 or (not do_sample and temperature is None):
        return 'greedy'
    return f'temp{float(temperature or 1)}' + (f'_topp{float(top_p)}' if top_p is not None and top_p < 1 else '')


def check_examples(examples, settings):
    """Raise InputError unless there are examples, each with a reference and, of a generator, with a sample."""
    files = ', '.join(settings['input_files'])
    if not examples:
        of_filter = f' of the filter {settings["filter"]!r}' if settings['filter'] else ''
        raise InputError(f'{files}: holds no examples{of_filter}; expected one JSON object per line')
    for instruction, example in examples.items():
        for kind in ('references', 'samples') if settings['generator'] else ('references',):
            if not example[kind]:
                raise InputError(f'{files}: no line of the instruction {shown(instruction)} has {kind}; remove them')


def stripped(sample):
    """The sample without its thinking, and without the likelihoods, which are those of both."""
    return Sample(without_thinking(sample.response), sample.decoding, label=sample.label)


def check_samples(examples, settings):
    """What a user should know of the samples, one line each. Raises InputError where too many have no text."""
    responses = [sample.response for example in examples for sample in example.samples]
    n_empty = sum(not response.strip() for response in responses)
    empty = describe_empty(n_empty, len(responses), {})
    if n_empty > settings['max_empty_share'] * len(responses):
        share = settings['max_empty_share']
        raise InputError(f'{", ".join(settings["input_files"])}: {empty}; more than --max_empty_share {share:g}')
    n_thinking = sum(map(has_thinking, responses))
    notices = ([empty] if n_empty else []) + ([describe_thinking(n_thinking)] if n_thinking else [])
    return [*notices, *equal_draws(examples)]


def finished(examples, settings):
    """[Example], numbered in order."""
    return [
        Example(settings['task'], number, instruction, tuple(example['references']), tuple(example['samples']))
        for number, (instruction, example) in enumerate(examples.items())
    ]


def divide(examples, split, validation_share, seed):
    """{split: examples in order}; random by the seed, the share rounded to whole examples."""
    if split:
        return {split: examples}
    n_validation = round(len(examples) * validation_share)
    if not 0 < n_validation < len(examples):
        raise InputError(f'--validation_share {validation_share:g} of {len(examples)} examples leaves a split empty')
    chosen = set(random.Random(seed).sample(range(len(examples)), n_validation))
    return {
        'train': [example for number, example in enumerate(examples) if number not in chosen],
        'validation': [example for number, example in enumerate(examples) if number in chosen],
    }


if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
    flags.run(main)
