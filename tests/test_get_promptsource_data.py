"""The lines of small invented tasks, and those of CrowS-Pairs where its texts are beside the repository."""

import hashlib
import importlib.util
import json
import logging
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import run_download

from cappy.errors import InputError

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / 'shared' / 'data' / 'promptsource'
DOWNLOAD = 'download_promptsource_test_data.sh'
# gdown without a network: it breaks its message anywhere.
UNREACHABLE = r"printf 'Max retries\n\texceeded (Failed to\n\tresolve it)' >&2; exit 1"

_spec = importlib.util.spec_from_file_location('get_promptsource_data', ROOT / 'scripts' / 'get_promptsource_data.py')
script = importlib.util.module_from_spec(_spec)
sys.modules['get_promptsource_data'] = script  # where its dataclass looks for its module
_spec.loader.exec_module(script)

TEMPLATE = """  {key}: !Template
    answer_choices: {choices}
    jinja: {jinja}
    metadata: !TemplateMetadata
      original_task: {original}
    name: {name}
"""


def write_templates(folder, dataset, *templates):
    """templates: (name, answer_choices, jinja, original_task)."""
    entries = [
        TEMPLATE.format(
            key=f'k{number}',
            name=name,
            choices=json.dumps(choices),
            jinja=json.dumps(jinja),
            original=json.dumps(original),
        )
        for number, (name, choices, jinja, original) in enumerate(templates)
    ]
    path = folder / dataset / 'templates.yaml'
    path.parent.mkdir(parents=True)
    path.write_text('templates:\n' + ''.join(entries), encoding='utf-8')


@pytest.fixture
def workplace(tmp_path):
    """A folder with templates of two tasks; call it with flags to run the script and get the lines written."""
    templates = tmp_path / 'promptsource' / 'promptsource' / 'templates'
    guarded = '{% if label != -1 %}{{answer_choices[label]}}{% endif %}'
    write_templates(
        templates,
        'super_glue/cb',
        ('follows', 'Yes ||| No ||| Maybe', f'{{{{premise}}}} So: {{{{hypothesis}}}}? ||| {guarded}', True),
        ('open', None, 'Say {{premise}} ||| {{hypothesis}}', True),
        ('first word', 'x ||| y ||| z', f'{{{{premise}}}} ||| {guarded}', False),
    )
    options = '- {{answer_choices | join("\n- ")}}'
    jinja = f'{{{{input_sentence_1}}}}\n{options} ||| {{{{answer_choices[answer_right_ending - 1]}}}}'
    write_templates(
        templates,
        'story_cloze/2016',
        ('ending', '{{sentence_quiz1}} ||| {{sentence_quiz2}}', jinja, False),
    )

    def run(**settings):
        out = tmp_path / 'out.jsonl'
        script.main(**{'output': str(out), 'templates_dir': str(tmp_path / 'promptsource')} | settings)
        return [json.loads(line) for line in out.read_text(encoding='utf-8').splitlines()]

    run.folder = tmp_path
    return run


CB = 'premise,hypothesis,label\nIt rains.,It is wet,entailment\n"Two\nlines, é","No, none",2\nDark.,Lit,1\n'


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding='utf-8')
    return str(path)


def test_a_line_is_written_for_each_choice_and_the_right_one_has_label_1(workplace):
    lines = workplace(tasks=('cb',), local=('cb=' + write(workplace.folder, 'cb.csv', CB),))
    assert lines[:3] == [
        {
            'dataset_name': 'cb',
            'template_name': 'follows',
            'example_idx': 0,
            'instruction': 'It rains. So: It is wet?',
            'response': response,
            'label': label,
        }
        for response, label in [('Yes', 1), ('No', 0), ('Maybe', 0)]
    ]
    assert [line['response'] for line in lines if line['label']] == ['Yes', 'Maybe', 'No']
    assert [line['example_idx'] for line in lines] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert lines[3]['instruction'] == 'Two\nlines, é So: No, none?'


def test_all_takes_every_template_with_choices_and_original_those_of_the_original_task(workplace):
    local = ('cb=' + write(workplace.folder, 'cb.csv', CB),)
    names = [line['template_name'] for line in workplace(tasks=('cb',), local=local, templates='all')]
    assert Counter(names) == {'follows': 9, 'first word': 9}
    assert names[:6] == ['follows'] * 3 + ['first word'] * 3  # the questions of an example follow each other
    assert Counter(line['template_name'] for line in workplace(tasks=('cb',), local=local)) == {'follows': 9}


def test_every_format_of_a_file_gives_the_same_lines(workplace):
    import pyarrow
    from pyarrow import parquet

    examples = [
        {'premise': 'It rains.', 'hypothesis': 'It | is "wet"', 'label': 0},
        *[{'premise': 'a', 'label': 2}] * 2,
    ]
    examples = [{'hypothesis': 'é', **example} for example in examples]
    names = list(examples[0])
    tsv = [names] + [['"' + str(example[name]).replace('"', '""') + '"' for name in names] for example in examples]
    parquet.write_table(pyarrow.Table.from_pylist(examples), workplace.folder / 'cb.parquet')
    files = {
        'tsv': '\n'.join('\t'.join(line) for line in tsv),
        'json': json.dumps(examples),
        'jsonl': ''.join(json.dumps(example) + '\n' for example in examples),
    }
    for suffix, text in files.items():
        write(workplace.folder, f'cb.{suffix}', text)
    lines = [workplace(tasks=('cb',), local=(f'cb={workplace.folder}/cb.{suffix}',)) for suffix in (*files, 'parquet')]
    assert len(lines[0]) == 9
    assert all(each == lines[0] for each in lines)


def test_story_cloze_is_read_from_the_csv_of_its_authors(workplace):
    header = 'InputStoryid,InputSentence1,RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n'
    path = write(workplace.folder, 'cloze 2016.csv', header + 'a,Once.,Good.,Bad ||| odd.,2\n')
    lines = workplace(tasks=('story_cloze',), local=(f'story_cloze={path}',))
    assert [(line['response'], line['label']) for line in lines] == [('Good.', 0), ('Bad ||| odd.', 1)]
    assert lines[0]['instruction'] == 'Once.\n- Good.\n- Bad ||| odd.'


def test_the_same_input_gives_the_same_bytes(workplace):
    settings = {'tasks': ('cb',), 'local': ('cb=' + write(workplace.folder, 'cb.csv', CB),), 'templates': 'all'}
    workplace(**settings)
    first = (workplace.folder / 'out.jsonl').read_bytes()
    workplace(**settings)
    assert (workplace.folder / 'out.jsonl').read_bytes() == first


def test_examples_without_a_label_are_left_out_and_counted(workplace, caplog):
    path = write(workplace.folder, 'cb.csv', CB.replace('entailment', '-1'))
    lines = workplace(tasks=('cb',), local=(f'cb={path}',))
    assert {line['example_idx'] for line in lines} == {1, 2}
    assert "cb: left out, for an empty prompt or no label: 'follows' 1" in caplog.text


def test_a_failed_task_is_named_and_has_no_line_while_the_others_are_written(workplace, caplog):
    story = 'input_sentence_1,sentence_quiz1,sentence_quiz2,answer_right_ending\na,b,c,1\na,b,c,3\n'
    local = [f'cb={write(workplace.folder, "cb.csv", CB)}', f'story_cloze={write(workplace.folder, "s.csv", story)}']
    with pytest.raises(InputError, match=r'1 of 2 tasks failed \(story_cloze\).*has the 9 lines of the others'):
        workplace(tasks=('story_cloze', 'cb'), local=local)
    assert 's.csv:3: answer_right_ending: expected 1 or 2, found "3"' in caplog.text
    lines = [json.loads(line) for line in (workplace.folder / 'out.jsonl').read_text(encoding='utf-8').splitlines()]
    assert [line['dataset_name'] for line in lines] == ['cb'] * 9


def test_a_file_that_exists_is_replaced_only_when_no_task_fails(workplace):
    out = workplace.folder / 'out.jsonl'
    out.write_text('as it was', encoding='utf-8')
    with pytest.raises(InputError, match='out.jsonl is unchanged'):
        workplace(tasks=('story_cloze', 'cb'), local=('cb=' + write(workplace.folder, 'cb.csv', CB),))
    assert out.read_text(encoding='utf-8') == 'as it was'
    assert sorted(path.name for path in workplace.folder.iterdir()) == ['cb.csv', 'out.jsonl', 'promptsource']


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        (
            'cb.csv',
            CB.replace('hypothesis', 'guess'),
            'reads the field hypothesis, missing from the example; it has prem',
        ),
        (
            'cb.csv',
            CB.replace('entailment', 'perhaps'),
            'cb.csv:2: label: expected 0 to 2 or one of entailment, contra',
        ),
        ('cb.csv', CB.replace(',1\n', ',3\n'), 'cb.csv:5: label: expected 0 to 2 or'),  # the record above has two lines
        ('cb.csv', CB + 'a,b\n', 'cb.csv:6: expected 3 columns, found 2'),
        ('cb.csv', CB + '"a,b\n', 'cb.csv:6: unexpected end of data'),
        ('cb.csv', '', 'cb.csv:1: expected a header'),
        ('cb.csv', 'premise,hypothesis,label\n', 'cb.csv: holds no examples'),
        ('cb.csv', 'premise,hypothesis,label\na,b,-1\n', '1 examples give no line: the templates leave out'),
        ('cb.json', '{}', 'cb.json: expected a list of objects'),
        ('cb.json', '[1]', 'cb.json: item 1: expected a JSON object'),
        ('cb.json', '{"a": 1}\n{"a": 2}', 'cb.json: not JSON'),
        ('cb.jsonl', '{"premise": "a"\n', 'cb.jsonl:1: not JSON'),
        ('cb.jsonl', '{"premise": null, "hypothesis": "b", "label": 0}', 'reads the field premise, which is null'),
        ('cb.parquet', 'no parquet', 'cb.parquet: not parquet'),
        ('cb.txt', 'x', 'cb.txt: cannot tell its format'),
    ],
)
def test_a_wrong_file_is_named_and_nothing_is_written(workplace, caplog, name, text, message):
    with pytest.raises(InputError, match=r'1 of 1 tasks failed \(cb\)'):
        workplace(tasks=('cb',), local=('cb=' + write(workplace.folder, name, text),))
    assert message in caplog.text
    assert sorted(path.name for path in workplace.folder.iterdir()) == sorted([name, 'promptsource'])


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'tasks': ('cbs',)}, "--tasks: no task 'cbs'; did you mean cb?"),
        ({'tasks': ('cb',), 'local': ('rte=x.csv',)}, "--local: no task 'rte'; choose from cb"),
        ({'local': ('x.csv',)}, "--local: expected task=.., found 'x.csv'"),
        ({'splits': ('cb=a', 'cb=b')}, '--splits names cb twice'),
        ({'templates_dir': 'none/at/all'}, 'none/at/all: no such folder; give --templates_dir a clone: git clone'),
    ],
)
def test_a_wrong_flag_is_named_before_anything_is_read(workplace, settings, message):
    with pytest.raises(InputError) as caught:
        workplace(**settings)
    assert str(caught.value).startswith(message)


def test_a_task_is_fetched_from_its_source_and_a_failure_there_has_the_next_step(workplace, caplog, monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        if kwargs['split'] == 'away':
            raise ConnectionError("Couldn't\nreach the hub")
        return [{'premise': 'a', 'hypothesis': 'b', 'label': 1, 'idx': 7}]

    monkeypatch.setitem(sys.modules, 'datasets', SimpleNamespace(load_dataset=load_dataset))
    lines = workplace(tasks=('cb',))
    assert [(line['response'], line['label']) for line in lines] == [('Yes', 0), ('No', 1), ('Maybe', 0)]
    assert 'cb: 1 examples, where 56 were published' in caplog.text
    with pytest.raises(InputError, match='1 of 1 tasks failed'):
        workplace(tasks=('cb',), splits=('cb=away',))
    assert (
        "aps/super_glue, cb: cannot be fetched, since the hub does not answer (Couldn't reach the hub)" in caplog.text
    )
    assert asked == [(('aps/super_glue', 'cb'), {'split': split}) for split in ('validation', 'away')]


def test_a_label_may_be_a_number_a_name_or_a_truth_value():
    labels = script.class_label('False', 'True')
    assert [labels(value) for value in (0, '1', True, 'false', ' True ', -1)] == [0, 1, 1, 0, 1, -1]
    anli = next(task for task in script.TASKS if task.name == 'anli_r1')
    assert [anli.converters['label'](value) for value in ('e', 'n', 'c', 'neutral', 2)] == [0, 1, 2, 1, 2]
    winogrande = next(task for task in script.TASKS if task.name == 'winogrande')
    assert [winogrande.converters['answer'](value) for value in ('1', 2)] == ['1', '2']
    with pytest.raises(InputError, match="expected '1' or '2', found \"\""):
        winogrande.converters['answer']('')


def test_the_list_of_tasks_has_source_split_and_licence_of_all_eleven(capsys):
    script.main(list_tasks=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:12]] == [task.name for task in script.TASKS]
    assert 'winogrande   1,267     validation  allenai/winogrande winogrande_xl' in lines[9]
    assert lines[11].endswith('CC BY-SA 4.0')
    published = json.loads((ROOT / 'cappy' / 'published' / 'promptsource_accuracy.json').read_text(encoding='utf-8'))
    names = [entry['names'] for entry in published['tasks'].values()]
    assert [task.name.replace('_', '') in known for task, known in zip(script.TASKS, names, strict=True)] == [True] * 11


@pytest.mark.skipif(not REAL.is_dir(), reason="PromptSource's templates are not here")
def test_promptsources_own_templates_find_the_right_choice_of_every_task(tmp_path):
    nli = {'premise': 'It rains.', 'hypothesis': 'It is wet.', 'label': 0}
    story = {f'InputSentence{number}': f'Line {number}.' for number in range(1, 5)}
    story |= {'RandomFifthSentenceQuiz1': 'Good.', 'RandomFifthSentenceQuiz2': 'Bad.', 'AnswerRightEnding': '2'}
    wsc = {'text': 'Ann saw that she won', 'span1_text': 'Ann', 'span2_text': 'she', 'span2_index': 3, 'label': True}
    examples = dict.fromkeys(('anli_r1', 'anli_r2', 'anli_r3', 'cb', 'rte', 'winogender'), nli) | {
        'story_cloze': story,
        'wsc': wsc,
        'wic': {'word': 'bank', 'sentence1': 'A bank.', 'sentence2': 'The bank.', 'label': 0},
        'winogrande': {'sentence': 'Ann met Bo and _ sang.', 'option1': 'Ann', 'option2': 'Bo', 'answer': 1},
        'crows_pairs': {'sent_more': 'a', 'sent_less': 'b', 'stereo_antistereo': 'stereo', 'bias_type': 'age'},
    }
    local = [f'{name}={write(tmp_path, f"{name}.json", json.dumps([example]))}' for name, example in examples.items()]
    out = tmp_path / 'all.jsonl'
    script.main(output=str(out), templates_dir=str(REAL / 'templates'), local=local)
    lines = [json.loads(line) for line in out.read_text(encoding='utf-8').splitlines()]
    assert Counter(line['dataset_name'] for line in lines if line['label']) == {  # a right choice under every template
        **{'anli_r1': 15, 'anli_r2': 15, 'anli_r3': 15, 'cb': 15, 'rte': 10, 'story_cloze': 5},
        **{'wsc': 10, 'wic': 10, 'winogrande': 5, 'winogender': 10, 'crows_pairs': 6},
    }
    assert {(line['dataset_name'], line['response']) for line in lines if line['label']} == {
        *((name, yes) for name in ('anli_r1', 'anli_r2', 'anli_r3', 'cb') for yes in YES),
        *((name, yes) for name in ('rte', 'winogender') for yes in ('Yes', 'True')),
        *(('wsc', yes) for yes in ('Yes', 'True')),
        *(('wic', no) for no in ('No', 'False')),
        *(('story_cloze', 'Bad.'), ('winogrande', 'Ann')),
        *(('crows_pairs', answer) for answer in ('Yes', 'No', 'Sentence A demonstrates a stereotype', 'Age')),
    }
    assert Counter(line['dataset_name'] for line in lines) == {
        **dict.fromkeys(('anli_r1', 'anli_r2', 'anli_r3', 'cb'), 15 * 3),
        **dict.fromkeys(('rte', 'wsc', 'wic', 'winogender'), 10 * 2),
        **{'story_cloze': 5 * 2, 'winogrande': 5 * 2, 'crows_pairs': 5 * 2 + 9},
    }


YES = ('Correct', 'Yes', 'True', 'Guaranteed', 'Always')  # what the templates call an entailment

# {line of the file, from 0: SHA-256 of its bytes}. Each line was compared with template and csv by eye.
CHECKED_LINES = {
    0: 'd02e706eb14ec2e2b9601d5b77c1e02c48457d9a4c3f71458189bced3b328067',  # stereotype
    41: 'e042e8cc3bd0f8ab8de8b80258db7058dffd4689d6e7dd30a3aab318a5d3e49f',  # demontraste_or_violate
    148: 'd24dd75682929d494612ef442bbf3da8cb4cbac6ea509d9b2f106b0d9dd64105',  # which_bias
    1900: '84c1d169d2e93e8e13c86c0d47e3889de18d764cfcad7822d1996642998d0576',  # stereotype
    7509: '0f0551b34b5644e8d215f13fe24e85aa19eba6eb79827684f8ed94ce00881746',  # stereotype_confirm
    12170: 'e7ef05ed1addf0d779de06d339356d2c125ed3ce60fdc6177b903cc812559d94',  # which_bias
    15830: '8771fd6ee5f93e6d7ac6a675ba4b07fcf7b77a04c61695c3358bbed8b1566d5c',  # demontraste_or_violate
    17088: '338401445a5203ef94a0d8acac37e54ab5a3043388ec35680a2ed1d23f00089c',  # anti_stereotype
    22804: '4cea38cd4facfe8b20674e8d4c84e9b8cdc8a804f4f433b3d2f515de00e8fcdb',  # stereotype_confirm
    28641: '1fa42ad3e745713f94c2935a0fcaf2d7455b06aad9dd8792d46f307d3b5dca8f',  # anti_stereotype_confirm
}


@pytest.mark.skipif(not REAL.is_dir(), reason='CrowS-Pairs is not here')
def test_crows_pairs_is_1508_pairs_under_six_templates_and_ten_lines_are_as_recorded(tmp_path):
    out = tmp_path / 'crows.jsonl'
    script.main(
        output=str(out),
        templates_dir=str(REAL / 'templates'),
        tasks=('crows_pairs',),
        local=(f'crows_pairs={REAL}/crows_pairs/crows_pairs_anonymized.csv',),
    )
    lines = out.read_bytes().splitlines()
    records = [json.loads(line) for line in lines]
    assert Counter(record['template_name'] for record in records) == {
        **dict.fromkeys(('stereotype', 'demontraste_or_violate', 'stereotype_confirm'), 1508 * 2),
        **dict.fromkeys(('anti_stereotype', 'anti_stereotype_confirm'), 1508 * 2),
        'which_bias': 1508 * 9,
    }
    gold = Counter((record['template_name'], record['response']) for record in records if record['label'])
    assert (gold['stereotype', 'Yes'], gold['stereotype', 'No']) == (1290, 218)  # stereo and antistereo in the csv
    assert (gold['which_bias', 'Race and color'], gold['which_bias', 'Age']) == (516, 87)
    assert sum(gold.values()) == 1508 * 6
    assert {number: hashlib.sha256(lines[number]).hexdigest() for number in CHECKED_LINES} == CHECKED_LINES


def test_the_download_is_kept_after_its_lines_were_checked(tmp_path):
    row = {
        'dataset_name': 'cb',
        'template_name': 't',
        'example_idx': 0,
        'instruction': 'a',
        'response': 'b',
        'label': 1,
    }
    (tmp_path / 'drive').write_text(f'{json.dumps(row)}\n' * 2, encoding='utf-8')
    gdown = '[ $1 = 1OjmNOavE6hd4eOAEbW45Clp7Kz3N947T ] && cp drive "$3"'
    done = run_download(DOWNLOAD, tmp_path, gdown)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.splitlines() == ['promptsource_test.jsonl:', '  cb: 2 choices', '  2 choices from 1 data sets']
    assert (tmp_path / 'promptsource_test.jsonl').read_text().splitlines() == [json.dumps(row)] * 2
    again = run_download(DOWNLOAD, tmp_path, 'exit 9')
    assert (again.returncode, again.stdout.splitlines()[0]) == (0, 'promptsource_test.jsonl exists:')


@pytest.mark.parametrize(
    ('gdown', 'message'),
    [
        ('echo too many users >&2; exit 1', 'the Drive does not give the file'),
        (UNREACHABLE, 'error: no network: the Drive cannot be reached (see above); run this again where it can'),
        ('echo "<html>sorry</html>" > $3', "line 1 is not JSON: '<html>sorry</html>'"),
        ('echo \'{"label": 1}\' > $3', 'line 1 has no dataset_name, example_idx, instruction, response, template_name'),
        ('true', 'nothing came from the Drive'),
        (None, 'gdown is not installed'),
    ],
)
def test_a_download_that_fails_leaves_nothing_and_says_what_to_do(tmp_path, gdown, message):
    done = run_download(DOWNLOAD, tmp_path, gdown)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.splitlines()[-1].endswith('python scripts/get_promptsource_data.py --help')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bin', 'scripts']


@pytest.fixture(autouse=True)
def logged(caplog):
    caplog.set_level(logging.INFO)
