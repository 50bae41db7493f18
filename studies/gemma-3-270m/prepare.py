"""Choose the study's tasks by a rule, draw their examples, and write a prompt for each.

    python studies/gemma-3-270m/prepare.py --data_dir bigbench_data --output_dir scratch/data

The rule, written down before any sample was drawn; nothing in it depends on a model's answers:

1. An example qualifies if its instruction has at most 400 tokens, each of its references is one line, rougeL reads most
   letters of each, and no earlier example of either split has its instruction.
2. A task qualifies with 60 training examples beside those of the prompt, and 30 validation examples.
3. Of the tasks that qualify, the n_tasks with the fewest tokens per example are taken: the tokens of five instructions
   (four are in the prompt) and thirteen references, medians of the task. Fewer tokens, more tasks in the same hours.
4. Of each task at most 200 training and 80 validation examples are taken, drawn with the seed. Four more training
   examples are put in front of every instruction of the task: drawn with the seed from the half with the shorter
   instructions.

Writes {output_dir}/{task}_{split}.jsonl, {output_dir}/{task}.prompt, which has the four examples and the place of the
instruction, and {output_dir}/tasks.json with the counts, which is written last.
"""

import logging
import random
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout, before an installed copy

from cappy.cli import flags
from cappy.errors import InputError
from cappy.files.atomic import write_json, write_text
from cappy.files.inputs import stems
from cappy.files.wording import listed, not_found
from cappy.model.model_files import find_model
from cappy.model.tokens import load_tokenizer
from cappy.tasks.candidates import SPLITS, Example, read_examples, write_splits
from cappy.tasks.rouge import RougeL

N_SHOTS = 4
N_SAMPLES = 13  # per instruction: what a response costs counts so many times in the rule
PLACEHOLDER = '{instruction}'  # as scripts/sample_openai.py has it

logger = logging.getLogger('prepare')


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task that qualifies: the examples taken, those of the prompt, and counts."""

    name: str
    shots: list[Example]
    examples: dict[str, list[Example]]
    counts: dict


def main(
    data_dir='bigbench_data',  # folder of {task}_{split}.jsonl, as scripts/get_bigbench_data.py writes it
    output_dir='studies/gemma-3-270m/scratch/data',
    tokenizer='minilm',  # hub name or folder of the model whose tokens are counted
    tasks: flags.Names | None = None,  # a,b,c in place of the third part of the rule
    n_tasks: flags.Count = 16,
    max_instruction_tokens: flags.Count = 400,
    min_train: flags.Count = 60,  # training examples that a task needs, beside those of the prompt
    min_validation: flags.Count = 30,
    max_train: flags.Count = 200,  # training examples that are taken
    max_validation: flags.Count = 80,
    seed: flags.Seed = 0,
):
    """Choose tasks, draw examples and write prompts."""
    logging.basicConfig(format='%(message)s', level=logging.INFO)
    limits = {'train': (min_train + N_SHOTS, max_train), 'validation': (min_validation, max_validation)}
    count_tokens = token_counter(load_tokenizer(find_model(tokenizer)))
    qualifying = []
    for name in tasks or found_tasks(data_dir):
        examples = qualifying_examples(Path(data_dir), name, count_tokens, max_instruction_tokens, seed)
        short = [split for split, found in examples.items() if len(found) < limits[split][0]]
        if short:
            logger.info('%s: left out (%s)', name, ', '.join(f'{len(examples[split])} {split}' for split in short))
        else:
            qualifying.append(prepare(name, examples, limits, count_tokens, seed))
    if not qualifying:
        raise InputError(f'{data_dir}: no task qualifies; see the rule in {Path(__file__).name}')
    by_cost = sorted(qualifying, key=lambda task: (task.counts['tokens'], task.name))
    chosen = by_cost if tasks else by_cost[:n_tasks]
    write_tasks(chosen, Path(output_dir))
    logger.info('%d of %d tasks that qualify: %s', len(chosen), len(qualifying), listed(task.name for task in chosen))


def found_tasks(data_dir):
    """The tasks that have both files, sorted."""
    folder = Path(data_dir)
    if not folder.is_dir():
        raise InputError(not_found(folder, 'folder of tasks', 'python scripts/get_bigbench_data.py makes it'))
    return sorted(set.intersection(*(stems(folder, f'_{split}.jsonl') for split in SPLITS)))


def token_counter(tokenizer):
    """texts -> the number of tokens of each, without special tokens."""
    return lambda texts: [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)['input_ids']]


def qualifying_examples(data_dir, name, count_tokens, max_instruction_tokens, seed):
    """{split: the examples that qualify, in an order drawn with the seed}."""
    rouge, seen, by_split = RougeL(), set(), {}
    for split in SPLITS:
        found = read_examples(data_dir / f'{name}_{split}.jsonl', samples_needed=False)
        random.Random(f'{seed} {name} {split}').shuffle(found)
        kept = [
            example
            for example in found
            if all(len(text.splitlines()) == 1 and not rouge.is_unread(text) for text in example.references)
        ]
        lengths = count_tokens(example.instruction for example in kept) if kept else []
        by_split[split] = []
        for example, length in zip(kept, lengths, strict=True):
            if length <= max_instruction_tokens and example.instruction not in seen:
                seen.add(example.instruction)
                by_split[split].append(example)
    return by_split


def prepare(name, qualifying, limits, count_tokens, seed):
    """A Prepared task from its qualifying examples: the first of their order, those of the prompt left out."""
    train = qualifying['train']
    median_length = statistics.median(len(example.instruction) for example in train)
    shorter = [example for example in train if len(example.instruction) <= median_length]
    shots = random.Random(f'{seed} {name} prompt').sample(shorter, N_SHOTS)
    in_prompt = {example.example_idx for example in shots}
    examples = {
        'train': [example for example in train if example.example_idx not in in_prompt][: limits['train'][1]],
        'validation': qualifying['validation'][: limits['validation'][1]],
    }
    taken = [example for split in SPLITS for example in examples[split]]
    instruction_tokens = statistics.median(count_tokens(example.instruction for example in taken))
    reference_tokens = statistics.median(count_tokens(example.references[0] for example in taken))
    counts = {
        'qualifying': {split: len(found) for split, found in qualifying.items()},
        'taken': {split: len(found) for split, found in examples.items()},
        'instruction_tokens': instruction_tokens,
        'reference_tokens': reference_tokens,
        'tokens': (N_SHOTS + 1) * instruction_tokens + N_SAMPLES * reference_tokens,
    }
    return Prepared(name, shots, examples, counts)


def prompt_of(shots):
    """The text of a prompt: each example and its first reference, then the place of the instruction."""
    return ''.join(f'{shot.instruction} {shot.references[0]}\n\n' for shot in shots) + PLACEHOLDER


def write_tasks(chosen, output_dir):
    """Write the splits and the prompt of each task; tasks.json last."""
    for task in chosen:
        write_splits({output_dir / f'{task.name}_{split}.jsonl': found for split, found in task.examples.items()})
        write_text(output_dir / f'{task.name}.prompt', prompt_of(task.shots))
    write_json(output_dir / 'tasks.json', {task.name: task.counts for task in chosen})


if __name__ == '__main__':
    flags.run(main)
