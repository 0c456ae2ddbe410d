"""Classifiers of clean images by name, filled from files of weights that are opened safely.

Each function has a partner that says how its module is built, as a checkpoint of it says that.
Whatever is not named here is written out: `OffTheShelf` around any network, which `with_weights`
fills from a file.
"""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustguide.checkpoints.load import filled, outline, shapes_from
from robustguide.checkpoints.metadata import Metadata
from robustguide.checkpoints.mismatch import listed, mismatches, shapes_of
from robustguide.checkpoints.opening import open_tensors
from robustguide.checkpoints.portable import TRANSFORMING
from robustguide.checkpoints.trust import build
from robustguide.classifiers import OffTheShelf
from robustguide.classifiers.clip import (
    TEMPLATES,
    Architecture,
    clip,
    configuration,
    imagenet_names,
    zero_shot,
)
from robustguide.specification import Specification

SHELF = "robustguide.classifiers.OffTheShelf"
Preprocess = Literal["raw", "imagenet_norm", "imagenet_norm+resize"]
FIXED = "vit_", "maxvit"  # beginnings of torchvision's names whose networks read one size only
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def with_weights(net: nn.Module, weights: str, part: str | None = None) -> nn.Module:
    """Any network, filled from a file of its state dict.

    Args:
        net: Takes the tensors, all of them, by name.
        weights: File of safetensors or of torch.save.
        part: Which network of the file, where it holds several, such as "state_dict_ema".

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that cannot be read safely, or tensors that do not fit.
    """
    tensors = fitted(tensors_of(weights, part), net, weights)
    net.load_state_dict(tensors)
    return net


def network_specification(
    net: Specification, weights: str, part: str | None = None
) -> Specification:
    """How `with_weights` builds its module."""
    return net


def torchvision_classifier(
    name: str,
    weights: str | None = None,
    num_classes: int = 1000,
    size: int | None = None,
    pretrained: bool = False,
    preprocess: Preprocess = "imagenet_norm+resize",
) -> OffTheShelf:
    """A classifier of torchvision, with the size and standardisation of its published weights.

    Images are resized to the side that the weights were evaluated at, without a crop; or the
    network sees them at their own size, as EluCD shows them to it. Ma et al. (2023).

    Args:
        name: Such as "resnet50".
        weights: File of the state dict, such as torchvision publishes; null leaves random ones.
        num_classes: Number of logits.
        size: Side that images are resized to; null is that of torchvision's newest weights.
        pretrained: Lets torchvision download its newest weights, instead of a file.
        preprocess: What the network sees of an image: "raw" is the image in [-1, 1], which is
            what the code of EluCD does, "imagenet_norm" standardises it, and
            "imagenet_norm+resize" also resizes it.

    Raises:
        FileNotFoundError: No such file.
        ValueError: For an unknown name, a size without resizing, or a file that does not fit.
    """
    specification = torchvision_specification(
        name, weights, num_classes, size, pretrained, preprocess
    )
    if pretrained:
        models = import_module("torchvision.models")
        net = models.get_model(name, weights="DEFAULT", num_classes=num_classes)
        return finished(_around(net, specification), f"torchvision's {name}", specification)
    return _shelved(specification, weights, _old_names if name.startswith("densenet") else dict)


def torchvision_specification(
    name: str,
    weights: str | None = None,
    num_classes: int = 1000,
    size: int | None = None,
    pretrained: bool = False,
    preprocess: Preprocess = "imagenet_norm+resize",
) -> Specification:
    """How `torchvision_classifier` builds its module.

    Raises:
        ValueError: For an unknown name, or a size without resizing.
    """
    models = import_module("torchvision.models")
    if name not in models.list_models(module=models):
        raise ValueError(
            f"torchvision has no classifier {name!r}; give one of "
            "torchvision.models.list_models(module=torchvision.models)."
        )
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    arguments = {"name": name, "num_classes": num_classes}
    if name in TRANSFORMING:
        arguments |= {"init_weights": False}
        if weights or pretrained:  # their files expect another framework's standardisation
            arguments["transform_input"] = True
    return {
        "class_path": SHELF,
        "init_args": {
            "net": {"class_path": "torchvision.models.get_model", "init_args": arguments},
            "num_classes": num_classes,
            **_shown(name, transforms, size, preprocess),
        },
    }


def _shown(name: str, transforms: Any, size: int | None, preprocess: Preprocess) -> dict[str, Any]:
    """Arguments of `OffTheShelf` for what the network sees."""
    side = transforms.crop_size[0]
    shown = {"mean": list(transforms.mean), "std": list(transforms.std)}
    if preprocess == "imagenet_norm+resize":
        return shown | {"size": size or side, "interpolation": transforms.interpolation.value}
    if size is not None:
        raise ValueError(
            f"preprocess {preprocess!r} does not resize, but size {size} was given; leave it out, "
            "or give preprocess 'imagenet_norm+resize'."
        )
    if preprocess == "raw":
        shown = {"mean": [0.5] * 3, "std": [0.5] * 3}
    return shown | {"shape": [3, side, side]} if name.startswith(FIXED) else shown


def timm_classifier(
    name: str,
    weights: str | None = None,
    num_classes: int | None = None,
    size: int | None = None,
    pretrained: bool = False,
) -> OffTheShelf:
    """A classifier of timm, with the size and standardisation that timm knows of its weights.

    Args:
        name: Such as "convnext_tiny.fb_in1k", with the tag of the weights, which it decides by.
        weights: File of the state dict; null leaves random ones.
        num_classes: Number of logits; null is that of the published weights.
        size: Side that images are resized to; null is that of the published weights.
        pretrained: Lets timm download the weights, instead of a file.

    Raises:
        ImportError: timm is not installed.
        FileNotFoundError: No such file.
        ValueError: For an unknown name, or a file that does not fit.
    """
    specification = timm_specification(name, weights, num_classes, size, pretrained)
    if pretrained:
        net = _timm().create_model(name, pretrained=True, num_classes=num_classes)
        return finished(_around(net, specification), f"timm's {name}", specification)
    return _shelved(specification, weights)


def timm_specification(
    name: str,
    weights: str | None = None,
    num_classes: int | None = None,
    size: int | None = None,
    pretrained: bool = False,
) -> Specification:
    """How `timm_classifier` builds its module.

    Raises:
        ImportError: timm is not installed.
        ValueError: For an unknown name.
    """
    timm = _timm()
    if not timm.is_model(name):
        like = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
        raise ValueError(f"timm has no model {name!r}; those like it: {like or 'none'}.")
    known = timm.get_pretrained_cfg(name)
    count = num_classes or (known.num_classes if known else 1000)
    arguments: dict[str, Any] = {"num_classes": count}
    if known is not None:
        interpolation = known.interpolation
        arguments |= {
            "mean": list(known.mean),
            "std": list(known.std),
            "size": size or known.input_size[-1],
            "interpolation": interpolation if interpolation == "bilinear" else "bicubic",
        }
    net: dict[str, Any] = {"model_name": name, "num_classes": count}
    if size and known is not None and known.fixed_input_size:
        net["img_size"] = size
    return {
        "class_path": SHELF,
        "init_args": {"net": {"class_path": "timm.create_model", "init_args": net}, **arguments},
    }


def clip_classifier(
    architecture: Architecture,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] = TEMPLATES,
    weights: str | None = None,
) -> OffTheShelf:
    """A CLIP of `open_clip` as a classifier: the class whose text is most like the image.

    Args:
        architecture: See `ZeroShot`.
        class_names: One for each class; null are those of ImageNet.
        templates: Sentences with `{}` where the name goes, whose features are averaged; `"{}"`
            takes the names as they are.
        weights: File of the whole CLIP, in `open_clip`'s names; null leaves random ones.

    Raises:
        ImportError: open_clip is not installed.
        FileNotFoundError: No such file.
        ValueError: For an unknown architecture, no names, or a file that does not fit.
    """
    names = imagenet_names() if class_names is None else class_names
    specification = clip_specification(architecture, names)
    model = clip(architecture).eval()
    if weights is not None:
        model.load_state_dict(fitted(without_sizes(tensors_of(weights)), model, weights))
    net = zero_shot(architecture, model, names, templates)
    shelf = _around(net, specification)
    return finished(shelf, weights or "a blank CLIP", specification, tuple(names))


def clip_specification(
    architecture: Architecture,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] = TEMPLATES,
    weights: str | None = None,
) -> Specification:
    """How `clip_classifier` builds its module; the texts are in its tensors.

    Raises:
        ImportError: open_clip is not installed.
        ValueError: For an unknown architecture.
    """
    count = len(imagenet_names() if class_names is None else class_names)
    net = {"architecture": architecture, "num_classes": count}
    return {
        "class_path": SHELF,
        "init_args": {
            "net": {"class_path": "robustguide.classifiers.ZeroShot", "init_args": net},
            "num_classes": count,
            "mean": list(CLIP_MEAN),
            "std": list(CLIP_STD),
            "size": configuration(architecture)["vision_cfg"]["image_size"],
            "interpolation": "bicubic",
        },
    }


def tensors_of(weights: str, part: str | None = None) -> dict[str, Tensor]:
    """Tensors of a file, without the beginning that a distributed training gives all names.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that cannot be read safely.
    """
    tensors = open_tensors(weights, part).tensors
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def fitted(tensors: Mapping[str, Tensor], net: nn.Module, path: str) -> dict[str, Tensor]:
    """Tensors that are those of a network.

    Raises:
        ValueError: They are not; names some that differ.
    """
    needed = shapes_of(net)
    # Counters of batches are younger than some published files, and nothing here reads them.
    counters = {name: torch.zeros((), dtype=torch.long) for name in needed if _counts(name)}
    found = {**{name: counters[name] for name in counters if name not in tensors}, **tensors}
    if wrong := mismatches(shapes_from(found), needed, ("file", "network")):
        raise ValueError(
            f"The tensors of {path} do not fit the {type(net).__name__}: {listed(wrong)}. Name "
            "the network that the file holds, with its num_classes, or give another file."
        )
    return found


def _counts(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _shelved(
    specification: Specification, weights: str | None, renamed: Any = dict
) -> OffTheShelf:
    """Builds a module and fills its network, without initial values that would be overwritten."""
    if weights is None:
        return finished(build(specification), "no file", specification)
    described = outline(specification)
    tensors = fitted(renamed(tensors_of(weights)), described.get_submodule("net"), weights)
    shelf = filled(specification, {f"net.{name}": tensor for name, tensor in tensors.items()})
    return finished(shelf, weights, specification)


def _around(net: nn.Module, specification: Specification) -> OffTheShelf:
    """The classifier of a specification, with a network that is there already."""
    return OffTheShelf(**{**specification["init_args"], "net": net})


def finished(
    shelf: Any, path: str, specification: Specification, class_names: tuple[str, ...] = ()
) -> OffTheShelf:
    """As a loader of checkpoints returns it: in evaluation mode, frozen, with metadata."""
    vars(shelf)["metadata"] = Metadata(
        path=path,
        kind="classifier",
        specification=specification,
        class_names=class_names,
        num_classes=shelf.num_classes,
        shape=shelf.shape or (),
        conditioning="none",
        weights="raw",
        versions={},
    )
    result: OffTheShelf = shelf.eval().requires_grad_(False)
    return result


def _old_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's files of DenseNet have a dot in names that since have none: norm.1, conv.2."""
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
    return {old.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}


def without_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's files note three sizes among the weights."""
    noted = ("input_resolution", "context_length", "vocab_size")
    return {name: tensor for name, tensor in tensors.items() if name not in noted}


def _timm() -> Any:
    try:
        return import_module("timm")
    except ImportError as error:
        raise ImportError(
            "Networks of timm need it; install it with pip install 'robustguide[timm]'."
        ) from error
