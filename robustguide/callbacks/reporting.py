"""What callbacks that measure something have in common."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

from robustguide.data.parts import Part
from robustguide.metrics import Reliability
from robustguide.report.figures import save


class Reporting(Callback):
    """A callback whose findings go to the progress bar, TensorBoard, PNG files and `results.json`.

    Attributes:
        metrics: Numbers by name, each `{"value": ..., "n": ...}` and what else defines it.
        curves: Curves over noise levels by name, plain lists; `sigma` holds the levels.
        reliability: Tables of reliability diagrams by name, see `bins`.
        writes_part: Whether it writes what the others have seen, which is measured later.
    """

    writes_part = False

    def __init__(self) -> None:
        self.metrics: dict[str, dict[str, Any]] = {}
        self.curves: dict[str, dict[str, list[float | None]]] = {}
        self.reliability: dict[str, dict[str, list[Any]]] = {}

    def add(self, module: Any, outputs: Any) -> None:
        """Takes in what a step of a test answered; nothing, unless a subclass does."""

    def on_test_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a batch, or a part of the images that another run made."""
        if isinstance(outputs, dict) and "part" in outputs:
            self.absorb(outputs["part"])
        else:
            self.add(module, outputs)

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Measures; a part of the images is measured with the others."""
        if not is_part(trainer):
            self.conclude(trainer, module)

    def conclude(self, trainer: Trainer, module: LightningModule) -> None:
        """Measures what was taken in; nothing, unless a subclass does."""

    def state(self) -> dict[str, Tensor]:
        """What was taken in, as tensors by name, for `absorb` in another run."""
        return {}

    def absorb(self, part: Part) -> None:
        """Takes in what another run did; nothing, unless a subclass does."""

    def measured(
        self,
        module: LightningModule,
        stage: str,
        name: str,
        value: float | None,
        n: int,
        **facts: Any,
    ) -> None:
        """Logs a number under `stage/name` and keeps it with its n and what defines it."""
        logged = math.nan if value is None else value
        module.log(f"{stage}/{name}", logged, sync_dist=True, rank_zero_only=False)
        self.metrics[name] = {"value": plain(value), "n": n, **facts}

    def curve(
        self,
        trainer: Trainer,
        stage: str,
        name: str,
        sigmas: Sequence[float],
        series: Mapping[str, Sequence[float | None]],
        prefix: str = "",
    ) -> None:
        """Logs each point of curves over noise levels, and keeps the curves.

        Args:
            trainer: Its loggers get the points.
            stage: First part of the points' names.
            name: Of the curves together.
            sigmas: Noise levels.
            series: Values by name of the curve; null or NaN where nothing was measured.
            prefix: Before the curve in the points' names.
        """
        self.curves[name] = {
            "sigma": [float(sigma) for sigma in sigmas],
            **{key: [plain(value) for value in values] for key, values in series.items()},
        }
        log_points(trainer, stage, sigmas, series, prefix)


def log_points(
    trainer: Trainer,
    stage: str,
    sigmas: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    prefix: str = "",
) -> None:
    """Gives the loggers each point of curves over noise levels, see `Reporting.curve`."""
    if trainer.logger is None:
        return
    points = {
        f"{stage}/{prefix}{key}/sigma_{sigma:.3g}": float(value)
        for key, values in series.items()
        for sigma, value in zip(sigmas, values, strict=True)
        if value is not None and not math.isnan(value)
    }
    trainer.logger.log_metrics(points, step=trainer.global_step)


def bins(reliability: Reliability, sigmas: Sequence[float]) -> dict[str, list[Any]]:
    """The table of reliability diagrams as plain lists.

    Returns:
        `sigma` of each band; `count`, `confidence` and `correct`, a list a band with the sum of
        each confidence bin.
    """
    sums = reliability.sums.double().cpu().tolist()
    named = zip(("count", "confidence", "correct"), sums, strict=True)
    return {"sigma": [float(sigma) for sigma in sigmas], **dict(named)}


class Summed(Reporting):
    """One that holds what it has seen in a metric, made when a test begins."""

    metric: Metric | None = None

    def state(self) -> dict[str, Tensor]:
        """The metric's states, of one process; a list of tensors as one."""
        found = {} if self.metric is None else self.metric.metric_state
        return {
            name: torch.cat(value) if isinstance(value, list) else value
            for name, value in found.items()
            if not isinstance(value, list) or value
        }

    def absorb(self, part: Part) -> None:
        """Adds a part's states behind its own."""
        assert self.metric is not None
        for name, value in part.states[self.state_key].items():
            own, value = getattr(self.metric, name), value.to(self.metric.device)
            if isinstance(own, list):
                own.append(value)
            else:
                setattr(self.metric, name, own + value)
        self.metric._update_count += 1  # otherwise it warns that it has seen nothing


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The trainer's list of callbacks, an attribute that its class does not declare."""
    declared: Any = trainer
    callbacks: list[Callback] = declared.callbacks
    return callbacks


def is_part(trainer: Trainer) -> bool:
    """Whether a test sees a part of the images, which is not measured by itself."""
    return any(isinstance(c, Reporting) and c.writes_part for c in callbacks_of(trainer))


def run_folder(trainer: Trainer) -> Path:
    """Where a run leaves its files."""
    return Path(trainer.default_root_dir)


def publish(trainer: Trainer, name: str, draw: Callable[[], Figure]) -> None:
    """Draws a figure once, writes it as PNG and shows the same pixels on TensorBoard.

    One process does so, and none in the sanity check before training.
    """
    if not trainer.is_global_zero or trainer.sanity_checking:
        return
    path = save(draw(), run_folder(trainer) / f"{name.replace('/', '_')}.png")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")


def plain(value: float | Tensor | None) -> float | None:
    """A number that JSON knows; null for one that is not finite."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None
