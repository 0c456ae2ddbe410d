"""What the denoised image is trained towards.

Plain training compares D(x, y) with the clean image, so that it learns E_y = E[x_0 | x, y]. Model
guidance (Tang et al. 2025) moves that image by a multiple of the gap between the labels:

    goal = x_0 + scale * sg(D~(x, y) - D~(x, null))        sg: no gradient, D~: average of D

which is their eq. 18, eps' = eps + w sg(eps~(y) - eps~(null)), read through x_0 = x - sigma * eps.
Rows whose label was dropped learn E_null as before.

A scale of 0 is plain training. The papers' tables count from 1 (a vanilla model has w = 1.00), and
so does a copy of the authors' program, which multiplies the gap by s - 1: scale is the published
number minus 1.

The gap feeds back on itself. What D settles at solves D_y = E_y + scale (D_y - E_null), that is

    D_y - E_null = (E_y - E_null) / (1 - scale)        for a scale below 1

the same as classifier-free guidance of scale / (1 - scale): 0.5 doubles the gap and acts like a
classifier-free scale of 1 (weight 2); s / (1 + s) acts like s. From 1 on nothing is settled at,
and the gap grows as long as training lasts. This is derived here; the paper does not say it.
"""

import copy
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from robustguide.denoisers import ScaleInput
from robustguide.interfaces import Denoiser
from robustguide.noise import expand


class Goal(NamedTuple):
    """What a batch is trained towards.

    Attributes:
        image: In units of x_0, without gradient.
        watched: Numbers to log, as `train/<name>`.
    """

    image: Float[Tensor, "b c h w"]
    watched: Mapping[str, Tensor] = MappingProxyType({})


class Target(nn.Module):
    """Makes what the denoised image is trained towards.

    Attributes:
        needs_null: Whether it asks for the null label, which label dropout must then train.
    """

    needs_null: bool = False

    def attach(self, denoiser: Denoiser) -> None:
        """Looks at what will be trained, once and before training.

        Raises:
            ValueError: For a denoiser that the target is not for.
        """

    def announce(self) -> None:
        """Says at the start of training what to expect."""

    def told(self, denoiser: Denoiser, u: Float[Tensor, " b"]) -> AbstractContextManager[None]:
        """Within it the trained denoiser knows what else its rows are told; u as in `forward`."""
        return nullcontext()

    @abstractmethod
    def forward(
        self,
        denoiser: Denoiser,
        x_0: Float[Tensor, "b c h w"],
        x: Float[Tensor, "b c h w"],
        sigma: Float[Tensor, " b"],
        y: Int[Tensor, " b"],
        u: Float[Tensor, " b"],
    ) -> Goal:
        """Goal of clean images x_0 with noisy ones x and labels y, dropped ones null already.

        u in [0, 1) is uniform, for what a row is told at random; no other random number is drawn.
        """

    def update(self, denoiser: Denoiser) -> None:
        """Follows the denoiser, after every step of the optimizer."""


class CleanImage(Target):
    """The clean image itself."""

    def forward(
        self, denoiser: Denoiser, x_0: Tensor, x: Tensor, sigma: Tensor, y: Tensor, u: Tensor
    ) -> Goal:
        """The clean image."""
        return Goal(x_0)


class ModelGuidance(Target):
    """The clean image moved by the model's own gap between label and null label.

    Tang et al. (2025), eq. 18, and Algorithm 1 where there is no average. The trained network
    needs no guidance when it samples: one evaluation a step. A training step costs the evaluation
    of twice its rows more, without gradient.

    The number `train/gap` tells how many times the plain gap E_y - E_null the gap is: 1 for a
    plainly trained model, 1 / (1 - scale) where it settles. It is ours, `multiple`: exact in
    expectation where both gaps have one direction, and noise before the labels are learned.

    Args:
        scale: Multiple of the gap, 0 or more; the published number minus 1. See the module for
            where it settles.
        decay: Share of the average D~ that stays at every optimizer step, in [0, 1). Null has no
            average: the trained network answers itself, in evaluation mode, because dropout would
            only make the gap of two passes noisy.

    Raises:
        ValueError: For a scale or decay out of range.
    """

    needs_null = True

    def __init__(self, scale: float, decay: float | None = 0.9999) -> None:
        super().__init__()
        if not 0 <= scale < math.inf:
            raise ValueError(
                f"The scale of model guidance is a number of at least 0, got {scale}; 0 is plain "
                "training, and published numbers in which 1 is plain are scale + 1."
            )
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(
                f"decay must lie in [0, 1), got {decay}; 0.9999 is usual, and null takes the "
                "trained network in place of its average."
            )
        self.scale = scale
        self.decay = decay
        self.average: Denoiser | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "ModelGuidance":
        """Itself: a moving average of the training module shares it, and averages no average."""
        return self

    def attach(self, denoiser: Denoiser) -> None:
        """Begins the average at the denoiser's weights."""
        if not (denoiser.has_null and denoiser.num_classes):
            raise ValueError(
                "Model guidance compares every label with the null label, which the denoiser "
                "lacks; give its network labels and a null one (num_null_labels: 1)."
            )
        if self.decay is not None:
            self.average = copy.deepcopy(denoiser).requires_grad_(False)

    def announce(self) -> None:
        """Where the scale leads, a warning where that is nowhere."""
        if self.scale >= 1:
            rank_zero_warn(
                f"Model guidance with scale {self.scale:g} settles nowhere: the gap between label "
                "and null label feeds back on itself, settles at 1 / (1 - scale) times the plain "
                "one for a scale below 1, and from 1 on grows as long as training lasts. Take "
                "s / (1 + s) to settle at classifier-free guidance of scale s (0.5 for 1, 0.75 "
                "for 3), or ScaleAwareModelGuidance, which does not feed back; or stop early, by "
                "train/gap.",
                category=UserWarning,
            )
        elif self.scale:
            settles = self.scale / (1 - self.scale)
            rank_zero_info(
                f"Model guidance with scale {self.scale:g} settles at {1 / (1 - self.scale):g} "
                f"times the plain gap, like classifier-free guidance of scale {settles:g}."
            )

    def scales(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Multiple of the gap for each row."""
        return torch.full_like(u, self.scale)

    def plainly(self, network: Denoiser, x: Tensor) -> AbstractContextManager[None]:
        """Within it a network that is told scales is told that of plain training."""
        return nullcontext()

    def forward(
        self, denoiser: Denoiser, x_0: Tensor, x: Tensor, sigma: Tensor, y: Tensor, u: Tensor
    ) -> Goal:
        """The moved image; at scale 0 the clean one, without an evaluation."""
        if self.scale == 0:
            return Goal(x_0)
        network = denoiser if self.average is None else self.average
        gap, unlabelled = self.gap(network, x, sigma, y)
        image = x_0 + expand(self.scales(u).to(x_0), x_0) * gap
        return Goal(image, {"gap": multiple(gap, x_0 - unlabelled, denoiser.loss_weight(sigma))})

    @torch.no_grad()
    def gap(
        self, network: Denoiser, x: Tensor, sigma: Tensor, y: Tensor
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """D~(y) - D~(null), 0 where y is the null label, and D~(null); one call of 2b rows."""
        null = network.null(y)
        with evaluating(network), self.plainly(network, x):
            both = network(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([y, null]))
        labelled, unlabelled = both.chunk(2)
        gap = torch.where(expand(y != null, x), labelled - unlabelled, 0)
        return gap, unlabelled

    @torch.no_grad()
    def update(self, denoiser: Denoiser) -> None:
        """Moves the average; buffers are copied, since an average of counters is nonsense."""
        if self.average is None or self.decay is None:
            return
        move: Any = get_ema_multi_avg_fn  # not annotated by torch
        move(self.decay)(list(self.average.parameters()), list(denoiser.parameters()), None)
        for mine, theirs in zip(self.average.buffers(), denoiser.buffers(), strict=True):
            mine.copy_(theirs)


class ScaleAwareModelGuidance(ModelGuidance):
    """Model guidance of a network that is told the scale, which it can then sample at.

    Tang et al. (2025), eqs. 21 and 22: eps' = eps + w sg(eps(y, 1) - eps(null, 0)). Their paper
    does not say what 1 and 0 are; in a copy of their program (Peterande/Diffusion-wo-CFG,
    train.py) they are published numbers, so that 1 is the plain conditional model, which is our
    scale 0, and the gap is multiplied by s - 1. The gap is thus that of the plain model: nothing
    feeds back, and every scale settles at classifier-free guidance of that scale (derived here).
    `train/gap` stays near 1.

    Ours: null rows are told their scale like all others, and ignore it, so that classifier-free
    guidance can be added to any scale; theirs are told 0.

    Args:
        scales: Lowest and highest scale, 0 or more; uniform between.
        plain: Share of the rows that are told scale 0, which the gap is read at, in (0, 1). Ours;
            theirs is 7 of 9 labelled rows.
        decay: As in `ModelGuidance`.

    Raises:
        ValueError: For scales that are no range, or another number out of its range.
    """

    def __init__(
        self,
        scales: tuple[float, float] = (0.0, 1.0),
        plain: float = 0.5,
        decay: float | None = 0.9999,
    ) -> None:
        low, high = scales
        if not 0 <= low <= high < math.inf or high == 0:
            raise ValueError(
                f"scales must be a lowest and a highest scale, 0 <= low <= high and high > 0, got "
                f"{list(scales)}; published numbers in which 1 is plain are scale + 1."
            )
        if not 0 < plain < 1:
            raise ValueError(
                f"plain is the share of rows that are told scale 0, in (0, 1), got {plain}; "
                "without them the gap would be read where nothing was learned."
            )
        super().__init__(high, decay)
        self.low, self.plain = low, plain

    def attach(self, denoiser: Denoiser) -> None:
        """Begins the average at the weights of a denoiser that is told scales."""
        if not isinstance(denoiser, ScaleInput):
            raise ValueError(
                f"ScaleAwareModelGuidance trains a denoiser that is told the scale, got "
                f"{type(denoiser).__name__}; wrap it in robustguide.denoisers.ScaleInput, or "
                "train it with ModelGuidance."
            )
        super().attach(denoiser)

    def announce(self) -> None:
        """Nothing: every scale is settled at."""

    def scales(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """0 for the lowest u, then uniform between the ends."""
        within = (u - self.plain) / (1 - self.plain)
        return torch.where(u < self.plain, 0, self.low + (self.scale - self.low) * within)

    def told(self, denoiser: Denoiser, u: Float[Tensor, " b"]) -> AbstractContextManager[None]:
        """The scales of the rows."""
        assert isinstance(denoiser, ScaleInput)
        return denoiser.at(self.scales(u))

    def plainly(self, network: Denoiser, x: Tensor) -> AbstractContextManager[None]:
        """Scale 0."""
        assert isinstance(network, ScaleInput)
        return network.at(x.new_zeros(1))


def multiple(
    gap: Float[Tensor, "b c h w"], rest: Float[Tensor, "b c h w"], weight: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """How many times the plain gap a gap is, from what the null label leaves of x_0.

    The mean of `rest = x_0 - D(null)` at a given x and y is E_y - D(null), the plain gap once the
    null label is learned. So `<rest, gap>` is the plain gap along the gap, and |gap|^2 over it
    the multiple; sums over a batch, each row with its weight in the loss. 0 where there is no gap.
    """
    weighted = expand(weight.to(gap), gap) * gap
    square, along = (weighted * gap).sum(), (weighted * rest).sum()
    return torch.where(square > 0, square / along, square)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while.

    Only for a while, for an average as well: Lightning warns of modules that are found in it.
    """
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
