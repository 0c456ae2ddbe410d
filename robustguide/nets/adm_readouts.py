"""How the feature maps of the ADM encoder become logits."""

import torch
from torch import nn

from robustguide.nets.adm_blocks import (
    GroupNorm32,
    Normed,
    TokenConv,
    attend,
    head_count,
    split_heads,
    tokens,
    zeroed,
)

HIDDEN = 2048  # width of the hidden layer of the spatial pools, in all public checkpoints


class AttentionPool(nn.Module):
    """Attention of the mean over all pixels, (b, channels, size, size) -> (b, out_channels).

    Radford et al. (2021), section 2.4. The table of positions fixes the size of the input.
    """

    def __init__(self, size: int, channels: int, heads: int, out_channels: int) -> None:
        super().__init__()
        self.heads = heads
        positions = torch.randn(channels, size**2 + 1) / channels**0.5
        self.positional_embedding = nn.Parameter(positions)
        self.qkv_proj = TokenConv(channels, 3 * channels)
        self.c_proj = TokenConv(channels, out_channels)

    def forward(self, x):
        x = tokens(x)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding.mT
        # The newer order of the channels, whatever the other layers of the network have.
        q, k, v = split_heads(self.qkv_proj(x), self.heads, heads_first=False)
        # Only the token of the mean is read, so it alone asks.
        h = attend(q[:, :, :1], k, v).transpose(1, 2).flatten(2)
        return self.c_proj(h)[:, 0]


class LastMap(Normed):
    """Layers on the last of the maps."""

    def forward(self, maps):
        return super().forward(maps[-1])


class MeansOfMaps(nn.Sequential):
    """Layers on the channel means of all maps, side by side."""

    def forward(self, maps):
        return super().forward(torch.cat([h.mean(dim=(2, 3)) for h in maps], dim=1))


def readout(
    pool: str,
    map_channels: list[int],
    num_classes: int,
    *,
    size: int,
    num_heads: int,
    num_head_channels: int,
) -> nn.Sequential:
    """The last layers of a classifier, from the list of its maps to logits (b, num_classes).

    The pools: "adaptive", the mean of the last map, which has `size` pixels a side; "attention",
    an `AttentionPool` of it; "spatial", the means of all maps and a hidden layer; "spatial_v2",
    the same with that layer normalised.

    Raises:
        ValueError: Another pool.
    """
    last, total = map_channels[-1], sum(map_channels)
    match pool:
        case "adaptive":
            mean, to_logits = nn.AdaptiveAvgPool2d(1), zeroed(nn.Conv2d(last, num_classes, 1))
            return LastMap(GroupNorm32(last), nn.SiLU(), mean, to_logits, nn.Flatten())
        case "attention":
            heads = head_count(last, num_heads, num_head_channels)
            attention = AttentionPool(size, last, heads, num_classes)
            return LastMap(GroupNorm32(last), nn.SiLU(), attention)
        case "spatial":
            to_hidden, to_logits = nn.Linear(total, HIDDEN), nn.Linear(HIDDEN, num_classes)
            return MeansOfMaps(to_hidden, nn.ReLU(), to_logits)
        case "spatial_v2":
            to_hidden, to_logits = nn.Linear(total, HIDDEN), nn.Linear(HIDDEN, num_classes)
            return MeansOfMaps(to_hidden, GroupNorm32(HIDDEN), nn.SiLU(), to_logits)
    raise ValueError(
        f"pool={pool!r} is not known; give one of adaptive, attention, spatial, spatial_v2."
    )
