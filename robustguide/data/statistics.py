"""Statistics of real images by a protocol, in one pass."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from robustguide.data.errors import DataError
from robustguide.data.generated.base import Generated, begun
from robustguide.data.splits import chance
from robustguide.metrics.extractor import Extractor
from robustguide.metrics.moments import Sums
from robustguide.metrics.protocol import Protocol
from robustguide.metrics.reference import Provenance, Reference
from robustguide.metrics.tables import Held


def statistics(
    images: Generated,
    extractor: Extractor,
    protocol: Protocol,
    provenance: Provenance,
    activations: int,
    batch_size: int,
    tell: Callable[[int], None] = lambda count: None,
) -> Reference:
    """Moments of each layer that a protocol compares, and features of some of the images.

    Args:
        images: The real images.
        extractor: On its device.
        protocol: Tells which layers.
        provenance: Of the images; their number and digest are filled in.
        activations: Images whose features are kept, where precision or recall need them: see
            `places`.
        batch_size: Images at a time.
        tell: Called with the number of images of each batch.

    Raises:
        ValueError: For a protocol that compares with nothing, and for fewer than two images.
    """
    layers, held = (layers_of(protocol, needs) for needs in ("moments", "activations"))
    check(protocol, [*layers, *held], images, activations)
    device = next((each.device for each in extractor.parameters()), torch.device("cpu"))
    wanted = places(images.count, activations) if held else set()
    sums: dict[str, Sums] = {}
    kept: dict[str, Tensor] = {}
    digest, first, done = begun(images.shape), 0, 0
    for batch in images.batches(batch_size):
        digest.update(batch.pixels.numpy().tobytes())
        y = None if batch.y is None else batch.y.to(device)
        found = extractor(batch.pixels.to(device), y)
        for layer in layers:
            if layer not in sums:
                sums[layer] = Sums.near(found[layer])
            sums[layer].add(found[layer])
        rows = [row for row in range(len(batch.index)) if first + row in wanted]
        for layer in held if rows else ():
            if layer not in kept:  # at once: parts among the batches would keep memory apart
                kept[layer] = torch.empty(len(wanted), found[layer].shape[1], device="cpu")
            kept[layer][done : done + len(rows)] = found[layer][rows].cpu()
        done += len(rows)
        first += len(batch.index)
        tell(len(batch.index))
    return Reference(
        protocol.name,
        extractor.identity,
        replace(provenance, count=first, digest=digest.hexdigest()),
        {layer: each.moments() for layer, each in sums.items()},
        {layer: Held(features) for layer, features in kept.items()},
    )


def layers_of(protocol: Protocol, needs: str) -> list[str]:
    """Layers of which a protocol needs something of real images, each once."""
    return list(dict.fromkeys(each.layer for each in protocol.measures if each.needs == needs))


def places(count: int, wanted: int) -> set[int]:
    """Places of the images whose features are kept.

    The first ones in an order that a hash of the place gives: the same on every machine, and of
    all classes where files are sorted by class.
    """
    return set(sorted(range(count), key=chance)[:wanted])


def check(protocol: Protocol, layers: list[str], images: Generated, activations: int) -> None:
    """Refuses before the long part."""
    if not layers:
        raise ValueError(
            f"Protocol {protocol.name!r} compares with no real images, so it needs no statistics; "
            f"give `robustguide score SAMPLES --protocol {protocol.name}` no reference."
        )
    if activations < 0:
        raise ValueError(f"activations is {activations}; expected 0 or more.")
    if images.count < 2:
        raise DataError(f"{images.path} holds one image; a covariance needs two or more.")
