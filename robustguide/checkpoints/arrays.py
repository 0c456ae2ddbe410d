"""Numpy's .npz files, array by array; what does not fit into memory, row by row.

Nothing in a file is run: arrays of Python objects, which numpy would unpickle, are refused.
"""

import errno
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DAMAGED = "it is cut short or damaged; get or make it again"
# What zipfile and numpy raise of a damaged file: among others a RuntimeError for what seems to be
# encrypted or of an unknown method, an OSError for what seems to lie before the beginning.
FAULTS = (
    zipfile.BadZipFile, EOFError, zlib.error, struct.error, RuntimeError, ValueError, OSError,
)  # fmt: skip


class Header(NamedTuple):
    """Of an array: its shape, type, and whether the first axis runs fastest."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool


class Arrays:
    """The arrays of an .npz file, compressed or not.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: If it is no whole zip archive.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} does not exist (from {Path.cwd()}).")
        try:
            with zipfile.ZipFile(self.path) as file:
                members = [info.filename for info in file.infolist()]
        except FAULTS as error:
            raise self._damaged("the archive", error) from error
        self.names = [name.removesuffix(".npy") for name in members if name.endswith(".npy")]

    def header(self, name: str) -> Header:
        """What an array is, before any of it is read."""
        with zipfile.ZipFile(self.path) as file, self._open(file, name) as stream:
            return self._header(file, name, stream)

    def read(self, name: str) -> np.ndarray:
        """A whole array."""
        with zipfile.ZipFile(self.path) as file, self._open(file, name) as stream:
            shape, dtype, is_fortran = self._header(file, name, stream)
            content = self._take(stream, name, math.prod(shape) * dtype.itemsize)
            self._end(stream, name)
        array = np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")
        return array.astype(dtype.newbyteorder("="), copy=False)

    def rows(self, name: str, size: int) -> Iterator[np.ndarray]:
        """Consecutive rows of an array, so many at a time."""
        with zipfile.ZipFile(self.path) as file, self._open(file, name) as stream:
            shape, dtype, is_fortran = self._header(file, name, stream)
            if is_fortran or not shape:
                raise ValueError(
                    f"{name} in {self.path} is not stored row after row; save it again from "
                    "np.ascontiguousarray."
                )
            width = math.prod(shape[1:]) * dtype.itemsize
            for first in range(0, shape[0], size):
                count = min(size, shape[0] - first)
                content = self._take(stream, name, count * width)
                yield np.frombuffer(content, dtype).reshape(count, *shape[1:])
            self._end(stream, name)

    def _open(self, file: zipfile.ZipFile, name: str) -> zipfile.ZipExtFile:
        if name not in self.names:
            raise ValueError(f"{self.path} has no {name}; it has {', '.join(self.names)}.")
        try:
            return file.open(f"{name}.npy")  # type: ignore[return-value]  # what it always is
        except FAULTS as error:
            raise self._damaged(name, error) from error

    def _header(self, file: zipfile.ZipFile, name: str, stream: zipfile.ZipExtFile) -> Header:
        try:
            version = np.lib.format.read_magic(stream)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, is_fortran, dtype = read(stream)
        except (*FAULTS, KeyError) as error:
            raise self._damaged(name, error) from error
        if dtype.hasobject or dtype.names:
            raise ValueError(
                f"{name} in {self.path} is of type {dtype}, which can hold code; save it again as "
                "numbers."
            )
        size = file.getinfo(f"{name}.npy").file_size - stream.tell()
        if size != math.prod(shape) * dtype.itemsize:  # before memory is asked for
            raise self._damaged(name, f"{size} bytes for shape {list(shape)} of {dtype}")
        return Header(tuple(shape), dtype, is_fortran)

    def _take(self, stream: zipfile.ZipExtFile, name: str, count: int) -> bytearray:
        """The next bytes, into memory that tensors may share."""
        content = bytearray(count)
        view, done = memoryview(content), 0
        while done < count:
            try:
                found = stream.readinto(view[done:])
            except FAULTS as error:
                raise self._damaged(name, error) from error
            if not found:
                raise self._damaged(name, f"{count - done} bytes are missing")
            done += found
        return content

    def _end(self, stream: zipfile.ZipExtFile, name: str) -> None:
        """Reads past the last byte, where the checksum is compared."""
        try:
            stream.read(1)
        except FAULTS as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, reason: object) -> ValueError:
        if isinstance(reason, OSError) and reason.errno != errno.EINVAL:
            raise reason  # of the disk, not of the file
        return ValueError(f"Cannot read {name} in {self.path} ({reason}): {DAMAGED}.")
