"""Squared distances of all pairs of two sets of rows, tile by tile, decided as float64 decides.

With any origin m,

    |x - y|^2 = |x - m|^2 + |y - m|^2 - 2 (x - m).(y - m)

is one product of matrices in float32, but loses digits; the sum of (x - y)^2 in float64 loses none
and costs a hundred times as much. So a tile holds the first with a bound of its error, and only
the pairs that the bound leaves open are summed directly. A product of d numbers in precision u
errs by at most d u/(1 - d u) times the product of the norms, in any order of summation (Higham,
2002, eq. 3.5); a mean near m keeps norms, and so the bound, small.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustguide.metrics.means import finite_blocks
from robustguide.metrics.tables import Table
from robustguide.noise import finest

ROWS = 2048  # of a block: with 2048 features 17 MB in float32, as is a tile
PAIRS = 2**19  # numbers of directly summed pairs at a time: 4 MB in float64
FEW = 16  # open pairs of a row that cost less one by one than a product in float64


class Summary(NamedTuple):
    """Of a table: where it lies and how large its numbers are."""

    rows: int
    mean: Float[Tensor, " d"]
    largest: float


def summary(table: Table, what: str) -> Summary:
    """One pass over a table.

    Args:
        table: Features.
        what: Whose they are, for the error.

    Raises:
        ValueError: For features that are not finite.
    """
    total, largest = torch.zeros(table.dim, dtype=torch.float64), 0.0
    for _, block in finite_blocks(table, what, ROWS):
        largest = max(largest, float(block.abs().max()))
        total += block.cpu().double().sum(0)
    return Summary(table.rows, total / table.rows, largest)


class Rows(NamedTuple):
    """A block in a frame: as it was read, moved to the frame's origin, and squared norms there."""

    read: Float[Tensor, "n d"]
    moved: Float[Tensor, "n d"]
    squares: Float[Tensor, " n"]
    largest: float  # of the squares


class Frame:
    """Origin and unit for the distances between some tables.

    Args:
        summaries: Of the tables.
        device: Where tiles are computed; on a device without float64 it is the CPU.
    """

    def __init__(self, *summaries: Summary, device: torch.device) -> None:
        count = sum(each.rows for each in summaries)
        mean = sum((each.rows * each.mean for each in summaries), torch.zeros(())) / count
        largest = max(each.largest for each in summaries)
        # a power of two rounds nothing; it is 1 but for features whose squares would overflow
        fits = 1e-9 < largest < 1e9 or largest == 0
        self.scale = 1.0 if fits else 2.0 ** -math.frexp(largest)[1]
        self.device = device if finest(device) == torch.float64 else torch.device("cpu")
        self.origin = mean.to(self.device) * self.scale

    @property
    def unit(self) -> float:
        """Squared distances of tiles are this times those of features."""
        return self.scale**2

    def place(self, block: Float[Tensor, "n d"], dtype: torch.dtype = torch.float32) -> Rows:
        """Reads a block of any of the tables."""
        block = block.to(self.device)
        scaled = block.to(dtype) if self.scale == 1 else block.to(dtype) * self.scale
        moved = scaled - self.origin.to(dtype)
        squares = torch.linalg.vector_norm(moved, dim=1).square_()
        return Rows(block, moved, squares, float(squares.max()))

    def blocks(self, table: Table, start: int = 0) -> Iterator[tuple[slice, Rows]]:
        """Rows of a table by blocks, from row `start`, with their places."""
        for first in range(start, table.rows, ROWS):
            last = min(first + ROWS, table.rows)
            yield slice(first, last), self.place(table.block(first, last))

    def tile(self, x: Rows, y: Rows) -> "Tile":
        """All pairs of two blocks."""
        values = torch.addmm(y.squares, x.moved, y.moved.T, alpha=-2).add_(x.squares[:, None])
        return Tile(self, x, y, values, _slack(x, y))

    def finer(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> "Tile":
        """The same in float64, of rows as they were read."""
        return self.tile(self.place(x, torch.float64), self.place(y, torch.float64))


def _slack(x: Rows, y: Rows) -> float:
    """Bound of the error of each value of a tile, and of a threshold rounded to its precision.

    In units of u and of a + b, the largest squared norms: 2 (d + 1) from the product with what it
    is added to, d + 8 from the norms, 4 from the origin, 2 from the sum, 5 from thresholds, and a
    twentieth for terms of second order, where d u is below 1/60.
    """
    info = torch.finfo(x.moved.dtype)
    dim = x.moved.shape[1]
    rounding = 3.15 * (dim + 7) * info.eps / 2 * (x.largest + y.largest)
    return rounding + 32 * dim * info.tiny  # of what underflows


class Tile:
    """Squared distances of pairs of rows, within `slack` of the true ones, in the frame's unit.

    Args:
        frame: Of the rows.
        x: Rows of the tile.
        y: Columns of the tile.
        values: The distances; infinite for pairs that do not count.
        slack: Bound of their error.
    """

    def __init__(
        self, frame: Frame, x: Rows, y: Rows, values: Float[Tensor, "n m"], slack: float
    ) -> None:
        self.frame, self.x, self.y, self.values, self.slack = frame, x, y, values, slack

    def turned(self) -> "Tile":
        """Rows and columns exchanged."""
        return Tile(self.frame, self.y, self.x, self.values.T.contiguous(), self.slack)

    def exact(self, row: Int[Tensor, " p"], column: Int[Tensor, " p"]) -> Float[Tensor, " p"]:
        """Distances of some pairs, in float64."""
        return direct(self.x.read, row, self.y.read, column) * self.frame.unit

    def nearest(self, best: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """The k smallest exact distances of each row, of this tile and those known before."""
        k = best.shape[1]
        near, place = self.values.topk(min(k + 1, self.values.shape[1]), dim=1, largest=False)
        row, rank = (near[:, :k] - self.slack < best[:, -1:]).nonzero(as_tuple=True)
        best = _merged(best, row, self.exact(row, place[row, rank]))
        if near.shape[1] <= k:
            return best
        unsure = (near[:, k] - self.slack < best[:, -1]).nonzero()[:, 0]
        if not len(unsure):
            return best
        limit = best[unsure, -1:]
        closer = self.values[unsure] - self.slack < limit
        closer.scatter_(1, place[unsure, :k], False)
        if int(closer.sum()) > FEW * len(unsure):
            finer = self.frame.finer(self.x.read[unsure], self.y.read)
            closer &= finer.values - finer.slack < limit
        row, column = closer.nonzero(as_tuple=True)
        return _merged(best, unsure[row], self.exact(unsure[row], column))

    def within(
        self, limit: Float[Tensor, "#n #m"], *, inclusive: bool
    ) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
        """Pairs whose exact distance is below a limit, or equal to it where that is included.

        Returns:
            Row and column of each.
        """
        row, column = (self.values <= (limit + self.slack).to(self.values)).nonzero(as_tuple=True)
        limit = limit.expand(self.values.shape)[row, column]
        value, slack = self.values[row, column], self.slack
        if int((value >= limit - slack).sum()) > FEW * len(self.values):
            finer = self.frame.finer(self.x.read, self.y.read)
            value, slack = finer.values[row, column], finer.slack
        inside = value < limit - slack
        unsure = ((value <= limit + slack) & ~inside).nonzero()[:, 0]
        exact, edge = self.exact(row[unsure], column[unsure]), limit[unsure]
        inside[unsure] = exact <= edge if inclusive else exact < edge
        return row[inside], column[inside]


def _merged(best: Tensor, row: Tensor, found: Tensor) -> Tensor:
    """The k smallest of the best and of what was found for some rows, any number for each."""
    k = best.shape[1]
    order = found.argsort()
    order = order[row[order].argsort(stable=True)]
    row, found = row[order], found[order]
    rank = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    kept = rank < k
    more = torch.full_like(best, math.inf)
    more[row[kept], rank[kept]] = found[kept]
    return torch.cat([best, more], dim=1).topk(k, dim=1, largest=False).values


def direct(
    x: Float[Tensor, "n d"],
    row: Int[Tensor, " p"],
    y: Float[Tensor, "m d"],
    column: Int[Tensor, " p"],
) -> Float[Tensor, " p"]:
    """`squared_distance` of some pairs, a few at a time."""
    size = max(1, PAIRS // x.shape[1])
    parts = [slice(first, first + size) for first in range(0, max(len(row), 1), size)]
    return torch.cat([squared_distance(x[row[part]], y[column[part]]) for part in parts])


def squared_distance(x: Float[Tensor, "p d"], y: Float[Tensor, "p d"]) -> Float[Tensor, " p"]:
    """Distance of each row of x from that of y, squared and summed in float64.

    Halves are added onto each other, so a pair has the same bits in any company and order, and on
    any device: equal distances are equal numbers.
    """
    terms = (x.double() - y.double()).square_()
    while (width := terms.shape[1]) > 1:
        half = (width + 1) // 2
        terms[:, : width - half] += terms[:, half:]
        terms = terms[:, :half]
    return terms[:, 0]


@contextmanager
def full_products(device: torch.device) -> Iterator[None]:
    """Products of float32 are not rounded to fewer digits inside, whatever the caller has set."""
    backends: list[Any] = [torch.backends.cuda, torch.backends.mkldnn]
    matmuls = [each.matmul for each in backends if hasattr(each, "matmul")]
    newer = [each for each in matmuls if hasattr(each, "fp32_precision")]  # since torch 2.9
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        for each in newer:
            stack.callback(setattr, each, "fp32_precision", each.fp32_precision)
        try:
            before = torch.get_float32_matmul_precision()
        except RuntimeError:  # only the newer setting was used, and torch refuses to mix the two
            for each in newer:
                each.fp32_precision = "ieee"
        else:
            stack.callback(torch.set_float32_matmul_precision, before)
            torch.set_float32_matmul_precision("highest")
        yield
