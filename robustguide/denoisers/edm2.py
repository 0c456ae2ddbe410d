"""EDM2's networks as denoisers: EDM's preconditioning, and the variance of the error it leaves.

denoised = c_skip * x + c_out * net(c_in * x, log(sigma) / 4, y)

The network computes in a type of its own choice while its parameters stay as they are stored, and
a small head learns u(sigma), the log-variance of the error, which balances the levels in training:

loss = weight(sigma) / exp(u) * error + u
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustguide.denoisers.edm import EDMDenoiser, noise_condition
from robustguide.nets.edm2_blocks import MPConv, MPFourier


class EDM2Denoiser(EDMDenoiser):
    """Preconditions a network and weighs its training. Karras et al. (2024), eqs. 14 to 21.

    Args:
        net: Called as `net(x, noise, y)`, or `net(x, noise)` where it knows no classes.
        num_classes: Number of classes; 0 for a network that knows none.
        shape: Channels, height and width of the images or latents.
        sigma_data: Standard deviation of the data, 0.5 for images in [-1, 1].
        has_null: Whether it was trained with label `num_classes`; the published ones were not.
        logvar_channels: Width of the head that learns the log-variance.
        net_dtype: Floating type of what the network is given and so computes in; its parameters
            may be stored in another. The published figures are of float16.

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
        logvar_channels: int = 128,
        net_dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> None:
        super().__init__(net, num_classes, shape, sigma_data, has_null)
        self.net_dtype = net_dtype
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPConv(logvar_channels, 1)

    def input_dtype(self, x: Float[Tensor, "b c h w"]) -> torch.dtype:
        """The one that was chosen, whatever its parameters are stored in."""
        dtype: torch.dtype = getattr(torch, self.net_dtype)
        return dtype

    def log_variance(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The head's u(sigma): log of the expected weighted error at a level, where trained."""
        variance: Tensor = self.logvar_linear(self.logvar_fourier(noise_condition(sigma)))
        return variance.squeeze(1)

    def loss(self, error: Float[Tensor, " b"], sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Training loss of mean squared errors of `denoised`. Karras et al. (2024), eq. 21."""
        log_variance = self.log_variance(sigma)
        return self.loss_weight(sigma) * error * (-log_variance).exp() + log_variance
