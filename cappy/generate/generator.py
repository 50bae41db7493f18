"""`Generator`: a T5 with its tokenizer and devices, which samples responses, searches them by beams, and computes their
log-likelihoods.

The encoder runs once for each instruction, whatever is decoded from it: samples, beams (`decoding_loop`) and
log-likelihoods of texts.

S tokens of an instruction, R instructions that enter the decoding batch at a time, T tokens of a text, V words of the
vocabulary. An instruction is known by its index in the list that was given.
"""

import collections
import dataclasses
import functools
import itertools
import logging
import time

import jax
import numpy as np

from cappy.files.settings import check_at_least
from cappy.generate.decoding_loop import BeamLoop, Engine, Lengths, SampleLoop
from cappy.generate.t5 import T5, load_params
from cappy.model import model_files, vocabulary
from cappy.model.budgets import FEWEST_TOKENS, MOST_SCORING_TOKENS, halved
from cappy.model.devices import get_devices
from cappy.model.scoring import check_text
from cappy.model.tokens import load_tokenizer

logger = logging.getLogger(__name__)

# Texts decoded at a time per device. On a CPU: the number at which products are fast and logits still fit the cache.
SEQUENCES_PER_DEVICE = {'cpu': 128, 'gpu': 512, 'tpu': 512}
FEWEST_SEQUENCES = 16  # four lanes of four texts: `_run_all` has no smaller batch
TEXTS_PER_LANE = 4  # samples of an instruction side by side: they share its keys and values, and wait for the longest
WINDOW = 256  # instructions worked on together: the most that a stopped run loses
SOURCE_LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512)  # tokens per instruction that a batch has room for; then doubled
ROW_LENGTHS = (16, 32, 64, 96, 128, 192, 256)  # tokens per packed row of responses


@dataclasses.dataclass(frozen=True)
class Response:
    """A text, with the natural log-likelihood of its tokens where it was asked for."""

    text: str
    log_likelihood_sum: float | None = None
    log_likelihood_mean: float | None = None


@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """The tokens of a drawn text, the end token included where it has one, and the sum of their log-probabilities."""

    tokens: np.ndarray
    log_likelihood: float


@dataclasses.dataclass(frozen=True)
class WaitingInstruction:
    """An instruction that waits for a lane.

    source: its encoder output [S, D]; inputs: arrays that the loop needs besides (the keys of its samples).
    """

    index: int
    source: np.ndarray
    inputs: dict


def _with_less(setting, unit, fewest):
    """Of a method of Generator that begins again with half of a setting where memory runs out.

    What is found depends on no batch, so that nothing but time is lost. Raises InputError where the fewest do not fit.
    """

    def decorate(method):
        @functools.wraps(method)
        def fitting(self, *args, **kwargs):
            while True:
                try:
                    return method(self, *args, **kwargs)
                except jax.errors.JaxRuntimeError as error:
                    n = getattr(self, setting)
                    setattr(self, setting, halved(n, unit, n // 2 < fewest, 'shorter texts', error))

        return fitting

    return decorate


_with_fewer_sequences = _with_less('sequences_per_device', 'texts at a time', FEWEST_SEQUENCES)
_with_fewer_tokens = _with_less('tokens_per_device', 'tokens of whole texts', FEWEST_TOKENS)


class Generator:
    """instruction -> responses, as a T5 samples them.

    n_tokens: drawn so far. n_with_unknown: responses so far that hold an unknown token, which their text leaves out.
    seconds: spent so far, by phase.
    """

    def __init__(
        self, params, config, tokenizer, devices, dtype, source, sequences_per_device=None, tokens_per_device=None
    ):
        self.params = params
        self.config = config
        self.tokenizer = tokenizer
        self.devices = devices
        self.dtype = dtype
        self.source = source
        self.sequences_per_device = sequences_per_device or SEQUENCES_PER_DEVICE.get(devices.platform, 128)
        self.tokens_per_device = tokens_per_device or MOST_SCORING_TOKENS[devices.platform]
        self.model = T5(config, dtype, devices.join)
        self.n_tokens = self.n_with_unknown = 0
        self.seconds = collections.Counter()
        self._engines = {}

        def encode(params, tokens, visible):
            return self.model.apply({'params': params}, tokens, visible, method='encode')

        def log_probabilities(params, tokens, segments, targets, source, visible):
            hidden = self.model.apply({'params': params}, tokens, segments, source, visible, method='decode')
            found = self.model.apply({'params': params}, hidden, targets.reshape(-1), method='log_probabilities')
            return found.reshape(targets.shape)

        self._encode = jax.jit(encode, out_shardings=devices.replicated)
        self._log_probabilities = jax.jit(log_probabilities, out_shardings=devices.replicated)

    @classmethod
    def from_pretrained(
        cls, name_or_dir, *, devices=None, compute_dtype=None, sequences_per_device=None, tokens_per_device=None
    ):
        """Read a T5 from a directory or a hub name.

        devices: as `devices.get_devices` returns them, None: all of this process's. compute_dtype: 'float32' or
        'bfloat16', also of the weights on the devices; None: what suits the device. sequences_per_device: texts decoded
        at a time; tokens_per_device: tokens of whole texts at a time; both bound memory and are halved where it runs
        out, None: what suits the device. Raises InputError naming what is missing or does not fit.
        """
        check_at_least(1, sequences_per_device=sequences_per_device, tokens_per_device=tokens_per_device)
        path = model_files.find_model(name_or_dir)
        devices = devices or get_devices()
        dtype = devices.compute_dtype(compute_dtype)
        tokenizer = load_tokenizer(path)
        vocab_size = model_files.read_config(path).get('vocab_size')
        if isinstance(vocab_size, int):  # else load_params says what is wrong
            vocabulary.check_size(tokenizer, vocab_size, path)  # before weights are read
        params, config = load_params(path, devices, dtype)
        return cls(params, config, tokenizer, devices, dtype, str(name_or_dir), sequences_per_device, tokens_per_device)

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
        on_drawn=None,
    ):
        """Responses to each instruction under each decoding: n_samples of sampling, one of a beam search.

        decodings: a sequence of decodings.Decoding. key_of(index, name of the decoding, number of the sample) -> uint32
        [2], as sampling.sample_key returns it. max_source_length: tokens per instruction, longer ones are truncated.
        max_length, min_length: see decoding_loop.Lengths. log_likelihood: None; 'sampled', of the tokens that were
        drawn; or 'retokenized', of the text tokenized again, cut at max_length tokens, with an end token that the
        sample may not have had (what the reference records). window: instructions worked on together. on_drawn: called
        without arguments each time that the beam search, or all samples, of an instruction are done.
        Yields (index, {name of the decoding: [Response, ..]}), a window at a time, longest instructions first. Raises
        InputError naming the first instruction that is no text.
        """
        lengths = Lengths(max_length, min_length)
        instructions = list(instructions)
        for index, instruction in enumerate(instructions):
            check_text(instruction, f'instruction {index}')
        encoded, n_truncated = self._tokenize(instructions, max_source_length)
        if n_truncated:
            logger.warning(
                '%d of %d instructions were truncated to %d tokens', n_truncated, len(encoded), max_source_length
            )
        order = sorted(range(len(encoded)), key=lambda index: (-len(encoded[index]), index))
        for first in range(0, len(order), window):
            indices = order[first : first + window]
            sources = dict(zip(indices, self.encode([encoded[index] for index in indices]), strict=True))
            drawn = self.draw(sources, decodings, n_samples, key_of, lengths, log_likelihood == 'sampled', on_drawn)
            texts = {index: self._decode(by_decoding) for index, by_decoding in drawn.items()}
            likelihoods = {}
            if log_likelihood == 'retokenized':
                likelihoods = self.log_likelihoods(sources, texts, lengths.max_length)
            for index in indices:
                yield index, _responses(drawn[index], texts[index], log_likelihood, likelihoods.get(index))

    def encode_texts(self, texts, max_length):
        """Tokens of each text, int32, cut at max_length with the end token kept."""
        return self._tokenize(texts, max_length)[0]

    def _tokenize(self, texts, max_length):
        """(tokens of each text, number of texts that were cut)."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.enable_truncation(max_length)
        encodings = backend.encode_batch(list(texts))
        tokens = [np.array(encoding.ids, np.int32) for encoding in encodings]
        return tokens, sum(bool(encoding.overflowing) for encoding in encodings)

    def _decode(self, by_decoding):
        """{name of the decoding: [TokenSequence, ..]} -> {name of the decoding: [text, ..]}."""
        unknown = self.tokenizer.unk_token_id
        self.n_with_unknown += sum(unknown in text.tokens for texts in by_decoding.values() for text in texts)
        return {
            name: self.tokenizer.batch_decode([sequence.tokens for sequence in sequences], skip_special_tokens=True)
            for name, sequences in by_decoding.items()
        }

    @_with_fewer_tokens
    def encode(self, encoded):
        """The encoder output [S, D] for each instruction's tokens, on the host."""
        start = time.perf_counter()
        sources = [None] * len(encoded)
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
        for batch, length in self._batches(order, lambda i: _round_up(len(encoded[i]), SOURCE_LENGTHS)):
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

    @_with_fewer_sequences
    def draw(self, sources, decodings, n_samples, key_of, lengths, keeps_likelihood, on_drawn=None):
        """{index: {name of the decoding: [TokenSequence, ..]}} from {index: encoder output [S, D]}.

        The other arguments are as for `generate`; keeps_likelihood: whether samples get their log-likelihood (beams
        have it always).
        """
        drawn = {index: {decoding.name: [] for decoding in decodings} for index in sources}
        on_drawn = on_drawn or (lambda: None)
        for decoding in decodings:
            if decoding.n_beams:
                engine = self._engine(BeamLoop(self.model, lengths, decoding.n_beams))
                for index, sequences in self._run_all(engine, sources, lambda index: {}, 1):
                    drawn[index][decoding.name] = sequences
                    on_drawn()
        sampled = [decoding for decoding in decodings if not decoding.n_beams]
        if sampled and n_samples:
            samples = [(decoding, number) for decoding in sampled for number in range(n_samples)]
            settings = tuple((decoding.temperature, decoding.top_k, decoding.top_p) for decoding, _ in samples)
            texts_per_lane = min(TEXTS_PER_LANE, len(samples))
            engine = self._engine(SampleLoop(self.model, lengths, settings, texts_per_lane, keeps_likelihood))

            def keys_of(index):
                return {'keys': np.stack([key_of(index, decoding.name, number) for decoding, number in samples])}

            for index, sequences in self._run_all(engine, sources, keys_of, len(samples)):
                for (decoding, _), sequence in zip(samples, sequences, strict=True):
                    drawn[index][decoding.name].append(sequence)
                on_drawn()
        return drawn

    def _engine(self, loop):
        if loop not in self._engines:
            self._engines[loop] = Engine(loop, self.devices, self.dtype)
        return self._engines[loop]

    def _run_all(self, engine, sources, inputs_of, n_texts):
        """Yields (index, [TokenSequence] * n_texts) for all sources, one class of lengths after the other."""
        start = time.perf_counter()
        # Two sizes of the batch, each compiled: the small one for the last instructions, or where there are no more.
        # Beams read each other's columns: on a CPU, 64 of them take a quarter less time each than 128.
        share = 8 if isinstance(engine.loop, BeamLoop) else 4
        n_few = max(1, self.sequences_per_device // engine.loop.texts_per_lane // share) * self.devices.n_data
        for capacity, indices in _length_classes(sources, 8 * n_few):
            instructions = [WaitingInstruction(index, sources[index], inputs_of(index)) for index in indices]
            for index, sequences in self._run_class(engine, capacity, instructions, n_texts, n_few, 4 * n_few):
                yield index, self._trimmed(sequences)
        self.seconds[type(engine.loop).__name__] += time.perf_counter() - start

    def _run_class(self, engine, capacity, instructions, n_texts, n_few, n_many):
        """Yields (index, [TokenSequence]) as instructions are done, in a batch of n_many lanes and then of n_few."""
        waiting = collections.deque(instructions)
        occupants = [None] * (n_many if len(waiting) > 2 * n_few else n_few)  # the index in each lane
        state = engine.empty(self.params, len(occupants), capacity)
        while waiting or any(index is not None for index in occupants):
            free = [lane for lane, index in enumerate(occupants) if index is None]
            while free and waiting:
                entering = [(lane, waiting.popleft()) for lane in free[:n_few] if waiting]
                free = free[n_few:]
                state = self._enter(engine, state, entering, n_few, capacity, n_texts)
                for lane, instruction in entering:
                    occupants[lane] = instruction.index
            n_occupied = sum(index is not None for index in occupants)
            # The host looks when some lanes can be filled again, or the rest fits into n_few lanes, or all are done.
            n_left = n_occupied - min(n_few, n_occupied) if waiting else n_few if n_occupied > n_few else 0
            state = engine.run(self.params, state, self._replicate(np.int32(len(occupants) - n_left)))
            read = jax.tree.map(np.asarray, engine.read(state))
            for lane in np.flatnonzero(read['done']):
                if occupants[lane] is not None:
                    texts = zip(read['tokens'][lane], read['likelihood'][lane].tolist(), strict=True)
                    yield occupants[lane], [TokenSequence(*text) for text in texts]
                    occupants[lane] = None
            if not waiting and len(occupants) > n_few:
                state, occupants = self._narrow(engine, state, occupants, n_few)

    def _narrow(self, engine, state, occupants, n_lanes):
        """(state, occupants) of n_lanes lanes that hold all that is left."""
        kept = sorted(range(len(occupants)), key=lambda lane: occupants[lane] is None)[:n_lanes]
        state = engine.narrow(state, self._replicate(np.array(kept, np.int32)))
        return state, [occupants[lane] for lane in kept]

    def _enter(self, engine, state, entering, n_rows, capacity, n_texts):
        """The state with instructions in their lanes; entering: [(lane, WaitingInstruction)], at most n_rows."""
        source = np.zeros((n_rows, capacity, self.config.d_model), self.dtype)
        visible = np.zeros((n_rows, capacity), bool)
        lanes = np.full(n_rows, np.iinfo(np.int32).max, np.int32)
        for row, (lane, instruction) in enumerate(entering):
            length = len(instruction.source)
            source[row, :length], visible[row, :length], lanes[row] = instruction.source, True, lane
        arrays = {'source': source, 'source_visible': visible, 'n_texts': np.full(n_rows, n_texts, np.int32)}
        for name in entering[0][1].inputs:
            values = [instruction.inputs[name] for _, instruction in entering]
            arrays[name] = np.stack(values + values[:1] * (n_rows - len(values)))
        return engine.fill(self.params, state, *jax.tree.map(self._replicate, (lanes, arrays)))

    def _replicate(self, array):
        """A host array on every device of every process."""
        return self.devices.put(array, self.devices.replicated)

    def _trimmed(self, sequences):
        """Drawn tokens up to and with the end token; counts them."""
        trimmed = []
        for sequence in sequences:
            ends = np.flatnonzero(sequence.tokens == self.config.eos_token_id)
            n_tokens = int(ends[0]) + 1 if len(ends) else len(sequence.tokens)
            self.n_tokens += n_tokens
            trimmed.append(TokenSequence(sequence.tokens[:n_tokens], sequence.log_likelihood))
        return trimmed

    def log_likelihoods(self, sources, texts, max_length):
        """{index: {text: (sum, mean)}} of {index: {name of the decoding: [text, ..]}}, each different text once.

        Over a text's tokens cut at max_length, its end token among them. sources: {index: encoder output [S, D]}.
        """
        start = time.perf_counter()
        pairs = [
            (index, text)
            for index, by_decoding in texts.items()
            for text in dict.fromkeys(itertools.chain.from_iterable(by_decoding.values()))
        ]
        targets = dict(zip(pairs, self.encode_texts([text for _, text in pairs], max_length), strict=True))
        likelihoods = {index: {} for index in texts}
        for (index, text), log_probs in self.target_log_probabilities(sources, targets).items():
            likelihoods[index][text] = (float(log_probs.sum()), float(log_probs.mean()))
        self.seconds['log-likelihoods'] += time.perf_counter() - start
        return likelihoods

    @_with_fewer_tokens
    def target_log_probabilities(self, sources, targets):
        """{(index, text): float32 [n]} of {(index, text): tokens [n]}: the log-probability of each token after those
        before it.

        Texts of one instruction share its encoder output, and packed rows.
        """
        rows = _pack_targets(targets, sources)
        order = sorted(range(len(rows)), key=lambda i: (rows[i].source_length, rows[i].length), reverse=True)
        found = {}
        for batch, (length, capacity) in self._batches(
            order,
            lambda i: (rows[i].length, rows[i].source_length),
            lambda shape: self._n_rows(shape[0]),
        ):
            batch_rows = [rows[i] for i in batch]
            arrays = self.devices.put_rows(self._row_arrays(batch_rows, targets, sources, length, capacity))
            names = ('tokens', 'segments', 'targets', 'source', 'visible')
            values = np.asarray(self._log_probabilities(self.params, *(arrays[name] for name in names)))
            for row_values, row in zip(values, batch_rows, strict=False):  # a last batch has empty rows
                first = 0
                for pair in row.pairs:
                    found[pair] = row_values[first : first + len(targets[pair])]
                    first += len(targets[pair])
        return found

    def _row_arrays(self, rows, targets, sources, length, capacity):
        """The arrays of a batch of packed rows, as T5.decode takes them, and the targets."""
        n_rows = self._n_rows(length)
        arrays = {name: np.zeros((n_rows, length), np.int32) for name in ('tokens', 'segments', 'targets')}
        source = np.zeros((n_rows, capacity, self.config.d_model), self.dtype)
        visible = np.zeros((n_rows, capacity), bool)
        for number, row in enumerate(rows):
            output, first = sources[row.index], 0
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
        """Rows of `length` tokens in a batch."""
        return max(1, self.tokens_per_device // length) * self.devices.n_data

    def _batches(self, order, shape_of, n_rows_of=None):
        """Yields (items of `order`, shape): neighbours of one shape, as many as a batch holds."""
        n_rows_of = n_rows_of or self._n_rows
        for shape, neighbours in itertools.groupby(order, key=shape_of):
            group, n_rows = list(neighbours), n_rows_of(shape)
            for first in range(0, len(group), n_rows):
                yield group[first : first + n_rows], shape


def _responses(drawn, texts, log_likelihood, likelihoods):
    """{name of the decoding: [Response, ..]} of one instruction."""
    responses = {}
    for name in texts:
        responses[name] = []
        for sequence, text in zip(drawn[name], texts[name], strict=True):
            total = mean = None
            if log_likelihood == 'sampled':
                total, mean = sequence.log_likelihood, sequence.log_likelihood / len(sequence.tokens)
            elif likelihoods is not None:
                total, mean = likelihoods[text]
            responses[name].append(Response(text, total, mean))
    return responses


def _round_up(length, grid):
    """The smallest length of the grid that has room for so many tokens; beyond the grid, the next power of two."""
    return next((size for size in grid if size >= length), 1 << (length - 1).bit_length())


def _length_classes(sources, n_enough):
    """[(capacity, indices)]: sources of similar lengths together, in classes large enough to keep the lanes full."""
    classes = []
    for index in sorted(sources, key=lambda index: -len(sources[index])):
        capacity = _round_up(len(sources[index]), SOURCE_LENGTHS)
        if not classes or (capacity < classes[-1][0] and len(classes[-1][1]) >= n_enough):
            classes.append((capacity, []))
        classes[-1][1].append(index)
    return classes


@dataclasses.dataclass(frozen=True)
class _PackedRow:
    """Texts of one instruction, end to end."""

    index: int
    pairs: tuple  # (index, text) each
    length: int
    source_length: int


def _pack_targets(targets, sources):
    """[_PackedRow]: each instruction's texts in order, a new row where the next one does not fit; none is split."""
    by_index = {}
    for pair in targets:
        by_index.setdefault(pair[0], []).append(pair)
    packed = []
    for index, pairs in by_index.items():
        room, rows = 0, []
        for pair in pairs:
            length = len(targets[pair])
            if length > room:
                rows.append([])
                room = max(ROW_LENGTHS[-1], length)
            rows[-1].append(pair)
            room -= length
        for row in rows:
            length = _round_up(sum(len(targets[pair]) for pair in row), ROW_LENGTHS)
            packed.append(_PackedRow(index, tuple(row), length, _round_up(len(sources[index]), SOURCE_LENGTHS)))
    return packed
