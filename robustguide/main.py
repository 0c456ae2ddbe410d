"""The commands that need a trainer: `fit`, `validate`, `test`, `predict`, by LightningCLI."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import yaml
from jsonargparse import set_parsing_settings
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.loggers import TensorBoardLogger

from robustguide.callbacks import (
    DenoisedByNoise,
    Export,
    GradientsByNoise,
    Meter,
    Progress,
    ReportCards,
    Requeue,
    Results,
    Throughput,
)
from robustguide.callbacks.saving import WholeCheckpoints, remove_parts
from robustguide.complaints import explain, innermost
from robustguide.files import alone, whole
from robustguide.plans.arrays import Plan
from robustguide.samplers import Sampler

NOTE = "owner"  # in a run folder: whose training it holds


class Parser(LightningArgumentParser):
    """A parser that takes no shortened names, and complains in few words."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def _parse_common(self, *args: Any, **kwargs: Any) -> Any:
        """Fills in defaults once: an inner parser has them as soon as it has read its part.

        jsonargparse 4.53 fills them in again, at every level, so that a term inside a term inside
        a term is read 2, 4, 8... times; reading a configuration took up to a minute.
        """
        if getattr(self, "_inner_parser", False) and "defaults" in kwargs:
            kwargs["defaults"] = False
        return super()._parse_common(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong and exits with code 2."""
        if not self.exit_on_error:  # an outer parser will add where it is
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [action.dest for action in parser._actions]
        command = parser.prog.replace(" [options]", "")
        print(f"{command}: {explain(message, options)}", file=sys.stderr)
        print(f"(`{command} --help` lists the options)", file=sys.stderr)
        raise SystemExit(2)


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run folder, whatever the logger."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file; one process does so."""
        with whole(Path(trainer.default_root_dir) / self.config_filename) as part:
            part.write_text(self.parser.dump(self.config, skip_unset=False))


class CommandLine(LightningCLI):
    """LightningCLI with a run folder: everything of a run lies in `trainer.default_root_dir`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Commands, and arguments that the command line does not give."""
        commands = LightningCLI.subcommands()
        commands["predict"].add("return_predictions")
        return commands

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Without the warning about arguments that were given twice: ours were only passed on."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]  # a list, see `run`

    def _parse_ckpt_path(self) -> None:
        """Takes nothing from a trainer's checkpoint: the configuration is what was asked for.

        Raises:
            FileNotFoundError: When it is not there.
            ValueError: For an exported file.
        """
        path = self.config[self.config.subcommand].ckpt_path
        if path and path not in ("best", "last", "hpc") and not Path(path).exists():
            raise FileNotFoundError(
                f"The checkpoint {path} does not exist (from {Path.cwd()}); give a .ckpt file "
                "that a run wrote into its folder's checkpoints/."
            )
        if path and path.endswith(".safetensors"):
            raise ValueError(
                f"{path} holds a network and no state of a run; --ckpt_path resumes from a .ckpt "
                "file. To start from this network, name it as the classifier (or denoiser) of the "
                "model, with robustguide.checkpoints.load_classifier (or load_denoiser)."
            )

    def instantiate_classes(self) -> None:
        """Builds everything.

        Raises:
            ValueError: What was raised inside, without the parser's copy of the configuration.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise innermost(error) from None

    def after_instantiate_classes(self) -> None:
        """Tells the module its plain configuration, by which an exported network is described."""
        parser, config = self._parser(self.subcommand), self.config[self.subcommand]
        model = yaml.safe_load(parser.dump(config, skip_unset=False))["model"]
        arguments = {**model.get("init_args", {}), **model.get("dict_kwargs", {})}
        self.model.save_hyperparameters(arguments)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Gives the trainer a TensorBoard logger in the run folder, and orders the callbacks.

        A default callback makes room for one of its kind that the configuration names.
        """
        config = self._get(self.config_init, "trainer")
        root = config["default_root_dir"] = config["default_root_dir"] or "runs/default"
        if config["logger"] in (None, True):
            # a fixed version: a run that is requeued continues its curves
            kwargs["logger"] = TensorBoardLogger(root, name="", version="")
        given = config["callbacks"] or []
        named = {type(each) for each in (given if isinstance(given, list) else [given])}
        if config["enable_progress_bar"] is False:
            named.add(Progress)
        defaults = self.trainer_defaults["callbacks"]
        self.trainer_defaults["callbacks"] = [c for c in defaults if type(c) not in named]
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.sort(key=turn)  # type: ignore[attr-defined]  # set by a connector
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Keeps other runs out of the folder; the first process does so for all of its run."""
        root = self.trainer.default_root_dir
        with alone(root) if self.trainer.is_global_zero else nullcontext():
            super()._run_subcommand(subcommand)

    def fit(self, **kwargs: Any) -> None:
        """Goes on where it was, if requeued or of a plan, whatever its first start was given."""
        if self.trainer.is_global_zero:
            remove_parts(checkpoint_folders(self.trainer))
        saved = latest(self.trainer)
        self.trainer.fit(**kwargs | ({"ckpt_path": str(saved)} if saved else {}))

    def predict(self, **kwargs: Any) -> None:
        """Keeps no images in memory, which callbacks have written."""
        self.trainer.predict(**kwargs, return_predictions=False)

    def before_fit(self) -> None:
        """See `claim`."""
        claim(Path(self.trainer.default_root_dir))

    def before_validate(self) -> None:
        """See `refuse_requeued`; nor does an evaluation save such a checkpoint itself."""
        refuse_requeued(Path(self.trainer.default_root_dir))
        connector: Any = self.trainer._accelerator_connector
        if isinstance(connector.cluster_environment, SLURMEnvironment):
            connector.cluster_environment.auto_requeue = False

    before_test = before_predict = before_validate


def turn(callback: Callback) -> int:
    """What measures comes before EMA, which puts raw weights back; what saves comes after it.

    What times a step comes first, so that it times nothing else; what times a training comes
    behind all that works, so that their work is not taken for waiting.

    A checkpoint saved before EMA has averaged a step would lack that step for ever; one that was
    saved before a job is requeued is not due again after it.
    """
    is_average, is_saved = isinstance(callback, WeightAveraging), isinstance(callback, Checkpoint)
    if isinstance(callback, Meter):
        return -1
    is_timing, is_last = isinstance(callback, Throughput), isinstance(callback, Requeue)
    return is_average + 2 * is_saved + 3 * is_timing + 4 * is_last


def checkpoint_folders(trainer: Trainer) -> list[Path]:
    """The run folder, and those in it that callbacks save into."""
    root = Path(trainer.default_root_dir).absolute()
    named = [c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    folders = {root / "checkpoints", *(Path(each).absolute() for each in named if each)}
    return [root, *(folder for folder in folders if root in folder.parents)]


def latest(trainer: Trainer) -> Path | None:
    """The newest checkpoint that former starts of this training left, for whatever reason.

    Null for a training that starts the first time: of a plan, or of a SLURM job that was requeued,
    it goes on by itself; by hand, a run that is to go on is told so with --ckpt_path.
    """
    root, *folders = checkpoint_folders(trainer)
    note, owner = root / NOTE, owner_of(root)
    is_again = int(os.environ.get("SLURM_RESTART_COUNT") or 0) or plan_of(root) is not None
    if not is_again or not note.is_file() or note.read_text() != owner:
        return None
    found = [*root.glob("hpc_ckpt_*.ckpt")]
    found += [path for folder in folders for path in folder.glob("*.ckpt")]
    times = {path: path.stat().st_mtime_ns for path in found}
    began = note.stat().st_mtime_ns  # what is older is another run's
    return max((p for p in found if times[p] >= began), key=times.__getitem__, default=None)


def plan_of(root: Path) -> Plan | None:
    """The plan one of whose trainings has this run folder, with a configuration that is fixed."""
    try:
        plan = Plan.read(root.parent)
    except ValueError:  # there is none, or it was edited, which `robustguide work` refuses
        return None
    return plan if plan.stage == "fit" and root in [unit.folder for unit in plan.units] else None


def owner_of(root: Path) -> str | None:
    """Whose training a run folder holds: a plan's, whichever job does it, or a SLURM job's.

    Args:
        root: Absolute.
    """
    if plan := plan_of(root):
        return f"the plan {plan.told()['digest']}"
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return job and f"SLURM job {job}{f'_{task}' if task else ''}"


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
    """Notes whose training this is, and refuses to continue another one's checkpoint.

    Raises:
        ValueError: When the folder holds a requeue checkpoint of another job, task or plan.
    """
    owner = owner_of(root.absolute())
    if owner is None:
        return
    note = root / NOTE
    former = note.read_text() if note.is_file() else None
    found = sorted(root.glob("hpc_ckpt_*.ckpt"))
    if found and former != owner:
        raise ValueError(
            f"{root} holds {found[-1].name} of {former or 'an unknown SLURM job'}, and Lightning "
            f"would continue it in {owner}. Give this run a trainer.default_root_dir of "
            "its own, or move that file away and pass it as --ckpt_path to continue on purpose."
        )
    if former != owner:  # after a requeue it is there, and other processes may be reading it
        with whole(note) as part:
            part.write_text(owner)


# What Lightning warns of and a user of this package can do nothing about, or need not.
QUIET = (
    ".*isinstance.treespec, LeafSpec",  # its own data structures, with torch 2.14
    "The .srun. command is available on your system",  # true on every login node
    "The number of training batches .* is smaller than the logging interval",
    "You passed in a .val_dataloader. but have no .validation_step.",  # held-out images are fitted
)


def run(args: list[str] | None = None, typed: Sequence[str] | None = None) -> LightningCLI:
    """Parses a command line and runs its subcommand.

    Args:
        args: Words after `robustguide`, subcommand first; those of the process where not given.
        typed: All that was typed there, which the results tell; `args` where not given.
    """
    set_parsing_settings(subclasses_enabled=[Sampler])  # frozen dataclasses are final otherwise
    if typed is None:
        typed = sys.argv[1:] if args is None else args
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: "Tip:" not in record.getMessage())
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    try:
        return CommandLine(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,  # the modules have optimizers of their own
            load_from_checkpoint_support=False,  # exported files are what is loaded
            trainer_defaults={
                "inference_mode": False,  # attacks and guidance take gradients in evaluation
                "use_distributed_sampler": False,  # the data modules divide by process themselves
                "callbacks": [
                    Meter(),
                    Progress(),
                    ReportCards(),
                    GradientsByNoise(),
                    DenoisedByNoise(),
                    Export(),
                    Results(["robustguide", *typed]),
                    Requeue(),
                    Throughput(),
                ],
            },
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            parser_class=Parser,
            parser_kwargs={"prog": "robustguide"},
            args=args,
        )
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except (UnpicklingError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise
        raise ValueError(
            "The file given as --ckpt_path is damaged, or no checkpoint of a trainer; give a "
            ".ckpt file that a run wrote."
        ) from error
