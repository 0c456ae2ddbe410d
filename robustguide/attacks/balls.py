"""Balls around an input: how to step in them, come back to them and start in them.

With d = x - orig_input, radius eps and the gradient g of the loss:

    L2      step  x + step_size * g / (||g|| + 1e-10)   project  orig_input + min(1, eps/||d||) * d
    Linf    step  x + step_size * sign(g)               project  orig_input + clamp(d, -eps, eps)

These are `robustness`' steps (Madry et al., 2018) and plug into it. Theirs clamp every point to
[0, 1] too, which moves a noisy image by many times eps; ours clamp only to a `box` that is given,
and with box (0, 1) they are theirs. Radius and step size may differ from row to row.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from robustness.attack_steps import AttackerStep
from torch import Tensor

from robustguide.noise import expand

NORM_FLOOR = 1e-10  # added to a gradient's norm, as in `robustness` and in Kawar et al. (2022)

Generators = torch.Generator | Sequence[torch.Generator] | None


def per_row(value: float | Tensor, like: Tensor) -> float | Tensor:
    """Gives per-example values (b,) trailing axes; numbers and what has axes already pass."""
    return expand(value, like) if isinstance(value, Tensor) and value.ndim == 1 else value


class Ball(AttackerStep):
    """The points within `eps` of an input, in a norm that the subclass decides.

    Args:
        orig_input: Centres of the balls, (b, ...).
        eps: Radius in the units of the input: a number, or one per example (b,).
        step_size: Length of a step, likewise.
        use_grad: Read by `robustness`, which then computes no gradient.
        box: Range that every point is clamped to besides; by default none.
        generator: Source of the random start: one for the batch, one per example (so that a row's
            start does not depend on its neighbours), or torch's global one.
    """

    norm: str
    orig_input: Tensor
    eps: float | Tensor
    step_size: float | Tensor

    def __init__(
        self,
        orig_input: Tensor,
        eps: float | Tensor,
        step_size: float | Tensor,
        use_grad: bool = True,
        box: tuple[float, float] | None = None,
        generator: Generators = None,
    ) -> None:
        eps, step_size = per_row(eps, orig_input), per_row(step_size, orig_input)
        super().__init__(orig_input, eps, step_size, use_grad)  # type: ignore[no-untyped-call]
        self.box = box
        self.generator = generator

    @abstractmethod
    def step(self, x: Float[Tensor, "b ..."], g: Float[Tensor, "b ..."]) -> Tensor:
        """The point one step up the gradient; it may lie outside the ball."""

    @abstractmethod
    def project(self, x: Float[Tensor, "b ..."]) -> Tensor:
        """The nearest point of the ball, then of the box."""

    @abstractmethod
    def random_perturb(self, x: Float[Tensor, "b ..."]) -> Tensor:
        """A random point of the ball around x."""

    def _boxed(self, x: Tensor) -> Tensor:
        return x if self.box is None else x.clamp(*self.box)

    def _draw(self, sample: Callable[..., Tensor], x: Tensor) -> Tensor:
        """Draws on the generator's own device, so that a CPU seed names one start anywhere."""
        if isinstance(self.generator, Sequence):
            rows = [
                sample(x.shape[1:], generator=generator, device=generator.device, dtype=x.dtype)
                for generator in self.generator
            ]
            return torch.stack(rows).to(x.device)
        device = x.device if self.generator is None else self.generator.device
        noise = sample(x.shape, generator=self.generator, device=device, dtype=x.dtype)
        return noise.to(x.device)


class L2Ball(Ball):
    """Euclidean ball. Its random start lies on the sphere, as in `robustness`.

    In n dimensions a uniform point of the ball lies at eps * u**(1/n), u uniform: for images that
    is the sphere to within a few percent, so there is no second kind of start.
    """

    norm = "L2"

    def step(self, x: Tensor, g: Tensor) -> Tensor:
        """Moves by the step size along the gradient, less where its norm nears 1e-10."""
        return x + g / (_norm(g) + NORM_FLOOR) * self.step_size

    def project(self, x: Tensor) -> Tensor:
        """Shortens the offset to the radius."""
        offset = x - self.orig_input
        tiny = torch.finfo(offset.dtype).tiny  # a radius of 0 must not give 0/0
        return self._boxed(
            self.orig_input + offset * (self.eps / _norm(offset).clamp_min(tiny)).clamp(max=1)
        )

    def random_perturb(self, x: Tensor) -> Tensor:
        """Moves by the radius in a uniform direction."""
        direction = self._draw(torch.randn, x)
        return self._boxed(x + self.eps * direction / (_norm(direction) + NORM_FLOOR))


class LinfBall(Ball):
    """Every value within eps of its own. Its random start is uniform."""

    norm = "Linf"

    def step(self, x: Tensor, g: Tensor) -> Tensor:
        """Moves every value by the step size, except where the gradient is 0."""
        return x + g.sign() * self.step_size

    def project(self, x: Tensor) -> Tensor:
        """Clamps every value's offset to the radius."""
        offset = torch.clamp(x - self.orig_input, -self.eps, self.eps)  # type: ignore[arg-type]
        return self._boxed(self.orig_input + offset)

    def random_perturb(self, x: Tensor) -> Tensor:
        """Moves every value uniformly within the radius."""
        return self._boxed(x + 2 * (self._draw(torch.rand, x) - 0.5) * self.eps)


def _norm(value: Tensor) -> Tensor:
    """Euclidean norm of every row, with trailing axes; whatever the memory format."""
    norm: Tensor = torch.linalg.vector_norm(value, dim=tuple(range(1, value.ndim)), keepdim=True)
    return norm
