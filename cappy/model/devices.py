"""The devices: redco's Deployer, a mesh for any number of them, and where each array is placed.

The Deployer starts the hosts, lays the mesh of a sharded model and logs. It lays none for an unsharded model; the mesh
is ours then, all devices on the data axis, so that one device and many are the same program.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import os
import re
from pathlib import Path

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cappy.errors import InputError
from cappy.files.settings import check_at_least
from cappy.files.wording import first_line

# Megatron's split: the first product of a block by columns, the second by rows, so that a block needs one sum between
# shards. Keys are regular expressions over the last parts of a parameter's path, first match wins; T5's are the last.
SHARDING_RULES = [
    ((r'.*\.(query|key|value)', 'kernel'), P(None, 'mp')),
    ((r'.*\.(query|key|value)', 'bias'), P('mp')),
    ((r'.*attention\.output\.dense', 'kernel'), P('mp', None)),
    ((r'.*intermediate\.dense', 'kernel'), P(None, 'mp')),
    ((r'.*intermediate\.dense', 'bias'), P('mp')),
    ((r'.*output\.dense', 'kernel'), P('mp', None)),
    (('.*word_embeddings', 'embedding'), P(None, 'mp')),
    ((r'.*Attention\.(q|k|v)', 'kernel'), P(None, 'mp')),
    ((r'.*Attention\.o', 'kernel'), P('mp', None)),
    ((r'.*DenseReluDense\.wi.*', 'kernel'), P(None, 'mp')),
    ((r'.*DenseReluDense\.wo', 'kernel'), P('mp', None)),
    (('shared', 'embedding'), P(None, 'mp')),
    (('lm_head', 'kernel'), P(None, 'mp')),
    (('.*',), P()),
]


COMPUTE_DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
BFLOAT16_CAPABILITY = 8.0  # of NVIDIA's cards: from Ampere on; older ones compute bfloat16 by way of float32

# How a first program fails whose driver or libraries are older than what it was compiled for.
DOES_NOT_FIT = re.compile('FAILED_PRECONDITION|DRIVER|PTX|NO_BINARY|INVALID_IMAGE|driver|ptxas|kernel image')

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Devices:
    """A Deployer and the mesh [dp, mp] that programs run on.

    is_described: programs can be compiled for them, and nothing can run (benchmarks/topologies.py).
    """

    deployer: object
    mesh: Mesh
    is_described: bool = False

    @property
    def n_data(self):
        """Devices, or groups of model shards, that share out the rows of a batch."""
        return self.mesh.shape['dp']

    @property
    def n_model_shards(self):
        return self.mesh.shape['mp']

    @property
    def platform(self):
        """'cpu', 'gpu' or 'tpu'."""
        return self.mesh.devices.flat[0].platform

    @property
    def description(self):
        device = self.mesh.devices.flat[0]
        return f'{self.mesh.devices.size} x {device.device_kind} ({self.platform}), {jax.process_count()} process(es)'

    @property
    def replicated(self):
        return NamedSharding(self.mesh, P())

    @property
    def by_row(self):
        """Rows shared out over the data axis."""
        return NamedSharding(self.mesh, P('dp'))

    def compute_dtype(self, name=None):
        """What products are computed in: COMPUTE_DTYPES[name]; by default bfloat16 where the device has units for it.

        An accelerator that has none gets float32, with a warning. Raises InputError for another name, and for bfloat16
        on such a device, where it would be slower than float32.
        """
        if name not in (None, *COMPUTE_DTYPES):
            raise InputError(f'compute_dtype: found {name!r}; choose one of {", ".join(COMPUTE_DTYPES)}')
        lacking = None if name == 'float32' else self._lacks_bfloat16()
        if name is None:
            if lacking:
                logger.warning('%s; computing in float32', lacking)
            return jnp.float32 if lacking or self.platform == 'cpu' else jnp.bfloat16
        if lacking:
            raise InputError(f'compute_dtype bfloat16: {lacking}; give float32')
        return COMPUTE_DTYPES[name]

    def _lacks_bfloat16(self):
        """Words for an NVIDIA card without units for bfloat16, None for any other device."""
        for device in self.mesh.devices.flat:
            with contextlib.suppress(AttributeError, TypeError, ValueError):  # AMD's capabilities are no numbers
                if device.platform == 'gpu' and float(device.compute_capability) < BFLOAT16_CAPABILITY:
                    return (
                        f'{device.device_kind} has no units for bfloat16 (compute capability '
                        f'{device.compute_capability}; {BFLOAT16_CAPABILITY} has)'
                    )

    def check_heads(self, config, source):
        """Raise InputError where the shards of a model do not divide its attention heads.

        config: EncoderConfig; source: the model's name in the error. A head in two shards is right, but each product of
        attention would move between devices.
        """
        n_heads = config.num_attention_heads
        if n_heads % self.n_model_shards:
            raise InputError(
                f'n_model_shards {self.n_model_shards}: does not divide the {n_heads} attention heads of {source}; '
                f'give a divisor of {n_heads}'
            )

    def params_shardings(self, params):
        """Where each parameter is placed: a tree like `params` (arrays or their shapes) of NamedSharding.

        Raises InputError naming the first parameter that the shards do not divide.
        """
        if self.n_model_shards == 1:
            return jax.tree.map(lambda _: self.replicated, params)
        specs = flax.core.unfreeze(self.deployer.get_params_spec(params, SHARDING_RULES))
        for (path, spec), leaf in zip(
            jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda x: isinstance(x, P)),
            jax.tree.leaves(params),
            strict=True,
        ):
            for size, axis in zip(leaf.shape, spec, strict=False):
                if axis == 'mp' and size % self.n_model_shards:
                    name = '.'.join(entry.key for entry in path)
                    raise InputError(
                        f'--n_model_shards {self.n_model_shards}: does not divide {size}, a dimension of {name}; '
                        f'give a divisor of the heads and widths'
                    )
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))

    def join(self, x):
        """x [N, ..] in a program, rows shared out and whole on each model shard.

        Left to itself, XLA spreads the hidden width over the shards as the word table is spread, and gathers it again
        for each product.
        """
        return x if self.n_model_shards == 1 else jax.lax.with_sharding_constraint(x, self.by_row)

    def put(self, array, sharding):
        """A host array, the same on each process -> a device array laid out as `sharding`."""
        if jax.process_count() == 1:
            return jax.device_put(array, sharding)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: np.asarray(array)[index])

    def put_rows(self, rows):
        """A dict of arrays whose first axis is the rows of a batch -> on the devices, rows shared out."""
        return {name: self.put(array, self.by_row) for name, array in rows.items()}

    def put_params(self, params):
        """A tree of host arrays -> on the devices."""
        return jax.tree.map(self.put, params, self.params_shardings(params))


@functools.cache
def get_devices(
    n_model_shards=1,
    n_processes=None,
    host0_address=None,
    host0_port=None,
    process_id=None,
    n_local_devices=None,
    tensorboard_dir=None,
):
    """The devices of this process and, with n_processes, of the others: one Deployer for one set of settings.

    n_processes, host0_address, host0_port, process_id, n_local_devices: as redco's Deployer takes them;
    tensorboard_dir: where its log_metrics writes, None: nowhere.
    Raises InputError for a number that is out of range, where n_model_shards does not divide the devices, the platform
    that was asked for has no device, its driver or libraries do not fit, or TensorBoard's writer is not installed.
    """
    check_at_least(1, n_model_shards=n_model_shards, n_processes=n_processes, n_local_devices=n_local_devices)
    if n_processes is not None and process_id is not None and not 0 <= process_id < n_processes:
        raise InputError(f'process_id: expected 0 to {n_processes - 1} of {n_processes} processes, found {process_id}')
    if tensorboard_dir is not None and not all(map(importlib.util.find_spec, ('tensorflow', 'tensorboard'))):
        raise InputError('--tensorboard_dir: flax writes its files by tensorflow; pip install tensorflow tensorboard')
    from redco import Deployer  # two seconds of imports that reading files need not wait for

    _cache_compilations()
    with _root_handlers_kept():
        try:
            deployer = Deployer(
                # Random choices are drawn from a run's own seed (training.reference_order), not from the process.
                jax_seed=0,
                n_model_shards=n_model_shards,
                verbose=False,
                n_processes=n_processes,
                host0_address=host0_address,
                host0_port=host0_port,
                process_id=process_id,
                n_local_devices=n_local_devices,
                workdir=tensorboard_dir,
                run_tensorboard=tensorboard_dir is not None,
            )
        except AssertionError as error:
            # jax asserts that it found a device, redco that the shards divide those it found.
            n_devices = _device_count()
            if not n_devices:
                raise InputError(_no_device('none was found')) from error
            raise InputError(
                f'--n_model_shards {n_model_shards}: does not divide the {n_devices} device(s) found'
            ) from error
        except RuntimeError as error:
            if str(error).startswith('Unable to initialize backend'):
                raise InputError(_no_device(str(error))) from error
            refuse_misfit('the devices', error)
            raise
    mesh = deployer.mesh
    if mesh is None:
        mesh = Mesh(np.array(jax.devices()).reshape(-1, 1), ('dp', 'mp'))
    return Devices(deployer, mesh)


def refuse_misfit(device, error):
    """Raise InputError where a first program failed since the driver or the libraries of a device do not fit jax.

    device: its name in the error; error: RuntimeError, left alone where it may have another cause.
    """
    if isinstance(error, jax.errors.JaxRuntimeError) and DOES_NOT_FIT.search(str(error)):
        raise InputError(
            f'{device}: the first program failed ({first_line(error)}); the driver or its libraries do not fit jax '
            f'{jax.__version__}: install a newer driver, or jax again as its manual says for this device, or set '
            'JAX_PLATFORMS=cpu'
        ) from error


def _no_device(reason):
    """One line for a platform without a device, or with one that does not start."""
    reason = reason.partition(' (set JAX_PLATFORMS')[0].partition(' (you may need')[0]
    asked = os.environ.get('JAX_PLATFORMS')
    named = f'JAX_PLATFORMS={asked}: ' if asked else ''
    return (
        f'{named}no device could be used ({" ".join(reason.split())}); install jax as its manual says for this device, '
        'with a driver that fits, or set JAX_PLATFORMS=cpu'
    )


def _device_count():
    """Devices of all processes, 0 where jax finds none of the platform that was asked for."""
    try:
        return jax.device_count()
    except (AssertionError, RuntimeError):
        return 0


def is_first_process():
    """Whether this process writes the files."""
    return jax.process_index() == 0


def from_first_process(number):
    """The number that the first process has, on every process."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(number))


def _cache_compilations():
    """Keep compiled programs on disk between runs, unless the user has named a place or switched it off."""
    if jax.config.jax_compilation_cache_dir is None and jax.config.jax_enable_compilation_cache:
        root = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
        jax.config.update('jax_compilation_cache_dir', str(Path(root) / 'cappy' / 'compilations'))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


@contextlib.contextmanager
def _root_handlers_kept():
    """redco's Deployer takes away the root logger's handlers, which are the user's."""
    handlers = list(logging.root.handlers)
    try:
        yield
    finally:
        logging.root.handlers[:] = handlers
