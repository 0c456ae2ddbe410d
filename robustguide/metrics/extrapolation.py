"""Frechet distance at endless images, or at a number of images that others had.

The distance of n images is too large by about b / n on average, so distances at several n lie on
a straight line in 1 / n, which meets 1 / n = 0 at the distance without that bias: Chong and
Forsyth (2020), "Effectively unbiased FID and Inception Score", section 3.

Here the sizes are n, n/2, n/3, ...: evenly spaced in 1 / n. At n/j, the images are cut into j
disjoint random blocks, whose distances are averaged, so that all points of the line hold the same
images, and what these have by chance moves the line as a whole but does not tilt it. Derived here:
to second order in chance, D_j = d_j - d_1 has mean (j - 1) b / n, a variance that grows as j - 1,
and no correlation with d_1. Hence the line goes through d_1 with slope sum D_j / sum (j - 1) n,
and the errors of d_1 (by the jackknife) and of the slope add in squares. Where the smallest blocks
have few images for each feature, the points bend away from the line; what a parabola would say
differently is counted as an error of the slope, so that the limits stay honest, and wide.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustguide.metrics.distances import without_each
from robustguide.metrics.frechet import Moments, Sums, Target
from robustguide.metrics.jackknife import Jackknife, groups_of, reach
from robustguide.metrics.tables import Chosen, Table

SIZES = 10
LEAST = 10  # images in the smallest blocks


@dataclass(frozen=True)
class Extrapolation:
    """A line through distances at several n.

    Attributes:
        sizes: n, n/2, n/3, ...
        distances: Mean at each.
        jackknife: The first of them, with replicates.
        slope: Of the line in 1 / n.
        slope_error: Its standard error with that of straightness; independent of the error of the
            first distance.
        bend: What a parabola in 1 / n would add to `value`; beyond the standard error of the
            distance, the smallest blocks are too small for a straight line.
    """

    sizes: tuple[float, ...]
    distances: tuple[float, ...]
    jackknife: Jackknife
    slope: float
    slope_error: float
    bend: float

    @property
    def value(self) -> float:
        """The distance at endless images."""
        return self.at(math.inf)

    @property
    def standard_error(self) -> float:
        """Of `value`."""
        return math.hypot(self.jackknife.standard_error(), self.slope_error / self.sizes[0])

    def at(self, images: float) -> float:
        """The line at a number of images."""
        return self.distances[0] + self.slope * (1 / images - 1 / self.sizes[0])

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Limits of the true distance."""
        half = self._reach(level) * self.standard_error
        return self.value - half, self.value + half

    def predict(self, images: int, level: float = 0.95) -> tuple[float, float, float]:
        """What the distance of so many other images of the same law would be, with limits.

        The limits hold the chance of both sets: that of the other falls as 1 / sqrt(images).
        """
        n, error = self.sizes[0], self.jackknife.standard_error()
        line = math.hypot(error, self.slope_error * (1 / images - 1 / n))
        half = self._reach(level) * math.hypot(line, error * math.sqrt(n / images))
        return self.at(images), self.at(images) - half, self.at(images) + half

    def told(self) -> dict[str, float]:
        """What belongs beside a number, as plain data."""
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "slope": self.slope,
            "slope_error": self.slope_error,
            "bend": self.bend,
        }

    def _reach(self, level: float) -> float:
        return reach(level, len(self.jackknife.replicates) - 1)


def extrapolate(
    table: Table,
    reference: Moments,
    jackknife: Jackknife | None = None,
    sizes: int = SIZES,
    seed: int = 0,
) -> Extrapolation:
    """The line through distances at n, n/2, ..., n/sizes; `sizes (sizes + 1) / 2` distances.

    Args:
        table: Features of the samples.
        reference: Moments of the real images.
        jackknife: The distance of all samples with replicates; null computes it.
        sizes: Number of sizes; at least 3.
        seed: Of the order in which the samples are cut into blocks.

    Raises:
        ValueError: For too few images or sizes, features that are not finite, or a jackknife of
            another distance.
    """
    if sizes < 3 or table.rows < LEAST * sizes:
        raise ValueError(
            f"Got {table.rows} images for {sizes} sizes; a line needs 3 sizes, and {LEAST} images "
            f"in the smallest blocks: {LEAST * sizes} for so many sizes. Give more images."
        )
    order = torch.randperm(table.rows, generator=torch.Generator().manual_seed(seed))
    target = Target(reference)
    if jackknife is None:
        jackknife = Jackknife(*without_each(table, groups_of(order), target))
    distances = _distances(table, order, target, sizes)
    # where features are linear in each other, as after a LayerNorm, rounding counts with its root
    rounding = 1e-6 * float(reference.covariance.trace())
    if not math.isclose(jackknife.value, distances[0], rel_tol=1e-6, abs_tol=rounding):
        raise ValueError(
            f"The jackknife is of a distance of {jackknife.value}, these features are at "
            f"{distances[0]}; give that of the same features and reference."
        )
    steps = torch.arange(1, sizes, dtype=torch.float64)
    gains = torch.tensor(distances[1:], dtype=torch.float64) - distances[0]
    gain = float(gains.sum() / steps.sum())
    bend = gain - _start_of_parabola(gains, steps)
    n = table.rows
    return Extrapolation(
        tuple(n / j for j in range(1, sizes + 1)),
        tuple(distances),
        jackknife,
        slope=gain * n,
        slope_error=math.hypot(_error(gains - gain * steps, steps), bend) * n,
        bend=bend,
    )


def _error(residuals: Tensor, steps: Tensor) -> float:
    """Standard error of sum D / sum steps.

    Blocks of different sizes are cut from one order, so the D are correlated; covariances as of
    cuts each of which refines the last are the largest that can be.
    """
    unit = (residuals.square() / steps).sum() / (len(steps) - 1)
    covariance = torch.minimum(steps[:, None], steps)
    return float((unit * covariance.sum()).sqrt() / steps.sum())


def _start_of_parabola(gains: Tensor, steps: Tensor) -> float:
    """Slope at the first size of the parabola, with the weights of the line."""
    design = torch.stack([steps, steps.square()], dim=1) / steps.sqrt()[:, None]
    found = torch.linalg.lstsq(design, (gains / steps.sqrt())[:, None]).solution
    return float(found[0, 0] - found[1, 0])


def _distances(table: Table, order: Tensor, target: Target, sizes: int) -> list[float]:
    """Mean distance of the blocks at n, n/2, ...; every row is added once, to its segment."""
    n = table.rows
    ends = [{round(n * i / j) for i in range(1, j + 1)} for j in range(1, sizes + 1)]
    point = Sums.near(table.block(0, min(n, 1024))).point
    open_blocks = [Sums(point) for _ in ends]
    found: list[list[float]] = [[] for _ in ends]
    first = 0
    for last in sorted(set().union(*ends)):
        segment = Sums(point)
        for block in Chosen(table, order[first:last].sort().values.tolist()).blocks():
            segment.add(block)
        for j, sums in enumerate(open_blocks):
            sums += segment
            if last in ends[j]:
                found[j].append(target.distance(sums.moments()))
                open_blocks[j] = Sums(point)
        first = last
    return [sum(each) / len(each) for each in found]
