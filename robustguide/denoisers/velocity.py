"""Networks of a discrete chain that predict its velocity, read as denoisers.

With alpha_bar = 1 / (1 + sigma**2), `v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0`, so

    denoised = x / (1 + sigma**2) - sigma / sqrt(1 + sigma**2) * net(x_t, t, y)
"""

from jaxtyping import Float
from torch import Tensor

from robustguide.denoisers.eps import ChainDenoiser
from robustguide.noise import vp_scale


class VDenoiser(ChainDenoiser):
    """Reads a v-network (Stable Diffusion 2) as a denoiser. Salimans and Ho (2022), section 4."""

    def clean(self, x: Tensor, sigma: Tensor, predicted: Tensor) -> Tensor:
        """The image, turned back from x_t and the velocity at it."""
        scale = vp_scale(sigma)
        return x / scale**2 - sigma / scale * predicted

    def loss_weight(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Gives the squared error of v unit weight at every level."""
        return 1 + sigma**-2
