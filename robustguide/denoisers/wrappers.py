"""Denoisers made of other denoisers."""

from jaxtyping import Float, Int
from torch import Tensor

from robustguide.interfaces import Denoiser, Prediction


class Unconditional(Denoiser):
    """Gives every label as the null label, so that the class comes from guidance alone.

    Args:
        denoiser: One that knows the null label, or no classes at all.
        num_classes: Number of classes that labels, and so guidance, tell apart; null takes the
            denoiser's. State it for a network that knows none.

    Raises:
        ValueError: For a denoiser without a null label, or fewer than one class.
    """

    def __init__(self, denoiser: Denoiser, num_classes: int | None = None) -> None:
        super().__init__()
        if denoiser.num_classes and not denoiser.has_null:
            raise ValueError(
                "Unconditional needs a denoiser with a null label; this one was trained with a "
                "class for every image. Train with label dropout, or take an unconditional "
                "network."
            )
        if num_classes is not None and num_classes < 1:
            raise ValueError(
                f"num_classes must be at least 1, got {num_classes}; it counts the classes of the "
                "labels, such as those of the classifier that guides."
            )
        self.denoiser = denoiser
        self.num_classes = denoiser.num_classes if num_classes is None else num_classes
        self.has_null = False  # all labels are alike: guiding away from one would do nothing
        self.shape = denoiser.shape
        self.learns_variance = denoiser.learns_variance

    def predict(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Prediction:
        """Prediction for the null label."""
        return self.denoiser.predict(x, sigma, self.denoiser.null(y))

    def snap(self, sigma: float) -> float:
        """As the wrapped denoiser."""
        return self.denoiser.snap(sigma)

    def loss_weight(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """As the wrapped denoiser."""
        return self.denoiser.loss_weight(sigma)

    def loss(self, error: Float[Tensor, " b"], sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """As the wrapped denoiser."""
        return self.denoiser.loss(error, sigma)
