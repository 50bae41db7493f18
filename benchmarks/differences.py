"""How much the known differences from the reference change, on the recorded tasks and the examples (no timing).

    python benchmarks/differences.py labels
    python benchmarks/differences.py scripts --data_dir bigbench_data
    python benchmarks/differences.py training
    python benchmarks/differences.py samples
    python examples/make_language_model.py && python benchmarks/differences.py rounding

labels: the labels of finetuning examples. scripts: the BIG-bench texts that the paper's rougeL cannot read. training:
final scores and picks of the recorded runs with other settings. samples: samples of a recorded T5 with and without the
default top-k, and with both kinds of log-likelihood. rounding: samples of the examples' T5 with its weights, and with
weights rounded to float16 as the reference rounds them. Figures are in docs/reproduction.md.

The recorded scorer and T5 are so small that their rougeL says little; the number of picks that change is the measure of
an effect.
"""

import dataclasses
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli.flags import run
from cappy.cli.tables import Column, format_table
from cappy.study.cells import read_task_names
from cappy.tasks import picks
from cappy.tasks.candidates import REFERENCE_DECODINGS, Example, Sample, read_examples, read_task
from cappy.tasks.finetuning import build_finetuning_examples
from cappy.tasks.rouge import RougeL

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / 'tests' / 'recorded'
RECORDED_GENS = RECORDED / 'inputs' / 'bigbench_flan_gens'
RECORDED_TASKS = ('tiny_tense', 'tiny_arithmetic')
EXAMPLE_TASKS = ('mixed_kinds', 'rewrite_tense', 'facts_to_sentence')
SEED = 11111  # the paper's
EVERYTHING = 10**5  # finetuning examples: more than any of these tasks has, so none is cut off


def decimals(digits, *names):
    return [Column(name, decimals=digits) for name in names]


def labels(_, __):
    """The labels that are not the rougeL of their text."""
    rows = []
    for folder, task in small_tasks():
        examples, rouge = read_task(*folder, task)['train'], RougeL()
        references, samples = {}, set()
        for example in examples:
            references.setdefault(example.instruction, []).extend(example.references)
            samples.update((example.instruction, sample.response) for sample in example.samples)
        bare = [dataclasses.replace(example, samples=()) for example in examples]
        built = build_finetuning_examples(bare, EVERYTHING, SEED, rouge)
        negatives = [example for example in set(built) if example.label == 0]
        true = {pair: rouge.score(references[pair.instruction], pair.response) for pair in negatives}
        kept = [pair for pair in negatives if (pair.instruction, pair.response) in samples and true[pair] > 0]
        left_out = [
            pair.label
            for pair in build_finetuning_examples(examples, EVERYTHING, SEED, rouge, 'leave_one_out')
            if pair.response in references[pair.instruction]
        ]
        n_references = sum(len(texts) for texts in references.values())
        rows.append(
            {
                'task': task,
                'references': n_references,
                'of them repeated': n_references - sum(len(set(texts)) for texts in references.values()),
                'left out, mean label': np.mean(left_out),
                'negatives': len(negatives),
                'their rougeL, mean': np.mean(list(true.values())),
                'largest': max(true.values()),
                'samples labelled 0 that have more': len(kept),
                'of samples': len(samples),
            }
        )
    columns = [Column(name, decimals=2) if 'mean' in name or name == 'largest' else name for name in rows[0]]
    print(format_table(rows, columns, 'table'))
    examples = [Example(None, number, f'instruction {number}', (f'answer {number}',)) for number in range(4000)]
    start = time.perf_counter()
    build_finetuning_examples(examples, EVERYTHING, SEED, RougeL())
    print(f'\n4000 examples of one reference and no samples: {time.perf_counter() - start:.2f} s')


def small_tasks():
    """((folder of generators, generator), task) of the recorded tasks and the examples."""
    recorded, examples = (RECORDED_GENS, 'flan-t5-tiny'), (ROOT / 'examples' / 'bigbench_flan_gens', 'tiny-t5')
    return [(recorded, task) for task in RECORDED_TASKS] + [(examples, task) for task in EXAMPLE_TASKS]


def scripts(data_dir, _):
    """rougeL of each validation example's own first reference: the value of a right answer."""
    rows = []
    for task in read_task_names(data_dir):
        path = Path(data_dir) / f'{task}_validation.jsonl'
        if not path.exists():
            print(f'{path}: no such file, left out')
            continue
        examples, row = read_examples(path, samples_needed=False), {'task': task}
        for tokenizer in ('default', 'unicode'):
            rouge = RougeL(tokenizer)
            scores = np.array([rouge.score(example.references, example.references[0]) for example in examples])
            unread = np.mean([rouge.is_unread(example.references[0]) for example in examples])
            row |= {tokenizer: scores.mean(), f'{tokenizer}: unread': unread}
        if row['default'] < 1 or row['unicode'] < 1:
            rows.append(row | {'examples': len(examples)})
    columns = ['task', 'examples', *decimals(3, 'default', 'default: unread', 'unicode', 'unicode: unread')]
    print('rougeL of a right answer, where it is not 1; share of references that it cannot read')
    print(format_table(rows, columns, 'table'))


def training(_, __):
    """The recorded runs with other settings; a pick differs where its text is not the one that the first run picks."""
    from cappy.model.training import TrainingSettings

    recorded = TrainingSettings(learning_rate=5e-5, accumulate_grad_batches=2)
    variants = {
        'as recorded': {},
        'lr_schedule corrected': {'lr_schedule': 'corrected'},
        'update twice as large, as with two devices': {'per_device_batch_size': 16},
        'compute_dtype bfloat16': {'compute_dtype': 'bfloat16'},
        'reference_labels leave_one_out': {'reference_labels': 'leave_one_out'},
        'reference_labels skip': {'reference_labels': 'skip'},
        'another seed': {'seed': 1},
    }
    for task in RECORDED_TASKS:
        rows = [adapted(task, recorded, **changes) for changes in variants.values()]
        shown = [
            {
                'run': name,
                'scores, largest difference': np.abs(scores - rows[0][0]).max(),
                'picks that differ': sum(a != b for a, b in zip(picked, rows[0][1], strict=True)),
                'rougeL': rougeL,
                'examples with equal best scores': n_ties,
            }
            for name, (scores, picked, rougeL, n_ties) in zip(variants, rows, strict=True)
        ]
        columns = ['run', *decimals(6, 'scores, largest difference'), 'picks that differ', *decimals(4, 'rougeL')]
        print(f'\n{task}: {len(rows[0][1])} examples, {len(rows[0][0])} unique candidates')
        print(format_table(shown, [*columns, 'examples with equal best scores'], 'table'))


def adapted(task, settings, compute_dtype='float32', reference_labels='one', **changes):
    """Adapt the recorded scorer to a recorded task; returns scores of its candidates, picks, mean rougeL, ties."""
    from cappy import Cappy

    settings, rouge = dataclasses.replace(settings, **changes), RougeL()
    splits = read_task(RECORDED_GENS, 'flan-t5-tiny', task)
    scorer = Cappy.from_pretrained(RECORDED / 'tiny-cappy', compute_dtype=compute_dtype)
    scorer.adapt(
        build_finetuning_examples(splits['train'], 512, settings.seed, rouge, reference_labels),
        settings,
        progress=False,
    )
    examples = splits['validation']
    of_example = [scorer.score([(example.instruction, text) for text in example.candidates]) for example in examples]
    picked = [example.candidates[np.argmax(scores)] for example, scores in zip(examples, of_example, strict=True)]
    rougeL = [rouge.score(example.references, text) for example, text in zip(examples, picked, strict=True)]
    n_ties = sum(int((scores == scores.max()).sum() > 1) for scores in of_example)
    return np.concatenate(of_example), picked, np.mean(rougeL), n_ties


def samples(_, __):
    """Validation samples of the recorded T5 with five seeds, and its self-scores of them."""
    from cappy.generate.decodings import DEFAULT_TOP_K
    from cappy.generate.generator import Generator

    model = Generator.from_pretrained(RECORDED / 'flan-t5-tiny')
    for task in RECORDED_TASKS:
        examples = read_task(RECORDED_GENS, 'flan-t5-tiny', task)['validation']
        rows, drawn = {}, {}
        for top_k, likelihood in ((DEFAULT_TOP_K, 'retokenized'), (DEFAULT_TOP_K, 'sampled'), (0, 'retokenized')):
            name = f'top-k {top_k or "none"}, log-likelihoods {likelihood}'
            of_seeds = [draw(model, task, examples, seed, top_k, likelihood) for seed in range(5)]
            drawn[name] = of_seeds
            means = [sample_means(of_seed) for of_seed in of_seeds]
            rows[name] = {key: (np.mean([m[key] for m in means]), np.std([m[key] for m in means])) for key in means[0]}
        print(f'\n{task}: {len(examples)} examples, five seeds: mean (standard deviation) of rougeL x 100')
        shown = [
            {'samples': name, **{key: f'{100 * mean:.1f} ({100 * spread:.1f})' for key, (mean, spread) in row.items()}}
            for name, row in rows.items()
        ]
        print(format_table(shown, list(shown[0]), 'table'))
        first, sampled, wide = drawn.values()
        print(f'texts that another top-k changes: {changed(first, wide, "response"):.3f}')
        print(f'log-likelihoods that differ by 0.001 or more: {changed(first, sampled, "log_likelihood_sum"):.3f}')


def rounding(_, t5):
    """Validation samples of the examples' T5 with its weights as they are, and rounded to float16."""
    from cappy.generate.generator import Generator

    with tempfile.TemporaryDirectory() as folder:
        rounded = Path(folder) / 'rounded'
        shutil.copytree(t5, rounded)
        tensors = load_file(rounded / 'model.safetensors')
        halves = {name: tensor.astype(np.float16).astype(np.float32) for name, tensor in tensors.items()}
        save_file(halves, rounded / 'model.safetensors', {'format': 'pt'})
        models = [Generator.from_pretrained(model) for model in (t5, rounded)]
    for task in EXAMPLE_TASKS:
        examples = read_task(ROOT / 'examples' / 'bigbench_flan_gens', 'tiny-t5', task)['validation']
        ours, theirs = ([draw(model, task, examples, 42, 50, 'retokenized')] for model in models)
        same_texts = [
            abs(a.log_likelihood_sum - b.log_likelihood_sum)
            for our_example, their_example in zip(ours[0], theirs[0], strict=True)
            for a, b in zip(our_example.samples, their_example.samples, strict=True)
            if a.response == b.response
        ]
        print(
            f'{task}: {changed(ours, theirs, "response"):.4f} of texts change; log-likelihoods of the others by '
            f'{np.mean(same_texts):.4f} on average, {max(same_texts):.4f} at most'
        )


def draw(model, task, examples, seed, top_k, likelihood):
    """The examples with new samples: one of beam search, four of each other decoding."""
    from cappy.generate.decodings import parse_decoding
    from cappy.generate.sampling import sample_key

    def key_of(place, decoding, number):
        return sample_key(seed, task, 'validation', examples[place].example_idx, decoding, number)

    decodings = [parse_decoding(name, top_k) for name in REFERENCE_DECODINGS]
    instructions = [example.instruction for example in examples]
    found = dict(model.generate(instructions, decodings, 4, key_of, log_likelihood=likelihood))
    return [
        dataclasses.replace(
            example,
            samples=tuple(
                Sample(sample.text, name, sample.log_likelihood_sum, sample.log_likelihood_mean)
                for name, of_decoding in found[place].items()
                for sample in of_decoding
            ),
        )
        for place, example in enumerate(examples)
    ]


def sample_means(examples):
    rouge = RougeL()
    rougeL_by_pick = picks.all_picks(examples, picks.candidates_rougeL(examples, rouge), rouge)
    names = ('random candidate', 'first of sampling', 'self-score sum', 'self-score mean', 'consensus', 'oracle')
    return {name: rougeL_by_pick[name].mean() for name in names}


def changed(ours, theirs, field):
    """Share of samples whose field, a text or a number, differs."""
    pairs = [
        (getattr(a, field), getattr(b, field))
        for our_examples, their_examples in zip(ours, theirs, strict=True)
        for our_example, their_example in zip(our_examples, their_examples, strict=True)
        for a, b in zip(our_example.samples, their_example.samples, strict=True)
    ]
    return np.mean([a != b if isinstance(a, str) else abs(a - b) >= 1e-3 for a, b in pairs])


PARTS = {'labels': labels, 'scripts': scripts, 'training': training, 'samples': samples, 'rounding': rounding}


def main(
    what: Literal['labels', 'scripts', 'training', 'samples', 'rounding'],
    data_dir='bigbench_data',  # of scripts: folder of {task}_validation.jsonl and subset_names.json
    t5=str(ROOT / 'examples' / 'tiny-t5'),  # of rounding: folder of the examples' T5
):
    """Measure one kind of difference."""
    PARTS[what](data_dir, t5)


if __name__ == '__main__':
    run(main)
