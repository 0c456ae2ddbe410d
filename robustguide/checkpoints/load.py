"""Reads trained modules from files, without running anything that a file holds.

A file that `export` or `robustguide convert` wrote says itself what it is. A published file is
read by its card: named, or found by the name of the file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustguide.cards import Card, card_of_file
from robustguide.cards import card as card_of_name
from robustguide.checkpoints.assembly import give, is_complete, weightless
from robustguide.checkpoints.autoencoders import load_codec_folder
from robustguide.checkpoints.description import described, is_described, located
from robustguide.checkpoints.keys import translated
from robustguide.checkpoints.metadata import Metadata, is_safetensors, opened, read_metadata
from robustguide.checkpoints.mismatch import Shapes, listed, mismatches, shapes_in, shapes_of
from robustguide.checkpoints.opening import open_tensors
from robustguide.checkpoints.portable import portable
from robustguide.checkpoints.trust import UntrustedError, build
from robustguide.interfaces import Classifier, Codec, Denoiser
from robustguide.specification import Specification, differences

KINDS: dict[str, type[nn.Module]] = {
    "classifier": Classifier,
    "denoiser": Denoiser,
    "codec": Codec,
}


def load_classifier(
    path: str | None = None,
    card: str | None = None,
    trust: Sequence[str] = (),
    device: str = "cpu",
) -> Classifier:
    """A trained classifier, in evaluation mode and frozen; its `metadata` describes it.

    Args:
        path: File written by `export` or `convert`, or a published one; null takes the card's.
        card: Card of a published file; null finds it by the file's name.
        trust: Packages of yours whose modules the file may name.
        device: Where it goes; "meta" builds the card's network without reading a file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not such a file, one of something else, or one whose tensors do not fit.
    """
    classifier: Classifier = _load(path, card, "classifier", trust, device)
    return classifier


def load_denoiser(
    path: str | None = None,
    card: str | None = None,
    trust: Sequence[str] = (),
    device: str = "cpu",
) -> Denoiser:
    """A trained denoiser; see `load_classifier`."""
    denoiser: Denoiser = _load(path, card, "denoiser", trust, device)
    return denoiser


def load_codec(
    path: str | None = None,
    card: str | None = None,
    trust: Sequence[str] = (),
    device: str = "cpu",
) -> Codec:
    """A trained codec; see `load_classifier`.

    A folder in the layout of `diffusers` is read as well, at the scale in its `config.json`.
    """
    if path is not None and Path(path).expanduser().is_dir():
        return load_codec_folder(path).to(device)
    codec: Codec = _load(path, card, "codec", trust, device)
    return codec


def load_weights(module: nn.Module, path: str, specification: Specification | None = None) -> None:
    """Fills a module that was built elsewhere, for fine-tuning; modes and gradients stay.

    Args:
        module: Takes the tensors, all of them, by name.
        path: A safetensors file, with or without metadata, or a published file that has a card.
        specification: How `module` was built, so that a mismatch can be told in its terms.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The tensors do not fit; names the fields of the specification that differ.
    """
    card = None if is_safetensors(path) else card_of_file(path)
    if card is not None:
        tensors = official(card, Path(path))
        _refuse(shapes_from(tensors), shapes_of(module), path, "the module")
        module.load_state_dict(tensors)
        return
    wrong = mismatches(shapes_in(path), shapes_of(module), ("file", "module"))
    if wrong:
        fields = _fields_that_differ(path, specification)
        raise ValueError(
            f"The tensors of {path} do not fit the module. "
            + (f"Arguments that differ: {listed(fields)}. " if fields else "")
            + f"Tensors that differ: {listed(wrong, most=3 if fields else 8)}. "
            + "Build the module with the arguments of the file, or give another file."
        )
    with opened(path) as file:
        module.load_state_dict({name: file.get_tensor(name) for name in file.keys()})


def official(card: Card, file: Path) -> dict[str, Tensor]:
    """Tensors of a published file under the names of its card's module.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that cannot be read safely, or is not the card's.
    """
    contents = open_tensors(file, card.part)
    try:
        return translated(card, contents.tensors)
    except ValueError as error:
        raise ValueError(
            f"{file} is not what card {card.name!r} describes ({card.file}): {error}. Name the "
            "right card, or get the file again."
        ) from error


def fitting(card: Card, file: Path, needed: nn.Module) -> dict[str, Tensor]:
    """As `official`, and all that the card's module needs.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that cannot be read safely, or whose tensors are not the module's.
    """
    tensors = official(card, file)
    _refuse(shapes_from(tensors), shapes_of(needed), str(file), f"the card {card.name!r}")
    _refuse_types(tensors, needed, str(file))
    return tensors


def shapes_from(tensors: Mapping[str, Tensor]) -> Shapes:
    """Shapes by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _fields_that_differ(path: str, given: Specification | None) -> list[str]:
    if given is None or not is_described(Path(path)):
        return []
    return differences(read_metadata(path).specification, portable(given))


def outline(specification: Specification, trust: Sequence[str] = ()) -> nn.Module:
    """A module without memory; with memory where its constructor needs the values of tensors.

    Raises:
        ValueError: The specification is refused, or does not build a module.
    """
    try:
        module = _assembled(specification, trust, "meta")
    except UntrustedError:
        raise
    except ValueError:
        module = _assembled(specification, trust, "cpu")
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{specification['class_path']} builds a {type(module).__name__}, not a module."
        )
    return module


def _load(path: str | None, card: str | None, kind: str, trust: Sequence[str], device: str) -> Any:
    """A module of the kind asked for, which the callers state in their return types."""
    if path is None and card is not None and "meta" in (device, torch.get_default_device().type):
        named = card_of_name(card)
        metadata = described(named, Path(named.file))
        _check_kind(metadata, kind)
        return _finished(outline(metadata.specification), metadata)
    file, found = located(path, card)
    metadata = read_metadata(file) if found is None else described(found, file)
    _check_kind(metadata, kind)
    # On the meta device first: a file cannot ask for more memory than it has tensors to fill.
    needed = outline(metadata.specification, trust)
    if found is None:
        _refuse(shapes_in(file), shapes_of(needed), str(file), versions=metadata.versions)
        with opened(file) as content:  # mapped from the disk, and so after it is closed
            tensors = {name: content.get_tensor(name) for name in content.keys()}
        _refuse_types(tensors, needed, str(file))
    else:
        tensors = fitting(found, file, needed)
    module = filled(metadata.specification, tensors, trust)
    if not isinstance(module, KINDS[kind]) or _num_classes(module) != metadata.num_classes:
        raise ValueError(
            f"{file} promises a {metadata.kind} of {metadata.num_classes} classes, but its "
            f"specification builds a {type(module).__name__}; export it again."
        )
    return _finished(module, metadata).to(device)


def _num_classes(module: nn.Module) -> object:
    return getattr(module, "num_classes", 0)


def _finished(module: nn.Module, metadata: Metadata) -> nn.Module:
    if isinstance(module, Classifier) and module.shape is None and len(metadata.shape) == 3:
        channels, height, width = metadata.shape
        module.shape = channels, height, width  # that of the images that it was trained on
    vars(module)["metadata"] = metadata  # not a part of the module, so past its own __setattr__
    return module.eval().requires_grad_(False)


def _check_kind(metadata: Metadata, kind: str) -> None:
    if metadata.kind != kind:
        raise ValueError(
            f"{metadata.path} holds a {metadata.kind}, but a {kind} was asked for; give "
            f"another file, or load this one with load_{metadata.kind}."
        )


def _refuse(
    given: Shapes,
    needed: Shapes,
    path: str,
    what: str = "its own specification",
    versions: dict[str, str] | None = None,
) -> None:
    """Raises ValueError where names or shapes differ."""
    if wrong := mismatches(given, needed, ("file", what.split()[-1] if versions else what)):
        repair = (
            f"It was written with {versions}, and is damaged or needs these versions."
            if versions
            else "Name another card, or get the file again."
        )
        raise ValueError(f"The tensors of {path} do not fit {what}: {listed(wrong)}. {repair}")


def _refuse_types(tensors: Mapping[str, Tensor], needed: nn.Module, path: str) -> None:
    """Raises ValueError for whole numbers in place of weights, or the reverse.

    Precision is the file's: weights of float16 stay float16.
    """
    wrong = [
        f"{name}: file {tensors[name].dtype}, network {own.dtype}"
        for name, own in needed.state_dict().items()
        if tensors[name].is_floating_point() != own.is_floating_point()
    ]
    if wrong:
        raise ValueError(
            f"The tensors of {path} are of another type than its network's: {listed(wrong)}. Get "
            "the file again, or save the network's own state."
        )


def filled(
    specification: Specification, tensors: Mapping[str, Tensor], trust: Sequence[str] = ()
) -> nn.Module:
    """Builds a module around tensors; copies them only where a constructor needs real memory."""
    try:
        with weightless():
            module: nn.Module = build(specification, trust)
        give(module, tensors)
        if is_complete(module):
            return module
    except UntrustedError:
        raise
    except (ValueError, RuntimeError, NotImplementedError):
        pass  # a constructor that looks at values: it gets them
    module = _assembled(specification, trust, "cpu")
    give(module, tensors)
    return module


def _assembled(specification: Specification, trust: Sequence[str], device: str) -> Any:
    """Builds on a device; initial values, overwritten later, cost no random numbers of the run."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return build(specification, trust)
