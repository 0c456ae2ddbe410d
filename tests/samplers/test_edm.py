"""EDM's sampler on its recorded networks, from latents to images."""

import pytest
from golden_files import load
from oracles import RecordedNoise
from recorded_edm import denoiser, labels
from torch.testing import assert_close

from robustguide.noise import RhoGrid
from robustguide.samplers import Heun

RUNS = {run["key"]: run for run in load("edm_samplers")[0]["runs"]}
CHURN = {"S_churn": "churn", "S_min": "churn_min", "S_max": "churn_max", "S_noise": "churn_noise"}


@pytest.mark.parametrize("key", RUNS)
def test_recorded_runs(key):
    _, tensors = load("edm_samplers")
    settings = dict(RUNS[key]["arguments"])
    _, _, denoise = denoiser(RUNS[key]["weights"])
    churn = {ours: settings[theirs] for theirs, ours in CHURN.items() if theirs in settings}
    grid = RhoGrid(
        settings["num_steps"],
        # The reference raises the end of the grid to the network's lowest level.
        max(settings.get("sigma_min", 0.002), denoise.snap(1e-9) if "iddpm" in key else 0),
        settings.get("sigma_max", 80),
        settings.get("rho", 7),
    )
    sampler = Heun(grid, state_dtype="float64", **churn)
    noise = RecordedNoise([])
    if churn:  # EDM draws at every step, and multiplies by 0 where churn does not act
        acts = [sampler.gamma(sigma, grid.steps) > 0 for sigma in grid.sigmas()[:-1]]
        drawn = zip(tensors[f"in.{key}.noise"], acts, strict=True)
        noise = RecordedNoise([draw for draw, act in drawn if act])
    x, seen = sampler.start(tensors[f"in.{key}.latents"], denoise), []
    y = labels(tensors, f"in.{key}.labels_onehot", len(x))
    x = sampler(denoise, None, x, y, noise, seen.append)
    tolerance = RUNS[key]["tolerance"]
    atol = tolerance["atol"][f"out.{key}.x"]
    assert_close(x, tensors[f"out.{key}.x"], rtol=tolerance["rtol"], atol=atol)
    levels = [observation.place.sigma for observation in seen]
    recorded = tensors[f"out.{key}.net_sigmas"].tolist()[::2]  # every other one is a corrector's
    # The reference keeps iDDPM's table in float32, whose lowest level has three digits.
    assert levels == pytest.approx(recorded, rel=1e-3 if "iddpm" in key else 1e-9)
    assert not noise.draws
