"""How the model that adapting starts from matters: rougeL of the pick by number of updates, over models and seeds.

    python benchmarks/adapting.py --models minilm,pretrained_scorer/best

Each run is what `cappy_bigbench.py --reference_labels skip --lr_schedule corrected` does on E2E NLG, with the picks of
the validation split measured during training. One line of JSON per measurement goes to `output`; a run whose lines are
there is not repeated.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from common import adapting_settings

from cappy import Cappy
from cappy.cli import flags, tables
from cappy.files.outputs import check_files
from cappy.tasks import picks
from cappy.tasks.candidates import by_example, candidate_pairs, read_task
from cappy.tasks.finetuning import build_finetuning_examples
from cappy.tasks.rouge import RougeL
from cappy.tasks.statistics import spread


def main(
    models: flags.Names = ('minilm',),  # folders or hub names
    bigbench_gen_dir='bigbench_flan_gens',  # folder of samples
    generator='e2e-systems',  # whose samples are picked from
    task='e2e_nlg',
    seeds: flags.Names = ('1', '2', '3'),
    measured_after: flags.Names = ('0', '25', '50', '100'),  # updates; training ends after the last
    pairs_per_update=32,
    learning_rate=2e-4,
    max_length=128,  # tokens
    output='adapting.jsonl',  # the file of measurements
):
    """Adapt each model with each seed, and print a table of means."""
    check_files(output)
    after = [int(number) for number in measured_after]
    examples = read_task(bigbench_gen_dir, generator, task)
    rouge = RougeL()
    rougeL = picks.candidates_rougeL(examples['validation'], rouge)
    done = [json.loads(line) for line in Path(output).read_text().splitlines()] if Path(output).exists() else []
    for seed in map(int, seeds):
        settings = adapting_settings(seed, pairs_per_update, learning_rate, max_length)
        train = build_finetuning_examples(examples['train'], after[-1] * pairs_per_update, seed, rouge, 'skip')
        for model in models:
            if any((line['model'], line['seed']) == (model, seed) for line in done):
                continue
            for n_updates, values in measured(model, settings, train, examples['validation'], rougeL, after):
                done.append({'model': model, 'seed': seed, 'updates': n_updates, 'rougeL': values})
                print(model, seed, n_updates, f'{100 * np.mean(values):.2f}', flush=True)
            with open(output, 'a', encoding='utf-8') as file:
                of_run = [line for line in done if (line['model'], line['seed']) == (model, seed)]
                file.writelines(json.dumps(line) + '\n' for line in of_run)
    print(table(done))


def measured(model, settings, train, validation, rougeL, after):
    """[(number of updates, rougeL of each example's pick)] of one run."""
    scorer = Cappy.from_pretrained(model, max_length=settings.max_length, seed=settings.seed)
    pairs, found = candidate_pairs(validation), []

    def measure(n_updates):
        scores = by_example(scorer.score(pairs), validation)
        found.append((n_updates, picks.scorer_rougeL(rougeL, scores).tolist()))

    def on_update(update, params):
        if update.update + 1 in after:
            scorer.params = params
            measure(update.update + 1)
            scorer.params = None

    if 0 in after:
        measure(0)
    scorer.adapt(train, settings, on_update=on_update)
    return found


def table(lines):
    """Mean rougeL x 100 over the seeds and its standard deviation, by model and updates."""
    keys = dict.fromkeys((line['model'], line['updates']) for line in lines)
    rows = []
    for model, updates in sorted(keys):
        of_seeds = spread(
            [100 * np.mean(line['rougeL']) for line in lines if (line['model'], line['updates']) == (model, updates)]
        )
        rows.append({'model': model, 'updates': updates, 'rougeL': of_seeds.mean, 'deviation': of_seeds.std})
    columns = ['model', 'updates', tables.Column('rougeL', decimals=1), tables.Column('deviation', decimals=1)]
    return tables.format_table(rows, columns)


if __name__ == '__main__':
    flags.run(main)
