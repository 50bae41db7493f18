"""What a user can get wrong, told in one line."""


class InputError(ValueError):
    """A mistake in a user's file, flag or setting.

    The message is one line and says where (file, line from 1, field), what was found and what to do. Scripts
    print it and exit with 1; library users catch it as a ValueError.
    """
