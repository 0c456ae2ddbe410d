"""What sampling costs: rows given to networks (a batch of b images counts b), and time.

Counted on the host, as the calls are made, so that nothing waits for the device.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustguide.interfaces import Classifier, Codec, Denoiser
from robustguide.machine.laps import clock


@dataclass
class Evaluated:
    """Images made by one process, and the sums of what they took.

    Only denoisers, classifiers and codecs of `robustguide.interfaces` are counted, not other
    networks that a user's term holds, such as the loss network of universal guidance.

    Attributes:
        images: Images made.
        seconds: Time of sampling alone: no decoding, no observer, no metrics.
        watching_seconds: Time of what is measured on the way: the observer, the features of the
            predicted clean images, and their sums.
        decoding_seconds: Time of decoding latents, of finished images and of those on the way.
        denoiser_evaluations: Rows given to the guided network, by whichever wrapper.
        reference_evaluations: Rows given to other denoisers; a smaller one costs less a row.
        denoiser_backward: Rows given to either through which a gradient is pulled back; all of a
            batch, though the gradient of some of its rows may be 0.
        classifier_forward: Rows given to classifiers that guide.
        classifier_backward: Rows given to them through which a gradient is pulled back.
        decoder_calls: Rows decoded inside terms; neither those of the finished images, nor those
            that a codec in chunks decodes again for its gradient.
        observer_forward: Rows given to a classifier that only reads along.
    """

    images: int = 0
    seconds: float = 0.0
    watching_seconds: float = 0.0
    decoding_seconds: float = 0.0
    denoiser_evaluations: int = 0
    reference_evaluations: int = 0
    denoiser_backward: int = 0
    classifier_forward: int = 0
    classifier_backward: int = 0
    decoder_calls: int = 0
    observer_forward: int = 0

    def add(self, name: str, rows: float) -> None:
        """Adds to a sum."""
        setattr(self, name, getattr(self, name) + rows)

    def join(self, sums: Mapping[str, float]) -> None:
        """Adds those of another run, by name."""
        for name, rows in sums.items():
            self.add(name, rows)


@contextmanager
def timed(evaluated: Evaluated, device: torch.device, name: str = "seconds") -> Iterator[None]:
    """Adds the time of a block, at whose two ends the host waits for the device.

    Args:
        evaluated: Holds the sums.
        device: Waited for; blocks are whole batches, so it has little to wait for.
        name: Of the sum.
    """
    start = clock(device)
    yield
    evaluated.add(name, clock(device) - start)


@contextmanager
def counted(denoiser: Denoiser, terms: nn.Module, evaluated: Evaluated) -> Iterator[None]:
    """Counts what the denoiser and the networks inside the terms are given in a block."""
    guided = of_kind(denoiser, Denoiser)
    denoisers = dict.fromkeys([*guided, *of_kind(terms, Denoiser)])
    within: list[nn.Module] = []
    with ExitStack() as stack:
        for module in denoisers:
            # a wrapper of the guided network is that network
            is_guided = not set(guided).isdisjoint(of_kind(module, Denoiser))
            forward = "denoiser_evaluations" if is_guided else "reference_evaluations"
            note = partial(noted, evaluated, forward, "denoiser_backward")
            stack.enter_context(watched_calls(module, "predict", note, within))
        for kind, methods, forward, backward in (
            (Classifier, ("forward", "as_clean"), "classifier_forward", "classifier_backward"),
            (Codec, ("decode",), "decoder_calls", None),
        ):
            note, within = partial(noted, evaluated, forward, backward), []
            for module in of_kind(terms, kind):
                for method in methods:
                    stack.enter_context(watched_calls(module, method, note, within))
        yield


def of_kind(module: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    """The module and those inside of it that are of a kind, each once."""
    return [found for found in module.modules() if isinstance(found, kind)]


@contextmanager
def watched_calls(
    module: nn.Module, method: str, note: Callable[[Tensor], Tensor], within: list[nn.Module]
) -> Iterator[None]:
    """Stands before a method of one module for a while; hooks see only calls of the module.

    Args:
        module: Its method is replaced, and put back.
        method: Its first argument has a row an image.
        note: Given that argument, and answers what is handed on in its place.
        within: The outermost call under way, of all modules that share this list; those inside of
            it, such as a wrapper's of what it wraps, are not noted.
    """
    call, own = getattr(module, method), vars(module).get(method)
    signature = inspect.signature(call)
    first = next(iter(signature.parameters))

    def watching(*args: Any, **named: Any) -> Any:
        if within:
            return call(*args, **named)
        given = signature.bind(*args, **named)
        given.arguments[first] = note(given.arguments[first])
        within.append(module)
        try:
            return call(*given.args, **given.kwargs)
        finally:
            within.pop()

    setattr(module, method, watching)
    try:
        yield
    finally:
        if own is None:
            delattr(module, method)
        else:  # of this module alone, as of one that is watched by others too
            setattr(module, method, own)


def noted(evaluated: Evaluated, forward: str, backward: str | None, x: Tensor) -> Tensor:
    """Counts the rows of x, and again whenever a gradient comes back to the answer's x.

    The hook is on the input: one on the output would also tell of gradients that end there. It
    knows the number of rows alone, so that it keeps no tensor alive.
    """
    rows = len(x)
    evaluated.add(forward, rows)
    if backward is None or not (x.requires_grad and torch.is_grad_enabled()):
        return x
    own = x.view_as(x)  # of this call alone
    hook: Any = own.register_hook  # torch gives it no types
    hook(lambda gradient: evaluated.add(backward, rows))
    return own
