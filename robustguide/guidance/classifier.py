"""Guidance by the gradient of a classifier.

displacement = sigma**2 * pull(grad objective(classifier(image, sigma), y))
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustguide.guidance.base import Guidance, Step
from robustguide.guidance.fit import class_names
from robustguide.guidance.objectives import Objective, Tempered
from robustguide.guidance.views import AtState, View
from robustguide.interfaces import Classifier
from robustguide.noise import expand


class ClassifierGuidance(Guidance):
    """Moves towards the label by the gradient of a classifier. Dhariwal and Nichol (2021), Alg. 1.

    Args:
        classifier: Judges what the view shows it.
        labels: The classifier's class of every class of the denoiser; null where they agree.
        objective: What of the logits is increased; null is log p(y | x).
        view: Where the classifier looks; null is the noisy image itself.
        chunk: Images that are differentiated at a time, to bound memory; null is all.

    Raises:
        ValueError: For a label outside the classifier's classes, or a chunk of none.
    """

    def __init__(
        self,
        classifier: Classifier,
        labels: Sequence[int] | None = None,
        objective: Objective | None = None,
        view: View | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk is a number of images, at least 1; got {chunk}.")
        self.classifier = classifier
        self.objective = objective or Tempered()
        self.view = view or AtState()
        self.chunk = chunk
        self.needs_graph = self.view.needs_graph
        self.labels = ClassLabels(classifier, labels)
        self.num_classes = self.labels.num_classes
        self.class_names = self.labels.class_names

    def classifiers(self) -> tuple[Classifier, ...]:
        """The classifier."""
        return (self.classifier,)

    def differentiated(self) -> tuple[Classifier, ...]:
        """The classifier."""
        return (self.classifier,)

    def forward(self, step: Step) -> Float[Tensor, "b c h w"]:
        """Squared noise level times the score; no graph of the classifier is kept."""
        y = self.labels(step.y)
        images, ask = self.view.point(step), partial(self.view.ask, self.classifier)
        gradients = []
        for first in range(0, len(images), self.chunk or len(images)):
            rows = slice(first, first + (self.chunk or len(images)))
            part = images[rows], step.sigma[rows], y[rows]
            gradients.append(score(ask, *part, self.objective))
        gradient = gradients[0] if len(gradients) == 1 else torch.cat(gradients)
        return expand(step.sigma**2, step.x) * self.view.pull(step, gradient)


class ClassLabels(nn.Module):
    """A classifier's class of every class of a denoiser.

    Args:
        classifier: Whose classes they are.
        labels: One for each class of the denoiser; null where they agree.

    Attributes:
        num_classes: Number of classes of the denoiser.
        class_names: Their names, where they are known.

    Raises:
        ValueError: For a label outside the classifier's classes.
    """

    table: Tensor | None

    def __init__(self, classifier: Classifier, labels: Sequence[int] | None) -> None:
        super().__init__()
        highest = classifier.num_classes - 1
        if labels is not None and not (labels and all(0 <= k <= highest for k in labels)):
            raise ValueError(
                f"labels must lie in 0..{highest}, the classes of the classifier; got "
                f"{list(labels)[:8]}."
            )
        table = None if labels is None else torch.tensor(labels)
        self.num_classes = classifier.num_classes if labels is None else len(labels)
        self.class_names = class_names(classifier) if labels is None else ()
        self.register_buffer("table", table, persistent=False)

    def forward(self, y: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """The classifier's labels."""
        return y if self.table is None else self.table[y]

    def chosen(self, logits: Float[Tensor, "b n"]) -> Float[Tensor, "b k"]:
        """The classifier's logits of the denoiser's classes."""
        return logits if self.table is None else logits[:, self.table]


def score(
    logits: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "b c h w"],
    sigma: Float[Tensor, " b"],
    y: Int[Tensor, " b"],
    objective: Objective | None = None,
) -> Float[Tensor, "b c h w"]:
    """Gradient of an objective, log p(y | x, sigma) where none is given, at x, in its dtype.

    Rows do not mix: the sum over the batch is differentiated, not the mean.

    Args:
        logits: A classifier, or another function of x and sigma.
        x: Images.
        sigma: Noise levels.
        y: Labels.
        objective: What of the logits is differentiated.
    """
    objective = objective or Tempered()
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = objective(logits(x, sigma), y)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return gradient
