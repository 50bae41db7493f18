"""Real data for `cappy_bigbench.py`: the inputs, references and systems of the E2E NLG Challenge.

    python scripts/get_e2e_nlg.py

630 restaurants to describe, 1 to 45 human references each, the outputs of 19 systems as decodings;
500 to train on and 130 to validate. Written to
`bigbench_flan_gens/e2e-systems/e2e_nlg_{train,validation}.jsonl` from two public repositories,
which are fetched with git unless folders are given. Both data sets, and so these files, are under
CC BY-SA 4.0. What is in `cache_dir` is not fetched again.
"""

import csv
import logging
import random
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy.cli import flags
from cappy.errors import InputError
from cappy.tasks.candidates import Example, Sample, write_examples

REPOSITORIES = {
    'e2e-dataset': 'https://github.com/tuetschek/e2e-dataset',  # Novikova et al., SIGDIAL 2017
    'e2e-eval': 'https://github.com/tuetschek/e2e-eval',  # Dusek et al., 2020, arXiv:1901.07931
}
REFERENCES_FILE = 'testset_w_refs.csv'
OUTPUTS_FOLDER = 'system_outputs/primary'
# The primary systems, but for tnt1 and tnt2, whose files are quoted in another way.
SYSTEMS = (
    *('adapt', 'chen', 'dangnt', 'forge1', 'forge3', 'gong', 'harv', 'nle', 'sheff1', 'sheff2'),
    *('slug-alt', 'slug', 'tgen', 'tr1', 'tr2', 'tuda', 'zhang', 'zhaw1', 'zhaw2'),
)
N_INPUTS, N_VALIDATION = 630, 130
TASK = 'e2e_nlg'
PROMPT = 'Describe the restaurant in one or two sentences, using these facts.\n'

logger = logging.getLogger(__name__)


def main(
    output_dir='bigbench_flan_gens/e2e-systems',
    dataset_dir: str | None = None,  # a checkout of e2e-dataset; fetched if not given
    evaluation_dir: str | None = None,  # a checkout of e2e-eval; fetched if not given
    cache_dir='.cache/e2e_nlg',  # where fetched repositories are kept
    n_validation=N_VALIDATION,
):
    """Build the candidate files of the E2E NLG Challenge."""
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    dataset_dir = Path(dataset_dir or fetch('e2e-dataset', cache_dir))
    evaluation_dir = Path(evaluation_dir or fetch('e2e-eval', cache_dir))
    references = read_references(dataset_dir / REFERENCES_FILE)
    outputs = {
        system: read_outputs(evaluation_dir / OUTPUTS_FOLDER / f'{system}.tsv', references) for system in SYSTEMS
    }
    splits = split_inputs(list(outputs[SYSTEMS[0]]), n_validation)
    for split, inputs in splits.items():
        path = Path(output_dir) / f'{TASK}_{split}.jsonl'
        path.parent.mkdir(parents=True, exist_ok=True)
        write_examples(path, make_examples(inputs, references, outputs))
        print(f'{path}: {len(inputs)} inputs')
    if len(references) != N_INPUTS:
        logger.warning('%d inputs, where the published files have %d', len(references), N_INPUTS)
    print(f'{len(SYSTEMS)} systems; licence of the texts: CC BY-SA 4.0 (see the two repositories)')


def fetch(name, cache_dir):
    """The folder of a repository, cloned aside and renamed: a broken clone never looks whole."""
    folder = Path(cache_dir) / name
    if folder.is_dir():
        return folder
    partial = folder.with_name(f'{name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    logger.info('fetching %s', REPOSITORIES[name])
    command = ['git', 'clone', '--quiet', '--depth', '1', REPOSITORIES[name], str(partial)]
    flag = '--dataset_dir' if name == 'e2e-dataset' else '--evaluation_dir'
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    except FileNotFoundError as error:
        raise InputError(f'git is not installed; install it, or give {flag} a copy of {REPOSITORIES[name]}') from error
    except subprocess.TimeoutExpired as error:
        raise InputError(f'{REPOSITORIES[name]}: no end after 600 s; try again, or give {flag} a copy') from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ['git says nothing'])[-1]
        raise InputError(f'{REPOSITORIES[name]}: {said}; try again, or give {flag} a copy') from error
    return partial.rename(folder)


def read_references(path):
    """{input: [references]} of the dataset's CSV, in its order."""
    references = {}
    for _, meaning, reference in read_table(path, ('mr', 'ref'), ','):
        references.setdefault(meaning, []).append(reference)
    if not references:
        raise InputError(f'{path}: holds no inputs; expected lines of mr and ref')
    return references


def read_outputs(path, known):
    """{input: output} of a system, in its order; every known input once and no other."""
    outputs = {}
    for line, meaning, output in read_table(path, ('MR', 'output'), '\t'):
        if meaning not in known:
            raise InputError(f'{path}:{line}: MR {meaning[:60]!r} is not among the inputs of {REFERENCES_FILE}')
        if meaning in outputs:
            raise InputError(f'{path}:{line}: MR {meaning[:60]!r} has an output above already; keep one')
        outputs[meaning] = output
    missing = [meaning for meaning in known if meaning not in outputs]
    if missing:
        raise InputError(f'{path}: no output for {len(missing)} of {len(known)} inputs, the first {missing[0][:60]!r}')
    return outputs


def read_table(path, header, delimiter):
    """Yields (line from 1, first field, second field) of a table of two columns under a header."""
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            rows, line = csv.reader(file, delimiter=delimiter, strict=True), 1  # a row's first line
            for row in rows:
                if line == 1 and tuple(row) != header:
                    raise InputError(f'{path}:1: expected the columns {", ".join(header)}, found {row}')
                if row and len(row) != 2:
                    raise InputError(f'{path}:{line}: expected 2 columns, found {len(row)}')
                if row and line > 1:
                    yield line, *row
                line = rows.line_num + 1
    except FileNotFoundError as error:
        raise InputError(f'{path}: no such file; give the folder of a whole checkout') from error
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: not UTF-8 (byte {error.start}); fetch the file again') from error
    except csv.Error as error:
        raise InputError(f'{path}:{rows.line_num}: {error}; fetch the file again') from error


def split_inputs(inputs, n_validation):
    """{'train': [..], 'validation': [..]}: shuffled with seed 0, the last ones to validate."""
    if not 0 < n_validation < len(inputs):
        raise InputError(f'n_validation {n_validation}: choose 1 to {len(inputs) - 1} of {len(inputs)} inputs')
    inputs = list(inputs)
    random.Random(0).shuffle(inputs)
    return {'train': inputs[:-n_validation], 'validation': inputs[-n_validation:]}


def make_examples(inputs, references, outputs):
    """The candidates of the inputs, a decoding a system."""
    return [
        Example(
            dataset=TASK,
            example_idx=number,
            instruction=PROMPT + meaning,
            references=tuple(references[meaning]),
            samples=tuple(Sample(outputs[system][meaning], system) for system in outputs),
        )
        for number, meaning in enumerate(inputs)
    ]


if __name__ == '__main__':
    flags.run(main)
