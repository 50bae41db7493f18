"""How good a response is beside references: ROUGE-L (the paper's), exact match, chrF, or a function of one's own.

A metric has a name and two methods. scores(references, responses) -> float64 [n_responses]: of each response against
the best of the references, 0 to 1. agreement(texts) -> float64 [n, n]: of each text (row) with each as reference
(column), 1 for a text with itself unless it is blank; consensus is made of it.
"""

import importlib
import math
import numbers
import os
import sys
from collections.abc import Callable, Sequence

import numpy as np

from cappy.errors import InputError
from cappy.files.wording import cut, listed
from cappy.tasks.rouge import RougeL

METRICS = ('rougeL', 'exact_match', 'chrf')


def find_metric(name: str, rouge_tokenizer: str = 'default'):
    """The metric of a name: one of METRICS, or 'module:function', a FunctionMetric.

    rouge_tokenizer: of rougeL. Raises InputError for an unknown name and for a function that cannot be imported.
    """
    if ':' in name:
        return FunctionMetric(name, _imported(name))
    if name not in METRICS:
        raise InputError(f'metric: found {cut(name)!r}; choose {listed(METRICS)}, or module:function')
    return {'rougeL': lambda: RougeL(rouge_tokenizer), 'exact_match': ExactMatch, 'chrf': ChrF}[name]()


def title(name: str) -> str:
    """The metric's name as a heading has it."""
    return {'chrf': 'chrF', 'exact_match': 'exact match'}.get(name, name)


def measure(metric, example, responses: Sequence[str]) -> np.ndarray:
    """The metric's scores of responses to an example, float64 [n_responses].

    Raises InputError that names the example's file and line where the metric fails on it.
    """
    try:
        return metric.scores(example.references, responses)
    except InputError as error:
        raise InputError(f'{example.place}: {error}') from error


def labels_of(metric, example) -> np.ndarray:
    """How good each candidate of an example is, float64 [C]: its label where the file has them, else by the metric."""
    labels = example.labels
    return measure(metric, example, example.candidates) if labels is None else labels


def agreement(metric, example) -> np.ndarray:
    """The metric's agreement of an example's candidates, float64 [C, C]; InputError as `measure`."""
    try:
        return metric.agreement(example.candidates)
    except InputError as error:
        raise InputError(f'{example.place}: {error}') from error


class ExactMatch:
    """1 where a response equals a reference but for case and white space, else 0."""

    name = 'exact_match'

    def scores(self, references: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """1.0 for each response that equals one of the references, float64 [n_responses]."""
        wanted = set(map(_plain, references))
        return np.array([float(_plain(response) in wanted) for response in responses], np.float64)

    def agreement(self, texts: Sequence[str]) -> np.ndarray:
        """1.0 for texts that are equal and not blank, float64 [n, n]."""
        plain = [_plain(text) for text in texts]
        return np.array([[float(one == other and one != '') for other in plain] for one in plain]).reshape(
            len(plain), len(plain)
        )


class FunctionMetric:
    """A function (list of references, response) -> number from 0 to 1.

    Raises InputError where the function raises, or returns something else. Each pair of texts is measured once.
    """

    def __init__(self, name: str, function: Callable):
        self.name, self._function, self._known = name, function, {}

    def scores(self, references: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """What the function gives for each response, float64 [n_responses]."""
        return np.array([self._value(tuple(references), response) for response in responses], np.float64)

    def agreement(self, texts: Sequence[str]) -> np.ndarray:
        """The function of each text with each as the one reference, float64 [n, n]; 0 where either is blank."""
        values = [
            [self._value((other,), text) if text.strip() and other.strip() else 0.0 for other in texts]
            for text in texts
        ]
        return np.array(values, np.float64).reshape(len(texts), len(texts))

    def _value(self, references, response):
        key = (references, response)
        if key not in self._known:
            self._known[key] = self._checked(list(references), response)
        return self._known[key]

    def _checked(self, references, response):
        where = f'metric {self.name}, response {cut(repr(response))}'
        try:
            value = self._function(references, response)
        except Exception as error:
            raise InputError(f'{where}: it raised {type(error).__name__}: {error}') from error
        if isinstance(value, bool | np.bool_):
            value = float(value)
        if not isinstance(value, numbers.Real) or not math.isfinite(value) or not 0 <= value <= 1:
            raise InputError(f'{where}: it returned {cut(repr(value))}; a metric gives a number from 0 to 1')
        return float(value)


class ChrF(FunctionMetric):
    """chrF (Popovic, 2015), the F-score of character n-grams, as sacrebleu computes it, as a fraction."""

    def __init__(self):
        from sacrebleu.metrics import CHRF  # here, since most runs need none of it

        chrf = CHRF()
        # Some sums of sacrebleu are above 100 by rounding.
        super().__init__('chrf', lambda references, text: min(chrf.sentence_score(text, references).score / 100, 1.0))


def _plain(text):
    return ' '.join(text.casefold().split())


def _imported(name):
    """The function that 'module:function' names; modules of the working directory are found too."""
    module_name, _, function_name = name.partition(':')
    if not module_name or not function_name:
        raise InputError(f'metric: found {name!r}; give module:function, such as my_metric:score')
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f'metric {name}: {module_name} cannot be imported ({type(error).__name__}: {error}); give a module of '
            'this environment, or a file of the working directory without its .py'
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f'metric {name}: {module_name} has no function {function_name}')
    return function
