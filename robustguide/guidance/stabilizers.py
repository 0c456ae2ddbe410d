"""Gradients that remember those of the steps before. Vaeth et al. (2025).

For classifiers that were trained on clean images, whose gradients change their direction from step
to step: a running mean, or Adam's ratio of two of them. Both act on the gradient at x_t.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robustguide.guidance.base import Guidance, Step
from robustguide.guidance.normalization import OfGradient


class Mean(NamedTuple):
    """A running mean of gradients, or of their squares.

    Attributes:
        steps: How many they were.
        value: Their mean, begun at 0.
    """

    steps: int
    value: Float[Tensor, " b *axes"]


History = tuple[Mean, ...]


class Stabilizer(ABC):
    """Makes a sequence of gradients calmer; what it remembers is handed in and out."""

    @abstractmethod
    def __call__(
        self, gradient: Float[Tensor, " b *axes"], history: History = ()
    ) -> tuple[Float[Tensor, " b *axes"], History]:
        """The calmer gradient, and the history with this one; empty at first."""


@dataclass(frozen=True)
class EMA(Stabilizer):
    """Running mean, which begins at 0: of a constant gradient the k-th answer is 1 - decay**k.

    Args:
        decay: Share of the past, in [0, 1); 0 is the gradient itself.
        corrected: Divides by `1 - decay**k`, so that a constant gradient is answered by itself.

    Raises:
        ValueError: For a decay outside [0, 1).
    """

    decay: float = 0.9
    corrected: bool = False

    def __post_init__(self) -> None:
        check_decay("decay", self.decay)

    def __call__(
        self, gradient: Float[Tensor, " b *axes"], history: History = ()
    ) -> tuple[Float[Tensor, " b *axes"], History]:
        """The mean."""
        (before,) = history or (Mean(0, torch.zeros_like(gradient)),)
        steps = before.steps + 1
        mean = self.decay * before.value + (1 - self.decay) * gradient
        answer = mean / (1 - self.decay**steps) if self.corrected else mean
        return answer, (Mean(steps, mean),)


@dataclass(frozen=True)
class Adam(Stabilizer):
    """Running mean over the root of the running mean of squares, pixel by pixel.

    The answer does not depend on the size of the gradient, so that `scale` means another thing:
    a length of step for every pixel. Search it anew, and put `Scaled` around the stabilised term,
    not inside of it. Without correction the answers to a constant gradient are its sign times
    3.15, 4.24, 4.94, up to 6.56 at the 12th step and slowly back to 1, with the default decays.

    Args:
        beta_1: Decay of the mean, in [0, 1).
        beta_2: Decay of the mean square, in [0, 1).
        eps: Added to the root, in units of the gradient at x_t; smaller gradients fade.
        corrected: Divides both means by `1 - beta**k`.

    Raises:
        ValueError: For a decay outside [0, 1), or an eps that is not positive.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    eps: float = 1e-4
    corrected: bool = False

    def __post_init__(self) -> None:
        check_decay("beta_1", self.beta_1)
        check_decay("beta_2", self.beta_2)
        if not 0 < self.eps < math.inf:
            raise ValueError(
                f"eps keeps Adam from dividing by 0, a positive number; got {self.eps}."
            )

    def __call__(
        self, gradient: Float[Tensor, " b *axes"], history: History = ()
    ) -> tuple[Float[Tensor, " b *axes"], History]:
        """The ratio."""
        mean, means = self.running(self.beta_1)(gradient, history[:1])
        square, squares = self.running(self.beta_2)(gradient**2, history[1:])
        return mean / (square.sqrt() + self.eps), means + squares

    def running(self, decay: float) -> EMA:
        """One of the two means."""
        return EMA(decay, self.corrected)


@dataclass(frozen=True)
class InPlaceEMA(EMA):
    """For replays alone: the published code's corrected mean, whose history is divided as well.

    It divides the tensor in which it keeps the mean, so that every correction is made again and
    again, and the answers grow beyond the gradients. Use `EMA(corrected=True)`.

    Args:
        decay: Share of the past, in [0, 1).
    """

    corrected: bool = field(default=True, init=False)

    def __call__(
        self, gradient: Float[Tensor, " b *axes"], history: History = ()
    ) -> tuple[Float[Tensor, " b *axes"], History]:
        """The corrected mean, which becomes the history."""
        answer, (mean,) = super().__call__(gradient, history)
        return answer, (mean._replace(value=answer),)


@dataclass(frozen=True)
class InPlaceAdam(Adam):
    """For replays alone: the published code's corrected Adam, of two `InPlaceEMA`.

    Args:
        beta_1: Decay of the mean, in [0, 1).
        beta_2: Decay of the mean square, in [0, 1).
        eps: Added to the root.
    """

    corrected: bool = field(default=True, init=False)

    def running(self, decay: float) -> EMA:
        """One that divides its history."""
        return InPlaceEMA(decay)


class Stabilized(OfGradient):
    """Answers with a stabilised gradient.

    The history begins anew with every sampler call. Steps at which this term is not active leave
    it as it is. At a corrector's evaluation (`Heun`) it is blended with that gradient for the
    answer and not kept, so that a step counts once; a repeated step counts every time.

    Args:
        term: A score term.
        stabilizer: How.

    Raises:
        ValueError: For a reference term.
    """

    def __init__(self, term: Guidance, stabilizer: Stabilizer) -> None:
        super().__init__(term)
        self.stabilizer = stabilizer

    def turn(self, step: Step, gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The stabilised gradient; the history moves on where the sampler does."""
        memory = step.own(self)
        answer, history = self.stabilizer(gradient, memory.get("history", ()))
        if not step.place.corrector:
            memory["history"] = history
        return answer


def check_decay(name: str, value: float) -> None:
    """Refuses a share that is none.

    Raises:
        ValueError: Outside [0, 1).
    """
    if not 0 <= value < 1:
        raise ValueError(
            f"{name} is the share of the past in a running mean, in [0, 1), got {value}; 0 "
            "remembers nothing."
        )
