"""Metrics of classifiers by noise level and of generated images: additive sums, pure functions."""

from robustguide.metrics.answers import SMALL, Answers, AnswersByLevel
from robustguide.metrics.calibration import (
    CalibrationByNoise,
    Reliability,
    band_of,
    bin_of,
    level_of,
    tally,
    wilson_limits,
)
from robustguide.metrics.errors import (
    adaptive_ece,
    brier,
    class_gaps,
    classwise_ece,
    nll,
    smooth_ece,
)
from robustguide.metrics.features import ClassifierFeatures
from robustguide.metrics.frechet import (
    FeatureMoments,
    Frechet,
    FrechetByNoise,
    Moments,
    frechet_distance,
)
from robustguide.metrics.resampling import SamplingError
from robustguide.metrics.rows import Rows, RowsByLevel

__all__ = [
    "SMALL",
    "Answers",
    "AnswersByLevel",
    "CalibrationByNoise",
    "ClassifierFeatures",
    "FeatureMoments",
    "Frechet",
    "FrechetByNoise",
    "Moments",
    "Reliability",
    "Rows",
    "RowsByLevel",
    "SamplingError",
    "adaptive_ece",
    "band_of",
    "bin_of",
    "brier",
    "class_gaps",
    "classwise_ece",
    "frechet_distance",
    "level_of",
    "nll",
    "smooth_ece",
    "tally",
    "wilson_limits",
]
