"""Guidance that moves the state of EDM's sampler itself, as Ma et al. (2023) publish it.

    x + s_i rms(x) d / rms(d)

d is the displacement by the score terms at x, before churn. With n steps and i from 0,

    s_i = max(strength (n + 1 - i) / (n + 1), 1e-5) + strength add sin(pi i / n)

This is no displacement of the denoised image: it does not shrink with the noise of itself.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robustguide.guidance.pairs import rms, unit
from robustguide.interfaces import Place
from robustguide.noise import expand
from robustguide.samplers.base import Run, per_row

LEAST = 1e-5  # EDM/generate.py of AlexMaOLS/EluCD


@dataclass(frozen=True)
class Nudge:
    """Moves the state once a step by a share of its own size. Ma et al. (2023), Alg. 2.

    Only the direction of the score terms counts, so that their scales only weigh them against one
    another. Their view is `AtNormalizedState` in the published code, which this follows.

    Args:
        strength: Root mean square of the first nudge, relative to that of the state; 0 asks for
            nothing.
        add: Share of the strength that a half wave adds in the middle of the run.

    Raises:
        ValueError: For a negative number, or one that is not finite.
    """

    strength: float = 0.004
    add: float = 0.3

    def __post_init__(self) -> None:
        if not (0 <= self.strength < math.inf and 0 <= self.add < math.inf):
            raise ValueError(
                "A nudge needs strength and add, finite numbers of at least 0, got "
                f"{self.strength} and {self.add}; strength 0 moves nothing."
            )

    def size(self, place: Place) -> float:
        """Root mean square of a step's nudge, relative to that of the state."""
        if self.strength == 0:
            return 0.0
        levels = place.count + 1  # the published code counts the final 0
        falling = max(self.strength * (levels - place.index) / levels, LEAST)
        wave = math.sin(math.pi * place.index / place.count)
        return falling + self.strength * self.add * wave

    def __call__(
        self, run: Run, x: Float[Tensor, "b c h w"], place: Place
    ) -> Float[Tensor, "b c h w"]:
        """What a state at the start of a step is moved by; 0 where the terms do not move it."""
        size = self.size(place)
        if size == 0:
            return torch.zeros_like(x)
        sigma = per_row(run.levels(place)[0], x)
        direction = unit(run.guided.displaced(x, sigma, run.y, place))
        return expand(size * rms(x), x) * direction
