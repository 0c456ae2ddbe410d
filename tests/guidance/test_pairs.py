"""Terms made of two others."""

import math

import latent
import pytest
import torch
from oracles import ExactClassifier, ExactDenoiser, ListedGrid, no_noise, noisy, tilted
from torch.testing import assert_close

from robustguide.classifiers import Decoded
from robustguide.codecs import KLCodec
from robustguide.denoisers import EpsDenoiser
from robustguide.guidance import (
    AtDenoised,
    AtState,
    Channels,
    ClassifierFree,
    ClassifierGuidance,
    EveryKth,
    Guidance,
    Guided,
    Matched,
    RawLogit,
    Scaled,
    Switched,
    ThroughDenoiser,
    Within,
)
from robustguide.guidance.pairs import unit
from robustguide.interfaces import Classifier, Place, Prediction
from robustguide.nets import DiT
from robustguide.noise import ChainGrid, linear_levels
from robustguide.samplers import DDIM, Heun

SIGMAS = [0.2, 0.7, 3.0, 20.0]
GRID = ListedGrid((8.0, 4.0, 2.0, 1.0, 0.5, 0.0))
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


class World:
    """A mixture, its networks, and states at several levels."""

    def __init__(self, **arguments):
        self.mixture = tilted(**arguments)
        self.denoiser = ExactDenoiser(self.mixture)
        self.early, self.late = ExactClassifier(self.mixture), ExactClassifier(self.mixture)
        self.x, self.sigma, self.y = noisy(self.mixture, SIGMAS)

    def moved(self, terms, place=None):
        """Denoised image moved by the terms, less the unguided one."""
        terms = terms if isinstance(terms, dict) else {"t": terms}
        guided = Guided(self.denoiser, terms)
        plain = self.denoiser(self.x, self.sigma, self.y)
        self.denoiser.calls.clear()
        return guided.predict(self.x, self.sigma, self.y, place).denoised - plain

    def raw(self):
        """Gradient of the joint density at the clean image, whose size is no round-off."""
        return ClassifierGuidance(self.early, objective=RawLogit(), view=AtDenoised())

    def switched(self, sigma=1.0):
        """As Ma et al. (2023) combine theirs."""
        above = ClassifierGuidance(self.early, view=AtDenoised())
        below = Scaled(ClassifierGuidance(self.late, view=AtState()), 2.0)
        apart = {"a": Within(above, sigma_min=sigma), "b": Within(below, sigma_max=sigma)}
        return Switched(above, below, sigma), apart


def rms(x):
    return x.square().mean((1, 2, 3), keepdim=True).sqrt()


@pytest.mark.parametrize("level", [0.3, 0.7, 0.7 + 1e-12, 5.0])
def test_switched_is_two_intervals_and_costs_one(level):
    world = World()
    both, apart = world.switched(0.7)
    place = Place(1, 5, level)
    want = world.moved(apart, place)
    world.early.calls.clear()
    world.late.calls.clear()
    assert torch.equal(world.moved(both, place), want)
    calls = [world.early.calls, world.late.calls]
    assert calls == ([[4], []] if level > 0.7 else [[], [4]])
    assert both.is_active(place)


def test_switched_judges_every_row_by_its_own_level_where_there_is_no_sampler():
    world = World()
    both, apart = world.switched(0.7)
    got = world.moved(both)
    assert torch.equal(got, world.moved(apart))
    rows = [world.moved(term, Place(0, 1, level)) for term, level in ((both, 5.0), (both, 0.1))]
    assert_close(got, torch.cat([rows[1][:2], rows[0][2:]]), **CLOSE)
    same = ClassifierGuidance(world.early)
    assert torch.equal(world.moved(Switched(same, same, 0.7)), world.moved(same))


@pytest.mark.parametrize("sampler", [DDIM(GRID), Heun(GRID)])
def test_switched_in_a_run(sampler):
    results = []
    for which in (0, 1):
        world = World()
        terms = world.switched(1.0)[which]
        terms = terms if isinstance(terms, dict) else {"t": terms}
        x = noisy(world.mixture, [8.0] * 4)[0]
        results.append(sampler(world.denoiser, terms, x, world.y, no_noise))
        # above 1: 8, 4, 2, each once as Heun's predictor and 4, 2 once as corrector
        counts = (3, 2) if isinstance(sampler, DDIM) else (5, 4)
        assert (len(world.early.calls), len(world.late.calls)) == counts
    assert torch.equal(*results)


def test_switched_reference_terms_ask_for_their_branches_in_the_shared_batch():
    world = World()
    term = Switched(ClassifierFree(), Scaled(ClassifierFree(), 0.0), 1.0)
    assert term.moves_denoised
    assert_close(world.moved(term, Place(0, 1, 3.0)), world.moved(ClassifierFree()), **CLOSE)
    world.moved(term, Place(0, 1, 3.0))
    assert world.denoiser.calls == [8]
    assert not world.moved(term, Place(0, 1, 0.5)).any()
    assert world.denoiser.calls == [4] and not term.is_active(Place(0, 1, 0.5))


def test_switched_has_a_graph_where_its_part_needs_one():
    world = World()
    through = ClassifierGuidance(world.early, view=ThroughDenoiser())
    state = ClassifierGuidance(world.late)
    both = Switched(through, state, 1.0)
    high, low = Place(0, 1, 3.0), Place(0, 1, 0.5)
    assert both.needs_graph
    for term in (both, Scaled(both, 2.0)):
        places = [Place(), high, low]
        assert [term.wants_graph(place) for place in places] == [True, True, False]
    apart = {"a": Within(through, sigma_min=1.0), "b": Within(state, sigma_max=1.0)}
    for place in (None, high, low):
        assert_close(world.moved(both, place), world.moved(apart, place), **CLOSE)
    graphs = []
    predict = world.denoiser.predict
    world.denoiser.predict = lambda x, s, y: (graphs.append(x.requires_grad), predict(x, s, y))[1]
    with torch.no_grad():
        for place in (high, low):
            Guided(world.denoiser, {"t": both}).predict(world.x, world.sigma, world.y, place)
    assert graphs == [True, False]


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_switched_at_no_level_is_refused(sigma):
    with pytest.raises(ValueError, match="positive, finite level"):
        Switched(ClassifierFree(), ClassifierFree(), sigma)


def test_switched_terms_are_of_one_kind_and_for_the_same_classes():
    classifier = ClassifierGuidance(ExactClassifier(tilted()))
    with pytest.raises(ValueError, match="a score term, above and ClassifierFree, a reference"):
        Switched(classifier, ClassifierFree(), 1.0)
    with pytest.raises(ValueError, match=r"other classes \(\['3', '4'\]\)"):
        Switched(classifier, ClassifierGuidance(ExactClassifier(tilted(3))), 1.0)


class Named(Guidance):
    """Knows names of its classes."""

    def __init__(self, *names):
        super().__init__()
        self.class_names, self.num_classes = names, len(names) or None

    def forward(self, step):
        return torch.ones_like(step.x)


def test_names_of_the_classes_are_those_of_either():
    for pair in ((Named("cat", "dog"), Named()), (Named(), Named("cat", "dog"))):
        both = Switched(*pair, 1.0)
        assert (both.class_names, both.num_classes) == (("cat", "dog"), 2)
    Switched(Named("cat", "dog"), Named("tabby", "dog"), 1.0)  # other names say nothing
    with pytest.raises(ValueError, match="class 'dog' has two numbers"):
        Switched(Named("cat", "dog"), Named("dog", "cat"), 1.0)


def test_what_two_terms_are_made_of_is_handed_on():
    world = World()
    early, late = ClassifierGuidance(world.early), ClassifierGuidance(world.late)
    both = Switched(early, late, 1.0)
    assert both.classifiers() == both.differentiated() == (world.early, world.late)
    matched = Matched(both, to=ClassifierFree())
    assert matched.classifiers() == matched.differentiated() == (world.early, world.late)
    assert matched.moves_denoised and matched.num_classes == 4
    assert [comparison.asks_null for comparison in matched.comparisons()] == [True]
    with pytest.raises(ValueError, match="null label"):
        Guided(ExactDenoiser(world.mixture, has_null=False), {"m": matched})


@pytest.mark.parametrize("ratio", [0.3, 2.0])
def test_matched_is_as_large_as_the_other_term_and_points_as_its_own(ratio):
    world = World()
    term, free = world.raw(), ClassifierFree()
    gradient, difference = world.moved(term), world.moved(free)
    got = world.moved(Matched(term, free, ratio))
    want = ratio * gradient * rms(difference) / rms(gradient)
    assert_close(got, want, **CLOSE)
    assert_close(rms(got), ratio * rms(difference), **CLOSE)


def test_matched_is_the_normalised_gradient_in_the_classifier_free_difference():
    """eps = eps_null + s (eps_y - eps_null - ratio ghat), with ghat as large as the difference."""
    world, s, ratio = World(), 1.7, 0.4
    terms = {
        "free": Scaled(ClassifierFree(), weight=s),
        "classifier": Scaled(Matched(world.raw(), ClassifierFree(), ratio), s),
    }
    x, sigma, y = world.x, world.sigma, world.y
    level = sigma.reshape(-1, 1, 1, 1)
    denoised = world.denoiser(x, sigma, y)
    null = world.denoiser(x, sigma, torch.full_like(y, 4))
    eps, eps_null = (x - denoised) / level, (x - null) / level
    score = world.mixture.score(denoised, torch.zeros_like(sigma), y)
    difference = eps - eps_null
    ghat = score * rms(difference) / rms(score)
    guided = eps_null + s * (difference - ratio * ghat)
    got = Guided(world.denoiser, terms)(x, sigma, y)
    assert_close(got, x - level * guided, rtol=1e-9, atol=1e-9)


def test_matched_costs_no_evaluation_beside_the_term_that_it_is_matched_to():
    world = World()
    matched = Matched(ClassifierGuidance(world.early, view=AtDenoised()), ClassifierFree())
    world.moved({"free": ClassifierFree(), "m": matched})
    assert world.denoiser.calls == [8] and world.early.calls == [4]
    world.moved(matched)
    assert world.denoiser.calls == [8]  # the null label is asked for alone as well


@pytest.mark.parametrize(
    "make",
    [
        lambda term, free: Matched(term, free, 0.0),
        lambda term, free: Matched(Scaled(term, 0.0), free),
        lambda term, free: Matched(term, Scaled(free, 0.0)),
        lambda term, free: Matched(EveryKth(term, 2), free),
        lambda term, free: Matched(term, Within(free, sigma_max=1.0)),
    ],
)
def test_matched_costs_nothing_where_either_is_not_active(make):
    world = World()
    term = make(ClassifierGuidance(world.early), ClassifierFree())
    assert not world.moved(term, Place(1, 5, 3.0)).any()
    assert world.denoiser.calls == [4] and world.early.calls == []
    assert not term.is_active(Place(1, 5, 3.0))


def test_matched_without_a_gradient_moves_nothing():
    class Silent(Guidance):
        def forward(self, step):
            return torch.zeros_like(step.x)

    got = World().moved(Matched(Silent(), ClassifierFree()))
    assert not got.any() and got.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_of_very_small_and_very_large_images(dtype):
    x = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    sizes = torch.tensor([0.0, 1e-30, 1.0, 1e30], dtype=dtype).reshape(-1, 1, 1, 1)
    got = unit(sizes * x)
    assert not got[0].any()
    assert_close(got[1:], (x / rms(x))[1:])


@pytest.mark.parametrize("ratio", [-0.1, math.nan, math.inf])
def test_another_ratio_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio must be a finite number of at least 0"):
        Matched(ClassifierGuidance(ExactClassifier(tilted())), ClassifierFree(), ratio)


def test_other_kinds_of_terms_are_refused():
    term, free = ClassifierGuidance(ExactClassifier(tilted())), ClassifierFree()
    for pair in ((term, term), (free, free), (free, term)):
        with pytest.raises(ValueError, match="Matched gives a score term"):
            Matched(*pair)


class Patches(Classifier):
    """Reads images of the codec; rows of every evaluation in `calls`."""

    num_classes, shape = 5, (3, 8, 8)

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weights = torch.nn.Parameter(torch.randn(5, 192, generator=generator) / 14)
        self.calls = []

    def forward(self, x, sigma):
        self.calls.append(len(x))
        return (x.flatten(1) @ self.weights.T.to(x)).tanh() * 3


def tiny_dit():
    net = DiT(size=4, patch=2, channels=4, hidden=16, depth=2, heads=2, num_classes=5).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    net.requires_grad_(False)
    return EpsDenoiser(net, linear_levels(), 5, (4, 4, 4), learns_variance=True)


class Latents:
    """A tiny DiT on latents of 4 channels, a codec, and a classifier of its images."""

    def __init__(self):
        pytest.importorskip("diffusers")
        self.denoiser = tiny_dit()
        made = latent.autoencoder(in_channels=3, latent_channels=4)
        self.codec = KLCodec(made, scale=[0.5] * 4, shift=[0.0] * 4)
        self.codec = self.codec.eval().requires_grad_(False)
        self.classifier = Patches()
        generator = torch.Generator().manual_seed(3)
        self.sigma = torch.tensor([0.5, 2.0, 6.0])
        noise = torch.randn(3, 4, 4, 4, generator=generator)
        self.x, self.y = noise * (1 + self.sigma.reshape(-1, 1, 1, 1)), torch.tensor([0, 3, 4])

    def term(self, **arguments):
        classifier = Decoded(self.classifier, self.codec)
        return ClassifierGuidance(classifier, view=AtDenoised(), **arguments)

    def terms(self, **arguments):
        """The first three channels of everything, as DiT's published sampler guides."""
        free = Channels(ClassifierFree(), 3)
        matched = Matched(Channels(self.term(**arguments), 3), to=free, ratio=0.5)
        return {"free": Scaled(free, weight=1.5), "elucd": Scaled(matched, 1.5)}

    def guided(self, terms):
        return Guided(self.denoiser, terms).predict(self.x, self.sigma, self.y).denoised


@torch.no_grad()
def test_a_decoder_inside_the_gradient_of_a_latent_denoiser():
    world = Latents()
    denoised = world.denoiser(world.x, world.sigma, world.y)
    null = world.denoiser(world.x, world.sigma, torch.full_like(world.y, 5))
    with torch.enable_grad():
        at = denoised.clone().requires_grad_()
        logits = world.classifier(world.codec.decode(at), torch.zeros(3))
        log_p = logits.log_softmax(-1)[torch.arange(3), world.y]
        (gradient,) = torch.autograd.grad(log_p.sum(), at)
    moved = (denoised - null)[:, :3]
    ghat = gradient[:, :3] * rms(moved) / rms(gradient[:, :3])
    got = world.guided(world.terms())
    assert_close(got[:, :3], null[:, :3] + 1.5 * (moved + 0.5 * ghat), rtol=1e-4, atol=1e-4)
    assert_close(got[:, 3:], denoised[:, 3:], rtol=1e-4, atol=1e-4)
    assert (0.5 * ghat).abs().max() > 0.01


@torch.no_grad()
def test_decoding_in_chunks_changes_nothing():
    world = Latents()
    whole = world.guided(world.terms())
    world.classifier.calls.clear()
    chunked = world.guided(world.terms(chunk=1))
    assert world.classifier.calls == [1, 1, 1]
    assert_close(chunked, whole, rtol=1e-5, atol=1e-6)


def test_every_second_step_decodes_in_every_second_step():
    world = Latents()
    calls = []
    predict = world.denoiser.predict
    world.denoiser.predict = lambda x, s, y: (calls.append(len(x)), predict(x, s, y))[1]
    free = Channels(ClassifierFree(), 3)
    matched = Matched(EveryKth(Channels(world.term(), 3), 2), to=free, ratio=0.5)
    grid = ChainGrid(linear_levels(), "5")
    DDIM(grid)(world.denoiser, {"free": free, "elucd": matched}, world.x, world.y, no_noise)
    assert world.classifier.calls == [3, 3, 3]
    assert calls == [6] * 5  # both branches, which the terms share


def test_no_value_is_asked_for_on_the_device():
    """The exact mixture cannot be without values, so the parts are plain sums here."""

    class Sums(Classifier):
        num_classes, shape = 4, (2, 2, 1)

        def forward(self, x, sigma):
            return torch.stack([(x * k).sum((1, 2, 3)) for k in range(4)], dim=1)

    class Halved(ExactDenoiser):
        def predict(self, x, sigma, y):
            return Prediction(x / 2)

    term = ClassifierGuidance(Sums(), view=AtDenoised())
    terms = {
        "switched": Switched(term, Scaled(term, 2.0), 1.0),
        "matched": Matched(term, ClassifierFree()),
    }
    with torch.device("meta"):
        x, y = torch.ones(2, 2, 2, 1), torch.zeros(2, dtype=torch.long)
    assert DDIM(GRID)(Halved(tilted()), terms, x, y, no_noise).is_meta
