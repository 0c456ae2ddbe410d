"""Guidance by any loss of the predicted clean image. Bansal et al. (2023).

    forward    displacement = -weight sigma**2 grad_x loss(denoised(x), y)
    backward   the image that some iterations of an optimiser make of denoised + displacement

In their words forward is `eps + s grad_{x_t} loss`, with s = weight sqrt(1 - alpha_bar) as in
their code; here x_t = x / sqrt(1 + sigma**2). Backward needs no gradient of the denoiser. Their
self-recurrence is an option of all samplers, `repeats`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import LBFGS, Adam, Optimizer

from robustguide.guidance.base import Guidance, Step
from robustguide.guidance.losses import Loss, LossOf, values_and_gradient
from robustguide.guidance.views import ThroughDenoiser
from robustguide.interfaces import Classifier, Denoiser
from robustguide.noise import expand


@dataclass(frozen=True)
class Descent:
    """Lowers the loss of a clean image by an optimiser, new for each image.

    An image whose loss is below the cutoff stays where it is. The published loop ends when all do;
    to ask for that, the host would wait for the device in each iteration, so all are made here.

    Args:
        steps: Iterations, each with one gradient of the loss; m.
        lr: Learning rate.
        optimizer: Class of the optimiser, one that treats each number by itself.
        cutoff: Loss below which an image stays.
        bound: The image is clamped to [-bound, bound] before each iteration and at the end; null
            does not clamp, as latents need it.

    Raises:
        ValueError: For no step, a learning rate or bound that is not positive and finite, a cutoff
            that is no number, or an optimiser that searches along a line.
    """

    steps: int
    lr: float = 1e-2
    optimizer: type[Optimizer] = Adam
    cutoff: float = 1e-5
    bound: float | None = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(
                f"steps counts iterations, at least 1; got {self.steps}. Give no Descent for none."
            )
        for name, value in (("lr", self.lr), ("bound", self.bound)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}.")
        if math.isnan(self.cutoff):
            raise ValueError("cutoff must be a number, got nan; -.inf never stops.")
        if issubclass(self.optimizer, LBFGS):
            raise ValueError(
                "LBFGS searches one step length for all images of a batch; give an optimizer that "
                "treats each number by itself, such as torch.optim.Adam or torch.optim.SGD."
            )

    def __call__(
        self, loss: LossOf, images: Float[Tensor, "b c h w"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The images with a lower loss; rows do not mix."""
        make: Callable[..., Optimizer] = self.optimizer
        moving = self.clamped(images.detach()).clone().requires_grad_()
        optimizer = make([moving], lr=self.lr)
        stays = torch.zeros_like(y, dtype=torch.bool)
        for _ in range(self.steps):
            values, moving.grad = values_and_gradient(loss, moving, y)
            stays = stays | (values < self.cutoff)
            before = moving.detach().clone()
            optimizer.step()
            with torch.no_grad():
                after = torch.where(expand(stays, moving), before, moving)
                moving.copy_(self.clamped(after))
        return moving.detach()

    def clamped(self, images: Tensor) -> Tensor:
        """Within the bound, where there is one."""
        return images if self.bound is None else images.clamp(-self.bound, self.bound)


class Universal(Guidance):
    """Forward guidance, then backward guidance from where it leads. Bansal et al. (2023).

    The order lies inside, so that this is one term: the displacement from the denoised image to
    the result. The denoised image is not clipped for the forward loss.

    Args:
        loss: Of the predicted clean image.
        forward: Weight of forward guidance, whose gradient goes through the denoiser; 0 leaves it
            out, and its cost. 1 is the scale of a log-probability.
        backward: Backward guidance; null leaves it out.

    Raises:
        ValueError: For a weight that is negative or not finite, or when both are left out.
    """

    moves_denoised = True

    def __init__(self, loss: Loss, forward: float = 0.0, backward: Descent | None = None) -> None:
        super().__init__()
        if not 0 <= forward < math.inf:
            raise ValueError(
                f"forward must be a finite number of at least 0, got {forward}; losses are "
                "lowered, so the sign is part of the loss."
            )
        if forward == 0 and backward is None:
            raise ValueError(
                "Universal does nothing: give a positive weight as `forward`, a Descent as "
                "`backward`, or both."
            )
        self.loss = loss
        self.weight = forward
        self.descent = backward
        self.needs_graph = forward > 0
        self.num_classes = loss.num_classes
        self.class_names = loss.class_names

    def classifiers(self) -> tuple[Classifier, ...]:
        """Those of the loss."""
        return self.loss.classifiers()

    def differentiated(self) -> tuple[Classifier, ...]:
        """Those of the loss."""
        return self.loss.classifiers()

    def check(self, denoiser: Denoiser) -> None:
        """As the loss."""
        self.loss.check(denoiser)

    def forward(self, step: Step) -> Float[Tensor, "b c h w"]:
        """From the denoised image to the result."""
        denoised = step.denoised.detach()
        moved = self.pulled(step, denoised) if self.weight > 0 else torch.zeros_like(denoised)
        if self.descent is None:
            return moved
        return self.descent(self.loss.at(step.sigma), denoised + moved, step.y) - denoised

    def pulled(self, step: Step, denoised: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Displacement of forward guidance, by the chain rule."""
        image = denoised.detach().requires_grad_()
        _, gradient = values_and_gradient(self.loss.at(step.sigma), image, step.y)
        score = ThroughDenoiser().pull(step, -gradient)
        return self.weight * expand(step.sigma**2, score) * score
