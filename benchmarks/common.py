"""What the benchmarks share: pairs of texts, scorers with random weights, timing, a line that describes the machine."""

import contextlib
import gzip
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from cappy.errors import InputError
from cappy.model.config import EncoderConfig
from cappy.model.model_files import find_model, write_model
from cappy.model.packing import Batch
from cappy.model.tensors import expected_tensors
from cappy.model.training import TrainingSettings
from cappy.tasks.candidates import read_examples
from cappy.tasks.questions import read_choices

DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data'

DROPOUT = 0.1  # both sizes' published rate
SIZES = {
    'tiny': {  # for tests
        'model_type': 'roberta',
        'vocab_size': 8000,
        'hidden_size': 32,
        'num_hidden_layers': 2,
        'num_attention_heads': 2,
        'intermediate_size': 64,
        'max_position_embeddings': 514,
        'type_vocab_size': 1,
        'layer_norm_eps': 1e-5,
        'pad_token_id': 1,
    },
    'minilm': {
        'model_type': 'bert',
        'vocab_size': 30522,
        'hidden_size': 384,
        'num_hidden_layers': 6,
        'num_attention_heads': 12,
        'intermediate_size': 1536,
        'max_position_embeddings': 512,
        'type_vocab_size': 2,
        'layer_norm_eps': 1e-12,
        'pad_token_id': 0,
    },
    'base': {
        'model_type': 'roberta',
        'vocab_size': 50265,
        'hidden_size': 768,
        'num_hidden_layers': 12,
        'num_attention_heads': 12,
        'intermediate_size': 3072,
        'max_position_embeddings': 514,
        'type_vocab_size': 1,
        'layer_norm_eps': 1e-5,
        'pad_token_id': 1,
    },
}
SIZES['large'] = SIZES['base'] | {
    'hidden_size': 1024,
    'num_hidden_layers': 24,
    'num_attention_heads': 16,
    'intermediate_size': 4096,
}
# A vocabulary of this size, learned from the texts, gives 1.2 to 1.3 tokens per English word, as the published ones do.
TRAINED_VOCABULARY = 8000
SYLLABLES = 'ba ce di fo gu la me ni po ru sta tre vi wor shing tion ed ing able ly'


def adapting_settings(seed, pairs_per_update, learning_rate, max_length, objective='absolute'):
    """TrainingSettings of a small scorer that is adapted on one device, an update one batch of pairs."""
    return TrainingSettings(
        learning_rate=learning_rate,
        lr_schedule='corrected',
        per_device_batch_size=pairs_per_update,
        accumulate_grad_batches=1,
        max_length=max_length,
        seed=seed,
        objective=objective,
    )


def read_pairs(texts, data, n_pairs, seed=0):
    """n_pairs different (instruction, response) pairs, drawn at random; of crows_pairs the first ones, in order.

    texts: a key of READERS; data: folder with e2e_nlg/, p3/ and promptsource/.
    Raises InputError where the texts are missing or too few.
    """
    pairs = list(dict.fromkeys(READERS[texts](Path(data))))
    if len(pairs) < n_pairs:
        raise InputError(f'{data}: {texts} has {len(pairs)} pairs; asked for {n_pairs}')
    if texts == 'crows_pairs':  # drawn pairs would seldom share their question
        return pairs[:n_pairs]
    return random.Random(seed).sample(sorted(pairs), n_pairs)


def _read_e2e(data):
    file = _existing(data / 'e2e_nlg' / 'e2e_nlg_train.jsonl', 'scripts/get_e2e_nlg.py makes it')
    return [(example.instruction, response) for example in read_examples(file) for response in example.candidates]


def _read_p3(data):
    file = _existing(data / 'p3' / 't0_train_55k.jsonl.gz', 'lines of {"instruction", "response"}')
    with gzip.open(file, 'rt', encoding='utf-8') as lines:
        return [(row['instruction'], row['response']) for row in map(json.loads, lines)]


def _read_crows_pairs(data):
    """The pairs that cappy_promptsource.py scores: one per answer choice of each question under each template."""
    folder = data / 'promptsource'
    source = _existing(folder / 'crows_pairs' / 'crows_pairs_anonymized.csv', 'docs/promptsource-data.md names it')
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / 'rows.jsonl'
        script = Path(__file__).parents[1] / 'scripts' / 'get_promptsource_data.py'
        flags = ['--output', rows, '--templates_dir', folder / 'templates', '--tasks', 'crows_pairs']
        command = [sys.executable, script, *flags, '--local', f'crows_pairs={source}']
        subprocess.run(command, check=True, capture_output=True)
        return [(row.instruction, row.response) for row in read_choices(rows)]


# Words of an instruction and of a response, drawn by a random.Random. Made-up words are about one token each.
LENGTHS = {
    # Instructions of 10 to 200 words, most of them short.
    'synthetic': (lambda draw: int(10 * 20 ** draw.random()), lambda draw: draw.randrange(5, 30)),
    # P3's words: half of the instructions have 37 to 202, half of the responses 1 to 7; few are very long.
    'p3_like': (
        lambda draw: min(int(draw.lognormvariate(4.45, 1.12)) + 4, 2000),
        lambda draw: min(int(draw.lognormvariate(0.7, 1.6)) + 1, 400),
    ),
    # E2E NLG's tokens, some 80 for a pair, all pairs about alike.
    'e2e_like': (lambda draw: draw.randrange(32, 48), lambda draw: max(8, int(draw.gauss(36, 10)))),
}


def made_up_pairs(lengths, n_pairs, seed=0):
    """n_pairs (instruction, response) pairs of made-up words; lengths: a key of LENGTHS."""
    generator = random.Random(seed)
    syllables = SYLLABLES.split()
    vocabulary = [''.join(generator.choices(syllables, k=1 + rank % 4)) for rank in range(5000)]
    frequencies = list(itertools.accumulate(1 / (1 + rank) for rank in range(5000)))

    def text(n_words):
        return ' '.join(generator.choices(vocabulary, cum_weights=frequencies, k=n_words))

    of_instruction, of_response = LENGTHS[lengths]
    return [(text(of_instruction(generator)), text(of_response(generator))) for _ in range(n_pairs)]


def _made_up(data):
    return made_up_pairs('synthetic', 4000)


READERS = {'e2e': _read_e2e, 'p3': _read_p3, 'crows_pairs': _read_crows_pairs, 'synthetic': _made_up}


def _existing(file, where_from):
    if not file.exists():
        raise InputError(f'{file}: no such file ({where_from}); give --data FOLDER, or --texts synthetic')
    return file


def scorer_config(size, dropout=DROPOUT):
    """The fields of a config.json, of a scorer of a size; size: a key of SIZES."""
    return SIZES[size] | {
        'hidden_act': 'gelu',
        'hidden_dropout_prob': dropout,
        'attention_probs_dropout_prob': dropout,
        'initializer_range': 0.02,
        'num_labels': 1,
    }


@contextlib.contextmanager
def scorer_directory(size, pairs, dropout=DROPOUT, seed=0):
    """A model directory with random weights and a tokenizer learned from the pairs' texts; removed after the block.

    size: a key of SIZES.
    """
    published = scorer_config(size, dropout)
    config = EncoderConfig.from_published(published, size)
    generator = np.random.default_rng(seed)
    tensors = {
        name: _random_tensor(name, shape, generator, config.initializer_range)
        for name, shape in expected_tensors(config).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / size
        tokenizer = _make_tokenizer(published['model_type'], [text for pair in pairs for text in pair])
        write_model(directory, tensors, published, tokenizer=tokenizer)
        yield directory


@contextlib.contextmanager
def model_directory(name, pairs):
    """The directory of a named model; for 'random' that of scorer_directory, of MiniLM's size."""
    if name == 'random':
        with scorer_directory('minilm', pairs) as directory:
            yield directory
    else:
        yield find_model(name)


def _random_tensor(name, shape, generator, spread):
    if name.endswith('bias'):
        return np.zeros(shape, np.float32)
    if 'LayerNorm' in name:
        return np.ones(shape, np.float32)
    return generator.normal(0, spread, shape).astype(np.float32)


def _make_tokenizer(model_type, texts):
    """WordPiece with BERT's special tokens, or byte pairs with RoBERTa's, learned from the texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if model_type == 'bert':
        special = {'pad': '[PAD]', 'unk': '[UNK]', 'cls': '[CLS]', 'sep': '[SEP]', 'mask': '[MASK]'}
        tokenizer = Tokenizer(models.WordPiece(unk_token='[UNK]'))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=TRAINED_VOCABULARY, special_tokens=[*special.values()])
    else:
        special = {'cls': '<s>', 'pad': '<pad>', 'sep': '</s>', 'unk': '<unk>', 'mask': '<mask>'}
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=TRAINED_VOCABULARY, special_tokens=[*special.values()], initial_alphabet=alphabet
        )
    trainer.show_progress = False
    tokenizer.train_from_iterator(texts, trainer)
    processor = processors.BertProcessing if model_type == 'bert' else processors.RobertaProcessing
    tokenizer.post_processor = processor(
        *((special[end], tokenizer.token_to_id(special[end])) for end in ('sep', 'cls'))
    )
    inputs = (
        ['input_ids', 'token_type_ids', 'attention_mask'] if model_type == 'bert' else ['input_ids', 'attention_mask']
    )
    tokens = {f'{name}_token': token for name, token in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, model_max_length=512, **tokens)


def padded_batches(n_pairs, rows, row_length=512):
    """The reference's layout: one pair per row of row_length tokens, `rows` rows per micro-batch."""
    batches = []
    for first in range(0, n_pairs, rows):
        pair = np.arange(first, first + rows, dtype=np.int32)[:, None]
        batches.append(Batch(row_length, np.where(pair < n_pairs, pair, -1), np.zeros_like(pair)))
    return batches


def seconds_of(work):
    """Seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_seconds(works, n_repeats):
    """{name: median seconds} of several functions, called in turn, n_repeats times each.

    In turn, so that other work of the machine slows all of them alike.
    """
    seconds = {name: [] for name in works}
    for _ in range(n_repeats):
        for name, work in works.items():
            seconds[name].append(seconds_of(work))
    return {name: statistics.median(values) for name, values in seconds.items()}


def describe_machine(*packages):
    """One line: cores, processor, memory, and the versions of Python and the packages."""
    versions = []
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f'{name} {version(name)}')
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    processor = f'{len(os.sched_getaffinity(0))} cores of {_processor()}, {memory:.0f} GiB'
    return ', '.join([processor, f'Python {platform.python_version()}', *versions])


def _processor():
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()
