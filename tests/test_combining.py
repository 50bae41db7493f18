"""Signals and their combination against plain sums, and cross-fitting, which must not see what it judges."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import ROOT

from cappy.cli import flags
from cappy.errors import InputError
from cappy.tasks import combining
from cappy.tasks.candidates import Example, Sample, read_task
from cappy.tasks.combining import Combination
from cappy.tasks.finetuning import build_finetuning_examples
from cappy.tasks.rouge import RougeL

RECORDED = ROOT / 'tests' / 'recorded'


def example(number, *responses, likelihoods=None, decodings=None, references=('red',)):
    likelihoods = likelihoods or [-1.0] * len(responses)
    decodings = decodings or ['sampling'] * len(responses)
    samples = [
        Sample(text, decoding, mean, mean)
        for text, decoding, mean in zip(responses, decodings, likelihoods, strict=True)
    ]
    return Example('colours', number, f'Colour {number}?', tuple(references), tuple(samples))


def made_up(n_examples, seed=0):
    """Examples of 2 to 6 candidates, some of which were sampled several times."""
    generator = np.random.default_rng(seed)
    words = ['red', 'green', 'blue', 'light', 'dark']
    return [
        example(number, *(' '.join(generator.choice(words, 3)) for _ in range(generator.integers(2, 7))))
        for number in range(n_examples)
    ]


def test_every_instruction_is_held_out_once_with_all_its_examples():
    examples = [example(number, 'a') for number in range(31)] + [example(number, 'b') for number in range(31)]
    folds = combining.cross_fitting_folds(examples, 3, 7)
    left_out = [one for _, of_fold in folds for one in of_fold]
    assert sorted(map(examples.index, left_out)) == list(range(62))
    for train, of_fold in folds:
        assert not {one.instruction for one in train} & {one.instruction for one in of_fold}
        assert len(train) + len(of_fold) == 62 and 20 <= len(of_fold) <= 22
    assert combining.cross_fitting_folds(examples, 3, 7) == folds
    assert combining.cross_fitting_folds(examples, 3, 8) != folds


def test_fewer_instructions_than_folds_are_refused():
    assert len(combining.cross_fitting_folds([example(0, 'a'), example(1, 'a')], 2, 0)) == 2
    with pytest.raises(InputError, match='1 training instructions cannot be divided into 2 folds'):
        combining.cross_fitting_folds([example(0, 'a'), example(0, 'b')], 2, 0)


def test_weighted_consensus_is_the_sum_over_all_samples():
    rouge, generator = RougeL(), np.random.default_rng(1)
    for made in made_up(20):
        scores = generator.normal(0.5, 0.3, len(made.candidates))
        score_of = dict(zip(made.candidates, scores, strict=True))
        expected = []
        for candidate in made.candidates:
            votes = [np.exp(score_of[sample.response] / combining.TEMPERATURE) for sample in made.samples]
            agreed = [rouge.score([sample.response], candidate) for sample in made.samples]
            expected.append(np.dot(votes, agreed) / sum(votes))
        assert combining.weighted_consensus(made, scores, rouge) == pytest.approx(expected, abs=1e-8)


def test_one_candidate_and_scores_of_any_size_have_a_weighted_consensus():
    assert combining.weighted_consensus(example(0, 'red'), [0.3], RougeL()).tolist() == [1]
    huge = combining.weighted_consensus(example(0, 'red', 'blue'), np.array([1e4, -1e4], np.float32), RougeL())
    assert huge.tolist() == [1, 0]


def test_a_candidates_likelihood_is_the_highest_of_its_samples():
    values = combining.self_score(example(0, 'a', 'b', 'a', likelihoods=[-3.0, -1.0, -2.0]))
    assert values.tolist() == [-2.0, -1.0]


def test_an_empty_response_without_a_likelihood_is_the_least_likely():
    likelihoods = [-3.0, None, -1.0, None]
    assert combining.self_score(example(0, 'a', '', 'b', ' ', likelihoods=likelihoods)).tolist() == [-3, -3, -1, -3]
    assert combining.self_score(example(0, '', '', likelihoods=[None, None])).tolist() == [0]
    assert combining.self_score(example(0, '', 'b', likelihoods=[-4.0, -1.0])).tolist() == [-4, -1]


def test_a_decodings_gain_is_its_samples_mean_difference_from_their_example():
    made = [
        example(0, 'a', 'b', 'a', decodings=['greedy', 'temp', 'temp']),
        example(1, 'c', decodings=['greedy']),
    ]
    gains = combining.decoding_gains(made, [np.array([0.9, 0.3]), np.array([0.5])])
    # Of the first, the samples' mean is 0.7.
    assert gains == pytest.approx({'greedy': (0.2 + 0) / 2, 'temp': (-0.4 + 0.2) / 2})
    fitted = Combination({'scorer': 0.0, 'decoding': 1.0}, gains, 'rougeL')
    scores = [np.zeros(2), np.zeros(1)]
    # A candidate has the mean of its samples' decodings; one that training did not have counts as 0.
    assert fitted.values(made, scores, RougeL())[0] == pytest.approx([(0.1 - 0.1) / 2, -0.1])
    assert fitted.values([example(2, 'x', decodings=['new'])], [np.zeros(1)], RougeL())[0].tolist() == [0]


def test_a_missing_likelihood_is_named():
    made = [example(0, 'a'), example(1, 'b', likelihoods=[None])]
    scores = [np.zeros(1), np.zeros(1)]
    with pytest.raises(InputError, match='example_idx 1: combine self_score: a sample without'):
        Combination.fit(['self_score'], made, scores, scores, RougeL())


def regression_by_iteration(columns, labels, prior, shrinkage, n_steps=20_000):
    """The weights that minimise the penalised squared error, found by gradient descent on its plain formula."""
    n, weights = len(labels), np.array(prior, float)

    def gradient(weights):
        total = np.zeros(len(weights))
        for i in range(n):
            own = np.stack([column[i] - column[i].mean() for column in columns], axis=1)
            error = own @ weights - (labels[i] - labels[i].mean())
            total += own.T @ error / len(labels[i]) / n
        return total

    spread = np.array([np.mean([np.var(values) for values in column]) for column in columns])
    for _ in range(n_steps):
        weights = weights - 0.1 * (gradient(weights) + shrinkage / n * spread * (weights - prior))
    return weights


def test_the_weights_are_the_shrunk_regression_on_differences_within_examples():
    examples, generator, rouge = made_up(12), np.random.default_rng(3), RougeL()
    sizes = [len(one.candidates) for one in examples]
    scores = [generator.normal(5, 1, size) for size in sizes]
    labels = [0.3 * own + generator.normal(0, 0.2, len(own)) for own in scores]
    fitted = Combination.fit(['consensus', 'times_sampled'], examples, scores, labels, rouge)
    signals = fitted.signals(['consensus', 'times_sampled'], examples, scores, rouge)
    columns = [scores, *signals.values()]
    expected = regression_by_iteration(columns, labels, [0.5, 0.5, 0], combining.PRIOR_EXAMPLES)
    assert list(fitted.weights) == ['scorer', 'consensus', 'times_sampled']
    assert list(fitted.weights.values()) == pytest.approx(expected, abs=1e-3)
    for i, values in enumerate(fitted.values(examples, scores, rouge)):
        by_hand = sum(w * column[i] for w, column in zip(fitted.weights.values(), columns, strict=True))
        assert values == pytest.approx(by_hand, abs=1e-8)


def test_few_examples_leave_the_prior_and_many_override_it():
    generator = np.random.default_rng(0)

    def weight(n_examples):
        examples = made_up(n_examples)
        scores = [generator.normal(0, 1, len(one.candidates)) for one in examples]
        return Combination.fit([], examples, scores, [2 * own for own in scores], RougeL()).weights['scorer']

    few, many = weight(1), weight(2000)
    assert few == pytest.approx(0.5 + 1.5 / (1 + combining.PRIOR_EXAMPLES))
    assert many == pytest.approx(2 - 1.5 * combining.PRIOR_EXAMPLES / (2000 + combining.PRIOR_EXAMPLES))


def test_a_signal_without_differences_keeps_its_prior_and_changes_no_pick():
    made, scores = [example(0, 'red', 'blue')], [np.array([0.1, 0.2])]
    fitted = Combination.fit(['times_sampled'], made, scores, [np.array([0.0, 1.0])], RougeL())
    assert fitted.weights['times_sampled'] == pytest.approx(0)
    assert np.argmax(fitted.values(made, scores, RougeL())[0]) == 1


def test_a_combination_is_read_again_as_it_was_written(tmp_path):
    fitted = Combination({'scorer': 0.25, 'decoding': 1.0}, {'greedy': 0.125}, 'rougeL', 'unicode')
    fitted.save(tmp_path)
    assert Combination.load(tmp_path) == fitted
    (tmp_path / 'combination.json').write_text('{"weights": 1}')
    with pytest.raises(InputError, match='not a combination'):
        Combination.load(tmp_path)
    with pytest.raises(InputError, match='no such file; cappy_bigbench.py --combine'):
        Combination.load(tmp_path / 'other')


def test_a_program_picks_by_a_combination():
    class Lengths:
        def score(self, pairs):
            assert {instruction for instruction, _ in pairs} == {'i'}
            return np.array([len(text) / 10 for _, text in pairs], np.float32)

    by_scorer = Combination({'scorer': 1.0}, {}, 'rougeL')
    assert by_scorer.pick(Lengths(), 'i', ['red', 'green', 'red']) == 'green'
    by_consensus = Combination({'scorer': 0.1, 'consensus': 1.0}, {}, 'rougeL')
    assert by_consensus.pick(Lengths(), 'i', ['red', 'green', 'red']) == 'red'
    by_decoding = Combination({'decoding': 1.0}, {'greedy': 0.5}, 'rougeL')
    assert by_decoding.pick(Lengths(), 'i', ['red', 'green'], ['temp', 'greedy']) == 'green'
    with pytest.raises(InputError, match='responses: found'):
        by_scorer.pick(Lengths(), 'i', [])


def test_the_weights_are_described_in_order_with_their_signs():
    assert combining.describe({'scorer': 0.5, 'self_score': -0.126}) == '0.50 scorer - 0.13 self score'


@pytest.mark.parametrize('names', [['consensus', 'consensus'], ['oracle'], [''], ['consensus self_score']])
def test_an_unknown_signal_or_one_given_twice_is_refused(names):
    with pytest.raises(InputError, match='combine: found'):
        combining.check_names(names)


def test_names_of_signals_keep_their_order():
    assert combining.check_names(['self_score', 'consensus']) == ('self_score', 'consensus')
    assert combining.check_names(None) == ()


GENS = RECORDED / 'inputs' / 'bigbench_flan_gens'
COMMAND = (
    f'--bigbench_gen_dir {GENS} --bigbench_gen_model flan-t5-tiny --bigbench_subset_name tiny_tense '
    f'--model_name_or_path {RECORDED / "tiny-cappy"} --train_size 256 --accumulate_grad_batches 1 --nocompare_before'
)


@pytest.mark.slow
def test_a_run_judges_each_instruction_by_a_scorer_that_did_not_train_on_it(tmp_path, capsys, monkeypatch):
    import cappy_bigbench

    trained_on, judged, whole = [], [], cappy_bigbench.Cappy.adapt

    def adapt(scorer, examples, *arguments, **settings):
        trained_on.append({one.instruction for one in examples})
        scorer.trained_on = trained_on[-1]
        return whole(scorer, examples, *arguments, **settings)

    def score(scorer, examples, progress, found=cappy_bigbench.score_candidates):
        if 'fold' in progress:
            judged.append({one.instruction for one in examples})
            assert not judged[-1] & scorer.trained_on
        return found(scorer, examples, progress)

    monkeypatch.setattr(cappy_bigbench.Cappy, 'adapt', adapt)
    monkeypatch.setattr(cappy_bigbench, 'score_candidates', score)
    command = f'{COMMAND} --results_dir {tmp_path} --recipe picks --n_folds 3 --save_dir {tmp_path / "s"}'
    flags.run(cappy_bigbench.main, command.split())

    train = {one.instruction for one in read_task(GENS, 'flan-t5-tiny', 'tiny_tense')['train']}
    assert len(trained_on) == 4 and len(judged) == 3 and set.union(*judged) == train >= trained_on[0]
    result = json.loads((tmp_path / 'flan-t5-tiny' / 'tiny_tense.json').read_text())
    rows = {row['name']: row for row in result['comparison']}
    assert result['pick'] == 'combined' and result['rougeL'] == rows['combined']['rougeL']
    assert list(result['combination']['weights']) == ['scorer', *result['settings']['combine']]
    lines = [
        json.loads(line)
        for line in (tmp_path / 'flan-t5-tiny' / 'tiny_tense.candidates.jsonl').read_text().splitlines()
    ]
    assert np.mean([line['picked']['combined'] for line in lines]) == pytest.approx(result['rougeL'])
    assert [line['rougeL'] for line in lines] == [line['picked']['combined'] for line in lines]
    assert rows['combined']['metrics'].keys() == {'chrf'}
    # What is saved beside the scorer picks as the run did.
    saved = Combination.load(tmp_path / 's')
    assert dataclasses.asdict(saved) == result['combination']
    validation = read_task(GENS, 'flan-t5-tiny', 'tiny_tense')['validation']
    scores = [np.array([own['score'] for own in line['candidates']], np.float32) for line in lines]
    values = saved.values(validation, scores, RougeL())
    assert [int(np.argmax(own)) for own in values] == [line['pick'] for line in lines]
    assert 'combined: ' in capsys.readouterr().out
    # A scorer without a combination replaces one with it.
    again = f'{COMMAND} --results_dir {tmp_path} --overwrite --save_dir {tmp_path / "s"}'
    flags.run(cappy_bigbench.main, again.split())
    assert (tmp_path / 's' / 'model.safetensors').exists() and not (tmp_path / 's' / 'combination.json').exists()
    assert not (tmp_path / 'flan-t5-tiny' / 'tiny_tense.checkpoint').exists()


@pytest.mark.slow
def test_cross_fitting_trains_on_the_same_kind_of_examples(tmp_path, monkeypatch):
    import cappy_bigbench

    asked = []

    def build(examples, n, *arguments):
        asked.append((len(examples), n, arguments[-1]))
        return build_finetuning_examples(examples, n, *arguments)

    monkeypatch.setattr(cappy_bigbench, 'build_finetuning_examples', build)
    flags.run(cappy_bigbench.main, f'{COMMAND} --results_dir {tmp_path} --combine consensus'.split())
    (n_all, n_pairs, labels), *of_folds = asked
    assert n_pairs == 256 and labels == 'one' and len(of_folds) == 2
    assert [(n, own) for _, n, own in of_folds] == [(256 * n // n_all, 'one') for n, _, _ in of_folds]
    result = json.loads((tmp_path / 'flan-t5-tiny' / 'tiny_tense.json').read_text())
    assert result['pick'] == 'scorer after adapting'  # the combined pick is beside it


def test_the_combined_pick_needs_signals(tmp_path, capsys):
    import cappy_bigbench

    with pytest.raises(SystemExit):
        flags.run(cappy_bigbench.main, f'{COMMAND} --results_dir {tmp_path} --pick combined'.split())
    assert '--pick: combined needs --combine' in capsys.readouterr().err
