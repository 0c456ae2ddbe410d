"""A scaling fitted to kept logits: the smallest mean negative log-likelihood, over all of them.

    loss = 1 / (levels n) sum_levels sum_rows -log softmax(scaling(logits, sigma))_y

Full batches in float64, so that nothing depends on their order. Guo et al. (2017), section 4.2,
minimise this at one level.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from robustguide.classifiers import Scaling, Tempering
from robustguide.modules.kept import Kept
from robustguide.noise import finest

Method = Literal["lbfgs", "adam"]

CONVERGED = 1e-5  # largest derivative of the loss that counts as none, nats
LARGEST = 100.0  # temperatures lie in [1 / LARGEST, LARGEST], factors and shifts below it
FLAT = 1e-8  # change of the loss that counts as none, nats
STIFFNESS = 1000.0  # nats for a squared step beyond
RATE = 0.1  # Adam's first learning rate, which falls to 0


@dataclass(frozen=True)
class Fit:
    """How a fit ended.

    Attributes:
        loss_before: Mean negative log-likelihood of the scaling as it was built, nats.
        loss: Of the fitted one.
        iterations: Steps of the optimizer.
        evaluations: Passes over the logits.
        gradient: Largest derivative of the loss by a parameter at the end.
        converged: Whether that counts as none.
        endless: Numbers of the temperatures that the data do not bound: half or twice of each
            fits as well.
    """

    loss_before: float
    loss: float
    iterations: int
    evaluations: int
    gradient: float
    converged: bool
    endless: tuple[int, ...]


class Objective:
    """The loss of a scaling in float64, and its gradient.

    Args:
        scaling: Float64, on the device that computes.
        kept: Logits, on the host.
        levels: Their noise levels.
    """

    def __init__(self, scaling: Scaling, kept: Kept, levels: Sequence[float]) -> None:
        self.scaling, self.kept, self.levels = scaling, kept, levels
        self.parameters = [p for p in scaling.parameters() if p.requires_grad]
        # temperatures are fitted by their logarithms
        self.bound = math.log(LARGEST) if isinstance(scaling, Tempering) else LARGEST
        self.evaluations = 0

    def loss(self, backward: bool = False) -> Tensor:
        """Mean over all rows at all levels."""
        self.evaluations += 1
        device = self.parameters[0].device
        count = self.kept.logits[..., 0].numel()
        total = torch.zeros((), dtype=torch.float64, device=device)
        for logits, y, sigma in self.kept.chunks(self.levels):
            scaled = self.scaling(logits.to(device).double(), sigma.to(device).double())
            part = F.cross_entropy(scaled, y.to(device), reduction="sum") / count
            if backward:
                part.backward()  # type: ignore[no-untyped-call]  # torch's
            total += part.detach()
        return total

    def excess(self) -> Tensor:
        """Keeps endless parameters finite; exactly 0 within the bounds, so it shifts nothing."""
        beyond = [(p.abs() - self.bound).clamp_min(0).square().sum() for p in self.parameters]
        return STIFFNESS * torch.stack(beyond).sum()

    def closure(self) -> float:
        """Loss, with the gradient in the parameters."""
        for parameter in self.parameters:
            parameter.grad = None
        excess = self.excess()
        excess.backward()  # type: ignore[no-untyped-call]
        return float(self.loss(backward=True) + excess.detach())

    def gradient(self) -> float:
        """Largest absolute derivative at the parameters as they are."""
        self.closure()
        return max(float(p.grad.abs().max()) for p in self.parameters if p.grad is not None)


def fit(
    scaling: Scaling,
    kept: Kept,
    levels: Sequence[float],
    optimizer: Method = "lbfgs",
    max_iterations: int = 200,
) -> Fit:
    """Fits the parameters of a scaling, in place, on their device.

    Data that no finite scaling fits best, such as a level at which every row is right, end where
    the loss cannot fall any more, or at the bounds.

    Args:
        scaling: Begins as it is.
        kept: Logits.
        levels: Their noise levels.
        optimizer: "lbfgs" with strong Wolfe steps, or "adam" at a falling rate.
        max_iterations: Steps at most.

    Raises:
        ValueError: When there is nothing to fit, or the loss is no number.
    """
    device = next((p.device for p in scaling.parameters() if p.requires_grad), None)
    if device is None:
        raise ValueError(
            f"{type(scaling).__name__} has no parameter to fit; leave requires_grad of some on."
        )
    is_whole = finest(device) == torch.float64
    work = copy.deepcopy(scaling).to(device if is_whole else "cpu").double()
    objective = Objective(work, kept, levels)
    with torch.enable_grad(), torch.autocast(objective.parameters[0].device.type, enabled=False):
        before = float(objective.loss())
        step = descend if optimizer == "lbfgs" else wander
        iterations = step(objective, max_iterations)
        gradient = objective.gradient()
    evaluations = objective.evaluations
    with torch.no_grad():
        loss, endless = float(objective.loss()), unbounded(objective)
    if not math.isfinite(loss):
        raise ValueError(
            f"The likelihood of the scaled logits is {loss}; look at logits that are as large as "
            "floating-point numbers can be, or fit another scaling."
        )
    scaling.load_state_dict(work.state_dict())
    converged = gradient <= CONVERGED
    return Fit(before, loss, iterations, evaluations, gradient, converged, endless)


def descend(objective: Objective, max_iterations: int) -> int:
    """L-BFGS with steps that meet the strong Wolfe conditions; its number of iterations."""
    optimizer = torch.optim.LBFGS(
        objective.parameters,
        max_iter=max_iterations,
        max_eval=2 * max_iterations + 10,
        tolerance_grad=CONVERGED * 1e-4,
        tolerance_change=1e-15,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(objective.closure)  # type: ignore[no-untyped-call]  # torch's
    return int(optimizer.state[objective.parameters[0]]["n_iter"])


def wander(objective: Objective, max_iterations: int) -> int:
    """Adam at a rate that falls to 0; its number of iterations."""
    optimizer = torch.optim.Adam(objective.parameters, lr=RATE)
    for iteration in range(max_iterations):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - iteration / max_iterations)
        objective.closure()
        optimizer.step()
    return max_iterations


def unbounded(objective: Objective) -> tuple[int, ...]:
    """Numbers of the temperatures of which half or twice fits as well; of others none is known."""
    if not isinstance(objective.scaling, Tempering):
        return ()
    logs, loss = objective.scaling.logs, objective.loss()
    found = []
    for number in range(len(logs)):
        for step in (-math.log(2), math.log(2)):
            logs[number] += step
            is_flat = bool(objective.loss() < loss + FLAT)
            logs[number] -= step
            if is_flat:
                found.append(number)
                break
    return tuple(found)


def complaints(done: Fit, scaling: Scaling) -> list[str]:
    """What a fit could not do, for people."""
    found = []
    if not done.converged:
        found.append(
            f"The fit stopped after {done.iterations} iterations with a gradient of "
            f"{done.gradient:.1e} nats; raise model.max_iterations."
        )
    if done.endless:
        assert isinstance(scaling, Tempering)
        values = ", ".join(f"{scaling.logs[number].exp():.3g}" for number in done.endless)
        found.append(
            f"The held-out images do not bound temperatures {list(done.endless)} (counted from 0) "
            f"of {type(scaling).__name__}: half or twice of {values} fits as well. So it is where "
            "every image is classified rightly, or where logits say nothing. Hold more images "
            "out, take fewer bands or knots, or fit one temperature."
        )
    return found
