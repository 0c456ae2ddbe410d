"""What the classes of a network are called."""

from collections.abc import Sequence

from torch import nn

from robustguide.classifiers.off_the_shelf import NoiseConditioned
from robustguide.classifiers.wrappers import Relabelled, Wrapper


def class_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the classes that a module tells; none where they are numbers.

    A wrapper that was loaded from a file says them itself, one that was built asks what it wraps.
    """
    names = getattr(getattr(module, "metadata", None), "class_names", ())
    names = names or getattr(module, "class_names", ())  # of a denoiser: its prompts
    if isinstance(module, Wrapper | NoiseConditioned) and not names:
        return () if isinstance(module, Relabelled) else class_names(module.classifier)
    return () if names == tuple(map(str, range(len(names)))) else tuple(names)


def displaced(own: Sequence[str], theirs: Sequence[str]) -> list[int]:
    """Classes that others count otherwise; names may repeat, and those of one side say nothing."""
    places: dict[str, set[int]] = {}
    for label, name in enumerate(theirs):
        places.setdefault(name, set()).add(label)
    return [label for label, name in enumerate(own) if label not in places.get(name, {label})]
