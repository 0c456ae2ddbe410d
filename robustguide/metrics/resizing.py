"""How images come to the size that a network reads.

The same bytes through two of these ways differ by up to 160 of 255 in a pixel, and the distances
computed from them by more than most methods do. So each has a name of its own: the library or
framework, the filter and the side. Images that are no squares become squares.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x as like_tensorflow,
)

from robustguide.metrics.extractor import Pixels, Resize


def tf1_bilinear(pixels: Pixels, side: int) -> Float[Tensor, "b c {side} {side}"]:
    """Bilinear as in TensorFlow 1, without antialiasing: the pixel in the left corner stays."""
    like: Any = like_tensorflow  # has no annotations
    resized: Tensor = like(pixels.float(), (side, side), align_corners=False)
    return resized


def pil_bicubic(pixels: Pixels, side: int) -> Float[Tensor, "b c {side} {side}"]:
    """Pillow's bicubic of bytes: it antialiases, and rounds to bytes after each direction."""
    return _by_pillow(pixels, side, np.uint8)


def pil_bicubic_float(pixels: Pixels, side: int) -> Float[Tensor, "b c {side} {side}"]:
    """Pillow's bicubic of float32 numbers, clipped to 0..255 and not rounded."""
    return _by_pillow(pixels, side, np.float32).clamp_(0, 255)


def torch_bicubic_antialias(pixels: Pixels, side: int) -> Float[Tensor, "b c {side} {side}"]:
    """PyTorch's bicubic with antialiasing, not clipped: edges overshoot 0..255 by up to 30."""
    return F.interpolate(pixels.float(), (side, side), mode="bicubic", antialias=True)


def unchanged(pixels: Pixels) -> Float[Tensor, "b c h w"]:
    """For networks that read images at their own size, or resize them by themselves."""
    return pixels.float()


def _by_pillow(
    pixels: Pixels, side: int, dtype: type[np.uint8 | np.float32]
) -> Float[Tensor, "b c {side} {side}"]:
    """On the host, each channel alone; what Pillow makes of it follows from its type."""
    planes = pixels.cpu().flatten(0, 1).numpy().astype(dtype)
    resized = np.empty((len(planes), side, side), dtype)
    for place, plane in enumerate(planes):
        image = Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC)
        resized[place] = np.asarray(image)
    found = torch.from_numpy(resized).reshape(*pixels.shape[:2], side, side)
    return found.to(pixels.device).float()


METHODS = {
    "tf1-bilinear": tf1_bilinear,
    "pil-bicubic": pil_bicubic,
    "pil-bicubic-float": pil_bicubic_float,
    "torch-bicubic-antialias": torch_bicubic_antialias,
}


class To:
    """A way and a side, which can be copied and sent to other processes.

    Args:
        method: One of `METHODS`.
        side: Of the images afterwards.
    """

    def __init__(self, method: str, side: int) -> None:
        self.method, self.side = method, side

    def __call__(self, pixels: Pixels) -> Float[Tensor, "b c {self.side} {self.side}"]:
        """Numbers in the units of bytes, float32."""
        return METHODS[self.method](pixels, self.side)


def resize(name: str) -> Resize:
    """The way of a name: one of `RESIZES`, or one of them with another side.

    Raises:
        ValueError: For an unknown name; lists those that are known.
    """
    if name in RESIZES:
        return RESIZES[name]
    method, _, side = name.rpartition("-")
    if method in METHODS and side.isdecimal() and int(side) > 0:
        return To(method, int(side))
    raise ValueError(
        f"There is no resize {name!r}; give one of {', '.join(RESIZES)}, or one of them with "
        "another side behind the last dash."
    )


RESIZES: dict[str, Resize] = {
    "tf1-bilinear-299": To("tf1-bilinear", 299),
    "pil-bicubic-float-299": To("pil-bicubic-float", 299),
    "pil-bicubic-224": To("pil-bicubic", 224),
    "pil-bicubic-336": To("pil-bicubic", 336),
    "torch-bicubic-antialias-224": To("torch-bicubic-antialias", 224),
    "none": unchanged,
}
