"""Data sets of the Hugging Face hub, or of a folder with the layout of one, through the library `datasets`.

Without a network that library retries for half a minute and prints a dozen lines for every data set. Here the hub is
tried once; where it does not answer, `datasets` takes what is in its cache, or the error comes at once.
"""

import functools
import logging
from pathlib import Path

from cappy.errors import InputError

_TIMEOUT = 10  # seconds in which the hub must answer
_MAX_CHARACTERS = 300  # of another library's error


class Unreachable(InputError):
    """The hub does not answer, so that no other data set can be fetched from it either."""


def load_dataset(name, configuration, *, remedy, **options):
    """`datasets.load_dataset`: a data set by its splits, or one split of it.

    name: on the hub, or a folder. remedy: the next step where it cannot be fetched, a part of a sentence. options: of
    `datasets.load_dataset`. Raises Unreachable where the hub does not answer, InputError for every other failure.
    """
    try:
        return _import_datasets(name).load_dataset(name, configuration, **options)
    except Exception as error:  # hub, network, cache and file formats fail by errors of many libraries
        raise failure(f'{name}, {configuration}', error, remedy) from error


def configuration_names(name, *, remedy) -> list[str]:
    """The names of a data set's configurations. Raises as `load_dataset`."""
    try:
        return _import_datasets(name).get_dataset_config_names(name)
    except Exception as error:  # as above
        raise failure(name, error, remedy) from error


def failure(where, error, remedy) -> InputError:
    """The InputError for an error that another library raised while it fetched data."""
    if not isinstance(error, ConnectionError):
        words = ' '.join(str(error).split())[:_MAX_CHARACTERS]
        return InputError(f'{where}: cannot be fetched ({type(error).__name__}: {words}); try again, or {remedy}')
    reason = _connection_error() or ' '.join(str(error).split())[:_MAX_CHARACTERS]
    return Unreachable(f'{where}: cannot be fetched, since the hub does not answer ({reason}); {remedy}')


def _import_datasets(name):
    """The library, set to its cache where the hub does not answer."""
    from huggingface_hub import constants  # slow to import, and not needed for local files

    logging.getLogger('huggingface_hub').propagate = False  # it prints its messages itself
    if not Path(name).is_dir() and _connection_error():
        constants.HF_HUB_OFFLINE = True  # what the environment variable sets; `datasets` reads it when it is imported
    import datasets

    return datasets


@functools.cache
def _connection_error() -> str | None:
    """Why the hub does not answer; None where it does, or is not to be asked."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)  # its proxies and certificates; it does not retry
    except Exception as error:  # of the HTTP library, which differs between versions
        return ' '.join(str(error).split())[:_MAX_CHARACTERS] or type(error).__name__
    return None
