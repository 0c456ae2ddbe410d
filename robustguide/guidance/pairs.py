"""Terms made of two others."""

import math
from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from robustguide.guidance.base import Guidance, Step
from robustguide.guidance.evaluations import Branch, Comparison
from robustguide.interfaces import Classifier, Denoiser, Place
from robustguide.noise import expand


class Pair(Guidance):
    """A term made of two.

    Raises:
        ValueError: When they are for other classes.
    """

    def __init__(self, first: Guidance, second: Guidance) -> None:
        super().__init__()
        check_same_classes(first, second)
        self.first, self.second = first, second
        self.needs_graph = first.needs_graph or second.needs_graph
        self.num_classes = second.num_classes if first.num_classes is None else first.num_classes
        self.class_names = first.class_names or second.class_names

    def classifiers(self) -> tuple[Classifier, ...]:
        """Those of both."""
        return self.first.classifiers() + self.second.classifiers()

    def differentiated(self) -> tuple[Classifier, ...]:
        """Those of both."""
        return self.first.differentiated() + self.second.differentiated()

    def comparisons(self) -> tuple[Comparison, ...]:
        """Those of both."""
        return self.first.comparisons() + self.second.comparisons()

    def check(self, denoiser: Denoiser) -> None:
        """Refuses what one of them refuses."""
        self.first.check(denoiser)
        self.second.check(denoiser)

    @abstractmethod
    def parts(self, place: Place) -> tuple[Guidance, ...]:
        """Those of the two that are evaluated somewhere."""

    def is_active(self, place: Place) -> bool:
        """Where there are parts."""
        return bool(self.parts(place))

    def wants_graph(self, place: Place) -> bool:
        """Where one of these parts does."""
        return any(part.wants_graph(place) for part in self.parts(place))

    def branches(self, y: Tensor, null: Tensor, place: Place) -> tuple[Branch, ...]:
        """Those of these parts."""
        asked = (part.branches(y, null, place) for part in self.parts(place))
        return tuple(branch for branches in asked for branch in branches)


class Switched(Pair):
    """One term at high noise, another at low: `Within` of both, and costs what one costs.

    Ma et al. (2023), table 2, let an off-the-shelf classifier look at the predicted clean image
    first, and one of noisy images at the state last.

    Args:
        above: The term at levels above `sigma`.
        below: The term at `sigma` and below.
        sigma: Where they change.

    Raises:
        ValueError: For a level that is not positive and finite, or terms of two kinds.
    """

    def __init__(self, above: Guidance, below: Guidance, sigma: float) -> None:
        if not 0 < sigma < math.inf:
            raise ValueError(f"Switched needs a positive, finite level `sigma`, got {sigma}.")
        if above.moves_denoised != below.moves_denoised:
            raise ValueError(
                "Switched takes two score terms (gradients) or two reference terms, not one "
                f"of each; got {kind(above)} above and {kind(below)} below. Give two terms, "
                "each in Within."
            )
        super().__init__(above, below)
        self.moves_denoised = above.moves_denoised
        self.sigma = sigma

    def parts(self, place: Place) -> tuple[Guidance, ...]:
        """The one of this level, where it is active; without a sampler, perhaps both."""
        both: tuple[Guidance, ...] = (self.first, self.second)
        if place.sigma is not None:  # decided on the host, in float64
            both = both[:1] if place.sigma > self.sigma else both[1:]
        return tuple(part for part in both if part.is_active(place))

    def forward(self, step: Step) -> Float[Tensor, "b c h w"]:
        """Displacement by the one of each row's level."""
        place, moved = step.place, torch.zeros_like(step.x)
        if place.sigma is not None:
            for part in self.parts(place):
                moved = part(step)
            return moved
        above = step.sigma > self.sigma
        for part, rows in ((self.first, above), (self.second, ~above)):
            if part.is_active(place):
                moved = moved + expand(rows.to(moved), moved) * part(step)
        return moved


class Matched(Pair):
    """A score term as large as a reference term, image by image; it moves the denoised image.

        ratio * rms(to) * term / rms(term)

    It is for score terms whose own size says little. Ma et al. (2023), Alg. 3, add a normalised
    gradient of a classifier of decoded images to the difference of classifier-free guidance;
    their formula was not available, and this reading is ours: a weight s on both terms is
    `eps_null + s (eps - eps_null - ratio ghat)`, with ghat as large as that difference. Where
    `to` moves some channels only, let the term move the same ones: `Channels` around each.

    Args:
        term: The score term. It sees the denoised image before it is clipped, as `to` does.
        to: The reference term whose size it is given; it is not added itself.
        ratio: Root mean square of the displacement, relative to that of `to`.

    Raises:
        ValueError: For terms of other kinds, or a ratio that is negative or not finite.
    """

    moves_denoised = True

    def __init__(self, term: Guidance, to: Guidance, ratio: float = 1.0) -> None:
        if term.moves_denoised or not to.moves_denoised:
            raise ValueError(
                "Matched gives a score term (a gradient) the size of a reference term, such as "
                f"ClassifierFree; got {kind(term)} as `term` and {kind(to)} as `to`."
            )
        if not 0 <= ratio < math.inf:
            raise ValueError(
                f"ratio must be a finite number of at least 0, got {ratio}; 1 is as large as "
                "`to`, 0 switches the term off."
            )
        super().__init__(term, to)
        self.ratio = ratio

    def parts(self, place: Place) -> tuple[Guidance, ...]:
        """Both, or none: without the one there is no direction, without the other no size."""
        both = self.first, self.second
        active = self.ratio > 0 and all(part.is_active(place) for part in both)
        return both if active else ()

    def forward(self, step: Step) -> Float[Tensor, "b c h w"]:
        """Direction of the term, size of the other; nothing is evaluated where one is inactive."""
        if not self.is_active(step.place):
            return torch.zeros_like(step.x)
        size = self.ratio * rms(self.second(step))
        return expand(size, step.x) * unit(self.first(step))


def check_same_classes(first: Guidance, second: Guidance) -> None:
    """Compares classes of two terms, by number and as far as both name them.

    Raises:
        ValueError: They differ.
    """
    counts = {term.num_classes for term in (first, second)} - {None}
    order = {name: label for label, name in enumerate(first.class_names)}
    moved = [n for k, n in enumerate(second.class_names) if order.get(n, k) != k]
    if len(counts) > 1 or moved:
        differ = f"class {moved[0]!r} has two numbers" if moved else f"{sorted(map(str, counts))}"
        raise ValueError(
            f"The two terms are for other classes ({differ}); give their classifiers `labels`, "
            "the classifier's class of every class of the denoiser."
        )


def kind(term: Guidance) -> str:
    """What a term is called in an error."""
    return f"{type(term).__name__}, a {'reference' if term.moves_denoised else 'score'} term,"


def rms(x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Root mean square of each image."""
    return x.square().flatten(1).mean(1).sqrt()


def unit(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Each image divided by its root mean square; one of zeros stays what it is."""
    peak = x.flatten(1).abs().amax(1)
    x = x / expand(peak.where(peak > 0, 1), x)  # else squares of small gradients would vanish
    size = rms(x)
    return x / expand(size.where(size > 0, 1), x)
