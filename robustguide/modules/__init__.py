"""Lightning modules: training of classifiers, denoisers and codecs, and guided generation."""

from robustguide.modules.autoencode import Autoencoding
from robustguide.modules.calibration import Calibration
from robustguide.modules.combination import Combination
from robustguide.modules.contrastive import CaptionMatching
from robustguide.modules.denoise import Denoising
from robustguide.modules.examination import Examination
from robustguide.modules.free import FreeClassification
from robustguide.modules.generate import Generation
from robustguide.modules.knobs import KnobSearch
from robustguide.modules.penalty import CalibrationPenalty
from robustguide.modules.report_card import ReportCard, Reverse
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
    "Calibration",
    "CalibrationPenalty",
    "CaptionMatching",
    "CleanImage",
    "Combination",
    "Denoising",
    "Examination",
    "FreeClassification",
    "Generation",
    "Goal",
    "KnobSearch",
    "ModelGuidance",
    "ReportCard",
    "Reverse",
    "RobustClassification",
    "ScaleAwareModelGuidance",
    "Target",
]
