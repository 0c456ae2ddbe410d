"""Classifiers of noisy images, and off-the-shelf networks that become one."""

from robustguide.classifiers.off_the_shelf import NoiseConditioned, OffTheShelf
from robustguide.classifiers.timed import SigmaConditioned, Timed

__all__ = ["NoiseConditioned", "OffTheShelf", "SigmaConditioned", "Timed"]
