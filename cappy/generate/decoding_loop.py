"""Decoding on the device: a loop that draws samples, or searches by beams, for many instructions at once.

The decoding batch has lanes. A lane holds one instruction, its keys and values for cross-attention, and G of its texts
side by side. When a text ends, the instruction's next sample takes its place at once, inside the loop; when an
instruction is done, the loop returns to the host now and then, which puts the next instruction into the free lane. So
the batch stays full where a fixed one would wait for its longest text.

The keys and values of texts are in a ring of columns that all texts write at the same position: each step writes one
slice and needs one relative position per column, although texts began at different steps. Beams share their columns:
which of them a beam sees follows from its ancestry, and nothing is copied when beams change places.

I lanes, G texts in each, Q samples of an instruction, B beams, T tokens of a text, C columns, S tokens of an
instruction, R instructions that enter at a time, V words of the vocabulary.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cappy.errors import InputError
from cappy.generate.sampling import draw_words, top_k, uniform
from cappy.generate.t5 import T5

NEGATIVE = np.float32(-1e7)  # the score that Flax transformers gives a beam that must not be chosen


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Limits of a text in tokens, counted as transformers counts them: the start token included.

    max_length: the most; min_length: the end token is barred while the text has at most this many tokens, as in Flax
    transformers (PyTorch's bars it for one token less).
    """

    max_length: int = 64
    min_length: int = 3

    def __post_init__(self):
        if self.max_length < 2:
            raise InputError(f'max_length {self.max_length}: leaves no token after the start token; give 2 or more')

    @property
    def n_tokens(self):
        """T: tokens after the start token."""
        return self.max_length - 1

    @property
    def n_columns(self):
        """C: T rounded up to a multiple of 8, which is faster to read."""
        return -(-self.n_tokens // 8) * 8


@dataclasses.dataclass(frozen=True)
class SampleLoop:
    """Samples of an instruction under several decodings, texts_per_lane (G) of them at a time.

    settings: (temperature, top_k, top_p) of each of the Q samples.
    """

    model: T5
    lengths: Lengths
    settings: tuple
    texts_per_lane: int
    keeps_likelihood: bool

    def begin(self, entering):
        """Lanes for R instructions: keys uint32 [R, Q, 2] and n_texts int32 [R], which is Q, or 0 for an empty lane."""
        n_texts, Q = entering['n_texts'], len(self.settings)
        shape = (len(n_texts), self.texts_per_lane)
        number = jnp.broadcast_to(jnp.arange(self.texts_per_lane), shape)
        config = self.model.config
        return {
            'keys': entering['keys'],
            'n_texts': n_texts,
            'sample': jnp.where(number < n_texts[:, None], number, Q).astype(jnp.int32),  # of each text; Q: none
            'next_sample': jnp.minimum(self.texts_per_lane, n_texts),
            'age': jnp.zeros(shape, jnp.int32),  # tokens that the text has so far
            'token': jnp.full(shape, config.decoder_start_token_id, jnp.int32),
            'tokens': jnp.full((len(n_texts), Q, self.lengths.n_tokens), config.pad_token_id, jnp.int32),
            'likelihood': jnp.zeros((len(n_texts), Q), jnp.float32),
        }

    def is_done(self, lanes):
        return (lanes['sample'] == len(self.settings)).all(axis=1)

    def visible(self, lanes, distance):
        """bool [I, G, C]: a text sees the columns written since it began."""
        return distance <= lanes['age'][..., None]

    def advance(self, lanes, logits, column):
        """The lanes after a word was drawn for each text from logits [I * G, V]."""
        config, Q = self.model.config, len(self.settings)
        age, sample, shape = lanes['age'], lanes['sample'], lanes['age'].shape
        logits = logits.reshape(*shape, -1)
        is_end = jnp.arange(config.vocab_size) == config.eos_token_id
        barred = jnp.where((age < self.lengths.min_length)[..., None] & is_end, -jnp.inf, logits)
        drawn_sample = jnp.minimum(sample, Q - 1)  # what a place without a text draws is not kept
        u = uniform(jnp.take_along_axis(lanes['keys'], drawn_sample[..., None], axis=1), age)
        words = self.draw(barred.reshape(-1, config.vocab_size), u.reshape(-1), drawn_sample.reshape(-1))
        words = words.reshape(shape)

        lane = jnp.arange(len(age))[:, None]
        tokens = lanes['tokens'].at[lane, sample, age].set(words, mode='drop')
        likelihood = lanes['likelihood']
        if self.keeps_likelihood:
            picked = jnp.take_along_axis(logits, words[..., None], axis=-1)[..., 0]
            likelihood = likelihood.at[lane, sample].add(picked - jax.nn.logsumexp(logits, axis=-1), mode='drop')

        ended = ((words == config.eos_token_id) | (age + 1 >= self.lengths.n_tokens)) & (sample < Q)
        after = lanes['next_sample'][:, None] + jnp.cumsum(ended, axis=1) - 1
        after = jnp.where(after < lanes['n_texts'][:, None], after, Q)
        restarts = ended | (sample == Q)
        return lanes | {
            'sample': jnp.where(ended, after, sample).astype(jnp.int32),
            'next_sample': lanes['next_sample'] + ended.sum(axis=1),
            'age': jnp.where(restarts, 0, age + 1),
            'token': jnp.where(restarts, config.decoder_start_token_id, words),
            'tokens': tokens,
            'likelihood': likelihood,
        }

    def draw(self, logits, u, sample):
        """int32 [N]: a word for each text under its sample's decoding; logits [N, V], u and sample [N]."""
        temperature, k, p = (np.array(values) for values in zip(*self.settings, strict=True))
        settings = (
            jnp.asarray(temperature, jnp.float32)[sample],
            jnp.asarray(k, jnp.int32)[sample],
            jnp.asarray(p, jnp.float32)[sample],
        )
        is_open = bool((k == 0).any())
        return draw_words(logits, u, settings, int(k.max()), is_open, bool(((k == 0) & (p < 1)).any()))

    def results(self, lanes):
        """tokens [I, Q, T] and likelihood [I, Q]."""
        return {name: lanes[name] for name in ('tokens', 'likelihood')}


@dataclasses.dataclass(frozen=True)
class BeamLoop:
    """Beam search as transformers' FlaxGenerationMixin._beam_search does it (4.36), for each instruction by itself.

    An instruction's own beams decide when it stops; there, the whole batch continues until no instruction can improve.
    """

    model: T5
    lengths: Lengths
    n_beams: int

    @property
    def texts_per_lane(self):
        return self.n_beams

    def begin(self, entering):
        """Lanes for R instructions; n_texts int32 [R]: 0 for an empty lane."""
        n, B, T = len(entering['n_texts']), self.n_beams, self.lengths.n_tokens
        config = self.model.config
        no_text = jnp.full((n, B, T), config.pad_token_id, jnp.int32)
        return {
            'done': entering['n_texts'] == 0,
            'age': jnp.zeros(n, jnp.int32),
            'token': jnp.full((n, B), config.decoder_start_token_id, jnp.int32),
            'ancestry': jnp.zeros((n, B, self.lengths.n_columns), jnp.int32),  # the beam that wrote each column
            'running': no_text,
            'running_scores': jnp.broadcast_to(jnp.where(jnp.arange(B) == 0, 0, NEGATIVE), (n, B)),
            'finished': no_text,
            'finished_scores': jnp.full((n, B), NEGATIVE),
            'is_finished': jnp.zeros((n, B), bool),
        }

    def is_done(self, lanes):
        return lanes['done']

    def visible(self, lanes, distance):
        """bool [I, B, B, C]: beam b sees a column of the beam that was its ancestor then."""
        beams = jnp.arange(self.n_beams)
        # This step's own column is not in the ancestry yet.
        ancestor = jnp.where(distance == 0, beams[:, None], lanes['ancestry'])
        within = distance <= lanes['age'][:, None]
        return (ancestor[:, :, None] == beams[:, None]) & within[:, None, None]

    def advance(self, lanes, logits, column):
        """The lanes after one step of every search with logits [I * B, V]; those that are done stay as they are."""
        config, B, V = self.model.config, self.n_beams, self.model.config.vocab_size
        age = lanes['age']
        log_probs = jax.nn.log_softmax(logits, axis=-1).reshape(-1, B, V)
        is_end = jnp.arange(V) == config.eos_token_id
        log_probs = jnp.where((age < self.lengths.min_length)[:, None, None] & is_end, -jnp.inf, log_probs)
        total = (log_probs + lanes['running_scores'][..., None]).reshape(-1, B * V)
        scores, position = top_k(total, 2 * B)  # twice as many, since B of them may end now
        parents, words = position // V, position % V
        ended = words == config.eos_token_id
        at_age = jnp.arange(self.lengths.n_tokens) == age[:, None, None]
        texts = jnp.where(at_age, words[..., None], _take_beams(lanes['running'], parents))

        running_scores = scores + ended * NEGATIVE
        chosen = jax.lax.top_k(running_scores, B)[1]
        ancestry = jnp.where(jnp.arange(self.lengths.n_columns) == column, jnp.arange(B)[:, None], lanes['ancestry'])

        ended_scores = scores / (age + 1)[:, None].astype(jnp.float32) + ~ended * NEGATIVE
        merged_scores = jnp.concatenate([lanes['finished_scores'], ended_scores], axis=1)
        best = jax.lax.top_k(merged_scores, B)[1]
        new = {
            'age': age + 1,
            'token': _take_beams(words, chosen),
            'ancestry': _take_beams(ancestry, _take_beams(parents, chosen)),
            'running': _take_beams(texts, chosen),
            'running_scores': _take_beams(running_scores, chosen),
            'finished': _take_beams(jnp.concatenate([lanes['finished'], texts], axis=1), best),
            'finished_scores': _take_beams(merged_scores, best),
            'is_finished': _take_beams(jnp.concatenate([lanes['is_finished'], ended], axis=1), best),
        }
        new['done'] = self.cannot_improve(new)
        kept = {name: _where_lane(lanes['done'], lanes[name], value) for name, value in new.items()}
        return lanes | kept

    def cannot_improve(self, lanes):
        """bool [I]: the text has its full length, or the best running beam is no better than the worst finished one."""
        best = lanes['running_scores'][:, :1] / lanes['age'][:, None].astype(jnp.float32)
        worst = jnp.where(lanes['is_finished'], lanes['finished_scores'].min(axis=1, keepdims=True), NEGATIVE)
        return (lanes['age'] >= self.lengths.n_tokens) | ~(best > worst).any(axis=1)

    def results(self, lanes):
        """tokens [I, 1, T] and likelihood [I, 1] of the best text."""
        any_finished = lanes['is_finished'].any(axis=1)
        tokens = jnp.where(any_finished[:, None], lanes['finished'][:, 0], lanes['running'][:, 0])
        n_tokens = jnp.argmax(tokens == self.model.config.eos_token_id, axis=1) + 1
        finished, running = lanes['finished_scores'][:, 0] * n_tokens, lanes['running_scores'][:, 0]
        return {'tokens': tokens[:, None], 'likelihood': jnp.where(any_finished, finished, running)[:, None]}


def _take_beams(values, beams):
    """values [I, B, ..] at beams [I, M] -> [I, M, ..]."""
    return jnp.take_along_axis(values, beams.reshape(*beams.shape, *[1] * (values.ndim - 2)), axis=1)


def _where_lane(condition, if_true, if_false):
    """jnp.where by lane: condition [I], values [I, ..]."""
    return jnp.where(condition.reshape(-1, *[1] * (if_true.ndim - 1)), if_true, if_false)


class Engine:
    """The compiled programs of a loop: fill lanes, run until a number of them are done, narrow, read."""

    def __init__(self, loop, devices, dtype):
        self.loop, self.devices, self.dtype = loop, devices, dtype
        self.fill = jax.jit(self._fill, donate_argnums=1)
        self.run = jax.jit(self._run, donate_argnums=1)
        self.narrow = jax.jit(self._narrow)
        self.read = jax.jit(self._read, out_shardings=devices.replicated)

    def empty(self, params, n_lanes, capacity):
        """A state of empty lanes for instructions of up to `capacity` tokens."""
        return self._empty(params, n_lanes, capacity)

    @functools.partial(jax.jit, static_argnums=(0, 2, 3))
    def _empty(self, params, n_lanes, capacity):
        config, loop = self.loop.model.config, self.loop
        source = jnp.zeros((n_lanes, capacity, config.d_model), self.dtype)
        entering = {
            'source': source,
            'source_visible': jnp.zeros((n_lanes, capacity), bool),
            'n_texts': jnp.zeros(n_lanes, jnp.int32),
        }
        if isinstance(loop, SampleLoop):
            entering['keys'] = jnp.zeros((n_lanes, len(loop.settings), 2), jnp.uint32)
        shape = (n_lanes, config.num_heads, loop.texts_per_lane, loop.lengths.n_columns, config.d_kv)
        caches = [(jnp.zeros(shape, self.dtype),) * 2 for _ in range(config.num_decoder_layers)]
        lanes = self._begin(params, entering)
        return self._sharded({'lanes': lanes, 'caches': caches, 'step': jnp.int32(0)})

    def _begin(self, params, entering):
        model = self.loop.model
        keys = model.apply({'params': params}, entering['source'], method='source_keys')
        return self.loop.begin(entering) | {'source_keys': keys, 'source_visible': entering['source_visible']}

    def _fill(self, params, state, numbers, entering):
        """The state with R instructions put into the lanes `numbers` int32 [R]; numbers beyond the last are dropped."""
        begun = self._begin(params, entering)
        lanes = jax.tree.map(lambda old, new: old.at[numbers].set(new, mode='drop'), state['lanes'], begun)
        return self._sharded(state | {'lanes': lanes})

    def _run(self, params, state, n_wanted):
        """The state when at least n_wanted lanes are done."""
        loop = self.loop

        def is_wanting(state):
            return loop.is_done(state['lanes']).sum() < n_wanted

        def step(state):
            lanes, n_columns = state['lanes'], loop.lengths.n_columns
            column = state['step'] % n_columns
            distance = (column - jnp.arange(n_columns)) % n_columns
            logits, caches = loop.model.apply(
                {'params': params},
                lanes['token'],
                state['caches'],
                column,
                loop.visible(lanes, distance),
                lanes['source_keys'],
                lanes['source_visible'],
                method='step',
            )
            lanes = loop.advance(lanes, logits, column)
            return self._sharded({'lanes': lanes, 'caches': caches, 'step': state['step'] + 1})

        return jax.lax.while_loop(is_wanting, step, state)

    def _narrow(self, state, numbers):
        """The state of these lanes alone."""
        lanes, caches = jax.tree.map(lambda x: x[numbers], (state['lanes'], state['caches']))
        return self._sharded(state | {'lanes': lanes, 'caches': caches})

    def _read(self, state):
        lanes = state['lanes']
        return self.loop.results(lanes) | {'done': self.loop.is_done(lanes)}

    def sharding(self, x):
        """Where an array of the state is placed: lanes are split over the data axis, heads over the model axis where it
        divides their number. x: an array or its shape.
        """
        mesh = self.devices.mesh
        heads = 'mp' if self.loop.model.config.num_heads % self.devices.n_model_shards == 0 else None
        spec = P() if x.ndim == 0 else P('dp', heads) if x.ndim >= 4 and x.dtype == self.dtype else P('dp')
        return NamedSharding(mesh, spec)

    def _sharded(self, state):
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self.sharding(x)), state)
