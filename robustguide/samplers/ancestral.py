"""Ancestral sampling of the discrete chain, written between two noise levels s > s'.

With r = (s'/s)**2 the posterior mean is `lerp(denoised, x, r)`, its small variance s'**2 (1 - r),
its large one (s**2 - s'**2) (1 + s'**2) / (1 + s**2): Ho et al. (2020), eq. 7, in these units.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from robustguide.interfaces import Denoiser, Place
from robustguide.samplers.base import Run, Sampler, per_row


class Variance(ABC):
    """Variance of a transition, from its smallest and largest reasonable value."""

    learned = False

    @abstractmethod
    def __call__(
        self, small: float, large: float, floor: float, fraction: Tensor | None
    ) -> float | Tensor:
        """Variance in units of x at s'; `floor` stands in for a small or large variance of 0."""


@dataclass(frozen=True)
class Learned(Variance):
    """Between small and large in log space, where the network says.

    Nichol and Dhariwal (2021), eq. 15.
    """

    learned = True

    def __call__(
        self, small: float, large: float, floor: float, fraction: Tensor | None
    ) -> float | Tensor:
        """Per pixel."""
        if fraction is None:
            raise ValueError("The denoiser's prediction carries no fraction of the variance.")
        low, high = math.log(max(small, floor)), math.log(large)
        return (low + fraction * (high - low)).exp()


@dataclass(frozen=True)
class Small(Variance):
    """Variance of the posterior; 0 in the last step, where guidance does not move the mean."""

    def __call__(
        self, small: float, large: float, floor: float, fraction: Tensor | None
    ) -> float | Tensor:
        """A number."""
        return small


@dataclass(frozen=True)
class Large(Variance):
    """Variance of the forward step."""

    def __call__(
        self, small: float, large: float, floor: float, fraction: Tensor | None
    ) -> float | Tensor:
        """A number."""
        return large if small > 0 else floor


class GuidanceVariance(ABC):
    """What moves the mean by the score, in place of the variance of the noise."""

    @abstractmethod
    def __call__(self, variance: float | Tensor, run: Run, place: Place) -> float | Tensor:
        """In units of x at s', as the variance of the step that is given."""


def posterior(sigma: float, sigma_next: float) -> tuple[float, float, float, float]:
    """Share of x kept in the mean, small and large variance, and alpha_bar / alpha_bar_next."""
    keep = (sigma_next / sigma) ** 2
    ratio = (1 + sigma_next**2) / (1 + sigma**2)
    return keep, sigma_next**2 * (1 - keep), (sigma**2 - sigma_next**2) * ratio, ratio


def ancestral_step(
    x: Tensor,
    denoised: Tensor,
    displacement: Tensor,
    variance: float | Tensor,
    sigma: float,
    sigma_next: float,
) -> Tensor:
    """Mean of x at s'. Score terms move it by the variance: Dhariwal and Nichol (2021), Alg. 1."""
    keep, _, _, ratio = posterior(sigma, sigma_next)
    score = displacement / sigma**2
    return denoised + keep * (x - denoised) + variance * score / math.sqrt(ratio)


def last_variance(sigma_1: float, sigma_0: float) -> float:
    """Stand-in for the variance of the last step, which has none: the step before's, as x_t."""
    return sigma_0**2 * (1 - (sigma_0 / sigma_1) ** 2) / (1 + sigma_0**2)


@dataclass(frozen=True)
class Ancestral(Sampler):
    """DDPM's sampler, on any grid. Ho et al. (2020), Alg. 2; guided as ADM guides it.

    Args:
        variance: Rule for the variance of a transition.
        guidance_variance: What score terms are multiplied by in its place.
    """

    variance: Variance = field(default_factory=Small)
    guidance_variance: GuidanceVariance | None = None

    def check(self, denoiser: Denoiser) -> None:
        """Refuses a learned variance that is not there.

        Raises:
            ValueError: When the denoiser does not learn variances.
        """
        if self.variance.learned and not denoiser.learns_variance:
            raise ValueError(
                "The sampler asks for a learned variance, but this denoiser predicts none; use "
                "robustguide.samplers.Small or robustguide.samplers.Large."
            )

    def step(self, run: Run, x: Tensor, place: Place) -> Tensor:
        """A draw from the posterior, its mean moved by the score terms."""
        sigma, sigma_next = run.levels(place)
        prediction, displacement = run.guided.split(x, per_row(sigma, x), run.y, place)
        run.observe(place, x, prediction.denoised)
        _, small, large, _ = posterior(sigma, sigma_next)
        floor = 0.0 if sigma_next > 0 or run.steps < 2 else last_variance(*run.sigmas[-3:-1])
        variance = self.variance(small, large, floor, prediction.fraction)
        moving = variance
        if self.guidance_variance is not None:
            moving = self.guidance_variance(variance, run, place)
        mean = ancestral_step(x, prediction.denoised, displacement, moving, sigma, sigma_next)
        return mean if sigma_next == 0 else mean + variance**0.5 * run.randn_like(x)
