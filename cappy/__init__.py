"""Cappy: a small scorer that says how correct a response to an instruction is."""

from cappy.errors import InputError

__all__ = ['Cappy', 'InputError']
__version__ = '0.1.0'


def __getattr__(name):
    # Reading files and tables needs no jax; it is imported when the scorer is asked for.
    if name == 'Cappy':
        from cappy.scorer import Cappy

        return Cappy
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
