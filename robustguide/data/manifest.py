"""The manifest beside shards, and the writer of both.

A folder of shards is finished when `manifest.json` is there: it is written last, and each file
first under a temporary name.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from torch import Tensor
from webdataset.writer import TarWriter

from robustguide.data.errors import DataError
from robustguide.data.images import ImageSource, Samples
from robustguide.data.splits import SPLITS, chance

FILE = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """A tar file and the number of samples in it."""

    path: Path
    count: int


@dataclass(frozen=True)
class Encoding:
    """How latents were made of images, and what it takes to draw them.

    Attributes:
        codec: Class of the codec.
        fingerprint: SHA-256 of the codec's tensors and of what else decides its latents.
        image_shape: Channels, height and width of the images.
        factor: Pixels on a side for one latent.
        dtype: Of the raw moments in the files, "float16" or "float32".
        mirrored: Whether training images were encoded a second time, mirrored left and right.
        scale: Multiplies raw latents, one number a channel; exact float32.
        shift: Is then added.
    """

    codec: str
    fingerprint: str
    image_shape: tuple[int, ...]
    factor: int
    dtype: str
    mirrored: bool
    scale: tuple[float, ...]
    shift: tuple[float, ...]

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Encoding":
        """From plain data, as JSON has it."""
        names = ("image_shape", "scale", "shift")
        return cls(**{**plain, **{name: tuple(plain[name]) for name in names}})


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds.

    Attributes:
        class_names: One a class, in the order of the labels.
        shape: Channels, height and width of its images.
        recipe: How the images were made.
        shards: Of each split.
        encoding: Where the shards hold latents, of what kind; null for images.
    """

    class_names: list[str]
    shape: tuple[int, int, int]
    recipe: str
    shards: dict[str, list[Shard]]
    encoding: Encoding | None = None

    def count(self, split: str) -> int:
        """Number of samples of a split."""
        return sum(shard.count for shard in self.shards[split])

    def resized(self, size: int | None) -> "Manifest":
        """The same shards, read at another size."""
        return self if size is None else replace(self, shape=(self.shape[0], size, size))

    @classmethod
    def read(cls, root: Path) -> "Manifest":
        """Reads the manifest of a folder.

        Raises:
            DataError: If there is none, it is not understood, or a shard is missing.
        """
        path = root / FILE
        if not path.is_file():
            raise DataError(
                f"There is no {FILE} in {root.resolve()}; write shards with write_shards, or "
                "count those that were made elsewhere with index_shards."
            )
        try:
            plain = json.loads(path.read_text())
            channels, height, width = map(int, plain["shape"])
            shards = {
                split: [
                    Shard(root / entry["file"], int(entry["count"]))
                    for entry in plain["shards"].get(split, [])
                ]
                for split in SPLITS
            }
            names = [str(name) for name in plain["class_names"]]
            recipe = str(plain["recipe"])
            encoding = Encoding.of(plain["encoding"]) if plain.get("encoding") else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"Cannot read {path}: {error!r}. Write the shards again.") from error
        if plain.get("num_classes", len(names)) != len(names):
            raise DataError(
                f"{path} says {plain['num_classes']} classes and names {len(names)}; correct it."
            )
        for shard in (shard for split in shards.values() for shard in split):
            if not shard.path.is_file():
                raise DataError(f"The shard {shard.path.resolve()} of {path} is missing.")
        return cls(names, (channels, height, width), recipe, shards, encoding)

    def write(self, root: Path) -> None:
        """Writes the manifest into a folder."""
        plain: dict[str, Any] = {
            "num_classes": len(self.class_names),
            "class_names": self.class_names,
            "shape": self.shape,
            "recipe": self.recipe,
            "counts": {split: self.count(split) for split in self.shards},
            "shards": {
                split: [{"file": shard.path.name, "count": shard.count} for shard in shards]
                for split, shards in self.shards.items()
            },
        }
        if self.encoding is not None:
            plain["encoding"] = asdict(self.encoding)
        with under_temporary_name(root / FILE) as file:
            file.write(json.dumps(plain, indent=1).encode())


def write_shards(
    source: ImageSource, folder: str, per_shard: int = 1000, recipe: str | None = None
) -> Manifest:
    """Writes all splits of a source as shards of 8-bit PNG files, with a manifest.

    Training images are written in a fixed random order, others in that of their split.

    Args:
        source: The images.
        folder: Where the files go; it must not hold shards already.
        per_shard: Samples in a shard.
        recipe: How the images were made, for the manifest; without it, the source's class.

    Raises:
        ValueError: If the folder holds shards.
        OSError: If the disk is full; no file is left half written under its final name.
    """
    root = Path(folder)
    if (root / FILE).exists():
        raise ValueError(f"{root.resolve()} already holds shards; choose another folder.")
    if per_shard < 1:
        raise ValueError(f"per_shard is {per_shard}; expected 1 or more.")
    root.mkdir(parents=True, exist_ok=True)
    shards: dict[str, list[Shard]] = {}
    for name in SPLITS:
        split = source.split(name)
        order = sorted(range(len(split)), key=chance) if name == "train" else range(len(split))
        shards[name] = [
            write_shard(root / f"{name}-{number:06d}.tar", split, rows)
            for number, rows in enumerate(slices(order, per_shard))
        ]
    recipe = recipe or f"{type(source).__name__}, 8-bit PNG"
    manifest = Manifest(list(source.class_names), source.shape, recipe, shards)
    manifest.write(root)
    return manifest


def slices(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Consecutive parts of at most `size` rows."""
    return (rows[i : i + size] for i in range(0, len(rows), size))


def write_shard(path: Path, split: Samples, rows: Iterable[int]) -> Shard:
    """Writes one shard."""
    count = 0
    with under_temporary_name(path) as file:
        writer = TarWriter(file, encoder=False, mtime=0)
        for row in rows:
            x_0, y, index = split[row]
            writer.write({"__key__": f"{index:08d}", "png": as_png(x_0), "cls": str(y).encode()})
            count += 1
        writer.close()
    return Shard(path, count)


def as_png(x_0: Tensor) -> bytes:
    """Eight bits a channel, rounded."""
    levels = ((x_0 + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    file = io.BytesIO()
    Image.fromarray(np.squeeze(levels.transpose(1, 2, 0))).save(file, "png")
    return file.getvalue()


@contextmanager
def under_temporary_name(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when it is complete, and vanishes if it does not get so far."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno, f"Cannot write ({reason}); free space or choose another folder", str(path)
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def index_shards(folder: str, class_names: list[str], size: int, channels: int = 3) -> Manifest:
    """Counts shards that were made elsewhere and writes their manifest.

    They are named after their split, as in `train-000.tar`, `val-000.tar` or `test-000.tar`; if
    there is `val` (or `validation`) and no `test`, it is the test split.

    Raises:
        DataError: If there are none.
    """
    root = Path(folder)
    shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    for path in sorted(root.glob("*.tar")):
        found = re.search(r"(train|val|test)", path.name)
        if found:
            split = {"val": "validation"}.get(found[1], found[1])
            shards[split].append(Shard(path, count_samples(path)))
    if not shards["test"]:
        shards["test"], shards["validation"] = shards["validation"], []
    if not any(shards.values()):
        raise DataError(
            f"No shards in {root.resolve()}; expected names such as train-000.tar, test-000.tar."
        )
    manifest = Manifest(class_names, (channels, size, size), "made elsewhere", shards)
    manifest.write(root)
    return manifest


def count_samples(path: Path) -> int:
    """Number of labels in a shard."""
    with tarfile.open(path) as tar:
        return sum(name.endswith(".cls") for name in tar.getnames())
