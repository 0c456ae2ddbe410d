"""The space in which a module trains."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustguide.data import ENCODING
from robustguide.interfaces import Codec
from robustguide.noise import noise_like
from robustguide.samplers import SeededNoise


class Space:
    """That of a frozen codec, or of the images themselves.

    No module, so that the codec is no part of what is trained: not of its state, its moving
    average or its training mode.

    Args:
        codec: Translates the images of the data; null where they are what a network sees.
    """

    def __init__(self, codec: Codec | None) -> None:
        self.codec = codec.eval().requires_grad_(False) if codec is not None else None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Space":
        """Itself: a moving average of the module shares it."""
        return self

    def shape(self, images: Sequence[int]) -> tuple[int, ...]:
        """Channels, height and width of what a network sees.

        Raises:
            ValueError: For images that the codec cannot read.
        """
        return tuple(images) if self.codec is None else self.codec.latent_shape(images)

    def draw(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d g v"]:
        """Clean images or latents of a training step, with noise of the global generator."""
        if self.codec is None:
            return images
        shape = self.codec.latent_shape(images.shape[1:])
        return self._encode(images, noise_like(images.new_empty(len(images), *shape), None))

    def own(
        self, images: Float[Tensor, "b c h w"], index: Int[Tensor, " b"]
    ) -> Float[Tensor, "b d g v"]:
        """Those of an evaluation: the noise belongs to the image's number."""
        if self.codec is None:
            return images
        shape = self.codec.latent_shape(images.shape[1:])
        noise = SeededNoise(index.tolist(), ENCODING).draw(shape, images.device)
        return self._encode(images, noise)

    @torch.no_grad()
    def _encode(self, images: Tensor, noise: Tensor) -> Tensor:
        assert self.codec is not None
        if next(self.codec.parameters(), images).device != images.device:
            self.codec.to(images.device)  # nobody else moves it
        return self.codec.encode(images, noise)
