"""cappy/study/plots.py: what the figures hold is what was given."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cappy.errors import InputError
from cappy.files.updates import Update
from cappy.study import plots

ROOT = Path(__file__).parents[1]
pytest.importorskip('matplotlib')

ROWS = [
    {'generator': 'xl', 'task': 'a', 'gain': 0.03, 'low': 0.01, 'high': 0.06},
    {'generator': 'xl', 'task': 'b', 'gain': -0.02, 'low': None, 'high': None},
    {'generator': 'xxl', 'task': 'a', 'gain': 0.05, 'low': 0.04, 'high': 0.07},
]


def visible(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def test_gains_are_drawn_at_their_tasks_with_their_intervals():
    figure = plots.gain_per_task(ROWS, 'first of beam4')
    xl, xxl = figure.axes
    assert [label.get_text() for label in xl.get_yticklabels()] == ['b', 'a']  # by mean gain, the largest on top
    assert (xl.get_title(), xxl.get_title()) == ('xl', 'xxl')
    points, _, (whiskers,) = xl.containers[0]
    assert points.get_xdata() == pytest.approx([3, -2]) and list(points.get_ydata()) == [1, 0]
    whisker, none = (segment[:, 0].tolist() for segment in whiskers.get_segments())
    assert whisker == pytest.approx([1, 6]) and none == pytest.approx([-2, -2])
    points = xxl.containers[0].lines[0]
    assert points.get_xdata() == pytest.approx([5]) and list(points.get_ydata()) == [1]
    assert xl.get_xlim() == xxl.get_xlim()
    assert figure.get_supxlabel() == 'gain in rougeL x 100 over first of beam4 (bars: 95% intervals over examples)'
    assert plots.gain_per_task(ROWS[1:2], 'published').get_supxlabel() == 'gain in rougeL x 100 over published'


@pytest.mark.parametrize('generators', [1, 2])
def test_gains_keep_off_the_frame_and_their_label_is_centred_below_the_panels(generators):
    rows = [row for row in ROWS if row['generator'] == 'xl' or generators == 2]
    figure = plots.gain_per_task(
        [{**row, 'task': f'a_task_with_a_long_name_{row["task"]}'} for row in rows], 'published'
    )
    left, right = figure.axes[0].get_xlim()
    shown = [end for row in rows for end in (row['low'] or row['gain'], row['high'] or row['gain'])]
    assert left < 100 * min(shown) - 0.1 and right > 100 * max(shown) + 0.1
    figure.draw_without_rendering()
    panels = figure.axes[0].get_window_extent().x0, figure.axes[-1].get_window_extent().x1
    label = figure._supxlabel.get_window_extent()
    assert (label.x0 + label.x1) / 2 == pytest.approx(sum(panels) / 2, abs=2)  # pixels


def test_the_heat_map_writes_each_value_and_says_what_is_missing():
    figure = plots.heat_map(['xl', 'xxl'], ['a', 'b'], [[0.5, np.nan], [0.25, 0.375]], 'rougeL x 100')
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ['50.0', 'none', '25.0', '37.5']
    shown = axes.images[0].get_array()
    assert shown.compressed().tolist() == [50, 25, 37.5] and bool(shown.mask[0, 1])
    assert [label.get_text() for label in axes.get_xticklabels()] == ['xl', 'xxl']
    assert not any(spine.get_visible() for spine in axes.spines.values())


def test_the_heat_map_of_gains_has_nothing_gained_in_the_middle_of_its_colours():
    axes = plots.heat_map(['xl'], ['a', 'b'], [[0.01], [-0.04]], 'gain', centred=True).axes[0]
    assert axes.images[0].get_clim() == pytest.approx((-4, 4))
    assert [text.get_text() for text in axes.texts] == ['+1.0', '\N{MINUS SIGN}4.0']


def test_sample_curves_are_drawn_as_given_in_as_many_panels():
    panels = {
        'xl': ([1, 2, 4], {'scorer': [0.2, 0.3, 0.4], 'oracle': [0.2, 0.5, 0.6]}),
        'xxl': ([1, 3], {'oracle': [0.1, 0.2]}),
    }
    first, second = visible(plots.sample_curves(panels))
    assert (first.get_title(), second.get_title()) == ('xl', 'xxl')
    scorer, oracle = first.lines
    assert (scorer.get_xdata().tolist(), scorer.get_ydata().tolist()) == ([1, 2, 4], [20, 30, 40])
    assert second.lines[0].get_ydata().tolist() == [10, 20]
    # A pick has the same look in every panel, and no two share marker, dashes or colour.
    assert second.lines[0].get_color() == oracle.get_color() != scorer.get_color()
    assert scorer.get_marker() != oracle.get_marker() and scorer.get_linestyle() != oracle.get_linestyle()


def test_scores_against_rougeL_show_the_tenths_and_the_correlations():
    scores = [np.arange(10) / 10, np.arange(10) / 10 + 0.05]
    rougeL = [np.arange(10) / 10, np.arange(10) / 10 + 0.05]
    (axes,) = visible(plots.score_against_rougeL({'xl': (scores, rougeL)}))
    diagonal, tenths = axes.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert tenths.get_xdata() == pytest.approx(np.arange(10) / 10 + 0.025)
    assert tenths.get_ydata() == pytest.approx(np.arange(10) / 10 + 0.025)
    assert axes.collections[0].get_array().size > 0
    assert axes.get_title() == 'xl\nrank correlation: all 1.00, within examples 1.00\ncalibration error: 0.000'


def test_training_curves_are_one_line_per_run_of_losses_and_of_the_rates_applied():
    updates = [Update(n, 8, 1e-5 * n, 1 / (n + 1), 1.0) for n in range(4)]
    losses, rates = plots.training_curves({'xl, a': updates, 'xl, b': updates[:2]}).axes
    assert (len(losses.lines), len(rates.lines)) == (2, 2)
    assert losses.lines[0].get_ydata() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert rates.lines[0].get_ydata() == pytest.approx([0, 1e-5, 2e-5, 3e-5])
    assert rates.lines[1].get_xdata() == pytest.approx([0, 1])
    assert losses.get_title() == 'Training loss before each update, 2 runs'


def test_losses_of_long_runs_are_running_means_and_the_title_says_over_how_many_updates():
    long = [Update(n, 8, 1e-5, float(n % 2), 1.0) for n in range(80)]
    figure = plots.training_curves({'long': long})
    losses = figure.axes[0]
    (line,) = losses.lines
    assert line.get_ydata()[1:] == pytest.approx(np.full(79, 0.5))  # over two updates
    assert losses.get_title() == 'Training loss, running mean over 2 updates'
    assert figure.legends == []  # of a single run
    losses = plots.training_curves({'long': long, 'short': long[:10]}).axes[0]
    assert losses.get_title() == "Training loss, running mean over a fortieth of each run's updates, 2 runs"
    assert losses.lines[1].get_ydata().tolist() == [row.loss for row in long[:10]]


def test_every_line_is_named_below_the_panels_also_one_that_the_first_panel_lacks():
    panels = {'xl': ([1, 2], {'oracle': [0.2, 0.3]}), 'xxl': ([1, 2], {'scorer': [0.2, 0.3], 'oracle': [0.2, 0.4]})}
    figure = plots.sample_curves(panels)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ['oracle', 'scorer']
    figure.draw_without_rendering()
    lowest = min(axes.get_tightbbox().y0 for axes in figure.axes)
    assert legend.get_window_extent().y1 < lowest


def test_long_names_on_a_picture_of_few_tasks_are_not_cut_off():
    label = 'gain over scorer with consensus and self-score x 100, mean of 3 seeds'
    figure = plots.heat_map(['flan-t5-xl'], ['a_task_with_a_long_name', 'b'], [[0.5], [0.25]], label, centred=True)
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert drawn.x0 >= 0 and drawn.x1 <= width and drawn.y0 >= 0 and drawn.y1 <= height


def test_a_running_mean_begins_with_what_there_is():
    assert plots.running_mean([2.0, 4.0, 6.0, 8.0], 3) == pytest.approx([2, 3, 4, 6])


@pytest.mark.parametrize(('ending', 'begins'), [('png', b'\x89PNG'), ('svg', b'<?xml'), ('pdf', b'%PDF')])
def test_the_ending_chooses_the_format_and_the_same_figure_gives_the_same_bytes(ending, begins, tmp_path):
    for name in ('one', 'two'):
        plots.save(plots.gain_per_task(ROWS, 'published'), tmp_path / 'new' / f'{name}.{ending}')
    one, two = ((tmp_path / 'new' / f'{name}.{ending}').read_bytes() for name in ('one', 'two'))
    assert one.startswith(begins) and one == two
    assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == [f'one.{ending}', f'two.{ending}']


def test_a_name_with_dollars_is_not_a_formula(tmp_path):
    figure = plots.heat_map(['a$x_$b'], ['t$\\frac$'], [[0.5]], 'rougeL')
    plots.save(figure, tmp_path / 'plot.png')  # a formula of \frac alone cannot be drawn
    assert figure.axes[0].get_yticklabels()[0].get_text() == r't\$\frac\$'


def test_another_ending_and_a_folder_that_cannot_be_made_are_named(tmp_path):
    with pytest.raises(
        InputError, match=r'plot.jpeg: not a format of pictures; let the name end in one of .png, .svg, .pdf'
    ):
        plots.check('plot.jpeg')
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='plot.png: cannot be written'):
        plots.save(plots.gain_per_task(ROWS, 'published'), tmp_path / 'file' / 'plot.png')


def test_without_matplotlib_one_line_says_how_to_get_it():
    code = "import sys; sys.modules['matplotlib'] = None; from cappy.study import plots; plots.check('plot.png')"
    process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    last = process.stderr.strip().splitlines()[-1]
    assert last.endswith("pictures need matplotlib, which is not installed: pip install -e '.[plots]'")
