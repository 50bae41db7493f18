"""The committed examples are what their programs write, in the format of FLAN's files."""

import importlib.util
import json
from itertools import islice
from pathlib import Path

import pytest

from cappy.tasks.candidates import read_task
from cappy.tasks.picks import all_picks, candidates_rougeL, compare
from cappy.tasks.rouge import RougeL

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / 'examples'
GENERATOR = 'tiny-t5'
SAMPLES = EXAMPLES / 'bigbench_flan_gens' / GENERATOR
N_SAMPLES = {'beam4': 1, 'sampling': 4, 'temp0.9': 4, 'topk40': 4, 'topp0.95': 4}

_spec = importlib.util.spec_from_file_location('example_tasks', EXAMPLES / 'tasks.py')
tasks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tasks)

every_file = pytest.mark.parametrize(
    ('task', 'split'), [(task, split) for task in tasks.TASKS for split in tasks.N_EXAMPLES]
)


def read_lines(path):
    return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def test_the_data_files_are_to_the_byte_what_the_programs_write(tmp_path):
    tasks.write_data(tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_bytes() for path in (EXAMPLES / 'bigbench_data').iterdir()}
    assert written == committed
    assert json.loads(written['subset_names.json']) == list(tasks.TASKS)


@every_file
def test_candidates_belong_to_the_inputs_and_references_of_the_programs(task, split):
    examples = read_lines(SAMPLES / f'{task}_{split}.jsonl')
    assert len(examples) == {'train': 160, 'validation': 80}[split]
    for example in examples:
        example.pop('flan_samples')
    assert examples == tasks.split_examples(task, split)


@every_file
def test_candidate_files_have_the_fields_of_flans_files_in_their_order(task, split):
    likelihoods = ['log_likelihood_sum', 'log_likelihood_mean'] if split == 'validation' else []
    for example in read_lines(SAMPLES / f'{task}_{split}.jsonl'):
        assert list(example) == ['dataset', 'example_idx', 'instruction', 'references', 'flan_samples']
        assert {name: len(entries) for name, entries in example['flan_samples'].items()} == N_SAMPLES
        for entries in example['flan_samples'].values():
            assert [list(entry) for entry in entries] == [['response', *likelihoods]] * len(entries)


@pytest.mark.parametrize('task', tasks.TASKS)
def test_log_likelihoods_are_negative_and_their_ratio_is_a_number_of_tokens(task):
    for example in read_lines(SAMPLES / f'{task}_validation.jsonl'):
        for entries in example['flan_samples'].values():
            for entry in entries:
                total, mean = entry['log_likelihood_sum'], entry['log_likelihood_mean']
                assert total <= mean <= 0
                # Both are float32 rounded to 6 decimals.
                errors = [abs(total - n * mean) - n * 5e-7 - 1e-6 for n in range(1, 65)]
                assert min(errors) <= 1e-6 * abs(total)


@pytest.mark.parametrize('task', tasks.TASKS)
def test_picks_without_a_scorer_leave_at_least_3_points_to_gain(task):
    examples = read_task(SAMPLES.parent, GENERATOR, task)['validation']
    rows = compare(all_picks(examples, candidates_rougeL(examples, RougeL()), RougeL()))
    rougeL = {row['name']: row['rougeL'] for row in rows}
    oracle = rougeL.pop('oracle')
    assert {'random candidate', 'first of beam4', 'self-score sum', 'consensus'} <= set(rougeL)
    assert max(rougeL.values()) + 0.03 < oracle < 0.95


@pytest.mark.parametrize('task', tasks.TASKS)
def test_train_validation_and_the_language_models_inputs_share_no_instruction(task):
    streams = [
        *[[example['instruction'] for example in tasks.split_examples(task, split)] for split in tasks.N_EXAMPLES],
        [instruction for instruction, _ in tasks.language_model_inputs(task, 12_000)],
    ]
    instructions = [instruction for stream in streams for instruction in stream]
    assert len(set(instructions)) == len(instructions) == 160 + 80 + 12_000


def test_inputs_depend_on_the_seed_alone():
    first, again, other = (list(islice(tasks.inputs('rewrite_tense', seed), 50)) for seed in (0, 0, 1))
    assert first == again
    assert not {instruction for instruction, _ in first} & {instruction for instruction, _ in other}


def test_the_reference_names_the_kinds_of_the_things_and_no_thing_has_two_kinds():
    kind_of = {thing: kind for kind, things in tasks.KINDS.items() for thing in things}
    assert len(kind_of) == sum(len(things) for things in tasks.KINDS.values())
    for instruction, references in islice(tasks.inputs('mixed_kinds'), 300):
        things = instruction.split('Things: ')[1].removesuffix('\nAnswer:').split(', ')
        assert references == [', '.join(sorted({kind_of[thing] for thing in things}))]


def test_every_reference_has_all_six_facts():
    for instruction, references in islice(tasks.inputs('facts_to_sentence'), 300):
        facts = instruction.split('Facts: ')[1].removesuffix('\nAnswer:').split('; ')
        assert len(facts) == 6 and len(references) == 3
        for reference in references:
            assert all(fact.split(' = ')[1] in reference for fact in facts)


def test_the_committed_files_are_small():
    files = [path for path in EXAMPLES.rglob('*.jsonl') if path.is_file()]
    assert len(files) == 4 * len(tasks.TASKS)
    assert sum(path.stat().st_size for path in files) <= 2e6
