"""Frechet distance between two sets of features, and its running sums by noise level.

With means m and covariances C of the two sets (N - 1 in the denominator),

    d = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)        (Heusel et al., 2017, eq. 6)

The last trace is the sum of the roots of the eigenvalues of L^T C2 L with C1 = L L^T: symmetric,
so it stays real and exact when there are fewer samples than features. Everything is float64.
"""

import os
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics import Metric

from robustguide.files import whole

FORMAT = "robustguide.moments.1"


class Moments:
    """Mean and covariance of a set of features, and where they come from.

    Args:
        count: Number of images.
        mean: Mean feature; NaN if there was no image.
        covariance: Covariance with N - 1; NaN for fewer than two images.
        extractor: Identity of the network that made the features; only equal ones are compared.
        images: What the images are, for the reader.
    """

    def __init__(
        self,
        count: int,
        mean: Float[Tensor, " d"],
        covariance: Float[Tensor, "d d"],
        extractor: str,
        images: str = "",
    ) -> None:
        self.count = count
        self.mean = mean.double()
        self.covariance = covariance.double()
        self.extractor = extractor
        self.images = images

    @classmethod
    def of(cls, features: Float[Tensor, "n d"], extractor: str, images: str = "") -> "Moments":
        """Moments of features that fit into memory."""
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(
            len(features), mean, centred.T @ centred / (len(features) - 1), extractor, images
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file, under its final name only once it is whole."""
        metadata = {
            "format": FORMAT,
            "count": str(self.count),
            "extractor": self.extractor,
            "images": self.images,
        }
        tensors = {"mean": self.mean, "covariance": self.covariance}
        with whole(path) as part:
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, part, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Moments":
        """Reads what `save` wrote.

        Raises:
            ValueError: If the file holds something else.
        """
        expected = f"expected the moments of features that `Moments.save` writes ({FORMAT})"
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"{path} has format {metadata.get('format')!r}; {expected}.")
                mean, covariance = file.get_tensor("mean"), file.get_tensor("covariance")
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file ({error}); {expected}.") from error
        count = int(metadata["count"])
        return cls(count, mean, covariance, metadata["extractor"], metadata["images"])


class Frechet(NamedTuple):
    """A Frechet distance and what is needed to read it; never compare across n.

    `rank_deficient` says that one of the sets has no more images than features, so that its
    covariance is singular and the distance biased upwards.
    """

    distance: float
    n: int
    reference_n: int
    rank_deficient: bool


def frechet_distance(moments: Moments, reference: Moments) -> Frechet:
    """Frechet distance of a set from its reference.

    NaN if one of them has fewer than two images, or features that are not finite.

    Raises:
        ValueError: If the two were made by different extractors or differ in dimension.
    """
    _require_same_extractor(moments.extractor, reference)
    dim = len(moments.mean)
    if len(reference.mean) != dim:
        raise ValueError(
            f"The features have {dim} values, the reference's {len(reference.mean)}, though both "
            f"are said to come from {moments.extractor!r}; compute the reference anew."
        )
    distance = _distance(
        reference.mean.to(moments.mean), reference.covariance.to(moments.mean), moments
    )
    few = min(moments.count, reference.count) <= dim
    return Frechet(distance, moments.count, reference.count, few)


def _require_same_extractor(extractor: str, reference: Moments) -> None:
    if extractor != reference.extractor:
        raise ValueError(
            f"The features come from extractor {extractor!r}, those of the reference "
            f"{reference.images!r} from {reference.extractor!r}; compute the reference anew with "
            f"{extractor!r}."
        )


def _distance(mean: Tensor, covariance: Tensor, moments: Moments) -> float:
    if not (covariance.isfinite().all() and moments.covariance.isfinite().all()):
        return float("nan")  # the eigen-solver would raise
    values, vectors = torch.linalg.eigh(covariance)
    half = vectors * values.clamp(min=0).sqrt()
    roots = torch.linalg.eigvalsh(half.T @ moments.covariance @ half).clamp(min=0).sqrt()
    traces = covariance.trace() + moments.covariance.trace()
    squared = (mean - moments.mean).square().sum() + traces - 2 * roots.sum()
    return float(squared.clamp(min=0))


class _FeatureSums(Metric):
    """Count, sum and sum of outer products of features at each of a number of noise levels.

    The sums are float64: features come to the metric's device, and beside a device without float64
    (MPS) the metric stays on the CPU. It takes features, not images: an extractor inside would go
    into every checkpoint and averaged copy of its owner, and would run once for each metric.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, dim: int, extractor: str, levels: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.extractor = extractor
        for name, shape in (("count", ()), ("total", (dim,)), ("outer", (dim, dim))):
            zeros = torch.zeros(levels, *shape, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, features: Float[Tensor, "b d"], level: int = 0) -> None:
        """Adds the features of a batch, all at one noise level (its index).

        Raises:
            ValueError: If the features have another dimension, or there is no such level.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f"Got features of shape {tuple(features.shape)}, expected (b, {self.dim}) from "
                f"{self.extractor!r}; flatten them or compute the reference anew."
            )
        if not 0 <= level < len(self.count):
            raise ValueError(
                f"Got noise level {level}, expected an index from 0 to {len(self.count) - 1}."
            )
        # first the device, then the dtype: the source may not know float64
        features = features.detach().to(self.total.device).double()
        self.count[level] += len(features)
        self.total[level] += features.sum(0)
        self.outer[level].addmm_(features.T, features)

    def moments(self, level: int = 0) -> Moments:
        """Moments of this process's features at one noise level."""
        count, mean = self.count[level], self.total[level] / self.count[level]
        covariance = (self.outer[level] - count * torch.outer(mean, mean)) / (count - 1)
        return Moments(int(count.item()), mean, covariance, self.extractor)


class FeatureMoments(_FeatureSums):
    """Moments of a stream of features, for use as a reference.

    Args:
        dim: Number of features.
        extractor: Identity of the network that makes them.
        images: What the images are.
    """

    def __init__(self, dim: int, extractor: str, images: str = "") -> None:
        super().__init__(dim, extractor)
        self.images = images

    def compute(self) -> Moments:
        """Moments of the features of all processes."""
        moments = self.moments()
        moments.images = self.images
        return moments


class FrechetDistance(_FeatureSums):
    """Frechet distance of a stream of features; `compute` returns a `Frechet`.

    The reference is no state: it is neither summed over processes nor written into checkpoints.

    Args:
        reference: Moments of the real images' features; they fix the dimension.
        extractor: Identity of the network that makes the features.

    Raises:
        ValueError: If the reference was made by another extractor.
    """

    def __init__(self, reference: Moments, extractor: str) -> None:
        _require_same_extractor(extractor, reference)
        super().__init__(len(reference.mean), extractor)
        self.reference = reference

    def compute(self) -> Frechet:
        """Distance of the features of all processes from the reference."""
        return frechet_distance(self.moments(), self.reference)


class FrechetByNoise(_FeatureSums):
    """Frechet distances of features at each of a number of noise levels, as in `FrechetDistance`.

    Args:
        reference: Moments of the real images' features; they fix the dimension.
        extractor: Identity of the network that makes the features.
        levels: Number of noise levels.

    Raises:
        ValueError: If the reference was made by another extractor.
    """

    def __init__(self, reference: Moments, extractor: str, levels: int) -> None:
        _require_same_extractor(extractor, reference)
        super().__init__(len(reference.mean), extractor, levels)
        self.reference = reference

    def compute(self) -> list[Frechet]:
        """One for each noise level, NaN where fewer than two images were seen."""
        levels = range(len(self.count))
        return [frechet_distance(self.moments(level), self.reference) for level in levels]
