"""What rows and compilations cost on a kind of device, as the planner of rows needs it."""

from cappy.model.packing import RowCost

# Attention costs 1 / (6 D) of a token's dense work for each token of the row by its products alone, and on a CPU as
# much again for this width of a head: softmax, and products too narrow to be fast (benchmarks/row_costs.py: 3.3 times
# the products with heads of 32, 1.7 times with heads of 64). Elsewhere there is no measurement yet.
ATTENTION_HEAD_WIDTH = {'cpu': 60}
# On a CPU, of attention, which stays in float32, against dense work in bfloat16 (`cpu.dot_general`): 1.9 by the speed
# of products; 1, 1.9 and 2.5 gave 8.9, 9.4 and 9.6 pairs/s of P3 with the base size, and of MiniLM no difference.
ATTENTION_BESIDE_BFLOAT16 = 2.5

OPERATIONS_PER_SECOND = {'cpu': 1.5e11, 'gpu': 1e14, 'tpu': 1e14}  # the order of magnitude will do


def row_cost(config, platform, is_bfloat16=False):
    """The RowCost of a model on a kind of device; is_bfloat16: whether a CPU has dense work in it, as in scoring."""
    head_width = config.hidden_size // config.num_attention_heads
    slowness = 1 + ATTENTION_HEAD_WIDTH.get(platform, 0) / head_width
    if platform == 'cpu' and is_bfloat16:
        slowness *= ATTENTION_BESIDE_BFLOAT16
    return RowCost(attention=slowness / (6 * config.hidden_size), multiple=4 if platform == 'cpu' else 8)


def compile_cost(config, platform, seconds):
    """What a compilation of so many seconds costs, in tokens that the device could have worked on meanwhile."""
    operations_per_token = 24 * config.hidden_size**2 * config.num_hidden_layers
    return seconds * OPERATIONS_PER_SECOND.get(platform, 1e14) / operations_per_token
