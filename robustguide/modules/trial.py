"""One blank image, shown to a network before a run begins, so that a wrong shape is told then."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from robustguide.classifiers import class_names, displaced
from robustguide.data import HeldOut
from robustguide.interfaces import Classifier, Denoiser
from robustguide.modules.latent import Space


def try_on_data(classifier: Classifier, data: LightningDataModule | None, space: Space) -> None:
    """Compares a classifier with a data module, as far as both tell classes and a shape.

    Raises:
        ValueError: When they differ.
    """
    num_classes, shape = getattr(data, "num_classes", None), getattr(data, "shape", None)
    if num_classes not in (None, classifier.num_classes):
        raise ValueError(
            f"The data has {num_classes} classes, the classifier {classifier.num_classes}; set "
            "model.classifier.init_args.num_classes (and the network's) to the data's."
        )
    own = class_names(classifier)
    if displaced(own, getattr(data, "class_names", ())):
        raise ValueError(
            f"The classifier counts the classes of the data in another order, {list(own[:5])}; "
            "wrap it in robustguide.classifiers.Relabelled."
        )
    if shape is not None:
        try_classifier(classifier, space.shape(shape))


def held_out(trainer: Trainer, what: str) -> HeldOut:
    """Data for one pass over held-out images.

    Args:
        trainer: Of the pass.
        what: Begins the messages, such as "A calibration".

    Raises:
        ValueError: For other data, a moving average, or a trainer that would read nothing.
    """
    declared: Any = trainer
    if not isinstance(declared.datamodule, HeldOut):
        raise ValueError(
            f"{what} needs held-out images, but data is {type(declared.datamodule).__name__}; set "
            "data.class_path to robustguide.data.HeldOut."
        )
    if any(isinstance(callback, WeightAveraging) for callback in declared.callbacks):
        raise ValueError(f"{what} has no steps to average over; leave out EMA.")
    if 0 in (trainer.max_steps, trainer.max_epochs, trainer.limit_train_batches):
        raise ValueError(
            f"{what} reads the held-out images once; leave out trainer.max_steps and "
            "limit_train_batches, and set max_epochs to 1."
        )
    return declared.datamodule


def try_classifier(classifier: Classifier, shape: Sequence[int]) -> None:
    """Looks whether a classifier reads images of a shape and answers with all its logits.

    Raises:
        ValueError: When it does not.
    """
    logits = tried(classifier, shape, lambda x, sigma: classifier(x, sigma))
    if tuple(logits.shape) != (1, classifier.num_classes):
        raise ValueError(
            f"The classifier has num_classes {classifier.num_classes}, but its network answers "
            f"with {list(logits.shape[1:])} logits; give both the number of the data's classes."
        )


def try_denoiser(denoiser: Denoiser, shape: Sequence[int]) -> None:
    """Looks whether a denoiser answers images of a shape with such images, also its last label.

    Raises:
        ValueError: When it does not.
    """

    def predict(x: Tensor, sigma: Tensor) -> Tensor:
        y = torch.zeros_like(sigma, dtype=torch.long)
        return denoiser.predict(x, sigma, denoiser.null(y) if denoiser.has_null else y).denoised

    denoised = tried(denoiser, shape, predict)
    if tuple(denoised.shape[1:]) != tuple(shape):
        raise ValueError(
            f"The denoiser's network answers images of shape {list(shape)} with shape "
            f"{list(denoised.shape[1:])}; correct its arguments, or learns_variance."
        )


@torch.no_grad()
def tried(
    network: nn.Module, shape: Sequence[int], answer: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """What a network in evaluation mode answers to a blank image at noise level 1."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        return answer(torch.zeros(1, *shape, device=device), torch.ones(1, device=device))
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"The network cannot read the data's images of shape {list(shape)}, or a label: "
            f"{error}. Build it for this shape and for all labels, the null label "
            "(num_null_labels) included."
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
