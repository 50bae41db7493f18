import json

import numpy as np
import pytest
from conftest import ROOT

from cappy.cli import flags
from cappy.errors import InputError
from cappy.tasks import blending
from cappy.tasks.candidates import Example, Sample
from cappy.tasks.rouge import RougeL

RECORDED = ROOT / 'tests' / 'recorded'


def example(number, *responses, likelihoods=None, references=('red',)):
    likelihoods = likelihoods or [-1.0] * len(responses)
    samples = [Sample(text, 'sampling', mean, mean) for text, mean in zip(responses, likelihoods, strict=True)]
    return Example('colours', number, f'Colour {number}?', tuple(references), tuple(samples))


def test_a_tenth_of_the_instructions_is_held_out_whole_and_the_same_each_time():
    examples = [example(number, 'a') for number in range(30)] + [example(number, 'b') for number in range(30)]
    train, held = blending.hold_out(examples, 7)
    assert len(held) == 6 and len(train) == 54
    assert not {one.instruction for one in train} & {one.instruction for one in held}
    assert blending.hold_out(examples, 7) == (train, held)
    assert blending.hold_out(examples, 8) != (train, held)


def test_few_instructions_hold_out_one_and_one_alone_is_refused():
    assert [len(part) for part in blending.hold_out([example(0, 'a'), example(1, 'a')], 0)] == [1, 1]
    with pytest.raises(InputError, match='there is one; leave the flag out'):
        blending.hold_out([example(0, 'a')], 0)


def test_a_candidates_own_likelihood_is_the_best_of_its_samples():
    values = blending.self_score(example(0, 'a', 'b', 'a', likelihoods=[-3.0, -1.0, -2.0]))
    assert values.tolist() == [-2.0, -1.0]


def test_the_consensus_of_a_candidate_is_its_mean_rougeL_to_the_other_samples():
    # 'a b' and 'a c' share one of two words: rougeL 1/2; 'a b' was drawn twice.
    values = blending.values_of([example(0, 'a b', 'a c', 'a b')], ('consensus',), RougeL())
    assert values['consensus'][0].tolist() == [(1 + 0.5) / 2, 0.5]


def test_a_missing_likelihood_is_named():
    with pytest.raises(InputError, match='--combine self_score: example_idx 1 has a sample without'):
        blending.values_of([example(0, 'a'), example(1, 'b', likelihoods=[None])], ('self_score',), RougeL())


def test_weights_that_help_are_chosen_and_those_that_do_not_are_zero():
    scores = [np.array([0.5, 0.4, 0.0]), np.array([0.0, 0.5, 0.4])]
    rougeL = [np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])]
    right = [np.array([0.0, 3.0, 0.0]), np.array([0.0, 0.0, 3.0])]
    wrong = [-array for array in right]
    chosen = blending.choose_weights(scores, {'right': right, 'wrong': wrong}, rougeL)
    assert chosen['wrong'] == 0
    # 1/8 of the scores' spread over the way's, the smallest of WEIGHTS, makes up for 0.1 already.
    unit = np.mean([np.std(array) for array in scores]) / np.mean([np.std(array) for array in right])
    assert chosen['right'] == pytest.approx(0.25 * unit)
    picks = [int(np.argmax(s)) for s in blending.together(scores, {'right': right, 'wrong': wrong}, chosen)]
    assert picks == [1, 2]


def test_equal_candidates_have_no_spread_and_change_nothing():
    scores = [np.array([0.1, 0.2])]
    weights = blending.choose_weights(scores, {'consensus': [np.array([0.5, 0.5])]}, [np.array([0.0, 1.0])])
    assert weights == {'consensus': 0}


@pytest.mark.parametrize('text', ['consensus,consensus', 'oracle', '', 'consensus self_score'])
def test_another_way_or_one_twice_is_refused(text):
    with pytest.raises(InputError, match='--combine: found'):
        blending.parse_ways(text)


def test_a_run_has_the_rows_and_trains_on_what_is_left(tmp_path, capsys):
    import cappy_bigbench

    gens = RECORDED / 'inputs' / 'bigbench_flan_gens'
    command = f'--bigbench_gen_dir {gens} --bigbench_gen_model flan-t5-tiny --bigbench_subset_name tiny_tense'
    command += f' --model_name_or_path {RECORDED / "tiny-cappy"} --results_dir {tmp_path} --train_size 128'
    flags.run(
        cappy_bigbench.main, f'{command} --accumulate_grad_batches 1 --nocompare_before --combine consensus'.split()
    )
    result = json.loads((tmp_path / 'flan-t5-tiny' / 'tiny_tense.json').read_text())
    assert result['counts']['held_out_examples'] > 0
    assert list(result['combined_weights']) == ['scorer + consensus']
    rows = {row['name']: row['rougeL'] for row in result['comparison']}
    lines = (tmp_path / 'flan-t5-tiny' / 'tiny_tense.candidates.jsonl').read_text().splitlines()
    picked = [json.loads(line)['picked']['scorer + consensus'] for line in lines]
    assert rows['scorer + consensus'] == pytest.approx(np.mean(picked))
    assert 'scorer + consensus' in capsys.readouterr().out
