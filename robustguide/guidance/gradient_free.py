"""Classifier guidance without a classifier's gradient: contrasts between classes.

With the posterior p_c = p(c | x) and the denoised images D_c of the classes,

    sigma**2 * grad log p(y | x) = D_y - sum_c p_c D_c = sum_{c != y} p_c (D_y - D_c)

because grad log p(x | c) = (D_c - x) / sigma**2 and p(x) = sum_c p(c) p(x | c). `FullSum` is this
sum. Its largest term alone, with all the weight, is what `Confused` makes of a reference:

    (1 - p_y) (D_y - D_r),    r = argmax_{c != y} p_c

which is the sum itself for two classes. That a classifier in use for its answers alone chooses a
reference class and a weight at every step is the idea of Shenoy et al. (2024); their formulas were
not available, and these are derived here.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustguide.guidance.base import Guidance, Step
from robustguide.guidance.classifier import ClassLabels
from robustguide.guidance.evaluations import Branch
from robustguide.guidance.reference import Choice, ReferenceLabels, check_tells_classes
from robustguide.guidance.views import AtDenoised, View
from robustguide.interfaces import Classifier, Denoiser, Place
from robustguide.noise import expand

Confusion = Literal["one_minus_py", "p_ref", "entropy", "const"]


class Posterior(nn.Module):
    """What a classifier says of a step, among the denoiser's classes; nothing is differentiated.

    Args:
        classifier: Judges what the view shows it.
        labels: The classifier's class of every class of the denoiser; null where they agree.
            Its other classes are left out of the probabilities.
        view: Where the classifier looks.
        temperature: Divides the logits.

    Raises:
        ValueError: For labels that are not classes of the classifier or name one twice, fewer
            than two classes, a view through the denoiser, or a temperature that is not positive.
    """

    def __init__(
        self,
        classifier: Classifier,
        labels: Sequence[int] | None,
        view: View,
        temperature: float,
    ) -> None:
        super().__init__()
        self.labels = ClassLabels(classifier, labels)
        if labels is not None and len(set(labels)) < len(labels):
            raise ValueError(
                f"labels must name a class of the classifier for every class, none twice, got "
                f"{list(labels)[:8]}; classes that it cannot tell apart have no contrast."
            )
        self.num_classes = self.labels.num_classes
        if self.num_classes < 2:
            raise ValueError("A contrast needs at least two classes, got one.")
        if view.needs_graph:
            raise ValueError(
                f"{type(view).__name__} keeps a graph for a gradient, and none is taken here; "
                "take AtDenoised, which shows the same image."
            )
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature divides logits: positive, got {temperature}.")
        self.classifier = classifier
        self.view = view
        self.temperature = temperature
        self.class_names = self.labels.class_names

    def forward(self, step: Step) -> Float[Tensor, "b k"]:
        """Log-probabilities, in float32 at least."""
        images = self.view.point(step)
        with torch.no_grad():
            logits = self.view.ask(self.classifier, images, step.sigma)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (self.labels.chosen(logits) / self.temperature).log_softmax(-1)


class Confused(ReferenceLabels):
    """The class that a classifier most takes the image for, other than its label. Ours.

    With h in [0, 1], by `weight`: `one_minus_py` is 1 - p_y, `p_ref` is p_r, `entropy` that of p
    over log k, `const` is 1; and a = min(strength * h, max_weight):

                        without `otherwise`         with it
        confused rows   a (D_y - D_r)               (w + a) (D_y - D_r)
        sure rows       0, nothing evaluated        w (D_y - D_o)

    where o and w are the label and weight of `otherwise` (w = 1 for `Null` and `Own`). A row is
    sure where the label is the most probable class and p_y > threshold.

    Without `otherwise` the host waits once an evaluation, to learn which rows it may leave out;
    with it nothing waits, and the reference is evaluated for all rows.

    Args:
        classifier: Judges what the view shows it. It need not have a gradient, and must not be
            the one that the results are measured with.
        weight: How h comes from the probabilities.
        view: Where the classifier looks; null is the denoised image. A classifier that knows
            noise may look at the state.
        labels: The classifier's class of every class of the denoiser; null where they agree.
        temperature: Divides the logits.
        strength: Multiplies h. 0, with `otherwise`, changes the label alone.
        max_weight: Bound of a.
        threshold: In [0, 1]; 1 is never sure.
        margin: By how much another class must be more probable than the one in use to take its
            place, so that the reference does not flicker. If not 0, the second evaluation of a
            Heun step keeps the class of the first.
        otherwise: Rule for the rows that are sure; it must answer for all rows.

    Raises:
        ValueError: For another word than these as weight, a number outside its range, or see
            `Posterior`.
    """

    asks_classes = True

    def __init__(
        self,
        classifier: Classifier,
        weight: Confusion = "one_minus_py",
        view: View | None = None,
        labels: Sequence[int] | None = None,
        temperature: float = 1.0,
        strength: float = 1.0,
        max_weight: float = math.inf,
        threshold: float = 0.95,
        margin: float = 0.0,
        otherwise: ReferenceLabels | None = None,
    ) -> None:
        super().__init__()
        if weight not in get_args(Confusion):
            words = ", ".join(get_args(Confusion))
            raise ValueError(f"weight must be one of {words}; got {weight!r}.")
        check_numbers(strength, max_weight, threshold, margin)
        if strength == 0 and otherwise is None:
            raise ValueError(
                "A strength of 0 moves nothing: give a positive one, or `otherwise`, the rule "
                "whose weight is taken."
            )
        self.posterior = Posterior(classifier, labels, view or AtDenoised(), temperature)
        self.weight: Confusion = weight
        self.strength, self.max_weight = strength, max_weight
        self.threshold, self.margin = threshold, margin
        self.otherwise = otherwise
        self.asks_null = otherwise is not None and otherwise.asks_null
        self.num_classes = self.posterior.num_classes
        self.class_names = self.posterior.class_names

    def classifiers(self) -> tuple[Classifier, ...]:
        """The classifier, and those of the other rule."""
        others = () if self.otherwise is None else self.otherwise.classifiers()
        return (self.posterior.classifier, *others)

    def forward(self, step: Step) -> Choice:
        """The class, its weight, and the rows that are not sure."""
        log_p = self.posterior(step)
        reference = self._reference(step, log_p)
        weight = (self.strength * self._confusion(log_p, step.y, reference)).to(step.x.dtype)
        weight = weight.clamp(max=self.max_weight)
        log_py = of_class(log_p, step.y)
        is_sure = (log_py >= log_p.amax(-1)) & (log_py.exp() > self.threshold)
        if self.otherwise is None:
            # the host waits for the device here, and the network has fewer rows to answer for
            return Choice(reference, weight, (~is_sure & (weight > 0)).nonzero()[:, 0])
        other = self.otherwise(step)
        labels = torch.where(is_sure, other.labels, reference)
        return Choice(labels, other.weight + weight.masked_fill(is_sure, 0))

    def _reference(self, step: Step, log_p: Float[Tensor, "b k"]) -> Int[Tensor, " b"]:
        """The most probable class but y, the first of equals; the last one stays by `margin`."""
        best = log_p.scatter(1, step.y[:, None], -math.inf).argmax(-1)
        if self.margin == 0:
            return best
        memory = step.own(self)
        kept: Tensor = memory.get("reference", best)
        if step.place.corrector:
            return kept
        is_beaten = of_class(log_p, best).exp() > of_class(log_p, kept).exp() + self.margin
        memory["reference"] = torch.where(is_beaten, best, kept)
        return torch.where(is_beaten, best, kept)

    def _confusion(
        self, log_p: Float[Tensor, "b k"], y: Tensor, reference: Tensor
    ) -> Float[Tensor, " b"]:
        """The number h in [0, 1]."""
        if self.weight == "one_minus_py":
            return -of_class(log_p, y).expm1()  # accurate where p_y is nearly 1
        if self.weight == "p_ref":
            return of_class(log_p, reference).exp()
        if self.weight == "entropy":
            return -(log_p.exp() * log_p).nansum(-1) / math.log(log_p.shape[-1])
        return torch.ones_like(log_p[:, 0])


class RandomReference(ReferenceLabels):
    """Any class but the label, drawn for every image and step: what a classifier must beat. Ours.

    The weight is 1. The second evaluation of a Heun step keeps the class of the first.
    """

    asks_classes = True

    def forward(self, step: Step) -> Choice:
        """The class; from noise that belongs to the image."""
        memory = step.own(self)
        if not step.place.corrector or "reference" not in memory:
            noise = step.randn_like(step.x.new_empty(len(step.x)))
            uniform = torch.special.ndtr(noise)  # may be rounded to 1
            others = step.null - 1
            drawn = torch.minimum((uniform * others).long(), others - 1)
            memory["reference"] = drawn + (drawn >= step.y)
        return Choice(memory["reference"])


class FullSum(Guidance):
    """The whole sum over classes: what `Confused` leaves terms out of. Derived here.

    With the exact posterior, which is one at the state, it is exact classifier guidance. It
    evaluates the denoiser for every class, in one batch, and so is for judging cheaper rules and
    for few classes.

    Args:
        classifier: Judges what the view shows it.
        view: Where the classifier looks; null is the denoised image.
        labels: The classifier's class of every class of the denoiser; null where they agree.
        temperature: Divides the logits.

    Raises:
        ValueError: See `Posterior`.
    """

    moves_denoised = True

    def __init__(
        self,
        classifier: Classifier,
        view: View | None = None,
        labels: Sequence[int] | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.posterior = Posterior(classifier, labels, view or AtDenoised(), temperature)
        self.classes = self.posterior.num_classes
        self.num_classes = self.posterior.num_classes
        self.class_names = self.posterior.class_names
        self._others: tuple[Tensor | None, tuple[Tensor, ...]] = (None, ())

    def classifiers(self) -> tuple[Classifier, ...]:
        """The classifier."""
        return (self.posterior.classifier,)

    def check(self, denoiser: Denoiser) -> None:
        """Refuses a denoiser that does not tell classes apart.

        Raises:
            ValueError: For such a denoiser.
        """
        check_tells_classes(denoiser)

    def branches(self, y: Tensor, null: Tensor, place: Place) -> tuple[Branch, ...]:
        """Each of the other classes of every row."""
        return tuple(Branch(labels) for labels in self.others(y))

    def others(self, y: Int[Tensor, " b"]) -> tuple[Int[Tensor, " b"], ...]:
        """The k - 1 other classes of every row, as the same tensors for the same y."""
        if self._others[0] is not y:  # evaluations are known by the identity of their labels
            labels = tuple((y + shift) % self.classes for shift in range(1, self.classes))
            self._others = y, labels
        return self._others[1]

    def forward(self, step: Step) -> Float[Tensor, "b c h w"]:
        """Differences to all other classes, by their probabilities."""
        p = self.posterior(step).exp().to(step.x.dtype)
        moved = torch.zeros_like(step.x)
        for labels in self.others(step.y):
            weight = expand(of_class(p, labels), step.x)
            moved = moved + weight * (step.denoised - step.evaluate(labels))
        return moved


def of_class(values: Float[Tensor, "b k"], y: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The value of each row's class."""
    return values.gather(-1, y[:, None])[:, 0]


def check_numbers(strength: float, max_weight: float, threshold: float, margin: float) -> None:
    """Refuses numbers outside their ranges.

    Raises:
        ValueError: Names the number and its range.
    """
    ranges = {
        "strength": (strength, 0 <= strength < math.inf, "a finite number of at least 0"),
        "max_weight": (max_weight, max_weight > 0, "positive"),
        "threshold": (threshold, 0 <= threshold <= 1, "a probability in [0, 1]"),
        "margin": (margin, 0 <= margin < 1, "a difference of probabilities in [0, 1)"),
    }
    for name, (value, is_right, wanted) in ranges.items():
        if not is_right:
            raise ValueError(f"{name} must be {wanted}, got {value}.")
