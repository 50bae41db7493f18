"""Draw the figure of the README: an LLM's samples, their scores and the pick, and where the scorer's labels come from.

    python docs/figures/draw_concept.py

Writes concept.svg beside this file, the same bytes each time for one version of matplotlib. Its texts and scores are
those of the example in the README. Every text is on a filled box or in a grey that can be read on white and on black.
"""

from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

OUTPUT = Path(__file__).with_name('concept.svg')
SAMPLES = [('sample 1', '0.86'), ('sample 2', '0.94'), ('sample 3', '0.69')]
PICK = 1  # place in SAMPLES

TEXT, GREY, LINE = '#1b2733', '#7d8590', '#8a929b'
PLAIN, MODEL, GOOD, LABEL = '#e9edf2', '#cfe0f7', '#c9ebd0', '#fbe6bf'  # filled boxes
SETTINGS = {
    'svg.fonttype': 'none',  # letters stay text: small, sharp, selectable
    'svg.hashsalt': 'concept',  # ids that do not change from run to run
    'font.family': ['DejaVu Sans', 'sans-serif'],
    'font.size': 10,
}


def main():
    with matplotlib.rc_context(SETTINGS):
        figure = pyplot.figure(figsize=(9.2, 3.9))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 92), ylim=(2, 41))
        axes.axis('off')
        draw_picking(axes)
        draw_training(axes)
        figure.savefig(OUTPUT, transparent=True, metadata={'Date': None})


def draw_picking(axes):
    heading(axes, 39, 'For each new input')
    box(axes, 1, 24, 13, 8, 'instruction', PLAIN)
    box(axes, 21, 24, 13, 8, 'LLM\nunchanged', MODEL)
    box(axes, 62, 22.5, 12, 11, 'scorer\n22M to 360M\nparameters', MODEL)
    arrow(axes, (14, 28), (21, 28))
    for place, (text, score) in enumerate(SAMPLES):
        y = 32.4 - 5 * place
        is_pick = place == PICK
        box(axes, 41, y - 2, 14, 4, text, GOOD if is_pick else PLAIN)
        arrow(axes, (34, 28), (41, y))
        arrow(axes, (55, y), (62, 28 + (y - 27.4) / 2))
        arrow(axes, (74, 28 + (y - 27.4) / 2), (79, y))
        box(axes, 79, y - 2, 12, 4, f'{score}  pick' if is_pick else score, GOOD if is_pick else PLAIN)


def draw_training(axes):
    heading(axes, 16.5, 'Once per task')
    box(axes, 1, 4, 13, 9, 'training\ninputs and\nreferences', PLAIN)
    box(axes, 21, 4, 13, 9, "the LLM's\nsamples", PLAIN)
    box(axes, 41, 4, 14, 9, 'labels: their\nROUGE-L to the\nreferences', LABEL)
    box(axes, 62, 4, 12, 9, 'adapt the\nscorer', MODEL)
    for start, end in ((14, 21), (34, 41), (55, 62)):
        arrow(axes, (start, 8.5), (end, 8.5))
    arrow(axes, (68, 13), (68, 22.5))


def heading(axes, y, text):
    axes.text(1, y, text, color=GREY, ha='left', va='center', fontweight='bold')


def box(axes, x, y, width, height, text, colour):
    style = 'round,pad=0,rounding_size=1.1'
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor=LINE, linewidth=0.8)
    )
    axes.text(x + width / 2, y + height / 2, text, color=TEXT, ha='center', va='center', linespacing=1.35)


def arrow(axes, start, end):
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle='-|>', mutation_scale=10, color=LINE, linewidth=1.1, shrinkA=0, shrinkB=0
        )
    )


if __name__ == '__main__':
    main()
