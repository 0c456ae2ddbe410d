"""EDM's sampler: Heun's method for the probability flow, with optional churn and nudge.

dx / dsigma = (x - denoised(x, sigma)) / sigma
"""

import math
from dataclasses import dataclass, field, replace

from torch import Tensor

from robustguide.interfaces import Place
from robustguide.noise import Grid, RhoGrid
from robustguide.samplers.base import Run, Sampler, per_row
from robustguide.samplers.nudge import Nudge


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
        nudge: Sends the score terms through the state in place of the denoised image: it moves the
            state once a step, and both evaluations are then guided by reference terms alone.

    Raises:
        ValueError: For a negative number or one that is not finite (`churn_max` may be infinite).
    """

    grid: Grid = field(default_factory=RhoGrid)
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0
    guides_corrector: bool = True
    nudge: Nudge | None = None

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

    def step(self, run: Run, x: Tensor, place: Place) -> Tensor:
        """Churn and nudge, an Euler step, and its correction."""
        sigma_next = run.levels(place)[1]
        x, sigma = self.churned(run, x, place)
        place = replace(place, sigma=sigma)
        denoised = self.denoised(run, x, sigma, place)
        run.observe(place, x, denoised)
        slope = (x - denoised) / sigma
        euler = x + (sigma_next - sigma) * slope
        if sigma_next == 0:
            return euler
        slope_next = (euler - self.ahead(run, euler, sigma_next, place)) / sigma_next
        return x + (sigma_next - sigma) * (slope + slope_next) / 2

    def churned(self, run: Run, x: Tensor, place: Place) -> tuple[Tensor, float]:
        """State with the churn's noise and the nudge, and the level that it has then."""
        sigma = run.levels(place)[0]
        nudged = x if self.nudge is None else x + self.nudge(run, x, place)
        raised = run.guided.snap(sigma * (1 + self.gamma(sigma, run.steps)))
        if raised <= sigma:
            return nudged, sigma
        added = math.sqrt(raised**2 - sigma**2) * run.randn_like(x)
        return nudged + self.churn_noise * added, raised

    def denoised(self, run: Run, x: Tensor, sigma: float, place: Place) -> Tensor:
        """Denoised image, moved by the terms that a nudge does not take."""
        predict = run.guided.predict if self.nudge is None else run.guided.referred
        return predict(x, per_row(sigma, x), run.y, place).denoised

    def ahead(self, run: Run, euler: Tensor, sigma: float, place: Place) -> Tensor:
        """Denoised image after an Euler step to a level, for the corrector."""
        if self.guides_corrector:
            return self.denoised(run, euler, sigma, replace(place, sigma=sigma, corrector=True))
        guided = run.guided
        return guided.clip(guided.denoiser.predict(euler, per_row(sigma, euler), run.y).denoised)

    def gamma(self, sigma: float, steps: int) -> float:
        """Relative rise of the noise level before a step. Karras et al. (2022), Alg. 2, line 4."""
        if not self.churn_min <= sigma <= self.churn_max:
            return 0.0
        return min(self.churn / steps, math.sqrt(2) - 1)
