"""The examples' candidates: trains a tiny T5 on other inputs of the same tasks and samples it.

    python examples/make_samples.py

Writes bigbench_data/, bigbench_flan_gens/tiny-t5/ and, not committed, the model itself, tiny-t5/ (a
T5 v1.1 checkpoint with its tokenizer, as transformers loads it), and prints README.md's table.
Needs torch besides the project's packages. Training stops while the model still errs often: trained
to the end it would leave nothing to pick.
"""

import json
import os
from itertools import chain
from pathlib import Path

import torch
from tasks import N_EXAMPLES, TASKS, language_model_inputs, split_examples, write_data
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import UnigramTrainer
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from cappy import flags
from cappy.baselines import candidates_rougeL, comparison
from cappy.candidates import read_examples
from cappy.rouge import RougeL
from cappy.tables import format_table, percent

GENERATOR = 'tiny-t5'
# Of the model's training pairs, such that all three tasks are half learned at the same time.
SHARES = {'mixed_kinds': 0.18, 'rewrite_tense': 0.5, 'facts_to_sentence': 0.32}
# The reference's (its scripts/bigbench_flan_generate.py, lines 99-103), with transformers' default
# top_k of 50 where it names none.
DECODINGS = {
    'beam4': {'num_beams': 4},
    'sampling': {'do_sample': True, 'top_k': 50},
    'temp0.9': {'do_sample': True, 'top_k': 50, 'temperature': 0.9},
    'topk40': {'do_sample': True, 'top_k': 40},
    'topp0.95': {'do_sample': True, 'top_k': 50, 'top_p': 0.95},
}
N_SAMPLES = 4  # of each decoding but beam4
MIN_LENGTH = 4  # bars the end as the reference's 3 does, which Flax counts differently
MAX_TOKENS = 64


def main(
    output_dir: str = str(Path(__file__).parent),
    n_updates=440,
    batch_size=48,  # pairs of an update, of all tasks
    learning_rate=1.5e-3,
    vocab_size=700,  # at most; our texts have fewer pieces
    d_model=128,
    n_layers=2,  # of the encoder, and as many of the decoder
    seed=0,
):
    """Train the model, sample it for every task and split, measure."""
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    output_dir = Path(output_dir)
    torch.set_num_threads(1)  # sums, and so samples, then do not depend on the number of cores
    torch.manual_seed(seed)
    pairs = training_pairs(n_updates * batch_size)
    order = torch.randperm(len(pairs)).tolist()
    batches = [[pairs[i] for i in order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    tokenizer = make_tokenizer(chain(*pairs), vocab_size)
    model = make_model(len(tokenizer), d_model, n_layers)
    train(model, tokenizer, batches, learning_rate)
    model.save_pretrained(output_dir / GENERATOR)
    tokenizer.save_pretrained(output_dir / GENERATOR)
    write_data(output_dir / 'bigbench_data')
    folder = output_dir / 'bigbench_flan_gens' / GENERATOR
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        for split in N_EXAMPLES:
            # FLAN's files have log-likelihoods on validation samples only.
            rows = with_samples(model, tokenizer, split_examples(task, split), split == 'validation')
            lines = [json.dumps(row) + '\n' for row in rows]
            (folder / f'{task}_{split}.jsonl').write_text(''.join(lines))
    print(table(folder))


def training_pairs(n_pairs):
    """(instruction, reference) pairs of inputs that are in no split, one reference each in turn."""
    return [
        (instruction, references[number % len(references)])
        for task, share in SHARES.items()
        for number, (instruction, references) in enumerate(language_model_inputs(task, int(share * n_pairs)))
    ]


def make_tokenizer(texts, vocab_size):
    """A unigram vocabulary of our own, with T5's special ids: padding 0, end 1, unknown 2."""
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
    # transformers draws the untied head as wide as the embedding; unscaled, the first loss is 20.
    model.lm_head.weight.data.mul_(d_model**-0.5)
    print(f'{sum(p.numel() for p in model.parameters())} weights, vocabulary {vocab_size}')
    return model


def train(model, tokenizer, batches, learning_rate):
    """One pass of AdamW over batches of (instruction, target), 10% warm-up, then linear decay."""
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
    """Target ids [n_texts, n_tokens], the end included, cut at MAX_TOKENS, -100 where padded."""
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors='pt')
    return encoded.input_ids.masked_fill(encoded.attention_mask == 0, -100)


def with_samples(model, tokenizer, examples, with_log_likelihoods):
    """The examples with `flan_samples`."""
    instructions = [example['instruction'] for example in examples]
    rows = [dict(example, flan_samples={}) for example in examples]
    for decoding in DECODINGS:
        responses = sample(model, tokenizer, instructions, decoding)
        for row, texts in zip(rows, responses, strict=True):
            row['flan_samples'][decoding] = [{'response': text} for text in texts]
        if with_log_likelihoods:
            repeated = [instruction for instruction in instructions for _ in responses[0]]
            values = log_likelihoods(model, tokenizer, repeated, list(chain(*responses)))
            entries = chain(*(row['flan_samples'][decoding] for row in rows))
            for entry, (total, mean) in zip(entries, values, strict=True):
                entry['log_likelihood_sum'] = round(total, 6)
                entry['log_likelihood_mean'] = round(mean, 6)
    return rows


@torch.no_grad()
def sample(model, tokenizer, instructions, decoding, batch_size=160):
    """The responses of each instruction, a list of lists."""
    n_samples = 1 if decoding == 'beam4' else N_SAMPLES
    responses = []
    for start in range(0, len(instructions), batch_size):
        tokens = model.generate(
            **encode(tokenizer, instructions[start : start + batch_size]),
            **DECODINGS[decoding],
            num_return_sequences=n_samples,
            min_length=MIN_LENGTH,
            max_new_tokens=MAX_TOKENS,
        )
        responses += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [responses[start : start + n_samples] for start in range(0, len(responses), n_samples)]


@torch.no_grad()
def log_likelihoods(model, tokenizer, instructions, responses, batch_size=200):
    """(sum, mean) over the tokens of each response, re-tokenized, its end included."""
    values = []
    for start in range(0, len(responses), batch_size):
        labels = make_labels(tokenizer, responses[start : start + batch_size])
        inputs = encode(tokenizer, instructions[start : start + batch_size])
        logits = model(**inputs, labels=labels).logits
        kept = labels != -100
        picked = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        sums = (picked * kept).sum(-1)
        values += zip(sums.tolist(), (sums / kept.sum(-1)).tolist(), strict=True)
    return values


def table(folder):
    """Ways of picking by task: mean rougeL of the validation split, in hundredths."""
    rows, rouge = {}, RougeL()
    for task in TASKS:
        examples = read_examples(folder / f'{task}_validation.jsonl')
        for row in comparison(examples, candidates_rougeL(examples, rouge), rouge):
            rows.setdefault(row['name'], {'': row['name']})[task] = row['rougeL']
    return format_table(rows.values(), ['', *map(percent, TASKS)], 'markdown')


if __name__ == '__main__':
    flags.run(main)
