"""Test data for `cappy_promptsource.py`, built from PromptSource's templates and the eleven data sets themselves.

    git clone --depth 1 https://github.com/bigscience-workshop/promptsource
    python scripts/get_promptsource_data.py --local story_cloze=my_copy.csv

Writes `promptsource_test.jsonl`: a row for every choice of every example under every template, {"dataset_name",
"template_name", "example_idx", "instruction", "response", "label"}, label 1 for the right choice. StoryCloze is
licensed, so it comes from the user's own copy; the other data sets are fetched unless --local names files. A task
that fails names its cause and the others go on; the exit code is then 1. --list tells sources, splits and licences;
docs/promptsource-data.md tells counts and how the rendering follows PromptSource.
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
from cappy.files import jsonl
from cappy.files.atomic import write_atomically
from cappy.files.wording import listed, not_found, shown
from cappy.tasks.templates import read_templates

PROMPTSOURCE = 'https://github.com/bigscience-workshop/promptsource'
STORY_CLOZE = 'https://cs.rochester.edu/nlp/rocstories'
CROWS_PAIRS = 'https://raw.githubusercontent.com/nyu-mll/crows-pairs/master/data/crows_pairs_anonymized.csv'
SUPER_GLUE_LICENCE = "research use (SuperGLUE; each set's own licence applies)"

logger = logging.getLogger(__name__)


def class_label(*names, **others):
    """Converter of a field that counts its values from 0, as `datasets` has it, from a number or a name.

    others: further names with their numbers. -1 stays: a label that is not known.
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
    """Converter of a field that is one of the allowed values, to their type."""

    def convert(value):
        for each in allowed:
            if str(value).strip() == str(each):
                return each
        raise InputError(f'expected {" or ".join(map(repr, allowed))}, found {shown(value)}')

    return convert


def whole_number(value):
    """Converter of a field that counts from 0."""
    if isinstance(value, bool) or not str(value).strip().isdecimal():
        raise InputError(f'expected a whole number, found {shown(value)}')
    return int(value)


@dataclass(frozen=True)
class Task:
    """A task of the evaluation.

    templates: folder below PromptSource's templates. source: name on the Hugging Face hub, address of a csv, or None
    where only the user has the data. n_examples: published size of the split. converters: by field, for fields that
    are no text. renames: field of other editions -> field that the templates read.
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

# In the order of the paper's table. Where a test split's labels are hidden, the validation split is taken, as in T0.
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
        # A hidden answer is '', which the templates would take for the second option.
        {'answer': one_of('1', '2')},
    ),
    _super_glue('winogender', 'axg', 'test', 356, class_label('entailment', 'not_entailment')),
    Task('crows_pairs', 'crows_pairs', CROWS_PAIRS, None, 'test', 1508, 'CC BY-SA 4.0', _crows_pairs_labels),
)


def main(
    output_file='promptsource_test.jsonl',
    templates_dir='promptsource',  # a clone of PromptSource, or its folder of templates
    tasks: str | None = None,  # names with commas between them; all if not given
    local: str
    | None = None,  # task=file, with commas between them: csv, tsv, json, jsonl or parquet, instead of the hub
    splits: str | None = None,  # task=split, with commas between them: another split than that of --list
    templates: Literal['original', 'all'] = 'original',  # which of the templates that have choices
    list: bool = False,  # tell tasks, sources, splits and licences, and build nothing
):
    """Build the test data of cappy_promptsource.py.

    Of a data set's templates, only those with choices make questions. `--templates original` takes of these the ones
    marked as asking what the data set was made for, as T0's evaluation does, and all where none is so marked.
    """
    logging.basicConfig(format='%(message)s')
    logger.setLevel(logging.INFO)
    if list:
        print(describe_tasks())
        return
    chosen = choose_tasks(tasks)
    files, other_splits = parse_pairs(local, '--local', chosen), parse_pairs(splits, '--splits', chosen)
    folder = find_templates_dir(templates_dir)
    with write_atomically(output_file) as file:
        n_rows, failed = write_tasks(file, chosen, folder, files, other_splits, templates == 'all')
        told = f'{len(failed)} of {len(chosen)} tasks failed ({", ".join(failed)}), each for the cause above'
        if failed and (len(failed) == len(chosen) or Path(output_file).exists()):
            raise InputError(f'{told}; {output_file} is not written, nor changed where it exists')
    if failed:
        raise InputError(f'{told}; {output_file} holds the {n_rows:,} rows of the others')
    print(f'{output_file}: {n_rows:,} rows of {len(chosen)} tasks')


def write_tasks(file, tasks, folder, files, other_splits, every):
    """Write the rows of the tasks, all of a task or none; returns their number and the names of the tasks that failed.

    files, other_splits: by task, where given. every: whether to take every template with choices.
    """
    n_rows, failed = 0, []
    for task in tasks:
        start = file.tell()
        try:
            templates = read_questions(folder, task, every)
            examples = read_examples(task, files.get(task.name), other_splits.get(task.name, task.split))
            n_rows += write_task(file, task, templates, examples)
        except InputError as error:
            file.seek(start)
            file.truncate()
            failed.append(task.name)
            logger.error('%s: failed: %s', task.name, error)
    return n_rows, failed


def choose_tasks(names):
    """The tasks of a list with commas, in the order of TASKS; all for None."""
    if names is None:
        return TASKS
    wanted = [name.strip() for name in names.split(',')]
    for name in wanted:
        _check_task(name, [task.name for task in TASKS], '--tasks')
    return tuple(task for task in TASKS if task.name in wanted)


def parse_pairs(text, flag, tasks):
    """{task: value} of `task=value,task=value`; a comma that no `name=` follows belongs to the value."""
    pairs = {}
    for part in (text or '').split(','):
        name, equals, value = part.partition('=')
        if equals and '/' not in name:
            _check_task(name.strip(), [task.name for task in tasks], flag)
            if name.strip() in pairs:
                raise InputError(f'{flag} names {name.strip()} twice; keep one')
            pairs[name.strip()] = value
        elif pairs:
            pairs[next(reversed(pairs))] += f',{part}'
        elif text:
            raise InputError(f'{flag}: expected task=.., found {part!r}')
    return pairs


def _check_task(name, known, flag):
    if name not in known:
        near = get_close_matches(name, known, n=1)
        meant = f'did you mean {near[0]}?' if near else f'choose from {", ".join(known)}'
        raise InputError(f'{flag}: no task {name!r} here; {meant}')


def find_templates_dir(templates_dir):
    """The folder of PromptSource's templates in a clone, in its package, or the folder itself."""
    root = Path(templates_dir)
    if not root.is_dir():
        raise InputError(f'{root}: no such folder; give --templates_dir a clone: git clone --depth 1 {PROMPTSOURCE}')
    inner = (root / 'promptsource' / 'templates', root / 'templates')
    return next((folder for folder in inner if folder.is_dir()), root)


def read_questions(folder, task, every):
    """The templates that make questions of a task, in file order."""
    path = folder / task.templates / 'templates.yaml'
    with_choices = [template for template in read_templates(path) if template.answer_choices is not None]
    if not with_choices:
        raise InputError(f'{path}: no template has answer_choices, so there is nothing to choose from')
    original = [template for template in with_choices if template.original_task]
    return with_choices if every or not original else original


def read_examples(task, path, split) -> Iterator[tuple[str, dict]]:
    """(where it stands, fields) of each example, in order: of a file, or of the task's own source where path is None.

    Fields bear the names and types that the templates expect.
    """
    n_examples = 0
    for where, fields in read_file(Path(path)) if path is not None else fetch(task, split):
        n_examples += 1
        fields = {task.renames.get(name, name): value for name, value in fields.items()}
        for name, convert in task.converters.items():
            if fields.get(name) is not None:  # what is missing is the template's to tell
                try:
                    fields[name] = convert(fields[name])
                except InputError as error:
                    raise InputError(f'{where}: {name}: {error}') from error
        yield where, fields
    if not n_examples:
        raise InputError(f'{path or task.source}: holds no examples')
    if path is None and split == task.split and n_examples != task.n_examples:
        logger.warning('%s: %d examples, where %d were published', task.name, n_examples, task.n_examples)


def fetch(task, split):
    """(where, fields) of each example of a source on the net; `datasets` keeps those of the hub in its cache."""
    if task.source is None:
        raise InputError(f'licensed; ask for a copy at {STORY_CLOZE}, then give --local {task.name}=FILE')
    try:
        if task.config is None:
            with urllib.request.urlopen(task.source, timeout=60) as response:
                text = response.read().decode('utf-8-sig')
        else:
            import datasets  # slow to import, and not needed for local files

            logging.getLogger('huggingface_hub').propagate = False  # it shows its messages itself
            examples = datasets.load_dataset(task.source, task.config, split=split)
    except Exception as error:  # hub, network, cache and file formats fail by errors of many libraries
        said = ' '.join(str(error).split())[:300]
        raise InputError(
            f'{task.source}: cannot be fetched ({type(error).__name__}: {said}); try again, or give a copy: '
            f'--local {task.name}=FILE'
        ) from error
    if task.config is None:
        yield from parse_csv(io.StringIO(text, newline=''), task.source, ',')
        return
    for number, example in enumerate(examples):
        yield f'{task.source} {task.config} {split}, example {number}', example


def read_file(path):
    """(where, fields) of each example of a file, by the end of its name."""
    readers = {
        '.csv': lambda path: read_csv(path, ','),
        '.tsv': lambda path: read_csv(path, '\t'),
        '.json': read_json,
        '.jsonl': lambda path: ((f'{path}:{line}', fields) for line, fields in jsonl.read(path)),
        '.parquet': read_parquet,
    }
    if path.suffix not in readers:
        raise InputError(f'{path}: cannot tell its format; name it {", ".join(readers)}')
    if not path.is_file():
        raise InputError(not_found(path))
    return readers[path.suffix](path)


def read_csv(path, delimiter):
    """(file:line, fields) of each row of a csv."""
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            yield from parse_csv(file, path, delimiter)
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8') from error


def parse_csv(lines, name, delimiter):
    """(name:line, fields) of each row under a header; the line is the row's first."""
    rows, line = csv.reader(lines, delimiter=delimiter, strict=True), 1
    try:
        header = next(rows, None)
        if not header:
            raise InputError(f'{name}:1: expected a header with the names of the fields')
        line = rows.line_num + 1
        for row in rows:
            if row and len(row) != len(header):
                raise InputError(f'{name}:{line}: expected {len(header)} columns, found {len(row)}')
            if row:
                yield f'{name}:{line}', dict(zip(header, row, strict=True))
            line = rows.line_num + 1
    except csv.Error as error:
        raise InputError(f'{name}:{line}: {error}') from error


def read_json(path):
    """(where, fields) of each object of a file that is one list of objects."""
    try:
        examples = json.loads(path.read_text(encoding='utf-8-sig'))
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path}: not JSON ({error}); a file of JSON lines is named .jsonl') from error
    if not isinstance(examples, list):
        raise InputError(f'{path}: expected a list of objects, found {shown(examples)}')
    for number, fields in enumerate(examples, start=1):
        if not isinstance(fields, dict):
            raise InputError(f'{path}: item {number}: expected a JSON object, found {shown(fields)}')
        yield f'{path}, item {number}', fields


def read_parquet(path):
    """(where, fields) of each row, a batch in memory at a time."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(1024):
            for fields in batch.to_pylist():
                number += 1
                yield f'{path}, row {number}', fields
    except pyarrow.ArrowException as error:
        raise InputError(f'{path}: not parquet ({" ".join(str(error).split())})') from error


def write_task(file, task, templates, examples):
    """Write a task's rows, examples in order, the templates of an example in order; returns their number."""
    n_rows, left_out, equal = 0, Counter(), 0
    for index, (where, fields) in enumerate(examples):
        for template in templates:
            try:
                question = template.question(fields)
            except InputError as error:
                raise InputError(f'{where}: {error}') from error
            if question is None:
                left_out[template.name] += 1
                continue
            equal += len(set(question.choices)) < len(question.choices)
            n_rows += write_rows(file, task, template, index, question, where)
    n_examples = index + 1
    logger.info('%s: %d examples, %d templates, %d rows', task.name, n_examples, len(templates), n_rows)
    if not n_rows:
        raise InputError(f'no row of {n_examples} examples: the templates leave out what has no label')
    if left_out:
        names = listed(f'{name!r} {n}' for name, n in left_out.items())
        logger.warning('%s: left out, for an empty prompt or no label: %s', task.name, names)
    if equal:
        logger.warning('%s: %d questions have two choices alike; the first is the right one', task.name, equal)
    return n_rows


def write_rows(file, task, template, index, question, where):
    """Write a row for each choice; returns their number."""
    for number, choice in enumerate(question.choices):
        row = {
            'dataset_name': task.name,
            'template_name': template.name,
            'example_idx': index,
            'instruction': question.instruction,
            'response': choice,
            'label': int(number == question.gold),
        }
        try:
            file.write(json.dumps(row, ensure_ascii=False) + '\n')
        except UnicodeEncodeError as error:
            raise InputError(f'{where}: holds half of a surrogate pair, which is no character') from error
    return len(question.choices)


def describe_tasks():
    """A table of the tasks, a line each."""
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
