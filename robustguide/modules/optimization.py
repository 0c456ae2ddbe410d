"""Optimizers with a learning rate for every part of a network, and what is frozen."""

import math
from collections.abc import Mapping

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import AdamW


def optimization(
    network: nn.Module,
    optimizer: OptimizerCallable | None,
    scheduler: LRSchedulerCallable | None,
    rates: Mapping[str, float] | None = None,
) -> OptimizerLRScheduler:
    """An optimizer over a network, and a schedule that counts optimizer steps.

    Args:
        network: Its parameters are trained.
        optimizer: Makes the optimizer from parameter groups; null is AdamW. It is not the default
            of a signature, since the parser would hand AdamW's arguments on to another class.
        scheduler: Makes the schedule from the optimizer.
        rates: Multiple of the learning rate for parameters whose name starts with a prefix, the
            longest one that fits; 0 freezes them.

    Raises:
        ValueError: See `thaw`.
    """
    thaw(network, rates)
    found = grouped(network, rates or {})
    groups = {multiple: parameters for multiple, parameters in found.items() if multiple > 0}
    made = (optimizer or AdamW)([{"params": parameters} for parameters in groups.values()])
    for group, multiple in zip(made.param_groups, groups, strict=True):
        group["lr"] *= multiple
    if scheduler is None:
        return made
    return {  # type: ignore[return-value]  # the union of Lightning's types is wider than its stub
        "optimizer": made,
        "lr_scheduler": {"scheduler": scheduler(made), "interval": "step"},
    }


def thaw(network: nn.Module, rates: Mapping[str, float] | None) -> None:
    """Readies a network for training, one that was loaded frozen as well.

    Everything trains and is in training mode, except that what a rate of 0 freezes keeps its batch
    statistics too. Asked for before DDP looks at the parameters, and it does so before it makes
    optimizers; validation gives the modes back as they were.

    Raises:
        ValueError: For a prefix that no parameter has, a rate that is no multiple, or when nothing
            is left to train.
    """
    wrong = {name: rate for name, rate in (rates or {}).items() if not 0 <= rate < math.inf}
    if wrong:
        raise ValueError(f"rates are multiples of the learning rate, 0 or more, got {wrong}.")
    groups = grouped(network, rates or {})
    if not any(groups):
        raise ValueError(f"rates {dict(rates or {})} freeze every parameter; leave some to train.")
    for multiple, parameters in groups.items():
        for parameter in parameters:
            parameter.requires_grad_(multiple > 0)
    for name, module in network.named_modules():
        # by name, since a part of what is frozen may have a rate of its own
        module.training = multiple_of(f"{name}.", rates or {}) > 0


def grouped(network: nn.Module, rates: Mapping[str, float]) -> dict[float, list[nn.Parameter]]:
    """Parameters by the multiple of their learning rate."""
    names = [name for name, _ in network.named_parameters()]
    for prefix in rates:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(
                f"No parameter starts with {prefix!r}; they are {', '.join(names[:20])}..."
            )
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        groups.setdefault(multiple_of(name, rates), []).append(parameter)
    return groups


def multiple_of(name: str, rates: Mapping[str, float]) -> float:
    """The rate of the longest prefix that fits; 1 where none does."""
    fitting = [prefix for prefix in rates if name.startswith(prefix)]
    return rates[max(fitting, key=len)] if fitting else 1.0
