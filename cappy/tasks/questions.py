"""Multiple-choice questions: read from JSON lines, one per choice, graded by the scores of the choices, and summarised.

A question is one example of a dataset in the words of one template; gold choices are the right ones. Accuracies are
fractions. The reference is cappy_promptsource.py of github.com/tanyuqian/cappy.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

import numpy as np

from cappy.errors import InputError
from cappy.files import jsonl
from cappy.files.atomic import shortest_float32
from cappy.files.scored_pairs import SAME_SCORE
from cappy.files.wording import listed, shown
from cappy.tasks.statistics import CONFIDENCE, N_RESAMPLES, bootstrap_means, percentiles

# The next step where the file of questions is missing.
REMEDY = (
    'bash scripts/download_promptsource_test_data.sh fetches the file of the paper, '
    'python scripts/get_promptsource_data.py builds one'
)
GRADINGS = ('reference', 'exact')
AVERAGE = 'Average'  # a key among the datasets in what the reference prints
_SEPARATOR = '|||'  # the reference joins the parts of a question's name with it


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer choice of a question. line: its number in the file, from 1; example_idx: 1 and '1' differ."""

    line: int
    dataset_name: str
    template_name: str
    example_idx: int | str
    instruction: str
    response: str
    is_gold: bool


class Verdict(NamedTuple):
    """The grade of a question that has a gold choice. credit: 1 right, 0 wrong, between them where choices tie."""

    dataset_name: str
    template_name: str
    example_idx: int | str
    credit: float


def read_choices(path, *, sent0_key='instruction', sent1_key='response') -> list[Choice]:
    """Read a file of choices, one JSON object per line, in file order.

    sent0_key, sent1_key: names of the fields of an instruction and of a response. Raises InputError naming file, line
    and field; also where no choice is gold, since then nothing can be graded.
    """
    texts = {}  # the choices of a question repeat their texts; each is kept in memory once

    def parse(fields):
        for key, value in fields.items():
            fields[key] = texts.setdefault(value, value) if isinstance(value, str) else value
        return _parse_choice(fields, sent0_key, sent1_key)

    choices = [Choice(number, *values) for number, values in jsonl.read(path, parse, remedy=REMEDY)]
    if not choices:
        raise InputError(f'{path}: holds no choices; write one JSON object per line')
    if not any(choice.is_gold for choice in choices):
        raise InputError(f'{path}: label: 0 in all {len(choices)} lines, so none can be graded; mark right ones with 1')
    return choices


def grade(choices: Sequence[Choice], scores, grading='reference') -> list[Verdict]:
    """Verdicts on the questions that have a gold choice, in the order of their first gold choices.

    scores: [n], of each choice. grading: 'reference': the first choice with the highest score is right if its text is
    that of the last gold choice; the parts of a question's name are compared as text joined by '|||'
    (cappy_promptsource.py:22-42). 'exact': a question is right if a choice with the highest score is gold; where
    several have that score, its credit is the share of gold ones among them. Raises InputError where a score is not
    finite.
    """
    if grading not in GRADINGS:
        raise InputError(f'grading {grading!r}: choose one of {", ".join(GRADINGS)}')
    scores = np.asarray(scores)
    if not np.isfinite(scores).all():
        bad = choices[int(np.flatnonzero(~np.isfinite(scores))[0])]
        raise InputError(f'line {bad.line}: its score is not finite; the scorer has weights that are not finite')
    verdicts = []
    for indices in _questions(choices, grading).values():
        gold = [index for index in indices if choices[index].is_gold]
        if gold:
            credit = _CREDIT[grading](choices, scores, indices, gold)
            verdicts.append((gold[0], Verdict(*_key(choices[indices[0]], grading)[1:], credit)))
    return [verdict for _, verdict in sorted(verdicts, key=lambda pair: pair[0])]


def accuracy(verdicts) -> dict[str, float]:
    """Accuracy of each dataset over all its questions, in order of appearance, then 'Average', their mean."""
    credits = {}
    for verdict in verdicts:
        credits.setdefault(verdict.dataset_name, []).append(verdict.credit)
    by_dataset = {name: sum(values) / len(values) for name, values in credits.items()}
    return by_dataset | {AVERAGE: sum(by_dataset.values()) / len(by_dataset)}


def summarise(verdicts, seed=0, n_resamples=N_RESAMPLES) -> dict[str, dict]:
    """Accuracies with 95% bootstrap intervals over examples; all templates of an example are drawn together.

    {dataset: {'accuracy', 'low', 'high', 'questions', 'examples', 'templates_mean', 'templates_std' (None for a single
    template), 'templates_min', 'templates_max', 'templates': {template: {'accuracy', 'low', 'high', 'questions'}}}},
    and 'Average': {'accuracy', 'low', 'high'}, the mean over datasets, each drawn by itself. A dataset of a single
    example has no interval (None), and neither has a mean with such a dataset.
    """
    groups = {}
    for verdict in verdicts:
        groups.setdefault(verdict.dataset_name, []).append(verdict)
    summary, drawn = {}, []
    for number, (name, group) in enumerate(groups.items()):
        summary[name], resamples = _summarise_dataset(group, [seed, number], n_resamples)
        drawn.append(resamples)
    has_interval = all(entry['low'] is not None for entry in summary.values())
    low, high = percentiles(np.mean(drawn, axis=0)) if has_interval else (None, None)
    return summary | {AVERAGE: {'accuracy': accuracy(verdicts)[AVERAGE], 'low': low, 'high': high}}


# Questions that the reference grades in its own way: (what they have, what it does, what 'exact' does).
_FAULTS = {
    'several_gold': ('several right choices', 'only the last of them counts', 'each of them is right'),
    'ties': (
        'several choices with the highest score',
        'the first of them is picked',
        'right by the share of right choices among them',
    ),
    'without_gold': ('no right choice', 'left out', 'left out'),
    'gold_text_on_wrong_row': (
        'a wrong choice with the text of a right one',
        'it counts as right',
        'it counts as wrong',
    ),
    'merged': (
        "the name of another one where names are compared as text (example_idx 1 and '1')",
        'they are taken as one',
        'they are kept apart',
    ),
    'name_cut': (f'{_SEPARATOR} in dataset_name', 'the name ends there', 'the whole name counts'),
}


def count_faults(choices: Sequence[Choice], scores) -> dict[str, int]:
    """Number of questions of each kind that the two gradings treat differently, and of those without a gold choice."""
    scores = np.asarray(scores)
    counts = dict.fromkeys(_FAULTS, 0)
    for indices in _questions(choices, 'exact').values():
        gold_texts = {choices[index].response for index in indices if choices[index].is_gold}
        values = scores[indices]
        counts['several_gold'] += sum(choices[index].is_gold for index in indices) > 1
        counts['ties'] += bool(gold_texts) and int((values == values.max()).sum()) > 1
        counts['without_gold'] += not gold_texts
        counts['gold_text_on_wrong_row'] += any(
            choices[index].response in gold_texts and not choices[index].is_gold for index in indices
        )
        counts['name_cut'] += _SEPARATOR in choices[indices[0]].dataset_name
    for indices in _questions(choices, 'reference').values():
        n_exact = len({_key(choices[index], 'exact') for index in indices})
        counts['merged'] += n_exact if n_exact > 1 else 0
    return {name: int(count) for name, count in counts.items()}


def count_alike(choices: Sequence[Choice], scores) -> tuple[int, int]:
    """(questions with several different choices whose choices all have one score, questions with several)."""
    scores, n_alike, n_several = np.asarray(scores), 0, 0
    for indices in _questions(choices, 'exact').values():
        if len({choices[index].response for index in indices}) > 1:
            n_several += 1
            n_alike += bool(np.ptp(scores[indices]) <= SAME_SCORE)
    return n_alike, n_several


def describe_faults(counts, grading) -> list[str]:
    """One line per kind that occurs: what is done with it here, and by the other grading."""
    lines = []
    for name, n in counts.items():
        what, *done = _FAULTS[name]
        here, other = done if grading == 'reference' else reversed(done)
        by_other = '--grading exact' if grading == 'reference' else 'the reference'
        aside = '' if here == other else f' ({by_other}: {other})'
        if n:
            lines.append(f'{n} question{"s" if n > 1 else ""} with {what}: {here}{aside}')
    return lines


def write_choice_scores(file, choices: Sequence[Choice], scores):
    """Write one line per choice to an open file: its place, response, label and score."""
    for choice, score in zip(choices, scores, strict=True):
        line = {
            'line': choice.line,
            'dataset_name': choice.dataset_name,
            'template_name': choice.template_name,
            'example_idx': choice.example_idx,
            'response': choice.response,
            'label': int(choice.is_gold),
            'score': shortest_float32(score),
        }
        file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + '\n')


def read_published() -> dict:
    """The published accuracies, in percent: {'metric', 'sources', 'tasks': {task: {'names', 'accuracy'}}, 'average'}.

    names: what datasets of the task may be called, in lower-case letters and digits only.
    """
    text = (resources.files('cappy') / 'published' / 'promptsource_accuracy.json').read_text(encoding='utf-8')
    return json.loads(text)


def compare_with_published(summary, published) -> list[dict]:
    """Rows {'task', 'dataset', 'accuracy', 'low', 'high', 'templates_std', ..., model: published accuracy in percent}.

    summary: as `summarise` returns it. Rows of the published tasks in their order, without our keys where the file
    lacks the task; of datasets with other names; and of the means that can be compared.
    """
    unused = {name: values for name, values in summary.items() if name != AVERAGE}
    rows, shared = [], []
    for task, entry in published['tasks'].items():
        name = next((name for name in unused if _plain(name) in entry['names']), None)
        ours = {} if name is None else {'dataset': name, **unused.pop(name)}
        rows.append({'task': task, **entry['accuracy'], **ours})
        if ours:
            shared.append(rows[-1])
    rows += [{'task': name, 'dataset': name, **values} for name, values in unused.items()]
    n_tasks, models = len(published['tasks']), published['average']
    if 0 < len(shared) < n_tasks:
        means = {key: float(np.mean([row[key] for row in shared])) for key in ('accuracy', *models)}
        rows.append({'task': f'Average of these {len(shared)}', **means})
    is_same = len(shared) == n_tasks and not unused
    rows.append({'task': f'Average of the {n_tasks}', **models, **(summary[AVERAGE] if is_same else {})})
    if not is_same:
        rows.append({'task': 'Average of all here', **summary[AVERAGE]})
    return rows


def _parse_choice(fields, sent0_key, sent1_key):
    """The values of a Choice without its line."""
    for key in ('dataset_name', 'template_name', 'example_idx', sent0_key, sent1_key, 'label'):
        if key not in fields:
            raise InputError(f'{key} is missing; the line has {listed(fields)}')
    for key in ('dataset_name', 'template_name', sent0_key, sent1_key):
        if not isinstance(fields[key], str):
            raise InputError(f'{key}: expected text, found {shown(fields[key])}')
    if fields['dataset_name'] == AVERAGE:
        raise InputError(f'dataset_name: {AVERAGE} is the name of the mean over datasets; choose another name')
    example_idx = fields['example_idx']
    if isinstance(example_idx, bool) or not isinstance(example_idx, int | str):
        raise InputError(f'example_idx: expected an integer or text, found {shown(example_idx)}')
    label = fields['label']
    if not isinstance(label, int | float) or label not in (0, 1):  # true and 1.0 are 1, as in the reference
        raise InputError(f'label: expected the number 1 (right) or 0 (wrong), found {shown(label)}')
    return (
        fields['dataset_name'],
        fields['template_name'],
        example_idx,
        fields[sent0_key],
        fields[sent1_key],
        label == 1,
    )


def _key(choice, grading):
    """The question of a choice: (identity, dataset, template, example); equal identities are one question."""
    parts = choice.dataset_name, choice.template_name, choice.example_idx
    if grading == 'exact':
        return parts, *parts
    identity = _SEPARATOR.join(map(str, parts))
    return identity, identity.split(_SEPARATOR)[0], choice.template_name, str(choice.example_idx)


def _questions(choices, grading):
    """Indices of the choices of each question, by its identity, in order of first choices."""
    questions = {}
    for index, choice in enumerate(choices):
        questions.setdefault(_key(choice, grading)[0], []).append(index)
    return questions


def _credit_reference(choices, scores, indices, gold):
    pick = indices[int(np.argmax(scores[indices]))]
    return float(choices[pick].response == choices[gold[-1]].response)


def _credit_exact(choices, scores, indices, gold):
    values = scores[indices]
    tied = [index for index, value in zip(indices, values, strict=True) if value == values.max()]
    return sum(choices[index].is_gold for index in tied) / len(tied)


_CREDIT = {'reference': _credit_reference, 'exact': _credit_exact}


def _summarise_dataset(verdicts, seed, n_resamples):
    """A dataset's part of the summary, and its accuracy in each resample [n_resamples].

    T templates and E examples; an example may be missing under a template, so both sums are drawn.
    """
    templates = {name: t for t, name in enumerate(dict.fromkeys(verdict.template_name for verdict in verdicts))}
    examples = {name: e for e, name in enumerate(dict.fromkeys(verdict.example_idx for verdict in verdicts))}
    right, asked = np.zeros((2, len(templates) + 1, len(examples)))  # [T + 1, E], the last row: all templates
    for verdict in verdicts:
        t, e = templates[verdict.template_name], examples[verdict.example_idx]
        right[[t, -1], e] += verdict.credit
        asked[[t, -1], e] += 1
    drawn_right, drawn_asked = np.split(bootstrap_means(np.concatenate([right, asked]), n_resamples, seed), 2)
    with np.errstate(invalid='ignore'):
        drawn = drawn_right / drawn_asked  # [T + 1, n_resamples]; nan where no example of a template was drawn
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail], axis=1).tolist()
    means = right.sum(axis=1) / asked.sum(axis=1)
    if len(examples) == 1:  # of which every resample is the same
        low = high = [None] * len(means)
    entries = [
        {'accuracy': float(means[t]), 'low': low[t], 'high': high[t], 'questions': int(asked[t].sum())}
        for t in range(len(means))
    ]
    *by_template, everything = entries
    spread = {
        'examples': len(examples),
        'templates_mean': float(means[:-1].mean()),
        'templates_std': float(means[:-1].std(ddof=1)) if len(templates) > 1 else None,
        'templates_min': float(means[:-1].min()),
        'templates_max': float(means[:-1].max()),
        'templates': dict(zip(templates, by_template, strict=True)),
    }
    return everything | spread, drawn[-1]


def _plain(name):
    return ''.join(letter for letter in name.lower() if letter.isalnum())
