"""Gradients of exact classifiers and denoisers, spectra that are known, and intervals."""

import math

import pytest
import tiny
import torch
from oracles import ExactClassifier, ExactDenoiser, tilted
from torch import nn

from robustguide.checkpoints import build
from robustguide.denoisers import Unconditional
from robustguide.guidance import (
    AtDenoised,
    AtState,
    ClassifierFree,
    ClassifierGuidance,
    ThroughDenoiser,
)
from robustguide.interfaces import Classifier
from robustguide.modules.examination import Examination
from robustguide.plans import atlas
from robustguide.plans.atlas import Measurement
from robustguide.plans.columns import CLASSIFIER_FREE, Column
from robustguide.samplers import evaluation_noise

LEVELS = (0.2, 1.0, 4.0)
CPU = torch.device("cpu")


def exact(mixture):
    """The exact classifier and the classifier-free direction of the exact denoiser."""
    term, free = ClassifierGuidance(ExactClassifier(mixture)), ClassifierFree()
    denoiser = ExactDenoiser(mixture)
    return [Column("exact", (term,) * 3), Column(CLASSIFIER_FREE, (free,) * 3, denoiser)]


def data(mixture, count=12):
    x_0, y = mixture.sample(count, torch.Generator().manual_seed(5))
    return x_0, y, torch.arange(count)


def states(x_0, index, level, seed=0):
    noise = evaluation_noise(index, seed).draw(x_0.shape[1:])
    return x_0 + level * noise


def test_of_an_exact_denoiser_the_classifier_free_direction_is_the_exact_gradient():
    mixture = tilted()
    x_0, y, index = data(mixture)
    found = atlas.measured(exact(mixture), [(x_0, y, index)], Measurement(LEVELS), CPU)
    torch.testing.assert_close(
        found["exact"]["cosine"], torch.ones(3, 12).double(), rtol=0, atol=1e-6
    )
    null = torch.full_like(y, len(mixture))
    for place, level in enumerate(LEVELS):
        x, sigma = states(x_0, index, level), torch.full((12,), level).double()
        gradient = mixture.score(x, sigma, y) - mixture.score(x, sigma, null)
        norm = level * gradient.flatten(1).norm(dim=1)
        for name in found:
            torch.testing.assert_close(found[name]["norm"][place], norm)
    assert found[CLASSIFIER_FREE]["cosine"].isnan().all()


def test_neighbours_are_gradients_at_the_next_level_with_the_same_noise():
    mixture = tilted()
    x_0, y, index = data(mixture)
    found = atlas.measured(exact(mixture), [(x_0, y, index)], Measurement(LEVELS, seed=3), CPU)
    null = torch.full_like(y, len(mixture))
    gradients = []
    for level in LEVELS:
        x, sigma = states(x_0, index, level, seed=3), torch.full((12,), level).double()
        gradients.append((mixture.score(x, sigma, y) - mixture.score(x, sigma, null)).flatten(1))
    for place in range(2):
        want = torch.cosine_similarity(gradients[place], gradients[place + 1])
        torch.testing.assert_close(found["exact"]["neighbour"][place], want)
    assert found["exact"]["neighbour"][2].isnan().all()


def test_batches_and_a_wrong_denoiser_change_what_they_should():
    """An image has its own noise, whatever its neighbours; another mixture points elsewhere."""
    mixture, other = tilted(), tilted(seed=1)
    x_0, y, index = data(mixture)
    columns = exact(mixture)[:1] + exact(other)[1:]
    told = []
    whole = atlas.measured(columns, [(x_0, y, index)], Measurement(LEVELS), CPU, told.append)
    parts = [(x_0[rows], y[rows], index[rows]) for rows in (slice(0, 5), slice(5, 12))]
    split = atlas.measured(columns, parts, Measurement(LEVELS), CPU, told.append)
    for name in whole:
        for key in atlas.QUANTITIES:
            torch.testing.assert_close(whole[name][key], split[name][key], equal_nan=True)
    assert told == [12, 5, 7]
    assert whole["exact"]["cosine"].nanmean() < 0.9


def test_columns_of_one_denoiser_share_its_answers():
    mixture = tilted()
    denoiser = ExactDenoiser(mixture)
    unlabelled = Unconditional(denoiser)
    free = Column(CLASSIFIER_FREE, (ClassifierFree(),) * 3, denoiser)
    seeing = [
        Column(name, (ClassifierGuidance(ExactClassifier(mixture), view=AtDenoised()),) * 3)
        for name in "ab"
    ]
    seeing = [Column(each.name, each.terms, unlabelled, (1.0,) * 3) for each in seeing]
    x_0, y, _ = data(mixture, 4)
    atlas.gradients([*seeing, free], 0, 0.5, x_0, y)
    assert denoiser.calls == [4, 8]  # without a label once, then both labels in one call


@pytest.mark.parametrize("clip", [None, 0.4])
def test_every_view_is_measured_as_the_report_card_does(clip):
    torch.manual_seed(0)
    classifier, denoiser = build(tiny.classifier()).eval(), build(tiny.denoiser()).eval()
    for parameter in (*classifier.parameters(), *denoiser.parameters()):
        nn.init.normal_(parameter, std=0.2)  # their last layers are 0 at first
    views = {"x": AtState(), "denoised": AtDenoised(), "through": ThroughDenoiser()}
    unlabelled = Unconditional(denoiser)
    columns = [
        Column(name, (ClassifierGuidance(classifier, view=view),) * 3, unlabelled, (clip,) * 3)
        for name, view in views.items()
    ]
    columns.append(Column(CLASSIFIER_FREE, (ClassifierFree(),) * 3, denoiser))
    batch = tiny.batch()
    found = atlas.measured(columns, [batch], Measurement(LEVELS), CPU)
    card = Examination(LEVELS, views, gradients=True, denoiser=denoiser, clip=clip)
    want = card.examine(classifier, *batch)
    for name in views:
        for place, level in enumerate(LEVELS):
            norm = want[name]["gradient_norm"][0, place] * level / math.sqrt(1 + level**2)
            torch.testing.assert_close(found[name]["norm"][place].float(), norm)
            cosine = want[name]["cosine"][0, place]
            assert cosine.isfinite().all() and cosine.any()
            torch.testing.assert_close(found[name]["cosine"][place].float(), cosine)


def low(cutoff=0.5, size=8):
    return atlas.radial_frequencies(size, size) < cutoff


@pytest.mark.parametrize(("cycles", "share"), [((1, 0), 1), ((1, 1), 1), ((2, 0), 0), ((3, 2), 0)])
def test_a_sinusoid_is_low_or_it_is_not(cycles, share):
    """Half of Nyquist's frequency is 2 cycles on 8 pixels; a wave at the cutoff is not below."""
    at = torch.arange(8, dtype=torch.float64) / 8
    wave = torch.cos(2 * math.pi * (cycles[0] * at[:, None] + cycles[1] * at[None, :]) + 0.3)
    found = atlas.low_share(wave[None, None] * torch.tensor([1.0, -3.0])[:, None, None], low())
    torch.testing.assert_close(found, torch.tensor([float(share)]).double(), rtol=0, atol=1e-12)


def test_two_waves_share_by_their_energies():
    at = torch.arange(8, dtype=torch.float64) / 8
    slow, fast = torch.sin(2 * math.pi * at), torch.sin(6 * math.pi * at)
    wave = (3 * slow + 4 * fast).expand(1, 1, 8, 8)
    torch.testing.assert_close(atlas.low_share(wave, low()), torch.tensor([9 / 25]).double())
    torch.testing.assert_close(atlas.low_share(1e-30 * wave.float(), low()), torch.tensor([0.36]))
    assert atlas.low_share(torch.zeros(1, 1, 8, 8), low()).isnan().all()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 12)])
def test_white_noise_has_the_share_of_the_frequencies(height, width):
    """Exactly for one pixel; of Gaussian noise as the mean of a Beta of m/2 and (d - m)/2."""
    mask = atlas.radial_frequencies(height, width) < 0.5
    d, m = height * width, int(mask.sum())
    pixels = torch.eye(d, dtype=torch.float64).reshape(d, 1, height, width)
    torch.testing.assert_close(
        atlas.low_share(pixels, mask),
        torch.full((d,), m / d, dtype=torch.float64),
        rtol=0,
        atol=1e-12,
    )
    generator = torch.Generator().manual_seed(0)
    n = 4000
    noise = torch.randn(n, 1, height, width, generator=generator, dtype=torch.float64)
    error = math.sqrt(2 * m * (d - m) / (d**2 * (d + 2)) / n)
    assert abs(float(atlas.low_share(noise, mask).mean()) - m / d) < 4 * error


def test_radial_frequencies_are_fractions_of_nyquists():
    found = atlas.radial_frequencies(8, 8)
    assert (found[0, 0], found[0, 4], found[2, 0]) == (0, 1, 0.5)
    assert float(found[4, 4]) == pytest.approx(math.sqrt(2))
    assert int(low().sum()) == 9


def test_intervals_of_means_and_medians():
    """A median's limits at n = 10 are the 2nd and 9th value (97.9 %); 5 values have none."""
    values = torch.tensor([3.0, 1.0, math.nan, 2.0]).double()
    mean = atlas.mean_of(values)
    assert (mean.value, mean.n, mean.standard_error) == (2.0, 3, pytest.approx(1 / math.sqrt(3)))
    assert mean.limits[1] - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t, 2 degrees
    ten = atlas.median_of(torch.arange(1.0, 11.0).double().flip(0))
    assert (ten.value, ten.limits, ten.quartiles) == (5.5, (2.0, 9.0), (3.25, 7.75))
    assert atlas.median_of(torch.arange(1.0, 7.0).double()).limits == (1.0, 6.0)
    assert atlas.median_of(torch.arange(1.0, 6.0).double()).limits is None
    nothing = torch.full((2,), math.nan).double()
    assert atlas.mean_of(nothing).value is None and atlas.median_of(nothing).n == 0
    assert atlas.mean_of(torch.ones(1).double()).standard_error is None


def test_differences_are_paired():
    one = {key: torch.rand(2, 5).double() + 0.1 for key in atlas.QUANTITIES}
    other = {key: value + 0.5 for key, value in one.items()} | {"norm": 3 * one["norm"]}
    found = atlas.differences(other, one)
    assert found["cosine"][1]["value"] == pytest.approx(0.5)
    assert found["cosine"][1]["standard_error"] == pytest.approx(0, abs=1e-12)
    assert found["norm"][0]["value"] == pytest.approx(math.log(3))


class Linear(Classifier):
    num_classes = 2

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x, sigma):
        return torch.einsum("kchw,bchw->bk", self.weight, x)


def test_the_picture_shows_one_image_at_all_levels_towards_the_class_that_is_asked_for():
    weight = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    column = Column("linear", (ClassifierGuidance(Linear(weight)),) * 3)
    x_0, index = torch.zeros(1, 3, 4, 4), torch.tensor([7])
    x, found = atlas.drawn([column], x_0, index, 1, Measurement(LEVELS), CPU)
    noise = evaluation_noise(index).draw((3, 4, 4))
    for place, level in enumerate(LEVELS):
        torch.testing.assert_close(x[place], level * noise[0])
        p = Linear(weight)(x[place : place + 1], None).softmax(-1)[0, 0]
        torch.testing.assert_close(found["linear"][place], p * (weight[1] - weight[0]))


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"levels": ()}, "--levels must be positive"),
        ({"levels": (0.0, 1.0)}, "--levels must be positive"),
        ({"levels": (1.0, 0.5)}, r"--levels must rise.*give 0.5 1\."),
        ({"levels": (1.0, 1.0)}, "--levels must rise"),
        ({"seed": -1}, "--seed must be 0 or more"),
        ({"cutoff": 0.0}, "--cutoff a positive"),
    ],
)
def test_what_cannot_be_measured_is_refused(said, match):
    with pytest.raises(ValueError, match=match):
        Measurement(**said)
