"""The report card of a classifier by noise level: measured, drawn, printed and written."""

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from torch import Tensor
from torchmetrics import Metric

from robustguide.callbacks.calibration import home_of_float64, integral_calibration
from robustguide.callbacks.reporting import Reporting, bins, plain, publish, run_folder
from robustguide.files import whole
from robustguide.metrics import Answers, AnswersByLevel, Rows, RowsByLevel, wilson_limits
from robustguide.report import figures
from robustguide.report.card import (
    SHOWN,
    STATE,
    Entry,
    document,
    mean_key,
    multiples,
    robust_key,
    table,
)

USUAL = "forward_x_t"  # the cell whose metrics have no prefix
ERRORS = ("ece", "adaptive_ece", "classwise_ece", "smooth_ece")


class ReportCards(Reporting):
    """Accuracy, calibration, robustness and gradients of a classifier at each noise level.

    Reads what an `Examination` found, in modules that say what is `examined`; it leaves others
    alone. What is measured of "forward_x_t" has plain names, such as `integral_ece`; that of other
    cells has the name of the cell before it. A test leaves `report_card.json`, one table and one
    reliability diagram a cell, and one figure; with intervals, which a validation has not.

    Args:
        num_bins: Bins of the calibration errors, where the module does not say.
        resamples: Of the bootstrap over images.
    """

    def __init__(self, num_bins: int = 15, resamples: int = 1000) -> None:
        super().__init__()
        self.num_bins, self.resamples = num_bins, resamples
        self.tallies: dict[str, Tally] = {}
        self.judged: RowsByLevel | None = None

    def _start(self, module: Any) -> None:
        examined = getattr(module, "examined", {})
        bins = getattr(module, "num_bins", self.num_bins)
        self.tallies = {name: Tally(cell, bins, module.device) for name, cell in examined.items()}
        self.metrics, self.curves, self.reliability, self.judged = {}, {}, {}, None
        if getattr(module, "judged_by", None) is not None:
            self.judged = RowsByLevel(1, ["agreement"]).to(home_of_float64(module.device))

    def add(self, module: Any, outputs: Any) -> None:
        """Adds what was found of each cell."""
        if not self.tallies:
            return
        for name, found in outputs["cells"].items():
            self.tallies[name].add(found)
        if self.judged is not None and "judged" in outputs:
            judged = outputs["judged"]
            self.judged.update(judged["index"], 0, agreement=judged["correct"][None].float())

    def _finish(self, trainer: Trainer, module: Any, stage: str) -> None:
        if not self.tallies or trainer.sanity_checking:
            return
        is_test = stage == "test"
        entries = self._entries(is_test)
        if not entries:
            return
        for entry in entries:
            self._log(trainer, module, stage, entry)
        at = "" if is_test else f"{stage}/"
        publish(trainer, f"{at}report_card", partial(multiples, entries))
        facts = self._agreement(module, stage)
        if is_test:
            self._leave(trainer, entries, facts)

    def _entries(self, is_test: bool) -> list[Entry]:
        """What was measured of each cell that has rows.

        A validation tells of logits that are not finite, and training goes on.
        """
        try:
            found = [tally.entry(self.resamples * is_test) for tally in self.tallies.values()]
        except ValueError as error:
            if is_test:
                raise
            rank_zero_warn(f"Nothing was measured. {error}")
            return []
        return [entry for entry in found if entry is not None]

    def _log(self, trainer: Trainer, module: Any, stage: str, entry: Entry) -> None:
        """Metrics and curves of a cell."""
        prefix = "" if entry.name == USUAL else f"{entry.name}_"
        for key, facts in entry.means.items():
            self.measured(module, stage, prefix + key, **facts)
        name = "classifier" if entry.name == USUAL else entry.name
        self.curve(trainer, stage, name, entry.sigmas, entry.curves, prefix)
        self.reliability[name] = bins(entry.reliability, entry.sigmas)

    def _agreement(self, module: Any, stage: str) -> dict[str, Any]:
        """Of finished images with their labels."""
        if self.judged is None:
            return {}
        rows: Rows = computed(self.judged)
        correct, n = rows["agreement"].sum(), len(rows.index)
        limits = [plain(float(limit)) for limit in wilson_limits(correct, correct.new_tensor(n))]
        self.measured(module, stage, module.judged_by, float(correct / n), n, limits=limits)
        return {module.judged_by: self.metrics[module.judged_by]}

    def _leave(self, trainer: Trainer, entries: Sequence[Entry], facts: Mapping[str, Any]) -> None:
        """Diagrams, tables and the document of a test; one process does so."""
        for entry in entries:
            draw = partial(figures.reliability_diagrams, entry.reliability, list(entry.sigmas))
            publish(trainer, f"reliability_{entry.name}", draw)
        if not trainer.is_global_zero:
            return
        for entry in entries:
            Console().print(table(entry))
        with whole(run_folder(trainer) / "report_card.json") as part:
            part.write_text(json.dumps(document(entries, facts), indent=1, allow_nan=False))

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """New sums."""
        self._start(module)

    def on_test_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """New sums."""
        self._start(module)

    def on_validation_batch_end(self, *given: Any, **named: Any) -> None:
        """As in a test."""
        self.on_test_batch_end(*given, **named)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs; here and not later, while an EMA callback behind this one shows its weights."""
        self._finish(trainer, module, "val")

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs, prints and writes."""
        self._finish(trainer, module, "test")


class Tally:
    """What is collected of a cell.

    Args:
        cell: A `Cell` of the module.
        num_bins: Bins of the calibration errors.
        device: Where the answers are.
    """

    def __init__(self, cell: Any, num_bins: int, device: torch.device) -> None:
        self.cell = cell
        levels, home = len(cell.levels), home_of_float64(device)
        self.answers = AnswersByLevel(levels, cell.num_classes, num_bins).to(home)
        self.attacks = [robust_key(number) for number in range(len(cell.threats))]
        self.gradients = ["gradient_norm", "cosine"] if cell.gradients else []
        names = [*self.attacks, *self.gradients]
        self.rows = RowsByLevel(levels, names).to(home) if names else None

    def add(self, found: Mapping[str, Tensor]) -> None:
        """Adds the rows of a batch."""
        y, index = found["y"], found["index"]
        for draw, logits in enumerate(found["logits"]):
            self.answers.update(logits, y, index, draw)
            series = {name: found[name][draw] for name in self.gradients}
            for number, name in enumerate(self.attacks):
                series[name] = (found["attacked"][draw, :, number].argmax(-1) == y).float()
            if self.rows is not None:
                self.rows.update(index, draw, **series)

    def entry(self, resamples: int) -> Entry | None:
        """What was measured, null of no rows.

        Args:
            resamples: Of the bootstrap; 0 leaves out all that takes long.
        """
        cell, answers = self.cell, computed(self.answers)
        rows = {} if self.rows is None else computed(self.rows).series
        if not answers.n:
            return None
        errors, chance = integral_calibration(answers, cell.levels, resamples)
        series, images = self._series(answers, rows), images_of(answers)
        draws_are_one = answers.accuracy * images, torch.full_like(answers.accuracy, images)
        lower, upper = wilson_limits(*draws_are_one)  # the rows of an image count once
        limits = {"accuracy_lower": lower, "accuracy_upper": upper}
        curves = series | limits | {"confidence": answers.mean_confidence} | chance
        return Entry(
            name=cell.name,
            sigmas=cell.levels,
            curves={key: [plain(value) for value in curve] for key, curve in curves.items()},
            means=self._means(series, answers, errors),
            facts=facts_of(cell, answers),
            reliability=answers.reliability,
            threats=cell.threats,
            num_classes=cell.num_classes,
        )

    def _means(
        self, series: Mapping[str, Tensor], answers: Answers, errors: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Means over the levels, with what defines them."""
        means: dict[str, dict[str, Any]] = {}
        for key, curve in series.items():
            if curve.isnan().all():
                continue  # such as a cosine with a direction that there is not
            means[mean_key(key)] = {"value": plain(float(curve.nanmean())), "n": answers.n}
        for key in ERRORS:
            means[mean_key(key)] |= {"grid": list(self.cell.levels), "biased": answers.is_small}
            if key != "smooth_ece":
                means[mean_key(key)]["bins"] = answers.num_bins
        means["integral_ece"] |= errors
        for key, threat in zip(self.attacks, self.cell.threats, strict=True):
            means[key]["attack"] = threat
        return means

    def _series(self, answers: Answers, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Quantities by level."""
        return {
            "accuracy": answers.accuracy,
            **{name: rows[name].mean(1) for name in self.attacks},
            "nll": answers.mean_nll,
            "brier": answers.mean_brier,
            **{name: getattr(answers, name) for name in ERRORS},
            **{name: rows[name].nanmean(1) for name in self.gradients},
        }


def facts_of(cell: Any, answers: Answers) -> dict[str, Any]:
    """What defines the numbers of a cell, for its document."""
    return {
        "process": cell.process,
        "view": cell.view,
        "n": answers.n,
        "images": images_of(answers),
        "noise_draws": cell.draws,
        "bins": answers.num_bins,
        "biased": answers.is_small,
        "labelled": cell.labelled,
        "attacks_move": SHOWN if cell.attacks_clean else STATE,
    }


def computed(metric: Metric) -> Any:
    """What a metric says, of all processes; one of them may have had no rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The ``compute`` method of metric")
        return metric.compute()


def images_of(answers: Answers) -> int:
    """Images among the rows."""
    return len(set(answers.index.tolist()))
