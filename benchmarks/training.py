"""A training update: packed rows against PyTorch with dynamic padding, and against rows padded to 512 tokens.

    python benchmarks/training.py
    python benchmarks/training.py --pairs_per_update 32

All have the same random weights, pairs, order and updates, with dropout, AdamW, float32, one process. PyTorch pads each
micro-batch to its longest pair and accumulates gradients, with micro-batches of 8 pairs (the reference's) and of 32.
Pairs are tokenized beforehand, and rows are planned as for a job of n_pairs. Every update runs once before it is timed,
so that no compilation is. A second run without dropout compares the losses of the updates. Figures are in
docs/benchmarks.md.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np

try:
    import torch
    from transformers import AutoModelForSequenceClassification
except ModuleNotFoundError:
    torch = None  # --help does without

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from common import (
    DATA,
    DROPOUT,
    describe_machine,
    median_seconds,
    padded_batches,
    read_pairs,
    scorer_directory,
    seconds_of,
)

from cappy import Cappy
from cappy.cli.flags import run
from cappy.errors import InputError
from cappy.model import training
from cappy.model.budgets import training_tokens
from cappy.model.packing import describe_packing
from cappy.model.tokens import encode_pairs, load_tokenizer

NEVER_STOPPED = SimpleNamespace(signal=None)  # in place of what watches for signals


class Work:
    """Pairs with labels, cut into updates."""

    def __init__(self, directory, pairs, pairs_per_update):
        self.encoded = encode_pairs(load_tokenizer(directory), *zip(*pairs, strict=True), 512)
        self.labels = np.random.default_rng(0).random(len(pairs), np.float32)
        self.order = np.arange(len(pairs)).reshape(-1, pairs_per_update)
        # No warm-up: its first update would change nothing.
        self.settings = training.TrainingSettings(
            learning_rate=2e-4, warmup_rate=0.0, per_device_batch_size=8, accumulate_grad_batches=pairs_per_update // 8
        )
        self.optimizer = self.settings.optimizer(len(pairs), 1)


class Ours:
    """Our updates, of packed rows or of padded ones."""

    def __init__(self, directory, work, tokens_per_device=None, padded=False):
        scorer, self.work = Cappy.from_pretrained(directory), work
        self.config = scorer.config
        n_pairs = len(work.labels)
        if padded:
            self.plans = [padded_batches(work.order.shape[1], 8) for _ in work.order]
            self.packing = describe_packing(self.plans, [work.encoded.lengths[group] for group in work.order])
        else:
            tokens = tokens_per_device or training_tokens(self.config, scorer.devices, scorer.compute_dtype)
            self.plans, self.packing = training._plan_updates(
                work.order, work.encoded, np.arange(n_pairs), self.config, scorer.devices, tokens
            )
        self.run = training.TrainingRun(
            scorer.params, self.config, scorer.devices, scorer.compute_dtype, work.optimizer, work.settings.seed
        )

    def update(self, number):
        """Make one update; returns the loss before it."""
        group, labels = self.work.order[number], self.work.labels
        batches = training.MicroBatches(self.plans[number], self.work.encoded, group, labels[group], self.config)
        return self.run.update(number, batches, NEVER_STOPPED).loss


class PyTorch:
    """The plain loop: micro-batches in order, each padded to its longest pair.

    device: as PyTorch names it; autocast: products in bfloat16, the weights stay float32.
    """

    def __init__(self, directory, work, micro_batch_size, device='cpu', autocast=False):
        self.work, self.micro_batch_size, self.device, self.autocast = work, micro_batch_size, device, autocast
        model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
        self.model = model.to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=0.0, fused=True)

    def update(self, number):
        """Make one update; returns the loss before it."""
        group, loss = self.work.order[number], 0.0
        for first in range(0, len(group), self.micro_batch_size):
            pairs = group[first : first + self.micro_batch_size]
            with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
                logits = self.model(**self._padded(pairs)).logits[:, 0].float()
            labels = torch.from_numpy(self.work.labels[pairs]).to(self.device)
            part = torch.square(logits - labels).sum() / len(group)
            part.backward()
            loss += part.detach()
        for settings in self.optimizer.param_groups:
            settings['lr'] = float(self.work.optimizer.schedule(number))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss)  # waits for the device

    def _padded(self, pairs):
        encoded = self.work.encoded
        lengths = encoded.lengths[pairs]
        tokens = np.full((len(pairs), lengths.max()), self.model.config.pad_token_id, np.int64)
        types, mask = np.zeros_like(tokens), np.zeros_like(tokens)
        for row, (pair, length) in enumerate(zip(pairs, lengths, strict=True)):
            place = slice(encoded.offsets[pair], encoded.offsets[pair + 1])
            tokens[row, :length], mask[row, :length] = encoded.tokens[place], 1
            types[row, :length] = encoded.types[place]
        inputs = {'input_ids': tokens, 'attention_mask': mask}
        if self.model.config.model_type == 'bert':
            inputs['token_type_ids'] = types
        return {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}


def largest_loss_difference(size, pairs, pairs_per_update, n_updates):
    """(largest difference between our losses and PyTorch's, our losses) of the first updates, without dropout."""
    with scorer_directory(size, pairs, dropout=0.0) as directory:
        work = Work(directory, pairs, pairs_per_update)
        ours, theirs = Ours(directory, work), PyTorch(directory, work, 32)
        losses = np.array([(ours.update(number), theirs.update(number)) for number in range(n_updates)])
    return np.abs(losses[:, 0] - losses[:, 1]).max(), losses[:, 0]


def main(
    size: Literal['minilm', 'base'] = 'minilm',
    texts: Literal['e2e', 'p3', 'synthetic'] = 'e2e',
    data: str = str(DATA),  # folder with e2e_nlg/ and p3/
    pairs_per_update=128,
    n_pairs=4096,  # of the job: the more there are, the closer row lengths fit them
    n_updates=2,  # the first ones of the job, which are timed
    n_repeats=3,  # the median of these is printed
    tokens_per_device: int | None = None,  # of our micro-batches; default: what suits the device
    n_padded=16,  # pairs padded to 512, where each takes the same time; 0: not timed
):
    """Time a training update, ours, PyTorch's and padded to 512."""
    if torch is None:
        raise InputError('the comparison with PyTorch needs it: pip install torch')
    pairs = read_pairs(texts, data, n_pairs // pairs_per_update * pairs_per_update)
    print(describe_machine('jax', 'torch', 'transformers', 'numpy'))
    with scorer_directory(size, pairs) as directory:
        work = Work(directory, pairs, pairs_per_update)
        ours = Ours(directory, work, tokens_per_device)
        sides = {'packed': ours} | {f'PyTorch, {n} per micro-batch': PyTorch(directory, work, n) for n in (8, 32)}
        n_timed = dict.fromkeys(sides, n_updates * pairs_per_update)
        if n_padded:
            sides['padded to 512'] = Ours(directory, Work(directory, pairs[:n_padded], n_padded), padded=True)
            n_timed['padded to 512'] = n_padded

        def updates(name):
            return [sides[name].update(number) for number in range(-(-n_timed[name] // pairs_per_update))]

        first = {name: seconds_of(lambda name=name: updates(name)) for name in sides}
        seconds = median_seconds({name: lambda name=name: updates(name) for name in sides}, n_repeats)
    print(f'{size}, {texts}, {pairs_per_update} pairs per update, {work.encoded.lengths.mean():.0f} tokens per pair')
    print(f'dropout {DROPOUT}, median of {n_repeats}; packing {ours.packing}')
    for name, s in seconds.items():
        per_pair, packed_per_pair = s / n_timed[name], seconds['packed'] / n_timed['packed']
        print(f'{name:26} {per_pair * pairs_per_update:8.3f} s per update {1 / per_pair:7.1f} pairs/s', end='')
        print(f' {per_pair / packed_per_pair:6.2f}x packed; the first run took {first[name] - s:.1f} s more')
    difference, losses = largest_loss_difference(size, pairs, pairs_per_update, n_updates)
    print(f'without dropout: losses {losses.round(4)}, largest difference to PyTorch {difference:.1e}')


if __name__ == '__main__':
    run(main)
