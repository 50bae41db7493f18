"""Adapt a scorer to one task, pick an LLM's samples with it, report rougeL (Tan et al., NeurIPS 2023, section 4.2).

The scorer is finetuned on the train split's samples, labelled by ROUGE-L against the references; then it scores the
validation split's samples, and the best of each example is kept. With the published weights (btan2/cappy-large) and the
published samples of flan-t5-xxl the paper reports a mean rougeL of 37.17 over 45 tasks, where beam search has 29.66.

    python cappy_bigbench.py --bigbench_gen_model flan-t5-xxl --bigbench_subset_name auto_categorization

A task took the reference 40 minutes on an A10G. The same flags, data and defaults; those from `reference_labels` on are
ours. See docs/commands.md for each, docs/reproduction.md for what differs.
"""

import contextlib
import dataclasses
import itertools
import logging
from typing import Literal

import numpy as np

from cappy.cli import flags, tables
from cappy.cli.phase_timer import Clock
from cappy.files.environment import environment
from cappy.files.lock import result_lock
from cappy.model import model_files
from cappy.model.processes import is_first_process, start_devices
from cappy.study import results
from cappy.tasks import blending, picks
from cappy.tasks.candidates import read_task
from cappy.tasks.finetuning import build_finetuning_examples
from cappy.tasks.rouge import RougeL

logger = logging.getLogger('cappy_bigbench')


def main(
    bigbench_gen_dir='bigbench_flan_gens',  # {generator}/{task}_{split}.jsonl lie here
    bigbench_gen_model='flan-t5-xxl',  # the generator whose samples are picked from
    bigbench_subset_name='auto_categorization',  # the task
    src_key='instruction',  # field of the instruction
    tgt_key='response',  # field of a sample's text
    refs_key='references',  # field of the references
    label_key='label',  # kept for the reference's commands; no file has this field
    model_name_or_path='btan2/cappy-large',  # hub name or folder of the scorer to adapt
    n_model_shards=1,  # devices over which each weight is split
    max_length=512,  # tokens of a pair; longer ones are truncated
    train_size=102400,  # finetuning examples, repeated or cut to this number
    per_device_batch_size=8,  # pairs; times data-parallel devices and accumulate_grad_batches an update
    eval_per_device_batch_size=32,  # kept for the reference's commands; scoring fills batches by tokens
    accumulate_grad_batches=16,
    learning_rate=2e-5,
    warmup_rate=0.1,  # share of the steps
    weight_decay=0.0,
    results_dir='bigbench_cappy_results',  # {generator}/{task}.json and its two companions go here
    seed=11111,
    reference_labels: Literal['one', 'leave_one_out', 'skip'] = 'one',  # how references are labelled
    lr_schedule: Literal['reference', 'corrected'] = 'reference',  # corrected: warm-up and decay over the updates
    rouge_tokenizer: Literal['default', 'unicode'] = 'default',  # default knows a-z and 0-9 only, as the paper's
    compute_dtype: Literal['float32', 'bfloat16'] | None = None,  # default: float32 on a CPU, else bfloat16
    tokens_per_device: int | None = None,  # of a training micro-batch; default: what suits the device
    eval_tokens_per_device: int | None = None,  # of a scoring batch; default: what suits the device
    gradient_checkpointing=False,  # less memory, more time
    checkpoint_every=0,  # updates between checkpoints; a stopped run then goes on where it was
    compare_before=True,  # also score with the scorer as it was before adapting
    combine: str | None = None,  # consensus, self_score or both: also pick by the scorer together with them
    save_dir: str | None = None,  # keep the adapted scorer in this folder
    overwrite=False,  # replace an existing result, checkpoint and save_dir
    n_processes: int | None = None,  # hosts, as redco's Deployer takes them; so the next four
    host0_address: str | None = None,
    host0_port: int | None = None,
    process_id: int | None = None,
    n_local_devices: int | None = None,
):
    """Adapt a scorer to one task and pick its samples."""
    settings = dict(locals())
    paths = results.ResultPaths(results_dir, bigbench_gen_model, bigbench_subset_name)
    if paths.result.exists() and not overwrite:
        return show_existing(paths, settings)
    clock = Clock()
    ways = blending.parse_ways(combine)
    task = read_task(
        bigbench_gen_dir, bigbench_gen_model, bigbench_subset_name, src_key=src_key, tgt_key=tgt_key, refs_key=refs_key
    )
    rouge = RougeL(rouge_tokenizer)
    together = blending.Together(task, ways, seed, rouge)
    examples = build_finetuning_examples(together.train, train_size, seed, rouge, reference_labels)
    rougeL = picks.candidates_rougeL(task['validation'], rouge)
    warn_of_unread_texts(rouge, task)
    clock.lap('data')

    devices = start_devices(settings)
    with writing(paths, settings):
        scorer = load_scorer(settings, devices)
        clock.lap('load')
        trained = adapt(scorer, examples, settings, paths)
        clock.lap('adapt')
        scores, counts = score_candidates(scorer, task['validation'], 'scoring')
        clock.lap('score')
        combined = combine_ways(scorer, together, scores)
        before = score_before(settings, devices, task['validation'])
        clock.lap('score_before')
        picked = picks.all_picks(task['validation'], rougeL, rouge, before, scores, combined)
        rows = picks.compare(picked, seed=seed)
        result = describe(settings, task, examples, trained, counts, clock, devices, rows, together)
        lines = candidates_lines(task['validation'], scores, rougeL, picked)
        save(scorer, paths, settings, result, lines, trained)
    if is_first_process():
        report(result)


def show_existing(paths, settings):
    """Say that the result is there, and where it was made under other settings."""
    print(f'Result already exists in {paths.result}. Skipped.')
    result = results.read_result(paths.result)
    made_with = result.get('settings', {})
    ours = ('overwrite', 'results_dir', 'save_dir')  # do not change a result
    other = [key for key in settings if key not in ours and key in made_with and made_with[key] != settings[key]]
    if other:
        told = ', '.join(f'{key} {made_with[key]!r} (asked for: {settings[key]!r})' for key in other)
        print(f'It was made with {told}. --overwrite replaces it; another --results_dir keeps both.')
    if 'comparison' in result:
        report(result)


def warn_of_unread_texts(rouge, task):
    """Say once how many examples the paper's rougeL cannot read."""
    groups = [(*example.references, *example.candidates) for split in task.values() for example in split]
    if n_unread := rouge.n_unread(groups):
        logger.warning(
            '%d of %d examples have texts in which rougeL reads no word (it knows a-z and 0-9) and scores 0; '
            '--rouge_tokenizer unicode reads them',
            n_unread,
            len(groups),
        )


@contextlib.contextmanager
def writing(paths, settings):
    """The first process holds the result's lock, and finds out that a folder cannot be written before any work."""
    if not is_first_process():
        yield
        return
    with result_lock(paths):
        if paths.result.exists() and not settings['overwrite']:  # another process made it while this one started
            show_existing(paths, settings)
            raise SystemExit(0)
        if settings['save_dir']:
            model_files.check_writable(settings['save_dir'], settings['overwrite'])
        if settings['overwrite']:
            adapting_checkpoint(paths).remove()
        yield


def adapting_checkpoint(paths):
    """Where a stopped adapting of this cell lies."""
    from cappy.model.training_state import Checkpoint

    return Checkpoint(paths.checkpoint)


def load_scorer(settings, devices):
    """The scorer to adapt, after its settings are known to be sound."""
    from cappy import Cappy

    training_settings(settings).check(settings['train_size'], devices.n_data)
    return Cappy.from_pretrained(
        settings['model_name_or_path'],
        devices=devices,
        compute_dtype=settings['compute_dtype'],
        max_length=settings['max_length'],
        tokens_per_device=settings['eval_tokens_per_device'],
        seed=settings['seed'],
    )


def training_settings(settings):
    """Those of the flags that decide the result of training."""
    from cappy.model.training import TrainingSettings

    return TrainingSettings(**{field.name: settings[field.name] for field in dataclasses.fields(TrainingSettings)})


def adapt(scorer, examples, settings, paths):
    """Finetune; -> training.Trained."""
    return scorer.adapt(
        examples,
        training_settings(settings),
        tokens_per_device=settings['tokens_per_device'],
        gradient_checkpointing=settings['gradient_checkpointing'],
        checkpoint=adapting_checkpoint(paths),
        checkpoint_every=settings['checkpoint_every'],
    )


def score_candidates(scorer, examples, progress):
    """([float32 [candidates] of each example], counts)."""
    pairs = [(example.instruction, candidate) for example in examples for candidate in example.candidates]
    scores, counts = scorer.score_with_counts(pairs, progress=progress)
    ends = np.cumsum([len(example.candidates) for example in examples])
    return np.split(scores, ends[:-1]), counts


def combine_ways(scorer, together, scores):
    """{row: [float64 [candidates] of each validation example]} of the scorer together with other ways."""
    if not together.held_out:
        return {}
    held_scores, _ = score_candidates(scorer, together.held_out, 'scoring (held out)')
    return together.combine(held_scores, scores)


def score_before(settings, devices, examples):
    """Scores of the scorer as it was, read anew (training gives its weights up); None where they are not asked for."""
    if not settings['compare_before']:
        return None
    return score_candidates(load_scorer(settings, devices), examples, 'scoring (before)')[0]


def describe(settings, task, examples, trained, counts, clock, devices, rows, together):
    """The result file's content (docs/design.md, Files)."""
    by_name = {row['name']: row for row in rows}
    return {
        'rougeL': by_name['scorer after adapting']['rougeL'],
        'settings': settings,
        'counts': {
            'train_examples': len(task['train']),
            'held_out_examples': len(together.held_out),
            'validation_examples': len(task['validation']),
            'finetuning_examples': len(set(examples)),
            'samples': sum(len(example.samples) for example in task['validation']),
            'candidates': counts['pairs'],
            'unique_pairs': counts['unique_pairs'],
            'truncated_pairs': {
                'train': trained.packing.pop('truncated_pairs'),
                'validation': counts['truncated_pairs'],
            },
            'updates': len(trained.updates),
            'pairs_trained_on': sum(update.pairs for update in trained.updates),
            'pairs_left_out': settings['train_size'] - sum(update.pairs for update in trained.updates),
        },
        'comparison': rows,
        'combined_weights': together.weights,
        'packing': trained.packing,
        'seconds': clock.seconds,
        'versions': environment(),
        'device': devices.description,
    }


def candidates_lines(examples, scores, rougeL, picked):
    """Lines of the candidates file, with the rougeL that each way of picking has of each example."""
    picked = [{name: values[number] for name, values in picked.items()} for number in range(len(examples))]
    return itertools.starmap(results.describe_candidates, zip(examples, scores, rougeL, picked, strict=True))


def save(scorer, paths, settings, result, lines, trained):
    """The adapted scorer, where it is to be kept, and the three result files; then the checkpoint may go."""
    if settings['save_dir']:
        scorer.save_pretrained(settings['save_dir'], model_card=model_card(result), overwrite=settings['overwrite'])
    if is_first_process():
        results.write_result(paths, result, lines, trained.updates)
        adapting_checkpoint(paths).remove()


def comparison_table(rows, style='table'):
    """The ways of picking side by side, rougeL x 100."""
    shown = [
        {
            'pick': row['name'],
            'rougeL': row['rougeL'],
            '95% interval': f'{100 * row["low"]:.1f} to {100 * row["high"]:.1f}',
            'gap closed': '' if row['gap_closed'] is None else f'{100 * row["gap_closed"]:.0f}%',
            'its interval': ''
            if row['gap_closed'] is None
            else f'{100 * row["gap_low"]:.0f} to {100 * row["gap_high"]:.0f}%',
        }
        for row in rows
    ]
    return tables.format_table(
        shown, ['pick', tables.percent('rougeL'), '95% interval', 'gap closed', 'its interval'], style
    )


def report(result):
    """What the user reads at the end."""
    settings, counts = result['settings'], result['counts']
    left_out = f', {counts["pairs_left_out"]} pairs left out' if counts['pairs_left_out'] else ''
    print(f'{settings["bigbench_subset_name"]}: {counts["validation_examples"]} validation examples, ', end='')
    print(f'{counts["candidates"]} candidates; adapted on ', end='')
    print(f'{counts["pairs_trained_on"]} pairs in {counts["updates"]} updates{left_out}.\n')
    print(comparison_table(result['comparison']))
    print(f'\nCappy + {settings["bigbench_gen_model"]} on {settings["bigbench_subset_name"]}: {result["rougeL"]}')


def model_card(result):
    """README.md of a saved scorer."""
    settings, counts = result['settings'], result['counts']
    rows = {row['name']: row['rougeL'] for row in result['comparison']}
    gain = 100 * (result['rougeL'] - rows['random candidate'])
    return f"""---
library_name: transformers
pipeline_tag: text-classification
---
# A scorer adapted to {settings['bigbench_subset_name']}

Says how correct a response to an instruction of this task is (about 0 to 1, unbounded). Made by `cappy_bigbench.py`.

- Base: `{settings['model_name_or_path']}`
- Data: samples of `{settings['bigbench_gen_model']}` for {counts['train_examples']} training instructions of
  `{settings['bigbench_subset_name']}`, labelled by rougeL against the references
  (reference_labels: {settings['reference_labels']})
- Trained on {counts['pairs_trained_on']} pairs in {counts['updates']} updates, rate {settings['learning_rate']}
  ({settings['lr_schedule']} schedule), seed {settings['seed']}, at most {settings['max_length']} tokens a pair
- Measured on {counts['validation_examples']} validation examples: rougeL of its pick {100 * result['rougeL']:.1f},
  {gain:+.1f} against a random candidate

{comparison_table(result['comparison'], 'markdown')}

`sentence-transformers`: `CrossEncoder(folder).predict(pairs)` gives these scores as they are; in `transformers` they
are the logits of `AutoModelForSequenceClassification`.
"""


if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
    flags.run(main)
