"""Euler's method for the probability flow, with a share of the noise drawn afresh.

    x' = x + (down - s) (x - denoised) / s + up noise          down**2 + up**2 = s'**2

This is DDIM's step in other words, so there is one loop for both.
"""

from dataclasses import dataclass, field

from robustguide.noise import Grid, RhoGrid
from robustguide.samplers.ddim import DDIM


@dataclass(frozen=True)
class EulerAncestral(DDIM):
    """Euler's ancestral sampler on EDM's levels; eta 0 is plain Euler. Song et al. (2021), eq. 12.

    At eta 1 it is `Ancestral` with the small variance, if score terms do not guide: they move the
    denoised image here, and there the mean by the variance.

    Args:
        grid: Noise levels visited.
        eta: 0 draws no noise, 1 as much as the posterior has.
    """

    grid: Grid = field(default_factory=RhoGrid)
    eta: float = 1.0
