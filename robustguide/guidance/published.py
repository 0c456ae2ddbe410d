"""Guidance in the conventions of publications, by name; a configuration may name these functions.

    here                   denoised(y) + scale (denoised(y) - reference)
    Ho and Salimans        (1 + w) eps(y) - w eps(null)             scale = w
    DiT                    eps(null) + s (eps(y) - eps(null))       scale = s - 1, three channels
    EDM2                   lerp(reference, denoised(y), weight)     scale = weight - 1

They agree because eps, velocity and denoised image are linear in each other at one x and sigma.
"""

from robustguide.guidance.base import Guidance
from robustguide.guidance.combinators import Channels, Scaled
from robustguide.guidance.reference import ClassifierFree, Reference
from robustguide.interfaces import Denoiser


def ho_salimans(w: float) -> Guidance:
    """Classifier-free guidance where 0 is the conditional model. Ho and Salimans (2022), eq. 6.

    Args:
        w: At least 0.

    Raises:
        ValueError: For a negative w.
    """
    return Scaled(ClassifierFree(), scale=w)


def dit_classifier_free(weight: float, channels: int = 3) -> Guidance:
    """Classifier-free guidance as `forward_with_cfg` of DiT, where 1 is the conditional model.

    Args:
        weight: Their `cfg_scale`, at least 0.
        channels: How many of the latents' channels are guided; theirs are the first 3 of 4.

    Raises:
        ValueError: For a negative weight, or no channels.
    """
    return Scaled(Channels(ClassifierFree(), channels), weight=weight)


def edm2_guidance(weight: float, reference: Denoiser) -> Guidance:
    """Guidance by another network, where 1 is the network alone. Karras et al. (2024), eq. 3.

    Args:
        weight: Their `guidance`, at least 0.
        reference: Their `gnet`, told the same labels: an unconditional network for classifier-free
            guidance, a worse conditional one for autoguidance.

    Raises:
        ValueError: For a negative weight.
    """
    return Scaled(Reference(reference), weight=weight)
