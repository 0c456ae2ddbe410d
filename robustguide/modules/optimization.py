"""Optimizers with a learning rate for every part of a network, and stepwise randomness."""

from collections.abc import Mapping

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from robustguide.samplers.seeds import mixed


def optimization(
    network: nn.Module,
    optimizer: OptimizerCallable,
    scheduler: LRSchedulerCallable | None,
    rates: Mapping[str, float] | None = None,
) -> OptimizerLRScheduler:
    """An optimizer over a network, and a schedule that counts optimizer steps.

    Args:
        network: Its parameters are trained.
        optimizer: Makes the optimizer from parameter groups.
        scheduler: Makes the schedule from the optimizer.
        rates: Multiple of the learning rate for parameters whose name starts with a prefix, the
            longest one that fits; 0 freezes them.

    Raises:
        ValueError: For a prefix that no parameter has.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for multiple, parameters in grouped(network, rates or {}).items():
        for parameter in parameters:
            parameter.requires_grad_(multiple > 0)
        if multiple > 0:
            groups[multiple] = parameters
    if not groups:
        raise ValueError(f"rates {dict(rates or {})} freeze every parameter; leave some to train.")
    made = optimizer([{"params": parameters} for parameters in groups.values()])
    for group, multiple in zip(made.param_groups, groups, strict=True):
        group["lr"] *= multiple
    if scheduler is None:
        return made
    return {  # type: ignore[return-value]  # the union of Lightning's types is wider than its stub
        "optimizer": made,
        "lr_scheduler": {"scheduler": scheduler(made), "interval": "step"},
    }


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
        fitting = [prefix for prefix in rates if name.startswith(prefix)]
        multiple = rates[max(fitting, key=len)] if fitting else 1.0
        groups.setdefault(multiple, []).append(parameter)
    return groups


def frozen_parts(network: nn.Module, rates: Mapping[str, float] | None) -> list[nn.Module]:
    """Submodules named by a rate of 0, which then keep their evaluation mode as well."""
    prefixes = {prefix.removesuffix(".") for prefix, rate in (rates or {}).items() if rate == 0}
    return [module for name, module in network.named_modules() if name in prefixes]


def start_step(module: LightningModule, seed: int, batch_idx: int) -> None:
    """Makes every random number of a training step a function of the step alone.

    So a run that was stopped and resumed equals an unbroken one, dropout included.
    """
    trainer = module.trainer
    torch.manual_seed(mixed(seed, trainer.current_epoch, batch_idx, trainer.global_rank))
