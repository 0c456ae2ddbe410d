"""Sheets of images: tiles in rows and columns with titles and names, drawn as `figures` are."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from robustguide.noise import expand, vp_scale
from robustguide.report.figures import (
    DPI,
    SMALL,
    TEXT,
    WIDTH,
    Values,
    level_name,
    numbers_of,
    words,
)

LINE, GAP, LARGEST = 0.22, 0.05, 1.15  # inches: a line of text, between tiles, a tile at most
LETTER, LETTERS = 0.06, 0.14  # inches: a small letter, a further line of small letters


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


@dataclass(frozen=True)
class Column:
    """Tiles below each other, one a noise level.

    Attributes:
        title: Above the first.
        images: In [-1, 1], or gradients; of latents, see `gradient_panel`.
        is_signed: Whether they are drawn around grey, each on a scale of its own.
    """

    title: str
    images: Float[Tensor, "n c h w"]
    is_signed: bool = False


def level_sheet(columns: Sequence[Column], sigmas: Values, heading: str = "") -> Figure:
    """One row a noise level.

    Args:
        columns: From left to right; each has an image for every level.
        sigmas: Noise level of each row.
        heading: A line above all.
    """
    levels, margin = numbers_of(sigmas), _room(["sigma = 0.00"])
    folded = _folded([column.title for column in columns], (WIDTH - margin) / len(columns))
    above = LINE if heading else 0.0
    sheet = _Sheet(len(levels), len(columns), header=_header(folded) + above, margin=margin)
    if heading:
        sheet.heading(heading)
    for place, title in enumerate(folded):
        sheet.title(title, 0, place)
    for row, sigma in enumerate(levels):
        sheet.name(level_name(sigma), row)
    for place, column in enumerate(columns):
        tiles = _tiled(column.images.detach().cpu())
        for row in range(len(levels)):
            if column.is_signed:
                sheet.tile(_signed(tiles[row]), row, place, colours="RdBu_r")
            else:
                sheet.tile(_pixels(tiles[row : row + 1])[0], row, place)
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
    noisy = Column("noisy image", at_unit_variance(x, sigmas))
    drawn = [Column(title, found, is_signed=True) for title, found in gradients.items()]
    return level_sheet([noisy, *drawn], sigmas, heading)


def at_unit_variance(x: Float[Tensor, "n c h w"], sigmas: Values) -> Float[Tensor, "n c h w"]:
    """Noisy images x / sqrt(1 + sigma^2), a level each, float64 on the host."""
    scale: Tensor = vp_scale(torch.as_tensor(numbers_of(sigmas)))
    return x.detach().cpu().double() / expand(scale, x)


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
        sheet.title(level_name(sigma), 0, column)
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
    """Lines of about so many letters, broken at a slash, too.

    A word stays whole where it is too long by two letters, otherwise its hyphens break it.
    """
    if len(title) <= letters:
        return title
    parts = title.replace("/", "/ ").split()
    parts = [part if len(part) <= letters + 2 else part.replace("-", "- ") for part in parts]
    wrapper = textwrap.TextWrapper(letters, break_on_hyphens=False, break_long_words=False)
    return "\n".join(wrapper.wrap(" ".join(parts)))


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
