"""Statistics of a data module's real images, where no file of them is there yet."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustguide.checkpoints.references import open_reference
from robustguide.data.generated import Real
from robustguide.data.statistics import statistics
from robustguide.metrics.extractor import Extractor
from robustguide.metrics.protocol import Protocol
from robustguide.metrics.reference import Provenance, Reference

AS_READ = "as the data module reads them, "  # how a recipe of ours begins


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
    told = provenance_of(data)
    if told is None:
        raise ValueError(
            "No real images to compare with; set data.reference to an image source, or this "
            "callback's reference to a file of `robustguide stats`."
        )
    images = Real(data.reference_source, data.reference_split)
    return statistics(images, extractor, protocol, told, protocol.activations, batch_size)


def kept_reference(path: str, data: Any, protocol: Protocol) -> Reference | None:
    """Statistics from a file; null where it is to be made of the data module's images.

    Args:
        path: Our own file, or one as published. Only a .safetensors file is made.
        data: Data module, which may have real images as `reference_source`.
        protocol: That samples are to be measured by.

    Raises:
        FileNotFoundError: No such file, and nothing to make it of.
        ValueError: It is no such file, or was made of other images of a data module.
    """
    told = provenance_of(data)
    if told is not None and not Path(path).exists() and Path(path).suffix == ".safetensors":
        return None
    found = open_reference(path, protocol)
    of = replace(found.provenance, digest=None)
    if told is not None and (of.recipe or "").startswith(AS_READ) and of != told:
        raise ValueError(
            f"{path} was made of {in_words(of)}; the data module has {in_words(told)}. Delete the "
            "file, and it is made again, or give reference another name."
        )
    return found


def keep(reference: Reference, path: str | os.PathLike[str]) -> None:
    """Writes a file for the runs that come after."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    reference.save(path)


def provenance_of(data: Any) -> Provenance | None:
    """Of a data module's real images, their digest left out; null where it has none."""
    source = getattr(data, "reference_source", None)
    if source is None:
        return None
    recipe = AS_READ + " x ".join(map(str, source.shape))
    count = len(source.split(data.reference_split))
    return Provenance(type(source).__name__, data.reference_split, recipe, count)


def in_words(told: Provenance) -> str:
    """Such as "1259 images of Digits, train, as the data module reads them, 1 x 8 x 8"."""
    return f"{told.count} images of {told.data}, {told.split}, {told.recipe}"
