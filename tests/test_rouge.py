"""rougeL against the rouge_score package, and in scripts that package does not read."""

import random

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from cappy.errors import InputError
from cappy.tasks import rouge
from cappy.tasks.rouge import RougeL

TEXT = """
running runs ran generously generalizations Happiness skies dying lying news inning
ability The a of fox foxes 2nd 100 10 1,000.50 e-mail _under_ don't it's -- ... !
sensational sensibly died ties flies agreed plastered
"""
WORDS = TEXT.split()
OTHER_WORDS = [
    'caf\xe9',
    'na\xefve',
    '\u0130stanbul',
    '\u041f\u0440\u0438\u0432\u0435\u0442',
    '\u043c\u0438\u0440',
    '\u4f60\u597d',
    '\u0645\u0631\u062d\u0628\u0627',
    '\xdf',
    '\x00',
    '\u2028',
    '\U0001f600',
]


@pytest.fixture(scope='module')
def theirs():
    return RougeScorer(['rougeL'], use_stemmer=True)


def made_up_text(generator, most=14):
    kind = generator.random()
    if kind < 0.05:
        return generator.choice(['', ' ', '\n\t', '...', '?!', '\u041c\u0438\u0440', '7'])
    if kind < 0.1:
        return ''.join(generator.choices('abcdefghijklmnopqrstuvwxyz ', k=generator.randrange(60)))
    words = generator.choices(WORDS + OTHER_WORDS, k=generator.randrange(most))
    return generator.choice([' ', '  ', '-', ', ', '\n']).join(words)


def test_scores_equal_rouge_score_to_the_last_bit(theirs):
    generator, ours = random.Random(0), RougeL()
    for _ in range(700):
        references = [made_up_text(generator) for _ in range(generator.randrange(1, 5))]
        responses = [made_up_text(generator) for _ in range(4)] + [references[-1].upper()]
        expected = [theirs.score_multi(references, response)['rougeL'].fmeasure for response in responses]
        scores = ours.scores(references, responses)
        assert scores.dtype == np.float64
        assert scores.tolist() == expected
        assert ours.score(references, responses[0]) == expected[0]


def test_long_texts_and_large_vocabularies_equal_rouge_score(theirs):
    generator = random.Random(1)
    ours = RougeL()
    # Tokens are held as characters: past 256, 55,296 (surrogates, half characters) and 65,536.
    for n_known in (0, 200, 55_200, 65_450):
        while len(ours._character_of_stem) < n_known:
            ours.scores([' '.join(str(generator.randrange(10**9)) for _ in range(50))], ['x'])
        reference, response = (' '.join(f'w{generator.randrange(200)}x' for _ in range(150)) for _ in range(2))
        assert ours.score([reference], response) == theirs.score(reference, response)['rougeL'].fmeasure > 0


def test_a_small_cache_changes_nothing(theirs):
    generator, ours = random.Random(2), RougeL(max_cached=5)
    for _ in range(100):
        reference, response = made_up_text(generator), made_up_text(generator)
        assert ours.score([reference], response) == theirs.score(reference, response)['rougeL'].fmeasure
        assert len(ours._encoded) <= 5 + 2


def test_pairwise_takes_each_text_as_reference_of_each(theirs):
    generator, ours = random.Random(3), RougeL()
    texts = ['', '\u041c\u0438\u0440', 'a'] + [made_up_text(generator) for _ in range(12)]
    pairwise = ours.pairwise(texts)
    assert pairwise.tolist() == [[theirs.score(row, column)['rougeL'].fmeasure for column in texts] for row in texts]
    assert np.array_equal(pairwise, pairwise.T)
    assert np.diag(pairwise)[:3].tolist() == [0, 0, 1]


def test_threads_change_nothing(monkeypatch):
    generator, ours = random.Random(5), RougeL()
    texts = [made_up_text(generator, 60) for _ in range(30)]
    alone = ours.pairwise(texts), ours.scores(texts[:3], texts)
    monkeypatch.setattr(rouge, '_WORTH_THREADS', -1)
    assert all(map(np.array_equal, alone, (ours.pairwise(texts), ours.scores(texts[:3], texts))))


def test_nothing_to_score_gives_empty_arrays_and_no_references_an_error():
    ours = RougeL()
    assert ours.scores(['a'], []).shape == (0,)
    assert ours.pairwise([]).shape == (0, 0)
    with pytest.raises(InputError, match='references: the list is empty'):
        ours.scores([], ['a'])
    with pytest.raises(TypeError, match='lists of texts'):
        ours.scores('abc', ['a'])
    with pytest.raises(InputError, match="rouge tokenizer 'Unicode': choose one of default, unicode"):
        RougeL('Unicode')


@pytest.mark.parametrize(
    ('text', 'n_unread', 'n_letters'),
    [
        ('\u041c\u0438\u0440 2 100', 3, 3),  # digits are read, and say nothing of the letters
        ('\u0926\u094b 1900', 1, 1),  # vowel signs are marks
        ('\u4f60\u597d', 2, 2),
        ('caf\u00e9', 1, 4),
        ('\u041c\u0438\u0440 is peace', 3, 10),
        ('\u0130s', 0, 2),  # lowered, it is an i with a dot
        ('\u0967\u0968', 2, 2),  # no letters: the digits count
        ('12 + 3', 0, 3),
        ('', 0, 0),
        ('?! \u2014 \U0001f44d', 0, 0),
    ],
)
def test_letters_that_no_token_holds_are_counted_under_the_default_tokenizer(text, n_unread, n_letters):
    assert RougeL().unread_letters(text) == (n_unread, n_letters)
    assert RougeL('unicode').unread_letters(text) == (0, n_letters)
    assert RougeL().is_unread(text) == (2 * n_unread > n_letters)


def test_texts_without_tokens_agree_with_equal_ones_and_all_others_as_by_pairwise():
    ours, texts = RougeL(), ['the cat', '+', 'a cat', ' +', '', '\u4e2d', '\u4e2d', 'A CAT', '-']
    agreement, pairwise = ours.agreement(texts), ours.pairwise(texts)
    alike = {(1, 3), (3, 1), (5, 6), (6, 5), *((n, n) for n in (1, 3, 5, 6, 8))}
    for row in range(len(texts)):
        for column in range(len(texts)):
            assert agreement[row, column] == (1.0 if (row, column) in alike else pairwise[row, column])
    assert ours.agreement([]).shape == (0, 0)


@pytest.mark.parametrize(
    ('text', 'tokens'),
    [
        # Russian, composed and decomposed; case folds.
        (
            '\u0401\u043b\u043a\u0430, \u0438 \u043c\u0438\u0440!',
            ['\u0451\u043b\u043a\u0430', '\u0438', '\u043c\u0438\u0440'],
        ),
        ('\u0415\u0308\u043b\u043a\u0430', ['\u0451\u043b\u043a\u0430']),
        # Hindi: vowel signs and the virama are marks inside words; a danda ends a sentence.
        (
            '\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e\u0964',
            ['\u0928\u092e\u0938\u094d\u0924\u0947', '\u0926\u0941\u0928\u093f\u092f\u093e'],
        ),
        # Persian: the zero-width non-joiner is inside a word.
        ('\u0645\u06cc\u200c\u0631\u0648\u0645', ['\u0645\u06cc\u0631\u0648\u0645']),
        # Chinese and Japanese: one character per token; Latin words and numbers whole.
        ('\u6211\u7231Cappy2023\u3002', ['\u6211', '\u7231', 'cappy2023']),
        ('\u30ab\u30d5\u30a7\u3067', ['\u30ab', '\u30d5', '\u30a7', '\u3067']),
        # Thai: a consonant keeps its marks; the digits make a number.
        ('\u0e19\u0e49\u0e33 \u0e51\u0e52', ['\u0e19\u0e49\u0e4d', '\u0e32', '\u0e51\u0e52']),
        # Korean is written with spaces.
        ('\ud55c\uad6d\uc5b4 \ub9d0', ['\ud55c\uad6d\uc5b4', '\ub9d0']),
        ('na\u00efve_Stra\u00dfe', ['na\u00efve', 'strasse']),
        ('\uff21\uff22\uff23 x\u200by', ['abc', 'x', 'y']),
        # Arabic and Hebrew with their points, which are optional, and a stretched word; hamza and madda stay.
        ('\u0643\u064e\u062a\u064e\u0628\u064e \u0643\u0640\u0640\u062a\u0628', ['\u0643\u062a\u0628'] * 2),
        ('\u0627\u0653\u064e\u0646 \u0633\u064f\u0626\u0650\u0644', ['\u0622\u0646', '\u0633\u0626\u0644']),
        ('\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd \ufb2a\u05dc\u05d5\u05dd', ['\u05e9\u05dc\u05d5\u05dd'] * 2),
        # The marks of other scripts tell words apart: Hindi signs, Thai tones, Vietnamese accents.
        ('\u0926\u093f\u0928 \u0926\u0940\u0928', ['\u0926\u093f\u0928', '\u0926\u0940\u0928']),
        ('\u0e19\u0e48 \u0e19\u0e49', ['\u0e19\u0e48', '\u0e19\u0e49']),
        ('ma\u0301 m\u00e0', ['m\u00e1', 'm\u00e0']),
    ],
)
def test_the_unicode_tokenizer_reads_words_of_all_scripts(text, tokens):
    assert RougeL('unicode')._words(text) == tokens


def test_the_unicode_tokenizer_scores_exact_matches_in_any_script_and_parts_of_them():
    ours = RougeL('unicode')
    for text in (
        '\u041c\u0438\u0440 \u0432\u0430\u043c',
        '\u0928\u092e\u0938\u094d\u0924\u0947',
        '\u4f60\u597d\u5417',
    ):
        assert ours.score([text], text) == 1.0
        assert RougeL().score([text], text) == 0.0
    assert ours.score(['\u4f60\u597d\u5417'], '\u4f60\u597d') == 0.8
    assert ours.score(['\u041c\u0438\u0440 \u0432\u0430\u043c'], '\u041c\u0418\u0420') == pytest.approx(2 / 3)


def test_the_unicode_tokenizer_stems_english_as_the_default_does():
    generator = random.Random(4)
    for _ in range(100):
        first, second = (' '.join(generator.choices(WORDS, k=8)) for _ in range(2))
        assert RougeL('unicode').score([first], second) == RougeL().score([first], second)
