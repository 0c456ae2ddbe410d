"""Images as WebDataset shards: resized once by a named recipe, counted, and with checksums."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from robustguide.commands.formatter import Formatter
from robustguide.commands.progress import bar

if TYPE_CHECKING:  # imports torch, which --help does not need
    from robustguide.data import Folder, ImageSource, Manifest

TORCHVISION = "torchvision:"
KAGGLE = Path("Data/CLS-LOC")
EXAMPLES = """SOURCE is a folder with a folder of images for each class, below train/, val/ and
test/ or without them; ImageNet as it is delivered (ILSVRC, or train/ and val/); or a data set of
torchvision, whose files are in --root, since nothing is downloaded.

recipes:
  adm-center-crop  halved by boxes while twice too large, then bicubic, centre (ADM, DiT, EDM2)
  edm              the largest central square, then Lanczos
  torchvision      the shorter side by the bilinear filter, then the centre

examples:
  robustguide prepare FOLDER/photographs FOLDER/photographs128 --size 128
  robustguide prepare FOLDER/imagenet FOLDER/imagenet128 --size 128 --workers 32 \\
    --validation-fraction 0.01
  robustguide prepare torchvision:CIFAR10 FOLDER/cifar10 --root FOLDER/downloads
  robustguide prepare --verify FOLDER/imagenet128 --workers 8

The same command goes on where it was stopped, and tries images again that could not be read; the
files are those of an unbroken run, whatever the number of workers. ImageNet's validation images in
one folder need --labels, LOC_val_solution.csv in SOURCE, or torchvision:ImageNet, which reads the
devkit. Train on the shards with
  --data=robustguide.data.ShardImages --data.root=FOLDER/imagenet128
"""


def run(args: list[str]) -> int:
    """Reads the command line, and prepares or verifies."""
    given = parser().parse_args(args)
    if given.workers is None:
        given.workers = len(os.sched_getaffinity(0))
    if given.verify is not None:
        return verify(given.verify, given.workers)
    if given.source is None or given.folder is None:
        raise ValueError(
            "Give SOURCE and FOLDER, as in robustguide prepare photographs shards --size 128, or "
            "--verify FOLDER."
        )
    prepare(given)
    return 0


def parser() -> ArgumentParser:
    """The arguments."""
    arguments = ArgumentParser(
        prog="robustguide prepare",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    add = arguments.add_argument
    add("source", nargs="?", type=str, metavar="SOURCE", help="folder, or torchvision:NAME")
    add("folder", nargs="?", type=str, metavar="FOLDER", help="where the shards go")
    add("--size", type=int, default=None, help="pixels on a side; torchvision's sets may keep it")
    add("--recipe", type=str, metavar="NAME", default="adm-center-crop", help="see below")
    add("--format", choices=["png", "jpeg", "raw"], default="png", help="raw is .npy")
    add("--quality", type=int, default=95, help="of JPEG, whose colours keep their resolution")
    add("--channels", type=int, default=3, help="3, or 1 for grey images")
    add("--per-shard", type=int, default=1000, help="images in a shard")
    add("--workers", type=int, default=None, help="processes; as many as there are processors")
    add("--limit-unreadable", type=float, default=0.001, help="share of images; more is an error")
    add("--validation-fraction", type=float, default=0.1, help="held out where nothing else is")
    add(
        "--labels", type=str, metavar="FILE", default=None, help="classes of images in val/ itself"
    )
    add("--root", type=str, default=None, help="files of a data set of torchvision")
    add("--verify", type=str, metavar="FOLDER", default=None, help="look whether shards are whole")
    return arguments


def prepare(given: Namespace) -> None:
    """Prepares with a bar, and tells what there is now."""
    from robustguide.data.forms import Form
    from robustguide.data.prepare import ImageWriter, opened
    from robustguide.data.recipes import recipe

    form, numbers = Form(given.format, given.quality), (given.per_shard, given.workers)
    writer = ImageWriter(recipe(given.recipe), form, *numbers, given.limit_unreadable)
    source = source_of(given)
    total = sum(len(split) for split in opened(source).values())
    with bar("preparing", total, Console()) as tell:
        manifest = replace(writer, tell=tell).write(source, given.folder, given.recipe)
    told(given, manifest)


def source_of(given: Namespace) -> "ImageSource":
    """The set of images.

    Raises:
        ValueError: For options that do not belong together, or a single class.
    """
    if given.source.startswith(TORCHVISION):
        return of_torchvision(given)
    if given.root is not None:
        raise ValueError("--root is of a data set of torchvision; SOURCE itself is a folder.")
    if given.size is None:
        raise ValueError("Give the pixels on a side of the images, such as --size 128.")
    source = of_folder(given)
    if source.num_classes < 2:
        raise ValueError(
            f"{given.source} holds one class ({source.class_names[0]}), and a classifier needs "
            "two; give the folder that holds one folder for each class, or train/ and test/."
        )
    for folder in source.left_out:
        print(f"{folder} has no folder for each class and is left out.", file=sys.stderr)
    return source


def of_torchvision(given: Namespace) -> "ImageSource":
    """A data set of torchvision."""
    from robustguide.data import Torchvision

    if given.root is None or given.labels is not None:
        raise ValueError(
            f"{given.source} needs --root, the folder of its files, and takes no --labels."
        )
    name = given.source.removeprefix(TORCHVISION)
    return Torchvision(name, given.root, given.size, given.channels, given.validation_fraction)


def of_folder(given: Namespace) -> "Folder":
    """A folder of images; of ImageNet as it is delivered, the part that holds images."""
    from robustguide.data import Folder
    from robustguide.data.labels import CSV

    root, labels = Path(given.source), given.labels
    for place in (root, root / "ILSVRC"):
        if (place / KAGGLE / "train").is_dir():
            if labels is None and (root / CSV).is_file():
                labels = str(root / CSV)
            root = place / KAGGLE
            break
    return Folder(str(root), given.size, given.channels, given.validation_fraction, labels)


def told(given: Namespace, manifest: "Manifest") -> None:
    """Prints what there is."""
    from robustguide.data.prepare import LIST
    from robustguide.data.splits import SPLITS

    counts = ", ".join(f"{manifest.count(name)} {name}" for name in SPLITS)
    c, h, w = manifest.shape
    shards = [shard for split in manifest.shards.values() for shard in split]
    print(
        f"{given.folder}: {counts} images of {w} x {h} x {c} in {len(manifest.class_names)} "
        f"classes, {len(shards)} shards ({manifest.recipe}, {given.format})"
    )
    unreadable = sum(len(shard.unreadable) for shard in shards)
    if unreadable:
        place = Path(given.folder, LIST)
        print(f"{unreadable} images cannot be read and are left out; {place} lists them.")


def verify(folder: str, workers: int) -> int:
    """Compares shards with their manifest; code 1 if they differ."""
    from robustguide.data.manifest import Manifest, text_of
    from robustguide.data.verify import faults

    manifest = Manifest.parse(folder, text_of(folder))
    shards = [shard for split in manifest.shards.values() for shard in split]
    total = sum(shard.count for shard in shards)
    with bar("verifying", total, Console()) as tell:
        found = list(faults(folder, workers, tell))
    for fault in found:
        print(f"{folder}: {fault}")
    unknown = sum(shard.sha256 is None for shard in shards)
    note = f", {unknown} of them without a checksum to compare" if unknown else ""
    print(f"{folder}: {len(shards)} shards of {total} images{note}; {len(found)} faults")
    return 1 if found else 0
