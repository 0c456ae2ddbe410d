"""A classifier's answers at every noise level, kept by row, and all that is computed from them."""

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustguide.metrics.calibration import Reliability, tally
from robustguide.metrics.errors import (
    adaptive_ece,
    brier,
    class_gaps,
    classwise_ece,
    nll,
    smooth_ece,
)
from robustguide.metrics.resampling import Cells, SamplingError, ece_limits
from robustguide.metrics.rows import GatheredRows, Rows

SMALL = 2000  # rows below which chance and not the classifier makes most of an ECE
SERIES = ("confidence", "correct", "nll", "brier")
CHUNK = 4096  # rows at a time: float64 copies of logits of 1000 classes then take 33 MB


class Answers:
    """Answers to (image, noise draw) pairs at every noise level, sorted by index and draw.

    `confidence`, `correct`, `nll` and `brier` are (levels, n). On the CPU, in float64.

    Args:
        rows: Series of those four names.
        gaps: Fixed-point sums by class and bin, from `class_gaps`.
        num_bins: Bins of every binned error, (lo, hi].

    Raises:
        ValueError: If a confidence is NaN.
    """

    def __init__(self, rows: Rows, gaps: Int[Tensor, "levels k bins"], num_bins: int) -> None:
        _require_numbers(rows)
        self.index = rows.index
        self.draw = rows.draw
        self.confidence = rows["confidence"]
        self.correct: Bool[Tensor, "levels n"] = rows["correct"].bool()
        self.nll = rows["nll"]
        self.brier = rows["brier"]
        self.class_gaps = gaps
        self.num_bins = num_bins
        self._resampled: dict[tuple[int, int], Tensor] = {}

    @classmethod
    def of(
        cls,
        logits: Float[Tensor, "levels n k"],
        y: Int[Tensor, " n"],
        index: Int[Tensor, " n"] | None = None,
        num_bins: int = 15,
    ) -> "Answers":
        """Answers of logits that fit into memory.

        Without an index every row is its own image; rows of one index are draws of that image,
        numbered as they come.
        """
        metric = AnswersByLevel(len(logits), logits.shape[-1], num_bins)
        index = torch.arange(len(y)) if index is None else index.cpu()
        draw = _occurrence(index)
        for rows in torch.split(torch.arange(len(y)), CHUNK):
            metric.update(logits[:, rows], y[rows], index[rows], draw[rows])
        return metric.compute()

    @property
    def n(self) -> int:
        """Rows at each level: (image, noise draw) pairs."""
        return len(self.index)

    @property
    def is_small(self) -> bool:
        """Whether n is so small that a binned error is mostly chance, which makes it too large."""
        return self.n < SMALL

    @cached_property
    def reliability(self) -> Reliability:
        """Counts, confidences and correct rows by level and confidence bin."""
        levels = len(self.confidence)
        band = torch.arange(levels).repeat_interleave(self.n)
        return Reliability(
            tally(
                self.confidence.flatten(),
                self.correct.flatten(),
                band,
                bands=levels,
                num_bins=self.num_bins,
            )
        )

    @property
    def accuracy(self) -> Float[Tensor, " levels"]:
        """Top-1 accuracy."""
        return self.correct.double().mean(1)

    @property
    def mean_confidence(self) -> Float[Tensor, " levels"]:
        """Mean top-label confidence."""
        return self.confidence.mean(1)

    @property
    def mean_nll(self) -> Float[Tensor, " levels"]:
        """Mean negative log-likelihood, in nats."""
        return self.nll.mean(1)

    @property
    def mean_brier(self) -> Float[Tensor, " levels"]:
        """Mean Brier score, in [0, 2]."""
        return self.brier.mean(1)

    @property
    def ece(self) -> Float[Tensor, " levels"]:
        """Top-label ECE over equal bins (lo, hi]. Guo et al. (2017), eq. 3."""
        return self.reliability.ece

    @property
    def integral_ece(self) -> float:
        """Mean ECE over the noise levels. Ma et al. (2024), eq. 1."""
        return self.reliability.integral_ece.item()

    @cached_property
    def adaptive_ece(self) -> Float[Tensor, " levels"]:
        """Top-label ECE over bins of equal mass."""
        levels = zip(self.confidence, self.correct, strict=True)
        return torch.stack([adaptive_ece(*level, self.num_bins) for level in levels])

    @property
    def classwise_ece(self) -> Float[Tensor, " levels"]:
        """Mean over classes of the ECE of each class's probability, over equal bins (lo, hi]."""
        return classwise_ece(self.class_gaps, self.n)

    @cached_property
    def smooth_ece(self) -> Float[Tensor, " levels"]:
        """Top-label ECE with a kernel in place of bins. Blasiok and Nakkiran (2023)."""
        levels = zip(self.confidence, self.correct, strict=True)
        return torch.stack([smooth_ece(*level) for level in levels])

    def intervals(
        self, resamples: int = 1000, level: float = 0.95, seed: int = 0
    ) -> tuple[Float[Tensor, " levels"], Float[Tensor, " levels"]]:
        """Lower and upper limit of the true binned ECE of each noise level, from a bootstrap.

        Images are drawn with replacement, with all their draws and levels together. Measured ECEs
        are too large on average, by an amount that depends on the unknown true gaps, so the two
        limits lean on estimates on either side of it. Derived here:

        - upper: basic bootstrap limit, 2 ECE - q of the resampled ECEs, which subtracts the
          bootstrap's bias, no more; never below the measured ECE;
        - lower: the signs of the gaps are told by one half of the images, their sizes by the
          other (`split_sign`), which is too small on average where a sign is in doubt; less the
          upper quantile of its resamples around their mean.

        For a calibrated classifier the lower limit is thus near 0, and the interval covers more
        often than it claims (97 to 100% for 95%); where most gaps are clear of chance it covers as
        often as it claims (94 to 98%, in trials with n of 50 to 4000). It covers less often where
        confident answers are wrong a handful of times in all: 77% with 4 wrong answers expected,
        87% with 10, 94% with 20. Of a single image nothing can be said: (0, 1).

        Raises:
            ValueError: If there are fewer than 2 resamples, or `level` is no probability.
        """
        low, high = self._limits(self._cells.shape, resamples, level, seed)
        return torch.minimum(low, self.ece), torch.maximum(high, self.ece)  # but for rounding

    def integral_interval(
        self, resamples: int = 1000, level: float = 0.95, seed: int = 0
    ) -> tuple[float, float]:
        """Limits of the true mean over levels of the binned ECE; see `intervals`."""
        levels, bins = self._cells.shape
        low, high = self._limits((1, levels * bins), resamples, level, seed)
        return min(low.item(), self.integral_ece), max(high.item(), self.integral_ece)

    def sampling_error(self, draws: int = 200, seed: int = 0) -> SamplingError:
        """ECE that a perfectly calibrated classifier with these confidences and n would show."""
        return self._cells.sampling_error(draws, seed)

    @cached_property
    def _cells(self) -> Cells:
        return Cells(self.confidence, self.correct, self.num_bins)

    def _limits(
        self, shape: tuple[int, int], resamples: int, level: float, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Limits of the levels, (levels, bins), or of their mean, (1, levels * bins)."""
        if resamples < 2 or not 0 < level < 1:
            raise ValueError(
                f"An interval needs 2 resamples or more and a level between 0 and 1, got "
                f"resamples={resamples} and level={level}."
            )
        if len(torch.unique(self.index)) < 2:
            return torch.zeros(shape[0]).double(), torch.ones(shape[0]).double()
        if (resamples, seed) not in self._resampled:  # the last one serves both kinds of interval
            found = self._cells.resampled(self.index, resamples, seed)
            self._resampled = {(resamples, seed): found}
        scale = shape[0] / len(self.confidence)
        gaps = self._cells.measured().reshape(shape) * scale
        resampled = self._resampled[resamples, seed].reshape(resamples, *shape) * scale
        return ece_limits(gaps, resampled, level)


class AnswersByLevel(GatheredRows):
    """Keeps a classifier's answers at each noise level; `compute` returns `Answers`.

    Rows as in `RowsByLevel`, and integer sums by class: every number is the same for any order of
    batches and number of processes, exactly, as long as the logits are.

    Args:
        levels: Number of noise levels.
        num_classes: Number of classes.
        num_bins: Equal bins in (0, 1] of the errors.

    Raises:
        ValueError: If one of them is not positive.
    """

    gaps: Tensor

    def __init__(self, levels: int, num_classes: int, num_bins: int = 15) -> None:
        if min(levels, num_classes, num_bins) < 1:
            raise ValueError(
                f"Answers need at least one noise level, one class and one bin, got "
                f"levels={levels}, num_classes={num_classes} and num_bins={num_bins}."
            )
        super().__init__(levels, SERIES)
        self.num_classes = num_classes
        self.num_bins = num_bins
        zeros = torch.zeros(levels, num_classes, num_bins, dtype=torch.long)
        self.add_state("gaps", zeros, dist_reduce_fx="sum")

    def update(
        self,
        logits: Float[Tensor, "levels b k"],
        y: Int[Tensor, " b"],
        index: Int[Tensor, " b"],
        draw: Int[Tensor, " b"] | int = 0,
    ) -> None:
        """Adds a batch: logits at every level, labels, indices of the images, number of the draw.

        Raises:
            ValueError: If the number of levels or classes is another.
        """
        if logits.shape != (self.levels, len(index), self.num_classes):
            raise ValueError(
                f"Got logits of shape {tuple(logits.shape)}, expected (levels, b, k) = "
                f"{(self.levels, len(index), self.num_classes)}."
            )
        y = y.to(self.device)
        answers = []
        for level, rows in enumerate(logits):  # one at a time: float64 of all would be large
            rows = rows.detach().to(self.device).double()
            probabilities = rows.softmax(-1)
            confidence, label = probabilities.max(-1)
            correct = (label == y).double()
            answers.append(torch.stack([confidence, correct, nll(rows, y), brier(rows, y)]))
            self.gaps[level] += class_gaps(probabilities, y, self.num_bins)
        series = torch.stack(answers, dim=1)
        self.add(index, draw, dict(zip(SERIES, series, strict=True)))

    def compute(self) -> Answers:
        """The answers of all processes.

        Raises:
            ValueError: If a pair of index and draw came twice, or logits were not finite.
        """
        return Answers(self.rows(), self.gaps.cpu().clone(), self.num_bins)


def _occurrence(index: Tensor) -> Tensor:
    """How many rows before each one have its index."""
    order = index.argsort(stable=True)
    first = torch.searchsorted(index[order], index[order])
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(index)) - first)


def _require_numbers(rows: Rows) -> None:
    missing = rows["confidence"].isnan()
    if not missing.any():
        return
    counts: Sequence[int] = missing.sum(1).tolist()
    where = ", ".join(f"{level} ({count})" for level, count in enumerate(counts) if count)
    image = rows.index[missing.any(0)][0].item()
    raise ValueError(
        f"Logits are NaN or infinite at noise levels {where} (counted from 0; in brackets how "
        f"many of {len(rows)} rows), first of image {image}: they have no confidence. Look at "
        f"what the classifier is shown there, or whether its training diverged."
    )
