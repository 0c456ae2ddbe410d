"""Accuracy and calibration of a classifier in each noise band, all from one table of sums.

Rows fall into a noise band and into one of M equal confidence bins (lo, hi]; a cell B keeps its
count n, the sum of top-label confidences and the number of correct rows. So in each band

    ECE = sum_B n_B / n |acc(B) - conf(B)|        (Guo et al., 2017, eq. 3)

and its mean over the noise levels, the integral calibration error (Ma et al., 2024, eq. 1).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

NORMAL_95 = 1.959963984540054  # two-sided 95% quantile of the normal distribution


def band_of(sigma: Float[Tensor, " b"], edges: Sequence[float]) -> Int[Tensor, " b"]:
    """Index of the noise band (lo, hi] of each sigma; `len(edges) + 1` bands, open at both ends.

    Raises:
        ValueError: If the edges do not increase.
    """
    if any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"Noise band edges must increase, got {list(edges)}; sort them.")
    # against numbers of the host, in sigma's own dtype: a sigma equal to an edge stays below it,
    # and no table of edges has to go to the device
    return sum((sigma > edge).long() for edge in edges) + torch.zeros_like(sigma, dtype=torch.long)


def level_of(sigma: Float[Tensor, " b"], levels: Sequence[float]) -> Int[Tensor, " b"]:
    """Index of each sigma in a list of levels, to 1e-4 relative; -1 for one that is not listed."""
    table = torch.tensor(levels, dtype=sigma.dtype, device=sigma.device)
    nearest = (sigma[:, None] - table).abs().argmin(dim=1)
    return torch.where(torch.isclose(sigma, table[nearest], rtol=1e-4), nearest, -1)


def wilson_limits(
    correct: Float[Tensor, "..."], count: Float[Tensor, "..."], z: float = NORMAL_95
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Lower and upper 95% limits of a proportion; NaN where nothing was counted. Wilson (1927)."""
    proportion = correct / count
    centre = proportion + z**2 / (2 * count)
    width = z * (proportion * (1 - proportion) / count + z**2 / (4 * count**2)).sqrt()
    scale = 1 + z**2 / count
    lower, upper = (centre - width) / scale, (centre + width) / scale
    return lower.clamp(min=0), upper.clamp(max=1)  # rounding may step over the ends


def bin_of(confidence: Float[Tensor, "*b"], num_bins: int) -> Int[Tensor, "*b"]:
    """Index of the equal confidence bin (lo, hi] of each probability."""
    # a confidence of exactly 1 is in the last bin; 0 cannot occur but as a rounded value
    return (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1


def tally(
    confidence: Float[Tensor, " b"],
    correct: Bool[Tensor, " b"],
    band: Int[Tensor, " b"],
    *,
    bands: int,
    num_bins: int,
) -> Float[Tensor, "3 bands num_bins"]:
    """Rows, confidence and correct rows of each cell, in float64; band -1 does not count.

    A confidence that is NaN makes the sums of its band NaN.
    """
    confidence = confidence.double()
    values = torch.stack([torch.ones_like(confidence), confidence, correct.double()])
    values = torch.where(band >= 0, values, 0.0)
    cell = band.clamp(min=0) * num_bins + bin_of(confidence, num_bins)
    sums = values.new_zeros(3, bands * num_bins)
    sums.index_add_(1, cell, values)
    return sums.reshape(3, bands, num_bins)


class Reliability:
    """What the sums by noise band and confidence bin say; NaN where a band or bin saw no row.

    Args:
        sums: Count, sum of confidences and number of correct rows of each cell, from `tally`.
    """

    def __init__(self, sums: Float[Tensor, "3 bands bins"]) -> None:
        self.sums = sums

    @property
    def count(self) -> Float[Tensor, " bands"]:
        """Rows in each band."""
        return self.sums[0].sum(-1)

    @property
    def correct(self) -> Float[Tensor, " bands"]:
        """Correct rows in each band."""
        return self.sums[2].sum(-1)

    @property
    def accuracy(self) -> Float[Tensor, " bands"]:
        """Top-1 accuracy in each band."""
        return self.correct / self.count

    @property
    def confidence(self) -> Float[Tensor, " bands"]:
        """Mean top-label confidence in each band."""
        return self.sums[1].sum(-1) / self.count

    @property
    def ece(self) -> Float[Tensor, " bands"]:
        """Expected calibration error of each band. Guo et al. (2017), eq. 3."""
        count, confidence, correct = self.sums.unbind()
        return (confidence - correct).abs().sum(-1) / count.sum(-1)

    @property
    def integral_ece(self) -> Float[Tensor, ""]:
        """Mean ECE over the bands, NaN if one of them is empty. Ma et al. (2024), eq. 1."""
        return self.ece.mean()

    @property
    def limits(self) -> tuple[Float[Tensor, " bands"], Float[Tensor, " bands"]]:
        """Lower and upper 95% limits of the accuracy."""
        return wilson_limits(self.correct, self.count)

    @property
    def bin_count(self) -> Float[Tensor, "bands bins"]:
        """Rows in each confidence bin."""
        return self.sums[0]

    @property
    def bin_confidence(self) -> Float[Tensor, "bands bins"]:
        """Mean confidence in each confidence bin."""
        return self.sums[1] / self.sums[0]

    @property
    def bin_accuracy(self) -> Float[Tensor, "bands bins"]:
        """Accuracy in each confidence bin."""
        return self.sums[2] / self.sums[0]

    def beats_chance(self, num_classes: int) -> Bool[Tensor, " bands"]:
        """Bands whose accuracy has its lower 95% limit above 1/K; False for an empty band."""
        lower, _ = self.limits
        return lower > 1 / num_classes


class CalibrationByNoise(Metric):
    """Accuracy, confidence and top-label ECE by noise band; `compute` returns a `Reliability`.

    The band is an index, from `level_of` (exact noise levels) or `band_of` (bands between edges).
    The state is one sum, so batches, processes and array tasks merge exactly. It is float64:
    inputs come to the metric's device, and beside a device without float64 (MPS) the metric stays
    on the CPU.

    Args:
        bands: Number of noise bands.
        num_bins: Number of equal confidence bins in (0, 1].
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    sums: Tensor

    def __init__(self, bands: int, num_bins: int = 15) -> None:
        if bands < 1 or num_bins < 1:
            raise ValueError(
                f"Calibration needs at least one noise band and one confidence bin, got "
                f"bands={bands} and num_bins={num_bins}; list at least one noise level."
            )
        super().__init__()
        self.bands = bands
        self.num_bins = num_bins
        zeros = torch.zeros(3, bands, num_bins, dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")

    def update(
        self,
        logits: Float[Tensor, "b k"],
        y: Int[Tensor, " b"],
        band: Int[Tensor, " b"] | int,
    ) -> None:
        """Adds rows; an int is the band of all of them, and a row of band -1 does not count."""
        device = self.sums.device
        # first the device, then the dtype: the source may not know float64
        log_odds = logits.detach().to(device).double()
        confidence, label = log_odds.softmax(-1).max(-1)
        band = torch.as_tensor(band, device=device).expand(len(label))
        correct = label == y.to(device)
        self.sums = self.sums + tally(
            confidence, correct, band, bands=self.bands, num_bins=self.num_bins
        )

    def compute(self) -> Reliability:
        """The table summed over all processes."""
        return Reliability(self.sums.clone())
