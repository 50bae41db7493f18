"""What the tests share: paths, tiny scorers that are made for a run, and compiled programs that are kept."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from cappy.cli import flags

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / 'tests' / 'recorded'

# Programs that tests compile are kept between runs and shared by the processes of a run: a model as tiny as these takes
# longer to compile than to run. For the same reason most optimisations are off, except in the recorded runs.
COMPILATIONS = ROOT / '.cache' / 'test_compilations' / f'jax-{version("jax")}'
DAYS_KEPT = 14  # programs of code that has changed since are never read again
# Before jax is imported; started processes inherit them.
os.environ.update(
    JAX_COMPILATION_CACHE_DIR=str(COMPILATIONS),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.1',
    JAX_DISABLE_MOST_OPTIMIZATIONS='1',
    JAX_PLATFORMS='cpu',
    HF_HUB_OFFLINE='1',
    TOKENIZERS_PARALLELISM='false',
    OMP_NUM_THREADS='1',  # of PyTorch; several test processes with threads for all cores wait for one another
)

ROBERTA = {
    'model_type': 'roberta',
    'vocab_size': 2000,
    'hidden_size': 32,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'intermediate_size': 48,
    'max_position_embeddings': 100,
    'type_vocab_size': 1,
    'layer_norm_eps': 1e-5,
    'hidden_act': 'gelu',
    'pad_token_id': 1,
    'bos_token_id': 0,
    'eos_token_id': 2,
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
    'classifier_dropout': None,
    'initializer_range': 0.02,
}
BERT = {**ROBERTA, 'model_type': 'bert', 'vocab_size': 110, 'type_vocab_size': 2, 'pad_token_id': 0}
DROPOUT = {'hidden_dropout_prob': 0.1, 'attention_probs_dropout_prob': 0.1}

WORDS = ('the', 'cat', 'sat', 'on', 'a', 'mat', 'and', 'saw', 'two', 'red', 'birds', 'paint', 'sing', 'tell', 'me')
WORDS += ('what', 'is', 'it', 'yes', 'no')


def pytest_sessionstart(session):
    """Remove compiled programs that are old, and those that a killed process left empty."""
    if hasattr(session.config, 'workerinput'):  # of pytest-xdist; the process that started it has done this
        return
    for path in COMPILATIONS.glob('*'):
        stat = path.stat()
        if stat.st_size == 0 or stat.st_mtime < time.time() - DAYS_KEPT * 86400:
            path.unlink(missing_ok=True)


def load_script(path):
    """The module of a script, which finds its neighbours as a command does; path: from the repository's root."""
    spec = importlib.util.spec_from_file_location(f'script_{Path(path).stem}', ROOT / path)
    module = importlib.util.module_from_spec(spec)
    before = [*sys.path]
    sys.path.insert(0, str((ROOT / path).parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


def run_main(main, argv):
    """Run a script's main in this process as its command line does; returns the exit code."""
    try:
        flags.run(main, [str(word) for word in argv])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def fails(program, wanted, donated=()):
    """The program, which runs out of memory where wanted(number of the call, its arguments); donated ones are lost."""
    import jax

    calls = []

    def run(*arguments):
        calls.append(None)
        if wanted(len(calls) - 1, arguments):
            for place in donated:
                jax.tree.map(lambda leaf: leaf.delete(), arguments[place])
            raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 12884901888 bytes.')
        return program(*arguments)

    return run


def run_download(script, folder, gdown):
    """Run a download script in a copy of the repository's layout.

    gdown: the body of a shell script in its place; None: it is not installed. Returns the ended process.
    """
    for name in ('scripts', 'bin'):
        (folder / name).mkdir(exist_ok=True)
    for name in (script, 'drive.sh'):
        shutil.copy(ROOT / 'scripts' / name, folder / 'scripts' / name)
    if gdown is not None:
        (folder / 'bin' / 'gdown').write_text(f'#!/bin/sh\n{gdown}\n', encoding='utf-8')
        (folder / 'bin' / 'gdown').chmod(0o755)
    env = os.environ | {'PATH': f'{folder}/bin:/usr/bin:/bin', 'PYTHON': sys.executable}
    return subprocess.run(['bash', f'scripts/{script}'], cwd=folder, env=env, capture_output=True, text=True)


def word_pieces():
    """A WordPiece tokenizer that knows a few words and spells all others."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(ord('a'), ord('z') + 1)]
    vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'.,?!', *letters, *(f'##{x}' for x in letters)]
    vocabulary += [word for word in WORDS if word not in vocabulary]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token='[UNK]'))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B:1 [SEP]:1', special_tokens=[('[CLS]', 2), ('[SEP]', 3)]
    )
    specials = {'pad_token': '[PAD]', 'unk_token': '[UNK]', 'cls_token': '[CLS]', 'sep_token': '[SEP]'}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        mask_token='[MASK]',
        model_input_names=['input_ids', 'token_type_ids', 'attention_mask'],
        **specials,
    )


def random_tensors(config, seed=0):
    """Weights so large that pairs score apart, as named tensors."""
    from cappy.model.config import EncoderConfig
    from cappy.model.tensors import expected_tensors

    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_tensors(EncoderConfig.from_published(config, 'config')).items():
        is_scale = name.endswith('LayerNorm.weight')
        tensors[name] = generator.normal(1.0 if is_scale else 0.0, 0.2, shape).astype(np.float32)
    return tensors


def make_directory(folder, config, tensors=None):
    """A model directory with random weights and a tokenizer."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(config))
    save_file(random_tensors(config) if tensors is None else tensors, folder / 'model.safetensors', {'format': 'pt'})
    if config['model_type'] == 'bert':
        word_pieces().save_pretrained(folder)
    else:
        for name in ('tokenizer.json', 'tokenizer_config.json'):
            shutil.copy(RECORDED / 'tiny-cappy' / name, folder / name)
    return folder


@pytest.fixture(scope='session')
def recorded():
    return RECORDED


@pytest.fixture(scope='session')
def shared():
    """The folder of shared material next to the repository."""
    folder = ROOT.parent / 'shared'
    if not folder.is_dir():
        pytest.skip('needs ../shared')
    return folder


@pytest.fixture(scope='session')
def tiny_cappy():
    return RECORDED / 'tiny-cappy'


@pytest.fixture(scope='session')
def tiny_directories(tmp_path_factory):
    """{name: model directory}: roberta, bert, and both with dropout."""
    folder = tmp_path_factory.mktemp('models')
    configs = {
        'roberta': ROBERTA,
        'bert': BERT,
        'roberta-dropout': {**ROBERTA, **DROPOUT},
        'bert-dropout': {**BERT, **DROPOUT},
    }
    return {name: make_directory(folder / name, config) for name, config in configs.items()}


@pytest.fixture(scope='session')
def make_model(tmp_path_factory):
    """(config changes, base='roberta', tensors=None) -> a new model directory."""

    def make(changes=None, base='roberta', tensors=None):
        config = {**(BERT if base == 'bert' else ROBERTA), **(changes or {})}
        return make_directory(tmp_path_factory.mktemp('model') / base, config, tensors)

    return make


@pytest.fixture(scope='session')
def constant_scorer(tmp_path_factory):
    """A model directory whose scorer gives all pairs the same score; the recorded scorer without its head's weights."""
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(RECORDED / 'tiny-cappy', tmp_path_factory.mktemp('model') / 'constant')
    tensors = load_file(folder / 'model.safetensors')
    tensors = {name: value * (not name.startswith('classifier')) for name, value in tensors.items()}
    save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})
    return folder


@pytest.fixture(scope='session')
def sweep_data(tmp_path_factory):
    """A folder with samples of 3 tasks by 2 generators and the list of the tasks (see sweep_cells.py)."""
    from sweep_cells import GENERATORS, TASKS

    folder = tmp_path_factory.mktemp('sweep')
    recorded = RECORDED / 'inputs' / 'bigbench_flan_gens' / 'flan-t5-tiny'
    for generator in GENERATORS:
        place = folder / 'gens' / generator
        place.mkdir(parents=True)
        for task, source in zip(TASKS, ('tiny_arithmetic', 'tiny_tense', 'tiny_tense'), strict=True):
            for split in ('train', 'validation'):
                shutil.copy(recorded / f'{source}_{split}.jsonl', place / f'{task}_{split}.jsonl')
    (folder / 'subset_names.json').write_text(json.dumps(TASKS))
    return folder


@pytest.fixture(scope='session')
def texts():
    """(n, seed) -> n pairs of texts of uneven lengths; a few are equal, a few are empty."""

    def make(n, seed=0, longest=14):
        generator = np.random.default_rng(seed)

        def text():
            return ' '.join(generator.choice(WORDS, generator.integers(0, longest)))

        return [(text(), text()) for _ in range(n)]

    return make


@pytest.fixture(scope='session')
def run_python():
    """(arguments, n_devices=1, **environment) -> a started Python process whose jax has n_devices CPU devices."""

    def run(*arguments, n_devices=1, **environment):
        flags = f'--xla_force_host_platform_device_count={n_devices}'
        environment = {**os.environ, 'XLA_FLAGS': flags, **environment}
        if Path(arguments[0]).parent == ROOT / 'tests':  # no script, which finds the packages by itself
            environment['PYTHONPATH'] = str(ROOT)
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run
