"""Stored results measured by another metric: from their candidates' scores and the references, without a model.

What a pick takes does not change: the scores, the weights of a combination and the metric by which candidates agree are
those of the result. Of the scorer before adapting there are no scores, so that it has no value by another metric.
"""

from collections.abc import Sequence

import numpy as np

from cappy.errors import InputError
from cappy.study import cells, curves
from cappy.study.cells import CellExamples
from cappy.study.results import ResultPaths, read_candidates, settings_of, text_settings
from cappy.tasks import picks
from cappy.tasks.combining import Combination
from cappy.tasks.metrics import find_metric


def measure_cell(
    paths: Sequence[ResultPaths], results: Sequence[dict | None], metric: str, gens_dir=None
) -> tuple[tuple[dict | None, ...], CellExamples | None]:
    """The results of a cell by a metric, and what its examples give; None where a result is missing.

    paths, results: the cell in each folder of results. metric: a name that `find_metric` knows. gens_dir: folder of the
    generators' files; by default the one that each result read. Raises InputError where a file is missing, broken or
    without texts, or does not belong to its result.
    """
    measured = [
        None if result is None else measure_result(path, result, metric, gens_dir)
        for path, result in zip(paths, results, strict=True)
    ]
    known = [of_folder for of_folder in measured if of_folder]
    for path, (_, ids, _) in zip([p for p, one in zip(paths, measured, strict=True) if one], known, strict=True):
        if ids != known[0][1]:
            raise InputError(f'{path.candidates}: other examples than {paths[0].candidates}')
    made = tuple(of_folder and of_folder[0] for of_folder in measured)
    if len(known) < len(measured):
        return made, None
    ours = cells.shared(map(cells.ours_of, made))
    by_folder = [_with_ours(by_pick, cells.ours_of(result), ours) for result, _, by_pick in known]
    return made, cells.compare_examples(by_folder, ours)


def measure_result(paths: ResultPaths, result: dict, metric: str, gens_dir=None):
    """(the result by a metric, ids of its examples, what each pick has for each example: {name: float64 [N]}).

    'rougeL' of the result and of its comparison is by the metric; arguments and errors as in `measure_cell`.
    """
    lines, settings = read_candidates(paths.candidates), text_settings(result)
    check_texts(lines, paths.candidates)
    examples = curves.read_generator_file(paths, lines, settings, gens_dir)
    if examples is None:
        folder = gens_dir or settings.get('bigbench_gen_dir') or 'its settings'
        raise InputError(
            f'{paths.candidates}: the references are missing, since {folder} has no {paths.generator}/'
            f'{paths.task}_validation.jsonl; --bigbench_gen_dir says where it is'
        )
    try:
        own = find_metric(settings.get('metric', 'rougeL'), settings.get('rouge_tokenizer', 'default'))
    except InputError as error:
        raise InputError(f'{paths.result}: settings: {error}') from error
    measured = picks.candidates_rougeL(examples, find_metric(metric, settings.get('rouge_tokenizer', 'default')))
    scores = [_scores(line, example) for line, example in zip(lines, examples, strict=True)]
    consensus = picks.consensus_of(examples, own)
    combined = _combined_picks(paths, result, examples, scores, own, consensus)
    values = picks.values_by_pick(examples, consensus, None, scores, combined)
    by_pick = picks.rougeL_by_pick(examples, measured, values)
    ours = cells.ours_of(result)
    if ours not in by_pick:
        raise InputError(f'{paths.result}: pick {ours!r} cannot be measured again; known are {", ".join(by_pick)}')
    made = {
        'rougeL': float(np.mean(by_pick[ours])),
        'pick': ours,
        'settings': settings_of(result),
        'counts': result.get('counts'),
        'comparison': picks.compare(by_pick, picks.count_ties(measured, values)),
    }
    return made, [line['example_idx'] for line in lines], by_pick


def check_texts(lines: Sequence[dict], path):
    """Raise InputError where candidates have no texts, as in results that are published without them."""
    for number, line in enumerate(lines, start=1):
        responses = [one['response'] for one in line['candidates']]
        if len(set(responses)) < len(responses):  # they are different ones by definition
            raise InputError(
                f'{path}:{number}: the candidates have no texts, so that they cannot be measured by a metric'
            )


def _scores(line, example):
    """The scores of the example's candidates, float32 [C], as the scorer gave them."""
    by_response = {one['response']: one['score'] for one in line['candidates']}
    return np.array([by_response[response] for response in example.candidates], np.float32)


def _combined_picks(paths, result, examples, scores, metric, consensus):
    """What the picks of the result's combination take the highest of; none where it has no combination."""
    stored = result.get('combination')
    if stored is None:
        return {}
    try:
        return Combination(**stored).picks(examples, scores, metric, consensus)
    except InputError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise InputError(f'{paths.result}: combination: not one ({type(error).__name__}: {error})') from error


def _with_ours(by_pick, ours_name, ours):
    """The picks with ours by the name that several folders share."""
    return {ours: by_pick[ours_name], **by_pick}
