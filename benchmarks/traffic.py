"""Bytes that a program compiled for a TPU moves between the chip and its memory, read from the compiler's text.

The compiler's own count (`cost_analysis`) takes all operands and results of an instruction, also those that it has put
into the chip's own memory, and what is fetched ahead twice. The text says where each array lies: in `T(8,128)S(1)`,
S(1) is on the chip, and without S it is in memory.
"""

import re

N_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 'f32': 4, 's32': 4, 'u32': 4}
ARRAY = re.compile(rf'({"|".join(N_BYTES)})\[([\d,]*)\](?:{{([^}}]*)}})?')
INSTRUCTION = re.compile(r'\s*(?:ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)')
MOVE_NOTHING = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'}
HAVE_OWN_TEXT = {'while', 'call', 'conditional'}


def memory_bytes(text):
    """int; text: of a compiled program. An upper bound: a gather counts as all of its table.

    None where the program has loops or calls, whose instructions are elsewhere in the text.
    """
    in_memory, total = {}, 0
    for line in text[text.index('\nENTRY ') :].splitlines():
        found = INSTRUCTION.match(line)
        if not found:
            continue
        name, result, operation, operands = found.groups()
        if operation in HAVE_OWN_TEXT:
            return None
        arrays = _arrays(result)
        in_memory[name] = sum(size for size, on_chip in arrays if not on_chip)
        if operation in MOVE_NOTHING or operation.endswith('-done'):
            continue
        if operation.endswith('-start'):  # its result: both ends, and a number
            ends = arrays[:2]
            total += min(size for size, _ in ends) * sum(not on_chip for _, on_chip in ends)
        else:
            total += in_memory[name]
            total += sum(in_memory.get(operand, 0) for operand in re.findall(r'%[\w.\-]+', operands.split('), ')[0]))
    return total


def _arrays(text):
    """[(bytes, whether it is on the chip)] of a type."""
    sizes = []
    for kind, lengths, layout in ARRAY.findall(text):
        size = N_BYTES[kind]
        for length in filter(None, lengths.split(',')):
            size *= int(length)
        sizes.append((size, bool(re.search(r'S\([1-9]', layout))))
    return sizes
