"""Classifiers of noisy images, and off-the-shelf networks that become one."""

from robustguide.classifiers.clip import ZeroShot
from robustguide.classifiers.off_the_shelf import NoiseConditioned, OffTheShelf
from robustguide.classifiers.smooth import Smooth, Softening
from robustguide.classifiers.timed import SigmaConditioned, Timed
from robustguide.classifiers.wrappers import Decoded, Relabelled, Resized, Wrapper

__all__ = [
    "Decoded",
    "NoiseConditioned",
    "OffTheShelf",
    "Relabelled",
    "Resized",
    "SigmaConditioned",
    "Smooth",
    "Softening",
    "Timed",
    "Wrapper",
    "ZeroShot",
]
