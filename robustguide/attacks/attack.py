"""Attacks that YAML can name, on noisy images at a fixed noise level.

Radii are in x_t units on the [-1, 1] scale, as in Kawar et al. (2022): whatever the noise level,
they bound the perturbation of

    x_t = x / sqrt(1 + sigma**2)

The ascent itself runs on x_t, by a change of variables, so the gradient that is normalised is that
of x_t; its chain-rule factor `sqrt(1 + sigma**2)` comes from autograd.
"""

import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from robustness.attack_steps import AttackerStep, L2Step, LinfStep, UnconstrainedStep
from torch import Tensor, nn

from robustguide.attacks.balls import Generators, L2Ball
from robustguide.attacks.pgd import check_choices, pgd
from robustguide.noise import expand, vp_scale


class Radius(ABC):
    """Radius of a ball as a function of the noise level, in x_t units on the [-1, 1] scale."""

    @abstractmethod
    def __call__(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Radius of every example."""


@dataclass(frozen=True)
class SignalRadius(Radius):
    """`radius * sqrt(alpha_bar)`: shrinks as the image does in x_t, so x_0 may move by `radius`.

    A variant of ours; the published recipe keeps the radius at all noise levels.

    Raises:
        ValueError: Unless the radius is finite and not negative.
    """

    radius: float

    def __post_init__(self) -> None:
        _check_radius(self.radius)

    def __call__(self, sigma: Tensor) -> Tensor:
        """Radius of every example."""
        return self.radius / vp_scale(sigma)

    def __str__(self) -> str:
        return f"{self.radius:.3g}*sqrt(alpha_bar)"


class Attack(ABC):
    """Moves noisy images so that a classifier errs; `str()` states the threat model."""

    @abstractmethod
    def __call__(
        self,
        classifier: nn.Module,
        x: Float[Tensor, "b ..."],
        sigma: Float[Tensor, " b"],
        y: Int[Tensor, " b"],
        generator: Generators = None,
    ) -> Float[Tensor, "b ..."]:
        """The adversary of x at its noise level.

        Args:
            classifier: Maps x and sigma to logits (b, k); the bare module, not a DDP wrapper.
            x: Noisy images in sigma-space, `x_0 + sigma * eps`.
            sigma: Noise levels; they stay as they are.
            y: True labels.
            generator: Source of random starts, one or one per image; None is torch's global one.
        """


@dataclass(frozen=True)
class PGD(Attack):
    """Untargeted projected gradient ascent on the cross-entropy.

    The classifier comes back as it was: every submodule's mode, the buffers, `.grad` of the
    parameters. A row that was not moved comes back bit for bit.

    Args:
        radius: A number, or a function of sigma; in x_t units on the [-1, 1] scale.
        steps: Number of steps of one run.
        ball: `AttackerStep` class that steps and projects, ours or anyone's; a class that takes no
            `generator` draws its random starts from torch's global one.
        step_fraction: Step size over radius. By default 2.5 / steps, as in Kawar et al.'s CIFAR-10
            script; their ImageNet script has 1/6.
        random_start: Whether the first run starts at a random point of the ball.
        restarts: Further runs from random points.
        early_stop: Whether misclassified rows rest; see `pgd`.
        keep_best: Whether rows come back as their point of largest loss; see `pgd`.
        probe: Whether a forward without a graph finds the rows that move first; see `pgd`.
        batch_sizes: Sizes of batches that the classifier is given, for one that is compiled for
            each of them; by default that of the rows that move. See `pgd`.
        in_training_mode: Attacks the classifier in the mode it is in rather than in eval mode, so
            with its dropout, and with batch statistics of the rows that move.
        temperature: Divides the logits whose cross-entropy is climbed (and compared between
            restarts). A large one keeps a gradient where a confident row has none left. Ours.

    Raises:
        ValueError: For a negative, infinite or undefined size or temperature, fewer steps than
            one, both `keep_best` and `early_stop`, or `probe` without `early_stop`.
    """

    radius: float | Radius
    steps: int = 7
    ball: type[AttackerStep] = L2Ball
    step_fraction: float | None = None
    random_start: bool = False
    restarts: int = 0
    early_stop: bool = True
    keep_best: bool = False
    probe: bool = False
    batch_sizes: tuple[int, ...] = ()
    in_training_mode: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.radius, Radius):
            _check_radius(self.radius)
        check_choices(self.keep_best, self.early_stop, self.probe)
        if min(self.batch_sizes, default=1) < 1:
            raise ValueError(
                f"batch_sizes are numbers of rows, at least 1, got {list(self.batch_sizes)}; "
                "leave them out for batches of any size."
            )
        if self.steps < 1:
            raise ValueError(f"PGD takes at least 1 step, got steps={self.steps}.")
        if self.restarts < 0:
            raise ValueError(
                f"restarts counts the runs after the first, got {self.restarts}; 0 is none."
            )
        if not 0 < self.fraction < math.inf:
            raise ValueError(
                f"step_fraction is the step size over the radius, a positive number, got "
                f"{self.step_fraction}; leave it out for 2.5 / steps."
            )
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature divides the logits, a positive number, got {self.temperature}; 1 "
                "leaves them as they are."
            )
        if self.ball in (L2Step, LinfStep, UnconstrainedStep):
            warnings.warn(
                f"robustness' {self.ball.__name__} clamps to [0, 1], which noisy images on the "
                "[-1, 1] scale leave; use robustguide.attacks.L2Ball or LinfBall.",
                stacklevel=3,
            )

    @property
    def fraction(self) -> float:
        """Step size over radius."""
        return 2.5 / self.steps if self.step_fraction is None else self.step_fraction

    def __call__(
        self,
        classifier: nn.Module,
        x: Float[Tensor, "b ..."],
        sigma: Float[Tensor, " b"],
        y: Int[Tensor, " b"],
        generator: Generators = None,
        start: Float[Tensor, "b ..."] | None = None,
    ) -> Float[Tensor, "b ..."]:
        """The adversary of x at its noise level.

        With `start`, the first run starts at the point of the ball that is nearest to this offset
        of x_t, in x_t units, rather than at x.
        """
        x = x.detach()
        scale = expand(vp_scale(sigma), x).to(x.dtype)
        x_t = x / scale

        def losses(moved_t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            # Written as an offset of x, so that the classifier sees an unmoved row bit for bit.
            moved = x[rows] + scale[rows] * (moved_t - x_t[rows])
            logits = classifier(moved, sigma[rows])
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(logits / self.temperature, y[rows], reduction="none")
            return loss, logits.argmax(-1) == y[rows]

        radius = self.radius(sigma) if isinstance(self.radius, Radius) else self.radius
        with _lent(classifier, self.in_training_mode):
            adversary_t = pgd(
                losses,
                x_t,
                self.ball,
                self.steps,
                self.fraction * radius,
                radius,
                random_start=self.random_start,
                restarts=self.restarts,
                early_stop=self.early_stop,
                keep_best=self.keep_best,
                probe=self.probe,
                batch_sizes=self.batch_sizes,
                start=None if start is None else x_t + start,
                generator=generator if self._ball_takes_generator else None,
            )
        return x + scale * (adversary_t - x_t)

    @property
    def _ball_takes_generator(self) -> bool:
        return "generator" in inspect.signature(self.ball).parameters

    def __str__(self) -> str:
        if isinstance(self.radius, Radius):
            radius, step = str(self.radius), f"{self.fraction:.3g} of the radius"
        else:
            radius, step = f"{self.radius:.3g}", f"{self.fraction * self.radius:.3g}"
        parts = [
            getattr(self.ball, "norm", self.ball.__name__),
            f"radius {radius} in x_t units on the [-1,1] scale",
            f"PGD-{self.steps}",
            f"step {step}",
            "random start" if self.random_start else "",
            f"{self.restarts} restarts" if self.restarts else "",
            "" if self.early_stop else "no early stop",
            "best step" if self.keep_best else "",
            "in training mode" if self.in_training_mode else "",
            "" if self.temperature == 1 else f"logits over {self.temperature:.3g}",
        ]
        return ", ".join(part for part in parts if part)


@contextmanager
def _lent(classifier: nn.Module, in_training_mode: bool) -> Iterator[None]:
    """Lends a classifier, frozen and in eval mode, or in its own, and gives it back as it was.

    Its parameters are frozen since a graph keeps the input of every layer whose weights want a
    gradient, and since autocast keeps the weights that it casts for them: had it done so without
    gradients, the training step that follows would find them detached.
    """
    modes = [(module, module.training) for module in classifier.modules()]
    buffers = [(b, b.clone()) for b in classifier.buffers()] if in_training_mode else []
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    if not in_training_mode:
        classifier.eval()
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()
        for module, training in modes:
            module.training = training
        for buffer, before in buffers:
            buffer.data.copy_(before)  # .data: a graph made before the attack may hold the buffer


def _check_radius(radius: float) -> None:
    if not 0 <= radius < math.inf:
        raise ValueError(
            f"A radius is a finite number, 0 or more, got {radius}; give it in x_t units on the "
            "[-1, 1] scale."
        )
