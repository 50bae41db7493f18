"""`Generator`: a T5 with its tokenizer and devices, to sample responses, search them by beams and weigh them.

The encoder runs once for an instruction, whatever is decoded from it: samples, beams (`cappy.slots`) and
log-likelihoods of texts.

S tokens of an instruction, R instructions that enter at a time, T tokens of a text, V words.
"""

import collections
import dataclasses
import itertools
import logging
import time

import jax
import numpy as np

from cappy.errors import InputError
from cappy.generate.decoding_loop import BeamLoop, Engine, Lengths, SampleLoop
from cappy.generate.t5 import T5, load_params
from cappy.model import model_files
from cappy.model.devices import get_devices
from cappy.model.scoring import TOKENS_PER_DEVICE
from cappy.model.tokens import load_tokenizer

logger = logging.getLogger(__name__)

# Texts decoded at a time on a device: on a CPU what makes products fast and leaves their logits in cache.
SEQUENCES_PER_DEVICE = {'cpu': 128, 'gpu': 512, 'tpu': 512}
TOGETHER = 4  # samples of an instruction side by side: they share its keys and values, and wait for the longest of them
WINDOW = 256  # instructions that are worked on together: what a stopped run loses at most
SOURCE_LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512)  # capacities for an instruction; longer ones double
ROW_LENGTHS = (16, 32, 64, 96, 128, 192, 256)  # tokens of all responses of an instruction, or of some of them


@dataclasses.dataclass(frozen=True)
class Response:
    """A text with the log-likelihood of its tokens (natural), None where it was not asked for."""

    text: str
    log_likelihood_sum: float | None = None
    log_likelihood_mean: float | None = None


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Tokens as they were drawn, the end included where there is one, and the sum of their log-probabilities."""

    tokens: np.ndarray
    log_likelihood: float


@dataclasses.dataclass(frozen=True)
class Request:
    """An instruction that waits for a slot: its place, its encoder's output [S, D], and what its loop wants besides."""

    place: int
    source: np.ndarray
    values: dict


class Generator:
    """instruction -> responses, as a T5 samples them."""

    def __init__(self, params, config, tokenizer, devices, dtype, source):
        self.params = params
        self.config = config
        self.tokenizer = tokenizer
        self.devices = devices
        self.dtype = dtype
        self.source = source
        self.model = T5(config, dtype)
        self.n_tokens = 0  # drawn so far
        self.seconds = collections.Counter()  # by phase
        self._engines = {}
        replicated = devices.replicated

        def encode(params, tokens, visible):
            return self.model.apply({'params': params}, tokens, visible, method='encode')

        def weigh(params, tokens, segments, targets, source, visible):
            hidden = self.model.apply({'params': params}, tokens, segments, source, visible, method='decode')
            found = self.model.apply({'params': params}, hidden, targets.reshape(-1), method='log_probabilities')
            return found.reshape(targets.shape)

        self._encode = jax.jit(encode, out_shardings=replicated)
        self._weigh = jax.jit(weigh, out_shardings=replicated)

    sequences_per_device = None  # None: SEQUENCES_PER_DEVICE
    tokens_per_device = None  # of a batch of whole texts, None: scoring.TOKENS_PER_DEVICE

    @classmethod
    def from_pretrained(
        cls, name_or_dir, *, devices=None, compute_dtype=None, sequences_per_device=None, tokens_per_device=None
    ):
        """Read a T5 from a directory or a hub name.

        devices: as `devices.get_devices` gives them, None: all of this process's; compute_dtype: 'float32' or
        'bfloat16', None: what suits the device; weights lie on the devices in it. Raises InputError naming what is
        missing or does not fit.
        """
        path = model_files.find_model(name_or_dir)
        devices = devices or get_devices()
        dtype = devices.compute_dtype(compute_dtype)
        tokenizer = load_tokenizer(path)
        _check_vocabulary(tokenizer, model_files.read_config(path), path)
        params, config = load_params(path, devices, dtype)
        generator = cls(params, config, tokenizer, devices, dtype, str(name_or_dir))
        generator.sequences_per_device = sequences_per_device
        generator.tokens_per_device = tokens_per_device
        return generator

    def generate(
        self,
        instructions,
        decodings,
        n_samples,
        key_of,
        *,
        max_source_length=512,
        max_length=64,
        min_length=3,
        log_likelihood=None,
        window=WINDOW,
    ):
        """Responses of each instruction under each decoding: n_samples, and one of a beam search.

        decodings: a sequence of decodings.Decoding; key_of(place, decoding's name, number) -> uint32 [2], see
        decodings.sample_key; max_length, min_length: see slots.Lengths; log_likelihood: None, 'sampled' (of the tokens
        that were drawn) or 'retokenized' (of the text, cut at max_length tokens, with an end that the sample may not
        have had: what the reference records).
        Yields (place, {decoding's name: [Response, ..]}) a window at a time, as they were worked on: by length.
        """
        lengths = Lengths(max_length, min_length)
        encoded, n_truncated = self._encoded(instructions, max_source_length)
        if n_truncated:
            told = (n_truncated, len(encoded), max_source_length)
            logger.warning('%d of %d instructions were truncated to %d tokens', *told)
        order = sorted(range(len(encoded)), key=lambda place: (-len(encoded[place]), place))
        for first in range(0, len(order), window):
            places = order[first : first + window]
            sources = dict(zip(places, self.encode([encoded[place] for place in places]), strict=True))
            drawn = self.draw(sources, decodings, n_samples, key_of, lengths, log_likelihood == 'sampled')
            texts = {place: self._decoded(by_decoding) for place, by_decoding in drawn.items()}
            weights = {}
            if log_likelihood == 'retokenized':
                weights = self.log_likelihoods(sources, texts, lengths.max_length)
            for place in places:
                yield place, self._responses(drawn[place], texts[place], log_likelihood, weights.get(place))

    def encode_texts(self, texts, max_length):
        """Tokens of each text, int32, cut at max_length with the end kept."""
        return self._encoded(texts, max_length)[0]

    def _encoded(self, texts, max_length):
        """(tokens of each text, how many were cut)."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.enable_truncation(max_length)
        encodings = backend.encode_batch(list(texts))
        tokens = [np.array(encoding.ids, np.int32) for encoding in encodings]
        return tokens, sum(bool(encoding.overflowing) for encoding in encodings)

    def encode(self, encoded):
        """The encoder's output [S, D] for each instruction's tokens, on the host."""
        start = time.perf_counter()
        sources = [None] * len(encoded)
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
        for batch, length in self._batches(order, lambda i: _capacity(len(encoded[i]), SOURCE_LENGTHS)):
            n_rows = self._n_rows(length)
            tokens = np.full((n_rows, length), self.config.pad_token_id, np.int32)
            visible = np.zeros((n_rows, length), bool)
            for row, i in enumerate(batch):
                tokens[row, : len(encoded[i])], visible[row, : len(encoded[i])] = encoded[i], True
            rows = self.devices.put_rows({'tokens': tokens, 'visible': visible})
            hidden = np.asarray(self._encode(self.params, rows['tokens'], rows['visible']))
            for row, i in enumerate(batch):
                sources[i] = hidden[row, : len(encoded[i])].copy()
        self.seconds['encoding'] += time.perf_counter() - start
        return sources

    def draw(self, sources, decodings, n_samples, key_of, lengths, keeps_likelihood):
        """{place: {decoding's name: [Drawn, ..]}} from {place: encoder's output}."""
        drawn = {place: {decoding.name: [] for decoding in decodings} for place in sources}
        for decoding in decodings:
            if decoding.n_beams:
                engine = self._engine(BeamLoop(self.model, lengths, decoding.n_beams))
                for place, found in self._work(engine, sources, lambda place: {}, 1):
                    drawn[place][decoding.name] = found
        sampled = [decoding for decoding in decodings if not decoding.n_beams]
        if sampled and n_samples:
            each = [(decoding, number) for decoding in sampled for number in range(n_samples)]
            settings = tuple((decoding.temperature, decoding.top_k, decoding.top_p) for decoding, _ in each)
            together = min(TOGETHER, len(each))
            engine = self._engine(SampleLoop(self.model, lengths, settings, together, keeps_likelihood))

            def request(place):
                return {'keys': np.stack([key_of(place, decoding.name, number) for decoding, number in each])}

            for place, found in self._work(engine, sources, request, len(each)):
                for (decoding, _), one in zip(each, found, strict=True):
                    drawn[place][decoding.name].append(one)
        return drawn

    def _engine(self, loop):
        if loop not in self._engines:
            self._engines[loop] = Engine(loop, self.devices, self.dtype)
        return self._engines[loop]

    def _work(self, engine, sources, request_of, total):
        """Yields (place, [Drawn] of its samples) of all sources, classes of like lengths one after the other."""
        per_device = self.sequences_per_device or SEQUENCES_PER_DEVICE.get(self.devices.platform, 128)
        start = time.perf_counter()
        # Numbers of slots: few for the last instructions, or where there are no more; each size is compiled.
        # Beams read each other's columns: on a CPU 64 of them take a quarter less time each than 128.
        share = 8 if isinstance(engine.loop, BeamLoop) else 4
        few = max(1, per_device // engine.loop.n_together // share) * self.devices.n_data
        for capacity, places in _classes(sources, 8 * few):
            requests = [Request(place, sources[place], request_of(place)) for place in places]
            for place, found in self._work_class(engine, capacity, requests, total, few, 4 * few):
                yield place, self._trimmed(found)
        self.seconds[type(engine.loop).__name__] += time.perf_counter() - start

    def _work_class(self, engine, capacity, requests, total, few, many):
        """Yields (place, [Drawn]) as instructions are done."""
        waiting = collections.deque(requests)
        held = [None] * (many if len(waiting) > 2 * few else few)  # places, by slot
        state = engine.empty(self.params, len(held), capacity)
        while waiting or any(place is not None for place in held):
            free = [slot for slot, place in enumerate(held) if place is None]
            while free and waiting:
                entering = [(slot, waiting.popleft()) for slot in free[:few] if waiting]
                free = free[few:]
                state = self._enter(engine, state, entering, few, capacity, total)
                for slot, one in entering:
                    held[slot] = one.place
            n_held = sum(place is not None for place in held)
            # The host looks when some slots can be filled again, or the rest fits into few, or all are done.
            n_left = n_held - min(few, n_held) if waiting else few if n_held > few else 0
            state = engine.run(self.params, state, self._on_all(np.int32(len(held) - n_left)))
            read = jax.tree.map(np.asarray, engine.read(state))
            for slot in np.flatnonzero(read['done']):
                if held[slot] is not None:
                    found = zip(read['tokens'][slot], read['likelihood'][slot].tolist(), strict=True)
                    yield held[slot], [Drawn(*one) for one in found]
                    held[slot] = None
            if not waiting and len(held) > few:
                state, held = self._narrowed(engine, state, held, few)

    def _narrowed(self, engine, state, held, few):
        """(state, held) with few slots, which hold all that is left."""
        kept = sorted(range(len(held)), key=lambda slot: held[slot] is None)[:few]
        return engine.narrow(state, self._on_all(np.array(kept, np.int32))), [held[slot] for slot in kept]

    def _enter(self, engine, state, entering, n_rows, capacity, total):
        """The state with instructions in their slots; entering: [(slot, Request)], at most n_rows."""
        source = np.zeros((n_rows, capacity, self.config.d_model), self.dtype)
        visible = np.zeros((n_rows, capacity), bool)
        slots = np.full(n_rows, np.iinfo(np.int32).max, np.int32)
        for row, (slot, one) in enumerate(entering):
            length = len(one.source)
            source[row, :length], visible[row, :length], slots[row] = one.source, True, slot
        request = {'source': source, 'source_visible': visible, 'total': np.full(n_rows, total, np.int32)}
        for name in entering[0][1].values:
            values = [one.values[name] for _, one in entering]
            request[name] = np.stack(values + values[:1] * (n_rows - len(values)))
        return engine.fill(self.params, state, *jax.tree.map(self._on_all, (slots, request)))

    def _on_all(self, array):
        """A host array on every device of every process."""
        return self.devices.put(array, self.devices.replicated)

    def _trimmed(self, found):
        """Drawn tokens up to the end."""
        trimmed = []
        for one in found:
            ends = np.flatnonzero(one.tokens == self.config.eos_token_id)
            n_tokens = int(ends[0]) + 1 if len(ends) else len(one.tokens)
            self.n_tokens += n_tokens
            trimmed.append(Drawn(one.tokens[:n_tokens], one.log_likelihood))
        return trimmed

    def _decoded(self, by_decoding):
        """{decoding's name: [text, ..]}."""
        return {
            name: self.tokenizer.batch_decode([one.tokens for one in drawn], skip_special_tokens=True)
            for name, drawn in by_decoding.items()
        }

    def log_likelihoods(self, sources, texts, max_length):
        """{place: {text: (sum, mean)}} of {place: {decoding's name: [text, ..]}}, each different text once.

        Of a text's tokens cut at max_length, its end among them.
        """
        start = time.perf_counter()
        unique = {
            place: list(dict.fromkeys(text for some in by_decoding.values() for text in some))
            for place, by_decoding in texts.items()
        }
        pairs = [(place, text) for place, some in unique.items() for text in some]
        targets = dict(zip(pairs, self.encode_texts([text for _, text in pairs], max_length), strict=True))
        weights = {place: {} for place in texts}
        for (place, text), probabilities in self.target_log_probabilities(sources, targets).items():
            weights[place][text] = (float(probabilities.sum()), float(probabilities.mean()))
        self.seconds['log-likelihoods'] += time.perf_counter() - start
        return weights

    def target_log_probabilities(self, sources, targets):
        """{(place, text): float32 [n]} of {(place, text): tokens [n]}: each token's, behind those before it.

        Texts of an instruction share its encoder's output, and rows.
        """
        rows = _rows_of(targets, sources)
        order = sorted(range(len(rows)), key=lambda i: (rows[i].source_length, rows[i].length), reverse=True)
        found = {}
        for batch, (length, capacity) in self._batches(
            order,
            lambda i: (rows[i].length, rows[i].source_length),
            lambda shape: self._n_rows(shape[0]),
        ):
            some = [rows[i] for i in batch]
            arrays = self._row_arrays(some, targets, sources, length, capacity)
            arrays = self.devices.put_rows(arrays)
            names = ('tokens', 'segments', 'targets', 'source', 'visible')
            values = np.asarray(self._weigh(self.params, *(arrays[name] for name in names)))
            for row, one in zip(values, some, strict=False):
                first = 0
                for pair in one.pairs:
                    found[pair] = row[first : first + len(targets[pair])]
                    first += len(targets[pair])
        return found

    def _row_arrays(self, rows, targets, sources, length, capacity):
        n_rows = self._n_rows(length)
        arrays = {name: np.zeros((n_rows, length), np.int32) for name in ('tokens', 'segments', 'targets')}
        source = np.zeros((n_rows, capacity, self.config.d_model), self.dtype)
        visible = np.zeros((n_rows, capacity), bool)
        for number, row in enumerate(rows):
            output, first = sources[row.place], 0
            source[number, : len(output)], visible[number, : len(output)] = output, True
            for segment, pair in enumerate(row.pairs, start=1):
                target = targets[pair]
                span = slice(first, first + len(target))
                arrays['targets'][number, span] = target
                arrays['tokens'][number, span] = [self.config.decoder_start_token_id, *target[:-1]]
                arrays['segments'][number, span] = segment
                first = span.stop
        return arrays | {'source': source, 'visible': visible}

    def _n_rows(self, length):
        """Rows of so many tokens in a batch."""
        tokens = self.tokens_per_device or TOKENS_PER_DEVICE.get(self.devices.platform, 16384)
        return max(1, tokens // length) * self.devices.n_data

    def _batches(self, order, shape_of, n_rows_of=None):
        """Yields (some of `order`, shape): neighbours of one shape, as many as a batch holds."""
        n_rows_of = n_rows_of or self._n_rows
        for shape, some in itertools.groupby(order, key=shape_of):
            some = list(some)
            n_rows = n_rows_of(shape)
            for first in range(0, len(some), n_rows):
                yield some[first : first + n_rows], shape

    def _responses(self, drawn, texts, log_likelihood, weights):
        responses = {}
        for name, some in texts.items():
            responses[name] = []
            for one, text in zip(drawn[name], some, strict=True):
                total = mean = None
                if log_likelihood == 'sampled':
                    total, mean = one.log_likelihood, one.log_likelihood / len(one.tokens)
                elif weights is not None:
                    total, mean = weights[text]
                responses[name].append(Response(text, total, mean))
        return responses


def _capacity(length, grid):
    """The least length of a grid that holds so many tokens; beyond the grid, the next power of two."""
    return next((size for size in grid if size >= length), 1 << (length - 1).bit_length())


def _classes(sources, n_enough):
    """[(capacity, places)]: sources of like lengths together, but so many of them that the slots stay full."""
    classes = []
    for place in sorted(sources, key=lambda place: -len(sources[place])):
        capacity = _capacity(len(sources[place]), SOURCE_LENGTHS)
        if not classes or (capacity < classes[-1][0] and len(classes[-1][1]) >= n_enough):
            classes.append((capacity, []))
        classes[-1][1].append(place)
    return classes


@dataclasses.dataclass(frozen=True)
class _Row:
    """Texts of one instruction, end to end."""

    place: int
    pairs: tuple
    length: int
    source_length: int


def _rows_of(targets, sources):
    """[_Row]: each instruction's texts in as few rows as hold them, none split."""
    by_place = {}
    for pair in targets:
        by_place.setdefault(pair[0], []).append(pair)
    rows = []
    for place, pairs in by_place.items():
        room, some = 0, []
        for pair in pairs:
            length = len(targets[pair])
            if length > room:
                some.append([])
                room = max(ROW_LENGTHS[-1], length)
            some[-1].append(pair)
            room -= length
        for row in some:
            length = _capacity(sum(len(targets[pair]) for pair in row), ROW_LENGTHS)
            rows.append(_Row(place, tuple(row), length, _capacity(len(sources[place]), SOURCE_LENGTHS)))
    return rows


def _check_vocabulary(tokenizer, published, path):
    """Before weights are read. published: the dict of its config.json."""
    largest, size = max(tokenizer.get_vocab().values()), published.get('vocab_size')
    if isinstance(size, int) and largest >= size:
        raise InputError(f'{path}: vocab_size: {size} in config.json, but its tokenizer has tokens up to {largest}')
