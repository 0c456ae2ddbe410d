"""Classifiers in the format of the `robustness` package (Engstrom et al., 2019).

A file holds a network, the standardisation in front of it, and both a second time inside the
attacker that it was trained against:

    module.model.*               module.normalizer.new_mean, new_std
    module.attacker.model.*      module.attacker.normalize.new_mean, new_std

Images in [0, 1] are clamped to that range and then standardised.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustguide.checkpoints.load import filled, outline
from robustguide.checkpoints.off_the_shelf import SHELF, finished, fitted, tensors_of
from robustguide.classifiers import OffTheShelf
from robustguide.specification import Specification

COPIES = {
    "attacker.model.": "model.",
    "attacker.normalize.": "normalizer.",
}
# Blocks of the four stages, whether they are bottlenecks, and width of the first convolution.
RESNETS: dict[tuple[tuple[int, ...], bool, int], str] = {
    ((2, 2, 2, 2), False, 64): "resnet18",
    ((3, 4, 6, 3), False, 64): "resnet34",
    ((3, 4, 6, 3), True, 64): "resnet50",
    ((3, 4, 23, 3), True, 64): "resnet101",
    ((3, 8, 36, 3), True, 64): "resnet152",
    ((3, 4, 6, 3), True, 128): "wide_resnet50_2",
    ((3, 4, 23, 3), True, 128): "wide_resnet101_2",
}


class Robust(NamedTuple):
    """What a file holds once.

    Attributes:
        network: Tensors of the network by its own names.
        mean: Of the channels, for images in [0, 1].
        std: Of the channels, likewise.
    """

    network: dict[str, Tensor]
    mean: list[float]
    std: list[float]


def load_robustness(
    path: str, net: nn.Module | None = None, part: str | None = None, size: int | None = None
) -> OffTheShelf:
    """A classifier in the format of `robustness`, with the standardisation of its file.

    It reads images of the side that they are given; ResNets of torchvision for ImageNet and the
    package's own for CIFAR are known by their tensors.

    Args:
        path: File of the package, or of others who write its format.
        net: The network, where it is another one.
        part: Which network of the file, where it holds several: "model", or "state_dict" in old
            files.
        size: Side that images are resized to, 224 for the published ImageNet classifiers; null
            keeps theirs.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that cannot be read safely, is not of this format, or whose network is
            not known and not given.
    """
    robust = read(path, part)
    if net is None:
        specification = _described(robust, architecture(robust.network, path), size)
        needed = outline(specification).get_submodule("net")
        tensors = fitted(robust.network, needed, path)
        shelf = filled(specification, {f"net.{name}": each for name, each in tensors.items()})
        return finished(shelf, path, specification)
    net.load_state_dict(fitted(robust.network, net, path))
    kind = type(net)
    named = {"class_path": f"{kind.__module__}.{kind.__qualname__}"}
    specification = _described(robust, named, size)
    return finished(OffTheShelf(**{**specification["init_args"], "net": net}), path, specification)


def robustness_specification(
    path: str,
    net: Specification | None = None,
    part: str | None = None,
    size: int | None = None,
) -> Specification:
    """How `load_robustness` builds its module.

    Raises:
        FileNotFoundError: No such file.
        ValueError: See `load_robustness`.
    """
    robust = read(path, part)
    return _described(robust, net or architecture(robust.network, path), size)


def read(path: str, part: str | None = None) -> Robust:
    """The network of a file and its standardisation; the second copies are compared and left out.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that cannot be read safely, or is not of this format.
    """
    return _separated(tensors_of(path, part), path)


def to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file under the names of `OffTheShelf`, whose arguments say mean and deviation.

    Raises:
        ValueError: They are not in this format.
    """
    names = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    network = _separated(names, "the file").network
    return {f"net.{name}": tensor for name, tensor in network.items()}


def _separated(tensors: Mapping[str, Tensor], path: str) -> Robust:
    once = {}
    for name, tensor in tensors.items():
        copied = next((start for start in COPIES if name.startswith(start)), None)
        if copied is None:
            once[name] = tensor
            continue
        original = COPIES[copied] + name.removeprefix(copied)
        if original not in tensors or not torch.equal(tensors[original], tensor):
            raise ValueError(
                f"In {path}, {name} is not the same as {original}: the attacker was trained "
                "against another network. Get the file again."
            )
    mean, std = (once.pop(f"normalizer.new_{name}", None) for name in ("mean", "std"))
    odd = [name for name in once if not name.startswith("model.")]
    if mean is None or std is None or odd or not once:
        raise ValueError(
            f"{path} is not in the format of robustness, which has module.model.* and "
            f"module.normalizer.new_mean and new_std; it holds {', '.join([*odd, *once][:4])}. "
            "Read a plain state dict with with_weights or torchvision_classifier."
        )
    network = {name.removeprefix("model."): tensor for name, tensor in once.items()}
    return Robust(network, mean.flatten().tolist(), std.flatten().tolist())


def architecture(network: Mapping[str, Tensor], path: str) -> Specification:
    """The ResNet that has these tensors.

    Raises:
        ValueError: It is none of those that are known.
    """
    stages = [_count(network, f"layer{stage}.") for stage in (1, 2, 3, 4)]
    first = network.get("layer1.0.conv1.weight")
    last = network.get("linear.weight", network.get("fc.weight"))
    if first is None or last is None or not all(stages):
        raise ValueError(
            f"The network of {path} is no ResNet; give it as `net`, such as "
            "torchvision.models.vgg16."
        )
    bottleneck, num_classes = "layer1.0.conv3.weight" in network, len(last)
    if "linear.weight" in network:
        arguments = {"num_classes": num_classes, "blocks": stages, "bottleneck": bottleneck}
        arguments |= {"width": len(first), "image_size": _side(last, len(first), bottleneck)}
        return {"class_path": "robustguide.nets.CifarResNet", "init_args": arguments}
    name = RESNETS.get((tuple(stages), bottleneck, len(first)))
    if name is None:
        raise ValueError(
            f"The network of {path} is no ResNet of torchvision: its stages have {stages} blocks "
            f"of width {len(first)}. Give it as `net`."
        )
    return {"class_path": f"torchvision.models.{name}", "init_args": {"num_classes": num_classes}}


def _count(network: Mapping[str, Tensor], start: str) -> int:
    """Blocks of a stage."""
    return len({name.split(".")[1] for name in network if name.startswith(start)})


def _side(last: Tensor, width: int, bottleneck: bool) -> int:
    """Side of the images, from what the last layer reads: 4 x 4 pixels of 8 are one feature."""
    channels = 8 * width * (4 if bottleneck else 1)
    return int(32 * round((last.shape[1] / channels) ** 0.5))


def _described(robust: Robust, net: Specification, size: int | None) -> Specification:
    arguments: dict[str, Any] = {
        "net": net,
        "num_classes": _num_classes(robust.network),
        "mean": robust.mean,
        "std": robust.std,
        "size": size,
        "clamp": True,
    }
    if size is None and net.get("class_path", "").endswith("CifarResNet"):
        side = net["init_args"].get("image_size", 32)
        arguments["shape"] = [3, side, side]
    return {"class_path": SHELF, "init_args": arguments}


def _num_classes(network: Mapping[str, Tensor]) -> int:
    """Rows of the last matrix."""
    return [len(tensor) for tensor in network.values() if tensor.ndim >= 2][-1]
