"""The time in which a sampler steps, as a function of the noise level. Karras et al. (2022)."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor


class Time(ABC):
    """A time that noise grows in, from 0 at sigma 0; what the steps of an ODE solver count."""

    @abstractmethod
    def sigma(self, t: float) -> float:
        """Noise level at a time."""

    @abstractmethod
    def t(self, sigma: float) -> float:
        """Time of a noise level."""

    @abstractmethod
    def rate(self, t: float) -> float:
        """Derivative of sigma(t), t > 0."""


@dataclass(frozen=True)
class LinearTime(Time):
    """Time is sigma itself. Karras et al. (2022), table 1, column "Ours"."""

    def sigma(self, t: float) -> float:
        """`t`."""
        return t

    def t(self, sigma: float) -> float:
        """`sigma`."""
        return sigma

    def rate(self, t: float) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class RootTime(Time):
    """Variance grows at a constant rate. Karras et al. (2022), table 1, column "VE"."""

    def sigma(self, t: float) -> float:
        """`sqrt(t)`."""
        return math.sqrt(t)

    def t(self, sigma: float) -> float:
        """`sigma**2`."""
        return sigma**2

    def rate(self, t: float) -> float:
        """`1 / (2 sqrt(t))`."""
        return 0.5 / math.sqrt(t)


Real = TypeVar("Real", float, Tensor)


@dataclass(frozen=True)
class VPTime(Time):
    """The continuous variance-preserving process. Karras et al. (2022), table 1, column "VP".

    `1 + sigma(t)**2 = exp(beta_d t**2 / 2 + beta_min t)`, with t from 0 to 1.

    Args:
        beta_d: Growth of beta from t = 0 to t = 1, positive.
        beta_min: beta at t = 0. It may be a little below 0, as in the published runs that join
            the levels 0.002 and 80; then sigma is real above a first time alone.

    Raises:
        ValueError: For numbers with which sigma(1) is not positive.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.beta_d < math.inf and -self.beta_d / 2 < self.beta_min < math.inf):
            raise ValueError(
                f"VPTime needs beta_d > 0 and beta_min > -beta_d / 2, got {self.beta_d} and "
                f"{self.beta_min}; 19.9 and 0.1 are usual."
            )

    def sigma(self, t: float) -> float:
        """Noise level at a time."""
        return math.sqrt(math.expm1(self.beta_d * t**2 / 2 + self.beta_min * t))

    def t(self, sigma: float) -> float:
        """Time of a noise level."""
        return self.root(math.log1p(sigma**2)) if sigma > 0 else 0.0

    def rate(self, t: float) -> float:
        """Derivative of sigma(t), t > 0."""
        sigma = self.sigma(t)
        return (self.beta_min + self.beta_d * t) * (sigma + 1 / sigma) / 2

    def root(self, growth: Real) -> Real:
        """Time at which `log(1 + sigma**2)` has a positive value."""
        root: Real = (self.beta_min**2 + 2 * self.beta_d * growth) ** 0.5
        if self.beta_min > 0:  # of the two forms of the root, the one that does not cancel
            return 2 * growth / (root + self.beta_min)
        return (root - self.beta_min) / self.beta_d


def vp_time(sigma_min: float, sigma_max: float, epsilon: float = 1e-3) -> VPTime:
    """The process that has level `sigma_min` at time `epsilon` and `sigma_max` at time 1.

    Raises:
        ValueError: For levels that no such process connects.
    """
    if not (0 < sigma_min < sigma_max < math.inf and 0 < epsilon < 1):
        raise ValueError(
            f"vp_time needs 0 < sigma_min < sigma_max and 0 < epsilon < 1, got {sigma_min}, "
            f"{sigma_max} and {epsilon}."
        )
    low, high = math.log1p(sigma_min**2) / epsilon, math.log1p(sigma_max**2)
    beta_d = 2 * (high - low) / (1 - epsilon)
    return VPTime(beta_d, high - beta_d / 2)
