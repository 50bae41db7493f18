"""The candidates of the examples: trains a tiny T5 on other inputs of the same tasks and samples it.

    python examples/make_samples.py

Writes bigbench_data/, bigbench_flan_gens/tiny-t5/ and, not committed, the model's own folder tiny-t5/ (a T5 checkpoint
with tokenizer, as transformers loads it), and prints the table of README.md. Needs torch, tokenizers, transformers
and rouge-score. Training stops while the model still errs often: trained to the end it would leave nothing to pick.
"""

import json
import os
import time
from itertools import chain
from pathlib import Path
from statistics import fmean

import fire
import torch
from rouge_score import rouge_scorer
from tasks import N_EXAMPLES, TASKS, language_model_inputs, split_examples, write_data
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

HERE = Path(__file__).parent
MAX_NEW_TOKENS = 64
# The reference's five (its scripts/bigbench_flan_generate.py, lines 99-103); transformers' default top_k of 50 applied
# to those that name none. Its Flax min_length of 3 bars the end as torch's 4 does.
DECODINGS = {
    'beam4': {'num_beams': 4},
    'sampling': {'do_sample': True, 'top_k': 50},
    'temp0.9': {'do_sample': True, 'top_k': 50, 'temperature': 0.9},
    'topk40': {'do_sample': True, 'top_k': 40},
    'topp0.95': {'do_sample': True, 'top_k': 50, 'top_p': 0.95},
}
SHARES = {'find_facts': 0.25, 'rewrite_tense': 0.45, 'facts_to_sentence': 0.3}  # of the model's training pairs
N_SAMPLES = 4  # of each decoding but beam4


def make_tokenizer(texts, vocab_size):
    """A unigram vocabulary of our own, with T5's special ids: padding 0, end 1, unknown 2."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r'\s+'), ' '), normalizers.Strip()])
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ['<pad>', '</s>', '<unk>']
    tokenizer.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=vocab_size, special_tokens=special, unk_token='<unk>'))
    tokenizer.post_processor = processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token='<pad>', eos_token='</s>', unk_token='<unk>', model_max_length=512)


def encode(tokenizer, texts):
    return tokenizer(texts, padding=True, truncation=True, return_tensors='pt', return_token_type_ids=False)


def labels_of(tokenizer, texts):
    """Target ids [n_texts, n_tokens], end included, cut at 64, -100 where padded."""
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=MAX_NEW_TOKENS, return_tensors='pt')
    return encoded.input_ids.masked_fill(encoded.attention_mask == 0, -100)


def train(model, tokenizer, batches, learning_rate):
    """One pass of AdamW over the batches of (instruction, target) pairs, 10% warm-up, then linear decay."""
    n_updates = len(batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * n_updates), (n_updates - step) / (0.9 * n_updates)))
    model.train()
    for update, batch in enumerate(batches, start=1):
        instructions, targets = zip(*batch, strict=True)
        loss = model(**encode(tokenizer, list(instructions)), labels=labels_of(tokenizer, list(targets))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if update % 50 == 0 or update == n_updates:
            print(f'update {update} of {n_updates}: loss {loss.item():.4f}', flush=True)


@torch.no_grad()
def sample(model, tokenizer, instructions, decoding, batch_size=160):
    """The responses of each instruction: a list of lists."""
    n_samples = 1 if decoding == 'beam4' else N_SAMPLES
    responses = []
    for start in range(0, len(instructions), batch_size):
        tokens = model.generate(
            **encode(tokenizer, instructions[start : start + batch_size]), **DECODINGS[decoding],
            num_return_sequences=n_samples, min_length=4, max_new_tokens=MAX_NEW_TOKENS)
        responses += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [responses[start : start + n_samples] for start in range(0, len(responses), n_samples)]


@torch.no_grad()
def log_likelihoods(model, tokenizer, instructions, responses, batch_size=200):
    """(sum, mean) over the tokens of each response, re-tokenized, its end included."""
    values = []
    for start in range(0, len(responses), batch_size):
        labels = labels_of(tokenizer, responses[start : start + batch_size])
        logits = model(**encode(tokenizer, instructions[start : start + batch_size]), labels=labels).logits
        kept = labels != -100
        picked = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        sums = (picked * kept).sum(-1)
        values += zip(sums.tolist(), (sums / kept.sum(-1)).tolist(), strict=True)
    return values


def with_samples(model, tokenizer, examples, with_log_likelihoods):
    """The examples with `flan_samples`; log-likelihoods on validation samples only, as FLAN's files have them."""
    instructions = [example['instruction'] for example in examples]
    rows = [dict(example, flan_samples={}) for example in examples]
    for decoding in DECODINGS:
        responses = sample(model, tokenizer, instructions, decoding)
        for row, texts in zip(rows, responses, strict=True):
            row['flan_samples'][decoding] = [{'response': text} for text in texts]
        if with_log_likelihoods:
            repeated = [text for text, texts in zip(instructions, responses, strict=True) for _ in texts]
            values = log_likelihoods(model, tokenizer, repeated, list(chain(*responses)))
            for entry, (total, mean) in zip(
                    (entry for row in rows for entry in row['flan_samples'][decoding]), values, strict=True):
                entry['log_likelihood_sum'], entry['log_likelihood_mean'] = round(total, 6), round(mean, 6)
    return rows


def measure(rows):
    """Mean rougeL, in hundredths, of the ways to pick that need no scorer."""
    scorer = rouge_scorer.RougeScorer(['rougeL'], use_stemmer=True)
    picked = {}
    for row in rows:
        samples = {decoding: entries for decoding, entries in row['flan_samples'].items()}
        entries = list(chain(*samples.values()))
        texts = [entry['response'] for entry in entries]
        rouge = {text: scorer.score_multi(row['references'], text)['rougeL'].fmeasure for text in set(texts)}
        near = {text: fmean(scorer.score(other, text)['rougeL'].fmeasure for other in texts) for text in rouge}
        picks = {'random': fmean(rouge[text] for text in texts)}
        picks |= {f'first {decoding}': rouge[samples[decoding][0]['response']] for decoding in samples}
        for kind in ('sum', 'mean'):
            if f'log_likelihood_{kind}' in entries[0]:
                best = max(entries, key=lambda entry: entry[f'log_likelihood_{kind}'])  # noqa: B023
                picks[f'self-score {kind}'] = rouge[best['response']]
        picks |= {'consensus': rouge[max(texts, key=near.get)], 'oracle': max(rouge.values())}
        picks['distinct samples / 100'] = len(rouge) / 100
        for name, value in picks.items():
            picked.setdefault(name, []).append(100 * value)
    return {name: fmean(values) for name, values in picked.items()}


def main(
    output_dir=str(HERE),
    n_updates=420,
    batch_size=48,  # pairs, drawn from all tasks
    learning_rate=1.5e-3,
    vocab_size=700,
    d_model=128,
    n_layers=2,  # of the encoder, and as many of the decoder
    seed=0,
):
    """Train, sample, write, measure."""
    output_dir, started = Path(output_dir), time.time()
    torch.manual_seed(seed)
    pairs = []
    for task, share in SHARES.items():
        n_inputs = int(share * n_updates * batch_size)
        for number, (instruction, references) in enumerate(language_model_inputs(task, n_inputs)):
            pairs.append((instruction, references[number % len(references)]))
    order = torch.randperm(len(pairs)).tolist()
    batches = [[pairs[i] for i in order[k : k + batch_size]] for k in range(0, len(order), batch_size)]
    tokenizer = make_tokenizer(chain(*pairs), vocab_size)
    model = T5ForConditionalGeneration(T5Config(
        vocab_size=len(tokenizer), d_model=d_model, d_kv=32, d_ff=2 * d_model, num_layers=n_layers, num_heads=4,
        feed_forward_proj='gated-gelu', tie_word_embeddings=False, dropout_rate=0.0, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1))
    # transformers draws the untied head as widely as the tied one needs; unscaled, the first loss is above 20.
    model.lm_head.weight.data.mul_(d_model**-0.5)
    print(f'{sum(p.numel() for p in model.parameters())} weights, vocabulary {len(tokenizer)}')
    train(model, tokenizer, batches, learning_rate)
    model.eval()
    print(f'trained after {time.time() - started:.0f} s')
    model.save_pretrained(output_dir / 'tiny-t5')
    tokenizer.save_pretrained(output_dir / 'tiny-t5')
    write_data(output_dir / 'bigbench_data')
    folder = output_dir / 'bigbench_flan_gens' / 'tiny-t5'
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        for split in N_EXAMPLES:
            rows = with_samples(model, tokenizer, split_examples(task, split), split == 'validation')
            (folder / f'{task}_{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
        print(task, {name: round(value, 1) for name, value in measure(rows).items()}, flush=True)
    print(f'done after {time.time() - started:.0f} s')


if __name__ == '__main__':
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    fire.Fire(main)
