"""Downloads published files, once, on a machine that may: a login node, never a job."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from robustguide.cards import Card, folder, present

PIECE = 2**20
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
Progress = Callable[[int, int | None], None]


def fetch(
    card: Card,
    where: Path | None = None,
    mirror: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Path:
    """The published file of a card, downloaded if it is not there yet.

    An interrupted download goes on where it stopped. The file has its name only when its size and
    hash, as far as they are published, are right.

    Args:
        card: What to get.
        where: Folder; null is the folder of checkpoints.
        mirror: Address of a folder that holds the files under their own names.
        progress: Called with the bytes that are there and, where known, their number in the end.

    Raises:
        ValueError: Within a job, for a card without an address, or for a file that is not what
            the card says.
        OSError: The server could not be reached, or broke off.
    """
    where = where or folder()
    if (there := present(card, where)) is not None:
        return there
    refuse_in_a_job(card)
    url = f"{mirror.rstrip('/')}/{card.file}" if mirror else card.url
    if url is None:
        raise ValueError(
            f"No address of {card.file} is published; it comes from {card.source}. Put it into "
            f"{where}, or give a mirror that has it."
        )
    if urlsplit(url).scheme not in ("http", "https", "ftp"):
        raise ValueError(f"The address {url!r} is not one of http, https or ftp; give such a one.")
    final = where / card.file
    where.mkdir(parents=True, exist_ok=True)
    part = where / f".{card.file}.part"
    with alone(part):
        try:
            total = download(url, part, progress)
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            raise OSError(
                f"{url} could not be downloaded: {error}. What came stays in {part}, and the "
                "same command goes on from there; `--mirror` takes another address."
            ) from error
        try:
            verify(card, part, total)
        except ValueError:
            part.unlink()
            raise
        os.replace(part, final)
    return final


def refuse_in_a_job(card: Card) -> None:
    """Raises ValueError where a scheduler runs this process.

    Hundreds of tasks would ask at once, often on nodes without a network.
    """
    if job := next((name for name in JOBS if os.environ.get(name)), None):
        raise ValueError(
            f"Checkpoints are not downloaded within a job ({job} is set); run `robustguide fetch "
            f"{card.name}` on a login node first."
        )


@contextmanager
def alone(part: Path) -> Iterator[None]:
    """Holds a lock on a partial download; gives an error where another process has it."""
    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(
                f"{part} is being downloaded by another process; wait for it to end."
            ) from error
        yield


def download(url: str, part: Path, progress: Progress) -> int | None:
    """Appends what is missing of a file; its size in the end, where the server tells it."""
    done = part.stat().st_size
    request = Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urlopen(request, timeout=60)
    except HTTPError as error:
        if error.code != 416 or not done:
            raise
        return done  # nothing is missing; verify tells whether it is the right file
    with response, open(part, "r+b") as file:
        goes_on = response.status == 206
        done = done if goes_on else 0
        file.truncate(done)
        file.seek(done)
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        while piece := response.read(PIECE):
            done += file.write(piece)
            progress(done, total)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done < total:
        raise ConnectionError(f"it broke off after {done} of {total} bytes")
    return total


def verify(card: Card, file: Path, total: int | None = None) -> None:
    """Compares a file with its card.

    Raises:
        ValueError: For another size or hash, or a web page.
    """
    size = file.stat().st_size
    expected = card.bytes or total
    if expected is not None and size != expected:
        raise ValueError(
            f"{card.file} came with {size} bytes, expected {expected}; fetch it again."
        )
    with open(file, "rb") as stream:
        if stream.read(512).lstrip()[:1] == b"<":
            raise ValueError(
                f"{card.url or card.file} gave a web page in place of the file; open the address "
                "in a browser, and put the file there by hand."
            )
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest() if card.sha256 else ""
    if card.sha256 and not digest.startswith(card.sha256):
        raise ValueError(
            f"{card.file} has SHA-256 {digest}, the card says {card.sha256}; it was changed on "
            "its way or replaced by its authors. Fetch it again, or from another mirror."
        )
