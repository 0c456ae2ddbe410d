"""Images that a classifier alone makes of a start: no denoiser, no data but for the start.

    x_0 <- P(x_0 + step * g / |g|)        g = grad log p(y | x_0 + sigma * eps)

which is targeted projected gradient ascent in an L2 ball around the start, the recipe of Santurkar
et al. (2019) for robust classifiers of clean images, here at a noise level, or at falling ones.
Every step has new noise, so that what is climbed is a mean over noise: with one eps for all steps
the ascent paints against that eps. Where images have pixels, they stay within [-1, 1] as well.

Starts may be drawn from a Gaussian of the class, N(mean, covariance) of its training images:

    x = mean + sum_i w_i (x_i - mean) / sqrt(n - 1)        w_i standard normal

which has exactly that covariance, whatever its size.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustguide.attacks import L2Ball, pgd
from robustguide.guidance import Tempered
from robustguide.guidance.fit import PIXELS
from robustguide.interfaces import Classifier
from robustguide.noise import expand, perturb
from robustguide.samplers import SeededNoise
from robustguide.samplers.seeds import mixed

PAINT = 11  # stream of the generators of a painting
MOVE = 0.5  # root mean square that pixels may move by, where no radius is given
STARTS = ("gaussian", "noise", "grey")
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a classifier paints.

    Attributes:
        levels: Noise levels, falling; each gets an equal part of the steps.
        steps: Of ascent, all levels together.
        radius: L2, in units of images in [-1, 1]; null is half a unit a pixel, 0.5 * sqrt(c h w).
        step_size: Likewise; null is 2.5 * radius / steps.

    Raises:
        ValueError: For no level or rising ones, fewer steps than levels, or sizes that are not
            positive.
    """

    levels: tuple[float, ...] = (0.5,)
    steps: int = 200
    radius: float | None = None
    step_size: float | None = None

    def __post_init__(self) -> None:
        levels = list(self.levels)
        if not levels or not all(0 <= level < math.inf for level in levels):
            raise ValueError(f"--level must be finite noise levels of at least 0, got {levels}.")
        if levels != sorted(set(levels), reverse=True):
            raise ValueError(
                f"--level must fall from one to the next, got {levels}; give them in that order, "
                "each once."
            )
        if self.steps < len(levels):
            raise ValueError(
                f"--steps {self.steps} cannot be shared by {len(levels)} levels; give one a "
                "level at least."
            )
        for name, size in (("radius", self.radius), ("step-size", self.step_size)):
            if size is not None and not 0 < size < math.inf:
                raise ValueError(f"--{name} must be a positive length, got {size}.")

    def sizes(self, shape: Sequence[int]) -> tuple[float, float]:
        """Radius and length of a step for images of a shape."""
        radius = MOVE * math.sqrt(math.prod(shape)) if self.radius is None else self.radius
        step = 2.5 * radius / self.steps if self.step_size is None else self.step_size
        return radius, step

    def parts(self) -> list[tuple[float, int]]:
        """Steps at each level; the first ones have those that are left over."""
        each, more = divmod(self.steps, len(self.levels))
        return [(level, each + (place < more)) for place, level in enumerate(self.levels)]


@dataclass(frozen=True)
class Painting:
    """What a classifier made.

    Attributes:
        x_0: Images.
        before: log p(y | x) of the start, at the last level, with noise that no step has seen.
        after: Of the image, with the same noise.
    """

    x_0: Float[Tensor, "b c h w"]
    before: Float[Tensor, " b"]
    after: Float[Tensor, " b"]


@torch.no_grad()
def painted(
    classifier: Classifier,
    start: Float[Tensor, "b c h w"],
    y: Int[Tensor, " b"],
    numbers: Sequence[int],
    seed: int,
    recipe: Recipe,
) -> Painting:
    """Ascends log p(y | x) from every start; rows do not mix.

    Args:
        classifier: In evaluation mode.
        start: Centres of the balls, clean.
        y: Wanted classes.
        numbers: Of the starts; rows of one number have the same noise.
        seed: Of the noise.
        recipe: Levels, steps and sizes.
    """
    radius, step_size = recipe.sizes(start.shape[1:])
    ball = partial(L2Ball, box=(-1.0, 1.0) if start.shape[1] in PIXELS else None)
    noise = SeededNoise(numbers, mixed(PAINT, seed))
    x_0 = start
    for level, steps in recipe.parts():

        def losses(moved: Tensor, rows: Tensor, level: float = level) -> tuple[Tensor, Tensor]:
            eps = noise.draw(start.shape[1:], start.device)
            found = log_p(classifier, moved, eps[rows], y[rows], level)
            return found, torch.ones_like(rows, dtype=torch.bool)

        x_0 = pgd(losses, start, ball, steps, step_size, radius, early_stop=False, start=x_0)
    last, eps = recipe.levels[-1], held_out(numbers, seed, start.shape[1:]).to(start.device)
    before = log_p(classifier, start, eps, y, last)
    return Painting(x_0, before, log_p(classifier, x_0, eps, y, last))


def log_p(
    classifier: Classifier, x_0: Tensor, noise: Tensor, y: Tensor, level: float
) -> Float[Tensor, " b"]:
    """The log-probability log p(y | x_0 + sigma * eps), in nats."""
    sigma = x_0.new_full((len(x_0),), level)
    return Tempered()(classifier(perturb(x_0, sigma, noise), sigma), y)


def held_out(numbers: Sequence[int], seed: int, shape: Sequence[int]) -> Float[Tensor, "n c h w"]:
    """Unit noise of each start that no step has seen."""
    return SeededNoise(numbers, mixed(PAINT, seed)).spawn("held out").draw(shape)


def plain_starts(kind: str, seed: int, count: int, shape: Sequence[int]) -> Tensor:
    """Starts (n, c, h, w) that know no class: unit noise, or grey.

    Raises:
        ValueError: For another kind.
    """
    if kind == "grey":
        return torch.zeros(count, *shape)
    if kind == "noise":
        return bounded(SeededNoise(range(count), mixed(PAINT, seed)).spawn("start").draw(shape))
    raise ValueError(f"There is no start {kind!r}; expected one of {', '.join(STARTS)}.")


@torch.no_grad()
def gaussian_starts(
    batches: Iterable[Batch], classes: Sequence[int], seed: int, count: int
) -> tuple[Float[Tensor, "k n c h w"], list[int]]:
    """Draws from the Gaussian of each class, see the module, in one pass over training images.

    Images in [-1, 1] are clamped to it, as those of the ball are.

    Args:
        batches: `(x_0, y, index)`.
        classes: Whose.
        seed: Of the draws.
        count: Draws of each class.

    Returns:
        Starts, and how many images each class had.

    Raises:
        ValueError: A class has fewer than two images.
    """
    sums = Sums(len(classes), count)
    wanted = torch.tensor(list(classes))
    for x_0, y, index in batches:
        weight = weights(index.tolist(), seed, count)
        for place, rows in enumerate(y == wanted[:, None]):
            if rows.any():
                sums.add(place, x_0[rows], weight[rows])
    few = [str(k) for k, found in zip(classes, sums.counts, strict=True) if found < 2]
    if few:
        raise ValueError(
            f"A Gaussian needs two training images of a class, and class {', '.join(few)} has "
            "fewer; raise --start-images, or take --start noise."
        )
    return sums.draws(), sums.counts


class Sums:
    """Of images and of weighted images, by class, float64.

    Args:
        classes: Number of them.
        draws: Weights of each image.
    """

    def __init__(self, classes: int, draws: int) -> None:
        self.counts = [0] * classes
        self.images: list[Tensor] = [torch.zeros(())] * classes
        self.weighted: list[Tensor] = [torch.zeros(draws, 1, 1, 1)] * classes
        self.weights: list[Tensor] = [torch.zeros(draws, dtype=torch.float64)] * classes

    def add(self, place: int, x_0: Tensor, weight: Float[Tensor, "b n"]) -> None:
        """More images of a class."""
        x_0 = x_0.double()
        self.counts[place] += len(x_0)
        self.images[place] = self.images[place] + x_0.sum(0)
        self.weighted[place] = self.weighted[place] + torch.einsum("bn,bchw->nchw", weight, x_0)
        self.weights[place] = self.weights[place] + weight.sum(0)

    def draws(self) -> Float[Tensor, "k n c h w"]:
        """See the module."""
        found = []
        for place, count in enumerate(self.counts):
            mean, weighted = self.images[place] / count, self.weighted[place]
            offset = weighted - expand(self.weights[place], weighted) * mean
            found.append(mean + offset / math.sqrt(count - 1))
        return bounded(torch.stack(found).float())


def weights(index: Sequence[int], seed: int, count: int) -> Float[Tensor, "b n"]:
    """Standard normal, for every image by its number, float64."""
    return SeededNoise(index, mixed(PAINT, seed)).spawn("weight").draw((count,)).double()


def bounded(x_0: Tensor) -> Tensor:
    """Images clamped to [-1, 1]; latents as they are."""
    return x_0.clamp(-1, 1) if x_0.shape[-3] in PIXELS else x_0
