"""Codecs around an autoencoder, and the scales that denoisers' latents have.

    raw = mean + std * noise        x_0 = raw * scale + shift        raw = (x_0 - shift) / scale

with `scale` and `shift` for every channel. The raw moments (mean, std) do not depend on the
scale, so they are what is worth keeping on a disk.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from robustguide.codecs.autoencoder import KLAutoencoder
from robustguide.interfaces import Codec

EDM2_MEAN = (5.81, 3.25, 0.12, -2.15)
EDM2_STD = (4.17, 4.62, 3.71, 3.28)


class KLCodec(Codec):
    """An autoencoder, and the scale of the latents that a denoiser sees.

    Args:
        autoencoder: Encodes and decodes.
        scale: Multiplies raw latents, one number or one a channel.
        shift: Is then added.
        pixel_range: What black and white are to the autoencoder.
        chunk: Rows that are translated at a time; with a gradient, each chunk is computed again
            on the way back. Null is all at once.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        autoencoder: KLAutoencoder,
        scale: float | Sequence[float] = 1.0,
        shift: float | Sequence[float] = 0.0,
        pixel_range: Sequence[float] = (-1.0, 1.0),
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk is a number of rows, 1 or more, got {chunk}.")
        if len(pixel_range) != 2 or pixel_range[0] == pixel_range[1]:
            raise ValueError(f"pixel_range is (black, white), got {tuple(pixel_range)}.")
        self.autoencoder = autoencoder
        self.image_channels, self.channels = autoencoder.in_channels, autoencoder.latent_channels
        self.factor, self.chunk = autoencoder.factor, chunk
        self.pixel_range = float(pixel_range[0]), float(pixel_range[1])
        # Buffers, so that the scale that was measured after training is in the file.
        self.register_buffer("scale", self._per_channel("scale", scale))
        self.register_buffer("shift", self._per_channel("shift", shift))

    def _per_channel(self, name: str, value: float | Sequence[float]) -> Tensor:
        values = [value] * self.channels if isinstance(value, int | float) else list(value)
        if len(values) != self.channels or (name == "scale" and not all(values)):
            raise ValueError(
                f"{name}={value} must be one number or {self.channels}, one for each channel of "
                "the latents, and no scale is 0."
            )
        return torch.tensor(values, dtype=torch.float32)

    def moments(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b twod g v"]:
        """Raw means, and behind them as many channels of standard deviations, float32."""
        with unmixed(images.device):
            return self._in_chunks(self.autoencoder.moments, self.to_range(images.float()))

    def sample(
        self,
        moments: Float[Tensor, "b twod g v"],
        noise: Float[Tensor, "b d g v"] | None = None,
    ) -> Float[Tensor, "b d g v"]:
        """Draws latents from raw moments of any dtype; without noise, the scaled mean."""
        return sampled(moments, noise, self.scale, self.shift)

    def encode(
        self,
        images: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b d g v"] | None = None,
    ) -> Float[Tensor, "b d g v"]:
        """Latents of images, drawn with unit noise."""
        return self.sample(self.moments(images), noise)

    def decode(self, x_0: Float[Tensor, "b d g v"]) -> Float[Tensor, "b c h w"]:
        """Images; float32."""
        with unmixed(x_0.device):
            decoded = self._in_chunks(self.autoencoder.decode, self.raw(x_0.float()))
        return self.from_range(decoded)

    def raw(self, x_0: Float[Tensor, "b d g v"]) -> Float[Tensor, "b d g v"]:
        """What the autoencoder decodes."""
        return (x_0 - self.shift[:, None, None]) / self.scale[:, None, None]

    def to_range(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Images in [-1, 1] as the autoencoder wants them."""
        black, white = self.pixel_range
        return images if (black, white) == (-1, 1) else (images + 1) / 2 * (white - black) + black

    def from_range(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """What the autoencoder gives, as images in [-1, 1]."""
        black, white = self.pixel_range
        return images if (black, white) == (-1, 1) else (images - black) / (white - black) * 2 - 1

    def _in_chunks(self, translate: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        if self.chunk is None or len(rows) <= self.chunk:
            return translate(rows)
        parts = torch.split(rows, self.chunk)
        if torch.is_grad_enabled() and rows.requires_grad:
            return torch.cat([checkpoint(translate, part, use_reentrant=False) for part in parts])
        return torch.cat([translate(part) for part in parts])


class StableDiffusionCodec(KLCodec):
    """Latents times one number, as in Stable Diffusion and DiT: standard deviation about 1.

    Rombach et al. (2022), appendix G; the number is in the `config.json` of an autoencoder.

    Args:
        autoencoder: Encodes and decodes.
        scaling_factor: Multiplies raw latents.
        shift_factor: Is subtracted before.
        chunk: Rows that are translated at a time; null is all.
    """

    def __init__(
        self,
        autoencoder: KLAutoencoder,
        scaling_factor: float = 0.18215,
        shift_factor: float = 0.0,
        chunk: int | None = None,
    ) -> None:
        super().__init__(autoencoder, scaling_factor, -shift_factor * scaling_factor, chunk=chunk)


class EDM2Codec(KLCodec):
    """Latents of mean 0 and standard deviation 0.5: Karras et al. (2024), the code of EDM2.

    The autoencoder is that of Stable Diffusion, but it is shown images in [0, 1] and not in
    [-1, 1], so its latents are others also before they are scaled.

    Args:
        autoencoder: Encodes and decodes.
        chunk: Rows that are translated at a time; null is all.
    """

    def __init__(self, autoencoder: KLAutoencoder, chunk: int | None = None) -> None:
        std, mean = np.array(EDM2_STD, np.float32), np.array(EDM2_MEAN, np.float32)
        scale = np.float32(0.5) / std
        shift = -mean * scale
        super().__init__(autoencoder, scale.tolist(), shift.tolist(), (0.0, 1.0), chunk)

    def to_bytes(self, images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
        """Cut off and not rounded, so that the published images are half a level darker."""
        return ((images.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)


def unmixed(device: torch.device) -> AbstractContextManager[None]:
    """Without mixed precision: the published autoencoder overflows in float16."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def sampled(
    moments: Float[Tensor, "*b twod g v"],
    noise: Float[Tensor, "*b d g v"] | None,
    scale: Float[Tensor, " d"],
    shift: Float[Tensor, " d"],
) -> Float[Tensor, "*b d g v"]:
    """Scaled latents from raw moments of any dtype, float32; the mean without noise."""
    raw, std = moments.float().chunk(2, dim=-3)
    if noise is not None:
        raw = raw + std * noise
    return raw * scale[:, None, None] + shift[:, None, None]
