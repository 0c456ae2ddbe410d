"""How often networks were evaluated, in rows: a batch of b images counts b."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustguide.interfaces import Classifier, Denoiser, Prediction


@dataclass
class Evaluated:
    """Rows given to networks, and images made.

    Attributes:
        images: Images made.
        denoiser: Rows given to denoisers, guided or reference.
        classifier: Rows given to classifiers that guide.
        observer: Rows given to a classifier that only reads along.
    """

    images: int = 0
    denoiser: int = 0
    classifier: int = 0
    observer: int = 0


@contextmanager
def counted(denoiser: Denoiser, terms: nn.Module, evaluated: Evaluated) -> Iterator[None]:
    """Counts the rows that the denoisers and the guiding classifiers see; host numbers only."""
    inside: list[Denoiser] = []
    with ExitStack() as stack:
        for module in {*outermost(denoiser, Denoiser), *outermost(terms, Denoiser)}:
            stack.enter_context(counted_predictions(module, evaluated, inside))
        for module in set(outermost(terms, Classifier)):
            hook = module.register_forward_pre_hook(counting_rows(evaluated))
            stack.callback(hook.remove)
        yield


def counting_rows(evaluated: Evaluated) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that adds the rows of a classifier's input."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        evaluated.classifier += len(inputs[0])

    return hook


@contextmanager
def counted_predictions(
    denoiser: Denoiser, evaluated: Evaluated, inside: list[Denoiser]
) -> Iterator[None]:
    """Stands before a denoiser's `predict` for a while (hooks see only calls of the module).

    A denoiser that answers for another one, inside of it, is not counted twice.
    """
    predict = denoiser.predict

    def counting(x: Tensor, sigma: Tensor, y: Tensor) -> Prediction:
        evaluated.denoiser += 0 if inside else len(x)
        inside.append(denoiser)
        try:
            return predict(x, sigma, y)
        finally:
            inside.pop()

    denoiser.predict = counting  # type: ignore[method-assign]
    try:
        yield
    finally:
        del denoiser.predict


def outermost(module: nn.Module, kind: type[nn.Module]) -> list[Any]:
    """Modules of a kind that are not inside another of that kind."""
    if isinstance(module, kind):
        return [module]
    return [found for child in module.children() for found in outermost(child, kind)]
