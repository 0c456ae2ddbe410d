"""What moves the mean of an ancestral step by the score, in place of the variance of its noise.

    (variance / (1 + s'**2) + gamma * first * sin(pi k / steps)) * (1 + s'**2)

with k = steps - 1 - index, which counts down to 0, and `first` the variance of the first step as
one of x_t. Ma et al. (2023), eq. 5.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from robustguide.interfaces import Place
from robustguide.samplers.ancestral import GuidanceVariance, posterior
from robustguide.samplers.base import Run


@dataclass(frozen=True)
class Widened(GuidanceVariance):
    """Adds a half wave, which is 0 in the last step and largest in the middle of the run.

    The noise keeps its variance, so without score terms this does nothing.

    Args:
        gamma: Share of the first variance that is added in the middle; 0 adds nothing.

    Raises:
        ValueError: For a negative gamma, or one that is not finite.
    """

    gamma: float

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise ValueError(
                f"gamma must be a finite number of at least 0, got {self.gamma}; 0 adds nothing "
                "to the variance that moves the mean, Ma et al. (2023) add 0.3."
            )

    def __call__(self, variance: float | Tensor, run: Run, place: Place) -> float | Tensor:
        """The variance and the half wave."""
        unit = 1 + run.levels(place)[1] ** 2
        wave = self.gamma * math.sin(math.pi * (place.count - 1 - place.index) / place.count)
        return variance + unit * wave * self.first(variance, unit, run)

    @abstractmethod
    def first(self, variance: float | Tensor, unit: float, run: Run) -> float | Tensor:
        """Variance of the first step, as one of x_t; `unit` makes those of the present step x."""


@dataclass(frozen=True)
class Sine(Widened):
    """Adds a half wave of the first step's posterior variance. After Ma et al. (2023), eq. 5.

    That variance in place of the largest one that was learned is ours: an image does not depend
    on the others of its batch.
    """

    def first(self, variance: float | Tensor, unit: float, run: Run) -> float:
        """Small variance of the first step."""
        sigma, sigma_next = run.sigmas[:2]
        return posterior(sigma, sigma_next)[1] / (1 + sigma_next**2)


@dataclass(frozen=True)
class ReleasedSine(Widened):
    """Adds a half wave as the published code of Ma et al. (2023) does; to reproduce it.

    In place of the first variance it has the largest so far of one pixel: the first of the first
    image. So all images depend on which one is first in their batch; `Sine` is for use.
    """

    def first(self, variance: float | Tensor, unit: float, run: Run) -> float | Tensor:
        """Running maximum over the steps of this run."""
        pixel = variance[0, 0, 0, 0] if isinstance(variance, Tensor) else variance
        largest: float | Tensor = run.memory.get("largest_variance", 0.0)
        run.memory["largest_variance"] = largest = greater(pixel / unit, largest)
        return largest


def greater(one: float | Tensor, other: float | Tensor) -> float | Tensor:
    """The greater of two numbers; one on a device stays there."""
    if isinstance(one, Tensor):
        return torch.maximum(one, torch.as_tensor(other, dtype=one.dtype, device=one.device))
    return max(one, other)
