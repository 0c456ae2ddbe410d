"""One blank image, shown to a network before a run begins, so that a wrong shape is told then."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustguide.interfaces import Classifier, Denoiser


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
