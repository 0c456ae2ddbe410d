"""How the terms of guidance read the images on the way: by which classifier, through which view.

A term that is made of others holds them as submodules, so its classifiers are found among these,
at whatever depth.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustguide.guidance.base import Guidance, Step
from robustguide.guidance.classifier import ClassifierGuidance, ClassLabels
from robustguide.guidance.evaluations import Corruption, Evaluations
from robustguide.guidance.gradient_free import Posterior
from robustguide.guidance.losses import ClassifierLoss
from robustguide.guidance.pairs import Switched
from robustguide.guidance.views import AtDenoised, View
from robustguide.interfaces import Classifier, Denoiser, Place


@dataclass(frozen=True)
class Reading:
    """A classifier that reads along.

    Attributes:
        classifier: It.
        view: What of a state it is shown.
        labels: Its class of every class of the denoiser; null where they agree.
        temperature: Divides its logits.
    """

    classifier: Classifier
    view: View
    labels: ClassLabels | None = None
    temperature: float = 1.0

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.classifier.num_classes if self.labels is None else self.labels.num_classes

    @property
    def looks(self) -> str:
        """What the classifier is shown: the name of the view."""
        return type(self.view).__name__

    @torch.no_grad()
    def __call__(
        self,
        x: Float[Tensor, "b c h w"],
        sigma: float,
        denoised: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b k"]:
        """Logits of the denoiser's classes.

        Args:
            x: State at level `sigma`.
            sigma: Its level.
            denoised: Clean image that is predicted there.
        """
        level = x.new_full((len(x),), sigma)
        evaluate = _Known(x, level, denoised)
        y = torch.zeros(len(x), dtype=torch.long, device=x.device)
        step = Step(x, level, y, y, Place(sigma=sigma), evaluate, lambda known: known, {})
        images = self.view.point(step)
        logits = self.view.ask(self.classifier, images, level.to(images.dtype))
        chosen = logits if self.labels is None else self.labels.chosen(logits)
        return chosen / self.temperature


@dataclass(frozen=True)
class SwitchedReading:
    """Two that read along, each on its side of a noise level, as the terms of `Switched` do.

    Attributes:
        above: Reads at levels above `sigma`.
        below: Reads at `sigma` and below.
        sigma: Where they change.
    """

    above: "AnyReading"
    below: "AnyReading"
    sigma: float

    @property
    def num_classes(self) -> int:
        """Number of logits, of both."""
        return self.above.num_classes

    @property
    def looks(self) -> str:
        """What both are shown, in words."""
        return f"{self.above.looks} above {self.sigma:g}, {self.below.looks} below"

    def __call__(
        self,
        x: Float[Tensor, "b c h w"],
        sigma: float,
        denoised: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b k"]:
        """As `Reading`, by the one of this level."""
        return (self.above if sigma > self.sigma else self.below)(x, sigma, denoised)


AnyReading = Reading | SwitchedReading


class _Known(Evaluations):
    """The answer of the denoiser at a state where it has been asked."""

    def __init__(self, x: Tensor, sigma: Tensor, denoised: Tensor) -> None:
        self.x, self.sigma, self.denoised = x, sigma, denoised

    def __call__(
        self,
        labels: Tensor,
        denoiser: Denoiser | None = None,
        corruption: Corruption | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        return self.denoised


def reading_of(name: str, terms: Mapping[str, Guidance]) -> AnyReading:
    """How the term of a name reads.

    Raises:
        ValueError: There is no such term, or it does not read by one classifier at each level.
    """
    found = {term: readings(part) for term, part in terms.items()}
    having = ", ".join(term for term, each in found.items() if len(each) == 1) or "none"
    known = f"terms with one classifier: {having}; or give a classifier of its own"
    if name not in found:
        raise ValueError(f"observer names no term of the guidance: {name!r}; {known}.")
    if len(found[name]) != 1:
        count = len(found[name]) or "no"
        raise ValueError(
            f"observer: term {name!r} reads by {count} classifiers, expected one; {known}."
        )
    return found[name][0]


def readings(term: nn.Module) -> list[AnyReading]:
    """All of a term, each once; a `Switched` of two that read is one."""
    if isinstance(term, Switched):
        above, below = readings(term.first), readings(term.second)
        if len(above) == len(below) == 1:
            return [SwitchedReading(above[0], below[0], term.sigma)]
        return above + below
    if isinstance(term, ClassifierGuidance):
        return [Reading(term.classifier, term.view, term.labels)]
    if isinstance(term, ClassifierLoss):
        return [Reading(term.classifier, AtDenoised(), term.labels)]
    if isinstance(term, Posterior):
        return [Reading(term.classifier, term.view, term.labels, term.temperature)]
    return list(dict.fromkeys(found for part in term.children() for found in readings(part)))
