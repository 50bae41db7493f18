"""Vocabularies of model directories: the files that hold one, and whether it is the model's.

transformers makes a tokenizer of special tokens alone where a directory has no vocabulary; all words are unknown to it.
"""

import importlib.util
import logging
from pathlib import Path

from cappy.errors import InputError
from cappy.model import model_files

logger = logging.getLogger(__name__)

FAST_FILE = 'tokenizer.json'
# What each kind of model has instead where it was saved by an older library: all of these files.
SLOW_FILES = {
    'bert': ('vocab.txt',),
    'roberta': ('vocab.json', 'merges.txt'),
    'xlm-roberta': ('sentencepiece.bpe.model',),
    'camembert': ('sentencepiece.bpe.model',),
    't5': ('spiece.model',),
}
# The published model whose tokenizer fits, by kind and number of word embeddings.
PUBLISHED = {
    ('bert', 30522): 'google-bert/bert-base-uncased',
    ('bert', 28996): 'google-bert/bert-base-cased',
    ('bert', 21128): 'google-bert/bert-base-chinese',
    ('bert', 105879): 'google-bert/bert-base-multilingual-uncased',
    ('bert', 119547): 'google-bert/bert-base-multilingual-cased',
    ('roberta', 50265): 'FacebookAI/roberta-large',
    ('xlm-roberta', 250002): 'FacebookAI/xlm-roberta-large',
    ('camembert', 32005): 'almanach/camembert-base',
    ('t5', 32128): 'google-t5/t5-small',
}


def check_files(path):
    """Raise InputError where a model directory holds no vocabulary of any kind, or one that cannot be read here."""
    path = Path(path)
    if _has_fast_file(path) or not path.is_dir():  # transformers fetches the tokenizer of a hub name
        return
    found = [files for files in dict.fromkeys(SLOW_FILES.values()) if _has_all(path, files)]
    if not found:
        raise _no_vocabulary(path, SLOW_FILES.get(_config(path).get('model_type')))
    lacking = [name for name in ('sentencepiece', 'google.protobuf') if not _is_installed(name)]
    if lacking and all(name.endswith('.model') for files in found for name in files):
        packages = 'pip install sentencepiece protobuf'
        raise InputError(f'{path / found[0][0]}: needs sentencepiece to be read: {packages}, or save {FAST_FILE}')


def check_tokenizer(path, tokenizer):
    """Raise InputError where a tokenizer was made from none of the files in its directory, or knows no words."""
    path = Path(path)
    # A class may want other files than those that are there: RoBERTa's does not read a vocab.txt.
    wanted = tuple(name for key, name in tokenizer.vocab_files_names.items() if key != 'tokenizer_file')
    if path.is_dir() and not _has_fast_file(path) and not _has_all(path, wanted):
        raise _no_vocabulary(path, wanted)
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if len(words) < 2:  # T5's has a space
        raise InputError(
            f'{path}: its tokenizer has {len(tokenizer)} tokens, special ones alone: it was saved from a directory '
            f'without a vocabulary; {_remedy(_config(path))}'
        )


def check_size(tokenizer, vocab_size, path):
    """Raise InputError where the tokenizer of a model directory has tokens beyond the model's vocab_size.

    Warn where it has fewer than half as many.
    """
    vocabulary = tokenizer.get_vocab()
    largest = max(vocabulary.values())
    if largest >= vocab_size:
        raise InputError(
            f'{path}: vocab_size: {vocab_size} in config.json, but its tokenizer has tokens up to {largest}'
        )
    if len(vocabulary) < vocab_size / 2:
        logger.warning(
            '%s: its tokenizer has %d tokens and the model %d: it may be that of another model, and then scores or '
            'samples mean nothing',
            path,
            len(vocabulary),
            vocab_size,
        )


def _config(path):
    return model_files.read_config(path) if (path / 'config.json').is_file() else {}


def _has_fast_file(path):
    # Also tokenizer.4.0.json, by which some directories serve several versions of transformers.
    return any(path.glob('tokenizer.*json')) or (path / FAST_FILE).is_file()


def _has_all(path, names):
    return bool(names) and all((path / name).is_file() for name in names)


def _is_installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _no_vocabulary(path, slow_files):
    kinds = [slow_files] if slow_files else dict.fromkeys(SLOW_FILES.values())
    looked_for = ' or '.join([FAST_FILE, *(' with '.join(files) for files in kinds)])
    return InputError(f'{path}: no vocabulary; looked for {looked_for}; {_remedy(_config(path))}')


def _remedy(config):
    fitting = PUBLISHED.get((config.get('model_type'), config.get('vocab_size')))
    if fitting:
        return f'copy the tokenizer of {fitting} there, which has the same vocabulary'
    return 'copy the files of the tokenizer there that the model was trained with'
