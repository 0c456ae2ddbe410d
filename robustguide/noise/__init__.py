"""The one noise coordinate, and everything that knows how it relates to others.

Outside `nets/` a noisy image is `x = x_0 + sigma * eps`, with images in [-1, 1]. The discrete
variance-preserving chain of Ho et al. (2020) is a change of units:

    alpha_bar = 1 / (1 + sigma**2)                1 - alpha_bar = sigma**2 * alpha_bar
    x_t = x / sqrt(1 + sigma**2)

Tables and grids are float64 on the host, so that no loop over noise levels waits for a device.
"""

from robustguide.noise.distributions import Clipped, LogNormal, NoiseDistribution, UniformT
from robustguide.noise.grids import (
    ChainGrid,
    ExponentialGrid,
    Grid,
    RhoGrid,
    StridedGrid,
    TableGrid,
    VPGrid,
    respaced,
)
from robustguide.noise.levels import (
    LEVELS,
    ContinuousLevels,
    DiscreteLevels,
    Levels,
    cosine_levels,
    linear_levels,
    scaled_linear_levels,
)
from robustguide.noise.times import LinearTime, RootTime, Time, VPTime, vp_time
from robustguide.noise.units import (
    alpha_bar_of,
    expand,
    finest,
    noise_like,
    perturb,
    sigma_of,
    vp_scale,
)

__all__ = [
    "LEVELS",
    "ChainGrid",
    "Clipped",
    "ContinuousLevels",
    "DiscreteLevels",
    "ExponentialGrid",
    "Grid",
    "Levels",
    "LinearTime",
    "LogNormal",
    "NoiseDistribution",
    "RhoGrid",
    "RootTime",
    "StridedGrid",
    "TableGrid",
    "Time",
    "UniformT",
    "VPGrid",
    "VPTime",
    "alpha_bar_of",
    "cosine_levels",
    "expand",
    "finest",
    "linear_levels",
    "noise_like",
    "perturb",
    "respaced",
    "scaled_linear_levels",
    "sigma_of",
    "vp_scale",
    "vp_time",
]
