"""Features of images on disk, written chunk by chunk by any number of processes.

A chunk is a file whose name follows from the numbers of its images, so that a chunk that is
written twice is there once. At the end the chunks become one file of float32 numbers a layer, in
the order of the images' numbers, each image once, whoever wrote it and in however large batches.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from robustguide.files import whole
from robustguide.metrics.tables import Filed

LAYER = "layer."  # before the names of layers in chunks


@dataclass(frozen=True)
class Stored:
    """All features, in the order of the images' numbers.

    Attributes:
        index: Numbers (n,) of the images, ascending.
        layers: Features by layer, on disk.
        y: Labels (n,); null where images have none.
    """

    index: Int[Tensor, " n"]
    layers: Mapping[str, Filed]
    y: Int[Tensor, " n"] | None = None


class FeatureStore:
    """See the module. Memory is that of one chunk, apart from 16 bytes an image.

    Args:
        folder: Of the files, one that all processes see.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def clear(self) -> None:
        """Removes what is there; one process does so, before the others add."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def marks(self) -> dict[int, int]:
        """Marks of the images whose features are there, by number."""
        found: dict[int, int] = {}
        for chunk in sorted(self.folder.glob("chunk_*.safetensors")):
            index, marks = read(chunk, "index").tolist(), read(chunk, "marks").tolist()
            found = dict(zip(index, marks, strict=True)) | found
        return found

    def add(
        self,
        index: Int[Tensor, " b"],
        layers: Mapping[str, Tensor],
        y: Int[Tensor, " b"] | None = None,
        marks: Int[Tensor, " b"] | None = None,
    ) -> None:
        """Writes one chunk, under its final name only once it is whole.

        Args:
            index: Numbers of the images.
            layers: Features (b, d) by layer.
            y: Labels.
            marks: By which an image is known again, such as a hash; zeros where none are given.

        Raises:
            ValueError: If a layer has not one row for each image.
        """
        lengths = {layer: len(features) for layer, features in layers.items()}
        if set(lengths.values()) - {len(index)} or not layers:
            raise ValueError(
                f"Got features of {lengths} images for {len(index)} numbers; give every layer one "
                "row for each image."
            )
        if not len(index):
            return
        numbers = index.detach().cpu().long().contiguous()
        tensors = {
            LAYER + layer: features.detach().cpu().float().contiguous()
            for layer, features in layers.items()
        }
        tensors["index"] = numbers
        tensors["marks"] = torch.zeros_like(numbers) if marks is None else marks.cpu().contiguous()
        if y is not None:
            tensors["y"] = y.detach().cpu().long().contiguous()
        digest = hashlib.sha256(numbers.numpy().astype("<i8").tobytes()).hexdigest()[:16]
        with whole(self.folder / f"chunk_{int(numbers[0]):012d}_{digest}.safetensors") as part:
            save_file(tensors, part)

    def chunks(self) -> Iterator[tuple[Tensor, dict[str, Tensor], Tensor | None]]:
        """What was added, in the order of the files' names: numbers, layers and labels."""
        for chunk in sorted(self.folder.glob("chunk_*.safetensors")):
            found = load_file(chunk)
            layers = {k.removeprefix(LAYER): v for k, v in found.items() if k.startswith(LAYER)}
            yield found["index"], layers, found.get("y")

    def finish(self) -> Stored:
        """Makes the chunks of all processes one file a layer; one process does so.

        Of an image that several chunks hold, the first by name gives the features. Once more, it
        does the same again.

        Raises:
            ValueError: If there is no chunk, or chunks have different layers or labels.
        """
        chunks = sorted(self.folder.glob("chunk_*.safetensors"))
        if not chunks:
            raise ValueError(f"{self.folder} holds no features; add those of one image or more.")
        dims, has_y = self._layout(chunks)
        index, place, y = self._order(chunks, has_y)
        for layer, dim in dims.items():
            with whole(self._file(layer)) as part, part.open("wb") as file:
                file.truncate(4 * len(index) * dim)
                first = 0
                for chunk in chunks:
                    features = read(chunk, LAYER + layer)
                    write_rows(file, features, place[first : first + len(features)])
                    first += len(features)
        layers = {layer: Filed(self._file(layer), len(index), dim) for layer, dim in dims.items()}
        return Stored(index, layers, y)

    def _file(self, layer: str) -> Path:
        return self.folder / f"{layer}.float32"

    def _layout(self, chunks: list[Path]) -> tuple[dict[str, int], bool]:
        """Dimension of each layer, and whether there are labels; in all chunks alike."""
        found = {}
        for chunk in chunks:
            with safe_open(chunk, framework="pt") as file:
                names = sorted(file.keys())
                dims = {
                    name.removeprefix(LAYER): file.get_slice(name).get_shape()[1]
                    for name in names
                    if name.startswith(LAYER)
                }
            found[chunk] = dims, "y" in names
        first = found[chunks[0]]
        for chunk, layout in found.items():
            if layout != first:
                raise ValueError(
                    f"{chunk} has layers and labels {layout}, {chunks[0].name} has {first}: they "
                    f"are of different runs; delete {self.folder} and measure again."
                )
        return first

    def _order(self, chunks: list[Path], has_y: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Numbers of the images, the place of each stored row (-1 for one again), and labels."""
        rows = torch.cat([read(chunk, "index") for chunk in chunks])
        order = rows.argsort(stable=True)
        new = torch.ones(len(rows), dtype=torch.bool)
        new[1:] = rows[order][1:] != rows[order][:-1]
        kept = order[new]
        place = torch.full_like(rows, -1)
        place[kept] = torch.arange(len(kept))
        y = torch.cat([read(chunk, "y") for chunk in chunks])[kept] if has_y else None
        return rows[kept], place, y


def read(chunk: Path, name: str) -> Tensor:
    """One tensor of a chunk."""
    with safe_open(chunk, framework="pt") as file:
        found: Tensor = file.get_tensor(name)
    return found


def write_rows(file: BinaryIO, features: Float[Tensor, "b d"], place: Int[Tensor, " b"]) -> None:
    """Writes rows at their places in a file, as runs of neighbours; place -1 is left out."""
    kept = place >= 0
    features, place = features[kept], place[kept]
    order = place.argsort()
    features, place = features[order].contiguous(), place[order]
    ends = (torch.nonzero(place[1:] != place[:-1] + 1).flatten() + 1).tolist()
    bounds = [0, *ends, len(place)]
    for first, last in pairwise(bounds):
        if last > first:
            file.seek(4 * features.shape[1] * int(place[first]))
            file.write(features[first:last].numpy().astype("<f4", copy=False).tobytes())
