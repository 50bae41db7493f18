import json
import shutil

import numpy as np
import pytest

from cappy.errors import InputError
from cappy.model.tokens import describe_cut, encode_pairs, load_tokenizer

PAIRS = [
    ('the cat sat on a mat and saw two red birds', 'yes'),
    ('yes', 'the cat sat on a mat and saw two red birds tell me'),
    ('the cat sat on a mat', 'two red birds paint and sing'),
    ('', 'no'),
    ('what is it?', ''),
    ('', ''),
    ('Zoë, "naïve" 😀\n\n', ' 4 < 5 '),
]


@pytest.fixture(scope='module', params=['roberta', 'bert'])
def directory(request, tiny_directories):
    return tiny_directories[request.param]


def split(encoded):
    ends = list(zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True))
    return [encoded.tokens[a:b].tolist() for a, b in ends], [encoded.types[a:b].tolist() for a, b in ends]


@pytest.mark.parametrize('max_length', [6, 9, 12, 64])
def test_pairs_are_truncated_token_by_token_as_the_tokenizer_truncates(directory, max_length):
    encoded = encode_pairs(load_tokenizer(directory), *zip(*PAIRS, strict=True), max_length)
    expected = load_tokenizer(directory)
    tokens, types = split(encoded)
    # Lists, as the reference gives them: for a lone pair the tokenizer takes an empty response for no response.
    cut = expected(*map(list, zip(*PAIRS, strict=True)), truncation=True, max_length=max_length)
    whole = expected(*map(list, zip(*PAIRS, strict=True)))
    assert tokens == cut['input_ids']
    assert types == cut.get('token_type_ids', types)
    assert encoded.truncated.tolist() == [len(ids) > max_length for ids in whole['input_ids']]
    assert encoded.lengths.tolist() == [len(x) for x in tokens]
    assert encoded.lengths.max() <= max_length
    # Some limits here cut texts and one does not: the counts are no accident of one side.
    assert encoded.truncated.any() == (max_length < 64)


@pytest.mark.parametrize('max_length', [8, 9, 15, 16])
def test_every_mixture_of_lengths_is_cut_as_the_tokenizer_cuts(directory, max_length):
    pairs = [(' '.join(['cat'] * a), ' '.join(['two'] * b)) for a in range(14) for b in range(14)]
    encoded = encode_pairs(load_tokenizer(directory), *zip(*pairs, strict=True), max_length)
    cut = load_tokenizer(directory)(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=max_length)
    assert split(encoded)[0] == cut['input_ids']
    assert 40 < encoded.truncated.sum() < len(pairs)


def test_special_tokens_within_a_text_and_texts_of_both_sides_are_as_the_tokenizer_has_them(directory):
    tokenizer = load_tokenizer(directory)
    special = ''.join(tokenizer.all_special_tokens)
    pairs = [(special, 'the cat'), ('the cat', special), ('the cat', 'the cat'), (f'{special} two', f' {special}')]
    encoded = encode_pairs(tokenizer, *zip(*pairs, strict=True), 64)
    assert split(encoded)[0] == load_tokenizer(directory)(*map(list, zip(*pairs, strict=True)))['input_ids']


def test_empty_texts_are_their_special_tokens_alone(tiny_directories):
    roberta = encode_pairs(load_tokenizer(tiny_directories['roberta']), [''], [''], 16)
    bert = encode_pairs(load_tokenizer(tiny_directories['bert']), [''], [''], 16)
    assert roberta.tokens.tolist() == [0, 2, 2, 2]
    assert bert.tokens.tolist() == [2, 3, 3]
    assert bert.types.tolist() == [0, 0, 1]


def test_padding_and_a_limit_of_the_tokenizers_own_are_overridden(directory, tmp_path):
    expected = split(encode_pairs(load_tokenizer(directory), *zip(*PAIRS, strict=True), 64))
    copy = shutil.copytree(directory, tmp_path / 'own')
    content = json.loads((copy / 'tokenizer.json').read_text())
    content['truncation'] = {'max_length': 5, 'strategy': 'OnlyFirst', 'stride': 1, 'direction': 'Left'}
    content['padding'] = {
        'strategy': {'Fixed': 20},
        'direction': 'Right',
        'pad_to_multiple_of': None,
        'pad_id': 1,
        'pad_type_id': 0,
        'pad_token': '<pad>' if '<pad>' in content['model']['vocab'] else '[PAD]',
    }
    (copy / 'tokenizer.json').write_text(json.dumps(content))
    encoded = encode_pairs(load_tokenizer(copy), *zip(*PAIRS, strict=True), 64)
    assert split(encoded) == expected
    assert not encoded.truncated.any()


def test_pairs_that_become_equal_by_the_cut_are_counted_and_no_others(directory):
    long = 'the cat sat on a mat and saw two red birds'
    pairs = [
        *(('tell me', f'{long} {end}') for end in ('yes', 'no', 'it')),
        ('tell me', 'yes'),
        ('what is it', f'{long} yes'),
        ('what is it', f'two {long} no'),
    ]
    tokenizer = load_tokenizer(directory)
    counts = encode_pairs(tokenizer, *zip(*pairs, strict=True), 12).counts
    assert counts == {'unique_pairs': 6, 'truncated_pairs': 5, 'made_equal_pairs': 3}
    assert describe_cut(counts, 12) == (
        '5 of 6 different pairs were truncated to 12 tokens, and 3 became equal to another, with the same score'
    )
    whole = encode_pairs(tokenizer, *zip(*pairs, strict=True), 64).counts
    assert whole == {'unique_pairs': 6, 'truncated_pairs': 0, 'made_equal_pairs': 0}
    # One that is whole may have the tokens of one that was cut.
    first = encode_pairs(tokenizer, ['tell me'], [long], 64)
    n = int(first.lengths[0])
    assert encode_pairs(tokenizer, ['tell me'] * 2, [long, f'{long} yes'], n).counts['made_equal_pairs'] == 2


def test_one_tokenizer_serves_limits_in_any_order(directory):
    tokenizer = load_tokenizer(directory)
    lengths = [encode_pairs(tokenizer, *zip(*PAIRS, strict=True), limit).lengths.max() for limit in (8, 64, 8)]
    assert lengths[0] == lengths[2] == 8 < lengths[1]


def test_arrays_have_the_told_types(directory):
    encoded = encode_pairs(load_tokenizer(directory), *zip(*PAIRS, strict=True), 64)
    assert [a.dtype for a in (encoded.tokens, encoded.types, encoded.offsets)] == [np.int32, np.uint8, np.int64]
    assert encoded.truncated.dtype == bool


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(InputError, match='no vocabulary; looked for tokenizer.json or vocab.txt') as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert '\n' not in str(caught.value)
