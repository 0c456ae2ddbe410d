"""Ways to make a network worse, so that autoguidance needs no second one.

Srivastava et al. (2014): dropout samples a thinned network, whose units are scaled by
1 / (1 - rate) so that their mean stays. Karras et al. (2024) let a network with dropout guide
itself; that one mask is kept for the whole run is ours.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from robustguide.guidance.evaluations import Corruption
from robustguide.interfaces import Denoiser

WHOLE_CHANNELS = nn.Dropout1d | nn.Dropout2d | nn.Dropout3d


class Dropout(Corruption):
    """Thins the network: wherever it has an `nn.Dropout`, the same units are off in every row.

    Which units those are depends on the seed, the name of the place in the network and the shape
    of a row there, so neither on the batch nor on the noise level. The rate need not be that of
    the training; a network trained without dropout suffers more.

    Args:
        rate: Share of the units that are off, in (0, 1).
        seed: Another one, other units.

    Raises:
        ValueError: For a rate outside (0, 1).
    """

    def __init__(self, rate: float, seed: int = 0) -> None:
        super().__init__()
        if not 0 < rate < 1:
            raise ValueError(
                f"rate is a share of units to switch off, between 0 and 1, got {rate}; at 0 the "
                "network would be no worse."
            )
        self.rate, self.seed = rate, seed
        self._masks: dict[tuple[str, tuple[int, ...], torch.device], Tensor] = {}

    def check(self, denoiser: Denoiser) -> None:
        """Refuses a network without any place for dropout.

        Raises:
            ValueError: Says what to do instead.
        """
        if not places(denoiser):
            raise ValueError(
                "Dropout finds no nn.Dropout in the network to act in; give Autoguidance another "
                "network as `reference`, or build this one with nn.Dropout modules (of rate 0, "
                "where it was trained without)."
            )

    def forward(self, denoiser: Denoiser) -> AbstractContextManager[object]:
        """A context in which the units are off."""
        return self._thinned(denoiser)

    @contextmanager
    def _thinned(self, denoiser: Denoiser) -> Iterator[None]:
        with ExitStack() as stack:
            for name, place in places(denoiser).items():
                spatial = isinstance(place, WHOLE_CHANNELS)
                stack.enter_context(standing_in(place, partial(self._drop, name, spatial)))
            yield

    def _drop(self, name: str, whole_channels: bool, h: Tensor) -> Tensor:
        """The units of a place, some off and the others scaled."""
        shape = tuple(h.shape[1:])
        if whole_channels:
            shape = (shape[0], *[1] * (len(shape) - 1))
        key = name, shape, h.device
        if key not in self._masks:  # once a run, as it is drawn on the host
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
            is_off = torch.rand(shape, generator=generator, device="cpu") < self.rate
            self._masks[key] = is_off.to(h.device, non_blocking=True)
        return (h / (1 - self.rate)).masked_fill(self._masks[key], 0)


def places(network: nn.Module) -> dict[str, nn.Module]:
    """Dropout modules of a network by name, of any rate."""
    kinds = nn.Dropout | WHOLE_CHANNELS
    return {name: each for name, each in network.named_modules() if isinstance(each, kinds)}


@contextmanager
def standing_in(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Another `forward` for one module, without its own being called, which may draw numbers."""
    attributes = vars(module)
    own = {"forward": attributes["forward"]} if "forward" in attributes else {}
    attributes["forward"] = forward
    try:
        yield
    finally:
        del attributes["forward"]
        attributes.update(own)
