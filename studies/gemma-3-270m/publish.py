"""Write what may be published of a study: numbers alone, no text of a task or of a model.

    python studies/gemma-3-270m/publish.py --scratch_dir studies/gemma-3-270m/scratch/gemma-3-270m

Of each task that has a result, {output_dir}/{generator}/ gets {task}.json, the result with two more fields, 'sampling'
(what the samples took) and 'by_n_samples' (rougeL of picks among fewer samples), and {task}.candidates.jsonl.gz, the
score and rougeL of each candidate without its text, from which the presenters compute intervals.
"""

import gzip
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout, before an installed copy

from cappy.cli import flags
from cappy.errors import InputError
from cappy.files.atomic import read_text, to_json, write_atomically, write_json
from cappy.files.inputs import GZIP_ENDING, stems
from cappy.files.wording import not_found
from cappy.study.curves import sample_curves_of_cell
from cappy.study.results import ResultPaths, read_candidates, read_result
from cappy.tasks.candidates import SPLITS, read_task

ROOT = Path(__file__).resolve().parents[2]

logger = logging.getLogger('publish')


def main(
    scratch_dir='studies/gemma-3-270m/scratch/gemma-3-270m',  # folder of run.sh: data, samples, results
    generator='gemma-3-270m',
    output_dir='bigbench_cappy_results',
):
    """Write the numbers of a study."""
    logging.basicConfig(format='%(message)s', level=logging.INFO)
    scratch = Path(scratch_dir)
    folder = scratch / 'results' / generator
    if not folder.is_dir():
        raise InputError(not_found(folder, 'folder of results', 'bash studies/gemma-3-270m/run.sh makes it'))
    tasks = sorted(stems(folder, '.json'))
    for task in tasks:
        publish(scratch, ResultPaths(scratch / 'results', generator, task), ResultPaths(output_dir, generator, task))
    logger.info('%s: the numbers of %d tasks', Path(output_dir) / generator, len(tasks))


def publish(scratch, of_study: ResultPaths, published: ResultPaths):
    """Write the two files of a task."""
    result, lines = read_result(of_study.result), read_candidates(of_study.candidates)
    sizes, by_pick, _ = sample_curves_of_cell(of_study, result, scratch / 'samples')
    result['sampling'] = describe_sampling(scratch, of_study.generator, of_study.task)
    result['by_n_samples'] = {'n_samples': sizes, 'rougeL': by_pick}
    folders = {'bigbench_gen_dir': scratch / 'samples', 'results_dir': published.result.parents[1]}
    result['settings'] |= {name: in_checkout(folder) for name, folder in folders.items()}
    for candidate in (candidate for line in lines for candidate in line['candidates']):
        candidate['response'] = ''
    text = ''.join(to_json(published.candidates, line) + '\n' for line in lines)
    with write_atomically(published.candidates.with_name(published.candidates.name + GZIP_ENDING), 'wb') as file:
        file.write(gzip.compress(text.encode(), mtime=0))
    write_json(published.result, result)


def in_checkout(folder):
    """The folder as seen from the root of this checkout, its name alone where it is elsewhere: no path of a machine."""
    folder = Path(folder).resolve()
    return folder.relative_to(ROOT).as_posix() if folder.is_relative_to(ROOT) else folder.name


def describe_sampling(scratch, generator, task):
    """What the samples of a task took: {seconds, prepared, response_tokens: {split: n}}.

    seconds: of all attempts, both splits. prepared: counts of prepare.py. response_tokens: those whose log-likelihoods
    are known, the quotient of their sum and their mean.
    """
    tokens = {split: 0 for split in SPLITS}
    for split, examples in read_task(scratch / 'samples', generator, task).items():
        for sample in (sample for example in examples for sample in example.samples):
            if sample.log_likelihood_mean:
                tokens[split] += round(sample.log_likelihood_sum / sample.log_likelihood_mean)
    return {
        'seconds': sum(map(int, read_text(scratch / 'data' / f'{task}.seconds').split())),
        'prepared': json.loads(read_text(scratch / 'data' / 'tasks.json'))[task],
        'response_tokens': tokens,
    }


if __name__ == '__main__':
    flags.run(main)
