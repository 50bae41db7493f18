"""Invented templates, one for each thing that the rendering of PromptSource does."""

from pathlib import Path

import pytest

from cappy.errors import InputError
from cappy.tasks.templates import Template, read_templates

PROMPTSOURCE = Path(__file__).parents[1].parent / 'shared' / 'data' / 'promptsource' / 'templates'

FILE = """dataset: birds
templates:
  1b: !Template
    answer_choices: No ||| Yes
    id: 1b
    jinja: 'Does the {{bird}} sing?

      |||

      {{answer_choices[label]}}'
    metadata: !TemplateMetadata
      choices_in_prompt: false
      languages:
      - en
      metrics:
      - Accuracy
      original_task: true
    name: sings
    reference: ''
  2c: !Template
    answer_choices: null
    id: 2c
    jinja: Describe the {{bird}}. ||| {{text}}
    metadata: !TemplateMetadata
      original_task: false
    name: describe
    reference: ''
"""


def write(folder, text):
    path = folder / 'templates.yaml'
    path.write_text(text, encoding='utf-8')
    return path


def question(jinja, answer_choices, **example):
    return Template('t', jinja, answer_choices).question(example)


def test_a_file_gives_its_templates_in_order_with_their_metadata(tmp_path):
    sings, describe = read_templates(write(tmp_path, FILE))
    assert (sings.name, sings.answer_choices, sings.original_task) == ('sings', 'No ||| Yes', True)
    assert (describe.name, describe.answer_choices, describe.original_task) == ('describe', None, False)
    assert (sings.fields, describe.fields) == ({'bird', 'label'}, {'bird', 'text'})
    assert sings.question({'bird': 'wren', 'label': 1}) == ('Does the wren sing?', ('No', 'Yes'), 1)
    assert describe.render({'bird': 'wren', 'text': 'Small.'}) == ('Describe the wren.', 'Small.')


def test_prompt_target_and_choices_are_stripped_and_keep_white_space_inside():
    assert question('\n A:  {{x}}\n\n|||\n {{answer_choices[0]}} \n', '  one  two |||\nthree\n', x=' b ') == (
        'A:   b',
        ('one  two', 'three'),
        0,
    )


def test_choices_may_come_from_the_example():
    template = Template(
        't', '{{q}} ||| {{answer_choices[right - 1]}}', '{{a}} ||| {{b}}{% if c %} ||| {{c}}{% endif %}'
    )
    assert template.question({'q': 'Which?', 'a': 'x', 'b': 'y', 'c': '', 'right': 2}) == ('Which?', ('x', 'y'), 1)
    assert template.choices({'q': 'Which?', 'a': 'x', 'b': 'y', 'c': 'z', 'right': 1}) == ('x', 'y', 'z')
    assert Template('t', '{{q}} ||| {{q}}').choices({'q': 'x'}) is None


def test_a_separator_in_the_data_splits_neither_the_prompt_nor_the_choices():
    jinja = '{{q | upper}} {{ answer_choices | join(", ") }} {{ more[0] }} ||| {{answer_choices[label]}}'
    found = question(jinja, '{{a}} ||| {{b}}', q='a ||| b', a='x|||y', b='z', more=['1 ||| 2'], label=0)
    assert found == ('A ||| B x|||y, z 1 ||| 2', ('x|||y', 'z'), 0)


def test_the_filters_and_functions_of_promptsource_are_there():
    example = {'items': ['b', 'a', 'b', 'a', 'c'], 'others': [1, 2, 3, 4, 5], 'x': 'wren'}

    def rendered(jinja):
        return Template('t', jinja + ' ||| .').render(example)[0]

    assert rendered('{{ x | highlight }}') == "<span style='color: #F08080'>wren</span>"
    assert rendered('{{ items | most_frequent | join("-") }}') == 'b-a'
    assert rendered('{{ [] | most_frequent }}') == 'None'
    assert rendered('{% for a, b in zip(items, others) %}{{a}}{{b}} {% endfor %}') == 'b1 a2 b3 a4 c5'
    assert rendered('{{ ["only"] | choice }}') == 'only'


def test_a_drawn_choice_depends_only_on_the_example():
    template = Template('t', '{{ [1, 2, 3, 4, 5, 6, 7, 8] | choice }}{{ "abcdefgh" | random }} {{x}} ||| .')
    first = [template.render({'x': x}) for x in range(20)]
    again = [Template('t', template.jinja).render({'x': x}) for x in reversed(range(20))]
    assert first == again[::-1]
    assert len({prompt.split()[0] for prompt, _ in first}) > 5


def test_printed_text_is_cut_at_2048_characters_between_words_as_in_promptsource():
    words = ' '.join(['word'] * 1000)  # 4999 characters
    prompt, _ = Template('t', '{{x}} ||| .').render({'x': words})
    assert prompt == words[: 5 * 409 - 1] + '...'  # 2047 characters fit in 2048 with the dots
    nearly = 'x' * 2053  # jinja's truncate leaves five characters more
    assert Template('t', '{{x}} ||| .').render({'x': nearly}) == (nearly, '.')


@pytest.mark.parametrize(
    ('jinja', 'example'),
    [
        ('{% if x %}{{x}} ||| {{answer_choices[0]}}{% endif %}', {'x': ''}),
        ('{{x}} ||| {% if label != -1 %}{{answer_choices[label]}}{% endif %}', {'x': 'a', 'label': -1}),
        ('{{x}} ||| {{answer_choices[0]}}', {'x': ' '}),
    ],
    ids=['nothing', 'no target', 'no prompt'],
)
def test_a_template_may_leave_an_example_out(jinja, example):
    assert Template('t', jinja, 'Yes ||| No').question(example) is None


def test_of_equal_choices_the_first_is_the_right_one():
    assert question('q ||| {{answer_choices[1]}}', 'same ||| same').gold == 0


def test_a_field_that_the_template_tests_may_be_missing():
    template = Template('t', '{% if hint is defined %}{{hint}}{% endif %}{{x}} ||| .')
    assert template.fields == {'x'}
    assert template.render({'x': 'a'}) == ('a', '.')
    assert template.render({'x': 'a', 'hint': 'b'}) == ('ba', '.')


def test_a_hyphen_in_the_name_of_a_field_is_read_as_an_underscore():
    assert Template('t', '{{my_field}} ||| .').render({'my-field': 'a'}) == ('a', '.')


@pytest.mark.parametrize('label', [-1, 2, 'Yes', 0.5])
def test_a_label_outside_the_choices_is_named(label):
    with pytest.raises(
        InputError, match=rf"template 't': the label '?{label}'? is (outside the 2 choices|not the num)"
    ):
        question('{{x}} ||| {{answer_choices[label]}}', 'Yes ||| No', x='a', label=label)


def test_an_index_that_the_template_spells_out_works_as_in_python():
    jinja = '{{answer_choices[:-1] | join(", ")}} or {{answer_choices[-1]}}? ||| {{answer_choices[0]}}'
    assert question(jinja, 'a ||| b ||| c').instruction == 'a, b or c?'


@pytest.mark.parametrize(
    ('jinja', 'answer_choices', 'example', 'message'),
    [
        ('{{x}} ||| {{answer_choices[0]}}', 'Yes |||', {'x': 'a'}, 'choice 2 of 2 is empty'),
        ('{{x}} ||| Perhaps', 'Yes ||| No', {'x': 'a'}, "the target 'Perhaps' is none of the choices 'Yes ||| No'"),
        (
            '{{x}} ||| {{y}}',
            'Yes',
            {'x': 'a', 'z': 1},
            'reads the field y, missing from the example; it has x, z',
        ),
        ('{{x}} ||| .', '{{y}}', {'x': 'a'}, 'reads the field y'),
        ('{{x}} ||| .', '.', {'x': None}, 'reads the field x, which is null'),
        ('{{x}} ||| .', '.', {'x': 'a', 'answer_choices': 'b'}, 'the example has a field answer_choices'),
        ('{{x}}', 'Yes', {'x': 'a'}, 'renders to 0 |||; one is needed'),
        ('{{x}} ||| a ||| b', 'Yes', {'x': 'a'}, 'renders to 2 |||; one is needed'),
        ('{{x}} ||| .', None, {'x': 'a'}, 'has no answer_choices'),
        ('{{(1 // x)}} ||| .', '.', {'x': 0}, 'cannot be rendered (ZeroDivisionError'),
        ('{{x.__class__.__mro__}} ||| .', '.', {'x': 'a'}, 'cannot be rendered (SecurityError'),
        ('{% include "secret" %} ||| .', '.', {}, 'cannot be rendered (TypeError'),
    ],
)
def test_an_example_that_gives_no_question_is_named_with_its_template(jinja, answer_choices, example, message):
    with pytest.raises(InputError) as caught:
        Template('t', jinja, answer_choices, where='file:3').question(example)
    assert str(caught.value).startswith(f"file:3: template 't': {message}")


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (('{{bird}} sing', '{{bird} sing'), ":3: template 'sings': jinja does not parse: unexpected '}' (line 1 of"),
        (
            ('Describe the {{bird}}', 'A {{bird -}}'),
            ":20: template 'describe': jinja does not parse with its fields cut",
        ),
        (('No ||| Yes', 'No {% if %}'), ":3: template 'sings': answer_choices does not parse: "),
        (('name: describe', 'name: sings'), ":20: name 'sings' is on line 3 too"),
        (('name: sings', 'name: 12'), ':3: name: expected text, found 12'),
        (('jinja: Describe', 'jinja: 1 #'), ':20: jinja: expected text, found 1'),
        (
            ('!TemplateMetadata', '!!python/object/apply:os.getcwd'),
            ':11: not YAML as in PromptSource (could not determine',
        ),
        (('  1b: !Template', '  1b:'), ': templates, 1b: expected a !Template'),
        (('templates:', 'template:'), ': has no templates'),
        (("reference: ''", 'reference: ['), ':21: not YAML as in PromptSource'),
    ],
)
def test_a_wrong_file_is_named_with_the_line(tmp_path, change, message):
    assert change[0] in FILE
    path = write(tmp_path, FILE.replace(*change))
    with pytest.raises(InputError) as caught:
        read_templates(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_a_file_that_is_missing_or_not_text_is_named(tmp_path):
    with pytest.raises(InputError, match='none.yaml: no such file'):
        read_templates(tmp_path / 'none.yaml')
    (tmp_path / 'latin.yaml').write_bytes('name: caf\xe9'.encode('latin-1'))
    with pytest.raises(InputError, match='latin.yaml: not UTF-8'):
        read_templates(tmp_path / 'latin.yaml')


@pytest.mark.skipif(not PROMPTSOURCE.is_dir(), reason="PromptSource's templates are not here")
def test_the_templates_of_promptsource_parse_and_have_the_counts_of_the_evaluation_of_t0():
    counts = {}
    for path in PROMPTSOURCE.rglob('templates.yaml'):
        templates = read_templates(path)
        with_choices = [template for template in templates if template.answer_choices is not None]
        original = [template for template in with_choices if template.original_task]
        counts[str(path.parent.relative_to(PROMPTSOURCE))] = (len(templates), len(with_choices), len(original))
    assert counts == {
        'anli': (15, 15, 15),
        'crows_pairs': (8, 6, 0),
        'story_cloze/2016': (6, 6, 5),
        'super_glue/axg': (10, 10, 10),
        'super_glue/cb': (15, 15, 15),
        'super_glue/rte': (10, 10, 10),
        'super_glue/wic': (10, 10, 10),
        'super_glue/wsc.fixed': (10, 10, 10),
        'winogrande/winogrande_xl': (6, 6, 5),
    }
