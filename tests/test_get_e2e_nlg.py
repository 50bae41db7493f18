"""The E2E NLG files are built from folders with the layout of the two repositories."""

import csv
import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cappy.errors import InputError

ROOT = Path(__file__).parents[1]
RECORDED = ROOT.parent / 'shared' / 'data' / 'e2e_nlg'

_spec = importlib.util.spec_from_file_location('get_e2e_nlg', ROOT / 'scripts' / 'get_e2e_nlg.py')
get_e2e_nlg = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(get_e2e_nlg)

INPUTS = {
    'name[Zum Anker], eatType[inn], area[hill]': [
        'Zum Anker is an inn, on "the hill".',
        'On the hill: Zum Anker.',
    ],
    'name[Mole], eatType[bar]': ['The Mole is a bar.'],
    'name[Café Ö], near[Mole]': [
        'Café Ö is near Mole. ',
        'Near Mole\nis Café Ö.',
        'Café Ö is near Mole. ',
    ],
}


def outputs_of(system):
    return {meaning: f'{system} says: {references[0]}' for meaning, references in INPUTS.items()}


def write_repositories(folder, references, outputs):
    """references {input: [text]}, outputs {system: {input: text}}, as the repositories do."""
    dataset, evaluation = folder / 'e2e-dataset', folder / 'e2e-eval'
    (evaluation / 'system_outputs' / 'primary').mkdir(parents=True)
    dataset.mkdir()
    with open(dataset / 'testset_w_refs.csv', 'w', encoding='utf-8', newline='') as file:
        rows = [(meaning, text) for meaning, texts in references.items() for text in texts]
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([('mr', 'ref'), *rows])
    for system, texts in outputs.items():
        path = evaluation / 'system_outputs' / 'primary' / f'{system}.tsv'
        with open(path, 'w', encoding='utf-8', newline='') as file:
            csv.writer(file, delimiter='\t', lineterminator='\n').writerows([('MR', 'output'), *texts.items()])
    return {'dataset_dir': str(dataset), 'evaluation_dir': str(evaluation)}


@pytest.fixture
def repositories(tmp_path):
    return write_repositories(tmp_path, INPUTS, {system: outputs_of(system) for system in get_e2e_nlg.SYSTEMS})


def tsv(repositories, system):
    return Path(repositories['evaluation_dir']) / 'system_outputs' / 'primary' / f'{system}.tsv'


def read(folder):
    return {
        split: [json.loads(line) for line in (folder / f'e2e_nlg_{split}.jsonl').read_text('utf-8').splitlines()]
        for split in ('train', 'validation')
    }


def test_inputs_are_shuffled_with_seed_0_and_keep_their_references_and_outputs(tmp_path, repositories):
    get_e2e_nlg.main(output_dir=str(tmp_path / 'out'), n_validation=1, **repositories)
    order = list(INPUTS)
    random.Random(0).shuffle(order)
    written = read(tmp_path / 'out')
    assert [(split, row['example_idx']) for split in written for row in written[split]] == [
        ('train', 0),
        ('train', 1),
        ('validation', 0),
    ]
    for meaning, row in zip(order, written['train'] + written['validation'], strict=True):
        assert row == {
            'dataset': 'e2e_nlg',
            'example_idx': row['example_idx'],
            'instruction': 'Describe the restaurant in one or two sentences, using these facts.\n' + meaning,
            'references': INPUTS[meaning],
            'flan_samples': {system: [{'response': outputs_of(system)[meaning]}] for system in get_e2e_nlg.SYSTEMS},
        }


@pytest.mark.skipif(not RECORDED.is_dir(), reason='the shared data is not here')
def test_the_recorded_files_are_built_again_byte_for_byte(tmp_path):
    rows = [row for part in read(RECORDED).values() for row in part]
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    in_file_order = [row for _, row in sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])]
    meaning = {row['instruction']: row['instruction'].split('\n', 1)[1] for row in rows}
    references = {meaning[row['instruction']]: row['references'] for row in in_file_order}
    outputs = {
        system: {meaning[row['instruction']]: row['flan_samples'][system][0]['response'] for row in in_file_order}
        for system in get_e2e_nlg.SYSTEMS
    }
    get_e2e_nlg.main(output_dir=str(tmp_path / 'out'), **write_repositories(tmp_path, references, outputs))
    for split in ('train', 'validation'):
        name = f'e2e_nlg_{split}.jsonl'
        assert (tmp_path / 'out' / name).read_bytes() == (RECORDED / name).read_bytes()


def test_a_system_without_an_input_is_named_with_the_input(tmp_path, repositories):
    path = tsv(repositories, 'nle')
    path.write_text(''.join(path.read_text('utf-8').splitlines(keepends=True)[:-1]), 'utf-8')
    with pytest.raises(InputError, match=r'nle\.tsv: no output for 1 of 3 inputs, the first .name\[Caf'):
        get_e2e_nlg.main(output_dir=str(tmp_path / 'out'), n_validation=1, **repositories)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('line', 'error'),
    [
        ("'name[Mole], eatType[bar]'\t'A bar.'\n", r'tgen\.tsv:5: MR .* is not among the inputs'),
        ('"name[Mole], eatType[bar]"\tA bar.\n', r'tgen\.tsv:5: MR .* has an output above already'),
        ('"name[Mole], eatType[bar]"\n', r'tgen\.tsv:5: expected 2 columns, found 1'),
        ('"name[Mole], eat\n', r'tgen\.tsv:5: unexpected end of data'),
        (b'\xff\t\n', r'tgen\.tsv: not UTF-8'),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path, repositories, line, error):
    with open(tsv(repositories, 'tgen'), 'ab') as file:
        file.write(line if isinstance(line, bytes) else line.encode())
    with pytest.raises(InputError, match=error):
        get_e2e_nlg.main(output_dir=str(tmp_path / 'out'), n_validation=1, **repositories)


def test_a_folder_without_the_references_is_named(tmp_path, repositories):
    with pytest.raises(InputError, match=r'testset_w_refs\.csv: no such file; give the folder of a whole checkout'):
        get_e2e_nlg.main(output_dir=str(tmp_path / 'out'), **{**repositories, 'dataset_dir': str(tmp_path)})


def test_a_table_with_other_columns_is_refused(tmp_path, repositories):
    (Path(repositories['dataset_dir']) / 'testset_w_refs.csv').write_text('MR,ref\nx,y\n')
    with pytest.raises(InputError, match=r'testset_w_refs\.csv:1: expected the columns mr, ref, found'):
        get_e2e_nlg.main(output_dir=str(tmp_path / 'out'), **repositories)


def test_more_validation_inputs_than_there_are_inputs_is_refused(tmp_path, repositories):
    with pytest.raises(InputError, match='n_validation 130: choose 1 to 2 of 3 inputs'):
        get_e2e_nlg.main(output_dir=str(tmp_path / 'out'), **repositories)


def test_a_repository_is_fetched_once_and_a_broken_clone_is_not_kept(tmp_path, monkeypatch):
    calls = []

    def clone(command, **_):
        calls.append(command)
        Path(command[-1]).mkdir(parents=True)
        if len(calls) == 1:
            raise subprocess.CalledProcessError(128, command, stderr='warning\nfatal: no route to host\n')

    monkeypatch.setattr(subprocess, 'run', clone)
    with pytest.raises(InputError, match='e2e-eval: fatal: no route to host; try again, or give --evaluation_dir'):
        get_e2e_nlg.fetch('e2e-eval', tmp_path)
    assert not (tmp_path / 'e2e-eval').exists()
    folders = [get_e2e_nlg.fetch('e2e-eval', tmp_path) for _ in range(2)]
    assert folders == [tmp_path / 'e2e-eval'] * 2
    assert [command[-2:] for command in calls] == [
        ['https://github.com/tuetschek/e2e-eval', str(tmp_path / 'e2e-eval.partial')]
    ] * 2


def test_a_wrong_folder_is_one_line_of_error_and_exit_code_1(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            ROOT / 'scripts' / 'get_e2e_nlg.py',
            '--dataset_dir',
            tmp_path,
            '--evaluation_dir',
            tmp_path,
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={'PATH': ''},
    )
    assert (done.returncode, done.stderr.count('\n'), done.stderr[:7]) == (1, 1, 'error: ')
