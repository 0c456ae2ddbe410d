"""Statistics of a data module's real images, where no file of them is there yet."""

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
    if not has_images(data):
        raise ValueError(
            "No real images to compare with; set data.reference to an image source, or this "
            "callback's reference to a file of `robustguide stats`."
        )
    images, told = Real(data.reference_source, data.reference_split), provenance_of(data)
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
    if has_images(data) and Path(path).suffix == ".safetensors" and not Path(path).exists():
        return None
    found = open_reference(path, protocol)
    if has_images(data) and (found.provenance.recipe or "").startswith(AS_READ):
        of, told = replace(found.provenance, digest=None), provenance_of(data)
        if of != told:
            raise ValueError(
                f"{path} was made of {in_words(of)}; the data module has {in_words(told)}. Delete "
                "the file, and it is made again, or give reference another name."
            )
    return found


def has_images(data: Any) -> bool:
    """Whether a data module has real images."""
    return getattr(data, "reference_source", None) is not None


def provenance_of(data: Any) -> Provenance:
    """Of a data module's real images, their digest left out; it counts them."""
    source = data.reference_source
    recipe = AS_READ + " x ".join(map(str, source.shape))
    count = len(source.split(data.reference_split))
    return Provenance(type(source).__name__, data.reference_split, recipe, count)


def in_words(told: Provenance) -> str:
    """Such as "1259 images of Digits, train, as the data module reads them, 1 x 8 x 8"."""
    return f"{told.count} images of {told.data}, {told.split}, {told.recipe}"
