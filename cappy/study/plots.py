"""Pictures of results: each function takes plain data and returns a matplotlib Figure; `save` writes it.

Colours are Okabe and Ito's, which the colour-blind can tell apart, and every line has its own marker and dashes, so
that a print in grey can be read. rougeL is given in fractions and shown x 100. matplotlib, the extra `plots`, is
imported where it is needed.
"""

import io
import math
import os
import textwrap
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from cappy.errors import InputError
from cappy.files.updates import Update
from cappy.study.curves import calibrate

ENDINGS = ('.png', '.svg', '.pdf')
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
DASHES = ('-', '--', '-.', ':', (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 2)))
WIDTH = 6.3  # inches: between the margins of a page of A4
N_SMOOTHED = 40  # updates of a run beyond which its losses are also shown as running means


def check(path):
    """Raise InputError where a picture of this name cannot be made."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise InputError(f'{path}: the ending says what a picture is; choose one of {", ".join(ENDINGS)}')
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("matplotlib is not installed, which draws pictures: pip install -e '.[plots]'") from error


def save(figure, path):
    """Write the figure, whole or not at all; the ending says how. The same figure gives the same bytes."""
    import matplotlib

    check(path)
    path, content = Path(path), io.BytesIO()
    kind = path.suffix.lower()[1:]
    dates = {'png': {}, 'svg': {'Date': None}, 'pdf': {'CreationDate': None}}
    with matplotlib.rc_context({'svg.hashsalt': 'cappy', 'pdf.fonttype': 42}):
        figure.savefig(content, format=kind, dpi=200, metadata=dates[kind])
    partial = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:12]}.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.getvalue())
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror or error})') from error
    finally:
        with suppress(OSError):
            partial.unlink()


def gain_per_task(rows: Sequence[Mapping], against: str):
    """Gains over another way of picking: a line a task, sorted by the mean over generators, a panel a generator.

    rows: {'generator', 'task', 'gain', 'low', 'high'}; low and high, the interval, may be None.
    """
    generators, tasks = _names(rows, 'generator'), _names(rows, 'task')
    mean = {task: np.mean([row['gain'] for row in rows if row['task'] == task]) for task in tasks}
    tasks = sorted(tasks, key=lambda task: (mean[task], task))
    figure, (panels,) = _panels(len(generators), len(generators), height=1.2 + 0.2 * len(tasks), share=True)
    for axes, generator in zip(panels, generators, strict=True):
        own = [row for row in rows if row['generator'] == generator]
        gains = 100 * np.array([row['gain'] for row in own])
        ends = 100 * np.array([[_or(row, end, row['gain']) for row in own] for end in ('low', 'high')])
        whiskers = np.clip([gains - ends[0], ends[1] - gains], 0, None)
        heights = [tasks.index(row['task']) for row in own]
        axes.errorbar(gains, heights, xerr=whiskers, color=COLOURS[0], fmt='o', markersize=3.5, elinewidth=0.9)
        axes.axvline(0, color='0.3', linewidth=0.8)
        axes.grid(axis='both', linewidth=0.3)
        axes.set_title(_plain(generator), fontsize=8)
    panels[0].set_yticks(range(len(tasks)), [_plain(task) for task in tasks], fontsize=7)
    panels[0].set_ylim(-0.7, len(tasks) - 0.3)
    has_intervals = any(row.get('low') is not None for row in rows)
    told = ' (bars: 95% over examples)' if has_intervals else ''
    figure.supxlabel(f'gain in rougeL x 100 over {_plain(against)}{told}', fontsize=8)
    return figure


def heat_map(generators: Sequence[str], tasks: Sequence[str], values, label: str, centred=False):
    """A field for each task (down) and generator (across), its value written in it; NaN is shown as missing.

    values: fractions, float64 [tasks, generators]. centred: 0 is the middle of the colours, as suits gains.
    """
    values = 100 * np.asarray(values, np.float64)
    height = 1.3 + 0.2 * len(tasks)
    figure, ((axes,),) = _panels(1, 1, height, width=min(WIDTH, 3.3 + 0.65 * len(generators)))
    largest = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 1
    limits = {'vmin': -largest, 'vmax': largest} if centred else {}
    axes.set_facecolor('0.9')
    image = axes.imshow(values, cmap='PuOr' if centred else 'cividis', aspect='auto', **limits)
    for (row, column), value in np.ndenumerate(values):
        is_known = np.isfinite(value)
        text = (f'{value:+.1f}' if centred else f'{value:.1f}') if is_known else 'none'
        colour = _readable_on(image.cmap(image.norm(value))) if is_known else 'black'
        axes.text(column, row, text, ha='center', va='center', fontsize=6, color=colour)
    axes.set_xticks(range(len(generators)), [_plain(name) for name in generators], rotation=35, ha='right', fontsize=7)
    axes.set_yticks(range(len(tasks)), [_plain(task) for task in tasks], fontsize=7)
    shrink = min(1, 8 / len(tasks) + 0.2)
    scale = figure.colorbar(image, ax=axes, shrink=shrink)
    n_letters = int(shrink * (height - 0.6) / 0.06)  # inches beside the scale, and of a letter
    scale.set_label(_plain(textwrap.fill(label, max(12, n_letters))), fontsize=8)
    scale.ax.tick_params(labelsize=7)
    return figure


def sample_curves(panels: Mapping[str, tuple], what='samples of an instruction'):
    """rougeL of a pick among so many samples, a panel for each name.

    panels: {name: (sizes [K], {way of picking: fractions [K]})}, as curves.sample_curves gives them.
    """
    figure, grid = _panels(len(panels), min(2, len(panels)))
    ways = list(dict.fromkeys(way for _, curves in panels.values() for way in curves))
    styles = dict(zip(ways, _styles(ways), strict=True))
    for axes, (name, (sizes, curves)) in zip(_flat(grid), panels.items(), strict=False):
        for way, values in curves.items():
            axes.plot(sizes, 100 * np.asarray(values), label=_plain(way), markersize=4, **styles[way])
        axes.set_xscale('log', base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=7)
        axes.minorticks_off()
        axes.grid(linewidth=0.3)
        _label(axes, name, what, 'rougeL x 100')
    _legend_below(figure)
    return figure


def score_against_rougeL(panels: Mapping[str, tuple]):
    """Where candidates lie, and whether a score means the rougeL that it says: a panel for each name.

    panels: {name: (scores, rougeL)}, of each example an array of its candidates'. Dark fields hold many candidates; a
    point is a tenth of them; on the dashed line scores are rougeL.
    """
    figure, grid = _panels(len(panels), min(2, len(panels)))
    of_all = np.concatenate([values for scores, _ in panels.values() for values in scores])
    extent = (min(0, of_all.min()), max(1, of_all.max()), 0, 1)  # else each panel has fields of another size
    look = {'gridsize': 30, 'cmap': 'Greys', 'bins': 'log', 'linewidths': 0, 'alpha': 0.55, 'extent': extent}
    for axes, (name, (scores, rougeL)) in zip(_flat(grid), panels.items(), strict=False):
        made = calibrate(scores, rougeL)
        axes.hexbin(np.concatenate(scores), np.concatenate(rougeL), **look)
        axes.plot([0, 1], [0, 1], color='black', ls='--', linewidth=1, label='score = rougeL')
        points = np.array([(one.score, one.rougeL) for one in made.bins])
        axes.plot(*points.T, label='tenths of the candidates', color=COLOURS[1], marker='o', markersize=4)
        axes.set_ylim(-0.03, 1.03)
        told = ', '.join(
            f'{words} {value:.2f}'
            for words, value in (('all', made.spearman), ('within examples', made.within))
            if value is not None
        )
        title = f'{name}\nrank correlation: {told or "none"}\ncalibration error: {made.error:.3f}'
        _label(axes, title, 'score', 'rougeL')
        axes.title.set_fontsize(7)
    _legend_below(figure)
    return figure


def training_curves(runs: Mapping[str, Sequence[Update]]):
    """Loss before each update, and the rate applied, of each run: {name: rows of its updates file}."""
    figure, ((losses,), (rates,)) = _panels(2, 1, height=5)
    many = len(runs) > len(COLOURS)
    for (name, updates), style in zip(runs.items(), _styles(runs), strict=True):
        numbers = [row.update for row in updates]
        loss = np.array([row.loss for row in updates])
        style = {'color': style['color'], 'ls': style['ls'], 'linewidth': 0.9}
        if len(loss) > N_SMOOTHED:
            losses.plot(numbers, loss, color=style['color'], linewidth=0.4, alpha=0.35)
        window = max(1, len(loss) // N_SMOOTHED)
        losses.plot(numbers, running_mean(loss, window), label=None if many else _plain(name), **style)
        rates.plot(numbers, [row.learning_rate for row in updates], **style)
    losses.set_yscale('log')
    runs_told = f'{len(runs)} runs; ' if many else ''
    _label(losses, f'{runs_told}loss of each update (thin) and its running mean', '', 'mean squared error')
    _label(rates, '', 'update', 'learning rate applied')
    rates.ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    rates.yaxis.get_offset_text().set_fontsize(7)
    if not many:
        _legend_below(figure, losses)
    return figure


def running_mean(values, window: int) -> np.ndarray:
    """Mean of each value and the window - 1 before it, or of as many as there are; float64 of the same length."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _panels(n, n_columns, height=None, width=WIDTH, share=False):
    """(figure, rows of axes), those beyond n not shown."""
    from matplotlib.figure import Figure

    n_rows = math.ceil(n / n_columns)
    figure = Figure(figsize=(width, height or (3.2 if n_columns > 1 else 4.2) * n_rows), layout='constrained')
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=share, sharey=share)
    for axes in _flat(grid)[n:]:
        axes.set_visible(False)
    for axes in _flat(grid):
        axes.tick_params(labelsize=7)
        axes.spines[['top', 'right']].set_visible(False)
    return figure, grid


def _legend_below(figure, *of_axes):
    """The names of all lines, once each, beneath the panels, where they hide nothing."""
    named = {}
    for axes in of_axes or figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    longest = max(map(len, named), default=1)
    n_columns = max(1, min(len(named), int(WIDTH / (0.6 + 0.06 * longest))))  # inches of a sample and of a letter
    figure.legend(named.values(), named.keys(), loc='outside lower center', ncols=n_columns, fontsize=7, frameon=False)


def _readable_on(colour):
    """Black or white, whichever stands out more: WCAG's relative luminance."""
    parts = np.array(colour[:3])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return 'white' if linear @ [0.2126, 0.7152, 0.0722] < 0.179 else 'black'


def _label(axes, title, x, y):
    axes.set_title(_plain(title), fontsize=8)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)


def _styles(names):
    """A style of line for each name; beyond the number of colours they come again with other dashes."""
    n = len(COLOURS)
    return [
        {'color': COLOURS[i % n], 'marker': MARKERS[i % n], 'ls': DASHES[(i + i // n) % len(DASHES)], 'linewidth': 1.2}
        for i in range(len(names))
    ]


def _names(rows, key):
    return list(dict.fromkeys(row[key] for row in rows))


def _or(row, key, otherwise):
    value = row.get(key)
    return otherwise if value is None else value


def _plain(text):
    return text.replace('$', r'\$')  # else matplotlib reads what stands between two as a formula


def _flat(grid):
    return [axes for row in grid for axes in row]
