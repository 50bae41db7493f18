"""Every command starts with the requirements alone, from any folder, and explains itself."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A command hands its main function to flags.run; the other scripts there are modules that commands import.
COMMANDS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ('cappy_*.py', 'scripts/*.py', 'benchmarks/*.py', 'examples/*.py')
    for path in ROOT.glob(pattern)
    if re.search(r'^    (flags\.)?run\(', path.read_text(), re.MULTILINE)
)
# Not linked: what makes an installed checkout importable, and PyTorch, which is no requirement and is slow to import.
LEFT_OUT = ('cappy', '__editable__', 'torch', 'sentence_transformers')
# What makes the files that the commands look for.
GENERATORS = ('scripts/download_bigbench_flan_gens.sh', 'scripts/bigbench_flan_generate.py')
RESULTS = ('scripts/run_cappy_bigbench.py', 'cappy_bigbench.py')
QUESTIONS = ('scripts/download_promptsource_test_data.sh', 'scripts/get_promptsource_data.py')


@pytest.fixture(scope='module')
def bare_python(tmp_path_factory):
    """A Python that has the requirements and not this project, whether or not the tests' own Python has it."""
    folder = tmp_path_factory.mktemp('bare')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder / 'venv'], check=True)
    python = folder / 'venv' / 'bin' / 'python'
    # Links to the installed packages, so that no .pth file or finder of theirs is followed.
    packages = folder / 'packages'
    packages.mkdir()
    for installed in Path(sysconfig.get_path('purelib')), Path(sysconfig.get_path('platlib')):
        for entry in installed.iterdir():
            is_left_out = entry.name.startswith(LEFT_OUT) or entry.suffix == '.pth'
            if not is_left_out and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    site = subprocess.run(
        [python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'], capture_output=True, text=True
    )
    (Path(site.stdout.strip()) / 'requirements.pth').write_text(f'{packages}\n')
    return python


def environment():
    """Without what the tests' own commands use to find the project."""
    return {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}


def test_the_bare_python_has_the_requirements_and_not_the_project(bare_python, tmp_path):
    ended = subprocess.run(
        [bare_python, '-c', 'import fire, numpy, tqdm; import cappy'],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert ended.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'cappy'"


# Benchmarks and examples are slow: each has its own seconds of imports.
@pytest.mark.parametrize(
    'folders', [['.', 'scripts'], pytest.param(['benchmarks', 'examples'], marks=pytest.mark.slow)], ids=' and '.join
)
def test_every_command_starts_from_the_root_and_from_another_folder(bare_python, tmp_path, folders):
    commands = [command for command in COMMANDS if str(Path(command).parent) in folders]
    # From the root one of each folder: where Python looks for modules depends on the script's folder alone.
    of_folders = {Path(command).parent: command for command in commands}
    starts = [(command, tmp_path) for command in commands] + [(command, ROOT) for command in of_folders.values()]

    def start(command, folder):
        path = command if folder == ROOT else ROOT / command
        ended = subprocess.run(
            [bare_python, path, '--help'], cwd=folder, env=environment(), capture_output=True, text=True
        )
        usage = f'usage: {Path(command).name} [--flag value ..]'
        started = (ended.returncode, ended.stderr) == (0, '') and ended.stdout.startswith(usage)
        return [] if started else [f'{command} in {folder}: {(ended.stderr or ended.stdout or "no output")[-500:]}']

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        assert [fault for faults in pool.map(start, *zip(*starts, strict=True)) for fault in faults] == []
    assert len(commands) > 14 and len(of_folders) == 2


def test_a_script_runs_its_own_checkout_and_not_an_installed_copy(bare_python, tmp_path):
    (tmp_path / 'installed' / 'cappy').mkdir(parents=True)
    (tmp_path / 'installed' / 'cappy' / '__init__.py').write_text('raise SystemExit("the installed copy")\n')
    ended = subprocess.run(
        [bare_python, ROOT / 'scripts' / 'score.py', '--help'],
        cwd=tmp_path,
        env={**environment(), 'PYTHONPATH': str(tmp_path / 'installed')},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, '')
    assert ended.stdout.startswith('usage: score.py')


def test_reading_a_tokenizer_does_not_warn_that_pytorch_is_missing(bare_python, tmp_path):
    def errors_of(program):
        command = [bare_python, '-c', program, ROOT / 'tests' / 'recorded' / 'tiny-cappy']
        ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
        return ended.stderr

    assert 'PyTorch was not found' in errors_of('import transformers')
    program = f'import sys; sys.path.insert(0, {str(ROOT)!r}); from cappy.model.tokens import load_tokenizer\n'
    assert errors_of(f'{program}load_tokenizer(sys.argv[1])') == ''


@pytest.mark.parametrize(
    ('command', 'missing', 'remedies'),
    [
        ('scripts/present_bigbench_baselines.py', 'bigbench_flan_gens: no such folder of generators', GENERATORS),
        ('scripts/present_cappy_bigbench_results.py', 'bigbench_cappy_results: no such folder of results', RESULTS),
        ('scripts/report.py', 'bigbench_cappy_results: no such folder of results', RESULTS),
        ('cappy_promptsource.py', 'promptsource_test.jsonl: no such file', QUESTIONS),
    ],
)
def test_a_missing_default_folder_is_named_with_what_makes_it(bare_python, tmp_path, command, missing, remedies):
    ended = subprocess.run(
        [bare_python, ROOT / command], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert ended.returncode == 1
    line = ended.stderr.splitlines()[-1].replace('./', '')
    assert line.startswith(f'error: {missing} (relative to the current folder, {tmp_path}); ')
    assert [remedy for remedy in remedies if remedy not in line] == []


def test_the_quickstart_explains_itself_and_installs_nothing(tmp_path):
    (tmp_path / 'scripts').mkdir()
    for name in ('quickstart.sh', 'venv.sh'):
        shutil.copy(ROOT / 'scripts' / name, tmp_path / 'scripts')
    ended = subprocess.run(
        ['bash', tmp_path / 'scripts' / 'quickstart.sh', 'mixed_kinds', '--help'],
        capture_output=True,
        text=True,
        env={'PATH': '/usr/bin:/bin'},
    )
    assert (ended.returncode, ended.stderr) == (0, '')
    assert 'bash scripts/quickstart.sh [facts_to_sentence | mixed_kinds | rewrite_tense]' in ended.stdout
    assert 'TRAIN_SIZE' in ended.stdout and '#' not in ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == ['scripts']
