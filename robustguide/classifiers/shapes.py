"""What images a network was made for, as far as it says so."""

from collections.abc import Sequence
from typing import Any

from torch import nn


def known_shape(net: nn.Module, given: Sequence[int] | None) -> tuple[int, int, int] | None:
    """The shape that was given, else the one that a network of this package knows of itself.

    Args:
        net: One with `shape`, or with `in_channels` and `image_size`; others tell nothing.
        given: Channels, height and width.

    Raises:
        ValueError: For a given shape that is none.
    """
    if given is None:
        size = getattr(net, "image_size", None)
        told: Any = (getattr(net, "in_channels", None), size, size)
        return _three(getattr(net, "shape", told))
    found = _three(tuple(given))
    if found is None or min(found) < 1:
        raise ValueError(
            f"shape is [channels, height, width], three positive integers, got {list(given)}; "
            "leave it out where the classifier reads images of any size."
        )
    return found


def _three(value: Any) -> tuple[int, int, int] | None:
    """The value, if it is three integers."""
    if not isinstance(value, tuple) or len(value) != 3:
        return None
    channels, height, width = value
    if any(type(size) is not int for size in value):
        return None
    return channels, height, width
