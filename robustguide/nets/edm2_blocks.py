"""Layers of EDM2, which keep the magnitude of what passes through them.

A tensor has magnitude 1 when the mean of its squares is 1. Weights are divided by the magnitude
of each row inside every forward pass, so that a stored row is a direction and its length means
nothing; sums, concatenations and nonlinearities are scaled so that independent inputs of magnitude
1 give outputs of magnitude 1. No layer has a bias. Karras et al. (2024), appendix B.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustguide.nets.adm_blocks import attend

EPS = 1e-4  # added to a magnitude before one divides by it, so that zeros stay zeros
SILU_MAGNITUDE = 0.596  # of SiLU for unit normal input. Karras et al. (2024), eq. 81


def normalize(x: Tensor, dim: int | None = None) -> Tensor:
    """Divides x by its magnitude, taken over one axis, or over all axes but the first."""
    dims = tuple(range(1, x.ndim)) if dim is None else (dim,)
    dtype = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=dtype)
    magnitude = length / math.sqrt(math.prod(x.shape[axis] for axis in dims))
    return x / (magnitude + EPS).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU, scaled. Karras et al. (2024), eq. 81."""
    return F.silu(x) / SILU_MAGNITUDE


def mp_sum(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Weighted sum, with 0 <= t <= 1 the part of b, scaled. Karras et al. (2024), eq. 88."""
    scale = math.hypot(1 - t, t)
    return torch.add(a * ((1 - t) / scale), b, alpha=t / scale)


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Channels of both, contributing as 1 - t and t whatever their number, scaled.

    Karras et al. (2024), eq. 103.
    """
    channels = a.shape[1], b.shape[1]
    total = math.sqrt(sum(channels)) / math.hypot(1 - t, t)
    parts = [
        x * (total * part / math.sqrt(count))
        for x, part, count in zip((a, b), (1 - t, t), channels, strict=True)
    ]
    return torch.cat(parts, dim=1)


def smoothing(x: Tensor, taps: Sequence[float]) -> Tensor:
    """Kernel (channels of x, 1, n, n) that smooths every channel alike, with sum 1."""
    # Filled on the device: numbers brought from the host would have it wait.
    row = torch.cat([x.new_full((1,), tap / sum(taps)) for tap in taps])
    return (row[:, None] * row).expand(x.shape[1], 1, -1, -1)


class Downsample(nn.Module):
    """Smooths by a separable filter with an even number of taps, and keeps every second pixel."""

    def __init__(self, taps: Sequence[float] = (1, 1)) -> None:
        super().__init__()
        self.taps = tuple(taps)

    def forward(self, x):
        kernel, padding = smoothing(x, self.taps), (len(self.taps) - 1) // 2
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])


class Upsample(nn.Module):
    """The transpose of `Downsample`, four times as strong, so that constants stay."""

    def __init__(self, taps: Sequence[float] = (1, 1)) -> None:
        super().__init__()
        self.taps = tuple(taps)

    def forward(self, x):
        kernel, padding = 4 * smoothing(x, self.taps), (len(self.taps) - 1) // 2
        return F.conv_transpose2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])


class MPFourier(nn.Module):
    """Random waves of a number (b,), as (b, channels). Karras et al. (2024), eq. 75."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x):
        dtype = torch.promote_types(x.dtype, torch.float32)
        angle = torch.outer(x.to(dtype), self.freqs.to(dtype)) + self.phases.to(dtype)
        return (math.sqrt(2) * angle.cos()).to(x.dtype)


class MPConv(nn.Module):
    """Convolution, or linear layer where no kernel size is given, with rows of unit magnitude.

    In training mode the normalised weight is written back before it is used, so that an optimizer
    meets weights of one length. Karras et al. (2024), eqs. 47 and 66.
    """

    def __init__(self, in_channels: int, out_channels: int, *kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel_size))

    def forward(self, x, gain: float | Tensor = 1.0):
        """The layer on x in the dtype of x; `gain` multiplies the result."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize(self.weight.to(dtype)))
        # A gain stored in float16 is divided in float16, as published networks are run.
        gain = gain / math.sqrt(self.weight[0].numel())
        weight = (normalize(self.weight.to(dtype)) * gain).to(x.dtype)
        if weight.ndim == 2:
            return F.linear(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


@dataclass(frozen=True)
class Blocks:
    """What all blocks of one network have in common; the methods make them.

    Attributes:
        embedding: Width of the embedding of noise level and label.
        channels_per_head: Width of a head of attention; blocks with fewer channels have none.
        dropout: Probability, inside the residual branch.
        res_balance: Part of the residual branch in the sum.
        attn_balance: Part of the attention in the sum.
        clip: Bound of what a block gives; null for none.
        taps: Filter with which images are resampled.
    """

    embedding: int
    channels_per_head: int
    dropout: float
    res_balance: float
    attn_balance: float
    clip: float | None
    taps: tuple[float, ...]

    def heads(self, channels: int) -> int:
        """Number of heads of attention on so many channels.

        Raises:
            ValueError: They do not divide the channels.
        """
        heads = channels // self.channels_per_head
        if heads and channels % heads:
            raise ValueError(
                f"channels_per_head={self.channels_per_head} makes {heads} heads of {channels} "
                "channels, which do not divide; give a divisor of the widths of all levels with "
                "attention and of the last level."
            )
        return heads

    def encoder(
        self, channels: int, out_channels: int, *, attention: bool = False, down: bool = False
    ) -> "EncoderBlock":
        """A block of the way down."""
        resample = Downsample(self.taps) if down else nn.Identity()
        return EncoderBlock(self, channels, out_channels, attention, resample)

    def decoder(
        self,
        channels: int,
        out_channels: int,
        *,
        skip_channels: int = 0,
        attention: bool = False,
        up: bool = False,
    ) -> "DecoderBlock":
        """A block of the way up, which reads the channels and those of a skip connection."""
        resample = Upsample(self.taps) if up else nn.Identity()
        return DecoderBlock(self, channels, out_channels, attention, resample, skip_channels)


class Block(nn.Module):
    """What both kinds of block share: residual branch, attention, and how they are joined.

    Args:
        blocks: What all blocks have in common.
        in_channels: Channels that the residual branch reads.
        channels: Channels of the block's output.
        attention: Whether there is attention behind the residual branch.
    """

    def __init__(self, blocks: Blocks, in_channels: int, channels: int, attention: bool) -> None:
        super().__init__()
        self.blocks = blocks
        self.out_channels = channels
        self.emb_gain = nn.Parameter(torch.zeros(()))
        self.conv_res0 = MPConv(in_channels, channels, 3, 3)
        self.emb_linear = MPConv(blocks.embedding, channels)
        self.dropout = nn.Dropout(blocks.dropout)
        self.conv_res1 = MPConv(channels, channels, 3, 3)
        self.heads = blocks.heads(channels) if attention else 0
        if self.heads:
            self.attn_qkv = MPConv(channels, 3 * channels, 1, 1)
            self.attn_proj = MPConv(channels, channels, 1, 1)

    def residual(self, x: Tensor, emb: Tensor) -> Tensor:
        """The residual branch; the embedding scales its channels."""
        h = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, self.emb_gain) + 1
        h = mp_silu(h * scale[:, :, None, None].to(h.dtype))
        return self.conv_res1(self.dropout(h))

    def attention(self, x: Tensor) -> Tensor:
        """Cosine attention between pixels; channels are ordered (head, channel, qkv)."""
        qkv = self.attn_qkv(x).flatten(2).unflatten(1, (self.heads, -1, 3))
        q, k, v = (each.mT for each in normalize(qkv, dim=2).unbind(3))
        h = attend(q, k, v).mT.flatten(1, 2)
        return self.attn_proj(h.unflatten(2, x.shape[2:]))

    def joined(self, x: Tensor, residual: Tensor) -> Tensor:
        """Main and residual branch, then attention, clamped."""
        x = mp_sum(x, residual, self.blocks.res_balance)
        if self.heads:
            x = mp_sum(x, self.attention(x), self.blocks.attn_balance)
        clip = self.blocks.clip
        return x if clip is None else x.clamp(-clip, clip)


class EncoderBlock(Block):
    """Its main branch is normalised over channels. Karras et al. (2024), figure 21."""

    def __init__(
        self,
        blocks: Blocks,
        in_channels: int,
        channels: int,
        attention: bool,
        resample: nn.Module,
    ) -> None:
        super().__init__(blocks, channels, channels, attention)
        self.resample = resample
        self.conv_skip = match(in_channels, channels)

    def forward(self, x, emb):
        x = normalize(self.conv_skip(self.resample(x)), dim=1)
        return self.joined(x, self.residual(x, emb))


class DecoderBlock(Block):
    """Its residual branch reads what the block is given. Karras et al. (2024), figure 21."""

    def __init__(
        self,
        blocks: Blocks,
        in_channels: int,
        channels: int,
        attention: bool,
        resample: nn.Module,
        skip_channels: int,
    ) -> None:
        super().__init__(blocks, in_channels + skip_channels, channels, attention)
        self.resample = resample
        self.skip_channels = skip_channels
        self.conv_skip = match(in_channels + skip_channels, channels)

    def forward(self, x, emb):
        x = self.resample(x)
        return self.joined(self.conv_skip(x), self.residual(x, emb))


def match(in_channels: int, channels: int) -> nn.Module:
    """A 1x1 convolution where the number of channels changes."""
    return nn.Identity() if in_channels == channels else MPConv(in_channels, channels, 1, 1)
