"""Data to pretrain a scorer on: pairs of instruction and response with a label from 0 to 1, from instruction data.

    python scripts/get_pretrain_data.py --sources t0.jsonl.gz
    python scripts/get_pretrain_data.py --hub bigscience/P3 --instances_per_template 1000
    python scripts/get_pretrain_data.py --samples bigbench_flan_gens/flan-t5-xl --heldout 'auto_*,tense'

The labels are those of Tan et al. (2023, section 3.1). Where an instance has choices, the right one has 1 and the wrong
ones 0. Elsewhere the reference has 1, and responses of other instances and samples of a language model have their
rougeL against the references. Altered references (truncated, repeated, reordered, with other names) are added, which
need no language model; their labels are rougeL too. Where the data does not give its choices,
`cappy/pretrain_data/listed_choices.py` says how they are found.
"""

import itertools
import logging
import sys
from pathlib import Path
from random import Random
from typing import Annotated, Literal

import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli import flags
from cappy.errors import InputError
from cappy.files.environment import environment
from cappy.pretrain_data.counts import HELD_OUT, TRAIN, Counts
from cappy.pretrain_data.instances import check_sources, chunks, match_names, read_lines, sample_chunks, sample_files
from cappy.pretrain_data.listed_choices import TemplateChoices
from cappy.pretrain_data.p3 import configurations, read_hub
from cappy.pretrain_data.pair_maker import PairMaker
from cappy.pretrain_data.shard_writer import check_output, shard_writer
from cappy.tasks.rouge import RougeL

# Whole data sets of P3's T0 training mixture, 34 of its 283 templates: multiple choice with the choices listed,
# paraphrase, ratings, summaries, questions to make up.
HELD_OUT_TEMPLATES = ('app_reviews_*', 'commonsense_qa_*', 'dream_*', 'glue_mrpc_*', 'samsum_*', 'social_i_qa_*')
NO_TEMPLATE = ('none',)
MAX_CACHED = 100_000  # texts and words that rougeL remembers; limits memory


def main(
    sources: flags.Names | None = None,  # files of {"template", "instruction", "response", "choices"?}, jsonl(.gz)
    hub: str | None = None,  # bigscience/P3, or another data set or a folder of the same layout
    samples: str | None = None,  # folder of candidate files, {task}_train.jsonl or {generator}/{task}_train.jsonl
    output_dir='pretrain_data',
    templates: flags.Names = ('*',),  # those to read, shell patterns
    heldout: flags.Names = HELD_OUT_TEMPLATES,  # templates to keep for evaluation, shell patterns; none: no template
    instances_per_template: flags.Count | None = None,  # lines of a template to read, the first ones; default: all
    heldout_instances: flags.Count = 40,  # per held-out template
    max_characters: flags.Count | None = None,  # leave out instances with a longer instruction and reference
    max_wrong_choices: flags.Count = 3,  # per choice instance to train on; held-out instances keep all
    n_others: flags.CountFrom0 = 3,  # responses of other instances, per generative instance without samples
    n_altered: flags.CountFrom0 = 3,  # altered references per such instance, no two altered in the same way
    max_samples: flags.CountFrom0 = 8,  # per instance with samples
    n_shards: Annotated[int, flags.Range(least=1, most=99999)] = 8,  # files; memory holds one of them while it is
    #                                                                  shuffled: more for hundreds of millions of pairs
    seed: flags.Seed = 0,
    rouge_tokenizer: Literal['default', 'unicode'] = 'default',  # unicode: words of every script
    overwrite=False,  # replace the data in output_dir
):
    """Build pretraining data: train-*.jsonl, heldout.jsonl and counts.json in output_dir."""
    logging.basicConfig(format='%(message)s')
    settings = dict(locals())
    check_flags(settings)
    names, n_lines, all_chunks = open_sources(settings)
    held_out = held_out_names(names, heldout)
    maker = PairMaker(RougeL(rouge_tokenizer, MAX_CACHED), seed, max_wrong_choices, n_others, n_altered, max_samples)
    counts = Counts()
    with shard_writer(output_dir, n_shards, seed) as writer:
        with tqdm.tqdm(total=n_lines, desc='labelling', unit='line', unit_scale=True) as bar:
            for chunk, choices in with_choices(all_chunks):
                make_pairs(chunk, choices, chunk.template in held_out, maker, writer, counts, settings)
                bar.update(chunk.n_lines)
        counts.remove(writer.shuffle())
        check_counts(counts)
        writer.write_counts({'settings': settings, **counts.as_json(), 'environment': environment()})
    print(counts.tables())
    for part in (TRAIN, HELD_OUT):
        n_pairs, n_instances = counts.total('pairs', part).total(), counts.n_instances(part)
        print(f'{output_dir}, {part}: {n_pairs:,} pairs of {n_instances:,} instances')


def check_flags(settings):
    """Raise InputError where no source is given, or the output cannot be replaced."""
    if not any(settings[name] for name in ('sources', 'hub', 'samples')):
        raise InputError('--sources, --hub, --samples: none is given; name at least one')
    check_output(settings['output_dir'], settings['overwrite'])


def open_sources(settings):
    """(names of the templates to read, number of lines or None where it is not known, iterator of their chunks).

    Files are read once from end to end before, so that a bad line is reported before any work.
    """
    limit = settings['instances_per_template']
    paths = [Path(path) for path in settings['sources'] or ()]
    n_lines = check_sources(paths)
    on_hub = configurations(settings['hub']) if settings['hub'] else {}
    sampled = sample_files(settings['samples']) if settings['samples'] else {}
    names = [*n_lines, *on_hub, *sampled]
    if len(names) > len(set(names)):
        twice = next(name for name in sorted(names) if names.count(name) > 1)
        raise InputError(f'--sources, --hub, --samples: {twice} is in two of them; read it from one (--templates)')
    chosen = set(match_names(names, settings['templates'], '--templates'))
    lines = itertools.chain(
        (line for line in read_lines(paths) if line.template in chosen),
        read_hub(settings['hub'], {name: on_hub[name] for name in on_hub if name in chosen}, limit),
    )
    all_chunks = itertools.chain(
        chunks(lines, limit=limit),
        sample_chunks({name: sampled[name] for name in sampled if name in chosen}, limit=limit),
    )
    is_known = not (on_hub or sampled)
    total = sum(min(n_lines[name], limit or n_lines[name]) for name in n_lines if name in chosen)
    return [name for name in names if name in chosen], total if is_known else None, all_chunks


def held_out_names(names, patterns):
    """The names of the templates that are held out. Each pattern must match one, but for those of the default."""
    if tuple(patterns) == NO_TEMPLATE:
        return frozenset()
    is_default = tuple(patterns) == HELD_OUT_TEMPLATES
    found = match_names(names, patterns, '--heldout', all_must_match=not is_default)
    if not found:
        raise InputError(f'--heldout: no template matches the default, {",".join(patterns)}; name templates, or none')
    if len(found) == len(names):
        raise InputError('--heldout: matches all templates, so that none is left to train on')
    return frozenset(found)


def with_choices(all_chunks):
    """Yield (chunk, TemplateChoices), decided by the first chunk of a template that has an instance; None before it."""
    choices = None
    for chunk in all_chunks:
        if chunk.is_first:
            choices = None
        if choices is None and chunk.instances:
            choices = TemplateChoices(
                [instance.instruction for instance in chunk.instances],
                [instance.references[0] for instance in chunk.instances],
            )
        yield chunk, choices


def make_pairs(chunk, choices, is_held_out, maker, writer, counts, settings):
    """Write the pairs of a chunk's instances: of all of them, or, held out, of those drawn from the first chunk."""
    counts.begin(chunk, HELD_OUT if is_held_out else TRAIN)
    if not chunk.instances:
        return
    is_new = counts.is_new
    if is_new:
        kind = 'given' if any(instance.choices for instance in chunk.instances) else choices.kind
        counts.describe(kind, choices.choices)
    instances = [instance for instance in chunk.instances if is_short(instance, settings['max_characters'])]
    counts.leave_out('longer than --max_characters', len(chunk.instances) - len(instances))
    chosen = list(enumerate(instances))
    if is_held_out:
        random = Random(f'{settings["seed"]}:{chunk.template}:held out')
        n_wanted = min(settings['heldout_instances'] if is_new else 0, len(chosen))
        chosen = sorted(random.sample(chosen, n_wanted), key=lambda numbered: numbered[0])
        counts.leave_out('beyond --heldout_instances', len(instances) - n_wanted)
    for i, instance in chosen:
        listed = instance.choices or choices.choices_of(instance.instruction, instance.references)
        if len(listed) > 1:
            pairs = maker.choice_pairs(instance, listed, all_choices=is_held_out)
        elif instance.samples or choices.kind == 'open':
            pairs = maker.text_pairs(instances, i)
        else:
            counts.leave_out('one response only' if choices.kind == 'single' else 'response not among the choices')
            continue
        if not pairs:
            counts.leave_out('no word that rougeL reads (--rouge_tokenizer unicode)')
            continue
        counts.add(pairs)
        (writer.add_held_out if is_held_out else writer.add_train)(pairs)


def is_short(instance, max_characters):
    """Whether an instance has at most max_characters in its instruction and first reference; None: any number."""
    return max_characters is None or len(instance.instruction) + len(instance.references[0]) <= max_characters


def check_counts(counts):
    """Raise InputError, with the reasons, where there is no pair to train on."""
    if not counts.total('pairs', TRAIN).total():
        left_out = counts.total('left_out', TRAIN)
        reasons = ', '.join(f'{reason}: {n}' for reason, n in left_out.most_common()) or 'all templates are held out'
        raise InputError(f'nothing is left to train on ({reasons})')


if __name__ == '__main__':
    flags.run(main)
