"""Networks made for clean images, used as they are or fine-tuned on noisy ones."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from robustguide.interfaces import Classifier, parameter_dtype
from robustguide.noise import DiscreteLevels, expand, vp_scale

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class OffTheShelf(Classifier):
    """A network of clean images. It sees x_t, the noisy image scaled to unit variance.

    Args:
        net: Maps standardised images to logits.
        num_classes: Number of logits.
        mean: Channel means that the network expects to be subtracted, for images in [0, 1].
        std: Channel standard deviations, likewise.
        size: Side that images are resized to (bilinear, antialiased); null keeps theirs.

    Raises:
        ValueError: For means or deviations that cannot be.
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
    ) -> None:
        super().__init__()
        finite = all(map(math.isfinite, (*mean, *std)))
        if len(mean) != len(std) or not finite or not all(value > 0 for value in std):
            raise ValueError(
                f"mean and std need one number a channel, std positive; got {mean} and {std}."
            )
        self.net = net
        self.num_classes = num_classes
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def forward(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits; sigma only sets the scale."""
        images = (x / expand(vp_scale(sigma), x) + 1) / 2
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        images = (images - self.mean) / self.std
        logits: Tensor = self.net(images.to(parameter_dtype(self.net, x)))
        return logits


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
