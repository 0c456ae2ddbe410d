"""Single recorded steps of the discrete chain, with the network's output and a gradient given."""

from dataclasses import dataclass

import torch
from golden_files import load

from robustguide.noise import ChainGrid, cosine_levels, linear_levels

CASES = range(7)


@dataclass(frozen=True)
class RecordedStep:
    """One row of a case, in our units and float64.

    Attributes:
        results: What the reference made of it, by name, in the units of the chain.
        displacement: Of the denoised image, by the given gradient at x_t.
        earlier: The levels of the chain below sigma, ascending.
    """

    settings: dict
    results: dict
    x: torch.Tensor
    denoised: torch.Tensor
    fraction: torch.Tensor | None
    displacement: torch.Tensor
    noise: torch.Tensor
    sigma: float
    sigma_next: float
    levels: tuple

    def in_chain(self, x):
        """A state at the next level in the units of the chain, as the results are."""
        return (x / (1 + self.sigma_next**2) ** 0.5)[0]


def recorded_steps(case):
    """The rows of a case: t = 0, 1, the middle and the end."""
    description, tensors = load("gd_diffusion_steps")
    settings, prefix = description["cases"][case], f"c{case}."
    tensors = {
        name.removeprefix(prefix): value.double()
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    schedule = {"linear": linear_levels, "cosine": cosine_levels}[settings["schedule"]]()
    levels = ChainGrid(schedule, settings["respacing"] or None).sigmas()[::-1]  # 0 first
    return [_row(settings, tensors, levels, row) for row in range(4)]


def _row(settings, tensors, levels, row):
    t = int(tensors["in.t"][row])
    sigma, one = levels[t + 1], slice(row, row + 1)
    x = tensors["out.q_sample"][one] * (1 + sigma**2) ** 0.5
    answer = tensors["in.model_output"][one]
    return RecordedStep(
        settings=settings,
        results={k.removeprefix("out."): v[row] for k, v in tensors.items() if "out." in k},
        x=x,
        denoised=answer[:, :3] if settings["predict"] == "x_start" else x - sigma * answer[:, :3],
        fraction=(answer[:, 3:] + 1) / 2 if answer.shape[1] == 6 else None,
        displacement=sigma**2 / (1 + sigma**2) ** 0.5 * tensors["in.gradient"][one],
        noise=tensors["in.step_noise"][one],
        sigma=sigma,
        sigma_next=levels[t],
        levels=levels,
    )
