"""How one image lies in a shard: as a PNG or JPEG file, or as plain bytes."""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from robustguide.data.errors import Unreadable

SUFFIX = {"png": "png", "jpeg": "jpg", "raw": "npy"}


@dataclass(frozen=True)
class Form:
    """Eight bits a channel, as one file.

    Args:
        format: "png" (lossless), "jpeg", or "raw" for an array of numpy, which takes no decoding.
        quality: Of JPEG, 1 to 100; its colours keep the resolution of the image (4:4:4).
    """

    format: str = "png"
    quality: int = 95

    def __post_init__(self) -> None:
        """Checks both."""
        if self.format not in SUFFIX:
            raise ValueError(
                f"There is no format {self.format!r}; expected one of {', '.join(SUFFIX)}."
            )
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; expected 1 to 100.")

    @property
    def suffix(self) -> str:
        """Of the member of a tar file."""
        return SUFFIX[self.format]

    def encode(self, pixels: UInt8[np.ndarray, "c h w"]) -> bytes:
        """The bytes of a grey or colour image."""
        image = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
        file = io.BytesIO()
        if self.format == "raw":
            np.save(file, np.ascontiguousarray(image), allow_pickle=False)
        elif self.format == "png":
            Image.fromarray(image).save(file, "png")
        else:
            Image.fromarray(image).save(file, "jpeg", quality=self.quality, subsampling=0)
        return file.getvalue()


PNG = Form()


def from_raw(content: bytes, name: str) -> Image.Image:
    """The image of an array of numpy.

    Raises:
        Unreadable: If it is no array of bytes of a grey or colour image.
    """
    try:
        pixels = np.load(io.BytesIO(content), allow_pickle=False)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            raise ValueError(f"it holds {pixels.dtype} of shape {list(pixels.shape)}")
        return Image.fromarray(pixels)
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise Unreadable(
            f"Cannot read the image {name}: {error}; expected uint8 of shape (h, w) or (h, w, 3). "
            "Make the shard again."
        ) from error
