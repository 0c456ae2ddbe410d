"""Real images of our own data sets, as bytes like samples."""

from collections.abc import Iterator
from pathlib import Path

from robustguide.data.batches import contiguous
from robustguide.data.errors import DataError
from robustguide.data.generated.base import Bytes, Generated, at_least_one
from robustguide.data.images import ImageSource
from robustguide.data.latents import LatentShards
from robustguide.data.loaders import load
from robustguide.data.manifest import Manifest, slices
from robustguide.data.tar import EvaluationShards
from robustguide.interfaces import to_pixels


class Real(Generated):
    """A split of a source, not augmented; places are the numbers.

    Args:
        source: The images.
        split: "train", "validation" or "test".
        num_workers: Processes that read images.

    Raises:
        DataError: For latents, and for a split without images.
    """

    def __init__(self, source: ImageSource, split: str, num_workers: int = 0) -> None:
        if isinstance(source, LatentShards):
            raise DataError(
                "Latents are no images; give the data set that they were encoded from."
            )
        self.samples, self.num_workers = source.split(split), num_workers
        self.path, self.count = Path(type(source).__name__, split), len(self.samples)
        self.shape, self.class_names = source.shape, list(source.class_names)
        self.made = {"kind": "real"}

    def batches(self, size: int) -> Iterator[Bytes]:
        """Reads them."""
        rows = [list(part) for part in slices(range(self.count), at_least_one(size))]
        for x_0, y, index in load(self.samples, rows, self.num_workers):
            yield Bytes(to_pixels(x_0), y, index, index)


class RealShards(Generated):
    """A split of a data set in shards.

    Args:
        manifest: Of the shards.
        split: "train", "validation" or "test".
        num_workers: Processes that read images.

    Raises:
        DataError: For a split without images.
    """

    def __init__(self, manifest: Manifest, split: str, num_workers: int = 0) -> None:
        self.manifest, self.split, self.num_workers = manifest, split, num_workers
        self.path, self.count = Path("ShardImages", split), manifest.count(split)
        if not self.count:
            raise DataError(f"There are no {split} shards; write some, or name another split.")
        self.shape, self.class_names = manifest.shape, list(manifest.class_names)
        self.made = {"kind": "real"}

    def batches(self, size: int) -> Iterator[Bytes]:
        """Reads them."""
        batches = contiguous(self.count, at_least_one(size), 0, 1)
        shards = EvaluationShards(self.manifest, self.split, batches)
        workers = min(self.num_workers, len(self.manifest.shards[self.split]))
        for x_0, y, index in load(shards, None, workers):
            yield Bytes(to_pixels(x_0), y, index, index)
