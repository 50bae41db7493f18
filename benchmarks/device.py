"""A GPU or TPU in one command: scoring, training and memory, against CrossEncoder and padding to 512 on the same card.

    python benchmarks/device.py --output device.json
    python benchmarks/device.py --texts p3_like --cell --output device.json
    python benchmarks/device.py --size tiny --n_pairs 32 --n_padded 8 --n_updates 1 --pairs_per_update 8

All sides have the same random weights and made-up pairs, in one process. Ours is `Cappy.score` and a training update,
in bfloat16 on a device that has it. CrossEncoder (sentence-transformers) is in bfloat16 with PyTorch's fused attention,
in batches of 32 and of 128; PyTorch's update has float32 weights and products in bfloat16. Padded to 512 is the
reference's way: our encoder, one pair per row. Without PyTorch on the device, its sides are left out, and said.
Everything runs once before it is timed. The share of the peak counts the products of real tokens alone, without padding
(matrix_products.py), against the card's data sheet and against what one large product reaches in this run.

With --output the figures are in that file after each part, so that a run that is cut off leaves what it has measured.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Literal

# As much memory as is used, so that its peak says something and PyTorch has room beside it.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from common import (
    LENGTHS,
    SIZES,
    describe_machine,
    made_up_pairs,
    median_seconds,
    scorer_directory,
    seconds_of,
)
from cross_encoders import load_cross_encoders
from matrix_products import operations
from scoring import score_padded
from training import Ours, PyTorch, Work

from cappy import Cappy, InputError, TrainingSettings
from cappy.cli import flags
from cappy.files.atomic import to_json, write_json
from cappy.files.outputs import check_files
from cappy.model.packing import describe_packing
from cappy.model.scoring import score_encoded
from cappy.model.tokens import encode_pairs

# Operations per second of dense bfloat16 products (float16 for the T4), by the vendors' data sheets, halved where those
# count sparse products. The first name that is a part of the device's counts.
PEAKS = {
    'H100 PCIe': 756e12,
    'H100': 989e12,
    'H200': 989e12,
    'A100': 312e12,
    'L40S': 362e12,
    'L4': 121e12,
    'A10G': 70e12,
    'T4': 65e12,
    'TPU v6': 918e12,
    'TPU v5 lite': 197e12,
    'TPU v5': 459e12,
    'TPU v4': 275e12,
}
CROSS_ENCODER_BATCHES = (32, 128)  # its default, and one that fills a large card
PYTORCH_MICRO_BATCH = 32  # pairs; the reference's 8 fill no large card
PADDED_ROWS = 32  # the reference's per_device_eval_batch_size
GIB = 2**30


class Report:
    """Figures by name, printed as they come, and written to a file after each part.

    output: the file, None: they are printed as JSON at the end.
    """

    def __init__(self, output):
        self.output, self.figures = output, {}

    def add(self, part, figures):
        """Keep a part's figures, and print them on one line each."""
        self.figures[part] = figures
        for name, value in figures.items():
            print(f'{part}: {name}: {_in_words(value)}', flush=True)
        if self.output:
            write_json(self.output, self.figures)

    def end(self):
        """Print everything as JSON, where no file has it."""
        if not self.output:
            print(to_json('standard output', self.figures, indent=4))


def _in_words(value):
    if isinstance(value, dict):
        return ', '.join(f'{name} {_in_words(each)}' for name, each in value.items())
    return f'{value:.4g}' if isinstance(value, float) else str(value)


class Peak:
    """What products a device can do in a second, by its data sheet (None where it is not known) and as measured."""

    def __init__(self, devices, dtype, width, sheet_tflops=None):
        device = devices.mesh.devices.flat[0]
        of_sheet = [peak for name, peak in PEAKS.items() if name in device.device_kind]
        self.sheet = sheet_tflops * 1e12 if sheet_tflops else (of_sheet[0] if of_sheet else None)
        self.measured = product_rate(device, dtype, width)
        if self.sheet:
            self.sheet *= devices.mesh.devices.size
        self.measured *= devices.mesh.devices.size

    def shares(self, n_operations, seconds):
        """{TFLOP/s, share of each peak} of work that took so long."""
        rate = n_operations / seconds
        shares = {'TFLOP/s': rate / 1e12, 'share of a large product': rate / self.measured}
        return shares | ({'share of the data sheet': rate / self.sheet} if self.sheet else {})


def product_rate(device, dtype, width, n_products=20):
    """Operations per second of width x width products on one device, the best of five runs."""
    matrix = jax.device_put(np.random.default_rng(0).random((width, width), np.float32), device).astype(dtype)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b) / width)  # divided, lest numbers grow beyond all bounds

    def work():
        product = matrix
        for _ in range(n_products):
            product = multiply(product, matrix)
        product.block_until_ready()

    work()
    return 2 * width**3 * n_products / min(seconds_of(work) for _ in range(5))


def memory(devices):
    """{GiB in use, at the peak so far, and in all} of the first device; {} where it does not say, as a CPU."""
    stats = devices.mesh.devices.flat[0].memory_stats() or {}
    names = {'bytes_in_use': 'GiB in use', 'peak_bytes_in_use': 'GiB at the peak', 'bytes_limit': 'GiB in all'}
    return {words: stats[name] / GIB for name, words in names.items() if name in stats}


def torch_memory(device):
    """GiB that PyTorch has held at its peak since the last call; None where it has no part in it, or on a CPU."""
    if device != 'cuda' or why_no_torch(device):
        return None
    import torch

    peak = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()
    return peak


def why_no_torch(device):
    """Why PyTorch's sides are left out, None where they are not; device: 'cuda', 'cpu' or 'none'."""
    if device == 'none':
        return 'not asked for'
    if not all(map(importlib.util.find_spec, ('torch', 'sentence_transformers'))):
        return 'torch or sentence-transformers is not installed'
    import torch

    if device == 'cuda' and not torch.cuda.is_available():
        return f'torch {torch.__version__} finds no CUDA device'


def timed(sides, n_repeats):
    """({name: median seconds}, {name: seconds of the first run beyond that}, {name: what the first run returned})."""
    results = {}

    def keep(name):
        results[name] = sides[name]()

    first = {name: seconds_of(lambda name=name: keep(name)) for name in sides}
    seconds = median_seconds(sides, n_repeats)
    return seconds, {name: first[name] - seconds[name] for name in sides}, results


def measure_scoring(ours, cross_encoders, lengths, n_pairs, n_padded, n_repeats, peak):
    """The figures of one kind of texts: {side: {pairs/s, ..}}, and what the pairs are."""
    pairs = list(dict.fromkeys(made_up_pairs(lengths, n_pairs)))
    encoded = encode_pairs(ours.tokenizer, *zip(*pairs, strict=True), ours.max_length)
    sides = {'packed': lambda: ours.score(pairs)}
    for name, model in cross_encoders.items():
        for size in CROSS_ENCODER_BATCHES:
            sides[f'{name}, batches of {size}'] = lambda model=model, size=size: np.asarray(
                model.predict(pairs, batch_size=size, show_progress_bar=False), np.float32
            )
    if n_padded:
        sides['padded to 512'] = lambda: score_padded(ours, pairs[:n_padded], PADDED_ROWS)
    seconds, first, scores = timed(sides, n_repeats)
    _, plan = score_encoded(ours.params, encoded, ours.config, ours.devices, ours.compute_dtype)
    packing = describe_packing([plan], [encoded.lengths])
    figures = {'pairs': {'pairs': len(pairs), 'tokens per pair': float(encoded.lengths.mean()), **packing}}
    packed_pace = len(pairs) / seconds['packed']
    for name, took in seconds.items():
        n = len(scores[name])
        figures[name] = {
            'pairs/s': n / took,
            'packed is faster by': packed_pace / (n / took),
            **peak.shares(operations(encoded.lengths[:n], ours.config), took),
            'first run took s more': first[name],
            'largest difference': float(np.abs(scores[name] - scores['packed'][:n]).max()),
        }
    return figures


def measure_training(directory, pairs, n_updates, pairs_per_update, n_padded, torch_device, n_repeats, peak):
    """The figures of training updates: {side: {tokens/s, ..}}; torch_device: None for no PyTorch."""
    work = Work(directory, pairs, pairs_per_update)
    ours = Ours(directory, work)
    runs, n_timed = {'packed': ours}, {'packed': n_updates * pairs_per_update}
    if torch_device:
        name = f'PyTorch, {PYTORCH_MICRO_BATCH} per micro-batch'
        runs[name] = PyTorch(directory, work, PYTORCH_MICRO_BATCH, torch_device, autocast=True)
        n_timed[name] = n_timed['packed']
    if n_padded:
        runs['padded to 512'] = Ours(directory, Work(directory, pairs[:n_padded], n_padded), padded=True)
        n_timed['padded to 512'] = n_padded

    def updates(name):
        return [runs[name].update(number) for number in range(-(-n_timed[name] // pairs_per_update))]

    seconds, first, losses = timed({name: lambda name=name: updates(name) for name in runs}, n_repeats)
    figures = {'pairs': {'tokens per pair': float(work.encoded.lengths.mean()), **ours.packing}}
    packed_pace = n_timed['packed'] / seconds['packed']
    for name, took in seconds.items():
        n = n_timed[name]
        lengths = work.encoded.lengths[:n]
        figures[name] = {
            'tokens/s': float(lengths.sum() / took),
            'pairs/s': n / took,
            'packed is faster by': packed_pace / (n / took),
            # The gradients by inputs and by weights are as many products again as the forward pass, each.
            **peak.shares(3 * operations(lengths, ours.config), took),
            'first run took s more': first[name],
            'first loss': losses[name][0],
        }
    return figures


def measure_cell(directory, n_pairs, n_scored, lengths):
    """Seconds of a whole cell, compilations included: n_pairs adapted to with the paper's settings, n_scored scored."""
    scorer = Cappy.from_pretrained(directory)
    examples = [(*pair, (number % 11) / 10) for number, pair in enumerate(made_up_pairs(lengths, n_pairs))]
    to_score = made_up_pairs(lengths, n_scored, seed=1)
    trained = []
    adapting = seconds_of(lambda: trained.append(scorer.adapt(examples, TrainingSettings(), progress=False)))
    scoring = seconds_of(lambda: scorer.score(to_score))
    counts = {'pairs': n_pairs, 'texts': lengths, 'updates': len(trained[0].updates), 'scored': n_scored}
    return {**counts, 'seconds of adapting': adapting, 'seconds of scoring': scoring, **memory(scorer.devices)}


def main(
    size: Literal['tiny', 'minilm', 'base', 'large'] = 'large',
    texts: flags.Names = ('p3_like', 'e2e_like', 'synthetic'),  # synthetic: mixed lengths
    n_pairs: flags.Count = 4096,  # of each kind of texts, scored; half of them for the updates
    n_padded: flags.CountFrom0 = 512,  # so many of them padded to 512, where each takes the same time; 0: none
    n_updates: flags.Count = 4,  # timed
    pairs_per_update: flags.Count = 128,  # a multiple of 8
    n_repeats: flags.Count = 3,  # the median of these is taken
    product_width: flags.Count | None = None,  # of the large product; default: 8192, on a CPU 512
    peak_tflops: flags.Positive | None = None,  # of one device, default: by its data sheet, where it is known here
    torch_device: Literal['cuda', 'cpu', 'none'] = 'cuda',  # of CrossEncoder and of PyTorch's updates
    cell=False,  # also adapt to cell_pairs and score n_pairs, as a whole
    cell_pairs: flags.Count = 102400,  # the paper's
    cell_texts: str = 'e2e_like',
    output: str | None = None,  # a JSON file; default: printed at the end
):
    """Measure the device."""
    unknown = [name for name in (*texts, cell_texts) if name not in LENGTHS]
    if unknown:
        raise InputError(f'texts: found {unknown[0]!r}; choose of {",".join(LENGTHS)}')
    if pairs_per_update % 8 or n_pairs // 2 < n_updates * pairs_per_update:
        raise InputError(
            f'n_pairs {n_pairs}: half of them do not fill {n_updates} updates of {pairs_per_update}, a multiple of 8'
        )
    if output:
        check_files(output)
    report, no_torch = Report(output), why_no_torch(torch_device)
    kinds = {lengths: made_up_pairs(lengths, n_pairs // 2 // pairs_per_update * pairs_per_update) for lengths in texts}
    print(describe_machine('jax', 'jaxlib', 'torch', 'sentence-transformers', 'transformers', 'numpy'), flush=True)
    with scorer_directory(size, kinds[texts[0]]) as directory:
        ours = Cappy.from_pretrained(directory)
        devices = ours.devices
        report.add('device', describe_device(ours, size, no_torch))
        width = product_width or (512 if devices.platform == 'cpu' else 8192)
        peak = Peak(devices, ours.compute_dtype, width, peak_tflops)
        report.add('peak', {'data sheet': peak.sheet, f'product of {width}': peak.measured})
        theirs = {} if no_torch else load_cross_encoders(directory, ['bfloat16'], torch_device)[0]
        for lengths in texts:
            figures = measure_scoring(ours, theirs, lengths, n_pairs, n_padded, n_repeats, peak)
            report.add(f'scoring {lengths}', figures)
        report.add('memory of scoring', {**memory(devices), 'PyTorch, GiB at the peak': torch_memory(torch_device)})
        del ours, theirs
        for lengths in texts:
            figures = measure_training(
                directory,
                kinds[lengths],
                n_updates,
                pairs_per_update,
                min(n_padded, 32) // 8 * 8,
                None if no_torch else torch_device,
                n_repeats,
                peak,
            )
            report.add(f'training {lengths}', figures)
        report.add('memory of training', {**memory(devices), 'PyTorch, GiB at the peak': torch_memory(torch_device)})
        if cell:
            report.add('cell', measure_cell(directory, cell_pairs, n_pairs, cell_texts))
    report.end()


def describe_device(scorer, size, no_torch):
    """{what the figures are of}, with the path that the scorer's check of the device found."""
    found = scorer.self_check()
    n_parameters = sum(leaf.size for leaf in jax.tree.leaves(scorer.params))
    return {
        'machine': describe_machine('jax', 'jaxlib', 'torch', 'sentence-transformers', 'transformers', 'numpy'),
        'device': scorer.devices.description,
        'driver': scorer.devices.mesh.devices.flat[0].client.platform_version,
        'model': f'{size}, {SIZES[size]["num_hidden_layers"]} layers, {n_parameters / 1e6:.0f}M parameters',
        'self-check': f'{"passed" if found.passed else "FAILED"}: {found}',
        'PyTorch': f'left out: {no_torch}' if no_torch else 'measured',
    }


if __name__ == '__main__':
    flags.run(main)
