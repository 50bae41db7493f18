"""Data to pretrain a scorer on: pairs of instruction and response with a label from 0 to 1, from instruction data.

    python scripts/get_pretrain_data.py --sources t0.jsonl.gz
    python scripts/get_pretrain_data.py --hub bigscience/P3 --instances_per_template 1000
    python scripts/get_pretrain_data.py --sources mine.jsonl --samples bigbench_flan_gens/flan-t5-xl --heldout 'mine_b*'

As Tan et al. (2023, section 3.1) label: where an instance has choices, the right one 1 and wrong ones 0; elsewhere the
reference 1, and other instances' responses and an LM's samples by their rougeL against the references. To these come
references that were truncated, repeated, reordered or had their names swapped, which need no LM, labelled by rougeL as
well. How choices are found where the data does not give them: `cappy.options.TemplateChoices`.
"""

import itertools
import logging
from collections import Counter
from pathlib import Path
from random import Random

import tqdm

from cappy import flags
from cappy.errors import InputError
from cappy.instances import check_sources, match_names, read_lines, windows
from cappy.options import TemplateChoices
from cappy.pretrainrows import SOURCES, RowMaker
from cappy.results import environment
from cappy.rouge import TOKENIZERS, RougeL
from cappy.shards import check_output, shard_writer
from cappy.tables import Column, format_table

# Whole data sets of P3's T0 training mixture, 34 of its 283 templates: multiple choice with the choices listed,
# paraphrase, ratings, summaries, questions to make up.
HELD_OUT = 'app_reviews_*,commonsense_qa_*,dream_*,glue_mrpc_*,samsum_*,social_i_qa_*'
N_BINS = 10  # of the histogram of labels

logger = logging.getLogger(__name__)


def main(
    sources: str | None = None,  # jsonl(.gz) files of template, instruction, response, choices?; commas between
    output_dir='pretrain_data',
    heldout: str | None = None,  # templates kept apart: shell patterns, commas between, or none;
    # default: app_reviews, commonsense_qa, dream, glue_mrpc, samsum, social_i_qa of P3
    templates='*',  # which to take: shell patterns, commas between
    instances_per_template: int | None = None,  # lines of a template that are read; default: all
    heldout_instances=40,  # of a held-out template
    max_wrong_choices=3,  # of a choice instance to train on; held-out ones keep all
    n_others=3,  # other instances' responses for a generative instance
    n_altered=3,  # altered references for a generative instance, each in another way
    max_samples=8,  # of an LM for an instance
    window=5000,  # lines of a template that are in memory together
    n_shards=8,  # one is in memory at a time when they are shuffled
    seed=0,
    rouge_tokenizer='default',  # unicode: words of every script, where the paper's rougeL reads a-z and 0-9 only
    overwrite=False,  # replace data in output_dir
):
    """Build pretraining data: train-*.jsonl, heldout.jsonl and counts.json in output_dir."""
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    settings = dict(locals())
    check_flags(settings)
    paths = [Path(path.strip()) for path in sources.split(',')]
    n_lines = check_sources(paths)
    chosen = match_names(n_lines, split(templates), '--templates')
    held_out = held_out_names(chosen, heldout)
    maker = RowMaker(RougeL(rouge_tokenizer), seed, max_wrong_choices, n_others, n_altered, max_samples)
    counts = Counts(held_out)
    lines = (line for line in read_lines(paths) if line.template in counts.taken(chosen))
    with shard_writer(output_dir, n_shards, seed) as writer:
        with tqdm.tqdm(total=sum(n_lines[name] for name in chosen), unit='line') as bar:
            for one in windows(lines, window, instances_per_template):
                make_rows(one, maker, writer, counts, settings)
                bar.update(one.n_lines)
        counts.remove(writer.shuffle())
        writer.write_counts({'settings': settings, **counts.as_json(), 'environment': environment()})
    counts.show(output_dir)


def check_flags(settings):
    """Numbers, and where the data goes."""
    if not settings['sources']:
        raise InputError('--sources: give a jsonl file of templates, instructions and responses')
    for name in ('instances_per_template', 'heldout_instances', 'max_wrong_choices', 'window', 'n_shards'):
        if settings[name] is not None and settings[name] < 1:
            raise InputError(f'--{name}: expected 1 or more, found {settings[name]}')
    for name in ('n_others', 'n_altered', 'max_samples'):
        if settings[name] < 0:
            raise InputError(f'--{name}: expected 0 or more, found {settings[name]}')
    if settings['rouge_tokenizer'] not in TOKENIZERS:
        raise InputError(f'--rouge_tokenizer: found {settings["rouge_tokenizer"]!r}; {" or ".join(TOKENIZERS)}')
    check_output(settings['output_dir'], settings['overwrite'])


def split(text):
    """What stands between commas."""
    return [part.strip() for part in text.split(',') if part.strip()]


def held_out_names(names, patterns):
    """The set of templates that are kept apart. The default's patterns need not all fit, the user's must."""
    if patterns is not None and patterns.lower() == 'none':
        return frozenset()
    found = match_names(names, split(patterns or HELD_OUT), '--heldout', all_must_match=patterns is not None)
    if not found:
        raise InputError(f'--heldout: none of {HELD_OUT} is here; name some of the templates, or give none')
    if len(found) == len(names):
        raise InputError('--heldout: fits all templates, so that none is left to train on')
    return frozenset(found)


def make_rows(window, maker, writer, counts, settings):
    """The rows of a window's instances, to train on or, for a sample of the first window, held out."""
    counts.begin(window)
    instances = window.instances
    if not instances:
        return
    if window.is_first:
        counts.choices = TemplateChoices(
            [instance.instruction for instance in instances], [instance.references[0] for instance in instances]
        )
    is_held_out = window.template in counts.held_out
    chosen = range(len(instances))
    if is_held_out:
        random = Random(f'{settings["seed"]}:{window.template}:held out')
        n_wanted = settings['heldout_instances'] if window.is_first else 0
        chosen = sorted(random.sample(chosen, min(n_wanted, len(instances))))
        counts.leave_out('beyond --heldout_instances', len(instances) - len(chosen))
    for i in chosen:
        rows = rows_of_instance(instances, i, maker, counts, is_held_out)
        if rows:
            counts.add(rows)
            (writer.add_held_out if is_held_out else writer.add_train)(rows)


def rows_of_instance(instances, i, maker, counts, is_held_out):
    """The rows of one instance; none where its choices cannot be told."""
    instance, found = instances[i], counts.choices
    choices = instance.choices or found.choices_of(instance.instruction, instance.references)
    if len(choices) > 1:
        return maker.choice_rows(instance, choices, all_choices=is_held_out)
    if found.kind == 'open':
        return maker.text_rows(instances, i)
    counts.leave_out('one response, no choices' if found.kind == 'single' else 'response not among the choices', 1)
    return []


class Counts:
    """What became rows and what did not, by template."""

    def __init__(self, held_out):
        self.held_out = held_out
        self.templates = {}
        self.choices = None  # TemplateChoices of the template that is worked on
        self._now = None

    def taken(self, chosen):
        """The templates that are taken, as a set."""
        return set(chosen)

    def begin(self, window):
        """A window of a template comes next."""
        if window.is_first:
            self.choices = None
            self._now = self.templates[window.template] = {
                'split': 'held out' if window.template in self.held_out else 'train',
                'lines': 0,
                'instances': 0,
                'rows': Counter(),
                'labels': Counter(),
                'left_out': Counter(),
            }
        self._now['lines'] += window.n_lines
        self.leave_out('empty response', window.n_empty)

    def leave_out(self, reason, n):
        """So many lines or instances of the present template become no rows."""
        if n:
            self._now['left_out'][reason] += n

    def add(self, rows):
        """Rows of an instance of the present template."""
        self._now['instances'] += 1
        self._now['rows'].update(row.source for row in rows)
        self._now['labels'].update(label_bin(row.label) for row in rows)
        self._now.setdefault('choices', self.choices.choices)
        self._now['kind'] = self.choices.kind

    def remove(self, removed):
        """{(template, source, label): n} rows were taken out again."""
        for (template, source, label), n in removed.items():
            counts = self.templates[template]
            counts['rows'][source] -= n
            counts['labels'][label_bin(label)] -= n
            counts['left_out']['row of a held-out instruction'] += n

    def total(self, key, split):
        """The sum of a Counter over the templates of a split."""
        return sum((counts[key] for counts in self.templates.values() if counts['split'] == split), Counter())

    def as_json(self):
        """For the file of counts."""
        splits = {
            split: {
                'templates': sum(c['split'] == split and c['instances'] > 0 for c in self.templates.values()),
                'instances': sum(c['instances'] for c in self.templates.values() if c['split'] == split),
                **{key: dict(self.total(key, split)) for key in ('rows', 'labels', 'left_out')},
            }
            for split in ('train', 'held out')
        }
        return {'splits': splits, 'templates': self.templates}

    def show(self, output_dir):
        """Print the tables."""
        rows = {split: self.total('rows', split) for split in ('train', 'held out')}
        table = [{'source': source, **{split: rows[split][source] for split in rows}} for source in SOURCES]
        table.append({'source': 'all', **{split: rows[split].total() for split in rows}})
        print(format_table(table, ['source', *rows]))
        labels = {split: self.total('labels', split) for split in rows}
        bins = [label_bin(0.0), *(label_bin((i + 0.5) / N_BINS) for i in range(N_BINS)), label_bin(1.0)]
        table = [{'label': name, **{split: labels[split][name] for split in labels}} for name in bins]
        print('\n' + format_table(table, [Column('label'), *labels]))
        left_out = {split: self.total('left_out', split) for split in rows}
        reasons = sorted(set(itertools.chain(*left_out.values())))
        table = [{'left out': reason, **{split: left_out[split][reason] for split in rows}} for reason in reasons]
        print('\n' + format_table(table, ['left out', *left_out]))
        without = [name for name, counts in self.templates.items() if not counts['instances']]
        kinds = Counter(counts.get('kind') for counts in self.templates.values() if counts['instances'])
        print(f'\ntemplates: {dict(kinds)}; nothing taken from {len(without)}: {", ".join(without)}')
        print(f'{output_dir}: {rows["train"].total()} rows to train on, {rows["held out"].total()} held out')


def label_bin(label):
    """The name of the bar of a label: 0, 1, or the tenth between them."""
    if label in (0, 1):
        return str(int(label))
    low = min(int(label * N_BINS), N_BINS - 1)
    return f'{low / N_BINS:.1f} to {(low + 1) / N_BINS:.1f}'


if __name__ == '__main__':
    flags.run(main)
