"""Altered references."""

from collections import Counter
from random import Random

import pytest

from cappy.pretrain_data.alterations import ALTERATIONS, reordered, repeated, swapped, truncated
from cappy.tasks.rouge import RougeL

TEXT = 'Anna Smith was born in Paris in 1970.\nShe moved to New York with  her brother.'
OTHER = 'In 1999 the painter Tom Brown sold 12 pictures in London.'
SEEDS = range(200)


def test_a_truncated_text_is_a_beginning_of_the_text_and_never_all_of_it():
    texts = {truncated(TEXT, OTHER, Random(seed)) for seed in SEEDS}
    assert all(TEXT.startswith(text) and text != TEXT for text in texts)
    assert {len(text.split()) for text in texts} == set(range(1, len(TEXT.split())))


def test_a_repeated_text_is_the_text_and_some_of_its_words_again():
    for seed in SEEDS:
        altered = repeated(TEXT, OTHER, Random(seed)).split()
        words = TEXT.split()
        more = Counter(altered) - Counter(words)
        assert more and set(more) <= set(words)
        assert Counter(altered) - more == Counter(words)
        assert RougeL().score([TEXT], ' '.join(altered)) < 1


def test_a_reordered_text_has_the_same_words_in_another_order():
    for seed in SEEDS:
        altered = reordered(TEXT, OTHER, Random(seed)).split()
        assert altered != TEXT.split() and sorted(altered) == sorted(TEXT.split())


def test_numbers_are_swapped_with_those_of_the_other_text_and_the_rest_stays():
    altered = {swapped(TEXT, OTHER, Random(seed)) for seed in SEEDS}
    assert altered == {TEXT.replace('1970', number) for number in ('1999', '12')}


def test_names_are_swapped_where_there_are_no_numbers_and_long_words_where_there_are_no_names():
    names = {swapped('We met Anna there', 'He called Tom and Eva', Random(seed)) for seed in SEEDS}
    assert names == {'We met Tom there', 'We met Eva there'}
    words = {swapped('a small red house', 'the bridge is grey', Random(seed)) for seed in SEEDS}
    assert words == {'a bridge red house', 'a small red bridge', 'a bridge red bridge'}


@pytest.mark.parametrize('name', ALTERATIONS)
def test_an_alteration_depends_only_on_its_random_generator(name):
    first = [ALTERATIONS[name](TEXT, OTHER, Random(seed)) for seed in SEEDS]
    assert first == [ALTERATIONS[name](TEXT, OTHER, Random(seed)) for seed in SEEDS]
    assert TEXT not in first


def test_a_text_that_cannot_be_altered_gives_an_empty_text():
    random = Random(0)
    assert [alter('Paris', 'Paris', random) for alter in (truncated, reordered, swapped)] == ['', '', '']
    assert [alter('', '', random) for alter in ALTERATIONS.values()] == ['', '', '', '']
    assert set(repeated('Paris', '', random).split()) == {'Paris'}


def test_line_breaks_stay_with_their_words():
    lists = {reordered('- born 1970\n\n- died 1999', '', Random(seed)) for seed in SEEDS}
    assert '- died 1999 - born 1970' in lists
    assert any('\n\n' in text for text in lists)
