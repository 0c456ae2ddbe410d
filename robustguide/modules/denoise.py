"""Training of denoisers."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from robustguide.interfaces import Codec, Denoiser
from robustguide.modules.latent import Space
from robustguide.modules.optimization import optimization, thaw
from robustguide.modules.resuming import refuse_other_network, start_step
from robustguide.modules.robust import Batch
from robustguide.modules.targets import CleanImage, Target
from robustguide.modules.trial import try_denoiser
from robustguide.noise import NoiseDistribution, noise_like, perturb
from robustguide.samplers import SeededNoise, evaluation_noise


class Denoising(LightningModule):
    """Weighted squared error of the denoised image at random noise levels.

    With an eps-network this is the simple loss of Ho et al. (2020), eq. 14; with EDM's
    preconditioning, Karras et al. (2022), eq. 2.

    Args:
        denoiser: What is trained.
        noise: Distribution of the noise levels.
        label_dropout: Share of labels replaced by the null label, so that one network learns the
            conditional and the unconditional denoiser. Ho and Salimans (2022), Alg. 1.
        optimizer: Makes the optimizer; null is AdamW.
        scheduler: Makes a schedule that counts optimizer steps; null keeps the learning rate.
        rates: Multiple of the learning rate by prefix of parameter name; 0 freezes.
        seed: Of the training noise.
        codec: Frozen; translates the images of the data into the denoiser's space. Null where the
            data are in that space.
        target: What the denoised image is trained towards; null is the clean image.

    Raises:
        ValueError: When labels are dropped, or a target needs that they are, and the denoiser or
            `label_dropout` does not allow it.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        noise: NoiseDistribution,
        label_dropout: float = 0.1,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        rates: dict[str, float] | None = None,
        seed: int = 0,
        codec: Codec | None = None,
        target: Target | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout is a share of labels in [0, 1], got {label_dropout}.")
        if label_dropout > 0 and not denoiser.has_null:
            raise ValueError(
                f"label_dropout={label_dropout} needs a null label, which the denoiser lacks; "
                "give its network one (num_null_labels: 1) or set label_dropout to 0."
            )
        self.denoiser = denoiser
        self.target = target or CleanImage()
        self.target.attach(denoiser)
        if self.target.needs_null and not 0 < label_dropout < 1:
            raise ValueError(
                f"{type(self.target).__name__} compares labels with the null label, so both must "
                f"be trained: label_dropout must lie between 0 and 1, got {label_dropout}; 0.1 is "
                "usual."
            )
        self.noise = noise
        self.label_dropout = label_dropout
        self.optimizer, self.scheduler, self.rates = optimizer, scheduler, rates
        self.seed = seed
        self.space = Space(codec)

    def setup(self, stage: str) -> None:
        """Compares the data with the denoiser.

        Raises:
            ValueError: When classes or shapes differ.
        """
        data = getattr(self.trainer, "datamodule", None)
        shape = getattr(data, "shape", None)
        shape = None if shape is None else self.space.shape(shape)
        found = {"num_classes": getattr(data, "num_classes", None), "shape": shape}
        for field, theirs in found.items():
            ours = getattr(self.denoiser, field)
            if theirs is not None and ours != 0 and tuple_of(theirs) != tuple_of(ours):
                raise ValueError(
                    f"The data's {field} is {theirs}, the denoiser's {ours}; set "
                    f"model.denoiser.init_args.{field} (and the network's) to the data's."
                )
        if shape is not None:
            try_denoiser(self.denoiser, shape)
        if stage == "fit":
            thaw(self.denoiser, self.rates)

    def on_fit_start(self) -> None:
        """See `Target.announce`."""
        self.target.announce()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds the step."""
        start_step(self, self.seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean weighted squared error."""
        images, y, _ = batch
        x_0 = self.space.draw(images)
        sigma = self.noise.sample(len(x_0), self.device)
        dropped = torch.rand(len(y), device=y.device) < self.label_dropout
        y = torch.where(dropped, self.denoiser.null(y), y)
        noise, u = noise_like(x_0, None), torch.rand(len(y), device=y.device)
        loss, watched = self.compare(x_0, y, sigma, noise, u)
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in watched.items()})
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, and lets the target follow before a callback can save the two apart."""
        super().optimizer_step(*args, **kwargs)
        self.target.update(self.denoiser)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The same error, with the noise level and noise that belong to each image."""
        images, y, index = batch
        x_0 = self.space.own(images, index)
        seeded = evaluation_noise(index)
        sigma = self.noise.quantile(shares(seeded, self.device)).float()
        noise = seeded.draw(x_0.shape[1:], self.device)
        loss, _ = self.compare(x_0, y, sigma, noise, shares(seeded, self.device))
        self.log("val/loss", loss, prog_bar=True, batch_size=len(x_0), sync_dist=True)

    def loss(self, x_0: Tensor, y: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Mean over images of the weighted error per pixel; see `compare`, u is a half."""
        return self.compare(x_0, y, sigma, noise, torch.full_like(sigma, 0.5))[0]

    def compare(
        self, x_0: Tensor, y: Tensor, sigma: Tensor, noise: Tensor, u: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean over images of the weighted error per pixel, and what the target watches.

        u is a uniform number for each image, which the target may use.
        """
        x = perturb(x_0, sigma, noise)
        with self.target.told(self.denoiser, u):
            denoised = self.denoiser(x, sigma, y)
        # Later: autocast of older torch hands on weights that were cast without a gradient.
        goal = self.target(self.denoiser, x_0, x, sigma, y, u)
        error = (denoised - goal.image).square().flatten(1).mean(1)
        return self.denoiser.loss(error, sigma).mean(), goal.watched

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `refuse_other_network`."""
        refuse_other_network(self, checkpoint)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer over the denoiser."""
        return optimization(self.denoiser, self.optimizer, self.scheduler, self.rates)


def shares(seeded: SeededNoise, device: torch.device) -> Tensor:
    """A uniform number in (0, 1) for each image, of its own generator."""
    u: Tensor = torch.special.ndtr(seeded.draw((), device))
    return u


def tuple_of(value: object) -> tuple[object, ...]:
    """Sequences as tuples, anything else alone in one."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)
