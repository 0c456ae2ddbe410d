"""Whole runs recorded from the reference implementations, with their networks."""

import math

import pytest
import torch
from golden_files import load, tolerance, weights
from oracles import RecordedNoise, no_noise
from torch.testing import assert_close

from robustguide.checkpoints.keys_dit import to_ours
from robustguide.classifiers import Timed
from robustguide.denoisers import EpsDenoiser
from robustguide.guidance import (
    ClassifierGuidance,
    Guidance,
    Guided,
    Scaled,
    dit_classifier_free,
)
from robustguide.nets import DiT, EncoderUNet, UNet
from robustguide.noise import ChainGrid, linear_levels
from robustguide.samplers import DDIM, Ancestral, Learned

LEVELS = linear_levels()
TEN = ChainGrid(LEVELS, "10")
SAMPLERS = {
    "ddpm": (Ancestral, {"clip": 1.0, "variance": Learned()}),
    "ddpm_noclip": (Ancestral, {"variance": Learned()}),
    "ddim_eta0": (DDIM, {"clip": 1.0}),
    "ddim_eta1": (DDIM, {"clip": 1.0, "eta": 1.0}),
}
RUNS = [
    ("ddpm", 0),
    ("ddpm", 1),
    ("ddpm", 4),
    ("ddpm_noclip", 4),
    ("ddim_eta0", 0),
    ("ddim_eta0", 1),
    ("ddim_eta0", 4),
    ("ddim_eta1", 0),
    ("ddim_eta1", 4),
]


def network(name, cls):
    description, tensors = load(name)
    net = cls(**description["constructor"])
    net.load_state_dict(weights(tensors), strict=True)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def adm():
    unet = network("gd_unet_adm", UNet)
    classifier = network("gd_classifier_attention", EncoderUNet)
    denoiser = EpsDenoiser(unet, LEVELS, 10, (3, 16, 16), has_null=False, learns_variance=True)
    return denoiser, ClassifierGuidance(Timed(classifier, LEVELS, 10))


class Watched(Guidance):
    """Keeps the gradients at x_t that a term's displacements stand for."""

    def __init__(self, term):
        super().__init__()
        self.term, self.gradients = term, []

    def forward(self, step):
        displacement = self.term(step)
        sigma = step.place.sigma
        self.gradients.append(displacement / sigma**2 * math.sqrt(1 + sigma**2))
        return displacement


def states_in_chain(seen, last):
    """States after every step, in the units of the chain."""
    after = [o.x / math.sqrt(1 + o.place.sigma**2) for o in seen[1:]]
    return torch.stack([*after, last])


@pytest.mark.parametrize(
    ("kind", "scale", "state_dtype"),
    [(*run, "float32") for run in RUNS] + [(*run, "float64") for run in RUNS if run[1] == 4],
)
def test_guided_diffusion(adm, kind, scale, state_dtype):
    denoiser, guidance = adm
    description, tensors = load("gd_trajectories")
    cls, arguments = SAMPLERS[kind]
    sampler = cls(TEN, state_dtype=state_dtype, **arguments)
    watched, seen = Watched(Scaled(guidance, float(scale))), []
    noise = RecordedNoise(tensors["in.noise"])
    x = sampler.start(tensors["in.x_T"], denoiser)
    last = sampler(denoiser, {"classifier": watched}, x, tensors["in.y"], noise, seen.append)
    samples = states_in_chain(seen, last)
    results = {
        "samples": samples,
        "final": samples[-1],
        "gradients": torch.stack(watched.gradients),
        "pred_xstart": torch.stack([o.denoised for o in seen]),  # guided where DDIM's is
    }
    prefix, compared = f"out.{kind}.s{scale}.", 0
    for key, want in tensors.items():
        if key.startswith(prefix):
            got = results[key.removeprefix(prefix)]
            assert_close(got.float(), want, **tolerance(description, key))
            compared += 1
    assert compared


@pytest.fixture(scope="module")
def dit():
    pytest.importorskip("diffusers")
    net = DiT(size=8, patch=2, channels=4, hidden=32, depth=2, heads=4, num_classes=10)
    net.load_state_dict(to_ours(weights(load("dit_a")[1]), prefix=""))
    return net.eval().requires_grad_(False)


def dit_denoiser(net):
    return EpsDenoiser(net, LEVELS, 10, (4, 8, 8), learns_variance=True)


def test_dit_guided_at_one_level(dit):
    """Its `forward_with_cfg`: a weight of 4 on three of four channels."""
    description, tensors = load("dit_a")
    x_t, t, y = (tensors[f"in.cfg_{name}"][:3] for name in ("x", "t", "y"))
    sigma = torch.tensor(LEVELS.sigmas[t.numpy()], dtype=torch.float32)
    scale = (1 + sigma**2).sqrt().reshape(-1, 1, 1, 1)
    terms = {"free": dit_classifier_free(description["cfg_scale"])}
    with torch.no_grad():
        prediction = Guided(dit_denoiser(dit), terms).predict(scale * x_t, sigma, y)
    eps_hat = (scale * x_t - prediction.denoised) / sigma.reshape(-1, 1, 1, 1)
    got = torch.cat([eps_hat, 2 * prediction.fraction - 1], dim=1)
    assert_close(got, tensors["out.cfg"][:3], **tolerance(description, "out.cfg"))


@pytest.mark.parametrize("state_dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["p_sample", "ddim"])
def test_dit_sampling_with_classifier_free_guidance(dit, kind, state_dtype):
    """The conditional half; the null half of the reference is fed the other half's image."""
    description, tensors = load("dit_a")
    grid = ChainGrid(LEVELS, description["sampler"]["create_diffusion"])
    assert grid.indices() == description["sampler"]["timestep_map"]
    if kind == "ddim":
        sampler, noise = DDIM(grid, state_dtype=state_dtype), no_noise
    else:
        sampler = Ancestral(grid, state_dtype=state_dtype, variance=Learned())
        noise = RecordedNoise(tensors["in.sample_noise"][:, :3])
    terms = {"free": dit_classifier_free(description["cfg_scale"])}
    seen = []
    denoiser = dit_denoiser(dit)
    x = sampler.start(tensors["in.sample_x_T"][:3], denoiser)
    last = sampler(denoiser, terms, x, tensors["in.cfg_y"][:3], noise, seen.append)
    results = {
        "samples": states_in_chain(seen, last),
        "pred_xstart": torch.stack([o.denoised for o in seen]),
    }
    for name, got in results.items():
        if (key := f"out.{kind}.{name}") in tensors:
            close = tolerance(description, key)
            assert_close(got.float(), tensors[key][:, :3], **close)
