"""Test data for `cappy_promptsource.py`, built from PromptSource's templates and the eleven data sets.

    git clone --depth 1 https://github.com/bigscience-workshop/promptsource
    python scripts/get_promptsource_data.py --local story_cloze=my_copy.csv
    python scripts/get_promptsource_data.py --list_tasks

Writes `promptsource_test.jsonl`: one line for each choice of each example under each template, {"dataset_name",
"template_name", "example_idx", "instruction", "response", "label"}, with label 1 for the right choice. StoryCloze is
licensed, so it is read from the user's own copy; the other data sets are fetched unless --local names files. If a task
fails, its cause is reported and the other tasks are written; the exit code is then 1. docs/promptsource-data.md has the
counts and says how the rendering follows PromptSource.
"""

import csv
import io
import json
import logging
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli import flags
from cappy.errors import InputError
from cappy.files import hub, jsonl
from cappy.files.atomic import write_atomically
from cappy.files.inputs import find, opened
from cappy.files.outputs import check_files
from cappy.files.wording import listed, not_found, shown
from cappy.tasks.templates import read_templates

PROMPTSOURCE = 'https://github.com/bigscience-workshop/promptsource'
STORY_CLOZE = 'https://cs.rochester.edu/nlp/rocstories'
CROWS_PAIRS = 'https://raw.githubusercontent.com/nyu-mll/crows-pairs/master/data/crows_pairs_anonymized.csv'
SUPER_GLUE_LICENCE = "research use (SuperGLUE; each set's own licence applies)"

logger = logging.getLogger(__name__)


def class_label(*names, **others):
    """The converter of a label to its number from 0, as `datasets` has it; the label may be a number or a name.

    names: in the order of their numbers. others: further names with their numbers. -1, an unknown label, stays.
    """
    numbers = {name.lower(): number for number, name in enumerate(names)} | others
    numbers |= {str(number): number for number in range(-1, len(names))}

    def convert(value):
        key = str(int(value) if isinstance(value, bool) else value).strip().lower()
        if key not in numbers:
            raise InputError(f'expected 0 to {len(names) - 1} or one of {", ".join(names)}; found {shown(value)}')
        return numbers[key]

    return convert


def one_of(*allowed):
    """The converter of a field to the one of the allowed values that it spells."""

    def convert(value):
        for each in allowed:
            if str(value).strip() == str(each):
                return each
        raise InputError(f'expected {" or ".join(map(repr, allowed))}, found {shown(value)}')

    return convert


def whole_number(value):
    """The converter of a field that is a number from 0."""
    if isinstance(value, bool) or not str(value).strip().isdecimal():
        raise InputError(f'expected a whole number, found {shown(value)}')
    return int(value)


@dataclass(frozen=True)
class Task:
    """A task of the evaluation.

    templates: folder below PromptSource's templates. source: name on the Hugging Face hub with its config, or the
    address of a csv file (config None), or None where only the user has the data. n_examples: published size of the
    split. converters: by field, for fields that are not text. renames: {field in other editions: field that the
    templates read}.
    """

    name: str
    templates: str
    source: str | None
    config: str | None
    split: str
    n_examples: int
    licence: str
    converters: dict[str, Callable] = field(default_factory=dict)
    renames: dict[str, str] = field(default_factory=dict)


def _anli(round_number, n_examples):
    label = class_label('entailment', 'neutral', 'contradiction', e=0, n=1, c=2)
    split, renames = f'test_r{round_number}', {'context': 'premise'}
    args = ('anli', 'facebook/anli', 'plain_text', split, n_examples, 'CC BY-NC 4.0', {'label': label}, renames)
    return Task(f'anli_r{round_number}', *args)


def _super_glue(name, config, split, n_examples, label, **converters):
    args = (f'super_glue/{config}', 'aps/super_glue', config, split, n_examples, SUPER_GLUE_LICENCE)
    return Task(name, *args, {'label': label} | converters)


_story_cloze_fields = {f'InputSentence{number}': f'input_sentence_{number}' for number in range(1, 5)} | {
    'RandomFifthSentenceQuiz1': 'sentence_quiz1',
    'RandomFifthSentenceQuiz2': 'sentence_quiz2',
    'AnswerRightEnding': 'answer_right_ending',
}
_biases = ('race-color', 'socioeconomic', 'gender', 'disability', 'nationality')
_biases += ('sexual-orientation', 'physical-appearance', 'religion', 'age')
_crows_pairs_labels = {'stereo_antistereo': class_label('stereo', 'antistereo'), 'bias_type': class_label(*_biases)}

# In the order of the paper's table. Where the labels of the test split are hidden, validation is used, as in T0.
TASKS = (
    *(_anli(1, 1000), _anli(2, 1000), _anli(3, 1200)),
    _super_glue('cb', 'cb', 'validation', 56, class_label('entailment', 'contradiction', 'neutral')),
    _super_glue('rte', 'rte', 'validation', 277, class_label('entailment', 'not_entailment')),
    Task(
        *('story_cloze', 'story_cloze/2016', None, None, 'validation', 1871, 'by agreement with its authors'),
        {'answer_right_ending': one_of(1, 2)},
        _story_cloze_fields,
    ),
    _super_glue('wsc', 'wsc.fixed', 'validation', 104, class_label('False', 'True'), span2_index=whole_number),
    _super_glue('wic', 'wic', 'validation', 638, class_label('False', 'True')),
    Task(
        *('winogrande', 'winogrande/winogrande_xl', 'allenai/winogrande', 'winogrande_xl', 'validation', 1267, 'CC BY'),
        # A hidden answer is '', which the templates would read as the second option.
        {'answer': one_of('1', '2')},
    ),
    _super_glue('winogender', 'axg', 'test', 356, class_label('entailment', 'not_entailment')),
    Task('crows_pairs', 'crows_pairs', CROWS_PAIRS, None, 'test', 1508, 'CC BY-SA 4.0', _crows_pairs_labels),
)


def main(
    output='promptsource_test.jsonl',
    templates_dir='promptsource',  # a clone of PromptSource, or its folder of templates
    tasks: flags.Names | None = None,  # default: all
    local: flags.Names | None = None,  # task=file, a csv, tsv, json, jsonl or parquet file to read instead
    splits: flags.Names | None = None,  # task=split: another split than that of --list_tasks
    templates: Literal['original', 'all'] = 'original',  # which of the templates that have choices
    list_tasks: bool = False,  # print tasks, sources, splits and licences, and build nothing
):
    """Build the test data of cappy_promptsource.py.

    Only the templates of a data set that have choices make questions. `--templates original` takes those of them that
    ask what the data set was made for, as in the evaluation of T0, and all of them where none is marked so.
    """
    logging.basicConfig(format='%(message)s')
    logger.setLevel(logging.INFO)
    if list_tasks:
        print(describe_tasks())
        return
    check_files(output)
    chosen = choose_tasks(tasks)
    files, other_splits = by_task(local, '--local', chosen), by_task(splits, '--splits', chosen)
    folder = find_templates_dir(templates_dir)
    with write_atomically(output) as file:
        n_lines, failed = write_tasks(file, chosen, folder, files, other_splits, templates == 'all')
        message = f'{len(failed)} of {len(chosen)} tasks failed ({", ".join(failed)}) for the causes above'
        if failed and Path(output).exists():
            raise InputError(f'{message}; {output} is unchanged')
        if len(failed) == len(chosen):
            raise InputError(f'{message}; {output} is not written')
    if failed:
        raise InputError(f'{message}; {output} has the {n_lines:,} lines of the others')
    print(f'{output}: {n_lines:,} lines of {len(chosen)} tasks')


def write_tasks(file, tasks, folder, files, other_splits, every):
    """Write the lines of the tasks, all of a task or none; returns their number and the names of the failed tasks.

    files, other_splits: by task, where given. every: whether to take every template with choices.
    """
    n_lines, failed = 0, []
    for task in tasks:
        start = file.tell()
        try:
            templates = read_questions(folder, task, every)
            examples = read_examples(task, files.get(task.name), other_splits.get(task.name, task.split))
            n_lines += write_task(file, task, templates, examples)
        except InputError as error:
            file.seek(start)
            file.truncate()
            failed.append(task.name)
            logger.error('%s: failed: %s', task.name, error)
    return n_lines, failed


def choose_tasks(names):
    """The tasks of these names, in the order of TASKS; all for None."""
    if names is None:
        return TASKS
    for name in names:
        _check_task(name, [task.name for task in TASKS], '--tasks')
    return tuple(task for task in TASKS if task.name in names)


def by_task(assignments, flag, tasks):
    """{task: value} of texts `task=value`; {} for None."""
    values = {}
    for text in assignments or ():
        name, equals, value = text.partition('=')
        if not equals or '/' in name:
            raise InputError(f'{flag}: expected task=.., found {text!r}; no value may have a comma in it')
        _check_task(name.strip(), [task.name for task in tasks], flag)
        if name.strip() in values:
            raise InputError(f'{flag} names {name.strip()} twice; keep one')
        values[name.strip()] = value
    return values


def _check_task(name, known, flag):
    if name not in known:
        near = get_close_matches(name, known, n=1)
        meant = f'did you mean {near[0]}?' if near else f'choose from {", ".join(known)}'
        raise InputError(f'{flag}: no task {name!r}; {meant}')


def find_templates_dir(templates_dir):
    """The folder of PromptSource's templates in a clone, in its package, or the folder itself."""
    root = Path(templates_dir)
    if not root.is_dir():
        raise InputError(f'{root}: no such folder; give --templates_dir a clone: git clone --depth 1 {PROMPTSOURCE}')
    inner = (root / 'promptsource' / 'templates', root / 'templates')
    return next((folder for folder in inner if folder.is_dir()), root)


def read_questions(folder, task, every):
    """The templates that make questions of a task, in the order of their file."""
    path = folder / task.templates / 'templates.yaml'
    with_choices = [template for template in read_templates(path) if template.answer_choices is not None]
    if not with_choices:
        raise InputError(f'{path}: no template has answer_choices, so there is nothing to choose from')
    original = [template for template in with_choices if template.original_task]
    return with_choices if every or not original else original


def read_examples(task, path, split) -> Iterator[tuple[str, dict]]:
    """Yield (place, fields) of each example, in order: of a file, or of the task's own source where path is None.

    place: the file and line, or the like, for messages. The fields have the names and types that the templates expect.
    """
    n_examples = 0
    for place, fields in read_file(Path(path)) if path is not None else fetch(task, split):
        n_examples += 1
        fields = {task.renames.get(name, name): value for name, value in fields.items()}
        for name, convert in task.converters.items():
            if fields.get(name) is not None:  # a template that reads a missing field says so
                try:
                    fields[name] = convert(fields[name])
                except InputError as error:
                    raise InputError(f'{place}: {name}: {error}') from error
        yield place, fields
    if not n_examples:
        raise InputError(f'{path or task.source}: holds no examples')
    if path is None and split == task.split and n_examples != task.n_examples:
        logger.warning('%s: %d examples, where %d were published', task.name, n_examples, task.n_examples)


def fetch(task, split):
    """Yield (place, fields) of each example of a task's source; `datasets` keeps those of the hub in its cache."""
    if task.source is None:
        raise InputError(f'licensed; ask for a copy at {STORY_CLOZE}, then give --local {task.name}=FILE')
    remedy = f'give a copy: --local {task.name}=FILE'
    if task.config is None:
        try:
            with urllib.request.urlopen(task.source, timeout=60) as response:
                text = response.read().decode('utf-8-sig')
        except Exception as error:  # network and encoding fail by errors of several libraries
            raise hub.failure(task.source, error, remedy) from error
        yield from parse_csv(io.StringIO(text, newline=''), task.source, ',')
        return
    for number, example in enumerate(hub.load_dataset(task.source, task.config, remedy=remedy, split=split)):
        yield f'{task.source} {task.config} {split}, example {number}', example


def read_file(path):
    """Yield (place, fields) of each example of a file, whose format the end of its name says."""
    readers = {
        '.csv': lambda path: read_csv(path, ','),
        '.tsv': lambda path: read_csv(path, '\t'),
        '.json': read_json,
        '.jsonl': lambda path: ((f'{path}:{line}', fields) for line, fields in jsonl.read(path)),
        '.parquet': read_parquet,
    }
    path = find(path)
    ending = Path(path.name.removesuffix('.gz')).suffix
    if ending not in readers or path.name.endswith('.parquet.gz'):
        raise InputError(f'{path}: cannot tell its format; name it {", ".join(readers)}')
    if not path.exists():
        raise InputError(not_found(path))
    return readers[ending](path)


def read_csv(path, delimiter):
    """Yield (file:line, fields) of each record of a csv file."""
    try:
        with opened(path) as file, io.TextIOWrapper(file, encoding='utf-8-sig', newline='') as lines:
            yield from parse_csv(lines, path, delimiter)
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8') from error


def parse_csv(lines, name, delimiter):
    """Yield (name:line, fields) of each record under a header; the line is the first of the record."""
    records, line = csv.reader(lines, delimiter=delimiter, strict=True), 1
    try:
        header = next(records, None)
        if not header:
            raise InputError(f'{name}:1: expected a header with the names of the fields')
        line = records.line_num + 1
        for record in records:
            if record and len(record) != len(header):
                raise InputError(f'{name}:{line}: expected {len(header)} columns, found {len(record)}')
            if record:
                yield f'{name}:{line}', dict(zip(header, record, strict=True))
            line = records.line_num + 1
    except csv.Error as error:
        raise InputError(f'{name}:{line}: {error}') from error


def read_json(path):
    """Yield (place, fields) of each object of a file that is one list of objects."""
    halves = jsonl.Halves()
    with opened(path) as file:
        raw = file.read()
    try:
        examples = halves.replaced(json.loads(raw.decode('utf-8-sig')))
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path}: not JSON ({error}); a file of JSON lines is named .jsonl') from error
    halves.say(path)
    if not isinstance(examples, list):
        raise InputError(f'{path}: expected a list of objects, found {shown(examples)}')
    for number, fields in enumerate(examples, start=1):
        if not isinstance(fields, dict):
            raise InputError(f'{path}: item {number}: expected a JSON object, found {shown(fields)}')
        yield f'{path}, item {number}', fields


def read_parquet(path):
    """Yield (place, fields) of each record; one batch is in memory at a time."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(1024):
            for fields in batch.to_pylist():
                number += 1
                yield f'{path}, record {number}', fields
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path}: not parquet ({" ".join(str(error).split())})') from error


def write_task(file, task, templates, examples):
    """Write the lines of a task, examples in order and templates in order within an example; returns their number."""
    n_lines, left_out, n_equal, halves = 0, Counter(), 0, jsonl.Halves()
    for index, (place, fields) in enumerate(examples):
        for template in templates:
            try:
                question = template.question(fields)
            except InputError as error:
                raise InputError(f'{place}: {error}') from error
            if question is None:
                left_out[template.name] += 1
                continue
            n_equal += len(set(question.choices)) < len(question.choices)
            n_lines += write_choices(file, task, template, index, question, halves)
    n_examples = index + 1
    logger.info('%s: %d examples, %d templates, %d lines', task.name, n_examples, len(templates), n_lines)
    if not n_lines:
        raise InputError(f'{n_examples} examples give no line: the templates leave out examples without a label')
    if left_out:
        names = listed(f'{name!r} {n}' for name, n in left_out.items())
        logger.warning('%s: left out, for an empty prompt or no label: %s', task.name, names)
    if n_equal:
        logger.warning('%s: %d questions have two equal choices; the first is the right one', task.name, n_equal)
    halves.say(f'{task.name}: the templates')
    return n_lines


def write_choices(file, task, template, index, question, halves):
    """Write a line for each choice of a question; returns their number. halves: a jsonl.Halves."""
    for number, choice in enumerate(question.choices):
        fields = {
            'dataset_name': task.name,
            'template_name': template.name,
            'example_idx': index,
            'instruction': question.instruction,
            'response': choice,
            'label': int(number == question.gold),
        }
        try:
            file.write(json.dumps(fields, ensure_ascii=False) + '\n')
        except UnicodeEncodeError:  # a template can make one
            file.write(json.dumps(halves.replaced(fields), ensure_ascii=False) + '\n')
    return len(question.choices)


def describe_tasks():
    """A table of the tasks."""
    header = ('task', 'examples', 'split', 'source', 'licence')
    rows = [(task.name, f'{task.n_examples:,}', task.split, _source_of(task), task.licence) for task in TASKS]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    lines.append(f'templates: {PROMPTSOURCE} (Apache-2.0)')
    return '\n'.join(line.rstrip() for line in lines)


def _source_of(task):
    if task.source is None:
        return f'your own copy ({STORY_CLOZE})'
    return ' '.join(filter(None, (task.source, task.config)))


if __name__ == '__main__':
    flags.run(main)
