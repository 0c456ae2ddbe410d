"""Lightning callbacks: metrics, figures, exported checkpoints and results of a run."""

from robustguide.callbacks.acceleration import Acceleration
from robustguide.callbacks.by_noise import DenoisedByNoise, GradientsByNoise
from robustguide.callbacks.calibration import TrajectoryCalibration
from robustguide.callbacks.ema import EMA
from robustguide.callbacks.export import Export
from robustguide.callbacks.frames import Frames
from robustguide.callbacks.meter import Meter
from robustguide.callbacks.parts import PartWriter
from robustguide.callbacks.progress import Progress
from robustguide.callbacks.quality import Quality
from robustguide.callbacks.report_card import ReportCards
from robustguide.callbacks.reporting import Reporting
from robustguide.callbacks.requeue import Requeue
from robustguide.callbacks.results import Results
from robustguide.callbacks.samples import ClassAccuracy, SampleGrid, SampleWriter
from robustguide.callbacks.throughput import Throughput

__all__ = [
    "EMA",
    "Acceleration",
    "ClassAccuracy",
    "DenoisedByNoise",
    "Export",
    "Frames",
    "GradientsByNoise",
    "Meter",
    "PartWriter",
    "Progress",
    "Quality",
    "ReportCards",
    "Reporting",
    "Requeue",
    "Results",
    "SampleGrid",
    "SampleWriter",
    "Throughput",
    "TrajectoryCalibration",
]
