"""Metrics of classifiers by noise level and of generated images: additive sums, pure functions."""

from robustguide.metrics.calibration import (
    CalibrationByNoise,
    Reliability,
    band_of,
    level_of,
    tally,
    wilson_limits,
)
from robustguide.metrics.features import ClassifierFeatures
from robustguide.metrics.frechet import (
    FeatureMoments,
    Frechet,
    FrechetByNoise,
    FrechetDistance,
    Moments,
    frechet_distance,
)

__all__ = [
    "CalibrationByNoise",
    "ClassifierFeatures",
    "FeatureMoments",
    "Frechet",
    "FrechetByNoise",
    "FrechetDistance",
    "Moments",
    "Reliability",
    "band_of",
    "frechet_distance",
    "level_of",
    "tally",
    "wilson_limits",
]
