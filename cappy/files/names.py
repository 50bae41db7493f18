"""Names that become parts of paths: of tasks, generators and the like, from flags and files."""

import unicodedata

from cappy.errors import InputError
from cappy.files.wording import cut

# Bytes of UTF-8. File systems take 255, and a file has endings: .{task}_validation.jsonl.partial.json.{digits}.partial
LONGEST = 200
_CONTROL = ('Cc', 'Cs', 'Zl', 'Zp')  # control characters, halves of surrogate pairs, separators of lines


def check_name(name: str, what: str) -> str:
    """The name, which becomes a file or folder inside another one. Raises InputError where it cannot.

    what: the flag or field that holds it, for the message. A name may not be empty, begin with a dot (which makes `..`
    and hidden files), hold / or \\ or a control character, or be too long for a file system.
    """
    if remedy := _remedy(name):
        raise InputError(f'{what} {cut(repr(name))}: files are named after it; {remedy}')
    return name


def _remedy(name):
    if not name.strip():
        return 'give a name'
    if '/' in name or '\\' in name:
        return 'give a name without a slash'
    if name.startswith('.'):
        return 'give a name that does not begin with a dot'
    if any(unicodedata.category(character) in _CONTROL for character in name):
        return 'give a name without control characters'
    if len(name.encode()) > LONGEST:
        return f'give a name of at most {LONGEST} bytes'
    return None
