"""Training of denoisers."""

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
from robustguide.modules.robust import EVALUATION, Batch
from robustguide.modules.trial import try_denoiser
from robustguide.noise import NoiseDistribution, noise_like, perturb
from robustguide.samplers import SeededNoise


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
        loss = self.loss(x_0, y, sigma, noise_like(x_0, None))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The same error, with the noise level and noise that belong to each image."""
        images, y, index = batch
        x_0 = self.space.own(images, index)
        seeded = SeededNoise(index.tolist(), EVALUATION)
        u = torch.special.ndtr(seeded.draw((), self.device))
        loss = self.loss(
            x_0, y, self.noise.quantile(u).float(), seeded.draw(x_0.shape[1:], self.device)
        )
        self.log("val/loss", loss, prog_bar=True, batch_size=len(x_0), sync_dist=True)

    def loss(self, x_0: Tensor, y: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Mean over images of the weighted error per pixel."""
        denoised = self.denoiser(perturb(x_0, sigma, noise), sigma, y)
        error = (denoised - x_0).square().flatten(1).mean(1)
        return self.denoiser.loss(error, sigma).mean()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `refuse_other_network`."""
        refuse_other_network(self, checkpoint)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer over the denoiser."""
        return optimization(self.denoiser, self.optimizer, self.scheduler, self.rates)


def tuple_of(value: object) -> tuple[object, ...]:
    """Sequences as tuples, anything else alone in one."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)
