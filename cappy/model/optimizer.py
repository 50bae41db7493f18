"""AdamW with a warm-up and a decay over a known number of updates."""

import dataclasses
import math

import jax
import optax

from cappy.errors import InputError

DECAYS = ('linear', 'cosine')


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What decides an update's step, given its gradient.

    The rate rises from 0 over n_warmup steps and falls to 0 over the rest of n_steps. weight_decay is AdamW's; with
    decay_vectors False it leaves biases and norms alone, which then keep what they have learned. clip_norm: longer
    gradients are scaled to this norm, None: none are.
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


class SettingsOfFlags:
    """A dataclass of settings that a script's flags give by the same names."""

    @classmethod
    def of(cls, flags):
        """The settings in {flag: value}; other flags are left out."""
        return cls(**{field.name: flags[field.name] for field in dataclasses.fields(cls)})


def check_settings(settings, schedules, *positive):
    """Raise InputError for settings of a training that are out of range.

    settings: has lr_schedule, learning_rate, warmup_rate, weight_decay and seed; schedules: the names of lr_schedule;
    positive: names of its settings that must be 1 or more, or None.
    """
    if settings.lr_schedule not in schedules:
        raise InputError(f'lr_schedule: found {settings.lr_schedule!r}; choose one of {", ".join(schedules)}')
    for name in positive:
        if getattr(settings, name) is not None and getattr(settings, name) < 1:
            raise InputError(f'{name}: found {getattr(settings, name)}; give 1 or more')
    for name in ('weight_decay', 'seed'):
        if not getattr(settings, name) >= 0:
            raise InputError(f'{name}: found {getattr(settings, name)}; give 0 or more')
    if not 0 <= settings.warmup_rate <= 1:
        raise InputError(f'warmup_rate: found {settings.warmup_rate}; give a share from 0 to 1')
    if not 0 < settings.learning_rate < math.inf:
        raise InputError(f'learning_rate: found {settings.learning_rate}; give a finite number above 0')
