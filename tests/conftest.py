"""What all tests share: one thread, and a tiny run of everything that others start from."""

import json

import pytest
import tiny
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two workers on two cores; more threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Folder of runs that trained a classifier and a denoiser of digits by the command line."""
    folder = tmp_path_factory.mktemp("runs")
    ema = {"class_path": "robustguide.callbacks.EMA", "init_args": {"decay": 0.9}}
    tiny.run(folder / "classifier", "fit", tiny.classification(attack=tiny.pgd(radius=1.0)))
    config = tiny.merged(tiny.denoising(), {"trainer": {"callbacks": [ema]}})
    tiny.run(folder / "denoiser", "fit", config)
    return folder


@pytest.fixture(scope="session")
def json_of():
    """Reads the `results.json` of a run folder; strict, so NaN is no number."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    def read(folder):
        return json.loads((folder / "results.json").read_text(), parse_constant=refuse)

    return read
