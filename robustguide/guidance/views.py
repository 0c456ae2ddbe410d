"""Where a classifier looks, and what its gradient there is as a score at x.

    AtState             x                              grad
    AtNormalizedState   x / max(rms(x), 1)             grad / max(rms(x), 1)
    AtDenoised          denoised(x)                    grad / sqrt(1 + sigma**2)
    ThroughDenoiser     denoised(x)                    (d denoised / d x)^T grad

The last is the chain rule. `AtDenoised` leaves out the denoiser's Jacobian, which spares a
backward pass through the largest network: a gradient at the clean image is read as one at x_t,
which a change of units makes one at x. Ma et al. (2023), section 4.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robustguide.guidance.base import Step
from robustguide.interfaces import Classifier
from robustguide.noise import expand, vp_scale


class View(ABC):
    """What a classifier is shown of a step.

    Attributes:
        needs_denoised: Whether it looks at the denoised image.
        needs_graph: Whether the gradient goes through the denoiser.
        clean: Whether the classifier is to read the images as clean ones.
    """

    needs_denoised = False
    needs_graph = False
    clean = False

    @abstractmethod
    def point(self, step: Step) -> Float[Tensor, "b c h w"]:
        """Images, without a graph."""

    def ask(
        self, classifier: Classifier, images: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits of such images of a step at levels sigma (b,)."""
        logits: Tensor
        logits = classifier.as_clean(images, sigma) if self.clean else classifier(images, sigma)
        return logits

    @abstractmethod
    def pull(self, step: Step, gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """A gradient at these images as a score at x."""


@dataclass(frozen=True)
class AtState(View):
    """The noisy image itself, for classifiers that know noise. Dhariwal and Nichol (2021)."""

    def point(self, step: Step) -> Float[Tensor, "b c h w"]:
        """The state."""
        return step.x.detach()

    def pull(self, step: Step, gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The gradient."""
        return gradient


@dataclass(frozen=True)
class AtNormalizedState(View):
    """The noisy image divided by its root mean square where that exceeds 1, as if it were clean.

    The published EDM code of Ma et al. (2023) shows its classifier this.
    """

    clean = True

    def point(self, step: Step) -> Float[Tensor, "b c h w"]:
        """The divided state."""
        x = step.x.detach()
        return x / expand(excess(x), x)

    def pull(self, step: Step, gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The gradient, divided alike; the divisor counts as a constant, as in their code."""
        return gradient / expand(excess(step.x.detach()), gradient)


@dataclass(frozen=True)
class AtDenoised(View):
    """The predicted clean image, the denoiser's Jacobian left out. Ma et al. (2023), section 4."""

    needs_denoised = True
    clean = True

    def point(self, step: Step) -> Float[Tensor, "b c h w"]:
        """The denoised image."""
        return step.denoised.detach()

    def pull(self, step: Step, gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The gradient, read as one at x_t."""
        return gradient / expand(vp_scale(step.sigma), gradient)


@dataclass(frozen=True)
class ThroughDenoiser(View):
    """The predicted clean image, differentiated through the denoiser. Bansal et al. (2023)."""

    needs_denoised = True
    needs_graph = True
    clean = True

    def point(self, step: Step) -> Float[Tensor, "b c h w"]:
        """The denoised image."""
        return step.denoised.detach()

    def pull(self, step: Step, gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Product with the denoiser's Jacobian; where clipping bites there is no gradient."""
        (score,) = torch.autograd.grad(step.denoised, step.x, gradient, retain_graph=True)
        return score


def excess(x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Root mean square of each image, at least 1."""
    return x.square().flatten(1).mean(1).sqrt().clamp_min(1)
