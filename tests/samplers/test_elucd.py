"""Whole runs of EluCD recorded from its published code: ADM's sampler and EDM's, by one ResNet."""

import math
from dataclasses import dataclass

import pytest
import torch
from golden_files import load, tolerance, weights
from oracles import RecordedNoise
from recorded_edm import denoiser as edm_denoiser
from recorded_edm import labels
from tiny_resnet import elucd_resnet
from torch.testing import assert_close

from robustguide.classifiers import OffTheShelf, Smooth
from robustguide.denoisers import EpsDenoiser
from robustguide.guidance import (
    AtDenoised,
    AtNormalizedState,
    ClassifierGuidance,
    Guidance,
    RawLogit,
    Scaled,
    Tempered,
    View,
)
from robustguide.nets import UNet
from robustguide.noise import ChainGrid, RhoGrid, expand, linear_levels
from robustguide.samplers import Ancestral, Heun, Learned, Nudge, ReleasedSine
from robustguide.samplers.ancestral import GuidanceVariance

LEVELS = linear_levels()
TEN = ChainGrid(LEVELS, "10")


def resnet(beta):
    """Sees images in [-1, 1] as they are, in their own size."""
    shelf = OffTheShelf(elucd_resnet(), 7, mean=[0.5], std=[0.5])
    return Smooth(shelf, beta).eval().requires_grad_(False)


@dataclass(frozen=True)
class Kept(GuidanceVariance):
    """Keeps what a schedule adds, in units of x_t."""

    schedule: GuidanceVariance
    added: list

    def __call__(self, variance, run, place):
        widened = self.schedule(variance, run, place)
        unit = 1 + run.levels(place)[1] ** 2
        self.added.append(((widened.double() - variance.double()) / unit)[0, 0, 0, 0])
        return widened


class KeptGradients(Guidance):
    """Keeps the gradients at x_t that a term's displacements stand for."""

    def __init__(self, term):
        super().__init__()
        self.term, self.kept = term, []

    def forward(self, step):
        displacement = self.term(step)
        sigma = step.place.sigma
        self.kept.append(displacement / sigma**2 * math.sqrt(1 + sigma**2))
        return displacement


@pytest.fixture(scope="module")
def unet():
    description, tensors = load("gd_unet_adm")
    net = UNet(**description["constructor"])
    net.load_state_dict(weights(tensors), strict=True)
    return net.eval().requires_grad_(False)


def adm_denoiser(net):
    return EpsDenoiser(net, LEVELS, 10, (3, 16, 16), has_null=False, learns_variance=True)


def elucd_adm(run):
    """Term and schedule of a recorded run; the labels of the run are among the first seven."""
    settings = load("elucd_ddpm")[0]["runs"][run]
    joint = settings["joint_temperature"]
    objective = Tempered(joint, joint * settings["margin_temperature_discount"])
    beta = settings["softplus_beta"]
    term = ClassifierGuidance(
        resnet(math.inf if isinstance(beta, str) else beta),
        labels=[0, 1, 2, 3, 4, 5, 6, 0, 0, 0],
        objective=objective,
        view=AtDenoised(),
    )
    kept = KeptGradients(Scaled(term, settings["classifier_scale"]))
    return kept, Kept(ReleasedSine(settings["gamma_factor"]), [])


@pytest.mark.parametrize("state_dtype", ["float32", "float64"])
@pytest.mark.parametrize("run", ["plain", "released", "strong"])
def test_ancestral_runs(unet, run, state_dtype):
    description, tensors = load("elucd_ddpm")
    term, schedule = elucd_adm(run)
    sampler = Ancestral(TEN, 1.0, state_dtype, variance=Learned(), guidance_variance=schedule)
    denoiser, seen = adm_denoiser(unet), []
    noise = RecordedNoise(tensors["in.noise"])
    x = sampler.start(tensors["in.x_T"], denoiser)
    last = sampler(denoiser, {"elucd": term}, x, tensors["in.y"], noise, seen.append)
    after = [o.x / math.sqrt(1 + o.place.sigma**2) for o in seen[1:]]
    results = {
        "samples": torch.stack([*after, last]),
        "pred_xstart": torch.stack([o.denoised for o in seen]),
        "gradients": torch.stack(term.kept),
        "add_value": torch.stack(schedule.added),
    }
    for name, got in results.items():
        want = tensors[f"out.{run}.{name}"]
        close = tolerance(description, f"out.{run}.{name}")
        assert_close(got.to(want), want, **close)
    assert results["gradients"].abs().max() > 100 * close["atol"]


class KeptDirections(Guidance):
    """Keeps the gradients at the images that a term's view shows."""

    def __init__(self, term):
        super().__init__()
        self.term, self.kept = term, []

    def forward(self, step):
        displacement = self.term(step)
        size = step.x.square().flatten(1).mean(1).sqrt().clamp_min(1)
        self.kept.append(displacement * expand(size / step.sigma**2, step.x))
        return displacement


class KeptImages(View):
    """Keeps what a view shows."""

    def __init__(self, view):
        self.view, self.kept, self.clean = view, [], view.clean

    def point(self, step):
        images = self.view.point(step)
        self.kept.append(images)
        return images

    def pull(self, step, gradient):
        return self.view.pull(step, gradient)


@pytest.mark.parametrize("run", ["released", "strong_churn"])
def test_nudged_runs_of_edm(run):
    _, tensors = load("elucd_edm")
    settings = load("elucd_edm")[0]["runs"][run]
    arguments, allowed = settings["arguments"], settings["tolerance"]
    _, _, denoiser = edm_denoiser("edm_dhariwal")
    marginal = arguments["uncond_temperature"]
    objective = RawLogit() if marginal == 0 else Tempered(1.0, marginal)
    view = KeptImages(AtNormalizedState())
    sampler = Heun(
        RhoGrid(arguments["num_steps"]),
        state_dtype="float64",
        churn=arguments.get("S_churn", 0),
        churn_min=arguments.get("S_min", 0),
        churn_max=arguments.get("S_max", math.inf),
        churn_noise=arguments.get("S_noise", 1),
        nudge=Nudge(arguments["max_guidance"], arguments["add_factor"]),
    )
    # The published code draws at every step, and multiplies by 0 where churn does not act.
    acts = [sampler.gamma(sigma, 10) > 0 for sigma in sampler.grid.sigmas()[:-1]]
    drawn = zip(tensors[f"in.{run}.noise"], acts, strict=True)
    noise = RecordedNoise([draw for draw, act in drawn if act])
    term = ClassifierGuidance(resnet(arguments["softplus_beta"]), objective=objective, view=view)
    gradients = KeptDirections(term)
    x, seen = sampler.start(tensors["in.latents"], denoiser), []
    x = sampler(denoiser, {"elucd": gradients}, x, labels(tensors), noise, seen.append)
    results = {
        "x": x,
        "x_hat": torch.stack([o.x for o in seen]),
        "classifier_input": torch.stack(view.kept),
        "classifier_grad": torch.stack(gradients.kept),
    }
    for name, got in results.items():
        want, atol = tensors[f"out.{run}.{name}"], allowed["atol"][f"out.{run}.{name}"]
        assert_close(got.to(want), want, rtol=allowed["rtol"], atol=atol)
    changed = (x - tensors[f"out.{run}.x_unguided"]).abs().mean().item()
    assert changed == pytest.approx(settings["mean_abs_change_from_unguided"], rel=1e-4)
    assert not noise.draws
