"""AdamW with a warm-up and a decay over a known number of updates."""

import dataclasses

import jax
import optax

DECAYS = ('linear', 'cosine')


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What decides an update's step, given its gradient.

    The rate rises from 0 over n_warmup steps and falls to 0 over the rest of n_steps. weight_decay is AdamW's; of
    matrices and embeddings alone where decay_vectors is False, so that biases and norms keep what they have learned.
    clip_norm: gradients longer than this are scaled to it, None: none are.
    """

    learning_rate: float
    n_warmup: int
    n_steps: int
    decay: str = 'linear'
    weight_decay: float = 0.0
    decay_vectors: bool = True
    clip_norm: float | None = None

    @property
    def schedule(self):
        """Update number, from 0 -> the rate applied. The first is 0 where there is a warm-up."""
        falling = optax.linear_schedule(self.learning_rate, 0.0, self.n_steps - self.n_warmup)
        if self.decay == 'cosine':
            falling = optax.cosine_decay_schedule(self.learning_rate, max(1, self.n_steps - self.n_warmup))
        return optax.join_schedules(
            [optax.linear_schedule(0.0, self.learning_rate, self.n_warmup), falling], [self.n_warmup]
        )

    @property
    def transformation(self):
        """As optax takes it."""
        mask = None if self.decay_vectors else (lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params))
        adamw = optax.adamw(self.schedule, weight_decay=self.weight_decay, mask=mask)
        return adamw if self.clip_norm is None else optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw)
