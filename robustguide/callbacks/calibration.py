"""Accuracy and calibration by noise level, of classifiers and along sampling trajectories."""

from functools import partial
from typing import Any

from lightning import LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from robustguide.callbacks.reporting import Reporting, publish
from robustguide.metrics import CalibrationByNoise, Reliability
from robustguide.report import figures


class NoiseCurves(Reporting):
    """Accuracy, robust accuracy and ECE of a classifier at each noise level.

    Reads what `RobustClassification.evaluation_step` returns.

    Args:
        num_bins: Confidence bins of the ECE.
    """

    def __init__(self, num_bins: int = 15) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.clean: CalibrationByNoise | None = None
        self.attacked: CalibrationByNoise | None = None

    def _start(self, module: Any) -> None:
        if not hasattr(module, "evaluation_attack"):
            return  # this callback belongs to every run, and other modules have no such levels
        levels, attacked = len(module.levels), module.evaluation_attack is not None
        self.clean = CalibrationByNoise(levels, self.num_bins).to(module.device)
        self.attacked = (
            CalibrationByNoise(levels, self.num_bins).to(module.device) if attacked else None
        )

    def _add(self, outputs: Any) -> None:
        if self.clean is None:
            return
        for metric, name in ((self.clean, "clean"), (self.attacked, "attacked")):
            if metric is not None:
                for level, logits in enumerate(outputs[name]):
                    metric.update(logits, outputs["y"], level)

    def _finish(self, trainer: Trainer, module: Any, stage: str) -> None:
        if self.clean is None or trainer.sanity_checking:
            return
        clean = self.clean.compute()
        attacked = self.attacked.compute() if self.attacked is not None else None
        n, levels = int(clean.count[0]), list(module.levels)
        series = {"accuracy": clean.accuracy.tolist(), "ece": clean.ece.tolist()}
        self.measured(module, stage, "accuracy", float(clean.accuracy.mean()), n)
        self.measured(
            module, stage, "integral_ece", float(clean.integral_ece), n, bins=self.num_bins
        )
        if attacked is not None:
            series["robust_accuracy"] = attacked.accuracy.tolist()
            threat = str(module.evaluation_attack)
            value = float(attacked.accuracy.mean())
            self.measured(module, stage, "robust_accuracy", value, n, attack=threat)
        lower, upper = clean.limits
        limits = {"accuracy_lower": lower.tolist(), "accuracy_upper": upper.tolist()}
        self.curve(trainer, stage, "classifier", levels, series | limits)
        chance = 1 / module.classifier.num_classes
        publish(
            trainer,
            f"{stage}/noise_curves",
            lambda: figures.curves(levels, series, ylabel="accuracy, ECE", chance=chance),
        )
        if stage == "test":
            draw = partial(figures.reliability_diagrams, clean, levels)
            publish(trainer, "test/reliability", draw)
            print_table(trainer, levels, series)

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """New sums."""
        self._start(module)

    def on_test_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """New sums."""
        self._start(module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a batch."""
        self._add(outputs)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a batch."""
        self._add(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs; here and not later, while an EMA callback behind this one shows its weights."""
        self._finish(trainer, module, "val")

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs, and prints a table."""
        self._finish(trainer, module, "test")


class TrajectoryCalibration(Reporting):
    """ECE of the predicted clean image against the conditioning label, along the reverse process.

    Ma et al. (2024), eq. 1, over the watched steps. Reads the observer's logits.

    Args:
        num_bins: Confidence bins of the ECE.
    """

    def __init__(self, num_bins: int = 15) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.metric: CalibrationByNoise | None = None

    def on_test_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """New sums.

        Raises:
            ValueError: When nobody observes.
        """
        if module.observer is None:
            raise ValueError(
                "TrajectoryCalibration needs a classifier that reads along; set model.observer."
            )
        generation: Any = module
        levels = len(generation.levels)
        self.metric = CalibrationByNoise(levels, self.num_bins).to(module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a batch."""
        assert self.metric is not None
        for level, logits in enumerate(outputs["logits"]):
            self.metric.update(logits, outputs["y"], level)

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs the curve and its mean."""
        assert self.metric is not None
        found: Reliability = self.metric.compute()
        n = int(found.count[0])
        series = {"ece": tolist(found.ece), "label_agreement": tolist(found.accuracy)}
        self.measured(
            module, "test", "integral_ece", float(found.integral_ece), n, bins=self.num_bins
        )
        generation: Any = module
        levels = list(generation.levels)
        self.curve(trainer, "test", "trajectory", levels, series)
        draw = partial(figures.curves, levels, series, ylabel="ECE, agreement with label")
        publish(trainer, "test/trajectory", draw)
        draw = partial(figures.reliability_diagrams, found, levels)
        publish(trainer, "test/trajectory_reliability", draw)


def tolist(values: Tensor) -> list[float]:
    """A tensor's numbers."""
    return [float(value) for value in values]


def print_table(trainer: Trainer, levels: list[float], series: dict[str, list[float]]) -> None:
    """One row a noise level; one process prints."""
    if not trainer.is_global_zero:
        return
    table = Table("sigma", *series)
    for row, level in enumerate(levels):
        table.add_row(f"{level:g}", *(f"{values[row]:.3f}" for values in series.values()))
    Console().print(table)
