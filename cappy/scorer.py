"""`Cappy`: a scorer with its tokenizer and devices, to score, rank, pick, adapt and save."""

import dataclasses
import hashlib
import itertools
import json
import logging
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from cappy.errors import InputError
from cappy.model import model_files, packing
from cappy.model.devices import COMPUTE_DTYPES, default_dtype, get_devices, is_first_process
from cappy.model.encoder import EncoderConfig, expected_tensors, head_tensors, params_from_tensors, tensors_from_params
from cappy.model.pretraining import Feed, pretrain
from cappy.model.scoring import score_pairs
from cappy.model.tokens import encode_pairs, load_tokenizer
from cappy.model.training import TrainingSettings, train

logger = logging.getLogger(__name__)


SUMMED_COUNTS = ('pairs', 'unique_pairs', 'truncated_pairs', 'seconds_waiting')


class Cappy:
    """(instruction, response) -> how correct the response is; about 0 to 1, though nothing bounds it.

    Source: Tan et al., "Cappy: Outperforming and Boosting Large Multi-Task LMs with a Small Scorer", NeurIPS 2023.
    """

    def __init__(self, params, config, published_config, tokenizer, devices, compute_dtype, max_length, source):
        self.params = params  # on the devices, float32
        self.config = config
        self.tokenizer = tokenizer
        self.devices = devices
        self.compute_dtype = compute_dtype
        self.max_length = max_length
        self.source = source
        self._published_config = published_config

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir,
        *,
        devices=None,
        compute_dtype=None,
        max_length=None,
        tokens_per_device=None,
        seed=11111,
        from_scratch=False,
    ):
        """Read a scorer, or an encoder without a head, from a directory or a hub name.

        devices: as `devices.get_devices` gives them, None: all of this process's; compute_dtype: 'float32' or
        'bfloat16', None: what suits the device (weights stay float32); max_length: tokens of a pair, longer ones are
        truncated, None: 512 or what the model has positions for; seed: of fresh weights; from_scratch: take config and
        tokenizer alone, and make all weights afresh.
        Raises InputError naming what is missing or does not fit.
        """
        path = model_files.find_model(name_or_dir)
        published = model_files.read_config(path)
        config = EncoderConfig.from_published(published, path / 'config.json')
        max_length = min(512, config.max_length) if max_length is None else max_length
        packing.check_lengths(max_length, config, name_or_dir)
        devices = devices or get_devices()
        if compute_dtype not in (None, *COMPUTE_DTYPES):
            raise InputError(f'--compute_dtype: found {compute_dtype!r}; choose one of {", ".join(COMPUTE_DTYPES)}')
        dtype = COMPUTE_DTYPES[compute_dtype] if compute_dtype else default_dtype(devices.platform)
        tokenizer = load_tokenizer(path)
        _check_vocabulary(tokenizer, config, path)
        params = devices.put_params(_fresh_params(config, seed) if from_scratch else _read_params(path, config, seed))
        scorer = cls(params, config, published, tokenizer, devices, dtype, max_length, str(name_or_dir))
        scorer.tokens_per_device = tokens_per_device
        return scorer

    tokens_per_device = None  # of a batch, None: scoring.TOKENS_PER_DEVICE

    def score(self, pairs, responses=None, *, progress=None):
        """float32 [n]: a score for each (instruction, response), in order.

        pairs: any iterable of two texts; or, with `responses`, the instructions, as many as those. It is read once, a
        window at a time, and identical pairs of a window are scored once. progress: words for a progress bar. Raises
        InputError naming the first pair that is not two texts.
        """
        return self.score_with_counts(pairs, responses, progress=progress)[0]

    predict = score  # as sentence-transformers' CrossEncoder names it

    def score_with_counts(self, pairs, responses=None, *, progress=None):
        """Scores as `score` gives them, and the SUMMED_COUNTS of all windows (see scoring.score_pairs)."""
        scores, total = [np.empty(0, np.float32)], dict.fromkeys(SUMMED_COUNTS, 0)
        for window_scores, counts in self.score_stream(pairs, responses, progress=progress):
            scores.append(window_scores)
            total = {name: total[name] + counts[name] for name in total}
        return np.concatenate(scores), total

    def score_stream(self, pairs, responses=None, *, progress=None):
        """As `score`, in bounded memory: yields (float32 [m], counts) for each window of m pairs, in order.

        counts: see `scoring.score_pairs`.
        """
        if self.params is None:
            raise InputError(f'{self.source}: its weights went into a training that stopped; load it again')
        return score_pairs(
            self.params,
            self.tokenizer,
            pairs if responses is None else _zipped(pairs, responses),
            self.config,
            self.devices,
            self.compute_dtype,
            self.max_length,
            self.tokens_per_device,
            progress,
        )

    def rank(self, instruction, responses, top_k=None):
        """The responses from best to worst, the first of equals first, as sentence-transformers' CrossEncoder ranks.

        Returns a list of {'corpus_id': place in responses, 'score': float, 'text': response}, the best top_k.
        """
        responses = _listed(responses)
        scores = self.score([(instruction, response) for response in responses])
        order = np.argsort(-scores, kind='stable')[:top_k]
        return [{'corpus_id': int(i), 'score': float(scores[i]), 'text': responses[i]} for i in order]

    def pick(self, instruction, responses):
        """The response with the highest score, the first of equals. Raises InputError where there is none."""
        responses = _listed(responses)
        if not responses:
            raise InputError('responses: empty; a pick needs at least one')
        return self.rank(instruction, responses, top_k=1)[0]['text']

    def answer(self, instruction, choices):
        """The choice that answers the instruction best, the first of equals: zero-shot classification (section 4.1)."""
        return self.pick(instruction, choices)

    def adapt(self, examples, settings=None, *, progress=True, **options):
        """Finetune on (instruction, response, label) examples, in place.

        examples: a sequence of finetuning.FinetuningExample or (instruction, response, label), labels in [0, 1];
        settings: TrainingSettings, None: the paper's; options: tokens_per_device, gradient_checkpointing, checkpoint,
        checkpoint_every, on_update, as `training.train` takes them.
        Returns training.Trained: a row for each update, and how full the rows were.
        """
        settings = settings or TrainingSettings(max_length=self.max_length)
        triples = [_triple(example, number) for number, example in enumerate(examples)]
        settings.check(len(triples), self.devices.n_data)
        packing.check_lengths(settings.max_length, self.config, self.source)
        unique = {}
        which = np.array([unique.setdefault(triple[:2], len(unique)) for triple in triples])
        encoded = encode_pairs(self.tokenizer, *zip(*unique, strict=True), settings.max_length)
        trained = self._trained_by(
            lambda params: train(
                params,
                encoded,
                which,
                np.array([triple[2] for triple in triples], np.float32),
                config=self.config,
                devices=self.devices,
                dtype=self.compute_dtype,
                settings=settings,
                fingerprint=_fingerprint(triples, settings, self),
                progress=progress,
                **options,
            )
        )
        self.params = trained.params
        trained.packing['truncated_pairs'] = int(encoded.truncated.sum())
        return trained

    def pretrain(self, stream, settings, *, tokens_per_device=None, fingerprint=None, on_update=None, **options):
        """Train on a stream of labelled rows, in place (sections 3.1 and 3.2).

        stream: pretrainfiles.Stream, its window_size the settings'; settings: pretraining.PretrainingSettings;
        fingerprint: a dict of what else, besides these, must be the same for a checkpoint to be continued; on_update:
        called with each Update while the scorer can score with the weights after it; options: gradient_checkpointing,
        checkpoint, checkpoint_every, progress, as `training.run_updates` takes them.
        Returns (list of Update, the Feed, which knows how full the rows were).
        """
        settings.check(stream.n_rows)
        packing.check_lengths(settings.max_length, self.config, self.source)
        platform, n_data = self.devices.platform, self.devices.n_data
        feed = Feed(stream, self.tokenizer, settings, self.config, platform, n_data, tokens_per_device)

        def told(update, params):
            self.params = params
            on_update(update)
            self.params = None

        self.params, updates = self._trained_by(
            lambda params: pretrain(
                params,
                feed,
                config=self.config,
                devices=self.devices,
                dtype=self.compute_dtype,
                fingerprint={
                    **dataclasses.asdict(settings),
                    **(fingerprint or {}),
                    'compute_dtype': jnp.dtype(self.compute_dtype).name,
                },
                on_update=told if on_update else None,
                **options,
            )
        )
        return updates, feed

    def _trained_by(self, training):
        """What `training` makes of the parameters, which it is given for good; they stay where it never began."""
        params, self.params = self.params, None
        try:
            return training(params)
        except BaseException:
            unused = not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))  # stopped before the first update
            self.params = params if unused else None
            raise

    def save_pretrained(self, directory, *, model_card=None, overwrite=False):
        """Write a directory that PyTorch transformers, sentence-transformers' CrossEncoder and `from_pretrained` load.

        model_card: Markdown for its README.md. Its config tells CrossEncoder to leave the scores as they are, where it
        would put them through a sigmoid.
        """
        # By a program, since other hosts' shards cannot be fetched.
        whole = jax.jit(lambda params: params, out_shardings=self.devices.replicated)(self.params)
        params = jax.tree.map(np.asarray, whole)
        if is_first_process():
            model_files.write_checkpoint(
                directory,
                tensors_from_params(params),
                _config_to_save(self._published_config, self.config),
                tokenizer=self.tokenizer,
                model_card=model_card,
                overwrite=overwrite,
            )


def _zipped(instructions, responses):
    """Pairs of two parallel iterables; InputError where one is a text or they differ in length."""
    for name, texts in (('instructions', instructions), ('responses', responses)):
        if isinstance(texts, str):
            raise InputError(f'{name}: expected a list of texts, found one text {texts[:40]!r}')
    missing = object()
    for pair in itertools.zip_longest(instructions, responses, fillvalue=missing):
        if missing in pair:
            raise InputError('instructions and responses: one is longer than the other; give a response for each')
        yield pair


def _listed(responses):
    if isinstance(responses, str):
        raise InputError(f'responses: expected a list of texts, found one text {responses[:40]!r}')
    return list(responses)


def _read_params(path, config, seed):
    """The tree of parameters of a model directory, with a fresh head where it has none."""
    tensors = model_files.normalise_names(model_files.read_tensors(path), config.prefix)
    expected = expected_tensors(config)
    head = head_tensors(config, expected)
    fresh = [name for name in head if name not in tensors]
    # A classifier that is there in part is a damaged file, not an encoder without a head.
    if any(name.startswith('classifier') for name in set(head) - set(fresh)):
        fresh = []
    if fresh:
        logger.warning(
            '%s has no head: %s are made afresh (seed %d); adapt it before use', path, ', '.join(fresh), seed
        )
    tensors |= _fresh_tensors({name: expected[name] for name in fresh}, config, seed)
    if 'classifier.weight' in tensors and 'classifier.dense.weight' in expected:
        raise InputError(f'{path}: classifier.weight: a BERT head under a RoBERTa config')
    unused = model_files.expected_name_report(tensors, expected, path)
    if unused:
        logger.info("%s: %d tensors are not the scorer's: %s", path, len(unused), ', '.join(unused[:5]))
    return params_from_tensors(tensors, config)


def _fresh_params(config, seed):
    """The tree of parameters of a scorer that has learned nothing."""
    return params_from_tensors(_fresh_tensors(expected_tensors(config), config, seed), config)


def _fresh_tensors(shapes, config, seed):
    """Tensors of the given {name: shape} as a model begins: normal weights, biases 0, norms' scales 1."""
    generator, tensors = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        if name.endswith('LayerNorm.weight'):
            tensors[name] = np.ones(shape, np.float32)
        else:
            deviation = 0 if name.endswith('bias') else config.initializer_range
            tensors[name] = generator.normal(0, deviation, shape).astype(np.float32)
    return tensors


def _check_vocabulary(tokenizer, config, path):
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.vocab_size:
        raise InputError(
            f'{path}: vocab_size: {config.vocab_size} in config.json, but its tokenizer has tokens up to {largest}'
        )


def _triple(example, number):
    fields = dataclasses.astuple(example) if dataclasses.is_dataclass(example) else tuple(example)
    if len(fields) != 3 or not all(isinstance(text, str) for text in fields[:2]):
        raise InputError(f'example {number}: expected (instruction, response, label); found {str(example)[:80]!r}')
    if not isinstance(fields[2], numbers.Real) or not 0 <= fields[2] <= 1:
        raise InputError(f'example {number}: label: found {fields[2]!r}; give a number from 0 to 1')
    return fields


def _fingerprint(triples, settings, scorer):
    """What must be the same for a checkpoint to be continued: settings, data, base and the pairs of an update."""
    digest = hashlib.sha256(json.dumps(triples).encode()).hexdigest()
    return {
        **dataclasses.asdict(settings),
        'train_size': len(triples),
        'train_data': digest,
        'data_parallel_devices': scorer.devices.n_data,
        'model': scorer.source,
        'compute_dtype': jnp.dtype(scorer.compute_dtype).name,
    }


def _config_to_save(published, config):
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
