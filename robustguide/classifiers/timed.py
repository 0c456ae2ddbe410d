"""Classifiers whose network is told the noise level, in the units that it was trained with.

They take any noise level, so a classifier of the variance-preserving chain guides a denoiser of
any other family, and the reverse:

    Timed               net(x / sqrt(1 + sigma**2), t(sigma))
    SigmaConditioned    net(x / sqrt(sigma_data**2 + sigma**2), log(sigma) / 4)
"""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from robustguide.classifiers.shapes import known_shape
from robustguide.interfaces import Classifier, parameter_dtype
from robustguide.noise import Levels, expand, vp_scale


class Timed(Classifier):
    """Reads a network of `(x_t, t)`, as ADM's classifiers are. Dhariwal and Nichol (2021).

    Between two entries of a table the network is told the nearest one, or with
    `interpolated=True` of the levels a t between them; x_t is of the level itself in either case.

    Args:
        net: Called as `net(x_t, t)`.
        levels: The chain that t counts.
        num_classes: Number of logits.
        shape: Channels, height and width of its images; null asks the network.
    """

    conditioning = "t"

    def __init__(
        self,
        net: nn.Module,
        levels: Levels,
        num_classes: int,
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.levels = levels
        self.num_classes = num_classes
        self.shape = known_shape(net, shape)

    def forward(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits."""
        x_t = (x / expand(vp_scale(sigma), x)).to(parameter_dtype(self.net, x))
        logits: Tensor = self.net(x_t, self.levels.t(sigma))
        return logits


class SigmaConditioned(Classifier):
    """Reads a network of a unit-variance image and `log(sigma) / 4`, the inputs of EDM's networks.

    Args:
        net: Called as `net(c_in * x, c_noise)`. Karras et al. (2022), table 1.
        num_classes: Number of logits.
        sigma_data: Standard deviation of the data, 0.5 for images in [-1, 1].
        sigma_min: Lower noise, 0 included, is told to the network as this.
        shape: Channels, height and width of its images; null asks the network.

    Raises:
        ValueError: For a level that is not a positive number.
    """

    conditioning = "sigma"

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not (0 < sigma_data < math.inf and 0 < sigma_min < math.inf):
            raise ValueError(
                "sigma_data and sigma_min must be positive numbers, got "
                f"{sigma_data} and {sigma_min}."
            )
        self.net = net
        self.num_classes = num_classes
        self.sigma_data = sigma_data
        self.sigma_min = sigma_min
        self.shape = known_shape(net, shape)

    def forward(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits."""
        total = (sigma**2 + self.sigma_data**2).sqrt()
        inputs = (x / expand(total, x)).to(parameter_dtype(self.net, x))
        logits: Tensor = self.net(inputs, (sigma.clamp_min(self.sigma_min).log() / 4).float())
        return logits
