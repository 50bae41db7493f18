"""Samples without text, with thinking in it, and draws that are all the same."""

import pytest

from cappy.generate.sample_checks import CAUSES, describe_empty, equal_draws, has_thinking, without_thinking
from cappy.tasks.candidates import Example, Sample


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('<think>\nIt is 4.\n</think>\n\nFour.', 'Four.'),
        ('It is 4.\n</think>\nFour.', 'Four.'),  # the prompt had the beginning
        ('<think>It is 4, but', ''),
        ('Four. <think>Or five?</think> Five.', 'Four.  Five.'),
        ('<think>a</think>b<think>c</think>d', 'bd'),
        ('<think></think>', ''),
        ('a < b > c', 'a < b > c'),
    ],
)
def test_thinking_is_taken_out(text, expected):
    assert without_thinking(text) == expected
    assert has_thinking(text) == ('think>' in text)


def test_the_causes_of_empty_samples_are_said_with_what_helps():
    assert describe_empty(6, 6, {'reasoning': 6, 'cut': 0}) == (
        '6 of 6 samples are empty: the answers have no content but reasoning (raise --max_tokens, or turn the '
        'reasoning off)'
    )
    both = describe_empty(5, 9, {'cut': 3, 'refusal': 2})
    assert both.startswith('5 of 9 samples are empty: 3 answers have nothing before the limit of tokens, 2 answers')
    assert both.endswith('(raise --max_tokens; take another model, or other instructions)')
    assert describe_empty(1, 9, dict.fromkeys(CAUSES, 0)) == '1 of 9 samples are empty'


def examples(*drawn, decoding='temp1.0'):
    return [
        Example('t', n, f'q{n}', ('r',), tuple(Sample(text, decoding) for text in texts))
        for n, texts in enumerate(drawn)
    ]


def test_draws_that_are_all_the_same_are_noticed_and_others_are_not():
    (notice,) = equal_draws(examples(['a', 'a'], ['b', 'b', 'b']))
    assert notice.startswith('all samples of temp1.0 are the same in each of 2 examples (up to 3 samples)')
    for drawn in (
        examples(['a', 'a'], ['b', 'c']),
        examples(['a'], ['b']),
        examples(['', ''], ['', '']),
        examples(['a', 'a'], decoding='greedy'),
        examples(['a', 'a'], decoding='beam4'),
        examples(),
    ):
        assert equal_draws(drawn) == []
    assert 'in the example (' in equal_draws(examples(['a', 'a']))[0]
