"""From an image of any size to a square one: the centre crop, and the random one of training.

Both halve the image with a box filter while it is twice too large, resize its shorter side with
the bicubic filter and cut out a square, as Dhariwal and Nichol (2021) prepared ImageNet. FID
depends on this, so it is one recipe and has no options.
"""

import math
from abc import ABC, abstractmethod

import numpy as np
from PIL import Image


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of `size` pixels, after the shorter side was resized to `size`."""
    image = shrink(image, size)
    return cut(image, size, (image.width - size) // 2, (image.height - size) // 2)


def shrink(image: Image.Image, shorter: int) -> Image.Image:
    """Resizes the shorter side to `shorter` pixels."""
    while min(image.size) >= 2 * shorter:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = shorter / min(image.size)
    if scale == 1:
        return image
    width, height = round(image.width * scale), round(image.height * scale)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def cut(image: Image.Image, size: int, left: int, top: int) -> Image.Image:
    """The square of `size` pixels whose upper left corner is given."""
    if image.size == (size, size):
        return image
    return image.crop((left, top, left + size, top + size))


class Augment(ABC):
    """A random change of a training image."""

    @abstractmethod
    def __call__(self, image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
        """A square of `size` pixels; all chance comes from `rng`, one for each epoch and image."""


class CropAndFlip(Augment):
    """A random square, mirrored half of the time: the training recipe of ADM's classifiers.

    Args:
        min_fraction: Smallest side of the square, as a fraction of the image's shorter side; 1
            on square images mirrors alone.
        max_fraction: Largest side of the square.
        flip: Probability of mirroring left and right.
    """

    def __init__(
        self, min_fraction: float = 0.8, max_fraction: float = 1.0, flip: float = 0.5
    ) -> None:
        if not 0 < min_fraction <= max_fraction <= 1:
            raise ValueError(
                f"The crop's fractions are {min_fraction} to {max_fraction}; expected "
                "0 < min_fraction <= max_fraction <= 1."
            )
        if not 0 <= flip <= 1:
            raise ValueError(f"flip is {flip}; expected a probability between 0 and 1.")
        self.min_fraction, self.max_fraction, self.flip = min_fraction, max_fraction, flip

    def __call__(self, image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
        """Draws the scale, the place and the mirroring, in this order."""
        smallest = math.ceil(size / self.max_fraction)
        largest = math.ceil(size / self.min_fraction)
        image = shrink(image, int(rng.integers(smallest, largest, endpoint=True)))
        top = int(rng.integers(image.height - size, endpoint=True))
        left = int(rng.integers(image.width - size, endpoint=True))
        image = cut(image, size, left, top)
        mirrored = rng.random() < self.flip
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image
