"""Tables as text: aligned for a terminal, Markdown, LaTeX, CSV or JSON."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

from cappy.errors import InputError

STYLES = ('table', 'markdown', 'latex', 'csv', 'json')
_LATEX_ESCAPES = str.maketrans(
    {
        '&': r'\&',
        '%': r'\%',
        '$': r'\$',
        '#': r'\#',
        '_': r'\_',
        '{': r'\{',
        '}': r'\}',
        '~': r'\textasciitilde{}',
        '^': r'\textasciicircum{}',
        '\\': r'\textbackslash{}',
    }
)
# What spreadsheets take for the beginning of a formula, full-width forms too.
_FORMULA_BEGINS = ('=', '+', '-', '@', '\t', '\r', '\n', '\uff1d', '\uff0b', '\uff0d', '\uff20')
_HYPHEN_AS_MINUS = re.compile(r'(?<![\w.-])-(?=\d)')  # before a number, and not within flan-t5 or 2024-05


@dataclass(frozen=True, slots=True)
class Column:
    """A column: of each row it shows row[key], below the header (the key, if None).

    Numbers are multiplied by scale and rounded to `decimals` decimals (not, if None). A header may have several lines,
    which 'table' keeps so that the column is narrow. bold: row[bold] says whether 'markdown' and 'latex' show the cell
    in bold.
    """

    key: str
    header: str | None = None
    scale: float = 1
    decimals: int | None = None
    bold: str | None = None

    @property
    def title(self) -> str:
        """The text above the column."""
        return self.key if self.header is None else self.header


def percent(key, header=None, bold=None) -> Column:
    """A column of fractions, which are shown times 100 with one decimal."""
    return Column(key, header, scale=100, decimals=1, bold=bold)


def format_table(rows: Iterable[Mapping], columns: Sequence[Column | str], style: str = 'table') -> str:
    """The rows as text, without a newline at the end.

    columns: a text is the column of that key. style: 'table' (aligned, for a terminal), 'markdown' and 'latex' show
    headers and scaled numbers; 'csv' and 'json' keep keys and values as they are, for programs. A value that is missing
    or None is empty ('-' in 'table', null in 'json'). A text that a spreadsheet would run as a formula has an
    apostrophe before it in 'csv', by which spreadsheets take it for text.
    Raises InputError for another style.
    """
    if style not in STYLES:
        raise InputError(f'style {style!r}: choose one of {", ".join(STYLES)}')
    columns = [Column(column) if isinstance(column, str) else column for column in columns]
    rows = list(rows)
    if style in ('csv', 'json'):
        values = table_values(rows, columns)
        return json.dumps(values, ensure_ascii=False, indent=4) if style == 'json' else _csv(values, columns)
    are_numbers = [_is_numeric(rows, column) for column in columns]
    cells = [[_cell(row.get(column.key), column) for column in columns] for row in rows]
    if style == 'table':
        return _aligned([column.title for column in columns], cells, are_numbers)
    titles = [' '.join(column.title.split()) for column in columns]
    is_bold = [[bool(column.bold and row.get(column.bold)) for column in columns] for row in rows]
    return {'markdown': _markdown, 'latex': _latex}[style](titles, cells, are_numbers, is_bold)


def table_values(rows: Iterable[Mapping], columns: Sequence[Column | str]) -> list[dict]:
    """The rows as 'json' shows them: keys and values of the columns as they are, None where one is missing."""
    keys = [column if isinstance(column, str) else column.key for column in columns]
    return [{key: row.get(key) for key in keys} for row in rows]


def _is_numeric(rows, column):
    values = [row.get(column.key) for row in rows]
    return all(value is None or _is_number(value) for value in values) and any(value is not None for value in values)


def _is_number(value):
    return isinstance(value, Real) and not isinstance(value, bool)


def _cell(value, column):
    if value is None:
        return ''
    if not _is_number(value):
        return ' '.join(str(value).split())  # a newline would break the row
    value = value if column.scale == 1 else value * column.scale
    return str(value) if column.decimals is None else f'{value:.{column.decimals}f}'


def _aligned(titles, cells, are_numbers):
    cells = [[cell or '-' for cell in row] for row in cells]
    parts = [title.split('\n') for title in titles]
    n_lines = max(map(len, parts))
    headers = [['' for _ in range(n_lines - len(part))] + part for part in parts]  # short ones next to the rule
    lines = _padded([*map(list, zip(*headers, strict=True)), *cells], are_numbers)
    rule = '  '.join('-' * len(cell) for cell in lines[0])
    texts = ['  '.join(line).rstrip() for line in lines]
    return '\n'.join([*texts[:n_lines], rule, *texts[n_lines:]])


def _markdown(titles, cells, are_numbers, is_bold):
    escaped = [[cell.replace('|', r'\|') for cell in row] for row in [titles, *cells]]
    first, *rest = (f'| {" | ".join(line)} |' for line in _padded(_bold(escaped, is_bold, '**{}**'), are_numbers))
    rule = f'|{"|".join("---:" if is_number else "---" for is_number in are_numbers)}|'
    return '\n'.join([first, rule, *rest])


def _latex(titles, cells, are_numbers, is_bold):
    """For the package booktabs."""
    escaped = [[cell.translate(_LATEX_ESCAPES) for cell in row] for row in [titles, *cells]]
    escaped = [[_HYPHEN_AS_MINUS.sub('$-$', cell) for cell in row] for row in escaped]
    lines = _padded(_bold(escaped, is_bold, r'\textbf{{{}}}'), are_numbers)
    first, *rest = (rf'{" & ".join(line)} \\' for line in lines)
    alignment = ''.join('r' if is_number else 'l' for is_number in are_numbers)
    lines = [r'\toprule', first, r'\midrule', *rest, r'\bottomrule']
    return '\n'.join([rf'\begin{{tabular}}{{{alignment}}}', *lines, r'\end{tabular}'])


def _bold(lines, is_bold, pattern):
    titles, *cells = lines
    return [
        titles,
        *(
            [pattern.format(cell) if bold and cell else cell for cell, bold in zip(row, of_row, strict=True)]
            for row, of_row in zip(cells, is_bold, strict=True)
        ),
    ]


def _padded(lines, are_numbers):
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        [
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, are_numbers, strict=True)
        ]
        for line in lines
    ]


def _csv(values, columns):
    lines = []
    for row in [[column.key for column in columns], *(row.values() for row in values)]:
        text = io.StringIO(newline='')
        # With this end of a line, both \r and \n are quoted inside a field.
        csv.writer(text, lineterminator='\r\n').writerow(map(_no_formula, row))
        lines.append(text.getvalue().removesuffix('\r\n'))
    return '\n'.join(lines)


def _no_formula(value):
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_BEGINS) else value
