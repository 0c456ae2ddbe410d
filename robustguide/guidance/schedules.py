"""How often and how much a term acts in the course of a run, by the steps of the sampler."""

import math

from jaxtyping import Float
from torch import Tensor

from robustguide.guidance.base import Guidance, Step
from robustguide.guidance.combinators import Combinator
from robustguide.interfaces import Place


class EveryKth(Combinator):
    """A term in the first step and in every k-th one after it. Ours, for terms that cost much.

    Both evaluations of a Heun step are one step. Its effect is about 1 / k of the term's; a scale
    of k makes up for that.

    Args:
        term: The term.
        every: k; 1 is every step.

    Raises:
        ValueError: For a number below 1.
    """

    def __init__(self, term: Guidance, every: int) -> None:
        super().__init__(term)
        if every < 1:
            raise ValueError(f"every counts steps, at least 1; got {every}. 1 is every step.")
        self.every = every

    def is_active(self, place: Place) -> bool:
        """Whether the step is one of them."""
        return place.index % self.every == 0 and super().is_active(place)

    def change(
        self, step: Step, displacement: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Itself."""
        return displacement


class SineSchedule(Combinator):
    """Multiplies a displacement by `1 + gamma sin(pi k / n)`, k = n - 1, ..., 0 in n steps.

    Ours: the counterpart of `robustguide.samplers.Sine` for samplers without a variance. There a
    score moves the mean by `Sigma_k + gamma Sigma_n sin(pi k / n)`, which is its displacement
    times `1 + gamma (Sigma_n / Sigma_k) sin(pi k / n)`. Other samplers have no Sigma_k, so this
    leaves the quotient out. On ADM's linear chain in 250 steps it is 1 at first, 1.6 in the middle
    and 4 at k = 62: there the same gamma adds less than in `Sine`.

    Args:
        term: The term.
        gamma: What is added in the middle of the run, relative to the term.

    Raises:
        ValueError: For a negative gamma, or one that is not finite.
    """

    def __init__(self, term: Guidance, gamma: float) -> None:
        super().__init__(term)
        if not 0 <= gamma < math.inf:
            raise ValueError(
                f"gamma must be a finite number of at least 0, got {gamma}; 0 is the term itself."
            )
        self.gamma = gamma

    def change(
        self, step: Step, displacement: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Times the factor of the step."""
        index, count = step.place.index, step.place.count
        return (1 + self.gamma * math.sin(math.pi * (count - 1 - index) / count)) * displacement
