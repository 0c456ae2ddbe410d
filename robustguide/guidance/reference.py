"""Guidance away from a reference: another denoised image at the same noise.

displacement = denoised(y) - reference
"""

from jaxtyping import Float
from torch import Tensor

from robustguide.guidance.base import Branch, Guidance, Step
from robustguide.interfaces import Denoiser, Place


class Reference(Guidance):
    """The guided network's answer minus that of another network, or of the null label.

    Args:
        reference: The denoiser that one guides away from; null is the guided network itself, with
            the null label.
        channels: Only the first so many channels are moved; null moves all.
    """

    moves_denoised = True

    def __init__(self, reference: Denoiser | None = None, channels: int | None = None) -> None:
        super().__init__()
        self.reference = reference
        self.channels = channels

    def branches(self, y: Tensor, null: Tensor, place: Place) -> tuple[Branch, ...]:
        """The reference's branch."""
        return (Branch(null) if self.reference is None else Branch(y, self.reference),)

    def forward(self, step: Step) -> Float[Tensor, "b c h w"]:
        """Difference of the two denoised images."""
        labels = step.null if self.reference is None else step.y
        difference = step.denoised - step.evaluate(labels, self.reference)
        if self.channels is not None:
            difference[:, self.channels :] = 0
        return difference


class ClassifierFree(Reference):
    """Guidance away from the null label of the same network. Ho and Salimans (2022), eq. 6.

    A scale of w is theirs: `(1 + w) eps(y) - w eps(null)`.

    Args:
        channels: Only the first so many channels are moved, as DiT's published sampler does with 3
            of its 4 latent channels; null moves all.
    """

    def __init__(self, channels: int | None = None) -> None:
        super().__init__(None, channels)
