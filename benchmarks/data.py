"""Speed of reading shards, each way in turns in one run; exits with 1 where a bound is missed.

    python benchmarks/data.py [--workers 1] [--turns 40]

Shards against the bare decoding and cropping of the same bytes (at least 90% of its rate), against
a folder of full-size photographs (at least twice its rate), and with 1,000 shards against 10 (the
same cost a sample, within a tenth). The images are made for this, in a temporary folder. Two ways
take turns of a few batches, so that a busy machine slows both, and the median of the turns' ratios
counts; beside it stand their quartiles.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import numpy as np
import torch
import turns as records
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.writer import TarWriter

from robustguide.data import CropAndFlip, Folder, Images, Manifest, ShardImages
from robustguide.data.crops import center_crop
from robustguide.data.images import Batch, as_sample, collate, read_image
from robustguide.data.loaders import load
from robustguide.data.manifest import Shard

SIZE, BATCH = 256, 32
AHEAD = 4  # batches that a worker has made, or begun, while the other way was measured
REST = 1.5 * AHEAD * BATCH  # samples' time in which a worker makes those, and half as long again


class Row(NamedTuple):
    """One comparison: seconds of a sample both ways, and the ratio of the rates with its bound."""

    what: str
    other: float
    ours: float
    ratios: list[float]
    bound: float


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Structure at all scales, so that it compresses as photographs do (1 to 2 bits a pixel)."""
    total = np.zeros((height, width, 3), np.float32)
    for scale in (4, 16, 64, 256):
        small = rng.normal(size=(height // scale + 2, width // scale + 2, 3)).astype(np.float32)
        levels = ((small + 3) * 40).clip(0, 255).astype(np.uint8)
        large = Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(large, np.float32) * scale**0.5
    total = (total - total.min()) / (total.max() - total.min()) * 255
    return Image.fromarray(total.astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """The file."""
    file = io.BytesIO()
    image.save(file, "jpeg", quality=quality)
    return file.getvalue()


def write(root: Path, files: list[bytes], shards: int, each: int) -> None:
    """Shards of `each` samples, which are those files again and again."""
    root.mkdir()
    written, source = [], count()
    for number in range(shards):
        path = root / f"train-{number:06d}.tar"
        with TarWriter(str(path), encoder=False, mtime=0) as writer:
            for index in islice(source, each):
                image = files[index % len(files)]
                writer.write({"__key__": f"{index:08d}", "jpg": image, "cls": b"0"})
        written.append(Shard(path, each))
    splits = {"train": written, "validation": [], "test": []}
    Manifest(["all", "none"], (3, SIZE, SIZE), "made for a benchmark", splits).write(root)


class Bare(IterableDataset[Batch]):
    """Decoding and cropping of bytes in memory, in batches: what no reader can do without."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        rng = np.random.default_rng(worker.id if worker else 0)
        crop = CropAndFlip()
        shape = (3, SIZE, SIZE)
        while True:
            rows = rng.integers(len(self.files), size=BATCH)
            yield collate(
                [
                    as_sample(
                        read_image(io.BytesIO(self.files[row]), row),
                        0, row, shape, 2, str, lambda image, size: crop(image, size, rng),
                    )
                    for row in rows
                ]
            )  # fmt: skip


def seconds(batches: Iterator[Batch], turn: int, rest: float) -> float:
    """Seconds a sample over a turn of some batches, once those are gone that were there.

    Args:
        batches: Of one way.
        turn: How many are timed.
        rest: Seconds before, in which the other way's worker gets ahead and then waits.
    """
    time.sleep(rest)
    for _ in range(AHEAD):
        next(batches)
    start = time.perf_counter()
    for _ in range(turn):
        next(batches)
    return (time.perf_counter() - start) / (turn * BATCH)


def shards(root: Path, workers: int) -> Iterator[Batch]:
    """Training images of shards, without end; epochs of few samples would cost more."""
    data = ShardImages(str(root), BATCH, augment=CropAndFlip(), num_workers=workers, buffer=100)
    return iter(load(data.train_dataloader().make(0), None, workers))


def endless(data: Images) -> Iterator[Batch]:
    """Epoch after epoch."""
    loader = data.train_dataloader()
    while True:
        yield from loader


def in_turns(
    what: str, other: Iterator[Batch], ours: Iterator[Batch], turns: int, turn: int, bound: float
) -> Row:
    """Both ways in turns."""
    pairs, theirs, own = [], 0.0, 0.0
    for _ in range(turns + 1):
        theirs = seconds(other, turn, REST * own)
        own = seconds(ours, turn, REST * theirs)
        pairs.append((theirs, own))
    pairs = pairs[1:]  # the first one fills the caches
    ratios = [one / two for one, two in pairs]
    return Row(what, *(median(each) for each in zip(*pairs, strict=True)), ratios, bound)


def rows(root: Path, workers: int, turns: int) -> Iterator[Row]:
    """The comparisons."""
    rng = np.random.default_rng(0)
    large = [photograph(rng, 1500, 1200) for _ in range(12)]
    small = [jpeg(center_crop(image, SIZE), 95) for image in large]
    write(root / "shards", small, shards=8, each=500)

    bare = load(Bare(small), None, workers)
    ours = shards(root / "shards", workers)
    yield in_turns("bare decoding and cropping", bare, ours, turns, 8, 0.9)

    for split in ("train", "val"):
        for name in ("all", "none"):
            (root / "photographs" / split / name).mkdir(parents=True)
            for i, image in enumerate(large):
                path = root / f"photographs/{split}/{name}/{i}.jpg"
                path.write_bytes(jpeg(image))
                for copy in range(1, 8):
                    path.with_name(f"{i}_{copy}.jpg").hardlink_to(path)
    source = Folder(str(root / "photographs"), size=SIZE)

    folder = endless(Images(source, BATCH, augment=CropAndFlip(), num_workers=workers))
    ours = shards(root / "shards", workers)
    yield in_turns("folder of 1500 x 1200 photographs", folder, ours, max(turns // 8, 3), 4, 2.0)

    for number in (10, 1000):
        write(root / str(number), small, number, each=20)
    few, many = (shards(root / str(number), workers) for number in (10, 1000))
    yield in_turns("10 small shards; ours are 1,000", few, many, max(turns // 2, 3), 8, 0.9)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--turns", type=int, default=40)
    options = parser.parse_args()
    if options.turns < 2:
        parser.error(f"--turns is {options.turns}; expected 2 or more, for quartiles")
    torch.set_num_threads(1)
    facts: dict[str, object] = {
        "read": f"{options.workers} workers, {SIZE} px, batches of {BATCH}, {options.turns} turns"
    }
    is_missed = False
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(Path(folder), options.workers, options.turns):
            low, ratio, high = quantiles(row.ratios, n=4)
            is_missed |= ratio < row.bound
            facts[f"rate of shards over {row.what}"] = (
                f"{ratio:.2f} ({low:.2f} to {high:.2f}), at least {row.bound:g}"
                f"{' MISSED' * (ratio < row.bound)}; {row.other * 1e6:.0f} and "
                f"{row.ours * 1e6:.0f} us a sample"
            )
    records.record("data", facts=facts)
    sys.exit(is_missed)


if __name__ == "__main__":
    main()
