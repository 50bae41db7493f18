"""What may be wrong with drawn samples: no text, thinking in the text, and draws that are all the same."""

import re
from collections.abc import Mapping, Sequence

from cappy.errors import InputError
from cappy.tasks.candidates import Example

# Why an answer has no text: (what messages say of one or several answers, what helps).
CAUSES = {
    'reasoning': ('no content but reasoning', 'raise --max_tokens, or turn the reasoning off'),
    'cut': ('nothing before the limit of tokens', 'raise --max_tokens'),
    'refusal': ('a refusal or a filter in place of content', 'take another model, or other instructions'),
    'tool_calls': ('calls of tools in place of content', 'turn the tools off'),
    'thinking': ('no text but <think>', 'raise --max_tokens, or turn the thinking off'),
    'empty': ('empty content', 'see what the server answers to one of these instructions'),
}
EMPTY_SHARE = 0.5  # of samples without text, above which they are refused by default
MIN_JUDGED = 64  # samples after which a run may stop for lack of text; fewer may be chance


def without_thinking(text: str) -> str:
    """The text without <think>..</think>.

    Where the end is missing, all behind the beginning goes. Where the beginning is missing, which some prompts of
    chats already have, all before the end goes.
    """
    text = re.sub('<think>.*?</think>', '', text, flags=re.DOTALL)
    text = re.sub('^.*</think>', '', text, flags=re.DOTALL)
    return re.sub('<think>.*', '', text, flags=re.DOTALL).strip()


def has_thinking(text: str) -> bool:
    """Whether <think> or its end is in the text."""
    return '<think>' in text or '</think>' in text


def check_empty_share(share):
    """Raise InputError for a --max_empty_share that is no share."""
    if not 0 <= share <= 1:
        raise InputError(f'max_empty_share: expected 0 to 1, found {share:g}')


def describe_empty(n_empty, n_samples, by_cause: Mapping[str, int]) -> str:
    """How many samples are empty, why and what helps. by_cause: the number of answers by their key of CAUSES."""
    message = f'{n_empty} of {n_samples} samples are empty'
    known = {cause: n for cause, n in by_cause.items() if n}
    if not known:
        return message
    if len(known) == 1:
        why = f'the answers have {CAUSES[next(iter(known))][0]}'
    else:
        why = ', '.join(f'{n} answers have {CAUSES[cause][0]}' for cause, n in known.items())
    return f'{message}: {why} ({"; ".join(dict.fromkeys(CAUSES[cause][1] for cause in known))})'


def describe_thinking(n_samples) -> str:
    """A notice of thinking that was left in the samples."""
    have = 'sample has' if n_samples == 1 else 'samples have'
    return f'{n_samples} {have} <think> in the text; --strip_thinking takes it out'


def equal_draws(examples: Sequence[Example]) -> list[str]:
    """A notice for each decoding whose samples are the same within every example, though several were drawn.

    So it is with a server that has a fixed seed, or that leaves the temperature out. The decodings that draw nothing,
    greedy and beam search, do not count, nor do samples that are all empty.
    """
    notices = []
    names = dict.fromkeys(name for example in examples for name in example.decodings)
    for decoding in (name for name in names if not re.fullmatch(r'greedy|beam\d+', name)):
        drawn = [[sample.response for sample in example.samples if sample.decoding == decoding] for example in examples]
        drawn = [responses for responses in drawn if responses]
        most = max(map(len, drawn))
        if most > 1 and all(len(set(responses)) == 1 for responses in drawn) and any(map(any, drawn)):
            of = 'the example' if len(drawn) == 1 else f'each of {len(drawn)} examples'
            notices.append(
                f'all samples of {decoding} are the same in {of} (up to {most} samples): there is nothing to pick; '
                'is the seed of the server fixed, or the temperature without effect?'
            )
    return notices
