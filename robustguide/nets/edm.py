"""The two U-Nets of EDM: ADM's, and the DDPM++ and NCSN++ networks of score-based models.

Dhariwal and Nichol (2021) and Song et al. (2021), as Karras et al. (2022), appendix F.3, train
them. Names and shapes of all parameters are those of the public checkpoints, which load with
`strict=True`. Both are called as `net(x, noise, y)`, or `net(x, noise)` without classes, with x
scaled and noise computed by a preconditioning (`robustguide.denoisers`); y is an index and
`label_dim` the null label, which is a zero vector here.

Level i of `channel_mult` works on `img_resolution / 2**i` pixels a side with
`model_channels * channel_mult[i]` channels, and its blocks are named by those pixels;
`attn_resolutions` are pixels, too.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustguide.nets.adm_blocks import zeroed
from robustguide.nets.edm_blocks import (
    Block,
    Conv,
    Fourier,
    HalvingConv,
    Norm,
    Resampling,
    Sinusoids,
    Style,
    doubled,
    halved,
    one_hot,
)
from robustguide.nets.recomputing import run


class EDMUNet(nn.Module):
    """What both networks share: levels, the order in which blocks run, and what may be asked.

    Its arguments are explained at `DhariwalUNet`.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        label_dim: int,
        augment_dim: int,
        model_channels: int,
        channel_mult: Sequence[int],
        attn_resolutions: Sequence[int],
        style: Style,
        use_checkpoint: bool,
    ) -> None:
        super().__init__()
        self.factor = 2 ** (len(channel_mult) - 1)
        if img_resolution % self.factor:
            raise ValueError(
                f"img_resolution={img_resolution} cannot be halved {len(channel_mult) - 1} times "
                f"for the {len(channel_mult)} levels of channel_mult; give fewer levels or a "
                f"multiple of {self.factor}."
            )
        self.resolutions = [img_resolution >> level for level in range(len(channel_mult))]
        if unknown := sorted(set(attn_resolutions) - set(self.resolutions)):
            raise ValueError(
                f"attn_resolutions={list(attn_resolutions)} names {unknown}, but the levels have "
                f"{self.resolutions} pixels a side; name some of those, or none."
            )
        self.img_resolution, self.in_channels = img_resolution, in_channels
        self.label_dim, self.augment_dim = label_dim, augment_dim
        self.widths = [model_channels * mult for mult in channel_mult]
        self.attends = [resolution in attn_resolutions for resolution in self.resolutions]
        self.style, self.use_checkpoint = style, use_checkpoint
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.map_channels: list[int] = []  # of each map that the decoder will take up

    def heads(self, channels: int) -> int:
        """Heads of a block with attention."""
        raise NotImplementedError

    def _block(self, channels: int, width: int, attends: bool = False, resample=None) -> Block:
        heads = self.heads(width) if attends else 0
        return Block(channels, width, self.style, heads=heads, resample=resample)

    def _enter(self, level: int, stem: int, num_blocks: int) -> None:
        """Adds the encoder's blocks of a level; `stem` is the width of the first convolution."""
        name = f"{self.resolutions[level]}x{self.resolutions[level]}"
        width = self.widths[level]
        if level == 0:
            self.enc[f"{name}_conv"] = Conv(self.in_channels, stem, 3)
            self.map_channels.append(stem)
        for index in range(num_blocks):
            channels = self.map_channels[-1]
            self.enc[f"{name}_block{index}"] = self._block(channels, width, self.attends[level])
            self.map_channels.append(width)

    def _halve(self, level: int) -> None:
        name, channels = f"{self.resolutions[level]}x{self.resolutions[level]}", self.map_channels
        self.enc[f"{name}_down"] = self._block(channels[-1], channels[-1], resample=halved)
        channels.append(channels[-1])

    def _leave(self, level: int, channels: int, attends: Sequence[bool]) -> int:
        """Adds the decoder's blocks of a level, one for each of `attends`; returns their width."""
        name = f"{self.resolutions[level]}x{self.resolutions[level]}"
        if level == len(self.widths) - 1:
            self.dec[f"{name}_in0"] = self._block(channels, channels, attends=True)
            self.dec[f"{name}_in1"] = self._block(channels, channels)
        else:
            self.dec[f"{name}_up"] = self._block(channels, channels, resample=doubled)
        for index, attend in enumerate(attends):
            channels += self.map_channels.pop()
            block = self._block(channels, self.widths[level], attend)
            self.dec[f"{name}_block{index}"], channels = block, self.widths[level]
        return channels

    def run(self, block: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
        """The block's value; see `use_checkpoint`."""
        return run(block, x, emb, recomputes=self.use_checkpoint)

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Feature maps, finest first; `image` is the input as it travels beside them."""
        image, maps = x, []
        for name, layer in self.enc.items():
            match name.partition("_")[2]:
                case "conv":
                    maps.append(layer(x))
                case "aux_down":
                    image = layer(image)
                case "aux_skip":
                    maps[-1] = maps[-1] + layer(image)
                case "aux_residual":
                    maps[-1] = image = (maps[-1] + layer(image)) * math.sqrt(0.5)
                case _:
                    maps.append(self.run(layer, maps[-1], emb))
        return maps

    def check(self, x: Tensor, y: Tensor | None, augment: Tensor | None) -> None:
        """Refuses what the network cannot read.

        Raises:
            ValueError: See `DhariwalUNet.forward`.
        """
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(
                f"The U-Net was given images of {x.shape[-2]}x{x.shape[-1]} px, but its levels "
                f"need multiples of {self.factor} px (built for {self.img_resolution}); resize "
                "them."
            )
        if (y is None) == bool(self.label_dim):
            raise ValueError(
                f"The U-Net was built with label_dim={self.label_dim} and called "
                f"{'without' if y is None else 'with'} labels; give y exactly where there are "
                "classes."
            )
        if augment is not None and not self.augment_dim:
            raise ValueError(
                "The U-Net was built with augment_dim=0 and called with augmentation labels; "
                "leave them out."
            )


class DhariwalUNet(EDMUNet):
    """ADM's U-Net with EDM's names. Dhariwal and Nichol (2021), section 3.

    Args:
        img_resolution: Side of the images in pixels; others work if the levels can halve them.
        in_channels: Channels of the images.
        out_channels: Channels of the prediction.
        label_dim: Number of classes; 0 for a network without labels.
        augment_dim: Length of the labels that tell of augmentation in training; 0 for none.
        model_channels: Unit of `channel_mult`.
        channel_mult: Width of each level.
        channel_mult_emb: Width of the embedding, in `model_channels`.
        num_blocks: Residual blocks of each level on the way down, one more on the way up.
        attn_resolutions: Sides, in pixels, of the levels that have attention.
        dropout: Probability, inside residual blocks.
        channels_per_head: Least channels of a head of attention; 64 in every public network.
        use_checkpoint: Recompute blocks for the gradient: less memory, more time.

    Raises:
        ValueError: Sizes that do not fit each other.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.1,
        channels_per_head: int = 64,
        use_checkpoint: bool = False,
    ) -> None:
        embedding = model_channels * channel_mult_emb
        super().__init__(
            img_resolution,
            in_channels,
            label_dim,
            augment_dim,
            model_channels,
            channel_mult,
            attn_resolutions,
            Style(
                embedding=embedding,
                dropout=dropout,
                adaptive_scale=True,
                skip_scale=1.0,
                eps=1e-5,
                taps=(1, 1),
                resamples_by_conv=False,
            ),
            use_checkpoint,
        )
        self.channels_per_head = channels_per_head
        self.out_channels = out_channels
        self.map_noise = Sinusoids(model_channels, endpoint=False)
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, model_channels, bias=False)
        self.map_layer0 = nn.Linear(model_channels, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        if label_dim:
            self.map_label = nn.Linear(label_dim, embedding, bias=False)
            nn.init.normal_(self.map_label.weight)
        for level in range(len(self.widths)):
            if level > 0:
                self._halve(level)
            self._enter(level, self.widths[0], num_blocks)
        channels = self.widths[-1]
        for level in reversed(range(len(self.widths))):
            channels = self._leave(level, channels, [self.attends[level]] * (num_blocks + 1))
        self.out_norm = Norm(channels)
        self.out_conv = zeroed(Conv(channels, out_channels, 3))

    def heads(self, channels: int) -> int:
        """As many heads as have `channels_per_head`, rounded down.

        So a block with fewer channels than one head has no attention even at a listed resolution,
        and at the bottleneck; the public networks were built by this rule.

        Raises:
            ValueError: The heads do not divide the channels.
        """
        heads = channels // self.channels_per_head
        if heads and channels % heads:
            raise ValueError(
                f"{channels} channels cannot be divided among {heads} heads; give widths that are "
                f"multiples of channels_per_head={self.channels_per_head}."
            )
        return heads

    def embed(self, noise: Tensor, y: Tensor | None, augment: Tensor | None) -> Tensor:
        """Embedding (b, embedding) of noise conditions and labels."""
        dtype = self.map_layer0.weight.dtype
        emb = self.map_noise(noise).to(dtype)
        if augment is not None:
            emb = emb + self.map_augment(augment.to(dtype))
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if y is not None:
            emb = emb + self.map_label(one_hot(y, self.label_dim, dtype))
        return F.silu(emb)

    def forward(self, x, noise, y=None, augment=None):
        """Prediction (b, out_channels, h, w) at x (b, c, h, w), noise (b,) and labels y (b,).

        `augment` (b, augment_dim) tells of augmentation in training; without it, of none.

        Raises:
            ValueError: The levels cannot halve the image, or labels are missing or not wanted.
        """
        self.check(x, y, augment)
        emb = self.embed(noise, y, augment)
        maps = self.encode(x, emb)
        x = maps[-1]
        for name, block in self.dec.items():
            taken = torch.cat([x, maps.pop()], dim=1) if "_block" in name else x
            x = self.run(block, taken, emb)
        return self.out_conv(F.silu(self.out_norm(x)))


class SongUNet(EDMUNet):
    """DDPM++ or NCSN++. Song et al. (2021), appendix H; Karras et al. (2022), table 7.

    Args:
        img_resolution: As for `DhariwalUNet`, and so all that are not listed.
        embedding_type: How the noise condition is embedded: "positional" for DDPM++, "fourier"
            (random frequencies) for NCSN++.
        channel_mult_noise: Width of that, in `model_channels`: 1 for DDPM++, 2 for NCSN++.
        encoder_type: How the image enters lower levels beside the maps: "standard" (it does not)
            for DDPM++, "residual" for NCSN++, or "skip".
        decoder_type: Whether the prediction is made at the finest level, "standard", or is a sum
            over all levels, "skip".
        resample_filter: Taps behind which images are resampled: 1, 1 for DDPM++, 1, 3, 3, 1 for
            NCSN++.

    Raises:
        ValueError: Sizes that do not fit each other.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        embedding_type: Literal["positional", "fourier"] = "positional",
        channel_mult_noise: int = 1,
        encoder_type: Literal["standard", "skip", "residual"] = "standard",
        decoder_type: Literal["standard", "skip"] = "standard",
        resample_filter: Sequence[int] = (1, 1),
        use_checkpoint: bool = False,
    ) -> None:
        embedding, noise_channels = (
            model_channels * mult for mult in (channel_mult_emb, channel_mult_noise)
        )
        super().__init__(
            img_resolution,
            in_channels,
            label_dim,
            augment_dim,
            model_channels,
            channel_mult,
            attn_resolutions,
            Style(
                embedding=embedding,
                dropout=dropout,
                adaptive_scale=False,
                skip_scale=math.sqrt(0.5),
                eps=1e-6,
                taps=tuple(resample_filter),
                resamples_by_conv=True,
            ),
            use_checkpoint,
        )
        self.out_channels = out_channels
        positional = embedding_type == "positional"
        self.map_noise = (
            Sinusoids(noise_channels, endpoint=True) if positional else Fourier(noise_channels)
        )
        if label_dim:
            self.map_label = nn.Linear(label_dim, noise_channels)
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, noise_channels, bias=False)
        self.map_layer0 = nn.Linear(noise_channels, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self._encoder(encoder_type, model_channels, num_blocks)
        self._decoder(decoder_type, num_blocks)
        self._initialise()

    def heads(self, channels: int) -> int:
        """One."""
        return 1

    def _encoder(self, kind: str, stem: int, num_blocks: int) -> None:
        image_channels = self.in_channels
        for level, resolution in enumerate(self.resolutions):
            if level > 0:
                self._halve(level)
                name, taps = f"{resolution}x{resolution}_aux", self.style.taps
                channels = self.map_channels[-1]
                if kind == "skip":
                    self.enc[f"{name}_down"] = Resampling(halved, taps)
                    self.enc[f"{name}_skip"] = Conv(image_channels, channels, 1)
                elif kind == "residual":
                    self.enc[f"{name}_residual"] = HalvingConv(image_channels, channels, taps)
                    image_channels = channels
            self._enter(level, stem, num_blocks)

    def _decoder(self, kind: str, num_blocks: int) -> None:
        channels, lowest = self.widths[-1], len(self.widths) - 1
        for level in range(lowest, -1, -1):
            # Attention follows the last block of a level alone, unlike on the way down.
            channels = self._leave(level, channels, [False] * num_blocks + [self.attends[level]])
            if kind == "skip" or level == 0:
                name = f"{self.resolutions[level]}x{self.resolutions[level]}_aux"
                if kind == "skip" and level < lowest:
                    self.dec[f"{name}_up"] = Resampling(doubled, self.style.taps)
                self.dec[f"{name}_norm"] = Norm(channels, self.style.eps)
                self.dec[f"{name}_conv"] = Conv(channels, self.out_channels, 3)

    def _initialise(self) -> None:
        """Uniform weights by Glorot and Bengio (2010), nearly zero at the end of each branch."""
        gains = {"conv1": 1e-5, "proj": 1e-5, "aux_conv": 1e-5, "qkv": math.sqrt(0.2)}
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                gain = next((g for end, g in gains.items() if name.endswith(end)), 1.0)
                nn.init.xavier_uniform_(layer.weight, gain)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def embed(self, noise: Tensor, y: Tensor | None, augment: Tensor | None) -> Tensor:
        """Embedding (b, embedding) of noise conditions and labels."""
        dtype = self.map_layer0.weight.dtype
        cosines, sines = self.map_noise(noise).to(dtype).chunk(2, dim=1)
        emb = torch.cat([sines, cosines], dim=1)  # the order of the public networks
        if y is not None:
            # A class as a vector of unit variance, not of unit length.
            vectors = one_hot(y, self.label_dim, dtype) * math.sqrt(self.label_dim)
            emb = emb + self.map_label(vectors)
        if augment is not None:
            emb = emb + self.map_augment(augment.to(dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def forward(self, x, noise, y=None, augment=None):
        """Prediction (b, out_channels, h, w) at x (b, c, h, w), noise (b,) and labels y (b,).

        `augment` (b, augment_dim) tells of augmentation in training; without it, of none.

        Raises:
            ValueError: The levels cannot halve the image, or labels are missing or not wanted.
        """
        self.check(x, y, augment)
        emb = self.embed(noise, y, augment)
        maps = self.encode(x, emb)
        x, image = maps[-1], 0.0
        for name, layer in self.dec.items():
            match name.partition("_")[2]:
                case "aux_up":
                    image = layer(image)
                case "aux_norm":
                    normed = F.silu(layer(x))
                case "aux_conv":
                    image = layer(normed) + image
                case kind:
                    taken = torch.cat([x, maps.pop()], dim=1) if "block" in kind else x
                    x = self.run(layer, taken, emb)
        return image
