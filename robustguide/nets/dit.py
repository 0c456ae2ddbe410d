"""The diffusion transformer. Peebles and Xie (2023), section 3.2, "adaLN-Zero block".

The blocks are those of `diffusers`, whose model differs from the published one in that every block
embeds t and y with parameters of its own, drops labels by itself while training, and counts
frequencies of t otherwise. Here t and y are embedded once, as in the paper, and the condition is
handed to all blocks.
"""

import torch
from torch import Tensor, nn

from robustguide.nets.adm_blocks import timestep_embedding, zeroed

WAVES = 256  # width of the sinusoids of t


class DiT(nn.Module):
    """Noise and, where learned, variance (b, c or 2 c, h, w) of x_t at t with labels y.

    Published sizes (hidden, depth, heads): S 384, 12, 6; B 768, 12, 12; L 1024, 24, 16;
    XL 1152, 28, 16.

    Args:
        size: Side of the latents (or images).
        patch: Side of a patch, a token; divides `size`.
        channels: Channels of the latents.
        hidden: Width of a token.
        depth: Number of blocks.
        heads: Attention heads; divides `hidden`.
        num_classes: Number of classes; label `num_classes` is the null label, always there. 0 for
            a network that is called without labels.
        learn_sigma: Whether as many channels again are put out for the variance.
        use_checkpoint: Recompute blocks in the backward pass, to save memory.

    Raises:
        ValueError: For sizes that do not divide.
        ImportError: Without `diffusers`.
    """

    def __init__(
        self,
        size: int = 32,
        patch: int = 2,
        channels: int = 4,
        hidden: int = 1152,
        depth: int = 28,
        heads: int = 16,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(size, patch, hidden, heads)
        self.size, self.channels, self.num_classes = size, channels, num_classes
        self.transformer = transformer_class()(
            num_attention_heads=heads,
            attention_head_dim=hidden // heads,
            in_channels=channels,
            out_channels=channels * (2 if learn_sigma else 1),
            num_layers=depth,
            sample_size=size,
            patch_size=patch,
            num_embeds_ada_norm=1,  # a table for every block, which is not kept
            norm_eps=1e-6,
        )
        for block in self.transformer.transformer_blocks:
            block.norm1.emb = Given()
        self.time = nn.Sequential(nn.Linear(WAVES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.labels = nn.Embedding(num_classes + 1, hidden)
        # Published files hold the positions, and a network built on the meta device needs them.
        self.transformer.pos_embed._non_persistent_buffers_set.discard("pos_embed")
        if use_checkpoint:
            self.transformer.enable_gradient_checkpointing()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initial values of the paper: every block starts as the identity, the output as zero."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight.flatten(1))  # a patch is one long vector
                nn.init.zeros_(layer.bias)
        for layer in (self.labels, self.time[0], self.time[2]):
            nn.init.normal_(layer.weight, std=0.02)
        for block in self.transformer.transformer_blocks:
            zeroed(block.norm1.linear)
        zeroed(self.transformer.proj_out_1)
        zeroed(self.transformer.proj_out_2)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.check_input(x_t, y)
        if y is None:
            y = torch.zeros_like(t, dtype=torch.long)
        waves = timestep_embedding(t, WAVES).to(self.labels.weight.dtype)
        condition = self.time(waves) + self.labels(y)
        return self.transformer(x_t, timestep=condition, return_dict=False)[0]

    def check_input(self, x_t: Tensor, y: Tensor | None) -> None:
        """Raises ValueError for images of another shape, or labels where there are no classes."""
        want = (self.channels, self.size, self.size)
        if tuple(x_t.shape[1:]) != want:
            raise ValueError(
                f"The network was built for inputs of shape {list(want)}, got "
                f"{list(x_t.shape[1:])}; give its `channels` and `size` those of the data."
            )
        if (y is None) != (self.num_classes == 0):
            raise ValueError(
                f"The network was built with num_classes={self.num_classes} and called "
                f"{'without' if y is None else 'with'} labels; 0 is for networks without labels."
            )


class Given(nn.Module):
    """Stands where a block would embed t and y: hands on the condition that it is given as t."""

    def forward(self, t, y=None, hidden_dtype=None):
        return t


def check_sizes(size: int, patch: int, hidden: int, heads: int) -> None:
    """Raises ValueError for sizes that do not divide, or positions that have no whole quarters."""
    for name, whole, part, parts in (
        ("size", size, "patch", patch),
        ("hidden", hidden, "heads", heads),
        ("hidden", hidden, "4 (sine and cosine of two coordinates)", 4),
    ):
        if parts < 1 or whole < 1 or whole % parts:
            by = part if part.startswith("4") else f"{part}={parts}"
            raise ValueError(f"{name}={whole} is not a multiple of {by}; give one that is.")


def transformer_class() -> type[nn.Module]:
    """The transformer of `diffusers`, imported when a network is built.

    Raises:
        ImportError: Without it; says what to install.
    """
    try:
        from diffusers import DiTTransformer2DModel
    except ImportError as error:
        raise ImportError(
            "DiT is built from blocks of diffusers, which cannot be imported "
            f"({error}); pip install 'robustguide[latent]'."
        ) from error
    return DiTTransformer2DModel
