"""Devices that are only described: a compiler can compile for them, nothing can run on them.

Importing it sets what libtpu and the CUDA plugin want to know where there is no device, before jax looks for any.
"""

import dataclasses
import importlib.util
import os
from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from redco.deployers import partition_utils

from cappy.errors import InputError
from cappy.model.devices import Devices

PLUGINS = {'tpu': ('libtpu', 'libtpu'), 'gpu': ('jax_cuda12_plugin', "'jax[cuda12]'")}  # module, what pip installs
has_plugin = {platform: importlib.util.find_spec(module) is not None for platform, (module, _) in PLUGINS.items()}

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # the missing worker is no error here
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # nobody uses a TPU, so several may compile
os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')
if has_plugin['gpu']:
    # Tuning would time kernels on the card.
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_autotune_level=0'.strip()
jax.config.update('jax_platforms', 'cuda,cpu' if has_plugin['gpu'] else 'cpu')

TARGETS = Path(__file__).resolve().parent / 'targets'


@dataclasses.dataclass(frozen=True)
class Card:
    """A device by its published figures.

    memory: bytes that jax gives a program by default; total: bytes of the device; operations: bfloat16, dense, per
    second; bandwidth: bytes per second; layouts: {number of devices: how the topology is named}.
    """

    name: str
    platform: str
    memory: float
    total: float
    operations: float
    bandwidth: float
    layouts: dict


def _nvidia(name, total, operations, bandwidth):
    layouts = {n: f'{n}x1x1' for n in (1, 2, 4, 8)}
    # jax takes three quarters of an NVIDIA card unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
    return Card(name, 'gpu', 0.75 * total, total, operations, bandwidth, layouts)


def _tpu(name, total, operations, bandwidth, shapes):
    # A quarter of a GiB is the runtime's own: libtpu refuses what is beyond it.
    layouts = {n: f'{name}:{shape}' for n, shape in shapes.items()}
    return Card(name, 'tpu', total - 2**28, total, operations, bandwidth, layouts)


# From the makers' pages: cloud.google.com/tpu/docs, nvidia.com's data sheets.
CARDS = {
    card.name: card
    for card in (
        _tpu('v4', 32 * 2**30, 275e12, 1228e9, {1: '1x1x1', 4: '2x2x1', 8: '2x2x2'}),
        _tpu('v5e', 16 * 2**30, 197e12, 819e9, {1: '1x1x1', 4: '2x2', 8: '2x4'}),
        _tpu('v6e', 32 * 2**30, 918e12, 1640e9, {1: '1x1x1', 4: '2x2', 8: '2x4'}),
        _nvidia('a10g', 23836033024, 70e12, 600e9),
        _nvidia('a100', 84987740160, 312e12, 2039e9),
        _nvidia('h100', 85017755648, 989e12, 3350e9),
    )
}


def described_devices(card, n_devices, n_model_shards=1):
    """The Devices of so many cards, to compile for.

    Raises InputError where the plugin that compiles for this kind is not installed, or there is no such layout.
    """
    module, package = PLUGINS[card.platform]
    if not has_plugin[card.platform]:
        raise InputError(f'{card.name}: compiling for it needs {module}; pip install {package} in an environment')
    if n_devices not in card.layouts:
        raise InputError(f'{card.name}: no layout of {n_devices} devices; known are {sorted(card.layouts)}')
    if card.platform == 'tpu':
        # Both cores of a v4's chip as one device, as jax has them there.
        options = {'chip_config_name': 'megacore'} if card.name == 'v4' else {}
        topology = topologies.get_topology_desc(topology_name=card.layouts[n_devices], platform='tpu', **options)
    else:
        target = (TARGETS / f'{card.name}.txtpb').read_text()
        topology = topologies.get_topology_desc(
            platform='cuda', topology_name='', target_config=target, topology=card.layouts[n_devices]
        )
    devices = np.array(topology.devices).reshape(-1, n_model_shards)
    return Devices(_Rules, Mesh(devices, ('dp', 'mp')), is_described=True)


class _Rules:
    """What Devices asks of a Deployer, which would want devices that are there."""

    get_params_spec = staticmethod(partition_utils.get_params_spec)
