"""What the gradients of classifiers are like on noisy images, by noise level.

An image is noised to every level with one noise, x = x_0 + sigma * eps, and every classifier is
differentiated there: g is the gradient of log p(y | x) in x, towards the image's own class. With
the same images and noises for all of them, measured are

    norm       sigma |g|             nats for a step of one noise standard deviation
    cosine     <g, d> / |g| |d|      with the classifier-free direction
    neighbour  <g, g'> / |g| |g'|    with g' at the next higher level, same x_0 and eps
    low_share  share of |FFT g|^2    below a radial frequency

    d = (D(x, y) - D(x, null)) / sigma^2

d is the gradient of the log-probability that a conditional denoiser implies by Bayes' rule (Ho and
Salimans, 2022). Of an exact denoiser it is the exact gradient; of a learned one it is another
estimate, which errs, too. White noise has the share of the frequencies that lie below.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float, Int
from scipy.special import bdtr
from torch import Tensor

from robustguide.guidance import Branch, Evaluations, Step
from robustguide.interfaces import Place
from robustguide.metrics.jackknife import reach
from robustguide.metrics.vectors import cosines, lengths
from robustguide.modules.examination import evaluations
from robustguide.noise import LEVELS, expand, perturb
from robustguide.plans.columns import CLASSIFIER_FREE, Column
from robustguide.samplers import evaluation_noise

QUANTITIES = ("norm", "cosine", "neighbour", "low_share")
CONFIDENCE = 0.95
Batch = tuple[Tensor, Tensor, Tensor]
Values = dict[str, dict[str, Tensor]]  # column, quantity: (levels, n)


@dataclass(frozen=True)
class Measurement:
    """What is measured.

    Attributes:
        levels: Noise levels, ascending.
        seed: Which noise the images get; 0 is that of every other evaluation.
        cutoff: Radial frequency below which energy is counted as low, a fraction of Nyquist's;
            an image of side n has cutoff * n / 2 cycles there.

    Raises:
        ValueError: For no level, one that is not positive and finite, levels that do not rise, a
            negative seed, or a cutoff that is not positive.
    """

    levels: tuple[float, ...] = LEVELS
    seed: int = 0
    cutoff: float = 0.5

    def __post_init__(self) -> None:
        levels = list(self.levels)
        if not levels or not all(0 < level < math.inf for level in levels):
            raise ValueError(f"--levels must be positive, finite noise levels, got {levels}.")
        if levels != sorted(set(levels)):
            raise ValueError(
                f"--levels must rise, since each is compared with the next, got {levels}; give "
                f"{' '.join(f'{level:g}' for level in sorted(set(levels)))}."
            )
        if self.seed < 0 or not 0 < self.cutoff < math.inf:
            raise ValueError(
                f"--seed must be 0 or more and --cutoff a positive fraction of Nyquist's "
                f"frequency, got {self.seed} and {self.cutoff}."
            )


@torch.no_grad()
def measured(
    columns: Sequence[Column],
    batches: Iterable[Batch],
    measurement: Measurement,
    device: torch.device,
    advance: Callable[[int], None] = lambda images: None,
) -> Values:
    """Quantities of every image, float64 on the host: (levels, n) by column and quantity.

    NaN where there is none: no direction to compare with, no next level, no energy.

    Args:
        columns: Directions; the classifier-free one among them is what others are compared with.
        batches: `(x_0, y, index)`.
        measurement: Levels, noise and cutoff.
        device: Where the columns' networks are.
        advance: Told of finished images.
    """
    found: dict[str, list[dict[str, Tensor]]] = {column.name: [] for column in columns}
    for images, y, index in batches:
        noise = evaluation_noise(index, measurement.seed).draw(images.shape[1:], device)
        of_batch = measured_batch(columns, images.to(device), y.to(device), noise, measurement)
        for name, values in of_batch.items():
            found[name].append(values)
        advance(len(images))
    # first the device, then the dtype: the device may not know float64
    return {
        name: {key: torch.cat([part[key] for part in parts], 1).cpu().double() for key in parts[0]}
        for name, parts in found.items()
    }


def measured_batch(
    columns: Sequence[Column], x_0: Tensor, y: Tensor, noise: Tensor, measurement: Measurement
) -> Values:
    """Quantities of a batch, on its device, without waiting for it."""
    rows: dict[str, list[dict[str, Tensor]]] = {column.name: [] for column in columns}
    before: dict[str, Tensor] = {}
    low = (radial_frequencies(*x_0.shape[-2:]) < measurement.cutoff).to(x_0.device)
    for place, level in enumerate(measurement.levels):
        x = perturb(x_0, x_0.new_full((len(x_0),), level), noise)
        found = gradients(columns, place, level, x, y)
        reference = found.get(CLASSIFIER_FREE)
        for name, gradient in found.items():
            norm = lengths(gradient)
            nothing = torch.full_like(norm, math.nan)
            is_reference = name == CLASSIFIER_FREE
            values = {
                "norm": level * norm,
                "cosine": nothing if is_reference else cosines(gradient, reference),
                "neighbour": nothing,
                "low_share": low_share(gradient, low),
            }
            if name in before:
                rows[name][-1]["neighbour"] = cosines(before[name], gradient)
            rows[name].append(values)
        before = found
    return {
        name: {key: torch.stack([level[key] for level in levels]) for key in QUANTITIES}
        for name, levels in rows.items()
    }


def gradients(
    columns: Sequence[Column],
    place: int,
    level: float,
    x: Float[Tensor, "b c h w"],
    y: Int[Tensor, " b"],
) -> dict[str, Tensor]:
    """Directions at x by column, as gradients in x; columns of one denoiser share its answers.

    Args:
        columns: Directions.
        place: Number of the level.
        level: Sigma of x.
        x: Noisy images.
        y: Classes that the gradients lead to.
    """
    shared: dict[int, Evaluations] = {}
    found = {}
    for column in columns:
        term = column.terms[place]
        with torch.set_grad_enabled(term.needs_graph):
            state = x.detach().requires_grad_(term.needs_graph)
            evaluate = evaluations(column.denoiser, state, state.new_full((len(x),), level))
            if not term.needs_graph:
                evaluate = shared.setdefault(id(column.denoiser), evaluate)
            displacement = term(step_of(column, place, level, y, evaluate)).detach()
        found[column.name] = displacement / level**2
    return found


def step_of(
    column: Column, place: int, level: float, y: Int[Tensor, " b"], evaluate: Evaluations
) -> Step:
    """What a sampler would show the term of a column; the null label only where it is asked."""
    term, null = column.terms[place], y
    bound = None if term.moves_denoised else column.clip(place)
    if term.moves_denoised and column.denoiser is not None:
        null = column.denoiser.null(y)
        evaluate.batch([Branch(y), Branch(null)])

    def shown(denoised: Tensor) -> Tensor:
        return denoised if bound is None else denoised.clamp(-bound, bound)

    return Step(evaluate.x, evaluate.sigma, y, null, Place(sigma=level), evaluate, shown, {})


def radial_frequencies(height: int, width: int) -> Float[Tensor, "h w"]:
    """Of the terms of a 2-d FFT, as fractions of Nyquist's frequency, float64."""
    along = [torch.fft.fftfreq(n, dtype=torch.float64) * 2 for n in (height, width)]
    return torch.hypot(along[0][:, None], along[1][None, :])


def low_share(gradient: Float[Tensor, "b c h w"], low: Bool[Tensor, "h w"]) -> Float[Tensor, " b"]:
    """Share of each row's energy in some frequencies, all channels together; NaN without energy.

    Args:
        gradient: Any images.
        low: Which terms of the 2-d FFT count.
    """
    values = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    unit = values / expand(values.flatten(1).abs().amax(1), values)  # squares do not vanish
    energy = torch.view_as_real(torch.fft.fft2(unit)).square().sum(-1).sum(1)
    share: Tensor = (energy * low).flatten(1).sum(1) / energy.flatten(1).sum(1)
    return share


@dataclass(frozen=True)
class Estimate:
    """A mean or a median over images, with its chance.

    Attributes:
        value: Null where no image has one.
        standard_error: Of a mean; that of the jackknife over images, which of a mean is
            sd / sqrt(n).
        limits: 95 % of the mean by Student's t, of the median by its order statistics.
        quartiles: Of the images; of a median alone.
        n: Images that have a value.
    """

    value: float | None
    standard_error: float | None
    limits: tuple[float, float] | None
    quartiles: tuple[float, float] | None
    n: int


def mean_of(values: Float[Tensor, " n"]) -> Estimate:
    """The mean of all that are numbers."""
    values = values[values.isfinite()]
    n = len(values)
    if n == 0:
        return Estimate(None, None, None, None, 0)
    mean = float(values.mean())
    if n == 1:
        return Estimate(mean, None, None, None, 1)
    error = float(values.std()) / math.sqrt(n)
    half = reach(CONFIDENCE, n - 1) * error
    return Estimate(mean, error, (mean - half, mean + half), None, n)


def median_of(values: Float[Tensor, " n"]) -> Estimate:
    """The median of all that are numbers; its limits hold for any distribution.

    The interval from the k-th smallest to the k-th largest misses the median where fewer than k of
    n fair coins fall on one side, so k is the largest for which that is rare enough. Too few
    images have no such k.
    """
    values = values[values.isfinite()].sort().values
    n = len(values)
    if n == 0:
        return Estimate(None, None, None, None, 0)
    share = torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)
    lower, middle, upper = values.quantile(share).tolist()
    tail = (1 - CONFIDENCE) / 2
    k = next(k for k in range(n + 1) if float(bdtr(k, n, 0.5)) > tail)
    limits = (float(values[k - 1]), float(values[n - k])) if k else None
    return Estimate(middle, None, limits, (lower, upper), n)


def told(values: Mapping[str, Tensor]) -> dict[str, list[dict[str, object]]]:
    """Estimates of a column by quantity, one a level, as plain data: the norm's are medians."""
    return {
        key: [asdict((median_of if key == "norm" else mean_of)(level)) for level in values[key]]
        for key in QUANTITIES
    }


def differences(values: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> dict[str, object]:
    """Means of what a column has more than the first one, image by image.

    The norms are compared as ratios: their difference is that of natural logarithms.
    """
    pairs = {key: (values[key], first[key]) for key in QUANTITIES}
    pairs["norm"] = values["norm"].log(), first["norm"].log()
    return {
        key: [asdict(mean_of(level)) for level in own - other]
        for key, (own, other) in pairs.items()
    }


@torch.no_grad()
def drawn(
    columns: Sequence[Column],
    x_0: Float[Tensor, "1 c h w"],
    index: Int[Tensor, " 1"],
    wanted: int,
    measurement: Measurement,
    device: torch.device,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One image noised to all levels, and the directions there towards one class.

    Returns:
        x (levels, c, h, w), and gradients of that shape by column, on the host.
    """
    noise = evaluation_noise(index, measurement.seed).draw(x_0.shape[1:], device)
    x_0, y = x_0.to(device), torch.full((1,), wanted, device=device)
    states, found = [], []
    for place, level in enumerate(measurement.levels):
        states.append(perturb(x_0, x_0.new_full((1,), level), noise))
        found.append(gradients(columns, place, level, states[-1], y))
    picked = {name: torch.cat([each[name] for each in found]).cpu() for name in found[0]}
    return torch.cat(states).cpu(), picked
