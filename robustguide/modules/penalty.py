"""A calibration error with a gradient, for training.

Of rows with top-label confidence c_i and verdict v_i (1 where the top label is right) the residual
c_i - v_i is spread over [0, 1] by a Gaussian kernel that its ends reflect:

    r(t) = 1/n sum_i (c_i - v_i) K(t, c_i)      error = integral of |r(t)| dt

This is the smooth calibration error of Blasiok and Nakkiran (2023) at a fixed bandwidth s; theirs
is the one that equals its own error. The reflected kernel is the heat kernel of [0, 1], so

    K(t, c) = 1 + 2 sum_m exp(-(m pi s)^2 / 2) cos(m pi t) cos(m pi c)

and spreading n residuals costs a few cosines of each. The series, the split by noise band and the
use as a loss are ours. Javid et al. (2025) fine-tune guidance classifiers with a smooth ECE;
their formulas are not followed here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustguide.metrics import band_of

SMALLEST_FACTOR = 1e-9  # cosines that the kernel damps below this are left out


def smoothed_error(
    confidence: Float[Tensor, " b"],
    correct: Bool[Tensor, " b"],
    bandwidth: float,
    band: Int[Tensor, " b"] | None = None,
    bands: int = 1,
) -> Float[Tensor, ""]:
    """Smooth calibration error at a fixed bandwidth, differentiable in the confidence.

    With bands the mean over them, each weighted by its rows; so nothing cancels between two.
    """
    terms = math.ceil(math.sqrt(-2 * math.log(SMALLEST_FACTOR)) / (math.pi * bandwidth))
    # On more than half as many points as cosines, each cosine but the first sums to 0.
    count = torch.arange(2 * terms, dtype=confidence.dtype, device=confidence.device)
    points, order = (count + 0.5) / (2 * terms), math.pi * count[: terms + 1]
    factor = (-((order * bandwidth) ** 2) / 2).exp() * (1 + (order > 0))
    band = torch.zeros_like(correct, dtype=torch.long) if band is None else band
    member = band == torch.arange(bands, device=confidence.device)[:, None]
    # Sums rather than matrix products, which autocast would take in half precision.
    residual = (confidence - correct.to(confidence.dtype)) / max(len(confidence), 1)
    waves = residual[:, None] * (order * confidence[:, None]).cos()
    waves = (member[:, :, None] * waves).sum(1)
    spread = (waves[:, None] * (factor * (order * points[:, None]).cos())).sum(-1)
    return spread.abs().mean(-1).sum()


@dataclass(frozen=True)
class CalibrationPenalty:
    """Smooth calibration error of a batch, as a term of the loss; ours.

    It compares the confidences of a batch with its verdicts, which have no gradient of their own.
    A process sees its own batch, and the average of the processes' gradients is that of their mean
    penalty. Few rows a band overstate it: a calibrated classifier has an error of about
    `1 / sqrt(rows)` there, so large batches and few bands serve it best.

    Args:
        weight: What it is multiplied by beside the mean cross-entropy.
        bandwidth: Standard deviation of the kernel, in units of confidence.
        edges: Noise levels that part the batch into bands (lo, hi], in each of which it must be
            calibrated; null is one band, in which over-confidence at one level may make up for
            under-confidence at another.

    Raises:
        ValueError: For a weight or a bandwidth that is none, or edges that do not increase.
    """

    weight: float
    bandwidth: float = 0.1
    edges: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(
                f"The weight of a penalty is a positive number, got {self.weight}; set penalty: "
                "null for none."
            )
        if not 0.001 <= self.bandwidth <= 1:
            raise ValueError(
                f"bandwidth is in units of confidence, from 0.001 to 1, got {self.bandwidth}; 0.1 "
                "smooths over a tenth of all confidences."
            )
        band_of(torch.empty(0), self.edges or ())

    def __call__(
        self,
        logits: Float[Tensor, "b k"],
        y: Int[Tensor, " b"],
        sigma: Float[Tensor, " b"],
    ) -> Float[Tensor, ""]:
        """The error, without the weight; in float32 at least."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        confidence, label = logits.softmax(-1).max(-1)
        edges = self.edges or ()
        band = band_of(sigma, edges)
        return smoothed_error(confidence, label == y, self.bandwidth, band, len(edges) + 1)
