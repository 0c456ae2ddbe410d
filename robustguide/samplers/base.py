"""What all samplers share.

A sampler file is a step, a loop and a frozen dataclass that a configuration names. Coefficients
are float64 numbers on the host; the state is a tensor in `state_dtype`; the network has the dtype
that it likes.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustguide.guidance import Guidance, Guided
from robustguide.interfaces import Denoiser, Place, RandnLike
from robustguide.noise import Grid


class Observation(NamedTuple):
    """What a sampler shows of a step to one who watches.

    Attributes:
        place: Index, count and level of the step.
        x: State before the step.
        denoised: Clean image that the step goes towards, as far as the sampler moves it.
        unguided: Clean image that the denoiser alone predicts at `x`, not clipped.
        moves: Displacements of the clean image by the reference terms and by the score terms, as
            far as the sampler asked for them at `x`.
    """

    place: Place
    x: Float[Tensor, "b c h w"]
    denoised: Float[Tensor, "b c h w"]
    unguided: Float[Tensor, "b c h w"]
    moves: tuple[Float[Tensor, "b c h w"], ...] = ()

    @property
    def displacement(self) -> Float[Tensor, "b c h w"]:
        """By all terms together, in units of x_0; no clipping is in it."""
        return sum(self.moves, torch.zeros_like(self.unguided))


Observe = Callable[[Observation], None]


@dataclass(frozen=True)
class Run:
    """One call of a sampler.

    Attributes:
        guided: What is sampled.
        sigmas: Levels, descending; the last is 0 or the grid's last.
        y: Class indices (b,).
        randn_like: Source of unit noise.
        observe: Called once a step, in its last repetition.
        memory: What the sampler remembers from step to step.
    """

    guided: Guided
    sigmas: tuple[float, ...]
    y: Int[Tensor, " b"]
    randn_like: RandnLike
    observe: Callable[[Place, Tensor, Tensor], None]
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.sigmas) - 1

    def levels(self, place: Place) -> tuple[float, float]:
        """Where a step starts and ends."""
        return self.sigmas[place.index], self.sigmas[place.index + 1]


@dataclass(frozen=True)
class Sampler:
    """Takes noise to images.

    Args:
        grid: Noise levels visited.
        clip: Bound of the denoised image, after reference terms and before score terms; null does
            not clip.
        state_dtype: Floating type of the state.
        repeats: How often each step is made, with its noise put back in between (self-recurrence);
            several numbers share the run evenly, from high noise to low. Bansal et al. (2023).

    Raises:
        ValueError: For a bound that is not positive, or fewer than one repetition.
    """

    grid: Grid
    clip: float | None = None
    state_dtype: Literal["float32", "float64"] = "float32"
    repeats: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        repeats = self.repeats if isinstance(self.repeats, tuple) else (self.repeats,)
        if not repeats or min(repeats) < 1:
            raise ValueError(
                f"repeats counts how often each step is made, at least 1; got {self.repeats}."
            )
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
        guided = Guided(denoiser, terms, self.clip, randn_like)
        run = Run(guided, self.levels(denoiser), y, randn_like, self._observer(observe, guided))
        for index, (sigma, sigma_next) in enumerate(pairwise(run.sigmas)):
            for repeat in range(self.repeated(index, run.steps)):
                if repeat:  # back up: the noise between the two levels is put back
                    x = x + math.sqrt(sigma**2 - sigma_next**2) * randn_like(x)
                x = self.step(run, x, Place(index, run.steps, sigma, repeat=repeat))
        return self.grid.finish(x, run.sigmas[-1])

    @abstractmethod
    def step(self, run: Run, x: Float[Tensor, "b c h w"], place: Place) -> Tensor:
        """From the state at a step's first level to that at its second."""

    def repeated(self, index: int, steps: int) -> int:
        """How often a step is made; a list is shared out as Bansal et al. (2023) do in code."""
        if isinstance(self.repeats, int):
            return self.repeats
        count = len(self.repeats)
        return self.repeats[count - 1 - count * (steps - 1 - index) // steps]

    def _observer(
        self, observe: Observe | None, guided: Guided
    ) -> Callable[[Place, Tensor, Tensor], None]:
        def show(place: Place, x: Tensor, denoised: Tensor) -> None:
            last = place.repeat == self.repeated(place.index, place.count) - 1
            if observe is not None and last:
                alone = denoised if guided.unguided is None else guided.unguided
                observe(Observation(place, x, denoised, alone, guided.moves))

        return show


def per_row(sigma: float, x: Tensor) -> Float[Tensor, " b"]:
    """The same level for every row, in the dtype of x."""
    return x.new_full((len(x),), sigma)
