"""A run that was stopped and resumed equals an unbroken one."""

from typing import Any

import torch
from lightning import LightningModule

from robustguide.checkpoints.mismatch import listed, mismatches, shapes_of
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
    wrong = mismatches(theirs, shapes_of(module), ("checkpoint", "configuration"))
    if wrong:
        raise ValueError(
            f"The trainer's checkpoint is of another network: {listed(wrong, most=3)}. Resume "
            "with the configuration that the run was started with, or fine-tune from its exported "
            ".safetensors file."
        )
