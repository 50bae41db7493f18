"""Score a file of (instruction, response) pairs: the same records come out, in order, with a score behind their fields.

    python scripts/score.py pairs.jsonl --output scored.jsonl
    python scripts/score.py samples.csv --response_key sample --rank
    zcat pairs.tsv.gz | python scripts/score.py - --format tsv

A few windows of 16,384 pairs are in memory at a time, whatever the file's length. A file is read once before the scorer
is loaded, so that a bad line is named first. With --output, records go to {output}.partial until all are there, and the
same command continues a stopped one; {output}.settings.json says which scorer and input the scores are of.
"""

import collections
import contextlib
import itertools
import logging
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy import Cappy, get_devices
from cappy.cli import flags
from cappy.errors import InputError
from cappy.files.lock import result_lock
from cappy.files.partial import OutputPaths, PartialOutput
from cappy.files.scored_pairs import STANDARD, PairFile, Runs, TopTies, best_first
from cappy.model.devices import from_first_process, is_first_process
from cappy.model.model_files import model_digest
from cappy.model.tokens import describe_cut

logger = logging.getLogger('score')

# Flags that decide what a scored file holds; one that was begun with others is not continued.
DECIDING = ('max_length', 'compute_dtype', 'instruction_key', 'response_key', 'score_key', 'rank')
RECORDS_AT_RISK = 1000  # written between two marks behind which a killed run continues


def main(
    input_file: str,  # jsonl, csv or tsv, also gzipped (.gz); - is standard input
    output=STANDARD,  # the scored file; - is standard output
    format: Literal['jsonl', 'csv', 'tsv'] | None = None,  # of input and output; default: what the input's name says
    instruction_key='instruction',  # field or column of the instruction
    response_key='response',  # field or column of the response
    score_key='score',  # field or column for the score
    rank=False,  # sort the pairs of one instruction that follow each other, best first; each such run fits in memory
    model_name_or_path='btan2/cappy-large',  # hub name or folder of the scorer
    n_model_shards: flags.Count = 1,  # devices over which each parameter is split
    max_length: flags.Count | None = None,  # tokens per pair; longer ones are truncated; default: the scorer's own
    compute_dtype: Literal['float32', 'bfloat16'] | None = None,  # default: float32 on a CPU, else bfloat16
    tokens_per_device: flags.Count | None = None,  # of a batch; default: what suits the device
    overwrite=False,  # begin again where the output, or a part of it, exists
    n_processes: flags.Count | None = None,  # hosts, as redco's Deployer takes them; so the next four
    host0_address: str | None = None,
    host0_port: flags.Port | None = None,
    process_id: flags.CountFrom0 | None = None,
    n_local_devices: flags.Count | None = None,
):
    """Score a file of pairs."""
    settings = dict(locals())
    keys = {'instruction_key': instruction_key, 'response_key': response_key, 'score_key': score_key}
    file = PairFile(input_file, format, **keys)
    if file.is_stream and n_processes not in (None, 1):
        raise InputError(f'{file.name} reaches one process; give a file that all of them can read')
    paths = None if output == STANDARD else OutputPaths(Path(output))
    check_output(paths, file)
    n_pairs = check_pairs(file, rank)
    made_with = {name: settings[name] for name in DECIDING} | {'format': file.format}
    made_with['model_digest'] = model_digest(model_name_or_path)
    if paths and not file.is_stream:
        made_with['input_digest'] = file.digest()
    if paths and paths.result.exists() and not overwrite:
        return confirm_existing(paths, made_with)

    devices = get_devices(n_model_shards, n_processes, host0_address, host0_port, process_id, n_local_devices)
    runs, ties = Runs(), TopTies()
    with writing(paths, file, made_with, overwrite) as (write, pairs, n_done):
        scorer = Cappy.from_pretrained(
            model_name_or_path,
            devices=devices,
            compute_dtype=compute_dtype,
            max_length=max_length,
            tokens_per_device=tokens_per_device,
            needs_head=True,
        )
        n_to_come = None if n_pairs is None else n_pairs - n_done
        with contextlib.closing(score_pairs(scorer, runs.watch(pairs) if rank else pairs, n_to_come)) as scored:
            for pair, score in ties.watch(best_first(scored)) if rank else scored:
                write(pair, score)
    warn_of_ties(ties)
    if rank and n_pairs is None:
        warn_of_split_runs(runs.n_again)


def check_output(paths, file):
    """The output is not the input, and not a folder, before a long file is read."""
    if not paths:
        return
    if file.path != STANDARD and paths.result.exists() and file.path.exists() and paths.result.samefile(file.path):
        raise InputError(f'--output {paths.result}: is the input itself; name another file')
    if paths.result.is_dir():
        raise InputError(f'--output {paths.result}: is a folder; name a file in it')


def check_pairs(file, rank):
    """The number of pairs, each of which is sound; None for standard input and pipes, which cannot be read twice."""
    if file.is_stream:
        return None
    runs = Runs()
    n_pairs = sum(1 for _ in (runs.watch(file.pairs()) if rank else file.pairs()))
    if rank:
        warn_of_split_runs(runs.n_again)
    return n_pairs


def warn_of_split_runs(n_again):
    """--rank sorts pairs that follow each other; sorting a whole file would take its size in memory."""
    if n_again:
        logger.warning(
            '%d runs of pairs have an instruction that an earlier run has, and are ranked by themselves; sort the file '
            'by instruction to rank such pairs together',
            n_again,
        )


def warn_of_ties(ties):
    """Equal scores keep the order of the file, which says nothing of the responses."""
    if ties.n_tied:
        logger.warning(
            'in %d of %d runs of an instruction the highest score is shared by several responses, which keep their '
            'order%s',
            ties.n_tied,
            ties.n_runs,
            '; the scorer gives all responses of an instruction the same score' * (ties.n_alike == ties.n_runs),
        )


def confirm_existing(paths, made_with):
    """An output of the same scorer, input and flags is left alone; another one is an error."""
    n_pairs = paths.check_made_with(made_with)['records']
    print(f'{paths.result} exists and holds all {n_pairs} scores. Skipped; --overwrite scores again.', file=sys.stderr)


def score_pairs(scorer, pairs, n_pairs):
    """(pair, score) in order; n_pairs: None where it is not known."""
    waiting = collections.deque()  # pairs that are tokenized or being scored: three windows at most

    class Texts:
        def __iter__(self):
            for pair in pairs:
                waiting.append(pair)
                yield pair.instruction, pair.response

    class CountedTexts(Texts):
        def __len__(self):
            return n_pairs

    total = collections.Counter()
    for scores, counts in scorer.score_stream((Texts if n_pairs is None else CountedTexts)(), progress='scoring'):
        total.update({name: counts[name] for name in ('unique_pairs', 'truncated_pairs', 'made_equal_pairs')})
        for score in scores:
            yield waiting.popleft(), score
    if total['truncated_pairs'] and is_first_process():
        logger.warning('%s', describe_cut(total, scorer.max_length))


@contextlib.contextmanager
def writing(paths, file, made_with, overwrite):
    """(write(pair, score), pairs to come, number of pairs done); the output appears when the block ends."""
    with contextlib.ExitStack() as stack:
        pairs, output = file.pairs(), None
        if paths and is_first_process():
            stack.enter_context(result_lock(paths))
            pairs, first = peek(pairs)
            output = PartialOutput(paths, made_with)
            output.open(file.header, overwrite)
            stack.callback(output.close)
            if output.n_records:
                print(f'{paths.partial} holds {output.n_records} scores; continuing behind them', file=sys.stderr)
        n_done = from_first_process(output.n_records if output else 0)
        pairs = itertools.islice(pairs, n_done, None)
        if not is_first_process():
            yield (lambda pair, score: None), pairs, n_done
        elif output is None:
            yield StandardOutput(file).write, pairs, 0
            sys.stdout.buffer.flush()
        else:
            records = Records(file, output, made_with['rank'])
            try:
                yield records.write, pairs, n_done
            except BaseException:
                records.mark_written()
                raise
            output.finish(records.n_written)


def peek(iterator):
    """(the iterator as it was, its first value): a csv's header is known once its first record was read."""
    first = next(iterator)
    return itertools.chain([first], iterator), first


class StandardOutput:
    """Writes scored pairs to standard output, the header first."""

    def __init__(self, file):
        self.file, self.is_first = file, True

    def write(self, pair, score):
        if self.is_first:
            sys.stdout.buffer.write(self.file.header)
        self.is_first = False
        sys.stdout.buffer.write(self.file.with_score(pair, score))


class Records:
    """Writes scored pairs to a PartialOutput, and marks at times how far it is whole: with rank, behind whole runs."""

    def __init__(self, file, output, rank):
        self.file, self.output, self.rank = file, output, rank
        self.n_written, self.last = output.n_records, None

    def write(self, pair, score):
        is_whole = not self.rank or pair.instruction != self.last
        if is_whole and self.n_written - self.output.n_records >= RECORDS_AT_RISK:
            self.output.mark(self.n_written)
        self.output.write(self.file.with_score(pair, score))
        self.n_written, self.last = self.n_written + 1, pair.instruction

    def mark_written(self):
        """Keep what a run that stops has written; with rank the last run may not be whole."""
        if not self.rank:
            with contextlib.suppress(InputError):  # a full disk, which is why it stops
                self.output.mark(self.n_written)


if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
    flags.run(main)
