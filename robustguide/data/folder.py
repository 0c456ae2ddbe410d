"""A folder of images, one subfolder a class."""

import os
from functools import cached_property
from pathlib import Path

from PIL import Image

from robustguide.data.errors import DataError
from robustguide.data.images import ImageSource, Split, read_image
from robustguide.data.labels import classes_of
from robustguide.data.splits import chance, split_of

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
VALIDATION = ("val", "valid", "validation")
LAYOUT = "ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE, or ROOT/CLASS/IMAGE"
Entry = tuple[str, int]


class Folder(ImageSource):
    """Image files in one subfolder a class, whose sorted names are the classes.

    With subfolders `train` and `test` (and `val` or `validation`) these are the splits; with
    `train` and `val` alone, `val` is the test split. A validation split that is not there is
    held out of the training images. Without them, the name of each file decides: 80% train, 10%
    validation, 10% test; a folder that grows moves no file to another split.

    Validation images may lie in `val` itself, as ImageNet is delivered, if a file tells their
    classes; see `classes_of`.

    Args:
        root: The folder.
        size: Pixels on a side, after crop and resize.
        channels: 1 for greyscale, 3 for colour.
        validation_fraction: Of the training images, held out where there are splits and no
            validation split.
        labels: File of the classes of images that lie in `val` itself; without it, one of the
            known ones in the folder.
    """

    def __init__(
        self,
        root: str,
        size: int,
        channels: int = 3,
        validation_fraction: float = 0.1,
        labels: str | None = None,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}; expected 1 (greyscale) or 3 (colour).")
        if size < 1 or not 0 <= validation_fraction < 1:
            raise ValueError(
                f"size is {size} and validation_fraction {validation_fraction}; expected 1 or "
                "more pixels and a fraction from 0 to below 1."
            )
        self.root, self.shape = Path(root), (channels, size, size)
        self.validation_fraction, self.labels = validation_fraction, labels
        self._lists: dict[Path, list[Entry]] = {}

    @cached_property
    def _folders(self) -> dict[str, Path]:
        """Folders of the splits; only `train` if files are divided by their names."""
        if not self.root.is_dir():
            place = self.root.resolve()
            what = f"{place} is a file" if place.exists() else f"There is no folder {place}"
            raise DataError(f"{what}; expected {LAYOUT}.")
        names = {"train": "train", "test": "test", **dict.fromkeys(VALIDATION, "validation")}
        found = {split: self.root / name for name, split in names.items() if self._has(name)}
        if "train" not in found:
            return {"train": self.root}
        if "test" not in found and "validation" in found:
            found["test"] = found.pop("validation")
        return found

    def _has(self, name: str) -> bool:
        """Whether there is such a folder of classes, or of images whose classes can be told."""
        folder = self.root / name
        if not folder.is_dir():
            return False
        return bool(subfolders(folder)) or (name in VALIDATION and bool(plain_files(folder)))

    @property
    def left_out(self) -> list[str]:
        """Folders of splits whose images nobody tells the classes of, and which are not read."""
        if self._folders["train"] == self.root:
            return []
        known = set(self._folders.values())
        folders = [self.root / name for name in ("test", *VALIDATION)]
        return [str(each) for each in folders if each.is_dir() and each not in known]

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """Names of the subfolders, sorted."""
        names = subfolders(self._folders["train"])
        if not names:
            raise DataError(
                f"The folder {self._folders['train'].resolve()} has no subfolder a class; "
                f"expected {LAYOUT}."
            )
        if "train" in names:
            raise DataError(
                f"The folder {(self.root / 'train').resolve()} has no subfolder a class; "
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
            fraction = self.validation_fraction
            entries = [entry for entry in entries if (chance(entry[0]) < fraction) == held]
        return FolderSplit(self, root, entries)

    def _list(self, root: Path) -> list[Entry]:
        """All images below a folder; a data set of millions is looked through once."""
        if root not in self._lists:
            flat = root != self._folders["train"] and not subfolders(root)
            self._lists[root] = self._told(root) if flat else self._found(root)
        return self._lists[root]

    def _told(self, root: Path) -> list[Entry]:
        """Images that lie in the folder itself, with the classes that a file tells."""
        names = plain_files(root)
        number = {name: y for y, name in enumerate(self.class_names)}
        classes = classes_of(names, self.labels, root.parent)
        unknown = sorted(set(classes) - set(number))
        if unknown:
            raise DataError(
                f"The labels of {root.resolve()} name {len(unknown)} classes that the training "
                f"images have not, such as {unknown[0]!r}; the classes are the names of the "
                f"folders in {self._folders['train'].resolve()}."
            )
        return [(name, number[each]) for name, each in zip(names, classes, strict=True)]

    def _found(self, root: Path) -> list[Entry]:
        """Images in the folders of their classes."""
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
        below = root.relative_to(source.root).as_posix()
        self.prefix = "" if below == "." else f"{below}/"

    def __len__(self) -> int:
        return len(self.entries)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Decodes the file."""
        file, y = self.entries[index]
        return read_image(self.root / file, self.root / file), y

    def describe(self, index: int) -> str:
        """The path."""
        return str(self.root / self.entries[index][0])

    def key(self, index: int) -> str:
        """The path below the root of the data set."""
        return self.prefix + self.entries[index][0]

    def listed(self, index: int) -> str:
        """The path and the class, which a file may have told."""
        return f"{self.key(index)} {self.entries[index][1]}"


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


def plain_files(root: Path) -> list[str]:
    """Names of the images that lie in a folder itself, sorted."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if is_image(entry.name))


def is_image(file: str) -> bool:
    """Whether the name is that of a visible image file."""
    return file[0] != "." and os.path.splitext(file)[1].lower() in SUFFIXES
