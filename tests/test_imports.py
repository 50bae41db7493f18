"""Who may import whom in cappy/: imports go one way, those inside functions included."""

import ast

import pytest
from conftest import ROOT

# The packages of cappy/ (scorer is a module) that each may import, besides itself and cappy.errors.
ALLOWED = {
    'errors': (),
    'files': (),
    'cli': (),
    'tasks': ('files', 'cli'),
    'model': ('files',),
    'scorer': ('model', 'files'),
    '__init__': ('scorer', 'model'),
    'generate': ('model', 'tasks', 'files'),
    'pretrain_data': ('tasks', 'files', 'cli'),
    'study': ('tasks', 'files', 'cli'),
}
WITHOUT_JAX = ('files', 'cli', 'tasks', 'pretrain_data', 'study')
OUTSIDE = ('scripts', 'cappy_bigbench', 'cappy_promptsource', 'cappy_pretrain', 'tests', 'benchmarks')
MODULES = sorted((ROOT / 'cappy').rglob('*.py'))


def imported(tree):
    """Dotted names that a module imports; `from a import b` gives a.b, which may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'line {node.lineno}: a relative import'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_package_may_know(path):
    package = path.relative_to(ROOT / 'cappy').parts[0].removesuffix('.py')
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for name in imported(tree):
        first, second = [*name.split('.'), ''][:2]
        assert first not in OUTSIDE, name
        assert first not in ('jax', 'jaxlib', 'flax', 'optax') or package not in WITHOUT_JAX, name
        assert first != 'cappy' or second in (package, 'errors', *ALLOWED[package]), name
    if package != 'cli':
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not [call.lineno for call in calls if isinstance(call, ast.Name) and call.id == 'print']


def test_the_rule_names_every_package():
    names = {path.relative_to(ROOT / 'cappy').parts[0].removesuffix('.py') for path in MODULES}
    assert names == set(ALLOWED)
