"""A folder of images, one subfolder a class."""

import os
from functools import cached_property
from pathlib import Path

from PIL import Image

from robustguide.data.errors import DataError
from robustguide.data.images import ImageSource, Split, read_image
from robustguide.data.splits import chance, split_of

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
LAYOUT = "ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE, or ROOT/CLASS/IMAGE"
Entry = tuple[str, int]


class Folder(ImageSource):
    """Image files in one subfolder a class, whose sorted names are the classes.

    With subfolders `train` and `test` (and `val` or `validation`) these are the splits; with
    `train` and `val` alone, `val` is the test split. A validation split that is not there is
    held out of the training images. Without them, the name of each file decides: 80% train, 10%
    validation, 10% test; a folder that grows moves no file to another split.

    Args:
        root: The folder.
        size: Pixels on a side, after crop and resize.
        channels: 1 for greyscale, 3 for colour.
    """

    def __init__(self, root: str, size: int, channels: int = 3) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}; expected 1 (greyscale) or 3 (colour).")
        self.root, self.shape = Path(root), (channels, size, size)

    @cached_property
    def _folders(self) -> dict[str, Path]:
        """Folders of the splits; only `train` if files are divided by their names."""
        if not self.root.is_dir():
            raise DataError(f"There is no folder {self.root.resolve()}; expected {LAYOUT}.")
        names = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}
        names["validation"] = "validation"
        found = {split: self.root / name for name, split in names.items() if self._has(name)}
        if "train" not in found:
            return {"train": self.root}
        if "test" not in found and "validation" in found:
            found["test"] = found.pop("validation")
        return found

    def _has(self, name: str) -> bool:
        return (self.root / name).is_dir() and bool(subfolders(self.root / name))

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """Names of the subfolders, sorted."""
        names = subfolders(self._folders["train"])
        if not names:
            raise DataError(
                f"The folder {self._folders['train'].resolve()} has no subfolder a class; "
                f"expected {LAYOUT}."
            )
        return names

    def open(self, name: str) -> Split:
        """Lists the files."""
        own = self._folders.get(name)
        if own is not None and name != "train":
            return FolderSplit(self, own, self._list(own))
        root = self._folders["train"]
        entries = self._list(root)
        if len(self._folders) == 1:
            entries = [entry for entry in entries if split_of(entry[0]) == name]
        elif "validation" not in self._folders:
            held = name == "validation"
            entries = [entry for entry in entries if (chance(entry[0]) < 0.1) == held]
        return FolderSplit(self, root, entries)

    def _list(self, root: Path) -> list[Entry]:
        unknown = set(subfolders(root)) - set(self.class_names)
        if unknown:
            raise DataError(
                f"The folder {root.resolve()} has classes that the training images have not: "
                f"{', '.join(sorted(unknown))}. Rename or remove them."
            )
        entries = [
            (file, y) for y, name in enumerate(self.class_names) for file in files(root, name)
        ]
        if not entries:
            raise DataError(
                f"The folder {root.resolve()} holds no images ({', '.join(sorted(SUFFIXES))}); "
                f"expected {LAYOUT}."
            )
        return entries


class FolderSplit(Split):
    """Image files below a folder."""

    def __init__(self, source: Folder, root: Path, entries: list[Entry]) -> None:
        super().__init__(source.shape, source.num_classes)
        self.root, self.entries = root, entries

    def __len__(self) -> int:
        return len(self.entries)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Decodes the file."""
        file, y = self.entries[index]
        return read_image(self.root / file, self.root / file), y

    def describe(self, index: int) -> str:
        """The path."""
        return str(self.root / self.entries[index][0])


def subfolders(root: Path) -> list[str]:
    """Names of the visible subfolders, sorted."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")


def files(root: Path, name: str) -> list[str]:
    """Image files below `root/name`, relative to root with forward slashes, sorted."""
    found = []
    for folder, _, names in os.walk(root / name):
        place = Path(folder).relative_to(root).as_posix()
        found += [f"{place}/{file}" for file in names if is_image(file)]
    return sorted(found)


def is_image(file: str) -> bool:
    """Whether the name is that of a visible image file."""
    return file[0] != "." and os.path.splitext(file)[1].lower() in SUFFIXES
