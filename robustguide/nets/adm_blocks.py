"""Blocks of the ADM networks: residual blocks that hear the time step, attention, resampling.

A residual block is `x + F(x, emb)`, with `F` two 3x3 convolutions behind group norms and `emb`
either added between them (Ho et al. 2020) or applied as scale and shift of the second norm
(Dhariwal and Nichol 2021, section 3.1). The last layer of every residual branch starts at zero.
Submodules are numbered as in the public checkpoints, layers without parameters included.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustguide.nets.fused_norm import is_transformed, normed

# Longest sequence whose products are made in float32 on the CPU; longer ones are a large part of
# a network's work, and bfloat16 has hardware.
SHORT = 64


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoids of t (b,), integer or not, as float32 (b, dim): cosines first, then sines.

    Frequencies fall geometrically from 1 towards 1/max_period; an odd `dim` ends in a zero column.
    Vaswani et al. (2017), section 3.5.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angle = t.float()[:, None] * torch.exp(-math.log(max_period) * exponent)
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=-1), (0, dim % 2))


def zeroed(layer: nn.Module) -> nn.Module:
    """The same layer with its parameters set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class GroupNorm32(nn.GroupNorm):
    """Group norm computed in float32 at least, whatever the dtype of its input and parameters.

    The number of groups is the largest one up to 32 that divides the channels.
    """

    def __init__(self, channels: int) -> None:
        groups = next(n for n in range(min(32, channels), 0, -1) if channels % n == 0)
        super().__init__(groups, channels)

    def forward(self, x):
        dtype = torch.promote_types(x.dtype, torch.float32)
        if x.device.type == "cpu" and self.weight.dtype == dtype:
            # its kernel computes half precision in that of the parameters
            return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return F.group_norm(x.to(dtype), self.num_groups, weight, bias, self.eps).to(x.dtype)


class MeanOfFour(nn.Module):
    """Mean of 2x2 pixels; the kernels of the pooling are slow on the CPU."""

    def forward(self, x):
        is_even = x.shape[-1] % 2 == x.shape[-2] % 2 == 0
        if x.device.type == "cpu" and is_even and not is_transformed():
            return _MeanOfFour.apply(x)
        return F.avg_pool2d(x, 2)


class _MeanOfFour(torch.autograd.Function):
    """Sums rows first, which lie together in memory."""

    @staticmethod
    def forward(ctx, x):
        rows = x[..., ::2, :] + x[..., 1::2, :]
        return (rows[..., ::2] + rows[..., 1::2]).div_(4)

    @staticmethod
    def backward(ctx, grad):
        b, c, h, w = grad.shape
        if grad.is_contiguous():
            repeated = (grad / 4)[..., None, :, None].expand(b, c, h, 2, w, 2)
            return repeated.reshape(b, c, 2 * h, 2 * w)
        repeated = (grad / 4).permute(0, 2, 3, 1)[:, :, None, :, None].expand(b, h, 2, w, 2, c)
        return repeated.reshape(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halves height and width, by a strided convolution or by the mean of 2x2 pixels."""

    def __init__(self, channels: int, *, conv: bool) -> None:
        super().__init__()
        self.op = MeanOfFour()
        if conv:
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.op(x)


class Upsample(nn.Module):
    """Doubles height and width by repetition, with a convolution behind it if `conv`."""

    def __init__(self, channels: int, *, conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if conv else nn.Identity()

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResBlock(nn.Module):
    """Residual block on (b, channels, h, w) and the time embedding (b, embedding).

    Args:
        scale_shift: The embedding scales and shifts the second norm, not being added before it.
        resample: A `Downsample` or `Upsample` without parameters, applied in both branches.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding: int,
        *,
        dropout: float = 0.0,
        scale_shift: bool = False,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = resample or nn.Identity()
        self.in_layers = nn.Sequential(
            GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        emb_channels = 2 * out_channels if scale_shift else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, emb_channels))
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x, emb):
        norm, silu, conv = self.in_layers
        h = conv(self.resample(normed(norm, x, activation=silu)))
        emb = self.emb_layers(emb)
        norm, silu, dropout, conv = self.out_layers
        if self.scale_shift:
            h = normed(norm, h, emb, silu)
        else:
            h = normed(norm, h + emb[:, :, None, None], activation=silu)
        return self.skip_connection(self.resample(x)) + conv(dropout(h))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (b, heads, length, channels) tensors; on the CPU it can be derived twice."""
    if q.device.type != "cpu":
        # Fused kernels have no second derivative; a caller who needs it sets torch's switch.
        return F.scaled_dot_product_attention(q, k, v)
    # matrices that lie in memory by columns are multiplied slowly
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    needs_graph = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    is_half = q.dtype in (torch.bfloat16, torch.float16)
    if is_half and k.shape[-2] > SHORT:
        if not needs_graph:
            return F.scaled_dot_product_attention(q, k, v)
    elif is_half:
        q, k = q.float(), k.float()
    heads, scale = q.shape[:2], 1 / math.sqrt(q.shape[-1])
    q, k = q.flatten(0, 1), k.flatten(0, 1)
    logits = torch.baddbmm(q.new_empty(1), q, k.mT, beta=0, alpha=scale).unflatten(0, heads)
    return logits.softmax(-1).to(v.dtype) @ v


def head_count(channels: int, num_heads: int, num_head_channels: int) -> int:
    """Heads of an attention layer: of `num_head_channels` each, or `num_heads` if that is -1.

    Raises:
        ValueError: The channels do not divide.
    """
    by_number = num_head_channels == -1
    divisor = num_heads if by_number else num_head_channels
    if divisor < 1 or channels % divisor:
        raise ValueError(
            f"{'num_heads' if by_number else 'num_head_channels'}={divisor} does not divide the "
            f"{channels} channels of an attention layer; give a divisor of the widths of all "
            f"levels with attention and of the last level, which has it in the middle block."
        )
    return num_heads if by_number else channels // num_head_channels


def tokens(x: Tensor) -> Tensor:
    """(b, h * w, c) of maps (b, c, h, w); no copy of those that are channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class TokenConv(nn.Conv1d):
    """A convolution of width 1, as checkpoints have it, on tokens (b, length, c)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, x):
        return F.linear(x, self.weight[:, :, 0], self.bias)


def split_heads(qkv: Tensor, heads: int, *, heads_first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (b, heads, length, c) from (b, length, 3 * heads * c).

    Public checkpoints order the channels as (head, qkv, c), or in the newer way as (qkv, head, c).
    """
    order = (heads, 3) if heads_first else (3, heads)
    q, k, v = qkv.unflatten(2, (*order, -1)).unbind(3 if heads_first else 2)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class AttentionBlock(nn.Module):
    """Self-attention between the pixels of (b, channels, h, w), added to its input."""

    def __init__(self, channels: int, heads: int, *, heads_first: bool) -> None:
        super().__init__()
        self.heads = heads
        self.heads_first = heads_first
        self.norm = GroupNorm32(channels)
        self.qkv = TokenConv(channels, 3 * channels)
        self.proj_out = zeroed(TokenConv(channels, channels))

    def forward(self, x):
        qkv = self.qkv(tokens(normed(self.norm, x)))
        q, k, v = split_heads(qkv, self.heads, heads_first=self.heads_first)
        h = self.proj_out(attend(q, k, v).transpose(1, 2).flatten(2))
        return x + h.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class Normed(nn.Sequential):
    """A norm of maps, its activation and further layers."""

    def forward(self, x):
        norm, activation, *layers = self
        x = normed(norm, x, activation=activation)
        for layer in layers:
            x = layer(x)
        return x


class BlockSequence(nn.Sequential):
    """A sequence whose residual blocks also hear the time embedding."""

    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


@dataclass(frozen=True)
class Blocks:
    """What all blocks of one network have in common; the methods make them.

    Attributes:
        embedding: Width of the time embedding.
        resblock_updown: Resample inside residual blocks rather than by layers of their own.
        conv_resample: Such layers hold a convolution.
    """

    embedding: int
    dropout: float
    scale_shift: bool
    resblock_updown: bool
    conv_resample: bool
    num_head_channels: int
    heads_first: bool

    def residual(
        self, channels: int, out_channels: int, resample: nn.Module | None = None
    ) -> ResBlock:
        """A residual block."""
        return ResBlock(
            channels,
            out_channels,
            self.embedding,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
            resample=resample,
        )

    def attention(self, channels: int, num_heads: int) -> AttentionBlock:
        """An attention block; `num_heads` counts where the network fixes no width of a head."""
        heads = head_count(channels, num_heads, self.num_head_channels)
        return AttentionBlock(channels, heads, heads_first=self.heads_first)

    def stage(
        self, channels: int, out_channels: int, num_heads: int, *, attention: bool
    ) -> BlockSequence:
        """A residual block, with an attention block behind it if wanted."""
        stage = BlockSequence(self.residual(channels, out_channels))
        return stage.append(self.attention(out_channels, num_heads)) if attention else stage

    def down(self, channels: int) -> nn.Module:
        """A block that halves height and width."""
        if self.resblock_updown:
            return self.residual(channels, channels, Downsample(channels, conv=False))
        return Downsample(channels, conv=self.conv_resample)

    def up(self, channels: int) -> nn.Module:
        """A block that doubles height and width."""
        if self.resblock_updown:
            return self.residual(channels, channels, Upsample(channels, conv=False))
        return Upsample(channels, conv=self.conv_resample)
