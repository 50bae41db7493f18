"""A model directory without a vocabulary is refused, whatever its kind; old kinds of vocabulary are read."""

import importlib.util
import json
import logging
import shutil

import pytest
from conftest import BERT, RECORDED, ROBERTA, word_pieces

from cappy.errors import InputError
from cappy.generate.generator import Generator
from cappy.model import model_files, vocabulary
from cappy.model.tokens import encode_pairs, load_tokenizer
from cappy.scorer import Cappy

PAIRS = [('the cat sat on a mat', 'two red birds'), ('what is it?', 'yes')]


def error_line(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def bare(folder, config, *files):
    """A directory with a config.json and copies of other files."""
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(config))
    for file in files:
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize(
    ('config', 'looked_for', 'fitting'),
    [
        (BERT | {'vocab_size': 30522}, 'tokenizer.json or vocab.txt', 'google-bert/bert-base-uncased'),
        (ROBERTA | {'vocab_size': 50265}, 'tokenizer.json or vocab.json with merges.txt', 'FacebookAI/roberta-large'),
        (
            ROBERTA | {'model_type': 'xlm-roberta', 'vocab_size': 250002},
            'tokenizer.json or sentencepiece.bpe.model',
            'FacebookAI/xlm-roberta-large',
        ),
        (ROBERTA, 'tokenizer.json or vocab.json with merges.txt', 'the files of the tokenizer there that'),
    ],
)
def test_a_scorer_without_a_vocabulary_is_refused_with_the_files_and_the_tokenizer_that_fits(
    tmp_path, config, looked_for, fitting
):
    folder = bare(tmp_path / 'm', config)
    line = error_line(Cappy.from_pretrained, folder)
    assert line.startswith(f'{folder}: no vocabulary; looked for {looked_for}; copy ')
    assert fitting in line


def test_a_generator_without_a_vocabulary_is_refused_before_weights_are_read(tmp_path):
    config = json.loads((RECORDED / 'flan-t5-tiny' / 'config.json').read_text()) | {'vocab_size': 32128}
    line = error_line(Generator.from_pretrained, bare(tmp_path / 'm', config))
    assert 'no vocabulary; looked for tokenizer.json or spiece.model; copy the tokenizer of google-t5/t5-small' in line


def test_half_a_vocabulary_and_that_of_another_kind_are_refused(tmp_path, tiny_cappy):
    (tmp_path / 'vocab.txt').write_text('[UNK]\n[PAD]\n')
    for number, file in enumerate((tiny_cappy / 'vocab.json', tmp_path / 'vocab.txt')):
        if not file.exists():
            file = write_slow_files(tmp_path, tiny_cappy)[0]
        folder = bare(tmp_path / f'm{number}', ROBERTA, file)
        assert 'no vocabulary; looked for tokenizer.json or vocab.json with merges.txt' in error_line(
            load_tokenizer, folder
        )


def test_a_tokenizer_that_was_saved_without_a_vocabulary_is_refused(tmp_path):
    from transformers import PreTrainedTokenizerFast

    content = json.loads(word_pieces().backend_tokenizer.to_str())
    content['model']['vocab'] = {name: number for number, name in enumerate(('[PAD]', '[UNK]', '[CLS]', '[SEP]'))}
    content['added_tokens'] = []
    (tmp_path / 'empty.json').write_text(json.dumps(content))
    specials = {'pad_token': '[PAD]', 'unk_token': '[UNK]', 'cls_token': '[CLS]', 'sep_token': '[SEP]'}
    empty = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / 'empty.json'), **specials)
    folder = bare(tmp_path / 'm', BERT)
    empty.save_pretrained(folder)
    line = error_line(load_tokenizer, folder)
    assert line.startswith(f'{folder}: its tokenizer has 4 tokens, special ones alone') and line.count('copy') == 1


def write_slow_files(folder, tiny_cappy):
    """vocab.json and merges.txt of a RoBERTa's tokenizer.json."""
    model = json.loads((tiny_cappy / 'tokenizer.json').read_text())['model']
    (folder / 'vocab.json').write_text(json.dumps(model['vocab']))
    merges = [merge if isinstance(merge, str) else ' '.join(merge) for merge in model['merges']]
    (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *merges]) + '\n')
    return folder / 'vocab.json', folder / 'merges.txt'


def test_vocabularies_of_older_libraries_are_read(tmp_path, tiny_cappy, tiny_directories):
    words = sorted(word_pieces().get_vocab().items(), key=lambda item: item[1])
    (tmp_path / 'vocab.txt').write_text('\n'.join(word for word, _ in words) + '\n')
    for name, config, files, whole in (
        ('bert', BERT, [tmp_path / 'vocab.txt'], tiny_directories['bert']),
        ('roberta', ROBERTA, write_slow_files(tmp_path, tiny_cappy), tiny_cappy),
    ):
        folder = bare(tmp_path / name, config, *files)
        found, expected = (
            encode_pairs(load_tokenizer(path), *zip(*PAIRS, strict=True), 64) for path in (folder, whole)
        )
        assert found.tokens.tolist() == expected.tokens.tolist()


def sentencepiece_file(path):
    """A vocabulary of sentencepiece: three special pieces and some words."""
    from sentencepiece import sentencepiece_model_pb2 as protocol

    model = protocol.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.unk_id = 1, 2
    for piece, score, kind in (('<pad>', 0, 3), ('</s>', 0, 3), ('<unk>', 0, 2), ('▁the', -1, 1), ('▁cat', -2, 1)):
        model.pieces.add(piece=piece, score=score, type=kind)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_vocabulary_of_sentencepiece_needs_the_library_and_is_read_with_it(tmp_path, monkeypatch):
    config = {'model_type': 't5', 'vocab_size': 200}
    folder = bare(tmp_path / 'm', config)
    (folder / 'spiece.model').write_bytes(b'')
    with monkeypatch.context() as patch:
        find = importlib.util.find_spec
        patch.setattr(importlib.util, 'find_spec', lambda name: None if 'sentencepiece' in name else find(name))
        line = error_line(load_tokenizer, folder)
    assert line.startswith(f'{folder}/spiece.model: needs sentencepiece to be read: pip install sentencepiece protobuf')
    pytest.importorskip('sentencepiece')
    sentencepiece_file(folder / 'spiece.model')
    assert load_tokenizer(folder)('the cat')['input_ids'] == [3, 4, 1]


def test_a_vocabulary_of_half_the_models_words_is_told(tiny_directories, caplog):
    tokenizer = load_tokenizer(tiny_directories['bert'])
    n = len(tokenizer.get_vocab())
    with caplog.at_level(logging.WARNING):
        vocabulary.check_size(tokenizer, 2 * n, 'm')
        assert caplog.messages == []
        vocabulary.check_size(tokenizer, 2 * n + 1, 'm')
    assert caplog.messages[0].startswith(
        f'm: its tokenizer has {n} tokens and the model {2 * n + 1}: it may be that of'
    )


def test_a_vocabulary_of_sentencepiece_is_fetched_and_told_apart_only_where_it_is_read(tmp_path, monkeypatch):
    folder, asked = bare(tmp_path / 'm', BERT), []
    (folder / 'model.safetensors').write_bytes(b'weights')

    def download(name, allow_patterns):
        asked.append(allow_patterns)
        return folder

    monkeypatch.setattr(model_files.huggingface_hub, 'snapshot_download', download)
    model_files.find_model('someone/some-model')
    assert asked[1:] == [['spiece.model', 'sentencepiece.bpe.model']]
    digests = []
    for content in (b'one', b'two'):
        (folder / 'spiece.model').write_bytes(content)
        digests.append(model_files.model_digest(folder))
    (folder / 'tokenizer.json').write_text('{}')
    digests.append(model_files.model_digest(folder))
    (folder / 'spiece.model').unlink()
    digests.append(model_files.model_digest(folder))
    assert len(set(digests)) == 3 and digests[2] == digests[3]
    asked.clear()
    model_files.find_model('someone/some-model')
    assert len(asked) == 1
