"""What networks of the variance-preserving family are told in place of sigma."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from robustguide.noise.times import VPTime
from robustguide.noise.units import finest

# where a network is evaluated if nothing else is said, sigmas
LEVELS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Levels(ABC):
    """What a network of the variance-preserving family is told in place of sigma."""

    @abstractmethod
    def t(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Time of a noise level, as float32."""

    @abstractmethod
    def snap(self, sigma: float) -> float:
        """The nearest level that a network was told of in training; 0 stays 0."""


class DiscreteLevels(Levels):
    """The noise levels of a discrete chain, and the way back from a level to its index.

    Args:
        betas: Variances added at the T steps of the variance-preserving chain, each in (0, 1).
        interpolated: Between two entries, t is interpolated in log sigma; otherwise the entry
            with the nearest sigma is taken, as Karras et al. (2022), appendix C.3.4, do.

    Raises:
        ValueError: For a beta outside (0, 1).
    """

    def __init__(self, betas: Sequence[float], interpolated: bool = False) -> None:
        table = np.asarray(betas, dtype=np.float64)
        if table.ndim != 1 or not len(table) or not ((table > 0) & (table < 1)).all():
            raise ValueError(
                f"betas must be a list of numbers in (0, 1), got {len(table)} between "
                f"{table.min(initial=np.inf)} and {table.max(initial=-np.inf)}; "
                "give the variances of the chain, not alpha_bar."
            )
        self.betas = table
        self.interpolated = interpolated
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @cached_property
    def alpha_bars(self) -> NDArray[np.float64]:
        """Cumulative products, float64 (T,)."""
        return np.cumprod(1 - self.betas, dtype=np.float64)

    @cached_property
    def sigmas(self) -> NDArray[np.float64]:
        """Noise levels, ascending, float64 (T,)."""
        return np.sqrt((1 - self.alpha_bars) / self.alpha_bars, dtype=np.float64)

    def __len__(self) -> int:
        return len(self.betas)

    def snap(self, sigma: float) -> float:
        """The table's nearest level; 0 stays 0. Identity for interpolated levels."""
        if self.interpolated or sigma == 0:
            return sigma
        return float(self.sigmas[np.abs(self.sigmas - sigma).argmin()])

    def t(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Index into the table, as float32; clamped to its ends, so that sigma 0 is t 0."""
        sigmas, log_sigmas = self.tables(sigma.device)
        table, place = sigmas, sigma.to(sigmas.dtype)
        if self.interpolated:
            table, place = log_sigmas, place.log()
        place = place.clamp(table[0], table[-1])
        above = torch.searchsorted(table, place).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        fraction = (place - low) / (high - low)
        if not self.interpolated:
            fraction = (fraction > 0.5).to(fraction)
        return (above - 1 + fraction).float()

    def tables(self, device: torch.device) -> tuple[Float[Tensor, " t"], Float[Tensor, " t"]]:
        """Levels and log levels on a device, copied there once; see `finest`."""
        if device not in self._tables:
            self._tables[device] = (
                torch.tensor(self.sigmas.tolist(), dtype=finest(device), device=device),
                torch.tensor(np.log(self.sigmas).tolist(), dtype=finest(device), device=device),
            )
        return self._tables[device]


class ContinuousLevels(Levels):
    """A network of the continuous process, told `(steps - 1) t`. Karras et al. (2022), table 1.

    Args:
        beta_d: See `VPTime`.
        beta_min: See `VPTime`.
        steps: Steps of the discrete chain whose indices the network's input continues.
        epsilon: Shortest time that the network was trained at; the longest is 1.

    Raises:
        ValueError: See `VPTime`.
    """

    def __init__(
        self,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        steps: int = 1000,
        epsilon: float = 1e-5,
    ) -> None:
        self.time = VPTime(beta_d, beta_min)
        self.steps = steps
        self.sigma_min, self.sigma_max = self.time.sigma(epsilon), self.time.sigma(1.0)

    def t(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Time in steps, as float32."""
        growth = (sigma.to(finest(sigma.device)) ** 2).log1p()
        return ((self.steps - 1) * self.time.root(growth)).float()

    def snap(self, sigma: float) -> float:
        """The level itself, or the end of the training range that it lies beyond; 0 stays 0."""
        return min(max(sigma, self.sigma_min), self.sigma_max) if sigma else sigma


def linear_levels(steps: int = 1000, interpolated: bool = False) -> DiscreteLevels:
    """Betas from 1e-4 to 0.02 in equal steps, rescaled to T steps. Ho et al. (2020), section 4."""
    return DiscreteLevels(
        np.linspace(1e-4, 0.02, steps).dot(1000 / steps).tolist(), interpolated=interpolated
    )


def scaled_linear_levels(
    steps: int = 1000, first: float = 0.00085, last: float = 0.012, interpolated: bool = False
) -> DiscreteLevels:
    """Betas whose roots are equally spaced; the defaults are Stable Diffusion's.

    Rombach et al. (2022) give no formula; the numbers are those of their published models.
    """
    betas = np.linspace(math.sqrt(first), math.sqrt(last), steps) ** 2
    return DiscreteLevels(betas.tolist(), interpolated=interpolated)


def cosine_levels(steps: int = 1000, interpolated: bool = False) -> DiscreteLevels:
    """Squared-cosine alpha_bar, betas at most 0.999. Nichol and Dhariwal (2021), eq. 17."""

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [
        min(1 - alpha_bar((t + 1) / steps) / alpha_bar(t / steps), 0.999) for t in range(steps)
    ]
    return DiscreteLevels(betas, interpolated=interpolated)
