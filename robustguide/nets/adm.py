"""The ADM U-Net, its super-resolution form, and its encoder as a classifier of noisy images.

Ho et al. (2020), appendix B; Nichol and Dhariwal (2021); Dhariwal and Nichol (2021), section 3.
Names and shapes of all parameters are those of the public checkpoints, which load with
`strict=True`. The networks keep their own units: images `x_t` as they were trained on, `t` in
steps of the full chain.

Level i of `channel_mult` works on `image_size / 2**i` pixels a side with
`model_channels * channel_mult[i]` channels; `attention_resolutions` names levels by the factor
2**i, not by their pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustguide.nets.adm_blocks import (
    Blocks,
    BlockSequence,
    GroupNorm32,
    Normed,
    timestep_embedding,
    zeroed,
)
from robustguide.nets.adm_readouts import readout
from robustguide.nets.fused_norm import arranged
from robustguide.nets.recomputing import run


def check_levels(image_size: int, levels: int, attention_resolutions: Sequence[int]) -> None:
    """Raises ValueError for a size that the levels cannot halve, or attention at no level."""
    factors = [2**level for level in range(levels)]
    if image_size % factors[-1]:
        raise ValueError(
            f"image_size={image_size} cannot be halved {levels - 1} times for the {levels} levels "
            f"of channel_mult; give fewer levels or a multiple of {factors[-1]}."
        )
    if unknown := sorted(set(attention_resolutions) - set(factors)):
        raise ValueError(
            f"attention_resolutions={list(attention_resolutions)} names {unknown}, but the levels "
            f"have the factors {factors}; for the level of n pixels give {image_size} / n."
        )


class Trunk(nn.Module):
    """Time embedding, downward path and middle block: what the U-Net and the classifier share.

    Its arguments are explained at `UNet`.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        *,
        dropout: float,
        channel_mult: Sequence[float],
        conv_resample: bool,
        num_heads: int,
        num_head_channels: int,
        use_scale_shift_norm: bool,
        resblock_updown: bool,
        use_new_attention_order: bool,
        use_checkpoint: bool,
    ) -> None:
        super().__init__()
        check_levels(image_size, len(channel_mult), attention_resolutions)
        self.image_size = image_size
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.use_checkpoint = use_checkpoint
        self.factor = 2 ** (len(channel_mult) - 1)
        self.widths = [int(mult * model_channels) for mult in channel_mult]
        self.attention = [2**level in attention_resolutions for level in range(len(channel_mult))]
        embedding = 4 * model_channels
        self.blocks = Blocks(
            embedding=embedding,
            dropout=dropout,
            scale_shift=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            conv_resample=conv_resample,
            num_head_channels=num_head_channels,
            heads_first=not use_new_attention_order,
        )
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.map_channels: list[int] = []  # of each map, in the order of `maps`
        self.input_blocks = nn.ModuleList()
        self._add_input_blocks(num_res_blocks, num_heads)
        self.middle_block = self._middle(num_heads)

    def _add_input_blocks(self, num_res_blocks: int, num_heads: int) -> None:
        channels = self.widths[0]
        self._add(BlockSequence(nn.Conv2d(self.in_channels, channels, 3, padding=1)), channels)
        for level, width in enumerate(self.widths):
            if level > 0:
                self._add(BlockSequence(self.blocks.down(channels)), channels)
            for _ in range(num_res_blocks):
                attention = self.attention[level]
                self._add(
                    self.blocks.stage(channels, width, num_heads, attention=attention), width
                )
                channels = width

    def _add(self, block: nn.Module, out_channels: int) -> None:
        self.input_blocks.append(block)
        self.map_channels.append(out_channels)

    def _middle(self, num_heads: int) -> BlockSequence:
        channels = self.map_channels[-1]
        self.map_channels.append(channels)
        return BlockSequence(
            self.blocks.residual(channels, channels),
            self.blocks.attention(channels, num_heads),
            self.blocks.residual(channels, channels),
        )

    def embed(self, t: Tensor) -> Tensor:
        """Time embedding (b, 4 * model_channels) of steps t (b,), integer or between."""
        sinusoids = timestep_embedding(t, self.model_channels)
        return self.time_embed(sinusoids.to(self.time_embed[0].weight.dtype))

    def run(self, block: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
        """The block's value; with `use_checkpoint` its inside is recomputed for the gradient."""
        return run(block, x, emb, recomputes=self.use_checkpoint)

    def arranged(self, x: Tensor) -> Tensor:
        """Images in the layout that the blocks are fastest on."""
        norm, *_ = self.middle_block[0].in_layers
        return arranged(x, self.widths, norm)

    def maps(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Feature maps behind each input block, finest first, and behind the middle block."""
        maps = []
        x = self.arranged(x)
        for block in (*self.input_blocks, self.middle_block):
            x = self.run(block, x, emb)
            maps.append(x)
        return maps


class UNet(Trunk):
    """U-Net that predicts the noise of an image, and its variance given twice the channels.

    Args:
        image_size: Side of the images in pixels; others work if the levels can halve them.
        in_channels: Channels of the images.
        model_channels: Unit of `channel_mult`; the time embedding has four times as many.
        out_channels: Channels of the prediction.
        num_res_blocks: Residual blocks of each level on the way down, one more on the way up.
        attention_resolutions: Downsampling factors of the levels that have attention.
        dropout: Probability, inside residual blocks.
        channel_mult: Width of each level.
        num_classes: Rows of the label table; null for a network without labels.
        num_null_labels: Rows added behind them for labels that mean no class; 0 as published.
        conv_resample: Convolve where the image is resampled, unless `resblock_updown`.
        num_heads: Heads of attention, used where `num_head_channels` is -1.
        num_head_channels: Channels of each head.
        num_heads_upsample: `num_heads` of the way up; -1 for the same.
        use_scale_shift_norm: The embedding scales and shifts norms instead of being added.
        resblock_updown: Resample inside residual blocks.
        use_new_attention_order: Order of the qkv channels, see `split_heads`.
        use_checkpoint: Recompute blocks for the gradient: less memory, more time.

    Raises:
        ValueError: Sizes that do not fit each other.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        num_classes: int | None = None,
        num_null_labels: int = 0,
        conv_resample: bool = True,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__(
            image_size,
            in_channels,
            model_channels,
            num_res_blocks,
            attention_resolutions,
            dropout=dropout,
            channel_mult=channel_mult,
            conv_resample=conv_resample,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            use_new_attention_order=use_new_attention_order,
            use_checkpoint=use_checkpoint,
        )
        if num_classes is None and num_null_labels:
            raise ValueError(
                f"num_null_labels={num_null_labels} needs a network with labels; give num_classes."
            )
        self.out_channels = out_channels
        self.num_classes = num_classes
        self.num_null_labels = num_null_labels
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes + num_null_labels, self.blocks.embedding)
        self.output_blocks = nn.ModuleList()
        heads = num_heads if num_heads_upsample == -1 else num_heads_upsample
        self._add_output_blocks(num_res_blocks, heads)
        self.out = Normed(
            GroupNorm32(self.widths[0]),
            nn.SiLU(),
            zeroed(nn.Conv2d(self.widths[0], out_channels, 3, padding=1)),
        )

    def _add_output_blocks(self, num_res_blocks: int, num_heads: int) -> None:
        *skips, channels = self.map_channels
        for level, width in reversed(list(enumerate(self.widths))):
            attention = self.attention[level]
            for index in range(num_res_blocks + 1):
                channels += skips.pop()
                block = self.blocks.stage(channels, width, num_heads, attention=attention)
                if level > 0 and index == num_res_blocks:
                    block.append(self.blocks.up(width))
                self.output_blocks.append(block)
                channels = width

    def forward(self, x, t, y=None):
        """Prediction (b, out_channels, h, w) at x (b, c, h, w), steps t (b,) and labels y (b,).

        Raises:
            ValueError: The levels cannot halve the image, or labels are missing or not wanted.
        """
        self._check(x, y)
        emb = self.embed(t)
        if y is not None:
            emb = emb + self.label_emb(y)
        *skips, h = self.maps(x, emb)
        for block in self.output_blocks:
            h = self.run(block, torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h).contiguous()

    def _check(self, x: Tensor, y: Tensor | None) -> None:
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(
                f"The U-Net was given images of {x.shape[-2]}x{x.shape[-1]} px, but its levels "
                f"need multiples of {self.factor} px (built for {self.image_size}); resize them."
            )
        if (y is None) != (self.num_classes is None):
            given = "without" if y is None else "with"
            raise ValueError(
                f"The U-Net was built with num_classes={self.num_classes} and called "
                f"{given} labels; give y exactly where there are classes."
            )


class SuperResUNet(UNet):
    """U-Net that also sees a smaller image, enlarged; `in_channels` counts the channels of both.

    Dhariwal and Nichol (2021), section 5.3.
    """

    def forward(self, x, t, low_res, y=None):
        """Prediction at x (b, c, h, w) for the smaller image low_res (b, c, h', w')."""
        enlarged = F.interpolate(low_res, x.shape[-2:], mode="bilinear")
        return super().forward(torch.cat([x, enlarged], dim=1), t, y)


class EncoderUNet(Trunk):
    """Classifier of noisy images. Dhariwal and Nichol (2021), section 4.

    Args:
        image_size: Side of the images in pixels; the attention pool takes no others.
        in_channels: As for `UNet`, and so all that are not listed.
        out_channels: Number of classes.
        pool: How feature maps become logits, see `readout`.

    Raises:
        ValueError: An unknown pool, or sizes that do not fit each other.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        pool: str = "adaptive",
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__(
            image_size,
            in_channels,
            model_channels,
            num_res_blocks,
            attention_resolutions,
            dropout=dropout,
            channel_mult=channel_mult,
            conv_resample=conv_resample,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            use_new_attention_order=use_new_attention_order,
            use_checkpoint=use_checkpoint,
        )
        self.out_channels = out_channels
        self.pool = pool
        self.out = readout(
            pool,
            self.map_channels,
            out_channels,
            size=image_size // self.factor,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
        )

    def forward(self, x, t):
        """Logits (b, out_channels) at x (b, c, h, w), steps t (b,).

        Raises:
            ValueError: An image of another size than the attention pool was built for.
        """
        if self.pool == "attention" and x.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"The classifier was given images of {x.shape[-2]}x{x.shape[-1]} px, but its "
                f"attention pool expects {self.image_size}x{self.image_size}; resize them or "
                f"choose another pool."
            )
        return self.out(self.maps(x, self.embed(t)))
