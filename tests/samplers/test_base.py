"""What all samplers share."""

import math

import pytest
import torch
from oracles import ExactDenoiser, plane
from torch import nn
from torch.testing import assert_close

from robustguide.denoisers import EpsDenoiser
from robustguide.noise import ChainGrid, RhoGrid, cosine_levels, linear_levels
from robustguide.samplers import Heun

GRIDS = [(RhoGrid(18), lambda s: s), (ChainGrid(cosine_levels(50)), lambda s: math.hypot(1, s))]


@pytest.mark.parametrize(("grid", "scale"), GRIDS, ids=["rho", "chain"])
@pytest.mark.parametrize("state_dtype", ["float32", "float64"])
def test_a_run_starts_at_the_level_that_the_denoiser_knows(grid, scale, state_dtype):
    table = linear_levels()
    chained = EpsDenoiser(nn.Identity(), table, 3, (1, 1, 2))
    sampler = Heun(grid, state_dtype=state_dtype)
    noise = torch.tensor([[1.0, -2.0]]).reshape(1, 1, 1, 2)
    for denoiser, sigma in (
        (chained, table.snap(grid.sigmas()[0])),
        (ExactDenoiser(plane()), grid.sigmas()[0]),
    ):
        assert sampler.levels(denoiser)[0] == sigma
        want = scale(sigma) * noise.to(getattr(torch, state_dtype))
        assert_close(sampler.start(noise, denoiser), want)
    assert sampler.levels(chained)[0] != grid.sigmas()[0]


def test_levels_are_those_of_the_denoiser_each_once():
    table = linear_levels()
    denoiser = EpsDenoiser(nn.Identity(), table, 3, (1, 1, 2))
    levels = Heun(RhoGrid(64)).levels(denoiser)
    assert set(levels) == {table.snap(sigma) for sigma in RhoGrid(64).sigmas()}
    assert list(levels) == sorted(set(levels), reverse=True)
    assert levels[-1] == 0.0
    assert len(levels) < 65
