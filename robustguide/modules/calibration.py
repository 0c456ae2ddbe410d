"""Calibration of a finished classifier on held-out images, at all noise levels at once."""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from robustguide.classifiers import (
    BandTemperature,
    Calibrated,
    Scaling,
    SmoothTemperature,
    Tempering,
)
from robustguide.data.batches import spread
from robustguide.guidance import AtState, View
from robustguide.interfaces import Classifier, Codec, Denoiser
from robustguide.metrics import Answers, AnswersByLevel
from robustguide.modules import calibration_report as report
from robustguide.modules import kept as keeping
from robustguide.modules.calibration_report import Outcome
from robustguide.modules.examination import Examination
from robustguide.modules.fitting import Method, complaints, fit
from robustguide.modules.kept import Kept
from robustguide.modules.latent import Space
from robustguide.modules.resuming import refuse_other_network
from robustguide.modules.trial import held_out, try_denoiser, try_on_data
from robustguide.noise import LEVELS, Grid
from robustguide.samplers.seeds import EVALUATION

Batch = tuple[Tensor, Tensor, Tensor]
FILE = "logits.safetensors"
SPLIT = "validation"


class Calibration(LightningModule):
    """Fits a scaling of a frozen classifier's logits to held-out images, and nothing else.

    One pass asks for the logits, which are kept in the run's folder as `logits.safetensors`; then
    the scaling is fitted to all of them. A repeated run in the same folder, such as with another
    scaling, reads them; it asks again where anything that they depend on is no longer the same.

    Args:
        classifier: Stays as it is.
        scaling: Fitted; null is one temperature.
        levels: Noise levels, or a grid, whose final 0 is left out.
        view: What the classifier is shown; null is the noisy image itself.
        denoiser: Predicts the clean image, where the view shows it; asked with its null label.
        draws: Of noise for each image.
        optimizer: "lbfgs", or "adam" at a falling rate.
        max_iterations: Of the optimizer; Adam needs about 1,000.
        codec: Frozen; translates the images of the data into the classifier's space.
        clip: Bound of the predicted clean image, that of the sampler; null does not clip.
        num_bins: Confidence bins of the ECE.

    Attributes:
        classifier: What is exported: calibrated, once the fit is done.
        outcome: Measured on the images of the fit; null until then.
        metrics: Means over the levels.
        curves: Temperature, likelihood and errors by noise level.

    Raises:
        ValueError: For levels at which the scaling could not be known, and see `Examination`.
    """

    def __init__(
        self,
        classifier: Classifier,
        scaling: Scaling | None = None,
        levels: Sequence[float] | Grid = LEVELS,
        view: View | None = None,
        denoiser: Denoiser | None = None,
        draws: int = 1,
        optimizer: Method = "lbfgs",
        max_iterations: int = 200,
        codec: Codec | None = None,
        clip: float | None = 1.0,
        num_bins: int = 15,
    ) -> None:
        super().__init__()
        if max_iterations < 1 or num_bins < 1:
            raise ValueError(
                f"max_iterations and num_bins must be at least 1, got {max_iterations} and "
                f"{num_bins}."
            )
        self.automatic_optimization = False
        self.classifier = Calibrated(classifier, scaling)
        listed = levels.sigmas() if isinstance(levels, Grid) else levels
        self.levels = tuple(s for s in listed if s) if isinstance(levels, Grid) else tuple(listed)
        self.view, self.denoiser = view or AtState(), denoiser
        self.examination = Examination(
            self.levels, {"view": self.view}, draws=draws, denoiser=denoiser, clip=clip
        )
        check_levels_of(self.classifier.scaling, self.levels)
        self.optimizer, self.max_iterations, self.num_bins = optimizer, max_iterations, num_bins
        self.space = Space(codec)
        self.parts: list[Kept] = []
        self.kept: Kept | None = None
        self.outcome: Outcome | None = None
        self.metrics: dict[str, dict[str, Any]] = {}
        self.curves: dict[str, dict[str, list[float | None]]] = {}
        self.requires_grad_(False)
        self.classifier.scaling.requires_grad_(True)

    def setup(self, stage: str) -> None:
        """Compares the data with the classifier.

        Raises:
            ValueError: For data that are not held out, other classes or shapes, a moving average,
                or a trainer that would read nothing.
        """
        self.data = data = held_out(self.trainer, "A calibration")
        try_on_data(self.classifier, data, self.space)
        if self.denoiser is not None and self.view.needs_denoised:
            try_denoiser(self.denoiser, self.space.shape(data.shape))
        self.train()  # in name: Lightning warns of parts that are not, see `on_train_start`

    def on_train_start(self) -> None:
        """Asks in evaluation mode, and only where the logits are not there."""
        self.eval()
        wrong = keeping.differences(self.file, self.about) if self.file.is_file() else ["no file"]
        # one process decides, so that none waits for the others' logits
        wrong = self.trainer.strategy.broadcast(wrong)
        if not wrong:
            self.kept = keeping.read(self.file)
            rank_zero_info(f"The logits are those of {self.file}: the network is not asked again")
        elif wrong != ["no file"]:
            rank_zero_info(
                f"{self.file} is of other logits ({', '.join(wrong)}): the network is asked again"
            )

    @property
    def file(self) -> Path:
        """Where the logits are kept."""
        return Path(self.trainer.default_root_dir) / FILE

    @property
    def images(self) -> int:
        """Images of the split that are read."""
        loader: Any = self.trainer.train_dataloader
        return len(spread(len(loader.split), self.data.eval_limit))

    @cached_property
    def about(self) -> keeping.About:
        """All that the logits depend on."""
        trainer: Any = self.trainer
        told = self.hparams.get
        hashed = keeping.hash_of_network
        return {
            "classifier": hashed(self.classifier.classifier, told("classifier")),
            "denoiser": hashed(self.denoiser, told("denoiser")),
            "codec": hashed(self.space.codec, told("codec")),
            "view": repr(self.view),
            "clip": self.examination.clip,
            "levels": self.levels,
            "draws": self.examination.draws,
            "noise": f"stream {EVALUATION} of each image's number",
            "precision": str(trainer.precision),
            "source": type(trainer.datamodule.source).__name__,
            "split": SPLIT,
            "images": self.images,
            "content": keeping.hash_of_images(trainer.train_dataloader.split),
        }

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """Ends the pass where the logits are known: -1 tells the trainer so."""
        return None if self.kept is None else -1

    @torch.no_grad()
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Asks for the logits of a batch; nothing is trained.

        Raises:
            FloatingPointError: When one is not finite.
        """
        images, y, index = batch
        x_0 = self.space.own(images, index)
        found = self.examination.examine(self.classifier.classifier, x_0, y, index)
        for draw, logits in enumerate(found["view"]["logits"].float().cpu()):
            keeping.refuse_infinite(logits, self.levels, index)
            part = y.cpu(), index.cpu(), torch.full_like(index, draw, device="cpu")
            self.parts.append(Kept(logits, *part))

    def on_train_epoch_end(self) -> None:
        """Fits the scaling to the logits of all processes.

        Raises:
            ValueError: For a class without an image, where the scaling tells classes apart.
        """
        if self.kept is None:
            self.kept = keeping.of_all_processes(keeping.joined(self.parts))
            self.parts = []
            is_complete = len(self.kept.y) == self.images * self.examination.draws
            if self.trainer.is_global_zero and is_complete:
                keeping.write(self.file, self.kept, self.about)
        self.outcome = self.fitted(self.kept)
        self.tell(self.outcome)
        self.trainer.should_stop = True  # whatever max_epochs says

    def fitted(self, kept: Kept) -> Outcome:
        """Fits, and measures before and after."""
        scaling = self.classifier.scaling
        missing = sorted(set(range(self.classifier.num_classes)) - set(kept.y.tolist()))
        if scaling.num_classes is not None and missing:
            raise ValueError(
                f"No held-out image is of class {missing[0]}, so {type(scaling).__name__} "
                "cannot know what its logit is worth; hold more images out, or fit a temperature."
            )
        before = self.answers(kept)
        done = fit(scaling, kept, self.levels, self.optimizer, self.max_iterations)
        temperatures = None
        if isinstance(scaling, Tempering):
            with torch.no_grad():
                told = torch.tensor(self.levels, device=self.device)
                temperatures = tuple(scaling.temperature(told).tolist())
        return Outcome(self.levels, before, self.answers(kept), done, temperatures)

    @torch.no_grad()
    def answers(self, kept: Kept) -> Answers:
        """What the scaling as it is makes of the logits; all processes must ask."""
        levels, classes = len(self.levels), self.classifier.num_classes
        metric = AnswersByLevel(levels, classes, self.num_bins)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        if world > 1:  # each measures its share, and the metric puts them together
            metric.to(self.device)
        mine = torch.arange(rank, len(kept.y), world)
        for draw in range(self.examination.draws):
            of_draw = mine[kept.draw[mine] == draw]
            for rows in torch.split(of_draw, max(1, keeping.CHUNK // classes)):
                logits = kept.logits[:, rows].to(self.device)
                scaled = [self.scaled(*each) for each in zip(logits, self.levels, strict=True)]
                metric.update(torch.stack(scaled), kept.y[rows], kept.index[rows], draw)
        return metric.compute()

    def scaled(self, logits: Tensor, level: float) -> Tensor:
        """Logits of one level, as guidance will compute them."""
        return self.classifier.answered(logits, logits.new_full((len(logits),), level))

    def tell(self, outcome: Outcome) -> None:
        """Keeps what was found; one process logs, draws, prints and warns."""
        facts = {"split": SPLIT, "draws": self.examination.draws, "view": repr(self.view)}
        self.metrics = outcome.metrics(levels=list(self.levels), **facts)
        series = outcome.series()
        self.curves = {"calibration": {"sigma": [*self.levels], **series}}
        if not self.trainer.is_global_zero:
            return
        if self.logger is not None:
            means = {f"fit/{name}": each["value"] for name, each in self.metrics.items()}
            self.logger.log_metrics(means | report.points(self.levels, series), step=0)
        report.draw(self.file.parent, self.levels, series)
        report.print_table(self.levels, series, outcome.after.n)
        for complaint in complaints(outcome.fit, self.classifier.scaling):
            rank_zero_warn(complaint)

    @property
    def specification(self) -> dict[str, Any] | None:
        """How the calibrated classifier is built; null where no configuration says so."""
        parts = {name: self.hparams.get(name) for name in ("classifier", "scaling")}
        if not isinstance(parts["classifier"], dict):
            return None
        return {"class_path": "robustguide.classifiers.Calibrated", "init_args": parts}

    @property
    def notes(self) -> dict[str, Any]:
        """For the exported file: those of the classifier's own, and what was measured.

        Raises:
            ValueError: When nothing was fitted.
        """
        if self.outcome is None:
            raise ValueError("No held-out image was read, so nothing was fitted.")
        told = getattr(self.classifier.classifier, "metadata", None)
        (cell,) = self.examination.cells(self.classifier).values()
        found = {
            **self.metrics,
            **self.curves["calibration"],
            "denoiser_is_told_the_label": cell.labelled,
            "iterations": self.outcome.fit.iterations,
            "gradient": self.outcome.fit.gradient,
            "converged": self.outcome.fit.converged,
        }
        return {**({} if told is None else told.extra), "calibration": found}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `refuse_other_network`."""
        refuse_other_network(self, checkpoint)

    def configure_optimizers(self) -> list[Any]:
        """None: the fit is one step of its own."""
        return []


def check_levels_of(scaling: Scaling, levels: Sequence[float]) -> None:
    """Whether a scaling can be known from measurements at these levels.

    Raises:
        ValueError: For a band without a level, knots beyond the levels or more than they are.
    """
    if isinstance(scaling, BandTemperature):
        met = {bisect_left(scaling.edges, level) for level in levels}
        empty = sorted(set(range(len(scaling.edges) + 1)) - met)
        if empty:
            raise ValueError(
                f"Band {empty[0]} of the {len(scaling.edges) + 1} that edges "
                f"{list(scaling.edges)} make holds none of the levels {list(levels)}, so its "
                "temperature could not be known; add a level there, or take the edge out."
            )
    if isinstance(scaling, SmoothTemperature):
        first, last = scaling.knots[0], scaling.knots[-1]
        if first < min(levels) or last > max(levels) or len(scaling.knots) > len(set(levels)):
            raise ValueError(
                f"Knots {list(scaling.knots)} must lie within the levels, from {min(levels):g} to "
                f"{max(levels):g}, and be no more than these; move the knots, or add levels."
            )
