"""Projected gradient ascent, per example (Madry et al., 2018).

From x, or from a random point of the ball, `steps` times: a step up the gradient of the loss, back
into the ball. As in the published training of robust guidance (Kawar et al., 2022) a row rests
once it is misclassified; here it also leaves the batch, so that it costs nothing more. Nothing is
clamped unless the ball does it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from robustness.attack_steps import AttackerStep
from torch import Tensor

from robustguide.attacks.balls import Generators, per_row
from robustguide.noise import expand

Losses = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def pgd(
    losses: Losses,
    x: Float[Tensor, "b ..."],
    ball: Callable[..., AttackerStep],
    steps: int,
    step_size: float | Float[Tensor, " b"],
    radius: float | Float[Tensor, " b"],
    *,
    random_start: bool = False,
    restarts: int = 0,
    early_stop: bool = True,
    keep_best: bool = False,
    probe: bool = False,
    batch_sizes: Sequence[int] = (),
    start: Float[Tensor, "b ..."] | None = None,
    generator: Generators = None,
) -> Float[Tensor, "b ..."]:
    """Maximises a per-example loss inside a ball around x.

    It opens its own gradient scope, differentiates with respect to the input alone, and leaves
    modes and buffers to whoever knows the network.

    Args:
        losses: Maps inputs (r, ...) and their row numbers (r,) to losses (r,) and to the mask (r,)
            of rows that still move; noise level and label are closed over.
        x: Centres of the balls.
        ball: An `AttackerStep` class or factory `(orig_input, eps, step_size)`, called anew on the
            rows that move. Numbers reach it as they are, per-example values as (r, 1, ...).
        steps: Number of steps of one run.
        step_size: Number or one per example, in the units of x.
        radius: Likewise.
        random_start: Whether the first run starts at a random point rather than at x. A row that
            is misclassified at x may then come back moved.
        restarts: Further runs, each from a new random point. A row keeps its first adversary that
            is misclassified, else the one of largest loss.
        early_stop: Whether misclassified rows rest and leave the batch, at the price of one host
            synchronisation a step. Without it every row takes every step and there is none.
        keep_best: Whether a row comes back as its point of largest loss, the start among them,
            rather than as its last, as `robustness` does it; at the price of one more evaluation.
            Only without `early_stop`, where the last point is the verdict.
        probe: Whether a run begins by asking, without a graph, which rows move, so that no
            gradient is made for the others. It pays where fewer than about half do. Only with
            `early_stop`.
        batch_sizes: If given, `losses` sees batches of these sizes alone: the rows that move are
            followed by copies of the first, up to the smallest size that holds them. For networks
            that are compiled for every size.
        start: Where the first run starts: at the point of the ball nearest to this one. Null is x,
            or a random point.
        generator: Given to the ball for random starts, which are drawn for the whole batch whoever
            has fallen; the ball must take `generator`. With None it decides where it draws from.

    Raises:
        ValueError: For both `keep_best` and `early_stop`, `probe` without `early_stop`, or both
            `start` and `random_start`; for more rows than the largest of `batch_sizes`.
        RuntimeError: Under `torch.inference_mode`, in which nothing can be differentiated.
    """
    _refuse_inference(x)
    check_choices(keep_best, early_stop, probe)
    if start is not None and random_start:
        raise ValueError(
            "An attack starts where it is told or at random; set random_start: false."
        )
    sizes = per_row(step_size, x), per_row(radius, x)
    asked = _Asked(losses, tuple(sorted(batch_sizes)))
    ascent = _Ascent(asked, x, ball, steps, *sizes, early_stop, keep_best, probe)
    everyone = torch.arange(len(x), device=x.device)
    first = ascent.random_point(generator) if random_start else x
    if start is not None:
        first = ascent.nearest(start)
    adversary = ascent.climb(first, everyone)
    if not restarts:
        return adversary
    loss, active = _evaluate(asked, adversary, everyone)
    for _ in range(restarts):
        point = ascent.random_point(generator)
        rows = active.nonzero().squeeze(1) if early_stop else everyone
        if not len(rows):
            continue
        rival = ascent.climb(point, rows)[rows]
        rival_loss, rival_active = _evaluate(asked, rival, rows)
        better = active[rows] & (~rival_active | (rival_loss > loss[rows]))
        adversary[rows] = torch.where(expand(better, rival), rival, adversary[rows])
        loss[rows] = torch.where(better, rival_loss, loss[rows])
        active[rows] &= rival_active
    return adversary


@dataclass(frozen=True)
class _Asked:
    """Losses of points, asked for in batches of few sizes."""

    losses: Losses
    sizes: tuple[int, ...]

    def __call__(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if not self.sizes or len(rows) in self.sizes:
            return self.losses(x, rows)
        size = next((size for size in self.sizes if size > len(rows)), None)
        if size is None:
            raise ValueError(
                f"An attack on {len(rows)} rows may ask for batches of {list(self.sizes)} alone; "
                "give batch_sizes of which the largest holds the batch."
            )
        filling = rows.new_zeros(size - len(rows))
        places = torch.cat([torch.arange(len(rows), device=rows.device), filling])
        loss, active = self.losses(x[places], rows[places])
        return loss[: len(rows)], active[: len(rows)]


@dataclass(frozen=True)
class _Ascent:
    """What every run of an attack shares; sizes of steps and balls carry trailing axes."""

    losses: _Asked
    x: Tensor
    ball: Callable[..., AttackerStep]
    steps: int
    step_size: float | Tensor
    radius: float | Tensor
    early_stop: bool
    keep_best: bool
    probe: bool

    def random_point(self, generator: Generators) -> Tensor:
        ball = self.ball if generator is None else partial(self.ball, generator=generator)
        step: Any = ball(self.x, self.radius, self.step_size)
        point: Tensor = step.random_perturb(self.x)
        return point

    def nearest(self, x: Tensor) -> Tensor:
        step: Any = self.ball(self.x, self.radius, self.step_size)
        point: Tensor = step.project(x)
        return point

    def climb(self, start: Tensor, rows: Tensor) -> Tensor:
        """Moves the given rows of a whole batch from their starts; the others stay."""
        adversary = start.clone()
        best = _Best(adversary, rows) if self.keep_best else None
        if self.probe and len(rows):
            rows = rows[_evaluate(self.losses, adversary[rows], rows)[1]]
        for _ in range(self.steps):
            if not len(rows):
                break
            with torch.enable_grad():
                moving = adversary[rows].requires_grad_()
                loss, active = self.losses(moving, rows)
                # A sum and not a mean: a row's step must not depend on the number of rows.
                total = loss.sum()
            kept = active.nonzero().squeeze(1) if self.early_stop else slice(None)
            rows = rows[kept]
            if not len(rows):
                break
            (grad,) = torch.autograd.grad(total, moving)
            if best is not None:
                best.see(loss.detach(), moving.detach())
            radius, step_size = _rows_of(self.radius, rows), _rows_of(self.step_size, rows)
            step: Any = self.ball(self.x[rows], radius, step_size)
            adversary[rows] = step.project(step.step(moving.detach()[kept], grad[kept]))
        if best is not None:
            best.see(_evaluate(self.losses, adversary[rows], rows)[0], adversary[rows])
            adversary[rows] = best.point
        return adversary


class _Best:
    """The point of largest loss that every row has been at; of equal ones the first."""

    def __init__(self, x: Tensor, rows: Tensor) -> None:
        self.point = x[rows].clone()
        self.loss: Tensor | None = None

    def see(self, loss: Tensor, point: Tensor) -> None:
        if self.loss is None:
            self.loss = loss.clone()
            return
        better = loss > self.loss
        self.point = torch.where(expand(better, point), point, self.point)
        self.loss = torch.where(better, loss, self.loss)


def check_choices(keep_best: bool, early_stop: bool, probe: bool) -> None:
    """Raises ValueError for choices that exclude each other."""
    if probe and not early_stop:
        raise ValueError(
            "probe finds the rows that rest, and without early_stop none does; set early_stop: "
            "true, or probe: false."
        )
    if keep_best and early_stop:
        raise ValueError(
            "keep_best wants every row to take every step, and early_stop lets rows rest at their "
            "first adversary; set early_stop: false."
        )


def _evaluate(losses: Losses, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    loss, active = losses(x, rows)
    return loss.clone(), active.clone()  # they will be written to, and belong to the caller


def _rows_of(value: float | Tensor, rows: Tensor) -> float | Tensor:
    return value[rows] if isinstance(value, Tensor) and value.ndim else value


def _refuse_inference(x: Tensor) -> None:
    if torch.is_inference_mode_enabled() or x.is_inference():
        raise RuntimeError(
            "An attack needs gradients, and torch.inference_mode is on (or made this input); "
            "no_grad is fine. Set Trainer(inference_mode=False), in YAML trainer.inference_mode: "
            "false."
        )
