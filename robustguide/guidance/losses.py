"""How wrong a clean image is: what universal guidance decreases."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from robustguide.guidance.classifier import ClassLabels
from robustguide.guidance.fit import shown, titled
from robustguide.guidance.objectives import Objective, Tempered
from robustguide.interfaces import Classifier, Denoiser, from_pixels

LossOf = Callable[[Tensor, Tensor], Tensor]  # one number for each image, of images and labels


class Loss(nn.Module):
    """A number for each clean image, by any network or none. Rows must not mix.

    Attributes:
        num_classes: Number of classes that y must name one of; null takes any label.
        class_names: Names of these classes, where they are known.
    """

    num_classes: int | None = None
    class_names: tuple[str, ...] = ()

    def classifiers(self) -> tuple[Classifier, ...]:
        """Those that it shows the image; they must read its shape."""
        return ()

    def check(self, denoiser: Denoiser) -> None:
        """Refuses a denoiser whose images it cannot read.

        Raises:
            ValueError: See the losses.
        """

    @abstractmethod
    def forward(
        self, images: Float[Tensor, "b c h w"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Of images in the denoiser's space, differentiable, with labels y (b,)."""

    def at(self, sigma: Float[Tensor, " b"]) -> LossOf:
        """The loss of images that came up at levels sigma (b,); of most losses the same at all."""
        return self


class ClassifierLoss(Loss):
    """Minus a classifier's objective; it is told that the images are clean.

    Args:
        classifier: Judges the images.
        labels: The classifier's class of every class of the denoiser; null where they agree.
        objective: What of the logits is increased; null is log p(y | x), whose loss is the
            cross-entropy.

    Raises:
        ValueError: For a label outside the classifier's classes.
    """

    def __init__(
        self,
        classifier: Classifier,
        labels: Sequence[int] | None = None,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.objective = objective or Tempered()
        self.labels = ClassLabels(classifier, labels)
        self.num_classes = self.labels.num_classes
        self.class_names = self.labels.class_names

    def classifiers(self) -> tuple[Classifier, ...]:
        """The classifier."""
        return (self.classifier,)

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        y: Int[Tensor, " b"],
        sigma: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, " b"]:
        """Minus the objective; without levels, of images that were never noisy."""
        sigma = images.new_zeros(len(images)) if sigma is None else sigma
        return -self.objective(self.classifier.as_clean(images, sigma), self.labels(y))

    def at(self, sigma: Float[Tensor, " b"]) -> LossOf:
        """The classifier learns of the levels, by which it may have been calibrated."""
        return partial(self.forward, sigma=sigma)


class SquaredDistance(Loss):
    """Half the squared distance from an image, or from a part of it: inpainting, or a colour.

    Its gradient is the difference itself.

    Args:
        target: File of an image of the denoiser's size, or a value in [-1, 1] for each channel.
        mask: File of an image of that size whose white pixels count, and greys in part; null
            counts all.

    Raises:
        FileNotFoundError: No such file.
        ValueError: For a file that is no image, no value at all, or one outside [-1, 1].
    """

    target: Tensor
    mask: Tensor

    def __init__(self, target: str | Sequence[float], mask: str | None = None) -> None:
        super().__init__()
        self.register_buffer("target", target_of(target), persistent=False)
        part = torch.ones(1, 1, 1) if mask is None else (image_in(mask, "L") + 1) / 2
        self.register_buffer("mask", part, persistent=False)

    def check(self, denoiser: Denoiser) -> None:
        """Refuses images of another shape than that of its own.

        Raises:
            ValueError: The shapes differ.
        """
        for what, image in (("target", self.target), ("mask", self.mask)):
            axes = zip(image.shape, denoiser.shape, strict=True)
            if any(own not in (1, made) for own, made in axes):
                raise ValueError(
                    f"SquaredDistance: the {what} is {shown(image.shape)}, "
                    f"{titled(denoiser, 'denoiser')} makes {shown(denoiser.shape)}; give an image "
                    "of that size and kind, greyscale or colour, or a value for each channel."
                )

    def forward(
        self, images: Float[Tensor, "b c h w"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Half the sum of squares over the pixels that count."""
        difference = images - self.target.to(images.dtype)
        return (self.mask.to(images.dtype) * difference.square()).flatten(1).sum(1) / 2


def values_and_gradient(
    loss: LossOf, images: Float[Tensor, "b c h w"], y: Int[Tensor, " b"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b c h w"]]:
    """Losses of images that want a gradient, without a graph, and the gradient of their sum.

    Raises:
        ValueError: When there is not one loss for each image.
    """
    with torch.enable_grad():
        values = loss(images, y)
        if values.shape != y.shape:
            raise ValueError(
                f"{type(loss).__name__} must answer one loss for each of the {len(y)} images, not "
                f"a tensor of shape {list(values.shape)}; sum over pixels, and not over images."
            )
        (gradient,) = torch.autograd.grad(values.sum(), images)
    return values.detach(), gradient


def target_of(given: str | Sequence[float]) -> Float[Tensor, "c h w"]:
    """An image from a file, or values of channels as one pixel.

    Raises:
        FileNotFoundError: No such file.
        ValueError: See `SquaredDistance`.
    """
    if isinstance(given, str):
        is_grey = opened(given).mode in ("1", "L", "LA")
        return image_in(given, "L" if is_grey else "RGB")
    if not given or not all(-1 <= value <= 1 for value in given):
        raise ValueError(
            "target must be the file of an image, or a value in [-1, 1] for each channel; got "
            f"{list(given)}."
        )
    return torch.tensor(given, dtype=torch.float32).reshape(-1, 1, 1)


def image_in(path: str, mode: str) -> Float[Tensor, "c h w"]:
    """The image of a file in one of Pillow's modes, in [-1, 1].

    Raises:
        FileNotFoundError: No such file.
        ValueError: No image.
    """
    pixels = torch.from_numpy(np.array(opened(path).convert(mode)))
    return from_pixels(pixels.reshape(1, *pixels.shape[:2], -1).permute(0, 3, 1, 2))[0]


def opened(path: str) -> Image.Image:
    """The image of a file, decoded.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No image, or one of more than eight bits a channel.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist (from {Path.cwd()}).")
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode[0] in "IF":
                raise ValueError("it has more than 8 bits a channel")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"Cannot read the image {path}: {error}. Save it again, as PNG with 8 bits a channel."
        ) from error
    return image
