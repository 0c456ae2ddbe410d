"""EDM's sampler: Heun's method for the probability flow, with optional churn.

dx / dsigma = (x - denoised(x, sigma)) / sigma
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor

from robustguide.guidance import Guided
from robustguide.interfaces import Place
from robustguide.noise import Grid, RhoGrid
from robustguide.samplers.base import Observation, Observe, RandnLike, Sampler, per_row


@dataclass(frozen=True)
class Heun(Sampler):
    """Karras et al. (2022), Alg. 2; without churn it is their Alg. 1.

    Args:
        grid: Noise levels visited.
        churn: Total amount of noise that is added and removed again, `S_churn`.
        churn_min: Lowest level with churn, `S_min`.
        churn_max: Highest level with churn, `S_max`.
        churn_noise: Standard deviation of the added noise, `S_noise`.
        guides_corrector: Whether the second evaluation of a step is guided as well. Without it
            the terms cost one evaluation a step and act with about half their weight, save in the
            last one, which has no corrector.

    Raises:
        ValueError: For a negative number or one that is not finite (`churn_max` may be infinite).
    """

    grid: Grid = field(default_factory=RhoGrid)
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0
    guides_corrector: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.churn < math.inf and 0 <= self.churn_noise < math.inf):
            raise ValueError(
                "churn and churn_noise must be finite numbers of at least 0, got "
                f"{self.churn} and {self.churn_noise}; churn 0 adds no noise."
            )
        if not 0 <= self.churn_min <= self.churn_max:
            raise ValueError(
                f"Churn needs 0 <= churn_min <= churn_max, got {self.churn_min} and "
                f"{self.churn_max}."
            )

    def run(
        self,
        guided: Guided,
        sigmas: tuple[float, ...],
        x: Tensor,
        y: Tensor,
        randn_like: RandnLike,
        observe: Observe,
    ) -> Tensor:
        """The loop."""
        steps = len(sigmas) - 1
        for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            raised = guided.snap(sigma * (1 + self.gamma(sigma, steps)))
            if raised > sigma:
                x = x + self.churn_noise * math.sqrt(raised**2 - sigma**2) * randn_like(x)
                sigma = raised
            place = Place(index, steps, sigma)
            denoised = guided.predict(x, per_row(sigma, x), y, place).denoised
            observe(Observation(place, x, denoised))
            slope = (x - denoised) / sigma
            euler = x + (sigma_next - sigma) * slope
            if sigma_next > 0:
                place = Place(index, steps, sigma_next, corrector=True)
                ahead = self.ahead(guided, euler, per_row(sigma_next, x), y, place)
                slope_next = (euler - ahead) / sigma_next
                euler = x + (sigma_next - sigma) * (slope + slope_next) / 2
            x = euler
        return x

    def ahead(
        self, guided: Guided, euler: Tensor, sigma: Tensor, y: Tensor, place: Place
    ) -> Tensor:
        """Denoised image at the end of an Euler step, for the corrector."""
        if self.guides_corrector:
            return guided.predict(euler, sigma, y, place).denoised
        return guided.clip(guided.denoiser.predict(euler, sigma, y).denoised)

    def gamma(self, sigma: float, steps: int) -> float:
        """Relative rise of the noise level before a step. Karras et al. (2022), Alg. 2, line 4."""
        if not self.churn_min <= sigma <= self.churn_max:
            return 0.0
        return min(self.churn / steps, math.sqrt(2) - 1)
