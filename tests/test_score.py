"""scripts/score.py: rows in, the same rows with scores out; a stopped run continues; what is wrong is named."""

import contextlib
import csv
import gzip
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROBERTA, random_tensors, run_main

from cappy import Cappy
from cappy.errors import InputError
from cappy.files.lock import result_lock
from cappy.files.partial import OutputPaths, PartialOutput
from cappy.files.scored_pairs import PairFile, Runs, TopTies, best_first
from cappy.tasks.combining import Combination

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
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, out.name, f'{out.name}.settings.json']


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
    assert '1 runs of pairs have an instruction that an earlier run has' in caplog.text


def test_combined_ranks_by_what_was_saved_beside_the_scorer(tmp_path, model, scores_of, capsys):
    folder = shutil.copytree(model, tmp_path / 'scorer')
    rows = [
        {'instruction': f'say {i}', 'response': text, 'id': n}
        for i in range(2)
        for n, text in enumerate(['a red dog', 'a red cat', 'no', 'a red dog'])
    ]
    source = tmp_path / 'rows.jsonl'
    source.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    argv = [source, '--output', tmp_path / 'ranked.jsonl', '--model_name_or_path', folder, '--rank', '--combined']
    assert run(*argv) == 1 and 'combination.json: no such file; cappy_bigbench.py --combine' in capsys.readouterr().err
    combination = Combination({'scorer': 0.001, 'consensus': 1.0}, {}, 'rougeL')
    combination.save(folder)
    assert run(*argv) == 0
    ranked = read_rows(tmp_path / 'ranked.jsonl')
    for i, run_of in enumerate((ranked[:4], ranked[4:])):
        assert [row['id'] for row in run_of] == [0, 3, 1, 2] and {row['instruction'] for row in run_of} == {f'say {i}'}
        scores = scores_of([(row['instruction'], row['response']) for row in run_of])
        agreed = [(1 + 2 / 3) / 3, (1 + 2 / 3) / 3, 2 * 2 / 3 / 3, 0]
        assert [row['score'] for row in run_of] == pytest.approx(0.001 * scores + agreed, abs=1e-6)
        picked = combination.pick(Cappy.from_pretrained(folder), f'say {i}', [row['response'] for row in rows[:4]])
        assert picked == run_of[0]['response']
    assert run(source, '--output', tmp_path / 'x', '--model_name_or_path', folder, '--combined') == 1
    assert '--combined: compares the responses to an instruction, so it goes with --rank' in capsys.readouterr().err


def test_packed_files_and_pipes_are_scored_as_plain_files_are(tmp_path, model, capsys):
    assert [PairFile(name).format for name in ('a.csv.gz', 'b.TSV.gz', 'c.jsonl.gz')] == ['csv', 'tsv', 'jsonl']
    source = write_rows(tmp_path / 'in.csv', odd_rows())
    packed = tmp_path / 'packed.csv.gz'
    packed.write_bytes(gzip.compress(source.read_bytes()))
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(source.read_bytes(),), daemon=True)
    writer.start()
    for path, more in ((source, ()), (packed, ()), (pipe, ('--format', 'csv'))):
        out = tmp_path / f'{path.name}.out'
        assert run(path, '--output', out, '--model_name_or_path', model, *more) == 0
    writer.join(timeout=10)
    outputs = {path.read_bytes() for path in tmp_path.glob('*.out')}
    assert len(outputs) == 1 and outputs.pop().count(b'\n') >= 27
    capsys.readouterr()
    assert run(pipe, '--output', out, '--n_processes', 2, '--format', 'csv') == 1
    assert f'{pipe} reaches one process; give a file that all of them can read' in capsys.readouterr().err


def test_half_of_a_surrogate_pair_is_scored_as_the_character_for_lost_ones(tmp_path, model, scores_of, caplog):
    line = '{"instruction": "say", "response": "half \\ud83d"}'
    (tmp_path / 'in.jsonl').write_text(line + '\n')
    assert run(tmp_path / 'in.jsonl', '--output', tmp_path / 'out', '--model_name_or_path', model) == 0
    text = (tmp_path / 'out').read_text()
    assert text.startswith(line[:-1] + ', "score": ')  # the record itself stays as it is
    assert json.loads(text)['score'] == pytest.approx(scores_of([('say', 'half \ufffd')])[0], abs=1e-6)
    assert caplog.messages == [
        f'{tmp_path}/in.jsonl: half of a surrogate pair, which is no character, replaced by U+FFFD'
    ]


def test_equal_scores_keep_their_order():
    rows = [PairRow('a', n) for n in range(4)]
    assert [row.n for row, _ in best_first(zip(rows, [1, 2, 1, 2], strict=True))] == [1, 3, 0, 2]


def test_ties_for_the_highest_score_are_counted_by_run_and_between_different_responses():
    rows = [PairRow('a', n) for n in range(3)] + [PairRow('b', n) for n in (0, 0)] + [PairRow('c', n) for n in (0, 1)]
    ties = TopTies()
    ranked = list(zip(rows, [2, 2, 1, 5, 5, 3 + 1e-7, 3], strict=True))
    assert list(ties.watch(iter(ranked))) == ranked
    assert (ties.n_runs, ties.n_tied, ties.n_alike) == (2, 2, 1)


def test_rank_says_that_equal_scores_keep_their_order(tmp_path, constant_scorer, caplog):
    source = write_rows(tmp_path / 'in.jsonl', odd_rows())
    assert run(source, '--output', tmp_path / 'flat.jsonl', '--model_name_or_path', constant_scorer) == 0
    assert caplog.text == ''
    assert run(source, '--output', tmp_path / 'ranked.jsonl', '--model_name_or_path', constant_scorer, '--rank') == 0
    assert (
        'in 3 of 3 runs of an instruction the highest score is shared by several responses, which keep their order; '
        'the scorer gives all responses of an instruction the same score' in caplog.text
    )
    assert (tmp_path / 'flat.jsonl').read_bytes() == (tmp_path / 'ranked.jsonl').read_bytes()


class PairRow:
    def __init__(self, instruction, n):
        self.instruction, self.n, self.response = instruction, n, str(n)


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
        )
    assert process.returncode == 0
    scored = read_rows(tmp_path / f'out.{format}')
    pairs = [(row['instruction'], row['response']) for row in rows]
    np.testing.assert_allclose([row['score'] for row in scored], scores_of(pairs), rtol=0, atol=1e-6)


def test_an_output_that_is_a_pipe_a_link_or_full_is_never_replaced(tmp_path, model, capsys):
    source = write_rows(tmp_path / 'in.jsonl', odd_rows())
    argv = [source, '--model_name_or_path', model, '--output']
    os.mkfifo(tmp_path / 'fifo')
    (tmp_path / 'far').mkdir()
    (tmp_path / 'link').symlink_to('far/out.jsonl')
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / 'fifo').read_bytes()), daemon=True)
    reader.start()
    assert run(*argv, tmp_path / 'fifo') == 0
    reader.join(10)
    assert run(*argv, tmp_path / 'link') == 0
    assert found == [(tmp_path / 'far' / 'out.jsonl').read_bytes()] and found[0].count(b'\n') == 27
    assert (tmp_path / 'fifo').is_fifo() and (tmp_path / 'link').is_symlink()
    assert 'exists and holds all 27 scores' in refused_or_kept(capsys, *argv, tmp_path / 'link')
    assert 'error: /dev/full: cannot be written (No space left' in refused(capsys, *argv, '/dev/full')
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*'))
    assert names == ['far', 'far/out.jsonl', 'far/out.jsonl.settings.json', 'fifo', 'in.jsonl', 'link']


def refused_or_kept(capsys, *argv):
    """The last line on standard error of a run in which nothing is scored."""
    capsys.readouterr()
    run(*argv)
    return capsys.readouterr().err.strip().splitlines()[-1]


@contextlib.contextmanager
def standard_input(path, rows):
    """Standard input has these rows."""
    with open(write_rows(path, rows)) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'stdin', file)
        yield


@pytest.mark.parametrize('rank', [(), ('--rank',)])
def test_standard_input_continues_only_what_began_with_the_same_pairs(tmp_path, model, capsys, monkeypatch, rank):
    out, source, other = tmp_path / 'out', tmp_path / 'in.jsonl', odd_rows()
    other[2]['response'] = 'another'
    argv = ['-', '--format', 'jsonl', '--output', out, '--model_name_or_path', model, *rank]

    def stop(scorer, pairs, n_pairs):
        yield from ((pair, 0.5) for pair, _ in zip(pairs, range(20), strict=False))
        raise KeyboardInterrupt

    monkeypatch.setattr(score, 'RECORDS_AT_RISK', 5)
    with monkeypatch.context() as patch, standard_input(source, odd_rows()):
        patch.setattr(score, 'score_pairs', stop)
        assert run(*argv) == 130
    n_done = json.loads(OutputPaths(out).settings.read_text())['records']
    assert n_done == (9 if rank else 20)  # whole runs of one instruction alone
    with standard_input(source, other):
        message = refused(capsys, *argv)
    assert f'was begun with other pairs than the first {n_done} of standard input; --overwrite begins' in message
    with standard_input(source, odd_rows()):
        assert run(*argv) == 0
    assert [row['score'] == 0.5 for row in read_rows(write_copy(out))] == [True] * n_done + [False] * (27 - n_done)
    with standard_input(source, odd_rows()):
        assert 'exists and holds all 27 scores' in refused_or_kept(capsys, *argv)
    with standard_input(source, other):
        assert 'exists, made with pairs_digest' in refused(capsys, *argv)


def write_copy(path):
    """The file under a name that says how it is laid out."""
    return Path(shutil.copy(path, path.with_suffix('.jsonl')))


def test_a_partial_output_that_was_cut_off_anywhere_continues_behind_its_last_mark(tmp_path):
    paths, settings = OutputPaths(tmp_path / 'out'), {'model_digest': 'a', 'names': ('x', 'y')}
    output = PartialOutput(paths, settings)
    output.open(b'header\n')
    output.write(b'first\n')
    output.mark(1)
    output.write(b'second, cut o')
    output._file.close()  # as a killed process leaves it
    continued = PartialOutput(paths, settings)
    continued.open(b'header\n')
    assert continued.n_records == 1
    continued.write(b'second\n')
    continued.finish(2)
    assert paths.result.read_bytes() == b'header\nfirst\nsecond\n'
    assert json.loads(paths.result_settings.read_text()) == {'model_digest': 'a', 'names': ['x', 'y'], 'records': 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'out.settings.json']


def test_a_partial_output_of_other_settings_is_refused_and_an_unmarked_one_leaves_nothing(tmp_path):
    paths = OutputPaths(tmp_path / 'out')
    output = PartialOutput(paths, {'model_digest': 'a'})
    output.open(b'')
    output.write(b'first\n')
    output.mark(1)
    output.close()
    with pytest.raises(InputError, match="was begun with model_digest 'a' .asked for: 'b'.; --overwrite begins again"):
        PartialOutput(paths, {'model_digest': 'b'}).open(b'')
    fresh = PartialOutput(paths, {'model_digest': 'b'})
    fresh.open(b'', overwrite=True)
    fresh.write(b'x')
    fresh.close()
    assert list(tmp_path.iterdir()) == []


# The script with windows of 500 pairs, so that a short file has many.
SMALL_WINDOWS = """import runpy, sys
from cappy.model import scoring
scoring.WINDOW = 500
sys.argv[0] = 'scripts/score.py'
runpy.run_path('scripts/score.py', run_name='__main__')
"""


@pytest.mark.slow
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
    settings = OutputPaths(out).settings
    while not (settings.exists() and json.loads(settings.read_text())['records']) and time.time() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not out.exists() and partial.read_bytes().count(b'\n') >= 10
    assert partial.stat().st_size < source.stat().st_size
    resumed = run_python('-c', SMALL_WINDOWS, *argv)
    _, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0 and 'continuing behind them' in err
    ours = read_rows(out)
    assert [row['id'] for row in ours] == list(range(len(rows)))
    unbroken = scores_of([(row['instruction'], row['response']) for row in rows])
    # The windows begin elsewhere, so pairs meet others in their rows: float32 sums in another order.
    np.testing.assert_allclose([row['score'] for row in ours], unbroken, rtol=0, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in.jsonl', 'out.jsonl', 'out.jsonl.settings.json']


def test_an_output_that_exists_is_kept_for_the_same_scorer_and_input_alone(tmp_path, model, capsys):
    model = shutil.copytree(model, tmp_path / 'model')
    source = write_rows(tmp_path / 'in.jsonl', odd_rows())
    out = tmp_path / 'out.jsonl'
    argv = [source, '--output', out, '--model_name_or_path', model]
    assert run(*argv) == 0
    whole = out.read_bytes()
    assert run(*argv) == 0
    assert 'exists and holds all 27 scores. Skipped; --overwrite' in capsys.readouterr().err.splitlines()[-1]

    weights = bytearray((model / 'model.safetensors').read_bytes())
    weights[-3] ^= 1  # another scorer under the same name
    (model / 'model.safetensors').write_bytes(weights)
    assert 'exists, made with model_digest ' in refused(capsys, *argv)
    weights[-3] ^= 1
    (model / 'model.safetensors').write_bytes(weights)
    assert 'exists, made with max_length None (asked for: 60)' in refused(capsys, *argv, '--max_length', 60)
    write_rows(source, [*odd_rows(), {'id': 27, 'instruction': 'say 3', 'response': 'one more'}])
    assert 'exists, made with input_digest ' in refused(capsys, *argv)
    OutputPaths(out).result_settings.unlink()
    assert 'cannot be read; --overwrite' in refused(capsys, *argv)
    assert out.read_bytes() == whole
    assert run(*argv, '--overwrite') == 0
    assert len(read_rows(out)) == 28


def test_a_part_of_another_scorer_is_not_continued(tmp_path, model, tiny_directories, capsys, monkeypatch):
    source = write_rows(tmp_path / 'in.jsonl', odd_rows())
    out = tmp_path / 'out.jsonl'
    argv = [source, '--output', out]

    def stop(scorer, pairs, n_pairs):
        yield from ((pair, 0.5) for pair, _ in zip(pairs, range(5), strict=False))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(score, 'score_pairs', stop)
        assert run(*argv, '--model_name_or_path', model) == 130
    assert OutputPaths(out).partial.read_bytes().count(b'\n') == 5
    assert 'was begun with model_digest' in refused(capsys, *argv, '--model_name_or_path', tiny_directories['bert'])
    assert run(*argv, '--model_name_or_path', model) == 0
    assert [row['score'] == 0.5 for row in read_rows(out)] == [True] * 5 + [False] * 22


def test_an_encoder_without_a_head_is_refused(tmp_path, make_model, capsys):
    tensors = {name: tensor for name, tensor in random_tensors(ROBERTA).items() if not name.startswith('classifier')}
    source = write_rows(tmp_path / 'in.jsonl', odd_rows())
    assert 'has no head' in refused(capsys, source, '--model_name_or_path', make_model(tensors=tensors))


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
    'empty jsonl': ('in.jsonl', b'\n \n', ': holds no pairs'),
    'empty csv': ('in.csv', b'', ': holds no pairs'),
    'only a header': ('in.csv', b'instruction,response\n', ': holds no pairs'),
    'no column': ('in.csv', b'instruction,answer\ni,r\n', ':1: response is missing'),
    'two columns': ('in.csv', b'instruction,response,response\ni,r,s\n', ':1: response: 2 columns'),
    'scored csv': ('in.csv', b'instruction,response,score\ni,r,1\n', ':1: score: there is'),
    'fields': ('in.csv', b'instruction,response\n"i\nj",r\ni,r,s\n', ':4: 3 fields, but the first line names 2'),
    'an open quote': ('in.csv', b'instruction,response\ni,r\ni,"r\n', ':3: not a record of csv'),
    'a quote inside': ('in.tsv', b'instruction\tresponse\ni\t"r" s\n', ':2: not a record of tsv'),
    'csv not UTF-8': ('in.csv', b'instruction,response\ni,\xe9\n', ':2: not UTF-8'),
}


@pytest.mark.parametrize('case', BAD)
def test_a_bad_row_is_named_before_the_model_is_looked_for_and_nothing_is_written(case, tmp_path, capsys):
    name, content, words = BAD[case]
    (tmp_path / name).write_bytes(content)
    argv = [tmp_path / name, '--output', tmp_path / 'out', '--model_name_or_path', 'no-such-model']
    assert refused(capsys, *argv).startswith(f'error: {tmp_path / name}{words}')
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_bad_rows_after_the_first_are_named_too(tmp_path, capsys):
    good = b'{"instruction": "i", "response": "r"}\n'
    (tmp_path / 'in.jsonl').write_bytes(good + b'{"instruction": "i"}\n' + good + b'{"instruction": "i"}\n[1]\n')
    line = refused(capsys, tmp_path / 'in.jsonl', '--model_name_or_path', 'no-such-model')
    assert 'in.jsonl:2: response is missing' in line and line.endswith(
        '(line 4 too); line 5: expected a JSON object, found [1]'
    )
    (tmp_path / 'in.csv').write_bytes(b'instruction,response\ni,r\ni\ni,r,s\ni\n')
    line = refused(capsys, tmp_path / 'in.csv', '--model_name_or_path', 'no-such-model')
    assert 'in.csv:3: 1 fields, but' in line and '(line 5 too); line 4: 3 fields, but' in line


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
