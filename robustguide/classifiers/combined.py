"""Several classifiers as one: at each noise level the one that was chosen for it.

Hard, the choice of the nearest level in log sigma. Linear, between two levels, with the fraction
f of the way from one to the other in log sigma,

    log p = log((1 - f) p_low + f p_high)
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustguide.classifiers.calibrated import check_levels
from robustguide.classifiers.names import class_names
from robustguide.interfaces import Classifier

Ask = Callable[[Classifier, Tensor, Tensor], Tensor]


class Combined(Classifier):
    """The classifier that was chosen for the noise level of each image. Ours.

    Below the first and above the last level, and at level 0, the choice is that of the nearest
    end. Hard, levels meet at their geometric mean, which belongs to the lower one; logits are
    those of the chosen classifier. Linear, they are normalised log-probabilities: what the raw
    ones say beyond that, which a joint temperature unlike the marginal one would read, is lost.

    Each classifier is shown only the rows that it has a say in, so a call costs what the
    classifiers of its levels cost. To divide rows among several, the host waits for the device
    once a call; where one is chosen for all levels, it does not.

    Args:
        classifiers: Those to choose from.
        sigmas: Noise levels, increasing.
        choice: For each level, the place in the list of its classifier, from 0.
        blend: What happens between two levels.

    Attributes:
        class_names: Names of the classes, where a classifier tells them.

    Raises:
        ValueError: For levels or choices that cannot be, or classifiers of other images or
            classes than one another.
    """

    levels: Tensor
    middles: Tensor
    table: Tensor

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        sigmas: Sequence[float],
        choice: Sequence[int],
        blend: Literal["hard", "linear"] = "hard",
    ) -> None:
        super().__init__()
        check_levels("sigmas", sigmas, at_least=1)
        check_choice(choice, len(sigmas), len(classifiers))
        if blend not in ("hard", "linear"):
            raise ValueError(f"blend is 'hard' or 'linear', got {blend!r}.")
        self.num_classes = common_classes(classifiers)
        self.class_names = common_names(classifiers)
        self.shape = common_shape(classifiers)
        told = {getattr(classifier, "conditioning", None) for classifier in classifiers}
        self.conditioning = told.pop() if len(told) == 1 else None
        self.classifiers = nn.ModuleList(classifiers)
        self.sigmas, self.choice, self.blend = tuple(sigmas), tuple(choice), blend
        middles = [math.sqrt(low * high) for low, high in pairwise(sigmas)]
        table = [[float(k == chosen) for k in range(len(classifiers))] for chosen in choice]
        self.register_buffer("levels", torch.tensor(sigmas), persistent=False)
        self.register_buffer("middles", torch.tensor(middles), persistent=False)
        self.register_buffer("table", torch.tensor(table), persistent=False)

    def reads(self, shape: Sequence[int]) -> bool:
        """What all classifiers read."""
        return all(classifier.reads(shape) for classifier in members(self.classifiers))

    def forward(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits."""
        return self.asked(lambda one, images, levels: one(images, levels), x, sigma)

    def as_clean(
        self, images: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits of images that are read as clean ones; chosen by the levels they came up at."""
        return self.asked(lambda one, x, levels: one.as_clean(x, levels), images, sigma)

    def asked(
        self, ask: Ask, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """What the classifiers chosen for sigma answer, in float32 at least."""
        chosen = members(self.classifiers)
        if len(set(self.choice)) == 1:
            return self.read(ask(chosen[self.choice[0]], x, sigma))
        weights = self.weights(sigma)
        is_asked = weights != 0
        counts: list[int] = is_asked.sum(0).tolist()
        used = [k for k, count in enumerate(counts) if count] or [0]
        if len(used) == 1:
            return self.read(ask(chosen[used[0]], x, sigma))
        answers, rows = [], []
        for k in used:
            rows.append(is_asked[:, k].int().argsort(descending=True, stable=True)[: counts[k]])
            answers.append(self.read(ask(chosen[k], x[rows[-1]], sigma[rows[-1]])))
        if self.blend == "hard":
            return torch.cat(answers)[torch.cat(rows).argsort()]
        shares = [weights[:, k][own] for own, k in zip(rows, used, strict=True)]
        return mixed(answers, rows, shares, len(x))

    def read(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Logits of one classifier as they are answered."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return wide if self.blend == "hard" else wide.log_softmax(-1)

    def weights(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, "b classifiers"]:
        """The say of each classifier at each level; they sum to 1."""
        sigma = sigma.to(torch.promote_types(sigma.dtype, torch.float32))
        if self.blend == "hard":
            return self.table[torch.bucketize(sigma, self.middles.to(sigma))]
        levels = self.levels.to(sigma)
        high = torch.bucketize(sigma, levels).clamp(1, len(levels) - 1)
        lowest, highest = levels[high - 1], levels[high]
        # exactly 0 and 1 at a level itself, so that there no second classifier is asked
        fraction = (sigma / lowest).log() / (highest / lowest).log()
        table = self.table.to(sigma)
        return torch.lerp(table[high - 1], table[high], fraction.clamp(0, 1)[:, None])


def mixed(
    log_p: list[Float[Tensor, "_ k"]],
    rows: list[Int[Tensor, " _"]],
    weights: list[Float[Tensor, " _"]],
    size: int,
) -> Float[Tensor, "b k"]:
    """Logarithm of weighted sums of probabilities, each of which is there for some rows."""
    parts = []
    for own, places, weight in zip(log_p, rows, weights, strict=True):
        nothing = own.new_full((size, own.shape[1]), -math.inf)
        parts.append(nothing.index_copy(0, places, own + weight.log()[:, None]))
    return torch.stack(parts).logsumexp(0)


def members(classifiers: nn.ModuleList) -> list[Classifier]:
    """The modules of a list as what they are."""
    return [module for module in classifiers if isinstance(module, Classifier)]


def check_choice(choice: Sequence[int], levels: int, classifiers: int) -> None:
    """Refuses a choice.

    Raises:
        ValueError: When it is not one classifier for each level.
    """
    if classifiers < 1 or len(choice) != levels:
        raise ValueError(
            f"choice names one of at least one classifiers for each level in sigmas; got "
            f"{len(choice)} for {levels} levels and {classifiers} classifiers."
        )
    if not all(0 <= chosen < classifiers for chosen in choice):
        raise ValueError(
            f"choice holds places in the list of classifiers, 0..{classifiers - 1}; got "
            f"{list(choice)}."
        )


def common_classes(classifiers: Sequence[Classifier]) -> int:
    """Number of classes of all.

    Raises:
        ValueError: When they differ.
    """
    counts = [classifier.num_classes for classifier in classifiers]
    if len(set(counts)) > 1:
        raise ValueError(
            f"Classifiers of {counts} classes cannot be combined; wrap them in "
            "robustguide.classifiers.Relabelled, which answers for the same classes of each."
        )
    return counts[0]


def common_names(classifiers: Sequence[Classifier]) -> tuple[str, ...]:
    """Names of the classes, of the first classifier that tells them.

    Data sets have several sets of names, so that a few which only one of them knows say nothing.

    Raises:
        ValueError: When another one has a name for another class, or knows none of the names.
    """
    known: tuple[str, ...] = ()
    for names in map(class_names, classifiers):
        known = known or names
        moved = [
            k for k, name in enumerate(names) if name in known and known[k : k + 1] != (name,)
        ]
        if moved or (names and set(names).isdisjoint(known)):
            k = min(moved, default=0)
            raise ValueError(
                f"The classifiers mean different classes: class {k} of one is {names[k]!r}, and "
                f"of another {', '.join(known[k : k + 1]) or 'none'}. Wrap one of them in "
                "robustguide.classifiers.Relabelled, whose `labels` are its classes in the order "
                "of the other's."
            )
    return known


def common_shape(classifiers: Sequence[Classifier]) -> tuple[int, int, int] | None:
    """A shape that all were made for or read; null where none tells one.

    Raises:
        ValueError: When there is none.
    """
    shapes = [classifier.shape for classifier in classifiers if classifier.shape is not None]
    for shape in shapes:
        if all(classifier.reads(shape) for classifier in classifiers):
            return shape
    if shapes:
        raise ValueError(
            f"The classifiers read images of different shapes, {sorted(set(shapes))}; wrap some "
            "in robustguide.classifiers.Resized or Decoded."
        )
    return None
