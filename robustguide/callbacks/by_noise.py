"""What a network in training makes of a few validation images at each noise level."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure
from torch import Tensor

from robustguide.callbacks.acceleration import Acceleration
from robustguide.callbacks.reporting import Reporting, callbacks_of, log_points, publish
from robustguide.guidance import score
from robustguide.guidance.fit import check_gradient
from robustguide.interfaces import Classifier, Denoiser
from robustguide.metrics.vectors import cosines, lengths
from robustguide.noise import LEVELS, perturb, vp_scale
from robustguide.report.figures import plain_text
from robustguide.report.sheets import Column, at_unit_variance, level_sheet
from robustguide.samplers import evaluation_noise

Batch = tuple[Tensor, Tensor, Tensor]


class ByNoise(Reporting):
    """Keeps the first validation images of a training, and shows them when a validation ends.

    The first process does so alone, and asks the others nothing; without a logger nobody does. It
    only looks: the noise is that of the images' numbers, the state of all random generators is put
    back, and the trained weights are the same with it and without. The networks are in evaluation
    mode by then, and with a moving average they are that. Nothing is computed under autocast.

    Args:
        count: Images that are measured, the first of this process; 0 looks at nothing.
        shown: How many of them are drawn, of different classes as far as there are some.

    Raises:
        ValueError: For a negative count, or fewer than one image that is drawn.
    """

    def __init__(self, count: int, shown: int) -> None:
        super().__init__()
        if count < 0 or shown < 1:
            raise ValueError(
                f"{type(self).__name__} measures 0 images or more and draws 1 or more, got "
                f"count={count} and shown={shown}."
            )
        self.count, self.shown = count, shown
        self.looks = False
        self.kept: list[Batch] = []

    @abstractmethod
    def reads(self, module: Any) -> bool:
        """Whether there is something to see in the training of a module."""

    @abstractmethod
    def show(
        self,
        trainer: Trainer,
        module: Any,
        images: Float[Tensor, "b c h w"],
        y: Int[Tensor, " b"],
        index: Int[Tensor, " b"],
    ) -> None:
        """Measures images, logs and draws."""

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Looks at trainings alone, where each process has whole networks."""
        is_whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
        self.looks = (
            stage == "fit"
            and is_whole  # of shards the first process could ask nothing alone
            and trainer.is_global_zero
            and trainer.logger is not None
            and self.reads(module)
        )

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Forgets the last one's images."""
        self.kept = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first images."""
        room = self.count - sum(len(y) for _, y, _ in self.kept)
        if self.looks and room > 0 and not trainer.sanity_checking:
            images, y, index = batch
            self.kept.append((images[:room], y[:room], index[:room]))

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Shows; here and not later, while an EMA callback behind this one shows its weights."""
        if not self.kept:
            return
        images, y, index = (torch.cat(each) for each in zip(*self.kept, strict=True))
        self.kept = []
        with torch.no_grad(), isolate_rng(), uncompiled(trainer):
            self.show(trainer, module, images, y, index)


class GradientsByNoise(ByNoise):
    """Gradients of log p(y | x) of a classifier in training, towards the classes of the images.

    At every level at which the module evaluates: `val/gradient_norm`, the median of sqrt(1 +
    sigma^2) |g| over the images, in nats a unit of x_t; `val/gradient_neighbour`, the mean cosine
    with the gradient at the next level, same image and noise; and `val_gradients.png`, each noisy
    image beside its gradient, which has a scale of its own. A classifier without a gradient is
    left alone, with one warning.

    Args:
        count: Images that are measured, the first of this process; 0 looks at nothing.
        shown: How many of them are drawn.
    """

    def __init__(self, count: int = 16, shown: int = 4) -> None:
        super().__init__(count, shown)
        self.is_differentiable: bool | None = None  # null until it was tried

    def reads(self, module: Any) -> bool:
        """Whether it trains a classifier, and evaluates it by noise level."""
        has_space = hasattr(module, "levels") and hasattr(module, "space")
        self.is_differentiable = None
        return has_space and isinstance(getattr(module, "classifier", None), Classifier)

    def show(
        self, trainer: Trainer, module: Any, images: Tensor, y: Tensor, index: Tensor
    ) -> None:
        """Differentiates at each level."""
        x_0 = module.space.own(images, index)
        if self.is_differentiable is None:
            self.is_differentiable = has_gradient(module.classifier, x_0)
        if not self.is_differentiable:
            return
        noise = evaluation_noise(index).draw(x_0.shape[1:], x_0.device)
        x, found, norms = [], [], []
        for level in module.levels:
            sigma = x_0.new_full((len(x_0),), level, dtype=noise.dtype)
            x.append(perturb(x_0, sigma, noise))
            found.append(score(module.classifier, x[-1], sigma, y).float())
            norms.append(float((vp_scale(sigma) * lengths(found[-1])).quantile(0.5)))
        neighbours = [float(cosines(low, high).nanmean()) for low, high in pairwise(found)]
        series = {"norm": norms, "neighbour": [*neighbours, math.nan]}
        log_points(trainer, "val", module.levels, series, "gradient_")
        rows = first_of_classes(y, self.shown)
        titles = titles_of(trainer, y[rows])
        states, gradients = torch.stack(x)[:, rows], torch.stack(found)[:, rows]
        draw = partial(gradient_sheet, states, gradients, titles, module.levels)
        publish(trainer, "val/gradients", draw)


class DenoisedByNoise(ByNoise):
    """Clean images that a denoiser in training predicts from noisy ones, told the images' labels.

    At every level: `val/denoising_error`, the mean squared error of the predicted clean image a
    pixel over the images; and `val_denoised.png`, each clean image, the noisy one and the
    predicted one. Where a codec translates the images, clean and predicted ones are decoded.

    Args:
        levels: Noise levels.
        count: Images that are measured, the first of this process; 0 looks at nothing.
        shown: How many of them are drawn.

    Raises:
        ValueError: For no level, or one that is not positive and finite.
    """

    def __init__(self, levels: Sequence[float] = LEVELS, count: int = 16, shown: int = 3) -> None:
        super().__init__(count, shown)
        if not levels or not all(0 < level < math.inf for level in levels):
            raise ValueError(
                f"levels must be positive, finite noise levels, got {list(levels)}; leave them "
                "out for the usual ones."
            )
        self.levels = tuple(levels)

    def reads(self, module: Any) -> bool:
        """Whether it trains a denoiser."""
        return hasattr(module, "space") and isinstance(getattr(module, "denoiser", None), Denoiser)

    def show(
        self, trainer: Trainer, module: Any, images: Tensor, y: Tensor, index: Tensor
    ) -> None:
        """Denoises at each level."""
        x_0 = module.space.own(images, index)
        noise = evaluation_noise(index).draw(x_0.shape[1:], x_0.device)
        x, predicted, errors = [], [], []
        for level in self.levels:
            sigma = x_0.new_full((len(x_0),), level, dtype=noise.dtype)
            x.append(perturb(x_0, sigma, noise))
            predicted.append(module.denoiser(x[-1], sigma, y))
            errors.append(float((predicted[-1] - x_0).float().square().mean()))
        log_points(trainer, "val", self.levels, {"denoising_error": errors})
        rows = first_of_classes(y, self.shown)
        clean = seen(module, x_0[rows])
        shown = torch.stack([seen(module, each[rows]) for each in predicted])
        titles = titles_of(trainer, y[rows])
        states = torch.stack(x)[:, rows]
        draw = partial(denoised_sheet, clean, states, shown, titles, self.levels)
        publish(trainer, "val/denoised", draw)


def has_gradient(classifier: Classifier, x_0: Float[Tensor, "b c h w"]) -> bool:
    """Whether a classifier has a gradient at its image; a warning where it has none."""
    try:
        check_gradient("A picture of gradients", classifier, x_0.shape[1:])
    except ValueError as error:
        rank_zero_warn(f"{error} Training goes on without the picture.", category=UserWarning)
        return False
    return True


def uncompiled(trainer: Trainer) -> AbstractContextManager[Any]:
    """Within it compiled networks run as they were written: each size of a batch costs minutes."""
    is_compiled = any(isinstance(c, Acceleration) and c.compiled for c in callbacks_of(trainer))
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()


def first_of_classes(y: Int[Tensor, " b"], count: int) -> list[int]:
    """Rows of the first image of each class, then of the second ones, and so on; so many."""
    labels = y.tolist()
    before = [labels[:row].count(label) for row, label in enumerate(labels)]
    return sorted(range(len(labels)), key=before.__getitem__)[:count]


def titles_of(trainer: Trainer, y: Int[Tensor, " b"]) -> list[str]:
    """Names of classes, as far as the data tell them."""
    names: Sequence[str] = getattr(getattr(trainer, "datamodule", None), "class_names", ())
    return [plain_text(str(names[k])) if k < len(names) else str(k) for k in y.tolist()]


def seen(module: Any, x_0: Tensor) -> Tensor:
    """Images as people see them; latents that nobody decodes as they are."""
    decoded: Tensor = x_0 if module.space.codec is None else module.space.codec.decode(x_0)
    return decoded


def gradient_sheet(
    x: Float[Tensor, "l n c h w"],
    gradients: Float[Tensor, "l n c h w"],
    titles: Sequence[str],
    levels: Sequence[float],
) -> Figure:
    """Two columns an image: noisy, and its gradient."""
    columns = []
    for row, title in enumerate(titles):
        columns.append(Column(title, at_unit_variance(x[:, row], levels)))
        columns.append(Column("gradient", gradients[:, row], is_signed=True))
    return level_sheet(columns, levels, "Noisy images, and gradients of log p of their classes")


def denoised_sheet(
    clean: Float[Tensor, "n c h w"],
    x: Float[Tensor, "l n d g v"],
    predicted: Float[Tensor, "l n c h w"],
    titles: Sequence[str],
    levels: Sequence[float],
) -> Figure:
    """Three columns an image: clean, noisy and as it is predicted."""
    columns = []
    for row, title in enumerate(titles):
        columns.append(Column(title, clean[row].expand(len(levels), *clean.shape[1:])))
        columns.append(Column("noisy", at_unit_variance(x[:, row], levels)))
        columns.append(Column("denoised", predicted[:, row]))
    return level_sheet(columns, levels, "Clean images, noisy ones, and what is predicted of them")
