"""Guidance away from a reference: another denoised image at the same noise.

displacement = weight * (denoised(y) - reference(labels))

Which labels the reference is asked for, how much they weigh, and for which rows it is asked at
all is the business of one object, so that a term can change it and cost nothing more.
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustguide.denoisers import Unconditional
from robustguide.guidance.base import Guidance, Step
from robustguide.guidance.evaluations import Branch, Comparison, Corruption
from robustguide.interfaces import Classifier, Denoiser, Place
from robustguide.noise import expand


class Choice(NamedTuple):
    """What a reference is asked for.

    Attributes:
        labels: Class indices (b,).
        weight: Multiplies the difference, of all rows or of each.
        rows: Indices (r,) of the rows that need the reference; null is all. The others stay.
    """

    labels: Int[Tensor, " b"]
    weight: float | Float[Tensor, " b"] = 1.0
    rows: Int[Tensor, " r"] | None = None


class ReferenceLabels(nn.Module):
    """Chooses the label that a reference is asked for.

    Attributes:
        asks_null: Whether it may choose the null label.
        asks_classes: Whether it may choose another class.
        num_classes: Number of classes that y must name one of; null takes any label.
        class_names: Their names, where they are known.
    """

    asks_null: bool = False
    asks_classes: bool = False
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()

    def classifiers(self) -> tuple[Classifier, ...]:
        """Those that it shows what the denoiser makes."""
        return ()

    def known(self, y: Tensor, null: Tensor) -> Tensor | None:
        """The labels, where they are known before anything is evaluated."""
        return None

    @abstractmethod
    def forward(self, step: Step) -> Choice:
        """Labels, weight and rows of a step."""


class Null(ReferenceLabels):
    """The null label. Ho and Salimans (2022)."""

    asks_null = True

    def known(self, y: Tensor, null: Tensor) -> Tensor:
        """Null labels."""
        return null

    def forward(self, step: Step) -> Choice:
        """Null labels."""
        return Choice(step.null)


class Own(ReferenceLabels):
    """The label itself. Karras et al. (2024)."""

    def known(self, y: Tensor, null: Tensor) -> Tensor:
        """The labels."""
        return y

    def forward(self, step: Step) -> Choice:
        """The labels."""
        return Choice(step.y)


class Reference(Guidance):
    """The guided network's answer minus that of another network, or of another label.

    Args:
        reference: The denoiser that one guides away from; null is the guided network itself.
        labels: Rule for its labels; null is the null label for the guided network itself, else
            the label itself.
        corruption: Makes the reference worse meanwhile.

    Raises:
        ValueError: For a reference that is the guided network with its own label.
    """

    moves_denoised = True

    def __init__(
        self,
        reference: Denoiser | None = None,
        labels: ReferenceLabels | None = None,
        corruption: Corruption | None = None,
    ) -> None:
        super().__init__()
        another = reference is not None or corruption is not None
        if isinstance(labels, Own) and not another:
            raise ValueError(
                "The guided network with its own label is no reference: give another network as "
                "`reference`, a `corruption`, or other `labels`."
            )
        self.reference = reference
        self.labels = labels or (Own() if another else Null())
        self.corruption = corruption
        self.num_classes = self.labels.num_classes
        self.class_names = self.labels.class_names

    def classifiers(self) -> tuple[Classifier, ...]:
        """Those of the rule for labels."""
        return self.labels.classifiers()

    def comparisons(self) -> tuple[Comparison, ...]:
        """The one."""
        return (Comparison(self.reference, self.corruption, self.labels.asks_null),)

    def check(self, denoiser: Denoiser) -> None:
        """Refuses to ask for classes where they are not told apart.

        Raises:
            ValueError: For such a reference.
        """
        if self.labels.asks_classes:
            check_tells_classes(self.reference or denoiser)

    def branches(self, y: Tensor, null: Tensor, place: Place) -> tuple[Branch, ...]:
        """The reference's branch, where its labels are known before."""
        labels = self.labels.known(y, null)
        return () if labels is None else (Branch(labels, self.reference, self.corruption),)

    def forward(self, step: Step) -> Float[Tensor, "b c h w"]:
        """Weighted difference of the two denoised images; 0 in rows that need no reference."""
        labels, weight, rows = self.labels(step)
        if rows is None:
            difference = step.denoised - step.evaluate(labels, self.reference, self.corruption)
        else:
            difference = torch.zeros_like(step.denoised)
            if len(rows):
                other = step.evaluate(labels[rows], self.reference, self.corruption, rows)
                difference[rows] = step.denoised[rows] - other
        return (expand(weight, step.x) if isinstance(weight, Tensor) else weight) * difference


class ClassifierFree(Reference):
    """Guidance away from the null label of the same network. Ho and Salimans (2022), eq. 6.

    A scale of w is theirs: `(1 + w) eps(y) - w eps(null)`.

    Args:
        labels: Another rule for the reference's labels in place of the null one.
    """

    def __init__(self, labels: ReferenceLabels | None = None) -> None:
        super().__init__(None, labels)


class Autoguidance(Reference):
    """Guidance away from a worse version of the network. Karras et al. (2024), eq. 3.

    The version is smaller, less trained, of another EMA length, without labels, or the network
    itself with dropout.

    Args:
        reference: The worse network; null is the guided network, which `corruption` makes worse.
        labels: Another rule for its labels in place of the label itself.
        corruption: Makes it worse meanwhile.

    Raises:
        ValueError: When neither says how the reference is worse.
    """

    def __init__(
        self,
        reference: Denoiser | None = None,
        labels: ReferenceLabels | None = None,
        corruption: Corruption | None = None,
    ) -> None:
        if reference is None and corruption is None:
            raise ValueError(
                "Autoguidance needs a worse version of the network: another network as "
                "`reference`, or a `corruption` such as robustguide.guidance.Dropout."
            )
        super().__init__(reference, labels, corruption)


class GradientFree(Reference):
    """Guidance away from the class that a classifier confuses with the label; no gradients.

    After the idea of Shenoy et al. (2024), whose formulas were not available: the rule is ours.

    Args:
        labels: Chooses the class and the weight.
    """

    def __init__(self, labels: ReferenceLabels) -> None:
        super().__init__(None, labels)


def check_tells_classes(denoiser: Denoiser) -> None:
    """Refuses one to which all labels are alike, so that classes have no contrast.

    Raises:
        ValueError: For an unconditional denoiser.
    """
    if isinstance(denoiser, Unconditional) or not denoiser.num_classes:
        raise ValueError(
            "The guidance compares classes, and to an unconditional denoiser all are alike; give "
            "the class-conditional one (that inside of Unconditional, if it knows labels), or "
            "take ClassifierGuidance."
        )
