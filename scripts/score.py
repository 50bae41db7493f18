"""Score a file of (instruction, response) pairs: the same records come out, in order, with a score behind their fields.

    python scripts/score.py pairs.jsonl --output scored.jsonl
    python scripts/score.py samples.csv --response_key sample --rank
    zcat pairs.tsv.gz | python scripts/score.py - --format tsv

A few windows of 16,384 pairs are in memory at a time, whatever the file's length. A file is read once before the scorer
is loaded, so that a bad line is named first. With --output, records go to {output}.partial until all are there, and the
same command continues a stopped one; {output}.settings.json says which scorer and input the scores are of. Of an output
that is a link, these files are where it points; an output that is a device or a pipe is written as it is, without them.
"""

import collections
import contextlib
import itertools
import logging
import sys
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy import Cappy, get_devices
from cappy.cli import flags
from cappy.errors import InputError
from cappy.files.lock import check_result, result_lock
from cappy.files.outputs import STANDARD, check_files, is_standard_output, is_stream, open_stream
from cappy.files.partial import OutputPaths, PartialOutput
from cappy.files.scored_pairs import PairFile, PairsDigest, Runs, TopTies, best_first
from cappy.model.devices import from_first_process, is_first_process
from cappy.model.model_files import find_model, model_digest
from cappy.model.tokens import describe_cut
from cappy.tasks.combining import Combination

logger = logging.getLogger('score')

# Flags that decide what a scored file holds; one that was begun with others is not continued.
DECIDING = ('max_length', 'compute_dtype', 'instruction_key', 'response_key', 'score_key', 'rank', 'combined')
RECORDS_AT_RISK = 1000  # written between two marks behind which a killed run continues


def main(
    input_file: str,  # jsonl, csv or tsv, also gzipped (.gz); - is standard input
    output=STANDARD,  # the scored file, a device or a pipe; - is standard output
    format: Literal['jsonl', 'csv', 'tsv'] | None = None,  # of input and output; default: what the input's name says
    instruction_key='instruction',  # field or column of the instruction
    response_key='response',  # field or column of the response
    score_key='score',  # field or column for the score
    rank=False,  # sort the pairs of one instruction that follow each other, best first; each such run fits in memory
    combined=False,  # with --rank: score and sort by the combination that cappy_bigbench.py saved beside the scorer
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
    if combined and not rank:
        raise InputError('combined: compares the responses to an instruction, so it goes with --rank')
    combination = Combination.load(find_model(model_name_or_path)) if combined else None
    keys = {'instruction_key': instruction_key, 'response_key': response_key, 'score_key': score_key}
    file = PairFile(input_file, format, **keys)
    if file.is_stream and n_processes not in (None, 1):
        raise InputError(f'{file.name} reaches one process; give a file that all of them can read')
    paths = None if is_stream(output) else OutputPaths(Path(output))
    if not process_id:  # None or the first, which writes
        check_output(output, paths, file)
    n_pairs = check_pairs(file, rank)
    made_with = {name: settings[name] for name in DECIDING} | {'format': file.format}
    made_with['model_digest'] = model_digest(model_name_or_path)
    if paths and not file.is_stream:
        made_with['input_digest'] = file.digest()
    if paths and paths.result.exists() and not overwrite:
        return confirm_existing(paths, made_with, file)

    devices = get_devices(n_model_shards, n_processes, host0_address, host0_port, process_id, n_local_devices)
    runs, ties = Runs(), TopTies()
    with writing(output, paths, file, made_with, overwrite) as (write, pairs, n_done):
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
            scored = combined_scores(scored, combination) if combination else scored
            for pair, score in ties.watch(best_first(scored)) if rank else scored:
                write(pair, score)
    warn_of_ties(ties)
    if rank and n_pairs is None:
        warn_of_split_runs(runs.n_again)


def check_output(output, paths, file):
    """The output can be written and is not the input, before a long file is read."""
    if not paths:
        check_files(output, streams=True)
        return
    if not file.is_stream and paths.result.exists() and file.path.exists() and paths.result.samefile(file.path):
        raise InputError(f'--output {paths.result}: is the input itself; name another file')
    check_result(paths)


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


def confirm_existing(paths, made_with, file):
    """An output of the same scorer, input and flags is left alone; another one is an error."""
    if file.is_stream:
        made_with = made_with | {'pairs_digest': PairsDigest(file.pairs()).hexdigest()}
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


def combined_scores(scored, combination):
    """(pair, value): the combination in place of the score, of each run of pairs of one instruction."""
    for _, run in itertools.groupby(scored, key=lambda scored_pair: scored_pair[0].instruction):
        run = list(run)
        value_of = combination.rate([pair.response for pair, _ in run], {pair.response: score for pair, score in run})
        for pair, _ in run:
            yield pair, np.float32(value_of[pair.response])


@contextlib.contextmanager
def writing(output, paths, file, made_with, overwrite):
    """(write(pair, score), pairs to come, number of pairs done); the output appears when the block ends."""
    with contextlib.ExitStack() as stack:
        pairs, part = file.pairs(), None
        if paths and is_first_process():
            stack.enter_context(result_lock(paths))
            pairs, first = peek(pairs)
            part = PartialOutput(paths, made_with)
            part.open(file.header, overwrite)
            stack.callback(part.close)
            if part.n_records:
                print(f'{paths.partial} holds {part.n_records} scores; continuing behind them', file=sys.stderr)
        n_done = from_first_process(part.n_records if part else 0)
        done = itertools.islice(pairs, n_done)
        records = Records(file, part, made_with['rank'], done) if part else None
        collections.deque(done, maxlen=0)  # the pairs that are done pass
        if not is_first_process():
            yield (lambda pair, score: None), pairs, n_done
        elif records is None:
            with writing_in_place(output) as opened:
                yield InPlace(file, opened).write, pairs, 0
        else:
            try:
                yield records.write, pairs, n_done
            except BaseException:
                records.mark_written()
                raise
            records.finish()


@contextlib.contextmanager
def writing_in_place(output):
    """Standard output, another descriptor, a device or a pipe, open for bytes."""
    is_standard = is_standard_output(output)
    try:
        with contextlib.nullcontext(sys.stdout.buffer) if is_standard else open_stream(output, 'wb') as opened:
            yield opened
            opened.flush()
    except BrokenPipeError:
        raise  # its reader has gone, and need not be told
    except OSError as error:
        if error.filename not in (None, output):
            raise
        name = 'standard output' if is_standard else output
        raise InputError(f'{name}: cannot be written ({error.strerror})') from error


def peek(iterator):
    """(the iterator as it was, its first value): a csv's header is known once its first record was read."""
    first = next(iterator)
    return itertools.chain([first], iterator), first


class InPlace:
    """Writes scored pairs to an open file, the header first."""

    def __init__(self, file, opened):
        self.file, self.opened, self.is_first = file, opened, True

    def write(self, pair, score):
        if self.is_first:
            self.opened.write(self.file.header)
        self.is_first = False
        self.opened.write(self.file.with_score(pair, score))


class Records:
    """Writes scored pairs to a PartialOutput, and marks at times how far it is whole: with rank, behind whole runs.

    done: the pairs that it holds already. Where the input cannot be read twice, nothing says before that it is the one
    that the part was begun with; so these pairs are compared. Raises InputError where they are others.
    """

    def __init__(self, file, part, rank, done):
        self.file, self.part, self.rank = file, part, rank
        self.n_written, self.last = part.n_records, None
        self.digest = PairsDigest(done) if file.is_stream else None
        if self.digest and self.n_written and part.state.get('pairs_digest') != self.digest.hexdigest():
            raise InputError(
                f'{part.paths.partial}: was begun with other pairs than the first {self.n_written} of {file.name}; '
                '--overwrite begins again'
            )

    def write(self, pair, score):
        is_whole = not self.rank or pair.instruction != self.last
        if is_whole and self.n_written - self.part.n_records >= RECORDS_AT_RISK:
            self.mark()
        self.part.write(self.file.with_score(pair, score))
        if self.digest:
            self.digest.add(pair)
        self.n_written, self.last = self.n_written + 1, pair.instruction

    def mark(self):
        """Keep what is written."""
        self.note_pairs()
        self.part.mark(self.n_written)

    def mark_written(self):
        """Keep what a run that stops has written; with rank the last run may not be whole."""
        if not self.rank:
            with contextlib.suppress(InputError):  # a full disk, which is why it stops
                self.mark()

    def finish(self):
        """The output takes its place."""
        self.note_pairs()
        self.part.finish(self.n_written)

    def note_pairs(self):
        """Say of which pairs the written scores are, where the input cannot be read again."""
        if self.digest:
            self.part.state['pairs_digest'] = self.digest.hexdigest()


if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
    flags.run(main)
