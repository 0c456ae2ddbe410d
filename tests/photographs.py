"""Folders of images of several sizes, as real files."""

import numpy as np
from PIL import Image

from robustguide.data import Folder, ImageWriter
from robustguide.data.recipes import recipe
from robustguide.files import LOCK

SIZE = 12


def photograph(seed, width=30, height=22):
    """Smooth noise, which JPEG can keep."""
    pixels = np.random.default_rng(seed).integers(256, size=(4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def save(path, image):
    """Writes an image by the suffix of its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg") else {}))
    return path


def folder(root, counts, classes=("cat", "dog"), suffix="png"):
    """`root/SPLIT/CLASS/NUMBER.SUFFIX`, so many images of each split and class."""
    for place, (split, count) in enumerate(counts.items()):
        for y, name in enumerate(classes):
            for i in range(count):
                image = photograph((place, y, i), 20 + i % 15, 34 - i % 20)
                save(root / split / name / f"{i}.{suffix}", image)
    return root


def thirty(root):
    """Eighteen, four and eight images of two classes."""
    return folder(root, {"train": 9, "val": 2, "test": 4})


def write(source, shards, **options):
    """Prepares images with small shards."""
    options = {"crop": recipe("edm"), "per_shard": 4, **options}
    return ImageWriter(**options).write(Folder(str(source), SIZE), str(shards), "edm")


def contents(root):
    """All files below a folder, hidden ones also, and their bytes; a lock tells who came last."""
    return {
        str(path.relative_to(root)): b"" if path.name == LOCK else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
