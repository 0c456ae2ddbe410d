"""How terms are summed, clipped, remembered and evaluated."""

import itertools

import pytest
import torch
from oracles import ExactClassifier, ExactDenoiser, no_noise, noisy, plane, tilted
from torch.testing import assert_close

from robustguide.guidance import (
    Branch,
    ClassifierFree,
    ClassifierGuidance,
    Guidance,
    Guided,
    Scaled,
)
from robustguide.interfaces import Denoiser, Place, Prediction
from robustguide.noise import RhoGrid, expand
from robustguide.samplers import Heun


class Constant(Guidance):
    """Moves everything by a number, or by a multiple of what it sees; keeps what it saw."""

    def __init__(self, shift=0.0, times=0.0, moves_denoised=False):
        super().__init__()
        self.shift, self.times, self.moves_denoised = shift, times, moves_denoised

    def forward(self, step):
        self.seen = step.denoised
        return self.shift + self.times * step.denoised


class Momentum(Guidance):
    """A running mean of what it sees, changed by predictors alone."""

    def __init__(self):
        super().__init__()
        self.log = []

    def forward(self, step):
        memory = step.own(self)
        before = dict(memory)
        if not step.place.corrector:
            seen = memory.get("mean", torch.zeros_like(step.x))
            memory["mean"] = 0.9 * seen + 0.1 * step.denoised
            memory["count"] = memory.get("count", 0) + 1
        self.log.append((step.place, before, dict(memory)))
        return 0.01 * memory["mean"]


class Downhill(Guidance):
    """Gradient at x of a linear functional of the denoised image, through the denoiser."""

    needs_graph = True

    def __init__(self, direction):
        super().__init__()
        self.direction = direction

    def forward(self, step):
        value = (step.denoised * self.direction).flatten(1).sum(-1)
        return expand(step.sigma**2, step.x) * step.gradient(value)


class Contrast(Guidance):
    """Needs the null branch and says so, in its own way."""

    moves_denoised = True

    def branches(self, y, null, place):
        return (Branch(null),)

    def forward(self, step):
        return 0.5 * (step.denoised - step.evaluate(step.null))


class Late(Contrast):
    """Asks for the null branch without having said so."""

    def branches(self, y, null, place):
        return ()


class Affine(Denoiser):
    """An answer that exceeds every bound, with a learned variance."""

    num_classes, shape, learns_variance = 2, (1, 1, 2), True

    def predict(self, x, sigma, y):
        return Prediction(3.0 * x, torch.full_like(x, 0.25) * (1 + y).reshape(-1, 1, 1, 1))


X = torch.tensor([[0.2, -0.1]]).reshape(1, 1, 1, 2)
ONE = torch.ones(1)
Y = torch.zeros(1, dtype=torch.long)


def test_without_terms_the_denoiser_is_itself():
    denoiser = ExactDenoiser(plane())
    x, sigma, y = noisy(plane(), [0.1, 3.0])
    guided = Guided(denoiser)
    assert torch.equal(guided(x, sigma, y), denoiser(x, sigma, y))
    assert (guided.num_classes, guided.shape, guided.has_null) == (3, (1, 1, 2), True)


def test_a_sum_does_not_depend_on_the_order_of_its_terms():
    mixture = tilted()
    x, sigma, y = noisy(mixture, [0.1, 0.7, 3.0, 20.0])
    named = {
        "classifier": Scaled(ClassifierGuidance(ExactClassifier(mixture)), 2.0),
        "free": Scaled(ClassifierFree(), 1.5),
        "momentum": Momentum(),
        "through": Downhill(torch.ones(mixture.shape)),
    }
    results = []
    for order in itertools.permutations(named):
        terms = {name: named[name] for name in order}
        results.append(Guided(ExactDenoiser(mixture), terms, clip=1.0)(x, sigma, y))
    for result in results[1:]:
        assert_close(result, results[0], rtol=1e-13, atol=1e-13)


def test_displacements_add():
    mixture = tilted()
    x, sigma, y = noisy(mixture, [0.1, 0.7, 3.0, 20.0])
    terms = {"a": ClassifierGuidance(ExactClassifier(mixture)), "b": ClassifierFree()}
    alone = ExactDenoiser(mixture)(x, sigma, y)
    moved = {
        k: Guided(ExactDenoiser(mixture), {k: v})(x, sigma, y) - alone for k, v in terms.items()
    }
    together = Guided(ExactDenoiser(mixture), terms)(x, sigma, y)
    assert_close(together - alone, moved["a"] + moved["b"])


def test_reference_terms_come_before_the_clip_and_score_terms_after():
    reference, score = Constant(0.5, moves_denoised=True), Constant(0.2, times=1.0)
    guided = Guided(Affine(), {"score": score, "reference": reference}, clip=0.4)
    prediction, displacement = guided.split(X, ONE, Y)
    assert_close(reference.seen, 3 * X)  # (0.6, -0.3), not clipped
    assert_close(score.seen.flatten(), torch.tensor([0.4, -0.3]))  # clipped, unguided
    assert_close(prediction.denoised.flatten(), torch.tensor([0.4, 0.2]))  # (1.1, 0.2) clipped
    assert_close(displacement.flatten(), torch.tensor([0.6, -0.1]))
    assert_close(guided(X, ONE, Y).flatten(), torch.tensor([1.0, 0.1]))  # not clipped again


def test_the_learned_variance_is_that_of_the_conditional_branch():
    guided = Guided(Affine(), {"free": ClassifierFree(), "score": Constant(1.0)})
    prediction = guided.predict(X, ONE, torch.ones_like(Y))
    assert torch.equal(prediction.fraction, torch.full_like(X, 0.5))
    assert guided.learns_variance


def test_no_term_sees_the_displacement_of_another():
    first, second = Constant(5.0, moves_denoised=True), Constant(7.0, moves_denoised=True)
    guided = Guided(Affine(), {"first": first, "second": second})
    guided(X, ONE, Y)
    assert_close(first.seen, 3 * X)
    assert_close(second.seen, 3 * X)


def test_memory_is_new_for_every_sampler_call_and_belongs_to_one_term():
    mixture = plane()
    terms = {"a": Momentum(), "b": Scaled(Momentum(), 2.0)}
    x, _, y = noisy(mixture, [3.0, 3.0], dtype=torch.float32)
    sampler = Heun(RhoGrid(4, 0.1, 3.0))
    results = [sampler(ExactDenoiser(mixture), terms, x, y, no_noise) for _ in range(2)]
    assert torch.equal(*results)
    for term in (terms["a"], terms["b"].term):
        assert len(term.log) == 2 * 7
        for run in (term.log[:7], term.log[7:]):
            assert run[0][1] == {}
            assert run[-1][2]["count"] == 4  # once a step, not once an evaluation
            for place, before, after in run:
                assert (before.get("mean") is after["mean"]) == place.corrector
    assert [place.corrector for place, *_ in terms["a"].log[:7]] == [False, True] * 3 + [False]
    assert [place.index for place, *_ in terms["a"].log[:7]] == [0, 0, 1, 1, 2, 2, 3]


def test_a_graph_through_the_denoiser_is_the_posterior_covariance():
    """The Jacobian of the denoised image is Cov[x_0 | x] / sigma**2."""
    mixture = tilted()
    direction = torch.randn(mixture.shape, generator=torch.Generator().manual_seed(0)).double()
    for sigma in (0.2, 1.0, 5.0):
        x, sigmas, y = noisy(mixture, [sigma] * 4)
        denoiser = ExactDenoiser(mixture)
        null = denoiser.null(y)
        guided = Guided(denoiser, {"through": Downhill(direction)})
        with torch.no_grad():
            prediction, displacement = guided.split(x, sigmas, null)
        want = mixture.posterior_covariance(x, sigma) @ direction.flatten()
        assert_close(displacement.flatten(1), want, rtol=1e-9, atol=1e-12)
        assert not displacement.requires_grad
        assert not prediction.denoised.requires_grad
        assert denoiser.calls == [4]


def test_a_graph_is_there_for_those_who_need_it_alone():
    mixture = tilted()
    x, sigma, y = noisy(mixture, [0.5, 2.0])
    plain = Constant(1.0)
    terms = {
        "plain": plain,
        "one": Downhill(torch.ones(2, 2, 1)),
        "two": Downhill(torch.ones(2, 2, 1)),
    }
    both = Guided(ExactDenoiser(mixture), terms).split(x, sigma, y)[1]
    one = Guided(ExactDenoiser(mixture), {"one": terms["one"]}).split(x, sigma, y)[1]
    assert_close(both, 1 + 2 * one)
    assert not plain.seen.requires_grad
    with torch.no_grad():
        Guided(ExactDenoiser(mixture), {"plain": plain})(x, sigma, y)
    assert not plain.seen.requires_grad


@pytest.mark.parametrize(
    ("terms", "calls"),
    [
        ({}, [4]),
        ({"free": ClassifierFree()}, [8]),
        ({"free": ClassifierFree(), "contrast": Contrast()}, [8]),
        ({"free": ClassifierFree(), "again": Scaled(ClassifierFree(), 2.0)}, [8]),
        ({"free": ClassifierFree(), "late": Late()}, [8]),
        ({"late": Late()}, [4, 4]),
        ({"late": Late(), "later": Late()}, [4, 4]),
    ],
)
def test_a_step_costs_what_it_must(terms, calls):
    mixture = tilted()
    x, sigma, y = noisy(mixture, [0.1, 0.7, 3.0, 20.0])
    denoiser = ExactDenoiser(mixture)
    got = Guided(denoiser, terms)(x, sigma, y)
    assert denoiser.calls == calls
    conditional = denoiser(x, sigma, y)
    factors = {ClassifierFree: 1.0, Contrast: 0.5, Late: 0.5, Scaled: 2.0}
    total = sum(factors[type(term)] for term in terms.values())
    want = conditional + total * (conditional - denoiser(x, sigma, denoiser.null(y)))
    assert_close(got, want)


def test_branches_in_one_batch_are_those_of_separate_calls():
    mixture = tilted()
    x, sigma, y = noisy(mixture, [0.1, 0.7, 3.0])
    denoiser = ExactDenoiser(mixture)
    conditional, null = denoiser(x, sigma, y), denoiser(x, sigma, denoiser.null(y))
    got = Guided(denoiser, {"contrast": Contrast()})(x, sigma, y)
    assert_close(got, 1.5 * conditional - 0.5 * null, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("term", [ClassifierFree(), Scaled(ClassifierFree(), 1.0), Contrast()])
def test_a_null_label_that_was_never_learned_is_refused_by_the_name_of_its_term(term):
    with pytest.raises(ValueError, match="'free' asks for the null label"):
        Guided(ExactDenoiser(plane(), has_null=False), {"free": term})


def test_a_term_that_is_off_asks_for_no_null_label():
    denoiser = ExactDenoiser(plane(), has_null=False)
    x, sigma, y = noisy(plane(), [1.0])
    off = Guided(denoiser, {"free": Scaled(ClassifierFree(), 0.0)})
    assert torch.equal(off(x, sigma, y), denoiser(x, sigma, y))


def test_a_place_is_handed_to_the_terms():
    class Where(Constant):
        def forward(self, step):
            self.place = step.place
            return super().forward(step)

    term, place = Where(), Place(3, 7, 1.5)
    Guided(Affine(), {"where": term}).predict(X, ONE, Y, place)
    assert term.place == place


@pytest.mark.parametrize("name", ["", "a.b", "type", "keys", "training", "forward"])
def test_a_name_that_no_term_can_have_is_refused(name):
    with pytest.raises(ValueError, match=f"can be called {name!r}"):
        Guided(Affine(), {"classifier": Constant(), name: Constant()})
