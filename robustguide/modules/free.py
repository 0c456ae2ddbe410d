"""Adversarial training at the price of plain training."""

import math
from typing import Any

import torch
from robustness.attack_steps import AttackerStep
from torch import Tensor
from torch.nn import functional as F

from robustguide.attacks import L2Ball
from robustguide.interfaces import Classifier
from robustguide.modules.robust import Batch, RobustClassification
from robustguide.noise import expand, vp_scale


class FreeClassification(RobustClassification):
    """Free adversarial training: the gradient that moves the weights moves the images too.

    Every noised batch is trained on `replays` times. The perturbation starts where that of the
    batch before ended, and each pass moves it one step up, for the next. Shafahi et al. (2019),
    Alg. 1, whose ball is that of the largest norm and whose images have no noise; ours are x_t.
    Lightning counts every pass as a step of the optimizer (`max_steps`).

    Args:
        classifier: What is trained.
        radius: Of the ball, in x_t units on the [-1, 1] scale.
        replays: Passes over a batch, m in the paper.
        step_fraction: Step size over radius; 1 in the paper.
        ball: Class of the steps and projections.
        **others: Of `RobustClassification`; an attack and a penalty have no place here.

    Raises:
        ValueError: For a radius or step that is not positive, no pass, or an attack or a penalty
            besides.
    """

    def __init__(
        self,
        classifier: Classifier,
        radius: float = 0.5,
        replays: int = 4,
        step_fraction: float = 1.0,
        ball: type[AttackerStep] = L2Ball,
        **others: Any,
    ) -> None:
        super().__init__(classifier, **others)
        if replays < 1 or not 0 < radius < math.inf or not step_fraction > 0:
            raise ValueError(
                f"Free training makes at least 1 pass, with a positive radius and step, got "
                f"replays={replays}, radius={radius}, step_fraction={step_fraction}."
            )
        if self.attack is not None or self.penalty is not None or self.starts is not None:
            raise ValueError(
                "Free training moves the images itself and knows no penalty; leave attack, "
                "warm_start and penalty out, or train with RobustClassification."
            )
        self.radius, self.replays, self.step_fraction = radius, replays, step_fraction
        self.ball = ball
        self.offset: Tensor | None = None  # of the last batch, in x_t units
        self.automatic_optimization = False  # several steps a batch

    @property
    def threat(self) -> str:
        """What moves the training images, in words."""
        norm = getattr(self.ball, "norm", self.ball.__name__)
        return (
            f"free, {self.replays} passes a batch, {norm}, radius {self.radius:.3g} in x_t units "
            f"on the [-1,1] scale, step {self.step_fraction * self.radius:.3g}"
        )

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """All passes over a batch."""
        images, y, _ = batch
        x, sigma = self.noised(images)
        scale = expand(vp_scale(sigma), x).to(x.dtype)
        optimizer: Any = self.optimizers()
        schedulers: Any = self.lr_schedulers()
        offset = self.carried(x)
        for _ in range(self.replays):
            offset = offset.detach().requires_grad_()
            logits = self.classifier(x + scale * offset, sigma)
            loss = F.cross_entropy(logits.float(), y, label_smoothing=self.label_smoothing)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            if schedulers is not None:
                schedulers.step()
            offset = self.moved(offset.detach(), offset.grad)
        self.offset = offset
        self.log_step(loss, logits, y)

    def carried(self, x: Tensor) -> Tensor:
        """Offset of the batch before; of a larger one its first rows, of a smaller one with 0."""
        offset = torch.zeros_like(x)
        if self.offset is not None and self.offset.shape[1:] == x.shape[1:]:
            last = self.offset[: len(x)].to(x)
            offset[: len(last)] = last
        return offset

    def moved(self, offset: Tensor, gradient: Tensor | None) -> Tensor:
        """One step up, and back into the ball."""
        assert gradient is not None
        ball: Any = self.ball(
            torch.zeros_like(offset), self.radius, self.step_fraction * self.radius
        )
        moved: Tensor = ball.project(ball.step(offset, gradient))
        return moved

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the offset, with which training goes on; that of the first process."""
        checkpoint["free_offset"] = self.offset

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `on_save_checkpoint`."""
        super().on_load_checkpoint(checkpoint)
        self.offset = checkpoint.get("free_offset")
