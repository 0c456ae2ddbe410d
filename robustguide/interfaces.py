"""What a denoiser, a classifier and a codec are, so that everything else can be written once.

All three are abstract modules: devices, state dicts and configuration files just work.
`y` is always a class index; `y = num_classes` is the null label (no class). A text model
holds a table of prompts, which `y` indexes.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

RandnLike = Callable[[Tensor], Tensor]


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
        class_names: What its labels mean, such as prompts; a checkpoint's metadata says it too.
    """

    num_classes: int
    shape: tuple[int, int, int]
    has_null: bool = True
    learns_variance: bool = False
    class_names: tuple[str, ...] = ()

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

    def loss(self, error: Float[Tensor, " b"], sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Training loss of mean squared errors of `denoised` at levels sigma (b,)."""
        return self.loss_weight(sigma) * error

    def null(self, y: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Null labels, one for each of y."""
        return torch.full_like(y, self.num_classes)


class Classifier(nn.Module):
    """Says which class a noisy image shows; a network that is blind to noise ignores sigma.

    Attributes:
        num_classes: Number of logits.
        shape: Channels, height and width of the images (or latents) that it was made for; null
            where it does not know.
    """

    num_classes: int
    shape: tuple[int, int, int] | None = None

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits of x (b, c, h, w) = x_0 + sigma * eps at levels sigma (b,)."""

    def as_clean(
        self, images: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits of images that are read as clean ones, though they came up at levels sigma (b,).

        Such as the predicted clean image of a sampler. What classifiers make of an image does not
        depend on these levels; how far they are to be believed does, see `Calibrated`.
        """
        logits: Tensor = self(images, torch.zeros_like(sigma))
        return logits

    def reads(self, shape: Sequence[int]) -> bool:
        """Whether it takes images of a shape; one that resizes takes others than its own."""
        return self.shape is None or self.shape == tuple(shape)


class Codec(nn.Module):
    """Translates between images in [-1, 1] and the space that a denoiser works in.

    Attributes:
        image_channels: Channels of the images.
        channels: Channels of the denoiser's space.
        factor: How many pixels lie on a side of one latent.
        chunk: Rows that are translated at a time, to bound memory; null is all.
    """

    image_channels: int
    channels: int
    factor: int = 1
    chunk: int | None = None

    @abstractmethod
    def encode(
        self,
        images: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b d g v"] | None = None,
    ) -> Float[Tensor, "b d g v"]:
        """Images to the denoiser's space: drawn with unit noise, or the mean without it."""

    @abstractmethod
    def decode(self, x_0: Float[Tensor, "b d g v"]) -> Float[Tensor, "b c h w"]:
        """The denoiser's space to images in [-1, 1] or a little beyond, differentiable."""

    def to_bytes(self, images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
        """Decoded images as bytes, in the way of the publication."""
        return to_pixels(images)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Channels, height and width of the latents of images of a shape.

        Raises:
            ValueError: For images that it cannot read.
        """
        channels, height, width = shape
        if channels != self.image_channels or height % self.factor or width % self.factor:
            raise ValueError(
                f"The codec reads images of {self.image_channels} channels whose sides are "
                f"multiples of {self.factor}, not of shape {list(shape)}; give it such images, or "
                "none where the data are latents already."
            )
        return self.channels, height // self.factor, width // self.factor


@dataclass(frozen=True)
class Place:
    """Where in a sampling run an evaluation happens.

    Attributes:
        index: Step, from 0.
        count: Number of steps.
        sigma: Noise level as a host number, so that asking for it costs no wait; null outside
            a sampler, where every row may have its own.
        corrector: Second evaluation of a Heun step.
        repeat: Which of the repetitions of the step, from 0.
    """

    index: int = 0
    count: int = 1
    sigma: float | None = None
    corrector: bool = False
    repeat: int = 0


def to_pixels(images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """Images in [-1, 1] as bytes, rounded; what lies outside is clamped."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def from_pixels(pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Bytes as images in [-1, 1], float32; `to_pixels` gives the same bytes again."""
    return pixels.float() / 127.5 - 1


def parameter_dtype(net: nn.Module, x: Tensor) -> torch.dtype:
    """Floating type that a network wants its input in; that of x where it has no parameters."""
    return next((p.dtype for p in net.parameters() if p.is_floating_point()), x.dtype)
