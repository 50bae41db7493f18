"""Characters of texts that a generator's tokenizer cannot keep: those without a token, and blanks that it drops.

T5's has no token for braces, among others, and makes every stretch of blanks one space.
"""

import collections
from dataclasses import dataclass

BLANKS = ('\n', '\t', '  ')
N_SHOWN = 12  # characters that a message shows


@dataclass(frozen=True)
class Lost:
    """What of n texts is lost: in how many a character has no token, which those are, the most frequent first, and in
    how many line breaks, tabs or repeated spaces between words are dropped.
    """

    n: int
    n_unknown: int
    characters: tuple[str, ...]
    n_blanks: int


def count_lost(tokenizer, texts) -> Lost:
    """What a fast tokenizer loses of texts."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    texts, characters, n_unknown = list(texts), collections.Counter(), 0
    for text, encoding in zip(texts, backend.encode_batch(texts, add_special_tokens=False), strict=True):
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        unknown = set().union(
            *(text[first:end].split() for token, (first, end) in spans if token == tokenizer.unk_token_id)
        )
        characters.update(character for piece in unknown for character in set(piece))
        n_unknown += bool(unknown)
    dropped = [blank for blank in BLANKS if blank not in tokenizer.decode(backend.encode(f'a{blank}a').ids)]
    n_blanks = sum(any(blank in text.strip() for blank in dropped) for text in texts)
    shown = sorted(characters, key=lambda character: (-characters[character], character))
    return Lost(len(texts), n_unknown, tuple(shown), n_blanks)


def describe_lost(instructions: Lost, references: Lost) -> list[str]:
    """What to say of the instructions, which a generator reads, and of the references, which it should write."""
    remarks = []
    for lost, texts, verb in ((instructions, 'instructions', 'reads as unknown'), (references, 'references', 'lacks')):
        n = f'{lost.n} {texts}'
        if lost.n_unknown:
            remarks.append(f'{lost.n_unknown} of {n} hold characters that the model {verb} ({_shown(lost)})')
        if lost.n_blanks:
            remarks.append(f'{lost.n_blanks} of {n} lose line breaks, tabs or repeated spaces, as in the reference')
    return remarks


def _shown(lost):
    return ' '.join(lost.characters[:N_SHOWN]) + (' ..' if len(lost.characters) > N_SHOWN else '')
