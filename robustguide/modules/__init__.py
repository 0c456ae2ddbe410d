"""Lightning modules: training of classifiers, denoisers and codecs, and guided generation."""

from robustguide.modules.autoencode import Autoencoding
from robustguide.modules.contrastive import CaptionMatching
from robustguide.modules.denoise import Denoising
from robustguide.modules.generate import Generation
from robustguide.modules.robust import RobustClassification
from robustguide.modules.targets import (
    CleanImage,
    Goal,
    ModelGuidance,
    ScaleAwareModelGuidance,
    Target,
)

__all__ = [
    "Autoencoding",
    "CaptionMatching",
    "CleanImage",
    "Denoising",
    "Generation",
    "Goal",
    "ModelGuidance",
    "RobustClassification",
    "ScaleAwareModelGuidance",
    "Target",
]
