"""Terms made of another term."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from robustguide.guidance.base import Branch, Guidance, Step
from robustguide.interfaces import Classifier, Place
from robustguide.noise import expand


class _Combinator(Guidance):
    """Hands on what kind of term it holds."""

    def __init__(self, term: Guidance) -> None:
        super().__init__()
        self.term = term
        self.moves_denoised = term.moves_denoised
        self.needs_graph = term.needs_graph
        self.num_classes = term.num_classes
        self.class_names = term.class_names

    def classifiers(self) -> tuple[Classifier, ...]:
        """Those of the term."""
        return self.term.classifiers()

    @abstractmethod
    def is_active(self, place: Place) -> bool:
        """Whether any row can be moved here, as far as the host knows."""

    def branches(self, y: Tensor, null: Tensor, place: Place) -> tuple[Branch, ...]:
        """Those of the term, where it is active."""
        return self.term.branches(y, null, place) if self.is_active(place) else ()

    def forward(self, step: Step) -> Float[Tensor, "b c h w"]:
        """The weighted displacement; nothing is evaluated where the term is not active."""
        if not self.is_active(step.place):
            return torch.zeros_like(step.x)
        weight = self.weight(step)
        displacement: Tensor = self.term(step)
        return (expand(weight, step.x) if isinstance(weight, Tensor) else weight) * displacement

    @abstractmethod
    def weight(self, step: Step) -> float | Float[Tensor, " b"]:
        """What multiplies the displacement, of all rows or of each."""


class Scaled(_Combinator):
    """Multiplies a displacement. 0 is nothing, and costs nothing.

    Args:
        term: The term.
        scale: A number, or one for every row.
        weight: Instead of `scale`: the published convention in which 1 is the conditional model
            (DiT, EDM2); `scale = weight - 1`.

    Raises:
        ValueError: When not exactly one of scale and weight is given, or it is not finite.
    """

    def __init__(
        self,
        term: Guidance,
        scale: float | Sequence[float] | None = None,
        weight: float | None = None,
    ) -> None:
        super().__init__(term)
        if weight is not None and scale is None:
            scale = weight - 1
        elif scale is None or weight is not None:
            raise ValueError(
                "Give either scale (0 is no guidance) or weight (1 is no guidance), got "
                f"scale={scale} and weight={weight}."
            )
        self.scales = tuple(scale) if isinstance(scale, Sequence) else (scale,)
        if not self.scales or not all(math.isfinite(value) for value in self.scales):
            raise ValueError(
                "A guidance scale must be a finite number, got "
                f"{scale if weight is None else weight}; 0 switches the term off."
            )

    def is_active(self, place: Place) -> bool:
        """Whether any scale is not 0."""
        return any(self.scales)

    def weight(self, step: Step) -> float | Float[Tensor, " b"]:
        """The scale, of all rows or of each."""
        if len(self.scales) == 1:
            return self.scales[0]
        if len(self.scales) != len(step.x):
            raise ValueError(
                f"{len(self.scales)} scales were given for a batch of {len(step.x)} rows; give "
                "one, or one for every row."
            )
        return torch.tensor(self.scales, dtype=step.x.dtype, device=step.x.device)


class Within(_Combinator):
    """Limits a term to an interval of noise, (sigma_min, sigma_max]. Kynkaanniemi et al. (2024).

    Args:
        term: The term.
        sigma_min: Lower end, not included.
        sigma_max: Upper end, included.

    Raises:
        ValueError: For an empty interval.
    """

    def __init__(
        self, term: Guidance, sigma_min: float = 0.0, sigma_max: float = math.inf
    ) -> None:
        super().__init__(term)
        if not 0 <= sigma_min < sigma_max:
            raise ValueError(
                f"Within needs 0 <= sigma_min < sigma_max, got {sigma_min} and {sigma_max}."
            )
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def is_active(self, place: Place) -> bool:
        """Whether the sampler's level lies inside; where every row has its own, perhaps."""
        return place.sigma is None or self.sigma_min < place.sigma <= self.sigma_max

    def weight(self, step: Step) -> float | Float[Tensor, " b"]:
        """1 inside the interval, 0 outside."""
        if step.place.sigma is not None:
            return 1.0  # decided on the host, in float64
        inside = (step.sigma > self.sigma_min) & (step.sigma <= self.sigma_max)
        return inside.to(step.x)


class WithinSteps(_Combinator):
    """Limits a term to steps of the sampler, both ends included, as the published code does.

    Unlike `Within`, it decides once for both evaluations of a Heun step, and means other levels
    with another grid. Kynkaanniemi et al. (2024).

    Args:
        term: The term.
        first: First step with the term, from 0.
        last: Last step with the term; one before `first` is no step at all.

    Raises:
        ValueError: For a negative `first`.
    """

    def __init__(self, term: Guidance, first: int, last: int) -> None:
        super().__init__(term)
        if first < 0:
            raise ValueError(f"Steps count from 0, got first={first}.")
        self.first, self.last = first, last

    def is_active(self, place: Place) -> bool:
        """Whether the step is one of them."""
        return self.first <= place.index <= self.last

    def weight(self, step: Step) -> float | Float[Tensor, " b"]:
        """1: `forward` is called in active steps only."""
        return 1.0
