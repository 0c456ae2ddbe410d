"""Guidance away from another denoised image."""

import pytest
import torch
from oracles import ExactDenoiser, Mixture, noisy, plane, tilted
from torch.testing import assert_close

from robustguide.denoisers import Unconditional
from robustguide.guidance import Channels, ClassifierFree, Guided, Reference, Scaled

SIGMAS = [0.1, 0.7, 3.0, 20.0]


def worse(mixture):
    """The same classes, blurred."""
    blur = torch.eye(mixture.covariances.shape[-1])
    return Mixture(mixture.means, mixture.covariances + blur, mixture.priors)


def test_classifier_free_guidance_is_extrapolation_from_the_null_label():
    mixture = tilted()
    denoiser = ExactDenoiser(mixture)
    x, sigma, y = noisy(mixture, SIGMAS)
    conditional, null = denoiser(x, sigma, y), denoiser(x, sigma, denoiser.null(y))
    for w in (0.5, 2.0):
        got = Guided(denoiser, {"free": Scaled(ClassifierFree(), w)})(x, sigma, y)
        assert_close(got, (1 + w) * conditional - w * null)


def test_guidance_by_a_worse_network_is_extrapolation_from_it():
    mixture = tilted()
    main, bad = ExactDenoiser(mixture), ExactDenoiser(worse(mixture))
    x, sigma, y = noisy(mixture, SIGMAS)
    got = Guided(main, {"auto": Scaled(Reference(bad), weight=3.0)})(x, sigma, y)
    assert (main.calls, bad.calls) == ([4], [4])
    assert_close(got, torch.lerp(bad(x, sigma, y), main(x, sigma, y), 3.0))


def test_a_network_equal_to_the_guided_one_has_no_effect():
    mixture = tilted()
    x, sigma, y = noisy(mixture, SIGMAS)
    for weight in (0.0, 5.0):
        term = Scaled(Reference(ExactDenoiser(mixture)), weight=weight)
        guided = Guided(ExactDenoiser(mixture), {"auto": term})
        assert_close(guided(x, sigma, y), ExactDenoiser(mixture)(x, sigma, y))


def test_each_network_is_called_once_for_all_who_want_it():
    mixture = tilted()
    main, bad = ExactDenoiser(mixture), ExactDenoiser(worse(mixture))
    x, sigma, y = noisy(mixture, SIGMAS)
    terms = {"free": ClassifierFree(), "auto": Reference(bad), "again": Reference(bad)}
    Guided(main, terms)(x, sigma, y)
    assert (main.calls, bad.calls) == ([8], [4])
    main.calls.clear()
    Guided(main, {"self": Reference(main)})(x, sigma, y)
    assert main.calls == [4]  # the guided network with the guided labels is known already


def test_only_the_first_channels_are_moved_where_so_asked():
    mixture = tilted(shape=(4, 1, 2))
    x, sigma, y = noisy(mixture, SIGMAS)
    denoiser = ExactDenoiser(mixture)
    plain, whole = denoiser(x, sigma, y), Guided(denoiser, {"f": ClassifierFree()})(x, sigma, y)
    part = Guided(denoiser, {"f": Channels(ClassifierFree(), 3)})(x, sigma, y)
    assert_close(part[:, 3:], plain[:, 3:], rtol=1e-13, atol=1e-13)
    assert_close(part[:, :3], whole[:, :3], rtol=1e-13, atol=1e-13)
    assert (whole[:, 3:] - plain[:, 3:]).abs().max() > 0.1


def test_a_reference_of_its_own_needs_no_null_label():
    mixture = tilted()
    main = ExactDenoiser(mixture, has_null=False)
    Guided(main, {"auto": Reference(ExactDenoiser(worse(mixture), has_null=False))})
    with pytest.raises(ValueError, match="null label"):
        Guided(main, {"free": Reference()})


def test_an_unconditional_denoiser_has_no_null_label_to_guide_away_from():
    denoiser = Unconditional(ExactDenoiser(plane()))
    with pytest.raises(ValueError, match="null label"):
        Guided(denoiser, {"free": ClassifierFree()})
