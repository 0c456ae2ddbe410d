"""Rows given to networks, an image."""

import pytest
import tiny
import torch

from robustguide import load_classifier, load_denoiser
from robustguide.denoisers import Unconditional
from robustguide.guidance import ClassifierFree, ClassifierGuidance, Reference, Scaled, Within
from robustguide.interfaces import Classifier, Denoiser
from robustguide.modules import Generation
from robustguide.modules.cost import outermost
from robustguide.noise import ChainGrid, RhoGrid, linear_levels
from robustguide.samplers import Ancestral, Heun


@pytest.fixture
def denoiser(runs):
    return load_denoiser(str(runs / "denoiser/denoiser.safetensors"))


@pytest.fixture
def classifier(runs):
    return load_classifier(str(runs / "classifier/classifier.safetensors"))


def cost(module, images=2):
    """Rows of each kind, for each image; two batches."""
    for index in torch.arange(images).split(1):
        module.test_step((index, torch.zeros_like(index)), 0)
    found = module.evaluated
    assert found.images == images
    return [rows / images for rows in (found.denoiser, found.classifier, found.observer)]


FIFTY = Ancestral(grid=ChainGrid(linear_levels(), "50"), clip=1.0)


def test_fifty_steps(denoiser, classifier):
    guidance = ClassifierGuidance(classifier)
    for terms, expected in (
        ({}, [50, 0, 0]),
        ({"free": Scaled(ClassifierFree(), scale=1.0)}, [100, 0, 0]),
        ({"guide": Scaled(guidance, scale=1.0)}, [50, 50, 0]),
        (
            {"guide": Scaled(guidance, scale=0.0), "free": Scaled(ClassifierFree(), weight=1)},
            [50, 0, 0],
        ),
        (
            {"guide": Scaled(guidance, scale=1.0), "free": Scaled(ClassifierFree(), scale=1)},
            [100, 50, 0],
        ),
        (
            {"a": Scaled(ClassifierFree(), scale=1.0), "b": Scaled(ClassifierFree(), scale=1)},
            [100, 0, 0],
        ),
    ):
        assert cost(Generation(denoiser, FIFTY, terms)) == expected


def test_heun_evaluates_twice_but_in_the_end(denoiser, classifier):
    terms = {"guide": Scaled(ClassifierGuidance(classifier), scale=1.0)}
    assert cost(Generation(denoiser, Heun(grid=RhoGrid(sigma_min=0.1, steps=18)), terms)) == [
        35,
        35,
        0,
    ]


def test_one_that_reads_along_is_counted_apart(denoiser, classifier):
    """Even when it is the classifier that guides."""
    terms = {"guide": Scaled(ClassifierGuidance(classifier), scale=1.0)}
    module = Generation(denoiser, FIFTY, terms, observer=classifier, watched_steps=10)
    assert cost(module) == [50, 50, 10]


def test_an_interval_costs_its_steps(denoiser, classifier):
    grid = FIFTY.grid.sigmas()
    term = Within(ClassifierGuidance(classifier), sigma_min=grid[30], sigma_max=grid[10])
    assert cost(Generation(denoiser, FIFTY, {"guide": term})) == [50, 20, 0]


def test_a_reference_network_counts_as_a_denoiser(denoiser, runs):
    weaker = load_denoiser(str(runs / "denoiser/denoiser.safetensors"))
    assert cost(Generation(denoiser, FIFTY, {"auto": Reference(weaker)})) == [100, 0, 0]


def test_a_wrapper_and_what_it_wraps_count_once(denoiser):
    """Also where the wrapped network is, by itself, the reference of a term."""
    wrapped = Unconditional(denoiser)
    assert cost(Generation(wrapped, FIFTY)) == [50, 0, 0]
    assert cost(Generation(wrapped, FIFTY, {"auto": Reference(denoiser)})) == [100, 0, 0]


def test_nothing_stays_behind(denoiser, classifier):
    terms = {"guide": Scaled(ClassifierGuidance(classifier), scale=1.0)}
    module = Generation(denoiser, FIFTY, terms)
    cost(module)
    assert "predict" not in vars(denoiser) and not classifier._forward_pre_hooks
    y = torch.full((2,), 3)
    with pytest.raises(IndexError), torch.no_grad():
        module.generate((torch.arange(2), y + 90))
    assert "predict" not in vars(denoiser) and not classifier._forward_pre_hooks


def test_outermost(denoiser, classifier):
    wrapped = Unconditional(denoiser)
    held = torch.nn.ModuleDict({"a": wrapped, "b": ClassifierGuidance(classifier), "c": denoiser})
    assert outermost(held, Denoiser) == [wrapped, denoiser]
    assert outermost(held, Classifier) == [classifier]


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
    assert found["denoiser_evaluations"] == found["classifier_evaluations"] == 10
    assert found["observer_evaluations"] == 3 and 0 < found["seconds"] < 60
