"""Statistics of a data module's real images, where no file of them is given."""

from typing import Any

import torch
from torch import Tensor

from robustguide.callbacks.calibration import home_of_float64
from robustguide.callbacks.trajectory import features_of
from robustguide.data.generated.base import begun
from robustguide.interfaces import to_pixels
from robustguide.metrics.extractor import Extractor
from robustguide.metrics.frechet import FeatureMoments
from robustguide.metrics.protocol import Protocol
from robustguide.metrics.reference import Provenance, Reference
from robustguide.metrics.tables import Held


def reference_of(
    data: Any, protocol: Protocol, extractor: Extractor, batch_size: int
) -> Reference:
    """Statistics of real images, all of them in this process: the same with any number of them.

    Args:
        data: Data module with samples of a data set as `reference`.
        protocol: By which they are made.
        extractor: On its device.
        batch_size: Images at a time.

    Raises:
        ValueError: There are no images.
    """
    images = getattr(data, "reference", None)
    if images is None:
        raise ValueError(
            "No real images to compare with; set data.reference to an image source, or this "
            "callback's reference to a file of `robustguide stats`."
        )
    device = next((p.device for p in extractor.parameters()), torch.device("cpu"))
    kept = set(kept_rows(len(images), protocol))
    sums: dict[str, FeatureMoments] = {}
    activations: dict[str, list[Tensor]] = {}
    digest = begun(tuple(images.shape))
    for first in range(0, len(images), batch_size):
        rows = range(first, min(first + batch_size, len(images)))
        samples = [images[row] for row in rows]
        pixels = to_pixels(torch.stack([sample[0] for sample in samples]))
        digest.update(pixels.numpy().tobytes())
        y = torch.tensor([sample[1] for sample in samples], device=device)
        chosen = [place for place, row in enumerate(rows) if row in kept]
        for layer, features in features_of(extractor, pixels.to(device), y, batch_size).items():
            if layer not in sums:
                sums[layer] = FeatureMoments(features.shape[1]).to(home_of_float64(device))
            sums[layer].update(features)
            activations.setdefault(layer, []).append(features[chosen].cpu())
    name = getattr(data, "reference_name", None) or type(images).__name__
    split = getattr(data, "reference_split", None)
    provenance = Provenance(name, split, None, len(images), digest.hexdigest())
    moments = {layer: each.moments() for layer, each in sums.items()}
    tables = {
        measure.layer: Held(torch.cat(activations[measure.layer]))
        for measure in protocol.measures
        if measure.needs == "activations"
    }
    return Reference(protocol.name, extractor.identity, provenance, moments, tables)


def kept_rows(count: int, protocol: Protocol) -> list[int]:
    """Rows whose features are kept for precision and recall: of a fixed permutation, the first."""
    if not any(measure.needs == "activations" for measure in protocol.measures):
        return []
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return sorted(order[: protocol.activations].tolist())
