"""Distance of each row from its k-th nearest other row.

A tile gives each distance t as v with |t - v| <= s. If v* is the k-th smallest v, the k-th
smallest t is within s of it: rows with v < v* - 2 s are nearer, those with v > v* + 2 s farther,
and only those between are summed directly, most often a single one. Each tile serves its rows and
its columns, so half of the pairs are computed.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustguide.metrics.tables import Chosen, Table
from robustguide.metrics.tiles import Frame, Rows, Summary, Tile, direct, full_products, summary

SPARE = 4  # nearest rows kept beyond the k-th, in case rounding exchanged some


def radii(
    table: Table, k: int, *, what: str = "table", device: torch.device | str | None = None
) -> Float[Tensor, " n"]:
    """Squared distance of each row from its k-th nearest other row, in float64 on the CPU.

    Other rows that are equal are at distance 0.

    Args:
        table: Features.
        k: Which neighbour.
        what: Whose features they are, for errors.
        device: Where to compute; null: where the features are.

    Raises:
        ValueError: For fewer than k + 1 rows, or features that are not finite.
    """
    described = summary_for(table, k, what)
    return radii_of(table, k, described, device_of(table) if device is None else device)


def device_of(table: Table) -> torch.device:
    """Where the features of a table lie."""
    return table.block(0, 1).device


def summary_for(table: Table, k: int, what: str) -> Summary:
    """Of a table that has k neighbours for each row.

    Raises:
        ValueError: See `radii`.
    """
    if k < 1 or table.rows < k + 1:
        raise ValueError(
            f"Got {table.rows} rows of the {what} and k={k}; each row needs k other rows, and k "
            f"is at least 1: give at least {max(k, 1) + 1} images, or a smaller k."
        )
    return summary(table, what)


def radii_of(
    table: Table, k: int, described: Summary, device: torch.device | str
) -> Float[Tensor, " n"]:
    """See `radii`."""
    frame = Frame(described, device=torch.device(device))
    nearest = _Nearest(table, frame, k)
    found = []
    with full_products(frame.device):
        for rows, x in frame.blocks(table):
            for columns, y in frame.blocks(table, start=rows.start):
                tile = frame.tile(x, y)
                if rows == columns:
                    tile.values.fill_diagonal_(math.inf)  # no row is its own neighbour
                else:
                    nearest.add(tile.turned(), columns, rows.start)
                nearest.add(tile, rows, columns.start)
            found.append(nearest.settled(rows, x))  # earlier rows were its columns
    return torch.cat(found).cpu() / frame.unit


class _Nearest:
    """The nearest other rows of each row, by what tiles said of their distances.

    Args:
        table: Features.
        frame: Of the tiles.
        k: Which neighbour is asked for.
    """

    def __init__(self, table: Table, frame: Frame, k: int) -> None:
        self.table, self.frame, self.k = table, frame, k
        shape = table.rows, k + SPARE
        self.value = torch.full(shape, math.inf, device=frame.device)
        self.place = torch.zeros(shape, dtype=torch.long, device=frame.device)
        self.slack = torch.zeros(table.rows, dtype=torch.float64, device=frame.device)

    def add(self, tile: Tile, rows: slice, start: int) -> None:
        """Compares some rows with those that follow `start`."""
        kept = self.k + SPARE
        value, column = tile.values.topk(min(kept, tile.values.shape[1]), dim=1, largest=False)
        value = torch.cat([self.value[rows], value], dim=1)
        place = torch.cat([self.place[rows], column + start], dim=1)
        self.value[rows], order = value.topk(kept, dim=1, largest=False)
        self.place[rows] = place.gather(1, order)
        self.slack[rows] = self.slack[rows].clamp(min=tile.slack)

    def settled(self, rows: slice, x: Rows) -> Float[Tensor, " n"]:
        """Exact distance of the k-th neighbours of some rows that met all others."""
        value, place, reach = self.value[rows].double(), self.place[rows], 2 * self.slack[rows]
        limit = value[:, self.k - 1]
        lost = value[:, -1] <= limit + reach  # as near a row may have been dropped
        between = (value - limit[:, None]).abs() <= reach[:, None]
        between &= ~lost[:, None]
        nearer = (value < (limit - reach)[:, None]).sum(1)
        row, rank = between.nonzero(as_tuple=True)
        exact = torch.full_like(value, math.inf)
        if len(row):
            exact[row, rank] = self._exact(x, row, place[row, rank])
        wanted = (self.k - 1 - nearer).clamp(min=0)[:, None]
        found = exact.sort(dim=1).values.gather(1, wanted)[:, 0]
        if lost.any():
            index = lost.nonzero()[:, 0]
            found[index] = self._again(x.read[index], index + rows.start)
        return found

    def _exact(self, x: Rows, row: Tensor, place: Tensor) -> Tensor:
        """Distances of rows at hand from others anywhere in the table."""
        places, column = torch.unique(place, return_inverse=True)
        others = Chosen(self.table, places.tolist()).block(0, len(places))
        return direct(x.read, row, others.to(self.frame.device), column) * self.frame.unit

    def _again(self, read: Tensor, index: Int[Tensor, " p"]) -> Float[Tensor, " p"]:
        """For rows with many others as near: exact from the first tile on."""
        x = self.frame.place(read)
        best = torch.full((len(index), self.k), math.inf, device=index.device).double()
        for columns, y in self.frame.blocks(self.table):
            tile = self.frame.tile(x, y)
            itself = index[:, None] == torch.arange(
                columns.start, columns.stop, device=index.device
            )
            tile.values.masked_fill_(itself, math.inf)
            best = tile.nearest(best)
        return best[:, -1]
