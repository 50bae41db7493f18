"""A script's flags: read from the signature of its `main`, checked before anything runs, called through fire.

Fire alone guesses types from the text (`--task 1,2` becomes a tuple), takes the last value of a repeated flag, and
complains of a misspelt flag after the job has run. argparse would need a rule of its own for each of: a value such as
-5e-5, `--overwrite False`, dashes for underscores, repeated flags, and suggestions. Here the signature says it all.
"""

import ast
import contextlib
import errno
import inspect
import io
import math
import os
import re
import sys
import textwrap
import tokenize
import traceback
import types
import typing
from dataclasses import dataclass
from difflib import get_close_matches

import fire

from cappy.errors import InputError

# Exit codes, which scripts/run_cappy_bigbench.py reads of its cells.
INPUT_ERROR = 1  # a bug's traceback ends with 1, too: trying again helps neither
DEVICE_FAILURE = 75  # EX_TEMPFAIL: memory ran out or a device failed; less work at a time may pass
INTERRUPTED = 130  # 128 + SIGINT, as shells count
BROKEN_PIPE = 141  # 128 + SIGPIPE

WIDTH = 100  # of the help's text
LARGEST_INTEGER = 2**63 - 1  # beyond it numpy and jax overflow
_TRUE, _FALSE = ('true', '1', 'yes'), ('false', '0', 'no')
_FLAG = re.compile('--|-[a-zA-Z]')  # and not -5, which is a value
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OUT_OF_MEMORY = 'RESOURCE_EXHAUSTED'
_DEVICE_STATUS = re.compile(rf'\b({_OUT_OF_MEMORY}|INTERNAL|ABORTED|UNAVAILABLE|UNKNOWN)\b')


class TooLarge(ValueError):
    """An integer that no array holds."""


class Names(tuple):
    """The type of a flag that takes names with commas between them; a tuple of str.

    Write `tasks: flags.Names | None = None` or `splits: flags.Names = ('train', 'validation')`, or such a text as the
    default. Blanks around names are dropped; an empty name and one that is given twice are errors.
    """

    @classmethod
    def from_text(cls, text):
        """The names of a text; raises ValueError saying what is wrong with it."""
        names = cls(name.strip() for name in _to_text(text).split(','))
        if not all(names):
            raise ValueError(f'expected names with commas between them (a,b,c), found {text!r}')
        repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if repeated:
            raise ValueError(f'{repeated[0]} is given twice; keep one')
        return names

    def __str__(self):
        return ','.join(self)


@dataclass(frozen=True)
class Range:
    """The numbers that a flag takes: `Annotated[int, flags.Range(least=2)]`, or one of the names below.

    least and most are among them, above and below are not; None: no such end.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, number):
        return (
            (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __str__(self):
        if self.least is not None:
            return f'{self.least} or more' if self.most is None else f'{self.least} to {self.most}'
        ends = (('more than', self.above), ('less than', self.below), ('at most', self.most))
        return ' and '.join(f'{words} {end}' for words, end in ends if end is not None)


# Numbers as most flags take them.
Count = typing.Annotated[int, Range(least=1)]
CountFrom0 = typing.Annotated[int, Range(least=0)]
Seed = CountFrom0
SeedOf32Bits = typing.Annotated[int, Range(least=0, most=2**32 - 1)]  # as numpy's old generator takes it
Share = typing.Annotated[float, Range(least=0, most=1)]
InnerShare = typing.Annotated[float, Range(above=0, below=1)]
Positive = typing.Annotated[float, Range(above=0)]
NotNegative = typing.Annotated[float, Range(least=0)]
Port = typing.Annotated[int, Range(least=1, most=65535)]


@dataclass(frozen=True)
class Flag:
    """One argument of main.

    kinds: its types, and the texts of a Literal, in the order in which a text is tried. is_optional: whether None is a
    value. range: of a number, None: any. old_names: further names, which the command line takes for this one.
    """

    name: str
    kinds: tuple
    is_optional: bool
    default: typing.Any
    old_names: tuple = ()
    range: Range | None = None

    @property
    def is_required(self):
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty

    @property
    def is_switch(self):
        """Whether it may stand without a value."""
        return bool in self.kinds

    def convert(self, text):
        """The value that a text means; raises InputError where it is not of the type."""
        if self.is_optional and text == 'None':
            return None
        for kind in self.kinds:
            if isinstance(kind, str):  # a text of a Literal
                if text == kind:
                    return text
                continue
            try:
                value = _CONVERTERS[kind](text)
            except TooLarge as error:
                raise InputError(f'--{self.name}: expected an integer below 2^63, found {text[:40]}') from error
            except ValueError as error:
                if kind is Names:
                    raise InputError(f'--{self.name}: {error}') from error
                continue
            if kind in (int, float) and self.range is not None and value not in self.range:
                raise InputError(f'--{self.name}: expected {self.range}, found {text}')
            return value
        expected = [_TYPE_NAMES[kind] if isinstance(kind, type) else repr(kind) for kind in self.kinds]
        expected += ['None'] if self.is_optional else []
        raise InputError(f'--{self.name}: expected {" or ".join(expected)}, found {text!r}')


def run(main, argv=None, aliases=None):
    """Call main with the flags of the command line; end the process where they, or what they name, are wrong.

    main: its arguments are the flags, each with a default or an annotation that says the type: int, float, bool, str,
    Names, one of these or None, a Literal of texts, or a number of a Range. Those without a default may be given by
    position. main.presets, where it has them, are defaults that a flag's value brings along, {flag: {value: {other
    flag: its default}}}.
    argv: the words after the script's name; those of sys.argv if None. aliases: {old name: name of a flag}.
    Exit codes: 0; 1 for an InputError or a full disk, with one line `error: ..` on standard error; 75 where memory ran
    out, in one line too, or a device failed; 130 for Ctrl-C; 141 where the reader of the output is gone. Any other
    error is a bug and shows its traceback.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    name = os.path.basename(sys.argv[0])
    try:
        if any(word in ('--help', '-h', '-help') for word in argv):
            print(help_text(main, name, aliases))
        else:
            values = parse_flags(main, argv, aliases)
            # The reference's command lines are fire's. It gets no words, for it would guess their types; what main
            # returns is printed in its way.
            fire.Fire(lambda: main(**values), command=[], name=name)
        sys.stdout.flush()
    except InputError as error:
        _end(INPUT_ERROR, f'error: {_with_dashes(str(error), main)}')
    except KeyboardInterrupt:
        _end(INTERRUPTED, 'interrupted')
    except BrokenPipeError:
        _drop_standard_output()
        sys.exit(BROKEN_PIPE)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            place = error.filename or 'an output'
            _end(INPUT_ERROR, f'error: {place}: cannot be written ({error.strerror}); make room')
        status = device_status(error)
        if status is None:
            raise
        if status != _OUT_OF_MEMORY:
            traceback.print_exc()  # the reason, and it may be ours
        _end(DEVICE_FAILURE, f'error: {_describe_device_failure(error, status)}')


def device_status(error):
    """The status of an error by which memory ran out or a device failed, such as RESOURCE_EXHAUSTED; None for others.

    jax is not imported for its class of errors: most scripts do without it.
    """
    if isinstance(error, MemoryError):
        return _OUT_OF_MEMORY
    if not {'XlaRuntimeError', 'JaxRuntimeError'} & {cls.__name__ for cls in type(error).__mro__}:
        return None
    status = _DEVICE_STATUS.search(str(error))
    return status and status.group()


def _describe_device_failure(error, status):
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if status == _OUT_OF_MEMORY:
        return f'out of memory ({reason}); work on less at a time (--help says which flags set how much)'
    return f'a device failed ({reason})'


def _end(code, message):
    try:
        sys.stdout.flush()
    except OSError:
        _drop_standard_output()
    print(' '.join(message.split()), file=sys.stderr)
    sys.exit(code)


def _drop_standard_output():
    """Python flushes standard output once more at exit, and would complain of the same closed pipe or full disk."""
    with contextlib.suppress(OSError, ValueError):  # no descriptor, where something else has taken its place
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_dashes(message, main):
    """A message that begins with a setting's name, as the Python interface has it, with the dashes of its flag."""
    is_flag = re.split('[: ]', message, maxsplit=1)[0] in inspect.signature(main).parameters
    return f'--{message}' if is_flag else message


def parse_flags(main, argv, aliases=None) -> dict:
    """{name of an argument: its value, with its type} for what the words give.

    `--flag value`, `--flag=value`, `--flag` and `--noflag` for a bool; dashes in a name are underscores. Names that
    are not given, with a text as default, are there as the names of that text. So are the presets of main.
    Raises InputError for a flag that is unknown, repeated, without a value or of another type.
    """
    flags = flags_of(main, aliases)
    named = {name: flag for flag in flags for name in (flag.name, *flag.old_names)}
    values, words, given_as = {}, list(argv), {}
    while words:
        word = words.pop(0)
        if _FLAG.match(word):
            name, value = _name_and_value(word, words, named)
        else:
            name = next((flag.name for flag in flags if flag.is_required and flag.name not in values), None)
            value = word
            if name is None:
                raise InputError(f'{word!r} belongs to no flag; write --flag value{_missing_dashes(word, named)}')
        flag = named[name]
        if flag.name in values:
            first = given_as[flag.name]
            means = f' (it means --{flag.name})' if name != flag.name else ''
            raise InputError(
                f'--{flag.name} is given twice; keep one'
                if first == name
                else f'--{first} and --{name}{means} are both given; keep --{flag.name}'
            )
        values[flag.name], given_as[flag.name] = flag.convert(value), name
    missing = [f'--{flag.name}' for flag in flags if flag.is_required and flag.name not in values]
    if missing:
        raise InputError(f'{", ".join(missing)} must be given (--help says what for)')
    for name, by_value in getattr(main, 'presets', {}).items():
        values = by_value.get(values.get(name), {}) | values
    defaults = {flag.name: flag.default for flag in flags if Names in flag.kinds and isinstance(flag.default, str)}
    return {name: Names.from_text(text) for name, text in defaults.items() if name not in values} | values


def _name_and_value(word, words, named):
    """Name and text of the flag that `word` begins; takes its value off the words behind it where it is there."""
    flag, equals, value = word.partition('=')
    name = flag.lstrip('-').replace('-', '_')
    if not flag.startswith('--'):
        raise InputError(f'{flag}: flags begin with two dashes{_near(name, named)}')
    negated = name.removeprefix('no').removeprefix('_')
    if name not in named and name.startswith('no') and negated in named and named[negated].is_switch:
        if equals:
            raise InputError(f'{flag} takes no value; write --{negated}={value}')
        return negated, 'False'
    if name not in named:
        raise InputError(f'no flag {flag}{_near(name, named)}; --help lists all')
    if equals:
        return name, value
    follows = words[0] if words and not _FLAG.match(words[0]) else None
    if named[name].is_switch:
        # `--flag word`: only a truth value belongs to the flag.
        is_value = follows is not None and follows.lower() in (*_TRUE, *_FALSE, 'none')
        return name, words.pop(0) if is_value else 'True'
    if follows is None:
        raise InputError(f'{flag} needs a value; write {flag}=VALUE')
    return name, words.pop(0)


def _near(name, named):
    near = get_close_matches(name, named, n=1, cutoff=0.5)
    return f'; did you mean --{near[0]}?' if near else ''


def _missing_dashes(word, named):
    name = word.partition('=')[0].replace('-', '_')
    return f'; did you mean --{name}?' if name in named else ''


def convert(text, flag_type, flag):
    """The value of type flag_type that a text means; raises InputError that begins with `flag` where it is none."""
    kinds, is_optional = _kinds(flag_type)
    return Flag(flag.removeprefix('--'), kinds, is_optional, None, range=_range(flag_type)).convert(text)


def flags_of(main, aliases=None) -> list[Flag]:
    """The flags of main, in its order. Raises TypeError where its signature leaves a type open."""
    hints, old_names = typing.get_type_hints(main, include_extras=True), {}
    for old, name in (aliases or {}).items():
        old_names.setdefault(name, []).append(old)
    flags = []
    for name, parameter in inspect.signature(main).parameters.items():
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD and parameter.kind is not parameter.KEYWORD_ONLY:
            raise TypeError(f'{main.__qualname__}: *{name} cannot be a flag')
        flag_type = hints.get(name, type(parameter.default))
        kinds, is_optional = _kinds(flag_type)
        if not kinds or not all(isinstance(kind, str) or kind in _CONVERTERS for kind in kinds):
            raise TypeError(f'{main.__qualname__}: annotate {name} with the type of its flag')
        olds = tuple(old_names.pop(name, ()))
        flags.append(Flag(name, kinds, is_optional, parameter.default, olds, _range(flag_type)))
    if old_names:
        raise TypeError(f'{main.__qualname__}: aliases of {", ".join(old_names)}, which it has not')
    return flags


def _kinds(flag_type):
    """(types and texts of Literals in the order in which to try them, whether None is a value)."""
    if flag_type is types.NoneType or flag_type is None:
        return (), True
    if typing.get_origin(flag_type) is typing.Annotated:
        return _kinds(typing.get_args(flag_type)[0])
    if typing.get_origin(flag_type) is typing.Literal:
        return typing.get_args(flag_type), False
    if typing.get_origin(flag_type) not in (typing.Union, types.UnionType):
        return (flag_type,), False
    parts = [_kinds(part) for part in typing.get_args(flag_type)]
    kinds = [kind for of_part, _ in parts for kind in of_part]
    # Every text is a str, so that comes last.
    return tuple(sorted(kinds, key=lambda kind: kind is str)), any(is_optional for _, is_optional in parts)


def _range(flag_type):
    """The Range in a type's annotation; None where there is none."""
    parts = typing.get_args(flag_type)
    ranges = [part if isinstance(part, Range) else _range(part) for part in parts]
    return next((found for found in ranges if found is not None), None)


def _to_int(text):
    try:
        number = int(text)
    except ValueError:
        if not float(text).is_integer():  # 1e5 is an integer, too
            raise
        number = int(float(text))
    if abs(number) > LARGEST_INTEGER:
        raise TooLarge
    return number


def _to_text(text):
    text.encode()  # a word that is not UTF-8 could not be written with the result; this is a ValueError
    return text


def _to_float(text):
    number = float(text)
    if not math.isfinite(number):
        raise ValueError('nan and inf are no settings')
    return number


def _to_bool(text):
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(text)


_CONVERTERS = {int: _to_int, float: _to_float, bool: _to_bool, str: _to_text, Names: Names.from_text}
_TYPE_NAMES = {int: 'an integer', float: 'a number', bool: 'True or False', str: 'text', Names: 'names'}


def help_text(main, name, aliases=None) -> str:
    """What main does, an example call, and its flags with choices, defaults and the comments beside them.

    The example is the first indented line of the module's docstring that names the script. Comments are those of main's
    source, or of the functions in `main.sources`, where it takes its flags from several; the first of them wins.
    """
    sources = getattr(main, 'sources', (main,))
    comments = {}
    for source in sources:
        comments = _comments(source) | comments
    lines = [f'usage: {name} [--flag value ..]']
    docstring = getattr(sources[0], '__globals__', {}).get('__doc__') or ''
    example = re.search(rf'^ {{4}}(?=\S)(.*{re.escape(name)}.*)$', docstring, re.M)
    lines += [f'example: {example[1]}'] if example else []
    lines += ['', inspect.cleandoc(main.__doc__ or ''), '', 'flags:']
    for flag in flags_of(main, aliases):
        lines.append(f'  --{flag.name}{_default_text(flag)}')
        notes = [comments.get(flag.name), *(f'also --{old}' for old in flag.old_names)]
        text = '; '.join(filter(None, notes))
        lines += textwrap.wrap(text, WIDTH - 8, initial_indent=' ' * 8, subsequent_indent=' ' * 8)
    for name, by_value in getattr(main, 'presets', {}).items():
        for value, brought in by_value.items():
            text = f'--{name} {value}: ' + ' '.join(f'--{other} {_as_word(own)}' for other, own in brought.items())
            lines += ['', *textwrap.wrap(text, WIDTH, subsequent_indent='    ')]
    return '\n'.join(lines)


def _as_word(value):
    return ','.join(value) if isinstance(value, tuple) else str(value)


def _default_text(flag):
    """What follows a flag's name in the help."""
    choices = f' {{{",".join(flag.kinds)}}}' if all(isinstance(kind, str) for kind in flag.kinds) else ''
    if flag.is_required:
        return f'{choices} (required)' if flag.range is None else f' (required, {flag.range})'
    default = ','.join(flag.default) if isinstance(flag.default, tuple) else flag.default
    if flag.is_switch:
        return f', --no{flag.name} (default: {default})'
    numbers = '' if flag.range is None else f' ({flag.range})'
    return f'{choices} (default: {default})' if choices else f'={default}{numbers}'


def _comments(main):
    """{argument: the comment behind it in the source of main, with the comments below it in the same column}."""
    try:
        source = textwrap.dedent(inspect.getsource(main))
        function = ast.parse(source).body[0]
        arguments = function.args.args + function.args.kwonlyargs
    except (OSError, TypeError, SyntaxError, AttributeError):
        return {}  # no source, or a lambda
    names = {argument.lineno: argument.arg for argument in arguments}
    comments, name, column = {}, None, None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line, start = token.start
        if line >= function.body[0].lineno:
            break
        name = names.get(line, name)
        if token.type != tokenize.COMMENT or name is None:
            continue
        if token.line[:start].strip():
            column = start
        if start == column:
            comments.setdefault(name, []).append(token.string.lstrip('# '))
    return {name: ' '.join(parts) for name, parts in comments.items()}
