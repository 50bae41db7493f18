"""Decoding on the device: a loop over slots that draws samples, or searches by beams, until enough of them are done.

A slot holds an instruction, with its keys and values for cross-attention, and G of its texts side by side. A text that
ends gives its place to the instruction's next sample at once, inside the loop; an instruction that is done gives its
slot to the next one, for which the loop returns to the host now and then. So the batch stays full where a fixed one
would wait for its longest text.

A text's keys and values lie in a ring of columns that all texts write at the same place: one slice to write in a step,
and one relative position for a column, although texts began at different steps. Beams share their columns: what a beam
sees is told by its ancestry, and nothing is copied when beams change places.

I slots, G texts in each, Q samples of an instruction, B beams, T tokens of a text, C columns, S tokens of an
instruction, R instructions that enter at a time, V words.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cappy.errors import InputError
from cappy.generate.decodings import draw_words, top_k, uniform
from cappy.generate.t5 import T5

NEGATIVE = np.float32(-1e7)  # what Flax transformers gives a beam that must not be chosen


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Limits of a text in tokens, its start counted, as transformers counts them.

    max_length: at most; min_length: the end is barred while the text is not longer than this, which in Flax
    transformers is one token more than in PyTorch's.
    """

    max_length: int = 64
    min_length: int = 3

    def __post_init__(self):
        if self.max_length < 2:
            raise InputError(f'--max_tgt_len {self.max_length}: leaves no token behind the start token; give 2 or more')

    @property
    def n_tokens(self):
        """T: tokens behind the start."""
        return self.max_length - 1

    @property
    def n_columns(self):
        """C: T, in steps that are fast to read."""
        return -(-self.n_tokens // 8) * 8


@dataclasses.dataclass(frozen=True)
class SampleLoop:
    """Samples of an instruction under several decodings, G at a time.

    settings: (temperature, top_k, top_p) of each of the Q samples.
    """

    model: T5
    lengths: Lengths
    settings: tuple
    n_together: int
    keeps_likelihood: bool

    def begin(self, request):
        """Slots for R instructions: keys uint32 [R, Q, 2] and total int32 [R], Q or 0 for an empty slot."""
        total, Q = request['total'], len(self.settings)
        shape = (len(total), self.n_together)
        place = jnp.broadcast_to(jnp.arange(self.n_together), shape)
        config = self.model.config
        return {
            'keys': request['keys'],
            'total': total,
            'sample': jnp.where(place < total[:, None], place, Q).astype(jnp.int32),  # of each text, Q: none
            'following': jnp.minimum(self.n_together, total),  # the next sample
            'age': jnp.zeros(shape, jnp.int32),
            'token': jnp.full(shape, config.decoder_start_token_id, jnp.int32),
            'tokens': jnp.full((len(total), Q, self.lengths.n_tokens), config.pad_token_id, jnp.int32),
            'likelihood': jnp.zeros((len(total), Q), jnp.float32),
        }

    def is_done(self, slots):
        return (slots['sample'] == len(self.settings)).all(axis=1)

    def visible(self, slots, distance):
        return distance <= slots['age'][..., None]

    def advance(self, slots, logits, column):
        """The slots after a word was drawn for each text from logits [I * G, V]."""
        config, Q = self.model.config, len(self.settings)
        age, sample, shape = slots['age'], slots['sample'], slots['age'].shape
        logits = logits.reshape(*shape, -1)
        is_end = jnp.arange(config.vocab_size) == config.eos_token_id
        barred = jnp.where((age < self.lengths.min_length)[..., None] & is_end, -jnp.inf, logits)
        own = jnp.minimum(sample, Q - 1)
        u = uniform(jnp.take_along_axis(slots['keys'], own[..., None], axis=1), age)
        words = self.draw(barred.reshape(-1, config.vocab_size), u.reshape(-1), own.reshape(-1)).reshape(shape)

        rows = jnp.arange(len(age))[:, None]
        tokens = slots['tokens'].at[rows, sample, age].set(words, mode='drop')
        likelihood = slots['likelihood']
        if self.keeps_likelihood:
            picked = jnp.take_along_axis(logits, words[..., None], axis=-1)[..., 0]
            likelihood = likelihood.at[rows, sample].add(picked - jax.nn.logsumexp(logits, axis=-1), mode='drop')

        ended = ((words == config.eos_token_id) | (age + 1 >= self.lengths.n_tokens)) & (sample < Q)
        after = slots['following'][:, None] + jnp.cumsum(ended, axis=1) - 1
        after = jnp.where(after < slots['total'][:, None], after, Q)
        idle = ended | (sample == Q)
        return slots | {
            'sample': jnp.where(ended, after, sample).astype(jnp.int32),
            'following': slots['following'] + ended.sum(axis=1),
            'age': jnp.where(idle, 0, age + 1),
            'token': jnp.where(idle, config.decoder_start_token_id, words),
            'tokens': tokens,
            'likelihood': likelihood,
        }

    def draw(self, logits, u, sample):
        temperature, k, p = (np.array(values) for values in zip(*self.settings, strict=True))
        settings = (
            jnp.asarray(temperature, jnp.float32)[sample],
            jnp.asarray(k, jnp.int32)[sample],
            jnp.asarray(p, jnp.float32)[sample],
        )
        is_open = bool((k == 0).any())
        return draw_words(logits, u, settings, int(k.max()), is_open, bool(((k == 0) & (p < 1)).any()))

    def results(self, slots):
        """tokens [I, Q, T] and likelihood [I, Q]."""
        return {name: slots[name] for name in ('tokens', 'likelihood')}


@dataclasses.dataclass(frozen=True)
class BeamLoop:
    """Beam search as transformers' FlaxGenerationMixin._beam_search does it (4.36), for one instruction at a time: its
    own beams decide when it stops, where there the whole batch went on until no instruction could improve.
    """

    model: T5
    lengths: Lengths
    n_beams: int

    @property
    def n_together(self):
        return self.n_beams

    def begin(self, request):
        """Slots for R instructions; total int32 [R]: 0 for an empty slot."""
        n, B, T = len(request['total']), self.n_beams, self.lengths.n_tokens
        config = self.model.config
        nothing = jnp.full((n, B, T), config.pad_token_id, jnp.int32)
        return {
            'done': request['total'] == 0,
            'age': jnp.zeros(n, jnp.int32),
            'token': jnp.full((n, B), config.decoder_start_token_id, jnp.int32),
            'ancestry': jnp.zeros((n, B, self.lengths.n_columns), jnp.int32),
            'running': nothing,
            'running_scores': jnp.broadcast_to(jnp.where(jnp.arange(B) == 0, 0, NEGATIVE), (n, B)),
            'finished': nothing,
            'finished_scores': jnp.full((n, B), NEGATIVE),
            'is_finished': jnp.zeros((n, B), bool),
        }

    def is_done(self, slots):
        return slots['done']

    def visible(self, slots, distance):
        """bool [I, B, B, C]: beam b sees a column of the beam that was its ancestor then."""
        beams = jnp.arange(self.n_beams)
        # This step's own column is not in the ancestry yet.
        ancestor = jnp.where(distance == 0, beams[:, None], slots['ancestry'])
        within = distance <= slots['age'][:, None]
        return (ancestor[:, :, None] == beams[:, None]) & within[:, None, None]

    def advance(self, slots, logits, column):
        config, B, V = self.model.config, self.n_beams, self.model.config.vocab_size
        age = slots['age']
        log_probs = jax.nn.log_softmax(logits, axis=-1).reshape(-1, B, V)
        is_end = jnp.arange(V) == config.eos_token_id
        log_probs = jnp.where((age < self.lengths.min_length)[:, None, None] & is_end, -jnp.inf, log_probs)
        total = (log_probs + slots['running_scores'][..., None]).reshape(-1, B * V)
        scores, place = top_k(total, 2 * B)  # twice as many, since B of them may end now
        parents, words = place // V, place % V
        ended = words == config.eos_token_id
        at_age = jnp.arange(self.lengths.n_tokens) == age[:, None, None]
        texts = jnp.where(at_age, words[..., None], _of_beams(slots['running'], parents))

        running_scores = scores + ended * NEGATIVE
        chosen = jax.lax.top_k(running_scores, B)[1]
        ancestry = jnp.where(jnp.arange(self.lengths.n_columns) == column, jnp.arange(B)[:, None], slots['ancestry'])

        ended_scores = scores / (age + 1)[:, None].astype(jnp.float32) + ~ended * NEGATIVE
        merged_scores = jnp.concatenate([slots['finished_scores'], ended_scores], axis=1)
        best = jax.lax.top_k(merged_scores, B)[1]
        new = {
            'age': age + 1,
            'token': _of_beams(words, chosen),
            'ancestry': _of_beams(ancestry, _of_beams(parents, chosen)),
            'running': _of_beams(texts, chosen),
            'running_scores': _of_beams(running_scores, chosen),
            'finished': _of_beams(jnp.concatenate([slots['finished'], texts], axis=1), best),
            'finished_scores': _of_beams(merged_scores, best),
            'is_finished': _of_beams(jnp.concatenate([slots['is_finished'], ended], axis=1), best),
        }
        new['done'] = self.cannot_improve(new)
        kept = {name: _where(slots['done'], slots[name], value) for name, value in new.items()}
        return slots | kept

    def cannot_improve(self, slots):
        """bool [I]: the text is as long as it may be, or the best running beam is no better than the worst finished."""
        best = slots['running_scores'][:, :1] / slots['age'][:, None].astype(jnp.float32)
        worst = jnp.where(slots['is_finished'], slots['finished_scores'].min(axis=1, keepdims=True), NEGATIVE)
        return (slots['age'] >= self.lengths.n_tokens) | ~(best > worst).any(axis=1)

    def results(self, slots):
        """tokens [I, 1, T] and likelihood [I, 1] of the best text."""
        has_one = slots['is_finished'].any(axis=1)
        tokens = jnp.where(has_one[:, None], slots['finished'][:, 0], slots['running'][:, 0])
        n_tokens = jnp.argmax(tokens == self.model.config.eos_token_id, axis=1) + 1
        likelihood = jnp.where(has_one, slots['finished_scores'][:, 0] * n_tokens, slots['running_scores'][:, 0])
        return {'tokens': tokens[:, None], 'likelihood': likelihood[:, None]}


def _of_beams(values, beams):
    """values [I, B, ..] at beams [I, M] -> [I, M, ..]."""
    return jnp.take_along_axis(values, beams.reshape(*beams.shape, *[1] * (values.ndim - 2)), axis=1)


def _where(condition, one, other):
    """By slot: condition [I], values [I, ..]."""
    return jnp.where(condition.reshape(-1, *[1] * (one.ndim - 1)), one, other)


class Engine:
    """The programs of a loop: fill slots, run until so many are done, narrow, read. Compiled once for a shape."""

    def __init__(self, loop, devices, dtype):
        self.loop, self.devices, self.dtype = loop, devices, dtype
        self.fill = jax.jit(self._fill, donate_argnums=1)
        self.run = jax.jit(self._run, donate_argnums=1)
        self.narrow = jax.jit(self._narrow)
        self.read = jax.jit(self._read, out_shardings=devices.replicated)

    def empty(self, params, n_slots, capacity):
        """A state of so many empty slots for instructions of up to `capacity` tokens."""
        return self._empty(params, n_slots, capacity)

    @functools.partial(jax.jit, static_argnums=(0, 2, 3))
    def _empty(self, params, n_slots, capacity):
        config, loop = self.loop.model.config, self.loop
        source = jnp.zeros((n_slots, capacity, config.d_model), self.dtype)
        request = {
            'source': source,
            'source_visible': jnp.zeros((n_slots, capacity), bool),
            'total': jnp.zeros(n_slots, jnp.int32),
        }
        if isinstance(loop, SampleLoop):
            request['keys'] = jnp.zeros((n_slots, len(loop.settings), 2), jnp.uint32)
        shape = (n_slots, config.num_heads, loop.n_together, loop.lengths.n_columns, config.d_kv)
        caches = [(jnp.zeros(shape, self.dtype),) * 2 for _ in range(config.num_decoder_layers)]
        slots = self._begin(params, request)
        return self._laid_out({'slots': slots, 'caches': caches, 'step': jnp.int32(0)})

    def _begin(self, params, request):
        model = self.loop.model
        keys = model.apply({'params': params}, request['source'], method='source_keys')
        return self.loop.begin(request) | {'source_keys': keys, 'source_visible': request['source_visible']}

    def _fill(self, params, state, places, request):
        """The state with the R instructions of a request in the slots `places` int32 [R]; beyond the last: nowhere."""
        fresh = self._begin(params, request)
        slots = jax.tree.map(lambda old, new: old.at[places].set(new, mode='drop'), state['slots'], fresh)
        return self._laid_out(state | {'slots': slots})

    def _run(self, params, state, n_wanted):
        """The state when at least n_wanted slots are done."""
        loop = self.loop

        def goes_on(state):
            return loop.is_done(state['slots']).sum() < n_wanted

        def step(state):
            slots, n_columns = state['slots'], loop.lengths.n_columns
            column = state['step'] % n_columns
            distance = (column - jnp.arange(n_columns)) % n_columns
            logits, caches = loop.model.apply(
                {'params': params},
                slots['token'],
                state['caches'],
                column,
                loop.visible(slots, distance),
                slots['source_keys'],
                slots['source_visible'],
                method='step',
            )
            slots = loop.advance(slots, logits, column)
            return self._laid_out({'slots': slots, 'caches': caches, 'step': state['step'] + 1})

        return jax.lax.while_loop(goes_on, step, state)

    def _narrow(self, state, places):
        """The state of some slots alone."""
        slots, caches = jax.tree.map(lambda x: x[places], (state['slots'], state['caches']))
        return self._laid_out(state | {'slots': slots, 'caches': caches})

    def _read(self, state):
        slots = state['slots']
        return self.loop.results(slots) | {'done': self.loop.is_done(slots)}

    def _laid_out(self, state):
        """Slots are shared out over the data axis, heads over the model axis where it divides them."""
        mesh = self.devices.mesh
        heads = 'mp' if self.loop.model.config.num_heads % self.devices.n_model_shards == 0 else None

        def lay(x):
            spec = P() if x.ndim == 0 else P('dp', heads) if x.ndim >= 4 and x.dtype == self.dtype else P('dp')
            return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

        return jax.tree.map(lay, state)
