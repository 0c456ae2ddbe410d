"""Rows given to networks, an image; the methods' own are in tests/guidance/test_costs.py."""

import time
from dataclasses import asdict

import latent
import pytest
import tiny
import torch
from oracles import ExactDenoiser, ListedGrid, Mixture

from robustguide import load_classifier, load_denoiser
from robustguide.classifiers import Decoded, Relabelled
from robustguide.denoisers import Unconditional
from robustguide.guidance import (
    AtDenoised,
    ClassifierFree,
    ClassifierGuidance,
    Guidance,
    Reference,
    Scaled,
    Within,
)
from robustguide.interfaces import Classifier
from robustguide.modules import Generation
from robustguide.modules.cost import Evaluated, counted, timed
from robustguide.noise import ChainGrid, RhoGrid, linear_levels
from robustguide.samplers import DDIM, Ancestral, Heun


@pytest.fixture
def denoiser(runs):
    return load_denoiser(str(runs / "denoiser/denoiser.safetensors"))


@pytest.fixture
def classifier(runs):
    return load_classifier(str(runs / "classifier/classifier.safetensors"))


def cost(module, images=2):
    """What was counted for each image and is not 0; two batches."""
    for index in torch.arange(images).split(1):
        module.test_step((index, torch.zeros_like(index)), 0)
    found = asdict(module.evaluated)
    assert found.pop("images") == images and found.pop("seconds") > 0
    assert (found.pop("watching_seconds") > 0) == (module.reading is not None)
    assert (found.pop("decoding_seconds") > 0) == (module.codec is not None)
    return {name: rows / images for name, rows in found.items() if rows}


def guided(rows, **others):
    """A classifier's forward and backward rows beside those of other networks."""
    return {"classifier_forward": rows, "classifier_backward": rows} | others


TEN, FIFTY = (Ancestral(ChainGrid(linear_levels(), steps), clip=1.0) for steps in ("10", "50"))
OWN = {"denoiser_evaluations": 10}


def test_fifty_steps(denoiser, classifier):
    guidance, fifty = ClassifierGuidance(classifier), {"denoiser_evaluations": 50}
    for terms, expected in (
        ({}, fifty),
        ({"free": Scaled(ClassifierFree(), scale=1.0)}, {"denoiser_evaluations": 100}),
        ({"guide": Scaled(guidance, scale=1.0)}, guided(50, **fifty)),
        (
            {"guide": Scaled(guidance, scale=0.0), "free": Scaled(ClassifierFree(), weight=1)},
            fifty,
        ),
        (
            {"guide": Scaled(guidance, scale=1.0), "free": Scaled(ClassifierFree(), scale=1)},
            guided(50, denoiser_evaluations=100),
        ),
    ):
        assert cost(Generation(denoiser, FIFTY, terms)) == expected


def test_heun_evaluates_twice_but_in_the_end(denoiser, classifier):
    terms = {"guide": Scaled(ClassifierGuidance(classifier), scale=1.0)}
    sampler = Heun(grid=RhoGrid(sigma_min=0.1, steps=18))
    expected = guided(35, denoiser_evaluations=35)
    assert cost(Generation(denoiser, sampler, terms)) == expected


def test_one_that_reads_along_is_counted_apart(denoiser, classifier):
    """Even when it is the classifier that guides, or holds it."""
    terms = {"guide": Scaled(ClassifierGuidance(classifier), scale=1.0)}
    for observer in (classifier, Relabelled(classifier, list(range(10)))):
        module = Generation(denoiser, TEN, terms, observer=observer, watched_steps=5)
        assert cost(module) == guided(10, observer_forward=5, **OWN)


def test_an_interval_costs_its_steps(denoiser, classifier):
    grid = TEN.grid.sigmas()
    term = Within(ClassifierGuidance(classifier), sigma_min=grid[6], sigma_max=grid[2])
    assert cost(Generation(denoiser, TEN, {"guide": term})) == guided(4, **OWN)


def test_a_reference_network_is_counted_apart(denoiser, runs):
    weaker = load_denoiser(str(runs / "denoiser/denoiser.safetensors"))
    for reference in (weaker, Unconditional(weaker)):
        module = Generation(denoiser, TEN, {"auto": Reference(reference)})
        assert cost(module) == {"reference_evaluations": 10, **OWN}


def test_a_wrapper_and_what_it_wraps_are_one_network(denoiser):
    """Whichever of them is guided, and whichever a term has for its reference."""
    wrapped, other = Unconditional(denoiser), Unconditional(denoiser)
    assert cost(Generation(wrapped, TEN)) == OWN
    for own, reference in ((wrapped, denoiser), (denoiser, wrapped), (wrapped, other)):
        module = Generation(own, TEN, {"auto": Reference(reference)})
        assert cost(module) == {"denoiser_evaluations": 20}


def test_a_classifier_and_one_around_it_count_once_each(denoiser, classifier):
    terms = {
        "guide": Scaled(ClassifierGuidance(classifier), scale=1.0),
        "around": Scaled(ClassifierGuidance(Relabelled(classifier, range(10))), scale=1.0),
    }
    assert cost(Generation(denoiser, TEN, terms)) == guided(20, **OWN)


class Images(Classifier):
    """Reads the mean of decoded images, by arguments with names."""

    num_classes, shape = 2, latent.SHAPE

    def forward(self, x, sigma):
        mean = x.mean((1, 2, 3))
        return torch.stack([mean, -mean], dim=1)


class ByName(Classifier):
    """Asks by name, which is the same to what counts."""

    def __init__(self, classifier, codec):
        super().__init__()
        self.classifier, self.codec = classifier, codec
        self.num_classes, self.shape = 2, latent.LATENTS

    def forward(self, x, sigma):
        return self.classifier(sigma=sigma, x=self.codec.decode(x_0=x))


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("kind", [Decoded, ByName])
def test_decoding_inside_a_term(kind, chunk):
    """Not of images at the end, nor of watched ones, nor what is decoded again on the way back."""
    codec, grid = latent.codec(chunk=chunk), ListedGrid((4.0, 2.0, 1.0, 0.5, 0.0))
    denoiser = ExactDenoiser(Mixture(torch.randn(2, *latent.LATENTS)))
    term = ClassifierGuidance(kind(Images(), codec), view=AtDenoised())
    terms = {"guide": Within(Scaled(term, scale=0.1), sigma_max=2.0)}
    module = Generation(denoiser, DDIM(grid), terms, codec=codec, watched_steps=2)
    answer = module.test_step((torch.arange(3), torch.tensor([0, 1, 0])), 0)
    assert answer["images"].shape == (3, *latent.SHAPE)
    found = {name: rows / 3 for name, rows in asdict(module.evaluated).items() if rows}
    assert found.pop("seconds") > 0 and found.pop("decoding_seconds") > 0
    expected = {"images": 1, "denoiser_evaluations": 4, "decoder_calls": 3}
    assert found == guided(3, **expected)


class Asks(Guidance):
    """Calls a function of a step."""

    def __init__(self, function, *networks, needs_graph=False):
        super().__init__()
        self.function, self.needs_graph = function, needs_graph
        self.networks = torch.nn.ModuleList(networks)

    def forward(self, step):
        self.function(step)
        return torch.zeros_like(step.x)


def test_only_gradients_that_pass_a_network_are_counted(denoiser, classifier):
    """Not those that end at its answer, nor of a network that was asked without a graph."""

    def ends_at_the_denoised(step):
        denoised = step.denoised
        torch.autograd.grad(denoised.square().sum(), denoised, retain_graph=True)

    def looks(step):
        logits = classifier(step.denoised.detach(), step.sigma)
        assert not logits.requires_grad

    def of_logits_alone(step):
        logits = classifier(step.denoised, step.sigma)
        torch.autograd.grad(logits.square().sum(), logits, retain_graph=True)

    for function, expected in (
        (ends_at_the_denoised, {}),
        (looks, {"classifier_forward": 10}),
        (of_logits_alone, {"classifier_forward": 10}),
        (lambda step: step.gradient(step.denoised), {"denoiser_backward": 10}),
        (
            lambda step: step.gradient(classifier(step.denoised, step.sigma)),
            guided(10, denoiser_backward=10),
        ),
    ):
        terms = {"asks": Asks(function, classifier, needs_graph=True)}
        assert cost(Generation(denoiser, TEN, terms)) == OWN | expected


def test_other_networks_of_a_term_are_not_counted(denoiser):
    loss = torch.nn.Linear(8, 1)
    terms = {"asks": Asks(lambda step: loss(step.denoised), loss)}
    assert cost(Generation(denoiser, TEN, terms)) == OWN


def test_some_rows_alone(denoiser):
    """A term that asks for one image of four, in every step."""
    row = torch.tensor([2])
    terms = {"asks": Asks(lambda step: step.evaluate(step.null[row], None, None, row))}
    module = Generation(denoiser, TEN, terms)
    module.test_step((torch.arange(4), torch.arange(4)), 0)
    assert module.evaluated.images == 4
    assert module.evaluated.denoiser_evaluations == 4 * 10 + 10


def test_nothing_stays_behind(denoiser, classifier):
    terms = {"guide": Scaled(ClassifierGuidance(classifier), scale=1.0)}
    module = Generation(denoiser, TEN, terms)
    cost(module)
    assert "predict" not in vars(denoiser) and "forward" not in vars(classifier)
    y = torch.full((2,), 3)
    with pytest.raises(IndexError), torch.no_grad():
        module.generate((torch.arange(2), y + 90))
    assert "predict" not in vars(denoiser) and "forward" not in vars(classifier)
    with pytest.raises(IndexError), counted(denoiser, module.guidance, Evaluated()):
        denoiser(torch.zeros(2, 1, 8, 8), torch.ones(2), y + 90)
    counts = Evaluated()
    with counted(denoiser, module.guidance, counts):
        denoiser(torch.zeros(2, 1, 8, 8), torch.ones(2), y)
    assert counts.denoiser_evaluations == 2  # one that failed is over, too


def test_what_stood_before_a_method_stays_there(denoiser, classifier):
    """A method that one denoiser alone has, as a profiler or a user may set it, is put back."""
    asked = []
    predict = denoiser.predict

    def listening(x, sigma, y):
        asked.append(len(x))
        return predict(x, sigma, y)

    denoiser.predict = listening
    for _ in range(2):
        with counted(denoiser, classifier, Evaluated()):
            denoiser.predict(torch.zeros(3, 1, 8, 8), torch.ones(3), torch.zeros(3).long())
    assert denoiser.predict is listening and asked == [3, 3]


def test_time_of_blocks_adds_up(monkeypatch):
    now = iter([10.0, 12.5, 20.0, 20.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    evaluated = Evaluated()
    for _ in range(2):
        with timed(evaluated, torch.device("cpu")):
            pass
    assert evaluated.seconds == 2.75 and evaluated.watching_seconds == 0


def test_each_time_has_a_sum_of_its_own(monkeypatch):
    now = iter([1.0, 1.5, 2.0, 2.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    evaluated = Evaluated()
    for name in ("watching_seconds", "decoding_seconds"):
        with timed(evaluated, torch.device("cpu"), name):
            pass
    assert (evaluated.watching_seconds, evaluated.decoding_seconds) == (0.5, 0.25)
    assert evaluated.seconds == 0


def test_the_clock_waits_for_a_device(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    with timed(Evaluated(), torch.device("cuda:1")):
        assert waited == [torch.device("cuda:1")]
    assert len(waited) == 2


def test_the_cost_is_in_the_results(runs, tmp_path, json_of):
    path = runs / "classifier/classifier.safetensors"
    config = tiny.generation(
        runs / "denoiser/denoiser.safetensors",
        guidance={"guide": tiny.guided(path)},
        observer=tiny.loaded("classifier", path),
        callbacks=[tiny.spec("callbacks.TrajectoryCalibration")],
    )
    tiny.run(tmp_path / "run", "test", config)
    found = json_of(tmp_path / "run")["cost"]
    seconds = [found.pop(f"{name}seconds_per_image") for name in ("", "watching_")]
    assert min(seconds) > 0 and 20 * sum(seconds) < found.pop("seconds") < 60
    assert found.pop("peak_memory_bytes") > 2**26  # Python with torch
    assert found == {
        "steps": 0,
        "peak_memory_kind": "resident in the process",
        "denoiser_evaluations": 10,
        "reference_evaluations": 0,
        "denoiser_backward": 0,
        "classifier_forward": 10,
        "classifier_backward": 10,
        "decoder_calls": 0,
        "decoding_seconds_per_image": 0,
        "observer_forward": 3,
    }
