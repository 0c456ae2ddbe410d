"""Data sets and weights that are there."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from robustguide.machine.finding import Finding
from robustguide.machine.packages import is_safe

WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".pkl", ".bin")


def data_sets(roots: Sequence[str]) -> Iterator[Finding]:
    """The digits, and what lies in the given folders or in the subfolders of them."""
    if not is_safe():
        return
    try:
        from sklearn.datasets import load_digits

        yield Finding("data sets", "digits", f"{len(load_digits().target)} images, scikit-learn")
        from robustguide.data import FashionMNIST
    except Exception as error:
        repair = "run `pip install --force-reinstall scikit-learn` and read the versions above"
        yield Finding("data sets", "digits", f"cannot be read: {error}", repair)
        return
    debian = FashionMNIST().folders
    yield from (fashion_mnist(folder) for folder in debian if is_fashion_mnist(folder))
    for root in map(Path, roots):
        if not root.is_dir():
            yield missing_folder("data sets", root)
            continue
        found = [each for folder in [root, *subfolders(root)] for each in data_sets_in(folder)]
        unknown = "no Fashion-MNIST, CIFAR-10 or ImageNet (a folder of images is one too)"
        yield from found or [Finding("data sets", str(root), unknown)]


def data_sets_in(folder: Path) -> Iterator[Finding]:
    """The sets that a configuration can name with this folder as its root."""
    from torchvision.datasets import CIFAR10

    for place in (folder, folder / "FashionMNIST/raw"):
        if is_fashion_mnist(place):
            yield fashion_mnist(place)
    if (folder / CIFAR10.base_folder).is_dir():
        names = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
        missing = [name for name in names if not (folder / CIFAR10.base_folder / name).is_file()]
        value = f"{folder}, {', '.join(missing)} missing" if missing else str(folder)
        repair = "unpack cifar-10-python.tar.gz there again" if missing else ""
        yield Finding("data sets", "CIFAR-10", value, repair)
    classes = {
        split: sum(name.name[:1] == "n" and name.name[1:].isdigit() for name in subfolders(path))
        for split in ("train", "val")
        if (path := folder / split).is_dir()
    }
    if any(classes.values()):
        shown = ", ".join(f"{count} classes in {split}" for split, count in classes.items())
        yield Finding("data sets", "ImageNet", f"{folder}, {shown}")


def is_fashion_mnist(folder: Path) -> bool:
    """Whether the four files are there, gzipped or not."""
    names = [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    return all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in names)


def fashion_mnist(folder: Path) -> Finding:
    """Found."""
    return Finding("data sets", "Fashion-MNIST", str(folder))


def checkpoints(roots: Sequence[str]) -> Iterator[Finding]:
    """Files of weights anywhere below the given folders."""
    for root in map(Path, roots):
        if not root.is_dir():
            yield missing_folder("weights", root)
            continue
        files = sorted(file for file in root.rglob("*") if file.suffix in WEIGHTS)
        yield from map(checkpoint, files)
        if not files:
            yield Finding("weights", str(root), f"no {', '.join(WEIGHTS)} file")


def checkpoint(file: Path) -> Finding:
    """What a file of weights says about itself; its tensors are not read."""
    from robustguide.cards import card_of_file
    from robustguide.checkpoints import read_metadata
    from robustguide.checkpoints.metadata import KEY, opened

    if (of := card_of_file(file)) is not None:
        return Finding("weights", str(file), f"published {of.kind}, card {of.name}")
    if file.suffix != ".safetensors":
        value = "no card has its name, so guidance loads it only with one"
        return Finding("weights", str(file), value)
    try:
        with opened(file) as tensors:
            if KEY not in (tensors.metadata() or {}):
                has_pixels = "pixels" in tensors.keys()
                what = "sampled images" if has_pixels else "tensors that do not say of what"
                return Finding("weights", str(file), what)
        found = read_metadata(file)
    except (ValueError, OSError) as error:
        return Finding("weights", str(file), "cannot be read", str(error))
    shape = " x ".join(map(str, found.shape))
    value = f"{found.kind}, {found.num_classes} classes, {shape}, {found.weights} weights"
    return Finding("weights", str(file), value)


def missing_folder(topic: str, folder: Path) -> Finding:
    """A folder that was named and is not there."""
    value = f"there is no such folder, seen from {Path.cwd()}"
    return Finding(topic, str(folder), value, f"name a folder that exists in place of {folder}")


def subfolders(folder: Path) -> list[Path]:
    """Those that can be listed, sorted; links are followed."""
    try:
        return sorted(place for place in folder.iterdir() if place.is_dir())
    except OSError:
        return []
