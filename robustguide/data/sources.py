"""Sets that fit into memory: scikit-learn's digits and Fashion-MNIST.

Where a set comes with training and test images alone, a fixed tenth of each class of the training
images is held out for validation; its test images are used for tests and nothing else.
"""

import gzip
import struct
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from robustguide.data.errors import DataError
from robustguide.data.images import ImageSource, Rows, Split
from robustguide.data.splits import chance, hold_out

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


class Digits(ImageSource):
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels.

    Of each digit 70% are for training, 10% for validation and 20% for tests.

    Args:
        seed: Another seed is another division into splits.
        fold: `(i, k)` keeps the i-th of k disjoint, stratified parts of the training split, for
            networks that must not share an image.
    """

    def __init__(self, seed: int = 0, fold: tuple[int, int] | None = None) -> None:
        if fold is not None and not 0 <= fold[0] < fold[1]:
            raise ValueError(f"fold is {fold}; expected (i, k) with 0 <= i < k, as in (0, 3).")
        self.seed, self.fold = seed, fold
        self.class_names, self.shape = [str(digit) for digit in range(10)], (1, 8, 8)

    @cached_property
    def _rows(self) -> tuple[np.ndarray, list[int], dict[str, list[int]]]:
        from sklearn.datasets import load_digits  # takes half a second

        digits = load_digits()
        labels = digits.target.tolist()
        rest, test = hold_out(range(len(labels)), labels, 0.2, self.seed)
        train, validation = hold_out(rest, labels, 0.125, self.seed)
        if self.fold is not None:
            train.sort(key=lambda row: (labels[row], chance(row, self.seed)))
            train = sorted(train[self.fold[0] :: self.fold[1]])
        # 255/16 is exact in float32, so x_0 is exactly value / 8 - 1.
        images = digits.images.astype(np.float32) * np.float32(255 / 16)
        return images, labels, {"train": train, "validation": validation, "test": test}

    def open(self, name: str) -> Split:
        """Picks the rows."""
        images, labels, rows = self._rows
        return Rows(images, labels, rows[name], "scikit-learn's digits", self.num_classes)


class FashionMNIST(ImageSource):
    """Fashion-MNIST from its four original files, 70,000 images of 28 x 28 pixels.

    Args:
        root: Folder of the files, or the one that torchvision was given; without it, that of
            Debian's package dataset-fashion-mnist.
        size: 28, or 32 to pad each side with two black pixels.
        channels: 1, or 3 with the same in each, for networks of colour images.
    """

    class_names = (
        "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
    )

    def __init__(self, root: str | None = None, size: int = 28, channels: int = 1) -> None:
        if size < 28 or size % 2:
            raise ValueError(f"size is {size}; expected 28, or an even number above to pad to.")
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}; expected 1, or 3 for colour networks.")
        self.root, self.shape = root, (channels, size, size)

    @property
    def folders(self) -> list[Path]:
        """The folders that are searched."""
        given = [Path(self.root), Path(self.root, "FashionMNIST/raw")] if self.root else []
        return [*given, DEBIAN_FASHION_MNIST]

    def open(self, name: str) -> Split:
        """Reads two of the files."""
        prefix = "t10k" if name == "test" else "train"
        labels = read_idx(self._find(f"{prefix}-labels-idx1-ubyte")).tolist()
        images = read_idx(self._find(f"{prefix}-images-idx3-ubyte"))
        pad = (self.shape[1] - images.shape[1]) // 2
        images = np.pad(images, ((0, 0), (pad, pad), (pad, pad)))
        rows: Sequence[int] = range(len(labels))
        if name != "test":
            rows = hold_out(rows, labels, 0.1)[name == "validation"]
        told = f"Fashion-MNIST ({prefix})"
        return Rows(images, labels, rows, told, self.num_classes, self.shape[0])

    def _find(self, name: str) -> Path:
        for path in (folder / (name + end) for folder in self.folders for end in (".gz", "")):
            if path.is_file():
                return path
        raise DataError(
            f"Fashion-MNIST's {name}.gz is in none of {', '.join(map(str, self.folders))}. "
            "Install Debian's package dataset-fashion-mnist, or set root to a folder that holds "
            "the four files."
        )


def read_idx(path: Path) -> np.ndarray:
    """Reads an array of bytes in the idx format, gzipped or not.

    Raises:
        DataError: If the file is cut or of another format.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        (magic,) = struct.unpack(">I", data[:4])
        shape = struct.unpack(f">{magic % 256}I", data[4 : 4 + 4 * (magic % 256)])
        array = np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (EOFError, OSError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"Cannot read {path}: {error}. Fetch the file again.") from error
    if magic >> 8 != 0x08:
        raise DataError(f"{path} is not an idx file of bytes. Fetch the file again.")
    return array
