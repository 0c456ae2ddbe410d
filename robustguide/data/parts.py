"""What runs leave of parts of a generation, from which one result of all images is made.

A part is a folder: `samples.tar` with the images, `state.safetensors` with what the callbacks
hold, features by protocol in `features/`, and `part.json`, which tells what it is.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from robustguide.data.errors import DataError
from robustguide.files import PART

STATE, SAMPLES = "state.safetensors", "samples.tar"
SHOWN = 5  # numbers that an error lists


class Part:
    """Images of a range of numbers that were made and looked at, but not measured.

    Args:
        folder: That a run left.

    Attributes:
        first: Number of the first image.
        count: How many there are.
        facts: All that is told of it, as plain data: also `evaluated` (sums of the cost),
            `work` (FLOPs, and the seconds they took), `peak_memory_bytes` and `checkpoints`
            (SHA-256 by path).

    Raises:
        DataError: If it does not tell what it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.facts: dict[str, Any] = json.loads((folder / PART).read_text())
            self.first, self.count = int(self.facts["first"]), int(self.facts["count"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder} holds no part of a generation ({error!r}); delete it and make it again."
            ) from error

    @property
    def numbers(self) -> range:
        """Of its images."""
        return range(self.first, self.first + self.count)

    @cached_property
    def states(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Tensors by name, by callback."""
        found: dict[str, dict[str, Tensor]] = {}
        with safe_open(self.folder / STATE, framework="pt") as file:
            for key in file.keys():  # no mapping
                callback, _, name = key.rpartition("|")
                found.setdefault(callback, {})[name] = file.get_tensor(key)
        return found


class PartLoader:
    """One part a batch, in the order of their images.

    Args:
        parts: In that order.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Part]:
        for part in self.parts:
            yield Part(part.folder)  # read anew, so that its tensors go when it is done with


def parts_in(folder: Path, numbers: range) -> list[Part]:
    """The parts in a folder, which hold each of the images exactly once.

    Args:
        folder: Whose folders are the parts; hidden ones are not looked at.
        numbers: Of the images, without gaps.

    Raises:
        DataError: If some are missing, there twice or not asked for, or parts are of different
            networks.
    """
    places = sorted(folder.glob("[!.]*/")) if folder.is_dir() else []
    parts = sorted((Part(place) for place in places), key=lambda part: part.first)
    missing, at = [], numbers.start
    for part in parts:
        if part.first < at or part.numbers.stop > numbers.stop:
            raise DataError(
                f"{part.folder} holds images {shown(part.numbers)}, which are there already or "
                f"not among the images {shown(numbers)}; remove the folder that is of another run."
            )
        if part.first > at:
            missing.append(range(at, part.first))
        at = part.numbers.stop
    if at < numbers.stop:
        missing.append(range(at, numbers.stop))
    if missing:
        listed = ", ".join(map(shown, missing[:SHOWN])) + (", ..." if missing[SHOWN:] else "")
        raise DataError(
            f"Of the images {shown(numbers)}, {sum(map(len, missing))} are missing in {folder}: "
            f"{listed}; make them first."
        )
    refuse_mixed(parts)
    return parts


def refuse_mixed(parts: Sequence[Part]) -> None:
    """Refuses parts whose networks are not the same.

    Raises:
        DataError: Naming two parts and a file.
    """
    for part in parts[1:]:
        ours, first = (dict(each.facts.get("checkpoints") or {}) for each in (part, parts[0]))
        for path in sorted(ours.keys() | first.keys()):
            if ours.get(path) != first.get(path):
                raise DataError(
                    f"{path} was another file when {part.folder} was made than for "
                    f"{parts[0].folder}; delete the parts that were made with the wrong one."
                )


def shown(numbers: range) -> str:
    """A range as people write it."""
    return f"{numbers.start} to {numbers.stop - 1}" if len(numbers) > 1 else f"{numbers.start}"
