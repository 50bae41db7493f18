import json
import os
import shutil
import signal
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(ROOT / 'scripts'))

import bigbench_flan_generate as script  # noqa: E402

from cappy.cli.flags import Names  # noqa: E402
from cappy.errors import InputError  # noqa: E402
from cappy.generate.generator import Generator  # noqa: E402
from cappy.tasks.candidates import read_examples, read_task  # noqa: E402

RECORDED = ROOT / 'tests' / 'recorded'
MODEL = str(RECORDED / 'flan-t5-tiny')
N_TRAIN, N_VALIDATION = 6, 5


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder of two tasks, some examples of the recorded ones without their samples."""
    folder = tmp_path_factory.mktemp('bigbench_data')
    for task in ('tiny_arithmetic', 'tiny_tense'):
        for split, n in (('train', N_TRAIN), ('validation', N_VALIDATION)):
            source = RECORDED / 'inputs' / 'bigbench_flan_gens' / 'flan-t5-tiny' / f'{task}_{split}.jsonl'
            rows = [json.loads(line) for line in source.read_text().splitlines()[:n]]
            for row in rows:
                del row['flan_samples']
            (folder / source.name).write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (folder / 'subset_names.json').write_text('["tiny_tense", "tiny_arithmetic"]')
    return folder


def generate(data, output, **flags):
    """Run main in this process; flags of several names are texts with commas."""
    names = {name: Names.from_text(flags[name]) for name in ('tasks', 'splits', 'decodings') if name in flags}
    script.main(data_dir=str(data), output_dir=str(output), **{'model_name_or_path': MODEL, **flags, **names})


@pytest.fixture(scope='module')
def generated(data, tmp_path_factory):
    """The folder of the generator's files, all flags their defaults."""
    output = tmp_path_factory.mktemp('gens')
    generate(data, output)
    return output


def test_files_have_the_references_samples_for_every_task(data, generated):
    assert sorted(path.name for path in (generated / 'flan-t5-tiny').iterdir()) == [
        f'{task}_{split}.jsonl' for task in ('tiny_arithmetic', 'tiny_tense') for split in ('train', 'validation')
    ]
    for task in ('tiny_arithmetic', 'tiny_tense'):
        splits = read_task(generated, 'flan-t5-tiny', task)
        for split, examples in splits.items():
            expected = read_examples(data / f'{task}_{split}.jsonl', samples_needed=False)
            assert [(e.example_idx, e.references) for e in examples] == [
                (e.example_idx, e.references) for e in expected
            ]
            for example in examples:
                counts = {name: [s.decoding for s in example.samples].count(name) for name in example.decodings}
                assert counts == {'beam4': 1, 'sampling': 4, 'temp0.9': 4, 'topk40': 4, 'topp0.95': 4}
                has_weights = {s.log_likelihood_sum is not None for s in example.samples}
                assert has_weights == {split == 'validation'}


def test_beams_are_the_recorded_ones_and_log_likelihoods_are_those_of_each_text_alone(generated):
    beams = {
        (row['task'], row['example_idx']): row['beam4_batch1']
        for row in json.loads((RECORDED / 't5' / 'beam4.json').read_text())
    }
    model = Generator.from_pretrained(MODEL)
    for task in ('tiny_arithmetic', 'tiny_tense'):
        examples = read_task(generated, 'flan-t5-tiny', task)['validation']
        assert [e.samples[0].response for e in examples] == [beams[task, e.example_idx] for e in examples]
        sources = dict(enumerate(model.encode(model.encode_texts([examples[0].instruction], 512))))
        for sample in examples[0].samples[::4]:
            total, mean = model.log_likelihoods(sources, {0: {'alone': [sample.response]}}, 64)[0][sample.response]
            assert sample.log_likelihood_sum == pytest.approx(total, abs=1e-4)
            assert sample.log_likelihood_mean == pytest.approx(mean, abs=1e-4)


def test_one_task_alone_has_the_same_samples_and_existing_files_are_kept(data, generated, tmp_path, capsys):
    flags = {'tasks': 'tiny_tense', 'splits': 'validation', 'sequences_per_device': 8}
    generate(data, tmp_path, **flags, decodings='temp0.9,beam4', n_sample_gens=2, log_likelihood='sampled')
    [path] = (tmp_path / 'flan-t5-tiny').iterdir()
    before = read_examples(generated / 'flan-t5-tiny' / path.name)
    for example, other in zip(read_examples(path), before, strict=True):
        assert example.decodings == ('temp0.9', 'beam4')
        texts = {name: [s.response for s in other.samples if s.decoding == name] for name in example.decodings}
        assert [s.response for s in example.samples] == [*texts['temp0.9'][:2], *texts['beam4']]
    written = path.stat().st_mtime_ns
    generate(data, tmp_path, **flags, decodings='temp0.9,beam4', n_sample_gens=2)
    assert path.stat().st_mtime_ns == written
    assert f'{path} exists and holds all 5 examples. Skipped' in capsys.readouterr().err
    with pytest.raises(InputError, match=r'has 2 temp0.9, 1 beam4 \(asked for: 3 temp0.9, 1 beam4\); --overwrite'):
        generate(data, tmp_path, **flags, decodings='temp0.9,beam4', n_sample_gens=3)


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_files(data, generated, tmp_path, run_python):
    flags = ['--data_dir', data, '--output_dir', tmp_path, '--model_name_or_path', MODEL, '--window', 1]
    process = run_python('scripts/bigbench_flan_generate.py', *flags)
    partial = tmp_path / 'flan-t5-tiny' / 'tiny_tense_train.jsonl.partial'
    while process.poll() is None and not (partial.exists() and partial.read_bytes().count(b'\n') >= 2):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    n_done = partial.read_bytes().count(b'\n')
    assert 2 <= n_done < N_TRAIN
    with open(partial, 'ab') as file:
        file.write(b'{"example_idx": 3, "samp')  # a line that the kill cut off
    with pytest.raises(InputError, match=r'was begun with jax_seed 42 \(asked for: 7\); --overwrite'):
        generate(data, tmp_path, jax_seed=7)
    other = shutil.copytree(MODEL, tmp_path / 'other' / 'flan-t5-tiny')
    tensors = load_file(other / 'model.safetensors')
    tensors['shared.weight'][5, 0] += 1
    save_file(tensors, other / 'model.safetensors', {'format': 'pt'})
    with pytest.raises(InputError, match=r'was begun with model_digest [0-9a-f]{12} \(asked for: [0-9a-f]{12}\)'):
        generate(data, tmp_path, model_name_or_path=str(other))
    same = shutil.copytree(MODEL, tmp_path / 'elsewhere' / 'flan-t5-tiny')
    generate(data, tmp_path, model_name_or_path=str(same))
    for path in sorted((generated / 'flan-t5-tiny').iterdir()):
        one, other = (read_examples(folder / 'flan-t5-tiny' / path.name) for folder in (tmp_path, generated))
        for example, same in zip(one, other, strict=True):
            assert [(s.decoding, s.response) for s in example.samples] == [
                (s.decoding, s.response) for s in same.samples
            ]
    assert sorted(path.name for path in (tmp_path / 'flan-t5-tiny').iterdir()) == sorted(
        path.name for path in (generated / 'flan-t5-tiny').iterdir()
    )


def test_the_bar_says_compiling_until_texts_are_drawn_and_then_counts_tokens(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script.time, 'perf_counter', iter(range(10**6)).__next__)  # a second passes at each look
    generate(data, tmp_path, tasks='tiny_tense', splits='train', decodings='topk2', n_sample_gens=1, max_tgt_len=4)
    states = capsys.readouterr().err.split('\r')
    first = next(i for i, state in enumerate(states) if 'tiny_tense_train' in state)
    assert first and all(state.startswith('compiling: ') for state in states[:first] if state.strip())
    assert '| 0/6 ' in states[first] and ' 3 tokens, ' in states[first]
    assert any('| 6/6 ' in state and f' {3 * N_TRAIN} tokens, ' in state for state in states)


def test_fields_are_named_as_the_flags_say(data, tmp_path):
    rows = [json.loads(line) for line in (data / 'tiny_tense_train.jsonl').read_text().splitlines()[:2]]
    for row in rows:
        row['question'] = row.pop('instruction')
    (tmp_path / 'own_train.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    flags = {'tasks': 'own', 'splits': 'train', 'decodings': 'topk2', 'n_sample_gens': 1, 'generator': 'mine'}
    generate(tmp_path, tmp_path / 'gens', src_key='question', tgt_key='answer', **flags)
    [first, _] = (tmp_path / 'gens' / 'mine' / 'own_train.jsonl').read_text().splitlines()
    first = json.loads(first)
    assert first['question'] == rows[0]['question']
    assert [list(sample) for sample in first['flan_samples']['topk2']] == [['answer']]


def test_the_default_top_k_is_the_references_and_can_be_switched_off(data, tmp_path):
    drawn = {}
    for name, default_top_k in (('limited', True), ('open', False)):
        flags = {'tasks': 'tiny_tense', 'splits': 'train', 'generator': name, 'decodings': 'temp8,topk40'}
        generate(data, tmp_path, default_top_k=default_top_k, n_sample_gens=3, max_tgt_len=12, **flags)
        examples = read_examples(tmp_path / name / 'tiny_tense_train.jsonl')
        drawn[name] = {
            decoding: [s.response for e in examples for s in e.samples if s.decoding == decoding]
            for decoding in ('temp8', 'topk40')
        }
    assert drawn['limited']['topk40'] == drawn['open']['topk40']
    # At this temperature almost every draw is outside of the 50 most likely of 1112 words.
    assert not set(drawn['limited']['temp8']) & set(drawn['open']['temp8'])


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ({'decodings': 'beam4,greedy'}, "decodings: 'greedy' is unknown; use sampling, or beam4, "),
        ({'splits': 'test'}, "--splits: expected train or validation, found 'test'"),
        ({'tasks': 'tiny_tens'}, 'tiny_tens_train.jsonl: no such file; near names'),
        ({'model_name_or_path': str(RECORDED / 'tiny-cappy')}, "model_type: found 'roberta'; a generator is a t5"),
        ({'model_name_or_path': './none'}, 'model none: no such directory'),
        ({'generator': 'a/b'}, "generator 'a/b': files are named after it; give a name without a slash"),
        ({'n_model_shards': 2}, '--n_model_shards 2: does not divide the 1 device(s) found'),
    ],
)
def test_bad_flags_are_refused_by_name_and_nothing_is_written(data, tmp_path, flags, message):
    with pytest.raises(InputError) as error:
        generate(data, tmp_path / 'gens', **flags)
    assert message in str(error.value)
    assert not list(tmp_path.rglob('*.jsonl*'))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'instruction': ' '}, 'own_train.jsonl:2: instruction: is empty'),
        ({'references': []}, 'own_train.jsonl:2: references: the list is empty'),
        ({'references': 'one'}, 'own_train.jsonl:2: references: expected a list of texts'),
        ({'example_idx': 0}, 'own_train.jsonl:2: example_idx 0 is on line 1 too'),
    ],
)
def test_a_bad_line_is_refused_before_the_model_is_looked_for(data, tmp_path, change, message):
    rows = [json.loads(line) for line in (data / 'tiny_tense_train.jsonl').read_text().splitlines()[:2]]
    rows[1] |= change
    (tmp_path / 'own_train.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    with pytest.raises(InputError) as error:
        generate(tmp_path, tmp_path / 'gens', tasks='own', splits='train', model_name_or_path='./none')
    assert message in str(error.value)


def test_help_lists_every_flag_with_its_default(run_python):
    output, errors = run_python('scripts/bigbench_flan_generate.py', '--help').communicate(timeout=60)
    flags = [line.split()[0] for line in output.splitlines() if line.startswith('  --')]
    assert flags[:5] == [
        '--data_dir=bigbench_data',
        '--src_key=instruction',
        '--tgt_key=response',
        '--model_name_or_path=google/flan-t5-small',
        '--n_model_shards=1',
    ]
    assert len(flags) == 27, errors


def test_by_default_tasks_with_data_are_drawn_and_missing_ones_named_at_the_end(data, tmp_path, capsys, caplog):
    folder = tmp_path / 'data'
    folder.mkdir()
    for name in ('tiny_tense_train', 'tiny_tense_validation', 'tiny_arithmetic_validation'):
        shutil.copy(data / f'{name}.jsonl', folder)
    shutil.copy(data / 'tiny_tense_train.jsonl', folder / 'mine_train.jsonl')
    (folder / 'subset_names.json').write_text('["tiny_tense", "absent", "tiny_arithmetic"]')
    generate(folder, tmp_path / 'gens', decodings='topk2', n_sample_gens=1, max_tgt_len=4)
    drawn = sorted(path.name for path in (tmp_path / 'gens' / 'flan-t5-tiny').iterdir())
    assert drawn == sorted(path.name for path in folder.glob('*.jsonl'))
    names = ('tiny_tense_train', 'tiny_tense_validation', 'tiny_arithmetic_validation', 'mine_train')
    written = ', '.join(f'{name}.jsonl' for name in names)
    assert f'{tmp_path}/gens/flan-t5-tiny: wrote {written}\n' in capsys.readouterr().out
    assert (
        '2 of the 3 tasks of' in caplog.text and 'lack files (absent, tiny_arithmetic); python scripts/' in caplog.text
    )
    caplog.clear()
    (folder / 'subset_names.json').write_text('["of_others"]')
    generate(folder, tmp_path / 'gens', decodings='topk2', n_sample_gens=1, max_tgt_len=4)
    assert capsys.readouterr().out == '' and 'lack files' not in caplog.text
    with pytest.raises(InputError, match='absent_train.jsonl: no such file'):
        generate(folder, tmp_path / 'gens', tasks='absent')
    with pytest.raises(
        InputError, match=r'gens: no file \{task\}_\{split\}.jsonl with split train or validation; python'
    ):
        generate(tmp_path / 'gens', tmp_path / 'other')
    with pytest.raises(InputError, match='none: no such folder'):
        generate(tmp_path / 'none', tmp_path / 'other')


def test_what_the_model_loses_of_texts_and_samples_is_counted_and_said_for_each_file(tmp_path, caplog, monkeypatch):
    from cappy.generate import generator

    draw = Generator.draw

    def draw_unknown(*inputs):
        drawn = draw(*inputs)
        samples = next(iter(drawn.values()))['topk2']
        samples[0] = generator.TokenSequence(np.array([2, *samples[0].tokens]), 0.0)
        return drawn

    monkeypatch.setattr(Generator, 'draw', draw_unknown)
    texts = ('x ~ y \\', 'say "hi" 猫', 'one\n  two', ' plain\n')
    rows = [{'dataset': 'odd', 'example_idx': i, 'instruction': texts[i], 'references': ['x']} for i in range(4)]
    rows[0]['references'].append('~')
    (tmp_path / 'odd_train.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    generate(tmp_path, tmp_path / 'gens', decodings='topk2', n_sample_gens=2, max_tgt_len=4)
    assert caplog.messages == [
        'odd_train: 2 of 4 instructions hold characters that the model reads as unknown (\\ ~ 猫)',
        'odd_train: 1 of 4 instructions lose line breaks, tabs or repeated spaces, as in the reference',
        'odd_train: 1 of 5 references hold characters that the model lacks (~)',
        'odd_train: 1 of 8 samples hold an unknown token, which their text leaves out',
    ]
    caplog.clear()
    plain = [example for example in read_examples(tmp_path / 'odd_train.jsonl', samples_needed=False)][3:]
    script.tell_lost_characters('even_train', plain, Generator.from_pretrained(MODEL).tokenizer)
    assert caplog.messages == []
