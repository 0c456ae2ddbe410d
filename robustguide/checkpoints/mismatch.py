"""Tells in which tensors two descriptions of a network differ."""

from pathlib import Path

from torch import Tensor, nn

from robustguide.checkpoints.metadata import opened

Shapes = dict[str, tuple[int, ...]]


def shapes_of(module: nn.Module) -> Shapes:
    """Shapes of the tensors that a file of this module holds, by name.

    Raises:
        ValueError: For a state that is not of tensors alone.
    """
    state = module.state_dict()
    if odd := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(
            f"The state of {type(module).__name__} holds {odd[0]!r}, which is no tensor; register "
            "it as a buffer, so that a checkpoint can hold it."
        )
    return {name: tuple(value.shape) for name, value in state.items()}


def shapes_in(path: str | Path) -> Shapes:
    """Shapes of the tensors in a safetensors file, by name."""
    with opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


def mismatches(first: Shapes, second: Shapes, names: tuple[str, str]) -> list[str]:
    """Tensors that differ, in the order of the second; first those in both, which say most."""
    odd = [name for name in {**second, **first} if first.get(name) != second.get(name)]
    odd.sort(key=lambda name: not (name in first and name in second))
    return [
        f"{name}: {names[0]} {_shown(first.get(name))}, {names[1]} {_shown(second.get(name))}"
        for name in odd
    ]


def listed(lines: list[str], most: int = 8) -> str:
    """The first few lines of a list and how many more there are."""
    more = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more


def _shown(shape: tuple[int, ...] | None) -> str:
    return "has none" if shape is None else str(list(shape))
