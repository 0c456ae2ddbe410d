"""Writes sets of images as shards, once, in parallel, and so that nothing is lost when it stops.

Each shard is a function of its own images: the bytes depend neither on the number of workers nor
on how often a run was killed. A shard gets its name when it is complete, and then a note of its
checksum; notes become the manifest when all are there.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from torch.utils.data import IterableDataset, get_worker_info
from webdataset.writer import TarWriter

from robustguide.data.errors import DataError, Unreadable
from robustguide.data.forms import PNG, Form
from robustguide.data.images import Crop, ImageSource, Sample, Samples, Split
from robustguide.data.loaders import load
from robustguide.data.manifest import (
    Manifest,
    Preparation,
    Shard,
    slices,
    under_temporary_name,
)
from robustguide.data.notes import Notes
from robustguide.data.splits import SPLITS, chance
from robustguide.interfaces import to_pixels

TOLD = 32  # images between two words of progress
SHOWN = 3  # unreadable images that an error names
LIST = "unreadable.txt"


class Job(NamedTuple):
    """A shard that is to be: its file, and its images in their order."""

    path: Path
    split: str
    rows: Sequence[int]


@dataclass(frozen=True)
class ImageWriter:
    """Writes sets of images; shards that are there are not made again.

    Training images come in a fixed random order, others in that of their split. Images that
    cannot be read are left out, listed with the reason, and tried again by the next run.

    Args:
        crop: Makes squares of images; without it, the source does so.
        form: How an image lies in a shard.
        per_shard: Images in a shard.
        num_workers: Processes, each with shards of its own.
        limit: Share of images that may be unreadable.
        tell: Called with the number of images that are done.
    """

    crop: Crop | None = None
    form: Form = PNG
    per_shard: int = 1000
    num_workers: int = 0
    limit: float = 0.0
    tell: Callable[[int], None] = lambda count: None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.per_shard < 1:
            raise ValueError(f"per_shard is {self.per_shard}; expected 1 or more.")
        if self.num_workers < 0 or not 0 <= self.limit <= 1:
            raise ValueError(
                f"num_workers is {self.num_workers} and the limit of unreadable images "
                f"{self.limit}; expected 0 or more, and a share from 0 to 1."
            )

    def write(self, source: ImageSource, folder: str, recipe: str | None = None) -> Manifest:
        """Writes all splits of a source, not augmented, and at last the manifest.

        Args:
            source: The images; validation and test images may be missing.
            folder: Where the files go.
            recipe: How the images were made, for the manifest; without it, the source's class.

        Raises:
            ValueError: If the folder holds something else, or is being written to.
            DataError: If there are no training images, or too many images cannot be read.
            OSError: If the disk is full; no file is left half written under its final name.
        """
        root = Path(folder)
        splits = opened(source)
        recipe = recipe or f"{type(source).__name__}, 8-bit {self.form.format.upper()}"
        manifest = Manifest(
            list(source.class_names), source.shape, recipe, {}, prepared=self._told(source, splits)
        )
        jobs = [
            Job(root / f"{name}-{number:06d}.tar", name, rows)
            for name, split in splits.items()
            for number, rows in enumerate(slices(ordered(name, len(split)), self.per_shard))
        ]
        with Notes(root).begun(manifest) as notes:
            done = {job.path: shard for job in jobs if (shard := notes.whole(job.path))}
            pending = [job for job in jobs if job.path not in done]
            self.tell(sum(shard.count for shard in done.values()))
            if pending or not notes.finished:
                notes.open()
                self._make(Writing(self.crop, self.form, splits, pending, notes), done)
                shards = {
                    name: [done[job.path] for job in jobs if job.split == name] for name in SPLITS
                }
                replace(manifest, shards=shards).write(root)
        return Manifest.read(root)

    def _told(self, source: ImageSource, splits: Mapping[str, Samples]) -> Preparation:
        """What is told of the images and their form."""
        return Preparation(
            source=getattr(source, "name", type(source).__name__),
            images=listing(source.class_names, splits),
            found={name: len(split) for name, split in splits.items()},
            format=self.form.format,
            quality=self.form.quality if self.form.format == "jpeg" else None,
            per_shard=self.per_shard,
        )

    def _make(self, writing: "Writing", done: dict[Path, Shard]) -> None:
        """Makes the shards that are missing, and adds them to those that are done."""
        total = sum(len(split) for split in writing.splits.values())
        root = writing.notes.root
        items: Any = load(writing, None, min(self.num_workers, len(writing.jobs)))
        try:
            with closing(items):
                for item in items:
                    if isinstance(item, OSError):
                        raise item
                    if isinstance(item, int):
                        self.tell(item)
                        continue
                    done[item.path] = item
                    check_unreadable(root, done, total, self.limit)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"A worker process was ended from outside ({error}), perhaps for lack of memory. "
                "Use fewer workers, and run this again: it goes on."
            ) from error
        list_unreadable(root, done)


class Writing(IterableDataset[int | Shard | OSError]):
    """Writes shards; tells of images as they are done, and of each shard when it has its name.

    A worker hands over an error of the disk as it is, because otherwise its number would be lost.
    """

    def __init__(
        self,
        crop: Crop | None,
        form: Form,
        splits: Mapping[str, Samples],
        jobs: list[Job],
        notes: Notes,
    ) -> None:
        self.crop, self.form, self.splits, self.jobs, self.notes = crop, form, splits, jobs, notes
        self.starter = os.getpid()

    def __iter__(self) -> Iterator[int | Shard | OSError]:
        """The shards of this worker: every so many of them; it ends with the run's process."""
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        for job in self.jobs[part::parts]:
            try:
                for item in self.write(job):
                    if self.starter not in (os.getpid(), os.getppid()):
                        return
                    yield item
            except OSError as error:
                yield error
                return

    def write(self, job: Job) -> Iterator[int | Shard]:
        """Writes a shard and the note of it."""
        unreadable: list[tuple[str, str]] = []
        form, split = self.form, self.splits[job.split]
        with under_temporary_name(job.path) as file:
            hashed: Any = Hashed(file)
            with TarWriter(hashed, encoder=False, mtime=0) as tar:
                for place, row in enumerate(job.rows, 1):
                    try:
                        x_0, y, index = cut_out(split, row, self.crop)
                    except Unreadable as error:
                        unreadable.append(reasoned(split, row, error))
                    else:
                        image = form.encode(to_pixels(x_0[None])[0].numpy())
                        label = str(y).encode()
                        tar.write({"__key__": f"{index:08d}", form.suffix: image, "cls": label})
                    if place % TOLD == 0:
                        yield TOLD
        shard = Shard(
            job.path,
            len(job.rows) - len(unreadable),
            size=hashed.size,
            sha256=hashed.digest.hexdigest(),
            unreadable=tuple(unreadable),
        )
        self.notes.add(shard)
        yield len(job.rows) % TOLD
        yield shard


class Hashed:
    """A file that is hashed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size = file, sha256(), 0

    def write(self, content: bytes) -> int:
        """Writes and hashes."""
        self.digest.update(content)
        self.size += len(content)
        return self.file.write(content)


def write_shards(
    source: ImageSource, folder: str, per_shard: int = 1000, recipe: str | None = None
) -> Manifest:
    """Writes all splits of a source, as it makes them, as shards of 8-bit PNG files.

    See `ImageWriter.write`.
    """
    return ImageWriter(per_shard=per_shard).write(source, folder, recipe)


def opened(source: ImageSource) -> dict[str, Samples]:
    """All splits; those for evaluation may be empty."""
    return {name: source.split(name) if name == "train" else source.open(name) for name in SPLITS}


def ordered(name: str, count: int) -> Sequence[int]:
    """The rows of a split in the order of its shards."""
    return sorted(range(count), key=chance) if name == "train" else range(count)


def listing(class_names: Sequence[str], splits: Mapping[str, Samples]) -> str:
    """SHA-256 of the names of classes and images, in order; what images hold is not looked at."""
    digest = sha256("\n".join(class_names).encode())
    for name, split in splits.items():
        digest.update(f"\n\n{name} {len(split)}\n".encode())
        if isinstance(split, Split):
            for row in range(len(split)):
                digest.update(f"{split.listed(row)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def cut_out(split: Samples, row: int, crop: Crop | None) -> Sample:
    """The sample, cut out by a crop or as its source does."""
    if crop is None or not isinstance(split, Split):
        return split[row]
    return split.read(row, crop)


def reasoned(split: Samples, row: int, error: Unreadable) -> tuple[str, str]:
    """Name of an image, wherever it lies, and why it cannot be read."""
    reason = " ".join(str(error.__cause__ or error).split())
    if not isinstance(split, Split):
        return f"row {row}", reason
    return split.key(row), reason.replace(split.describe(row), split.key(row))


def check_unreadable(root: Path, done: Mapping[Path, Shard], total: int, limit: float) -> None:
    """Ends a run with too many unreadable images as soon as that is known.

    Raises:
        DataError: For more than the share that is allowed.
    """
    found = [each for shard in done.values() for each in shard.unreadable]
    if len(found) <= limit * total:
        return
    list_unreadable(root, done)
    first = "; ".join(f"{name} ({reason})" for name, reason in sorted(found)[:SHOWN])
    raise DataError(
        f"Of {total} images {len(found)} cannot be read so far, more than the share of {limit:g} "
        f"that may be left out: {first}{'; ...' if len(found) > SHOWN else ''}. "
        f"{root / LIST} lists them. Repair them where they are or allow a larger share, and run "
        "this again: it goes on. Without them, begin in another folder."
    )


def list_unreadable(root: Path, shards: Mapping[Path, Shard]) -> None:
    """Writes the list of unreadable images, or removes an old one where there are none."""
    lines = [
        f"{path.name.rpartition('-')[0]}\t{name}\t{reason}\n"
        for path in sorted(shards)
        for name, reason in shards[path].unreadable
    ]
    if not lines:
        (root / LIST).unlink(missing_ok=True)
        return
    with under_temporary_name(root / LIST) as file:
        file.write("".join(lines).encode(errors="surrogateescape"))
