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


class DiscreteLevels:
    """The noise levels of a discrete chain, and the way back from a level to its index.

    Args:
        betas: Variances added at the T steps of the variance-preserving chain, each in (0, 1).
        interpolated: Between two entries, t is interpolated in log sigma; otherwise the nearest
            entry (in log sigma) is taken, as replaying a discrete chain needs.

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
        """The table's level nearest in log sigma; 0 stays 0. Identity for interpolated levels."""
        if self.interpolated or sigma == 0:
            return sigma
        return float(self.sigmas[np.abs(np.log(self.sigmas) - math.log(sigma)).argmin()])

    def t(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Index into the table, as float32; clamped to its ends, so that sigma 0 is t 0."""
        _, table = self.tables(sigma.device)
        log_sigma = sigma.to(table.dtype).log().clamp(table[0], table[-1])
        above = torch.searchsorted(table, log_sigma).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        fraction = (log_sigma - low) / (high - low)
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
        """Levels in descending order; the last is 0."""

    @abstractmethod
    def start(self, noise: Float[Tensor, " b *axes"], sigma: float) -> Float[Tensor, " b *axes"]:
        """Turns unit noise into the first state, at the first level as the denoiser knows it."""


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
