"""Gradients averaged over Gaussian moves of what is looked at, which smooths a rough classifier.

    mean over n ~ N(0, I) of displacement(x + std * sigma * n)

is the gradient of the classifier's log-probability after a Gaussian blur.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from robustguide.guidance.base import Guidance, Step
from robustguide.guidance.combinators import Combinator
from robustguide.guidance.normalization import refuse_reference
from robustguide.noise import expand, vp_scale


class Averaged(Combinator):
    """Mean displacement over Gaussian moves. After Smilkov et al. (2017) and Shen et al. (2024).

    The size of the moves, relative to the noise, and the pairs are ours. Moves come in pairs n
    and -n, so that a gradient that is linear in its point is not changed at all. The state moves
    by `std * sigma` and the predicted clean image by as much in units of x_t,
    `std * sigma / sqrt(1 + sigma**2)`, which is `std` at high noise; the level that a classifier
    is told stays. A term that differentiates through the denoiser has the image alone moved, and
    the denoiser's Jacobian taken at the state itself.

    Costs `count` evaluations of the term, one after the other, so that memory is that of one. The
    denoiser runs no more often. What remembers, such as `Stabilized`, belongs around this term.

    Args:
        term: A score term.
        std: Standard deviation of the moves, as a share of the noise.
        count: Number of moves, in pairs.

    Raises:
        ValueError: For a reference term, moves of no size, or a count that is odd or none.
    """

    def __init__(self, term: Guidance, std: float, count: int) -> None:
        super().__init__(term)
        refuse_reference(type(self).__name__, term)
        if not 0 < std < math.inf:
            raise ValueError(
                f"std is the size of the moves as a share of the noise, positive; got {std}. "
                "Leave Averaged out for no moves."
            )
        if count < 2 or count % 2:
            raise ValueError(
                f"count is a number of moves in pairs of opposite ones: 2, 4, 6...; got {count}."
            )
        self.std, self.count = std, count

    def forward(self, step: Step) -> Float[Tensor, "b c h w"]:
        """The mean; nothing is drawn where the term is not active."""
        total = torch.zeros_like(step.x)
        if not self.is_active(step.place):
            return total
        for _ in range(self.count // 2):
            move = self.std * step.randn_like(step.x.detach())
            total = total + self.term(self.moved(step, move)) + self.term(self.moved(step, -move))
        return total / self.count

    def moved(self, step: Step, move: Float[Tensor, "b c h w"]) -> Step:
        """The step as the term is shown it; moves are given in units of the noise."""
        of_image = expand(step.sigma / vp_scale(step.sigma), move) * move
        # with a graph the state is a leaf, by which the denoised image is differentiated
        x = step.x if self.wants_graph(step.place) else step.x + expand(step.sigma, move) * move
        return replace(step, x=x, shown=lambda denoised: step.shown(denoised) + of_image)
