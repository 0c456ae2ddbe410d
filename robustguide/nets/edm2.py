"""EDM2's U-Net, all of whose layers keep the magnitude of what passes through them.

Names and shapes of all parameters are those of the public checkpoints below `unet.`. Level i of
`channel_mult` works on `img_resolution / 2**i` pixels a side with `model_channels *
channel_mult[i]` channels; `attn_resolutions` names levels by their pixels. Karras et al. (2024),
figure 21.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustguide.nets.edm2_blocks import Blocks, MPConv, MPFourier, mp_cat, mp_silu, mp_sum
from robustguide.nets.recomputing import run


class EDM2UNet(nn.Module):
    """U-Net of noise levels and classes.

    Args:
        img_resolution: Side of the images (or latents) in pixels; others work if the levels can
            halve them.
        img_channels: Channels of the images, and of the prediction.
        label_dim: Number of classes; 0 for a network without labels.
        model_channels: Unit of the widths.
        channel_mult: Width of each level.
        channel_mult_noise: Width of the embedded noise level; null for that of the first level.
        channel_mult_emb: Width of the embedding; null for that of the widest level.
        num_blocks: Residual blocks of each level on the way down, one more on the way up.
        attn_resolutions: Pixels of the levels with attention.
        label_balance: Part of the label in the embedding.
        concat_balance: Part of the skip connections in their joints.
        channels_per_head: Width of a head of attention; blocks with fewer channels have none.
        dropout: Probability, inside residual branches.
        res_balance: Part of the residual branches in their sums.
        attn_balance: Part of the attention in its sums.
        clip_act: Bound of what a block gives; null for none.
        resample_filter: Taps of the filter of resampling, an even number of them.
        use_checkpoint: Recompute blocks for the gradient: less memory, more time.

    Raises:
        ValueError: Sizes that do not fit each other.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256.0,
        resample_filter: Sequence[float] = (1, 1),
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        check_levels(img_resolution, len(channel_mult), attn_resolutions, resample_filter)
        self.img_resolution, self.label_dim = img_resolution, label_dim
        self.label_balance, self.concat_balance = label_balance, concat_balance
        self.attn_resolutions = tuple(attn_resolutions)
        self.use_checkpoint = use_checkpoint
        widths = [mult * model_channels for mult in channel_mult]
        self.levels = [(img_resolution >> level, width) for level, width in enumerate(widths)]
        waves = widths[0] if channel_mult_noise is None else model_channels * channel_mult_noise
        embedding = max(widths) if channel_mult_emb is None else model_channels * channel_mult_emb
        blocks = Blocks(
            embedding=embedding,
            channels_per_head=channels_per_head,
            dropout=dropout,
            res_balance=res_balance,
            attn_balance=attn_balance,
            clip=clip_act,
            taps=tuple(resample_filter),
        )
        self.out_gain = nn.Parameter(torch.zeros(()))
        self.emb_fourier = MPFourier(waves)
        self.emb_noise = MPConv(waves, embedding)
        if label_dim:
            self.emb_label = MPConv(label_dim, embedding)
        self.enc, skips = self._encoder(blocks, img_channels, num_blocks)
        self.dec = self._decoder(blocks, skips, num_blocks)
        self.out_conv = MPConv(widths[0], img_channels, 3, 3)

    def _encoder(
        self, blocks: Blocks, img_channels: int, num_blocks: int
    ) -> tuple[nn.ModuleDict, list[int]]:
        """The stem, to which the image comes with a constant channel, the way down, and widths."""
        (size, channels), *_ = self.levels
        enc = nn.ModuleDict({f"{size}x{size}_conv": MPConv(img_channels + 1, channels, 3, 3)})
        skips = [channels]
        for level, (size, width) in enumerate(self.levels):
            if level > 0:
                enc[f"{size}x{size}_down"] = blocks.encoder(channels, channels, down=True)
                skips.append(channels)
            attention = size in self.attn_resolutions
            for index in range(num_blocks):
                block = blocks.encoder(channels, width, attention=attention)
                enc[f"{size}x{size}_block{index}"] = block
                channels = width
                skips.append(channels)
        return enc, skips

    def _decoder(self, blocks: Blocks, skips: list[int], num_blocks: int) -> nn.ModuleDict:
        """The middle, whose first block always has attention, and the way up."""
        dec, channels = nn.ModuleDict(), skips[-1]
        for size, width in reversed(self.levels):
            if not dec:
                dec[f"{size}x{size}_in0"] = blocks.decoder(channels, channels, attention=True)
                dec[f"{size}x{size}_in1"] = blocks.decoder(channels, channels)
            else:
                dec[f"{size}x{size}_up"] = blocks.decoder(channels, channels, up=True)
            attention = size in self.attn_resolutions
            for index in range(num_blocks + 1):
                dec[f"{size}x{size}_block{index}"] = blocks.decoder(
                    channels, width, skip_channels=skips.pop(), attention=attention
                )
                channels = width
        return dec

    def forward(self, x, noise, y=None):
        """Prediction (b, c, h, w) at x (b, c, h, w), noise conditions (b,) and labels y (b,).

        Computes in the dtype of x, whatever the parameters are stored in, and the embedding in
        that of `noise`. Label `label_dim` is the null label, the zero vector.

        Raises:
            ValueError: The levels cannot halve the image, or labels are missing or not wanted.
        """
        self._check(x, y)
        emb = self.embed(noise, y)
        stem, *blocks = self.enc.values()
        skips = [stem(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))]
        for block in blocks:
            skips.append(self.run(block, skips[-1], emb))
        h = skips[-1]
        for block in self.dec.values():
            if block.skip_channels:
                h = mp_cat(h, skips.pop(), self.concat_balance)
            h = self.run(block, h, emb)
        return self.out_conv(h, self.out_gain)

    def run(self, block: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
        """The block's value; see `use_checkpoint`."""
        return run(block, x, emb, recomputes=self.use_checkpoint, again=Resting(block))

    def embed(self, noise: Tensor, y: Tensor | None) -> Tensor:
        """Embedding of noise conditions (b,) and labels (b,)."""
        emb = self.emb_noise(self.emb_fourier(noise))
        if y is not None:
            classes = torch.arange(self.label_dim, device=y.device)
            labels = (y[:, None] == classes).to(emb.dtype)  # a row of zeros for the null label
            label = self.emb_label(labels * math.sqrt(self.label_dim))
            emb = mp_sum(emb, label, self.label_balance)
        return mp_silu(emb)

    def _check(self, x: Tensor, y: Tensor | None) -> None:
        factor = 2 ** (len(self.levels) - 1)
        if x.shape[-2] % factor or x.shape[-1] % factor:
            raise ValueError(
                f"The U-Net was given images of {x.shape[-2]}x{x.shape[-1]} px, but its levels "
                f"need multiples of {factor} px (built for {self.img_resolution}); resize them."
            )
        if (y is None) != (self.label_dim == 0):
            given = "without" if y is None else "with"
            raise ValueError(
                f"The U-Net was built with label_dim={self.label_dim} and called {given} labels; "
                "give y exactly where there are classes."
            )


class Resting:
    """Leaves the weights of a block as they are: its layers have written them back already.

    Twice would not be the same: a weight is divided by its magnitude plus a small number.
    """

    def __init__(self, block: nn.Module) -> None:
        self.layers = [each for each in block.modules() if isinstance(each, MPConv)]

    def __enter__(self) -> None:
        self.were = [layer.training for layer in self.layers]
        for layer in self.layers:
            layer.training = False

    def __exit__(self, *error: object) -> None:
        for layer, was in zip(self.layers, self.were, strict=True):
            layer.training = was


def check_levels(
    img_resolution: int,
    levels: int,
    attn_resolutions: Sequence[int],
    resample_filter: Sequence[float],
) -> None:
    """Raises ValueError for a size that the levels cannot halve, or attention at no level."""
    if img_resolution % 2 ** (levels - 1):
        raise ValueError(
            f"img_resolution={img_resolution} cannot be halved {levels - 1} times for the "
            f"{levels} levels of channel_mult; give fewer levels or a multiple of "
            f"{2 ** (levels - 1)}."
        )
    sizes = [img_resolution >> level for level in range(levels)]
    if unknown := sorted(set(attn_resolutions) - set(sizes)):
        raise ValueError(
            f"attn_resolutions={list(attn_resolutions)} names {unknown}, but the levels have "
            f"{sizes} px; name some of these, or none: []."
        )
    if not resample_filter or len(resample_filter) % 2 or not sum(resample_filter):
        raise ValueError(
            f"resample_filter={list(resample_filter)} must have an even number of taps whose sum "
            "is not 0; [1, 1] is usual."
        )
