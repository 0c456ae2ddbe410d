"""DPM-Solver++(2M): the probability flow in log sigma, with the last two denoised images.

With h = log(s / s'), a step is exact for an image D that stays, taken half a step ahead:

    x' = D + (s'/s) (x - D)      D = denoised + h / (2 h_last) (denoised - denoised_last)

Lu et al.'s lambda is -log sigma, and their alpha drops out with x_t = alpha x.
"""

import math
from dataclasses import dataclass, field

from torch import Tensor

from robustguide.interfaces import Place
from robustguide.noise import Grid, RhoGrid
from robustguide.samplers.base import Run, Sampler, per_row


def extrapolation(sigma_last: float, sigma: float, sigma_next: float) -> float:
    """Weight of the change since the last denoised image; 0 in the step to noise level 0."""
    if sigma_next == 0:
        return 0.0  # an infinite step: only the denoised image itself is finite
    return math.log(sigma / sigma_next) / math.log(sigma_last / sigma) / 2


@dataclass(frozen=True)
class DPMSolver2M(Sampler):
    """DPM-Solver++ of second order, one evaluation a step. Lu et al. (2022), Alg. 2.

    All terms of guidance move the denoised image before it is extrapolated, as theirs do. The
    first and the last step are of first order.

    Args:
        grid: Noise levels visited.
    """

    grid: Grid = field(default_factory=RhoGrid)

    def step(self, run: Run, x: Tensor, place: Place) -> Tensor:
        """Towards the denoised image, extrapolated from that of the step before."""
        sigma, sigma_next = run.levels(place)
        denoised = run.guided.predict(x, per_row(sigma, x), run.y, place).denoised
        run.observe(place, x, denoised)
        towards = denoised
        if place.index > 0:
            share = extrapolation(run.sigmas[place.index - 1], sigma, sigma_next)
            towards = denoised + share * (denoised - run.memory["last"])
        if place.repeat == self.repeated(place.index, run.steps) - 1:
            run.memory["last"] = denoised
        return towards + sigma_next / sigma * (x - towards)
