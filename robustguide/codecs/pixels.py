"""The space of a denoiser of pixels."""

from jaxtyping import Float
from torch import Tensor

from robustguide.interfaces import Codec


class PixelCodec(Codec):
    """Latents are the images themselves.

    Args:
        channels: 1 for greyscale, 3 for colour.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.channels = self.image_channels = channels

    def encode(
        self,
        images: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b d g v"] | None = None,
    ) -> Float[Tensor, "b d g v"]:
        """The images; there is nothing to draw."""
        return images

    def decode(self, x_0: Float[Tensor, "b d g v"]) -> Float[Tensor, "b c h w"]:
        """The images."""
        return x_0
