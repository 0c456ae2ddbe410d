"""Distributions of the noise levels that networks are trained at."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from robustguide.noise.levels import DiscreteLevels
from robustguide.noise.units import finest


class NoiseDistribution(ABC):
    """Distribution of the noise levels that a network is trained at, given by its quantiles."""

    @abstractmethod
    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Noise level below which a share u in (0, 1) of the draws lies."""

    def sample(
        self, count: int, device: torch.device | str, generator: torch.Generator | None = None
    ) -> Float[Tensor, " count"]:
        """Independent levels, float32, drawn on the device."""
        u = torch.rand(count, device=device, generator=generator)
        return self.quantile(u.clamp(2**-25, 1 - 2**-24)).float()


class UniformT(NoiseDistribution):
    """Every index of a discrete chain with the same probability, as ADM trains.

    Args:
        levels: The chain.
    """

    def __init__(self, levels: DiscreteLevels) -> None:
        self.levels = levels

    def quantile(self, u: Tensor) -> Tensor:
        """Level of the index `floor(u T)`."""
        table, _ = self.levels.tables(u.device)
        return table[(u * len(self.levels)).long()]


class LogNormal(NoiseDistribution):
    """Normal in log sigma. Karras et al. (2022), table 1: mean -1.2, standard deviation 1.2.

    Args:
        mean: Mean of log sigma.
        std: Standard deviation of log sigma, positive.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        if not (std > 0 and math.isfinite(mean) and math.isfinite(std)):
            raise ValueError(f"LogNormal needs a finite mean and std > 0, got {mean} and {std}.")
        self.mean, self.std = mean, std

    def quantile(self, u: Tensor) -> Tensor:
        """Exponential of the normal quantile."""
        normal: Tensor = torch.special.ndtri(u)
        return (self.mean + self.std * normal).exp()


class Clipped(NoiseDistribution):
    """Another distribution, conditioned on [sigma_min, sigma_max] (no mass piles up at its ends).

    Args:
        distribution: The distribution to cut.
        sigma_min: Lower end of the range, included: a level of a chain that lies there is drawn.
        sigma_max: Upper end of the range, included as well.

    Raises:
        ValueError: When the distribution has no mass in the range.
    """

    def __init__(
        self, distribution: NoiseDistribution, sigma_min: float = 0.0, sigma_max: float = math.inf
    ) -> None:
        self.distribution = distribution
        _, self.low = self._bracket(lambda sigma: sigma < sigma_min)
        self.high, _ = self._bracket(lambda sigma: sigma <= sigma_max)
        if not (sigma_min <= sigma_max and self.low < self.high):
            raise ValueError(
                f"No noise level lies in [{sigma_min}, {sigma_max}]; widen the range that is "
                "clipped to."
            )

    def _bracket(self, is_below: Callable[[float], bool]) -> tuple[float, float]:
        """Last share whose quantile is below an end, first one above; found by bisection."""
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = torch.tensor([(low + high) / 2], dtype=torch.float64, device="cpu")
            below = is_below(self.distribution.quantile(middle).item())
            low, high = (middle.item(), high) if below else (low, middle.item())
        return low, high

    def quantile(self, u: Tensor) -> Tensor:
        """Quantile of the part that is left."""
        dtype = finest(u.device)  # a float32 share near 1 rounds to 1, whose quantile is infinite
        share = self.low + u.to(dtype) * (self.high - self.low)
        return self.distribution.quantile(share.clamp(max=1 - torch.finfo(dtype).eps / 2))
