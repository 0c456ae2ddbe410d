"""Guidance in an interval of EDM's steps, against the runs of those who proposed it."""

import pytest
import torch
from golden_files import load, weights
from oracles import RecordedNoise, no_noise
from torch.testing import assert_close

from robustguide.denoisers import EDMDenoiser
from robustguide.guidance import Within, WithinSteps, edm2_guidance
from robustguide.nets import DhariwalUNet, SongUNet
from robustguide.noise import RhoGrid
from robustguide.samplers import Heun, SeededNoise

DESCRIPTION, TENSORS = load("guidance_interval")
RUNS = {settings["run"]: settings for settings in DESCRIPTION["runs"]}
CHURN = {
    "S_churn": "churn",
    "S_min": "churn_min",
    "S_max": "churn_max",
    "S_noise": "churn_noise",
}


def network(name, cls):
    """A recorded network as a denoiser, and the levels at which it will be asked."""
    description, tensors = load(name)
    arguments = dict(description["constructor"])
    classes, side = arguments["label_dim"], arguments["img_resolution"]
    channels = arguments.pop("img_channels")
    del arguments["model_type"]
    net = cls(in_channels=channels, out_channels=channels, **arguments)
    net.load_state_dict(weights(tensors, "model.model."))
    net.eval().requires_grad_(False)
    denoiser = EDMDenoiser(net, classes, (channels, side, side))
    levels, predict = [], denoiser.predict

    def noted(x, sigma, y):
        levels.append(sigma[0].item())
        return predict(x, sigma, y)

    denoiser.predict = noted
    return denoiser, levels


@pytest.mark.parametrize("run", RUNS)
def test_recorded_runs(run):
    settings = RUNS[run]
    arguments = settings["arguments"]
    conditional, asked = network("edm_dhariwal", DhariwalUNet)
    unconditional, asked_too = network("edm_song_ddpmpp", SongUNet)
    first, last = settings["guidance_interval"] or (0, arguments["num_steps"] - 1)
    term = edm2_guidance(arguments["G"], unconditional)
    terms = {"guide": WithinSteps(term, first, last)} if settings["uncond_net_given"] else None
    churn = {ours: arguments[theirs] for theirs, ours in CHURN.items() if theirs in arguments}
    sampler, noise = Heun(RhoGrid(arguments["num_steps"]), None, "float64", **churn), no_noise
    if churn:  # theirs draws at every step, and multiplies by 0 where churn does not act
        acts = [0.05 <= sigma <= 50 for sigma in sampler.grid.sigmas()[:-1]]
        recorded = TENSORS[f"in.{run}.noise"]
        noise = RecordedNoise(d for d, act in zip(recorded, acts, strict=True) if act)
    x = sampler.start(TENSORS["in.latents"], conditional)
    x = sampler(conditional, terms, x, TENSORS["in.labels_onehot"].argmax(1), noise)
    tolerance = settings["tolerance"]
    close = {"rtol": tolerance["rtol"], "atol": tolerance["atol"][f"out.{run}.x"]}
    assert_close(x.float(), TENSORS[f"out.{run}.x"], **close)
    for got, key in ((asked, "cond"), (asked_too, "uncond")):
        want = TENSORS[f"out.{run}.{key}_sigmas"].tolist()
        assert got == pytest.approx(want, rel=1e-12)


def test_an_interval_of_noise_counts_every_evaluation_by_its_own_level():
    """A level inside is asked of the other network as corrector of one step, as predictor too."""
    conditional, _ = network("edm_dhariwal", DhariwalUNet)
    unconditional, asked = network("edm_song_ddpmpp", SongUNet)
    sampler = Heun(RhoGrid(6), None, "float64")
    levels = sampler.grid.sigmas()
    term = Within(edm2_guidance(2.0, unconditional), levels[4], levels[2])
    x = sampler.start(TENSORS["in.latents"][:1], conditional)
    sampler(conditional, {"guide": term}, x, TENSORS["in.labels_onehot"][:1].argmax(1), no_noise)
    want = [levels[2], levels[2], levels[3], levels[3]]
    assert asked == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("kind", ["class_given", "class_zero", "class_none"])
def test_the_first_noise_of_a_seed(kind):
    """A class enters their seed by a hash of the pair, unless it is 0 or not given."""
    seeding = DESCRIPTION["seeding"]
    seeds = seeding["hashed_seeds"] if kind == "class_given" else seeding["seeds"]
    latents = TENSORS[f"out.seeding.{kind}.latents"]
    assert torch.equal(SeededNoise(seeds).draw(latents.shape[1:]), latents)
