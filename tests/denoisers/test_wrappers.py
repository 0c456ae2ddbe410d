"""Denoisers made of other denoisers."""

import pytest
import torch
from oracles import ExactDenoiser, noisy, plane
from torch import nn

from robustguide.denoisers import EDMDenoiser, EpsDenoiser, Unconditional
from robustguide.noise import linear_levels


def test_every_label_is_given_as_null():
    denoiser = ExactDenoiser(plane())
    x, sigma, y = noisy(plane(), [0.5, 1.0, 4.0])
    wrapped = Unconditional(denoiser)
    assert torch.equal(wrapped(x, sigma, y), denoiser(x, sigma, denoiser.null(y)))
    assert (wrapped.num_classes, wrapped.shape, wrapped.has_null) == (3, (1, 1, 2), False)


def test_levels_weights_and_learned_variances_are_those_of_the_wrapped():
    levels = linear_levels()
    eps = EpsDenoiser(nn.Identity(), levels, 3, (1, 1, 2), learns_variance=True)
    assert Unconditional(eps).learns_variance
    assert Unconditional(eps).snap(1.0) == levels.snap(1.0) != 1.0
    edm = EDMDenoiser(nn.Identity(), 3, (1, 1, 2))
    sigma = torch.tensor([0.5, 2.0])
    assert torch.equal(Unconditional(edm).loss_weight(sigma), edm.loss_weight(sigma))


def test_a_network_that_always_knew_the_class_is_refused():
    with pytest.raises(ValueError, match="null label"):
        Unconditional(ExactDenoiser(plane(), has_null=False))


class Blind(nn.Module):
    """Knows no classes, and takes no labels."""

    def forward(self, inputs, noise):
        return 0.5 * inputs


@pytest.mark.parametrize("has_null", [True, False])
def test_a_network_without_classes_takes_its_labels_from_elsewhere(has_null):
    denoiser = EDMDenoiser(Blind(), 0, (1, 1, 2), has_null=has_null)
    wrapped = Unconditional(denoiser, num_classes=3)
    x, sigma, y = noisy(plane(), [0.5, 1.0, 4.0])
    assert torch.equal(wrapped(x, sigma, y), denoiser(x, sigma, y))
    assert (wrapped.num_classes, wrapped.has_null) == (3, False)
    assert Unconditional(denoiser).num_classes == 0


def test_labels_may_name_other_classes_than_the_networks():
    denoiser = ExactDenoiser(plane())
    x, sigma, y = noisy(plane(), [0.5, 1.0, 4.0])
    wrapped = Unconditional(denoiser, num_classes=7)
    assert wrapped.num_classes == 7
    assert torch.equal(wrapped(x, sigma, y + 4), denoiser(x, sigma, denoiser.null(y)))


def test_fewer_classes_than_one_are_refused():
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        Unconditional(ExactDenoiser(plane()), num_classes=0)
