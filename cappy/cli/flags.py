"""A script's flags, checked before anything runs and dispatched by fire.

Fire alone guesses types from the text (`--task 1,2` becomes a tuple), takes a repeated flag's last
value and complains of a misspelt flag after the job is done. Here the signature of `main` says what
each flag is.
"""

import ast
import inspect
import io
import os
import re
import sys
import textwrap
import tokenize
import types
import typing
from difflib import get_close_matches

import fire

from cappy.errors import InputError

_TRUE, _FALSE = ('true', '1', 'yes'), ('false', '0', 'no')
_TYPE_NAMES = {int: 'an integer', float: 'a number', bool: 'True or False', str: 'text', 'x': 1}
_FLAG = re.compile('--|-[a-zA-Z]')  # and not -5, which is a value


def run(main, argv=None, aliases=None):
    """Call main with the flags of the command line, and end the process where they or its input are
    wrong.

    main: its keyword arguments are the flags, each with a default or an annotation that says the
    type: int, float, bool, str, one of these or None, or a Literal of texts. Arguments without a
    default may be given by position.
    argv: the words after the script's name; those of sys.argv if None.
    An InputError ends with 1 and one line `error: ..` to stderr, Ctrl-C with 130; any other error
    is a bug and shows its traceback.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    name = os.path.basename(sys.argv[0])
    try:
        if any(word in ('--help', '-h', '-help') for word in argv):
            print(help_text(main, name))
        else:
            values = parse_flags(main, argv, aliases)
            fire.Fire(lambda: main(**values), command=[], name=name)
        sys.stdout.flush()
    except InputError as error:
        message = ' '.join(str(error).split())
        # The Python interface names a setting as its argument; here it is a flag.
        if re.split('[: ]', message, maxsplit=1)[0] in inspect.signature(main).parameters:
            message = f'--{message}'
        print(f'error: {message}', file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); Python's own flush at exit must not complain
        # again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def parse_flags(main, argv, aliases=None) -> dict:
    """The arguments of main that the words give, by name, with their types.

    `--flag value`, `--flag=value`, `--flag` and `--noflag` for a bool; dashes in a name are
    underscores. Raises InputError for a flag that is unknown, repeated, without a value or of
    another type.
    """
    types_of = _flag_types(main)
    parameters = inspect.signature(main).parameters
    required = [name for name in parameters if parameters[name].default is inspect.Parameter.empty]
    values, words = {}, list(argv)
    for n, word in enumerate(words):
        for old, new in (aliases or {}).items():
            if word.startswith('--' + old):
                words[n] = word.replace('--' + old, '--' + new)
    while words:
        word = words.pop(0)
        if _FLAG.match(word):
            name, value = _flag_and_value(word, words, types_of)
        else:
            name = next((name for name in required if name not in values), None)
            value = word
            if name is None:
                raise InputError(f'{word!r} stands alone; write --flag value{_missing_dashes(word, types_of)}')
        if name in values:
            raise InputError(f'--{name} is given twice; keep one')
        values[name] = convert(value, types_of[name], f'--{name}')
    missing = [f'--{name}' for name in required if name not in values]
    if missing:
        raise InputError(f'{", ".join(missing)} must be given (--help tells what for)')
    return values


def convert(text, flag_type, flag):
    """The value that a flag's text means; raises InputError where it is not of the type."""
    choices, optional = _choices(flag_type)
    if optional and text == 'None':
        return None
    for choice in choices:
        if isinstance(choice, str):  # one of a Literal's texts
            if text == choice:
                return text
            continue
        try:
            return _CONVERTERS[choice](text)
        except ValueError:
            continue
    expected = ' or '.join(
        _TYPE_NAMES.get(choice, 'names') if isinstance(choice, type) else repr(choice) for choice in choices
    )
    raise InputError(f'{flag}: expected {expected}{" or None" if optional else ""}, found {text!r}')


def help_text(main, name) -> str:
    """What main does, and its flags with their defaults and the comments beside them in its
    source.
    """
    comments = _comments(main)
    types_of = _flag_types(main)
    lines = [
        f'usage: {name} [--flag value ..]',
        '',
        inspect.cleandoc(main.__doc__ or ''),
        '',
        'flags:',
    ]
    for parameter in inspect.signature(main).parameters.values():
        if parameter.default is inspect.Parameter.empty:
            lines.append(f'  --{parameter.name} (needed)')
        elif types_of[parameter.name] is bool:
            lines.append(f'  --{parameter.name}, --no{parameter.name} (default: {parameter.default})')
        else:
            lines.append(f'  --{parameter.name}={parameter.default}')
        comment = comments.get(parameter.name)
        if comment:
            lines += textwrap.wrap(comment, 92, initial_indent=' ' * 8, subsequent_indent=' ' * 8)
    return '\n'.join(lines)


def _flag_and_value(word, words, types_of):
    """Name and text of the flag that `word` begins; takes its value off `words` where it stands
    there.
    """
    flag, equals, value = word.partition('=')
    name = flag.lstrip('-').replace('-', '_')
    if not flag.startswith('--'):
        raise InputError(f'{flag}: flags begin with two dashes{_near(name, types_of)}')
    negated = name.removeprefix('no').removeprefix('_')
    if name not in types_of and name.startswith('no') and bool in _choices(types_of.get(negated))[0]:
        if equals:
            raise InputError(f'{flag} takes no value; write --{negated}={value}')
        return negated, 'False'
    if name not in types_of:
        raise InputError(f'no flag {flag}{_near(name, types_of)}; --help lists all')
    if equals:
        return name, value
    follows = words[0] if words and not _FLAG.match(words[0]) else None
    if bool in _choices(types_of[name])[0]:
        # `--flag word`: only a truth value belongs to the flag.
        is_value = follows is not None and follows.lower() in (*_TRUE, *_FALSE, 'none')
        return name, words.pop(0) if is_value else 'True'
    if follows is None:
        raise InputError(f'{flag} needs a value; write {flag}=VALUE')
    return name, words.pop(0)


def _near(name, types_of):
    near = get_close_matches(name, types_of, n=1, cutoff=0.5)
    return f'; did you mean --{near[0]}?' if near else ''


def _missing_dashes(word, types_of):
    name = word.partition('=')[0].replace('-', '_')
    return f'; did you mean --{name}?' if name in types_of else ''


def _flag_types(main):
    """Type of each argument of main. Raises TypeError where the signature leaves one open."""
    hints = typing.get_type_hints(main)
    types_of = {}
    for name, parameter in inspect.signature(main).parameters.items():
        flag_type = hints.get(name, type(parameter.default))
        known = all(isinstance(choice, str) or choice in _CONVERTERS for choice in _choices(flag_type)[0])
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD and parameter.kind is not parameter.KEYWORD_ONLY:
            raise TypeError(f'{main.__qualname__}: *{name} cannot be a flag')
        if not known or not _choices(flag_type)[0]:
            raise TypeError(f'{main.__qualname__}: annotate {name} with the type of its flag')
        types_of[name] = flag_type
    return types_of


def _choices(flag_type):
    """(types and literal texts in the order in which to try them, whether None is one)."""
    if flag_type is None:
        return [], False
    if typing.get_origin(flag_type) is typing.Literal:
        return list(typing.get_args(flag_type)), False
    if typing.get_origin(flag_type) not in (typing.Union, types.UnionType):
        return ([], True) if flag_type is types.NoneType else ([flag_type], False)
    choices, optional = [], False
    for part in typing.get_args(flag_type):
        more, allows_none = _choices(part)
        choices += more
        optional = optional or allows_none
    return sorted(choices, key=lambda choice: choice is str), optional  # text fits all, so it comes last


def _to_int(text):
    try:
        return int(text)
    except ValueError:
        if not float(text).is_integer():  # 1e5 is an integer, too
            raise
        return int(float(text))


def _to_float(text):
    number = float(text)
    if number != number:
        raise ValueError('nan is no setting')
    return number


def _to_bool(text):
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(text)


class Names(tuple):
    pass


def _to_names(text):
    names = tuple(name.strip() for name in text.split(','))
    if not all(names):
        raise InputError(f'{text!r}: an empty name; write a,b,c')
    return names


_CONVERTERS = {Names: _to_names, int: _to_int, float: _to_float, bool: _to_bool, str: str}


def _comments(main):
    """The comment behind each argument in the source of main, with the lines of comment below it
    that begin in the same column."""
    try:
        source = textwrap.dedent(inspect.getsource(main))
        function = ast.parse(source).body[0]
        arguments = function.args.args + function.args.kwonlyargs
    except (OSError, TypeError, SyntaxError, AttributeError):
        return {}  # no source, or a lambda
    names = {argument.lineno: argument.arg for argument in arguments}
    comments, name, column = {}, None, None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, start = token.start
        if row >= function.body[0].lineno:
            break
        name = names.get(row, name)
        if token.type != tokenize.COMMENT or name is None:
            continue
        if token.line[:start].strip():
            column = start
        if start == column:
            comments.setdefault(name, []).append(token.string.lstrip('# '))
    return {name: ' '.join(parts) for name, parts in comments.items()}
