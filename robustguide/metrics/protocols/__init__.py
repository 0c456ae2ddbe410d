"""The protocols that have a name, each in a file of its own."""

from robustguide.complaints import nearest
from robustguide.metrics.protocol import Protocol
from robustguide.metrics.protocols.adm import ADM
from robustguide.metrics.protocols.class_accuracy import CLASS_ACCURACY
from robustguide.metrics.protocols.classifier_features import DIGITS, FASHION_MNIST, OWN
from robustguide.metrics.protocols.clean import CLEAN
from robustguide.metrics.protocols.clip_score import CLIP_SCORE
from robustguide.metrics.protocols.dinov2 import DGM, EDM2
from robustguide.metrics.protocols.edm import EDM

__all__ = ["PROTOCOLS", "protocol"]

PROTOCOLS: dict[str, Protocol] = {
    each.name: each
    for each in (
        ADM, EDM, CLEAN, EDM2, DGM, CLIP_SCORE, CLASS_ACCURACY, DIGITS, FASHION_MNIST, OWN,
    )
}  # fmt: skip


def protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        ValueError: For an unknown name; lists those that there are.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    raise ValueError(
        f"There is no protocol {name!r}{nearest(name, PROTOCOLS)}; there are "
        f"{', '.join(PROTOCOLS)}."
    )
