"""Samples as PNG files in a folder, with `samples.jsonl` beside them or without."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

from jaxtyping import Int
from torch import Tensor

from robustguide.data.errors import DataError
from robustguide.data.folder import is_image
from robustguide.data.generated.base import (
    WHY_PNG,
    Bytes,
    Generated,
    One,
    as_png,
    at_least_one,
    batched,
    out_of_order,
    png_pixels,
    singly,
    whole_folder,
    whole_numbers,
)
from robustguide.data.generated.lines import (
    NAME,
    Line,
    as_text,
    classes_of,
    facts_of,
    read_lines,
)

BLOCK = 1000  # seeds in a folder, as EDM's generator divides its images
IMAGES = "images"
LARGEST = 2**63 - 1


class SampleFolder(Generated):
    """PNG files in a folder.

    With `samples.jsonl`, which `robustguide predict` writes, the folder is that of the run, its
    folder `images`, or one that holds the run folders of an array of jobs. Without it, files are
    taken in the natural order of their names (2 before 10): subfolders are classes, unless they
    divide the images by blocks of a thousand seeds, and names that are all numbers are seeds.

    Args:
        path: The folder.

    Raises:
        DataError: If there are no images, images of a format that loses something, or if lines
            and images are not the same.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = self.root = Path(path)
        listed = lists_of(self.path)
        if len(listed) == 1:
            self.root = listed[0].parent
        lines = [line for each in listed for line in listed_in(each, self.root)]
        if not listed:
            lines = found_in(self.path)
        if not lines:
            raise DataError(
                f"{self.path} holds no samples; expected PNG files, with {NAME} or without."
            )
        lines.sort(key=lambda line: line.index)
        for one, two in pairwise(lines):
            if one.index == two.index:
                raise out_of_order(str(self.path), two.index, one.index)
        self.lines, self.count = lines, len(lines)
        self.y, self.class_names = classes_of(lines, str(self.path))
        self.made = {"kind": "folder", **facts_of(lines, str(self.path))}
        c, h, w = self._one(0).pixels.shape
        self.shape = (c, h, w)

    def batches(self, size: int) -> Iterator[Bytes]:
        """Decodes them."""
        ones = (self._one(row) for row in range(self.count))
        yield from batched(ones, at_least_one(size), self.shape, str(self.path))

    def seeds(self) -> Int[Tensor, " n"]:
        """As the lines tell them."""
        return whole_numbers(line.seed for line in self.lines)

    def _one(self, row: int) -> One:
        line = self.lines[row]
        file = self.root / str(line.file)
        y = None if self.y is None else self.y[row]
        return One(png_pixels(file.read_bytes(), str(file)), y, line.index, line.seed, str(file))


def lists_of(path: Path) -> list[Path]:
    """The files of lines that tell of a folder's images; none for images of another tool.

    Raises:
        DataError: For a run that did not come to its end.
    """
    for folder in (path, path.parent) if path.name == IMAGES else (path,):
        if (folder / NAME).is_file():
            return [folder / NAME]
    if (path / IMAGES / "made_from.json").is_file():
        raise DataError(
            f"{path} has {IMAGES}/, but no {NAME}: the run that made them did not come to its "
            f"end. Give its command again, or {path / IMAGES} for the images without labels."
        )
    return sorted(path.glob(f"*/{NAME}"), key=lambda file: natural(file.parent.name))


def listed_in(listed: Path, root: Path) -> list[Line]:
    """The lines of a file, those of its folder's images, with paths relative to the root.

    Raises:
        DataError: For lines without an image, and images without a line.
    """
    folder, lines = listed.parent, read_lines(listed)
    files = [os.path.normpath(line.file or f"{IMAGES}/{line.index:08d}.png") for line in lines]
    if len(set(files)) < len(files):
        twice = next(file for place, file in enumerate(files) if file in files[:place])
        raise DataError(f"{listed} tells of {twice} twice; give each image one line.")
    there = {
        os.path.normpath(os.path.join(place, name))
        for place in {os.path.dirname(file) for file in files}
        if (folder / place).is_dir()
        for name in os.listdir(folder / place)
        if is_image(name)
    }
    if missing := sorted(set(files) - there):
        raise DataError(
            f"{listed} tells of {len(files)} images, of which {len(missing)} are not there, such "
            f"as {folder / missing[0]}. Give the command that made them again."
        )
    if others := sorted(there - set(files)):
        raise DataError(
            f"{folder} holds {len(others)} images of which {NAME} tells nothing, such as "
            f"{others[0]}. Remove them, or list them, too."
        )
    prefix = folder.relative_to(root)
    return [
        replace(line, file=str(prefix / file)) for line, file in zip(lines, files, strict=True)
    ]


def found_in(path: Path) -> list[Line]:
    """Images of another tool, as if there were lines.

    Raises:
        DataError: For images of other formats, or both in the folder and in subfolders.
    """
    files = [
        (Path(folder).relative_to(path) / name).as_posix()
        for folder, _, names in os.walk(path)
        for name in names
        if is_image(name)
        and not any(part[0] == "." for part in Path(folder).relative_to(path).parts)
    ]
    if others := sorted(file for file in files if not file.lower().endswith(".png")):
        raise DataError(
            f"{path} holds {len(others)} images that are no PNG, such as {others[0]}; {WHY_PNG}. "
            "Real images of any format are read by `robustguide stats --data` with "
            "robustguide.data.Folder."
        )
    files.sort(key=natural)
    folders = [PurePosixPath(file).parts[:-1] for file in files]
    if len({bool(parts) for parts in folders}) > 1:
        raise DataError(
            f"{path} has images of its own and images in subfolders; give a folder that has one "
            "or the other."
        )
    seeds = seeds_of(files)
    classes: Sequence[str | None] = [parts[0] if parts else None for parts in folders]
    if are_blocks(classes, seeds):
        classes = [None] * len(files)
    rows = enumerate(zip(files, seeds or range(len(files)), classes, strict=True))
    return [Line(place, seed, file, None, name) for place, (file, seed, name) in rows]


def natural(name: str) -> list[str | int]:
    """Sorts numbers in names by their value."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def seeds_of(files: Sequence[str]) -> list[int] | None:
    """The numbers that files are named by; null where they are not, or not each by its own."""
    stems = [PurePosixPath(file).stem for file in files]
    if not all(re.fullmatch("[0-9]{1,19}", stem) for stem in stems):
        return None
    seeds = [int(stem) for stem in stems]
    is_own = len(set(seeds)) == len(seeds) and max(seeds, default=0) <= LARGEST
    return seeds if is_own else None


def are_blocks(folders: Sequence[str | None], seeds: Sequence[int] | None) -> bool:
    """Whether subfolders divide the images by seed, and are no classes."""
    return seeds is not None and all(
        name is not None and re.fullmatch("[0-9]{6}", name) and int(name) == seed - seed % BLOCK
        for name, seed in zip(folders, seeds, strict=True)
    )


def write_folder(
    samples: Generated, path: Path, tell: Callable[[int], None] = lambda count: None
) -> None:
    """Writes `images/<index>.png` and `samples.jsonl`, as `robustguide predict` does."""
    facts, lines = samples.facts(), list[Line]()
    with whole_folder(path) as part:
        (part / IMAGES).mkdir()
        for one in singly(samples, tell):
            file = f"{IMAGES}/{one.name}.png"
            (part / file).write_bytes(as_png(one.pixels))
            lines.append(Line(one.index, one.seed, file, one.y, samples.name_of(one.y), facts))
        (part / NAME).write_text(as_text(lines))
