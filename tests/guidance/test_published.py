"""The conventions of publications, against their formulas."""

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from oracles import ExactDenoiser, Mixture, noisy, tilted
from torch.testing import assert_close

from robustguide.denoisers import Unconditional
from robustguide.guidance import (
    Guidance,
    Guided,
    Scaled,
    dit_classifier_free,
    edm2_guidance,
    ho_salimans,
)

SIGMAS = [0.1, 0.7, 3.0, 20.0]


def parts(shape=(4, 1, 2)):
    """A denoiser, its input, and what it answers with and without the label."""
    mixture = tilted(shape=shape)
    denoiser = ExactDenoiser(mixture)
    x, sigma, y = noisy(mixture, SIGMAS)
    known, null = denoiser(x, sigma, y), denoiser(x, sigma, denoiser.null(y))
    denoiser.calls.clear()
    return denoiser, (x, sigma, y), known, null


@pytest.mark.parametrize("w", [0.3, 4.0])
def test_ho_and_salimans_combine_predictions_of_the_noise(w):
    denoiser, (x, sigma, y), known, null = parts()
    level = sigma.reshape(-1, 1, 1, 1)
    eps_hat = (1 + w) * (x - known) / level - w * (x - null) / level
    got = Guided(denoiser, {"free": ho_salimans(w)})(x, sigma, y)
    assert_close(got, x - level * eps_hat, rtol=1e-10, atol=1e-10)
    assert denoiser.calls == [8]  # both branches in one batch


@pytest.mark.parametrize("channels", [3, 1, 4])
def test_dit_leaves_the_last_channel_alone(channels):
    denoiser, (x, sigma, y), known, null = parts()
    got = Guided(denoiser, {"free": dit_classifier_free(2.5, channels)})(x, sigma, y)
    want = known.clone()
    want[:, :channels] = (null + 2.5 * (known - null))[:, :channels]
    assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert denoiser.calls == [8]
    default = Guided(denoiser, {"free": dit_classifier_free(2.5)})(x, sigma, y)
    assert torch.equal(default, got) == (channels == 3)


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.1])
def test_edm2_interpolates_from_the_other_network(weight):
    denoiser, (x, sigma, y), known, _ = parts()
    mixture = denoiser.mixture
    blurred = Mixture(mixture.means, mixture.covariances + torch.eye(8), mixture.priors)
    guide = ExactDenoiser(blurred, has_null=False)
    got = Guided(denoiser, {"guide": edm2_guidance(weight, guide)})(x, sigma, y)
    assert (denoiser.calls, guide.calls) == ([4], [4])
    want = torch.lerp(guide(x, sigma, y), known, weight)
    assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_all_three_are_classifier_free_guidance():
    denoiser, (x, sigma, y), _, _ = parts()
    terms = ho_salimans(0.7), dit_classifier_free(1.7, 4)
    terms = *terms, edm2_guidance(1.7, Unconditional(denoiser))
    first, *others = (Guided(denoiser, {"free": term})(x, sigma, y) for term in terms)
    for other in others:
        assert_close(other, first, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["ho_salimans", "dit_classifier_free", "edm2_guidance"])
def test_what_is_no_guidance_costs_one_evaluation(name):
    denoiser, inputs, known, _ = parts()
    guide = ExactDenoiser(denoiser.mixture)
    off = {
        "ho_salimans": lambda: ho_salimans(0.0),
        "dit_classifier_free": lambda: dit_classifier_free(1.0),
        "edm2_guidance": lambda: edm2_guidance(1.0, guide),
    }
    got = Guided(denoiser, {"free": off[name]()})(*inputs)
    assert torch.equal(got, known)
    assert (denoiser.calls, guide.calls) == ([4], [])


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (ho_salimans, (-0.1,)),
        (dit_classifier_free, (-1.0,)),
        (dit_classifier_free, (2.0, 0)),
        (edm2_guidance, (float("nan"), ExactDenoiser(tilted()))),
    ],
)
def test_numbers_that_make_no_sense(function, arguments):
    with pytest.raises(ValueError, match="at least"):
        function(*arguments)


def test_a_configuration_names_them():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--guidance", type=dict[str, Guidance])
    paths = {"theirs": ("ho_salimans", {"w": 1.5}), "dit": ("dit_classifier_free", {"weight": 4})}
    described = {
        name: {"class_path": f"robustguide.guidance.{path}", "init_args": arguments}
        for name, (path, arguments) in paths.items()
    }
    config = parser.parse_string(yaml.safe_dump({"guidance": described}))
    terms = parser.instantiate(config).guidance
    assert all(isinstance(term, Scaled) for term in terms.values())
    assert (terms["theirs"].scales, terms["dit"].scales) == ((1.5,), (3.0,))
    assert terms["dit"].term.count == 3
