"""Scales, and limits to an interval of noise."""

import math

import pytest
import torch
from oracles import ExactClassifier, ExactDenoiser, noisy, plane, tilted
from torch.testing import assert_close

from robustguide.guidance import (
    Branch,
    ClassifierFree,
    ClassifierGuidance,
    Guidance,
    Guided,
    Scaled,
    Within,
)
from robustguide.interfaces import Place

SIGMAS = [0.1, 0.7, 3.0, 20.0]


class Parts:
    """A mixture's denoiser and classifier, with their calls counted, and states."""

    def __init__(self):
        self.mixture = tilted()
        self.denoiser, self.classifier = ExactDenoiser(self.mixture), ExactClassifier(self.mixture)
        self.x, self.sigma, self.y = noisy(self.mixture, SIGMAS)
        self.by_classifier = ClassifierGuidance(self.classifier)

    def guided(self, term, place=None):
        guided = Guided(self.denoiser, {"term": term})
        return guided.predict(self.x, self.sigma, self.y, place).denoised

    def plain(self):
        return self.denoiser(self.x, self.sigma, self.y)

    def displacement(self, term, place=None):
        return self.guided(term, place) - self.plain()


class Offset(Guidance):
    """Says whether it was evaluated."""

    evaluated = 0

    def __init__(self, moves_denoised=False, needs_graph=False):
        super().__init__()
        self.moves_denoised, self.needs_graph = moves_denoised, needs_graph

    def branches(self, y, null, place):
        return (Branch(null),)

    def forward(self, step):
        self.evaluated += 1
        return torch.ones_like(step.x)


@pytest.mark.parametrize("off", [{"scale": 0.0}, {"scale": [0.0] * 4}, {"weight": 1.0}])
def test_scale_zero_is_nothing_and_costs_nothing(off):
    parts = Parts()
    for term in (parts.by_classifier, ClassifierFree()):
        parts.denoiser.calls.clear()
        result = parts.guided(Scaled(term, **off))
        assert parts.denoiser.calls == [4]  # the conditional branch alone
        assert parts.classifier.calls == []
        assert torch.equal(result, parts.plain())


def test_a_displacement_is_multiplied():
    parts = Parts()
    for term in (parts.by_classifier, ClassifierFree()):
        once = parts.displacement(term)
        assert once.abs().max() > 0.1
        assert_close(parts.displacement(Scaled(term, 2.5)), 2.5 * once)
        assert_close(parts.displacement(Scaled(Scaled(term, 2.0), 3.0)), 6 * once)


def test_a_weight_of_one_is_the_conditional_model_and_zero_the_unconditional():
    parts = Parts()
    null = parts.denoiser(parts.x, parts.sigma, parts.denoiser.null(parts.y))
    assert_close(parts.guided(Scaled(ClassifierFree(), weight=0.0)), null)
    three = parts.guided(Scaled(ClassifierFree(), weight=3.0))
    assert_close(three, torch.lerp(null, parts.plain(), 3.0))


def test_every_row_may_have_its_own_scale():
    parts = Parts()
    scales = [0.0, 1.0, 2.0, 3.5]
    once = parts.displacement(parts.by_classifier)
    got = parts.displacement(Scaled(parts.by_classifier, scales))
    assert_close(got, torch.tensor(scales).double().reshape(-1, 1, 1, 1) * once)
    with pytest.raises(ValueError, match="2 scales were given for a batch of 4 rows"):
        parts.guided(Scaled(parts.by_classifier, [1.0, 2.0]))


@pytest.mark.parametrize(
    "bad",
    [
        {"scale": math.nan},
        {"scale": math.inf},
        {"scale": [1.0, math.nan]},
        {"scale": []},
        {"weight": math.nan},
        {"weight": -math.inf},
        {"scale": -0.5},
        {"scale": [1.0, -0.1]},
        {"weight": -1e-9},
    ],
)
def test_a_scale_that_is_no_finite_number_is_refused(bad):
    with pytest.raises(ValueError, match="must be a finite number"):
        Scaled(ClassifierFree(), **bad)


@pytest.mark.parametrize("bad", [{}, {"scale": 1.0, "weight": 2.0}])
def test_scale_and_weight_exclude_one_another(bad):
    with pytest.raises(ValueError, match="either scale"):
        Scaled(ClassifierFree(), **bad)


@pytest.mark.parametrize("wrap", [lambda term: Scaled(term, 2.0), lambda term: Within(term, 1.0)])
def test_the_kind_of_the_term_is_handed_on(wrap):
    for kind in (False, True):
        assert wrap(Offset(moves_denoised=kind)).moves_denoised == kind
        assert wrap(Offset(needs_graph=kind)).needs_graph == kind


@pytest.mark.parametrize(
    ("sigma", "inside"),
    [(0.3, False), (0.3 + 1e-12, True), (1.0, True), (5.0, True), (5.0 + 1e-12, False)],
)
def test_an_interval_holds_its_upper_end_and_not_its_lower(sigma, inside):
    """Decided on the host in float64, even where the state could not tell the difference."""
    term = Offset()
    denoiser = ExactDenoiser(plane())
    x, sigmas, y = noisy(plane(), [sigma, sigma], dtype=torch.float32)
    guided = Guided(denoiser, {"within": Within(term, 0.3, 5.0)})
    _, displacement = guided.split(x, sigmas, y, Place(0, 1, sigma))
    assert torch.equal(displacement, torch.full_like(x, float(inside)))
    assert term.evaluated == inside
    assert denoiser.calls == [4 if inside else 2]  # no branch is asked for outside


def test_without_a_sampler_every_row_is_judged_by_its_own_level():
    term = Offset()
    x, sigma, y = noisy(plane(), [0.5, 0.6, 2.0, 2.1])
    _, displacement = Guided(ExactDenoiser(plane()), {"w": Within(term, 0.5, 2.0)}).split(
        x, sigma, y
    )
    assert displacement[:, 0, 0, 0].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert term.evaluated == 1


def test_the_whole_axis_is_the_term_itself():
    parts = Parts()
    for term in (parts.by_classifier, ClassifierFree()):
        for place in (None, Place(0, 1, 1e-9), Place(0, 1, 1e9)):
            assert_close(parts.guided(Within(term), place), parts.guided(term, place))


def test_combinators_nest_either_way():
    parts = Parts()
    once = parts.displacement(ClassifierFree())
    for term in (
        Within(Scaled(ClassifierFree(), 2.0), 0.5, 2.0),
        Scaled(Within(ClassifierFree(), 0.5, 2.0), 2.0),
    ):
        assert_close(parts.displacement(term, Place(0, 1, 1.0)), 2 * once)
        parts.denoiser.calls.clear()
        assert torch.equal(parts.guided(term, Place(0, 1, 0.5)), parts.plain())
        assert parts.denoiser.calls == [4, 4]  # guided and plain, one branch each


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (math.nan, 1.0)])
def test_an_empty_interval_is_refused(ends):
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        Within(ClassifierFree(), *ends)
