"""scripts/score.py: rows in, the same rows with scores out; cut off anywhere it goes on; what is wrong is named."""

import csv
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import run_main

from cappy import Cappy
from cappy.errors import InputError
from cappy.files.lock import result_lock
from cappy.files.partial import OutputPaths
from cappy.files.scored_pairs import PairFile, Runs, best_first, find_done

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location('score', ROOT / 'scripts' / 'score.py')
score = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(score)

ODD = ['plain', '', 'a "quoted" word', 'two\nlines', 'tab\tand, comma', 'café ☕', 'carriage\rreturn', '"', ' edges ']


def run(*argv):
    """The script in this process -> its exit code."""
    return run_main(score.main, argv)


@pytest.fixture(scope='module')
def model(tiny_directories):
    return tiny_directories['roberta']


@pytest.fixture(scope='module')
def scores_of(model):
    scorer = Cappy.from_pretrained(model)
    return lambda pairs: scorer.score(pairs)


def odd_rows():
    """Three instructions with each odd response, and a field that is none of the two."""
    return [{'id': n, 'instruction': f'say {n // 9}', 'response': text} for n, text in enumerate(ODD * 3)]


def write_rows(path, rows):
    if path.suffix == '.jsonl':
        path.write_text(''.join(json.dumps(row, ensure_ascii=bool(row['id'] % 2)) + '\n' for row in rows))
        return path
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter={'.csv': ',', '.tsv': '\t'}[path.suffix])
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_rows(path):
    text = path.read_bytes().decode()
    if path.suffix == '.jsonl':
        return [json.loads(line) for line in text.split('\n')[:-1]]
    delimiter = {'.csv': ',', '.tsv': '\t'}[path.suffix]
    rows = list(csv.DictReader(io.StringIO(text, newline=''), delimiter=delimiter))
    return [{**row, 'id': int(row['id']), 'score': float(row['score'])} for row in rows]


@pytest.mark.parametrize('format', ['jsonl', 'csv', 'tsv'])
def test_the_same_rows_come_out_in_order_with_their_scores(format, tmp_path, model, scores_of):
    rows = odd_rows()
    source = write_rows(tmp_path / f'in.{format}', rows)
    out = tmp_path / f'out.{format}'
    assert run(source, '--output', out, '--model_name_or_path', model) == 0
    scored = read_rows(out)
    assert [{key: row[key] for key in rows[0]} for row in scored] == rows
    assert list(scored[0]) == ['id', 'instruction', 'response', 'score']
    pairs = [(row['instruction'], row['response']) for row in rows]
    np.testing.assert_allclose([row['score'] for row in scored], scores_of(pairs), rtol=0, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, out.name]


def test_a_json_row_keeps_its_text_to_the_letter(tmp_path, model):
    line = '{"instruction" : "caf\\u00e9",  "response":"b", "n": 1.10, "big": 1e400 }'
    (tmp_path / 'in.jsonl').write_bytes(b'\xef\xbb\xbf' + line.encode() + b'\r\n\n' + line.encode())
    assert run(tmp_path / 'in.jsonl', '--output', tmp_path / 'out', '--model_name_or_path', model) == 0
    first, second = (tmp_path / 'out').read_text().splitlines()
    assert first == second and first.startswith(line[:-2] + ', "score": ')


def test_other_field_names_are_named_by_flags(tmp_path, model, scores_of):
    (tmp_path / 'in.csv').write_text('q,a,score\nwhat,yes,7\n')
    argv = [tmp_path / 'in.csv', '--output', tmp_path / 'out.csv', '--model_name_or_path', model]
    keys = ['--instruction_key', 'q', '--response_key', 'a', '--score_key', 'cappy']
    assert run(*argv, *keys) == 0
    header, row = (tmp_path / 'out.csv').read_text().splitlines()
    assert header == 'q,a,score,cappy' and row.startswith('what,yes,7,')
    assert float(row.rpartition(',')[2]) == pytest.approx(scores_of([('what', 'yes')])[0], abs=1e-6)


def test_rank_sorts_the_rows_of_each_instruction_best_first(tmp_path, model, caplog):
    rows = [*odd_rows(), {'id': 99, 'instruction': 'say 0', 'response': 'late'}]
    source = write_rows(tmp_path / 'in.jsonl', rows)
    argv = [source, '--model_name_or_path', model]
    assert run(*argv, '--output', tmp_path / 'flat.jsonl') == 0
    assert run(*argv, '--output', tmp_path / 'ranked.jsonl', '--rank') == 0
    flat, ranked = read_rows(tmp_path / 'flat.jsonl'), read_rows(tmp_path / 'ranked.jsonl')
    expected = []
    for group in (flat[:9], flat[9:18], flat[18:27], flat[27:]):
        expected += sorted(group, key=lambda row: -row['score'])
    assert [row['id'] for row in ranked] == [row['id'] for row in expected]
    assert '1 groups have an instruction that an earlier group has' in caplog.text


def test_equal_scores_keep_their_order():
    rows = [PairRow('a', n) for n in range(4)]
    assert [row.n for row, _ in best_first(zip(rows, [1, 2, 1, 2], strict=True))] == [1, 3, 0, 2]


class PairRow:
    def __init__(self, instruction, n):
        self.instruction, self.n = instruction, n


def test_instructions_in_several_places_are_counted():
    runs = Runs()
    assert len(list(runs.watch(PairRow(text, 0) for text in 'aabbacb'))) == 7
    assert runs.n_again == 2


def test_standard_input_goes_to_standard_output(tmp_path, model, scores_of):
    format, rows = 'csv', odd_rows()
    source = write_rows(tmp_path / f'in.{format}', rows)
    words = 'scripts/score.py', '-', '--format', format, '--model_name_or_path', model
    with open(source, 'rb') as file, open(tmp_path / f'out.{format}', 'wb') as out:
        process = subprocess.run(
            [sys.executable, *map(str, words)],
            stdin=file,
            stdout=out,
            cwd=ROOT,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
        )
    assert process.returncode == 0
    scored = read_rows(tmp_path / f'out.{format}')
    pairs = [(row['instruction'], row['response']) for row in rows]
    np.testing.assert_allclose([row['score'] for row in scored], scores_of(pairs), rtol=0, atol=1e-6)


def with_scores(pairs, rank=False):
    """What the script writes: header and rows, with scores of every length."""
    rows = list(pairs.rows())
    values = [float(np.float32(1 / (n % 7 + 3)) * (-1) ** n * 10.0 ** -(n % 9)) for n in range(len(rows))]
    scored = best_first(zip(rows, values, strict=True)) if rank else zip(rows, values, strict=True)
    return pairs.header, [pairs.with_score(row, value) for row, value in scored]


@pytest.mark.parametrize('rank', [False, True])
@pytest.mark.parametrize('format', ['jsonl', 'csv'])
def test_an_output_cut_off_at_any_byte_is_done_to_its_last_whole_row_or_group(format, rank, tmp_path):
    pairs = PairFile(write_rows(tmp_path / f'in.{format}', odd_rows()[:18]))
    header, written = with_scores(pairs, rank)
    whole = header + b''.join(written)
    size = 9 if rank else 1
    ends = [len(header + b''.join(written[:n])) for n in range(0, len(written) + 1, size)]
    for cut in range(len(whole) + 1):
        (tmp_path / 'out').write_bytes(whole[:cut])
        done = find_done(tmp_path / 'out', pairs, pairs.rows(), rank)
        n = max((n for n, end in enumerate(ends) if end <= cut), default=0)
        assert (done.n_rows, done.n_bytes) == (n * size, ends[n] if cut >= len(header) else 0)
        assert len(list(done.rest)) == len(written) - n * size


def test_an_output_of_other_rows_is_not_continued(tmp_path):
    pairs = PairFile(write_rows(tmp_path / 'in.jsonl', odd_rows()))
    _, written = with_scores(pairs)
    out = tmp_path / 'out'
    for text, words in (
        (b''.join(written[1:]), 'in.jsonl:1'),
        (written[0] + written[2], 'in.jsonl:2'),
        (written[0] + b'\x00' * 200, 'in.jsonl:2'),
        (written[0].replace(b'}', b'1.2}') + written[1] * 9, 'in.jsonl:1'),
        (b''.join(written) + b'x', 'holds more than the 27 rows'),
    ):
        out.write_bytes(text)
        with pytest.raises(InputError, match=words):
            find_done(out, pairs, pairs.rows())


# The script with windows of 500 pairs, so that a short file has many.
SMALL_WINDOWS = """import runpy, sys
from cappy.model import scoring
scoring.WINDOW = 500
sys.argv[0] = 'scripts/score.py'
runpy.run_path('scripts/score.py', run_name='__main__')
"""


def test_a_killed_run_goes_on_where_it_was_to_the_same_file(tmp_path, model, run_python, scores_of):
    generator = np.random.default_rng(0)
    rows = [
        {'id': n, 'instruction': f'say {n // 4}', 'response': ' '.join(map(str, generator.integers(0, 99, n % 5)))}
        for n in range(6_000)
    ]
    source = write_rows(tmp_path / 'in.jsonl', rows)
    out = tmp_path / 'out.jsonl'
    argv = [source, '--output', out, '--model_name_or_path', model]
    killed = run_python('-c', SMALL_WINDOWS, *argv)
    partial, deadline = OutputPaths(out).partial, time.time() + 120
    while (not partial.exists() or not partial.stat().st_size) and time.time() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not out.exists() and partial.read_bytes().count(b'\n') >= 10
    assert partial.stat().st_size < source.stat().st_size
    resumed = run_python('-c', SMALL_WINDOWS, *argv)
    _, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0 and 'going on behind them' in err
    ours = read_rows(out)
    assert [row['id'] for row in ours] == list(range(len(rows)))
    unbroken = scores_of([(row['instruction'], row['response']) for row in rows])
    # The windows begin elsewhere, so pairs meet others in their rows: float32 sums in another order.
    np.testing.assert_allclose([row['score'] for row in ours], unbroken, rtol=0, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in.jsonl', 'out.jsonl']


def test_what_was_begun_with_other_settings_or_exists_is_not_mixed(tmp_path, model, capsys):
    source = write_rows(tmp_path / 'in.jsonl', odd_rows())
    out = tmp_path / 'out.jsonl'
    argv = [source, '--output', out, '--model_name_or_path', model]
    assert run(*argv) == 0
    whole = out.read_bytes()
    assert run(*argv) == 0
    assert 'exists and holds all 27 rows. Skipped' in capsys.readouterr().err
    out.rename(OutputPaths(out).partial)
    assert 'cannot be read; --overwrite' in refused(capsys, *argv)
    settings = dict.fromkeys(score.DECIDING) | {'instruction_key': 'instruction', 'response_key': 'response'}
    settings |= {'score_key': 'score', 'rank': False, 'model_name_or_path': 'other', 'format': 'jsonl'}
    OutputPaths(out).settings.write_text(json.dumps(settings))
    assert f"model_name_or_path 'other' (asked for: '{model}')" in refused(capsys, *argv)
    assert run(*argv, '--overwrite') == 0
    assert out.read_bytes() == whole
    write_rows(source, odd_rows()[1:])
    assert 'is another row; --overwrite' in refused(capsys, *argv)
    out.write_bytes(b''.join(whole.splitlines(keepends=True)[1:5]))
    assert 'holds 4 rows' in refused(capsys, *argv)


def refused(capsys, *argv):
    """The one line of a run that is refused."""
    capsys.readouterr()
    assert run(*argv) == 1
    out, err = capsys.readouterr()
    assert out == '' and 'Traceback' not in err
    return err.strip().splitlines()[-1]


BAD = {
    'not JSON': ('in.jsonl', b'{"instruction": "i", "response": "r"}\n{"instr', ':2: not JSON'),
    'not UTF-8': ('in.jsonl', b'{"instruction": "\xe9"}\n', ':1: not UTF-8'),
    'no response': ('in.jsonl', b'{"instruction": "i", "answer": "r"}\n', ':1: response is missing'),
    'a number': ('in.jsonl', b'{"instruction": "i", "response": 4}\n', ':1: response: expected text, found 4'),
    'scored already': ('in.jsonl', b'{"instruction": "i", "response": "r", "score": 1}\n', ':1: score: there is'),
    'empty jsonl': ('in.jsonl', b'\n \n', ': holds no rows'),
    'empty csv': ('in.csv', b'', ': holds no rows'),
    'only a header': ('in.csv', b'instruction,response\n', ': holds no rows'),
    'no column': ('in.csv', b'instruction,answer\ni,r\n', ':1: response is missing'),
    'two columns': ('in.csv', b'instruction,response,response\ni,r,s\n', ':1: response: 2 columns'),
    'scored csv': ('in.csv', b'instruction,response,score\ni,r,1\n', ':1: score: there is'),
    'fields': ('in.csv', b'instruction,response\n"i\nj",r\ni,r,s\n', ':4: 3 fields, but the first line names 2'),
    'an open quote': ('in.csv', b'instruction,response\ni,r\ni,"r\n', ':3: not a row of csv'),
    'a quote inside': ('in.tsv', b'instruction\tresponse\ni\t"r" s\n', ':2: not a row of tsv'),
    'csv not UTF-8': ('in.csv', b'instruction,response\ni,\xe9\n', ':2: not UTF-8'),
}


@pytest.mark.parametrize('case', BAD)
def test_a_bad_row_is_named_before_the_model_is_looked_for_and_nothing_is_written(case, tmp_path, capsys):
    name, content, words = BAD[case]
    (tmp_path / name).write_bytes(content)
    argv = [tmp_path / name, '--output', tmp_path / 'out', '--model_name_or_path', 'no-such-model']
    assert refused(capsys, *argv).startswith(f'error: {tmp_path / name}{words}')
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_bad_flags_and_places_are_named_and_leave_nothing(tmp_path, model, capsys):
    source = write_rows(tmp_path / 'in.jsonl', odd_rows())
    assert '--input_file must be given' in refused(capsys)
    assert 'add --format' in refused(capsys, '-')
    assert 'add --format' in refused(capsys, tmp_path / 'pairs.txt')
    assert 'near names' in refused(capsys, tmp_path / 'inn.jsonl')
    assert 'is the input itself' in refused(capsys, source, '--output', source)
    assert 'is a folder' in refused(capsys, source, '--output', tmp_path)
    out = tmp_path / 'out.jsonl'
    assert 'no-such-model' in refused(capsys, source, '--output', out, '--model_name_or_path', 'no-such-model')
    assert 'cannot be written' in refused(capsys, source, '--output', source / 'out', '--model_name_or_path', model)
    with result_lock(OutputPaths(out)):
        assert 'works on this result' in refused(capsys, source, '--output', out, '--model_name_or_path', model)
    assert [path.name for path in tmp_path.iterdir()] == ['in.jsonl']
