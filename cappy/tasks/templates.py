"""PromptSource templates: read from `templates.yaml`, and rendered to an instruction, its choices and the right one.

Rendering follows PromptSource (bigscience-workshop/promptsource, promptsource/templates.py, commit 00fac7c). Which
examples are left out follows T0's use of it (bigscience-workshop/t-zero, t0/seqio_tasks). Comments say where this
module is stricter or safer.
"""

import random
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jinja2
import yaml
from jinja2 import meta, nodes
from jinja2.sandbox import SandboxedEnvironment
from jinja2.visitor import NodeTransformer

from cappy.errors import InputError
from cappy.files.wording import cut, not_found

SEPARATOR = '|||'  # between prompt and target, and between choices
MAX_FIELD_CHARACTERS = 2048  # of a printed expression; PromptSource cuts longer ones, and so does T0's evaluation

# Replaces the separator in the data. In Unicode these three are never characters of a text, and filters such as `upper`
# do not change them; PromptSource uses 32 letters and digits, which `upper` changes.
_PROTECTED = '\ufdd0\ufdd1\ufdd2'
_CHOICE_AT = 'choice at'  # no text of a template can name a filter with a blank in it


class Question(NamedTuple):
    """An example under a template. gold: index of the right choice, the first of equal ones."""

    instruction: str
    choices: tuple[str, ...]
    gold: int


class Template:
    """A compiled template of PromptSource.

    jinja: text that renders to `prompt ||| target`. answer_choices: text that renders to the choices with ||| between
    them; None for an open-ended template. original_task: whether the template asks what its data set was made for
    (None: not known). where: file and line, for messages. fields: names of the fields that it reads from an example.
    Raises InputError where a text does not parse.
    """

    def __init__(self, name, jinja, answer_choices=None, *, original_task=None, where='template'):
        self.name = name
        self.jinja = jinja
        self.answer_choices = answer_choices or None
        self.original_task = original_task
        self.where = f'{where}: template {name!r}'
        self._random = random.Random()
        self._environment = _make_environment(self._random)
        self.fields = self._fields_of(jinja, 'jinja')
        # A change of the text, not of the parsed template: `{{a ~ b}}` has only b cut, there as here.
        cut = f' | string | truncate({MAX_FIELD_CHARACTERS}) }}}}'
        self._compiled = self._compile(jinja.replace('}}', cut), 'jinja')
        self._compiled_choices = None
        if self.answer_choices is not None:
            self.fields |= self._fields_of(self.answer_choices, 'answer_choices')
            self._compiled_choices = self._compile(self.answer_choices, 'answer_choices')

    def choices(self, example) -> tuple[str, ...] | None:
        """The choices of an example, in order and stripped; None for an open-ended template."""
        choices = self._protected_choices(self._protected_fields(example))
        return None if choices is None else tuple(map(_unprotected, choices))

    def render(self, example) -> tuple[str, str] | None:
        """Prompt and target of an example, each of which may be empty; None where the template renders to nothing.

        Raises InputError where a field of the example is missing, or the text does not have exactly one |||.
        """
        return self._render(example)[0]

    def question(self, example) -> Question | None:
        """The example as a question with choices; None where the template leaves it out.

        It does so with an empty prompt, or with an empty target where the label is not known (T0 leaves out both too).
        Raises InputError as `render` does, and for an empty choice, a label outside the choices, and a target that is
        none of the choices.
        """
        rendered, choices = self._render(example)
        if choices is None:
            raise self._error('has no answer_choices; only templates that have some can be scored')
        if rendered is None or not all(rendered):
            return None
        instruction, target = rendered
        for number, choice in enumerate(choices, start=1):
            if not choice:
                raise self._error(f'choice {number} of {len(choices)} is empty')
        if target not in choices:
            raise self._error(f'the target {_shown(target)} is none of the choices {_shown(" ||| ".join(choices))}')
        return Question(instruction, choices, choices.index(target))

    def _render(self, example):
        """((prompt, target) or None, choices or None)."""
        fields = self._protected_fields(example)
        # Seeded by the example, so that neither the order nor the number of the examples matters.
        self._random.seed(f'{self.name}\n{sorted(fields.items())!r}')
        choices = self._protected_choices(fields)
        # PromptSource does not protect the choices, and a ||| in one of them splits its prompt.
        text = self._run(self._compiled, fields | {'answer_choices': choices})
        choices = None if choices is None else tuple(map(_unprotected, choices))
        if not text.strip():
            return None, choices
        parts = [_unprotected(part.strip()) for part in text.split(SEPARATOR)]
        if len(parts) != 2:
            raise self._error(f'renders to {len(parts) - 1} {SEPARATOR}; one is needed, between prompt and target')
        return tuple(parts), choices

    def _protected_choices(self, fields):
        if self._compiled_choices is None:
            return None
        return [choice.strip() for choice in self._run(self._compiled_choices, fields).split(SEPARATOR)]

    def _protected_fields(self, example):
        fields = {name.replace('-', '_'): value for name, value in example.items()}  # as T0: a-b would be a minus b
        if 'answer_choices' in fields:
            raise self._error('the example has a field answer_choices, a name that templates reserve; rename it')
        for name in sorted(self.fields):
            if name not in fields:
                raise self._error(f'reads the field {name}, missing from the example; it has {", ".join(fields)}')
            if fields[name] is None:
                raise self._error(f'reads the field {name}, which is null in the example')
        return {name: _protected(value) for name, value in fields.items()}

    def _fields_of(self, source, part):
        """The names that the source reads from the example, without those that it tests with `is defined`."""
        try:
            parsed = self._environment.parse(source)
        except jinja2.TemplateSyntaxError as error:
            raise self._error(f'{part} does not parse: {error.message} (line {error.lineno} of its text)') from error
        tested = {
            test.node.name
            for test in parsed.find_all(nodes.Test)
            if test.name in ('defined', 'undefined') and isinstance(test.node, nodes.Name)
        }
        known = {'answer_choices', *self._environment.globals}
        return frozenset(meta.find_undeclared_variables(parsed) - tested - known)

    def _compile(self, source, part):
        environment = self._environment
        try:
            parsed = _CheckChoiceIndices().visit(environment.parse(source))
            code = environment.compile(parsed)
        except jinja2.TemplateSyntaxError as error:
            raise self._error(
                f'{part} does not parse with its fields cut to {MAX_FIELD_CHARACTERS} characters, as PromptSource '
                f'cuts them: {error.message} (line {error.lineno} of its text)'
            ) from error
        return environment.template_class.from_code(environment, code, environment.make_globals(None))

    def _run(self, compiled, fields):
        try:
            return compiled.render(fields)
        except InputError as error:
            raise self._error(str(error)) from error
        except Exception as error:  # a template is a program: it may divide by zero or call what does not exist
            raise self._error(f'cannot be rendered ({type(error).__name__}: {error})') from error

    def _error(self, message):
        return InputError(f'{self.where}: {message}')


def read_templates(path) -> list[Template]:
    """The templates of a `templates.yaml`, in the order of the file.

    Raises InputError naming file and line for text that is not YAML, tags other than those of PromptSource, fields of
    another type, two templates with one name, and a template that does not parse.
    """
    path = Path(path)
    document = _load_yaml(path)
    entries = document.get('templates') if isinstance(document, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise InputError(f'{path}: has no templates; expected a mapping `templates`, as in PromptSource')
    templates, line_of = [], {}
    for key, entry in entries.items():
        if not isinstance(entry, _Tagged) or entry.tag != '!Template':
            raise InputError(f'{path}: templates, {key}: expected a !Template, found {_shown(entry)}')
        template = _make_template(path, entry)
        first = line_of.setdefault(template.name, entry.line)
        if first != entry.line:
            raise InputError(f'{path}:{entry.line}: name {template.name!r} is on line {first} too; rename one')
        templates.append(template)
    return templates


def _make_template(path, entry):
    where = f'{path}:{entry.line}'
    fields = entry.fields
    for name, allowed in {'name': str, 'jinja': str, 'answer_choices': str | None}.items():
        if not isinstance(fields.get(name), allowed):
            raise InputError(f'{where}: {name}: expected text, found {_shown(fields.get(name))}')
    metadata = fields.get('metadata')
    original_task = metadata.fields.get('original_task') if isinstance(metadata, _Tagged) else None
    return Template(
        fields['name'], fields['jinja'], fields.get('answer_choices'), original_task=original_task, where=where
    )


class _Tagged(NamedTuple):
    """A mapping with one of the tags of PromptSource; line: its number, from 1."""

    tag: str
    line: int
    fields: dict


class _Loader(yaml.SafeLoader):
    """Reads plain values and the two tags of PromptSource; makes no object of any other tag."""


def _construct_tagged(loader, node):
    return _Tagged(node.tag, node.start_mark.line + 1, loader.construct_mapping(node, deep=True))


_Loader.add_constructor('!Template', _construct_tagged)
_Loader.add_constructor('!TemplateMetadata', _construct_tagged)


def _load_yaml(path):
    try:
        text = path.read_text(encoding='utf-8')
        return yaml.load(text, Loader=_Loader)
    except FileNotFoundError as error:
        raise InputError(not_found(path, remedy='give the folder of the templates of PromptSource')) from error
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from error
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8') from error
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        line = f':{mark.line + 1}' if mark else ''
        raise InputError(f'{path}{line}: not YAML as in PromptSource ({getattr(error, "problem", error)})') from error
    except (RecursionError, ValueError) as error:  # nested too deep; a date that does not exist
        raise InputError(f'{path}: not YAML that can be read ({error})') from error


class _CheckChoiceIndices(NodeTransformer):
    """Replaces `answer_choices[index]` by `_choice_at`, except for an index that the template spells out.

    Python would take the last choice for the label -1, which means that the label is not known, and jinja would take
    nothing for a label beyond the choices.
    """

    def visit_Getitem(self, node):
        node = self.generic_visit(node)
        of_choices = isinstance(node.node, nodes.Name) and node.node.name == 'answer_choices'
        argument = node.arg.node if isinstance(node.arg, nodes.Neg) else node.arg
        if not of_choices or isinstance(argument, nodes.Const | nodes.Slice):
            return node
        return nodes.Filter(node.node, _CHOICE_AT, [node.arg], [], None, None, lineno=node.lineno)


def _choice_at(choices, index):
    if choices is None:
        raise InputError('reads answer_choices, but has none')
    if not isinstance(index, int):
        raise InputError(f'the label {_shown(index)} is not the number of a choice')
    if not 0 <= index < len(choices):
        raise InputError(f'the label {int(index)} is outside the {len(choices)} choices, which count from 0')
    return choices[index]


def _make_environment(generator):
    """Jinja with the additions of PromptSource, in a sandbox; its `choice` and `random` draw from the generator."""

    @jinja2.pass_context  # otherwise jinja draws once, when it compiles
    def draw(_, items):
        return generator.choice(items)

    environment = SandboxedEnvironment()
    environment.globals['zip'] = zip
    environment.filters |= {
        'highlight': lambda text: f"<span style='color: #F08080'>{text}</span>",
        'most_frequent': _most_frequent,
        'choice': draw,
        'random': draw,
        _CHOICE_AT: _choice_at,
    }
    return environment


def _most_frequent(items):
    """The items that occur most often, in order of first appearance; None where there are no items."""
    if not items:
        return None
    counts = Counter(items)
    most = max(counts.values())
    return [item for item, count in counts.items() if count == most]


def _protected(value):
    """The value with ||| replaced in its texts, also in lists and mappings, which PromptSource does not protect."""
    if isinstance(value, str):
        return value.replace(SEPARATOR, _PROTECTED)
    if isinstance(value, list | tuple):
        return [_protected(item) for item in value]
    if isinstance(value, dict):
        return {key: _protected(item) for key, item in value.items()}
    return value


def _unprotected(text):
    return text.replace(_PROTECTED, SEPARATOR)


def _shown(value):
    return cut(repr(value))
