"""Whether a classifier fits a denoiser, and the wrapper that would mend it where it does not.

Asked when a configuration is read, before anything is sampled.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robustguide.classifiers import Decoded, displaced
from robustguide.classifiers import class_names as class_names  # also asked of this file
from robustguide.interfaces import Classifier, Denoiser

PIXELS = 1, 3  # channels of images; what has others are latents


@runtime_checkable
class Differentiating(Protocol):
    """What takes gradients of classifiers: a term of guidance."""

    def differentiated(self) -> tuple[Classifier, ...]:
        """Those whose gradient it takes."""


def check_shape(what: str, classifier: Classifier, denoiser: Denoiser) -> None:
    """Compares images.

    Args:
        what: Who asks, such as "Term 'robust'".
        classifier: Shown what the denoiser makes.
        denoiser: Makes it.

    Raises:
        ValueError: The classifier does not read it.
    """
    if classifier.reads(denoiser.shape):
        return
    reads = "others" if classifier.shape is None else shown(classifier.shape)
    raise ValueError(
        f"{what}: {titled(classifier, 'classifier')} reads images of {reads}, "
        f"{titled(denoiser, 'denoiser')} makes {shown(denoiser.shape)}; "
        f"{_repair(classifier, denoiser.shape)}."
    )


def check_names(what: str, names: Sequence[str], denoiser: Denoiser) -> None:
    """Compares names of classes, as far as both sides have the same ones.

    Data sets have several sets of names, so that names which only one side knows say nothing.

    Raises:
        ValueError: A class has another label there.
    """
    theirs = class_names(denoiser)
    moved = displaced(names, theirs)
    if not moved:
        return
    first = names[moved[0]]
    repair = "give `labels`, the classifier's class of every class of the denoiser"
    if set(theirs) <= set(names) and len(theirs) <= 20:
        repair = f"give `labels: {[list(names).index(name) for name in theirs]}`"
    raise ValueError(
        f"{what}: the classifier's class {moved[0]} is {first!r}, which "
        f"{titled(denoiser, 'denoiser')} counts as {theirs.index(first)}; {repair}."
    )


def check_observer(observer: Classifier, denoiser: Denoiser) -> None:
    """Compares an observer, whose logits are read by the denoiser's labels.

    Raises:
        ValueError: Images or classes differ.
    """
    check_shape("The observer", observer, denoiser)
    if denoiser.num_classes not in (0, observer.num_classes):
        raise ValueError(
            f"The observer knows {observer.num_classes} classes, the denoiser "
            f"{denoiser.num_classes}; wrap it in robustguide.classifiers.Relabelled, whose "
            "`labels` are its class of every class of the denoiser."
        )
    check_names("The observer, for Relabelled", class_names(observer), denoiser)


def check_gradients(denoiser: Denoiser, terms: Mapping[str, Differentiating]) -> None:
    """Takes one gradient of every classifier that is differentiated, at one blank image.

    Costs each of them one image forward and backward, on the device where it lies. Modes and
    `.grad` stay as they are. What is on the meta device is not asked.

    Raises:
        ValueError: A classifier has no gradient there.
    """
    asked: set[Classifier] = set()
    for name, term in terms.items():
        for classifier in term.differentiated():
            if classifier not in asked:
                asked.add(classifier)
                check_gradient(f"Term {name!r}", classifier, denoiser.shape)


def check_gradient(what: str, classifier: Classifier, shape: Sequence[int]) -> None:
    """Takes one gradient of a classifier at one blank image; see `check_gradients`.

    Args:
        what: Who needs it, such as "Term 'robust'".
        classifier: Any.
        shape: Of the image.

    Raises:
        ValueError: It has no gradient there.
    """
    default = torch.get_default_device()
    tensors = chain(classifier.parameters(), classifier.buffers())
    device = next((tensor.device for tensor in tensors), default)
    if "meta" in (device.type, default.type):
        return
    x = torch.zeros(1, *shape, device=device)
    modes = {module: module.training for module in classifier.modules()}
    try:
        happened = _broken(classifier.eval(), x)
    finally:
        for module, training in modes.items():
            module.training = training
    if happened:
        raise ValueError(
            f"{what} needs a gradient of {titled(classifier, 'classifier')} "
            f"({type(classifier).__name__}) at its image, and at a blank one of {shown(shape)} "
            f"{happened}. Let the gradient through, or guide by robustguide.guidance.GradientFree,"
            " which needs none."
        )


def _broken(classifier: Classifier, x: Tensor) -> str:
    """Why a classifier has no gradient at x; empty where it has one, be it 0."""
    try:
        with torch.enable_grad():
            logits = classifier(x.requires_grad_(), x.new_ones(len(x)))
            found: tuple[Tensor | None, ...] = (None,)
            if logits.requires_grad:
                found = torch.autograd.grad(logits.sum(), x, allow_unused=True)
    except (NotImplementedError, torch.OutOfMemoryError):  # of this device, in this precision
        return ""
    except (RuntimeError, TypeError) as error:
        return f"it failed ({error})"
    if found[0] is not None:
        return ""
    return (
        "the graph of its logits ends before (no_grad, detach, argmax, bytes or numpy inside, or "
        "torch.inference_mode around)"
    )


def titled(module: nn.Module, kind: str) -> str:
    """Which classifier or denoiser is meant: its card or file, where it has one."""
    metadata = getattr(module, "metadata", None)
    if metadata is None:
        inner = getattr(module, kind, None)
        return f"the {kind}" if inner is None else titled(inner, kind)
    card = metadata.extra.get("card")
    return f"the {kind} of " + (f"card {card!r}" if card else str(metadata.path))


def shown(shape: Sequence[int]) -> str:
    """A shape for people."""
    return " x ".join(map(str, shape))


def _repair(classifier: Classifier, shape: tuple[int, int, int]) -> str:
    wrappers = "robustguide.classifiers"
    if isinstance(classifier, Decoded) and shape[0] == classifier.codec.channels:
        return f"wrap the classifier inside Decoded in {wrappers}.Resized"
    own = shape[0] if classifier.shape is None else classifier.shape[0]
    if own == shape[0] and classifier.shape is not None:
        size = classifier.shape[1]
        return f"wrap the classifier in {wrappers}.Resized(size={size})"
    if shape[0] not in PIXELS and own in PIXELS:
        return f"wrap the classifier in {wrappers}.Decoded, with the codec of these latents"
    return f"take a classifier of {shape[0]} channels"
