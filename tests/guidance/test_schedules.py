"""How often and how much a term acts, by the steps of the sampler."""

import math

import pytest
import torch
from oracles import ExactClassifier, ExactDenoiser, ListedGrid, no_noise, noisy, tilted
from torch.testing import assert_close

from robustguide.guidance import (
    AtDenoised,
    ClassifierFree,
    ClassifierGuidance,
    EveryKth,
    Guided,
    Scaled,
    SineSchedule,
    ThroughDenoiser,
    Within,
)
from robustguide.interfaces import Place
from robustguide.samplers import DDIM, Ancestral, Heun, Sine, Small

GRID = ListedGrid((8.0, 4.0, 2.0, 1.0, 0.5, 0.0))


class World:
    """A mixture, its networks, and states at the first level of the grid."""

    def __init__(self):
        self.mixture = tilted()
        self.denoiser, self.classifier = ExactDenoiser(self.mixture), ExactClassifier(self.mixture)
        self.x, self.sigma, self.y = noisy(self.mixture, [8.0] * 4)

    def displacement(self, term, index, count=5):
        place = Place(index, count, 8.0)
        guided = Guided(self.denoiser, {"t": term})
        return guided.predict(self.x, self.sigma, self.y, place).denoised - self.denoiser(
            self.x, self.sigma, self.y
        )


@pytest.mark.parametrize(("every", "active"), [(1, 5), (2, 3), (3, 2), (7, 1)])
def test_every_kth_step_from_the_first(every, active):
    world = World()
    term = EveryKth(ClassifierGuidance(world.classifier), every)
    DDIM(GRID, state_dtype="float64")(world.denoiser, {"t": term}, world.x, world.y, no_noise)
    assert world.classifier.calls == [4] * active and world.denoiser.calls == [4] * 5
    once = world.displacement(ClassifierGuidance(world.classifier), 0)
    for index in range(5):
        want = once if index % every == 0 else torch.zeros_like(once)
        assert_close(world.displacement(term, index), want, rtol=1e-12, atol=1e-12)


def test_both_evaluations_of_a_heun_step_are_one_step():
    world = World()
    term = EveryKth(Scaled(ClassifierFree(), 1.0), 2)
    Heun(GRID, state_dtype="float64")(world.denoiser, {"t": term}, world.x, world.y, no_noise)
    assert world.denoiser.calls == [8, 8, 4, 4, 8, 8, 4, 4, 8]  # no branch is asked for between


@pytest.mark.parametrize("every", [0, -1])
def test_no_step_at_all_is_refused(every):
    with pytest.raises(ValueError, match="every counts steps, at least 1"):
        EveryKth(ClassifierFree(), every)


def test_the_sine_multiplies_a_displacement():
    world = World()
    for term in (ClassifierGuidance(world.classifier), ClassifierFree()):
        once = world.displacement(term, 0)
        for index in range(5):
            factor = 1 + 0.6 * math.sin(math.pi * (4 - index) / 5)
            got = world.displacement(SineSchedule(term, 0.6), index)
            assert_close(got, factor * once, rtol=1e-11, atol=1e-11)
    assert_close(world.displacement(SineSchedule(ClassifierFree(), 0.6), 4), once)
    no_place = Guided(world.denoiser, {"t": SineSchedule(ClassifierFree(), 0.6)})
    plain = world.denoiser(world.x, world.sigma, world.y)
    assert_close(no_place(world.x, world.sigma, world.y) - plain, once)


def test_the_sine_is_that_of_the_ancestral_sampler_up_to_a_quotient_of_variances():
    """Sigma_n / Sigma_k of the step: in the first, which is quotient 1, both are the same."""
    world = World()
    term, states = ClassifierGuidance(world.classifier), []
    for schedule, terms in ((Sine(0.6), term), (None, SineSchedule(term, 0.6))):
        seen = []
        sampler = Ancestral(
            GRID, state_dtype="float64", variance=Small(), guidance_variance=schedule
        )
        sampler(world.denoiser, {"t": terms}, world.x, world.y, torch.zeros_like, seen.append)
        states.append([o.x for o in seen])
    assert_close(states[0][1], states[1][1], rtol=1e-12, atol=1e-12)
    assert (states[0][2] - states[1][2]).abs().max() > 1e-6


@pytest.mark.parametrize("gamma", [-0.1, math.nan, math.inf])
def test_another_gamma_is_refused(gamma):
    with pytest.raises(ValueError, match="gamma must be a finite number of at least 0"):
        SineSchedule(ClassifierFree(), gamma)


@pytest.mark.parametrize("wrap", [lambda t: EveryKth(t, 2), lambda t: SineSchedule(t, 0.3)])
def test_what_the_term_is_made_of_is_handed_on(wrap):
    world = World()
    for view in (AtDenoised(), ThroughDenoiser()):
        term = wrap(Within(ClassifierGuidance(world.classifier, view=view), 0.5))
        assert term.differentiated() == term.classifiers() == (world.classifier,)
        assert term.num_classes == 4 and not term.moves_denoised
        assert term.needs_graph == term.wants_graph(Place()) == view.needs_graph
    free = wrap(ClassifierFree())
    assert free.moves_denoised and len(free.comparisons()) == 1
