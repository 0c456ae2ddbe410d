"""Guidance by the gradient of a classifier.

displacement = sigma**2 * grad_x log p(y | x, sigma)
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustguide.guidance.base import Guidance, Step
from robustguide.guidance.fit import class_names
from robustguide.interfaces import Classifier
from robustguide.noise import expand


class ClassifierGuidance(Guidance):
    """Moves towards the label by the classifier's gradient at x.

    Dhariwal and Nichol (2021), Alg. 1.

    Args:
        classifier: Judges the noisy image itself.
        labels: The classifier's class of every class of the denoiser; null where they agree.

    Raises:
        ValueError: For a label outside the classifier's classes.
    """

    labels: Tensor | None

    def __init__(self, classifier: Classifier, labels: Sequence[int] | None = None) -> None:
        super().__init__()
        if labels is not None and not all(0 <= k < classifier.num_classes for k in labels):
            raise ValueError(
                f"labels must lie in 0..{classifier.num_classes - 1}, the classes of the "
                f"classifier; got {min(labels)}..{max(labels)}."
            )
        self.classifier = classifier
        self.num_classes = classifier.num_classes if labels is None else len(labels)
        self.class_names = class_names(classifier) if labels is None else ()
        table = None if labels is None else torch.tensor(labels)
        self.register_buffer("labels", table, persistent=False)

    def classifiers(self) -> tuple[Classifier, ...]:
        """The classifier."""
        return (self.classifier,)

    def forward(self, step: Step) -> Float[Tensor, "b c h w"]:
        """Squared noise level times the classifier's score; no graph is kept."""
        y = step.y if self.labels is None else self.labels[step.y]
        return expand(step.sigma**2, step.x) * score(self.classifier, step.x, step.sigma, y)


def score(
    classifier: Classifier,
    x: Float[Tensor, "b c h w"],
    sigma: Float[Tensor, " b"],
    y: Int[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """Gradient of `log p(y | x, sigma)` with respect to x, in its dtype.

    Rows do not mix: the sum over the batch is differentiated, not the mean.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = classifier(x, sigma)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # at least
        log_p = logits.log_softmax(-1).gather(-1, y[:, None])
        (gradient,) = torch.autograd.grad(log_p.sum(), x)
    return gradient
