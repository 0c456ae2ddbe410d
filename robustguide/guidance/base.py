"""A term of guidance, and what it is shown: a displacement of the denoised image, in units of x_0.

By Tweedie's formula `denoised = x + sigma**2 * score`, so a score term s displaces the denoised
image by `sigma**2 * s`, and a reference term by a difference of denoised images.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustguide.guidance.evaluations import Branch, Comparison, Evaluations
from robustguide.interfaces import Classifier, Denoiser, Place, RandnLike


@dataclass(frozen=True)
class Step:
    """All that a term may look at.

    Attributes:
        x: State, `x_0 + sigma * eps`.
        sigma: Noise levels (b,).
        y: Class indices (b,).
        null: Null labels (b,), one tensor for all terms of a step.
        place: Index and count of steps, sigma as a host number, whether a corrector's evaluation.
        evaluate: `evaluate(labels, denoiser=None)`: denoised image of another branch.
        shown: What the term is shown of a denoised image: clipped for score terms.
        memory: The term's own, empty at the start of every sampler call; see `own`.
        randn_like: Unit noise like a tensor, of the term's own, that belongs to the image.
    """

    x: Float[Tensor, "b c h w"]
    sigma: Float[Tensor, " b"]
    y: Int[Tensor, " b"]
    null: Int[Tensor, " b"]
    place: Place
    evaluate: Evaluations
    shown: Callable[[Tensor], Tensor]
    memory: dict[int, dict[str, Any]]
    randn_like: RandnLike = torch.randn_like

    @property
    def denoised(self) -> Float[Tensor, "b c h w"]:
        """Of the unguided denoiser at x; clipped for score terms, evaluated when asked for.

        With `needs_graph` it carries a graph on `x`.
        """
        return self.shown(self.evaluate(self.y))

    def own(self, part: nn.Module) -> dict[str, Any]:
        """What a part of the term remembers, empty at the start of every sampler call.

        Change it only where `not place.corrector`.
        """
        return self.memory.setdefault(id(part), {})

    def gradient(self, value: Tensor) -> Float[Tensor, "b c h w"]:
        """Gradient of a sum over rows with respect to `x`, through the denoiser's graph.

        Only for terms with `needs_graph`; the graph is kept for the other terms.
        """
        (gradient,) = torch.autograd.grad(value.sum(), self.x, retain_graph=True)
        return gradient


class Guidance(nn.Module):
    """One term.

    Attributes:
        moves_denoised: True for reference terms, which combine denoisers and always move the
            denoised image; False for score terms, which `ancestral` sends through the variance.
        needs_graph: True where `denoised` must come with a graph on `x`.
        num_classes: Number of classes that y must name one of, not the null label; null for a
            term that takes any label.
        class_names: Names of these classes, where they are known.
    """

    moves_denoised: bool = False
    needs_graph: bool = False
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()

    def classifiers(self) -> tuple[Classifier, ...]:
        """Those that it shows what the denoiser makes; they must read its shape."""
        return ()

    def differentiated(self) -> tuple[Classifier, ...]:
        """Those whose gradient it takes."""
        return ()

    def comparisons(self) -> tuple[Comparison, ...]:
        """Networks that it compares with the guided one."""
        return ()

    def check(self, denoiser: Denoiser) -> None:
        """Refuses a denoiser for a reason of the term's own.

        Raises:
            ValueError: See the terms.
        """

    def is_active(self, place: Place) -> bool:
        """Whether any row can be moved here, as far as the host knows; else nothing is asked."""
        return True

    def wants_graph(self, place: Place) -> bool:
        """Whether it needs the graph here; a term made of others may need it at some levels."""
        return self.needs_graph

    def branches(self, y: Tensor, null: Tensor, place: Place) -> tuple[Branch, ...]:
        """Evaluations that the term will certainly ask for, so that they run in one batch."""
        return ()

    @abstractmethod
    def forward(self, step: Step) -> Float[Tensor, "b c h w"]:
        """Displacement of the denoised image, in units of x_0."""
