"""Sums of features by noise level, from which a curve over the levels comes.

Additive, so memory does not grow with the number of images, and processes just add.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchmetrics import Metric

from robustguide.callbacks.calibration import home_of_float64
from robustguide.interfaces import to_pixels
from robustguide.metrics.agreement import MeanCosine
from robustguide.metrics.distances import FrechetMeasure
from robustguide.metrics.extractor import Extractor
from robustguide.metrics.frechet import FrechetByNoise
from robustguide.metrics.protocol import Measure, Protocol
from robustguide.metrics.reference import Reference


class MeanByNoise(Metric):
    """Mean of a number of each image at each of a number of noise levels, in float64.

    Args:
        levels: Number of noise levels.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    count: Tensor
    total: Tensor

    def __init__(self, levels: int) -> None:
        super().__init__()
        for name in ("count", "total"):
            zeros = torch.zeros(levels, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, features: Float[Tensor, "b 1"], level: int = 0) -> None:
        """Adds a batch, all at one noise level (its index)."""
        values = features.detach().to(self.total.device).double()
        self.count[level] += len(values)
        self.total[level] += values.sum()

    def compute(self) -> list[float]:
        """One for each level, NaN where nothing was seen."""
        means: list[float] = (self.total / self.count).tolist()
        return means


class Along:
    """A number of the predicted clean images at each noise level.

    Args:
        measure: Whose number it is.
        metric: Sums over the images; null where features are read and not summed.
    """

    def __init__(self, measure: Measure, metric: Any) -> None:
        self.name = next(iter(measure.titles))
        self.layer = measure.layer
        self.metric = metric

    @classmethod
    def of(
        cls, protocol: Protocol, reference: Reference | None, levels: int, device: torch.device
    ) -> "Along | None":
        """By the first measure of a protocol that is additive; null where none is.

        Args:
            protocol: Of the measures.
            reference: Of a distance; without it, features are read and not summed.
            levels: Number of noise levels.
            device: Of the sums, where it knows float64.
        """
        for measure in protocol.measures if levels else ():
            metric: MeanByNoise | FrechetByNoise | None = None
            if isinstance(measure, MeanCosine):
                metric = MeanByNoise(levels)
            elif not isinstance(measure, FrechetMeasure):
                continue
            elif reference is not None:
                metric = FrechetByNoise(reference.moments[measure.layer], levels)
            return cls(measure, metric and metric.to(home_of_float64(device)))
        return None

    def read(
        self,
        extractor: Extractor,
        denoised: Float[Tensor, "l b c h w"],
        y: Int[Tensor, " b"],
        size: int,
        finished: UInt8[Tensor, "b c h w"],
        layers: Mapping[str, Tensor],
    ) -> list[Float[Tensor, "b d"]]:
        """Features of predicted clean images, level by level; they are read together.

        Args:
            extractor: Reads them, rounded to bytes.
            denoised: The images, from high noise to low.
            y: Their labels.
            size: Images at a time.
            finished: What became of them; most samplers end at the last of the predicted ones.
            layers: Features of that, which need not be read again.
        """
        levels, images = denoised.shape[:2]
        pixels = [to_pixels(level) for level in denoised]
        is_known = torch.equal(pixels[-1], finished)
        fresh = pixels[: levels - is_known]
        parts = [layers[self.layer]] if is_known else []
        if fresh:
            read = features_of(extractor, torch.cat(fresh), y.repeat(len(fresh)), size)
            parts.insert(0, read[self.layer])
        return list(torch.split(torch.cat(parts), images))

    def add(self, features: Sequence[Float[Tensor, "b d"]]) -> None:
        """Adds the features of a batch, one tensor a level."""
        for level, each in enumerate(features):
            self.metric.update(each, level)

    def compute(self) -> list[float]:
        """One for each level; all processes must ask."""
        found = self.metric.compute()
        return [float(getattr(level, "distance", level)) for level in found]


def features_of(
    extractor: Extractor, pixels: UInt8[Tensor, "b c h w"], y: Int[Tensor, " b"], size: int
) -> dict[str, Tensor]:
    """Features by layer, `size` images at a time."""
    rows = [slice(first, first + size) for first in range(0, len(pixels), size)]
    parts = [extractor(pixels[part], y[part]) for part in rows]
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}
