import json

import numpy as np
import pytest
from conftest import ROOT

from cappy.cli import flags
from cappy.errors import InputError
from cappy.tasks import blending
from cappy.tasks.candidates import Example, Sample, read_task
from cappy.tasks.finetuning import build_finetuning_examples
from cappy.tasks.rouge import RougeL

RECORDED = ROOT / 'tests' / 'recorded'


def example(number, *responses, likelihoods=None, references=('red',)):
    likelihoods = likelihoods or [-1.0] * len(responses)
    samples = [Sample(text, 'sampling', mean, mean) for text, mean in zip(responses, likelihoods, strict=True)]
    return Example('colours', number, f'Colour {number}?', tuple(references), tuple(samples))


def test_a_tenth_of_the_instructions_is_held_out_with_all_their_examples():
    examples = [example(number, 'a') for number in range(30)] + [example(number, 'b') for number in range(30)]
    train, held_out = blending.hold_out(examples, 7)
    assert len(held_out) == 6 and len(train) == 54
    assert not {of_train.instruction for of_train in train} & {of_held.instruction for of_held in held_out}
    assert blending.hold_out(examples, 7) == (train, held_out)
    assert blending.hold_out(examples, 8) != (train, held_out)


def test_of_few_instructions_one_is_held_out_and_a_single_one_is_refused():
    assert [len(part) for part in blending.hold_out([example(0, 'a'), example(1, 'a')], 0)] == [1, 1]
    with pytest.raises(InputError, match='there is only one; leave combine out'):
        blending.hold_out([example(0, 'a')], 0)


def test_a_candidates_likelihood_is_the_highest_of_its_samples():
    values = blending.self_score(example(0, 'a', 'b', 'a', likelihoods=[-3.0, -1.0, -2.0]))
    assert values.tolist() == [-2.0, -1.0]


def test_an_empty_response_without_a_likelihood_is_the_least_likely():
    likelihoods = [-3.0, None, -1.0, None]
    assert blending.self_score(example(0, 'a', '', 'b', ' ', likelihoods=likelihoods)).tolist() == [-3, -3, -1, -3]
    assert blending.self_score(example(0, '', '', likelihoods=[None, None])).tolist() == [0]
    assert blending.self_score(example(0, '', 'b', likelihoods=[-4.0, -1.0])).tolist() == [-4, -1]


def test_the_consensus_of_a_candidate_is_its_mean_rougeL_to_the_other_samples():
    # 'a b' and 'a c' share one of two words: rougeL 1/2; 'a b' was drawn twice.
    signals = blending.signals_of([example(0, 'a b', 'a c', 'a b')], ('consensus',), RougeL())
    assert signals['consensus'][0].tolist() == [(1 + 0.5) / 2, 0.5]


def test_a_missing_likelihood_is_named():
    with pytest.raises(InputError, match='combine self_score: example_idx 1 has a sample without'):
        blending.signals_of([example(0, 'a'), example(1, 'b', likelihoods=[None])], ('self_score',), RougeL())


def test_weights_that_help_are_chosen_and_those_that_do_not_are_zero():
    scores = [np.array([0.5, 0.4, 0.0]), np.array([0.0, 0.5, 0.4])]
    rougeL = [np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])]
    right = [np.array([0.0, 3.0, 0.0]), np.array([0.0, 0.0, 3.0])]
    wrong = [-array for array in right]
    chosen = blending.choose_weights(scores, {'right': right, 'wrong': wrong}, rougeL)
    assert chosen['wrong'] == 0
    # In units of the deviations 1/8, the smallest of WEIGHTS, is too little to make up for 0.1, and 1/4 is enough.
    unit = np.mean([np.std(array) for array in scores]) / np.mean([np.std(array) for array in right])
    assert chosen['right'] == pytest.approx(0.25 * unit)
    picks = [int(np.argmax(s)) for s in blending.blend(scores, {'right': right, 'wrong': wrong}, chosen)]
    assert picks == [1, 2]


def test_a_signal_without_differences_gets_no_weight():
    scores = [np.array([0.1, 0.2])]
    weights = blending.choose_weights(scores, {'consensus': [np.array([0.5, 0.5])]}, [np.array([0.0, 1.0])])
    assert weights == {'consensus': 0}


def test_there_is_a_blend_with_the_first_signal_and_one_with_the_first_two():
    scores, rougeL = [np.array([0.5, 0.4])], [np.array([0.0, 1.0])]
    signals = {'self_score': [np.array([0.0, 0.0])], 'consensus': [np.array([0.0, 3.0])]}
    chosen = blending.choose_all_weights(scores, signals, rougeL)
    assert list(chosen) == ['scorer + self-score', 'scorer + self-score + consensus']
    assert chosen['scorer + self-score'] == {'self_score': 0}
    assert chosen['scorer + self-score + consensus'] == blending.choose_weights(scores, signals, rougeL)
    # A blend adds the signals that have a weight and no others.
    assert [a.tolist() for a in blending.blend(scores, signals, {'consensus': 0.5})] == [[0.5, 1.9]]


@pytest.mark.parametrize('names', [['consensus', 'consensus'], ['oracle'], [''], ['consensus self_score']])
def test_an_unknown_signal_or_one_given_twice_is_refused(names):
    with pytest.raises(InputError, match='combine: found'):
        blending.check_names(names)


def test_names_of_signals_keep_their_order():
    assert blending.check_names(['self_score', 'consensus']) == ('self_score', 'consensus')
    assert blending.check_names(None) == ()


def test_a_run_trains_without_the_held_out_instructions_and_reports_the_blend(tmp_path, capsys, monkeypatch):
    import cappy_bigbench

    trained_on = []

    def build(examples, *arguments):
        trained_on.extend(examples)
        return build_finetuning_examples(examples, *arguments)

    monkeypatch.setattr(cappy_bigbench, 'build_finetuning_examples', build)

    gens = RECORDED / 'inputs' / 'bigbench_flan_gens'
    command = f'--bigbench_gen_dir {gens} --bigbench_gen_model flan-t5-tiny --bigbench_subset_name tiny_tense'
    command += f' --model_name_or_path {RECORDED / "tiny-cappy"} --results_dir {tmp_path} --train_size 128'
    flags.run(
        cappy_bigbench.main, f'{command} --accumulate_grad_batches 1 --nocompare_before --combine consensus'.split()
    )
    result = json.loads((tmp_path / 'flan-t5-tiny' / 'tiny_tense.json').read_text())
    train, held_out = blending.hold_out(read_task(gens, 'flan-t5-tiny', 'tiny_tense')['train'], 11111)
    assert trained_on == train
    assert result['counts']['held_out_examples'] == len(held_out) > 0
    assert list(result['combined_weights']) == ['scorer + consensus']
    rows = {row['name']: row['rougeL'] for row in result['comparison']}
    lines = (tmp_path / 'flan-t5-tiny' / 'tiny_tense.candidates.jsonl').read_text().splitlines()
    picked = [json.loads(line)['picked']['scorer + consensus'] for line in lines]
    assert rows['scorer + consensus'] == pytest.approx(np.mean(picked))
    assert 'scorer + consensus' in capsys.readouterr().out
