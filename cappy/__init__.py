"""Cappy: a small scorer that says how correct a response to an instruction is."""

import importlib

from cappy.errors import InputError

__all__ = ['Cappy', 'Combination', 'InputError', 'TrainingSettings', 'get_devices', 'label_samples']
__version__ = '0.1.0'


PUBLIC = {
    'Cappy': 'scorer',
    'Combination': 'tasks.combining',
    'TrainingSettings': 'model.training',
    'get_devices': 'model.devices',
    'label_samples': 'tasks.finetuning',
}


def __getattr__(name):
    # Reading files and tables needs no jax, so it is imported when one of these is first used.
    if name in PUBLIC:
        return getattr(importlib.import_module(f'cappy.{PUBLIC[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
