"""What the classes of a network are called."""

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
