"""EDM's ablation sampler: the probability flow along other times and scalings than sigma itself.

With noise sigma(t) and signal s(t), the scaled state s * x follows

    d(s x) / dt = s * sigma'(t) * ((x - denoised(x, sigma)) / sigma + x * d log(s) / d sigma)

and `Heun` is the case t = sigma, s = 1. Karras et al. (2022), eq. 4. All choices have the same
solution; they differ in the error that a finite number of steps makes.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

from torch import Tensor

from robustguide.interfaces import Place
from robustguide.noise import LinearTime, Time
from robustguide.samplers.base import Run
from robustguide.samplers.heun import Heun


class Scaling(ABC):
    """Scale of the signal, as a function of the noise level relative to it."""

    @abstractmethod
    def s(self, sigma: float) -> float:
        """Scale at a noise level."""

    @abstractmethod
    def slope(self, sigma: float) -> float:
        """Derivative of log(s) with respect to sigma."""


@dataclass(frozen=True)
class Unscaled(Scaling):
    """The signal keeps its scale."""

    def s(self, sigma: float) -> float:
        """1."""
        return 1.0

    def slope(self, sigma: float) -> float:
        """0."""
        return 0.0


@dataclass(frozen=True)
class VPScaling(Scaling):
    """Signal and noise together keep the variance of unit data."""

    def s(self, sigma: float) -> float:
        """`1 / sqrt(1 + sigma**2)`."""
        return 1 / math.sqrt(1 + sigma**2)

    def slope(self, sigma: float) -> float:
        """`-sigma / (1 + sigma**2)`."""
        return -sigma / (1 + sigma**2)


@dataclass(frozen=True)
class RungeKutta(Heun):
    """One or two evaluations a step, along any time and scaling. Karras et al. (2022), Alg. 3.

    Args:
        time: What is stepped in.
        scaling: Scale of the state that is stepped.
        alpha: Where in a step the second evaluation is made, in (0, 1]: 1 is Heun's method, 1/2
            the midpoint's, 2/3 Ralston's. Null makes none: Euler's method.

    Raises:
        ValueError: For another alpha; see `Heun` for its arguments.
    """

    time: Time = field(default_factory=LinearTime)
    scaling: Scaling = field(default_factory=Unscaled)
    alpha: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not 0 < self.alpha <= 1:
            raise ValueError(
                f"alpha must lie in (0, 1] or be null, got {self.alpha}; 1 is Heun's method, "
                "null is Euler's."
            )

    def step(self, run: Run, x: Tensor, place: Place) -> Tensor:
        """Churn and nudge, and a step of the rule in its own time."""
        s, sigma_next = self.scaling.s, run.levels(place)[1]
        x, sigma = self.churned(run, x, place)
        place = replace(place, sigma=sigma)
        denoised = self.denoised(run, x, sigma, place)
        run.observe(place, x, denoised)
        slope, scaled = self.slope(x, denoised, sigma), s(sigma) * x
        t = self.time.t(sigma)
        h = self.time.t(sigma_next) - t
        if self.alpha is not None and sigma_next > 0:
            sigma = self.time.sigma(t + self.alpha * h)
            x = (scaled + self.alpha * h * slope) / s(sigma)
            denoised = self.ahead(run, x, sigma, place)
            share = 1 / (2 * self.alpha)
            slope = (1 - share) * slope + share * self.slope(x, denoised, sigma)
        return (scaled + h * slope) / s(sigma_next)

    def slope(self, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        """Derivative of the scaled state with respect to the time."""
        rate = self.scaling.s(sigma) * self.time.rate(self.time.t(sigma))
        return rate * ((x - denoised) / sigma + self.scaling.slope(sigma) * x)
