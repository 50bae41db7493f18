"""What a pick prefers, by hand: lengths, copies and decodings."""

import pytest

from cappy.study import preferences
from cappy.tasks.candidates import Example, Sample
from cappy.tasks.picks import ADAPTED

INSTRUCTION = 'Say  the colour of the sky at NOON today'
COPY = 'the colour of the SKY'


def line(pick, *candidates):
    """A line of candidates: (response, score, rougeL, decodings) each."""
    keys = ('response', 'score', 'rougeL', 'decodings')
    return {'pick': pick, 'candidates': [dict(zip(keys, one, strict=True)) for one in candidates]}


@pytest.fixture
def made():
    """(lines, examples): two instructions, whose best scores are not all picked."""
    first = Example(
        None, 0, INSTRUCTION, ('blue', 'light blue'), tuple(Sample(*one) for one in ((COPY, 'beam4'), ('Blue ', 's')))
    )
    samples = (('it is', 'beam4'), ('it is', 's'), ('it is', 's'), ('no', 's'))
    second = Example(None, 1, 'Is it?', ('yes',), tuple(Sample(*one) for one in samples))
    lines = [
        line(1, (COPY, 0.9, 0.0, ['beam4']), ('Blue ', 0.5, 1.0, ['s'])),
        line(0, ('it is', 0.7, 0.2, ['beam4', 's']), ('no', 0.1, 0.0, ['s'])),
    ]
    return lines, [first, second]


def test_lengths_copies_and_decodings_are_means_over_examples(made):
    found = preferences.describe(*made, ours='combined')
    rows = {row.pop('name'): row for row in found['rows']}
    assert rows == {
        'combined': {'length': (5 + 5) / 2, 'instruction': 0, 'reference': 0.5},
        ADAPTED: {'length': (len(COPY) + 5) / 2, 'instruction': 0.5, 'reference': 0},
        # Of the first instruction's samples one of two, of the second's three of four are 'it is'.
        'random candidate': {
            'length': ((len(COPY) + 5) / 2 + (3 * 5 + 2) / 4) / 2,
            'instruction': 0.25,
            'reference': 0.25,
        },
        'oracle': {'length': 5, 'instruction': 0, 'reference': 0.5},
    }
    # 'it is' was drawn once by beam4 and twice by s.
    assert found['decodings'] == [
        {'name': 'beam4', 'sampled': pytest.approx((1 / 2 + 1 / 4) / 2), 'picked': pytest.approx((0 + 1 / 3) / 2)},
        {'name': 's', 'sampled': pytest.approx((1 / 2 + 3 / 4) / 2), 'picked': pytest.approx((1 + 2 / 3) / 2)},
    ]


def test_without_the_samples_each_candidate_counts_once_and_copies_are_not_known(made):
    found = preferences.describe(made[0], None)
    assert not found['are_drawn'] and [set(row) for row in found['rows']] == [{'name', 'length'}] * 3
    sampled = {row['name']: row['sampled'] for row in found['decodings']}
    # 'it is' counts for beam4 and for s, 'no' for s.
    assert sampled == pytest.approx({'beam4': (1 / 2 + 1 / 3) / 2, 's': (1 / 2 + 2 / 3) / 2})


@pytest.mark.parametrize(
    ('text', 'is_copy'),
    [
        (COPY, True),
        ('THE\ncolour of  the sky at', True),
        ('the colour of the', False),  # four words
        ('he colour of the sk', False),  # not whole words
        ('the colour of sky at noon', False),  # a word is left out
        ('', False),
    ],
)
def test_a_copy_is_a_passage_of_five_words_but_for_case_and_white_space(text, is_copy):
    assert preferences.copies(text, INSTRUCTION) == is_copy
