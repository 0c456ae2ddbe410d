"""Blocks of EDM's networks: resampling convolutions, residual blocks with attention, embeddings.

One residual block serves both of their architectures: that of Dhariwal and Nichol (2021), where
the embedding scales and shifts a norm and resampling repeats or averages pixels, and that of Song
et al. (2021), where it is added, sums keep their magnitude, and resampling may be antialiased.
Karras et al. (2022), appendix F.3 and table 7. Parameters are named as in the public checkpoints.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustguide.nets.adm_blocks import GroupNorm32, attend, zeroed

Resample = Callable[[Tensor, Tensor], Tensor]


class Norm(GroupNorm32):
    """Group norm in float32 at least, of up to 32 groups with 4 channels or more each."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        groups = min(32, channels // 4)
        if groups < 1 or channels % groups:
            raise ValueError(
                f"{channels} channels cannot be normed in {groups} groups of at least 4; give "
                "widths (model_channels times channel_mult) that are multiples of 32, or of 4 "
                "below 128."
            )
        nn.GroupNorm.__init__(self, groups, channels, eps)


def separable(taps: Sequence[float]) -> Tensor:
    """Square kernel (1, 1, n, n) with these taps along both axes, of sum 1.

    Raises:
        ValueError: For an odd number of taps, which would shift the image by half a pixel.
    """
    if not taps or len(taps) % 2 or sum(taps) == 0:
        raise ValueError(
            f"resample_filter must have an even number of taps and a sum, got {list(taps)}; "
            "[1, 1] averages two pixels, [1, 3, 3, 1] antialiases."
        )
    row = torch.tensor(taps, dtype=torch.float32)
    kernel = torch.outer(row, row)
    return (kernel / kernel.sum())[None, None]


def margin(kernel: Tensor) -> int:
    """Zeros to put around an image so that resampling exactly halves or doubles it."""
    return (kernel.shape[-1] - 1) // 2


def halved(x: Tensor, kernel: Tensor, padding: int | None = None) -> Tensor:
    """Every other pixel of x behind a smoothing kernel."""
    padding = margin(kernel) if padding is None else padding
    kernel = kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1)
    return F.conv2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])


def doubled(x: Tensor, kernel: Tensor) -> Tensor:
    """Zeros between the pixels of x, smoothed to the same mean; taps 1, 1 repeat pixels."""
    spread = 4 * kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1)
    return F.conv_transpose2d(x, spread, stride=2, padding=margin(kernel), groups=x.shape[1])


class Resampling(nn.Module):
    """Halves or doubles an image, without parameters."""

    def __init__(self, resample: Resample, taps: Sequence[float]) -> None:
        super().__init__()
        self.resample = resample
        self.register_buffer("resample_filter", separable(taps))

    def forward(self, x):
        return self.resample(x, self.resample_filter)


class Conv(nn.Conv2d):
    """Convolution that keeps the size of the image, unless it resamples the image first."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int,
        resample: Resample | None = None,
        taps: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__(channels, out_channels, kernel, padding=kernel // 2)
        self.resample = resample
        if resample is not None:
            self.register_buffer("resample_filter", separable(taps))

    def forward(self, x):
        if self.resample is not None:
            x = self.resample(x, self.resample_filter)
        return super().forward(x)


class HalvingConv(nn.Conv2d):
    """3x3 convolution that halves the image behind itself, not before as `Conv` does.

    The smoothing sees the convolution's values beyond the border, which zeros there would hide.
    """

    def __init__(self, channels: int, out_channels: int, taps: Sequence[float]) -> None:
        kernel = separable(taps)
        super().__init__(channels, out_channels, 3, padding=1 + margin(kernel))
        self.register_buffer("resample_filter", kernel)

    def forward(self, x):
        return halved(super().forward(x), self.resample_filter, padding=0)


class Sinusoids(nn.Module):
    """Cosines, then sines, of noise conditions (b,) at frequencies from 1 to 1/10000, float32.

    Args:
        channels: Even width.
        endpoint: Whether the lowest frequency is 1/10000 itself, or one step above it.
    """

    def __init__(self, channels: int, *, endpoint: bool) -> None:
        super().__init__()
        self.channels, self.endpoint = channels, endpoint

    def forward(self, noise):
        half = self.channels // 2
        index = torch.arange(half, dtype=torch.float32, device=noise.device)
        frequencies = 1e-4 ** (index / (half - self.endpoint))
        angles = noise.float()[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Fourier(nn.Module):
    """Cosines, then sines, of noise conditions (b,) at fixed random frequencies, float32.

    Tancik et al. (2020).
    """

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, noise):
        angles = noise.float()[:, None] * (2 * math.pi * self.freqs.float())
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def one_hot(y: Tensor, label_dim: int, dtype: torch.dtype) -> Tensor:
    """Labels as unit vectors (b, label_dim); the null label `label_dim` is the zero vector."""
    # F.one_hot looks for the largest label and so waits for the device.
    return (y[:, None] == torch.arange(label_dim, device=y.device)).to(dtype)


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (b, heads, h * w, c) of channels ordered as (head, c, qkv)."""
    q, k, v = qkv.flatten(2).unflatten(1, (heads, -1, 3)).unbind(3)
    return q.mT, k.mT, v.mT


@dataclass(frozen=True)
class Style:
    """What all residual blocks of one network have in common.

    Attributes:
        embedding: Width of the embedding.
        dropout: Probability, between the convolutions.
        adaptive_scale: The embedding scales and shifts the second norm, not being added before it.
        skip_scale: Factor of a sum of two branches.
        eps: Of the norms.
        taps: Of the filter behind which images are resampled.
        resamples_by_conv: Whether a 1x1 convolution stands in the skip of every resampling block.
    """

    embedding: int
    dropout: float
    adaptive_scale: bool
    skip_scale: float
    eps: float
    taps: tuple[float, ...]
    resamples_by_conv: bool


class Block(nn.Module):
    """Residual block on (b, channels, h, w) and the embedding, attention behind it if `heads`."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        style: Style,
        *,
        heads: int = 0,
        resample: Resample | None = None,
    ) -> None:
        super().__init__()
        self.style, self.heads, self.out_channels = style, heads, out_channels
        self.norm0 = Norm(channels, style.eps)
        self.conv0 = Conv(channels, out_channels, 3, resample, style.taps)
        self.affine = nn.Linear(style.embedding, out_channels * (1 + style.adaptive_scale))
        self.norm1 = Norm(out_channels, style.eps)
        self.dropout = nn.Dropout(style.dropout)
        self.conv1 = zeroed(Conv(out_channels, out_channels, 3))
        self.skip: nn.Module = nn.Identity()
        if channels != out_channels or (resample and style.resamples_by_conv):
            self.skip = Conv(channels, out_channels, 1, resample, style.taps)
        elif resample:
            self.skip = Resampling(resample, style.taps)
        if heads:
            self.norm2 = Norm(out_channels, style.eps)
            self.qkv = Conv(out_channels, 3 * out_channels, 1)
            self.proj = zeroed(Conv(out_channels, out_channels, 1))

    def forward(self, x, emb):
        h = self.conv0(F.silu(self.norm0(x)))
        told = self.affine(emb)[:, :, None, None]
        if self.style.adaptive_scale:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + told)
        h = self.conv1(self.dropout(F.silu(h)))
        x = (self.skip(x) + h) * self.style.skip_scale
        return (x + self.attention(x)) * self.style.skip_scale if self.heads else x

    def attention(self, x: Tensor) -> Tensor:
        """What attention adds to x."""
        q, k, v = split_heads(self.qkv(self.norm2(x)), self.heads)
        return self.proj(attend(q, k, v).mT.flatten(1, 2).unflatten(2, x.shape[2:]))
