"""The commands that need a trainer: `fit`, `validate`, `test`, `predict`, by LightningCLI."""

import logging
import os
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import ArgsType, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from robustguide.callbacks import Export, NoiseCurves, Progress, Results


class CommandLine(LightningCLI):
    """LightningCLI with a run folder: everything of a run lies in `trainer.default_root_dir`."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Gives the trainer a TensorBoard logger in the run folder, and puts EMA last."""
        config = self._get(self.config_init, "trainer")
        root = config["default_root_dir"] = config["default_root_dir"] or "runs/default"
        if config["logger"] in (None, True):
            # a fixed version: a run that is requeued continues its curves
            kwargs["logger"] = TensorBoardLogger(root, name="", version="")
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.sort(key=lambda callback: isinstance(callback, WeightAveraging))
        return trainer

    def before_fit(self) -> None:
        """See `claim`."""
        claim(Path(self.trainer.default_root_dir))

    def before_validate(self) -> None:
        """See `refuse_requeued`."""
        refuse_requeued(Path(self.trainer.default_root_dir))

    before_test = before_predict = before_validate


def refuse_requeued(root: Path) -> None:
    """Refuses a folder with checkpoints of a requeued training.

    On SLURM, Lightning would evaluate those weights in place of the network that was named.

    Raises:
        ValueError: When there is one.
    """
    found = sorted(root.glob("hpc_ckpt_*.ckpt"))
    if found:
        raise ValueError(
            f"{root} holds {found[-1].name} of a training run, whose weights Lightning would take "
            "instead of those you named; give this run a trainer.default_root_dir of its own."
        )


def claim(root: Path) -> None:
    """Notes which SLURM job trains here, and refuses to continue another one's checkpoint.

    Raises:
        ValueError: When the folder holds a requeue checkpoint of another job or array task.
    """
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    identity = f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    note = root / "slurm_job"
    owner = note.read_text() if note.is_file() else None
    found = sorted(root.glob("hpc_ckpt_*.ckpt"))
    if found and owner != identity:
        raise ValueError(
            f"{root} holds {found[-1].name} of SLURM job {owner or 'unknown'}, and Lightning would "
            f"continue it in job {identity}. Give this run a trainer.default_root_dir of its own, or "
            "move that file away and pass it as --ckpt_path to continue it on purpose."
        )
    root.mkdir(parents=True, exist_ok=True)
    note.write_text(identity)


def run(args: ArgsType = None) -> LightningCLI:
    """Parses a command line and runs its subcommand.

    Args:
        args: Words after `robustguide`, subcommand first.
    """
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: "Tip:" not in record.getMessage())
    return CommandLine(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        trainer_defaults={
            "inference_mode": False,  # attacks and guidance take gradients in evaluation
            "use_distributed_sampler": False,  # the data modules divide by process themselves
            "callbacks": [Progress(), NoiseCurves(), Export(), Results()],
        },
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "robustguide"},
        args=args,
    )
