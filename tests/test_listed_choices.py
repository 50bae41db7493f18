"""Choices found in instructions and in a template's responses."""

import pytest

from cappy.pretrain_data.listed_choices import MAX_CHOICES, N_PER_CHOICE, TemplateChoices, find_listed, find_shared


@pytest.mark.parametrize(
    ('instruction', 'response', 'kind', 'choices'),
    [
        ('Pick:\n- red\n\n - dark blue\n* green', 'dark blue', 'lines', ('red', 'dark blue', 'green')),
        ('What?\nA. one\nB. two', 'two', 'lines', ('one', 'two')),
        ('What?\n- A: one\n\n- B: two\n\nAnswer:', 'B', 'letters', ('A', 'B')),
        ('What?\n(1) one\n(2) two', '2', 'letters', ('1', '2')),
        ('Choose between "at the sea" and  "at home".', 'at home', 'quotes', ('at the sea', 'at home')),
        ('Is it "a", "b", or "c"?', 'b', 'quotes', ('a', 'b', 'c')),
        ('Answer (choices are more or less ):\nWhy?', 'less', 'commas', ('more', 'less')),
        ('Why?\n\nPossible answers: to eat, to sleep, to run', 'to eat', 'commas', ('to eat', 'to sleep', 'to run')),
    ],
)
def test_the_listed_choices_are_found_by_the_response_among_them(instruction, response, kind, choices):
    assert find_listed(instruction, response) == (kind, choices)


@pytest.mark.parametrize(
    ('instruction', 'response'),
    [
        ('Steps:\n- heat water\n- pour it\nWhat comes next?', 'drink it'),
        ('Pick:\n- red\n- blue', 'Red'),  # wrong choices in another case would give the right one away
        ('Pick:\n- red\n- red', 'red'),
        ('Pick:\n- red\nor\n- blue', 'red'),  # two blocks of one
        ('What?\nA. one\nC. two', 'C'),
        ('She said "yes" and then "no way".', 'yes way'),
        ('A tree or a bush grows here. Which?', 'a tree'),
    ],
)
def test_a_list_without_the_response_or_of_one_item_has_no_choices(instruction, response):
    assert find_listed(instruction, response) is None


def test_of_several_lists_the_last_with_the_response_is_taken():
    instruction = 'Facts:\n- a dog\n- a cat\n\nWhich animal?\n\n- a cat\n- a cow'
    assert find_listed(instruction, 'a cat').choices == ('a cat', 'a cow')
    assert find_listed(instruction, 'a dog').choices == ('a dog', 'a cat')


@pytest.mark.parametrize(
    ('shared', 'observed', 'choices'),
    [
        ('Is this review positive or negative?', ('negative',), ('positive', 'negative')),
        ('Did they find it good or bad?', ('good',), ('good', 'bad')),
        ('Is that a correct answer? Yes or no.', ('No',), ('Yes', 'No')),
        (
            'Is this a piece of news regarding world politics, sports, business, or science and technology?',
            ('Business', 'Science and technology'),
            ('World politics', 'Sports', 'Business', 'Science and technology'),
        ),
        (
            'Which section? World News, Sports, Business, or Science and Technology?',
            ('Business',),
            ('World News', 'Sports', 'Business', 'Science and Technology'),
        ),
        (
            'Would you show it to a politician, an athlete, a business executive, or a scientist?',
            ('Scientist',),
            ('Politician', 'Athlete', 'Business executive', 'Scientist'),
        ),
        (
            'Given a choice of categories company, artist, film or written work, the text refers to which one?',
            ('Company',),
            ('Company', 'Artist', 'Film', 'Written work'),
        ),
        ('Descriptors: Entity, Person, Quantity', ('Entity',), ('Entity', 'Person', 'Quantity')),
        ('Would it decrease or increase the chances of you buying it?', ('decrease', 'increase'), None),
    ],
)
def test_a_list_in_the_text_that_all_instructions_share_gives_the_choices(shared, observed, choices):
    instructions = [f'{text}\n{shared}' for text in ('It rains, or it snows, or it thaws.', 'Nothing.', 'A day.')]
    assert find_shared(instructions, observed) == (choices or observed)
    assert find_shared([f'{shared}\nText: {text}' for text in 'abc'], observed) == (choices or observed)


@pytest.mark.parametrize('shared', ['What is it?', 'Answer yes.', 'Is it red, green or blue?', 'In 2 or 3 words:'])
def test_without_the_response_in_a_shared_list_there_are_no_choices(shared):
    assert find_shared([f'{text}. {shared}' for text in 'abc'], ('no',)) == ()


def test_a_list_in_one_instruction_alone_is_not_shared():
    assert find_shared(['Good or bad?\nx', 'Say it.\ny'], ('Good',)) == ()


def test_responses_that_repeat_often_are_a_closed_set():
    responses = ['yes', 'no'] * N_PER_CHOICE
    found = TemplateChoices([f'Question {i}?' for i in range(len(responses))], responses)
    assert (found.kind, found.choices) == ('closed', ('no', 'yes'))
    assert found.choices_of('Another?', ['yes']) == ('no', 'yes')
    assert found.choices_of('Another?', ['perhaps']) == ()


def test_titles_that_several_instances_share_are_no_closed_set():
    responses = [f'Film {i // 15}' for i in range(13 * 15)]
    assert TemplateChoices([f'Plot {i}' for i in range(len(responses))], responses).kind == 'open'


def test_a_closed_set_needs_enough_instances_few_responses_and_none_seen_only_once():
    once = ['yes'] * 200 + ['no']
    assert TemplateChoices([f'Question {i}?' for i in range(len(once))], once).kind == 'open'
    many = [f'word {i}' for i in range(MAX_CHOICES + 1)] * N_PER_CHOICE
    assert TemplateChoices([f'Question {i}?' for i in range(len(many))], many).kind == 'open'
    few = ['yes', 'no'] * (N_PER_CHOICE - 1) + ['yes']
    assert TemplateChoices([f'Question {i}?' for i in range(len(few))], few).kind == 'open'


def test_a_single_response_is_a_choice_only_where_a_shared_list_has_it():
    instructions = [f'Text {i}. Is this review positive or negative?' for i in range(5)]
    found = TemplateChoices(instructions, ['negative'] * 5)
    assert (found.kind, found.choices) == ('closed', ('positive', 'negative'))
    assert TemplateChoices([f'Text {i}. What is it?' for i in range(5)], ['negative'] * 5).kind == 'single'
    assert TemplateChoices(['Text. What is it?'], ['a text']).kind == 'open'


def test_listed_choices_are_taken_where_nine_of_ten_instances_list_them():
    def sample(n_listing):
        lists = [f'Which?\n- a{i}\n- b{i}' for i in range(n_listing)]
        return lists + [f'Which? {i}' for i in range(n_listing, 20)], [f'a{i}' for i in range(20)]

    found = TemplateChoices(*sample(18))
    assert found.kind == 'listed'
    assert found.choices_of('Which?\n- x\n- y', ['y']) == ('x', 'y')
    assert found.choices_of('Which?\n- x\n- y', ['x', 'z']) == ()
    assert found.choices_of('Which?', ['x']) == ()
    assert TemplateChoices(*sample(17)).kind == 'open'


def test_a_comma_list_of_another_length_than_most_is_not_read():
    instructions = [f'Why? Possible answers: to eat {i}, to sleep, to run' for i in range(19)]
    instructions.append('Why? Possible answers: well, to eat 19, to sleep, to run')
    found = TemplateChoices(instructions, [f'to eat {i}' for i in range(20)])
    assert found.kind == 'listed'
    assert found.choices_of(instructions[0], ['to eat 0']) == ('to eat 0', 'to sleep', 'to run')
    assert found.choices_of(instructions[-1], ['to eat 19']) == ()
