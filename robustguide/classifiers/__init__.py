"""Classifiers of noisy images, and off-the-shelf networks that become one."""

from robustguide.classifiers.calibrated import (
    BandTemperature,
    Calibrated,
    Scaling,
    SmoothTemperature,
    Temperature,
    Tempering,
    VectorScaling,
)
from robustguide.classifiers.clip import ZeroShot
from robustguide.classifiers.combined import Combined
from robustguide.classifiers.names import class_names, displaced
from robustguide.classifiers.off_the_shelf import NoiseConditioned, OffTheShelf
from robustguide.classifiers.smooth import Smooth, Softening
from robustguide.classifiers.timed import SigmaConditioned, Timed
from robustguide.classifiers.wrappers import Decoded, Relabelled, Resized, Wrapper

__all__ = [
    "BandTemperature",
    "Calibrated",
    "Combined",
    "Decoded",
    "NoiseConditioned",
    "OffTheShelf",
    "Relabelled",
    "Resized",
    "Scaling",
    "SigmaConditioned",
    "Smooth",
    "SmoothTemperature",
    "Softening",
    "Temperature",
    "Tempering",
    "Timed",
    "VectorScaling",
    "Wrapper",
    "ZeroShot",
    "class_names",
    "displaced",
]
