"""Kernel distance (KID): the squared maximum mean discrepancy of two sets of features.

With the kernel k(x, y) = (x.y / d + 1)^3 of d features, for m rows x and n rows y,

    MMD^2 = sum_{i != j} k(x_i, x_j) / (m (m - 1)) + sum_{i != j} k(y_i, y_j) / (n (n - 1))
            - 2 sum_{i, j} k(x_i, y_j) / (m n)               (Binkowski et al., 2018, eq. 4)

is unbiased for any m and n, so it may be negative. So is its mean over disjoint blocks, which
costs less than all pairs and tells its own standard error. Sums are float64, tile by tile.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustguide.metrics.jackknife import groups_of
from robustguide.metrics.means import finite_blocks
from robustguide.metrics.protocol import Measure, Measured, Sampled
from robustguide.metrics.reference import Reference
from robustguide.metrics.tables import Chosen, Held, Table
from robustguide.noise import finest

DEGREE, COEFFICIENT = 3, 1.0
ROWS = 1024  # of a part of a table: with 2048 features 17 MB in float64; a tile has 8 MB
SAMPLES, REAL = "samples", "reference's activations"


def polynomial_mmd(x: Table | Float[Tensor, "m d"], y: Table | Float[Tensor, "n d"]) -> float:
    """Unbiased MMD^2 of two sets of features, from all pairs.

    Raises:
        ValueError: For fewer than two rows, features that are not finite, or sets that differ in
            the number of features.
    """
    x, y = (Held(each) if isinstance(each, Tensor) else each for each in (x, y))
    return _KernelSums(x, y, torch.zeros(x.rows, dtype=torch.long)).mmd()


class _KernelSums:
    """Sums of the kernel over pairs of rows, those with rows of x by their group."""

    def __init__(self, x: Table, y: Table, group: Int[Tensor, " m"]) -> None:
        _require_equal_dims(x, y)
        alike = torch.zeros(y.rows, dtype=torch.long)
        self.m, self.n = group.bincount().double(), y.rows
        self.xx = _within(x, group, SAMPLES)
        self.yy = float(_within(y, alike, REAL))
        self.xy = _between(x, y, group)

    def mmd(self, without: int | None = None) -> float:
        """MMD^2, of all rows or without a group of x.

        Raises:
            ValueError: For fewer than two rows.
        """
        kept = torch.ones_like(self.m)
        if without is not None:
            kept[without] = 0
        m, n = float(kept @ self.m), self.n
        if min(m, n) < 2:
            raise ValueError(
                f"MMD^2 is a mean over pairs, and got {m:g} samples and {n} real images; "
                "give at least two of each."
            )
        own = float(kept @ self.xx @ kept) / (m * (m - 1)) + self.yy / (n * (n - 1))
        return own - 2 * float(kept @ self.xy) / (m * n)


def _require_equal_dims(x: Table, y: Table) -> None:
    if x.dim != y.dim:
        raise ValueError(
            f"The samples have {x.dim} features each, the reference's activations {y.dim}; both "
            "must come from one layer of one network: write the reference again with "
            "`robustguide stats`."
        )


def _fine(block: Tensor) -> Tensor:
    """In float64, on the CPU beside a device without it."""
    home = block.device if finest(block.device) == torch.float64 else torch.device("cpu")
    return block.to(home).double()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    y = _fine(y).to(x.device)
    return (x @ y.T).div_(x.shape[1]).add_(COEFFICIENT).pow_(DEGREE)


def _within(table: Table, group: Tensor, what: str) -> Tensor:
    """Sums over pairs of different rows, by their groups."""
    count = int(group.max()) + 1 if len(group) else 1
    sums = torch.zeros(count, count, dtype=torch.float64)
    for rows, x in finite_blocks(table, what, ROWS):
        x = _fine(x)
        for first in range(rows.start, table.rows, ROWS):
            columns = slice(first, min(first + ROWS, table.rows))
            tile = _kernel(x, table.block(columns.start, columns.stop))
            if rows == columns:
                tile.fill_diagonal_(0)
            part = _by_group(_by_group(tile, group[rows], count).T, group[columns], count).T
            sums += part.cpu() if rows == columns else (part + part.T).cpu()
    return sums


def _between(x: Table, y: Table, group: Tensor) -> Tensor:
    """Sums over pairs of a row of x and one of y, by the group of the former."""
    count = int(group.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64)
    for rows, part in finite_blocks(x, SAMPLES, ROWS):
        part = _fine(part)
        for other in y.blocks(ROWS):
            totals = _kernel(part, other).sum(1)
            sums += _by_group(totals[:, None], group[rows], count)[:, 0].cpu()
    return sums


def _by_group(rows: Tensor, group: Tensor, count: int) -> Tensor:
    sums = rows.new_zeros(count, rows.shape[1])
    return sums.index_add_(0, group.to(rows.device), rows)


class Kid(Measure):
    """Kernel distance: mean of MMD^2 over disjoint blocks of samples and of real images.

    There are as many blocks as groups of samples where each then has `block` images on both sides;
    otherwise blocks are consecutive groups together, as many as there can be. Real images are
    dealt to the blocks by a hash of their number, for they often lie in the order of classes.
    Replicates leave out a group of samples; a block that then has none left does not count.

    Args:
        layer: Whose features.
        block: Fewest samples, and fewest real images, of a block.

    Raises:
        ValueError: For blocks of fewer than two.
    """

    needs = "activations"

    def __init__(self, layer: str = "pool3", block: int = 100) -> None:
        if block < 2:
            raise ValueError(f"Got blocks of {block} images; a block needs a pair: at least 2.")
        self.titles, self.lower_is_better = {"kid": "KID"}, {"kid": True}
        self.layer, self.block = layer, block

    def measure(self, sampled: Sampled, reference: Reference | None) -> dict[str, Measured]:
        """See `Measure`."""
        if reference is None or self.layer not in reference.activations:
            raise ValueError(
                "KID compares features of single images, and the reference holds none of layer "
                f"{self.layer!r}; write one that does with `robustguide stats`."
            )
        samples, real = sampled.layers[self.layer], reference.activations[self.layer]
        _require_equal_dims(samples, real)
        groups = sampled.groups.cpu().long()
        count = int(groups.max()) + 1
        blocks = min(count, samples.rows // self.block, real.rows // self.block)
        if blocks < 1:
            raise ValueError(
                f"Got {samples.rows} samples and {real.rows} real images, expected at least "
                f"{self.block} of each, one block of KID; give more images."
            )
        block_of = groups * blocks // count
        found = [
            _block(samples, block_of == b, groups, real, dealt == b)
            for dealt in [groups_of(torch.arange(real.rows), blocks)]
            for b in range(blocks)
        ]
        values = [value for value, _ in found]
        facts = {
            "degree": DEGREE,
            "gamma": 1 / samples.dim,
            "coefficient": COEFFICIENT,
            "blocks": blocks,
            "block_images": [samples.rows // blocks, real.rows // blocks],
            "standard_error": _standard_error(values),
            "replicates_without": "samples",
            "layer": self.layer,
        }
        value = math.fsum(values) / blocks
        return {"kid": Measured(value, _replicates(found, count), facts)}


def _block(
    samples: Table, chosen: Tensor, groups: Tensor, real: Table, dealt: Tensor
) -> tuple[float, dict[int, float | None]]:
    """MMD^2 of a block, and without each of its groups; null where nothing would be left."""
    if not chosen.all():
        samples = _taken(samples, chosen)
    if not dealt.all():
        real = _taken(real, dealt)
    present, place = torch.unique(groups[chosen], return_inverse=True)
    sums = _KernelSums(samples, real, place)
    left = len(place) - sums.m
    without = [sums.mmd(i) if left[i] >= 2 else None for i in range(len(present))]
    return sums.mmd(), dict(zip(present.tolist(), without, strict=True))


def _taken(table: Table, chosen: Tensor) -> Table:
    """Some rows, read once: the rows of a group lie all over the table."""
    rows = Chosen(table, chosen.nonzero()[:, 0].tolist())
    return Held(rows.block(0, rows.rows))


def _replicates(
    found: list[tuple[float, dict[int, float | None]]], count: int
) -> tuple[float, ...]:
    """The mean over blocks without each group; none where no block would be left."""
    replicates = []
    for group in range(count):
        changed = [without.get(group, value) for value, without in found]
        left = [each for each in changed if each is not None]
        if not left:
            return ()
        replicates.append(math.fsum(left) / len(left))
    return tuple(replicates)


def _standard_error(values: list[float]) -> float | None:
    """Of the mean of blocks; null for a single one."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return None
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n * (n - 1)))
