"""Undecoded samples of shards; one that cannot be read is tried again, then left out or fatal."""

import tarfile
import time
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

from webdataset.tariterators import group_by_keys, tar_file_expander

from robustguide.data.errors import DataError
from robustguide.data.manifest import Shard
from robustguide.data.streams import opened

Raw = dict[str, Any]
IN_A_ROW = 10
Incident = tuple[Literal["retried", "skipped"], str, str]  # what was done, the shard, and why


def read_shards(places: Iterable[Path | str]) -> Iterator[Raw]:
    """The undecoded samples of shards, in order.

    Raises:
        DataError: If a shard is missing, cut or not a tar file.
    """
    for place in places:
        try:
            with opened(place) as stream:
                yield from group_by_keys(
                    tar_file_expander([{"url": str(place), "stream": stream}])
                )
        except (tarfile.TarError, EOFError, ValueError, OSError) as error:
            reason = getattr(error, "strerror", None) or error.args[0]
            raise DataError(f"Cannot read the shard {place}: {reason}. Make it again.") from error


def counted(shard: Shard) -> Iterator[Raw]:
    """The undecoded samples of a shard; the last one only if their number is right.

    Raises:
        DataError: If it is not the one in the manifest, or the shard cannot be read.
    """
    found, held = 0, None
    for raw in read_shards([shard.place]):
        found += 1
        if found > shard.count:
            break
        if held is not None:
            yield held
        held = raw
    if found != shard.count:
        raise DataError(
            f"The shard {shard.place} holds {'more' if found > shard.count else 'fewer'} samples "
            f"than the {shard.count} in the manifest; make the shard or the manifest again."
        )
    if held is not None:
        yield held


class Patience:
    """Reads shards that may be missing or cut short, as files on a network now and then are.

    A shard that fails is read again from its beginning, and goes on behind the last sample that it
    gave: no sample is lost or comes twice.

    Args:
        retries: How often a shard is tried again; one that was skipped, the next time not at all.
        pause: Seconds before the first new try; each further pause is twice as long.
        on_bad_shard: Whether a shard that still fails ends the run or is left out.

    Attributes:
        incidents: What happened, until it is taken.
    """

    def __init__(
        self,
        retries: int = 3,
        pause: float = 1.0,
        on_bad_shard: Literal["error", "skip"] = "error",
    ) -> None:
        if retries < 0 or pause < 0:
            raise ValueError(f"retries {retries} and pause {pause} must be 0 or more.")
        self.retries, self.pause, self.on_bad_shard = retries, pause, on_bad_shard
        self.incidents: list[Incident] = []
        self.skipped: set[str] = set()

    def read(self, shard: Shard) -> Iterator[Raw]:
        """The undecoded samples of a shard; none, or only the first ones, if it is skipped.

        Raises:
            DataError: If it cannot be read, and is not to be skipped.
        """
        name, done = str(shard.place), 0
        retries = 0 if name in self.skipped else self.retries
        for attempt in count():
            try:
                for raw in islice(counted(shard), done, None):
                    done += 1
                    yield raw
                self.skipped.discard(name)
                return
            except DataError as error:
                failure = str(error)
            if attempt == retries:
                break
            self.incidents.append(("retried", name, failure))
            time.sleep(self.pause * 2**attempt)
        if self.on_bad_shard == "error":
            tries = f" It was tried {retries + 1} times." if retries else ""
            raise DataError(failure + tries)
        self.incidents.append(("skipped", name, failure))
        self.skipped.add(name)

    def read_endlessly(self, shards: Iterator[Shard], number: int) -> Iterator[Raw]:
        """The samples of shards that are drawn from `number` of them.

        Raises:
            DataError: If ten of them (or all, if they are fewer) failed one after the other.
        """
        failed: set[str] = set()
        for shard in shards:
            yield from self.read(shard)
            name = str(shard.place)
            failed = failed | {name} if name in self.skipped else set()
            if len(failed) >= min(IN_A_ROW, number):
                raise DataError(
                    f"{len(failed)} shards in a row cannot be read, the last one {name}: "
                    f"{self.incidents[-1][2]}"
                )

    def taken(self) -> list[Incident]:
        """What happened since the last call."""
        incidents, self.incidents = self.incidents, []
        return incidents
