"""Samples in WebDataset shards: tar files with a PNG, its label (cls) and its line (json) each.

Shards written here begin with a member that tells of all samples; WebDataset's readers pass over
its name.
"""

import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from webdataset.shardlists import expand_urls
from webdataset.writer import TarWriter

from robustguide.data.errors import DataError
from robustguide.data.generated.base import (
    WHY_PNG,
    Bytes,
    Generated,
    One,
    as_png,
    at_least_one,
    batched,
    png_pixels,
    singly,
    whole_folder,
)
from robustguide.data.generated.folder import natural
from robustguide.data.generated.lines import FACTS, Line, short
from robustguide.data.manifest import FILE, Manifest, Shard, slices, under_temporary_name
from robustguide.data.reading import Raw, read_shards
from robustguide.data.tar import SUFFIXES

ABOUT = "__samples__/about.json"
BLOCK = 512
END = bytes(2 * BLOCK)  # of every tar file
PER_SHARD = 1000


class SampleShards(Generated):
    """Tar files.

    Args:
        path: A tar file, a folder of them, or a pattern such as `FOLDER/part-{000..009}.tar` or
            `FOLDER/*.tar`.

    Raises:
        DataError: If there are none, one is cut short, or it holds no samples.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.paths = tars_of(str(path))
        about = [about_of(each) for each in self.paths]
        self.count = sum(told["count"] for told in about)
        if not self.count:
            raise DataError(
                f"{path} holds no samples; expected members such as 00000000.png, 00000000.cls "
                "and 00000000.json."
            )
        self.class_names = about[0].get("class_names")
        raw = next(read_shards(self.paths))
        first = self._one(raw, 0, None)
        c, h, w = first.pixels.shape
        self.shape = (c, h, w)
        facts = about[0].get("made") or self._line(raw, 0).made or {}
        self.made = {"kind": "shards", **facts}

    def batches(self, size: int) -> Iterator[Bytes]:
        """Reads them, and looks whether they are as many as there should be."""
        facts = {name: fact for name, fact in self.made.items() if name in FACTS}

        def ones() -> Iterator[One]:
            place = -1
            for place, raw in enumerate(read_shards(self.paths)):
                yield self._one(raw, place, facts)
            if place + 1 != self.count:
                raise DataError(
                    f"{self.path} holds {place + 1} samples and tells of {self.count}; write it "
                    "again."
                )

        yield from batched(ones(), at_least_one(size), self.shape, str(self.path))

    def _line(self, raw: Raw, place: int) -> Line:
        """What is told of a sample; its place is its number where nothing is."""
        if "json" not in raw:
            return Line(place, place)
        where = f"The line {raw['__key__']}.json in {raw['__url__']}"
        try:
            told = json.loads(raw["json"])
        except ValueError as error:
            raise DataError(f"{where} is no JSON ({error}); write the shard again.") from error
        known = told if isinstance(told, dict) else {}
        return Line.of({"index": place, **known}, where)

    def _one(self, raw: Raw, place: int, facts: dict[str, Any] | None) -> One:
        name = f"{raw['__key__']} in {raw['__url__']}"
        lossy = next((suffix for suffix in SUFFIXES if suffix in raw), None)
        if "png" not in raw:
            what = "no image" if lossy is None else f"an image of format {lossy}"
            raise DataError(f"The sample {name} has {what}; {WHY_PNG}.")
        line = self._line(raw, place)
        if facts is not None and line.made and dict(line.made) != facts:
            raise DataError(
                f"The sample {name} was made by {short(line.made)}, those before it by "
                f"{short(facts)}; keep the samples of each way in shards of their own."
            )
        y = line.y
        if "cls" in raw:
            try:
                y = int(raw["cls"])
            except ValueError as error:
                raise DataError(
                    f"The label of {name} is {raw['cls'][:40]!r}; expected a number."
                ) from error
        return One(png_pixels(raw["png"], name), y, line.index, line.seed, name)


def tars_of(path: str) -> list[Path]:
    """The tar files that a word names, in the natural order of their names.

    Raises:
        DataError: If there are none, or they are several splits of a data set.
    """
    root = Path(path)
    if root.is_dir():
        found = list(root.glob("*.tar"))
        if (root / FILE).is_file():
            splits = {k: v for k, v in Manifest.read(root).shards.items() if v}
            if len(splits) > 1:
                raise DataError(
                    f"{root} holds the splits {', '.join(splits)} of a data set; give one of them "
                    f"as a pattern, such as '{root}/{next(iter(splits))}-*.tar'."
                )
    elif root.is_file():
        found = [root]
    else:
        found = [
            file
            for word in expand_urls(path)
            for file in Path(word).parent.glob(Path(word).name)
            if file.suffix == ".tar"
        ]
    if not found:
        raise DataError(f"{path} names no tar file (from {Path.cwd()}); expected *.tar.")
    return sorted(found, key=lambda file: natural(str(file)))


def about_of(path: Path) -> dict[str, Any]:
    """What a shard tells of itself; the number of its images alone, where it was made elsewhere.

    Raises:
        DataError: If it is cut short or no tar file.
    """
    again = "it is cut short or no tar file; make it again"
    with path.open("rb") as stream:
        size = path.stat().st_size
        stream.seek(max(size - len(END), 0))
        if size % BLOCK or stream.read() != END:
            raise DataError(f"Cannot read the shard {path}: {again}.")
    count = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for place, member in enumerate(tar):
                if place == 0 and member.name == ABOUT:
                    told: dict[str, Any] = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                    return {"count": int(told["count"]), **told}
                count += member.isfile() and member.name.lower().endswith(".png")
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
    except (tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"Cannot read the shard {path} ({error}): {again}.") from error
    return {"count": count}


def write_shards(
    samples: Generated,
    path: Path,
    tell: Callable[[int], None] = lambda count: None,
    per_shard: int = PER_SHARD,
) -> None:
    """Writes a single tar file where the path ends so, else a folder of them."""
    ones = singly(samples, tell)
    if path.suffix == ".tar":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shard(path, samples, ones, samples.count)
        return
    if per_shard < 1:
        raise ValueError(f"per_shard is {per_shard}; expected 1 or more.")
    with whole_folder(path) as root:
        shards = []
        for number, rows in enumerate(slices(range(samples.count), per_shard)):
            shards.append(Shard(root / f"samples-{number:06d}.tar", len(rows)))
            write_shard(shards[-1].path, samples, islice(ones, len(rows)), len(rows))
        next(ones, None)  # lets it tell of the last batch
        if samples.class_names:  # then they are a labelled set, which ShardImages reads
            splits: dict[str, list[Shard]] = {"train": [], "validation": [], "test": shards}
            names = samples.class_names
            Manifest(names, samples.shape, "samples, 8-bit PNG", splits).write(root)


def write_shard(path: Path, samples: Generated, ones: Iterable[One], count: int) -> None:
    """Writes one tar file."""
    facts = samples.facts()
    about = {"count": count, "class_names": samples.class_names, "made": facts}
    with under_temporary_name(path) as file, TarWriter(file, encoder=False, mtime=0) as writer:
        key = ABOUT.removesuffix(".json")
        writer.write({"__key__": key, "json": json.dumps(about).encode()})
        for one in ones:
            line = Line(one.index, one.seed, None, one.y, samples.name_of(one.y), facts)
            label = {} if one.y is None else {"cls": str(one.y).encode()}
            told = json.dumps(line.told()).encode()
            writer.write({"__key__": one.name, "png": as_png(one.pixels), **label, "json": told})
