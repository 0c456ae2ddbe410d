"""What of the logits is increased.

    joint * f_y - log sum_i exp(marginal * f_i)

With joint = marginal = 1 it is log p(y | x). Temperatures multiply logits here, as they do in
Ma et al. (2023), eq. 4. They weigh two gradients, that of log p(x, y) and that of log p(x).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Objective(ABC):
    """A number for each row, whose gradient guides."""

    @abstractmethod
    def __call__(self, logits: Float[Tensor, "b k"], y: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Of logits and labels, in float32 at least."""


@dataclass(frozen=True)
class Tempered(Objective):
    """Log-probability with a temperature for each of its two parts. Ma et al. (2023), eq. 4.

    Logits are taken as they are: with other temperatures than joint = marginal, a shift of all
    logits changes the gradient.

    Args:
        joint: Multiplies the logit of the label; `tau_1`.
        marginal: Multiplies the logits in the normaliser; `tau_2`. 0 leaves the logit alone,
            save for the constant log k.

    Raises:
        ValueError: For a temperature that is negative or not finite, or a joint one of 0.
    """

    joint: float = 1.0
    marginal: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.joint < math.inf and 0 <= self.marginal < math.inf):
            raise ValueError(
                "Temperatures multiply logits: joint must be positive, marginal at least 0; got "
                f"joint={self.joint} and marginal={self.marginal}. 1 and 1 is log p(y | x)."
            )

    def __call__(self, logits: Float[Tensor, "b k"], y: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The weighted difference; finite for any finite logits."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        of_label = logits.gather(-1, y[:, None])[:, 0]
        if self.marginal == 0:
            return self.joint * of_label - math.log(logits.shape[-1])
        return self.joint * of_label - (self.marginal * logits).logsumexp(-1)


class RawLogit(Tempered):
    """The logit of the label alone, `log p(x, y)` up to a constant. Vaeth et al. (2025)."""

    def __init__(self) -> None:
        super().__init__(1.0, 0.0)
