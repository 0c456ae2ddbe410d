"""Networks that make a large image from a small one."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from robustguide.denoisers.eps import EpsDenoiser, image_shape
from robustguide.interfaces import Prediction
from robustguide.noise import DiscreteLevels


class Upsampler(EpsDenoiser):
    """An eps-network that also sees a smaller image. Dhariwal and Nichol (2021), section 5.3.

    It denoises once it is given the small images: `upsampler.given(images)` is a denoiser.

    Args:
        net: Called as `net(x_t, t, small, y)`, or `net(x_t, t, small)` without classes.
        levels: The chain that t counts.
        num_classes: Number of classes; 0 for a network that knows none.
        shape: Channels, height and width of the large images.
        small: Channels, height and width of the small images.
        has_null: Whether label `num_classes` is in the network's table.
        learns_variance: Whether the second half of the output channels is a learned variance.
    """

    def __init__(
        self,
        net: nn.Module,
        levels: DiscreteLevels,
        num_classes: int,
        shape: Sequence[int],
        small: Sequence[int],
        has_null: bool = True,
        learns_variance: bool = False,
    ) -> None:
        super().__init__(net, levels, num_classes, shape, has_null, learns_variance)
        self.small = image_shape(small)

    def given(self, images: Float[Tensor, "b c h w"]) -> EpsDenoiser:
        """A denoiser of what these small images, in [-1, 1], show; it takes b rows at a time.

        Raises:
            ValueError: For images of another shape.
        """
        if tuple(images.shape[1:]) != self.small:
            raise ValueError(
                f"The upsampler enlarges images of shape {list(self.small)}, got "
                f"{list(images.shape[1:])}; sample them with a denoiser of that size."
            )
        return EpsDenoiser(
            _Beside(self.net, images),
            self.levels,
            self.num_classes,
            self.shape,
            self.has_null,
            self.learns_variance,
        )

    def predict(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Prediction:
        """Only with small images.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "An upsampler denoises only beside small images; use upsampler.given(images), a "
            "denoiser, in its place."
        )


class _Beside(nn.Module):
    """A network with its small images; several branches of a batch see the same ones."""

    small: Tensor

    def __init__(self, net: nn.Module, small: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("small", small, persistent=False)

    def forward(self, x: Tensor, t: Tensor, *y: Tensor) -> Tensor:
        copies, rest = divmod(len(x), len(self.small))
        if rest:
            raise ValueError(
                f"The upsampler was given {len(self.small)} small images, but denoises {len(x)} "
                "rows; sample with a batch size of that number of images."
            )
        small = self.small.to(x).repeat(copies, 1, 1, 1)
        out: Tensor = self.net(x, t, small, *y)
        return out
