"""The recorded job on several devices and processes, each a Python process of its own: see `job`."""

import json
import socket
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cappy.errors import InputError
from cappy.model.devices import get_devices, is_first_process
from cappy.model.training import TrainingSettings
from cappy.model.training_state import Checkpoint
from cappy.scorer import Cappy
from cappy.tasks.candidates import read_task
from cappy.tasks.rouge import RougeL

RECORDED = Path(__file__).parent / 'recorded'
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


def refusals(shards_of_devices, shards_of_weights, model):
    """Print what a user is told where shards divide neither the devices nor the weights."""
    for n_model_shards in (shards_of_devices, shards_of_weights):
        try:
            Cappy.from_pretrained(model, devices=get_devices(n_model_shards))
        except InputError as error:
            print(error)


def free_port():
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


@pytest.fixture(scope='module')
def jobs(request, run_python, tmp_path_factory, tiny_directories):
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
    refused = run_python(__file__, json.dumps({'refusals': [2, 3, str(tiny_directories['roberta'])]}), n_devices=3)
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


def test_shards_that_divide_neither_devices_nor_weights_are_named(jobs):
    _, [output] = finished(jobs, 'refusals')
    devices, weights = output.splitlines()
    assert devices == '--n_model_shards 2: does not divide the 3 device(s) found'
    assert weights.startswith('--n_model_shards 3: does not divide 32, a dimension of ')
    assert weights.endswith('; give a divisor of the heads and widths')


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
