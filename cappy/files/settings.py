"""Settings that something was made with, beside those that are asked for now."""


def differing(made, asked, ignoring=()):
    """What was made otherwise than it is asked for now, as texts 'learning_rate 1e-05 (asked for: 2e-05)'.

    made, asked: {setting: value}; ignoring: settings that change nothing. Settings that `made` does not have, since an
    older version wrote it, do not count.
    """
    return [
        f'{name} {made[name]!r} (asked for: {asked[name]!r})'
        for name in asked
        if name in made and name not in ignoring and _as_json(made[name]) != _as_json(asked[name])
    ]


def _as_json(value):
    """A value as a file of results gives it back, which has lists alone."""
    return list(value) if isinstance(value, tuple) else value
