import dataclasses
import json
import logging
import shutil
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cappy import Cappy, get_devices
from cappy.errors import InputError
from cappy.model.packing import default_max_length
from cappy.model.training import TrainingSettings
from cappy.model.training_state import Checkpoint
from cappy.tasks.finetuning import FinetuningExample

SETTINGS = TrainingSettings(
    learning_rate=3e-3, warmup_rate=0.1, per_device_batch_size=4, accumulate_grad_batches=2, max_length=24
)


@pytest.fixture(scope='module')
def scorer(tiny_directories):
    return Cappy.from_pretrained(tiny_directories['roberta'], max_length=24)


def weights(directory):
    return load_file(directory / 'model.safetensors')


def error_line(function, *arguments, **options):
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_every_format_gives_the_recorded_first_scores(shared, tiny_cappy):
    scored = json.loads((shared / 'reference' / 'bigbench' / 'tiny_tense.scores.json').read_text())[:12]
    pairs = [(row['instruction'], row['response']) for row in scored]
    expected = Cappy.from_pretrained(str(tiny_cappy)).score(pairs)
    assert expected.std() > 0.1
    for name in ('tiny-cappy', 'tiny-cappy-flax', 'tiny-cappy-bin'):
        if name == 'tiny-cappy-bin':
            pytest.importorskip('torch')
        scores = Cappy.from_pretrained(shared / 'reference' / 'checkpoints' / name).score(pairs)
        np.testing.assert_array_equal(scores, expected, err_msg=name)


@pytest.mark.parametrize('base', ['roberta', 'bert'])
def test_an_encoder_without_a_head_gets_a_seeded_one_and_a_warning(make_model, tiny_directories, caplog, base, texts):
    whole = weights(tiny_directories[base])
    bare = {name.removeprefix(f'{base}.'): tensor for name, tensor in whole.items() if 'classifier' not in name}
    directory = make_model(base=base, tensors=bare)
    pairs = texts(6)
    with caplog.at_level(logging.WARNING):
        scores = [Cappy.from_pretrained(directory, max_length=24, seed=seed).score(pairs) for seed in (1, 1, 2)]
    fresh = 'classifier.bias, classifier.weight' if base == 'bert' else 'classifier.dense.bias'
    records = [record for record in caplog.records if record.name == 'cappy.model.tensors']
    assert len(records) == 3
    message = records[0].getMessage()
    assert message.startswith(f'{directory} has no head: ') and fresh in message and '(seed 1)' in message
    assert 'pooler' not in message  # BERT's is there
    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.abs(scores[0] - scores[2]).max() > 1e-3
    assert np.isfinite(scores[0]).all() and np.ptp(scores[0]) > 1e-4


def test_a_bert_encoder_without_a_pooler_gets_one(make_model, tiny_directories, caplog):
    whole = weights(tiny_directories['bert'])
    bare = {name: tensor for name, tensor in whole.items() if not name.startswith(('classifier', 'bert.pooler'))}
    with caplog.at_level(logging.WARNING):
        scorer = Cappy.from_pretrained(make_model(base='bert', tensors=bare), max_length=24)
    assert 'bert.pooler.dense.weight' in caplog.records[0].getMessage()
    pooler = np.asarray(scorer.params['bert.pooler.dense']['kernel'])
    assert pooler.std() == pytest.approx(0.02, rel=0.1)  # initializer_range
    assert not np.asarray(scorer.params['bert.pooler.dense']['bias']).any()


@pytest.mark.parametrize('name', ['roberta', 'bert'])
def test_what_is_saved_scores_alike_in_pytorch_and_in_cross_encoder_and_back(tiny_directories, texts, tmp_path, name):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    sentence_transformers = pytest.importorskip('sentence_transformers')
    # Adapted, not as read: what is saved must be what was trained.
    scorer = Cappy.from_pretrained(tiny_directories[name], max_length=24)
    pairs = texts(12)
    before = scorer.score(pairs)
    scorer.adapt([(*pair, 0.5) for pair in pairs], SETTINGS, progress=False, tokens_per_device=4096)
    scores = scorer.score(pairs)
    assert np.abs(scores - before).max() > 0.01
    scorer.save_pretrained(tmp_path / 'saved', model_card='# A scorer\n')
    assert (tmp_path / 'saved' / 'README.md').read_text() == '# A scorer\n'

    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / 'saved', output_loading_info=True
    )
    assert not report['missing_keys'] and not report['unexpected_keys']
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'saved')
    inputs = tokenizer(
        *map(list, zip(*pairs, strict=True)), truncation=True, max_length=24, padding=True, return_tensors='pt'
    )
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    assert logits.shape == (12, 1)
    np.testing.assert_allclose(logits[:, 0].numpy(), scores, rtol=0, atol=1e-4)

    # A list for a pair, and no empty response: CrossEncoder's tokenizer takes that for a text alone.
    full = [i for i, pair in enumerate(pairs) if pair[1]]
    cross_encoder = sentence_transformers.CrossEncoder(str(tmp_path / 'saved'), max_length=24, device='cpu')
    predicted = cross_encoder.predict([pairs[i] for i in full], show_progress_bar=False)
    np.testing.assert_allclose(predicted, scores[full], rtol=0, atol=1e-4)
    sigmoid = 1 / (1 + np.exp(-scores[full]))
    assert np.abs(predicted - sigmoid).max() > 0.05

    model.save_pretrained(tmp_path / 'pytorch')
    tokenizer.save_pretrained(tmp_path / 'pytorch')
    cross_encoder.save_pretrained(str(tmp_path / 'cross_encoder'))
    for back in ('saved', 'pytorch', 'cross_encoder'):
        again = Cappy.from_pretrained(tmp_path / back, max_length=24).score(pairs)
        np.testing.assert_allclose(again, scores, rtol=0, atol=1e-5, err_msg=back)


LONG = [('tell me what it is ' * 6, 'two red birds'), ('tell me', 'the cat sat on a mat ' * 6), ('tell me', 'yes')]


def test_the_length_that_a_scorer_was_adapted_with_is_kept_by_all_readers(tiny_directories, tmp_path, caplog):
    scorer = Cappy.from_pretrained(tiny_directories['roberta'])
    at_first = scorer.score(LONG)
    settings = dataclasses.replace(SETTINGS, max_length=16, learning_rate=1e-9)
    scorer.adapt([(*pair, 0.5) for pair in LONG * 8], settings, progress=False)
    assert '2 of 3 different training pairs were truncated to 16 tokens' in caplog.text
    assert scorer.max_length == 16
    scores = scorer.score(LONG)
    assert (np.abs(scores - at_first)[:2] > 1e-3).all()  # the length matters
    scorer.save_pretrained(tmp_path / 'saved')
    again = Cappy.from_pretrained(tmp_path / 'saved')
    assert again.max_length == 16
    np.testing.assert_allclose(again.score(LONG), scores, rtol=0, atol=1e-6)
    longer = Cappy.from_pretrained(tmp_path / 'saved', max_length=90)  # unless somebody says otherwise
    assert longer.max_length == 90
    np.testing.assert_allclose(longer.score(LONG), at_first, rtol=0, atol=1e-4)

    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    sentence_transformers = pytest.importorskip('sentence_transformers')
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'saved')
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / 'saved').eval()
    inputs = tokenizer(*map(list, zip(*LONG, strict=True)), truncation=True, padding=True, return_tensors='pt')
    with torch.no_grad():
        np.testing.assert_allclose(model(**inputs).logits[:, 0].numpy(), scores, rtol=0, atol=1e-4)
    cross_encoder = sentence_transformers.CrossEncoder(str(tmp_path / 'saved'), device='cpu')
    np.testing.assert_allclose(cross_encoder.predict(LONG, show_progress_bar=False), scores, rtol=0, atol=1e-4)


def test_settings_without_a_length_train_at_the_scorers(scorer):
    settings = dataclasses.replace(SETTINGS, max_length=None)
    settings.check(100, 1)
    assert scorer._with_max_length(settings) == dataclasses.replace(SETTINGS, max_length=scorer.max_length)
    assert scorer._with_max_length(SETTINGS) is SETTINGS


@pytest.mark.parametrize(('kept', 'default'), [(16, 16), (98, 98), (99, 98), (7, 98), (10**30, 98)])
def test_the_default_length_is_the_tokenizers_where_the_model_has_positions_for_it(scorer, kept, default):
    assert default_max_length(types.SimpleNamespace(model_max_length=kept), scorer.config) == default


def test_scoring_says_once_that_pairs_were_truncated_and_how_many_became_equal(tiny_directories, caplog):
    scorer = Cappy.from_pretrained(tiny_directories['roberta'], max_length=16)
    scorer.score([('tell me', 'yes')])
    assert caplog.messages == []
    responses = ['two red birds ' * 5 + end for end in ('yes', 'no', 'it')]
    ranked = scorer.rank('tell me', [*responses, 'yes'])
    assert len({row['score'] for row in ranked}) == 2
    scorer.score(LONG)
    assert caplog.messages == [
        '3 of 4 different pairs were truncated to 16 tokens, and 3 became equal to another, with the same score (said '
        'once)'
    ]


def test_half_a_surrogate_pair_is_refused_with_its_place(scorer):
    half = 'half \ud83d'
    assert error_line(scorer.score, [('q', 'fine'), ('q', half)]).startswith(
        'pair 1: response: holds half of a surrogate pair, which is no character, at 5; '
    )
    assert error_line(scorer.score, ['q', half], ['a', 'b']).startswith('pair 1: instruction: holds half')
    assert error_line(scorer.rank, 'q', ['fine', half]).startswith('pair 1: response: holds half')
    examples = [('q', 'fine', 1.0), ('q', half, 0.5)] * 8
    assert error_line(scorer.adapt, examples, SETTINGS).startswith('example 1: response: holds half')
    mended = [text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') for text in (half, '\ud83d\ude00')]
    assert mended == ['half \ufffd', '\U0001f600']
    assert np.isfinite(scorer.score(['q'] * 2, mended)).all()


def test_numbers_out_of_range_are_named(tiny_directories, scorer):
    path = tiny_directories['roberta']
    examples = [('a', 'b', 0.5)] * 8
    for call, told in (
        (lambda: Cappy.from_pretrained(path, tokens_per_device=-5), 'tokens_per_device: expected 1 or more, found -5'),
        (lambda: Cappy.from_pretrained(path, seed=-1), 'seed: expected 0 or more, found -1'),
        (lambda: scorer.adapt(examples, SETTINGS, tokens_per_device=0), 'tokens_per_device: expected 1 or more, found'),
        (lambda: scorer.adapt(examples, SETTINGS, checkpoint_every=-3), 'checkpoint_every: expected 0 or more, found'),
        (lambda: get_devices(0), 'n_model_shards: expected 1 or more, found 0'),
        (lambda: get_devices(-1), 'n_model_shards: expected 1 or more, found -1'),
        (lambda: get_devices(n_processes=2, process_id=2), 'process_id: expected 0 to 1 of 2 processes, found 2'),
    ):
        assert error_line(call).startswith(told)


@pytest.mark.parametrize(
    ('base', 'wrapped'),
    [
        ('bert', lambda name: f'model.{name}'),
        ('roberta', lambda name: f'0.auto_model.{name}'),
        ('roberta', lambda name: f'module.{name}'),
        ('bert', lambda name: f'0.auto_model.{name.removeprefix("bert.")}'),
    ],
)
def test_tensors_inside_a_wrapper_are_read(tiny_directories, make_model, caplog, base, wrapped):
    whole = weights(tiny_directories[base])
    path = make_model(base=base, tensors={wrapped(name): tensor for name, tensor in whole.items()})
    scorers = [Cappy.from_pretrained(folder) for folder in (path, tiny_directories[base])]
    jax.tree.map(np.testing.assert_array_equal, *(scorer.params for scorer in scorers))
    assert 'no head' not in caplog.text


def test_tensors_of_another_model_are_missing_before_a_head_is_made(tiny_directories, make_model, caplog):
    whole = weights(tiny_directories['bert'])
    path = make_model(base='bert', tensors={name.replace('bert.', 'electra.'): whole[name] for name in whole})
    line = error_line(Cappy.from_pretrained, path)
    assert 'missing bert.embeddings.' in line and 'there are electra.embeddings.' in line
    assert 'no head' not in caplog.text


@pytest.mark.parametrize(('base', 'n_labels'), [('bert', 3), ('roberta', 2)])
def test_a_classifier_of_several_labels_is_told_from_a_scorer(tiny_directories, make_model, base, n_labels):
    tensors = weights(tiny_directories[base])
    name = 'classifier' if base == 'bert' else 'classifier.out_proj'
    tensors |= {f'{name}.weight': np.ones((n_labels, 32), np.float32), f'{name}.bias': np.ones(n_labels, np.float32)}
    labels = {str(number): label for number, label in enumerate(('no', 'maybe', 'yes')[:n_labels])}
    path = make_model({'id2label': labels}, base=base, tensors=tensors)
    line = error_line(Cappy.from_pretrained, path)
    assert line.startswith(f'{path}: a classifier of {n_labels} labels ({", ".join(labels.values())}): ')
    assert 'a scorer has one output' in line and 'published with' not in line


def test_a_ranking_is_cross_encoders(scorer, tmp_path):
    sentence_transformers = pytest.importorskip('sentence_transformers')
    scorer.save_pretrained(tmp_path / 'saved')
    responses = ['yes', 'no', 'two red birds', 'the cat sat', 'a mat', 'sing it']
    cross_encoder = sentence_transformers.CrossEncoder(str(tmp_path / 'saved'), max_length=24, device='cpu')
    for top_k in (None, 3):
        expected = cross_encoder.rank('tell me', responses, top_k, return_documents=True, show_progress_bar=False)
        ranked = scorer.rank('tell me', responses, top_k)
        assert [set(row) for row in ranked] == [set(row) for row in expected]
        assert [(row['corpus_id'], row['text']) for row in ranked] == [(r['corpus_id'], r['text']) for r in expected]
        np.testing.assert_allclose([r['score'] for r in ranked], [r['score'] for r in expected], rtol=0, atol=1e-4)
    assert json.loads(json.dumps(ranked)) == ranked


def test_the_first_of_equal_responses_is_picked(scorer):
    responses = ['no', 'yes', 'no', 'yes', 'two birds']
    scores = scorer.score([('tell me', response) for response in responses])
    assert scorer.pick('tell me', responses) == responses[int(np.argmax(scores))]
    equal = scorer.rank('tell me', ['no', 'no', 'no'])
    assert [row['corpus_id'] for row in equal] == [0, 1, 2]
    assert len({row['score'] for row in equal}) == 1
    ranked = scorer.rank('tell me', responses)
    places = [row['corpus_id'] for row in ranked]
    assert places.index(0) < places.index(2) and places.index(1) < places.index(3)
    assert [row['score'] for row in ranked] == sorted((row['score'] for row in ranked), reverse=True)


def test_a_pick_among_nothing_is_an_error_and_a_ranking_of_nothing_empty(scorer):
    assert error_line(scorer.pick, 'tell me', []) == 'responses: empty; a pick needs at least one'
    assert scorer.rank('tell me', []) == []
    assert scorer.pick('tell me', iter(['only'])) == 'only'


def test_adapting_lowers_the_loss_with_tuples_and_with_finetuning_examples(tiny_directories):
    pairs = [('tell me', 'yes'), ('tell me', 'no'), ('what is it', 'a cat'), ('what is it', 'birds')] * 12
    labels = [1.0, 0.0, 0.8, 0.1] * 12
    runs = []
    for make in (lambda *row: row, FinetuningExample):
        scorer = Cappy.from_pretrained(tiny_directories['roberta'], max_length=24)
        examples = [make(*pair, label) for pair, label in zip(pairs, labels, strict=True)] * 2
        runs.append(scorer.adapt(examples, SETTINGS, progress=False, tokens_per_device=4096))
        runs[-1].error = np.square(scorer.score(pairs) - labels).mean()
    assert runs[0].updates == runs[1].updates
    assert len(runs[0].updates) == 12
    losses = [row.loss for row in runs[0].updates]
    assert np.mean(losses[-4:]) < 0.3 * losses[0]
    assert runs[0].error == runs[1].error < 0.3 * losses[0]
    assert runs[0].n_truncated == 0


@pytest.mark.parametrize(
    ('example', 'found'),
    [
        (('a', 'b', 1.5), 'example 2: label: found 1.5; give a number from 0 to 1'),
        (('a', 'b', float('nan')), 'example 2: label: found nan; give a number from 0 to 1'),
        (('a', 'b'), 'example 2: expected (instruction, response, label)'),
        (('a', None, 1.0), 'example 2: expected (instruction, response, label)'),
    ],
)
def test_a_bad_example_is_named_and_the_scorer_stays_whole(scorer, example, found):
    examples = [('a', 'b', 0.0), FinetuningExample('a', 'c', 1.0), example]
    assert error_line(scorer.adapt, examples * 8, SETTINGS).startswith(found)
    assert np.isfinite(scorer.score([('a', 'b')])).all()


def test_a_max_length_beyond_the_positions_is_an_error(tiny_directories):
    path = tiny_directories['roberta']
    message = error_line(Cappy.from_pretrained, path, max_length=99)
    assert message == f'max_length 99: {path} has positions for 98 tokens; give 98 or less'
    assert Cappy.from_pretrained(path).max_length == 98


def test_an_unknown_compute_dtype_is_an_error(tiny_directories):
    message = error_line(Cappy.from_pretrained, tiny_directories['roberta'], compute_dtype='float16')
    assert message == "compute_dtype: found 'float16'; choose one of float32, bfloat16"


def test_a_vocabulary_that_the_embeddings_do_not_hold_is_an_error(make_model):
    path = make_model({'vocab_size': 1500})
    expected = f'{path}: vocab_size: 1500 in config.json, but its tokenizer has tokens up to 1999'
    assert error_line(Cappy.from_pretrained, path) == expected


def test_missing_and_misshapen_tensors_are_named(tiny_directories, make_model):
    whole = weights(tiny_directories['roberta'])
    key = 'roberta.encoder.layer.1.attention.self.key.weight'
    without = {name: tensor for name, tensor in whole.items() if name != key}
    assert f'missing {key}' in error_line(Cappy.from_pretrained, make_model(tensors=without))
    misshapen = {**whole, key: np.zeros((8, 32), np.float32)}
    assert f'{key} has shape [8, 32], not [32, 32]' in error_line(Cappy.from_pretrained, make_model(tensors=misshapen))
    # Half a head is a damaged file, not an encoder without one.
    half = {name: tensor for name, tensor in whole.items() if name != 'classifier.out_proj.weight'}
    assert 'missing classifier.out_proj.weight' in error_line(Cappy.from_pretrained, make_model(tensors=half))


def test_a_head_of_another_model_or_of_several_outputs_is_named(tiny_directories, make_model):
    whole = weights(tiny_directories['roberta'])
    berts = {name: tensor for name, tensor in whole.items() if 'classifier' not in name}
    berts['classifier.weight'] = np.zeros((1, 32), np.float32)
    assert 'classifier.weight' in error_line(Cappy.from_pretrained, make_model(tensors=berts))
    three = {**whole, 'classifier.out_proj.weight': np.zeros((3, 32), np.float32)}
    assert 'classifier.out_proj.weight has shape [3, 32], not [1, 32]' in error_line(
        Cappy.from_pretrained, make_model(tensors=three)
    )


def test_tensors_that_are_not_the_scorers_do_no_harm(tiny_directories, make_model, texts):
    whole = weights(tiny_directories['roberta'])
    more = {**whole, 'lm_head.bias': np.zeros(2000, np.float32), 'roberta.pooler.dense.bias': np.ones(32, np.float32)}
    scores = Cappy.from_pretrained(make_model(tensors=more), max_length=24).score(texts(6))
    expected = Cappy.from_pretrained(tiny_directories['roberta'], max_length=24).score(texts(6))
    np.testing.assert_array_equal(scores, expected)


def test_a_save_never_replaces_a_folder_unasked(scorer, tmp_path):
    scorer.save_pretrained(tmp_path / 'saved')
    first = (tmp_path / 'saved' / 'model.safetensors').read_bytes()
    assert 'exists and is not empty' in error_line(scorer.save_pretrained, tmp_path / 'saved')
    scorer.save_pretrained(tmp_path / 'saved', overwrite=True)
    assert (tmp_path / 'saved' / 'model.safetensors').read_bytes() == first


def test_weights_in_half_precision_are_read_as_float32(tiny_directories, tmp_path, texts):
    path = shutil.copytree(tiny_directories['roberta'], tmp_path / 'half')
    halves = {name: tensor.astype(np.float16) for name, tensor in weights(path).items()}
    save_file(halves, path / 'model.safetensors', {'format': 'pt'})
    half = Cappy.from_pretrained(path, max_length=24)
    assert {leaf.dtype.name for leaf in half.params['classifier.dense'].values()} == {'float32'}
    expected = Cappy.from_pretrained(tiny_directories['roberta'], max_length=24).score(texts(6))
    assert 0 < np.abs(half.score(texts(6)) - expected).max() < 0.01


def test_a_label_that_is_text_is_named(tiny_cappy):
    with pytest.raises(InputError, match=r"example 1: label: found '1'"):
        Cappy.from_pretrained(tiny_cappy).adapt([('a', 'b', 1.0), ('a', 'c', '1')] * 64)


def test_a_scorer_survives_a_refused_checkpoint(tiny_cappy, tmp_path):
    scorer = Cappy.from_pretrained(tiny_cappy)
    before = scorer.score([('a', 'b')])
    checkpoint = Checkpoint(tmp_path)
    checkpoint.path.write_bytes(b'not a checkpoint')
    with pytest.raises(InputError, match='damaged'):
        scorer.adapt([('a', 'b', 1.0)] * 128, checkpoint=checkpoint)
    np.testing.assert_array_equal(scorer.score([('a', 'b')]), before)


def test_a_scorer_whose_training_stopped_says_so(tiny_cappy):
    scorer = Cappy.from_pretrained(tiny_cappy)

    def stop(update, params):
        raise KeyError('stopped')

    with pytest.raises(KeyError):
        scorer.adapt([('a', 'b', 1.0)] * 128, on_update=stop, progress=False)
    with pytest.raises(InputError, match='load it again'):
        scorer.score([('a', 'b')])


@pytest.mark.parametrize('max_length', [-1, 0, 3, 513])
def test_a_max_length_without_room_or_positions_is_refused(max_length, tiny_cappy):
    with pytest.raises(InputError, match=f'max_length {max_length}'):
        Cappy.from_pretrained(tiny_cappy, max_length=max_length)


def test_lists_of_texts_score_as_pairs_do(tiny_cappy):
    scorer = Cappy.from_pretrained(tiny_cappy)
    pairs = [('a', 'x'), ('b', ''), ('a', 'x')]
    scores = scorer.score(pairs)
    np.testing.assert_array_equal(scorer.score(['a', 'b', 'a'], ['x', '', 'x']), scores)
    np.testing.assert_array_equal(scorer.predict(iter(pairs)), scores)
    assert scorer.answer('a', ['x', 'y']) == scorer.pick('a', ['x', 'y'])
    with pytest.raises(InputError, match='one is longer'):
        scorer.score(['a', 'b'], ['x'])
    with pytest.raises(InputError, match='expected a list of texts'):
        scorer.rank('a', 'xyz')
