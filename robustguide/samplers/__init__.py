"""Samplers: from noise to images, with any denoiser and any sum of guidance terms."""

from robustguide.samplers.ablation import RungeKutta, Scaling, Unscaled, VPScaling
from robustguide.samplers.ancestral import (
    Ancestral,
    GuidanceVariance,
    Large,
    Learned,
    Small,
    Variance,
)
from robustguide.samplers.base import Observation, Sampler
from robustguide.samplers.ddim import DDIM
from robustguide.samplers.door import sample
from robustguide.samplers.dpm import DPMSolver2M
from robustguide.samplers.euler import EulerAncestral
from robustguide.samplers.heun import Heun
from robustguide.samplers.nudge import Nudge
from robustguide.samplers.schedule import ReleasedSine, Sine
from robustguide.samplers.seeds import SeededNoise, evaluation_noise

__all__ = [
    "DDIM",
    "Ancestral",
    "DPMSolver2M",
    "EulerAncestral",
    "GuidanceVariance",
    "Heun",
    "Large",
    "Learned",
    "Nudge",
    "Observation",
    "ReleasedSine",
    "RungeKutta",
    "Sampler",
    "Scaling",
    "SeededNoise",
    "Sine",
    "Small",
    "Unscaled",
    "VPScaling",
    "Variance",
    "evaluation_noise",
    "sample",
]
