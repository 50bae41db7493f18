"""The documentation against the code: commands and flags that exist, tables and links that hold."""

import functools
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest

from cappy.cli import flags

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'examples' / 'README.md', *sorted(ROOT.glob('docs/*.md'))]
SCRIPT = r'(?:cappy_\w+|(?:scripts|benchmarks|examples)/\w+)\.py'
# Of bash scripts, ruff, pip, uv, git, Slurm, Python's environment and of scripts that this repository only quotes.
OTHERS = {'help', 'slow', 'fix', 'no-deps', 'target', 'depth'}
OTHERS |= {'job-name', 'nodes', 'ntasks-per-node', 'gpus-per-node', 'cpus-per-task', 'time', 'requeue', 'log_samples'}
OTHERS |= {'xla_force_host_platform_device_count'}


@functools.cache
def main_of(script):
    """What a script of this repository gives to flags.run when it is started; nothing runs."""
    path, given = ROOT / script, []
    if 'import torch' in path.read_text():
        pytest.importorskip('torch')
    spec = importlib.util.spec_from_file_location('__main__', path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, 'run', given.append)
        patch.syspath_prepend(path.parent)  # a benchmark imports its neighbours
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return given[0]


def flags_of(script):
    """Names of a script's flags; of a bool its negation too."""
    parameters = inspect.signature(main_of(script)).parameters
    negated = [f'{no}{name}' for name, p in parameters.items() if isinstance(p.default, bool) for no in ('no', 'no_')]
    return {*parameters, *negated}


def code_of(page):
    """[(code, whether it is a block)] of a page; lines that go on behind a backslash are one."""
    text = page.read_text().replace('\\\n', ' ')
    blocks = re.findall(r'^```\w*\n(.*?)^```', text, re.S | re.M)
    blocks += re.findall(r'(?:^ {4,}\S.*\n)+', text, re.M)  # indented
    spans = re.findall(r'`([^`]+)`', re.sub(r'^```.*?^```', '', text, flags=re.S | re.M))
    return [(line, True) for block in blocks for line in block.splitlines()] + [
        (' '.join(span.split()), False) for span in spans
    ]


def commands_of(page):
    """[(script, its words as text, whether the command stands in a block)] of a page."""
    return [
        (found[1], re.split(r'\s+(?:&&|\||;|# )|[;\'"]?$', found[2], maxsplit=1)[0], is_block)
        for code, is_block in code_of(page)
        for found in re.finditer(rf'\bpython (?:-m )?({SCRIPT})((?:(?!&&).)*)', code)
    ]


def all_commands():
    return [(page, *command) for page in PAGES for command in commands_of(page)]


def is_to_be_filled_in(words):
    """Whether a command has holes where a user's own words go, or asks for help, so that it is none to be parsed."""
    return re.search(r'\.\.|\$|\[|\'$|--help', words) is not None


def has_flags(script):
    return 'def main(' in (ROOT / script).read_text()


def scripts():
    found = [
        path
        for pattern in ('cappy_*.py', 'scripts/*.py', 'benchmarks/*.py', 'examples/*.py')
        for path in ROOT.glob(pattern)
    ]
    return [script for script in sorted(str(path.relative_to(ROOT)) for path in found) if has_flags(script)]


def sections():
    """{script: its section of commands.md}."""
    text = (ROOT / 'docs' / 'commands.md').read_text()
    return dict(re.findall(rf'^## `({SCRIPT})`$(.*?)(?=^## |\Z)', text, re.S | re.M))


def test_every_command_names_a_script_and_flags_that_it_has():
    wrong, n_flags = [], 0
    for page, script, words, _ in all_commands():
        if not (ROOT / script).exists():
            wrong.append(f'{page.name}: no {script}')
            continue
        names = [name.replace('-', '_') for name in re.findall(r'--([a-zA-Z][\w-]*)', words)]
        n_flags += len(names)
        wrong += [f'{page.name}: {script} has no --{name}' for name in names if name not in {*flags_of(script), 'help'}]
    assert wrong == []
    assert n_flags > 80


def test_every_whole_command_is_one_that_its_script_takes():
    wrong, n_parsed = [], 0
    for page, script, words, is_block in all_commands():
        if not is_block or is_to_be_filled_in(words) or not has_flags(script):
            continue
        try:
            flags.parse_flags(main_of(script), shlex.split(words))
        except flags.InputError as error:
            wrong.append(f'{page.name}: {script}{words}: {error}')
        n_parsed += 1
    assert wrong == []
    assert n_parsed > 30


def test_every_flag_in_the_text_is_one_of_some_script():
    known = {name.replace('-', '_') for name in OTHERS}
    known |= {name for script in scripts() for name in flags_of(script)}
    wrong = [
        f'{page.name}: --{name}'
        for page in PAGES
        for code, _ in code_of(page)
        for name in re.findall(r'(?<![\w-])--([a-zA-Z][\w-]*)', code)
        if name.replace('-', '_') not in known
    ]
    assert wrong == []


@pytest.mark.parametrize('script', sections())
def test_the_flags_in_a_scripts_table_are_its_own(script):
    cells = re.findall(r'^\| `(--[^|]*)`', sections()[script], re.M)
    named = {name for cell in cells for name in re.findall(r'--(\w+)', cell)}
    assert named <= flags_of(script)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_table_has_a_head_and_rows_of_equal_length(page):
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.S | re.M)
    wrong = []
    for block in re.findall(r'(?:^\|.*\n)+', text, re.M):
        rows = [row.replace('\\|', '').count('|') for row in block.splitlines()]  # in code too a | parts cells
        if len(rows) < 2 or not re.fullmatch(r'[|:\- ]+', block.splitlines()[1]) or len(set(rows)) > 1:
            wrong.append(block.splitlines()[0])
    assert wrong == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_repository_leads_somewhere(page):
    links = re.findall(r'\]\(([^)#\s]+)(#[^)\s]+)?\)', page.read_text())
    inside = [(page.parent / target, anchor) for target, anchor in links if '://' not in target]
    assert [str(path) for path, _ in inside if not path.exists()] == []
    anchors = {(path, anchor) for path, anchor in inside if anchor}
    heads = {path: re.findall(r'^#+ (.*)$', path.read_text(), re.M) for path, _ in anchors}
    slugs = {
        path: {re.sub(r'[^\w\- ]', '', h).lower().replace(' ', '-') for h in found} for path, found in heads.items()
    }
    assert [anchor for path, anchor in anchors if anchor[1:] not in slugs[path]] == []
