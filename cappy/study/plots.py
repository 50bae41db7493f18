"""Pictures of results: each function takes plain data and returns a matplotlib Figure; `save` writes it.

Colours are Okabe and Ito's, which colour-blind readers can tell apart, and every line has its own marker and dashes, so
that a print in grey can be read. rougeL is given in fractions and shown x 100. matplotlib, the extra `plots`, is
imported only where it is needed.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cappy.errors import InputError
from cappy.files.atomic import write_atomically
from cappy.files.outputs import check_files
from cappy.files.updates import Update
from cappy.study.curves import calibrate

ENDINGS = ('.png', '.svg', '.pdf')
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
DASHES = ('-', '--', '-.', ':', (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 2)))
WIDTH = 6.3  # inches: between the margins of a page of A4
N_SHOWN = 40  # independent points of a run's losses; those of more updates are running means over a 40th of them


def check(path):
    """Raise InputError where a picture with this file name cannot be made or written."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise InputError(f'{path}: not a format of pictures; let the name end in one of {", ".join(ENDINGS)}')
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("pictures need matplotlib, which is not installed: pip install -e '.[plots]'") from error
    check_files(path, streams=True)


def save(figure, path):
    """Write the figure, whole or not at all, in the format of its ending. The same figure gives the same bytes.

    Raises InputError where the file cannot be written.
    """
    import matplotlib

    check(path)
    kind, content = Path(path).suffix.lower()[1:], io.BytesIO()
    dates = {'png': {}, 'svg': {'Date': None}, 'pdf': {'CreationDate': None}}
    with matplotlib.rc_context({'svg.hashsalt': 'cappy', 'pdf.fonttype': 42}):
        figure.savefig(content, format=kind, dpi=200, metadata=dates[kind])
    with write_atomically(path, 'wb') as file:
        file.write(content.getvalue())


def gain_per_task(rows: Sequence[Mapping], against: str, measure: str = 'rougeL'):
    """Gains over another pick: one line per task, sorted by the mean over generators, and one panel per generator.

    rows: {'generator', 'task', 'gain', 'low', 'high'}; low and high, the interval, may be None or missing. measure: of
    what the gains are.
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
        axes.margins(x=0.08)
        axes.set_title(_plain(generator), fontsize=8)
    panels[0].set_yticks(range(len(tasks)), [_plain(task) for task in tasks], fontsize=7)
    panels[0].set_ylim(-0.7, len(tasks) - 0.3)
    has_intervals = any(row.get('low') is not None for row in rows)
    bars = ' (bars: 95% intervals over examples)' if has_intervals else ''
    label = figure.supxlabel(f'gain in {_plain(measure)} x 100 over {_plain(against)}{bars}', fontsize=8)
    _centre_below(figure, panels, label)
    return figure


def heat_map(generators: Sequence[str], tasks: Sequence[str], values, label: str, centred=False):
    """One field per task (down) and generator (across), its value written in it; NaN is shown as missing.

    values: fractions, float64 [tasks, generators]. centred: 0 is the middle of the colours, as suits gains.
    """
    values = 100 * np.asarray(values, np.float64)
    height = 1.3 + 0.2 * len(tasks)
    figure, ((axes,),) = _panels(1, 1, height, width=min(WIDTH, 3.3 + 0.65 * len(generators)))
    axes.spines[:].set_visible(False)
    largest = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 1
    limits = {'vmin': -largest, 'vmax': largest} if centred else {}
    axes.set_facecolor('0.9')
    image = axes.imshow(values, cmap='PuOr' if centred else 'cividis', aspect='auto', **limits)
    for (row, column), value in np.ndenumerate(values):
        is_known = np.isfinite(value)
        text = (f'{value:+.1f}' if centred else f'{value:.1f}').replace('-', '\N{MINUS SIGN}') if is_known else 'none'
        colour = _readable_on(image.cmap(image.norm(value))) if is_known else 'black'
        axes.text(column, row, text, ha='center', va='center', fontsize=6, color=colour)
    axes.set_xticks(range(len(generators)), [_plain(name) for name in generators], rotation=35, ha='right', fontsize=7)
    axes.set_yticks(range(len(tasks)), [_plain(task) for task in tasks], fontsize=7)
    shrink = min(1, 8 / len(tasks) + 0.2)
    scale = figure.colorbar(image, ax=axes, shrink=shrink)
    n_letters = int(shrink * (height - 0.6) / 0.06)  # inches beside the scale, and per letter
    scale.set_label(_plain(textwrap.fill(label, max(12, n_letters))), fontsize=8)
    scale.ax.tick_params(labelsize=7)
    scale.outline.set_visible(False)
    return figure


def sample_curves(panels: Mapping[str, tuple], what='samples of an instruction'):
    """rougeL of a pick among so many samples, one panel per name.

    panels: {name: (sizes [K], {pick: fractions [K]})}, as `curves.sample_curves` returns them.
    """
    figure, grid = _panels(len(panels), min(2, len(panels)))
    picks = list(dict.fromkeys(pick for _, curves in panels.values() for pick in curves))
    styles = dict(zip(picks, _styles(picks), strict=True))
    for axes, (name, (sizes, curves)) in zip(_flat(grid), panels.items(), strict=False):
        for pick, values in curves.items():
            axes.plot(sizes, 100 * np.asarray(values), label=_plain(pick), markersize=4, **styles[pick])
        axes.set_xscale('log', base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=7)
        axes.minorticks_off()
        axes.grid(linewidth=0.3)
        _label(axes, name, what, 'rougeL x 100')
    _legend_below(figure)
    return figure


def score_against_rougeL(panels: Mapping[str, tuple]):
    """Scores and rougeL of candidates, and whether a score predicts rougeL: one panel per name.

    panels: {name: (scores, rougeL)}, one array per example, of its candidates. Dark fields contain many candidates; a
    point is a tenth of them; on the dashed line a score equals its rougeL.
    """
    figure, grid = _panels(len(panels), min(2, len(panels)))
    of_all = np.concatenate([values for scores, _ in panels.values() for values in scores])
    extent = (min(0, of_all.min()), max(1, of_all.max()), 0, 1)  # of all panels, so that their fields are equally large
    look = {'gridsize': 30, 'cmap': 'Greys', 'bins': 'log', 'linewidths': 0, 'alpha': 0.55, 'extent': extent}
    for axes, (name, (scores, rougeL)) in zip(_flat(grid), panels.items(), strict=False):
        calibration = calibrate(scores, rougeL)
        axes.hexbin(np.concatenate(scores), np.concatenate(rougeL), **look)
        axes.plot([0, 1], [0, 1], color='black', ls='--', linewidth=1, label='score = rougeL')
        points = np.array([(group.score, group.rougeL) for group in calibration.bins])
        axes.plot(*points.T, label='tenths of the candidates', color=COLOURS[1], marker='o', markersize=4)
        axes.set_ylim(-0.03, 1.03)
        correlations = ', '.join(
            f'{words} {value:.2f}'
            for words, value in (('all', calibration.spearman), ('within examples', calibration.within))
            if value is not None
        )
        title = f'{name}\nrank correlation: {correlations or "none"}\ncalibration error: {calibration.error:.3f}'
        _label(axes, title, 'score', 'rougeL')
        axes.title.set_fontsize(7)
    _legend_below(figure)
    return figure


def training_curves(runs: Mapping[str, Sequence[Update]]):
    """Loss before each update and the learning rate applied, one line per run: {name: rows of its updates file}.

    The losses of a long run are running means over a fortieth of its updates.
    """
    figure, ((losses,), (rates,)) = _panels(2, 1, height=5)
    many = len(runs) > len(COLOURS)
    windows = {name: max(1, len(updates) // N_SHOWN) for name, updates in runs.items()}
    for (name, updates), style in zip(runs.items(), _styles(runs), strict=True):
        numbers = [row.update for row in updates]
        style = {'color': style['color'], 'ls': style['ls'], 'linewidth': 0.9}
        loss = running_mean([row.loss for row in updates], windows[name])
        losses.plot(numbers, loss, label=None if many else _plain(name), **style)
        rates.plot(numbers, [row.learning_rate for row in updates], **style)
    losses.set_yscale('log')
    _label(losses, _title_of_losses(len(runs), set(windows.values())), '', 'loss')
    _label(rates, 'Learning rate applied', 'update', 'learning rate')
    rates.ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    rates.yaxis.get_offset_text().set_fontsize(7)
    if 1 < len(runs) <= len(COLOURS):
        _legend_below(figure, losses)
    return figure


def _title_of_losses(n_runs, windows):
    what = 'Training loss before each update'
    if windows != {1}:
        n = f'{windows.pop()} updates' if len(windows) == 1 else "a fortieth of each run's updates"
        what = f'Training loss, running mean over {n}'
    return f'{what}, {n_runs} runs' if n_runs > 1 else what


def running_mean(values, window: int) -> np.ndarray:
    """Mean of each value and the window - 1 values before it, or as many as there are; float64 of the same length."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _panels(n, n_columns, height=None, width=WIDTH, share=False):
    """(figure, rows of axes); those beyond n are not shown. Frames are open at the top and on the right."""
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
    """The names of all lines, once each, below the panels, where they hide nothing."""
    named = {}
    for axes in of_axes or figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    longest = max(map(len, named), default=1)
    n_columns = max(1, min(len(named), int(WIDTH / (0.6 + 0.06 * longest))))  # inches per line sample and per letter
    figure.legend(named.values(), named.keys(), loc='outside lower center', ncols=n_columns, fontsize=7, frameon=False)


def _centre_below(figure, panels, label):
    """Centre a figure's label below the panels instead of below the figure, as far as it then fits in."""
    figure.draw_without_rendering()
    to_figure = figure.transFigure.inverted()
    left, right = panels[0].get_position().x0, panels[-1].get_position().x1
    half = to_figure.transform_bbox(label.get_window_extent()).width / 2
    label.set_x(min(max((left + right) / 2, half), 1 - half) if half < 0.5 else 0.5)


def _readable_on(colour):
    """Black or white, whichever has more contrast by WCAG's relative luminance."""
    parts = np.array(colour[:3])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return 'white' if linear @ [0.2126, 0.7152, 0.0722] < 0.179 else 'black'


def _label(axes, title, x, y):
    axes.set_title(_plain(title), fontsize=8)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)


def _styles(names):
    """One line style per name; beyond the number of colours these repeat with other dashes."""
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
    return text.replace('$', r'\$')  # matplotlib reads text between two of them as a formula


def _flat(grid):
    return [axes for row in grid for axes in row]
