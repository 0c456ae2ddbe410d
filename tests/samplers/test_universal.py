"""Universal guidance and self-recurrence, as recorded from the authors' code.

Networks and states are in float64 here: the classifier's max-pooling has near ties, at which the
rounding of float32 decides which pixel gets the gradient.
"""

import math
from functools import partial

import pytest
import torch
from golden_files import load, weights
from oracles import ListedGrid, RecordedNoise, no_noise
from tiny_resnet import elucd_resnet
from torch import nn
from torch.testing import assert_close

from robustguide.classifiers import OffTheShelf, Smooth
from robustguide.denoisers import EpsDenoiser
from robustguide.guidance import ClassifierLoss, Descent, Guided, Universal
from robustguide.interfaces import Denoiser, Prediction
from robustguide.nets import UNet
from robustguide.noise import ChainGrid, linear_levels
from robustguide.samplers import DDIM

LEVELS = linear_levels()
GRID = ChainGrid(LEVELS, "ddim10")
SIGMAS = GRID.sigmas()
DESCRIPTION, RECORDED = load("universal_guidance")
RUNS = {run["run"]: run for run in DESCRIPTION["runs"]}
FREE = [name for name, run in RUNS.items() if run["free_running_comparison"] == "meaningful"]
RECURRENT = ["forward_recur3", "full", "recur_schedule"]
UNMAPPED = "forward_unmapped_timesteps"


class Respaced(nn.Module):
    """Their code tells the network the index in the respaced chain; only replayed here."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x_t, t, y):
        return self.net(x_t, (t / 100).round().to(t.dtype), y)


@pytest.fixture(scope="module")
def networks():
    """The denoiser, the one that is told indices, and the loss."""
    description, tensors = load("gd_unet_adm")
    unet = UNet(**description["constructor"])
    unet.load_state_dict(weights(tensors), strict=True)
    unet.double().eval().requires_grad_(False)
    make = partial(
        EpsDenoiser,
        levels=LEVELS,
        num_classes=10,
        shape=(3, 16, 16),
        has_null=False,
        learns_variance=True,
    )
    resnet = elucd_resnet().double().requires_grad_(False)
    labels = [0] * 10
    for y, target in zip(RECORDED["in.y"], RECORDED["in.target"], strict=True):
        labels[y] = int(target)
    classifier = Smooth(OffTheShelf(resnet, num_classes=7), beta=3.0)
    return make(unet), make(Respaced(unet)), ClassifierLoss(classifier, labels)


def set_up(name, networks):
    """Denoiser, terms and arguments of the sampler of a run."""
    run, (mapped, unmapped, loss) = RUNS[name], networks
    backward = None
    if run["backward_iterations"]:
        rate, cutoff = run["backward_lr"], run["loss_cutoff"]
        backward = Descent(run["backward_iterations"], lr=rate, cutoff=cutoff)
    terms = {}
    if run["forward_weight"] or backward:
        terms = {"universal": Universal(loss, run["forward_weight"], backward)}
    eta = 1.0 if run["sampling_type"] == "ddpm" else 0.0
    arguments = {"clip": 1.0, "eta": eta, "state_dtype": "float64"}
    return unmapped if name == UNMAPPED else mapped, terms, arguments


def repeats(name):
    """Theirs begin with low noise, ours with high."""
    return tuple(reversed(RUNS[name]["recurrence (num_steps list)"]))


def passes(name):
    """The step of every pass, in order."""
    count = RUNS[name]["recurrence (num_steps list)"]
    return [step for step in range(10) for _ in range(count[len(count) * (9 - step) // 10])]


def in_chain(x, step):
    """A state before a step in the units of the chain, as it is recorded."""
    return x.float() / math.sqrt(1 + SIGMAS[step] ** 2)


def in_ours(x_t, step):
    """A state of the chain before a step."""
    return x_t.double() * math.sqrt(1 + SIGMAS[step] ** 2)


def close(name, key, kind="tolerance"):
    allowed = RUNS[name][kind]
    return {"rtol": allowed["rtol"], "atol": allowed["atol"][key]}


@pytest.mark.parametrize("name", FREE)
def test_free_runs(networks, name):
    denoiser, terms, arguments = set_up(name, networks)
    sampler, seen = DDIM(GRID, **arguments), []
    x = sampler.start(RECORDED["in.x_T"], denoiser)
    last = sampler(denoiser, terms, x, RECORDED["in.y"], no_noise, seen.append)
    samples = torch.stack([*(in_chain(o.x, o.place.index) for o in seen[1:]), last.float()])
    key = f"out.{name}.samples"
    assert_close(samples, RECORDED[key], **close(name, key))


def before_and_after(name):
    """States before and after every pass, and the key of what is compared."""
    if name in RECURRENT:
        key = f"out.{name}.recurrence_samples"
        return RECORDED[f"out.{name}.network_inputs"], RECORDED[key], key
    key = f"out.{name}.samples"
    return torch.cat([RECORDED["in.x_T"][None], RECORDED[key][:-1]]), RECORDED[key], key


def published_step(x_t, x_0, steps, eta, noise):
    """Song et al. (2021), eq. 12 and 16, for rows of the given steps, in units of the chain."""
    levels = torch.tensor(SIGMAS, dtype=torch.float64).reshape(-1, 1, 1, 1)
    alpha, alpha_next = 1 / (1 + levels[steps] ** 2), 1 / (1 + levels[steps + 1] ** 2)
    eps = (x_t - alpha.sqrt() * x_0) / (1 - alpha).sqrt()
    fresh = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)).sqrt()
    return alpha_next.sqrt() * x_0 + (1 - alpha_next - fresh**2).sqrt() * eps + fresh * noise


# Of the runs with more than one pass a step, those that are replayed; the first 15 of
# `recur_schedule` are passes of `forward_recur3`.
CHOSEN = {
    "forward_recur3": slice(0, 30, 3),
    "full": slice(2, 30, 3),
    "recur_schedule": slice(15, 20),
}


@pytest.mark.parametrize("name", [name for name in RUNS if name not in FREE])
def test_passes_from_their_recorded_states(networks, name):
    """All of a run make one batch, since rows do not mix."""
    denoiser, terms, arguments = set_up(name, networks)
    before, after, key = before_and_after(name)
    chosen, allowed = CHOSEN.get(name, slice(0, 10)), close(name, key, "tolerance_step_by_step")
    steps = torch.tensor(passes(name))[chosen].repeat_interleave(2)
    x_t, y = before[chosen].flatten(0, 1).double(), RECORDED["in.y"].repeat(len(steps) // 2)
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)[steps]
    x = x_t * (1 + sigma**2).sqrt().reshape(-1, 1, 1, 1)
    with torch.no_grad():
        x_0 = Guided(denoiser, terms, clip=1.0)(x, sigma, y)
    noise = RECORDED["in.noise"][::2][chosen].flatten(0, 1)
    got = published_step(x_t, x_0, steps, arguments["eta"], noise)
    assert_close(got.float(), after[chosen].flatten(0, 1), **allowed)
    recorded = f"out.{name}.pred_xstart"
    if recorded in RECORDED:  # of the last pass of a step
        assert_close(x_0.float().unflatten(0, (10, 2)), RECORDED[recorded], **allowed)


def test_two_runs_begin_alike():
    one, other = (before_and_after(name)[0] for name in ("forward_recur3", "recur_schedule"))
    assert torch.equal(one[:15], other[:15])


class Recording(Denoiser):
    """What a denoiser is given."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.inputs = denoiser, []
        self.num_classes, self.shape = denoiser.num_classes, denoiser.shape
        self.has_null, self.learns_variance = denoiser.has_null, denoiser.learns_variance

    def snap(self, sigma):
        return self.denoiser.snap(sigma)

    def predict(self, x, sigma, y):
        self.inputs.append((x.detach(), sigma))
        return self.denoiser.predict(x, sigma, y)


@pytest.mark.parametrize(("name", "steps"), [("forward_recur3", (1, 9)), ("full", (1,))])
def test_the_passes_of_a_step(networks, name, steps):
    """From its first state, with the noise put back in between; see `passes` for the draws."""
    denoiser, terms, arguments = set_up(name, networks)
    recording = Recording(denoiser)
    before, after, key = before_and_after(name)
    allowed = close(name, key, "tolerance_step_by_step")
    for step in steps:
        first, draws = 3 * step, []
        for index in range(first, first + 3):
            drawn = [RECORDED["in.noise"][2 * index]] if arguments["eta"] and step < 9 else []
            back = [RECORDED["in.noise"][2 * index + 1]] if index < first + 2 else []
            draws += [*drawn, *back]
        noise = RecordedNoise(draws)
        recording.inputs.clear()
        sampler = DDIM(ListedGrid(SIGMAS[step : step + 2]), repeats=3, **arguments)
        x = in_ours(before[first], step)
        got = sampler(recording, terms, x, RECORDED["in.y"], noise)
        assert not noise.draws
        given = torch.stack([in_chain(x, step) for x, _ in recording.inputs])
        assert_close(given, before[first : first + 3], **allowed)
        assert_close(in_chain(got, step + 1), after[first + 2], **allowed)


class Blank(Denoiser):
    """Sees nothing but levels."""

    num_classes, shape = 10, (1, 1, 1)

    def predict(self, x, sigma, y):
        return Prediction(torch.zeros_like(x))

    def snap(self, sigma):
        return LEVELS.snap(sigma)


@pytest.mark.parametrize("name", RUNS)
def test_the_levels_of_all_passes(name):
    """And the number of the draws, of which theirs makes two a pass, used or not."""
    recording, run = Recording(Blank()), RUNS[name]
    sampler = DDIM(GRID, repeats=repeats(name))
    draws = [torch.zeros(1)] * run["noise_draws"]
    noise = RecordedNoise(draws)
    x, y = torch.ones(1, 1, 1, 1), torch.zeros(1, dtype=torch.long)
    sampler(recording, None, sampler.start(x, recording), y, noise)
    times = [round(LEVELS.t(sigma.double()).item()) for _, sigma in recording.inputs]
    if name == UNMAPPED:
        times = [t // 100 for t in times]
    assert times == run["timesteps_seen_by_network"]
    assert len(draws) - len(noise.draws) == len(times) - 10 == len(draws) // 2 - 10
