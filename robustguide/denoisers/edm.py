"""Networks that are told the logarithm of sigma: EDM's preconditioning, and VE's before it.

EDM: denoised = c_skip * x + c_out * net(c_in * x, log(sigma) / 4, y), so that the network's input
and target have unit variance at every level. VE: denoised = x + sigma * net(x, log(sigma / 2), y).

The other two preconditionings of Karras et al. (2022), table 1, are chains: `EpsDenoiser` reads
VP networks with `ContinuousLevels()` and iDDPM's with `cosine_levels()` and a learned variance.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustguide.denoisers.eps import image_shape
from robustguide.interfaces import Denoiser, Prediction, parameter_dtype
from robustguide.noise import expand


class EDMDenoiser(Denoiser):
    """Preconditions a network. Karras et al. (2022), table 1, column "Ours".

    Args:
        net: Called as `net(x, noise, y)`, or `net(x, noise)` where it knows no classes.
        num_classes: Number of classes; 0 for a network that knows none.
        shape: Channels, height and width of the images.
        sigma_data: Standard deviation of the data, 0.5 for images in [-1, 1].
        has_null: Whether label `num_classes` is in the network's table.

    Raises:
        ValueError: For another shape, or a `sigma_data` that is not a positive number.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        shape: Sequence[int],
        sigma_data: float = 0.5,
        has_null: bool = True,
    ) -> None:
        super().__init__()
        if not 0 < sigma_data < math.inf:
            raise ValueError(
                f"sigma_data must be a positive number, got {sigma_data}; 0.5 is usual for images "
                "in [-1, 1]."
            )
        self.net = net
        self.num_classes = num_classes
        self.shape = image_shape(shape)
        self.sigma_data = sigma_data
        self.has_null = has_null

    def predict(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Prediction:
        """Denoised image."""
        total = sigma**2 + self.sigma_data**2
        inputs = (x / expand(total.sqrt(), x)).to(self.input_dtype(x))
        noise = noise_condition(sigma)
        out = self.net(inputs, noise, y) if self.num_classes else self.net(inputs, noise)
        skip, scale = self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt()
        return Prediction(expand(skip, x) * x + expand(scale, x) * out.to(x))

    def input_dtype(self, x: Float[Tensor, "b c h w"]) -> torch.dtype:
        """Floating type of what the network is given: that of its parameters."""
        return parameter_dtype(self.net, x)

    def loss_weight(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Gives the network's own output unit weight at every level."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


def noise_condition(sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """What the network is told of sigma, float32 whatever the network computes in."""
    return (sigma.log() / 4).float()


class VEDenoiser(Denoiser):
    """Reads a variance-exploding score network. Karras et al. (2022), table 1, column "VE".

    Args:
        net: Called as `net(x, noise, y)`, or `net(x, noise)` where it knows no classes.
        num_classes: Number of classes; 0 for a network that knows none.
        shape: Channels, height and width of the images.
        has_null: Whether label `num_classes` is in the network's table.
        sigma_min: Lowest level that the network was trained at.
        sigma_max: Highest level that the network was trained at.

    Raises:
        ValueError: For another shape, or levels that are no range.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        shape: Sequence[int],
        has_null: bool = True,
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
    ) -> None:
        super().__init__()
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                f"VEDenoiser needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}; "
                "the published networks know 0.02 to 100."
            )
        self.net = net
        self.num_classes = num_classes
        self.shape = image_shape(shape)
        self.has_null = has_null
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def predict(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Prediction:
        """Denoised image."""
        inputs = x.to(parameter_dtype(self.net, x))
        noise = (sigma / 2).log().float()  # not in half precision, whatever the network has
        out = self.net(inputs, noise, y) if self.num_classes else self.net(inputs, noise)
        return Prediction(x + expand(sigma, x) * out.to(x))

    def snap(self, sigma: float) -> float:
        """The level itself, or the end of the training range that it lies beyond; 0 stays 0."""
        return min(max(sigma, self.sigma_min), self.sigma_max) if sigma else sigma
