"""Small multiples: a panel a quantity, all against the noise level, with one legend."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustguide.report.figures import (
    COLOURS,
    DPI,
    GREY,
    MARKERS,
    SMALL,
    WIDTH,
    Values,
    noise_axis,
    numbers_of,
)

# no dotted line: those are limits
STYLES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1, 4, 1)))
LINE, TITLE, PANEL = 0.2, 0.36, 1.65  # inches: a line of the legend, two of a title, a panel


@dataclass(frozen=True)
class Panel:
    """One quantity of several things, each at noise levels of its own.

    Attributes:
        title: What the quantity is; may have two lines.
        lines: Noise levels and values by name; a NaN leaves a gap.
        level: Drawn as a line, such as that of guessing.
        dotted: Values by name at the same levels, drawn thinly in the colour of the name.
        bands: Lower and upper values by name at the same levels, filled lightly.
        limits: Ends of the axis; null is left to the values.
        is_logarithmic: Whether the axis is.
    """

    title: str
    lines: Mapping[str, tuple[Values, Values]]
    level: float | None = None
    dotted: Mapping[str, Values] = field(default_factory=dict)
    bands: Mapping[str, tuple[Values, Values]] = field(default_factory=dict)
    limits: tuple[float | None, float | None] = (None, None)
    is_logarithmic: bool = False


def small_multiples(panels: Sequence[Panel], note: str = "", columns: int = 3) -> Figure:
    """A panel a quantity, a colour a name, all against the noise level; one legend above them.

    Args:
        panels: In reading order.
        note: What the grey and the dotted lines are, in the legend.
        columns: Panels in a row.
    """
    rows = math.ceil(len(panels) / columns)
    names = dict.fromkeys(name for panel in panels for name in panel.lines)
    levels = np.unique([s for p in panels for at, _ in p.lines.values() for s in numbers_of(at)])
    head = LINE * (1 + bool(note) + (len(names) - 1) // columns)
    figure = Figure(figsize=(WIDTH, head + PANEL * rows), dpi=DPI)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    _lay_out(figure, head, rows)
    styles = dict(zip(names, map(_style, range(len(names))), strict=True))
    for number, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
        at = noise_axis(axes, levels, room=0.26)
        _panel(axes, panel, dict(zip(levels, at, strict=True)), styles)
        if number + columns < len(panels):
            axes.set_xlabel("")
    for axes in grid[len(panels) :]:
        axes.remove()
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    figure.legend(
        handles=handles,
        title=note or None,
        title_fontsize=SMALL,
        loc="upper center",
        borderaxespad=0.1,
        ncols=columns,
        fontsize=SMALL,
        frameon=False,
    )
    return figure


def _lay_out(figure: Figure, head: float, rows: int) -> None:
    """Places by hand, in inches: a layout that is computed takes ten times as long to draw."""
    height = head + PANEL * rows
    between, below = 0.62, 0.5
    axes = (PANEL * rows - below - TITLE - between * (rows - 1)) / rows
    figure.subplots_adjust(
        left=0.45 / WIDTH,
        right=1 - 0.1 / WIDTH,
        wspace=0.32,
        bottom=below / height,
        top=1 - (head + TITLE) / height,
        hspace=between / axes,
    )


def _style(number: int) -> dict[str, Any]:
    """Of the line of a number; those that share a colour differ in line and marker."""
    turn = number + number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": STYLES[turn % len(STYLES)],
        "marker": MARKERS[turn % len(MARKERS)],
        "markersize": 3,
        "linewidth": 1.2,
    }


def _panel(
    axes: Axes, panel: Panel, at: Mapping[float, float], styles: Mapping[str, dict[str, Any]]
) -> None:
    """Draws one of small multiples, at the places that noise levels have."""
    for name, (sigmas, values) in panel.lines.items():
        levels = numbers_of(sigmas)
        order = np.argsort(levels)
        places = [at[level] for level in levels[order]]
        axes.plot(places, numbers_of(values)[order], **styles[name])
        if name in panel.dotted:
            style = {"color": styles[name]["color"], "linestyle": ":", "linewidth": 1}
            axes.plot(places, numbers_of(panel.dotted[name])[order], **style)
        if name in panel.bands:
            low, high = (numbers_of(limit)[order] for limit in panel.bands[name])
            axes.fill_between(
                places, low, high, color=styles[name]["color"], alpha=0.15, linewidth=0
            )
    if panel.level is not None:
        axes.axhline(panel.level, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    if panel.is_logarithmic:
        axes.set_yscale("log")
    axes.set_ylim(*panel.limits)
    axes.set_title(panel.title, fontsize=SMALL)
