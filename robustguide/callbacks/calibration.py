"""Calibration along sampling trajectories, and how an integral calibration error is stated."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from robustguide.callbacks.reporting import Summed, bins, publish
from robustguide.metrics import Answers, AnswersByLevel
from robustguide.noise import finest
from robustguide.report import figures


class TrajectoryCalibration(Summed):
    """ECE of the predicted clean image against the conditioning label, along the reverse process.

    Ma et al. (2024), eq. 1, over the watched steps. Reads the logits of the module's observer,
    which may be the classifier that guides; where some are not finite, since sampling diverged,
    nothing is measured, and a warning says so.

    Args:
        num_bins: Confidence bins of the ECE.
        resamples: Of the bootstrap over images.
    """

    def __init__(self, num_bins: int = 15, resamples: int = 1000) -> None:
        super().__init__()
        self.num_bins, self.resamples = num_bins, resamples
        self.metric: AnswersByLevel | None = None

    def on_test_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """No rows yet.

        Raises:
            ValueError: When nobody observes.
        """
        generation: Any = module
        if generation.reading is None:
            raise ValueError(
                "TrajectoryCalibration needs a classifier that reads along; set model.observer."
            )
        levels, num_classes = len(generation.levels), generation.reading.num_classes
        metric = AnswersByLevel(levels, num_classes, self.num_bins)
        self.metric = metric.to(home_of_float64(module.device))

    def add(self, module: Any, outputs: Any) -> None:
        """Adds a batch."""
        assert self.metric is not None
        with module.watching():
            self.metric.update(outputs["logits"], outputs["y"], outputs["index"])

    def conclude(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs the curve and its mean."""
        assert self.metric is not None
        generation: Any = module
        levels = list(generation.levels)
        try:
            found = self.metric.compute()
        except ValueError as error:
            rank_zero_warn(f"Nothing is known of the calibration along the trajectory. {error}")
            self.measured(module, "test", "integral_ece", None, 0, bins=self.num_bins)
            nothing = [math.nan] * len(levels)
            series = {"ece": nothing, "label_agreement": nothing}
            self.curve(trainer, "test", "trajectory", levels, series)
            return
        facts, chance = integral_calibration(found, levels, self.resamples)
        facts |= {"read_by": generation.read_by, "view": generation.reading.looks}
        self.measured(module, "test", "integral_ece", found.integral_ece, **facts)
        series = {"ece": found.ece.tolist(), "label_agreement": found.accuracy.tolist()}
        all_of_it = series | {key: curve.tolist() for key, curve in chance.items()}
        self.curve(trainer, "test", "trajectory", levels, all_of_it)
        self.reliability = {"trajectory": bins(found.reliability, levels)}
        draw = partial(figures.curves, levels, series, ylabel="ECE, agreement with label")
        publish(trainer, "test/trajectory", draw)
        draw = partial(figures.reliability_diagrams, found.reliability, levels)
        publish(trainer, "test/trajectory_reliability", draw)


def integral_calibration(
    answers: Answers, sigmas: Sequence[float], resamples: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What belongs beside an integral calibration error.

    Args:
        answers: Of which it is.
        sigmas: The grid of noise levels that it is the mean over.
        resamples: Of the bootstrap over images; 0 leaves out all that takes long.

    Returns:
        n, bins, grid and whether n is so small that the number is biased; the interval, and what a
        perfectly calibrated classifier with the same confidences would show. And curves of the
        latter.
    """
    facts: dict[str, Any] = {"n": answers.n, "bins": answers.num_bins, "grid": list(sigmas)}
    facts["biased"] = answers.is_small
    if not resamples:
        return facts, {}
    chance = answers.sampling_error()
    facts |= {
        "interval": list(answers.integral_interval(resamples)),
        "resamples": resamples,
        "sampling_error": {"mean": chance.integral_mean, "upper95": chance.integral_upper95},
    }
    curves = {"ece_if_calibrated": chance.mean, "ece_if_calibrated_upper95": chance.upper95}
    return facts, curves


def home_of_float64(device: torch.device) -> torch.device:
    """A device, or the CPU beside one that knows no float64."""
    return device if finest(device) == torch.float64 else torch.device("cpu")
