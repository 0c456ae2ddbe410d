"""A diffusion transformer, written from Peebles and Xie (2023), to replay recorded runs.

Names and shapes of the parameters are those of the public checkpoints.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def modulated(x, shift, scale):
    """Layer norm without parameters of its own, then a shift and a scale of every example."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def conditioned(width, count):
    """What turns the condition into `count` shifts, scales and gates."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, count * width))


class PatchEmbedding(nn.Module):
    def __init__(self, patch_size, in_channels, width):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)

    def forward(self, x):
        return self.proj(x).flatten(2).mT


class TimeEmbedding(nn.Module):
    def __init__(self, width, waves=256):
        super().__init__()
        self.waves = waves
        self.mlp = nn.Sequential(nn.Linear(waves, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        half = self.waves // 2
        angles = t[:, None].float() * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class LabelEmbedding(nn.Module):
    """The last row of the table is the null label."""

    def __init__(self, num_classes, width):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y):
        return self.embedding_table(y)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width, heads, mlp_ratio):
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = conditioned(width, 6)

    def forward(self, x, condition):
        parts = self.adaLN_modulation(condition).chunk(6, dim=-1)
        for layer, (shift, scale, gate) in ((self.attn, parts[:3]), (self.mlp, parts[3:])):
            x = x + gate[:, None] * layer(modulated(x, shift, scale))
        return x


class FinalLayer(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = conditioned(width, 2)

    def forward(self, x, condition):
        return self.linear(modulated(x, *self.adaLN_modulation(condition).chunk(2, dim=-1)))


class DiT(nn.Module):
    """Noise and, where learned, variance (b, c or 2 c, h, w) of x_t at t with labels y."""

    def __init__(
        self,
        input_size,
        patch_size,
        in_channels,
        hidden_size,
        depth,
        num_heads,
        mlp_ratio,
        class_dropout_prob,
        num_classes,
        learn_sigma,
    ):
        super().__init__()
        self.side, self.patch_size = input_size // patch_size, patch_size
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        self.x_embedder = PatchEmbedding(patch_size, in_channels, hidden_size)
        self.t_embedder = TimeEmbedding(hidden_size)
        self.y_embedder = LabelEmbedding(num_classes, hidden_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.side**2, hidden_size), False)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * self.out_channels)

    def forward(self, x, t, y):
        tokens = self.x_embedder(x) + self.pos_embed
        condition = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            tokens = block(tokens, condition)
        patches = self.final_layer(tokens, condition).reshape(
            len(x), self.side, self.side, self.patch_size, self.patch_size, self.out_channels
        )
        size = self.side * self.patch_size
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.out_channels, size, size)
