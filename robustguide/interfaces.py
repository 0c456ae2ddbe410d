"""What a denoiser, a classifier and a codec are, so that everything else can be written once.

All three are abstract modules: devices, state dicts and configuration files just work.
`y` is always a class index; `y = num_classes` is the null label (no class). A text model
holds a table of prompts, which `y` indexes.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn


class Prediction(NamedTuple):
    """What a denoiser says about a noisy image.

    Attributes:
        denoised: Expected clean image, `E[x_0 | x, sigma, y]`.
        fraction: Learned variance, as the place between the smallest and largest variance of a
            transition of the discrete chain, `(v + 1) / 2`, not clamped; null where not learned.
            Nichol and Dhariwal (2021), eq. 15.
    """

    denoised: Float[Tensor, "b c h w"]
    fraction: Float[Tensor, "b c h w"] | None = None


class Denoiser(nn.Module):
    """Predicts the clean image.

    Attributes:
        num_classes: Number of classes; this index is the null label.
        shape: Channels, height and width of the images (or latents) that it denoises.
        has_null: Whether it knows the null label.
        learns_variance: Whether its predictions carry a `fraction`.
    """

    num_classes: int
    shape: tuple[int, int, int]
    has_null: bool = True
    learns_variance: bool = False

    @abstractmethod
    def predict(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Prediction:
        """Reads x (b, c, h, w) at levels sigma (b,) with labels y (b,), in the dtype of x."""

    def forward(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The expected clean image alone."""
        return self.predict(x, sigma, y).denoised

    def snap(self, sigma: float) -> float:
        """The nearest level that the network was trained at; itself for a continuous one."""
        return sigma

    def loss_weight(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Weight of the squared error of `denoised` in training; that of eps is 1 / sigma**2."""
        return sigma**-2

    def null(self, y: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Null labels, one for each of y."""
        return torch.full_like(y, self.num_classes)


class Classifier(nn.Module):
    """Says which class a noisy image shows; a network that is blind to noise ignores sigma.

    Attributes:
        num_classes: Number of logits.
    """

    num_classes: int

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits of x (b, c, h, w) = x_0 + sigma * eps at levels sigma (b,)."""


class Codec(nn.Module):
    """Translates between pixels in [-1, 1] and the space that a denoiser works in."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d g v"]:
        """Images in [-1, 1] to the denoiser's space."""

    @abstractmethod
    def decode(self, x_0: Float[Tensor, "b d g v"]) -> Float[Tensor, "b c h w"]:
        """The denoiser's space to images in [-1, 1], differentiable."""


@dataclass(frozen=True)
class Place:
    """Where in a sampling run an evaluation happens.

    Attributes:
        index: Step, from 0.
        count: Number of steps.
        sigma: Noise level as a host number, so that asking for it costs no wait; null outside
            a sampler, where every row may have its own.
        corrector: Second evaluation of a Heun step.
    """

    index: int = 0
    count: int = 1
    sigma: float | None = None
    corrector: bool = False


def to_pixels(images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """Images in [-1, 1] as bytes, rounded; what lies outside is clamped."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def parameter_dtype(net: nn.Module, x: Tensor) -> torch.dtype:
    """Floating type that a network wants its input in; that of x where it has no parameters."""
    return next((p.dtype for p in net.parameters() if p.is_floating_point()), x.dtype)
