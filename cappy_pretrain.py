"""Pretraining: make a scorer from an encoder and pairs of (instruction, response, label) (sections 3.1 and 3.2).

    python scripts/get_pretrain_data.py --hub bigscience/P3
    python cappy_pretrain.py --model_name_or_path roberta-large

The paper's Cappy is RoBERTa-large after 160 million pairs. The reference has no script for it and its pairs were never
released; the ones here are built in the paper's way. What this gives for MiniLM and 55,000 real instances on two CPU
cores, and what the paper's run would cost, is in docs/pretraining.md.
"""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import Literal

import numpy as np

from cappy import Cappy, get_devices
from cappy.cli import flags, tables
from cappy.cli.phase_timer import PhaseTimer
from cappy.files.atomic import read_fields, write_atomically, write_json
from cappy.files.environment import environment
from cappy.files.inputs import GZIP_ENDING, find
from cappy.files.lock import check_result, result_lock
from cappy.files.outputs import check_folders
from cappy.files.updates import write_updates
from cappy.model.devices import is_first_process
from cappy.model.model_files import check_writable
from cappy.model.pretraining import PretrainingSettings
from cappy.model.training_state import Checkpoint
from cappy.pretrain_data import evaluation
from cappy.pretrain_data.stream import HELD_OUT_FILE, Stream, check_shards, data_digest, find_shards

logger = logging.getLogger('cappy_pretrain')


def main(
    data_dir='pretrain_data',  # train-*.jsonl and heldout.jsonl, as scripts/get_pretrain_data.py writes them
    model_name_or_path='roberta-large',  # hub name or folder of an encoder or a scorer to begin with
    output_dir='pretrained_scorer',  # best/ and last/ (scorers), result.json, train.csv, evaluations.jsonl
    from_scratch=False,  # random parameters; only the model's config and tokenizer are read
    n_epochs: flags.Count = 1,  # passes over the pairs
    global_batch_size: flags.Count = 1024,  # pairs of an update, whatever the devices
    learning_rate: flags.Positive = 1e-6,
    warmup_rate: flags.Share = 0.1,  # share of the updates
    lr_schedule: Literal['linear', 'cosine'] = 'linear',  # how the rate falls to 0 after the warm-up
    weight_decay: flags.NotNegative = 0.01,  # of matrices and embeddings; biases and norms have none
    clip_norm: flags.NotNegative = 1.0,  # longer gradients are scaled to this; 0: none are
    max_length: flags.Count | None = None,  # tokens per pair; longer ones are truncated; default: the model's own, 512
    seed: flags.Seed = 11111,
    eval_every: flags.CountFrom0 = 500,  # updates between evaluations on held-out templates; 0: only before and after
    best_by: Literal['squared_error', 'accuracy', 'rank_correlation'] = 'squared_error',  # of best/
    checkpoint_every: flags.CountFrom0 = 500,  # updates between checkpoints, from which a stopped run continues
    n_model_shards: flags.Count = 1,  # devices over which each parameter is split
    compute_dtype: Literal['float32', 'bfloat16'] | None = None,  # default: float32 on a CPU, else bfloat16
    tokens_per_device: flags.Count | None = None,  # of a training micro-batch; default: what suits the device
    gradient_checkpointing=False,  # less memory, more time
    tensorboard_dir: str | None = None,  # also write losses and evaluations there, by redco's Deployer
    overwrite=False,  # replace an existing result and checkpoint
    n_processes: flags.Count | None = None,  # hosts, as redco's Deployer takes them; so the next four
    host0_address: str | None = None,
    host0_port: flags.Port | None = None,
    process_id: flags.CountFrom0 | None = None,
    n_local_devices: flags.Count | None = None,
):
    """Pretrain a scorer."""
    settings = dict(locals())
    paths = PretrainingPaths(Path(output_dir))
    if paths.result.exists() and not overwrite:
        return show_existing(paths)
    if not process_id:  # None or the first, which writes
        check_outputs(paths, tensorboard_dir)
    timer = PhaseTimer()
    training = PretrainingSettings.of(settings)
    stream = read_stream(data_dir, training)
    held_out = read_held_out(data_dir)
    timer.lap('data')

    devices = get_devices(
        n_model_shards, n_processes, host0_address, host0_port, process_id, n_local_devices, tensorboard_dir
    )
    checkpoint = Checkpoint(paths.checkpoint)
    with result_lock(paths) if is_first_process() else contextlib.nullcontext():
        if is_first_process():
            if paths.result.exists() and not overwrite:  # another process made it while this one started
                return show_existing(paths)
            if overwrite:
                checkpoint.remove()
                paths.evaluations.unlink(missing_ok=True)
        scorer = Cappy.from_pretrained(
            model_name_or_path,
            devices=devices,
            compute_dtype=compute_dtype,
            max_length=max_length,
            seed=seed,
            from_scratch=from_scratch,
        )
        settings['max_length'] = scorer.max_length
        timer.lap('load')
        n_updates = training.n_updates(stream.n_pairs)
        evaluations = Evaluations(scorer, held_out, paths, settings, n_updates, checkpoint.updates())
        before = evaluations.begin()
        timer.lap('evaluate_before')
        updates, feed = scorer.pretrain(
            stream,
            training,
            tokens_per_device=tokens_per_device,
            gradient_checkpointing=gradient_checkpointing,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            fingerprint={
                'pairs of data_dir': data_digest(stream.shards),
                'from_scratch': from_scratch,
            },
            on_update=evaluations,
        )
        timer.lap('pretrain')
        after = evaluations.last or evaluations.judge(None)  # where a stopped run had made its last update already
        is_judged = held_out is not None
        result = {
            'best': evaluations.best(),
            'settings': settings,
            'model_digest': scorer.source_digest,
            'counts': count(stream, held_out, updates, feed),
            'comparison': evaluation.compare(held_out, before, after, seed) if is_judged else [],
            'by_template': evaluation.by_template(held_out, before, after) if is_judged else [],
            'evaluations': evaluations.lines(),
            'packing': feed.packing,
            'seconds': timer.seconds,
            'versions': environment(),
            'device': devices.description,
        }
        scorer.save_pretrained(paths.last, model_card=model_card(settings, evaluations.lines()[-1]), overwrite=True)
        if is_first_process():
            write_updates(paths.updates, updates)
            write_json(paths.result, result)
            checkpoint.remove()
    if is_first_process():
        report(result, paths)


@dataclasses.dataclass(frozen=True)
class PretrainingPaths:
    """The files of a pretraining."""

    folder: Path

    @property
    def result(self):
        return self.folder / 'result.json'

    @property
    def updates(self):
        return self.folder / 'train.csv'

    @property
    def evaluations(self):
        return self.folder / 'evaluations.jsonl'

    @property
    def best(self):
        return self.folder / 'best'

    @property
    def last(self):
        return self.folder / 'last'

    @property
    def checkpoint(self):
        return self.folder / 'checkpoint'

    @property
    def lock(self):
        return self.folder / 'lock'

    @property
    def written(self):
        return self.result, self.updates, self.evaluations


def show_existing(paths):
    """Show the result that is there, and say last that it is an old one."""
    report(read_fields(paths.result, ('counts', 'comparison', 'best', 'settings')), paths)
    print(f'Result already exists in {paths.result}. Skipped: nothing was computed. --overwrite replaces it.')


def check_outputs(paths, tensorboard_dir):
    """Find out before any work that a file or a folder cannot be written."""
    check_result(paths)
    check_folders(paths.checkpoint, *([tensorboard_dir] if tensorboard_dir else []))
    for folder in (paths.best, paths.last):
        check_writable(folder, overwrite=True)


def read_held_out(data_dir):
    """The held-out pairs of a folder, None where it has none."""
    path = find(Path(data_dir) / HELD_OUT_FILE)
    if path.exists():
        return evaluation.read_held_out(path)
    logger.warning('%s: no such file; nothing is evaluated, and the last weights are the best', path)
    return None


def read_stream(data_dir, training):
    """The pairs to train on, each checked once."""
    shards = find_shards(data_dir)
    if not any(path.suffix == GZIP_ENDING for path in shards):
        training.check(sum(path.stat().st_size for path in shards))  # no more pairs than bytes: finds wrong flags early
    stream = Stream(tuple(check_shards(shards)), training.n_epochs, training.window_size, training.seed)
    training.check(stream.n_pairs)
    return stream


def count(stream, held_out, updates, feed):
    """Counts of the pairs, the updates and what is held out."""
    n_pairs = sum(update.pairs for update in updates)
    return {
        'shards': len(stream.shards),
        'pairs': stream.n_pairs // stream.n_epochs,
        'updates': len(updates),
        'pairs_trained_on': n_pairs,
        'pairs_left_out': stream.n_pairs - n_pairs,
        'truncated_share': feed.n_truncated / feed.n_pairs if feed.n_pairs else None,
        'held_out_pairs': len(held_out.pairs) if held_out else 0,
        'held_out_instances': len(held_out.starts) - 1 if held_out else 0,
    }


class Evaluations:
    """Judges the scorer on held-out templates during training, and keeps the best weights.

    updates: those that a checkpoint holds already. A line of evaluations.jsonl: {"update": how many were made,
    "train_loss": mean over those since the line before, measures}. A run that continues from a checkpoint writes the
    lines after it again.
    """

    def __init__(self, scorer, held_out, paths, settings, n_updates, updates):
        self.scorer, self.held_out, self.paths, self.settings = scorer, held_out, paths, settings
        self.n_updates, self.updates, self.last = n_updates, updates, None

    def begin(self):
        """The Judgement of the scorer as it is; the first line, where no checkpoint is continued."""
        judgement = self.judge('evaluating (before)')
        if not self.updates:
            self._record(0, judgement)
        return judgement

    def __call__(self, update):
        """After an update; the scorer has the weights after it."""
        n_made, every = update.update + 1, self.settings['eval_every']
        self.updates.append(update)
        self._log({'loss': update.loss, 'learning_rate': update.learning_rate, 'grad_norm': update.grad_norm}, n_made)
        if n_made == self.n_updates or (every and n_made % every == 0):
            self.last = self.judge(None)
            self._record(n_made, self.last)

    def lines(self):
        """What is written so far."""
        if not self.paths.evaluations.exists():
            return []
        return [json.loads(line) for line in self.paths.evaluations.read_text(encoding='utf-8').splitlines()]

    def best(self, lines=None):
        """The best line, the first of equals; None where nothing was measured."""
        name = self.settings['best_by']
        measured = [line for line in (self.lines() if lines is None else lines) if line.get(name) is not None]
        sign = 1 if name == 'squared_error' else -1
        return min(measured, key=lambda line: sign * line[name], default=None)

    def judge(self, progress):
        """The Judgement of the scorer as it is now; None where nothing is held out."""
        if self.held_out is None:
            return None
        pairs = [row[:2] for row in self.held_out.pairs]
        return evaluation.judge(self.held_out, self.scorer.score(pairs, progress=progress))

    def _record(self, n_made, judgement):
        lines = [line for line in self.lines() if line['update'] < n_made]
        losses = [update.loss for update in self.updates[lines[-1]['update'] if lines else 0 :]]
        line = {'update': n_made, 'train_loss': float(np.mean(losses)) if losses else None}
        if judgement is not None:
            line |= {name: judgement.mean(name) for name in evaluation.MEASURES}
        lines.append(line)
        if n_made and (judgement is None or self.best(lines) is line):
            self.scorer.save_pretrained(self.paths.best, model_card=model_card(self.settings, line), overwrite=True)
        if is_first_process():
            write_updates(self.paths.updates, self.updates)
            with write_atomically(self.paths.evaluations) as file:
                file.writelines(json.dumps(line) + '\n' for line in lines)
        measured = {name: line[name] for name in evaluation.MEASURES if line.get(name) is not None}
        logger.info('after %d updates: %s', n_made, ', '.join(f'{name} {measured[name]:.4f}' for name in measured))
        self._log({f'held out {name}': value for name, value in measured.items()}, n_made)

    def _log(self, metrics, step):
        self.scorer.devices.deployer.log_metrics(metrics, step)


def report(result, paths):
    """What the user reads at the end."""
    counts = result['counts']
    print(f'{counts["pairs_trained_on"]} pairs in {counts["updates"]} updates, {counts["pairs_left_out"]} left out.\n')
    if counts.get('truncated_share'):
        print(f'{counts["truncated_share"]:.1%} of them were truncated to {result["settings"]["max_length"]} tokens.\n')
    if result['comparison']:
        print(comparison_table(result['comparison']))
        best = result['best']
        name = result['settings']['best_by']
        print(f'\nHeld out: {counts["held_out_instances"]} instances. Best {name} {best[name]:.4f} ', end='')
        print(f'after {best["update"]} updates: {paths.best if best["update"] else "the weights before"}')
    print(f'Last weights: {paths.last}')


def comparison_table(rows, style='table'):
    """Before and after on held-out templates."""
    shown = [
        {
            'measure': row['measure'].replace('_', ' '),
            'instances': row['instances'],
            'chance': f'{row["chance"]:.3f}' if 'chance' in row else '',
            'before': evaluation.with_interval(row, 'before'),
            'after': evaluation.with_interval(row, 'after'),
            'gain': evaluation.with_interval(row, 'gain'),
            'over chance': evaluation.with_interval(row, 'above_chance'),
        }
        for row in rows
    ]
    return tables.format_table(shown, list(shown[0]), style)


def model_card(settings, line):
    """README.md of a saved scorer."""
    base = f'`{settings["model_name_or_path"]}`' + (', weights from scratch' if settings['from_scratch'] else '')
    measured = ''.join(
        f'- Held out, {n.replace("_", " ")}: {line[n]:.4f}\n' for n in evaluation.MEASURES if line.get(n)
    )
    return f"""---
library_name: transformers
pipeline_tag: text-classification
---
# A pretrained scorer

Says how correct a response to an instruction is (about 0 to 1, unbounded). Made by `cappy_pretrain.py`.

- Base: {base}
- Updates: {line['update']} of {settings['global_batch_size']} pairs, rate {settings['learning_rate']}
  ({settings['lr_schedule']} after a warm-up), seed {settings['seed']}, at most {settings['max_length']} tokens per pair
{measured}
`sentence-transformers`: `CrossEncoder(folder).predict(pairs)` gives these scores as they are; in `transformers` they
are the logits of `AutoModelForSequenceClassification`, of pairs tokenized with `truncation=True`. All truncate pairs to
{settings['max_length']} tokens, the tokenizer's `model_max_length`.
"""


if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
    flags.run(main)
