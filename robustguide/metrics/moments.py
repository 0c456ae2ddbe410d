"""Mean and covariance of features, in one pass, from shards, or less some rows. All is float64."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from robustguide.metrics.tables import BLOCK, Table
from robustguide.noise import finest


class Moments:
    """Mean and covariance of a set of features; in float64, beside a device without it on the CPU.

    Args:
        count: Number of images; null where a foreign file does not tell.
        mean: Mean feature; NaN if there was no image.
        covariance: Covariance with N - 1; NaN for fewer than two images.
    """

    def __init__(
        self, count: int | None, mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"]
    ) -> None:
        self.count = count
        self.mean = double(mean)
        self.covariance = double(covariance)

    @classmethod
    def of(cls, features: Table | Float[Tensor, "n d"]) -> "Moments":
        """Moments of features, read once and by blocks.

        Raises:
            ValueError: If some are not finite.
        """
        blocks: Iterable[Tensor]
        if isinstance(features, Table):
            blocks = features.blocks()
        else:
            blocks = torch.split(features, BLOCK)
        sums: Sums | None = None
        for block in blocks:
            sums = sums or Sums.near(block)
            sums.add(block)
        if sums is None:  # a table without rows has no blocks
            assert isinstance(features, Table)
            sums = Sums(torch.zeros(features.dim))
        return sums.moments()

    @classmethod
    def merge(cls, *parts: "Moments") -> "Moments":
        """Moments of the union of disjoint sets, exact. Chan, Golub and LeVeque (1979), eq. 2.1.

        Raises:
            ValueError: If a part does not tell its count, or they differ in dimension.
        """
        dims, counts = {len(part.mean) for part in parts}, [part.count for part in parts]
        if len(dims) != 1 or None in counts:
            raise ValueError(
                f"Got moments of {sorted(dims)} features from {counts} images; what is merged "
                "has one number of features and known counts. Compute the parts anew."
            )
        seen = [part for part in parts if part.count]
        if not seen:
            return parts[0]
        total = sum(part.count or 0 for part in seen)
        # about the first mean, so that a common offset costs no digits
        point = seen[0].mean
        offsets = [part.mean.to(point) - point for part in seen]
        offset = sum((part.count or 0) * each for part, each in zip(seen, offsets, strict=True))
        mean = offset / total
        scatter = torch.zeros_like(seen[0].covariance)
        for part, each in zip(seen, offsets, strict=True):
            count = part.count or 0
            if count > 1:  # a single image has no covariance and scatters by its mean alone
                scatter += (count - 1) * part.covariance.to(point)
            scatter.addr_(each - mean, each - mean, alpha=count)
        return cls(total, point + mean, over(scatter, total - 1))

    def to(self, device: torch.device) -> "Moments":
        """The same on a device, or on the CPU beside one without float64."""
        home = home_of_float64(device)
        if self.mean.device == home:
            return self
        return Moments(self.count, self.mean.to(home), self.covariance.to(home))


class Sums:
    """Count, sum and sum of outer products of features about a point; they add and subtract.

    Args:
        point: Near the features, so that an offset of all of them does not drown their covariance.
    """

    def __init__(self, point: Float[Tensor, " d"]) -> None:
        self.point = double(point)
        self.count = 0
        self.total = torch.zeros_like(self.point)
        self.outer = self.point.new_zeros(len(point), len(point))
        self.odd = torch.zeros((), dtype=torch.long, device=self.point.device)

    @classmethod
    def near(cls, features: Float[Tensor, "n d"]) -> "Sums":
        """Empty sums about the mean of some features; a constant feature has exact zeros then."""
        return cls(double(features).sum(0) / max(len(features), 1))

    def add(self, features: Float[Tensor, "n d"]) -> None:
        """Adds rows."""
        features = features.detach().to(self.point.device).double()
        self.odd += (~features.isfinite().all(1)).sum()
        features = features - self.point
        self.count += len(features)
        self.total += features.sum(0)
        self.outer.addmm_(features.T, features)

    def __iadd__(self, other: "Sums") -> "Sums":
        self.count += other.count
        self.total += other.total
        self.outer += other.outer
        self.odd += other.odd
        return self

    def __sub__(self, other: "Sums") -> "Sums":
        left = Sums.__new__(Sums)
        left.point, left.count = self.point, self.count - other.count
        left.total, left.outer = self.total - other.total, self.outer - other.outer
        left.odd = self.odd - other.odd
        return left

    def moments(self) -> Moments:
        """Of the rows so far.

        Raises:
            ValueError: If features were not finite.
        """
        require_finite(int(self.odd), self.count)
        offset = over(self.total, self.count)
        scatter = torch.addr(self.outer, offset, offset, alpha=-self.count)
        return Moments(self.count, self.point + offset, over(scatter, self.count - 1))


def require_finite(odd: int, count: int) -> None:
    """Refuses moments of `count` rows of which `odd` are not finite."""
    if odd:
        raise ValueError(
            f"{odd} of {count} rows of features are not finite; find the images that they are of, "
            "and sample those again or mend the extractor."
        )


def home_of_float64(device: torch.device) -> torch.device:
    """A device, or the CPU beside one that knows no float64."""
    return device if finest(device) == torch.float64 else torch.device("cpu")


def double(tensor: Tensor) -> Tensor:
    """In float64, where there is one."""
    # first the device, then the dtype: the source may not know float64
    return tensor.to(home_of_float64(tensor.device)).double()


def over(tensor: Tensor, count: int) -> Tensor:
    """A quotient; NaN where nothing was counted."""
    return tensor / count if count > 0 else torch.full_like(tensor, torch.nan)
