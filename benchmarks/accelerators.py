"""What compilers say of the programs on TPUs and NVIDIA cards, none of which is needed: nothing is run.

    pip install libtpu           # or 'jax[cuda12]', each beside requirements.txt in an environment of its own
    python benchmarks/accelerators.py --cases v5e/1/train-large
    python benchmarks/accelerators.py --print_table

Compiles the programs of training, scoring, encoding and sampling at real sizes for cards that are only described
(topologies.py) and appends what the compiler says of each to `output`, a line of JSON; cases that are there are not
compiled again. A case is CARD/DEVICES[xSHARDS]/PROGRAM-SIZE/TOKENSxROW. Fits: beside what else is on the device in that
phase, within what jax takes of it. Operations and bytes are the compiler's count for one device (of an NVIDIA card it
gives none); what of the bytes goes to and from memory is read from the compiled program (traffic.py). Roofline over
operations: the larger of operations / peak and bytes / bandwidth, over the former. Figures are in docs/accelerators.md.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import re
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

import jax
import jax.numpy as jnp
import numpy as np
from common import scorer_config
from topologies import CARDS, described_devices
from traffic import memory_bytes

from cappy.cli.flags import run
from cappy.cli.tables import Column, format_table
from cappy.errors import InputError
from cappy.generate.decoding_loop import BeamLoop, Engine, Lengths, SampleLoop
from cappy.generate.t5 import T5, T5Config
from cappy.generate.t5 import params_shapes as t5_shapes
from cappy.model.budgets import scoring_bytes, training_bytes
from cappy.model.config import EncoderConfig
from cappy.model.encoder import rounded
from cappy.model.scoring import score_program
from cappy.model.tensors import params_shapes
from cappy.model.training import TrainingSettings, device_programs

SCORERS = {size: scorer_config(size) for size in ('base', 'large')}
T5_WIDTHS = {'xl': (2048, 5120, 32), 'xxl': (4096, 10240, 64)}  # d_model, d_ff, heads of FLAN-T5
PAIR_TOKENS = 128  # of a pair, which decides the slots of a row
# (temperature, top_k, top_p) of the reference's four ways to sample, four samples of each.
SETTINGS = tuple(one for one in ((1.0, 0, 1.0), (0.9, 0, 1.0), (1.0, 40, 1.0), (1.0, 0, 0.95)) for _ in range(4))
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute', 'all-to-all')
COLLECTIVE = re.compile(rf'= .*? ({"|".join(COLLECTIVES)})(?:-start)?\(')
COMPILERS = ('libtpu', 'jax-cuda12-plugin')
DTYPE = jnp.bfloat16
OUTPUT = Path(__file__).with_suffix('.jsonl')


@dataclasses.dataclass(frozen=True)
class Case:
    """One program on some devices.

    program: a key of PROGRAMS; n_tokens: of a batch on each data-parallel device, for samples and beams the texts
    decoded at a time; row: tokens of a row, or of an instruction.
    """

    card: str
    n_devices: int
    n_shards: int
    program: str
    size: str
    n_tokens: int = 0
    row: int = 0

    @property
    def name(self):
        devices = f'{self.n_devices}x{self.n_shards}' if self.n_shards > 1 else self.n_devices
        name = f'{self.card}/{devices}/{self.program}-{self.size}'
        return f'{name}/{self.n_tokens}x{self.row}' if self.n_tokens else name

    @classmethod
    def of(cls, name):
        """The case of a name. Raises InputError where it is none."""
        with contextlib.suppress(ValueError):
            card, devices, program, *shape = name.split('/')
            n_devices, n_shards, *_ = (int(n) for n in (*devices.split('x'), 1))
            case = cls(
                card, n_devices, n_shards, *program.split('-'), *(int(n) for n in '/'.join(shape).split('x') if n)
            )
            if card in CARDS and case.program in PROGRAMS:
                return case
        raise InputError(f'--cases {name}: expected CARD/DEVICES[xSHARDS]/PROGRAM-SIZE/TOKENSxROW, as in {CASES[0]}')


def scorer_config(size):
    return EncoderConfig.from_published(SCORERS[size], size)


def t5_config(size):
    d_model, d_ff, n_heads = T5_WIDTHS[size]
    published = {
        'model_type': 't5',
        'vocab_size': 32128,
        'd_model': d_model,
        'd_kv': 64,
        'd_ff': d_ff,
        'num_layers': 24,
        'num_heads': n_heads,
        'relative_attention_num_buckets': 32,
        'feed_forward_proj': 'gated-gelu',
        'tie_word_embeddings': False,
    }
    return T5Config.from_published(published, size, has_head=True)


def shapes_of(tree, shardings, dtype=None):
    """A tree of shapes with their places; shardings: one for all, or a tree of them."""
    if not isinstance(shardings, dict):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=place), tree, shardings
    )


def n_bytes(tree):
    """Bytes of a tree of placed shapes on one device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def rows_of(case, devices, has_dropout):
    """Shapes of a batch of rows, and of a number for each slot."""
    R, L = case.n_tokens // case.row * devices.n_data, case.row
    C = max(1, L // PAIR_TOKENS)
    names = ('tokens', 'positions', 'segments', *(['pairs'] if has_dropout else []))
    rows = {name: jax.ShapeDtypeStruct((R, L), np.uint32 if name == 'pairs' else np.int32) for name in names}
    rows['starts'] = jax.ShapeDtypeStruct((R, C), np.int32)
    rows = shapes_of(rows, devices.by_row)
    return rows, jax.ShapeDtypeStruct((R, C), np.float32, sharding=devices.by_row)


def training(case, devices):
    config = scorer_config(case.size)
    params = params_shapes(config)
    settings = TrainingSettings()
    programs = device_programs(params, config, DTYPE, devices, False, settings.optimizer(4096, devices.n_data))
    params = shapes_of(params, devices.params_shardings(params))
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(programs.init, params),
        programs.state_shardings,
    )
    return programs, params, state


def rounded_weights(params, config):
    """(shapes of the parameters as a batch takes them, bytes of those that are kept beside the rounded ones)."""
    shapes = jax.eval_shape(functools.partial(rounded, config=config, dtype=DTYPE), params)
    working = shapes_of(shapes, jax.tree.map(lambda leaf: leaf.sharding, params))
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(working), strict=True)
    return working, n_bytes([before for before, after in pairs if before.dtype != after.dtype])


def train(case, devices):
    """(program, its arguments, bytes of what else is on a device) of a micro-batch."""
    programs, params, state = training(case, devices)
    rows, slots = rows_of(case, devices, has_dropout=True)
    scalar = {dtype: jax.ShapeDtypeStruct((), dtype, sharding=devices.replicated) for dtype in (np.float32, np.uint32)}
    working, replaced = rounded_weights(params, scorer_config(case.size))
    arguments = (params, scalar[np.float32], working, rows, slots, slots, scalar[np.uint32])
    return programs.accumulate, arguments, n_bytes(state) + replaced


def update(case, devices):
    """As `train`, of the optimizer's step."""
    programs, params, state = training(case, devices)
    return programs.apply, (params, state, params), 0


def score(case, devices):
    """As `train`, of a batch of scores."""
    config = scorer_config(case.size)
    params = params_shapes(config)
    rows, _ = rows_of(case, devices, has_dropout=False)
    working, elsewhere = rounded_weights(shapes_of(params, devices.params_shardings(params)), config)
    return score_program(config, DTYPE, devices), (working, rows), elsewhere


def encode(case, devices):
    """As `train`, of a batch of instructions that a T5 encodes."""
    config = t5_config(case.size)
    shapes = t5_shapes(config)
    params = shapes_of(shapes, devices.params_shardings(shapes), DTYPE)
    shape = (case.n_tokens // case.row * devices.n_data, case.row)
    tokens, visible = (jax.ShapeDtypeStruct(shape, dtype, sharding=devices.by_row) for dtype in (np.int32, bool))
    model = T5(config, DTYPE, devices.join)

    def program(params, tokens, visible):
        return model.apply({'params': params}, tokens, visible, method='encode')

    return jax.jit(program, out_shardings=devices.replicated), (params, tokens, visible), 0


def sample(case, devices):
    """As `train`, of a T5's loop of samples, or of beams."""
    config = t5_config(case.size)
    shapes = t5_shapes(config)
    params = shapes_of(shapes, devices.params_shardings(shapes), DTYPE)
    model = T5(config, DTYPE, devices.join)
    loop = BeamLoop(model, Lengths(), 4) if case.program == 'beam' else SampleLoop(model, Lengths(), SETTINGS, 4, False)
    engine = Engine(loop, devices, DTYPE)
    n_lanes = case.n_tokens // loop.texts_per_lane * devices.n_data
    state = jax.eval_shape(lambda params: engine.empty(params, n_lanes, case.row), params)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=engine.sharding(x)), state)
    wanted = jax.ShapeDtypeStruct((), np.int32, sharding=devices.replicated)
    return engine.run, (params, state, wanted), 0


PROGRAMS = {'train': train, 'update': update, 'score': score, 'encode': encode, 'sample': sample, 'beam': sample}


def _cases():
    for card in ('v5e', 'v6e', 'a10g', 'a100', 'h100'):
        for size in ('base', 'large'):
            for tokens, row in ((2048, 512), (2048, 128), (8192, 512), (8192, 128), (16384, 512), (16384, 128)):
                yield f'{card}/1/train-{size}/{tokens}x{row}'
            yield f'{card}/1/update-{size}'
            for row in (128, 512):
                yield f'{card}/1/score-{size}/16384x{row}'
    for size, card in (('xl', 'a10g'), ('xl', 'v5e'), ('xl', 'a100'), ('xxl', 'a100'), ('xxl', 'h100')):
        yield f'{card}/1/encode-{size}/16384x128'
        yield f'{card}/1/sample-{size}/512x128'
    for devices in ('v4/4', 'v5e/4', 'v5e/4x2', 'a100/4', 'a100/4x2', 'a10g/4x2'):
        yield f'{devices}/train-large/2048x512'
        yield f'{devices}/update-large'
        yield f'{devices}/score-large/16384x512'
    for devices in ('a10g/4x4', 'v5e/8x8'):
        yield f'{devices}/encode-xxl/16384x128'
        yield f'{devices}/sample-xxl/512x128'


CASES = tuple(_cases())


def installed(package):
    with contextlib.suppress(PackageNotFoundError):
        return version(package) is not None
    return False


def compiled(case):
    """What the compiler says of a case: a dict of numbers, bytes and operations of one device."""
    card = CARDS[case.card]
    devices = described_devices(card, case.n_devices, case.n_shards)
    program, arguments, elsewhere = PROGRAMS[case.program](case, devices)
    lowered = program.lower(*arguments)
    argument_bytes = n_bytes(arguments)
    start = time.perf_counter()
    versions = {name: version(name) for name in ('jax', *COMPILERS) if installed(name)}
    row = {'case': case.name, 'versions': versions, 'argument': argument_bytes, 'elsewhere': elsewhere}
    row['room'] = int(card.memory)
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:  # libtpu refuses what does not fit
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        return row | {'refused': str(error).splitlines()[0][:200], 'seconds': time.perf_counter() - start}
    row['seconds'] = round(time.perf_counter() - start, 1)
    memory = program.memory_analysis()
    row['temp'] = memory.temp_size_in_bytes
    row['output'] = memory.output_size_in_bytes - memory.alias_size_in_bytes
    cost = program.cost_analysis()
    if cost:
        row['operations'], row['bytes'] = cost['flops'], cost['bytes accessed']
    try:
        text = program.as_text()
    except jax.errors.JaxRuntimeError:  # what libtpu 0.0.52 compiles for a v6e, XLA cannot read
        return row
    if cost:
        row['memory_bytes'] = memory_bytes(text)
    return row | {'collectives': dict(collections.Counter(COLLECTIVE.findall(text)))}


def read_rows(path):
    """{case: row} of an output file, the last of a case."""
    if not Path(path).exists():
        return {}
    return {row['case']: row for row in map(json.loads, Path(path).read_text().splitlines())}


def formula(case):
    """Bytes that cappy/model/budgets.py expects of a training or of scoring, None of other programs."""
    if case.program not in ('train', 'score'):
        return None
    expected = training_bytes if case.program == 'train' else scoring_bytes
    platform = CARDS[case.card].platform
    return expected(scorer_config(case.size), DTYPE, case.n_tokens, case.row, platform=platform, n_shards=case.n_shards)


def described(row):
    """A row of `output` as the table shows it, in GB, 1e12 operations and ms; blank where nothing is known."""
    case, card = Case.of(row['case']), CARDS[row['case'].partition('/')[0]]
    shown = {'case': row['case'], 'fits': 'no'}
    if 'refused' in row:
        return shown
    total = sum(row[part] for part in PARTS)
    shown |= {'fits': 'yes' if total <= row['room'] else 'no', 'spare': (row['room'] - total) / 1e9}
    shown |= {'arguments': (row['argument'] + row['elsewhere']) / 1e9, 'temp': (row['temp'] + row['output']) / 1e9}
    if 'operations' in row:
        seconds = row['operations'] / card.operations
        shown |= {'operations': row['operations'] / 1e12, 'seconds': seconds * 1e3}
        for count in ('bytes', 'memory_bytes'):
            if row.get(count):
                shown[count] = row[count] / 1e9
                shown[f'{count} ratio'] = max(1, row[count] / card.bandwidth / seconds)
    if formula(case):
        shown['formula'] = formula(case) / total
    collectives = sorted(row.get('collectives', {'unknown': ''}).items())
    return shown | {'collectives': ', '.join(f'{count} {name}'.strip() for name, count in collectives)}


def tables(rows):
    """Markdown of rows of `output`, by card: memory and collectives of all, then operations and bytes of those that
    have them; without the columns that have no value.
    """

    def place(row):
        case = Case.of(row['case'])
        return list(CARDS).index(case.card), *dataclasses.astuple(case)[1:]

    shown = [described(row) for row in sorted(rows, key=place)]
    return '\n\n'.join(_table(*part) for part in ((shown, MEMORY), ([row for row in shown if 'bytes' in row], TRAFFIC)))


def _table(shown, columns):
    known = {name for row in shown for name in row}
    return format_table(shown, [column for column in columns if column.key in known], 'markdown')


PARTS = ('argument', 'elsewhere', 'temp', 'output')
MEMORY = [
    Column('case'),
    Column('fits'),
    Column('spare', 'free, GB', decimals=2),
    Column('arguments', 'arguments and state, GB', decimals=2),
    Column('temp', 'temp, GB', decimals=2),
    Column('formula', 'formula / compiler', decimals=2),
    Column('collectives'),
]
TRAFFIC = [
    Column('case'),
    Column('operations', 'operations, 1e12', decimals=2),
    Column('seconds', 'at the peak, ms', decimals=1),
    Column('bytes', 'bytes, GB', decimals=1),
    Column('bytes ratio', 'roofline / operations', decimals=2),
    Column('memory_bytes', 'to and from memory, GB', decimals=1),
    Column('memory_bytes ratio', 'roofline / operations, of these', decimals=2),
]


def main(
    cases: str = '',  # names that begin with one of these, separated by commas, or a whole name of your own; '': all
    output: str = str(OUTPUT),  # a line of JSON for each case; those that are there are not compiled again
    print_table: bool = False,  # print what `output` has as Markdown and compile nothing
):
    """Compile the programs for cards that are not here, and say what the compiler says of them."""
    rows = read_rows(output)
    if print_table:
        print(tables(rows.values()))
        return
    asked = [name for name in cases.split(',') if name]
    chosen = [name for name in CASES if not asked or name.startswith(tuple(asked))]
    chosen += [name for name in asked if not any(known.startswith(name) for known in CASES)]
    print('jax', jax.__version__, *(f'{name} {version(name)}' for name in COMPILERS if installed(name)))
    for name in chosen:
        if name not in rows:
            rows[name] = compiled(Case.of(name))
            with open(output, 'a') as file:
                file.write(json.dumps(rows[name]) + '\n')
        print(json.dumps(rows[name]), flush=True)


if __name__ == '__main__':
    run(main)
