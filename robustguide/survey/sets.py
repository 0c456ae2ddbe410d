"""Sets of samples that can be asked about: the same seeds, each of one class, in all of them."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from numpy import ndarray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robustguide.data.errors import DataError
from robustguide.data.generated import Bytes, Generated, open_samples
from robustguide.data.generated.lines import NAME

BATCH = 256  # images that are in memory at a time
NAMED = 3  # seeds that an error names
SHOWN = "samples.safetensors"
NOTHING = torch.empty(0, device="cpu")

Classes = dict[int, tuple[int | None, str | None]]


class RunSamples(Generated):
    """The images that `robustguide test` keeps for its grid, with their seeds and labels.

    Args:
        folder: Of the run, with `samples.safetensors` and `results.json`.

    Raises:
        DataError: If one of them is missing or damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder)
        self.pixels, self.index, self.y = grid_of(self.path / SHOWN)
        self.count = len(self.pixels)
        c, h, w = self.pixels.shape[1:]
        self.shape = (c, h, w)
        run = run_of(self.path / "results.json")
        data = run["config"]["data"]["init_args"]
        classes = range(data.get("num_classes") or 1 + int(self.y.max()))
        self.class_names = data.get("class_names") or list(map(str, classes))
        self.made = {"kind": "run", "checkpoints": sorted(dict(run["checkpoints"]).values())}

    def batches(self, size: int) -> Iterator[Bytes]:
        """Cuts them into batches."""
        for first in range(0, self.count, size):
            rows = slice(first, first + size)
            index = self.index[rows]
            yield Bytes(self.pixels[rows], self.y[rows], index, index)

    def seeds(self) -> Int[Tensor, " n"]:
        """The numbers of the images, from which their noise is drawn."""
        return self.index


def open_set(path: str | os.PathLike[str]) -> Generated:
    """Samples in any form that `open_samples` knows, or of a run of `robustguide test`.

    Args:
        path: A run folder, a folder of PNG files, an .npz file or shards.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: It is something else, or damaged.
    """
    place = Path(path)
    if place.name == SHOWN and place.is_file():
        return RunSamples(place.parent)
    if (place / SHOWN).is_file() and not (place / NAME).is_file():
        return RunSamples(place)
    return open_samples(path)


def grid_of(file: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Images (n, c, h, w) of a grid, their seeds (n,) and labels (n,).

    Raises:
        DataError: If it does not hold them.
    """
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise DataError(f"Cannot read {file} ({error}); run the test again.") from error
    pixels, *numbers = (tensors.get(name, NOTHING) for name in ("pixels", "index", "y"))
    if pixels.dtype != torch.uint8 or pixels.dim() != 4 or not pixels.numel():
        raise DataError(
            f"{file} holds {pixels.dtype} of shape {list(pixels.shape)}; expected uint8 images "
            "(n, c, h, w). Run the test again."
        )
    for name, each in zip(("index", "y"), numbers, strict=True):
        if each.dtype != torch.int64 or each.shape != (len(pixels),):
            raise DataError(
                f"{file} holds {len(pixels)} images, and {name!r} of {each.dtype} and shape "
                f"{list(each.shape)}; expected a whole number for each. Run the test again."
            )
    return pixels, numbers[0], numbers[1]


def run_of(file: Path) -> dict[str, Any]:
    """How a run was made.

    Raises:
        DataError: If that is not told.
    """
    try:
        run: dict[str, Any] = json.loads(file.read_text())["run"]
        _ = run["config"]["data"]["init_args"], run["checkpoints"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} does not tell how the images of {SHOWN} were made ({error!r}); give the "
            "folder of a `robustguide test` that came to its end, or samples of `predict`."
        ) from error
    return run


def matched(sets: Mapping[str, Generated]) -> dict[int, str | None]:
    """Class of each seed, the same in all sets; null where samples have no labels.

    Classes are compared by their names where both sets tell them, otherwise by their numbers.

    Args:
        sets: By the names of their methods.

    Raises:
        DataError: If shapes, seeds or classes differ; the message names which.
    """
    found = {name: classes_of(samples, name) for name, samples in sets.items()}
    (first, *others) = sets
    for other in others:
        if sets[first].shape != sets[other].shape:
            raise DataError(
                f"The images of {first!r} are of shape {list(sets[first].shape)}, those of "
                f"{other!r} of {list(sets[other].shape)} (channels, height, width); a pair shows "
                "two of one shape. Sample both alike, or resize one set."
            )
        refuse_other_seeds(first, other, found[first], found[other])
        refuse_other_classes(first, other, found[first], found[other])
    return {seed: shown_class(seed, list(found.values())) for seed in sorted(found[first])}


def classes_of(samples: Generated, name: str) -> Classes:
    """Label and class name of each seed.

    Raises:
        DataError: For a seed that is there twice.
    """
    found: Classes = {}
    for batch in samples.batches(BATCH):
        labels = [None] * len(batch.seed) if batch.y is None else batch.y.tolist()
        for seed, y in zip(batch.seed.tolist(), labels, strict=True):
            if seed in found:
                raise DataError(
                    f"{name!r} holds two samples of seed {seed}, so which one to pair is open; "
                    "remove one of them."
                )
            found[seed] = y, samples.name_of(y)
    return found


def refuse_other_seeds(first: str, other: str, one: Classes, two: Classes) -> None:
    """Names the seeds that only one of two sets has.

    Raises:
        DataError: If there are some.
    """
    only = [(a, sorted(x.keys() - y.keys())) for a, x, y in ((first, one, two), (other, two, one))]
    told = [f"{len(seeds)} only in {name!r} ({some(seeds)})" for name, seeds in only if seeds]
    if told:
        raise DataError(
            f"{first!r} and {other!r} differ in their seeds: {' and '.join(told)}. A pair shows "
            "one seed of two methods: sample the missing ones, or take the first N of each by "
            "--n N."
        )


def refuse_other_classes(first: str, other: str, one: Classes, two: Classes) -> None:
    """Names the seeds whose class differs between two sets.

    Raises:
        DataError: If there are some.
    """
    wrong = [seed for seed in sorted(one) if not same_class(one[seed], two[seed])]
    if wrong:
        a, b = (worded(each[wrong[0]]) for each in (one, two))
        raise DataError(
            f"{len(wrong)} of {len(one)} seeds have another class in {first!r} than in {other!r} "
            f"({some(wrong)}): seed {wrong[0]} is of {a} in {first!r} and of {b} in {other!r}. A "
            "pair shows one class of two methods: sample both with the same labels."
        )


def same_class(one: tuple[int | None, str | None], two: tuple[int | None, str | None]) -> bool:
    """Whether two samples show the same class, as far as is told."""
    if one[1] is not None and two[1] is not None:
        return one[1] == two[1]
    return one[0] == two[0]


def worded(told: tuple[int | None, str | None]) -> str:
    """A class in an error."""
    y, name = told
    return "no class" if y is None else f"class {y if name is None else name!r}"


def shown_class(seed: int, found: list[Classes]) -> str | None:
    """Name of a seed's class, its number where no set names it."""
    names = [name for each in found for _, name in [each[seed]] if name is not None]
    y = found[0][seed][0]
    return names[0] if names else None if y is None else str(y)


def some(seeds: list[int]) -> str:
    """The first of them, for errors."""
    more = ", ..." if len(seeds) > NAMED else ""
    return ", ".join(map(str, seeds[:NAMED])) + more


def pictures(samples: Generated, seeds: set[int]) -> dict[int, UInt8[ndarray, "c h w"]]:
    """The images of some seeds, of which the set has all."""
    found: dict[int, ndarray] = {}
    for batch in samples.batches(BATCH):
        for seed, pixels in zip(batch.seed.tolist(), batch.pixels.numpy(), strict=True):
            if seed in seeds:
                found[seed] = pixels.copy()
        if len(found) == len(seeds):
            break
    return found
