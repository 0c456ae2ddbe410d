"""Samples of any tool: images as bytes, with their numbers, seeds and labels."""

import hashlib
import io
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from robustguide.data.errors import DataError
from robustguide.data.images import read_image

BATCH = 256  # that writers read at a time
PNG = b"\x89PNG\r\n\x1a\n"
WHY_PNG = (
    "only PNG is read, because what JPEG or WebP lose changes every score; write the samples as "
    "PNG when they are made"
)


@dataclass(frozen=True)
class Bytes:
    """A batch of samples.

    Attributes:
        pixels: Grey or colour images.
        y: Labels; null where samples have none.
        index: Numbers, ascending over all batches.
        seed: Of the noise of each.
    """

    pixels: UInt8[Tensor, "b c h w"]
    y: Int[Tensor, " b"] | None
    index: Int[Tensor, " b"]
    seed: Int[Tensor, " b"]

    def first(self, count: int) -> "Bytes":
        """At most so many of them."""
        y = None if self.y is None else self.y[:count]
        return Bytes(self.pixels[:count], y, self.index[:count], self.seed[:count])


@dataclass(frozen=True)
class One:
    """A sample: pixels (c, h, w), label, number and seed, and its name for errors."""

    pixels: UInt8[np.ndarray, "c h w"]
    y: int | None
    index: int
    seed: int
    name: str


class Generated(ABC):
    """Images that were sampled, by whatever tool; read as a stream, of any length.

    Attributes:
        path: Where they are.
        count: How many.
        shape: Channels, height and width of each.
        class_names: One a class, in the order of the labels; null where not told.
        made: How, as plain data: `kind` of the source, and as far as told `method`, `scale`,
            `checkpoints` and `guides` (SHA-256 of all networks, and of those that guided).
    """

    path: Path
    count: int
    shape: tuple[int, int, int]
    class_names: list[str] | None
    made: dict[str, Any]

    @abstractmethod
    def batches(self, size: int) -> Iterator[Bytes]:
        """All samples in the order of their numbers.

        Raises:
            DataError: For a sample that cannot be used.
        """

    def __len__(self) -> int:
        return self.count

    def facts(self) -> dict[str, Any]:
        """How they were made, wherever they are kept."""
        return {name: fact for name, fact in self.made.items() if name != "kind"}

    def name_of(self, y: int | None) -> str | None:
        """Of a class, where that is told."""
        names = self.class_names or []
        return names[y] if y is not None and y < len(names) else None

    def digest(self, size: int = 256) -> str:
        """SHA-256 of shape and bytes of all images in order, by which they are known again."""
        found = begun(self.shape)
        for batch in self.batches(size):
            found.update(batch.pixels.numpy().tobytes())
        answer: str = found.hexdigest()
        return answer

    def seeds(self) -> Int[Tensor, " n"]:
        """Of all samples, in their order."""
        return whole_numbers(x for batch in self.batches(BATCH) for x in batch.seed.tolist())


class First(Generated):
    """The first samples of a set.

    Args:
        samples: All of them.
        count: How many.

    Raises:
        ValueError: When there are fewer.
    """

    def __init__(self, samples: Generated, count: int) -> None:
        if not 1 <= count <= samples.count:
            raise ValueError(
                f"{samples.path} holds {samples.count} samples, of which the first {count} cannot "
                f"be taken; give a number from 1 to {samples.count}."
            )
        self.samples, self.count = samples, count
        self.path, self.shape, self.made = samples.path, samples.shape, samples.made
        self.class_names = samples.class_names

    def batches(self, size: int) -> Iterator[Bytes]:
        """Those of the samples, up to the last one that is wanted."""
        left = self.count
        for batch in self.samples.batches(size):
            yield batch.first(left)
            left -= len(batch.index)
            if left <= 0:
                return

    def seeds(self) -> Int[Tensor, " n"]:
        """Of these."""
        return self.samples.seeds()[: self.count]


def begun(shape: tuple[int, int, int]) -> Any:
    """A hash that wants the bytes of all images (b, c, h, w) of a shape."""
    return hashlib.sha256(str(list(shape)).encode())


def png_pixels(content: bytes, name: str) -> UInt8[np.ndarray, "c h w"]:
    """Decodes a PNG file.

    Args:
        content: The file.
        name: Names it in errors.

    Raises:
        DataError: For another format, more than eight bits, transparency, or a damaged file.
    """
    if content and not content.startswith(PNG[: len(content)]):
        kind = "a JPEG" if content.startswith(b"\xff\xd8\xff") else "no PNG"
        raise DataError(f"The image {name} is {kind} file; {WHY_PNG}.")
    if len(content) > 24 and content[24] == 16:  # Pillow would drop eight of them in silence
        raise DataError(f"The image {name} has 16 bits a channel; save it again with 8 bits.")
    image = read_image(io.BytesIO(content), name)
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise DataError(f"The image {name} is transparent; save it again without alpha.")
    mode = "L" if image.mode in ("1", "L") else "RGB"
    pixels = np.array(image.convert(mode))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def as_png(pixels: UInt8[np.ndarray, "c h w"]) -> bytes:
    """The file that `png_pixels` decodes."""
    file = io.BytesIO()
    image = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def singly(samples: Generated, tell: Callable[[int], None]) -> Iterator[One]:
    """Samples one by one, for writers; tells of each batch when it is done."""
    for batch in samples.batches(BATCH):
        labels = [None] * len(batch.index) if batch.y is None else batch.y.tolist()
        numbers = zip(labels, batch.index.tolist(), batch.seed.tolist(), strict=True)
        for pixels, (y, index, seed) in zip(batch.pixels.numpy(), numbers, strict=True):
            yield One(pixels, y, index, seed, f"{index:08d}")
        tell(len(batch.index))


def batched(
    samples: Iterable[One], size: int, shape: tuple[int, int, int], where: str
) -> Iterator[Bytes]:
    """Batches of single samples, of one shape and in the order of their numbers.

    Raises:
        DataError: For a sample of another shape, a number that does not ascend, and labels of
            some samples only.
    """
    held: list[One] = []
    first: One | None = None
    last = -1
    for sample in samples:
        first = first or sample
        if sample.pixels.shape != shape:
            raise DataError(
                f"The image {sample.name} is of shape {list(sample.pixels.shape)}, {first.name} "
                f"of {list(shape)} (channels, height, width); samples must all be of one. Remove "
                "those of another run."
            )
        if sample.index <= last:
            raise out_of_order(where, sample.index, last)
        if (sample.y is None) != (first.y is None):
            raise DataError(
                f"Of {first.name} and {sample.name} only one has a label; give all samples in "
                f"{where} a label, or none."
            )
        last = sample.index
        held.append(sample)
        if len(held) == size:
            yield together(held)
            held = []
    if held:
        yield together(held)


def out_of_order(where: str, index: int, last: int) -> DataError:
    """The error of a number that is not larger than the one before."""
    if index == last:
        return DataError(f"{where} holds two samples of number {index}; remove one of them.")
    return DataError(
        f"In {where}, sample {index} comes after sample {last}; samples must be in the order of "
        "their numbers. Write them again with `robustguide repack` from where they were made."
    )


def together(samples: list[One]) -> Bytes:
    """Stacks samples."""
    labels = [sample.y for sample in samples if sample.y is not None]
    return Bytes(
        torch.from_numpy(np.stack([sample.pixels for sample in samples])),
        whole_numbers(labels) if labels else None,
        whole_numbers(sample.index for sample in samples),
        whole_numbers(sample.seed for sample in samples),
    )


def whole_numbers(values: Iterable[int]) -> Int[Tensor, " n"]:
    """On the CPU, like the bytes, whatever the default is."""
    return torch.tensor(list(values), dtype=torch.long, device="cpu")


def at_least_one(size: int) -> int:
    """The size of a batch.

    Raises:
        ValueError: For one that is none.
    """
    if size < 1:
        raise ValueError(f"The batch size is {size}; expected 1 or more.")
    return size


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder of a temporary name beside its final one, which it gets when all is written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        yield part
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
