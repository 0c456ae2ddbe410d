"""Lightning modules: training of classifiers, denoisers and codecs, and guided generation."""

from robustguide.modules.autoencode import Autoencoding
from robustguide.modules.denoise import Denoising
from robustguide.modules.generate import Generation
from robustguide.modules.robust import RobustClassification

__all__ = ["Autoencoding", "Denoising", "Generation", "RobustClassification"]
