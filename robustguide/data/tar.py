"""Reading samples out of tar files, for training at random and for evaluation in order."""

import io
import random
import tarfile
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import accumulate, count, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.tariterators import group_by_keys, tar_file_expander

from robustguide.data.crops import Augment, center_crop
from robustguide.data.errors import DataError
from robustguide.data.images import Batch, Crop, Sample, as_sample, collate, read_image
from robustguide.data.manifest import Manifest, Shard

Raw = dict[str, Any]
SUFFIXES = ("png", "jpg", "jpeg", "webp")


def read_shards(paths: Iterable[Path]) -> Iterator[Raw]:
    """The undecoded samples of shards, in order.

    Raises:
        DataError: If a shard is cut or not a tar file.
    """
    for path in paths:
        # Opened here, because webdataset leaves closing to the garbage collector.
        with path.open("rb") as stream:
            try:
                yield from group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))
            except (tarfile.TarError, EOFError, ValueError) as error:
                raise DataError(
                    f"Cannot read the shard {path}: {error.args[0]}. Make it again."
                ) from error


def counted(shard: Shard) -> Iterator[Raw]:
    """The undecoded samples of a shard; the last one only if their number is right.

    Raises:
        DataError: If it is not the one in the manifest.
    """
    found, held = 0, None
    for raw in read_shards([shard.path]):
        found += 1
        if found > shard.count:
            break
        if held is not None:
            yield held
        held = raw
    if found != shard.count:
        raise DataError(
            f"The shard {shard.path} holds {'more' if found > shard.count else 'fewer'} samples "
            f"than the {shard.count} in the manifest; make the shard or the manifest again."
        )
    if held is not None:
        yield held


class Reader:
    """Turns undecoded samples into `(x_0, y, index)`."""

    def __init__(self, manifest: Manifest) -> None:
        self.shape, self.num_classes = manifest.shape, len(manifest.class_names)

    def __call__(self, raw: Raw, index: int, crop: Crop) -> Sample:
        """Decodes the image and the label.

        Raises:
            DataError: If either is missing or cannot be read.
        """
        name = f"{raw['__key__']} in {raw['__url__']}"
        suffix = next((suffix for suffix in SUFFIXES if suffix in raw), None)
        if suffix is None or "cls" not in raw:
            raise DataError(
                f"The sample {name} has no {'label (cls)' if suffix else 'image'}; expected an "
                f"image ({', '.join(SUFFIXES)}) and its label as a number (cls)."
            )
        image = read_image(io.BytesIO(raw[suffix]), name)
        try:
            y = int(raw["cls"])
        except ValueError as error:
            raise DataError(
                f"The label of {name} is {raw['cls']!r}; expected a number."
            ) from error
        return as_sample(image, y, index, self.shape, self.num_classes, lambda _: name, crop)


class TrainingShards(IterableDataset[Batch]):
    """Endless batches of samples of shards drawn with replacement, through a shuffling buffer."""

    def __init__(
        self,
        manifest: Manifest,
        batch_size: int,
        augment: Augment | None,
        buffer: int,
        seed: tuple[int, ...],
    ) -> None:
        self.manifest, self.batch_size, self.augment = manifest, batch_size, augment
        self.buffer, self.seed = buffer, seed

    def __iter__(self) -> Iterator[Batch]:
        """Batches of this worker."""
        worker = get_worker_info()
        rng = np.random.default_rng([*self.seed, worker.id if worker else 0])
        order = random.Random(int(rng.integers(2**63)))
        # Uniform over shards is uniform over samples, because all of a drawn shard is read.
        paths = [shard.path for shard in self.manifest.shards["train"]]
        drawn = (paths[rng.integers(len(paths))] for _ in count())
        raws = shuffle(self.buffer, initial=self.buffer, rng=order)(read_shards(drawn))
        crop = partial(self.augment, rng=rng) if self.augment else center_crop
        reader = Reader(self.manifest)
        while True:
            yield collate([reader(raw, -1, crop) for raw in islice(raws, self.batch_size)])


class EvaluationShards(IterableDataset[Batch]):
    """Batches given by the places of their samples in the split, which ascend."""

    def __init__(self, manifest: Manifest, split: str, batches: list[list[int]]) -> None:
        self.manifest, self.shards, self.batches = manifest, manifest.shards[split], batches

    def __iter__(self) -> Iterator[Batch]:
        """A contiguous part of the batches for each worker, which opens only shards it needs."""
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        ends = [len(self.batches) * i // parts for i in (part, part + 1)]
        mine = self.batches[slice(*ends)]
        samples = self._samples({index for batch in mine for index in batch})
        for batch in mine:
            yield collate(list(islice(samples, len(batch))))

    def _samples(self, wanted: set[int]) -> Iterator[Sample]:
        reader = Reader(self.manifest)
        bounds = pairwise(accumulate((shard.count for shard in self.shards), initial=0))
        for shard, (begin, end) in zip(self.shards, bounds, strict=True):
            if wanted.isdisjoint(range(begin, end)):
                continue
            for index, raw in enumerate(counted(shard), begin):
                if index in wanted:
                    yield reader(raw, index, center_crop)
