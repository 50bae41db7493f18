"""Tables as text in each style."""

import csv
import io
import json

import pytest

from cappy.cli.tables import Column, format_table, percent
from cappy.errors import InputError

ROWS = [
    {'name': 'random candidate', 'rougeL': 0.63234, 'n': 5, 'low': 0.6, 'more': 'unseen'},
    {'name': 'first of a_b', 'rougeL': 0.7, 'n': 120, 'low': None},
    {'name': 'a|b & 5%', 'rougeL': 1.0, 'n': 0},
]
COLUMNS = [Column('name', 'picked by'), percent('rougeL', 'rougeL'), 'n', percent('low')]


def test_a_plain_table_aligns_texts_left_and_numbers_right():
    assert format_table(ROWS, COLUMNS).splitlines() == [
        'picked by         rougeL    n   low',
        '----------------  ------  ---  ----',
        'random candidate    63.2    5  60.0',
        'first of a_b        70.0  120     -',
        'a|b & 5%           100.0    0     -',
    ]


def test_a_markdown_table_escapes_its_separator():
    assert format_table(ROWS, COLUMNS, 'markdown').splitlines() == [
        '| picked by        | rougeL |   n |  low |',
        '|---|---:|---:|---:|',
        '| random candidate |   63.2 |   5 | 60.0 |',
        '| first of a_b     |   70.0 | 120 |      |',
        r'| a\|b & 5%        |  100.0 |   0 |      |',
    ]


def test_a_latex_table_escapes_its_specials():
    assert format_table(ROWS, COLUMNS, 'latex').splitlines() == [
        r'\begin{tabular}{lrrr}',
        r'\toprule',
        r'picked by        & rougeL &   n &  low \\',
        r'\midrule',
        r'random candidate &   63.2 &   5 & 60.0 \\',
        r'first of a\_b    &   70.0 & 120 &      \\',
        r'a|b \& 5\%       &  100.0 &   0 &      \\',
        r'\bottomrule',
        r'\end{tabular}',
    ]
    assert r'a\textbackslash{}b' in format_table([{'x': 'a\\b'}], ['x'], 'latex')


def test_latex_has_minus_signs_before_numbers_and_hyphens_within_names():
    rows = [{'model': 'flan-t5-xl', 'gain': -0.5, 'interval': '-1.2 (-2.0 to +0.1)'}]
    line = format_table(rows, ['model', Column('gain', decimals=1), 'interval'], 'latex').splitlines()[4]
    assert line == r'flan-t5-xl & $-$0.5 & $-$1.2 ($-$2.0 to +0.1) \\'


def test_a_cell_is_bold_where_its_row_says_so():
    rows = [{'x': 0.5, 'is_best': True}, {'x': 0.25, 'is_best': False}, {'x': None, 'is_best': True}]
    column = Column('x', scale=100, decimals=1, bold='is_best')
    assert format_table(rows, [column], 'latex').splitlines()[4:7] == [
        r'\textbf{50.0} \\',
        r'         25.0 \\',
        ' ' * 13 + r' \\',
    ]
    assert format_table(rows, [column], 'markdown').splitlines()[2:] == ['| **50.0** |', '|     25.0 |', '|          |']
    assert format_table(rows, [column]).splitlines()[2:] == ['50.0', '25.0', '   -']


def test_a_header_of_two_lines_makes_a_narrow_column_in_a_plain_table():
    rows = [{'task': 'gem', 'x': 1.0}]
    columns = ['task', Column('x', 'first of\nbeam4', decimals=1)]
    assert format_table(rows, columns).splitlines() == [
        '      first of',
        'task     beam4',
        '----  --------',
        'gem        1.0',
    ]
    assert format_table(rows, columns, 'markdown').splitlines()[0] == '| task | first of beam4 |'


def test_csv_and_json_keep_keys_and_whole_values():
    read = list(csv.DictReader(io.StringIO(format_table(ROWS, COLUMNS, 'csv'))))
    assert read[0] == {'name': 'random candidate', 'rougeL': '0.63234', 'n': '5', 'low': '0.6'}
    assert read[1]['low'] == ''
    assert json.loads(format_table(ROWS, COLUMNS, 'json')) == [
        {'name': row['name'], 'rougeL': row['rougeL'], 'n': row['n'], 'low': row.get('low')} for row in ROWS
    ]


@pytest.mark.parametrize('text', ['=cmd', '+1', '-x', '@SUM(A1)', '\t=1', '\r=1', '\uff1d1'])
def test_what_a_spreadsheet_would_run_is_text_in_csv(text):
    rows = [{'task': text, 'gain': -0.5, text: 'a=b'}]
    read = list(csv.reader(io.StringIO(format_table(rows, ['task', 'gain', text], 'csv'), newline='')))
    assert read == [['task', 'gain', f"'{text}"], [f"'{text}", '-0.5', 'a=b']]
    assert json.loads(format_table(rows, ['task', 'gain'], 'json')) == [{'task': text, 'gain': -0.5}]


def test_a_table_without_rows_has_its_header():
    assert format_table([], COLUMNS).splitlines() == [
        'picked by  rougeL  n  low',
        '---------  ------  -  ---',
    ]
    assert format_table([], COLUMNS, 'csv') == 'name,rougeL,n,low'
    assert format_table([], COLUMNS, 'json') == '[]'


def test_a_text_of_several_lines_stays_in_its_row():
    assert format_table([{'x': 'a\n b'}, {'x': True}], ['x']).splitlines() == [
        'x',
        '----',
        'a b',
        'True',
    ]


def test_an_unknown_style_is_named():
    with pytest.raises(InputError, match="style 'html': choose one of table, markdown, latex, csv, json"):
        format_table(ROWS, COLUMNS, 'html')
