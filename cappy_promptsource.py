"""Answer classification tasks without training: score every choice, take the best (Tan et al., NeurIPS 2023, 4.1).

With the published weights (btan2/cappy-large, 0.36B parameters) the paper reports a mean accuracy of 56.6 over 11 tasks
of PromptSource, where OPT-IML 175B has 56.5 and T0 11B 58.2.

    python cappy_promptsource.py --model_name_or_path btan2/cappy-large

A row of data_file is one choice: {"dataset_name", "template_name", "example_idx", "instruction", "response", "label"}.
The accuracies go to standard output as JSON, everything else to standard error. The same flags, data and defaults as
the reference's; those from `grading` on are ours. See docs/commands.md, and docs/reproduction.md for what differs.
"""

import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Literal

from cappy import Cappy, get_devices
from cappy.cli import flags, tables
from cappy.cli.phase_timer import PhaseTimer
from cappy.errors import InputError
from cappy.files.atomic import read_fields, to_json, write_together
from cappy.files.environment import environment
from cappy.files.inputs import GZIP_ENDING, digest
from cappy.files.lock import check_result, result_lock
from cappy.files.names import check_name
from cappy.files.settings import differing
from cappy.model.devices import is_first_process
from cappy.model.tokens import describe_cut
from cappy.study.results import ResultPaths, shown_result
from cappy.tasks import questions

logger = logging.getLogger('cappy_promptsource')
RESULT_FIELDS = ('accuracy', 'summary', 'settings', 'data_sha256')  # without which it is another file


def main(
    data_file='./promptsource_test.jsonl',  # one line per choice
    sent0_key='instruction',  # field of the instruction
    sent1_key='response',  # field of the choice
    model_name_or_path='btan2/cappy-large',  # hub name or folder of the scorer
    n_model_shards: flags.Count = 1,  # devices over which each parameter is split
    per_device_batch_size: flags.Count = 128,  # kept for the reference's commands; scoring fills batches by tokens
    max_length: flags.Count | None = None,  # tokens per pair; longer ones are truncated; default: the scorer's own, 512
    jax_seed: flags.Seed = 42,  # of the bootstrap; scoring draws nothing
    grading: Literal['reference', 'exact'] = 'reference',  # exact: ties, several right choices and names done right
    results_dir: str | None = None,  # {model}/{data file}.json and .scores.jsonl go here; None: nowhere
    compute_dtype: Literal['float32', 'bfloat16'] | None = None,  # default: float32 on a CPU, else bfloat16
    tokens_per_device: flags.Count | None = None,  # of a batch; default: what suits the device
    overwrite=False,  # replace an existing result
    n_processes: flags.Count | None = None,  # hosts, as redco's Deployer takes them; so the next four
    host0_address: str | None = None,
    host0_port: flags.Port | None = None,
    process_id: flags.CountFrom0 | None = None,
    n_local_devices: flags.Count | None = None,
):
    """Zero-shot accuracy on classification tasks."""
    settings = dict(locals())
    paths = choice_paths(results_dir, model_name_or_path, data_file) if results_dir else None
    if paths and paths.result.exists() and not overwrite:
        return show_existing(paths, settings)
    if paths and not process_id:  # None or the first, which writes
        check_result(paths)
    timer = PhaseTimer()
    choices = questions.read_choices(data_file, sent0_key=sent0_key, sent1_key=sent1_key)
    timer.lap('data')

    with contextlib.ExitStack() as stack:
        stack.enter_context(standard_output_kept())
        devices = get_devices(n_model_shards, n_processes, host0_address, host0_port, process_id, n_local_devices)
        if paths and is_first_process():
            stack.enter_context(result_lock(paths))
        scorer = Cappy.from_pretrained(
            model_name_or_path,
            devices=devices,
            compute_dtype=compute_dtype,
            max_length=max_length,
            tokens_per_device=tokens_per_device,
        )
        settings['max_length'] = scorer.max_length
        timer.lap('load')
        scores, counts = score_choices(scorer, choices)
        timer.lap('score')
        verdicts = questions.grade(choices, scores, grading)
        accuracies = {name: questions.accuracy(questions.grade(choices, scores, name)) for name in questions.GRADINGS}
        summary = questions.summarise(verdicts, jax_seed)
        timer.lap('grade')
        result = {
            'accuracy': accuracies[grading],
            'accuracy_by_grading': accuracies,
            'summary': summary,
            'settings': settings,
            'counts': {
                'rows': len(choices),
                'unique_pairs': counts['unique_pairs'],
                'truncated_pairs': counts['truncated_pairs'],
                'made_equal_pairs': counts['made_equal_pairs'],
                'empty_responses': sum(not choice.response for choice in choices),
                'graded_questions': len(verdicts),
                'questions': questions.count_faults(choices, scores),
                **dict(zip(('alike_questions', 'open_questions'), questions.count_alike(choices, scores), strict=True)),
            },
            'datasets_not_graded': [
                name
                for name in dict.fromkeys(choice.dataset_name for choice in choices)
                if name.split('|||')[0] not in summary
            ],
            'data_sha256': digest(data_file),
            'seconds': timer.seconds | {'waiting_for_tokens': counts['seconds_waiting']},  # a part of score
            'versions': environment(),
            'device': devices.description,
        }
        if paths and is_first_process():  # the result last: where it exists, the scores do
            with write_together(paths.candidates, paths.result) as (of_scores, of_result):
                questions.write_choice_scores(of_scores, choices, scores)
                of_result.write(to_json(paths.result, result, indent=4) + '\n')
    if is_first_process():
        report(result)


class ChoicePaths(ResultPaths):
    """The files of one scorer and data file: {results_dir}/{model}/{data file}.json and .scores.jsonl."""

    @property
    def candidates(self):
        return self._with('.scores.jsonl')


def choice_paths(results_dir, model_name_or_path, data_file):
    """The ChoicePaths, named after the last part of the model's name and after the data file."""
    model = check_name(Path(model_name_or_path).name or 'model', f'--model_name_or_path {model_name_or_path}:')
    data = Path(Path(data_file).name.removesuffix(GZIP_ENDING)).stem
    return ChoicePaths(results_dir, model, check_name(data, f'--data_file {data_file}:'))


def show_existing(paths, settings):
    """Give the result that is there; one of another scorer, data or grading is not what was asked for."""
    result = read_fields(paths.result, RESULT_FIELDS)
    with shown_result(paths.result):
        made = result['settings'] | {'data_sha256': result['data_sha256']}
    asked = settings | {'data_sha256': digest(settings['data_file'])}
    not_deciding = ('overwrite', 'results_dir', 'per_device_batch_size')
    if other := differing(made, asked, ignoring=not_deciding, found=('max_length',)):
        raise InputError(
            f'{paths.result}: exists, made with {", ".join(other)}; '
            '--overwrite replaces it, another --results_dir keeps both'
        )
    if not settings['process_id']:  # None or the first
        with shown_result(paths.result):
            report(result)
        print(f'Result already exists in {paths.result}. Skipped: nothing was computed.', file=sys.stderr)


@contextlib.contextmanager
def standard_output_kept():
    """Libraries below Python (Gloo, between hosts without accelerators) print there, where only the result belongs."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(ours, 1)
        os.close(ours)


def score_choices(scorer, choices):
    """(float32 [choices], counts). Identical pairs share one score, so that they tie wherever they stand."""
    unique = {}
    place = [unique.setdefault((choice.instruction, choice.response), len(unique)) for choice in choices]
    scores, counts = scorer.score_with_counts(unique, progress='scoring')
    return scores[place], counts


def report(result):
    """Table and remarks for the reader, on standard error; the accuracies for programs, on standard output."""
    counts = result['counts']
    lines = [
        f'\n{accuracy_table(result["summary"])}\n',
        f'{counts["graded_questions"]} questions, {counts["rows"]} choices ({counts["unique_pairs"]} different); '
        '95% intervals over examples; published figures from arXiv:2311.06720 and arXiv:2212.12017',
        *remarks(result, result['settings']['grading']),
    ]
    print('\n'.join(lines), file=sys.stderr, flush=True)
    print(json.dumps(result['accuracy'], indent=4))


def remarks(result, grading):
    """What a reader should know of the choices, one line each."""
    counts = result['counts']
    lines = questions.describe_faults(counts['questions'], grading)
    if 0 < counts.get('open_questions', 0) == counts.get('alike_questions'):
        lines.append('the scorer gives all choices of a question the same score, so the accuracies say nothing of it')
    if result['datasets_not_graded']:
        lines.append(f'not graded, since no row is right: {", ".join(result["datasets_not_graded"])}')
    if counts['truncated_pairs']:
        # Results of an older version have no count of pairs that became equal.
        lines.append(describe_cut({'made_equal_pairs': 0, **counts}, result['settings']['max_length']))
    if counts['empty_responses']:
        lines.append(f'{counts["empty_responses"]} choices have an empty response')
    other = 'exact' if grading == 'reference' else 'reference'
    ours, theirs = (result['accuracy_by_grading'][name] for name in (grading, other))
    if ours != theirs:
        lines.append(
            f'graded as {grading}: Average {100 * ours[questions.AVERAGE]:.2f}; '
            f'as {other}: {100 * theirs[questions.AVERAGE]:.2f}'
        )
    return lines


def accuracy_table(summary, style='table'):
    """Each task's accuracy beside the published ones, in percent; what is missing is a dash."""
    published = questions.read_published()
    rows = questions.compare_with_published(summary, published)
    for row in rows:
        if row.get('low') is not None:
            row['interval'] = f'{100 * row["low"]:.1f} to {100 * row["high"]:.1f}'
        if row.get('templates_std') is not None:
            row['over_templates'] = f'{100 * row["templates_mean"]:.1f} ± {100 * row["templates_std"]:.1f}'
    columns = [
        'task',
        tables.percent('accuracy', 'here'),
        tables.Column('interval', '95%'),
        tables.Column('over_templates', 'templates'),
    ]
    columns += [tables.Column(model, decimals=1) for model in published['average']]
    return tables.format_table(rows, columns, style)


if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
    flags.run(main)
