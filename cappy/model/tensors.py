"""A scorer's parameters and the named tensors of its files: names, shapes, reading, and a fresh start.

A parameter's path, joined by dots, is its tensor's name in PyTorch transformers.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np

from cappy.errors import InputError
from cappy.files.wording import listed
from cappy.model import model_files
from cappy.model.encoder import Scorer

logger = logging.getLogger(__name__)


def params_shapes(config):
    """The tree of the scorer's parameters, as jax.ShapeDtypeStruct."""
    rows = {name: jnp.zeros((1, 1), jnp.int32) for name in ('tokens', 'positions', 'segments', 'starts', 'types')}
    return jax.eval_shape(lambda: Scorer(config).init(jax.random.key(0), rows))['params']


def tensor_names(params):
    """[(name, is_kernel)] of each leaf of a tree of parameters, in its order, as PyTorch transformers names them.

    A kernel is [in, out] here and [out, in] there.
    """
    names = []
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        *parents, leaf = (entry.key for entry in path)
        names.append(('.'.join([*parents, model_files.LEAF_NAMES.get(leaf, leaf)]), leaf == 'kernel'))
    return names


def expected_tensors(config):
    """{name: shape} of the tensors that a scorer with this config has, in PyTorch's layout."""
    shapes = params_shapes(config)
    return {
        name: leaf.shape[::-1] if is_kernel else leaf.shape
        for (name, is_kernel), leaf in zip(tensor_names(shapes), jax.tree.leaves(shapes), strict=True)
    }


def head_tensors(config, names):
    """Those of `names` that belong to the head and not to the encoder."""
    return [name for name in names if name.startswith(('classifier', f'{config.prefix}.pooler'))]


def params_from_tensors(tensors, config):
    """Named tensors (float32, PyTorch's layout) -> the tree of parameters; kernels are views, transposed."""
    shapes = params_shapes(config)
    leaves = [tensors[name].T if is_kernel else tensors[name] for name, is_kernel in tensor_names(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def tensors_from_params(params):
    """The tree of parameters as host arrays -> named tensors in PyTorch's layout."""
    return {
        name: np.ascontiguousarray(leaf.T if is_kernel else leaf)
        for (name, is_kernel), leaf in zip(tensor_names(params), jax.tree.leaves(params), strict=True)
    }


def read_params(path, config, seed, needs_head=False):
    """The tree of parameters of a model directory, as host arrays; a missing head is drawn from `seed`, with a
    warning, or refused where needs_head is set.

    Raises InputError naming what is missing, misshapen or damaged.
    """
    tensors = model_files.normalise_names(model_files.read_tensors(path), config.prefix)
    if 'classifier.weight' in tensors and config.prefix == 'roberta':
        raise InputError(f'{path}: classifier.weight: a BERT head under a RoBERTa config')
    check_one_output(path, tensors, config)
    expected = expected_tensors(config)
    head = head_tensors(config, expected)
    fresh = [name for name in head if name not in tensors]
    # A classifier that is there in part is a damaged file, not an encoder without a head.
    if any(name.startswith('classifier') for name in set(head) - set(fresh)):
        fresh = []
    unused = model_files.expected_name_report(tensors, {n: expected[n] for n in expected if n not in fresh}, path)
    if fresh and needs_head:
        raise InputError(f'{path}: has no head ({", ".join(fresh)}), so its scores would be random; adapt it first')
    if fresh:
        logger.warning('%s has no head: %s are random (seed %d); adapt it before use', path, ', '.join(fresh), seed)
    tensors |= _fresh_tensors({name: expected[name] for name in fresh}, config, seed)
    if unused:
        logger.info("%s: %d tensors are not the scorer's: %s", path, len(unused), ', '.join(unused[:5]))
    return params_from_tensors(tensors, config)


def check_one_output(path, tensors, config):
    """Raise InputError where named tensors have the head of a classifier of several labels."""
    name = f'{config.head_names[1]}.weight'
    shape = tensors[name].shape if name in tensors else (1,)
    if len(shape) == 2 and shape[0] != 1 and shape[1] == config.hidden_size:
        labels = model_files.read_config(path).get('id2label')
        named = f' ({listed(map(str, labels.values()))})' if isinstance(labels, dict) else ''
        raise InputError(
            f'{path}: a classifier of {shape[0]} labels{named}: {name} has shape {list(shape)}, not [1, {shape[1]}]; a '
            'scorer has one output, so take a model of one label, or the encoder that this was made from'
        )


def fresh_params(config, seed):
    """The tree of parameters of a scorer that has learned nothing, as host arrays."""
    return params_from_tensors(_fresh_tensors(expected_tensors(config), config, seed), config)


def _fresh_tensors(shapes, config, seed):
    """Initial tensors of the given {name: shape}: normal weights, biases 0, scales of norms 1."""
    generator, tensors = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        if name.endswith('LayerNorm.weight'):
            tensors[name] = np.ones(shape, np.float32)
        else:
            deviation = 0 if name.endswith('bias') else config.initializer_range
            tensors[name] = generator.normal(0, deviation, shape).astype(np.float32)
    return tensors


def config_to_save(published, config):
    """A published config.json as a saved scorer has it: other libraries then leave its scores as they are."""
    name = 'BertForSequenceClassification' if config.model_type == 'bert' else 'RobertaForSequenceClassification'
    if config.model_type in ('xlm-roberta', 'camembert'):
        name = {'xlm-roberta': 'XLMRoberta', 'camembert': 'Camembert'}[config.model_type] + 'ForSequenceClassification'
    return {
        **published,
        'architectures': [name],
        'id2label': {'0': 'LABEL_0'},
        'label2id': {'LABEL_0': 0},
        'problem_type': 'regression',
        'sentence_transformers': {'activation_fn': 'torch.nn.modules.linear.Identity'},
    }
