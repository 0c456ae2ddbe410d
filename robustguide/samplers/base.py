"""What all samplers share.

A sampler file is a step, a loop and a frozen dataclass that a configuration names. Coefficients
are float64 numbers on the host; the state is a tensor in `state_dtype`; the network has the dtype
that it likes.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustguide.guidance import Guidance, Guided
from robustguide.interfaces import Denoiser, Place
from robustguide.noise import Grid

RandnLike = Callable[[Tensor], Tensor]


class Observation(NamedTuple):
    """What a sampler shows of a step to one who watches.

    Attributes:
        place: Index, count and level of the step.
        x: State before the step.
        denoised: Clean image that the step goes towards, as far as the sampler moves it.
    """

    place: Place
    x: Float[Tensor, "b c h w"]
    denoised: Float[Tensor, "b c h w"]


Observe = Callable[[Observation], None]


@dataclass(frozen=True)
class Sampler:
    """Takes noise to images.

    Args:
        grid: Noise levels visited.
        clip: Bound of the denoised image, after reference terms and before score terms; null does
            not clip.
        state_dtype: Floating type of the state.
    """

    grid: Grid
    clip: float | None = None
    state_dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(
                f"clip must be a positive number or null, got {self.clip}; images lie in [-1, 1]."
            )

    def check(self, denoiser: Denoiser) -> None:
        """Refuses a denoiser that cannot be sampled so.

        Raises:
            ValueError: See the samplers.
        """

    def levels(self, denoiser: Denoiser) -> tuple[float, ...]:
        """The grid's levels as the denoiser knows them, descending; the last is the grid's."""
        snapped = (denoiser.snap(sigma) for sigma in self.grid.sigmas())
        return tuple(dict.fromkeys(snapped))  # neighbours may snap to one level: no step between

    def start(
        self, noise: Float[Tensor, "b c h w"], denoiser: Denoiser
    ) -> Float[Tensor, "b c h w"]:
        """First state, from unit noise, at the first level of the denoiser."""
        dtype: torch.dtype = getattr(torch, self.state_dtype)
        return self.grid.start(noise.to(dtype), self.levels(denoiser)[0])

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        terms: Mapping[str, Guidance] | None,
        x: Float[Tensor, "b c h w"],
        y: Int[Tensor, " b"],
        randn_like: RandnLike,
        observe: Observe | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Images of the classes y, in the dtype of the state.

        Args:
            denoiser: Unguided denoiser.
            terms: Guidance terms by name.
            x: First state, from `start`.
            y: Class indices.
            randn_like: Source of the unit noise of the steps.
            observe: Called once a step.

        Raises:
            ValueError: For a denoiser or term that cannot be combined with this sampler.
        """
        self.check(denoiser)
        guided = Guided(denoiser, terms, self.clip)
        sigmas = self.levels(denoiser)
        last = self.run(guided, sigmas, x, y, randn_like, observe or (lambda observation: None))
        return self.grid.finish(last, sigmas[-1])

    @abstractmethod
    def run(
        self,
        guided: Guided,
        sigmas: tuple[float, ...],
        x: Tensor,
        y: Tensor,
        randn_like: RandnLike,
        observe: Observe,
    ) -> Tensor:
        """The loop over descending levels, the last of which is 0 or the grid's last."""


def per_row(sigma: float, x: Tensor) -> Float[Tensor, " b"]:
    """The same level for every row, in the dtype of x."""
    return x.new_full((len(x),), sigma)
