"""Where each pair's tokens go: packed rows of a few lengths, chosen by cost, in batches of few shapes.

A row holds whole pairs and padding. Long rows waste little padding but pay attention for the whole row; rows as long as
a pair pay padding instead. Which is cheaper depends on the device and the model, so a plan takes the cost of a row and
minimises the sum. Everything here is numpy and deterministic: equal lengths keep their order.

R rows, L tokens of a row, C slots (pairs at most) of a row.
"""

import dataclasses

import numpy as np

from cappy.errors import InputError

# A finer grid pads less and costs nothing by itself: a length is used where its rows pay for its compilation.
ROW_LENGTHS = (16, 24, *range(32, 128, 4), *range(128, 192, 8), *range(192, 513, 32))
MAX_ROW_LENGTHS = 24
MIN_LENGTH = 8  # tokens of a pair: RoBERTa's four special ones, and something of each text
BATCH_COST = 32  # of a batch beside its rows, in units of a token's dense work (docs/benchmarks.md)
N_TRIED = 16  # groups on which a choice of row lengths is tried
# The part of a batch that its last rows are cut into, so that leftovers neither compile again nor compute much padding.
SMALL_BATCH = 4


@dataclasses.dataclass(frozen=True)
class RowCost:
    """What a row of L tokens costs: L * (1 + attention * L), in units of a token's dense work.

    attention: measured per device and model size (`benchmarks/row_costs.py`); 0 where attention is free. multiple: what
    row lengths are multiples of; matrix units want 8.
    """

    attention: float
    multiple: int = 4

    @property
    def row_lengths(self):
        """Those of ROW_LENGTHS that may be used."""
        return [length for length in ROW_LENGTHS if length % self.multiple == 0]

    def __call__(self, row_length):
        return row_length * (1 + self.attention * np.asarray(row_length, np.float64))


@dataclasses.dataclass(frozen=True)
class Batch:
    """R rows of L tokens: pair [R, C] the number of the pair in each slot, -1 where empty; start [R, C] its place."""

    row_length: int
    pair: np.ndarray
    start: np.ndarray

    @property
    def shape(self):
        """(R, L, C): what a compilation depends on."""
        return (len(self.pair), self.row_length, self.pair.shape[1])

    def collect(self, of_slots, of_pairs):
        """Put what an array [R, C] has for each pair into of_pairs [n]; returns how many pairs that were."""
        filled = self.pair >= 0
        of_pairs[self.pair[filled]] = np.asarray(of_slots)[filled]
        return int(filled.sum())


def pack_pairs(lengths, row_length):
    """Place each pair in a row, longest first, in the fullest row that still has room.

    lengths: int [n], tokens of a pair with its special tokens, each in 1..row_length.
    Returns row, start: int64 [n] each; pair i is row[i], tokens start[i] to start[i] + lengths[i].
    Pairs of one length are placed at once, so the work grows with the number of different lengths, not of pairs.
    Raises ValueError naming the first pair whose length is outside 1..row_length.
    Source: best-fit decreasing; the reference pads each pair to max_length (cappy_bigbench.py:73-79).
    """
    lengths = np.asarray(lengths, np.int64)
    wrong = np.flatnonzero((lengths < 1) | (lengths > row_length))
    if len(wrong):
        raise ValueError(f'pair {wrong[0]} has {lengths[wrong[0]]} tokens; a row holds 1 to {row_length}')
    row, start = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    order = np.argsort(-lengths, kind='stable')
    rows_by_room = {}  # free tokens -> arrays of rows
    n_rows, done = 0, 0
    for length in np.unique(lengths)[::-1]:
        pairs = order[done : done + np.count_nonzero(lengths == length)]
        done += len(pairs)
        while len(pairs):
            room = min((room for room in rows_by_room if room >= length), default=None)
            if room is None:
                # As many new rows as these pairs fill; the rest of each row is filled in the next turns.
                n_new = -(-len(pairs) // (row_length // int(length)))
                rows_by_room[row_length] = np.arange(n_rows, n_rows + n_new)
                n_rows, room = n_rows + n_new, row_length
            free = rows_by_room.pop(room)
            used, left = free[: len(pairs)], free[len(pairs) :]
            row[pairs[: len(used)]] = used
            start[pairs[: len(used)]] = row_length - room
            pairs = pairs[len(used) :]
            for rows, new_room in ((left, room), (used, room - int(length))):
                if len(rows):
                    known = rows_by_room.get(new_room, np.zeros(0, np.int64))
                    rows_by_room[new_room] = np.concatenate([known, rows])
    return row, start


def _share(cost, row_lengths, max_length):
    """[max_length + 1, n]: what a pair of each length costs in a row of each length, infinite where it is too long."""
    tokens = np.arange(max_length + 1)[:, None]
    per_row = np.asarray(row_lengths)[None, :] // np.maximum(tokens, 1)
    with np.errstate(divide='ignore'):
        return np.where(per_row > 0, cost(np.asarray(row_lengths))[None, :] / per_row, np.inf)


def row_length_choices(lengths, cost):
    """Sets of row lengths to choose from, of one length, two, and so on, each ascending.

    lengths: int [n]; cost: RowCost, whose row lengths are extended to the longest pair.
    Starts from the shortest row that holds the longest pair, and adds the length that saves most of the rows' cost.
    """
    longest = int(np.max(lengths))
    grid = cost.row_lengths if longest <= max(ROW_LENGTHS) else [*cost.row_lengths, longest]
    counts = np.bincount(lengths)
    present = np.flatnonzero(counts)
    counts, share = counts[present], _share(cost, grid, longest)[present]
    chosen = [next(i for i, length in enumerate(grid) if length >= longest)]
    best, choices = share[:, chosen[0]], []
    while True:
        used = {sorted(chosen)[i] for i in np.argmin(share[:, sorted(chosen)], axis=1)}
        choices.append(tuple(grid[i] for i in sorted(used)))
        totals = counts @ np.minimum(share, best[:, None])
        add = int(np.argmin(totals))
        if len(chosen) == MAX_ROW_LENGTHS or totals[add] >= counts @ best:
            return choices
        chosen.append(add)
        best = np.minimum(best, share[:, add])


def choose_row_lengths(of_groups, cost, compile_cost, tokens_per_batch, n_data=1, compiled=frozenset(), longest=0):
    """The row lengths, ascending, that are cheapest in all for groups of pairs, each group planned apart.

    of_groups: for each group, int [n] tokens of its pairs; longest: tokens of a pair that may still come, 0: none will.
    Each set of `row_length_choices`, and the lengths compiled before, are tried on a few groups, empty rows and
    compilations counted. The rest as `plan_groups` takes it.
    """
    tried = of_groups[:: -(-len(of_groups) // N_TRIED)]

    def total(row_lengths):
        work, shapes = 0.0, set()
        for some in tried:
            for row_length, _, row, _ in _placed(some, row_lengths, cost):
                for size, count in _cut(int(row.max()) + 1, row_length, tokens_per_batch, n_data):
                    work += count * (size * float(cost(row_length)) + BATCH_COST)
                    shapes.add((size, row_length))
        return work * len(of_groups) / len(tried) + compile_cost * len(shapes - compiled)

    together = np.concatenate([*of_groups, [longest]] if longest else of_groups)
    # And one length that holds several pairs: few pairs would not pay for the compilations of many lengths.
    choices = row_length_choices(together, cost)
    choices += [(length,) for length in cost.row_lengths if length >= together.max()]
    before = tuple(sorted({row_length for _, row_length in compiled}))
    if before and before[-1] >= together.max():
        choices.append(before)
    return min(choices, key=total)


def plan_groups(groups, lengths, cost, compile_cost, tokens_per_batch, n_data=1, compiled=frozenset()):
    """Batches for groups of pairs, each group apart (an update, say), with the row lengths that are cheapest in all.

    groups: sequence of int arrays of places in `lengths`, int [n]; cost: RowCost; compile_cost: of one more shape, in
    units of a token's dense work; tokens_per_batch, n_data: as `plan_batches` takes them; compiled: shapes (R, L) that
    cost no compilation any more.
    Returns a list of Batch for each group, numbering its pairs from 0.
    """
    if not len(groups):
        return []
    of_groups = [lengths[group] for group in groups]
    row_lengths = choose_row_lengths(of_groups, cost, compile_cost, tokens_per_batch, n_data, compiled)
    plans = [plan_batches(some, row_lengths, cost, tokens_per_batch, n_data) for some in of_groups]
    slots = slots_needed(plans)
    if any(batch.shape[2] != slots[batch.row_length] for plan in plans for batch in plan):
        plans = [plan_batches(some, row_lengths, cost, tokens_per_batch, n_data, slots) for some in of_groups]
    return plans


def slots_needed(plans):
    """{row length: C}: the most slots that a batch of that length has in lists of Batch."""
    slots = {}
    for batch in (batch for plan in plans for batch in plan):
        slots[batch.row_length] = max(slots.get(batch.row_length, 1), batch.shape[2])
    return slots


def plan_batches(lengths, row_lengths, cost, tokens_per_batch, n_data=1, slots=None):
    """Cut pairs into batches of rows.

    lengths: int [n]; row_lengths: ascending, one holds the longest pair; tokens_per_batch: R * L at most, on each of
    n_data devices, but always one row each; slots: {row length: C} to keep shapes alike between plans; where there is
    none, or it is too few, the next power of two of what is needed.
    Returns a list of Batch, long rows first, in which each pair 0..n-1 is once. R is a multiple of n_data, one of
    two numbers for each row length.
    """
    batches = []
    for row_length, pairs, row, start in _placed(lengths, row_lengths, cost):
        cut = list(_cut(int(row.max()) + 1, row_length, tokens_per_batch, n_data))
        n_rows = sum(size * count for size, count in cut)
        pair, start = _slotted(pairs, row, start, n_rows, slots.get(row_length, 1) if slots else 1)
        first = 0
        for size, count in cut:
            for _ in range(count):
                batches.append(Batch(row_length, pair[first : first + size], start[first : first + size]))
                first += size
    return batches


def cut_batches(plan, tokens_per_batch, n_data=1):
    """The rows of a list of Batch in batches of at most tokens_per_batch on each of n_data devices, a row at least.

    Batches that are small enough stay as they are; of the others' parts, the last is filled up with empty rows.
    """
    batches = []
    for batch in plan:
        n_rows = max(1, tokens_per_batch // batch.row_length) * n_data
        if len(batch.pair) <= n_rows:
            batches.append(batch)
            continue
        missing = ((0, -len(batch.pair) % n_rows), (0, 0))
        pair, start = np.pad(batch.pair, missing, constant_values=-1), np.pad(batch.start, missing)
        batches += [
            Batch(batch.row_length, pair[first : first + n_rows], start[first : first + n_rows])
            for first in range(0, len(pair), n_rows)
        ]
    return batches


def _placed(lengths, row_lengths, cost):
    """Yields (row length, pairs that go there, row and start of each), long rows first."""
    lengths = np.asarray(lengths, np.int64)
    home = np.argmin(_share(cost, row_lengths, int(lengths.max(initial=1))), axis=1)[lengths]
    for index in reversed(range(len(row_lengths))):
        pairs = np.flatnonzero(home == index)
        if len(pairs):
            yield row_lengths[index], pairs, *pack_pairs(lengths[pairs], row_lengths[index])


def _slotted(pairs, row, start, n_rows, n_slots):
    """[n] placements -> pair, start int32 [n_rows, C], slots in token order; n_slots: C at least."""
    order = np.lexsort((start, row))
    row = row[order]
    slot = np.arange(len(row)) - np.searchsorted(row, row)
    table = np.full((n_rows, max(n_slots, 1 << int(slot.max()).bit_length())), -1, np.int32)
    starts = np.zeros_like(table)
    table[row, slot], starts[row, slot] = pairs[order], start[order]
    return table, starts


def _cut(n_rows, row_length, tokens_per_batch, n_data):
    """(R, how many) of the batches that hold n_rows: full ones, then small ones for what is left."""
    full = max(1, tokens_per_batch // row_length) * n_data
    small = max(1, full // n_data // SMALL_BATCH) * n_data
    n_full, left = divmod(n_rows, full)
    if left > (SMALL_BATCH - 1) * small:
        n_full, left = n_full + 1, 0
    if n_full:
        yield full, n_full
    if left:
        yield small, -(-left // small)


def fill_rows(batch, encoded, pair_index, config):
    """The arrays that `encoder.Scorer` reads, as numpy.

    batch: Batch; encoded: EncodedPairs; pair_index: int [n], the index in `encoded` of each pair that `batch` numbers;
    config: EncoderConfig.
    Returns {tokens, positions, segments, pairs, starts[, types]}: see `encoder.Scorer`. Padding has segment 0.
    """
    R, L, C = batch.shape
    row, slot = np.nonzero(batch.pair >= 0)
    number, start = batch.pair[row, slot], batch.start[row, slot]
    pair = pair_index[number]
    length = encoded.offsets[pair + 1] - encoded.offsets[pair]
    # For each token of each pair: its place within the pair, in the row, and in the encoded text.
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    target = np.repeat(row * L + start, length) + within
    source = np.repeat(encoded.offsets[pair], length) + within

    def lay_out(values, dtype=np.int32, empty=0):
        array = np.full(R * L, empty, dtype)
        array[target] = values
        return array.reshape(R, L)

    tokens = encoded.tokens[source]
    rows = {
        'tokens': lay_out(tokens, empty=config.pad_token_id),
        'positions': lay_out(_positions(tokens, within, config)),
        'segments': lay_out(np.repeat(slot + 1, length)),
        'pairs': lay_out(np.repeat(number, length), np.uint32),
        'starts': batch.start,
    }
    if config.model_type == 'bert':
        rows['types'] = lay_out(encoded.types[source])
    return rows


def _positions(tokens, within, config):
    """Rows of the position table: from 0 for BERT; for RoBERTa from pad_token_id + 1, a literal pad token not counted.

    Source: `create_position_ids_from_input_ids` of PyTorch transformers' RoBERTa.
    """
    if config.model_type == 'bert':
        return within
    is_pad = tokens == config.pad_token_id
    if not is_pad.any():
        return within + config.pad_token_id + 1
    counted = np.cumsum(~is_pad)
    first = np.maximum.accumulate(np.where(within == 0, np.arange(len(tokens)), 0))
    before = counted[first] - ~is_pad[first]
    return np.where(is_pad, config.pad_token_id, counted - before + config.pad_token_id)


def describe_packing(plans, lengths):
    """How full the rows are: {rows, row_lengths, fill, attention_between}.

    plans: lists of Batch; lengths: for each plan, int [n] tokens of the pairs it numbers.
    fill: share of row tokens that are a pair's. attention_between: share of the computed attention that is between
    pairs or in padding, and is thrown away.
    """
    own = [np.asarray(of_plan)[b.pair[b.pair >= 0]] for plan, of_plan in zip(plans, lengths, strict=True) for b in plan]
    own = np.concatenate(own).astype(np.int64)
    n_rows, row_lengths, _ = np.array([batch.shape for plan in plans for batch in plan], np.int64).T
    return {
        'rows': int(n_rows.sum()),
        'row_lengths': sorted({int(length) for length in row_lengths}),
        'fill': float(own.sum() / (n_rows * row_lengths).sum()),
        'attention_between': float(1 - np.square(own).sum() / (n_rows * row_lengths**2).sum()),
    }


def default_max_length(tokenizer, config):
    """Tokens per pair where nobody says how many: what the tokenizer was saved with, if the model has positions for it.

    Else 512, or as many as there are positions. A scorer is saved with the length it was adapted with; the tokenizers
    of RoBERTa and BERT have 512, and some have none, which transformers makes a number of 30 digits.
    """
    kept = tokenizer.model_max_length
    return kept if MIN_LENGTH <= kept <= config.max_length else min(512, config.max_length)


def check_max_length(max_length, config, source):
    """Raise InputError where max_length tokens hold no text, or the model has no position for the last of them."""
    if max_length < MIN_LENGTH:
        raise InputError(f'max_length {max_length}: special tokens alone fill it; give {MIN_LENGTH} or more')
    if max_length > config.max_length:
        raise InputError(
            f'max_length {max_length}: {source} has positions for {config.max_length} tokens; '
            f'give {config.max_length} or less'
        )
