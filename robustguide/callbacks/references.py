"""Statistics of a data module's real images, where no file of them is given."""

from typing import Any

from robustguide.data.generated import Real
from robustguide.data.statistics import statistics
from robustguide.metrics.extractor import Extractor
from robustguide.metrics.protocol import Protocol
from robustguide.metrics.reference import Provenance, Reference


def reference_of(
    data: Any, protocol: Protocol, extractor: Extractor, batch_size: int
) -> Reference:
    """Statistics of real images, all of them in this process: the same with any number of them.

    Args:
        data: Data module with a source of real images as `reference_source`.
        protocol: By which they are made.
        extractor: On its device.
        batch_size: Images at a time.

    Raises:
        ValueError: There are no images.
    """
    source = getattr(data, "reference_source", None)
    if source is None:
        raise ValueError(
            "No real images to compare with; set data.reference to an image source, or this "
            "callback's reference to a file of `robustguide stats`."
        )
    told = Provenance(type(source).__name__, data.reference_split)
    images = Real(source, data.reference_split)
    return statistics(images, extractor, protocol, told, protocol.activations, batch_size)
