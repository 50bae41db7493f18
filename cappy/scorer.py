"""`Cappy`: a scorer with its tokenizer and devices, to score, rank, pick, adapt and save."""

import contextlib
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
from cappy.files.settings import check_at_least
from cappy.model import model_files, self_check, vocabulary
from cappy.model.budgets import Budget, training_tokens
from cappy.model.config import EncoderConfig
from cappy.model.devices import get_devices, is_first_process
from cappy.model.packing import check_max_length, default_max_length
from cappy.model.pretraining import Feed, pretrain
from cappy.model.scoring import check_text, score_pairs
from cappy.model.tensors import config_to_save, fresh_params, read_params, tensors_from_params
from cappy.model.tokens import describe_cut, encode_pairs, load_tokenizer
from cappy.model.training import TrainingSettings, train
from cappy.model.training_state import Saving

SUMMED_COUNTS = ('pairs', 'unique_pairs', 'truncated_pairs', 'made_equal_pairs', 'seconds_waiting')

logger = logging.getLogger(__name__)


class Cappy:
    """(instruction, response) -> how correct the response is; about 0 to 1, though nothing bounds it.

    Source: Tan et al., "Cappy: Outperforming and Boosting Large Multi-Task LMs with a Small Scorer", NeurIPS 2023.
    Made by `from_pretrained`.
    """

    def __init__(
        self, params, config, published_config, tokenizer, devices, compute_dtype, max_length, tokens_per_device, source
    ):
        self.params = params  # on the devices, float32; None while a training has them, or after one that failed
        self.config = config
        self.tokenizer = tokenizer
        self.devices = devices
        self.compute_dtype = compute_dtype
        self.max_length = max_length
        self.tokens_per_device = tokens_per_device  # of a scoring batch, None: budgets.scoring_tokens
        self.source = source  # the model directory or hub name it was read from
        self.source_digest = None  # of that model's files, as `model_files.model_digest` gives it
        self._published_config = published_config
        self._has_told_of_cut = False
        # Shapes that scoring was compiled for. A later call prefers them, so its scores may differ in the last bit
        # from those of a process that has scored nothing before.
        self._compiled = set()
        self._scoring_budget = Budget(devices.n_data)

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
        needs_head=False,
    ):
        """Read a scorer, or an encoder without a head, from a directory or a hub name.

        devices: as `get_devices` gives them, None: all of this process's; compute_dtype: 'float32' or 'bfloat16', None:
        what suits the device (parameters stay float32); max_length: tokens per pair, longer ones are truncated, None:
        what the scorer was adapted with (see `packing.default_max_length`); tokens_per_device: of a scoring batch,
        None: what suits the device; seed: of random parameters; from_scratch: take config and tokenizer alone, and make
        all parameters random; needs_head: refuse an encoder without a head, whose scores would be random.
        Raises InputError naming what is missing or does not fit.
        """
        check_at_least(1, tokens_per_device=tokens_per_device)
        check_at_least(0, seed=seed)
        path = model_files.find_model(name_or_dir)
        published = model_files.read_config(path)
        config = EncoderConfig.from_published(published, path / 'config.json')
        if max_length is not None:
            check_max_length(max_length, config, name_or_dir)
        devices = devices or get_devices()
        devices.check_heads(config, name_or_dir)
        dtype = devices.compute_dtype(compute_dtype)
        tokenizer = load_tokenizer(path)
        vocabulary.check_size(tokenizer, config.vocab_size, path)
        max_length = default_max_length(tokenizer, config) if max_length is None else max_length
        params = fresh_params(config, seed) if from_scratch else read_params(path, config, seed, needs_head)
        params = devices.put_params(params)
        scorer = cls(
            params, config, published, tokenizer, devices, dtype, max_length, tokens_per_device, str(name_or_dir)
        )
        scorer.source_digest = model_files.model_digest(path)
        return scorer

    def score(self, pairs, responses=None, *, progress=None):
        """float32 [n]: a score for each (instruction, response), in order.

        pairs: any iterable of two texts each; or, with `responses`, the instructions, as many as those. It is read
        once, one window after the other, and identical pairs of a window are scored once. progress: words for a
        progress bar. Warns the first time that pairs are truncated. Raises InputError naming the first pair that is
        not two texts.
        """
        scores, counts = self.score_with_counts(pairs, responses, progress=progress)
        if counts['truncated_pairs'] and not self._has_told_of_cut and is_first_process():
            self._has_told_of_cut = True
            logger.warning('%s (said once)', describe_cut(counts, self.max_length))
        return scores

    predict = score  # as sentence-transformers' CrossEncoder names it

    def score_with_counts(self, pairs, responses=None, *, progress=None):
        """Scores as `score` gives them, and SUMMED_COUNTS over all windows (see `scoring.score_pairs`).

        Of truncated pairs it says nothing: whoever has the counts may.
        """
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
            raise InputError(f'{self.source}: its parameters went into a training that stopped; load it again')
        self._check_device()
        return score_pairs(
            self.params,
            self.tokenizer,
            pairs if responses is None else _zipped(pairs, responses),
            self.config,
            self.devices,
            self.compute_dtype,
            self.max_length,
            self.tokens_per_device,
            self._compiled,
            progress,
            budget=self._scoring_budget,
        )

    def rank(self, instruction, responses, top_k=None):
        """The responses from best to worst, the first of equals first, as sentence-transformers' CrossEncoder ranks.

        top_k: how many of the best are returned, None: all.
        Returns a list of {'corpus_id': index in responses, 'score': float, 'text': response}.
        """
        if top_k is not None and (not isinstance(top_k, numbers.Integral) or top_k < 1):
            raise InputError(f'top_k: found {top_k!r}; give 1 or more, or None for all')
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

    def adapt(
        self,
        examples,
        settings=None,
        *,
        tokens_per_device=None,
        gradient_checkpointing=False,
        checkpoint=None,
        checkpoint_every=0,
        on_update=None,
        progress='adapting',
    ):
        """Finetune on labelled examples, in place (section 3.3).

        examples: a sequence of finetuning.FinetuningExample or (instruction, response, label), labels in [0, 1].
        settings: TrainingSettings, None: the paper's; from then on the scorer has its max_length.
        tokens_per_device: of a micro-batch, None: what suits the device.
        gradient_checkpointing: less memory, more time. checkpoint: training_state.Checkpoint that a stopped training
        left; checkpoint_every: updates between two writings of it, 0: none. on_update: called with (Update, params)
        after each update. progress: words for a progress bar, None for no bar.
        Returns training.Trained: a row for each update, and how full the packed rows were.
        Raises InputError naming the first example that is none, or a setting that is out of range.
        """
        settings = TrainingSettings() if settings is None else settings
        if not isinstance(settings, TrainingSettings):
            raise InputError(f'settings: expected TrainingSettings, found {type(settings).__name__} {settings!r:.60}')
        settings = self._with_max_length(settings)
        check_at_least(1, tokens_per_device=tokens_per_device)
        check_at_least(0, checkpoint_every=checkpoint_every)
        triples = [_triple(example, number) for number, example in enumerate(examples)]
        settings.check(len(triples), self.devices.n_data)
        unique = {}
        pair_index = np.array([unique.setdefault(triple[:2], len(unique)) for triple in triples])
        labels = np.array([triple[2] for triple in triples], np.float32)
        instructions = {}
        group = np.array([instructions.setdefault(triple[0], len(instructions)) for triple in triples])
        encoded = encode_pairs(self.tokenizer, *zip(*unique, strict=True), settings.max_length)
        if encoded.truncated.any() and is_first_process():
            logger.warning('%s', describe_cut(encoded.counts, settings.max_length, 'training pairs'))
        fingerprint = _fingerprint(settings, triples, self)
        self._check_device()
        if settings.objective != 'absolute':  # the paper's starts from 0
            self._start_at(0.5 if settings.objective == 'centred' else float(labels.mean()))
        with self._lend_params() as params:
            trained = train(
                params,
                encoded,
                pair_index,
                labels,
                group,
                config=self.config,
                devices=self.devices,
                dtype=self.compute_dtype,
                settings=settings,
                tokens_per_device=tokens_per_device,
                gradient_checkpointing=gradient_checkpointing,
                saving=checkpoint and Saving(checkpoint, checkpoint_every, fingerprint),
                on_update=on_update,
                progress=progress,
            )
        self.params, self.max_length = trained.params, settings.max_length
        return trained

    def _start_at(self, label):
        """Let a fresh head, whose bias is 0, give this label at first, rather than learn it in its first updates."""
        name = self.config.head_names[1]
        head = self.params[name]
        if float(jnp.abs(head['bias']).max()) == 0:
            bias = jax.device_put(np.full(head['bias'].shape, label, head['bias'].dtype), head['bias'].sharding)
            self.params = {**self.params, name: {**head, 'bias': bias}}

    def _with_max_length(self, settings):
        """Settings of a training whose max_length is a number: the scorer's, where they have none."""
        if settings.max_length is None:
            return dataclasses.replace(settings, max_length=self.max_length)
        check_max_length(settings.max_length, self.config, self.source)
        return settings

    def pretrain(
        self,
        stream,
        settings,
        *,
        tokens_per_device=None,
        gradient_checkpointing=False,
        checkpoint=None,
        checkpoint_every=0,
        fingerprint=None,
        on_update=None,
        progress='pretraining',
    ):
        """Train on a stream of labelled pairs, in place (sections 3.1 and 3.2).

        stream: as `pretraining.Feed` takes it, its window_size the settings'; settings: PretrainingSettings;
        fingerprint: a dict of what else, besides these, must be the same for a checkpoint to be continued; on_update:
        called with each Update while the scorer can score with the parameters after it; the rest as `adapt` takes it.
        Returns (list of Update, the Feed, which knows how full the packed rows were).
        """
        settings = self._with_max_length(settings)
        settings.check(stream.n_pairs)
        check_at_least(1, tokens_per_device=tokens_per_device)
        check_at_least(0, checkpoint_every=checkpoint_every)
        self.max_length = settings.max_length  # evaluations are at the length of the training
        platform, n_data = self.devices.platform, self.devices.n_data
        tokens = tokens_per_device or training_tokens(
            self.config, self.devices, self.compute_dtype, gradient_checkpointing
        )
        feed = Feed(stream, self.tokenizer, settings, self.config, platform, n_data, tokens)
        fingerprint = {**_shared_fingerprint(settings, self), **(fingerprint or {})}
        self._check_device()

        def evaluate(update, params):
            self.params = params
            on_update(update)
            self.params = None

        with self._lend_params() as params:
            params, updates = pretrain(
                params,
                feed,
                config=self.config,
                devices=self.devices,
                dtype=self.compute_dtype,
                gradient_checkpointing=gradient_checkpointing,
                saving=checkpoint and Saving(checkpoint, checkpoint_every, fingerprint),
                on_update=on_update and evaluate,
                progress=progress,
            )
        self.params = params
        return updates, feed

    def self_check(self):
        """The self_check.SelfCheck of this scorer on its devices, passed or not.

        On an accelerator the first scoring or training makes one by itself, and raises InputError where it has failed.
        """
        return self_check.check(self.params, self.tokenizer, self.config, self.devices, self.compute_dtype)

    def _check_device(self):
        self_check.check_once(self.params, self.tokenizer, self.config, self.devices, self.compute_dtype)

    @contextlib.contextmanager
    def _lend_params(self):
        """The parameters, for a training that gives them up; they come back where it stops before its first update."""
        params, self.params = self.params, None
        try:
            yield params
        except BaseException:
            if not any(leaf.is_deleted() for leaf in jax.tree.leaves(params)):
                self.params = params
            raise

    def save_pretrained(self, directory, *, model_card=None, overwrite=False):
        """Write a directory that PyTorch transformers, sentence-transformers' CrossEncoder and `from_pretrained` load.

        model_card: Markdown for its README.md. All three truncate pairs to this scorer's max_length, the tokenizer's
        model_max_length, and CrossEncoder leaves the scores as they are, where it would put them through a sigmoid.
        Raises InputError where it cannot be written.
        """
        self.tokenizer.model_max_length = self.max_length
        # By a program, since other hosts' shards cannot be fetched.
        whole = jax.jit(lambda params: params, out_shardings=self.devices.replicated)(self.params)
        params = jax.tree.map(np.asarray, whole)
        if is_first_process():
            model_files.write_model(
                directory,
                tensors_from_params(params),
                config_to_save(self._published_config, self.config),
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


def _triple(example, number):
    fields = dataclasses.astuple(example) if dataclasses.is_dataclass(example) else tuple(example)
    if len(fields) != 3 or not all(isinstance(text, str) for text in fields[:2]):
        raise InputError(f'example {number}: expected (instruction, response, label); found {str(example)[:80]!r}')
    for name, text in zip(('instruction', 'response'), fields[:2], strict=True):
        check_text(text, f'example {number}: {name}')
    if not isinstance(fields[2], numbers.Real) or not 0 <= fields[2] <= 1:
        raise InputError(f'example {number}: label: found {fields[2]!r}; give a number from 0 to 1')
    return fields


def _fingerprint(settings, triples, scorer):
    """What must be the same for a checkpoint of finetuning to be continued."""
    return {
        **_shared_fingerprint(settings, scorer),
        'train_size': len(triples),
        'train_data': hashlib.sha256(json.dumps(triples).encode()).hexdigest(),
        'data_parallel_devices': scorer.devices.n_data,
    }


def _shared_fingerprint(settings, scorer):
    return {
        **dataclasses.asdict(settings),
        'model_digest': scorer.source_digest,
        'compute_dtype': jnp.dtype(scorer.compute_dtype).name,
    }
