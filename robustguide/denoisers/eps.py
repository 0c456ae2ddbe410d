"""Networks of a discrete chain, read as denoisers; those that predict the noise.

x_t = x / sqrt(1 + sigma**2)      denoised = x - sigma * net(x_t, t, y)
"""

from abc import abstractmethod
from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from robustguide.interfaces import Denoiser, Prediction, parameter_dtype
from robustguide.noise import Levels, expand, vp_scale


class ChainDenoiser(Denoiser):
    """Reads a network that sees x_t and t as a denoiser; subclasses know what it predicts.

    Args:
        net: Called as `net(x_t, t, y)`, or `net(x_t, t)` where it knows no classes.
        levels: The chain that t counts.
        num_classes: Number of classes; 0 for a network that knows none.
        shape: Channels, height and width of the images.
        has_null: Whether label `num_classes` is in the network's table.
        learns_variance: Whether the second half of the output channels is a learned variance.
    """

    def __init__(
        self,
        net: nn.Module,
        levels: Levels,
        num_classes: int,
        shape: Sequence[int],
        has_null: bool = True,
        learns_variance: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.levels = levels
        self.num_classes = num_classes
        self.shape = image_shape(shape)
        self.has_null = has_null
        self.learns_variance = learns_variance

    def predict(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Prediction:
        """Denoised image and, where learned, the fraction of the variance."""
        x_t = (x / expand(vp_scale(sigma), x)).to(parameter_dtype(self.net, x))
        t = self.levels.t(sigma)
        out = (self.net(x_t, t, y) if self.num_classes else self.net(x_t, t)).to(x)
        predicted, v = out.chunk(2, dim=1) if self.learns_variance else (out, None)
        denoised = self.clean(x, expand(sigma, x), predicted)
        return Prediction(denoised, None if v is None else (v + 1) / 2)

    @abstractmethod
    def clean(self, x: Tensor, sigma: Tensor, predicted: Tensor) -> Tensor:
        """Denoised image from what the network predicts; sigma has the axes of x."""

    def snap(self, sigma: float) -> float:
        """The level of the chain that the network will be told."""
        return self.levels.snap(sigma)


class EpsDenoiser(ChainDenoiser):
    """Reads an eps-network (ADM, DiT, iDDPM) as a denoiser. Ho et al. (2020), eq. 15."""

    def clean(self, x: Tensor, sigma: Tensor, predicted: Tensor) -> Tensor:
        """What is left of x without its noise."""
        return x - sigma * predicted


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Checks (channels, height, width).

    Raises:
        ValueError: For anything but three positive integers.
    """
    if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(
            f"shape must be [channels, height, width], three positive integers, got {shape}."
        )
    channels, height, width = shape
    return channels, height, width
