"""Pretraining data: the pairs of an instance, where they are written, and what is refused."""

import functools
import gzip
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from conftest import ROOT, run_main

from cappy.errors import InputError
from cappy.pretrain_data import instances, shard_writer
from cappy.pretrain_data.pair_maker import N_NEAR
from cappy.pretrain_data.stream import check_shards, find_shards
from cappy.tasks.rouge import RougeL
from scripts import get_pretrain_data as script

SCRIPT = ROOT / 'scripts' / 'get_pretrain_data.py'
FIELDS = ['template', 'source', 'instruction', 'response', 'label']
ALTERED = {'truncated', 'repeated', 'reordered', 'swapped'}
PLACES = ('river', 'bridge', 'market', 'garden', 'harbour', 'station', 'castle', 'square')


def yes_no(n=40, name='agree_a'):
    """A template with a closed set of two."""
    return [
        {'template': name, 'instruction': f'Is {i} even?\n', 'response': f' {"yes" if i % 2 == 0 else "no"}'}
        for i in range(n)
    ]


def listed(n=20, name='pick_a', n_choices=6):
    """A template whose instances list their choices, the right one among them at another place each time."""
    return [
        {
            'template': name,
            'instruction': f'{name}. Which is {i}?\n'
            + '\n'.join(f'- choice {i + k}' for k in range(-(i % n_choices), n_choices)),
            'response': f'choice {i}',
        }
        for i in range(n)
    ]


def texts(n=30, name='tell_a'):
    """A generative template."""
    return [
        {
            'template': name,
            'instruction': f'Tell of {i}.',
            'response': f'Story {i} is of the {PLACES[i % 8]} and the {PLACES[i // 8 % 8]} that Anna saw in {900 + i}.',
        }
        for i in range(n)
    ]


def write(path, *groups):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in itertools.chain(*groups)), 'utf-8')
    return path


def make(tmp_path, *groups, name='data', **settings):
    """Run the script on these lines -> (training pairs in the order of the shards, held-out pairs, counts)."""
    source = write(tmp_path / f'{name}.jsonl', *groups)
    settings = {'heldout': ('none',), 'n_shards': 3} | settings
    script.main(sources=(str(source),), output_dir=str(tmp_path / name), **settings)
    return read_data(tmp_path / name)


def read_data(folder):
    train = [pair for path in sorted(folder.glob('train-*')) for pair in read_lines(path)]
    return train, read_lines(folder / 'heldout.jsonl'), json.loads((folder / 'counts.json').read_text('utf-8'))


def read_lines(path):
    return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def by_instruction(pairs):
    groups = {}
    for pair in pairs:
        groups.setdefault(pair['instruction'], []).append(pair)
    return groups


def fields(counts, template, *names):
    return [counts['templates'][template][name] for name in names]


def as_set(pairs):
    return {tuple(pair.values()) for pair in pairs}


def test_the_right_choice_of_a_closed_set_is_1_and_the_other_0(tmp_path):
    train, held_out, counts = make(tmp_path, yes_no())
    assert {tuple(pair) for pair in train} == {tuple(FIELDS)}
    assert as_set(train) == {
        ('agree_a', 'choice', f'Is {i} even?', text, float((text == 'yes') == (i % 2 == 0)))
        for i in range(40)
        for text in ('yes', 'no')
    }
    assert held_out == [] and len(train) == 80
    assert fields(counts, 'agree_a', 'kind', 'choices') == ['closed', ['no', 'yes']]


def test_training_draws_some_wrong_choices_and_held_out_instances_keep_all_in_order(tmp_path):
    train, held_out, _ = make(
        tmp_path, listed(name='pick_a'), listed(name='pick_b'), heldout=('pick_b',), max_wrong_choices=2
    )
    lines = [*listed(name='pick_a'), *listed(name='pick_b')]
    lists = {line['instruction']: [text[2:] for text in line['instruction'].split('\n')[1:]] for line in lines}
    for instruction, pairs in by_instruction(train).items():
        assert sorted(pair['label'] for pair in pairs) == [0, 0, 1]
        assert {pair['response'] for pair in pairs} < set(lists[instruction])
    assert len(by_instruction(train)) == 20
    for instruction, pairs in by_instruction(held_out).items():
        assert [pair['response'] for pair in pairs] == lists[instruction]
        assert [pair['response'] for pair in pairs if pair['label'] == 1] == [
            instruction.split('?')[0].replace('pick_b. Which is', 'choice')
        ]
    assert len(by_instruction(held_out)) == 20


def test_choices_that_the_source_gives_are_taken_as_they_are(tmp_path):
    lines = [
        {'template': 'own', 'instruction': f'Say {i}.', 'response': 'b', 'choices': [' a', 'b ', f'c{i}']}
        for i in range(5)
    ]
    train, _, counts = make(tmp_path, lines, max_wrong_choices=5)
    assert as_set(train) == {
        ('own', 'choice', f'Say {i}.', text, float(text == 'b')) for i in range(5) for text in ('a', 'b', f'c{i}')
    }
    assert counts['templates']['own']['kind'] == 'given'


def test_a_template_with_one_response_and_no_list_is_left_out_and_named(tmp_path, capsys):
    single = [{'template': 'feel_a', 'instruction': f'Film {i}. How is it?', 'response': 'bad'} for i in range(5)]
    shared = [
        {'template': 'feel_b', 'instruction': f'Film {i}. Is it good or bad?', 'response': 'bad'} for i in range(5)
    ]
    train, _, counts = make(tmp_path, single, shared)
    assert {(pair['template'], pair['response'], pair['label']) for pair in train} == {
        ('feel_b', 'good', 0),
        ('feel_b', 'bad', 1),
    }
    assert counts['templates']['feel_a']['left_out'] == {'one response only': 5}
    assert '1 template gave no pair: feel_a' in capsys.readouterr().out


def test_a_generative_instance_has_its_reference_others_and_altered_ones_labelled_by_rougeL(tmp_path):
    lines = texts()
    train, _, _ = make(tmp_path, lines, n_others=2, n_altered=3)
    responses = {line['instruction']: line['response'] for line in lines}
    for instruction, pairs in by_instruction(train).items():
        sources = Counter(pair['source'] for pair in pairs)
        assert sources['reference'] == 1 and sources['other'] == 2
        assert sum(sources[name] for name in ALTERED) == 3 and max(sources[name] for name in ALTERED) == 1
        assert len({pair['response'] for pair in pairs}) == len(pairs) == 6
        for pair in pairs:
            assert pair['response'] == pair['response'].strip() != ''
            assert pair['label'] == RougeL().score([responses[instruction]], pair['response'])
            assert (pair['response'] in responses.values()) == (pair['source'] in ('reference', 'other'))
    assert set().union(*({pair['source']} for pair in train)) == {'reference', 'other', *ALTERED}


def test_the_first_of_the_others_comes_from_a_near_instance(tmp_path):
    train, _, _ = make(tmp_path, texts(200), n_others=1, n_altered=0)
    number = {line['response']: i for i, line in enumerate(texts(200))}
    distances = [
        abs(number[pair['response']] - int(pair['instruction'][8:-1])) for pair in train if pair['source'] == 'other'
    ]
    assert len(distances) == 200 and min(distances) >= 1 and max(distances) <= N_NEAR


def test_responses_to_one_instruction_are_references_of_one_instance(tmp_path):
    lines = texts(8)
    again = [line | {'response': f'Another way to tell that Anna saw {i}.'} for i, line in enumerate(lines)]
    train, _, counts = make(tmp_path, lines, again)
    assert counts['parts']['train']['instances'] == 8
    for i, (_, pairs) in enumerate(sorted(by_instruction(train).items())):
        references = [lines[i]['response'], again[i]['response']]
        assert {pair['response'] for pair in pairs if pair['source'] == 'reference'} == set(references)
        assert all(pair['label'] == RougeL().score(references, pair['response']) for pair in pairs)


def test_a_reference_without_a_word_for_rougeL_is_left_out_unless_the_tokenizer_reads_its_script(tmp_path):
    greek = [
        {'template': 'greek', 'instruction': f'Ρώτα {i}', 'response': f'Η απάντηση {word}'}
        for i, word in enumerate(('α', 'β', '1900 a'))  # a number, or a letter, that is read says nothing of the rest
    ]
    train, _, counts = make(tmp_path, greek, yes_no())
    assert {pair['template'] for pair in train} == {'agree_a'}
    assert fields(counts, 'greek', 'left_out') == [{'no word that rougeL reads (--rouge_tokenizer unicode)': 3}]
    train, _, _ = make(tmp_path, greek, name='unicode', rouge_tokenizer='unicode')
    assert {pair['label'] for pair in train if pair['source'] == 'reference'} == {1}


def test_empty_responses_are_left_out_and_counted(tmp_path):
    empty = [{'template': 'none', 'instruction': f'Say {i}', 'response': ' \n'} for i in range(3)]
    train, _, counts = make(tmp_path, empty, yes_no(), [yes_no()[0] | {'response': ''}])
    assert len(train) == 80
    assert counts['parts']['train']['left_out'] == {'empty text': 4}
    assert fields(counts, 'none', 'lines', 'instances', 'pairs') == [3, 0, {}]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_bytes(tmp_path):
    groups = yes_no(), texts(name='tell_a'), texts(name='tell_b')
    for name, seed in (('one', 1), ('two', 1), ('three', 2)):
        make(tmp_path, *groups, name=name, heldout=('tell_b',), seed=seed)
    names = ['heldout.jsonl', *(shard_writer.shard_name(i, 3) for i in range(3))]
    one, two, three = ([(tmp_path / run / name).read_bytes() for name in names] for run in ('one', 'two', 'three'))
    assert one == two
    assert all(ours != theirs for ours, theirs in zip(one, three, strict=True))


def test_the_pairs_of_an_instance_do_not_depend_on_what_else_is_read(tmp_path):
    alone, _, _ = make(tmp_path, texts(name='tell_b'), listed(name='pick_b'), name='alone')
    beside, _, _ = make(tmp_path, yes_no(), listed(name='pick_b'), texts(), texts(name='tell_b'), name='beside')
    assert as_set(alone) == as_set(pair for pair in beside if pair['template'] in ('tell_b', 'pick_b'))


def test_pairs_are_scattered_over_the_shards_and_shuffled_in_each(tmp_path):
    make(tmp_path, yes_no(1000, 'agree_a'), yes_no(1000, 'agree_b'))
    paths = find_shards(tmp_path / 'data')
    sizes = [shard.n_pairs for shard in check_shards(paths, progress=False)]
    assert len(sizes) == 3 and sum(sizes) == 4000
    assert max(sizes) - min(sizes) < 6 * (4000 * 1 / 3 * 2 / 3) ** 0.5  # twice three standard deviations of a binomial
    for path in paths:
        templates = [pair['template'] for pair in read_lines(path)]
        changes = sum(a != b for a, b in itertools.pairwise(templates))
        assert changes > len(templates) / 3


def test_held_out_templates_give_no_training_pair_and_the_pairs_of_an_instance_follow_each_other(tmp_path):
    groups = yes_no(), yes_no(name='other_a'), texts(name='tell_a'), texts(name='other_b')
    groups = [
        [line | {'instruction': f'{line["template"]}: {line["instruction"]}'} for line in group] for group in groups
    ]
    train, held_out, counts = make(tmp_path, *groups, heldout=('other_*',), heldout_instances=7)
    assert {pair['template'] for pair in train} == {'agree_a', 'tell_a'}
    keys = [(pair['template'], pair['instruction']) for pair in held_out]
    groups_in_order = [key for key, _ in itertools.groupby(keys)]
    assert len(groups_in_order) == len(set(groups_in_order)) == 14
    assert Counter(template for template, _ in groups_in_order) == {'other_a': 7, 'other_b': 7}
    assert counts['parts']['held out']['left_out'] == {'beyond --heldout_instances': 33 + 23}
    assert groups_in_order[:7] != [('other_a', f'other_a: Is {i} even?') for i in range(7)]  # drawn, not the first


def test_a_training_pair_whose_instruction_is_held_out_is_taken_out_and_counted(tmp_path):
    same = [line | {'instruction': line['instruction'].upper().replace(' ', '\n')} for line in yes_no(20, 'agree_a')]
    train, held_out, counts = make(tmp_path, same, yes_no(40, 'other_a'), yes_no(60, 'agree_z'), heldout=('other_a',))
    assert len(by_instruction(held_out)) == 40
    numbers = {int(pair['instruction'].split()[1]) for pair in train}
    assert numbers == set(range(40, 60))
    assert counts['templates']['agree_z']['left_out'] == {'pairs of a held-out instruction': 80}
    assert counts['parts']['train']['pairs'] == {'choice': len(train)}
    assert sum(counts['parts']['train']['labels'].values()) == len(train)


def test_counts_say_what_the_files_hold(tmp_path, capsys):
    train, held_out, counts = make(tmp_path, yes_no(), listed(), texts(), texts(name='tell_b'), heldout=('tell_b',))
    for split, pairs in (('train', train), ('held out', held_out)):
        assert counts['parts'][split]['pairs'] == Counter(pair['source'] for pair in pairs)
        labels = Counter(str(int(pair['label'])) if pair['label'] in (0, 1) else 'between' for pair in pairs)
        bars = counts['parts'][split]['labels']
        assert bars['1'] == labels['1'] and bars.get('0', 0) == labels['0']
        assert sum(bars.values()) == len(pairs)
        low = sum(0.2 <= pair['label'] < 0.3 for pair in pairs)
        assert bars.get('0.2 to 0.3', 0) == low
    assert counts['settings']['heldout'] == ['tell_b']
    out = capsys.readouterr().out
    assert (
        f'train: {len(train)} pairs of 90 instances' in out
        and f'held out: {len(held_out)} pairs of 30 instances' in out
    )


def test_a_template_of_several_chunks_gives_all_its_pairs_and_its_choices_are_those_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(script, 'chunks', functools.partial(instances.chunks, size=40))
    late = [{'template': 'agree_a', 'instruction': f'Is it {i}?', 'response': 'perhaps'} for i in range(3)]
    train, _, counts = make(tmp_path, yes_no(100), late, texts(50))
    assert len([pair for pair in train if pair['template'] == 'agree_a']) == 200
    assert len(by_instruction(pair for pair in train if pair['template'] == 'tell_a')) == 50
    assert counts['templates']['agree_a']['left_out'] == {'response not among the choices': 3}
    for pair in train:  # others come from the same chunk
        if pair['source'] == 'other':
            story = int(pair['response'].split()[1])
            assert (story < 40) == (int(pair['instruction'][8:-1]) < 40)


def test_the_numbers_of_lines_and_of_characters_can_be_limited(tmp_path):
    lengths = {i: len(line['instruction']) + len(line['response']) for i, line in enumerate(texts(10))}
    most = sorted(lengths.values())[4]
    train, _, counts = make(tmp_path, texts(), instances_per_template=10, max_characters=most)
    short = {i for i, length in lengths.items() if length <= most}
    assert 0 < len(short) < 10
    assert {int(pair['instruction'][8:-1]) for pair in train} == short
    assert counts['templates']['tell_a']['left_out'] == {'longer than --max_characters': 10 - len(short)}


def test_templates_are_taken_by_patterns_and_gzip_is_read(tmp_path):
    source = tmp_path / 'all.jsonl.gz'
    with gzip.open(source, 'wt', encoding='utf-8') as file:
        file.writelines(json.dumps(line) + '\n' for line in [*yes_no(), *texts(), *yes_no(name='agree_b')])
    script.main(sources=(str(source),), output_dir=str(tmp_path / 'data'), heldout=('none',), templates=('agree_*',))
    train, _, _ = read_data(tmp_path / 'data')
    assert {pair['template'] for pair in train} == {'agree_a', 'agree_b'}


def test_the_default_keeps_whole_data_sets_of_P3_apart(tmp_path):
    names = 'glue_mrpc_same', 'samsum_sum', 'glue_qqp_same'
    groups = [
        [line | {'instruction': f'{name}, {line["instruction"]}'} for line in yes_no(name=name)] for name in names
    ]
    train, held_out, _ = make(tmp_path, *groups, heldout=script.HELD_OUT_TEMPLATES)
    assert {pair['template'] for pair in train} == {'glue_qqp_same'}
    assert {pair['template'] for pair in held_out} == {'glue_mrpc_same', 'samsum_sum'}


def examples(samples):
    """Candidate lines of the same instructions with these samples."""
    return [
        {
            'dataset': 'rhyme',
            'example_idx': i,
            'instruction': f'Rhyme on {place}.',
            'references': [f'A {place} in the sun.', f'The {place} of our town.'],
            'samples': {'sampling': [{'response': text.format(place)} for text in samples]},
        }
        for i, place in enumerate(PLACES)
    ]


def test_samples_of_language_models_are_labelled_by_the_best_reference(tmp_path):
    write(tmp_path / 'gens' / 'small' / 'rhyme_train.jsonl', examples(['A {}.', 'the {} of our town', ' ']))
    write(tmp_path / 'gens' / 'large' / 'rhyme_train.jsonl', examples(['A {}.', 'A {} in the sun.', 'Our {} is old.']))
    write(tmp_path / 'gens' / 'large' / 'rhyme_validation.jsonl', examples(['not read']))
    script.main(samples=str(tmp_path / 'gens'), output_dir=str(tmp_path / 'data'), heldout=('none',))
    train, _, counts = read_data(tmp_path / 'data')
    for place in PLACES:
        references = [f'A {place} in the sun.', f'The {place} of our town.']
        sampled = [f'A {place}.', f'the {place} of our town', f'Our {place} is old.']
        pairs = [tuple(pair.values())[1:] for pair in train if pair['instruction'] == f'Rhyme on {place}.']
        assert set(pairs) == {
            *(('reference', f'Rhyme on {place}.', text, 1.0) for text in references),
            *(('sample', f'Rhyme on {place}.', text, RougeL().score(references, text)) for text in sampled),
        }
        assert len(pairs) == 5
    assert fields(counts, 'rhyme', 'part', 'lines', 'instances') == ['train', 16, 8]
    script.main(
        samples=str(tmp_path / 'gens' / 'large'), output_dir=str(tmp_path / 'one'), heldout=('none',), max_samples=1
    )
    assert Counter(pair['source'] for pair in read_data(tmp_path / 'one')[0]) == {'reference': 16, 'sample': 8}


def write_hub(folder, configurations):
    """A data set as P3 on the hub: {configuration: (split, records)} as parquet, listed in the README."""
    import pyarrow
    from pyarrow import parquet

    text, texts_type = pyarrow.string(), pyarrow.list_(pyarrow.string())
    plain = pyarrow.schema({'answer_choices': texts_type, 'inputs_pretokenized': text, 'targets_pretokenized': text})
    scored = pyarrow.schema(
        {'idx': pyarrow.list_(pyarrow.int32()), 'inputs_pretokenized': text, 'is_correct': pyarrow.bool_()}
        | {'targets_pretokenized': text, 'weight': pyarrow.float32()}
    )
    lines = ['---', 'configs:']
    for name, (split, records) in configurations.items():
        (folder / name).mkdir(parents=True)
        table = pyarrow.Table.from_pylist(records, scored if name.endswith('_score_eval') else plain)
        parquet.write_table(table, folder / name / f'{split}-00000-of-00001.parquet')
        lines += [f'- config_name: {name}', '  data_files:', f'  - split: {split}', f'    path: {name}/{split}-*']
    (folder / 'README.md').write_text('\n'.join([*lines, '---']) + '\n', 'utf-8')
    return folder


def hub_records(lines, choices=None):
    return [
        {
            'answer_choices': choices,
            'inputs_pretokenized': line['instruction'],
            'targets_pretokenized': line['response'],
        }
        for line in lines
    ]


def scored_records(n):
    return [
        {
            'idx': [i, k],
            'inputs_pretokenized': f'Where is {i}?',
            'targets_pretokenized': f'\n{place} {i}',
            'is_correct': k == i % 3,
            'weight': 1.0,
        }
        for i in range(n)
        for k, place in enumerate(PLACES[:3])
    ]


def test_templates_of_the_hub_are_streamed_and_their_choices_taken_as_given(tmp_path, caplog):
    hub = write_hub(
        tmp_path / 'hub',
        {
            'a_choice': ('train', hub_records(yes_no(6), ['yes', 'no', 'perhaps'])),
            'b_text': ('train', hub_records(texts(12))),
            'c_where': ('train', hub_records(texts(3))),
            'c_where_score_eval': ('train', scored_records(9)),
            'd_test': ('validation', hub_records(texts(3))),
        },
    )
    script.main(hub=str(hub), output_dir=str(tmp_path / 'data'), heldout=('b_*',), instances_per_template=5)
    train, held_out, counts = read_data(tmp_path / 'data')
    assert as_set(pair for pair in train if pair['template'] == 'a_choice') == {
        ('a_choice', 'choice', f'Is {i} even?', text, float(text == ('yes', 'no')[i % 2]))
        for i in range(5)
        for text in ('yes', 'no', 'perhaps')
    }
    assert as_set(pair for pair in train if pair['template'] == 'c_where') == {
        ('c_where', 'choice', f'Where is {i}?', f'{place} {i}', float(k == i % 3))
        for i in range(5)
        for k, place in enumerate(PLACES[:3])
    }
    assert {pair['template'] for pair in train} == {'a_choice', 'c_where'}
    assert len(by_instruction(held_out)) == 5
    assert {name: count['kind'] for name, count in counts['templates'].items()} == {
        'a_choice': 'given',
        'b_text': 'open',
        'c_where': 'given',
    }
    assert f'{hub}, d_test: has no split train; left out' in caplog.text


def test_a_hub_record_with_other_fields_than_those_of_P3_is_named(tmp_path):
    records = [{'idx': [0], 'inputs_pretokenized': 'a', 'targets_pretokenized': 'b', 'is_correct': True, 'weight': 1.0}]
    hub = write_hub(tmp_path / 'hub', {'x_score_eval': ('train', records), 'y': ('train', hub_records(yes_no()))})
    with pytest.raises(InputError, match=r'x_score_eval: record 0: idx: expected \[question, choice\], found \[0\]$'):
        script.main(hub=str(hub), output_dir=str(tmp_path / 'data'), heldout=('y',))
    assert list(tmp_path.iterdir()) == [hub]


@pytest.mark.parametrize('offline', ['0', '1'])
def test_a_hub_that_does_not_answer_is_one_line_and_1(tmp_path, offline):
    hub = {'HF_HUB_OFFLINE': offline, 'HF_ENDPOINT': 'http://127.0.0.1:9', 'HF_HOME': str(tmp_path / 'home')}
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), '--hub', 'nobody/P3', '--output_dir', str(tmp_path / 'data')],
        env=os.environ | hub,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith('error: nobody/P3: cannot be fetched, since the hub does not answer (')
    assert ended.stderr.endswith('); give --sources a file of instruction data\n')
    assert len(ended.stderr.splitlines()) == 1  # the library alone prints two for each of its six requests
    assert not (tmp_path / 'data').exists()


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        (
            '{"template": "t", "instruction": "i"',
            r'not JSON \(.*\), found .*; the line has no end, so the file may be cut off',
        ),
        ('[1]\n', r'expected a JSON object, found \[1\]'),
        ('{"template": "t", "instruction": "i"}\n', 'response: missing; the line has template, instruction'),
        ('{"template": "t", "instruction": 3, "response": "r"}\n', 'instruction: expected text, found 3'),
        ('{"template": " ", "instruction": "i", "response": "r"}\n', 'template: is empty; delete the line'),
        ('{"template": "t", "instruction": "\\n", "response": "r"}\n', 'instruction: is empty; delete the line'),
        (
            '{"template": "t", "instruction": "i", "response": "r", "choices": ["r", "s", "s "]}\n',
            'choices: "s" is there twice; keep one',
        ),
        (
            '{"template": "t", "instruction": "i", "response": "r", "choices": ["R", "s"]}\n',
            'choices: the response "r" is not among them',
        ),
        (
            '{"template": "t", "instruction": "i", "response": "r", "choices": "rs"}\n',
            'choices: expected a list of texts, found "rs"',
        ),
        (
            '{"template": "agree_a", "instruction": "i", "response": "r"}\n',
            r"template: 'agree_a' has lines up to .*/bad.jsonl:40 and again here, with other templates between.*",
        ),
    ],
)
def test_a_bad_line_is_named_before_anything_is_written(tmp_path, line, message):
    source = write(tmp_path / 'bad.jsonl', yes_no(40, 'agree_a'), yes_no(40, 'agree_b'))
    with open(source, 'a') as file:
        file.write(line)
    with pytest.raises(InputError, match=rf'^{source}:81: {message}$'):
        script.main(sources=(str(source),), output_dir=str(tmp_path / 'data'), heldout=('none',))
    assert list(tmp_path.iterdir()) == [source]


def test_a_gzip_file_that_is_cut_off_or_not_gzip_is_named(tmp_path):
    whole = gzip.compress(''.join(json.dumps(line) + '\n' for line in texts(300)).encode())
    for name, content in (('cut.jsonl.gz', whole[: len(whole) // 2]), ('none.jsonl.gz', b'{"template": 1}\n')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            InputError, match=rf'{name}: its gzip data is broken or cut off \(.*\); fetch the file again$'
        ):
            script.main(sources=(str(tmp_path / name),), output_dir=str(tmp_path / 'data'), heldout=('none',))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'heldout': ('agre_*',)}, r"--heldout: 'agre_\*' matches no template; near names: agree_a, agree_b$"),
        ({'templates': ('zebra',)}, r"--templates: 'zebra' matches no template; there are: agree_a, agree_b, tell_a$"),
        ({'heldout': ('*',)}, '--heldout: matches all templates, so that none is left to train on$'),
        (
            {'heldout': script.HELD_OUT_TEMPLATES},
            'no template matches the default, app_.*; name templates, or none$',
        ),
        ({'n_shards': 0}, '--n_shards: expected 1 or more, found 0$'),
        ({'n_others': -1}, '--n_others: expected 0 or more, found -1$'),
        ({'max_characters': 3}, r'nothing is left to train on \(longer than --max_characters: 110\)$'),
        ({'sources': None}, '--sources, --hub, --samples: none is given; name at least one$'),
        ({'samples': 'no'}, 'no: no such folder'),
    ],
)
def test_settings_that_give_no_data_are_refused_and_leave_no_file(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / 'all.jsonl', yes_no(), yes_no(name='agree_b'), texts())
    with pytest.raises(InputError, match=message):
        script.main(**({'sources': (str(source),), 'heldout': ('none',)} | settings))
    assert list(tmp_path.iterdir()) == [source]


def test_a_template_in_two_sources_and_a_folder_without_samples_are_refused(tmp_path):
    source = write(tmp_path / 'all.jsonl', yes_no(name='rhyme'))
    (tmp_path / 'gens').mkdir()
    with pytest.raises(InputError, match=r'gens: has no \{task\}_train.jsonl or \{generator\}/\{task\}_train.jsonl$'):
        script.main(samples=str(tmp_path / 'gens'), output_dir=str(tmp_path / 'data'))
    write(tmp_path / 'gens' / 'rhyme_train.jsonl', examples(['A {}.']))
    with pytest.raises(InputError, match='^--sources, --hub, --samples: rhyme is in two of them'):
        script.main(sources=(str(source),), samples=str(tmp_path / 'gens'), output_dir=str(tmp_path / 'data'))


def test_data_that_exists_is_replaced_only_when_asked_and_other_files_never(tmp_path):
    make(tmp_path, yes_no())
    with pytest.raises(InputError, match='data: exists; --overwrite replaces it, another --output_dir keeps both$'):
        make(tmp_path, texts())
    train, _, _ = make(tmp_path, texts(), overwrite=True, n_shards=1)
    assert {pair['template'] for pair in train} == {'tell_a'}
    assert len(find_shards(tmp_path / 'data')) == 1
    (tmp_path / 'data' / 'thesis.txt').write_text('mine')
    with pytest.raises(InputError, match='data: holds thesis.txt too, which is no pretraining data; move it'):
        make(tmp_path, yes_no(), overwrite=True)
    assert (tmp_path / 'data' / 'thesis.txt').read_text() == 'mine'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['data', 'data.jsonl']


def test_a_run_that_fails_leaves_the_earlier_data(tmp_path, monkeypatch):
    before = make(tmp_path, yes_no())

    def fail(*_):
        raise RuntimeError('a bug')

    monkeypatch.setattr(shard_writer.ShardWriter, 'shuffle', fail)
    with pytest.raises(RuntimeError):
        make(tmp_path, texts(), overwrite=True)
    assert read_data(tmp_path / 'data') == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ['data', 'data.jsonl']


def command(source, folder):
    """The script's own process: source into folder/data, in two shards, with nothing held out."""
    words = ['--sources', source, '--output_dir', folder / 'data', '--heldout', 'none', '--n_shards', 2]
    return [sys.executable, SCRIPT, *map(str, words)]


def test_a_killed_run_leaves_nothing_that_looks_finished_and_the_next_run_makes_all(tmp_path):
    source = write(tmp_path / 'all.jsonl', *(texts(30, f'tell_{i}') for i in range(2000)))
    process = subprocess.Popen(command(source, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = tmp_path / '.data.partial'
    while process.poll() is None and not (partial.exists() and any(path.stat().st_size for path in partial.iterdir())):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert partial.exists() and not (tmp_path / 'data').exists()
    train, _, _ = make(tmp_path, texts())
    assert len(by_instruction(train)) == 30
    assert not partial.exists()


def test_a_full_disk_is_one_line_of_error_and_leaves_no_file(tmp_path):
    source = write(tmp_path / 'all.jsonl', *(texts(30, f'tell_{i}') for i in range(60)))

    def forbid_large_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    ended = subprocess.run(command(source, tmp_path), preexec_fn=forbid_large_files, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == f'error: {tmp_path}/.data.partial: cannot be written (File too large)'
    assert list(tmp_path.iterdir()) == [source]


def test_flags_are_checked_by_the_command_line(tmp_path, capsys):
    assert run_main(script.main, ['--rouge_tokenizer', 'words']) == 1
    assert 'rouge_tokenizer' in capsys.readouterr().err
    assert run_main(script.main, ['--help']) == 0
    assert '--heldout_instances=40' in capsys.readouterr().out
