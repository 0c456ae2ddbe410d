"""A run that was stopped and resumed equals an unbroken one."""

from typing import Any

import torch
from lightning import LightningModule

from robustguide.samplers.seeds import mixed


def start_step(module: LightningModule, seed: int) -> None:
    """Makes every random number of a training step a function of the step alone, dropout included.

    Batches are counted from the first one on: the epoch's number is not what it was, since a
    trainer that stops within an epoch counts it as done.
    """
    batch = module.trainer.fit_loop.epoch_loop.batch_progress.total.completed
    torch.manual_seed(mixed(seed, batch, module.trainer.global_rank))


def refuse_other_network(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Refuses a trainer's checkpoint of another network, before tensors are copied.

    Raises:
        ValueError: When tensors differ in name or shape.
    """
    theirs = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    ours = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    differ = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    if differ:
        name = differ[0]
        raise ValueError(
            f"The checkpoint is of another network: {len(differ)} tensors differ, such as {name}, "
            f"which is {shown(theirs.get(name))} in the checkpoint and {shown(ours.get(name))} in "
            "the configuration. Resume with the configuration that the run was started with, or "
            "fine-tune from its exported .safetensors file."
        )


def shown(shape: tuple[int, ...] | None) -> str:
    """A shape in words."""
    return "absent" if shape is None else f"of shape {list(shape)}"
