"""The autoencoder of latent diffusion. Rombach et al. (2022), section 3.1.

Its encoder gives every latent a mean and a standard deviation; what is decoded is a draw of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class KLAutoencoder(nn.Module):
    """The one of `diffusers`, whose names and shapes of tensors it keeps below `net`.

    The defaults are the autoencoder of Stable Diffusion and DiT: 83.7 million parameters.

    Args:
        in_channels: Channels of the images.
        latent_channels: Channels of the latents.
        block_out_channels: Width at each resolution; between two of them, sides are halved.
        layers_per_block: Residual blocks at each resolution.
        norm_num_groups: Groups of the normalisation; divides every width.
        mid_block_add_attention: Attention at the lowest resolution.
        use_quant_conv: A 1x1 convolution behind the encoder.
        use_post_quant_conv: A 1x1 convolution before the decoder.

    Raises:
        ImportError: Without `diffusers`.
        ValueError: For widths that the groups do not divide.
    """

    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        mid_block_add_attention: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
    ) -> None:
        super().__init__()
        wrong = [width for width in block_out_channels if width % norm_num_groups]
        if wrong or not block_out_channels:
            raise ValueError(
                f"block_out_channels={list(block_out_channels)} must be multiples of "
                f"norm_num_groups={norm_num_groups}, one for each resolution."
            )
        self.in_channels, self.latent_channels = in_channels, latent_channels
        self.factor = 2 ** (len(block_out_channels) - 1)
        self.net: Any = autoencoder_class()(
            in_channels=in_channels,
            out_channels=in_channels,
            latent_channels=latent_channels,
            down_block_types=("DownEncoderBlock2D",) * len(block_out_channels),
            up_block_types=("UpDecoderBlock2D",) * len(block_out_channels),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            mid_block_add_attention=mid_block_add_attention,
            use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_post_quant_conv,
        )

    def moments(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b twod g v"]:
        """Means, and behind them as many channels of standard deviations."""
        found = self.net.encode(images).latent_dist
        return torch.cat([found.mean, found.std], dim=1)

    def decode(self, latents: Float[Tensor, "b d g v"]) -> Float[Tensor, "b c h w"]:
        """Images in the range that it was trained on."""
        images: Tensor = self.net.decode(latents).sample
        return images


def autoencoder_class() -> Any:
    """The autoencoder of `diffusers`, imported when a network is built.

    Raises:
        ImportError: Without it; says what to install.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ImportError(
            f"The autoencoder is that of diffusers, which cannot be imported ({error}); "
            "pip install 'robustguide[latent]'."
        ) from error
    return AutoencoderKL
