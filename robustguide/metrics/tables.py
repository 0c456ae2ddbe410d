"""Features of many images by blocks of rows, in memory or in a file that need not fit there.

A file is read, not mapped: mapped pages count as memory that a job uses, and schedulers kill it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 4096  # rows; of 2048 features in float64, 67 MB


class Table(ABC):
    """Rows of features.

    Attributes:
        rows: Number of images.
        dim: Features of each.
    """

    rows: int
    dim: int

    @abstractmethod
    def block(self, first: int, last: int) -> Float[Tensor, "n d"]:
        """Rows from `first` to before `last`, in float32."""

    def blocks(self, size: int = BLOCK) -> Iterator[Float[Tensor, "n d"]]:
        """All rows in order."""
        for first in range(0, self.rows, size):
            yield self.block(first, min(first + size, self.rows))

    def __len__(self) -> int:
        return self.rows


class Held(Table):
    """Features in memory.

    Args:
        features: Rows of them.
    """

    def __init__(self, features: Float[Tensor, "n d"]) -> None:
        self.features = features
        self.rows, self.dim = features.shape

    def block(self, first: int, last: int) -> Float[Tensor, "n d"]:
        """A view."""
        return self.features[first:last].float()


class Filed(Table):
    """Features in a file of float32 numbers, row after row.

    Args:
        path: The file.
        rows: Number of images.
        dim: Features of each.
        offset: Bytes before the first number.

    Raises:
        ValueError: When the file is too short.
    """

    def __init__(self, path: Path, rows: int, dim: int, offset: int = 0) -> None:
        self.path, self.rows, self.dim, self.offset = Path(path), rows, dim, offset
        there, needed = self.path.stat().st_size, offset + 4 * rows * dim
        if there < needed:
            raise ValueError(
                f"{path} has {there} bytes, {rows} rows of {dim} features need {needed}: it was "
                "cut short; make it again."
            )

    def block(self, first: int, last: int) -> Float[Tensor, "n d"]:
        """Reads them."""
        last = min(last, self.rows)
        count = max(last - first, 0) * self.dim
        start = self.offset + 4 * first * self.dim
        numbers = np.fromfile(self.path, np.float32, count, offset=start)
        return torch.from_numpy(numbers).reshape(-1, self.dim)


class Chosen(Table):
    """Some rows of another table, in the order of that table.

    Args:
        table: All rows.
        places: Which ones; sorted, each at most once.
    """

    def __init__(self, table: Table, places: Sequence[int]) -> None:
        self.table, self.places = table, torch.as_tensor(places, dtype=torch.long)
        self.rows, self.dim = len(self.places), table.dim

    def block(self, first: int, last: int) -> Float[Tensor, "n d"]:
        """Reads what lies between the first and the last of them, by and by."""
        wanted, parts = self.places[first:last], []
        for part in torch.split(wanted, BLOCK) if len(wanted) else ():
            low = int(part[0])
            while low <= int(part[-1]):
                high = min(low + BLOCK, int(part[-1]) + 1)
                inside = part[(part >= low) & (part < high)] - low
                if len(inside):
                    parts.append(self.table.block(low, high)[inside])
                low = high
        return torch.cat(parts) if parts else torch.empty(0, self.dim)
