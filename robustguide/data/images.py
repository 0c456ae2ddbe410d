"""What a set of images is: three fixed splits of `(x_0, y, index)`, with class names and a shape.

`x_0` is float32 in [-1, 1], of shape (c, h, w); `y` an index below `num_classes`; `index` the
image's place in its split, which seeds the noise that evaluation adds to it. Greyscale and
colour images alike come as Pillow images with values 0 to 255, so one path crops them all.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from robustguide.data.crops import Augment, center_crop
from robustguide.data.errors import DataError, Unreadable
from robustguide.data.splits import SPLITS

Sample = tuple[Tensor, int, int]
Batch = tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"], Int[Tensor, " b"]]
Crop = Callable[[Image.Image, int], Image.Image]


class Samples(Dataset[Sample], ABC):
    """One split: place -> (x_0 (c, h, w), y, place).

    Args:
        shape: Channels, height and width of every x_0.
        num_classes: Labels lie below it.

    Attributes:
        is_random: Whether training draws something for each sample also without augmentation.
    """

    is_random = False

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        self.shape, self.num_classes = shape, num_classes

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """The sample as evaluation sees it, always the same."""

    @abstractmethod
    def drawn(self, index: int, augment: Augment | None, rng: np.random.Generator) -> Sample:
        """The sample as training sees it; all chance comes from `rng`."""

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch of them; PyTorch's loader asks for this."""
        return collate([self[index] for index in indices])


class Split(Samples):
    """One split of images: place -> (x_0 (c, h, w) in [-1, 1], y, place)."""

    @abstractmethod
    def load(self, index: int) -> tuple[Image.Image, int]:
        """The image as it is stored, with values 0 to 255, and its label."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """Names the image in an error."""

    def key(self, index: int) -> str:
        """Names the image wherever the data set lies."""
        return self.describe(index)

    def listed(self, index: int) -> str:
        """All that tells whether a list of the images is still the same."""
        return self.key(index)

    def read(self, index: int, crop: Crop) -> Sample:
        """The sample, cut out by `crop`."""
        image, y = self.load(index)
        return as_sample(image, y, index, self.shape, self.num_classes, self.describe, crop)

    def __getitem__(self, index: int) -> Sample:
        """The sample, cut out at the centre."""
        return self.read(index, center_crop)

    def drawn(self, index: int, augment: Augment | None, rng: np.random.Generator) -> Sample:
        """The sample, cut out at random."""
        return self.read(index, partial(augment, rng=rng) if augment else center_crop)


class ImageSource(ABC):
    """A data set that configuration files name by its class.

    Attributes:
        class_names: One a class, in the order of the labels.
        shape: Channels, height and width of its images.
        augments: Whether training images can be changed at random.
    """

    class_names: list[str]
    shape: tuple[int, int, int]
    augments = True

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def split(self, name: str) -> Samples:
        """The split "train", "validation" or "test".

        Raises:
            ValueError: If there is no split of this name.
            DataError: If its files are not there or hold no image.
        """
        if name not in SPLITS:
            raise ValueError(f"There is no split {name!r}; expected one of {', '.join(SPLITS)}.")
        split = self.open(name)
        if not len(split):
            raise DataError(
                f"The {name} split of {type(self).__name__} is empty; give it more images or "
                "a split of its own."
            )
        return split

    @abstractmethod
    def open(self, name: str) -> Samples:
        """Builds the split, whose name is known to be right."""


class Rows(Split):
    """Chosen rows of images that lie in memory.

    Args:
        images: All images (n, h, w), with values 0 to 255, float32 or uint8.
        labels: All labels.
        rows: The rows that belong to this split.
        name: Names the data set in errors.
        num_classes: Labels lie below it.
        channels: 1, or for bytes also 3 with the same in each.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int],
        rows: Sequence[int],
        name: str,
        num_classes: int,
        channels: int = 1,
    ) -> None:
        super().__init__((channels, images.shape[1], images.shape[2]), num_classes)
        self.images, self.labels, self.rows, self.name = images, labels, rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """The row as an image, in Pillow's mode F if it is float32."""
        row = self.rows[index]
        return Image.fromarray(self.images[row]), self.labels[row]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The same batch at once, forty times faster: small networks would wait for the images."""
        rows = [self.rows[index] for index in indices]
        labels = [self.labels[row] for row in rows]
        if not 0 <= min(labels) <= max(labels) < self.num_classes:
            return super().__getitems__(indices)  # names the one that is wrong
        pixels = self.images[rows].astype(np.float32)[:, None]
        x_0 = torch.from_numpy(pixels / 127.5 - 1).expand(-1, self.shape[0], -1, -1).contiguous()
        return x_0, torch.tensor(labels), torch.tensor(indices)

    def describe(self, index: int) -> str:
        """Names the row."""
        return f"row {self.rows[index]} of {self.name}"


def as_sample(
    image: Image.Image,
    y: int,
    index: int,
    shape: tuple[int, int, int],
    num_classes: int,
    describe: Callable[[int], str],
    crop: Crop,
) -> Sample:
    """Checks the label, crops the image and scales it to [-1, 1].

    Raises:
        DataError: If the label names no class.
    """
    if not 0 <= y < num_classes:
        raise DataError(
            f"The label of {describe(index)} is {y}; with {num_classes} classes it must lie in "
            f"0..{num_classes - 1}. Correct the label or the list of classes."
        )
    if image.mode != "F":
        image = image.convert("L" if shape[0] == 1 else "RGB")
    pixels = np.asarray(crop(image, shape[1]), dtype=np.float32)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels / 127.5 - 1)), int(y), index


def read_image(file: Path | io.BytesIO, name: object) -> Image.Image:
    """Decodes an image completely, so that a cut file is noticed here.

    Args:
        file: A path, or the file itself.
        name: Names the image in the error.

    Raises:
        Unreadable: If it cannot be decoded, or has more than eight bits a channel.
    """
    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unreadable(
            f"Cannot read the image {name}: {error}. Delete it or save it again in a format "
            "that Pillow reads."
        ) from error
    if image.mode.startswith("I"):
        raise Unreadable(
            f"The image {name} has more than 8 bits a channel; save it again with 8 bits."
        )
    return image


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples."""
    x_0, y, index = zip(*samples, strict=True)
    return torch.stack(x_0), torch.tensor(y), torch.tensor(index)
