"""Data to pretrain a scorer on: pairs of instruction and response with a label from 0 to 1, from instruction data.

    python scripts/get_pretrain_data.py --sources t0.jsonl.gz
    python scripts/get_pretrain_data.py --hub bigscience/P3 --instances_per_template 1000
    python scripts/get_pretrain_data.py --samples bigbench_flan_gens/flan-t5-xl --heldout 'auto_*,tense'

As Tan et al. (2023, section 3.1) label: where an instance has choices, the right one 1 and wrong ones 0; elsewhere the
reference 1, and other instances' responses and an LM's samples by their rougeL against the references. To these come
references that were truncated, repeated, reordered or had their names swapped, which need no LM, labelled by rougeL as
well. How choices are found where the data does not give them: `cappy.options.TemplateChoices`.
"""

import itertools
import logging
import sys
from pathlib import Path
from random import Random
from typing import Literal

import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli import flags
from cappy.errors import InputError
from cappy.files.environment import environment
from cappy.pretrain_data.counts import HELD_OUT, TRAIN, Counts
from cappy.pretrain_data.instances import check_sources, match_names, read_lines, sample_files, sample_windows, windows
from cappy.pretrain_data.listed_choices import TemplateChoices
from cappy.pretrain_data.p3 import configurations, read_hub
from cappy.pretrain_data.rows import RowMaker
from cappy.pretrain_data.shard_writer import check_output, shard_writer
from cappy.tasks.rouge import RougeL

# Whole data sets of P3's T0 training mixture, 34 of its 283 templates: multiple choice with the choices listed,
# paraphrase, ratings, summaries, questions to make up.
HELD_OUT_DEFAULT = 'app_reviews_*,commonsense_qa_*,dream_*,glue_mrpc_*,samsum_*,social_i_qa_*'
MAX_CACHED = 100_000  # texts and words that rougeL remembers; bounds memory


def main(
    sources: str | None = None,  # files of template, instruction, response, choices?: jsonl or jsonl.gz, commas between
    hub: str | None = None,  # bigscience/P3, or a data set or folder laid out like it
    samples: str | None = None,  # folder of candidate files, {task}_train.jsonl or {generator}/{task}_train.jsonl
    output_dir='pretrain_data',
    templates='*',  # which to take: shell patterns, commas between
    heldout: str | None = None,  # templates kept apart: shell patterns, commas between; '' for none; default: those of
    # app_reviews, commonsense_qa, dream, glue_mrpc, samsum and social_i_qa, as P3 names them
    instances_per_template: int | None = None,  # lines of a template that are read, the first ones; default: all
    heldout_instances=40,  # of a held-out template
    max_characters: int | None = None,  # leave out instances whose instruction and reference are longer together
    max_wrong_choices=3,  # of a choice instance to train on; held-out ones keep all
    n_others=3,  # other instances' responses for a generative instance without samples
    n_altered=3,  # altered references for such an instance, each in another way
    max_samples=8,  # of an LM for an instance
    window=5000,  # lines of a template that are in memory together
    n_shards=8,  # one is in memory at a time when they are shuffled
    seed=0,
    rouge_tokenizer: Literal['default', 'unicode'] = 'default',  # unicode: words of every script
    overwrite=False,  # replace data in output_dir
):
    """Build pretraining data: train-*.jsonl, heldout.jsonl and counts.json in output_dir."""
    logging.basicConfig(format='%(message)s')
    settings = dict(locals())
    check_flags(settings)
    names, n_lines, all_windows = open_sources(settings)
    held_out = held_out_names(names, heldout)
    rouge = RougeL(rouge_tokenizer, MAX_CACHED)
    maker = RowMaker(rouge, seed, max_wrong_choices, n_others, n_altered, max_samples)
    counts = Counts()
    with shard_writer(output_dir, n_shards, seed) as writer:
        with tqdm.tqdm(total=n_lines, desc='labelling', unit='line', unit_scale=True) as bar:
            for one, choices in with_choices(all_windows):
                make_rows(one, choices, one.template in held_out, maker, writer, counts, settings)
                bar.update(one.n_lines)
        counts.remove(writer.shuffle())
        check_counts(counts)
        writer.write_counts({'settings': settings, **counts.as_json(), 'environment': environment()})
    print(counts.tables())
    for split in (TRAIN, HELD_OUT):
        n_rows, n_instances = counts.total('rows', split).total(), counts.n_instances(split)
        print(f'{output_dir}, {split}: {n_rows:,} rows of {n_instances:,} instances')


def check_flags(settings):
    """Where data comes from and goes to, and numbers."""
    if not any(settings[name] for name in ('sources', 'hub', 'samples')):
        raise InputError('--sources, --hub, --samples: none is given; name at least one')
    at_least_1 = ('heldout_instances', 'max_wrong_choices', 'window', 'n_shards')
    at_least_1 += ('instances_per_template', 'max_characters')
    for lowest, keys in ((1, at_least_1), (0, ('n_others', 'n_altered', 'max_samples'))):
        for name in keys:
            if settings[name] is not None and settings[name] < lowest:
                raise InputError(f'--{name}: expected {lowest} or more, found {settings[name]}')
    check_output(settings['output_dir'], settings['overwrite'])


def split(text):
    """What stands between commas."""
    return [part.strip() for part in (text or '').split(',') if part.strip()]


def open_sources(settings):
    """(names of the templates that are taken, lines to read or None where that is not known, iterator of windows).

    Files are read once to the end before, so that a bad line is told before any work.
    """
    size, limit = settings['window'], settings['instances_per_template']
    paths = [Path(path) for path in split(settings['sources'])]
    n_lines = check_sources(paths)
    on_hub = configurations(settings['hub']) if settings['hub'] else {}
    sampled = sample_files(settings['samples']) if settings['samples'] else {}
    names = [*n_lines, *on_hub, *sampled]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(names) > len(set(names)) else []
    if twice:
        raise InputError(f'--sources, --hub, --samples: {twice[0]} is in two of them; take it from one (--templates)')
    chosen = set(match_names(names, split(settings['templates']), '--templates'))
    lines = itertools.chain(
        (line for line in read_lines(paths) if line.template in chosen),
        read_hub(settings['hub'], {name: on_hub[name] for name in on_hub if name in chosen}, limit),
    )
    streams = itertools.chain(
        windows(lines, size, limit),
        sample_windows({name: sampled[name] for name in sampled if name in chosen}, size, limit),
    )
    is_known = not (on_hub or sampled)
    total = sum(min(n_lines[name], limit or n_lines[name]) for name in n_lines if name in chosen)
    return [name for name in names if name in chosen], total if is_known else None, streams


def held_out_names(names, patterns):
    """The set of templates that are kept apart. The default's patterns need not all fit, the user's must."""
    found = match_names(
        names,
        split(HELD_OUT_DEFAULT if patterns is None else patterns),
        '--heldout',
        all_must_match=patterns is not None,
    )
    if patterns is None and not found:
        raise InputError(f"--heldout: none of {HELD_OUT_DEFAULT} is here; name some templates, or give ''")
    if len(found) == len(names):
        raise InputError('--heldout: fits all templates, so that none is left to train on')
    return frozenset(found)


def with_choices(all_windows):
    """Yields (window, TemplateChoices or None where nothing is to be learned); decided by a template's first window."""
    choices = None
    for one in all_windows:
        if one.is_first:
            choices = None
        if choices is None and one.instances:
            choices = TemplateChoices(
                [instance.instruction for instance in one.instances],
                [instance.references[0] for instance in one.instances],
            )
        yield one, choices


def make_rows(window, choices, is_held_out, maker, writer, counts, settings):
    """The rows of a window's instances: to train on, or held out, those drawn from a template's first window."""
    counts.begin(window, HELD_OUT if is_held_out else TRAIN)
    if not window.instances:
        return
    is_new = counts.is_new
    if is_new:
        kind = 'given' if any(instance.choices for instance in window.instances) else choices.kind
        counts.describe(kind, choices.choices)
    instances = [instance for instance in window.instances if is_short(instance, settings['max_characters'])]
    counts.leave_out('longer than --max_characters', len(window.instances) - len(instances))
    made = [(i, instance) for i, instance in enumerate(instances)]
    if is_held_out:
        random = Random(f'{settings["seed"]}:{window.template}:held out')
        n_wanted = min(settings['heldout_instances'] if is_new else 0, len(made))
        made = sorted(random.sample(made, n_wanted), key=lambda pair: pair[0])
        counts.leave_out('beyond --heldout_instances', len(instances) - n_wanted)
    for i, instance in made:
        listed = instance.choices or choices.choices_of(instance.instruction, instance.references)
        if len(listed) > 1:
            rows = maker.choice_rows(instance, listed, all_choices=is_held_out)
        elif instance.samples or choices.kind == 'open':
            rows = maker.text_rows(instances, i)
        else:
            counts.leave_out('one response only' if choices.kind == 'single' else 'response not among the choices')
            continue
        if not rows:
            counts.leave_out('no word that rougeL reads (--rouge_tokenizer unicode)')
            continue
        counts.add(rows)
        (writer.add_held_out if is_held_out else writer.add_train)(rows)


def is_short(instance, max_characters):
    """Whether an instance may be taken."""
    return max_characters is None or len(instance.instruction) + len(instance.references[0]) <= max_characters


def check_counts(counts):
    """Raise InputError where nothing can be trained on."""
    if not counts.total('rows', TRAIN).total():
        left_out = counts.total('left_out', TRAIN)
        why = ', '.join(f'{reason}: {n}' for reason, n in left_out.most_common()) or 'all is held out'
        raise InputError(f'nothing is left to train on ({why})')


if __name__ == '__main__':
    flags.run(main)
