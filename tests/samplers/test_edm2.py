"""EDM2's runs, unguided and guided by other networks, with our sampler and guidance."""

import pytest
import torch
from golden_files import load
from oracles import RecordedNoise, no_noise
from recorded_edm2 import edm2_denoiser
from torch.testing import assert_close

from robustguide.guidance import edm2_guidance
from robustguide.interfaces import to_pixels
from robustguide.noise import RhoGrid
from robustguide.samplers import Heun, SeededNoise

RUNS = [
    "unguided",
    "unguided_churn",
    "unguided_steps32",
    "gnet_given_weight1",
    "gnet_none_weight1.4",
    "cfg_1.4",
    "cfg_2.1",
    "cfg_1.4_churn",
    "autog_1.4",
    "autog_2.1",
    "autog_2.1_churn",
    "autog_2.1_f64",
    "autog_0.5",
]
CHURN = {
    "S_churn": "churn",
    "S_min": "churn_min",
    "S_max": "churn_max",
    "S_noise": "churn_noise",
}


def watched(name):
    """A recorded network, and its calls: state, level, answer."""
    _, _, denoiser = edm2_denoiser(name)
    calls, predict = [], denoiser.predict

    def record(x, sigma, y):
        prediction = predict(x, sigma, y)
        calls.append((x, sigma, prediction.denoised))
        return prediction

    denoiser.predict = record
    return denoiser, calls


def terms(settings, net):
    """The run's guidance, and the calls of the guiding network."""
    if settings["gnet"] is None:
        return {}, []
    guide, calls = (net, []) if settings["gnet"].startswith("same") else watched(settings["gnet"])
    weight = settings["arguments"]["guidance"]
    return {"guide": edm2_guidance(weight, guide)}, calls


def sampler(arguments):
    churn = {ours: arguments[theirs] for theirs, ours in CHURN.items() if theirs in arguments}
    dtype = arguments.get("dtype", "float32")
    return Heun(RhoGrid(arguments["num_steps"]), state_dtype=dtype, **churn)


def close(settings, run):
    tolerance = settings["tolerance"]
    return {"rtol": tolerance["rtol"], "atol": tolerance["atol"][f"out.{run}.x"]}


@pytest.mark.parametrize("run", RUNS)
def test_recorded_runs(run):
    description, tensors = load("edm2_samplers")
    (settings,) = [each for each in description["runs"] if each["run"] == run]
    net, calls = watched(settings["net"])
    guidance, guide_calls = terms(settings, net)
    heun = sampler(settings["arguments"])
    draws = tensors.get(f"in.{run}.noise", ())
    noise = RecordedNoise(draws) if len(draws) else no_noise
    y = tensors["in.labels_onehot"].argmax(1)
    x = heun(net, guidance, heun.start(tensors["in.noise_x_T"], net), y, noise)
    assert_close(x, tensors[f"out.{run}.x"], **close(settings, run))
    assert not (len(draws) and noise.draws)
    check_calls(run, settings, tensors, calls, guide_calls)


def check_calls(run, settings, tensors, calls, guide_calls):
    """Levels of all calls, inputs and answers of the first ones, and the number of each."""
    sigmas, counts = tensors[f"out.{run}.net_sigmas"], (len(calls), len(guide_calls))
    if run.startswith("gnet_none"):  # ours asks a network once what theirs asks twice
        sigmas = sigmas[::2]
        assert counts == (settings["network_calls"] // 2, 0)
    else:
        assert counts == (settings["network_calls"], settings["gnet_calls"])
    assert_close(torch.stack([call[1][0] for call in calls]), sigmas, rtol=2e-6, atol=0)
    recorded = {"net_x": (calls, 0), "net_D": (calls, 2), "gnet_D": (guide_calls, 2)}
    for name, (made, field) in recorded.items():
        want = tensors.get(f"out.{run}.{name}")
        if want is not None:
            found = torch.stack([call[field] for call in made[: len(want)]])
            # States begin at 80 times unit noise, so the rounding is of that size.
            assert_close(found, want, rtol=1e-4, atol=close(settings, run)["atol"])


def test_recorded_run_of_seeds_with_labels_and_noise_of_their_own():
    """Every draw of an image comes from its own generator: noise, class, then churn."""
    description, tensors = load("edm2_samplers")
    (settings,) = [each for each in description["runs"] if each["run"] == "seeded"]
    net, _ = watched("edm2_main")
    guidance, _ = terms(settings, net)
    noise, heun = SeededNoise(settings["seeds"]), sampler(settings["arguments"])
    unit = noise.draw(net.shape)
    assert torch.equal(unit, tensors["in.seeded.noise_x_T"])
    y = torch.stack([torch.randint(7, (), generator=each) for each in noise.generators])
    assert torch.equal(y, tensors["in.seeded.labels"])
    x = heun(net, guidance, heun.start(unit, net), y, noise)
    assert_close(x, tensors["out.seeded.x"], **close(settings, "seeded"))
    pixels = to_pixels(x).int() - tensors["out.seeded.pixels_rgb"].int()
    assert pixels.abs().max() <= 1  # theirs cuts 127.5 x + 128 off where ours rounds
    assert pixels.ne(0).float().mean() < 0.01
