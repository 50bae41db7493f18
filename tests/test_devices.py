"""The recorded job on several devices and processes, each a Python process of its own: see `job`."""

import json
import logging
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cappy.errors import InputError
from cappy.model.devices import Devices, get_devices, is_first_process
from cappy.model.training import TrainingSettings
from cappy.model.training_state import Checkpoint
from cappy.scorer import Cappy
from cappy.tasks.candidates import read_task
from cappy.tasks.rouge import RougeL

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / 'tests' / 'recorded'
LAYER = 'roberta.encoder.layer.0'


class Interrupted(Exception):
    pass


def job(folder, per_device_batch_size, stop_after=None, objective='absolute', **device_settings):
    """tiny_tense as it was recorded; with stop_after interrupted after that update, and continued by a new scorer.

    Writes folder/measured.json and folder/model from the first process; all of them say what they wrote.
    """
    dataset = json.loads((RECORDED / 'bigbench' / 'tiny_tense.dataset.json').read_text())
    train = [(row['instruction'], row['response'], row['label']) for row in dataset['train']]
    devices = get_devices(**device_settings)
    settings = TrainingSettings(
        learning_rate=5e-5,
        per_device_batch_size=per_device_batch_size,
        accumulate_grad_batches=2,
        objective=objective,
    )
    checkpoint = Checkpoint(folder / 'checkpoint')

    def stop(row, params):
        if row.update == stop_after:
            raise Interrupted

    begun = []
    if stop_after is not None:
        scorer = Cappy.from_pretrained(RECORDED / 'tiny-cappy', devices=devices)
        try:
            scorer.adapt(train, settings, progress=False, checkpoint=checkpoint, checkpoint_every=5, on_update=stop)
        except Interrupted:
            begun.append(checkpoint.exists())
    scorer = Cappy.from_pretrained(RECORDED / 'tiny-cappy', devices=devices)
    options = {'checkpoint': checkpoint, 'on_update': lambda row, _: begun.append(row.update)}
    trained = scorer.adapt(train, settings, progress=False, **options)
    scores = scorer.score([(row['instruction'], row['response']) for row in dataset['validation']])
    scorer.save_pretrained(folder / f'model-{jax.process_index()}')
    if is_first_process():
        measured = {
            'devices': devices.description,
            'mesh': [devices.n_data, devices.n_model_shards],
            'query': list(scorer.params[LAYER]['attention.self.query']['kernel'].sharding.spec),
            'begun': begun,
            'updates': trained.updates,
            'scores': scores.tolist(),
        }
        (folder / 'measured.json').write_text(json.dumps(measured))


def refusals(*jobs):
    """Print what a user is told of shards of models: (n_model_shards, model) each."""
    for n_model_shards, model in jobs:
        try:
            Cappy.from_pretrained(model, devices=get_devices(n_model_shards))
        except InputError as error:
            print(error)


def free_port():
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


@pytest.fixture(scope='module')
def jobs(request, run_python, tmp_path_factory, tiny_directories, make_model):
    """{name: (folder, processes)} of all the jobs, which run at the same time."""
    started = {}

    def start(name, n_devices, *each_process, **arguments):
        folder = tmp_path_factory.mktemp(name)
        started[name] = (
            folder,
            [
                run_python(__file__, json.dumps({'folder': str(folder), **arguments, **own}), n_devices=n_devices)
                for own in each_process or ({},)
            ],
        )

    names = ' '.join(item.name for item in request.session.items)  # some are slow
    if 'four devices' in names:
        start('four devices', 4, per_device_batch_size=2)
    if 'listwise' in names:
        start('listwise', 4, per_device_batch_size=2, objective='listwise')
        start('listwise, one device', 1, per_device_batch_size=8, objective='listwise')
    start('two shards', 4, per_device_batch_size=4, n_model_shards=2, stop_after=12)
    if 'two processes' in names:
        hosts = {'n_processes': 2, 'host0_address': '127.0.0.1', 'host0_port': free_port()}
        start('two processes', 2, {'process_id': 0}, {'process_id': 1}, per_device_batch_size=2, **hosts)
    tiny, odd = (
        tiny_directories['roberta'],
        make_model({'hidden_size': 36, 'num_attention_heads': 3, 'intermediate_size': 40}),
    )
    of_jobs = [(2, str(tiny)), (3, str(tiny)), (3, str(odd))]
    refused = run_python(__file__, json.dumps({'refusals': of_jobs}), n_devices=3)
    started['refusals'] = (None, [refused])
    yield started
    for _, processes in started.values():
        for process in processes:
            process.kill()


def finished(jobs, name):
    """The folder of a job that went well, and what its processes printed."""
    folder, processes = jobs[name]
    outputs = []
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        outputs.append(output)
    return folder, outputs


@pytest.mark.parametrize(
    ('name', 'mesh', 'devices'),
    [
        # The two processes have the same mesh.
        pytest.param('four devices', [4, 1], '4 x cpu (cpu), 1 process(es)', marks=pytest.mark.slow),
        ('two shards', [2, 2], '4 x cpu (cpu), 1 process(es)'),
        pytest.param('two processes', [4, 1], '4 x cpu (cpu), 2 process(es)', marks=pytest.mark.slow),
    ],
)
def test_the_recorded_run_comes_out_the_same_on(jobs, tiny_cappy, name, mesh, devices):
    folder, outputs = finished(jobs, name)
    measured = json.loads((folder / 'measured.json').read_text())
    assert measured['mesh'] == mesh
    assert measured['devices'] == devices
    assert measured['query'] == ([None, 'mp'] if mesh[1] > 1 else [])

    steps = json.loads((RECORDED / 'bigbench' / 'tiny_tense.train_metrics.json').read_text())
    expected = np.array([step['loss'] for step in steps]).reshape(32, 2).mean(axis=1)
    losses = [update[3] for update in measured['updates']]
    np.testing.assert_allclose(losses, expected, rtol=0, atol=5e-5)
    schedule = json.loads((RECORDED / 'bigbench' / 'tiny_tense.schedule.json').read_text())
    rates = [update[2] for update in measured['updates']]
    np.testing.assert_allclose(rates, schedule['lr_used_by_update_k'], rtol=1e-6)
    scored = json.loads((RECORDED / 'bigbench' / 'tiny_tense.scores.json').read_text())
    np.testing.assert_allclose(measured['scores'], [row['score'] for row in scored], rtol=0, atol=2e-5)
    best = {}
    for row, score in zip(scored, measured['scores'], strict=True):  # the first of equals stays
        if row['example_idx'] not in best or score > best[row['example_idx']][0]:
            best[row['example_idx']] = score, row['response']
    recorded = json.loads((RECORDED / 'bigbench' / 'tiny_tense.result.json').read_text())
    picks = [response for _, response in best.values()]
    assert picks == [one['pred'] for one in recorded['per_example']]
    examples = read_task(RECORDED / 'inputs' / 'bigbench_flan_gens', 'flan-t5-tiny', 'tiny_tense')['validation']
    rougeL = [RougeL().score(e.references, pick) for pick, e in zip(picks, examples, strict=True)]
    assert np.mean(rougeL) == pytest.approx(recorded['rougeL'], abs=1e-6)

    # The saved model, read back on this process's one device.
    some = scored[::40]
    again = Cappy.from_pretrained(folder / 'model-0').score([(row['instruction'], row['response']) for row in some])
    np.testing.assert_allclose(again, [row['score'] for row in some], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_listwise_training_is_the_same_on_one_device_and_on_four(jobs):
    measured = []
    for name in ('listwise', 'listwise, one device'):
        folder, _ = finished(jobs, name)
        measured.append(json.loads((folder / 'measured.json').read_text()))
    assert [of_job['mesh'] for of_job in measured] == [[4, 1], [1, 1]]
    losses = [[update[1:] for update in of_job['updates']] for of_job in measured]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4, atol=5e-5)
    assert {update[0] for update in losses[0]} != {16}  # whole instructions
    # A shift of all scores has no gradient but rounding, of which Adam makes steps.
    scores = [np.subtract(of_job['scores'], np.mean(of_job['scores'])) for of_job in measured]
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=5e-5)


@pytest.mark.slow
def test_only_the_first_process_writes_and_none_prints(jobs):
    folder, outputs = finished_once(jobs, 'two processes')
    assert sorted(path.name for path in folder.iterdir()) == ['measured.json', 'model-0']
    assert outputs in (None, ['', ''])


def finished_once(jobs, name):
    """As `finished`, for a job that another test may have waited for."""
    folder, processes = jobs[name]
    if any(process.returncode is None for process in processes):
        return finished(jobs, name)
    return folder, None


def test_a_checkpoint_of_a_sharded_model_is_continued(jobs):
    folder, _ = finished_once(jobs, 'two shards')
    begun = json.loads((folder / 'measured.json').read_text())['begun']
    # Stopped in update 12, the checkpoint after update 9 was there; what came of it is checked with the recorded run.
    assert begun == [True, *range(10, 32)]


def test_shards_that_divide_neither_devices_nor_heads_nor_weights_are_named(jobs):
    _, [output] = finished(jobs, 'refusals')
    devices, heads, weights = output.splitlines()
    assert devices == '--n_model_shards 2: does not divide the 3 device(s) found'
    assert heads.startswith('n_model_shards 3: does not divide the 4 attention heads of ')
    assert heads.endswith('; give a divisor of 4')
    assert weights.startswith('--n_model_shards 3: does not divide 40, a dimension of ')
    assert weights.endswith('; give a divisor of the heads and widths')


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_a_platform_without_a_device_is_named_in_one_line(run_python, platform):
    if platform == 'cuda' and Path('/dev/nvidiactl').exists():
        pytest.skip('has an NVIDIA card')
    process = run_python(ROOT / 'scripts' / 'check_device.py', JAX_PLATFORMS=platform)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, output) == (1, '')
    assert 'Traceback' not in errors
    line = errors.splitlines()[-1]
    assert line.startswith(f'error: JAX_PLATFORMS={platform}: no device could be used (')
    assert line.endswith(
        'install jax as its manual says for this device, with a driver that fits, or set JAX_PLATFORMS=cpu'
    )


@pytest.mark.parametrize(
    ('error', 'message'),
    [
        (
            RuntimeError(
                "Unable to initialize backend 'cuda': Unable to use CUDA because of the following:\nOutdated cuDNN "
                'installation found. (you may need to uninstall the failing plugin package, or set ..)'
            ),
            r"no device could be used \(Unable to initialize backend 'cuda': .*: Outdated cuDNN installation found\.\)",
        ),
        (
            jax.errors.JaxRuntimeError('FAILED_PRECONDITION: DNN library initialization failed.\nLook at the errors'),
            r'the devices: the first program failed \(FAILED_PRECONDITION: DNN .* failed\.\); the driver or its lib',
        ),
    ],
)
def test_a_driver_that_does_not_fit_is_named_in_one_line(monkeypatch, error, message):
    def failing(**settings):
        raise error

    monkeypatch.setattr('redco.Deployer', failing)
    monkeypatch.delenv('JAX_PLATFORMS')
    with pytest.raises(InputError, match=message) as caught:
        get_devices.__wrapped__()
    assert '\n' not in str(caught.value) and '(you may' not in str(caught.value)


def test_another_failure_of_the_start_is_not_taken_for_the_driver(monkeypatch):
    def failing(**settings):
        raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: the other processes did not come')

    monkeypatch.setattr('redco.Deployer', failing)
    with pytest.raises(jax.errors.JaxRuntimeError, match='DEADLINE'):
        get_devices.__wrapped__()


def with_cards(*cards):
    """Devices whose mesh is of cards: (platform, kind, compute capability) each."""
    names = ('platform', 'device_kind', 'compute_capability')
    cards = [SimpleNamespace(**dict(zip(names, card, strict=False))) for card in cards]
    return Devices(None, SimpleNamespace(devices=np.array(cards, object)))


def test_a_card_without_bfloat16_computes_in_float32_and_says_so_unless_asked_for_it(caplog):
    old = with_cards(('gpu', 'NVIDIA H100', '9.0'), ('gpu', 'Tesla T4', '7.5'))
    with caplog.at_level(logging.WARNING):
        assert old.compute_dtype() == jnp.float32
    lacking = 'Tesla T4 has no units for bfloat16 (compute capability 7.5; 8.0 has)'
    assert [record.getMessage() for record in caplog.records] == [f'{lacking}; computing in float32']
    caplog.clear()
    assert old.compute_dtype('float32') == jnp.float32
    with pytest.raises(InputError) as caught:
        old.compute_dtype('bfloat16')
    assert str(caught.value) == f'compute_dtype bfloat16: {lacking}; give float32'
    assert not caplog.records


@pytest.mark.parametrize(
    ('card', 'default'),
    [
        (('gpu', 'NVIDIA A100', '8.0'), jnp.bfloat16),
        (('gpu', 'AMD Instinct', 'gfx90a'), jnp.bfloat16),  # no number
        (('gpu', 'another'), jnp.bfloat16),  # no capability
        (('tpu', 'TPU v4'), jnp.bfloat16),
        (('cpu', 'cpu'), jnp.float32),
    ],
)
def test_other_devices_compute_in_bfloat16_and_a_cpu_where_it_is_asked_to(card, default, caplog):
    devices = with_cards(card)
    assert (devices.compute_dtype(), devices.compute_dtype('bfloat16')) == (default, jnp.bfloat16)
    assert not caplog.records
    with pytest.raises(InputError, match="compute_dtype: found 'float16'; choose one of float32, bfloat16"):
        devices.compute_dtype('float16')


def test_one_device_has_a_mesh_and_one_set_of_settings_one_deployer():
    devices = get_devices()
    assert (devices.n_data, devices.n_model_shards, devices.platform) == (1, 1, 'cpu')
    assert get_devices() is devices
    with pytest.raises(InputError, match=r'--n_model_shards 2: does not divide the 1 device\(s\) found'):
        get_devices(2)


if __name__ == '__main__':
    arguments = json.loads(sys.argv[1])
    if 'refusals' in arguments:
        refusals(*arguments['refusals'])
    else:
        job(Path(arguments.pop('folder')), **arguments)
