"""Ways to run the networks of a module that change their speed and not what they compute."""

from collections.abc import Iterator

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn

from robustguide.interfaces import Classifier, Denoiser


class Acceleration(Callback):
    """Compiles the networks of classifiers and denoisers, or lays their weights out otherwise.

    A compiled network is made anew for every size of a batch: in training with an attack, name few
    sizes as its `batch_sizes`, the largest being that of the data. Compiling takes a minute or two
    a size, on a CPU for a few percent; what it gives on a GPU was not measured by us. Files of
    weights are the same with it and without.

    Args:
        compiled: Whether `torch.compile` makes kernels of each network.
        channels_last: Whether the weights of convolutions lie in memory with their channels last,
            which GPUs with tensor cores like; group norms on the CPU do not.
    """

    def __init__(self, compiled: bool = False, channels_last: bool = False) -> None:
        self.compiled, self.channels_last = compiled, channels_last

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Once a stage; a network that is compiled stays so."""
        for net in networks(module):
            if self.channels_last:
                net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if self.compiled:
                net.compile(dynamic=False)


def networks(module: nn.Module) -> Iterator[nn.Module]:
    """What classifiers and denoisers inside of a module wrap, each once."""
    seen: set[int] = set()
    for wrapper in module.modules():
        net = getattr(wrapper, "net", None)
        if not isinstance(wrapper, Classifier | Denoiser) or not isinstance(net, nn.Module):
            continue
        if not isinstance(net, Classifier | Denoiser) and id(net) not in seen:
            seen.add(id(net))
            yield net
