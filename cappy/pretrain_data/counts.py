"""Counts of pretraining data: the pairs that were made, by template and source, their labels, and what was left out."""

from collections import Counter
from collections.abc import Mapping, Sequence

from cappy.cli.tables import format_table
from cappy.files.wording import listed
from cappy.pretrain_data.instances import Chunk
from cappy.pretrain_data.labelled_pairs import SOURCES, LabelledPair

TRAIN, HELD_OUT = PARTS = ('train', 'held out')  # of the templates
N_BINS = 10  # of the histogram of labels between 0 and 1; the labels 0 and 1 have bars of their own


class Counts:
    """Counts that are kept while one template after another is worked on.

    `templates` has for each template: its part; kind, how its choices were found ('given', 'listed', 'closed', 'open'
    for none; None before its first instance), and the choices of a closed set; the number of lines that were read and
    of instances that have pairs; pairs by source, labels by bar of the histogram, and the lines, instances or pairs
    that were left out, by reason.
    """

    def __init__(self):
        self.templates = {}
        self._present = None

    def begin(self, chunk: Chunk, part: str):
        """Count for the template of this chunk from now on; part: of the template."""
        if chunk.is_first:
            self._present = self.templates[chunk.template] = {
                'part': part,
                'kind': None,
                'choices': (),
                'lines': 0,
                'instances': 0,
                'pairs': Counter(),
                'labels': Counter(),
                'left_out': Counter(),
            }
        self._present['lines'] += chunk.n_lines
        self.leave_out('empty text', chunk.n_empty)

    @property
    def is_new(self) -> bool:
        """Whether the present template had no instance yet."""
        return self._present['kind'] is None

    def describe(self, kind, choices: Sequence[str] = ()):
        """How the choices of the present template are found."""
        self._present |= {'kind': kind, 'choices': list(choices)}

    def leave_out(self, reason, n=1):
        """n lines or instances of the present template give no pairs."""
        if n:
            self._present['left_out'][reason] += n

    def add(self, pairs: Sequence[LabelledPair]):
        """The pairs of one instance of the present template."""
        self._present['instances'] += 1
        self._present['pairs'].update(pair.source for pair in pairs)
        self._present['labels'].update(label_bar(pair.label) for pair in pairs)

    def remove(self, removed: Mapping[tuple, int]):
        """n pairs for each (template, source, label) were taken out, since their instructions are held out."""
        for (template, source, label), n in removed.items():
            counts = self.templates[template]
            counts['pairs'][source] -= n
            counts['labels'][label_bar(label)] -= n
            counts['left_out']['pairs of a held-out instruction'] += n

    def total(self, key, part) -> Counter:
        """The sum of 'pairs', 'labels' or 'left_out' over the templates of a part."""
        return sum((counts[key] for counts in self._of(part)), Counter())

    def n_instances(self, part) -> int:
        """The number of instances that have pairs."""
        return sum(counts['instances'] for counts in self._of(part))

    @property
    def without_pairs(self) -> list[str]:
        """Templates that gave no pair."""
        return [name for name, counts in self.templates.items() if not counts['instances']]

    def as_json(self) -> dict:
        """The counts by part and by template, as the file of counts has them."""
        parts = {}
        for part in PARTS:
            n_templates = sum(counts['instances'] > 0 for counts in self._of(part))
            parts[part] = {'templates': n_templates, 'instances': self.n_instances(part)}
            parts[part] |= {key: dict(self.total(key, part)) for key in ('pairs', 'labels', 'left_out')}
        return {'parts': parts, 'templates': self.templates}

    def tables(self) -> str:
        """Tables for the user: pairs by source, the histogram of labels, what was left out, templates by kind."""
        bars = [label_bar(i / (2 * N_BINS)) for i in range(2 * N_BINS + 1)]
        blocks = [
            self._table('source', 'pairs', SOURCES, with_sum=True),
            self._table('label', 'labels', bars),
            self._table('left out', 'left_out', None),
            self._table_of_kinds(),
        ]
        without = self.without_pairs
        if without:
            n = len(without)
            blocks.append(f'{n} template{"s" * (n > 1)} gave no pair: {listed(without)} (counts.json names all)')
        return '\n\n'.join(filter(None, blocks))

    def _of(self, part):
        return [counts for counts in self.templates.values() if counts['part'] == part]

    def _table(self, header, key, names, with_sum=False):
        totals = {part: self.total(key, part) for part in PARTS}
        names = dict.fromkeys(names or sorted(set().union(*totals.values())))
        rows = [{header: name, **{part: totals[part][name] for part in PARTS}} for name in names]
        rows = [row for row in rows if key != 'pairs' or row[TRAIN] or row[HELD_OUT]]
        if with_sum:
            rows.append({header: 'all', **{part: totals[part].total() for part in PARTS}})
        return format_table(rows, [header, *PARTS]) if rows else ''

    def _table_of_kinds(self):
        found = Counter((counts['kind'], counts['part']) for counts in self.templates.values() if counts['instances'])
        kinds = sorted({kind for kind, _ in found})
        rows = [{'templates by choices': kind, **{part: found[kind, part] for part in PARTS}} for kind in kinds]
        return format_table(rows, ['templates by choices', *PARTS]) if rows else ''


def label_bar(label) -> str:
    """The bar of a label in the histogram: 0, 1, or the tenth between them."""
    if label in (0, 1):
        return str(int(label))
    low = min(int(label * N_BINS), N_BINS - 1)
    return f'{low / N_BINS:.1f} to {(low + 1) / N_BINS:.1f}'
