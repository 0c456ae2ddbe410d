"""What is noted in a folder while shards are written to it, so that another run can go on."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robustguide.data.errors import DataError
from robustguide.data.manifest import FILE, Manifest, Shard, under_temporary_name
from robustguide.files import alone

FOLDER, SETTINGS = ".prepare", "settings.json"


class Notes:
    """Settings of a run, and checksums of shards that it finished, until the manifest is there.

    Args:
        root: Folder of the shards.

    Attributes:
        finished: Whether the manifest is there.
        known: Shards that some run finished, by the names of their files.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / FOLDER
        self.finished = False
        self.known: dict[str, Shard] = {}
        self.settings: dict[str, Any] = {}

    @contextmanager
    def begun(self, manifest: Manifest) -> Iterator["Notes"]:
        """Locks the folder and reads what another run left; in the end, the notes go.

        Args:
            manifest: What the folder is to hold; its shards do not matter yet.

        Raises:
            DataError: If it holds something else, or another run is writing to it.
            OSError: If nothing can be written there.
        """
        self.settings = settings(manifest)
        was_there = self.folder.is_dir()
        with locked(self.root, self.folder):
            try:
                self._read()
            except DataError:
                if not was_there:
                    shutil.rmtree(self.folder)
                raise
            for part in (*self.root.glob(".*.part"), *self.folder.glob(".*.part")):
                part.unlink(missing_ok=True)  # of runs that were killed
            yield self
            shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> None:
        """Takes over the shards of an equal run.

        Raises:
            DataError: If there is something else.
        """
        self.finished = (self.root / FILE).is_file()
        if self.finished:
            found = Manifest.parse(self.root, (self.root / FILE).read_bytes())
            self._compare(settings(found))
            shards = (shard for split in found.shards.values() for shard in split)
            self.known = {shard.path.name: shard for shard in shards}
        elif (self.folder / SETTINGS).is_file():
            self._compare(read_json(self.folder / SETTINGS))
        elif any(self.root.glob("*.tar")):
            raise DataError(
                f"{self.root.resolve()} already holds shards that nothing tells of; choose "
                "another folder."
            )
        for path in self.folder.glob("*.tar.json"):
            shard = Shard.of(self.root, read_json(path))
            self.known[shard.path.name] = shard

    def _compare(self, found: dict[str, Any]) -> None:
        """Refuses other settings."""
        names = dict.fromkeys([*self.settings, *found])
        pairs = {name: (found.get(name), self.settings.get(name)) for name in names}
        differ = [
            f"{name} is {shown(there)} there, {shown(here)} here"
            for name, (there, here) in pairs.items()
            if there != here
        ]
        if differ:
            raise DataError(
                f"{self.root.resolve()} already holds shards of other settings "
                f"({'; '.join(differ)}); choose another folder, or delete it."
            )

    def whole(self, path: Path) -> Shard | None:
        """The shard, if it is there and lacks no image that might be readable by now."""
        shard = self.known.get(path.name)
        if shard is None or shard.unreadable or not path.is_file():
            return None
        return shard if path.stat().st_size == shard.size else None

    def open(self) -> None:
        """Notes the settings, before there is a shard of them."""
        with under_temporary_name(self.folder / SETTINGS) as file:
            file.write(json.dumps(self.settings, indent=1).encode())

    def add(self, shard: Shard) -> None:
        """Notes that a shard is there."""
        with under_temporary_name(self.folder / f"{shard.path.name}.json") as file:
            file.write(json.dumps(shard.told()).encode())


@contextmanager
def locked(root: Path, folder: Path) -> Iterator[None]:
    """Keeps other runs out of the folder; the lock ends with the process that holds it.

    Raises:
        DataError: If another one holds it.
        OSError: If nothing can be written there.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(alone(folder, "choose another folder"))
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(
                error.errno, f"Cannot write ({reason}); choose another folder", str(root)
            ) from error
        except ValueError as error:
            raise DataError(f"Another run is writing to {root.resolve()}: {error}") from error
        yield


def settings(manifest: Manifest) -> dict[str, Any]:
    """All that decides the bytes of shards; plain data."""
    made = {} if manifest.prepared is None else asdict(manifest.prepared)
    return {"recipe": manifest.recipe, "shape": list(manifest.shape), **made}


def shown(value: object) -> str:
    """A value, or the beginning of a long one."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}..."


def read_json(path: Path) -> Any:
    """A note.

    Raises:
        DataError: If it is none.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"Cannot read {path}: {error}. Delete it and run this again.") from error
