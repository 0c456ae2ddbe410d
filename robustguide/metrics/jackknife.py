"""How far chance moves a number that is computed from many images at once.

The delete-group jackknife: leave out one of g groups of images, compute the number from the rest,
and so for each group. The spread of these g numbers, the replicates, tells the standard error:

    se^2 = (g - 1) / g sum_i (t_i - mean t)^2        (Efron and Tibshirani, 1993, eq. 11.5)

It needs no distribution and no second set of images, and additive sums make it cheap. The chance
it tells of is that of the sampled images; the reference is taken as it is. Parts of a number that
are quadratic in the images' chance count twice, so the error is never too small on average (Efron
and Stein, 1981), and about sqrt 2 too large for a distance whose true value is near 0.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from scipy.special import stdtrit
from torch import Tensor

GROUPS = 20


def groups_of(seeds: Int[Tensor, " n"], count: int = GROUPS) -> Int[Tensor, " n"]:
    """Group of each image, 0 to `count` - 1, from its seed: equally many seeds in each.

    The order is that of a hash, so a group does not depend on the class, which often is the seed
    modulo something. Two sets of the same seeds have the same groups, in whatever order and on
    whatever machine; images of one seed are in one group. With fewer seeds than groups, there are
    as many groups as seeds.

    Raises:
        ValueError: For less than one group, or no seeds.
    """
    if count < 1 or len(seeds) == 0:
        raise ValueError(
            f"Got {len(seeds)} images to put into {count} groups; give at least one of each."
        )
    hashed = _splitmix64(seeds.cpu().long().numpy().view(np.uint64))
    unique, place = np.unique(hashed, return_inverse=True)
    count = min(count, len(unique))
    return torch.from_numpy(place.reshape(-1).astype(np.int64) * count // len(unique))


def _splitmix64(numbers: np.ndarray) -> np.ndarray:
    """Steele, Lea and Flood (2014): scatters 64-bit integers, each to another; wraps around."""
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True)
class Jackknife:
    """A number with its replicates.

    Attributes:
        value: From all images.
        replicates: From all but group 0, 1, ...; at least two.
    """

    value: float
    replicates: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = self.value, *self.replicates
        if len(self.replicates) < 2 or not all(map(math.isfinite, numbers)):
            raise ValueError(
                f"Got the value {self.value} and {len(self.replicates)} replicates, of which "
                f"{sum(map(math.isfinite, self.replicates))} are finite; a standard error needs "
                "at least two, and finite ones. Give more images or mend the features."
            )

    def standard_error(self) -> float:
        """See the module."""
        g = len(self.replicates)
        return math.sqrt((g - 1) ** 2 / g) * float(np.std(self.replicates, ddof=1))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Limits of the expected number at this n; Student's t with g - 1 degrees of freedom."""
        half = reach(level, len(self.replicates) - 1) * self.standard_error()
        return self.value - half, self.value + half

    def excludes(self, value: float = 0.0, level: float = 0.95) -> bool:
        """Whether the interval does not hold a value: of a difference, that it is real."""
        low, high = self.interval(level)
        return not low <= value <= high


def difference(a: Jackknife, b: Jackknife) -> Jackknife:
    """The difference a - b, paired: what one group has in common on both sides cancels.

    Both must have groups of the same seeds; of other seeds, their variances add instead.

    Raises:
        ValueError: For two numbers of groups.
    """
    if len(a.replicates) != len(b.replicates):
        raise ValueError(
            f"One side has {len(a.replicates)} groups, the other {len(b.replicates)}; measure "
            "both with the same number of groups and the same seeds."
        )
    pairs = zip(a.replicates, b.replicates, strict=True)
    return Jackknife(a.value - b.value, tuple(x - y for x, y in pairs))


def reach(level: float, degrees: int) -> float:
    """Half width of a two-sided interval in standard errors."""
    return float(stdtrit(degrees, (1 + level) / 2))
