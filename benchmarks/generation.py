"""Samples, beams and log-likelihoods of a T5 of FLAN-T5-small's size: ours, PyTorch's, and as the reference does it.

    python benchmarks/generation.py
    python benchmarks/generation.py --ends never --n_instructions 32
    python benchmarks/generation.py --what log_likelihoods

Random weights, float32, one process, tokenizing and decoding included; everything runs once before it is timed.

Lengths of texts decide much of the time, since a fixed batch waits for its longest text and ours does not; and random
weights hardly ever end a text. So the output's row of the end token is set such that texts have --mean_length tokens on
average, with a geometric distribution (--ends coin); with --ends never, all texts have 63 tokens and nothing waits. The
other logits have a standard deviation of 4, a perplexity of about 10.

PyTorch gets the instructions sorted by length and padded to the longest of a batch, and one `generate` per decoding
with `num_return_sequences`; its min_length of 4 is our 3. As the reference does it: PyTorch's `generate` once per
sample, padded to 512. Figures are in docs/benchmarks.md.
"""

import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

try:
    import torch
    from transformers import T5ForConditionalGeneration
except ModuleNotFoundError:
    torch = None  # --help works without it

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from common import DATA, describe_machine, read_pairs

from cappy.cli.flags import run
from cappy.errors import InputError
from cappy.generate.decodings import parse_decoding
from cappy.generate.generator import Generator
from cappy.generate.sampling import sample_key
from cappy.generate.t5 import T5, T5Config, params_shapes
from cappy.model.model_files import write_model
from cappy.model.tensors import tensor_names
from cappy.tasks.candidates import REFERENCE_DECODINGS

SMALL = {
    'model_type': 't5',
    'architectures': ['T5ForConditionalGeneration'],
    'vocab_size': 32128,
    'd_model': 512,
    'd_kv': 64,
    'd_ff': 1024,
    'num_layers': 8,
    'num_decoder_layers': 8,
    'num_heads': 6,
    'relative_attention_num_buckets': 32,
    'relative_attention_max_distance': 128,
    'layer_norm_epsilon': 1e-6,
    'feed_forward_proj': 'gated-gelu',
    'tie_word_embeddings': False,
    'decoder_start_token_id': 0,
    'pad_token_id': 0,
    'eos_token_id': 1,
}
LOGIT_SPREAD = 4
DECODINGS = [parse_decoding(name) for name in REFERENCE_DECODINGS]


@contextlib.contextmanager
def generator_directory(texts, mean_length, ends, seed=0):
    """A model directory with random weights and a tokenizer made from the texts, while the block runs."""
    config = T5Config.from_published(SMALL, 'small', has_head=True)
    generator = np.random.default_rng(seed)
    tensors = {}
    for (name, is_kernel), leaf in zip(
        tensor_names(shapes := params_shapes(config)), jax.tree.leaves(shapes), strict=True
    ):
        shape = leaf.shape[::-1] if is_kernel else leaf.shape
        tensors[name] = random_tensor(name, shape, generator, config)
    set_end(tensors, config, mean_length, ends, generator)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / 'small'
        write_model(directory, tensors, SMALL, tokenizer=make_tokenizer(texts, config.vocab_size))
        yield directory


def random_tensor(name, shape, generator, config):
    """Random as at the beginning of T5's training, except for the larger spread of the output."""
    if 'layer_norm' in name:
        return np.ones(shape, np.float32)
    fan_in = {'wo': config.d_ff, 'o': config.num_heads * config.d_kv}.get(name.split('.')[-2], config.d_model)
    spread = fan_in**-0.5
    if name.endswith('Attention.q.weight'):
        spread = (config.d_model * config.d_kv) ** -0.5
    if name.startswith('shared'):
        spread = 1.0
    if name.startswith('lm_head'):
        spread *= LOGIT_SPREAD
    return generator.normal(0, spread, shape).astype(np.float32)


def set_end(tensors, config, mean_length, ends, generator):
    """Make the end token's probability 1 / mean_length on average, or 0, by a feature that all hidden states share."""
    tensors['shared.weight'][:, 0] = 8
    tensors['lm_head.weight'][:, 0] = 0
    tensors['lm_head.weight'][config.eos_token_id] = 0
    shapes = params_shapes(config)
    leaves = [tensors[name].T if is_kernel else tensors[name] for name, is_kernel in tensor_names(shapes)]
    params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    model = T5(config)

    def states(params, source, target):
        visible = jnp.ones(source.shape, bool)
        hidden = model.apply({'params': params}, source, visible, method='encode')
        ones = jnp.ones_like(target)
        hidden = model.apply({'params': params}, target, ones, hidden, visible, method='decode')
        return hidden[:, 0], jax.nn.logsumexp(model.apply({'params': params}, hidden, method='logits'), axis=-1)

    source, target = (generator.integers(2, config.vocab_size, (8, n)) for n in (64, 16))
    shared, others = map(np.asarray, jax.jit(states)(params, source, target))
    low, high = -100.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        probability = np.mean(1 / (1 + np.exp(others - middle * shared)))
        low, high = (middle, high) if probability < 1 / mean_length else (low, middle)
    tensors['lm_head.weight'][config.eos_token_id, 0] = -100 if ends == 'never' else high


def make_tokenizer(texts, size):
    """Unigram pieces learned from the texts, filled up with invented words to the vocabulary's size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ['<pad>', '</s>', '<unk>']
    learned = Tokenizer(models.Unigram())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(
        texts,
        trainers.UnigramTrainer(vocab_size=8000, special_tokens=specials, unk_token='<unk>', show_progress=False),
    )
    pieces = sorted(learned.get_vocab().items(), key=lambda item: item[1])
    pieces = [(piece, -0.001 * rank - 2) for piece, rank in pieces]
    pieces += [(f'\u2581word{number}', -9.0) for number in range(size - 28 - len(pieces))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    tokens = {'pad_token': '<pad>', 'eos_token': '</s>', 'unk_token': '<unk>'}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def generate_ours(generator, instructions, n_samples):
    """The number of tokens drawn."""
    before = generator.n_tokens

    def key_of(index, decoding, number):
        return sample_key(0, index, decoding, number)

    for _ in generator.generate(instructions, DECODINGS, n_samples, key_of):
        pass
    return generator.n_tokens - before


def generate_torch(model, tokenizer, instructions, n_samples, batch_size, as_reference=False):
    """The number of tokens drawn by PyTorch, one call per decoding; as_reference: one per sample, padded to 512."""
    n_tokens = 0
    instructions = sorted(instructions, key=lambda text: len(tokenizer(text).input_ids))
    for decoding in DECODINGS:
        if decoding.n_beams:
            settings, n_calls, n_each = {'num_beams': decoding.n_beams}, 1, 1
        else:
            settings = {'do_sample': True, 'temperature': decoding.temperature, 'top_k': decoding.top_k}
            settings |= {'top_p': decoding.top_p}
            n_calls, n_each = (n_samples, 1) if as_reference else (1, n_samples)
        for first in range(0, len(instructions), batch_size):
            padding = {'padding': 'max_length', 'max_length': 512} if as_reference else {'padding': True}
            batch = tokenizer(instructions[first : first + batch_size], return_tensors='pt', **padding)
            batch.pop('token_type_ids', None)
            for _ in range(n_calls):
                found = model.generate(**batch, **settings, num_return_sequences=n_each, min_length=4, max_length=64)
                tokenizer.batch_decode(found, skip_special_tokens=True)
                n_tokens += count_tokens(found[:, 1:].numpy())
    return n_tokens


def count_tokens(found, end=1):
    """Tokens of texts [N, T], each up to and with its end token."""
    is_end = found == end
    return int(np.where(is_end.any(1), is_end.argmax(1) + 1, found.shape[1]).sum())


def log_likelihoods_ours(generator, pairs):
    """The log-likelihood of each (instruction, response)."""
    indices = {text: index for index, text in enumerate(dict.fromkeys(text for text, _ in pairs))}
    sources = dict(enumerate(generator.encode(generator.encode_texts(indices, 512))))
    texts = {index: {'all': []} for index in sources}
    for instruction, response in pairs:
        texts[indices[instruction]]['all'].append(response)
    likelihoods = generator.log_likelihoods(sources, texts, 64)
    return [likelihoods[indices[instruction]][response][0] for instruction, response in pairs]


def log_likelihoods_torch(model, tokenizer, pairs, batch_size):
    """The same, sorted by length, each batch padded to its longest."""
    sources, targets = (tokenizer([pair[i] for pair in pairs], truncation=True, max_length=n).input_ids
                        for i, n in ((0, 512), (1, 64)))  # fmt: skip
    order = sorted(range(len(pairs)), key=lambda i: (len(sources[i]), len(targets[i])))
    sums = np.empty(len(pairs))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        source = tokenizer.pad({'input_ids': [sources[i] for i in batch]}, return_tensors='pt')
        target = tokenizer.pad({'input_ids': [targets[i] for i in batch]}, return_tensors='pt')
        with torch.no_grad():
            labels = target.input_ids
            logits = model(**source, decoder_input_ids=model._shift_right(labels)).logits
            found = torch.log_softmax(logits, -1).gather(-1, labels[..., None])[..., 0] * target.attention_mask
        sums[batch] = found.sum(-1).numpy()
    return sums


def compare_generation(directory, instructions, n_samples, batch_size, n_reference):
    ours = Generator.from_pretrained(directory)
    theirs = T5ForConditionalGeneration.from_pretrained(directory).eval()
    tokenizer = ours.tokenizer
    sides = {
        'ours': lambda: generate_ours(ours, instructions, n_samples),
        f'PyTorch, batches of {batch_size}': lambda: generate_torch(
            theirs, tokenizer, instructions, n_samples, batch_size
        ),
        'as the reference': lambda: generate_torch(theirs, tokenizer, instructions[:n_reference], n_samples, 8, True),
    }
    generate_ours(ours, instructions, n_samples)
    generate_torch(theirs, tokenizer, instructions[:2], 1, batch_size)
    ours.seconds.clear()
    rates = {}
    for name, side in sides.items():
        if name.startswith('as') and not n_reference:
            continue
        start = time.perf_counter()
        n_tokens = side()
        seconds = time.perf_counter() - start
        rates[name] = n_tokens / seconds
        n_texts = (n_reference if name.startswith('as') else len(instructions)) * (1 + n_samples * 4)
        print(
            f'{name:26} {seconds:7.2f} s {n_tokens / n_texts:6.1f} tokens per text {rates[name]:8.1f} tokens/s', end=''
        )
        print(f'  ours is {rates["ours"] / rates[name]:.2f}x', flush=True)
    print('ours:', {name: round(value, 2) for name, value in ours.seconds.items()})


def compare_log_likelihoods(directory, instructions, n_samples, batch_size):
    ours = Generator.from_pretrained(directory)
    theirs = T5ForConditionalGeneration.from_pretrained(directory).eval()

    def key_of(index, decoding, number):
        return sample_key(0, index, decoding, number)

    drawn = ours.generate(instructions, DECODINGS[1:], n_samples, key_of)
    pairs = [
        (instructions[index], response.text)
        for index, by_decoding in drawn
        for responses in by_decoding.values()
        for response in responses
    ]
    log_likelihoods_ours(ours, pairs)
    log_likelihoods_torch(theirs, ours.tokenizer, pairs[:4], batch_size)
    found, seconds = {}, {}
    for name, side in {
        'ours': lambda: log_likelihoods_ours(ours, pairs),
        'PyTorch': lambda: log_likelihoods_torch(theirs, ours.tokenizer, pairs, batch_size),
    }.items():
        start = time.perf_counter()
        found[name] = np.array(side())
        seconds[name] = time.perf_counter() - start
        n_tokens = sum(map(len, ours.encode_texts([text for _, text in pairs], 64)))
        print(
            f'{name:10} {seconds[name]:7.2f} s {n_tokens / seconds[name]:8.1f} tokens/s of {len(pairs)} texts', end=''
        )
        print(f'  ours is {seconds[name] / seconds["ours"]:.2f}x', flush=True)
    print(f'largest difference of sums {np.abs(found["ours"] - found["PyTorch"]).max():.1e}')


def main(
    what: Literal['generation', 'log_likelihoods'] = 'generation',
    texts: Literal['e2e', 'p3', 'synthetic'] = 'e2e',  # source of the instructions
    data: str = str(DATA),  # the folder that holds e2e_nlg/ and p3/
    n_instructions=24,
    n_samples=4,  # per instruction and decoding; beam4 gives one
    ends: Literal['coin', 'never'] = 'coin',
    mean_length=8,  # tokens per text after the three in which the end is barred; with --ends coin
    batch_size=8,  # instructions in a batch of PyTorch's; for log-likelihoods it has four times as many pairs
    n_reference=8,  # instructions drawn as the reference does it; 0: none
):
    """Time generation or log-likelihoods."""
    if torch is None:
        raise InputError('the comparison with PyTorch needs it: pip install torch')
    torch.manual_seed(0)
    pairs = read_pairs(texts, data, n_instructions * 8)
    instructions = list(dict.fromkeys(instruction for instruction, _ in pairs))[:n_instructions]
    print(describe_machine('jax', 'torch', 'transformers', 'numpy'))
    with generator_directory([text for pair in pairs for text in pair], mean_length, ends) as directory:
        lengths = [len(ids) for ids in Generator.from_pretrained(directory).encode_texts(instructions, 512)]
        print(f'{texts}, {len(instructions)} instructions of {np.mean(lengths):.0f} tokens (longest {max(lengths)})')
        if what == 'generation':
            compare_generation(directory, instructions, n_samples, batch_size, n_reference)
        else:
            compare_log_likelihoods(directory, instructions, n_samples, 4 * batch_size)


if __name__ == '__main__':
    run(main)
