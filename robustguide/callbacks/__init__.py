"""Lightning callbacks: metrics, figures, exported checkpoints and results of a run."""

from robustguide.callbacks.calibration import NoiseCurves, TrajectoryCalibration
from robustguide.callbacks.ema import EMA
from robustguide.callbacks.export import Export
from robustguide.callbacks.frechet import FrechetOfSamples
from robustguide.callbacks.progress import Progress
from robustguide.callbacks.reporting import Reporting
from robustguide.callbacks.results import Results
from robustguide.callbacks.samples import ClassAccuracy, SampleGrid, SampleWriter

__all__ = [
    "EMA",
    "ClassAccuracy",
    "Export",
    "FrechetOfSamples",
    "NoiseCurves",
    "Progress",
    "Reporting",
    "Results",
    "SampleGrid",
    "SampleWriter",
    "TrajectoryCalibration",
]
