"""Reads trained modules from files that carry no code. Nothing here unpickles."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from robustguide.checkpoints.metadata import KEY, opened, read_metadata
from robustguide.checkpoints.mismatch import listed, mismatches, shapes_in, shapes_of
from robustguide.checkpoints.portable import portable
from robustguide.checkpoints.specification import Specification, differences
from robustguide.checkpoints.trust import UntrustedError, build
from robustguide.interfaces import Classifier, Denoiser

KINDS: dict[str, type[nn.Module]] = {"classifier": Classifier, "denoiser": Denoiser}


def load_classifier(path: str, trust: Sequence[str] = (), device: str = "cpu") -> Classifier:
    """A trained classifier, in evaluation mode and frozen; its `metadata` describes it.

    Args:
        path: File written by `export`.
        trust: Packages of yours whose modules the file may name.
        device: Where it goes.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not such a file, one of a denoiser, or one whose tensors do not fit.
    """
    classifier: Classifier = _load(path, "classifier", trust, device)
    return classifier


def load_denoiser(path: str, trust: Sequence[str] = (), device: str = "cpu") -> Denoiser:
    """A trained denoiser, in evaluation mode and frozen; its `metadata` describes it.

    Args:
        path: File written by `export`.
        trust: Packages of yours whose modules the file may name.
        device: Where it goes.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not such a file, one of a classifier, or one whose tensors do not fit.
    """
    denoiser: Denoiser = _load(path, "denoiser", trust, device)
    return denoiser


def load_weights(module: nn.Module, path: str, specification: Specification | None = None) -> None:
    """Fills a module that was built elsewhere, for fine-tuning; modes and gradients stay.

    Args:
        module: Takes the tensors, all of them, by name.
        path: A safetensors file, with or without metadata.
        specification: How `module` was built, so that a mismatch can be told in its terms.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The tensors do not fit; names the fields of the specification that differ.
    """
    wrong = mismatches(shapes_in(path), shapes_of(module), ("file", "module"))
    if wrong:
        fields = _fields_that_differ(path, specification)
        raise ValueError(
            f"The tensors of {path} do not fit the module. "
            + (f"Arguments that differ: {listed(fields)}. " if fields else "")
            + f"Tensors that differ: {listed(wrong, most=3 if fields else 8)}. "
            + "Build the module with the arguments of the file, or give another file."
        )
    _fill(module, path)


def _fields_that_differ(path: str, given: Specification | None) -> list[str]:
    with opened(path) as file:
        is_described = KEY in (file.metadata() or {})
    if given is None or not is_described:
        return []
    return differences(read_metadata(path).specification, portable(given))


def outline(specification: Specification, trust: Sequence[str]) -> nn.Module:
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


def _load(path: str, kind: str, trust: Sequence[str], device: str) -> Any:
    """A module of the kind asked for, which the callers state in their return types."""
    metadata = read_metadata(path)
    if metadata.kind != kind:
        raise ValueError(
            f"{path} holds a {metadata.kind}, but a {kind} was asked for; give "
            f"another file, or load this one with load_{metadata.kind}."
        )
    # On the meta device first: a file cannot ask for more memory than it has tensors to fill.
    needed = shapes_of(outline(metadata.specification, trust))
    if wrong := mismatches(shapes_in(path), needed, ("file", "specification")):
        raise ValueError(
            f"The tensors of {path} do not fit its own specification: {listed(wrong)}. It was "
            f"written with {metadata.versions}, and is damaged or needs these versions."
        )
    module = _assembled(metadata.specification, trust, "cpu")
    if not isinstance(module, KINDS[kind]) or module.num_classes != metadata.num_classes:
        raise ValueError(
            f"{path} promises a {metadata.kind} of {metadata.num_classes} classes, but its "
            f"specification builds a {type(module).__name__}; export it again."
        )
    _fill(module, path)
    vars(module)["metadata"] = metadata  # not a part of the module, so past its own __setattr__
    return module.eval().requires_grad_(False).to(device)


def _assembled(specification: Specification, trust: Sequence[str], device: str) -> Any:
    """Builds on a device; initial values, overwritten later, cost no random numbers of the run."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return build(specification, trust)


def _fill(module: nn.Module, path: str) -> None:
    """Copies the tensors of a file; so tied parameters stay tied, and buffers where they are."""
    with opened(path) as file:
        module.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
