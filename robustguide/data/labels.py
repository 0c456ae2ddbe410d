"""Classes of images that lie together in one folder, as ImageNet's validation images do."""

import pickle
from pathlib import Path

import torch

from robustguide.data.errors import DataError

CSV, TEXT, META = "LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt", "meta.bin"
KNOWN = (CSV, TEXT, META)
NEEDED = (
    "a file of lines with the name of an image and its class (such as ImageNet's "
    f"{CSV}), or of one class a line in the order of the names of the images (such as {TEXT}), "
    f"or {META} that torchvision makes of the devkit"
)


def classes_of(images: list[str], file: str | None, folder: Path) -> list[str]:
    """The name of the class of each image.

    Args:
        images: Names of the files, sorted.
        file: That tells; without it, one of ImageNet's that lies in the folder.
        folder: Where the data set is.

    Raises:
        DataError: If there is no such file, or it does not tell of each image.
    """
    candidates = [Path(file)] if file else [folder / name for name in KNOWN]
    path = next((each for each in candidates if each.is_file()), None)
    if path is None:
        where = f"there is no {file}" if file else f"none of {', '.join(KNOWN)} is in {folder}"
        raise DataError(
            f"{len(images)} validation images such as {images[0]} lie in one folder without one a "
            f"class, and {where}. Sort them into folders, or give {NEEDED}, as labels."
        )
    rows = from_torchvision(path) if path.suffix == ".bin" else from_lines(path)
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(images):
            raise DataError(
                f"{path} tells {len(rows)} classes for {len(images)} images; expected {NEEDED}."
            )
        return [row[0] for row in rows]
    told = {Path(row[0]).stem: row[1] for row in rows if len(row) > 1}
    missing = [image for image in images if Path(image).stem not in told]
    if missing:
        raise DataError(
            f"{path} tells no class of {len(missing)} images, such as {missing[0]}; expected "
            f"{NEEDED}."
        )
    return [told[Path(image).stem] for image in images]


def from_lines(path: Path) -> list[list[str]]:
    """The first two words of each line, divided by commas or spaces."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read the labels {path}: {error}; expected {NEEDED}.") from error
    return [line.replace(",", " ").split()[:2] for line in lines if line.strip()]


def from_torchvision(path: Path) -> list[list[str]]:
    """What torchvision's ImageNet keeps of the devkit, one class an image."""
    try:
        _, classes = torch.load(path, weights_only=True)
        return [[str(each)] for each in classes]
    except (OSError, ValueError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise DataError(
            f"Cannot read the labels {path}: it is no file of torchvision; expected {NEEDED}."
        ) from error
