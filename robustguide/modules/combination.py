"""Chooses among finished classifiers by how well calibrated they are at each noise level."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning import LightningModule
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from robustguide.classifiers import Combined
from robustguide.guidance import AtState, View
from robustguide.guidance.fit import check_shape
from robustguide.interfaces import Classifier, Codec, Denoiser
from robustguide.metrics import SMALL, Answers, AnswersByLevel
from robustguide.modules.examination import Examination
from robustguide.modules.latent import Space
from robustguide.modules.robust import Batch
from robustguide.modules.trial import held_out, try_on_data
from robustguide.noise import LEVELS
from robustguide.specification import Specification

ERRORS = {"ece": "ece", "nll": "mean_nll", "smooth_ece": "smooth_ece"}  # as `Answers` calls them


class Combination(LightningModule):
    """`fit` asks several classifiers once about held-out images and combines the best. Ours.

    At each noise level that is the one with the smallest error; of equals the one with the
    smaller negative log-likelihood, then the first. Nothing is trained. The data are
    `robustguide.data.HeldOut`, which reads no test image. The smallest of several measured errors
    is itself a little too small: quote that of the combination from a test of its own.

    Args:
        classifiers: At least two, by name, of the same images and classes.
        levels: Noise levels at which one is chosen, increasing.
        by: Which error decides: top-label ECE, negative log-likelihood or smooth ECE.
        blend: What happens between two levels; see `robustguide.classifiers.Combined`.
        view: What the classifiers are shown, as guidance will; null is the noisy image.
        denoiser: Predicts the clean image, for a view that shows it.
        clip: Bound of the predicted clean image; null does not clip.
        draws: Of noise for each image.
        num_bins: Confidence bins of the ECE.
        codec: Translates the images of the data into the space of the classifiers.

    Attributes:
        choice: For each level, the number of its classifier; empty until the end.
        metrics: The mean error over the levels of each classifier, and of those chosen.
        curves: Errors by noise level.

    Raises:
        ValueError: For fewer than two classifiers, those that cannot be combined, levels that are
            none, or a denoiser that is wanting or makes other images.
    """

    def __init__(
        self,
        classifiers: dict[str, Classifier],
        levels: Sequence[float] = LEVELS,
        by: Literal["ece", "nll", "smooth_ece"] = "ece",
        blend: Literal["hard", "linear"] = "hard",
        view: View | None = None,
        denoiser: Denoiser | None = None,
        clip: float | None = 1.0,
        draws: int = 1,
        num_bins: int = 15,
        codec: Codec | None = None,
    ) -> None:
        super().__init__()
        if len(classifiers) < 2 or by not in ERRORS:
            raise ValueError(
                f"The choice is among two classifiers or more, by {', '.join(ERRORS)}; got "
                f"{len(classifiers)} classifiers and by={by!r}."
            )
        self.names, self.levels = tuple(classifiers), tuple(levels)
        self.by, self.blend, self.num_bins = by, blend, num_bins
        self.candidates = SideBySide([*classifiers.values()])
        self.choice: tuple[int, ...] = ()
        classifier = self.classifier  # or why they cannot be combined
        if denoiser is not None:
            check_shape("model.classifiers", classifier, denoiser)
        self.denoiser = denoiser
        views = {"shown": view or AtState()}
        self.examination = Examination(levels, views, draws=draws, denoiser=denoiser, clip=clip)
        self.space = Space(codec)
        self.found: dict[str, AnswersByLevel] = {}
        self.metrics: dict[str, dict[str, Any]] = {}
        self.curves: dict[str, dict[str, list[Any]]] = {}
        # processes are joined around a gradient, and refuse a module without any
        self.nothing = nn.Parameter(torch.zeros(()))
        self.automatic_optimization = False

    @property
    def used(self) -> list[int]:
        """Numbers of the classifiers that are combined; all of them until the choice."""
        return sorted(set(self.choice)) or list(range(len(self.names)))

    @property
    def places(self) -> list[int]:
        """For each level, the place of its classifier among `used`; the first until the choice."""
        return [self.used.index(number) for number in self.choice] or [0] * len(self.levels)

    @property
    def classifier(self) -> Combined:
        """What is exported: combined as chosen; until then, the first at all levels.

        No part of the state, which stays what it was: a process that only waits for others, and
        takes their state in the end, has not chosen.
        """
        used = [self.candidates.all[number] for number in self.used]
        combined = Combined(used, self.levels, self.places, self.blend).train(self.training)
        return combined.to(self.device)

    @property
    def specification(self) -> Specification | None:
        """How `classifier` is built; null where no configuration describes the classifiers."""
        described = self.hparams.get("classifiers")
        if not isinstance(described, dict):
            return None
        arguments = {
            "classifiers": [described[self.names[number]] for number in self.used],
            "sigmas": list(self.levels),
            "choice": self.places,
            "blend": self.blend,
        }
        return {"class_path": "robustguide.classifiers.Combined", "init_args": arguments}

    @property
    def notes(self) -> dict[str, Any]:
        """What the exported file says of the choice.

        Raises:
            ValueError: When nothing was chosen.
        """
        if not self.choice:
            raise ValueError("No held-out image was read, so no classifier was chosen.")
        names = [self.names[number] for number in self.choice]
        return {"combination": {**self.metrics, **self.curves["combination"], "names": names}}

    def setup(self, stage: str) -> None:
        """Freezes all networks, and compares the data with them.

        Raises:
            ValueError: For data that are not held out or of other classes or shapes, and for a
                moving average.
        """
        data = held_out(self.trainer, "A choice among classifiers")
        for classifier in self.candidates.all:
            try_on_data(classifier, data, self.space)
        self.requires_grad_(False)
        self.nothing.requires_grad_()
        self.train()  # until the trainer has looked: it warns of networks that are not

    def on_train_start(self) -> None:
        """New sums."""
        self.eval()
        size = self.classifier.num_classes
        self.found = {
            name: AnswersByLevel(len(self.levels), size, self.num_bins).to(self.device)
            for name in self.names
        }

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Asks all classifiers about the images at all levels. Nothing is trained."""
        images, y, index = batch
        x_0 = self.space.own(images, index)
        found = self.examination.examine(self.candidates, x_0, y, index)["shown"]["logits"]
        for draw, logits in enumerate(found):
            each = logits.unflatten(-1, (len(self.names), -1)).unbind(-2)
            for name, own in zip(self.names, each, strict=True):
                self.found[name].update(own, y, index, draw)

    def on_train_epoch_end(self) -> None:
        """Chooses, and ends the run: another pass would find the same."""
        answers = answers_of(self.found)
        self.choice = chosen(answers, self.by)
        self.report(answers)
        self.trainer.should_stop = True

    def report(self, answers: Mapping[str, Answers]) -> None:
        """Keeps, logs and prints the errors by level and what was chosen."""
        errors = {name: curve(each, self.by) for name, each in answers.items()}
        names = [self.names[number] for number in self.choice]
        best = [errors[name][level] for level, name in enumerate(names)]
        any_answers = next(iter(answers.values()))
        facts = {"n": any_answers.n, "bins": self.num_bins, "small": any_answers.is_small}
        for name, values in {**errors, "chosen": best}.items():
            mean = {"value": sum(values) / len(values), **facts, "levels": [*self.levels]}
            # on the images that decided
            self.metrics[f"integral_{self.by}_{name}"] = {**mean, "in_sample": True}
            if name in answers and self.by == "ece":
                interval = [*answers[name].integral_interval()]
                self.metrics[f"integral_ece_{name}"]["interval"] = interval
        series = {f"{self.by}_{name}": values for name, values in errors.items()}
        self.curves["combination"] = {"sigma": [*self.levels], **series, "choice": [*self.choice]}
        if self.logger is not None:
            points = {
                f"fit/{name}/{self.by}/sigma_{sigma:.3g}": values[level]
                for name, values in errors.items()
                for level, sigma in enumerate(self.levels)
            }
            self.logger.log_metrics(points, step=0)
        if self.trainer.is_global_zero:
            print_choice(self.levels, errors, names, told(self.by, any_answers))

    def configure_optimizers(self) -> list[Any]:
        """Nothing is trained."""
        return []


class SideBySide(Classifier):
    """Several classifiers asked at once: the logits of all, in order.

    Args:
        classifiers: Of the same images and number of classes.
    """

    def __init__(self, classifiers: Sequence[Classifier]) -> None:
        super().__init__()
        self.inner = nn.ModuleList(classifiers)
        self.num_classes = sum(classifier.num_classes for classifier in classifiers)

    @property
    def all(self) -> list[Classifier]:
        """The classifiers."""
        return [module for module in self.inner if isinstance(module, Classifier)]

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Logits."""
        return torch.cat([each(x, sigma) for each in self.all], dim=1)

    def as_clean(self, images: Tensor, sigma: Tensor) -> Tensor:
        """Logits of images that are read as clean ones."""
        return torch.cat([each.as_clean(images, sigma) for each in self.all], dim=1)


def answers_of(found: Mapping[str, AnswersByLevel]) -> dict[str, Answers]:
    """The answers of all processes, by classifier.

    Raises:
        ValueError: For one that answers with what is no number.
    """
    answers = {}
    for name, metric in found.items():
        try:
            answers[name] = metric.compute()
        except ValueError as error:
            raise ValueError(f"Classifier {name!r} cannot be compared. {error}") from error
    return answers


def chosen(answers: Mapping[str, Answers], by: str) -> tuple[int, ...]:
    """For each level, the number of the classifier with the smallest error."""
    keys = [zip(curve(each, by), curve(each, "nll"), strict=True) for each in answers.values()]
    # of equal keys `min` takes the first
    return tuple(each.index(min(each)) for each in zip(*keys, strict=True))


def curve(answers: Answers, by: str) -> list[float]:
    """An error at each level."""
    values: Tensor = getattr(answers, ERRORS[by])
    return [float(value) for value in values]


def told(by: str, answers: Answers) -> str:
    """What the numbers of the table are of."""
    text = f"{by} on n = {answers.n} held-out images and noises, {answers.num_bins} bins."
    few = f" Below {SMALL} an ECE is too large, and chance has a say in the choice."
    return text + few if answers.is_small else text


def print_choice(
    levels: Sequence[float],
    errors: Mapping[str, Sequence[float]],
    names: Sequence[str],
    note: str,
) -> None:
    """One row a noise level, and what the numbers are of."""
    table = Table("sigma", *errors, "chosen", box=None)
    for level, sigma in enumerate(levels):
        values = [f"{error[level]:.4f}" for error in errors.values()]
        table.add_row(f"{sigma:g}", *values, names[level])
    console = Console()
    console.print(table)
    console.print(note)
