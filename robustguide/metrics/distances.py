"""Frechet distance as a measure of a protocol, with what it would be without each group."""

import math

from jaxtyping import Int
from torch import Tensor

from robustguide.metrics.frechet import Sums, Target
from robustguide.metrics.protocol import Measure, Measured, Sampled
from robustguide.metrics.reference import Reference
from robustguide.metrics.tables import Table

MEMORY = 10 * 2**25  # bytes of sums of single groups: ten of 2048 features


class FrechetMeasure(Measure):
    """Frechet distance of one layer's features.

    Args:
        name: In keys.
        title: As shown; FID is that of Inception's pool3 alone.
        layer: Whose features it reads.
    """

    def __init__(self, name: str = "fid", title: str = "FID", layer: str = "pool3") -> None:
        self.titles = {name: title}
        self.lower_is_better = {name: True}
        self.layer = layer
        self.needs = "moments"

    def measure(self, sampled: Sampled, reference: Reference | None) -> dict[str, Measured]:
        """See `Measure`; replicates leave out a group of samples, the reference stays.

        Raises:
            ValueError: For too few images, features that are not finite, or a reference without
                moments of this layer.
        """
        (name,) = self.titles
        table, held = sampled.layers[self.layer], reference.moments if reference else {}
        if self.layer not in held:
            raise ValueError(
                f"The {self.titles[name]} needs the moments of layer {self.layer!r}; the "
                f"reference has those of {sorted(held) or 'none'}. `robustguide stats` writes one."
            )
        value, replicates = without_each(table, sampled.groups, Target(held[self.layer]))
        facts = {"n": table.rows, "dim": table.dim, "rank_deficient": table.rows <= table.dim}
        return {name: Measured(value, replicates, facts)}


def too_few(shown: str, n: int, dim: int) -> str | None:
    """What a reader of a distance must know; null where there are more images than features."""
    if n > dim:
        return None
    return (
        f"{shown}: {n} images are no more than the {dim} features, so the covariance is singular "
        "and the distance far too large; compare with equal n alone."
    )


def without_each(
    table: Table, groups: Int[Tensor, " n"], target: Target
) -> tuple[float, tuple[float, ...]]:
    """Frechet distance of all rows, and of all but each group.

    A group's sums are taken from those of all rows. As many groups as memory allows are summed in
    one pass: two passes for 20 groups of 2048 features, one where there are fewer features.

    Args:
        table: Features.
        groups: Of the rows.
        target: The reference.

    Returns:
        The distance; and the replicates, none where one group would leave fewer than two rows.

    Raises:
        ValueError: For too few rows, or features that are not finite.
    """
    if len(groups) != table.rows:
        raise ValueError(f"Got groups of {len(groups)} images and features of {table.rows}.")
    if table.rows < 2:
        raise ValueError(f"A covariance needs two images; the samples had {table.rows}.")
    groups = groups.cpu()
    members = groups.bincount()
    at_once = max(1, MEMORY // (8 * table.dim**2))
    total: Sums | None = None
    value, replicates = math.nan, []
    for first in range(0, len(members), at_once):
        some = range(first, min(first + at_once, len(members)))
        found, rest = _sums(table, groups, some, with_rest=total is None)
        if total is None:
            total = rest
            for each in found:
                total += each
            value = target.distance(total.moments())
            if table.rows - int(members.max()) < 2:
                break
        replicates += [target.distance((total - each).moments()) for each in found]
        del found, rest  # before the next pass makes as many
    return value, tuple(replicates)


def _sums(table: Table, groups: Tensor, some: range, with_rest: bool) -> tuple[list[Sums], Sums]:
    """Sums of each of some groups, and of all other rows where these are wanted."""
    start, point = 0, Sums.near(table.block(0, min(table.rows, 1024))).point
    found, rest = [Sums(point) for _ in some], Sums(point)
    for block in table.blocks():
        group = groups[start : start + len(block)]
        start += len(block)
        for number, sums in zip(some, found, strict=True):
            sums.add(_where(block, group == number))
        if with_rest:
            rest.add(_where(block, (group < some[0]) | (group > some[-1])))
    return found, rest


def _where(block: Tensor, mask: Tensor) -> Tensor:
    """Rows that a mask on the host names; the device is not asked how many these are."""
    return block[mask.nonzero()[:, 0].to(block.device)]
