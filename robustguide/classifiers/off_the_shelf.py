"""Networks made for clean images, used as they are or fine-tuned on noisy ones."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from robustguide.classifiers.shapes import known_shape
from robustguide.interfaces import Classifier, parameter_dtype
from robustguide.noise import DiscreteLevels, expand, vp_scale

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class OffTheShelf(Classifier):
    """A network of clean images. It sees x_t, the noisy image scaled to unit variance.

    Images go from [-1, 1] to [0, 1], are resized, clamped if so wanted, and standardised. Mean 0
    and standard deviation 1 show the network [0, 1] as it is, 0.5 and 0.5 show it [-1, 1].

    Args:
        net: Maps standardised images to logits.
        num_classes: Number of logits.
        mean: Channel means that the network expects to be subtracted, for images in [0, 1].
        std: Channel standard deviations, likewise.
        size: Side that images are resized to, with antialiasing and without a crop; null keeps
            theirs.
        interpolation: How they are resized.
        clamp: Clamps to [0, 1], as the networks of the `robustness` package do; there is no
            gradient outside.
        shape: Channels, height and width that the network needs, where it needs some and `size`
            is null.

    Raises:
        ValueError: For means, deviations, a size or a shape that cannot be.
    """

    conditioning = "none"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        size: int | None = None,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        clamp: bool = False,
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        finite = all(map(math.isfinite, (*mean, *std)))
        if len(mean) != len(std) or not finite or not all(value > 0 for value in std):
            raise ValueError(
                f"mean and std need one number a channel, std positive; got {mean} and {std}."
            )
        if size is not None and (size < 1 or shape is not None):
            raise ValueError(
                f"size is the side that images are resized to, at least 1, and leaves no choice "
                f"of a shape; got size={size} and shape={shape}. Give one of them."
            )
        self.net = net
        self.num_classes = num_classes
        self.size = size
        self.interpolation = interpolation
        self.clamp = clamp
        self.channels = len(mean) if len(mean) > 1 else None  # one mean serves any channels
        if size is not None and self.channels is not None:
            shape = (self.channels, size, size)
        self.shape = None if shape is None else known_shape(net, shape)
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def reads(self, shape: Sequence[int]) -> bool:
        """Any size where it resizes; grey images are shown in all channels."""
        channels, *sides = shape
        if self.channels is not None and channels not in (1, self.channels):
            return False
        return self.size is not None or self.shape is None or sides == list(self.shape[1:])

    def forward(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits; sigma only sets the scale."""
        images = self.prepared(x / expand(vp_scale(sigma), x))
        logits: Tensor = self.net(images.to(parameter_dtype(self.net, x)))
        return logits

    def prepared(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d g v"]:
        """What the network is shown of images in [-1, 1]."""
        images = (images + 1) / 2
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(
                images, (self.size, self.size), mode=self.interpolation, antialias=True
            )
        if self.clamp:
            images = images.clamp(0, 1)
        return (images - self.mean) / self.std


class NoiseConditioned(Classifier):
    """Tells an off-the-shelf classifier the noise level, by a shift of channels of some layers.

    The shifts start at zero, so that before fine-tuning the classifier is what it was.

    Args:
        classifier: The classifier to tell.
        levels: The chain whose t is told.
        layers: Names of submodules whose outputs (b, channels, ...) are shifted, and their
            channels, such as `{"net.layer1": 64}`.
        width: Width of the embedding of t.

    Raises:
        ValueError: For a layer that the classifier does not have.
    """

    conditioning = "t"

    def __init__(
        self,
        classifier: Classifier,
        levels: DiscreteLevels,
        layers: dict[str, int],
        width: int = 128,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_classes = classifier.num_classes
        self.shape = classifier.shape
        self.levels = levels
        self.width = width
        self.embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.shifts = nn.ModuleDict()
        modules = dict(classifier.named_modules())
        for name, channels in layers.items():
            if name not in modules:
                raise ValueError(
                    f"The classifier has no layer {name!r}; its layers are "
                    f"{', '.join(list(modules)[1:40])}."
                )
            shift = nn.Linear(width, channels)
            nn.init.zeros_(shift.weight)
            nn.init.zeros_(shift.bias)
            self.shifts[name.replace(".", "/")] = shift

    def reads(self, shape: Sequence[int]) -> bool:
        """As the classifier that it tells."""
        return self.classifier.reads(shape)

    def forward(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits."""
        half = torch.arange(self.width // 2, device=x.device)
        angles = self.levels.t(sigma)[:, None] * torch.exp(-math.log(10_000) * half / len(half))
        embedding = self.embed(torch.cat([angles.cos(), angles.sin()], dim=-1))
        hooks = [
            self.classifier.get_submodule(name.replace("/", ".")).register_forward_hook(
                _adding(shift(embedding))
            )
            for name, shift in self.shifts.items()
        ]
        try:
            logits: Tensor = self.classifier(x, sigma)
            return logits
        finally:
            for hook in hooks:
                hook.remove()


def _adding(shift: Float[Tensor, "b c"]) -> Callable[[nn.Module, object, Tensor], Tensor]:
    """A forward hook that shifts the channels of an output (b, c, ...)."""

    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output + shift.reshape(*shift.shape, *[1] * (output.ndim - 2))

    return hook
