"""Guidance by a classifier's gradient, on a mixture where all is known."""

import pytest
import torch
from oracles import ExactClassifier, ExactDenoiser, Mixture, no_noise, noisy, plane, tilted
from torch import nn
from torch.testing import assert_close

from robustguide.classifiers import SigmaConditioned, Timed
from robustguide.denoisers import EpsDenoiser, Unconditional
from robustguide.guidance import ClassifierFree, ClassifierGuidance, Guided, Scaled, Within
from robustguide.interfaces import Classifier
from robustguide.noise import ChainGrid, RhoGrid, expand, linear_levels
from robustguide.samplers import DDIM, Heun

SIGMAS = [0.05, 0.3, 1.0, 5.0, 50.0]
POINT = torch.tensor([[1.0, 0.5]], dtype=torch.float64).reshape(1, 1, 1, 2)
PRINTED = {
    0.0: {
        "posterior": [0.88115851, 0.11796782, 0.00087367],
        "conditional": [2.0, -0.5],
        "null": [-0.64609653, -0.49650532],
        "classifier": [2.64609653, -0.00349468],
    },
    1.0: {
        "posterior": [0.76726259, 0.21745751, 0.01527990],
        "conditional": [1.0, -0.25],
        "null": [-0.17381373, -0.21944020],
        "classifier": [1.17381373, -0.03055980],
    },
}


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("mixture", [plane(), tilted()])
def test_bayes_identity(mixture):
    """Guiding the marginal denoiser by the exact classifier gives the conditional one."""
    denoiser = ExactDenoiser(mixture)
    term = ClassifierGuidance(ExactClassifier(mixture))
    x, sigma, y = noisy(mixture, SIGMAS)
    guided = Guided(Unconditional(denoiser), {"classifier": term})
    assert_close(guided(x, sigma, y), denoiser(x, sigma, y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mixture", [plane(), tilted()])
def test_the_classifier_free_direction_is_the_classifiers(mixture):
    denoiser = ExactDenoiser(mixture)
    x, sigma, y = noisy(mixture, SIGMAS)
    by_classifier = ClassifierGuidance(ExactClassifier(mixture))
    free = Guided(denoiser, {"free": Scaled(ClassifierFree(), 3.0)})
    classified = Guided(denoiser, {"classifier": Scaled(by_classifier, 3.0)})
    assert_close(free(x, sigma, y), classified(x, sigma, y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma", PRINTED)
def test_the_printed_values(sigma):
    """Means (0,0), (3,0), (0,4), priors .5, .3, .2, unit covariances, at (1, 0.5) for class 1."""
    mixture, sigmas, printed = plane(), vector([sigma]), PRINTED[sigma]
    y, null = torch.tensor([1]), torch.tensor([3])
    close = {"rtol": 0, "atol": 5e-9}
    posterior = ExactClassifier(mixture)(POINT, sigmas).softmax(-1)
    assert_close(posterior.flatten(), vector(printed["posterior"]), **close)
    for labels, name in ((y, "conditional"), (null, "null")):
        score = mixture.score(POINT, sigmas, labels)
        assert_close(score.flatten(), vector(printed[name]), **close)
    x = POINT.clone().requires_grad_()
    log_p = ExactClassifier(mixture)(x, sigmas).log_softmax(-1)[0, 1]
    (gradient,) = torch.autograd.grad(log_p, x)
    assert_close(gradient.flatten(), vector(printed["classifier"]), **close)


def test_the_printed_denoised_images():
    mixture, one, y = plane(), vector([1.0]), torch.tensor([1])
    denoiser = ExactDenoiser(mixture)
    close = {"rtol": 0, "atol": 5e-9}
    assert_close(denoiser(POINT, one, y).flatten(), vector([2.0, 0.25]), **close)
    null = Unconditional(denoiser)(POINT, one, y)
    assert_close(null.flatten(), vector([0.82618627, 0.28055980]), **close)
    twice = Scaled(ClassifierFree(), weight=2.0)
    for term in (twice, Scaled(ClassifierGuidance(ExactClassifier(mixture)), 1.0)):
        guided = Guided(denoiser, {"guidance": term})(POINT, one, y)
        assert_close(guided.flatten(), vector([3.17381373, 0.21944020]), **close)


def test_gradients_weighted_by_the_posterior_cancel():
    mixture = tilted()
    x, sigma, _ = noisy(mixture, SIGMAS)
    term = ClassifierGuidance(ExactClassifier(mixture))
    guided = Guided(ExactDenoiser(mixture), {"classifier": term})
    posterior = mixture.log_joint(x, sigma).softmax(-1)
    total = torch.zeros_like(x)
    for k in range(len(mixture)):
        _, displacement = guided.split(x, sigma, torch.full((len(x),), k))
        total += posterior[:, k].reshape(-1, 1, 1, 1) * displacement
    assert_close(total, torch.zeros_like(x), rtol=0, atol=1e-9)


def test_rows_do_not_see_one_another():
    mixture = tilted()
    x, sigma, y = noisy(mixture, SIGMAS)
    term = ClassifierGuidance(ExactClassifier(mixture))
    _, together = Guided(ExactDenoiser(mixture), {"c": term}).split(x, sigma, y)
    for row in range(len(x)):
        one = slice(row, row + 1)
        _, alone = Guided(ExactDenoiser(mixture), {"c": term}).split(x[one], sigma[one], y[one])
        assert_close(alone, together[one], rtol=1e-12, atol=1e-14)


def test_labels_are_translated_for_a_classifier_with_other_classes():
    mixture = tilted()
    order = [2, 0, 3, 1]  # the classifier's class of every class of the denoiser
    inverse = torch.tensor(order).argsort()
    shuffled = Mixture(
        mixture.means[inverse], mixture.covariances[inverse], mixture.priors[inverse]
    )
    x, sigma, y = noisy(mixture, SIGMAS)
    translated = ClassifierGuidance(ExactClassifier(shuffled), labels=order)
    plain = ClassifierGuidance(ExactClassifier(mixture))
    got, want = (
        Guided(ExactDenoiser(mixture), {"c": c})(x, sigma, y) for c in (translated, plain)
    )
    assert_close(got, want)


@pytest.mark.parametrize("labels", [[0, 1, 3], [-1, 0, 1]])
def test_a_translation_outside_the_classes_is_refused(labels):
    with pytest.raises(ValueError, match=r"0\.\.2"):
        ClassifierGuidance(ExactClassifier(plane()), labels)


@pytest.mark.parametrize(
    ("labels", "count"), [(None, 3), ([0, 2], 2), ([0, 2, 1, 1, 0], 5)], ids=str
)
def test_classes_that_do_not_fit_those_of_the_denoiser_are_refused(labels, count):
    term = ClassifierGuidance(ExactClassifier(plane()), labels)
    for wrapped in (term, Scaled(term, 1.0), Within(term, 0.1, 2.0)):
        with pytest.raises(ValueError, match=f"'c' is for labels of {count} classes.*are of 4"):
            Guided(ExactDenoiser(tilted()), {"c": wrapped})


class Halved(nn.Module):
    """Logits in half precision, as automatic mixed precision gives them; all equal at x = 0."""

    def __init__(self, autocast):
        super().__init__()
        self.linear = nn.Linear(200, 200, bias=False)
        nn.init.eye_(self.linear.weight)
        self.autocast = autocast
        if not autocast:
            self.bfloat16()

    def forward(self, x_t, t):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return self.linear(x_t.flatten(1))


@pytest.mark.parametrize("autocast", [True, False])
def test_the_softmax_is_in_float32_whatever_the_network_has(autocast):
    """log 200 is off by 1.4% of 1 in bfloat16; one bfloat16 number is off by 0.4% of itself."""
    classifier = Timed(Halved(autocast), linear_levels(), 200)
    x, y = torch.zeros(1, 1, 10, 20), torch.tensor([7])
    denoiser = Unconditional(ExactDenoiser(Mixture(torch.zeros(1, 1, 10, 20))), num_classes=200)
    guided = Guided(denoiser, {"c": ClassifierGuidance(classifier)})
    _, displacement = guided.split(x, torch.tensor([1e-3]), y)
    want = -torch.full((200,), 1 / 200)
    want[7] += 1
    assert displacement.dtype == torch.float32
    assert_close(displacement.flatten() / 1e-6, want, rtol=5e-3, atol=0)


def test_the_classifier_keeps_its_mode_and_gathers_no_gradients():
    class Learned(Classifier):
        num_classes = 3

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 3)

        def forward(self, x, sigma):
            assert not self.training
            return self.linear(x.flatten(1))

    classifier = Learned().eval()
    x, sigma, y = noisy(plane(), [1.0, 2.0], dtype=torch.float32)
    with torch.no_grad():
        guided = Guided(ExactDenoiser(plane()), {"c": ClassifierGuidance(classifier)})
        result = guided(x, sigma, y)
    assert not result.requires_grad
    assert all(p.grad is None and p.requires_grad for p in classifier.parameters())


class ChainNet(nn.Module):
    """What is exact of a mixture in the chain's units, at any t between the table's entries."""

    def __init__(self, mixture, levels):
        super().__init__()
        self.mixture, self.log_sigmas = mixture, torch.tensor(levels.sigmas).log()

    def sigma_and_x(self, x_t, t):
        below = t.long().clamp(max=len(self.log_sigmas) - 2)
        low, high = self.log_sigmas[below], self.log_sigmas[below + 1]
        sigma = (low + (t - below) * (high - low)).exp()
        return sigma, x_t * expand((1 + sigma**2).sqrt(), x_t)


class ChainClassifier(ChainNet):
    def forward(self, x_t, t):
        sigma, x = self.sigma_and_x(x_t, t)
        return self.mixture.log_joint(x, sigma)


class ChainEps(ChainNet):
    def forward(self, x_t, t, y):
        sigma, x = self.sigma_and_x(x_t, t)
        return -expand(sigma, x) * self.mixture.score(x, sigma, y)


class EDMClassifier(nn.Module):
    """The exact classifier with the inputs of an EDM network."""

    def __init__(self, mixture):
        super().__init__()
        self.mixture = mixture

    def forward(self, inputs, noise):
        sigma = (4 * noise.double()).exp()
        x = inputs * expand((sigma**2 + 0.25).sqrt(), inputs)
        return self.mixture.log_joint(x, sigma)


def of_the_chain(mixture, interpolated):
    """A denoiser and a classifier of the variance-preserving chain."""
    levels = linear_levels(interpolated=interpolated)
    denoiser = EpsDenoiser(ChainEps(mixture, levels), levels, len(mixture), mixture.shape)
    return denoiser, Timed(ChainClassifier(mixture, levels), levels, len(mixture))


def conditional_by_guidance(denoiser, classifier, sampler):
    """One evaluation at each level of a run, and whole runs: guided, and what they should be."""
    terms = {"c": ClassifierGuidance(classifier)}
    x, sigma, y = noisy(tilted(), sampler.grid.sigmas()[:-1])
    once = Guided(Unconditional(denoiser), terms)(x, sigma, y), denoiser(x, sigma, y)
    start = sampler.start(
        torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), denoiser
    )
    guided = sampler(Unconditional(denoiser), terms, start, y, no_noise)
    return once, (guided, sampler(denoiser, {}, start, y, no_noise))


CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # t and log(sigma) / 4 are told in float32
EDM_GRID = RhoGrid(steps=12, sigma_min=0.02, sigma_max=80.0)


def test_a_classifier_of_the_chain_guides_a_denoiser_of_another_family():
    """At the levels of an EDM run, which lie between the entries of the chain's table."""
    mixture = tilted()
    sampler = Heun(grid=EDM_GRID, state_dtype="float64")
    _, classifier = of_the_chain(mixture, interpolated=True)
    once, run = conditional_by_guidance(ExactDenoiser(mixture), classifier, sampler)
    assert_close(*once, **CLOSE)
    assert_close(*run, rtol=0, atol=1e-4)
    _, nearest = of_the_chain(mixture, interpolated=False)
    once, _ = conditional_by_guidance(ExactDenoiser(mixture), nearest, sampler)
    assert 1e-4 < (once[0] - once[1]).abs().max() < 0.05  # a neighbouring t is near, no more


def test_a_classifier_of_another_family_guides_a_denoiser_of_the_chain():
    mixture = tilted()
    sampler = DDIM(grid=ChainGrid(linear_levels(), "12"), state_dtype="float64")
    denoiser, _ = of_the_chain(mixture, interpolated=False)
    classifier = SigmaConditioned(EDMClassifier(mixture), len(mixture))
    once, run = conditional_by_guidance(denoiser, classifier, sampler)
    assert_close(*once, **CLOSE)
    assert_close(*run, rtol=0, atol=1e-4)
