"""The documentation against the code: commands and flags that exist, tables and links that hold."""

import functools
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest

from cappy.cli import flags
from cappy.tasks.candidates import read_task
from cappy.tasks.rouge import RougeL

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'examples/README.md')),
    *(ROOT / name for name in ('bigbench_cappy_results/README.md', 'bigbench_cappy_results/published/README.md')),
    ROOT / 'tests/recorded/README.md',
    *sorted(ROOT.glob('docs/*.md')),
]
SCRIPT = r'(?:cappy_\w+|(?:scripts|benchmarks|examples|studies/[\w-]+)/\w+)\.py'
# Flags of bash scripts, ruff, pip, uv, git, Slurm, XLA and of programs that this repository only quotes.
OTHERS = {'help', 'slow', 'quick', 'fix', 'no-deps', 'target', 'depth'}
OTHERS |= {'job-name', 'nodes', 'ntasks-per-node', 'gpus-per-node', 'cpus-per-task', 'time', 'requeue', 'log_samples'}
OTHERS |= {'xla_force_host_platform_device_count'}


every_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@functools.cache
def main_of(script):
    """(main, old names of its flags) that a script hands to flags.run when it is started; main does not run."""
    path, given = ROOT / script, []
    if 'import torch' in path.read_text():
        pytest.importorskip('torch')
    spec = importlib.util.spec_from_file_location('__main__', path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, 'run', lambda main, argv=None, aliases=None: given.append((main, aliases or {})))
        patch.syspath_prepend(path.parent)  # a benchmark imports its neighbours
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return given[0]


def parameters_of(script):
    """{flag: parameter of main}."""
    return inspect.signature(main_of(script)[0]).parameters


def flags_of(script):
    """Names of a script's flags: with old names, and the negation of each bool."""
    parameters = parameters_of(script)
    negated = [f'{no}{name}' for name, p in parameters.items() if isinstance(p.default, bool) for no in ('no', 'no_')]
    return {*parameters, *negated, *main_of(script)[1]}


def code_of(page):
    """[(code, whether it is a block)] of a page; a line that ends with a backslash is joined with the next."""
    text = page.read_text().replace('\\\n', ' ')
    blocks = re.findall(r'^```\w*\n(.*?)^```', text, re.S | re.M)
    blocks += re.findall(r'(?:^ {4,}\S.*\n)+', text, re.M)  # indented
    spans = re.findall(r'`([^`]+)`', re.sub(r'^```.*?^```', '', text, flags=re.S | re.M))
    return [(line, True) for block in blocks for line in block.splitlines()] + [
        (' '.join(span.split()), False) for span in spans
    ]


def commands_of(page):
    """[(script, its arguments as text, whether the command is in a block)] of a page."""
    return [
        (found[1], re.split(r'\s+(?:&&|\||;|# )|[;\'"]?$', found[2], maxsplit=1)[0], is_block)
        for code, is_block in code_of(page)
        for found in re.finditer(rf'\bpython (?:-m )?({SCRIPT})((?:(?!&&).)*)', code)
    ]


def all_commands():
    return [(page, *command) for page in PAGES for command in commands_of(page)]


def is_to_be_filled_in(words):
    """Whether a command leaves arguments to the reader, or asks for help, so that it cannot be parsed."""
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


def test_every_whole_command_is_accepted_by_its_script():
    wrong, n_parsed = [], 0
    for page, script, words, is_block in all_commands():
        if not is_block or is_to_be_filled_in(words) or not has_flags(script):
            continue
        try:
            main, aliases = main_of(script)
            flags.parse_flags(main, shlex.split(words), aliases)
        except flags.InputError as error:
            wrong.append(f'{page.name}: {script}{words}: {error}')
        n_parsed += 1
    assert wrong == []
    assert n_parsed > 30


def test_every_flag_in_the_text_belongs_to_a_script():
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
    assert named and named <= flags_of(script)


@pytest.mark.parametrize('script', sections())
def test_every_flag_of_a_script_is_in_its_section(script):
    expected = set(parameters_of(script)) - {'input_file'}  # given by position
    if script == 'scripts/run_cappy_bigbench.py':
        expected -= set(parameters_of('cappy_bigbench.py'))  # passed on, and in that script's section
    named = set(re.findall(r'--(\w+)', sections()[script]))
    aliases = main_of(script)[1]
    named |= {name.removeprefix('no') for name in named} | {aliases[name] for name in named & set(aliases)}
    assert sorted(expected - named) == []


def test_every_number_that_a_script_takes_has_a_range_that_its_default_is_in():
    open_numbers, n_numbers = [], 0
    for script in scripts():
        if script.startswith(('benchmarks', 'examples')):
            continue
        for flag in flags.flags_of(*main_of(script)):
            if {int, float} & set(flag.kinds):
                n_numbers += 1
                is_named = flag.range is not None and (flag.default is None or flag.default in flag.range)
                open_numbers += [] if is_named else [f'{script} --{flag.name}']
    assert open_numbers == []
    assert n_numbers > 100


def test_commands_that_this_page_has_a_section_for_are_in_it():
    assert {'cappy_bigbench.py', 'cappy_promptsource.py', 'scripts/score.py', 'scripts/report.py'} <= set(sections())
    assert len(sections()) >= 10


def load(path):
    """The module of a Python file that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_samples_of_the_readmes_example_and_their_rougeL_are_those_of_the_shipped_task():
    text = (ROOT / 'README.md').read_text()
    quoted = '\n'.join(re.findall(r'^> (.*)$', text, re.M))
    rows = re.findall(r'^\| \**([A-Z][^|*]*\.)\**(?: \(the pick\))? \| \**(\d\.\d\d)\** \| (\d\.\d\d) \|', text, re.M)
    examples = read_task(ROOT / 'examples/bigbench_flan_gens', 'tiny-t5', 'facts_to_sentence')['validation']
    (example,) = [found for found in examples if found.instruction.removesuffix('\nAnswer:') == quoted]
    samples = {sample.response: sample.decoding for sample in example.samples}
    assert len(rows) == 3 and {response for response, _, _ in rows} <= set(samples)
    assert samples[rows[0][0]] == 'beam4'
    rougeL = dict(zip(example.candidates, RougeL().scores(example.references, example.candidates), strict=True))
    assert [shown for _, _, shown in rows] == [f'{rougeL[response]:.2f}' for response, _, _ in rows]
    response, score, _ = max(rows, key=lambda row: float(row[1]))
    assert f'**{response}** (the pick) | **{score}**' in text
    assert rougeL[response] == max(rougeL.values())  # "the best of its 17 samples"


def test_the_figure_is_what_its_script_draws_and_has_the_scores_of_the_readme(tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    script = load(ROOT / 'docs' / 'figures' / 'draw_concept.py')
    committed = script.OUTPUT.read_text()
    monkeypatch.setattr(script, 'OUTPUT', tmp_path / 'concept.svg')
    script.main()
    # Another version of matplotlib may write coordinates and ids in another way, but not other texts.
    texts = [re.findall(r'<text[^>]*>(.*?)</text>', svg, re.S) for svg in (committed, script.OUTPUT.read_text())]
    assert texts[0] == texts[1] and len(texts[0]) > 15
    shown = re.findall(r'^\| \**[A-Z][^|]* \| \**(\d\.\d\d)\** \|', (ROOT / 'README.md').read_text(), re.M)
    assert [score for _, score in script.SAMPLES] == shown
    assert max(range(3), key=lambda place: float(shown[place])) == script.PICK


def test_the_index_leads_to_every_page():
    index = ROOT / 'docs' / 'index.md'
    linked = {(index.parent / target).resolve() for target in re.findall(r'\]\(([^)#\s]+)', index.read_text())}
    pages = {path for path in ROOT.glob('docs/*.md') if path != index}
    assert len(pages) > 10 and pages <= linked


@every_page
def test_every_file_of_the_repository_that_is_named_exists(page):
    folders = 'cappy|scripts|benchmarks|tests|docs'
    named = re.findall(rf'(?<![\w/.-])((?:{folders})/[\w./-]+\.(?:py|sh|md|html))\b', page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@every_page
def test_every_table_has_a_head_and_rows_of_equal_length(page):
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.S | re.M)
    wrong = []
    for block in re.findall(r'(?:^\|.*\n)+', text, re.M):
        rows = [row.replace('\\|', '').count('|') for row in block.splitlines()]  # a | in code ends a cell, too
        if len(rows) < 2 or not re.fullmatch(r'[|:\- ]+', block.splitlines()[1]) or len(set(rows)) > 1:
            wrong.append(block.splitlines()[0])
    assert wrong == []


@every_page
def test_every_link_inside_the_repository_leads_somewhere(page):
    links = re.findall(r'\]\(([^)#\s]+)(#[^)\s]+)?\)', page.read_text())
    inside = [(page.parent / target, anchor) for target, anchor in links if '://' not in target]
    assert [str(path) for path, _ in inside if not path.exists()] == []
    anchors = {(path, anchor) for path, anchor in inside if anchor}
    anchors |= {(page, anchor) for anchor in re.findall(r'\]\((#[^)\s]+)\)', page.read_text())}
    assert [anchor for path, anchor in anchors if anchor[1:] not in slugs_of(path)] == []


def slugs_of(page):
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r'^#+ (.*)$', page.read_text(), re.M)
    return {re.sub(r'[^\w\- ]', '', head).lower().replace(' ', '-') for head in heads}
