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
import functools
import logging
from typing import Annotated, Literal

import numpy as np

from cappy import Cappy, TrainingSettings, get_devices
from cappy.cli import flags, tables
from cappy.cli.phase_timer import PhaseTimer
from cappy.errors import InputError
from cappy.files.environment import environment
from cappy.files.lock import check_result, result_lock
from cappy.files.names import check_name
from cappy.files.outputs import check_folders
from cappy.files.settings import differing
from cappy.model.devices import is_first_process
from cappy.model.model_files import check_writable
from cappy.model.tokens import describe_cut
from cappy.model.training_state import Checkpoint
from cappy.study.results import (
    ResultPaths,
    describe_candidates,
    read_result,
    settings_of,
    shown_result,
    write_result,
)
from cappy.tasks import combining, picks
from cappy.tasks.candidates import by_example, candidate_pairs, read_task
from cappy.tasks.faults import count_faults, describe_faults
from cappy.tasks.finetuning import build_finetuning_examples, check_can_teach
from cappy.tasks.metrics import find_metric, labels_of, title
from cappy.tasks.picks import ADAPTED
from cappy.tasks.rouge import RougeL

logger = logging.getLogger('cappy_bigbench')
FEW_UPDATES = 20  # fewer barely leave the warm-up
_PICKS = {
    'objective': 'listwise',
    'reference_labels': 'skip',
    'lr_schedule': 'corrected',
    'combine': flags.Names(('weighted_consensus',)),
    'pick': 'combined',
}
# What docs/picks.md found to pick best, for scorers of the size of RoBERTa-large and of MiniLM.
RECIPES = {
    'picks': {'train_size': 10240, **_PICKS},
    'picks_small': {'train_size': 2880, 'learning_rate': 2e-4, 'accumulate_grad_batches': 4, **_PICKS},
}


def main(
    bigbench_gen_dir='bigbench_flan_gens',  # with {generator}/{task}_{split}.jsonl
    bigbench_gen_model='flan-t5-xxl',  # the generator whose samples are picked from
    bigbench_subset_name='auto_categorization',  # the task
    src_key='instruction',  # field of the instruction
    tgt_key='response',  # field of a sample's text
    refs_key='references',  # field of the references
    label_key='label',  # field of a sample's label, 0 to 1, where a file has them; used in place of the metric
    model_name_or_path='btan2/cappy-large',  # hub name or folder of the scorer to adapt
    n_model_shards: flags.Count = 1,  # devices over which each parameter is split
    max_length: flags.Count | None = None,  # tokens per pair; longer ones are truncated; default: the scorer's own, 512
    train_size: flags.Count = 102400,  # finetuning examples, repeated or cut to this number
    per_device_batch_size: flags.Count = 8,  # pairs of a micro-batch on each device, as the reference counts updates
    eval_per_device_batch_size: flags.Count = 32,  # kept for the reference's commands; scoring fills batches by tokens
    accumulate_grad_batches: flags.Count = 16,  # micro-batches of an update
    learning_rate: flags.Positive = 2e-5,
    warmup_rate: flags.Share = 0.1,  # share of the steps
    weight_decay: flags.NotNegative = 0.0,
    results_dir='bigbench_cappy_results',  # {generator}/{task}.json and its two companions go here
    seed: flags.Seed = 11111,
    reference_labels: Literal['one', 'leave_one_out', 'skip'] = 'one',  # how references are labelled
    recipe: Literal['paper', 'picks', 'picks_small'] = 'paper',  # defaults of other flags, listed below
    metric='rougeL',  # of labels and consensus: rougeL, exact_match, chrf, or module:function
    objective: Literal['absolute', 'centred', 'listwise'] = 'absolute',  # what is trained for: labels, or differences
    lr_schedule: Literal['reference', 'corrected'] = 'reference',  # corrected: warm-up and decay over the updates
    rouge_tokenizer: Literal['default', 'unicode'] = 'default',  # default knows a-z and 0-9 only, as the paper's
    compute_dtype: Literal['float32', 'bfloat16'] | None = None,  # default: float32 on a CPU, else bfloat16
    tokens_per_device: flags.Count | None = None,  # of a training micro-batch; default: what suits the device
    eval_tokens_per_device: flags.Count | None = None,  # of a scoring batch; default: what suits the device
    gradient_checkpointing=False,  # less memory, more time
    checkpoint_every: flags.CountFrom0 = 0,  # updates between checkpoints, from which a stopped run continues; 0: none
    compare_before=True,  # also score with the scorer as it was before adapting
    combine: flags.Names | None = None,  # signals, a,b,c: also pick by the scorer combined with them; which: docs
    n_folds: Annotated[
        int, flags.Range(least=2)
    ] = 2,  # scorers that are trained besides, for the combination's weights
    pick: Literal['scorer', 'combined'] = 'scorer',  # which pick is the result
    save_dir: str | None = None,  # keep the adapted scorer in this folder
    overwrite=False,  # replace an existing result, checkpoint and save_dir
    n_processes: flags.Count | None = None,  # hosts, as redco's Deployer takes them; so the next four
    host0_address: str | None = None,
    host0_port: flags.Port | None = None,
    process_id: flags.CountFrom0 | None = None,
    n_local_devices: flags.Count | None = None,
):
    """Adapt a scorer to one task and pick its samples."""
    settings = dict(locals())
    for name in ('bigbench_gen_model', 'bigbench_subset_name'):
        check_name(settings[name], name)
    paths = ResultPaths(results_dir, bigbench_gen_model, bigbench_subset_name)
    if paths.result.exists() and not overwrite:
        return show_existing(paths, settings)
    if not process_id:  # None or the first, which writes
        check_outputs(paths, save_dir, checkpoint_every, overwrite)
    timer = PhaseTimer()
    signals, measured_by = combining.check_names(combine, pick), find_metric(metric, rouge_tokenizer)
    task = read_task(
        bigbench_gen_dir,
        bigbench_gen_model,
        bigbench_subset_name,
        src_key=src_key,
        tgt_key=tgt_key,
        refs_key=refs_key,
        label_key=label_key,
    )
    train, validation, rouge = task['train'], task['validation'], RougeL(rouge_tokenizer)
    faults = warn_of_faults(task, rouge)
    folds = combining.cross_fitting_folds(train, n_folds, seed) if signals else []
    examples = build_finetuning_examples(train, train_size, seed, measured_by, reference_labels)
    check_can_teach(examples, objective)
    examples_of_folds = [
        build_finetuning_examples(of_fold, train_size * len(of_fold) // len(train), seed, measured_by, reference_labels)
        for of_fold, _ in folds
    ]
    for of_fold in examples_of_folds:
        check_can_teach(of_fold, objective)
    consensus = picks.consensus_of(validation, measured_by, 'consensus')
    rougeL = picks.candidates_rougeL(validation, rouge)
    also = second_metrics(validation, measured_by)
    timer.lap('data')

    devices = get_devices(n_model_shards, n_processes, host0_address, host0_port, process_id, n_local_devices)
    training = TrainingSettings.of(settings)
    training.check(train_size, devices.n_data)
    for of_fold in examples_of_folds:
        training.check(len(of_fold), devices.n_data)
    checkpoint = Checkpoint(paths.checkpoint)
    of_folds = [Checkpoint(paths.checkpoint / f'fold{number}') for number in range(1, len(folds) + 1)]
    with result_lock(paths) if is_first_process() else contextlib.nullcontext():
        if is_first_process():
            if paths.result.exists() and not overwrite:  # another process made it while this one started
                return show_existing(paths, settings)
            if overwrite:
                remove_all(of_folds, checkpoint)
        load = functools.partial(
            Cappy.from_pretrained,
            model_name_or_path,
            devices=devices,
            compute_dtype=compute_dtype,
            max_length=max_length,
            tokens_per_device=eval_tokens_per_device,
            seed=seed,
        )
        adapt = functools.partial(
            Cappy.adapt,
            settings=training,
            tokens_per_device=tokens_per_device,
            gradient_checkpointing=gradient_checkpointing,
            checkpoint_every=checkpoint_every,
        )
        scorer = load()
        settings['max_length'] = scorer.max_length
        timer.lap('load')
        before = score_candidates(scorer, validation, 'scoring (before)')[0] if compare_before else None
        timer.lap('score_before')
        trained = adapt(scorer, examples, checkpoint=checkpoint)
        timer.lap('adapt')
        scores, counts = score_candidates(scorer, validation, 'scoring')
        if counts['truncated_pairs'] and is_first_process():
            logger.warning('%s', describe_cut(counts, scorer.max_length, 'validation pairs'))
        timer.lap('score')
        held_out = [
            score_held_out(load, adapt, of_fold, left_out, of_checkpoint)
            for of_fold, (_, left_out), of_checkpoint in zip(examples_of_folds, folds, of_folds, strict=True)
        ]
        combination = fit_combination(signals, folds, held_out, measured_by)
        combined = combination.picks(validation, scores, measured_by, consensus) if combination else {}
        timer.lap('combine')
        values = picks.values_by_pick(validation, consensus, before, scores, combined)
        rougeL_by_pick = picks.rougeL_by_pick(validation, rougeL, values)
        picked_by = combining.COMBINED if pick == 'combined' else ADAPTED
        result = {
            'rougeL': float(np.mean(rougeL_by_pick[picked_by])),
            'pick': picked_by,
            'settings': settings,
            'model_digest': scorer.source_digest,
            'counts': {
                'train_examples': len(train),
                'finetuning_examples': len(set(examples)),
                **count_validation(validation, before, scores, counts),
                **count_training(train_size, trained, counts),
                'faults': faults,
            },
            'comparison': picks.compare(
                rougeL_by_pick,
                picks.count_ties(rougeL, values),
                {name: picks.rougeL_by_pick(validation, measured, values) for name, measured in also.items()},
            ),
            'combination': dataclasses.asdict(combination) if combination else None,
            'packing': trained.packing,
            'seconds': timer.seconds,
            'versions': environment(),
            'device': devices.description,
        }
        fault = save_scorer(scorer, combination, save_dir, model_card(result), overwrite) if save_dir else None
        if is_first_process():
            write_result(
                paths,
                result,
                candidates_lines(validation, values[picked_by], scores, rougeL, rougeL_by_pick),
                trained.updates,
            )
            if fault:
                raise InputError(describe_unsaved(fault, paths, checkpoint)) from fault
            remove_all(of_folds, checkpoint)
    if is_first_process():
        print(describe_result(result))


def show_existing(paths, settings):
    """Show the result that is there, and say last that it is an old one, and which settings it was made with."""
    result = read_result(paths.result)
    if 'comparison' in result:
        with shown_result(paths.result):
            print(describe_result(result))
    print(f'Result already exists in {paths.result}. Skipped: nothing was computed.')
    not_deciding = ('overwrite', 'results_dir', 'save_dir')
    if other := differing(settings_of(result), settings, ignoring=not_deciding, found=('max_length',)):
        print(f'It was made with {", ".join(other)}.')
    print('--overwrite replaces it; another --results_dir keeps both.')


def warn_of_faults(task, rouge):
    """Warn once of each fault that the task's texts may have; returns their counts by split."""
    counts = count_faults(task, rouge)
    for line in describe_faults(counts.values()).values():
        logger.warning(line)
    return counts


def remove_all(of_folds, checkpoint):
    """Remove the checkpoints of the folds, and then the one in whose folder they are."""
    for one in (*of_folds, checkpoint):
        one.remove()


def check_outputs(paths, save_dir, checkpoint_every, overwrite):
    """Find out before any work that a file or a folder cannot be written."""
    check_result(paths)
    if checkpoint_every:
        check_folders(paths.checkpoint)
    if save_dir:
        check_writable(save_dir, overwrite)


def save_scorer(scorer, combination, save_dir, card, overwrite):
    """Keep the adapted scorer and its combination; returns the InputError where that fails, or None.

    The result is worth keeping without them.
    """
    try:
        scorer.save_pretrained(save_dir, model_card=card, overwrite=overwrite)
        if combination and is_first_process():
            combination.save(save_dir)
    except InputError as error:
        return error
    return None


def describe_unsaved(fault, paths, checkpoint):
    """What to say of a result whose scorer could not be saved, on a full disk for one."""
    remedy = 'delete the result, and the same command goes on from its checkpoint'
    return f'{fault}. The result is there, {paths.result}' + (f'; {remedy}' if checkpoint.exists() else '')


def score_candidates(scorer, examples, progress):
    """([float32 [candidates] of each example], counts)."""
    scores, counts = scorer.score_with_counts(candidate_pairs(examples), progress=progress)
    return by_example(scores, examples), counts


def score_held_out(load, adapt, examples, left_out, checkpoint):
    """The scores of the left out examples by a scorer that is trained on the others."""
    scorer, fold = load(), checkpoint.path.parent.name
    adapt(scorer, examples, checkpoint=checkpoint, progress=f'adapting ({fold})')
    return score_candidates(scorer, left_out, f'scoring ({fold})')[0]


def fit_combination(signals, folds, held_out, metric):
    """The Combination of the scorer with the signals, by the scores of examples held out; None without signals."""
    if not signals:
        return None
    left_out = [example for _, of_fold in folds for example in of_fold]
    scores = [own for of_fold in held_out for own in of_fold]
    labels = [labels_of(metric, example) for example in left_out]
    return combining.Combination.fit(signals, left_out, scores, labels, metric)


def second_metrics(validation, metric):
    """{name: N arrays}: what is measured beside rougeL: the metric or, where that is rougeL, chrF; and labels."""
    found = metric if metric.name != 'rougeL' else find_metric('chrf')
    also = {found.name: picks.candidates_rougeL(validation, found)}
    if validation[0].labels is not None:
        also['label'] = [example.labels for example in validation]
    return also


def count_validation(validation, before, scores, counts):
    """Counts of the validation split; picks_changed: examples in which adapting changed the pick."""
    changed = None
    if before is not None:
        changed = sum(int(np.argmax(old) != np.argmax(new)) for old, new in zip(before, scores, strict=True))
    return {
        'validation_examples': len(validation),
        'samples': sum(len(example.samples) for example in validation),
        'candidates': counts['pairs'],
        'unique_pairs': counts['unique_pairs'],
        'picks_changed': changed,
    }


def count_training(train_size, trained, counts):
    """Counts of the training, and of both splits the pairs that were truncated, and that became equal by it."""
    n_trained = sum(update.pairs for update in trained.updates)
    return {
        'truncated_pairs': {'train': trained.n_truncated, 'validation': counts['truncated_pairs']},
        'made_equal_pairs': {'train': trained.n_made_equal, 'validation': counts['made_equal_pairs']},
        'updates': len(trained.updates),
        'pairs_trained_on': n_trained,
        'pairs_left_out': max(train_size - n_trained, 0),
    }


def candidates_lines(examples, values, scores, rougeL, rougeL_by_pick):
    """Lines of the candidates file, with the rougeL that each way of picking has for each example.

    values: what the pick takes the highest of.
    """
    for number, example in enumerate(examples):
        by_pick = {name: values[number] for name, values in rougeL_by_pick.items()}
        yield describe_candidates(example, scores[number], rougeL[number], by_pick, int(np.argmax(values[number])))


def comparison_table(rows, style='table'):
    """The ways of picking side by side, rougeL x 100; over ties too where a pick takes the first of equals."""
    tied = {row['name']: row['ties']['rougeL'] for row in rows if row.get('ties', {}).get('n_tied')}
    also = list(rows[0].get('metrics', ()))
    shown = [
        {
            'pick': row['name'],
            'rougeL': row['rougeL'],
            **row.get('metrics', {}),
            'over ties': tied.get(row['name']),
            '95% interval': None if row['low'] is None else f'{100 * row["low"]:.1f} to {100 * row["high"]:.1f}',
            'gap closed': gap_closed(row),
        }
        for row in rows
    ]
    columns = ['pick', tables.percent('rougeL'), *([tables.percent('over ties')] if tied else [])]
    return tables.format_table(
        shown, [*columns, '95% interval', 'gap closed', *(tables.percent(name, title(name)) for name in also)], style
    )


def gap_closed(row):
    """A pick's share of the way from random to oracle with its interval; nothing for these two, which define it."""
    if row['gap_closed'] is None or row['name'] in ('random candidate', 'oracle'):
        return ''
    share = f'{round(100 * row["gap_closed"])}%'
    if row['gap_low'] is None:
        return share
    low, high = (round(100 * row[key]) for key in ('gap_low', 'gap_high'))
    return f'{share} ({low} to {high}%)'


def describe_result(result):
    """What the user reads at the end."""
    settings, counts = result['settings'], result['counts']
    left_out = f', {counts["pairs_left_out"]} pairs left out' if counts['pairs_left_out'] else ''
    lines = [
        f'{settings["bigbench_subset_name"]}: {counts["validation_examples"]} validation examples, '
        f'{counts["candidates"]} candidates; adapted on {counts["pairs_trained_on"]} pairs in {counts["updates"]} '
        f'updates{left_out}.\n',
        comparison_table(result['comparison']),
        f'\nCappy + {settings["bigbench_gen_model"]} on {settings["bigbench_subset_name"]}: '
        f'{100 * result["rougeL"]:.2f} (rougeL x 100)',
        *describe_combination(result),
        *picks.describe_ties({row['name']: row['ties'] for row in result['comparison'] if 'ties' in row}),
    ]
    if remark := remark_on_training(result):
        lines.append(remark)
    return '\n'.join(lines)


def describe_combination(result):
    """What the combined pick is made of, a line in a list; none where there is no such pick."""
    combination = result.get('combination')
    return [f'combined: {combining.describe(combination["weights"])}'] if combination else []


def remark_on_training(result):
    """What to raise where too little was trained to matter; None where it was enough, or is not known."""
    settings, counts = result['settings'], result['counts']
    n_changed, n_updates = counts.get('picks_changed'), counts['updates']
    if n_changed is None or (n_changed and n_updates >= FEW_UPDATES):
        return None
    n_examples = counts['validation_examples']
    return (
        f'Adapting changed {n_changed} of {n_examples} picks: {n_updates} updates at a learning rate of at most '
        f'{settings["learning_rate"]:g} teach little. Raise --train_size, lower --accumulate_grad_batches '
        f'({settings["accumulate_grad_batches"]}), or raise --learning_rate (docs/choosing.md).'
    )


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
are the logits of `AutoModelForSequenceClassification`, of pairs tokenized with `truncation=True`. All truncate pairs to
{settings['max_length']} tokens, the tokenizer's `model_max_length`.
"""


main.presets = {'recipe': RECIPES}

if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
    flags.run(main)
