"""The one noise coordinate, and everything that knows how it relates to others.

Outside `nets/` a noisy image is `x = x_0 + sigma * eps`, with images in [-1, 1]. The discrete
variance-preserving chain of Ho et al. (2020) is a change of units:

    alpha_bar = 1 / (1 + sigma**2)                1 - alpha_bar = sigma**2 * alpha_bar
    x_t = x / sqrt(1 + sigma**2)

Tables and grids are float64 on the host, so that no loop over noise levels waits for a device.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Gives per-example values (b,) trailing axes, so that they multiply a tensor (b, ...)."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def alpha_bar_of(sigma: float) -> float:
    """Signal power of the variance-preserving chain at a noise level."""
    return 1 / (1 + sigma**2)


def sigma_of(alpha_bar: float) -> float:
    """Noise level of a point of the variance-preserving chain, alpha_bar in (0, 1]."""
    return math.sqrt((1 - alpha_bar) / alpha_bar)


def vp_scale(sigma: Tensor) -> Tensor:
    """`sqrt(1 + sigma**2)`: divides x to give x_t, multiplies a radius of x_t to give ours."""
    return (1 + sigma**2).sqrt()


def perturb(
    x_0: Float[Tensor, " b *axes"], sigma: Float[Tensor, " b"], noise: Float[Tensor, " b *axes"]
) -> Float[Tensor, " b *axes"]:
    """Adds unit noise at a level of its own for every example."""
    return x_0 + expand(sigma, x_0) * noise


def finest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Unit normal noise on the device of x, from a generator of that device or the global one."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


class Levels(ABC):
    """What a network of the variance-preserving family is told in place of sigma."""

    @abstractmethod
    def t(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Time of a noise level, as float32."""

    @abstractmethod
    def snap(self, sigma: float) -> float:
        """The nearest level that a network was told of in training; 0 stays 0."""


class DiscreteLevels(Levels):
    """The noise levels of a discrete chain, and the way back from a level to its index.

    Args:
        betas: Variances added at the T steps of the variance-preserving chain, each in (0, 1).
        interpolated: Between two entries, t is interpolated in log sigma; otherwise the entry
            with the nearest sigma is taken, as Karras et al. (2022), appendix C.3.4, do.

    Raises:
        ValueError: For a beta outside (0, 1).
    """

    def __init__(self, betas: Sequence[float], interpolated: bool = False) -> None:
        table = np.asarray(betas, dtype=np.float64)
        if table.ndim != 1 or not len(table) or not ((table > 0) & (table < 1)).all():
            raise ValueError(
                f"betas must be a list of numbers in (0, 1), got {len(table)} between "
                f"{table.min(initial=np.inf)} and {table.max(initial=-np.inf)}; "
                "give the variances of the chain, not alpha_bar."
            )
        self.betas = table
        self.interpolated = interpolated
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @cached_property
    def alpha_bars(self) -> NDArray[np.float64]:
        """Cumulative products, float64 (T,)."""
        return np.cumprod(1 - self.betas, dtype=np.float64)

    @cached_property
    def sigmas(self) -> NDArray[np.float64]:
        """Noise levels, ascending, float64 (T,)."""
        return np.sqrt((1 - self.alpha_bars) / self.alpha_bars, dtype=np.float64)

    def __len__(self) -> int:
        return len(self.betas)

    def snap(self, sigma: float) -> float:
        """The table's nearest level; 0 stays 0. Identity for interpolated levels."""
        if self.interpolated or sigma == 0:
            return sigma
        return float(self.sigmas[np.abs(self.sigmas - sigma).argmin()])

    def t(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Index into the table, as float32; clamped to its ends, so that sigma 0 is t 0."""
        sigmas, log_sigmas = self.tables(sigma.device)
        table, place = sigmas, sigma.to(sigmas.dtype)
        if self.interpolated:
            table, place = log_sigmas, place.log()
        place = place.clamp(table[0], table[-1])
        above = torch.searchsorted(table, place).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        fraction = (place - low) / (high - low)
        if not self.interpolated:
            fraction = (fraction > 0.5).to(fraction)
        return (above - 1 + fraction).float()

    def tables(self, device: torch.device) -> tuple[Float[Tensor, " t"], Float[Tensor, " t"]]:
        """Levels and log levels on a device, copied there once; see `finest`."""
        if device not in self._tables:
            self._tables[device] = (
                torch.tensor(self.sigmas.tolist(), dtype=finest(device), device=device),
                torch.tensor(np.log(self.sigmas).tolist(), dtype=finest(device), device=device),
            )
        return self._tables[device]


def linear_levels(steps: int = 1000, interpolated: bool = False) -> DiscreteLevels:
    """Betas from 1e-4 to 0.02 in equal steps, rescaled to T steps. Ho et al. (2020), section 4."""
    return DiscreteLevels(
        np.linspace(1e-4, 0.02, steps).dot(1000 / steps).tolist(), interpolated=interpolated
    )


def scaled_linear_levels(
    steps: int = 1000, first: float = 0.00085, last: float = 0.012, interpolated: bool = False
) -> DiscreteLevels:
    """Betas whose roots are equally spaced; the defaults are Stable Diffusion's.

    Rombach et al. (2022) give no formula; the numbers are those of their published models.
    """
    betas = np.linspace(math.sqrt(first), math.sqrt(last), steps) ** 2
    return DiscreteLevels(betas.tolist(), interpolated=interpolated)


def cosine_levels(steps: int = 1000, interpolated: bool = False) -> DiscreteLevels:
    """Squared-cosine alpha_bar, betas at most 0.999. Nichol and Dhariwal (2021), eq. 17."""

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [
        min(1 - alpha_bar((t + 1) / steps) / alpha_bar(t / steps), 0.999) for t in range(steps)
    ]
    return DiscreteLevels(betas, interpolated=interpolated)


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


class Time(ABC):
    """A time that noise grows in, from 0 at sigma 0; what the steps of an ODE solver count."""

    @abstractmethod
    def sigma(self, t: float) -> float:
        """Noise level at a time."""

    @abstractmethod
    def t(self, sigma: float) -> float:
        """Time of a noise level."""

    @abstractmethod
    def rate(self, t: float) -> float:
        """Derivative of sigma(t), t > 0."""


@dataclass(frozen=True)
class LinearTime(Time):
    """Time is sigma itself. Karras et al. (2022), table 1, column "Ours"."""

    def sigma(self, t: float) -> float:
        """`t`."""
        return t

    def t(self, sigma: float) -> float:
        """`sigma`."""
        return sigma

    def rate(self, t: float) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class RootTime(Time):
    """Variance grows at a constant rate. Karras et al. (2022), table 1, column "VE"."""

    def sigma(self, t: float) -> float:
        """`sqrt(t)`."""
        return math.sqrt(t)

    def t(self, sigma: float) -> float:
        """`sigma**2`."""
        return sigma**2

    def rate(self, t: float) -> float:
        """`1 / (2 sqrt(t))`."""
        return 0.5 / math.sqrt(t)


Real = TypeVar("Real", float, Tensor)


@dataclass(frozen=True)
class VPTime(Time):
    """The continuous variance-preserving process. Karras et al. (2022), table 1, column "VP".

    `1 + sigma(t)**2 = exp(beta_d t**2 / 2 + beta_min t)`, with t from 0 to 1.

    Args:
        beta_d: Growth of beta from t = 0 to t = 1, positive.
        beta_min: beta at t = 0. It may be a little below 0, as in the published runs that join
            the levels 0.002 and 80; then sigma is real above a first time alone.

    Raises:
        ValueError: For numbers with which sigma(1) is not positive.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.beta_d < math.inf and -self.beta_d / 2 < self.beta_min < math.inf):
            raise ValueError(
                f"VPTime needs beta_d > 0 and beta_min > -beta_d / 2, got {self.beta_d} and "
                f"{self.beta_min}; 19.9 and 0.1 are usual."
            )

    def sigma(self, t: float) -> float:
        """Noise level at a time."""
        return math.sqrt(math.expm1(self.beta_d * t**2 / 2 + self.beta_min * t))

    def t(self, sigma: float) -> float:
        """Time of a noise level."""
        return self.root(math.log1p(sigma**2)) if sigma > 0 else 0.0

    def rate(self, t: float) -> float:
        """Derivative of sigma(t), t > 0."""
        sigma = self.sigma(t)
        return (self.beta_min + self.beta_d * t) * (sigma + 1 / sigma) / 2

    def root(self, growth: Real) -> Real:
        """Time at which `log(1 + sigma**2)` has a positive value."""
        root: Real = (self.beta_min**2 + 2 * self.beta_d * growth) ** 0.5
        if self.beta_min > 0:  # of the two forms of the root, the one that does not cancel
            return 2 * growth / (root + self.beta_min)
        return (root - self.beta_min) / self.beta_d


def vp_time(sigma_min: float, sigma_max: float, epsilon: float = 1e-3) -> VPTime:
    """The process that has level `sigma_min` at time `epsilon` and `sigma_max` at time 1.

    Raises:
        ValueError: For levels that no such process connects.
    """
    if not (0 < sigma_min < sigma_max < math.inf and 0 < epsilon < 1):
        raise ValueError(
            f"vp_time needs 0 < sigma_min < sigma_max and 0 < epsilon < 1, got {sigma_min}, "
            f"{sigma_max} and {epsilon}."
        )
    low, high = math.log1p(sigma_min**2) / epsilon, math.log1p(sigma_max**2)
    beta_d = 2 * (high - low) / (1 - epsilon)
    return VPTime(beta_d, high - beta_d / 2)


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


class ContinuousLevels(Levels):
    """A network of the continuous process, told `(steps - 1) t`. Karras et al. (2022), table 1.

    Args:
        beta_d: See `VPTime`.
        beta_min: See `VPTime`.
        steps: Steps of the discrete chain whose indices the network's input continues.
        epsilon: Shortest time that the network was trained at; the longest is 1.

    Raises:
        ValueError: See `VPTime`.
    """

    def __init__(
        self,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        steps: int = 1000,
        epsilon: float = 1e-5,
    ) -> None:
        self.time = VPTime(beta_d, beta_min)
        self.steps = steps
        self.sigma_min, self.sigma_max = self.time.sigma(epsilon), self.time.sigma(1.0)

    def t(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Time in steps, as float32."""
        growth = (sigma.to(finest(sigma.device)) ** 2).log1p()
        return ((self.steps - 1) * self.time.root(growth)).float()

    def snap(self, sigma: float) -> float:
        """The level itself, or the end of the training range that it lies beyond; 0 stays 0."""
        return min(max(sigma, self.sigma_min), self.sigma_max) if sigma else sigma


class NoiseDistribution(ABC):
    """Distribution of the noise levels that a network is trained at, given by its quantiles."""

    @abstractmethod
    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Noise level below which a share u in (0, 1) of the draws lies."""

    def sample(
        self, count: int, device: torch.device | str, generator: torch.Generator | None = None
    ) -> Float[Tensor, " count"]:
        """Independent levels, float32, drawn on the device."""
        u = torch.rand(count, device=device, generator=generator)
        return self.quantile(u.clamp(2**-25, 1 - 2**-24)).float()


class UniformT(NoiseDistribution):
    """Every index of a discrete chain with the same probability, as ADM trains.

    Args:
        levels: The chain.
    """

    def __init__(self, levels: DiscreteLevels) -> None:
        self.levels = levels

    def quantile(self, u: Tensor) -> Tensor:
        """Level of the index `floor(u T)`."""
        table, _ = self.levels.tables(u.device)
        return table[(u * len(self.levels)).long()]


class LogNormal(NoiseDistribution):
    """Normal in log sigma. Karras et al. (2022), table 1: mean -1.2, standard deviation 1.2.

    Args:
        mean: Mean of log sigma.
        std: Standard deviation of log sigma, positive.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        if not (std > 0 and math.isfinite(mean) and math.isfinite(std)):
            raise ValueError(f"LogNormal needs a finite mean and std > 0, got {mean} and {std}.")
        self.mean, self.std = mean, std

    def quantile(self, u: Tensor) -> Tensor:
        """Exponential of the normal quantile."""
        normal: Tensor = torch.special.ndtri(u)
        return (self.mean + self.std * normal).exp()


class Clipped(NoiseDistribution):
    """Another distribution, conditioned on [sigma_min, sigma_max] (no mass piles up at its ends).

    Args:
        distribution: The distribution to cut.
        sigma_min: Lower end of the range, included: a level of a chain that lies there is drawn.
        sigma_max: Upper end of the range, included as well.

    Raises:
        ValueError: When the distribution has no mass in the range.
    """

    def __init__(
        self, distribution: NoiseDistribution, sigma_min: float = 0.0, sigma_max: float = math.inf
    ) -> None:
        self.distribution = distribution
        _, self.low = self._bracket(lambda sigma: sigma < sigma_min)
        self.high, _ = self._bracket(lambda sigma: sigma <= sigma_max)
        if not (sigma_min <= sigma_max and self.low < self.high):
            raise ValueError(
                f"No noise level lies in [{sigma_min}, {sigma_max}]; widen the range that is "
                "clipped to."
            )

    def _bracket(self, is_below: Callable[[float], bool]) -> tuple[float, float]:
        """Last share whose quantile is below an end, first one above; found by bisection."""
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = torch.tensor([(low + high) / 2], dtype=torch.float64, device="cpu")
            below = is_below(self.distribution.quantile(middle).item())
            low, high = (middle.item(), high) if below else (low, middle.item())
        return low, high

    def quantile(self, u: Tensor) -> Tensor:
        """Quantile of the part that is left."""
        dtype = finest(u.device)  # a float32 share near 1 rounds to 1, whose quantile is infinite
        share = self.low + u.to(dtype) * (self.high - self.low)
        return self.distribution.quantile(share.clamp(max=1 - torch.finfo(dtype).eps / 2))
