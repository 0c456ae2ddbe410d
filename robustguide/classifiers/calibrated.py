"""A classifier whose logits are rescaled, so that its confidence is its accuracy at every level.

With a temperature T(sigma) > 0

    p(y | x, sigma) = softmax(logits / T)_y        grad (logits / T) = grad logits / T

T > 1 makes an overconfident classifier modest; the order of the classes stays. One temperature is
Guo et al. (2017), section 4.2, and so is vector scaling. A temperature that depends on the noise
level is ours: by band, or a smooth curve.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustguide.classifiers.wrappers import Wrapper
from robustguide.interfaces import Classifier
from robustguide.metrics import band_of


class Scaling(nn.Module):
    """Makes calibrated logits of logits; as it is built, it changes little or nothing.

    Attributes:
        num_classes: Number of logits; null for one that takes any.
    """

    num_classes: int | None = None

    @abstractmethod
    def forward(
        self, logits: Float[Tensor, "b k"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits in place of these, of images that came up at levels sigma; rows do not mix."""


class Tempering(Scaling):
    """Divides by a temperature of the noise level.

    Args:
        values: Positive temperatures at first, which are trained by their logarithms.

    Raises:
        ValueError: For a temperature that is not positive and finite.
    """

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        if not all(0 < value < math.inf for value in values):
            raise ValueError(
                f"Temperatures are positive and finite, got {list(values)}; 1 leaves the logits "
                "as they are."
            )
        self.logs = nn.Parameter(torch.tensor([math.log(value) for value in values]))

    @abstractmethod
    def temperature(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Temperature at each level."""

    def forward(
        self, logits: Float[Tensor, "b k"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits over the temperature of their level."""
        return logits / self.temperature(sigma)[:, None]


class Temperature(Tempering):
    """One temperature at all levels. Guo et al. (2017), eq. 9.

    Args:
        value: At first.

    Raises:
        ValueError: For a temperature that is not positive and finite.
    """

    def __init__(self, value: float = 1.0) -> None:
        super().__init__([value])

    def temperature(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The temperature."""
        return self.logs.exp().expand(len(sigma))


class BandTemperature(Tempering):
    """A temperature for each noise band (lo, hi], open at both ends. Ours.

    Args:
        edges: Levels between the bands, increasing; `len(edges) + 1` bands.
        values: Temperatures at first, one a band; null is 1.

    Raises:
        ValueError: For edges that are not positive and increasing, or another number of values.
    """

    def __init__(self, edges: Sequence[float], values: Sequence[float] | None = None) -> None:
        check_levels("edges", edges, at_least=1)
        super().__init__(initial(values, len(edges) + 1, "bands between its edges"))
        self.edges = tuple(edges)

    def temperature(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """That of the band of each level."""
        return self.logs.exp()[band_of(sigma, self.edges)]


class SmoothTemperature(Tempering):
    """log T as a natural cubic spline of the log-SNR, constant beyond the end knots. Ours.

    Args:
        knots: Noise levels that the spline is given at, increasing; at least two.
        values: Temperatures there at first; null is 1.

    Raises:
        ValueError: For knots that are not positive and increasing, or another number of values.
    """

    places: Tensor
    bends: Tensor

    def __init__(self, knots: Sequence[float], values: Sequence[float] | None = None) -> None:
        check_levels("knots", knots, at_least=2)
        super().__init__(initial(values, len(knots), "knots"))
        self.knots = tuple(knots)
        # log sigma in place of log-SNR = -2 log sigma: a factor changes no such spline
        places = np.log(np.array(knots, dtype=np.float64))
        bends = second_derivatives(places)
        self.register_buffer("places", torch.tensor(places.tolist()), persistent=False)
        self.register_buffer("bends", torch.tensor(bends.tolist()), persistent=False)

    def temperature(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """That of the spline; level 0 has the lowest knot's."""
        at_least_float = torch.promote_types(sigma.dtype, torch.float32)
        places = self.places.to(at_least_float)
        place = sigma.to(at_least_float).log().clamp(places[0], places[-1])
        low = torch.bucketize(place, places[1:-1])
        width = places[low + 1] - places[low]
        right = (place - places[low]) / width
        left = 1 - right
        # a sum and no matrix product, which autocast would round
        bends = (self.bends * self.logs).sum(-1)
        straight = left * self.logs[low] + right * self.logs[low + 1]
        bent = (left**3 - left) * bends[low] + (right**3 - right) * bends[low + 1]
        return (straight + bent * width**2 / 6).exp()


class VectorScaling(Scaling):
    """A factor and a shift for each class, the same at all levels. Guo et al. (2017), section 4.2.

    The order of the classes may change, and so may the accuracy.

    Args:
        num_classes: Number of logits.

    Raises:
        ValueError: For no classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"VectorScaling needs at least one class, got {num_classes}.")
        self.num_classes = num_classes
        self.factors = nn.Parameter(torch.ones(num_classes))
        self.shifts = nn.Parameter(torch.zeros(num_classes))

    def forward(
        self, logits: Float[Tensor, "b k"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Scaled and shifted logits."""
        return self.factors * logits + self.shifts


class Calibrated(Wrapper):
    """A classifier and a scaling of its logits, which is told the level that they came up at.

    Also where the classifier reads a predicted clean image, which it takes for one of level 0.
    Logits are scaled and answered in float32, or in a wider type of the classifier's own.

    Args:
        classifier: Any classifier.
        scaling: What becomes of its logits; null is one temperature, 1 at first.

    Raises:
        ValueError: For a scaling of another number of classes.
    """

    def __init__(self, classifier: Classifier, scaling: Scaling | None = None) -> None:
        super().__init__(classifier)
        self.scaling = Temperature() if scaling is None else scaling
        if self.scaling.num_classes not in (None, classifier.num_classes):
            raise ValueError(
                f"{type(self.scaling).__name__} scales {self.scaling.num_classes} classes, the "
                f"classifier has {classifier.num_classes}; give the scaling the latter."
            )

    def answered(
        self, logits: Float[Tensor, "b n"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Scaled logits."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scaled: Tensor = self.scaling(wide, sigma)
        return scaled


def check_levels(name: str, levels: Sequence[float], *, at_least: int) -> None:
    """Refuses a list of noise levels.

    Raises:
        ValueError: When they are too few, or not positive, finite and increasing.
    """
    are_levels = all(0 < level < math.inf for level in levels)
    if len(levels) < at_least or not are_levels or any(a >= b for a, b in pairwise(levels)):
        raise ValueError(
            f"{name} are noise levels, at least {at_least} of them, positive, finite and "
            f"increasing; got {list(levels)}."
        )


def initial(values: Sequence[float] | None, count: int, what: str) -> Sequence[float]:
    """One value for each, 1 where none were given."""
    if values is not None and len(values) != count:
        raise ValueError(
            f"values are one temperature for each of the {count} {what}, got {len(values)}; leave "
            "them out to begin with 1."
        )
    return [1.0] * count if values is None else values


def second_derivatives(places: np.ndarray) -> np.ndarray:
    """Matrix from a natural cubic spline's values at n places to its second derivatives there.

    They are 0 at both ends, and at the place between widths g and h

        g m_- + 2 (g + h) m + h m_+ = 6 ((v_+ - v) / h - (v - v_-) / g)
    """
    count, width = len(places), np.diff(places)
    system, slopes = np.eye(count), np.zeros((count, count))
    for i in range(1, count - 1):
        g, h = width[i - 1], width[i]
        system[i, i - 1 : i + 2] = g, 2 * (g + h), h
        slopes[i, i - 1 : i + 2] = 6 / g, -6 / g - 6 / h, 6 / h
    bends: np.ndarray = np.linalg.solve(system, slopes)
    return bends
