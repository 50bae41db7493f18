"""Train the examples' language model: a tiny T5, on other inputs of the same tasks.

    python examples/make_language_model.py

Writes tiny-t5/ beside this file (not committed): a T5 v1.1 with its tokenizer, in transformers' format, from which
scripts/bigbench_flan_generate.py draws the examples' candidates. Needs PyTorch (pip install torch). Training stops
while the model still makes many mistakes: a better one would leave nothing to pick.
"""

import os
import sys
from itertools import chain
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import UnigramTrainer

try:
    import torch
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
except ModuleNotFoundError:
    torch = None  # --help does without

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from tasks import language_model_inputs

from cappy.cli import flags
from cappy.errors import InputError

GENERATOR = 'tiny-t5'
# Of the training pairs: with these shares all three tasks are half learned at the same time.
SHARES = {'mixed_kinds': 0.18, 'rewrite_tense': 0.5, 'facts_to_sentence': 0.32}
MAX_TOKENS = 64  # of a target


def main(
    output_dir: str = str(Path(__file__).parent / GENERATOR),
    n_updates=440,
    batch_size=48,  # pairs per update, from all tasks
    learning_rate=1.5e-3,
    vocab_size=700,  # at most; the texts have fewer pieces
    d_model=128,
    n_layers=2,  # of the encoder and of the decoder each
    seed=0,
):
    """Train the model and save it."""
    if torch is None:
        raise InputError('the model is trained by PyTorch: pip install torch')
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    torch.set_num_threads(1)  # sums, and so samples, then do not depend on the number of cores
    torch.manual_seed(seed)
    pairs = training_pairs(n_updates * batch_size)
    order = torch.randperm(len(pairs)).tolist()
    batches = [[pairs[i] for i in order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    tokenizer = make_tokenizer(chain(*pairs), vocab_size)
    model = make_model(len(tokenizer), d_model, n_layers)
    train(model, tokenizer, batches, learning_rate)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def training_pairs(n_pairs):
    """(instruction, reference) pairs of inputs outside both splits; references of a task are taken in turn."""
    return [
        (instruction, references[number % len(references)])
        for task, share in SHARES.items()
        for number, (instruction, references) in enumerate(language_model_inputs(task, int(share * n_pairs)))
    ]


def make_tokenizer(texts, vocab_size):
    """A unigram tokenizer learned from the texts, with T5's special ids: padding 0, end 1, unknown 2."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r'\s+'), ' '), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = UnigramTrainer(vocab_size=vocab_size, special_tokens=['<pad>', '</s>', '<unk>'], unk_token='<unk>')
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token='<pad>',
        eos_token='</s>',
        unk_token='<unk>',
        model_max_length=512,
    )


def make_model(vocab_size, d_model, n_layers):
    """A T5 v1.1: gated gelu, untied output."""
    config = T5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=32,
        d_ff=2 * d_model,
        num_layers=n_layers,
        num_heads=4,
        feed_forward_proj='gated-gelu',
        tie_word_embeddings=False,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = T5ForConditionalGeneration(config)
    # transformers initialises an untied head as widely as the embedding: unscaled, the first loss is 20.
    model.lm_head.weight.data.mul_(d_model**-0.5)
    print(f'{sum(p.numel() for p in model.parameters())} parameters, vocabulary of {vocab_size}')
    return model


def train(model, tokenizer, batches, learning_rate):
    """One pass of AdamW over batches of (instruction, target): 10% warm-up, then linear decay."""
    n_updates = len(batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / (0.1 * n_updates), (n_updates - step) / (0.9 * n_updates)),
    )
    model.train()
    for update, batch in enumerate(batches, start=1):
        instructions, targets = zip(*batch, strict=True)
        loss = model(**encode(tokenizer, list(instructions)), labels=make_labels(tokenizer, list(targets))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if update % 50 == 0 or update == n_updates:
            print(f'update {update} of {n_updates}: loss {loss.item():.4f}', flush=True)
    model.eval()


def encode(tokenizer, texts):
    """Padded input ids and attention mask [n_texts, n_tokens]."""
    return tokenizer(texts, padding=True, truncation=True, return_tensors='pt', return_token_type_ids=False)


def make_labels(tokenizer, texts):
    """Target ids [n_texts, n_tokens] with the end token, cut at MAX_TOKENS, -100 where padded."""
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors='pt')
    return encoded.input_ids.masked_fill(encoded.attention_mask == 0, -100)


if __name__ == '__main__':
    flags.run(main)
