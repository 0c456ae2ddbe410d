"""Residual networks on flattened pixels, for images too small for convolutions to pay.

A block is `h + W_2 act(shift + (1 + scale) * W_1 LayerNorm(h))`, with shift and scale read from
an embedding of the noise level and, for a denoiser, of the label.
"""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from robustguide.nets.adm_blocks import timestep_embedding

Activation = Literal["silu", "relu"]
ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU}


class ModulatedBlock(nn.Module):
    """One residual block; it starts as the identity.

    Args:
        width: Features in and out.
        embedding: Width of the embedding that modulates it.
        dropout: Share of hidden features dropped in training.
        activation: What makes it nonlinear.
    """

    def __init__(self, width: int, embedding: int, dropout: float, activation: Activation) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.enter = nn.Linear(width, width)
        self.leave = nn.Sequential(
            ACTIVATIONS[activation](), nn.Dropout(dropout), nn.Linear(width, width)
        )
        nn.init.zeros_(self.leave[-1].weight)
        nn.init.zeros_(self.leave[-1].bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=-1)
        return h + self.leave(shift + (1 + scale) * self.enter(self.norm(h)))


class MLP(nn.Module):
    """Residual network of an image and a noise level, and of a label where it has labels.

    Called as `net(x, t, y)` with labels and as `net(x, t)` without, or as `net(x)` where it is not
    told the noise level. It answers with an image like x (a denoiser) or with `num_logits` logits
    (a classifier).

    Args:
        shape: Channels, height and width of the images.
        num_logits: Number of logits; null answers with an image.
        num_classes: Number of labels; null for none.
        num_null_labels: Further labels that mean no class.
        width: Features.
        depth: Blocks.
        dropout: Share of hidden features dropped in training.
        activation: What makes the blocks nonlinear.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_logits: int | None = None,
        num_classes: int | None = None,
        num_null_labels: int = 0,
        width: int = 256,
        depth: int = 3,
        dropout: float = 0.0,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        size = math.prod(shape)
        self.width = width
        self.embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(num_classes + num_null_labels, width) if num_classes else None
        self.enter = nn.Linear(size, width)
        self.blocks = nn.ModuleList(
            ModulatedBlock(width, width, dropout, activation) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, num_logits or size)
        self.answers_image = num_logits is None

    def forward(self, x: Tensor, t: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        t = x.new_zeros(len(x)) if t is None else t
        embedding = self.embed(timestep_embedding(t, self.width).to(x.dtype))
        if self.labels is not None:
            if y is None:
                raise ValueError("This network was made with labels; call it as net(x, t, y).")
            embedding = embedding + self.labels(y)
        embedding = nn.functional.silu(embedding)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        out = self.leave(self.norm(h))
        return out.reshape(x.shape) if self.answers_image else out
