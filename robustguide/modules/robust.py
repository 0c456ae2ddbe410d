"""Training and evaluation of classifiers of noisy images."""

from collections.abc import Sequence
from typing import Any

from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from robustguide.attacks import PGD, Attack
from robustguide.attacks.starts import Starts
from robustguide.guidance import AtState
from robustguide.interfaces import Classifier, Codec
from robustguide.modules.examination import Cell, Examination, named
from robustguide.modules.latent import Space
from robustguide.modules.optimization import optimization, thaw
from robustguide.modules.penalty import CalibrationPenalty
from robustguide.modules.resuming import refuse_other_network, start_step
from robustguide.modules.trial import try_on_data
from robustguide.noise import LEVELS, NoiseDistribution, expand, noise_like, perturb, vp_scale

Batch = tuple[Tensor, Tensor, Tensor]


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
        label_smoothing: Share of each target that is spread over all classes alike, in [0, 1).
        penalty: What calibration adds to the loss; null adds nothing. It judges the noisy images
            as they were before the attack, which costs one more forward pass of the network, and
            which batch statistics see as well.
        warm_start: Whether the attack on an image starts where its last one ended; of `PGD` alone.
            Offsets are kept for every image that was met, 2 bytes a number on the host.

    Raises:
        ValueError: For a share beyond its range, or a warm start of what is no `PGD`.
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
        label_smoothing: float = 0.0,
        penalty: CalibrationPenalty | None = None,
        warm_start: bool = False,
    ) -> None:
        super().__init__()
        if warm_start and (not isinstance(attack, PGD) or attack.random_start):
            raise ValueError(
                f"warm_start tells PGD where to start, and the attack is {attack or 'none'}; give "
                "robustguide.attacks.PGD without random_start, or leave warm_start out."
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"label_smoothing is a share of the target, 0 or more and below 1, got "
                f"{label_smoothing}; 0 is none."
            )
        self.classifier = classifier
        self.noise = noise
        self.attack = attack
        self.optimizer, self.scheduler, self.rates = optimizer, scheduler, rates
        self.levels = tuple(levels)
        self.evaluation_attack = evaluation_attack
        attacks = () if evaluation_attack is None else (evaluation_attack,)
        self.examination = Examination(levels, {"x_t": AtState()}, attacks)
        self.seed = seed
        self.space = Space(codec)
        self.label_smoothing, self.penalty = label_smoothing, penalty
        self.starts = Starts() if warm_start else None

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
        try_on_data(self.classifier, getattr(self.trainer, "datamodule", None), self.space)
        if stage == "fit":
            thaw(self.classifier, self.rates)

    def on_fit_start(self) -> None:
        """States the threat model."""
        rank_zero_info(f"Training attack: {self.threat}")
        rank_zero_info(f"Evaluation attack: {self.evaluation_attack or 'none'}")

    @property
    def threat(self) -> str:
        """What moves the training images, in words."""
        return str(self.attack or "none")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds the step."""
        start_step(self, self.seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of the attacked images alone, and the penalty."""
        images, y, index = batch
        natural, sigma = self.noised(images)
        x = self.attacked(natural, sigma, y, index)
        logits = self.classifier(x, sigma)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=self.label_smoothing)
        if self.penalty is not None:
            # guidance never meets an attack, so that is not where calibration is wanted
            judged = logits if self.attack is None else self.classifier(natural, sigma)
            error = self.penalty(judged, y, sigma)
            self.log("train/cross_entropy", loss)
            self.log("train/calibration_error", error)
            loss = loss + self.penalty.weight * error
        self.log_step(loss, logits, y)
        return loss

    def noised(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Training images in the classifier's space, noised, and their noise levels (b,)."""
        assert self.noise is not None
        x_0 = self.space.draw(images)
        sigma = self.noise.sample(len(x_0), self.device)
        return perturb(x_0, sigma, noise_like(x_0, None)), sigma

    def log_step(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        """Logs the loss and the accuracy of what was trained on."""
        accuracy = (logits.argmax(-1) == y).float().mean()
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log("train/accuracy", accuracy, prog_bar=True)

    def attacked(self, x: Tensor, sigma: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Adversaries of noisy images whose numbers are given."""
        if self.attack is None:
            return x
        if self.starts is None:
            return self.attack(self.classifier, x, sigma, y)
        assert isinstance(self.attack, PGD)
        numbers = index.tolist()
        start = self.starts.of(numbers, x)
        moved = self.attack(self.classifier, x, sigma, y, start=start)
        self.starts.keep(numbers, (moved - x) / expand(vp_scale(sigma), x))
        return moved

    @property
    def examined(self) -> dict[str, Cell]:
        """What an evaluation measures."""
        return self.examination.cells(self.classifier)

    def evaluation_step(self, batch: Batch) -> dict[str, Any]:
        """What an `Examination` of noised images found, in `cells`; gradients are not taken."""
        images, y, index = batch
        found = self.examination.examine(self.classifier, self.space.own(images, index), y, index)
        return {"cells": named(found, "forward", y, index)}

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
