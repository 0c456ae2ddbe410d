"""The manifest beside shards, and the writer of both.

A folder of shards is finished when `manifest.json` is there: it is written last, and each file
first under a temporary name.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from robustguide.data.errors import DataError
from robustguide.data.splits import SPLITS
from robustguide.data.streams import PIPE, beside, is_remote, read_whole

FILE = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """A tar file and the number of samples in it.

    Attributes:
        path: The file; of one elsewhere, its name.
        count: Samples.
        url: Of one elsewhere, as WebDataset opens it: `http://...` or `pipe:COMMAND`.
        size: Bytes of the file, where that was noted.
        sha256: Checksum of the file, where that was noted.
        unreadable: Name and reason of each image that is left out.
    """

    path: Path
    count: int
    url: str | None = None
    size: int | None = None
    sha256: str | None = None
    unreadable: tuple[tuple[str, str], ...] = ()

    @property
    def place(self) -> Path | str:
        """Where it is read."""
        return self.url or self.path

    @classmethod
    def at(cls, place: Path | str, count: int) -> "Shard":
        """A file, or what a URL or a command stands for."""
        if is_remote(place):
            return cls(Path(str(place).rsplit("/", 1)[-1]), count, str(place))
        return cls(Path(place), count)

    @classmethod
    def of(cls, root: Path | str, plain: dict[str, Any]) -> "Shard":
        """From what a manifest in a folder or below a URL says of it."""
        shard = cls.at(beside(root, named(plain["file"], root)), int(plain["count"]))
        known = {name: plain[name] for name in ("size", "sha256") if name in plain}
        left_out = tuple((str(name), str(why)) for name, why in plain.get("unreadable", []))
        return replace(shard, **known, unreadable=left_out)

    def told(self) -> dict[str, Any]:
        """As plain data; what is not known is not there."""
        plain = {"file": self.url or self.path.name, "count": self.count}
        known = {"size": self.size, "sha256": self.sha256, "unreadable": list(self.unreadable)}
        return plain | {name: value for name, value in known.items() if value}


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
class Preparation:
    """Of which images shards were made, and how these lie in them.

    Attributes:
        source: Name of the data set.
        images: SHA-256 of the names of all images and classes, in order.
        found: Images of each split, also those that could not be read.
        format: "png", "jpeg" or "raw".
        quality: Of JPEG.
        per_shard: Images that each shard was made of.
    """

    source: str
    images: str
    found: dict[str, int]
    format: str
    quality: int | None
    per_shard: int


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds.

    Attributes:
        class_names: One a class, in the order of the labels.
        shape: Channels, height and width of its images.
        recipe: How the images were made.
        shards: Of each split.
        encoding: Where the shards hold latents, of what kind; null for images.
        prepared: How images were written; null for latents, and where nothing tells.
    """

    class_names: list[str]
    shape: tuple[int, int, int]
    recipe: str
    shards: dict[str, list[Shard]]
    encoding: Encoding | None = None
    prepared: Preparation | None = None

    def count(self, split: str) -> int:
        """Number of samples of a split."""
        return sum(shard.count for shard in self.shards[split])

    def resized(self, size: int | None) -> "Manifest":
        """The same shards, read at another size."""
        return self if size is None else replace(self, shape=(self.shape[0], size, size))

    @classmethod
    def read(cls, root: Path | str) -> "Manifest":
        """Reads the manifest of a folder or of a URL.

        Raises:
            DataError: If there is none, it is not understood, or a shard is missing. A shard
                elsewhere is asked for only when it is read.
        """
        manifest = cls.parse(root, text_of(root))
        for shard in (shard for split in manifest.shards.values() for shard in split):
            if shard.url is None and not shard.path.is_file():
                place = beside(root, FILE)
                raise DataError(f"The shard {shard.path.resolve()} of {place} is missing.")
        return manifest

    @classmethod
    def parse(cls, root: Path | str, text: bytes) -> "Manifest":
        """Understands the manifest of a folder or of a URL; shards are not looked for.

        Raises:
            DataError: If it is none.
        """
        path = beside(root, FILE)
        try:
            plain = json.loads(text)
            channels, height, width = map(int, plain["shape"])
            shards = {
                split: [Shard.of(root, entry) for entry in plain["shards"].get(split, [])]
                for split in SPLITS
            }
            names = [str(name) for name in plain["class_names"]]
            recipe = str(plain["recipe"])
            encoding = Encoding.of(plain["encoding"]) if plain.get("encoding") else None
            prepared = Preparation(**plain["prepared"]) if plain.get("prepared") else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"Cannot read {path}: {error!r}. Write the shards again.") from error
        if plain.get("num_classes", len(names)) != len(names):
            raise DataError(
                f"{path} says {plain['num_classes']} classes and names {len(names)}; correct it."
            )
        return cls(names, (channels, height, width), recipe, shards, encoding, prepared)

    def write(self, root: Path) -> None:
        """Writes the manifest into a folder."""
        plain: dict[str, Any] = {
            "num_classes": len(self.class_names),
            "class_names": self.class_names,
            "shape": self.shape,
            "recipe": self.recipe,
            "counts": {split: self.count(split) for split in self.shards},
            "unreadable": {
                split: sum(len(shard.unreadable) for shard in shards)
                for split, shards in self.shards.items()
            },
            "shards": {
                split: [shard.told() for shard in shards] for split, shards in self.shards.items()
            },
        }
        if self.encoding is not None:
            plain["encoding"] = asdict(self.encoding)
        if self.prepared is not None:
            plain["prepared"] = asdict(self.prepared)
        with under_temporary_name(root / FILE) as file:
            file.write(json.dumps(plain, indent=1).encode())


def text_of(root: Path | str) -> bytes:
    """The manifest of a folder or of a URL.

    Raises:
        DataError: If there is none.
    """
    try:
        return read_whole(beside(root, FILE))
    except OSError as error:
        where = str(root) if is_remote(root) else str(Path(root).resolve())
        why = "" if isinstance(error, FileNotFoundError) else f" ({error.strerror or error})"
        raise DataError(
            f"There is no {FILE} in {where}{why}; write shards with write_shards, or "
            "count those that were made elsewhere with index_shards."
        ) from error


def named(file: str, root: Path | str) -> str:
    """The name of a shard as a manifest has it.

    Raises:
        DataError: For a command in a manifest that came from elsewhere, who could run anything.
    """
    if file.startswith(PIPE) and is_remote(root):
        raise DataError(
            f"The manifest of {root} names the command {file!r}; commands are run only for a "
            "manifest in a local folder. Copy it there if you trust it."
        )
    return file


def slices(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Consecutive parts of at most `size` rows."""
    return (rows[i : i + size] for i in range(0, len(rows), size))


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
    """Number of labels in a shard.

    Raises:
        DataError: If it is cut or not a tar file.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            return sum(name.endswith(".cls") for name in tar.getnames())
    except tarfile.TarError as error:
        raise DataError(f"Cannot read the shard {path}: {error}. Make it again.") from error
