"""Real data for `cappy_bigbench.py`: the inputs, references and systems of the E2E NLG Challenge.

    python scripts/get_e2e_nlg.py

There are 630 restaurants to describe, 500 to train on and 130 to validate, with 1 to 45 human references each and the
outputs of 19 systems, which take the place of decodings. They are written to
`bigbench_flan_gens/e2e-systems/e2e_nlg_{train,validation}.jsonl` from two public repositories, which are fetched with
git, once, unless folders are given. Both data sets, and so these files, are under CC BY-SA 4.0.
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
from cappy.files.outputs import check_files, check_folders
from cappy.files.wording import not_found
from cappy.tasks.candidates import SPLITS, Example, Sample, write_splits

REPOSITORIES = {
    'e2e-dataset': 'https://github.com/tuetschek/e2e-dataset',  # Novikova et al., SIGDIAL 2017
    'e2e-eval': 'https://github.com/tuetschek/e2e-eval',  # Dusek et al., 2020, arXiv:1901.07931
}
REFERENCES_FILE = 'testset_w_refs.csv'
OUTPUTS_FOLDER = 'system_outputs/primary'
# The primary systems without tnt1 and tnt2, whose files use other quotes.
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
    n_validation: flags.Count = N_VALIDATION,  # inputs
):
    """Build the candidate files of the E2E NLG Challenge."""
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    paths = {split: Path(output_dir) / f'{TASK}_{split}.jsonl' for split in SPLITS}
    check_files(*paths.values())
    if not (dataset_dir and evaluation_dir):
        check_folders(cache_dir)
    dataset_dir = Path(dataset_dir or fetch('e2e-dataset', cache_dir))
    evaluation_dir = Path(evaluation_dir or fetch('e2e-eval', cache_dir))
    references = read_references(dataset_dir / REFERENCES_FILE)
    outputs = {
        system: read_outputs(evaluation_dir / OUTPUTS_FOLDER / f'{system}.tsv', references) for system in SYSTEMS
    }
    splits = split_inputs(list(outputs[SYSTEMS[0]]), n_validation)
    write_splits({paths[split]: make_examples(inputs, references, outputs) for split, inputs in splits.items()})
    for split, inputs in splits.items():
        print(f'{paths[split]}: {len(inputs)} inputs')
    if len(references) != N_INPUTS:
        logger.warning('%d inputs, but the published files have %d', len(references), N_INPUTS)
    print(f'{len(SYSTEMS)} systems; licence of the texts: CC BY-SA 4.0 (see the two repositories)')


def fetch(name, cache_dir):
    """The folder of a repository, which is cloned beside it and renamed, so that a broken clone never looks whole."""
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
        raise InputError(f'{REPOSITORIES[name]}: not finished after 600 s; try again, or give {flag} a copy') from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ['git failed without a message'])[-1]
        raise InputError(f'{REPOSITORIES[name]}: {reason}; try again, or give {flag} a copy') from error
    return partial.rename(folder)


def read_references(path):
    """{input: [references]} of the CSV file of the data set, in its order."""
    references = {}
    for _, meaning, reference in read_table(path, ('mr', 'ref'), ','):
        references.setdefault(meaning, []).append(reference)
    if not references:
        raise InputError(f'{path}: has no inputs; expected lines of mr and ref')
    return references


def read_outputs(path, known):
    """{input: output} of a system, in its order. Raises InputError unless it has the known inputs, each once."""
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
    """Yield (line from 1, first field, second field) of each record of a table of two columns under a header."""
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            records, line = csv.reader(file, delimiter=delimiter, strict=True), 1  # the first line of a record
            for record in records:
                if line == 1 and tuple(record) != header:
                    raise InputError(f'{path}:1: expected the columns {", ".join(header)}, found {record}')
                if record and len(record) != 2:
                    raise InputError(f'{path}:{line}: expected 2 columns, found {len(record)}')
                if record and line > 1:
                    yield line, *record
                line = records.line_num + 1
    except FileNotFoundError as error:
        raise InputError(not_found(path, remedy='give the folder of a whole checkout')) from error
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: not UTF-8 (byte {error.start}); fetch the file again') from error
    except csv.Error as error:
        raise InputError(f'{path}:{records.line_num}: {error}; fetch the file again') from error


def split_inputs(inputs, n_validation):
    """{'train': [..], 'validation': [..]}: shuffled with seed 0, the last n_validation to validate."""
    if not 0 < n_validation < len(inputs):
        raise InputError(f'n_validation {n_validation}: choose 1 to {len(inputs) - 1} of {len(inputs)} inputs')
    inputs = list(inputs)
    random.Random(0).shuffle(inputs)
    return {'train': inputs[:-n_validation], 'validation': inputs[-n_validation:]}


def make_examples(inputs, references, outputs):
    """The examples of the inputs; the output of each system is a sample under a decoding of its name."""
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
