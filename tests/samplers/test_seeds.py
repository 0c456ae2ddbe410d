"""Noise belongs to an image and not to a batch."""

import pytest
import torch
from torch.testing import assert_close

from robustguide.samplers import SeededNoise
from robustguide.samplers.seeds import mixed

SEEDS = [7, 0, 123456, 2]


def rows(noise, count):
    """A start and two steps."""
    x = torch.zeros(count, 3, 4, 4, dtype=torch.float64)
    return torch.stack([noise.draw((3, 4, 4)).double(), noise(x), noise(x)], dim=1)


def test_the_noise_of_an_image_does_not_depend_on_its_batch():
    together = rows(SeededNoise(SEEDS), 4)
    for row, seed in enumerate(SEEDS):
        assert torch.equal(rows(SeededNoise([seed]), 1)[0], together[row])
    assert torch.equal(rows(SeededNoise(SEEDS[::-1]), 4).flip(0), together)


def test_a_seed_is_that_of_torchs_generator():
    """So that starting noise can be made again without this package."""
    want = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(123456))
    assert torch.equal(SeededNoise([123456]).draw((3, 4, 4))[0], want)


def test_seeds_streams_and_steps_are_independent():
    draws = [*rows(SeededNoise(SEEDS), 4).flatten(0, 1)]
    draws += [*rows(SeededNoise(SEEDS, stream=1), 4).flatten(0, 1)]
    flat = torch.stack(draws).flatten(1)
    correlation = flat.corrcoef() - torch.eye(len(flat))
    assert correlation.abs().max() < 0.65  # 48 numbers a row: 4.5 standard errors
    assert len({mixed(seed, stream) for seed in range(100) for stream in range(1, 4)}) == 300


def test_noise_is_unit_normal():
    noise = SeededNoise(range(200)).draw((3, 8, 8))
    assert noise.dtype == torch.float32
    assert_close(noise.mean(), torch.tensor(0.0), rtol=0, atol=4.5 / noise.numel() ** 0.5)
    assert_close(noise.var(), torch.tensor(1.0), rtol=0, atol=4.5 * (2 / noise.numel()) ** 0.5)


def test_noise_is_like_the_state_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    x = torch.zeros(2, 5, dtype=torch.float64)
    noise = SeededNoise([1, 2])(x)
    assert (noise.shape, noise.dtype) == (x.shape, x.dtype)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="4 seeds cannot draw noise for 3 rows"):
        SeededNoise(SEEDS)(torch.zeros(3, 1))
