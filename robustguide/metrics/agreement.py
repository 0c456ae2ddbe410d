"""Whether images show what was asked for: by an independent classifier, or by CLIP.

Class accuracy is the share of images whose label has the largest logit of a judge, or one of the
five largest; GFCG calls it classification precision. The judge must not be the classifier that
guided the images. CLIP's score is the mean cosine of image and text, neither scaled nor clamped.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustguide.metrics.calibration import wilson_limits
from robustguide.metrics.means import finite_blocks, mean_and_replicates
from robustguide.metrics.protocol import Measure, Measured, Sampled
from robustguide.metrics.reference import Reference

TOP = 5


def rank_of_label(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """How many classes come before the label: 0 where it is the answer.

    Of equal logits the first comes first, as for `argmax`: a judge that knows nothing is right
    where the label is 0, not always.
    """
    own = logits.gather(1, y[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < y[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def per_class_accuracy(
    correct: Bool[Tensor, " n"], y: Int[Tensor, " n"], classes: int
) -> Float[Tensor, " classes"]:
    """Share of correct images of each class, in float64.

    Raises:
        ValueError: For classes without an image.
    """
    right, count = _by_class(correct, y, classes)
    if len(empty := (count == 0).nonzero()[:, 0].tolist()):
        raise ValueError(
            f"Of {classes} classes these have no image: {empty}; generate some of each, or "
            "ask for the accuracy of all images alone."
        )
    return right / count


def _by_class(correct: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    y = y.cpu().long()
    right = y.new_zeros(classes, dtype=torch.float64).index_add_(0, y, correct.cpu().double())
    return right, y.bincount(minlength=classes).double()


class ClassAccuracy(Measure):
    """Top-1 accuracy of a judge, and top-5 where it knows more than five classes.

    Args:
        layer: The judge's logits, in the order of the labels.
    """

    needs = "nothing"

    def __init__(self, layer: str = "logits") -> None:
        self.titles = {"class_accuracy": "Class accuracy", "top5_accuracy": "Top-5 accuracy"}
        self.lower_is_better = dict.fromkeys(self.titles, False)
        self.layer = layer

    def measure(self, sampled: Sampled, reference: Reference | None) -> dict[str, Measured]:
        """See `Measure`; facts hold Wilson's 95% limits and the accuracy of each class."""
        logits = sampled.layers[self.layer]
        y = _labels(sampled, logits.dim)
        ranks = [
            rank_of_label(block, y[rows].to(block.device)).cpu()
            for rows, block in finite_blocks(logits, "samples")
        ]
        rank = torch.cat(ranks)
        numbers = {"class_accuracy": self._measured(rank < 1, y, sampled, logits.dim)}
        if logits.dim > TOP:
            numbers["top5_accuracy"] = self._measured(rank < TOP, y, sampled, logits.dim)
        return numbers

    def _measured(self, correct: Tensor, y: Tensor, sampled: Sampled, classes: int) -> Measured:
        value, replicates = mean_and_replicates(correct.double(), sampled.groups)
        n = torch.tensor(float(len(correct)), dtype=torch.float64)
        right, count = _by_class(correct, y, classes)
        facts: dict[str, Any] = {
            "layer": self.layer,
            "classes": classes,
            "wilson95": [float(limit) for limit in wilson_limits(right.sum(), n)],
            "by_class": [
                r / c if c else None for r, c in zip(right.tolist(), count.tolist(), strict=True)
            ],
            "classes_without_images": (count == 0).nonzero()[:, 0].tolist(),
        }
        return Measured(value, replicates, facts)


def _labels(sampled: Sampled, classes: int) -> Int[Tensor, " n"]:
    if sampled.y is None:
        raise ValueError(
            "Class accuracy compares a judge's answers with labels, and the images have none; "
            "give a folder with samples.jsonl or an .npz with arr_1, which hold them."
        )
    y = sampled.y.cpu().long()
    if len(unknown := torch.unique(y[(y < 0) | (y >= classes)])):
        raise ValueError(
            f"The images have the labels {unknown[:10].tolist()}, the judge knows classes 0 to "
            f"{classes - 1}; take a judge of the same classes, or images that have a class."
        )
    return y


class MeanCosine(Measure):
    """Mean cosine of image and text, between -1 and 1.

    Args:
        layer: One cosine for each image.
    """

    needs = "nothing"

    def __init__(self, layer: str = "cosine") -> None:
        self.titles, self.lower_is_better = {"clip_score": "CLIP score"}, {"clip_score": False}
        self.layer = layer

    def measure(self, sampled: Sampled, reference: Reference | None) -> dict[str, Measured]:
        """See `Measure`."""
        table = sampled.layers[self.layer]
        if table.dim != 1:
            raise ValueError(
                f"Layer {self.layer!r} has {table.dim} numbers for each image, expected one "
                "cosine; name the layer that holds it."
            )
        cosine = torch.cat([block[:, 0].cpu() for _, block in finite_blocks(table, "samples")])
        if bool((cosine.abs() > 1 + 1e-5).any()):
            raise ValueError(
                f"Got cosines from {float(cosine.min()):g} to {float(cosine.max()):g}, expected "
                "-1 to 1; give them as they are, neither scaled nor weighted."
            )
        value, replicates = mean_and_replicates(cosine, sampled.groups)
        return {"clip_score": Measured(value, replicates, {"layer": self.layer, "scaled": False})}
