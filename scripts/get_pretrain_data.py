"""Data for `cappy_pretrain.py`: rows of (instruction, response, label) from instruction data, as in section 3.1.

    python scripts/get_pretrain_data.py --sources instances.jsonl.gz
    python scripts/get_pretrain_data.py --hub bigscience/P3

Where an instance asks for a choice, the right one is labelled 1 and wrong ones 0. Elsewhere the reference is labelled 1,
and by rougeL against it: responses of other instances, samples of a language model (`--samples`), and the reference
truncated, repeated, reordered or with a name exchanged. Whole data sets are held out, by the names of their templates.
See docs/pretraining.md.
"""

import gzip
import json
import random
import shutil
import tempfile
from collections import Counter
from contextlib import ExitStack
from fnmatch import fnmatch
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

import tqdm

from cappy import cells, flags, results, tables
from cappy.alterations import ALTERATIONS
from cappy.candidates import read_task
from cappy.errors import InputError
from cappy.jsonl import parse_object, shown
from cappy.options import TemplateChoices
from cappy.pretrainfiles import HELD_OUT
from cappy.rouge import RougeL

HELD_OUT_DEFAULT = 'ag_news_*,common_gen_*,commonsense_qa_*,glue_mrpc_*,quartz_*,samsum_*,social_i_qa_*'
ROWS_OF = ('choice', 'reference', 'other', *ALTERATIONS, 'sample')
SPLITS = (('train', False), ('held out', True))
LEFT_OUT = {
    'empty': 'empty response',
    'long': 'longer than max_characters',
    'one_response': 'one response only, and no list of choices to oppose to it',
    'unlisted': "instruction without its template's list of choices",
    'again': 'instruction that stands in the other split too',
    'beyond': 'beyond heldout_instances',
}


def main(
    sources='',  # files of {"template", "instruction", "response"}, .jsonl or .jsonl.gz, with commas between
    hub: str | None = None,  # bigscience/P3, or a data set (or folder) laid out as it is
    samples: str | None = None,  # a folder of candidate files: {generator}/{task}_train.jsonl
    output_dir='pretrain_data',
    templates='*',  # shell patterns with commas between: of the hub's templates, which to read
    heldout=HELD_OUT_DEFAULT,  # shell patterns of the templates that are not trained on; '' for none
    heldout_instances=40,  # of each held-out template
    instances_per_template=10000,  # that are read from the hub, and at most held in memory
    max_characters=0,  # instances whose instruction and response are longer are left out; 0: none are
    max_wrong_choices=3,  # of a training instance; held-out ones keep all
    n_others=2,  # responses of other instances, for an instance without choices
    n_altered=2,  # altered references
    n_shards=8,
    seed=11111,
    overwrite=False,
):
    """Build shards of labelled rows, and rows of held-out templates."""
    settings = dict(locals())
    check(settings)
    output = Path(output_dir)
    if output.exists() and not overwrite:
        raise InputError(f'{output}: exists; --overwrite replaces it, another --output_dir keeps both')
    maker = RowMaker(settings)
    with writing(output) as folder:
        with ExitStack() as files:
            shards = [
                files.enter_context(open(folder / f'train-{i:05d}-of-{n_shards:05d}.jsonl', 'w', encoding='utf-8'))
                for i in range(n_shards)
            ]
            held_out = files.enter_context(open(folder / HELD_OUT, 'w', encoding='utf-8'))
            scatter = random.Random(f'{seed} shards')
            for is_held_out, rows in maker.instances(windows(settings)):
                for row in rows:
                    (held_out if is_held_out else scatter.choice(shards)).write(to_line(*row))
        maker.check_held_out_patterns()
        for number, path in enumerate(sorted(folder.glob('train-*.jsonl'))):
            shuffle_lines(path, random.Random(f'{seed} {number}'))
        results.write_json(folder / 'counts.json', maker.described())
    print(maker.table())


def check(settings):
    """Raise InputError for flags that give no data."""
    if not (settings['sources'] or settings['hub'] or settings['samples']):
        raise InputError('--sources, --hub, --samples: none is given; name at least one')
    for name in ('n_shards', 'instances_per_template', 'heldout_instances'):
        if settings[name] < 1:
            raise InputError(f'--{name}: found {settings[name]}; give 1 or more')
    for name in ('max_wrong_choices', 'n_others', 'n_altered', 'max_characters', 'seed'):
        if settings[name] < 0:
            raise InputError(f'--{name}: found {settings[name]}; give 0 or more')


def listed(text):
    """The words between commas."""
    return [word.strip() for word in text.split(',') if word.strip()]


class writing:
    """A folder that takes its place when the block ends, and vanishes if it fails."""

    def __init__(self, output):
        self.output = output

    def __enter__(self):
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f'.{self.output.name}.', dir=self.output.parent))
        except OSError as error:
            raise InputError(f'{self.output}: cannot be written ({error.strerror})') from error
        return self.folder

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                if self.output.exists():
                    shutil.rmtree(self.output)
                self.folder.rename(self.output)
            elif isinstance(error, OSError):
                raise InputError(f'{self.output}: cannot be written ({error.strerror}); free some space') from error
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def windows(settings):
    """Yields (template, list of Instance or of candidates.Example): a template's instances, as many as memory may hold.

    Raises InputError where a template's instances do not follow each other.
    """
    files = chain.from_iterable(map(read_instances, listed(settings['sources'])))
    most = settings['instances_per_template']
    streamed = ()
    ended = set()
    for template, group in groupby(chain(files, streamed), key=lambda instance: instance.template):
        if template in ended:
            raise InputError(f'--sources: template {template} stands in several places; sort the lines by template')
        ended.add(template)
        yield template, [instance for _, instance in zip(range(most), group, strict=False)]
    if settings['samples']:
        folder = Path(settings['samples'])
        for generator in sorted(entry.name for entry in folder.iterdir() if entry.is_dir()):
            for task in cells.sampled_tasks(folder, generator):
                yield f'{generator}/{task}', read_task(folder, generator, task)['train']


class Instance(NamedTuple):
    """choices: those that the source itself gives; () where it gives none."""

    template: str
    instruction: str
    response: str
    choices: tuple[str, ...] = ()


def read_instances(path):
    """Yields the instances of a file, .jsonl or .jsonl.gz. Raises InputError naming file, line and field."""
    path = Path(path)
    with gzip.open(path, 'rb') if path.suffix == '.gz' else open(path, 'rb') as file:
        for number, raw in enumerate(file, start=1):
            try:
                fields = parse_object(raw)
                for key in ('template', 'instruction', 'response'):
                    if not isinstance(fields.get(key), str):
                        raise InputError(f'{key}: expected text, found {shown(fields.get(key))}')
            except InputError as error:
                raise InputError(f'{path}:{number}: {error}') from error
            yield Instance(fields['template'], fields['instruction'], fields['response'].strip())


def to_line(template, source, instruction, response, label):
    """A row of pretraining data as a line."""
    row = {'template': template, 'source': source, 'instruction': instruction, 'response': response, 'label': label}
    return json.dumps(row, ensure_ascii=False) + '\n'


class RowMaker:
    """Turns instances into rows and counts them.

    What is drawn for an instance hangs on the seed, its template and its number, not on what was read before.
    """

    def __init__(self, settings):
        self.settings = settings
        self.patterns = listed(settings['heldout'])
        self.rouge = RougeL()
        self.counts = {False: Counter(), True: Counter()}  # of rows, by source; True: held out
        self.n_instances = {False: Counter(), True: Counter()}  # by template
        self.left_out, self.labels = Counter(), Counter()
        self.names, self.kinds = [], {}
        self.instructions = {False: set(), True: set()}  # hashes

    def instances(self, windows):
        """Yields (is held out, [(template, source, instruction, response, label)]) of each instance."""
        for template, window in tqdm.tqdm(windows, desc='labelling', unit='template'):
            self.names.append(template)
            is_held_out = any(fnmatch(template, pattern) for pattern in self.patterns)
            made = self._of_instances if isinstance(window[0], Instance) else self._of_samples
            for instruction, rows in made(template, window, is_held_out):
                if hash(instruction) in self.instructions[not is_held_out]:
                    self.left_out['again'] += 1
                    continue
                if is_held_out and self.n_instances[True][template] == self.settings['heldout_instances']:
                    self.left_out['beyond'] += 1
                    continue
                self.instructions[is_held_out].add(hash(instruction))
                self.n_instances[is_held_out][template] += 1
                for source, _, label in rows:
                    self.counts[is_held_out][source] += 1
                    if not is_held_out:
                        self.labels[min(int(label * 10), 9)] += 1
                yield is_held_out, [(template, source, instruction, text, label) for source, text, label in rows]

    def _of_instances(self, template, window, is_held_out):
        filled = [instance for instance in window if instance.response]
        self.left_out['empty'] += len(window) - len(filled)
        if not filled:
            return
        found = TemplateChoices([one.instruction for one in filled], [one.response for one in filled])
        own = any(instance.choices for instance in filled)  # the source gives them
        if found.kind == 'single' and not own:
            self.left_out['one_response'] += len(filled)
            return
        self.kinds[template] = {'kind': 'own' if own else found.kind, 'choices': found.choices}
        responses = [instance.response for instance in filled]
        for number, instance in enumerate(filled):
            most = self.settings['max_characters']
            if most and len(instance.instruction) + len(instance.response) > most:
                self.left_out['long'] += 1
                continue
            generator = random.Random(f'{self.settings["seed"]} {template} {number}')
            if found.kind == 'open' and not own:
                yield instance.instruction, self._of_reference(instance.response, responses, generator)
                continue
            choices = instance.choices if own else found.choices_of(instance.instruction, [instance.response])
            if choices:
                yield instance.instruction, self._of_choice(instance.response, choices, is_held_out, generator)
            else:
                self.left_out['unlisted'] += 1

    def _of_choice(self, right, choices, is_held_out, generator):
        wrong = [choice for choice in choices if choice != right]
        if not is_held_out and len(wrong) > self.settings['max_wrong_choices']:
            wrong = generator.sample(wrong, self.settings['max_wrong_choices'])
        return [('choice', right, 1.0), *(('choice', text, 0.0) for text in wrong)]

    def _of_reference(self, reference, responses, generator):
        """The reference, others' responses and altered ones, each text once."""
        texts = {reference: 'reference'}
        others = [generator.choice(responses) for _ in range(self.settings['n_others'])]
        for text in others:
            texts.setdefault(text, 'other')
        words, strange = reference.split(), generator.choice(responses).split()
        for name in generator.sample(list(ALTERATIONS), min(self.settings['n_altered'], len(ALTERATIONS))):
            altered = ALTERATIONS[name](words, strange, generator)
            if altered is not None and altered != words:
                texts.setdefault(' '.join(altered), name)
        return self._labelled([reference], texts)

    def _of_samples(self, template, examples, is_held_out):
        for example in examples:
            texts = dict.fromkeys(example.references, 'reference')
            for sample in example.samples:
                if sample.response.strip():
                    texts.setdefault(sample.response, 'sample')
            yield example.instruction, self._labelled(example.references, texts)

    def _labelled(self, references, texts):
        labels = self.rouge.scores(references, list(texts)).tolist()
        return [
            (source, text, 1.0 if source == 'reference' else label)
            for (text, source), label in zip(texts.items(), labels, strict=True)
        ]

    def check_held_out_patterns(self):
        """Raise InputError for a pattern that held nothing out; of the default ones, where none did."""
        if not self.n_instances[False]:
            raise InputError('--heldout, --max_characters: leave nothing to train on; loosen them')

    def described(self):
        """The content of counts.json."""
        return {
            'settings': self.settings,
            'rows': {'train': self.counts[False], 'heldout': self.counts[True]},
            'instances': {'train': self.n_instances[False], 'heldout': self.n_instances[True]},
            'left_out': self.left_out,
            'labels': {f'{i / 10:.1f} to {(i + 1) / 10:.1f}': self.labels[i] for i in range(10)},
            'templates': self.kinds,
            'versions': results.environment(),
        }

    def table(self):
        """What the user reads at the end."""
        rows = [
            {'rows': source, 'train': self.counts[False][source], 'held out': self.counts[True][source]}
            for source in ROWS_OF
            if self.counts[False][source] or self.counts[True][source]
        ]
        rows += [
            {'rows': 'all', **{name: sum(self.counts[held].values()) for name, held in SPLITS}},
            {'rows': 'instances', **{name: sum(self.n_instances[held].values()) for name, held in SPLITS}},
            {'rows': 'templates', **{name: len(self.n_instances[held]) for name, held in SPLITS}},
        ]
        most = max(self.labels.values())
        histogram = [
            {'label': name, 'train rows': n, '': '#' * -(-30 * n // most)}
            for name, n in self.described()['labels'].items()
        ]
        left_out = [{'left out': LEFT_OUT[key], 'instances': n} for key, n in self.left_out.items() if n]
        parts = [tables.format_table(rows, ['rows', 'train', 'held out'])]
        parts.append(tables.format_table(histogram, ['label', 'train rows', '']))
        if left_out:
            parts.append(tables.format_table(left_out, ['left out', 'instances']))
        return '\n\n'.join(parts)


def shuffle_lines(path, generator):
    """The lines of a file in another order; the file is what memory must hold."""
    lines = path.read_bytes().splitlines(keepends=True)  # of bytes: other ends of a line than \n are JSON's escapes
    generator.shuffle(lines)
    path.write_bytes(b''.join(lines))


if __name__ == '__main__':
    flags.run(main)
