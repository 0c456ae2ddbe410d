"""How the terms of guidance read the images on the way: by which classifier, through which view.

A term that is made of others holds them as submodules, so its classifiers are found among these,
at whatever depth.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robustguide.guidance.base import Guidance, Step
from robustguide.guidance.classifier import ClassifierGuidance, ClassLabels
from robustguide.guidance.evaluations import Corruption, Evaluations
from robustguide.guidance.gradient_free import Posterior
from robustguide.guidance.losses import ClassifierLoss
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


def reading_of(name: str, terms: Mapping[str, Guidance]) -> Reading:
    """How the term of a name reads.

    Raises:
        ValueError: There is no such term, or it does not read by one classifier alone.
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


def readings(term: Guidance) -> list[Reading]:
    """All of a term, each once."""
    found: list[Reading] = []
    for part in term.modules():
        if isinstance(part, ClassifierGuidance):
            found.append(Reading(part.classifier, part.view, part.labels))
        elif isinstance(part, ClassifierLoss):
            found.append(Reading(part.classifier, AtDenoised(), part.labels))
        elif isinstance(part, Posterior):
            found.append(Reading(part.classifier, part.view, part.labels, part.temperature))
    return found
