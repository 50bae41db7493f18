"""BIG-bench tasks from their task.json: zero-shot prompts, references, and the splits that the hub's files have.

A task is a folder with a task.json, which has examples, or with subtasks in folders below it. Prompts, splits and order
follow BIG-bench 1.0.0 (bigbench/api/json_task.py, bigbench/bbseqio/bigbench_bridge.py) and the script that made the
hub's files (huggingface/datasets, datasets/bigbench/bigbench.py), so that example n here is example n there.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cappy.errors import InputError
from cappy.files import jsonl
from cappy.files.wording import listed, near_names, not_found, shown
from cappy.tasks.candidates import Example

INPUT_PREFIX, OUTPUT_PREFIX, CHOICE_PREFIX = '\nQ: ', '\nA: ', '\n  choice: '  # where a task.json gives none
SPLIT_SEED = 42  # of BIG-bench, for the splits and for the order of choices
VALIDATION_SHARE, MIN_VALIDATION = 0.2, 16
TASK_FILE = 'task.json'


@dataclass(frozen=True, slots=True)
class Task:
    """Both splits of a task, in order, and how many duplicates and multiple-choice examples were left out of them."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    n_duplicates: int = 0
    n_multiple_choice: int = 0


def find_tasks_dir(folder) -> Path:
    """The folder of the tasks: in a checkout of BIG-bench, in a folder that has its package, or the folder itself.

    Raises InputError where none of these has a task.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(not_found(folder, 'folder', 'give a checkout of BIG-bench, or the folder its package is in'))
    for inner in (folder / 'bigbench' / 'benchmark_tasks', folder / 'benchmark_tasks', folder):
        if task_names(inner):
            return inner
    raise InputError(f'{folder}: has no task; expected bigbench/benchmark_tasks in it, or folders with {TASK_FILE}')


def task_names(folder) -> list[str]:
    """The names of the folders that have a task.json, sorted."""
    return sorted(path.parent.name for path in Path(folder).glob(f'*/{TASK_FILE}'))


def read_task(folder, name, seed=SPLIT_SEED, multiple_choice=False) -> Task:
    """The task `name` of a folder of tasks; its subtasks are joined, in the order of their folders.

    multiple_choice: whether to keep multiple-choice examples, with their choices in the prompt, as the hub's files do.
    Duplicates are left out, as in BIG-bench. Raises InputError naming the file and the example, counted from 1.
    """
    path = Path(folder) / name / TASK_FILE
    if not path.is_file():
        raise InputError(f'{path}: no such file{near_names(name, task_names(folder), folder)}')
    parts, n_duplicates, n_multiple_choice = [], 0, 0
    for part_path, fields in _read_parts(path):
        pairs, n_twice, n_choice = _read_pairs(part_path, fields, multiple_choice)
        n_duplicates, n_multiple_choice = n_duplicates + n_twice, n_multiple_choice + n_choice
        if pairs:
            parts.append((part_path, pairs))
    if not parts:
        raise InputError(f'{path}: all {n_multiple_choice} examples are multiple choice; there is nothing to generate')
    train, validation = (_as_examples(name, split) for split in zip(*_split_parts(parts, seed), strict=True))
    return Task(train, validation, n_duplicates, n_multiple_choice)


def _split_parts(parts, seed):
    """(train, validation) of each (path, pairs); the validation splits have at least MIN_VALIDATION pairs together."""
    # Rounded down, as in the script of the hub's files; rounded up where that gives a task of many small parts too few.
    for n_at_least in (MIN_VALIDATION // len(parts), -(-MIN_VALIDATION // len(parts))):
        splits = [split_pairs(path, pairs, seed, n_at_least) for path, pairs in parts]
        if sum(len(validation) for _, validation in splits) >= MIN_VALIDATION:
            break
    return splits


def split_pairs(path, pairs, seed, n_at_least):
    """(train, validation) of pairs: after a shuffle, the last fifth (rounded down), or n_at_least if more, validate.

    The rule of the hub's files (bigbench_bridge.py). Raises InputError that begins with path where no pair is left to
    train on.
    """
    pairs = list(pairs)
    random.Random(seed).shuffle(pairs)
    n_train = len(pairs) - max(int(VALIDATION_SHARE * len(pairs)), n_at_least)
    if n_train < 1:
        raise InputError(
            f'{path}: {len(pairs)} examples, of which at least {n_at_least} are for validation; '
            'none is left to train on, so add examples'
        )
    return pairs[:n_train], pairs[n_train:]


def compose_prompt(fields, text) -> str:
    """The zero-shot prompt for the input `text`; fields: those of the task.json."""
    prefix = fields.get('example_input_prefix', INPUT_PREFIX)
    suffix = fields.get('example_output_prefix', OUTPUT_PREFIX)
    return (fields.get('task_prefix', '') + prefix + text + suffix).strip()  # stripped as in the hub's files


def _read_parts(path):
    """(path, fields) of the task.json, or of those of its subtasks where it has no examples itself."""
    fields = _read_json(path)
    if 'examples' in fields:
        return [(path, fields)]
    paths = sorted(path.parent.glob(f'*/{TASK_FILE}'))
    if not paths:
        raise InputError(f'{path}: has no examples and no subtask in a folder beside it; has {listed(fields)}')
    return [(part_path, _read_json(part_path)) for part_path in paths]


def _read_json(path):
    halves = jsonl.Halves()
    try:
        fields = halves.replaced(json.loads(path.read_bytes().decode('utf-8-sig')))
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from error
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: not UTF-8 (byte {error.start + 1}); fetch the file again') from error
    except json.JSONDecodeError as error:
        raise InputError(f'{path}:{error.lineno}: not JSON ({error.msg}); fetch the file again') from error
    except (RecursionError, ValueError) as error:  # nested too deep; an integer of too many digits
        raise InputError(f'{path}: not JSON that can be read ({error})') from error
    if not isinstance(fields, dict):
        raise InputError(f'{path}: expected a JSON object, found {shown(fields)}')
    halves.say(path)
    for key in ('task_prefix', 'example_input_prefix', 'example_output_prefix', 'choice_prefix'):
        if not isinstance(fields.get(key, ''), str):
            raise InputError(f'{path}: {key}: expected text, found {shown(fields[key])}')
    return fields


def _read_pairs(path, fields, multiple_choice):
    """([(prompt, references)], number of duplicates, number of multiple-choice examples left out) of a task.json."""
    examples = fields.get('examples')
    if not isinstance(examples, list) or not examples:
        raise InputError(f'{path}: examples: expected a list that is not empty, found {shown(examples)}')
    pairs, seen, n_multiple_choice = [], set(), 0
    for number, example in enumerate(examples, start=1):
        text = json.dumps(example)
        if text in seen:
            continue
        seen.add(text)
        try:
            if not isinstance(example, dict):
                raise InputError(f'expected a JSON object, found {shown(example)}')
            if 'target_scores' in example and not multiple_choice:
                n_multiple_choice += 1
                continue
            pairs.append(_read_pair(fields, _with_choices(fields, example)))
        except InputError as error:
            raise InputError(f'{path}: example {number}: {error}') from error
    return pairs, len(examples) - len(seen), n_multiple_choice


def _with_choices(fields, example):
    """A multiple-choice example with its choices after the input and the best one as target; others as they are."""
    scores = example.get('target_scores')
    if scores is None:
        return example
    if not isinstance(scores, dict) or not all(isinstance(score, int | float) for score in scores.values()):
        raise InputError(f'target_scores: expected a number for each choice, found {shown(scores)}')
    if not scores or (len(scores) > 1 and max(scores.values()) == min(scores.values())):
        raise InputError(f'target_scores: no choice is better than another, found {shown(scores)}')
    text = example.get('input')
    if isinstance(text, str) and fields.get('append_choices_to_input', True):
        # The order of BIG-bench: sorted, then shuffled by numpy's old generator with the same seed for each example.
        choices = np.random.RandomState(SPLIT_SEED).permutation(sorted(scores))
        text = ''.join([text, *(fields.get('choice_prefix', CHOICE_PREFIX) + choice for choice in choices)])
    best = max(scores, key=scores.get)  # the first of equals
    return {'target': best} | example | {'input': text}


def _read_pair(fields, example):
    for key in ('input', 'target'):
        if key not in example:
            raise InputError(f'{key} is missing; the example has {listed(example)}')
    target = example['target']
    targets = target if isinstance(target, list) else [target]
    if not targets:
        raise InputError('target: the list is empty; at least one is needed')
    for key, value in [('input', example['input']), *(('target', value) for value in targets)]:
        if not isinstance(value, str):
            raise InputError(f'{key}: expected text, found {shown(value)}')
    return compose_prompt(fields, example['input']), tuple(value.strip() for value in targets)


def _as_examples(name, parts):
    pairs = [pair for part in parts for pair in part]
    return tuple(Example(name, number, prompt, references) for number, (prompt, references) in enumerate(pairs))
