"""The noise levels that samplers visit."""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from robustguide.noise.levels import DiscreteLevels
from robustguide.noise.times import VPTime, vp_time


class Grid(ABC):
    """The noise levels that a sampler visits, and the noise that its family starts from."""

    @abstractmethod
    def sigmas(self) -> tuple[float, ...]:
        """Levels in descending order; the last is 0 unless the grid says otherwise."""

    @abstractmethod
    def start(self, noise: Float[Tensor, " b *axes"], sigma: float) -> Float[Tensor, " b *axes"]:
        """Turns unit noise into the first state, at the first level as the denoiser knows it."""

    def finish(self, x: Float[Tensor, " b *axes"], sigma: float) -> Float[Tensor, " b *axes"]:
        """What the last state means, at the last level; at level 0 it is the image itself."""
        return x


@dataclass(frozen=True)
class RhoGrid(Grid):
    """Levels equally spaced in `sigma**(1/rho)`. Karras et al. (2022), eq. 5.

    Args:
        steps: Number of steps; 0 is appended after them.
        sigma_min: Last level before 0.
        sigma_max: First level.
        rho: Positive; 7 spends more steps at low noise, 1 is linear in sigma.

    Raises:
        ValueError: For other numbers.
    """

    steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if self.steps < 2 or not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"RhoGrid needs at least 2 steps and 0 < sigma_min < sigma_max, got {self}."
            )
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho must be a positive number, got {self.rho}; 7 is usual.")

    def sigmas(self) -> tuple[float, ...]:
        """Levels in descending order; the last is 0."""
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        ramp = [high + i / (self.steps - 1) * (low - high) for i in range(self.steps)]
        return (*(root**self.rho for root in ramp), 0.0)

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """`sigma` times unit noise, as EDM starts."""
        return noise * sigma


@dataclass(frozen=True)
class ExponentialGrid(Grid):
    """Levels equally spaced in log sigma, the limit of `RhoGrid` for large rho.

    Args:
        steps: Number of steps; 0 is appended after them.
        sigma_min: Last level before 0.
        sigma_max: First level.

    Raises:
        ValueError: For other numbers.
    """

    steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if self.steps < 2 or not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                "ExponentialGrid needs at least 2 steps and 0 < sigma_min < sigma_max, got "
                f"{self}."
            )

    def sigmas(self) -> tuple[float, ...]:
        """Levels in descending order; the last is 0."""
        ramp = [i / (self.steps - 1) for i in range(self.steps)]
        return (*(self.sigma_max ** (1 - u) * self.sigma_min**u for u in ramp), 0.0)

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """`sigma` times unit noise, as EDM starts."""
        return noise * sigma


def respaced(length: int, spacing: str) -> list[int]:
    """Indices of the full chain that a shorter run visits, ascending.

    Args:
        length: Number of entries of the full chain.
        spacing: "250" spreads so many steps over the chain, end to end; "10,20,30" does so in
            as many equal sections; "ddim25" takes a constant integer stride from 0.

    Raises:
        ValueError: When the chain cannot be divided so.
    """
    if not re.fullmatch(r"ddim\d+|\d+(\s*,\s*\d+)*", spacing):
        raise ValueError(
            f"Spacing {spacing!r} is not understood; give a number of levels such as '250', one "
            "for each section such as '10,20,30', or a stride's such as 'ddim25'."
        )
    if spacing.startswith("ddim"):
        return _strided(length, int(spacing.removeprefix("ddim")))
    counts = [int(count) for count in spacing.split(",")]
    size, extra = divmod(length, len(counts))
    chosen, start = [], 0
    for section, count in enumerate(counts):
        width = size + (section < extra)
        if not 1 <= count <= width or (count == 1 and width > 1 and len(counts) == 1):
            raise ValueError(
                f"Spacing {spacing!r} asks for {count} of {width} levels; give between 2 and "
                f"{width}."
            )
        stride = (width - 1) / (count - 1) if count > 1 else 1.0
        chosen += [start + round(stride * index) for index in range(count)]
        start += width
    return chosen


def _strided(length: int, count: int) -> list[int]:
    for stride in range(1, length):
        if len(range(0, length, stride)) == count:
            return list(range(0, length, stride))
    raise ValueError(
        f"No integer stride visits {count} of {length} levels; 'ddim' spacings need a count such "
        "as 25, 50 or 100 of 1000."
    )


@dataclass(frozen=True)
class ChainGrid(Grid):
    """Levels of a discrete chain, all or some of them.

    Args:
        levels: The full chain.
        spacing: See `respaced`; null visits every level.
    """

    levels: DiscreteLevels
    spacing: str | None = None

    def __post_init__(self) -> None:
        self.indices()

    def indices(self) -> list[int]:
        """Visited entries of the full table, ascending."""
        length = len(self.levels)
        return list(range(length)) if self.spacing is None else respaced(length, self.spacing)

    def sigmas(self) -> tuple[float, ...]:
        """Levels in descending order; the last is 0."""
        return (*self.levels.sigmas[self.indices()[::-1]].tolist(), 0.0)

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """`sqrt(1 + sigma**2)` times unit noise: x_T is unit noise, as the chain starts."""
        return noise * math.sqrt(1 + sigma**2)


@dataclass(frozen=True)
class StridedGrid(Grid):
    """Every so many entries of a chain, as the schedulers of `diffusers` space them.

    The stride is `T // steps`. Lin et al. (2024), table 2, call `offset` 0 or 1 "leading", and
    `T // steps - 1`, which starts at the last entry, "trailing".

    Args:
        levels: The full chain.
        steps: Number of steps.
        offset: Lowest entry visited.
        ends_in_table: The last step goes to the chain's first level rather than to 0, as Stable
            Diffusion's does (`set_alpha_to_one: false`); what comes out is noisy by that much.

    Raises:
        ValueError: When the chain has no such entries.
    """

    levels: DiscreteLevels
    steps: int = 50
    offset: int = 0
    ends_in_table: bool = False

    def __post_init__(self) -> None:
        length = len(self.levels)
        if not 1 <= self.steps <= length or not 0 <= self.offset < length:
            raise ValueError(
                f"steps={self.steps} from offset={self.offset} do not fit a chain of {length} "
                f"entries; give 1 to {length} steps."
            )
        if (highest := self.indices()[-1]) >= length:
            raise ValueError(
                f"steps={self.steps} from offset={self.offset} reach entry {highest}, but the "
                f"last of the chain is {length - 1}; give fewer steps or a smaller offset."
            )

    def indices(self) -> list[int]:
        """Visited entries of the full table, ascending."""
        stride = len(self.levels) // self.steps
        return [self.offset + stride * step for step in range(self.steps)]

    def finish(self, x: Float[Tensor, " b *axes"], sigma: float) -> Float[Tensor, " b *axes"]:
        """The chain's own unit, `x / sqrt(1 + sigma**2)`."""
        return x / math.sqrt(1 + sigma**2)

    def sigmas(self) -> tuple[float, ...]:
        """Levels in descending order; the last is 0, or the chain's first level."""
        visited = self.levels.sigmas[self.indices()[::-1]].tolist()
        last = float(self.levels.sigmas[0]) if self.ends_in_table else 0.0
        return (*visited, last) if visited[-1] != last else tuple(visited)

    def start(self, noise: Float[Tensor, " b *axes"], sigma: float) -> Float[Tensor, " b *axes"]:
        """`sqrt(1 + sigma**2)` times unit noise, as the chain starts."""
        return noise * math.sqrt(1 + sigma**2)


@dataclass(frozen=True)
class TableGrid(Grid):
    """Entries of a chain's table between two levels, equally spaced by their indices.

    The iDDPM discretisation of Karras et al. (2022), table 1, where the table is the cosine chain.

    Args:
        levels: The full chain.
        steps: Number of steps; 0 is appended after them.
        sigma_min: Lowest level that may be visited.
        sigma_max: Highest level that may be visited.

    Raises:
        ValueError: When the chain has not so many levels in this range.
    """

    levels: DiscreteLevels
    steps: int = 256
    sigma_min: float = 0.002
    sigma_max: float = 81.0

    def __post_init__(self) -> None:
        count = len(self.allowed())
        if not 2 <= self.steps <= count:
            raise ValueError(
                f"TableGrid cannot take {self.steps} steps: the chain has {count} levels in "
                f"[{self.sigma_min}, {self.sigma_max}]. Give at least 2 steps and at most as many "
                "as it has levels there."
            )

    def allowed(self) -> list[float]:
        """The chain's levels in the range, descending."""
        descending = self.levels.sigmas[::-1].tolist()
        return [sigma for sigma in descending if self.sigma_min <= sigma <= self.sigma_max]

    def sigmas(self) -> tuple[float, ...]:
        """Levels in descending order; the last is 0."""
        allowed = self.allowed()
        stride = (len(allowed) - 1) / (self.steps - 1)
        return (*(allowed[round(stride * i)] for i in range(self.steps)), 0.0)

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """`sigma` times unit noise, as EDM starts."""
        return noise * sigma


@dataclass(frozen=True)
class VPGrid(Grid):
    """Levels equally spaced in the time of the continuous variance-preserving process.

    Karras et al. (2022), table 1, column "VP".

    Args:
        steps: Number of steps; 0 is appended after them.
        sigma_min: Level at time `epsilon`, the last before 0; the default is that of
            `VPTime(19.9, 0.1)`.
        sigma_max: Level at time 1; likewise.
        epsilon: Last time before 0.

    Raises:
        ValueError: For fewer than 2 steps, or levels that no such process connects.
    """

    steps: int = 256
    sigma_min: float = VPTime().sigma(1e-3)
    sigma_max: float = VPTime().sigma(1.0)
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"VPGrid needs at least 2 steps, got {self.steps}.")
        vp_time(self.sigma_min, self.sigma_max, self.epsilon)

    def sigmas(self) -> tuple[float, ...]:
        """Levels in descending order; the last is 0."""
        time = vp_time(self.sigma_min, self.sigma_max, self.epsilon)
        ramp = [1 + i / (self.steps - 1) * (self.epsilon - 1) for i in range(self.steps)]
        return (*(time.sigma(t) for t in ramp), 0.0)

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """`sigma` times unit noise, as EDM starts."""
        return noise * sigma
