"""Training and evaluation of classifiers of noisy images."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from robustguide.attacks import Attack
from robustguide.interfaces import Classifier, Codec
from robustguide.modules.latent import Space
from robustguide.modules.optimization import optimization, thaw
from robustguide.modules.resuming import refuse_other_network, start_step
from robustguide.modules.trial import try_classifier
from robustguide.noise import NoiseDistribution, noise_like, perturb
from robustguide.samplers import SeededNoise

Batch = tuple[Tensor, Tensor, Tensor]
LEVELS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
EVALUATION = 1  # stream of the per-image generators that noises test images


class RobustClassification(LightningModule):
    """Cross-entropy at random noise levels, on inputs that an adversary has moved.

    Kawar, Ganz and Elad (2022); without an attack, the noisy classifier of Dhariwal and Nichol
    (2021). The same module fine-tunes an off-the-shelf network.

    Args:
        classifier: What is trained or evaluated.
        noise: Distribution of the noise levels in training.
        attack: Moves the noisy training images; null trains on them as they are.
        optimizer: Makes the optimizer; null is AdamW.
        scheduler: Makes a schedule that counts optimizer steps; null keeps the learning rate.
        rates: Multiple of the learning rate by prefix of parameter name; 0 freezes.
        levels: Noise levels of the evaluation, exact sigmas.
        evaluation_attack: Moves the evaluated images as well; null evaluates clean ones only.
        seed: Of the training noise.
        codec: Frozen; translates the images of the data into the classifier's space, where noise
            and attacks then are. Null where the data are in that space.
    """

    def __init__(
        self,
        classifier: Classifier,
        noise: NoiseDistribution | None = None,
        attack: Attack | None = None,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        rates: dict[str, float] | None = None,
        levels: Sequence[float] = LEVELS,
        evaluation_attack: Attack | None = None,
        seed: int = 0,
        codec: Codec | None = None,
    ) -> None:
        super().__init__()
        if not levels or not all(0 <= level < float("inf") for level in levels):
            raise ValueError(f"levels must be finite noise levels of at least 0, got {levels}.")
        self.classifier = classifier
        self.noise = noise
        self.attack = attack
        self.optimizer, self.scheduler, self.rates = optimizer, scheduler, rates
        self.levels = tuple(levels)
        self.evaluation_attack = evaluation_attack
        self.seed = seed
        self.space = Space(codec)

    def setup(self, stage: str) -> None:
        """Compares the data with the classifier.

        Raises:
            ValueError: When classes or shapes differ, or when training has no noise distribution.
        """
        if stage == "fit" and self.noise is None:
            raise ValueError(
                "Training needs a noise distribution; name one as model.noise, such as "
                "robustguide.noise.UniformT."
            )
        data = getattr(self.trainer, "datamodule", None)
        num_classes, shape = getattr(data, "num_classes", None), getattr(data, "shape", None)
        if num_classes not in (None, self.classifier.num_classes):
            raise ValueError(
                f"The data has {num_classes} classes, the classifier "
                f"{self.classifier.num_classes}; set model.classifier.init_args.num_classes (and "
                "the network's) to the data's."
            )
        if shape is not None:
            try_classifier(self.classifier, self.space.shape(shape))
        if stage == "fit":
            thaw(self.classifier, self.rates)

    def on_fit_start(self) -> None:
        """States the threat model."""
        rank_zero_info(f"Training attack: {self.attack or 'none'}")
        rank_zero_info(f"Evaluation attack: {self.evaluation_attack or 'none'}")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds the step."""
        start_step(self, self.seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss on the attacked images alone."""
        images, y, _ = batch
        assert self.noise is not None
        x_0 = self.space.draw(images)
        sigma = self.noise.sample(len(x_0), self.device)
        x = perturb(x_0, sigma, noise_like(x_0, None))
        if self.attack is not None:
            x = self.attack(self.classifier, x, sigma, y)
        logits = self.classifier(x, sigma)
        loss = F.cross_entropy(logits.float(), y)
        accuracy = (logits.argmax(-1) == y).float().mean()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", accuracy, prog_bar=True)
        return loss

    def evaluation_step(self, batch: Batch) -> dict[str, Any]:
        """Logits (levels, b, k) at every level, of noised images and, if asked, attacked ones.

        The noise of an image is drawn from a generator that its index seeds, and is the same at
        every level.
        """
        images, y, index = batch
        x_0 = self.space.own(images, index)
        noise = SeededNoise(index.tolist(), EVALUATION).draw(x_0.shape[1:], self.device)
        answers: dict[str, list[Tensor]] = {"clean": [], "attacked": []}
        for level in self.levels:
            sigma = x_0.new_full((len(x_0),), level)
            x = perturb(x_0, sigma, noise)
            with torch.no_grad():
                answers["clean"].append(self.classifier(x, sigma))
            if self.evaluation_attack is not None:
                moved = self.evaluation_attack(self.classifier, x, sigma, y)
                with torch.no_grad():
                    answers["attacked"].append(self.classifier(moved, sigma))
        stacked = {name: torch.stack(logits) for name, logits in answers.items() if logits}
        return {"y": y, "index": index, **stacked}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """See `evaluation_step`."""
        return self.evaluation_step(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """See `evaluation_step`."""
        return self.evaluation_step(batch)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `refuse_other_network`."""
        refuse_other_network(self, checkpoint)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer over the classifier."""
        return optimization(self.classifier, self.optimizer, self.scheduler, self.rates)
