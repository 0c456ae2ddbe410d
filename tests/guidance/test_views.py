"""Where a classifier looks, in closed form on mixtures."""

import pytest
import torch
from oracles import ExactClassifier, ExactDenoiser, Mixture, noisy, tilted
from torch.testing import assert_close

from robustguide.denoisers import Unconditional
from robustguide.guidance import (
    AtDenoised,
    AtNormalizedState,
    AtState,
    ClassifierGuidance,
    Guided,
    Tempered,
    ThroughDenoiser,
    score,
)

SIGMAS = [0.2, 0.7, 3.0, 20.0]
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
VIEWS = [AtState(), AtNormalizedState(), AtDenoised(), ThroughDenoiser()]


def column(values):
    return values.reshape(-1, 1, 1, 1)


class World:
    """A mixture, its networks without labels, and states at several levels."""

    def __init__(self):
        self.mixture = tilted()
        self.classifier = ExactClassifier(self.mixture)
        self.denoiser = Unconditional(ExactDenoiser(self.mixture))
        self.x, self.sigma, self.y = noisy(self.mixture, SIGMAS)
        self.clean = torch.zeros_like(self.sigma)

    def displacement(self, view, clip=None, objective=None, **arguments):
        term = ClassifierGuidance(self.classifier, objective=objective, view=view, **arguments)
        guided = Guided(self.denoiser, {"c": term}, clip)
        return guided.split(self.x, self.sigma, self.y)[1]


def test_at_the_state():
    world = World()
    null = torch.full_like(world.y, 4)
    want = world.mixture.score(world.x, world.sigma, world.y)
    want = want - world.mixture.score(world.x, world.sigma, null)
    got = world.displacement(AtState())
    assert_close(got, column(world.sigma**2) * want, **CLOSE)
    assert torch.equal(got, world.displacement(None))  # where nothing else is said


@pytest.mark.parametrize("objective", [None, Tempered(1.0, 0.5)])
def test_at_the_denoised_image_it_is_plain_guidance_there(objective):
    """As if that were x_t: d log p / d x = d log p / d x_t / sqrt(1 + sigma**2)."""
    world = World()
    denoised = world.denoiser(world.x, world.sigma, world.y)
    there = score(world.classifier, denoised, world.clean, world.y, objective)
    want = column(world.sigma**2 / (1 + world.sigma**2).sqrt()) * there
    assert_close(world.displacement(AtDenoised(), objective=objective), want, **CLOSE)
    # of which the default is the difference of scores of clean images
    if objective is None:
        null = torch.full_like(world.y, 4)
        scores = [world.mixture.score(denoised, world.clean, labels) for labels in (world.y, null)]
        assert_close(there, scores[0] - scores[1], **CLOSE)


def test_at_the_divided_state():
    world = World()
    world.x[0] /= 10
    size = world.x.square().mean((1, 2, 3)).sqrt()
    assert size[0] < 1 < size[2]  # one is shown as it is
    divisor = column(size.clamp_min(1))
    there = score(world.classifier, world.x / divisor, world.clean, world.y)
    want = column(world.sigma**2) * there / divisor
    assert_close(world.displacement(AtNormalizedState()), want, **CLOSE)


@pytest.mark.parametrize("level", [0.2, 1.0, 5.0])
def test_through_the_denoiser_it_is_the_chain_rule(level):
    """With the exact Jacobian of the mixture's denoiser, Cov[x_0 | x] / sigma**2."""
    mixture = tilted()
    x, sigma, y = noisy(mixture, [level] * 4)
    denoiser, classifier = Unconditional(ExactDenoiser(mixture)), ExactClassifier(mixture)
    there = score(classifier, denoiser(x, sigma, y), torch.zeros_like(sigma), y)
    jacobian = mixture.posterior_covariance(x, level) / level**2
    want = level**2 * torch.einsum("bed,be->bd", jacobian, there.flatten(1))
    term = ClassifierGuidance(classifier, view=ThroughDenoiser())
    _, got = Guided(denoiser, {"c": term}).split(x, sigma, y)
    assert_close(got.flatten(1), want, **CLOSE)


def test_through_the_denoiser_of_one_gaussian():
    """N(m, v): the Jacobian is v / (v + sigma**2) times the identity."""
    mean = torch.tensor([0.7, -0.3], dtype=torch.float64).reshape(1, 1, 1, 2)
    single = Mixture(mean, 0.25 * torch.eye(2)[None])
    other = Mixture(torch.cat([mean, -mean]), 0.1 * torch.eye(2).expand(2, 2, 2))
    x, sigma, _ = noisy(single, [0.3, 2.0])
    y = torch.tensor([0, 1])
    denoiser = Unconditional(ExactDenoiser(single), num_classes=2)
    classifier = ExactClassifier(other)
    there = score(classifier, denoiser(x, sigma, y), torch.zeros_like(sigma), y)
    for view, factor in (
        (ThroughDenoiser(), 0.25 / (0.25 + sigma**2)),
        (AtDenoised(), 1 / (1 + sigma**2).sqrt()),
    ):
        term = ClassifierGuidance(classifier, view=view)
        _, got = Guided(denoiser, {"c": term}).split(x, sigma, y)
        assert_close(got, column(sigma**2 * factor) * there, **CLOSE)


@pytest.mark.parametrize("view", [AtDenoised(), ThroughDenoiser()])
def test_the_classifier_sees_the_clipped_image(view):
    """The chain rule has no gradient where clipping bites; without it there is one."""
    world = World()
    plain = world.denoiser(world.x, world.sigma, world.y)
    seen = plain.clamp(-0.3, 0.3)
    bites = seen != plain
    assert bites.any() and not bites.all()
    there = score(world.classifier, seen, world.clean, world.y)
    got = world.displacement(view, clip=0.3)
    if isinstance(view, AtDenoised):
        want = column(world.sigma**2 / (1 + world.sigma**2).sqrt()) * there
        assert_close(got, want, **CLOSE)
        return
    through = torch.autograd.functional.vjp(
        lambda x: world.denoiser(x, world.sigma, world.y), world.x, there * ~bites
    )[1]
    assert_close(got, column(world.sigma**2) * through, **CLOSE)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
def test_chunks_change_nothing_and_bound_what_the_classifier_is_shown(view):
    world = World()
    whole = world.displacement(view)
    world.classifier.calls.clear()
    assert torch.equal(world.displacement(view, chunk=3), whole)
    assert world.classifier.calls == [3, 1]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
def test_rows_do_not_see_one_another(view):
    world = World()
    together = world.displacement(view)
    for row in range(4):
        alone = World()
        alone.x, alone.sigma, alone.y = (v[row : row + 1] for v in (world.x, world.sigma, world.y))
        assert_close(alone.displacement(view)[0], together[row], rtol=1e-10, atol=1e-12)


def test_the_classifier_is_told_that_a_clean_image_is_clean():
    told = []

    class Told(ExactClassifier):
        def forward(self, x, sigma):
            told.append(sigma.tolist())
            return super().forward(x, sigma)

    world = World()
    world.classifier = Told(world.mixture)
    for view in VIEWS:
        world.displacement(view)
    assert told == [SIGMAS, [0.0] * 4, [0.0] * 4, [0.0] * 4]


def test_only_the_chain_rule_needs_a_graph():
    assert [view.needs_graph for view in VIEWS] == [False, False, False, True]
    terms = [ClassifierGuidance(World().classifier, view=view) for view in VIEWS]
    assert [term.needs_graph for term in terms] == [False, False, False, True]
