"""Samples in the .npz file of ADM's evaluator.

`arr_0` holds the images, uint8 (n, h, w, c), and `arr_1` their labels, where they have some. Files
written here also hold `index`, `seeds` and `about` (JSON), which other readers pass over.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from robustguide.checkpoints.arrays import Arrays, Header
from robustguide.data.errors import DataError
from robustguide.data.generated.base import Bytes, Generated, at_least_one, out_of_order
from robustguide.files import whole

IMAGES, LABELS = "arr_0", "arr_1"
ROWS = 256  # written at a time
CONVERT = {
    "from 0 to 1": "(images * 255).round()",
    "from -1 to 1": "((images + 1) * 127.5).round()",
    "from 0 to 255": "images.round()",
}


class SampleArchive(Generated):
    """An .npz file; its images are read as a stream, stored or compressed.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is cut short, or holds no images as bytes; see the message.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.arrays = Arrays(self.path)
        header = self._header()
        self.count, h, w, c = header.shape
        self.shape = (c, h, w)
        about = self._about()
        self.class_names = about.get("class_names")
        self.made = {"kind": "npz", **about.get("made", {})}
        self.y = self._numbers(LABELS)
        index, seeds = self._numbers("index"), self._numbers("seeds")
        self.index = torch.arange(self.count, device="cpu") if index is None else index
        self._seeds = self.index if seeds is None else seeds
        behind = (self.index.diff() <= 0).nonzero().flatten().tolist()
        if behind:
            last, own = self.index[behind[0] : behind[0] + 2].tolist()
            raise out_of_order(str(self.path), own, last)

    def batches(self, size: int) -> Iterator[Bytes]:
        """Reads them."""
        first = 0
        for rows in self.arrays.rows(IMAGES, at_least_one(size)):
            part = slice(first, first + len(rows))
            pixels = torch.from_numpy(rows).permute(0, 3, 1, 2).contiguous()
            y = None if self.y is None else self.y[part]
            yield Bytes(pixels, y, self.index[part], self._seeds[part])
            first += len(rows)

    def seeds(self) -> Int[Tensor, " n"]:
        """As the file tells them."""
        return self._seeds

    def _header(self) -> Header:
        """Of the images.

        Raises:
            DataError: For an array that holds no images as bytes.
        """
        names = self.arrays.names
        if IMAGES not in names:
            hint = "give statistics as --reference" if "mu" in names else "save images as arr_0"
            raise DataError(
                f"{self.path} holds {', '.join(names) or 'no arrays'}; expected {IMAGES}, uint8 "
                f"of shape (n, h, w, c): {hint}."
            )
        header = self.arrays.header(IMAGES)
        if header.dtype != np.uint8:
            raise DataError(self._conversion(header))
        if len(header.shape) != 4 or header.shape[3] not in (1, 3):
            raise DataError(
                f"{IMAGES} in {self.path} is of shape {list(header.shape)}; expected "
                "(n, h, w, c) with 1 or 3 channels. Save it again from images.transpose(0, 2, 3, "
                "1), or grey ones from images[..., None]."
            )
        if not header.shape[0]:
            raise DataError(f"{self.path} holds no images; write them again.")
        return header

    def _conversion(self, header: Header) -> str:
        """How numbers of another type become bytes, as their range has it."""
        told = f"{IMAGES} in {self.path} is {header.dtype}, expected uint8 from 0 to 255"
        if not np.issubdtype(header.dtype, np.floating) or not all(header.shape):
            return f"{told}. Save it again from images.astype(np.uint8) if its values are those."
        rows = next(self.arrays.rows(IMAGES, min(header.shape[0], 64)))
        low, high = float(rows.min()), float(rows.max())
        scope = "from 0 to 255" if high > 2 else "from -1 to 1" if low < 0 else "from 0 to 1"
        return (
            f"{told}. The first images have values from {low:.4g} to {high:.4g}: if the range is "
            f"{scope}, save {CONVERT[scope]}.clip(0, 255).astype(np.uint8)."
        )

    def _numbers(self, name: str) -> Tensor | None:
        """One whole number for each image; null where there are none.

        Raises:
            DataError: For another length, or anything but numbers of 0 or more.
        """
        if name not in self.arrays.names:
            return None
        header = self.arrays.header(name)
        if header.shape != (self.count,) or header.dtype.kind not in "iu":
            raise DataError(
                f"{name} in {self.path} is {header.dtype} of shape {list(header.shape)}; expected "
                f"a whole number for each of the {self.count} images."
            )
        numbers = self.arrays.read(name).astype(np.int64)
        if numbers.min() < 0:
            raise DataError(f"{name} in {self.path} holds {numbers.min()}; expected 0 or more.")
        return torch.from_numpy(numbers)

    def _about(self) -> dict[str, Any]:
        if "about" not in self.arrays.names:
            return {}
        try:
            told = json.loads(str(self.arrays.read("about")[()]))
            names = told.get("class_names")
            return {"made": dict(told["made"]), "class_names": names and [str(x) for x in names]}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"about in {self.path} is not what `robustguide repack` writes ({error!r}); write "
                "the file again."
            ) from error


def write_archive(
    samples: Generated, path: Path, tell: Callable[[int], None] = lambda count: None
) -> None:
    """Writes the file of ADM's evaluator, images as a stream; the same samples, the same bytes."""
    c, h, w = samples.shape
    about = json.dumps({"made": samples.facts(), "class_names": samples.class_names})
    # lists of tensors would keep apart the memory that batches leave, and so all of it
    y, index, seeds = (np.zeros(samples.count, np.int64) for _ in range(3))
    done, has_labels = 0, False
    with whole(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as file:
        with file.open(member(IMAGES), "w", force_zip64=True) as stream:
            shape = (samples.count, h, w, c)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for batch in samples.batches(ROWS):
                stream.write(batch.pixels.permute(0, 2, 3, 1).contiguous().numpy().data)
                rows = slice(done, done + len(batch.index))
                index[rows], seeds[rows] = batch.index.numpy(), batch.seed.numpy()
                if batch.y is not None:
                    y[rows], has_labels = batch.y.numpy(), True
                done = rows.stop
                tell(len(batch.index))
        arrays = {"index": index, "seeds": seeds, "about": np.array(about)}
        for name, array in ({LABELS: y} | arrays if has_labels else arrays).items():
            with file.open(member(name), "w") as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def member(name: str) -> zipfile.ZipInfo:
    """An array's place in the file, of no time."""
    return zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
