"""Samplers: from noise to images, with any denoiser and any sum of guidance terms."""

from robustguide.samplers.ancestral import Ancestral, Large, Learned, Small, Variance
from robustguide.samplers.base import Observation, Sampler
from robustguide.samplers.ddim import DDIM
from robustguide.samplers.door import sample
from robustguide.samplers.heun import Heun
from robustguide.samplers.seeds import SeededNoise

__all__ = [
    "DDIM",
    "Ancestral",
    "Heun",
    "Large",
    "Learned",
    "Observation",
    "Sampler",
    "SeededNoise",
    "Small",
    "Variance",
    "sample",
]
