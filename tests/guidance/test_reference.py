"""Guidance away from another denoised image."""

import pytest
import torch
from oracles import ExactDenoiser, Mixture, noisy, plane, tilted
from recorded_edm2 import edm2_denoiser
from torch.testing import assert_close

from robustguide.denoisers import Unconditional
from robustguide.guidance import (
    Autoguidance,
    Channels,
    Choice,
    ClassifierFree,
    Guided,
    Null,
    Own,
    Reference,
    ReferenceLabels,
    Scaled,
)

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
    got = Guided(main, {"auto": Scaled(Autoguidance(bad), weight=3.0)})(x, sigma, y)
    assert (main.calls, bad.calls) == ([4], [4])
    assert_close(got, torch.lerp(bad(x, sigma, y), main(x, sigma, y), 3.0))


def test_a_network_equal_to_the_guided_one_has_no_effect():
    mixture = tilted()
    x, sigma, y = noisy(mixture, SIGMAS)
    for weight in (0.0, 5.0):
        term = Scaled(Autoguidance(ExactDenoiser(mixture)), weight=weight)
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


def test_an_unconditional_version_of_the_network_is_classifier_free_guidance():
    mixture = tilted()
    denoiser, same = ExactDenoiser(mixture), ExactDenoiser(mixture)
    x, sigma, y = noisy(mixture, SIGMAS)
    guide = Scaled(Autoguidance(Unconditional(same)), weight=2.5)
    free = Scaled(ClassifierFree(), scale=1.5)
    got, want = (Guided(denoiser, {"t": term})(x, sigma, y) for term in (guide, free))
    assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert (denoiser.calls, same.calls) == ([4, 8], [4])


def test_a_network_that_was_never_told_classes_guides_one_that_was():
    """EDM2's unconditional network; guided itself, it takes labels that only guidance reads."""
    _, tensors, main = edm2_denoiser("edm2_main")
    _, _, guide = edm2_denoiser("edm2_uncond")
    assert (main.num_classes, guide.num_classes) == (7, 0)
    x, sigma, y = tensors["in.x"][:2], tensors["in.sigma"][:2], torch.tensor([3, 5])
    with torch.no_grad():
        got = Guided(main, {"guide": Scaled(Autoguidance(guide), weight=1.9)})(x, sigma, y)
        want = torch.lerp(guide(x, sigma, y), main(x, sigma, y), 1.9)
        assert_close(got, want, rtol=1e-4, atol=1e-5)
        alone = Unconditional(guide, num_classes=7)
        got = Guided(alone, {"guide": Scaled(Autoguidance(guide), weight=1.9)})(x, sigma, y)
        assert_close(got, guide(x, sigma, y), rtol=1e-4, atol=1e-5)


class Next(ReferenceLabels):
    """The next class, for some rows, with weights."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, step):
        weight = torch.arange(len(step.y), dtype=step.x.dtype)
        rows = None if self.rows is None else torch.tensor(self.rows, dtype=torch.long)
        return Choice((step.y + 1) % 4, weight, rows)


@pytest.mark.parametrize(("rows", "calls"), [(None, [4]), ([1, 3], [2]), ([2], [1]), ([], [])])
def test_a_rule_chooses_labels_weights_and_rows(rows, calls):
    mixture = tilted()
    main, bad = ExactDenoiser(mixture), ExactDenoiser(worse(mixture))
    x, sigma, y = noisy(mixture, SIGMAS)
    got = Guided(main, {"auto": Autoguidance(bad, Next(rows))})(x, sigma, y)
    assert (main.calls, bad.calls) == ([4], calls)
    own, other = main(x, sigma, y), bad(x, sigma, (y + 1) % 4)
    weight = torch.zeros(4, dtype=x.dtype)
    weight[slice(None) if rows is None else rows] = torch.arange(4.0).to(x)[
        slice(None) if rows is None else rows
    ]
    assert_close(got, own + weight.reshape(-1, 1, 1, 1) * (own - other), rtol=1e-10, atol=1e-10)


def test_labels_that_go_with_the_reference_unless_others_are_given():
    guide = ExactDenoiser(plane())
    assert isinstance(Reference(guide).labels, Own) and isinstance(Reference().labels, Null)
    for reference, message in (
        (lambda: Reference(labels=Own()), "is no reference"),
        (Autoguidance, "worse version"),
    ):
        with pytest.raises(ValueError, match=message):
            reference()
