"""Lightning modules: training of classifiers and denoisers, and guided generation."""

from robustguide.modules.denoise import Denoising
from robustguide.modules.generate import Generation
from robustguide.modules.robust import RobustClassification

__all__ = ["Denoising", "Generation", "RobustClassification"]
