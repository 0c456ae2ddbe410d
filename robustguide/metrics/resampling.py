"""How far chance moves a binned calibration error: intervals, and the error of perfect answers.

With gap(B) = 1/n sum over the rows of cell B of (confidence - correct), the ECE is sum_B |gap(B)|.
Chance adds to |gap| also where the true gap is 0, so the measured ECE is too large on average, and
a bootstrap of it is so twice; resamples are therefore not read as they are.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustguide.metrics.calibration import bin_of

CHUNK = 2**21  # random numbers at a time: with what is made of them, some 100 MB


class SamplingError(NamedTuple):
    """ECE that a perfectly calibrated classifier with the same confidences would show.

    Attributes:
        mean: Mean at each level.
        upper95: 95% quantile at each level.
        integral_mean: Mean of the mean over levels.
        integral_upper95: 95% quantile of the mean over levels.
    """

    mean: Float[Tensor, " levels"]
    upper95: Float[Tensor, " levels"]
    integral_mean: float
    integral_upper95: float


class Cells:
    """Answers at every level, each in the cell of its level and confidence bin.

    Args:
        confidence: Top-label confidences.
        correct: Whether the top label was right.
        num_bins: Confidence bins (lo, hi].
    """

    def __init__(
        self,
        confidence: Float[Tensor, "levels n"],
        correct: Bool[Tensor, "levels n"],
        num_bins: int,
    ) -> None:
        self.confidence = confidence
        self.gap = confidence - correct.double()
        self.bin = bin_of(confidence, num_bins)
        self.shape = len(confidence), num_bins

    def measured(self) -> Float[Tensor, "levels bins"]:
        """Gaps of the answers at hand."""
        return self._sums(self.gap[None])[0] / self.gap.shape[1]

    def resampled(
        self, index: Int[Tensor, " n"], resamples: int, seed: int
    ) -> Float[Tensor, "resamples levels bins"]:
        """Gaps of bootstrap samples: images drawn with replacement, with all their rows."""
        images, image, rows = torch.unique(index, return_inverse=True, return_counts=True)
        generator = torch.Generator().manual_seed(seed)
        found = []
        for size in _chunks(resamples, len(images)):
            weights = _multiplicities(size, len(images), generator)
            gaps = [weights @ self._by_image(level, image) for level in range(self.shape[0])]
            found.append(torch.stack(gaps, dim=1) / (weights @ rows.double())[:, None, None])
        return torch.cat(found)

    def sampling_error(self, draws: int, seed: int) -> SamplingError:
        """ECE when each answer is correct with the probability that it claims.

        Consistency resampling, Broecker and Smith (2007). Rows are drawn independently; the draws
        of one image that err together vary a little more than this says.
        """
        generator = torch.Generator().manual_seed(seed)
        levels, n = self.confidence.shape
        eces = []
        for size in _chunks(draws, levels * n):
            chance = torch.rand(size, levels, n, dtype=torch.float64, generator=generator)
            gaps = self._sums(self.confidence - (chance < self.confidence).double()) / n
            eces.append(gaps.abs().sum(-1))
        ece = torch.cat(eces)
        integral = ece.mean(1)
        return SamplingError(
            mean=ece.mean(0),
            upper95=ece.quantile(0.95, dim=0),
            integral_mean=integral.mean().item(),
            integral_upper95=integral.quantile(0.95).item(),
        )

    def _sums(self, gap: Tensor) -> Tensor:
        """Sums by cell, (draws, levels, bins), of gaps (draws, levels, n)."""
        first = torch.arange(gap.shape[0] * gap.shape[1]).reshape(gap.shape[:2])
        cell = first[:, :, None] * self.shape[1] + self.bin
        sums = gap.new_zeros(first.numel() * self.shape[1])
        return sums.index_add_(0, cell.flatten(), gap.flatten()).reshape(-1, *self.shape)

    def _by_image(self, level: int, image: Tensor) -> Tensor:
        """Sums by image and bin at one level, (images, bins)."""
        count, bins = int(image.max()) + 1, self.shape[1]
        sums = self.gap.new_zeros(count * bins)
        return sums.index_add_(0, image * bins + self.bin[level], self.gap[level]).reshape(
            count, bins
        )


def _chunks(total: int, size: int) -> list[int]:
    """How many of `total` things of a size to do at a time, so that memory stays bounded."""
    each = max(1, CHUNK // max(1, size))
    return [min(each, total - start) for start in range(0, total, each)]


def _multiplicities(samples: int, count: int, generator: torch.Generator) -> Tensor:
    """How often each of `count` things is in each sample drawn with replacement."""
    drawn = torch.randint(count, (samples, count), generator=generator)
    drawn += count * torch.arange(samples)[:, None]
    return torch.bincount(drawn.flatten(), minlength=samples * count).reshape(samples, -1).double()


def ece_limits(
    gaps: Float[Tensor, "levels bins"],
    resampled: Float[Tensor, "resamples levels bins"],
    level: float,
) -> tuple[Float[Tensor, " levels"], Float[Tensor, " levels"]]:
    """Lower and upper limit of the ECE of each level; derived here, see `Answers.intervals`."""
    tail = (1 - level) / 2
    ece, ece_star = gaps.abs().sum(-1), resampled.abs().sum(-1)
    spread = resampled.std(0)
    signed, signed_star = (split_sign(x, spread).sum(-1) for x in (gaps, resampled))
    lower = signed - (signed_star.quantile(1 - tail, dim=0) - signed_star.mean(0))
    upper = torch.maximum(2 * ece - ece_star.quantile(tail, dim=0), ece)
    return lower.clamp(0, 1), upper.clamp(0, 1)


def split_sign(
    gap: Float[Tensor, "*b bins"], spread: Float[Tensor, "*c bins"]
) -> Float[Tensor, "*b bins"]:
    """An estimate of |true gap| that is not too large on average, and about 0 where that is 0.

    Half of the images say the sign, the other half the value, averaged over all halvings of a
    normal gap with this standard deviation: E[sign(gap + e)(gap - e)] with e ~ N(0, spread**2).
    """
    z = gap / spread.clamp(min=torch.finfo(gap.dtype).tiny)
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return gap * torch.erf(z / math.sqrt(2)) - 2 * spread * density
