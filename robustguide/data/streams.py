"""Opening shards and manifests: local files, URLs, and the output of commands.

What is no local file is opened by WebDataset: `http://`, `https://` and its other schemes by the
programs that it calls for them (curl for the web), `pipe:COMMAND` by the shell.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from webdataset.gopen import gopen

PIPE = "pipe:"
SCHEME = re.compile(r"[a-z][a-z0-9+]+://")


def is_remote(place: object) -> bool:
    """Whether it is a URL or a command, and no path."""
    return str(place).startswith(PIPE) or SCHEME.match(str(place)) is not None


def beside(root: Path | str, name: str) -> Path | str:
    """The file `name` of a folder or of a URL; what is a URL or a command itself stays so."""
    if is_remote(name):
        return name
    return f"{str(root).rstrip('/')}/{name}" if is_remote(root) else Path(root) / name


@contextmanager
def opened(place: Path | str) -> Iterator[Any]:
    """A stream of bytes.

    Raises:
        OSError: If it cannot be opened, or the program that brings it failed, which is known when
            all has been read.
    """
    if not is_remote(place):
        # Opened here, because webdataset leaves closing to the garbage collector.
        with Path(place).open("rb") as file:
            yield file
        return
    stream = gopen(str(place))
    try:
        yield stream
        while stream.read(1 << 16):
            pass  # what is not read would end the program by a signal, and look like a fault
        stream.close()
    finally:
        with suppress(OSError):  # of a program whose output was not wanted to its end
            stream.close()


def read_whole(place: Path | str) -> bytes:
    """All bytes.

    Raises:
        OSError: See `opened`.
    """
    with opened(place) as stream:
        return bytes(stream.read())
