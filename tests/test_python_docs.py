"""The examples of docs/python.md, run in order in one program, on a small scorer."""

import json
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / 'docs' / 'python.md'
PEERS = ('torch', 'sentence_transformers', 'rerankers', 'matplotlib')


def blocks():
    """[(line of the page, code)] of its Python examples."""
    text = PAGE.read_text()
    return [
        (text[: found.start()].count('\n') + 2, found[1]) for found in re.finditer(r'```python\n(.*?)```', text, re.S)
    ]


def candidates_file(folder):
    """Write a file of made-up candidates where cappy_bigbench.py would write it."""
    folder.mkdir(parents=True)
    candidates = [{'response': str(n), 'score': n / 10, 'rougeL': n % 3 / 3, 'decodings': ['a']} for n in range(6)]
    line = json.dumps({'example_idx': 0, 'pick': 5, 'rougeL': 2 / 3, 'candidates': candidates})
    (folder / 'facts_to_sentence.candidates.jsonl').write_text(line + '\n')


def test_every_example_of_the_page_runs_as_written(tiny_cappy, tmp_path, monkeypatch):
    for peer in PEERS:
        pytest.importorskip(peer)
    monkeypatch.chdir(tmp_path)
    candidates_file(tmp_path / 'bigbench_cappy_results' / 'tiny-t5')
    program, found = {}, blocks()
    assert len(found) == 14
    for line, code in found:
        code = code.replace('btan2/cappy-large', str(tiny_cappy))
        exec(compile('\n' * (line - 1) + code, str(PAGE), 'exec'), program)
    means = program['means']
    # One random candidate, and the highest score of all.
    assert means[0] == pytest.approx(1 / 3) and means[-1] == pytest.approx(2 / 3)
    assert (tmp_path / 'best-of-n.png').stat().st_size > 5000
