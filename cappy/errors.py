"""The error that a user's mistake raises."""


class InputError(ValueError):
    """A mistake in a user's file, flag or setting.

    The message is one line: where (file, line counted from 1, field), what was found and what to do. Scripts print it
    and exit with 1; Python code may catch it as a ValueError.
    """
