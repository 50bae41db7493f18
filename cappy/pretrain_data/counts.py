"""Counts of pretraining data: what became rows, by template and source, their labels, and what was left out and why."""

from collections import Counter
from collections.abc import Mapping, Sequence

from cappy.cli.tables import format_table
from cappy.files.wording import listed
from cappy.pretrain_data.instances import Window
from cappy.pretrain_data.rows import SOURCES, Row

TRAIN, HELD_OUT = SPLITS = ('train', 'held out')
N_BINS = 10  # of the histogram, between 0 and 1; labels of 0 and 1 have bars of their own


class Counts:
    """Counted while a template after the other is worked on.

    Of each template: its split; kind, how its choices were found ('given', 'listed', 'closed', or 'open': none; None
    before its first instance), and the choices of a closed set; lines that were read, instances that have rows, rows by
    source, labels by bar of the histogram, and lines or instances left out by reason.
    """

    def __init__(self):
        self.templates = {}
        self._now = None

    def begin(self, window: Window, split: str):
        """A window comes next; `split` is its template's."""
        if window.is_first:
            self._now = self.templates[window.template] = {
                'split': split,
                'kind': None,
                'choices': (),
                'lines': 0,
                'instances': 0,
                'rows': Counter(),
                'labels': Counter(),
                'left_out': Counter(),
            }
        self._now['lines'] += window.n_lines
        self.leave_out('empty text', window.n_empty)

    @property
    def is_new(self) -> bool:
        """Whether the present template had no instance yet."""
        return self._now['kind'] is None

    def describe(self, kind, choices: Sequence[str] = ()):
        """How the choices of the present template are found."""
        self._now |= {'kind': kind, 'choices': list(choices)}

    def leave_out(self, reason, n=1):
        """So many lines or instances of the present template become no rows."""
        if n:
            self._now['left_out'][reason] += n

    def add(self, rows: Sequence[Row]):
        """The rows of an instance of the present template."""
        self._now['instances'] += 1
        self._now['rows'].update(row.source for row in rows)
        self._now['labels'].update(label_bar(row.label) for row in rows)

    def remove(self, removed: Mapping[tuple, int]):
        """{(template, source, label): n} rows were taken out again, since their instructions are held out."""
        for (template, source, label), n in removed.items():
            counts = self.templates[template]
            counts['rows'][source] -= n
            counts['labels'][label_bar(label)] -= n
            counts['left_out']['rows of a held-out instruction'] += n

    def total(self, key, split) -> Counter:
        """The sum of 'rows', 'labels' or 'left_out' over the templates of a split."""
        return sum((counts[key] for counts in self._of(split)), Counter())

    def n_instances(self, split) -> int:
        """Instances that have rows."""
        return sum(counts['instances'] for counts in self._of(split))

    @property
    def without_rows(self) -> list[str]:
        """Templates from which nothing was taken."""
        return [name for name, counts in self.templates.items() if not counts['instances']]

    def as_json(self) -> dict:
        """By split and by template."""
        splits = {}
        for split in SPLITS:
            with_rows = [counts for counts in self._of(split) if counts['instances']]
            splits[split] = {'templates': len(with_rows), 'instances': self.n_instances(split)}
            splits[split] |= {key: dict(self.total(key, split)) for key in ('rows', 'labels', 'left_out')}
        return {'splits': splits, 'templates': self.templates}

    def tables(self) -> str:
        """What a user reads: rows by source, the histogram of labels, what was left out, templates by kind."""
        parts = [
            self._table('source', 'rows', SOURCES, with_sum=True),
            self._table('label', 'labels', [*map(label_bar, (i / (2 * N_BINS) for i in range(2 * N_BINS + 1)))]),
            self._table('left out', 'left_out', None),
            self._table_of_kinds(),
        ]
        without = self.without_rows
        if without:
            parts.append(f'Nothing was taken from {len(without)} templates: {listed(without)} (counts.json has all)')
        return '\n\n'.join(filter(None, parts))

    def _of(self, split):
        return [counts for counts in self.templates.values() if counts['split'] == split]

    def _table(self, header, key, names, with_sum=False):
        totals = {split: self.total(key, split) for split in SPLITS}
        names = dict.fromkeys(names or sorted(set().union(*totals.values())))
        rows = [{header: name, **{split: totals[split][name] for split in SPLITS}} for name in names]
        rows = [row for row in rows if key != 'rows' or row[TRAIN] or row[HELD_OUT]]
        if with_sum:
            rows.append({header: 'all', **{split: totals[split].total() for split in SPLITS}})
        return format_table(rows, [header, *SPLITS]) if rows else ''

    def _table_of_kinds(self):
        found = Counter((counts['kind'], counts['split']) for counts in self.templates.values() if counts['instances'])
        kinds = sorted({kind for kind, _ in found})
        rows = [{'templates by choices': kind, **{split: found[kind, split] for split in SPLITS}} for kind in kinds]
        return format_table(rows, ['templates by choices', *SPLITS]) if rows else ''


def label_bar(label) -> str:
    """The bar of a label in the histogram: 0, 1, or the tenth between them."""
    if label in (0, 1):
        return str(int(label))
    low = min(int(label * N_BINS), N_BINS - 1)
    return f'{low / N_BINS:.1f} to {(low + 1) / N_BINS:.1f}'
