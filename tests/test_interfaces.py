"""What every denoiser and classifier shares."""

import torch
from oracles import ExactDenoiser, noisy, plane
from torch import nn

from robustguide.interfaces import Place, parameter_dtype, to_pixels


def test_pixels_are_rounded_and_clamped():
    images = torch.tensor([-2.0, -1.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 0.999, 1.0, 3.0])
    pixels = to_pixels(images.reshape(1, 1, 1, -1))
    assert pixels.dtype == torch.uint8
    assert pixels.flatten().tolist() == [0, 0, 0, 1, 255, 255, 255]


def test_every_byte_survives_the_way_to_the_unit_range_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_pixels(pixels.float() / 127.5 - 1), pixels)


def test_the_null_label_is_the_number_of_classes():
    denoiser = ExactDenoiser(plane())
    assert denoiser.null(torch.tensor([0, 2])).tolist() == [3, 3]


def test_a_denoiser_called_gives_its_prediction():
    denoiser = ExactDenoiser(plane())
    x, sigma, y = noisy(plane(), [0.5, 2.0])
    assert torch.equal(denoiser(x, sigma, y), denoiser.predict(x, sigma, y).denoised)
    assert denoiser.snap(0.123) == 0.123


def test_the_default_weight_of_the_loss_is_that_of_the_noise():
    """`|eps_hat - eps|**2` is `|denoised - x_0|**2 / sigma**2`."""
    weight = ExactDenoiser(plane()).loss_weight(torch.tensor([0.5, 4.0]))
    assert weight.tolist() == [4.0, 0.0625]


def test_a_place_outside_of_a_sampler_knows_no_level():
    assert Place().sigma is None
    assert not Place().corrector


def test_a_network_is_fed_in_the_type_of_its_parameters():
    x = torch.zeros(1, dtype=torch.float64)
    assert parameter_dtype(nn.Linear(1, 1).bfloat16(), x) == torch.bfloat16
    assert parameter_dtype(nn.Identity(), x) == torch.float64
