"""Which file the arguments of a loader mean, and what is known of it without its tensors."""

from functools import cache
from pathlib import Path

import torch

from robustguide.cards import Card, card_of_file, needed
from robustguide.cards import card as card_of_name
from robustguide.checkpoints.autoencoders import describe_folder
from robustguide.checkpoints.metadata import KEY, Metadata, is_safetensors, opened, read_metadata

CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def described(card: Card, file: Path) -> Metadata:
    """Metadata of the module that a card's file becomes."""
    noted = {
        "card": card.name,
        "file": file.name,
        "licence": card.licence,
        "source": card.source,
        "conventions": card.conventions,
    }
    return Metadata(
        path=str(file),
        kind=card.kind,
        specification=card.specification,
        class_names=class_names(card.classes, card.num_classes),
        num_classes=card.num_classes,
        shape=card.shape,
        conditioning=CONDITIONING.get(card.specification["class_path"]),
        weights=card.weights,
        versions={"torch": str(torch.__version__)},
        extra=noted,
    )


CONDITIONING = {
    "robustguide.classifiers.Timed": "t",
    "robustguide.classifiers.SigmaConditioned": "sigma",
    "robustguide.classifiers.OffTheShelf": "none",
}


@cache
def class_names(classes: str | None, count: int) -> tuple[str, ...]:
    """Names in the order of the labels; numbers for a set that is not known here."""
    if classes == "imagenet":
        from torchvision.models import ResNet50_Weights

        return tuple(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])
    if classes == "cifar10":
        return CIFAR10
    if classes == "fashion_mnist":
        from torchvision.datasets import FashionMNIST

        return tuple(FashionMNIST.classes)
    return tuple(str(y) for y in range(count))


def describe(path: str | None, card: str | None) -> Metadata:
    """What a loader with these arguments would say of its module; reads no tensors.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint, or an unknown card.
    """
    if path is not None and Path(path).expanduser().is_dir():
        return describe_folder(path)
    file, found = located(path, card)
    return read_metadata(file) if found is None else described(found, file)


def located(path: str | None, card: str | None) -> tuple[Path, Card | None]:
    """The file that arguments of a loader mean; its card where it does not describe itself.

    Raises:
        FileNotFoundError: The file of a card is not there.
        ValueError: An unknown card, or no argument at all.
    """
    if path is None and card is None:
        raise ValueError("Give the path of a checkpoint, or the card of a published one.")
    found = None if card is None else card_of_name(card)
    file = needed(found) if path is None and found is not None else Path(path or "").expanduser()
    if is_described(file):
        return file, None
    return file, found or card_of_file(file)


def is_described(file: Path) -> bool:
    """Whether a file is one of ours."""
    if not is_safetensors(file):
        return False
    with opened(file) as content:
        return KEY in (content.metadata() or {})
