"""Flags are checked before anything runs, and mistakes end in one line."""

import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest

from cappy.cli import flags
from cappy.cli.flags import Names, help_text, parse_flags, run
from cappy.errors import InputError

ROOT = Path(__file__).parents[1]


def main(
    bigbench_subset_name='auto_categorization',  # task
    train_size=102400,  # pairs; the paper's,
    #                     and more of it
    learning_rate=2e-5,
    # Devices.
    n_processes: int | None = None,  # hosts
    host0_address: str | None = None,
    overwrite=False,  # replace a result that exists
    schedule: Literal['reference', 'corrected'] = 'reference',
):
    """Adapt and pick.

    More of it.
    """
    return dict(locals())


def required(folder: str, n: int = 1):
    """One argument without a default."""


def outcome(capsys, called, argv):
    with pytest.raises(SystemExit) as raised:
        run(called, argv)
    printed = capsys.readouterr()
    assert printed.out == ''
    assert printed.err.count('\n') == 1
    return raised.value.code, printed.err


@pytest.mark.parametrize(
    ('words', 'values'),
    [
        ('', {}),
        ('--train_size 512', {'train_size': 512}),
        ('--train_size=512', {'train_size': 512}),
        ('--train-size 1e5', {'train_size': 100_000}),
        ('--learning_rate 1', {'learning_rate': 1.0}),
        ('--learning_rate -5e-5', {'learning_rate': -5e-5}),
        ('--overwrite', {'overwrite': True}),
        ('--overwrite --train_size 3', {'overwrite': True, 'train_size': 3}),
        ('--overwrite False', {'overwrite': False}),
        ('--overwrite=true', {'overwrite': True}),
        ('--nooverwrite', {'overwrite': False}),
        ('--n_processes 2 --host0_address 10.0', {'n_processes': 2, 'host0_address': '10.0'}),
        ('--n_processes None', {'n_processes': None}),
        ('--host0_address None', {'host0_address': None}),
        ('--schedule corrected', {'schedule': 'corrected'}),
        # Texts that fire alone would turn into a tuple, numbers, a list, a truth value, a dict.
        ('--bigbench_subset_name 1,2', {'bigbench_subset_name': '1,2'}),
        ('--bigbench_subset_name 5', {'bigbench_subset_name': '5'}),
        ('--bigbench_subset_name=1e3', {'bigbench_subset_name': '1e3'}),
        ('--bigbench_subset_name [a]', {'bigbench_subset_name': '[a]'}),
        ('--bigbench_subset_name True', {'bigbench_subset_name': 'True'}),
        ('--bigbench_subset_name {a:1}', {'bigbench_subset_name': '{a:1}'}),
        ('--bigbench_subset_name=--x=y', {'bigbench_subset_name': '--x=y'}),
        ('--bigbench_subset_name=', {'bigbench_subset_name': ''}),
    ],
)
def test_a_flags_type_is_that_of_the_signature(words, values):
    parsed = parse_flags(main, words.split())
    assert parsed == values
    assert [type(value) for value in parsed.values()] == [type(value) for value in values.values()]


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('--trainsize 5', 'no flag --trainsize; did you mean --train_size?'),
        ('--qqqqqqqqq=5', 'no flag --qqqqqqqqq; --help lists all'),
        ('--noschedule', 'no flag --noschedule; did you mean --schedule?'),
        ('-train_size 5', '-train_size: flags begin with two dashes; did you mean --train_size?'),
        ('--train_size 5 --train_size=6', '--train_size is given twice'),
        ('--train_size 5 --train-size 5', '--train_size is given twice'),
        ('--overwrite --nooverwrite', '--overwrite is given twice'),
        ('--train_size', '--train_size needs a value'),
        ('--train_size --overwrite', '--train_size needs a value'),
        ('--train_size 5.5', "--train_size: expected an integer, found '5.5'"),
        ('--train_size many', "--train_size: expected an integer, found 'many'"),
        ('--train_size None', "--train_size: expected an integer, found 'None'"),
        ('--train_size=', "--train_size: expected an integer, found ''"),
        ('--train_size inf', "--train_size: expected an integer, found 'inf'"),
        ('--learning_rate 1,5', "--learning_rate: expected a number, found '1,5'"),
        ('--learning_rate nan', "--learning_rate: expected a number, found 'nan'"),
        ('--n_processes two', "--n_processes: expected an integer or None, found 'two'"),
        ('--overwrite=maybe', "--overwrite: expected True or False, found 'maybe'"),
        ('--nooverwrite=1', '--nooverwrite takes no value; write --overwrite=1'),
        ('--overwrite 5', "'5' belongs to no flag"),
        ('--schedule other', "--schedule: expected 'reference' or 'corrected', found 'other'"),
        ('operators', "'operators' belongs to no flag; write --flag value"),
        (
            'train_size=5',
            "'train_size=5' belongs to no flag; write --flag value; did you mean --train_size?",
        ),
    ],
)
def test_a_wrong_flag_is_named_in_one_line_and_nothing_runs(capsys, words, message):
    calls = []

    def recorded(**flags):
        calls.append(flags)

    recorded.__signature__ = inspect.signature(main)
    recorded.__annotations__ = main.__annotations__
    code, printed = outcome(capsys, recorded, words.split())
    assert (code, calls) == (1, [])
    assert printed.startswith(f'error: {message}')


def test_main_is_called_with_its_flags_and_its_defaults():
    calls = []

    def called(task='t', n=1):
        calls.append((task, n))

    run(called, ['--task', '1,2'])
    run(called, [])
    assert calls == [('1,2', 1), ('t', 1)]


def test_an_argument_without_default_may_stand_alone_and_must_be_there():
    assert parse_flags(required, ['a', '--n', '2']) == {'folder': 'a', 'n': 2}
    assert parse_flags(required, ['--folder=a']) == {'folder': 'a'}
    with pytest.raises(InputError, match='--folder must be given'):
        parse_flags(required, [])
    with pytest.raises(InputError, match="'b' belongs to no flag"):
        parse_flags(required, ['a', 'b'])


def test_a_signature_that_leaves_a_type_open_is_a_bug():
    def untyped(x=None):
        """x could be anything."""

    def starred(*words):
        """Any words."""

    with pytest.raises(TypeError, match='annotate x'):
        parse_flags(untyped, [])
    with pytest.raises(TypeError, match=r'\*words cannot be a flag'):
        parse_flags(starred, [])


def test_help_lists_flags_defaults_and_comments_and_runs_nothing(capsys):
    run(required, ['--help'])
    printed = capsys.readouterr().out
    assert 'One argument without a default.' in printed
    assert '--folder (required)' in printed
    lines = help_text(main, 'x.py').splitlines()
    assert lines[0] == 'usage: x.py [--flag value ..]'
    assert lines[2:7] == ['Adapt and pick.', '', 'More of it.', '', 'flags:']
    assert lines[7:] == [
        '  --bigbench_subset_name=auto_categorization',
        '        task',
        '  --train_size=102400',
        "        pairs; the paper's,",
        '  --learning_rate=2e-05',
        '  --n_processes=None',
        '        hosts',
        '  --host0_address=None',
        '  --overwrite, --nooverwrite (default: False)',
        '        replace a result that exists',
        '  --schedule {reference,corrected} (default: reference)',
    ]


def test_help_has_an_example_of_the_scripts_docstring_and_comments_of_several_functions(monkeypatch):
    def joined():
        """Takes the flags of two functions."""

    def other(
        n=1,  # of the other
        m=2,  # of the other, too
    ):
        """Other."""

    def own(
        n=1,  # how many
    ):
        """Own."""

    joined.__signature__, joined.sources = inspect.signature(other), (own, other)
    monkeypatch.setitem(globals(), '__doc__', 'One.\n\n    make data\n    x.py --n 3\n    x.py --m 4\n')
    assert help_text(joined, 'x.py').splitlines() == [
        *('usage: x.py [--flag value ..]', 'example: x.py --n 3', ''),
        *('Takes the flags of two functions.', '', 'flags:'),
        *('  --n=1', '        how many', '  --m=2', '        of the other, too'),
    ]


def numbers(
    count: flags.Count = 1,  # how many
    maybe: flags.Count | None = None,
    seed: flags.Seed = 0,
    share: flags.Share = 0.5,
    inner: flags.InnerShare = 0.5,
    rate: flags.Positive = 1.0,
    top_p: Annotated[float, flags.Range(above=0, most=1)] = 1.0,
    any_number=1.5,
):
    """Numbers."""


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('--count 0', '--count: expected 1 or more, found 0'),
        ('--count -1e3', '--count: expected 1 or more, found -1e3'),
        ('--maybe 0', '--maybe: expected 1 or more, found 0'),
        ('--seed -1', '--seed: expected 0 or more, found -1'),
        ('--seed 9223372036854775808', '--seed: expected an integer below 2^63, found 9223372036854775808'),
        ('--seed 1e300', '--seed: expected an integer below 2^63, found 1e300'),
        ('--share 1.1', '--share: expected 0 to 1, found 1.1'),
        ('--inner 1', '--inner: expected more than 0 and less than 1, found 1'),
        ('--rate 0', '--rate: expected more than 0, found 0'),
        ('--top_p 1.5', '--top_p: expected more than 0 and at most 1, found 1.5'),
        ('--any_number inf', "--any_number: expected a number, found 'inf'"),
        ('--rate 1e999', "--rate: expected a number, found '1e999'"),
    ],
)
def test_a_number_out_of_range_is_refused_before_main_runs(capsys, words, message):
    assert outcome(capsys, numbers, words.split()) == (1, f'error: {message}\n')


def test_the_ends_of_a_range_are_taken_and_shown_by_help():
    words = '--count=1 --maybe=None --seed=9223372036854775807 --share=1 --inner=0.01 --rate=1e-9 --top_p=1'
    assert parse_flags(numbers, [*words.split(), '--any_number', '-2']) == {
        **{'count': 1, 'maybe': None, 'seed': 2**63 - 1, 'share': 1.0, 'inner': 0.01, 'rate': 1e-9, 'top_p': 1.0},
        'any_number': -2.0,
    }
    lines = help_text(numbers, 'x').splitlines()
    assert lines[lines.index('flags:') + 1 :] == [
        *('  --count=1 (1 or more)', '        how many', '  --maybe=None (1 or more)', '  --seed=0 (0 or more)'),
        *('  --share=0.5 (0 to 1)', '  --inner=0.5 (more than 0 and less than 1)', '  --rate=1.0 (more than 0)'),
        *('  --top_p=1.0 (more than 0 and at most 1)', '  --any_number=1.5'),
    ]


def named(
    tasks: Names | None = None,  # default: all
    splits: Names = ('train', 'validation'),
    decodings: Names = 'beam4,sampling',
):
    """Flags of names."""
    return dict(locals())


def test_names_with_commas_between_them_are_a_tuple():
    parsed = parse_flags(named, ['--tasks', ' tense, gem', '--splits=train'])
    assert parsed == {'tasks': ('tense', 'gem'), 'splits': ('train',), 'decodings': ('beam4', 'sampling')}
    assert parse_flags(named, ['--tasks', 'None', '--decodings=temp']) == {'tasks': None, 'decodings': ('temp',)}
    assert help_text(named, 'x').splitlines()[-4:] == [
        *('  --tasks=None', '        default: all', '  --splits=train,validation', '  --decodings=beam4,sampling')
    ]


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('--tasks a,,b', "--tasks: expected names with commas between them (a,b,c), found 'a,,b'"),
        ('--tasks=', "--tasks: expected names with commas between them (a,b,c), found ''"),
        ('--splits a,b,a', '--splits: a is given twice; keep one'),
    ],
)
def test_empty_and_repeated_names_are_refused(capsys, words, message):
    assert outcome(capsys, named, words.split()) == (1, f'error: {message}\n')


ALIASES = {'subset': 'bigbench_subset_name', 'replace': 'overwrite'}


@pytest.mark.parametrize(
    ('words', 'values'),
    [
        ('--subset gem', {'bigbench_subset_name': 'gem'}),
        ('--replace', {'overwrite': True}),
        ('--noreplace', {'overwrite': False}),
    ],
)
def test_an_old_name_means_the_new_one(words, values):
    assert parse_flags(main, words.split(), ALIASES) == values


def test_an_old_name_beside_the_new_one_is_refused_and_shown_by_help():
    with pytest.raises(InputError, match=r'^--subset and --bigbench_subset_name are both given; keep --bigbench_sub'):
        parse_flags(main, ['--subset', 'a', '--bigbench_subset_name', 'a'], ALIASES)
    with pytest.raises(InputError, match=r'--overwrite and --noreplace|--overwrite and --replace'):
        parse_flags(main, ['--overwrite', '--noreplace'], ALIASES)
    lines = help_text(main, 'x', ALIASES).splitlines()
    assert lines[lines.index('  --bigbench_subset_name=auto_categorization') + 1] == '        task; also --subset'
    with pytest.raises(TypeError, match='aliases of gone'):
        parse_flags(main, [], {'old': 'gone'})


def test_a_comment_continues_below_in_the_same_column():
    # fmt: off
    def aligned(n=1,  # how many,
                      # at least
                # Another section.
                m=2):
        """Do."""
    # fmt: on
    assert help_text(aligned, 'x').splitlines()[-3:] == [
        '  --n=1',
        '        how many, at least',
        '  --m=2',
    ]


def test_an_input_error_ends_with_one_line_and_code_1(capsys):
    def fails():
        raise InputError('f:3: first\n  second')

    assert outcome(capsys, fails, []) == (1, 'error: f:3: first second\n')


def test_ctrl_c_ends_with_one_word_and_code_130(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert outcome(capsys, interrupted, []) == (130, 'interrupted\n')


class XlaRuntimeError(RuntimeError):
    """Named as jaxlib's."""


@pytest.mark.parametrize(
    ('error', 'message'),
    [
        (
            MemoryError(),
            'error: out of memory (MemoryError); work on less at a time (--help says which flags set how much)',
        ),
        (
            XlaRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nmore'),
            'error: out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.); work on less at a time '
            '(--help says which flags set how much)',
        ),
    ],
)
def test_lack_of_memory_ends_with_one_line_and_code_75(capsys, error, message):
    def hungry():
        raise error

    assert outcome(capsys, hungry, []) == (75, f'{message}\n')


def test_a_failed_device_ends_with_its_traceback_and_code_75(capsys):
    def failing():
        raise XlaRuntimeError('INTERNAL: the device fell over')

    with pytest.raises(SystemExit) as raised:
        run(failing, [])
    lines = capsys.readouterr().err.splitlines()
    assert raised.value.code == 75
    assert lines[0].startswith('Traceback') and lines[-1] == 'error: a device failed (INTERNAL: the device fell over)'


def test_an_error_of_jax_by_wrong_arguments_is_a_bug():
    def wrong():
        raise XlaRuntimeError('INVALID_ARGUMENT: shapes differ')

    with pytest.raises(XlaRuntimeError):
        run(wrong, [])


def test_any_other_error_is_a_bug_and_is_not_caught():
    def broken():
        raise ValueError('a bug')

    with pytest.raises(ValueError, match='a bug'):
        run(broken, [])


def script(tmp_path, body):
    path = tmp_path / 'script.py'
    path.write_text(f'import sys, time\nfrom cappy.cli.flags import run\n\ndef main(n=1):\n{body}\n\nrun(main)\n')
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )


def test_a_reader_that_goes_away_leaves_no_traceback(tmp_path):
    process = script(tmp_path, "    for _ in range(100000):\n        print('line')")
    assert process.stdout.readline() == 'line\n'
    process.stdout.close()
    assert process.stderr.read() == ''
    assert process.wait() == 141


@pytest.mark.parametrize('n', [1, 100_000])  # characters: written when the script ends, and before
def test_a_full_disk_ends_in_one_line_wherever_it_is_met(n, capsys, monkeypatch):
    with open('/dev/full', 'w') as full, pytest.raises(SystemExit) as raised:
        monkeypatch.setattr(sys, 'stdout', full)
        run(lambda: print('x' * n), [])
    assert raised.value.code == 1
    assert capsys.readouterr().err == 'error: an output: cannot be written (No space left on device); make room\n'


def test_an_interrupt_signal_leaves_no_traceback(tmp_path):
    process = script(tmp_path, "    print('begun', flush=True)\n    time.sleep(60)")
    assert process.stdout.readline() == 'begun\n'
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ('', 'interrupted\n')
    assert process.returncode == 130


def test_a_setting_that_an_error_begins_with_gets_the_dashes_of_its_flag(capsys):
    def fails(max_length=3):
        raise InputError(f'max_length {max_length}: too short')

    assert outcome(capsys, fails, []) == (1, 'error: --max_length 3: too short\n')
