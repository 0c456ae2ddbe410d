"""What a file says that it holds as tensors, checked before any memory is asked for.

A file names storages, which are stretches of its own bytes, and claims tensors upon them by
offset, shape and strides. A claim becomes a tensor only when it is wanted.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SOURCE = "Get the file again from where it was published, and compare its SHA-256"
DAMAGED = f"The file is damaged or incomplete. {SOURCE}"
RESAVE = "Load it where you trust it, and save its state dict with torch.save or as safetensors"
MOST_AXES = 16


class RefusedError(ValueError):
    """A file is not what it should be; says why, and what to do."""

    def __init__(self, reason: str, repair: str = SOURCE) -> None:
        super().__init__(f"{reason}. {repair}.")


@dataclass(eq=False)
class Storage:
    """Numbers of one type: how many, and as soon as it is known where, the bytes of the file."""

    dtype: torch.dtype
    count: int
    content: memoryview | None = None
    _numbers: Tensor | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Length of the content."""
        return self.count * self.dtype.itemsize

    def tensor(self) -> Tensor:
        """All numbers, flat: a view of the mapped file where it is aligned, else one copy."""
        if self._numbers is None:
            if self.content is None or len(self.content) != self.nbytes:
                raise RefusedError("it holds a storage without its content", DAMAGED)
            self._numbers = _numbers(self.content, self.dtype)
        return self._numbers


@dataclass(frozen=True, eq=False)
class Claim:
    """A tensor that a file claims to hold; made by `claimed`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def tensor(self) -> Tensor:
        """Builds it; tensors of one storage share their memory, as where they were saved."""
        return self.storage.tensor().as_strided(self.shape, self.strides, self.offset)


def claimed(storage: Any, offset: Any, shape: Any, strides: Any) -> Claim:
    """A claim whose every element lies inside its storage, none of them twice too many.

    Raises:
        RefusedError: For numbers that are none, or that reach past the storage.
    """
    numbers = (
        isinstance(shape, tuple) and isinstance(strides, tuple) and (offset, *shape, *strides)
    )
    if not isinstance(storage, Storage) or not numbers or not all(map(_is_count, numbers)):
        raise RefusedError("it describes a tensor by something other than whole numbers", DAMAGED)
    claim = Claim(storage, offset, shape, strides)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=False))
    # Strides of 0 would make a tensor of any size out of one number.
    fits = claim.size == 0 or (last < storage.count and claim.size <= storage.count)
    if len(shape) != len(strides) or len(shape) > MOST_AXES or not fits:
        raise RefusedError(
            f"it claims a tensor of shape {_short(shape)} with strides {_short(strides)} from "
            f"element {_short(offset)} in a storage of {storage.count} elements", DAMAGED
        )  # fmt: skip
    return claim


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _numbers(content: memoryview, dtype: torch.dtype) -> Tensor:
    if not len(content):
        return torch.empty(0, dtype=dtype)
    raw = torch.frombuffer(content, dtype=torch.uint8)
    if raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype)


def _short(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)[:80]
