"""Errors of a classifier's probabilities beside the binned top-label one: pure functions, float64.

Proper scores of each row, and three ways to measure calibration: bins of equal mass, bins for each
class, and a smooth kernel in place of bins.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustguide.metrics.calibration import bin_of

UNIT = 2**32  # a probability of 1 in fixed point: integer sums do not depend on their order
STEPS = 1024  # bandwidths are multiples of 1 / STEPS


def nll(logits: Float[Tensor, "*b k"], y: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Negative log-likelihood `-log p_y` of each row, in nats; infinite where p_y is 0."""
    log_p = logits.double().log_softmax(-1)
    return -log_p.gather(-1, y[..., None])[..., 0]


def brier(logits: Float[Tensor, "*b k"], y: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Squared distance of the probabilities from the label, in [0, 2]. Brier (1950)."""
    gap = logits.double().softmax(-1)
    gap.scatter_add_(-1, y[..., None], -torch.ones_like(gap[..., :1]))
    return gap.square().sum(-1)


def adaptive_ece(
    confidence: Float[Tensor, " n"], correct: Bool[Tensor, " n"], num_bins: int
) -> Float[Tensor, ""]:
    """ECE over bins that hold equally many rows (the first ones a row more where n asks for it).

    Rows of equal confidence share the mean of their `correct`, so that it does not matter which of
    them falls on which side of an edge. The top-label case of Nixon et al. (2019).
    """
    value, group, size = torch.unique(confidence.double(), return_inverse=True, return_counts=True)
    hits = torch.bincount(group, weights=correct.double(), minlength=len(value))
    gap = (value - hits / size).repeat_interleave(size)  # sorted by confidence
    bins = torch.arange(num_bins, device=gap.device)
    sizes = len(gap) // num_bins + (bins < len(gap) % num_bins)
    sums = gap.new_zeros(num_bins).index_add_(0, bins.repeat_interleave(sizes), gap)
    error: Tensor = sums.abs().sum() / len(gap)
    return error


def class_gaps(
    probabilities: Float[Tensor, "b k"], y: Int[Tensor, " b"], num_bins: int
) -> Int[Tensor, "k num_bins"]:
    """Sum of `p_k - 1[y = k]` over the rows of each class and bin of p_k, times 2**32.

    Integers, each row rounded by 1e-10 at most: sums are the same in every order.
    """
    classes = probabilities.shape[1]
    gap = (probabilities.double() * UNIT).round().long()
    gap.scatter_add_(1, y[:, None], torch.full_like(gap[:, :1], -UNIT))
    first = torch.arange(classes, device=gap.device) * num_bins
    cell = first + bin_of(probabilities, num_bins)
    sums = gap.new_zeros(classes * num_bins)
    return sums.index_add_(0, cell.flatten(), gap.flatten()).reshape(classes, num_bins)


def classwise_ece(gaps: Int[Tensor, "*l k bins"], n: int) -> Float[Tensor, "*l"]:
    """Mean over the classes of the ECE of p_k against 1[y = k], from `class_gaps` of n rows.

    Equal bins (lo, hi] of p_k; every row counts for every class. Kull et al. (2019).
    """
    return gaps.double().abs().sum(-1).mean(-1) / (UNIT * n)


def smooth_ece(confidence: Float[Tensor, " n"], correct: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """ECE with a Gaussian kernel for bins: the bandwidth h at which the error equals h.

    The error at h is the integral over t in [0, 1] of |1/n sum_i K_h(t, c_i) (c_i - correct_i)|,
    with K_h reflected at 0 and 1. Blasiok and Nakkiran (2023).

    Grid as in the authors' code: rows are shared between two of at least 1000 nodes, the kernel
    ends at distance 1/2, the integral is a sum over at least 200 points, and h is the smallest
    multiple of 1/1024, from 2/1024, that is not below its error. Unlike there, rows near 0 and 1
    count in full; the half that the authors' code drops matters for saturated classifiers.

    Memory is O(n + 10 / h), time O(n + 1/h log 1/h) for each of ten bandwidths.
    """
    confidence = confidence.double()
    gap = confidence - correct.double()
    low, high = 1, STEPS
    while high - low > 1:
        middle = (low + high) // 2
        if middle / STEPS < smoothed_error(confidence, gap, middle / STEPS).item():
            low = middle
        else:
            high = middle
    return smoothed_error(confidence, gap, high / STEPS)


def smoothed_error(
    confidence: Float[Tensor, " n"], gap: Float[Tensor, " n"], bandwidth: float
) -> Float[Tensor, ""]:
    """Integral of the absolute smoothed gap at one bandwidth, as in `smooth_ece`."""
    nodes = max(2000, round(20 / bandwidth)) // 2 | 1
    place = confidence * (nodes - 1)
    left = place.long().clamp(max=nodes - 2)
    right_share = place - left
    points = torch.linspace(
        0, nodes - 1, max(200, int(10 / bandwidth)), dtype=gap.dtype, device=gap.device
    )
    smoothed = []
    for weight in (gap, torch.ones_like(gap)):
        sums = gap.new_zeros(nodes)
        sums.index_add_(0, left, weight * (1 - right_share))
        sums.index_add_(0, left + 1, weight * right_share)
        smoothed.append(_between(_reflected(sums, bandwidth), points))
    return smoothed[0].abs().sum() / smoothed[1].sum()


def _reflected(sums: Float[Tensor, " nodes"], bandwidth: float) -> Float[Tensor, " nodes"]:
    """Convolution on [0, 1] with a Gaussian, up to a factor, as a circular one of the mirror."""
    nodes = len(sums)
    mirrored = torch.cat([sums, sums[1:-1].flip(0)])
    mirrored[[0, nodes - 1]] *= 2  # an end and its mirror image are one node
    steps = torch.arange(len(mirrored), device=sums.device)
    distance = torch.minimum(steps, len(mirrored) - steps).double() / (nodes - 1)
    kernel = torch.exp(-0.5 * (distance / bandwidth) ** 2) * (distance <= 0.5)
    spectrum = torch.fft.rfft(mirrored) * torch.fft.rfft(kernel)
    both: Tensor = torch.fft.irfft(spectrum, n=len(mirrored))
    return both[:nodes]


def _between(values: Float[Tensor, " nodes"], points: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """Linear interpolation at fractional indices."""
    left = points.long().clamp(max=len(values) - 2)
    return torch.lerp(values[left], values[left + 1], points - left)
