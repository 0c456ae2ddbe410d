"""Frechet distance between two sets of features, and its running sums by noise level.

With means m and covariances C of the two sets (N - 1 in the denominator),

    d = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)        (Heusel et al., 2017, eq. 6)

The last trace is the sum of the roots of the eigenvalues of L^T C1 L with C2 = L L^T: symmetric,
so it stays real when there are fewer samples than features. Its rank is known from that of both
covariances; what lies beyond it is rounding, and would count with its root. All is float64.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from robustguide.metrics.moments import Moments, Sums, over, require_finite

__all__ = [
    "FeatureMoments",
    "Frechet",
    "FrechetByNoise",
    "Moments",
    "Sums",
    "Target",
    "frechet_distance",
]

EPS = torch.finfo(torch.float64).eps


class Target:
    """A reference with its factor, for many distances from it.

    Args:
        reference: Moments of real images.
        device: Where distances are computed; null is that of the reference.

    Raises:
        ValueError: For fewer than two images, or moments that are not finite.
    """

    def __init__(self, reference: Moments, device: torch.device | None = None) -> None:
        _require_usable(reference, "reference")
        self.reference = reference if device is None else reference.to(device)
        self.factor = _factor(self.reference)

    def distance(self, moments: Moments) -> float:
        """Frechet distance of a set from the reference.

        Raises:
            ValueError: As for the reference, and if the two differ in dimension.
        """
        _require_usable(moments, "samples")
        reference, moments = self.reference, moments.to(self.factor.device)
        if len(moments.mean) != len(reference.mean):
            raise ValueError(
                f"The samples have {len(moments.mean)} features, the reference "
                f"{len(reference.mean)}; compute both with one network and layer."
            )
        product = self.factor.T @ moments.covariance @ self.factor
        values = torch.linalg.eigvalsh(product).clamp(min=0)  # ascending
        roots = values[max(len(values) - _rank(moments), 0) :].sqrt()
        traces = reference.covariance.trace() + moments.covariance.trace()
        squared = (reference.mean - moments.mean).square().sum() + traces - 2 * roots.sum()
        return float(squared.clamp(min=0))


def frechet_distance(moments: Moments, reference: Moments) -> float:
    """Frechet distance of a set from its reference; `Target` is faster for several sets.

    Raises:
        ValueError: For fewer than two images, moments that are not finite, or two dimensions.
    """
    return Target(reference, moments.mean.device).distance(moments)


def _factor(moments: Moments) -> Float[Tensor, "d r"]:
    """F with F F^T the covariance and r its rank."""
    triangle = _triangle(moments)
    if triangle is not None:
        return triangle
    values, vectors = torch.linalg.eigh(moments.covariance)
    rank = min(_count_values(values), _most(moments))
    first = len(values) - rank
    factor: Tensor = vectors[:, first:] * values[first:].sqrt()
    return factor


def _rank(moments: Moments) -> int:
    """Rank of the covariance: of the data's, where rounding makes another one."""
    most = _most(moments)
    if most < len(moments.mean) or _triangle(moments) is not None:
        return most
    return _count_values(torch.linalg.eigvalsh(moments.covariance))


def _most(moments: Moments) -> int:
    """What the rank cannot exceed."""
    dim = len(moments.mean)
    return dim if moments.count is None else min(moments.count - 1, dim)


def _triangle(moments: Moments) -> Tensor | None:
    """The Cholesky factor, half as long in the making as eigenvectors; null for deficient rank."""
    covariance = moments.covariance
    if _most(moments) < len(covariance):
        return None
    triangle, failed = torch.linalg.cholesky_ex(covariance)
    # the square of a pivot is what a feature adds to those before it; below this, it is rounding
    least = len(covariance) * EPS * covariance.diagonal().max()
    is_full = bool((failed == 0) & (triangle.diagonal().square() > least).all())
    return triangle if is_full else None


def _count_values(values: Tensor) -> int:
    """How many eigenvalues of a covariance, ascending, are more than rounding."""
    return int((values > len(values) * EPS * values[-1]).sum())


def _require_usable(moments: Moments, whose: str) -> None:
    if moments.count is not None and moments.count < 2:
        raise ValueError(
            f"A covariance needs two images; the {whose} had {moments.count}. Give more."
        )
    if not bool(moments.mean.isfinite().all() & moments.covariance.isfinite().all()):
        raise ValueError(
            f"The moments of the {whose} are not finite; compute them anew from finite features."
        )


class Frechet(NamedTuple):
    """A distance, and the number of images behind it; never compare across n."""

    distance: float
    n: int


class _FeatureSums(Metric):
    """Count, sum and sum of outer products of features at each of a number of noise levels.

    Additive, so batches, processes and repeated runs add up to the same value. States stay float64
    on the device that holds the metric; a device without float64 cannot hold it. The network that
    makes the features is no part of the metric: it would go into every checkpoint and every
    copy of its owner, and would run once for each metric.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    count: Tensor
    odd: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, dim: int, levels: int = 1) -> None:
        super().__init__()
        self.dim = dim
        shapes = {"count": (), "odd": (), "total": (dim,), "outer": (dim, dim)}
        for name, shape in shapes.items():
            zeros = torch.zeros(levels, *shape, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, features: Float[Tensor, "b d"], level: int = 0) -> None:
        """Adds the features of a batch, all at one noise level (its index).

        Raises:
            ValueError: If the features have another dimension, or there is no such level.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f"Got features of shape {tuple(features.shape)}, expected (b, {self.dim}); "
                "flatten them, or compute the reference anew with the network that made them."
            )
        if not 0 <= level < len(self.count):
            raise ValueError(
                f"Got noise level {level}, expected an index from 0 to {len(self.count) - 1}."
            )
        # first the device, then the dtype: the source may not know float64
        features = features.detach().to(self.total.device).double()
        self.count[level] += len(features)
        self.odd[level] += (~features.isfinite().all(1)).sum()
        self.total[level] += features.sum(0)
        self.outer[level].addmm_(features.T, features)

    def moments(self, level: int = 0) -> Moments:
        """Moments of this process's features at one noise level.

        Raises:
            ValueError: If features were not finite.
        """
        count = int(self.count[level])
        require_finite(int(self.odd[level]), count)
        mean = over(self.total[level], count)
        scatter = torch.addr(self.outer[level], mean, mean, alpha=-count)
        return Moments(count, mean, over(scatter, count - 1))


class FeatureMoments(_FeatureSums):
    """Moments of a stream of features.

    Args:
        dim: Number of features.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)

    def compute(self) -> Moments:
        """Moments of the features of all processes.

        Raises:
            ValueError: If features were not finite.
        """
        return self.moments()


class FrechetByNoise(_FeatureSums):
    """Frechet distances of features at each of a number of noise levels.

    The reference is no state: it is neither summed over processes nor written into checkpoints.

    Args:
        reference: Moments of the real images' features; they fix the dimension.
        levels: Number of noise levels.
    """

    def __init__(self, reference: Moments, levels: int) -> None:
        super().__init__(len(reference.mean), levels)
        self.reference = reference

    def compute(self) -> list[Frechet]:
        """One for each noise level; NaN where fewer than two images, or diverged ones, were seen.

        Raises:
            ValueError: If the reference cannot be used.
        """
        target, found = Target(self.reference, self.total.device), []
        for level, (count, odd) in enumerate(zip(self.count, self.odd, strict=True)):
            is_known = count >= 2 and not odd
            distance = target.distance(self.moments(level)) if is_known else float("nan")
            found.append(Frechet(distance, int(count)))
        return found
