"""Figures, as matplotlib objects that know no window and no global state; only `save` writes.

All are 700 pixels wide, the width of a column of the report. Colours are those of Okabe and Ito,
which colour-blind readers can tell apart; line style and marker differ as well.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from robustguide.files import whole
from robustguide.metrics import Reliability

Values = Sequence[float] | Float[Tensor, " n"]

DPI = 120
WIDTH = 700 / DPI  # inches
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":", "-", "--")
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#666666"
TEXT, SMALL = 9, 8  # points


def curves(
    sigmas: Values,
    series: Mapping[str, Values],
    ylabel: str,
    chance: float | None = None,
    intervals: Mapping[str, tuple[Values, Values]] | None = None,
) -> Figure:
    """Quantities against the noise level, on a logarithmic axis on which sigma = 0 stands apart.

    Args:
        sigmas: Noise levels, in any order.
        series: Values at these levels by name; a NaN leaves a gap.
        ylabel: What the values are.
        chance: Level of guessing, drawn as a line.
        intervals: Lower and upper limits by name, drawn as a band of the series' colour.

    Raises:
        ValueError: If a series has not one value for each level.
    """
    levels = numbers_of(sigmas)
    order = np.argsort(levels)
    figure = Figure(figsize=(WIDTH, 3.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    at = noise_axis(axes, levels[order])
    for index, (name, values) in enumerate(series.items()):
        numbers = numbers_of(values)
        if len(numbers) != len(levels):
            raise ValueError(
                f"Series {name!r} has {len(numbers)} values for {len(levels)} noise levels; "
                f"give one for each level, NaN where nothing was measured."
            )
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(
            at,
            numbers[order],
            color=colour,
            linestyle=STYLES[index % len(STYLES)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4.5,
            label=words(name),
        )
        if intervals and name in intervals:
            low, high = (numbers_of(limit)[order] for limit in intervals[name])
            axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    if chance is not None:
        axes.axhline(chance, color=GREY, linewidth=1, linestyle=(0, (1, 2)), label="chance")
    axes.set_ylabel(ylabel, fontsize=TEXT)
    axes.legend(fontsize=SMALL, frameon=False, loc="best")
    return figure


def reliability_diagrams(reliability: Reliability, sigmas: Sequence[float | str]) -> Figure:
    """Accuracy against confidence in each noise band, and below it how many rows each bin holds.

    Args:
        reliability: The table of a calibration metric.
        sigmas: Noise level of each band, or a name for it.

    Raises:
        ValueError: If there is not one level for each band.
    """
    counts, accuracy = reliability.bin_count.cpu().numpy(), reliability.bin_accuracy.cpu().numpy()
    if len(sigmas) != len(counts):
        raise ValueError(
            f"Got {len(sigmas)} noise levels for {len(counts)} noise bands; name each band."
        )
    columns = min(len(counts), 4)
    rows = math.ceil(len(counts) / columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 2.0 * rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(
        2 * rows, columns, sharex=True, squeeze=False, height_ratios=[3, 1] * rows
    )
    ece = reliability.ece.tolist()
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        upper, lower = grid[2 * row, column], grid[2 * row + 1, column]
        if index >= len(counts):
            upper.remove()
            lower.remove()
            continue
        n = int(counts[index].sum())
        title = f"ECE {ece[index]:.3f}, n = {n}" if n else "no rows"
        upper.set_title(f"{level_name(sigmas[index])}\n{title}", fontsize=SMALL)
        _reliability(upper, lower, accuracy[index], counts[index])
        lower.tick_params(labelbottom=index + columns >= len(counts))
        if column:
            upper.set_yticklabels([])
    figure.supxlabel("confidence (lower panels: rows in each bin)", fontsize=TEXT)
    figure.supylabel("accuracy", fontsize=TEXT)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a PNG, under its final name only once it is whole; makes the folder if need be."""
    with whole(path) as part:
        # without the library's version in it, the same figure is the same file
        figure.savefig(part, format="png", dpi=DPI, metadata={"Software": None})
    return Path(path)


def numbers_of(values: Values) -> NDArray[np.float64]:
    """Values on the host."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    return torch.as_tensor(values, dtype=torch.float64).numpy()


def level_name(sigma: float | str) -> str:
    """A noise level for people; a name as it is."""
    return sigma if isinstance(sigma, str) else rf"$\sigma$ = {sigma:.3g}"


def noise_axis(axes: Axes, levels: NDArray[np.float64], room: float = 0.07) -> NDArray[np.float64]:
    """Positions of ascending noise levels on a logarithmic axis, sigma = 0 a step to the left.

    Args:
        axes: Gets ticks and a label.
        levels: Ascending.
        room: Share of the axis that a tick needs.
    """
    positive = levels[levels > 0]
    if not len(positive):
        positive = np.ones(1)
    spread = positive[-1] / positive[0]
    gap = max(spread ** (1 / max(len(positive) - 1, 1)), spread**0.08, 1.5)
    at = np.where(levels > 0, levels, positive[0] / gap)
    axes.set_xscale("log")
    shown: list[int] = []
    for index, place in enumerate(at):  # as many ticks as there is room for
        if not shown or np.log(place / at[shown[-1]]) >= room * np.log(at[-1] / at[0]):
            shown.append(index)
    axes.set_xticks(at[shown], [f"{levels[index]:.3g}" for index in shown], fontsize=SMALL)
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="y", labelsize=SMALL)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_xlabel(r"noise level $\sigma$", fontsize=TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    if (levels == 0).any() and (levels > 0).any():
        axes.axvline(positive[0] / gap**0.5, color="#cccccc", linewidth=0.8)  # the axis is broken
    return at


def _reliability(
    upper: Axes, lower: Axes, accuracy: NDArray[np.float64], counts: NDArray[np.float64]
) -> None:
    bins = len(counts)
    centres = (np.arange(bins) + 0.5) / bins
    upper.bar(centres, np.nan_to_num(accuracy), width=0.92 / bins, color=COLOURS[5])
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    upper.set(xlim=(0, 1), ylim=(0, 1), yticks=[0, 0.5, 1])
    lower.bar(centres, counts, width=0.92 / bins, color=GREY)
    lower.set(ylim=(0, max(counts.max(), 1)), xticks=[0, 0.5, 1], yticks=[])
    for axes in (upper, lower):
        axes.tick_params(labelsize=SMALL, length=2)
        axes.spines[["top", "right"]].set_visible(False)


def words(name: str) -> str:
    """A name for people."""
    return name.replace("_", " ")


def plain_text(text: str) -> str:
    """A text for figures, in which nothing is mathematics and nothing hides it from a legend."""
    shown = "".join(each if each.isprintable() else "?" for each in text).replace("_", " ").strip()
    return shown.replace("$", r"\$") or "unnamed"


def margin_names(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Names beside points, in the margin on the right, moved apart where they would meet.

    Args:
        axes: Whose limits are final.
        points: Name and place of each.
    """
    low, high = axes.get_ylim()
    gap = 0.042 * (high - low)
    ordered = sorted(points, key=lambda point: point[2])
    places: list[float] = []
    for _, _, y in ordered:
        places.append(max(y, places[-1] + gap) if places else y)
    ceiling = high
    for index in reversed(range(len(places))):  # what was pushed out of the axes comes back
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - gap
    for (name, x, y), place in zip(ordered, places, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(1.02, place),
            textcoords=axes.get_yaxis_transform(),
            fontsize=SMALL - 1,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.5},
        )
