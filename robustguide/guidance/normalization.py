"""Terms that change a gradient, in the units in which it is published: those of x_t.

    g_t = sqrt(1 + sigma**2) * displacement / sigma**2

is the score with respect to `x_t = x / sqrt(1 + sigma**2)`, as published code takes it.
"""

import math
from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from robustguide.guidance.base import Guidance, Step
from robustguide.guidance.combinators import Combinator
from robustguide.noise import expand, vp_scale


class OfGradient(Combinator):
    """A term made of another's gradient at x_t.

    Args:
        term: A score term.

    Raises:
        ValueError: For a reference term, which has no gradient.
    """

    def __init__(self, term: Guidance) -> None:
        super().__init__(term)
        refuse_reference(type(self).__name__, term)

    def change(
        self, step: Step, displacement: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """The changed gradient, as a displacement again."""
        square = step.sigma**2
        tiny = torch.finfo(square.dtype).tiny  # at noise level 0 the displacement is 0 as well
        gradient = displacement.detach() * expand(
            vp_scale(step.sigma) / square.clamp_min(tiny), displacement
        )
        return expand(square / vp_scale(step.sigma), displacement) * self.turn(step, gradient)

    @abstractmethod
    def turn(self, step: Step, gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """What becomes of the gradient at x_t."""


class UnitNorm(OfGradient):
    """Gives the gradient at x_t of every image the L2 norm 1, as Vaeth et al. (2025) can in code.

    `scale` is then the length of the gradient itself, which grows with the square root of the
    number of pixels: a root mean square of 1, as the EDM code of Ma et al. (2023) has, takes a
    scale of `sqrt(c * h * w)`.

    Args:
        term: A score term.
        floor: Smallest norm that is divided by, so that a gradient of 0 stays 0 and one below
            it is not blown up; 1e-4 is the published code's.

    Raises:
        ValueError: For a reference term, or a floor that is not positive.
    """

    def __init__(self, term: Guidance, floor: float = 1e-4) -> None:
        super().__init__(term)
        if not 0 < floor < math.inf:
            raise ValueError(
                f"floor bounds the norm that is divided by, a positive number; got {floor}."
            )
        self.floor = floor

    def turn(self, step: Step, gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Divided by its norm."""
        return unit_norm(gradient, self.floor)


def unit_norm(gradient: Float[Tensor, "b c h w"], floor: float) -> Float[Tensor, "b c h w"]:
    """The gradient of each image divided by its L2 norm, or by the floor where that is larger."""
    norm: Tensor = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True)
    return gradient / norm.clamp_min(floor)


def refuse_reference(who: str, term: Guidance) -> None:
    """Refuses a term that is no gradient.

    Raises:
        ValueError: For a reference term.
    """
    if term.moves_denoised:
        raise ValueError(
            f"{who} changes a gradient, and {type(term).__name__} moves the denoised image by a "
            "difference of images; give it a score term, such as ClassifierGuidance."
        )
