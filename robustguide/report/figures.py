"""Figures, as matplotlib objects that know no window and no global state; only `save` writes.

All are 700 pixels wide, the width of a column of the report. Colours are those of Okabe and Ito,
which colour-blind readers can tell apart; line style and marker differ as well.
"""

import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
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
LINE, GAP, LARGEST = 0.22, 0.05, 1.15  # inches: a line of text, between tiles, a tile at most
LETTER, LETTERS = 0.06, 0.14  # inches: a small letter, a further line of small letters


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
        upper.set_title(f"{_name(sigmas[index])}\n{title}", fontsize=SMALL)
        _reliability(upper, lower, accuracy[index], counts[index])
        lower.tick_params(labelbottom=index + columns >= len(counts))
        if column:
            upper.set_yticklabels([])
    figure.supxlabel("confidence (lower panels: rows in each bin)", fontsize=TEXT)
    figure.supylabel("accuracy", fontsize=TEXT)
    return figure


def image_grid(
    images: Float[Tensor, "n c h w"], columns: int = 10, titles: Sequence[str] | None = None
) -> Figure:
    """Images in [-1, 1] in rows of `columns`, with a title above each if there are titles."""
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    sheet = _Sheet(rows, columns, header=LINE if titles else 0.0, header_on_each_row=True)
    for index, image in enumerate(_pixels(images)):
        row, column = divmod(index, columns)
        sheet.tile(image, row, column)
        if titles:
            sheet.title(titles[index], row, column)
    return sheet.figure


def grid_comparison(
    methods: Mapping[str, Float[Tensor, "n c h w"]], titles: Sequence[str] | None = None
) -> Figure:
    """One row a method, one column a seed; titles name the columns.

    Raises:
        ValueError: If the methods have different numbers of images.
    """
    lengths = {name: len(images) for name, images in methods.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            f"A column is one seed, so every method needs as many images, got {lengths}; "
            f"sample the same seeds with each."
        )
    columns, margin = next(iter(lengths.values())), _room(methods)
    folded = _folded(titles or (), (WIDTH - margin) / max(columns, 1))
    sheet = _Sheet(len(methods), columns, header=_header(folded), margin=margin)
    for column, title in enumerate(folded):
        sheet.title(title, 0, column)
    for row, (name, images) in enumerate(methods.items()):
        sheet.name(name, row)
        for column, image in enumerate(_pixels(images)):
            sheet.tile(image, row, column)
    return sheet.figure


def gradient_panel(
    x: Float[Tensor, "n c h w"],
    gradients: Mapping[str, Float[Tensor, "n c h w"]],
    sigmas: Values,
    heading: str = "",
) -> Figure:
    """Noisy images and the gradients of classifiers there, one row a noise level.

    The image is drawn at unit variance, x / sqrt(1 + sigma^2). Each gradient has its own scale, so
    only its pattern is seen: one channel in diverging colours, blue negative and red positive;
    three channels as colours around grey; other numbers, of latents, as tiles of one channel.

    Args:
        x: Noisy images.
        gradients: By the titles of their columns.
        sigmas: Noise level of each row.
        heading: A line above all.
    """
    levels, margin = numbers_of(sigmas), _room(["sigma = 0.00"])
    scale = torch.as_tensor((1 + levels**2) ** -0.5)
    noisy = _pixels(_tiled(x.detach().cpu().double() * scale[:, None, None, None]))
    folded = _folded(["noisy image", *gradients], (WIDTH - margin) / (1 + len(gradients)))
    above = LINE if heading else 0.0
    sheet = _Sheet(len(levels), len(folded), header=_header(folded) + above, margin=margin)
    if heading:
        sheet.heading(heading)
    for column, title in enumerate(folded):
        sheet.title(title, 0, column)
    for row, sigma in enumerate(levels):
        sheet.name(_name(sigma), row)
        sheet.tile(noisy[row], row, 0)
        for column, gradient in enumerate(gradients.values(), start=1):
            tile = _tiled(gradient[row : row + 1].detach().cpu())[0]
            sheet.tile(_signed(tile), row, column, colours="RdBu_r")
    return sheet.figure


def trajectory(
    x: Float[Tensor, "s c h w"],
    denoised: Float[Tensor, "s colours height width"],
    displacement: Float[Tensor, "s c h w"],
    sigmas: Values,
) -> Figure:
    """One image on its way: a column a step; state, predicted clean image and guidance below.

    Each displacement has its own scale, see `gradient_panel`; one that is 0 is grey. Of latents,
    the first three channels of state and displacement are drawn.

    Args:
        x: State at unit variance.
        denoised: Predicted clean image in [-1, 1].
        displacement: Of the clean image, by guidance.
        sigmas: Noise level of each step.
    """
    levels = numbers_of(sigmas)
    names = ("state", "predicted", "guidance")
    sheet = _Sheet(len(names), len(levels), header=LINE, margin=_room(names))
    for row, name in enumerate(names):
        sheet.name(name, row)
    states, clean = _pixels(coloured(x)), _pixels(coloured(denoised))
    for column, sigma in enumerate(levels):
        sheet.title(_name(sigma), 0, column)
        sheet.tile(states[column], 0, column)
        sheet.tile(clean[column], 1, column)
        sheet.tile(_signed(coloured(displacement)[column]), 2, column, colours="RdBu_r")
    return sheet.figure


def reduced(images: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c height width"]:
    """Images of at most `side` pixels, antialiased; smaller ones as they are."""
    largest = max(images.shape[-2:])
    if largest <= side:
        return images
    size = [max(1, round(length * side / largest)) for length in images.shape[-2:]]
    shrunk: Tensor = torch.nn.functional.interpolate(
        images.float(), size, mode="bilinear", antialias=True
    )
    return shrunk


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


def _name(sigma: float | str) -> str:
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


class _Sheet:
    """Rows and columns of square tiles with titles above and names on the left, in inches.

    Args:
        rows, columns: Number of tiles.
        header: Height of a line of titles.
        margin: Width of the column of names.
        header_on_each_row: Whether every row has a line of titles, not the first alone.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        header: float = 0.0,
        margin: float = 0.0,
        header_on_each_row: bool = False,
    ) -> None:
        self.pitch = min((WIDTH - margin) / columns, LARGEST)
        self.header, self.row_header = header, header if header_on_each_row else 0.0
        self.left = margin + (WIDTH - margin - self.pitch * columns) / 2
        height = header - self.row_header + rows * (self.pitch + self.row_header)
        self.figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        self.axes.axis("off")

    def tile(
        self, image: NDArray[np.float64], row: int, column: int, colours: str = "gray"
    ) -> None:
        """Draws an image (h, w, c) with values in [0, 1]."""
        left, top, side = self._left(column), self._top(row), self.pitch - GAP
        self.axes.imshow(
            image.squeeze(-1) if image.shape[-1] == 1 else image,
            extent=(left, left + side, top + side, top),
            cmap=colours,
            norm=Normalize(0, 1),
            interpolation="nearest",
            aspect="auto",
        )

    def title(self, text: str, row: int, column: int) -> None:
        """Writes above a tile."""
        x, y = self._left(column) + (self.pitch - GAP) / 2, self._top(row) - 0.04
        self.axes.text(x, y, words(text), fontsize=SMALL, ha="center", va="bottom")

    def heading(self, text: str) -> None:
        """Writes above everything."""
        self.axes.text(WIDTH / 2, 0.04, words(text), fontsize=TEXT, ha="center", va="top")

    def name(self, text: str, row: int) -> None:
        """Writes on the left of a row."""
        x, y = self._left(0) - 0.1, self._top(row) + (self.pitch - GAP) / 2
        size = TEXT if text.count("\n") < 2 else SMALL - 1  # as high as a row may be
        self.axes.text(x, y, words(text), fontsize=size, ha="right", va="center")

    def _left(self, column: int) -> float:
        return self.left + column * self.pitch + GAP / 2

    def _top(self, row: int) -> float:
        return self.header + row * (self.pitch + self.row_header) + GAP / 2


def _room(names: Iterable[str]) -> float:
    """Inches that the longest name needs on the left of a row."""
    return 0.2 + 0.078 * max(len(line) for name in names for line in name.split("\n"))


def _folded(titles: Sequence[str], pitch: float) -> list[str]:
    """Titles broken into lines that are no wider than a tile."""
    letters = max(4, int(min(pitch, LARGEST) / LETTER))
    return [folded(words(title), letters) for title in titles]


def folded(title: str, letters: int) -> str:
    """Lines of at most so many letters, broken at a slash, too."""
    if len(title) <= letters:
        return title
    return "\n".join(textwrap.wrap(title.replace("/", "/ "), letters, break_on_hyphens=False))


def _header(titles: Sequence[str]) -> float:
    """Inches that the tallest of some titles needs."""
    lines = max((title.count("\n") + 1 for title in titles), default=0)
    return LINE + (lines - 1) * LETTERS if lines else 0.0


def _tiled(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d g v"]:
    """Images of one or three channels as they are; the channels of others side by side."""
    count, channels, height, width = images.shape
    if channels in (1, 3):
        return images
    columns = math.ceil(channels**0.5)
    rows = math.ceil(channels / columns)
    filled = images.new_zeros(count, rows * columns, height, width)
    filled[:, :channels] = images
    grid = filled.reshape(count, rows, columns, height, width).permute(0, 1, 3, 2, 4)
    return grid.reshape(count, 1, rows * height, columns * width)


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


def _pixels(images: Float[Tensor, "n c h w"]) -> NDArray[np.float64]:
    """Images in [-1, 1] as (n, h, w, c) in [0, 1]."""
    scaled = (images.detach().cpu().double() + 1) / 2
    return scaled.clamp(0, 1).permute(0, 2, 3, 1).numpy()


def coloured(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n colours h w"]:
    """Images that can be drawn: of two channels the first, of four the first three."""
    channels = images.shape[1]
    return images if channels in (1, 3) else images[:, : 3 if channels > 3 else 1]


def _signed(gradient: Float[Tensor, "c h w"]) -> NDArray[np.float64]:
    """A gradient as (h, w, c) in [0, 1], zero at 0.5; the largest percent of values saturates."""
    values = gradient.detach().cpu().double()
    largest = values.abs().flatten().quantile(0.99).clamp(min=torch.finfo(torch.float64).tiny)
    return (values / largest / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
