"""Guidance by a classifier whose answers are kept."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from robustguide.guidance import ClassifierGuidance, Objective, Step, View
from robustguide.interfaces import Classifier


class Recorded(ClassifierGuidance):
    """Guides, and keeps what the classifier says of what it is shown at some steps.

    Args:
        classifier: Judges what the view shows it.
        objective: What of the logits is increased.
        view: Where the classifier looks.
        watched: Steps.

    Attributes:
        said: Logits by step, of its last repetition.
    """

    def __init__(
        self, classifier: Classifier, objective: Objective, view: View, watched: Sequence[int]
    ) -> None:
        super().__init__(classifier, objective=objective, view=view)
        self.watched = frozenset(watched)
        self.said: dict[int, Tensor] = {}

    def forward(self, step: Step) -> Float[Tensor, "b c h w"]:
        """As guidance; one more evaluation of the classifier at a watched step."""
        if step.place.index in self.watched and not step.place.corrector:
            with torch.no_grad():
                logits = self.view.ask(self.classifier, self.view.point(step), step.sigma)
            self.said[step.place.index] = logits.float()
        return super().forward(step)

    def taken(self) -> Float[Tensor, "watched b k"]:
        """What was said at the watched steps, in their order; forgets it."""
        said = torch.stack([self.said[step] for step in sorted(self.watched)])
        self.said.clear()
        return said
