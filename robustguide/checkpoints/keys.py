"""Names of tensors: from those of a published file to those of the module that reads it."""

from collections.abc import Mapping
from importlib import import_module

from torch import Tensor

from robustguide.cards import Card

Tensors = Mapping[str, Tensor]


def translated(of: Card, tensors: Tensors) -> dict[str, Tensor]:
    """Tensors under the names of the card's module.

    Raises:
        ValueError: For names that the card does not know.
    """
    if isinstance(of.keys, str):
        module, _, name = of.keys.rpartition(".")
        result: dict[str, Tensor] = getattr(import_module(module), name)(tensors)
        return result
    return renamed(tensors, of.keys, of.drop)


def original(of: Card, tensors: Tensors) -> dict[str, Tensor]:
    """Tensors of the card's module under the names of the published file.

    Raises:
        ValueError: For a card whose translation has no way back.
    """
    if not isinstance(of.keys, str):
        return renamed(tensors, {ours: theirs for theirs, ours in of.keys.items()}, ())
    module, _, name = of.keys.rpartition(".")
    back = getattr(import_module(module), name.replace("to_ours", "to_official"), None)
    if back is None or not name.endswith("to_ours"):
        raise ValueError(f"The names of card {of.name!r} can only be read; there is no way back.")
    result: dict[str, Tensor] = back(tensors)
    return result


def renamed(
    tensors: Tensors, beginnings: Mapping[str, str], drop: tuple[str, ...]
) -> dict[str, Tensor]:
    """Replaces the longest beginning that fits; a name that none fits is an error.

    Raises:
        ValueError: For a name that no beginning fits, or two that become one.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if drop and name.startswith(drop):
            continue
        fits = [beginning for beginning in beginnings if name.startswith(beginning)]
        if not fits:
            known = ", ".join(sorted(beginnings))
            raise ValueError(f"it holds {name!r}, whose name begins with none of {known}")
        longest = max(fits, key=len)
        ours = beginnings[longest] + name.removeprefix(longest)
        if ours in result:
            raise ValueError(f"two of its tensors are {ours!r} here, one of them {name!r}")
        result[ours] = tensor
    return result
