"""Terms made of another term."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from robustguide.guidance.base import Guidance, Step
from robustguide.guidance.evaluations import Branch, Comparison
from robustguide.interfaces import Classifier, Denoiser, Place
from robustguide.noise import expand


class Combinator(Guidance):
    """A term made of another, of the same kind."""

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

    def differentiated(self) -> tuple[Classifier, ...]:
        """Those of the term."""
        return self.term.differentiated()

    def comparisons(self) -> tuple[Comparison, ...]:
        """Those of the term."""
        return self.term.comparisons()

    def check(self, denoiser: Denoiser) -> None:
        """As the term."""
        self.term.check(denoiser)

    def is_active(self, place: Place) -> bool:
        """Where the term is."""
        return self.term.is_active(place)

    def wants_graph(self, place: Place) -> bool:
        """Where the term does."""
        return self.term.wants_graph(place)

    def branches(self, y: Tensor, null: Tensor, place: Place) -> tuple[Branch, ...]:
        """Those of the term, where this is active."""
        return self.term.branches(y, null, place) if self.is_active(place) else ()

    def forward(self, step: Step) -> Float[Tensor, "b c h w"]:
        """The changed displacement; nothing is evaluated where the term is not active."""
        if not self.is_active(step.place):
            return torch.zeros_like(step.x)
        return self.change(step, self.term(step))

    @abstractmethod
    def change(
        self, step: Step, displacement: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """What becomes of the term's displacement."""


class Scaled(Combinator):
    """Multiplies a displacement. 0 is nothing, and costs nothing.

    Args:
        term: The term.
        scale: A number, or one for every row.
        weight: Instead of `scale`: the published convention in which 1 is the conditional model
            (DiT, EDM2); `scale = weight - 1`.

    Raises:
        ValueError: When not exactly one of scale and weight is given, or it is negative or not
            finite.
    """

    def __init__(
        self,
        term: Guidance,
        scale: float | Sequence[float] | None = None,
        weight: float | None = None,
    ) -> None:
        super().__init__(term)
        if (scale is None) == (weight is None):
            raise ValueError(
                "Give either scale (0 is no guidance) or weight (1 is no guidance), got "
                f"scale={scale} and weight={weight}."
            )
        if weight is not None:
            self.scales = tuple(value - 1 for value in at_least_zero("weight", weight))
        else:
            self.scales = at_least_zero("scale", scale)

    def comparisons(self) -> tuple[Comparison, ...]:
        """Those of the term, unless it is off."""
        return super().comparisons() if any(self.scales) else ()

    def is_active(self, place: Place) -> bool:
        """Whether any scale is not 0."""
        return any(self.scales) and super().is_active(place)

    def change(
        self, step: Step, displacement: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """The scale, of all rows or of each, times it."""
        if len(self.scales) == 1:
            return self.scales[0] * displacement
        if len(self.scales) != len(step.x):
            raise ValueError(
                f"{len(self.scales)} scales were given for a batch of {len(step.x)} rows; give "
                "one, or one for every row."
            )
        scales = torch.tensor(self.scales, dtype=step.x.dtype, device=step.x.device)
        return expand(scales, displacement) * displacement


def at_least_zero(what: str, given: float | Sequence[float] | None) -> tuple[float, ...]:
    """The number, or all of them.

    Raises:
        ValueError: For none, or one that is negative or not finite.
    """
    values = tuple(given) if isinstance(given, Sequence) else (given,)
    if not values or not all(value is not None and 0 <= value < math.inf for value in values):
        raise ValueError(
            f"A guidance {what} must be a finite number of at least 0, got {given}; scale 0 (or "
            "weight 1) switches the term off."
        )
    return tuple(value for value in values if value is not None)


class Within(Combinator):
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
        inside = place.sigma is None or self.sigma_min < place.sigma <= self.sigma_max
        return inside and super().is_active(place)

    def change(
        self, step: Step, displacement: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Itself inside the interval, 0 outside."""
        if step.place.sigma is not None:
            return displacement  # decided on the host, in float64
        inside = (step.sigma > self.sigma_min) & (step.sigma <= self.sigma_max)
        return expand(inside.to(displacement), displacement) * displacement


class WithinSteps(Combinator):
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
        return self.first <= place.index <= self.last and super().is_active(place)

    def change(
        self, step: Step, displacement: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Itself."""
        return displacement


class Channels(Combinator):
    """Moves the first channels only, as DiT's published sampler does with 3 of its 4.

    Args:
        term: The term.
        count: How many channels it moves.

    Raises:
        ValueError: For none.
    """

    def __init__(self, term: Guidance, count: int) -> None:
        super().__init__(term)
        if count < 1:
            raise ValueError(f"count is a number of channels, at least 1; got {count}.")
        self.count = count

    def change(
        self, step: Step, displacement: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """0 in the other channels."""
        moved = torch.zeros_like(displacement)
        moved[:, : self.count] = displacement[:, : self.count]
        return moved
