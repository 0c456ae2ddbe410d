"""Training of autoencoders whose latents others are trained on."""

from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from robustguide.codecs import KLCodec
from robustguide.data import ENCODING
from robustguide.interfaces import Codec
from robustguide.modules.optimization import optimization, thaw
from robustguide.modules.resuming import refuse_other_network, start_step
from robustguide.modules.robust import Batch
from robustguide.modules.trial import tried
from robustguide.noise import finest, noise_like
from robustguide.samplers import SeededNoise


class Autoencoding(LightningModule):
    """Error of the decoded image, and a little of the divergence from unit noise.

    Rombach et al. (2022), section 3.1, with the KL regularisation and without an adversary. When
    training ends, the codec's scale and shift are set so that each channel of the latents of the
    validation images has mean 0 and the standard deviation `latent_std`.

    Args:
        codec: What is trained, a `KLCodec`; the scale that it is built with is replaced.
        error: Mean error of a pixel, such as torch.nn.MSELoss; null is torch.nn.L1Loss.
        kl_weight: Of the divergence, in nats for each number of the image; 1e-6 in the paper.
        latent_std: 0.5, that of images and of EDM2's latents, is what EDM's preconditioning and
            its distribution of noise levels expect; 1 is usual for a discrete chain.
        optimizer: Makes the optimizer; null is AdamW.
        scheduler: Makes a schedule that counts optimizer steps; null keeps the learning rate.
        rates: Multiple of the learning rate by prefix of parameter name; 0 freezes.
        seed: Of the noise in training.
    """

    def __init__(
        self,
        codec: Codec,
        error: nn.Module | None = None,
        kl_weight: float = 1e-6,
        latent_std: float = 0.5,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        rates: dict[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(codec, KLCodec):
            raise ValueError(
                f"There is nothing to train in a {type(codec).__name__}; name a "
                "robustguide.codecs.KLCodec as model.codec."
            )
        if not kl_weight >= 0 or not latent_std > 0:
            raise ValueError(
                f"kl_weight must be 0 or more and latent_std above 0, got {kl_weight} and "
                f"{latent_std}."
            )
        self.codec = codec
        self.error = error or nn.L1Loss()
        self.kl_weight, self.latent_std = kl_weight, latent_std
        self.optimizer, self.scheduler, self.rates = optimizer, scheduler, rates
        self.seed = seed

    def setup(self, stage: str) -> None:
        """Compares the data with the codec.

        Raises:
            ValueError: When the codec cannot read the images, or there is no data module.
        """
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise ValueError(
                "The latents are measured on the validation images of a data module; give one, "
                "such as robustguide.data.Images."
            )
        latents = self.codec.latent_shape(data.shape)
        found = tried(self.codec, data.shape, lambda images, _: self.codec.moments(images))
        if tuple(found.shape[1:]) != (2 * latents[0], *latents[1:]):
            raise ValueError(
                f"The autoencoder makes moments of shape {list(found.shape[1:])} of images of "
                f"shape {list(data.shape)}; expected {[2 * latents[0], *latents[1:]]}."
            )
        if stage == "fit":
            thaw(self.codec, self.rates)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds the step."""
        start_step(self, self.seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of the decoded draw."""
        images, _, _ = batch
        moments = self._moments(images)
        noise = noise_like(moments.float().chunk(2, dim=1)[0], None)
        loss, error, divergence = self.loss(images, moments, noise)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/error", error)
        self.log("train/kl", divergence)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The same loss, with the noise that belongs to each image."""
        images, _, index = batch
        shape = self.codec.latent_shape(images.shape[1:])
        noise = SeededNoise(index.tolist(), ENCODING).draw(shape, self.device)
        names = ("val/loss", "val/error", "val/kl")
        found = zip(names, self.loss(images, self._moments(images), noise), strict=True)
        self.log_dict(dict(found), prog_bar=True, batch_size=len(images), sync_dist=True)

    def loss(
        self, images: Tensor, moments: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, its error and its divergence.

        Args:
            images: Images (b, c, h, w).
            moments: What the autoencoder makes of them, raw (b, 2 d, g, v).
            noise: Unit noise (b, d, g, v).
        """
        mean, std = moments.float().chunk(2, dim=1)
        decoded = self.codec.autoencoder.decode(mean + std * noise)
        error = self.error(self.codec.from_range(decoded).float(), images)
        nats = (mean.square() + std.square() - 1) / 2 - std.log()
        divergence = nats.sum() / images.numel()
        return error + self.kl_weight * divergence, error, divergence

    def _moments(self, images: Tensor) -> Tensor:
        """Past the codec, which would switch off mixed precision and make chunks."""
        return self.codec.autoencoder.moments(self.codec.to_range(images))

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Measures the latents; a moving average has become the weights by now."""
        d = self.codec.channels
        sums = torch.zeros(2 * d + 1, dtype=finest(self.device), device=self.device)
        trained: Any = self.trainer
        for images, _, _ in trained.datamodule.val_dataloader():
            mean, std = self.codec.moments(images.to(self.device)).to(sums).chunk(2, dim=1)
            sums[:d] += mean.sum((0, 2, 3))
            sums[d:-1] += (mean.square() + std.square()).sum((0, 2, 3))
            sums[-1] += mean[:, 0].numel()
        total: Any = trained.strategy.reduce(sums, reduce_op="sum")  # over the processes
        mean = total[:d] / total[-1]
        std = (total[d:-1] / total[-1] - mean.square()).sqrt()
        self.codec.scale.copy_(self.latent_std / std)
        self.codec.shift.copy_(-mean * self.latent_std / std)
        rank_zero_info(f"Raw latents have mean {mean.tolist()}, standard deviation {std.tolist()}")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `refuse_other_network`."""
        refuse_other_network(self, checkpoint)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer over the autoencoder."""
        return optimization(self.codec, self.optimizer, self.scheduler, self.rates)
