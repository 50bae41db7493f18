"""What picks best: objectives of training, ways to combine the scorer with other signals, and seeds, on several tasks.

    python benchmarks/picks.py --data bigbench_flan_gens/e2e-systems/e2e_nlg --seeds 1,2,3

A run adapts a scorer to one task for one objective with one seed, all with the same number of pairs, and keeps its
scores of all validation candidates in a file of `output_dir`; a run whose file is there is not repeated. With
--cross_fit the training candidates are scored too, each by one of two scorers that did not train on its instruction,
for the weights of the combined pick. The table is made of the scores: mean rougeL x 100 over the seeds, by task, and
the difference to consensus over all tasks with its interval over examples. regret: how far a combination is behind the
better of scorer and consensus, on average over the tasks, and at most.
"""

import gzip
import json
import logging
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from common import adapting_settings

from cappy import Cappy
from cappy.cli import flags, tables
from cappy.errors import InputError
from cappy.files.atomic import write_atomically
from cappy.files.outputs import check_folders
from cappy.tasks import combining, picks
from cappy.tasks.candidates import by_example, candidate_pairs, read_task
from cappy.tasks.combining import Combination, cross_fitting_folds
from cappy.tasks.finetuning import build_finetuning_examples
from cappy.tasks.rouge import RougeL

# Objective and labels of references: the paper's trains on references and drawn negatives too.
OBJECTIVES = {
    'paper': ('absolute', 'one'),
    'absolute': ('absolute', 'skip'),
    'centred': ('centred', 'skip'),
    'listwise': ('listwise', 'skip'),
}
N_FOLDS = 2
N_BEST = 3  # candidates with the highest scores, of which consensus then picks


def main(
    data: flags.Names = (
        'bigbench_flan_gens/e2e-systems/e2e_nlg',
        'examples/bigbench_flan_gens/tiny-t5/facts_to_sentence',
        'examples/bigbench_flan_gens/tiny-t5/mixed_kinds',
        'examples/bigbench_flan_gens/tiny-t5/rewrite_tense',
    ),  # tasks, each a path folder/generator/task
    objectives: flags.Names = ('paper', 'absolute', 'centred', 'listwise'),
    seeds: flags.Names = ('1', '2', '3'),
    cross_fit: flags.Names = ('listwise',),  # objectives whose combined pick is measured: twice the training
    model='minilm',  # folder or hub name of what is adapted
    train_size: flags.Count = 2880,  # pairs of a run
    pairs_per_update: flags.Count = 32,
    learning_rate: flags.Positive = 2e-4,
    max_length: flags.Count = 128,  # tokens
    output_dir='benchmarks/picks',  # folder of the runs' scores
    only_table=False,  # make no run, show those that are there
    table_style='table',  # or markdown
):
    """Make the runs that are missing, and print the tables."""
    if unknown := [name for name in objectives if name not in OBJECTIVES]:
        raise InputError(f'objectives: found {unknown[0]!r}; choose of {", ".join(OBJECTIVES)}')
    check_folders(output_dir)
    tasks = {path.rsplit('/', 1)[-1]: read(path) for path in data}
    runs = []
    for seed in map(int, seeds):
        for task, splits in tasks.items():
            for objective in objectives:
                path = Path(output_dir) / f'{task}.{objective}.{train_size}.seed{seed}.json.gz'
                if not path.exists() and not only_table:
                    trained_for, reference_labels = OBJECTIVES[objective]
                    settings = adapting_settings(seed, pairs_per_update, learning_rate, max_length, trained_for)
                    made = run(model, splits, settings, train_size, reference_labels, objective in cross_fit)
                    keep(path, {'task': task, 'objective': objective, 'seed': seed, **made})
                    print(f'{path}: {made["seconds"]:.0f} s', file=sys.stderr, flush=True)
                if path.exists():
                    runs.append(json.loads(gzip.decompress(path.read_bytes())))
    if not runs:
        raise InputError(f'{output_dir}: holds no run of these tasks, objectives and seeds')
    print(table(runs, tasks, table_style))


def read(path):
    """The splits of a task that is named folder/generator/task."""
    parts = Path(path).parts
    if len(parts) < 3:
        raise InputError(f'data: found {path}; give folder/generator/task')
    return read_task(Path(*parts[:-2]), parts[-2], parts[-1])


def run(model, splits, settings, train_size, reference_labels, cross_fitted):
    """{'seconds': of the first training, 'scores': lists by validation example, 'held_out'?: by training example}."""
    train, validation = splits['train'], splits['validation']

    def adapted(examples, n_pairs):
        scorer = Cappy.from_pretrained(model, max_length=settings.max_length, seed=settings.seed)
        built = build_finetuning_examples(examples, n_pairs, settings.seed, RougeL(), reference_labels)
        scorer.adapt(built, settings, progress=None)
        return scorer

    start = time.perf_counter()
    scorer = adapted(train, train_size)
    made = {'seconds': time.perf_counter() - start, 'scores': scores_of(scorer, validation)}
    if cross_fitted:
        held_out = {}
        for others, left_out in cross_fitting_folds(train, N_FOLDS, settings.seed):
            scorer = adapted(others, train_size * len(others) // len(train))
            scores = scores_of(scorer, left_out)
            held_out |= {example.example_idx: own for example, own in zip(left_out, scores, strict=True)}
        made['held_out'] = [held_out[example.example_idx] for example in train]
    return made


def scores_of(scorer, examples):
    """The scores of each example's candidates, lists of numbers."""
    scores = by_example(scorer.score(candidate_pairs(examples)), examples)
    return [np.round(own.astype(float), 6).tolist() for own in scores]


def keep(path, made):
    """Write a run's file."""
    with write_atomically(path, 'wb') as file:
        file.write(gzip.compress(json.dumps(made).encode(), mtime=0))


def table(runs, tasks, style):
    """Means by task of every pick, and over the tasks the difference to consensus and to the paper's recipe."""
    facts = {task: Task(splits) for task, splits in tasks.items()}
    values = {}  # (pick, objective): {task: rougeL of each example, mean over the seeds}
    for task, own in facts.items():
        of_task = [one for one in runs if one['task'] == task]
        for pick, rougeL in own.fixed_picks().items():
            values.setdefault((pick, ''), {})[task] = rougeL
        for objective in dict.fromkeys(one['objective'] for one in of_task):
            of_seeds = [own.scored_picks(one) for one in of_task if one['objective'] == objective]
            for pick in of_seeds[0]:
                if all(pick in of_seed for of_seed in of_seeds):
                    found = np.mean([of_seed[pick] for of_seed in of_seeds], axis=0)
                    values.setdefault((pick, objective), {})[task] = found
    n_seeds = {(one['task'], one['objective']): 0 for one in runs}
    for one in runs:
        n_seeds[one['task'], one['objective']] += 1
    rows = []
    for (pick, objective), by_task in values.items():
        row = {'pick': pick, 'trained for': objective}
        row |= {task: f'{100 * by_task[task].mean():.1f}' for task in by_task}
        if len(by_task) == len(tasks):
            row['mean'] = f'{100 * np.mean([own.mean() for own in by_task.values()]):.1f}'
            row['over consensus'] = difference(by_task, values['consensus', ''])
            paper = values.get(('scorer', 'paper'), {})
            row['over the paper'] = difference(by_task, paper) if len(paper) == len(tasks) else ''
            if ' + ' in pick or pick.startswith(('combined', 'score-weighted')):
                row['regret'] = regret(by_task, [values['consensus', ''], values.get(('scorer', objective), {})])
        rows.append(row)
    columns = ['pick', 'trained for', *tasks, 'mean', 'over consensus', 'over the paper', 'regret']
    seconds = {
        objective: f'{np.mean([one["seconds"] for one in runs if one["objective"] == objective]):.0f} s'
        for objective in dict.fromkeys(one['objective'] for one in runs)
    }
    counted = ', '.join(f'{task} {objective}: {n}' for (task, objective), n in n_seeds.items())
    return f'{tables.format_table(rows, columns, style)}\n\nSeeds: {counted}.\nTraining: {seconds}'


def difference(ours, theirs):
    """The mean over tasks of ours minus theirs, x 100, with its interval over examples, tasks weighing the same."""
    n_tasks = len(ours)
    # Each task's examples are a sample of their own: the variance of the mean of means is the sum of theirs.
    gains = {task: 100 * (ours[task] - theirs[task]) for task in ours}
    mean = np.mean([own.mean() for own in gains.values()])
    error = np.sqrt(sum(own.var(ddof=1) / len(own) for own in gains.values())) / n_tasks
    return f'{mean:+.1f} ({mean - 1.96 * error:+.1f} to {mean + 1.96 * error:+.1f})'


def regret(ours, parts):
    """How far a combination is behind the better of its parts, x 100: mean over the tasks, and the most."""
    behind = [
        100 * (max(part[task].mean() for part in parts if task in part) - own.mean()) for task, own in ours.items()
    ]
    return f'{np.mean(behind):.1f} ({max(behind):.1f})'


class Task:
    """What the picks of a task need besides scores."""

    def __init__(self, splits):
        self.train, self.validation, self.rouge = splits['train'], splits['validation'], RougeL()
        self.rougeL = picks.candidates_rougeL(self.validation, self.rouge)
        self.labels = picks.candidates_rougeL(self.train, self.rouge)
        self.consensus = picks.consensus_of(self.validation, self.rouge)
        self.gains = combining.decoding_gains(self.train, self.labels)

    def fixed_picks(self):
        """rougeL of each example by the picks that need no scorer."""
        values = picks.values_by_pick(self.validation, self.consensus)
        decoding = Combination({'decoding': 1.0}, self.gains, 'rougeL')
        values['decoding'] = decoding.values(self.validation, self.consensus, self.rouge)
        both = Combination({'consensus': 1.0, 'decoding': 1.0}, self.gains, 'rougeL')
        values['consensus + decoding'] = both.values(self.validation, self.consensus, self.rouge)
        found = picks.rougeL_by_pick(self.validation, self.rougeL, values)
        return {name: own for name, own in found.items() if not name.startswith('first of')}

    def scored_picks(self, made):
        """rougeL of each example by the picks that need scores."""
        scores = [np.array(own) for own in made['scores']]
        values = {'scorer': scores}
        for temperature in (0.1, combining.TEMPERATURE, 0.4):
            values[f'score-weighted consensus, {temperature}'] = [
                combining.weighted_consensus(example, own, self.rouge, temperature)
                for example, own in zip(self.validation, scores, strict=True)
            ]
        values['scorer + consensus'] = [a + b for a, b in zip(scores, self.consensus, strict=True)]
        values[f'consensus of the best {N_BEST}'] = [
            np.where(np.argsort(np.argsort(-own, kind='stable'), kind='stable') < N_BEST, agreed, -1)
            for own, agreed in zip(scores, self.consensus, strict=True)
        ]
        if 'held_out' in made:
            held_out = [np.array(own) for own in made['held_out']]
            for names in SIGNALS:
                try:
                    fitted = Combination.fit(names, self.train, held_out, self.labels, self.rouge)
                    found = fitted.values(self.validation, scores, self.rouge)
                except InputError:  # no log-likelihoods
                    continue
                values['combined: ' + ', '.join(('scorer', *names)).replace('_', ' ')] = found
        return {name: picks.scorer_rougeL(self.rougeL, own) for name, own in values.items()}


SIGNALS = (
    ('consensus',),
    ('weighted_consensus',),
    ('consensus', 'decoding'),
    ('weighted_consensus', 'decoding'),
    ('consensus', 'weighted_consensus', 'decoding'),
    ('consensus', 'weighted_consensus', 'decoding', 'times_sampled'),
    ('consensus', 'weighted_consensus', 'decoding', 'self_score'),
)


if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.ERROR)
    flags.run(main)
