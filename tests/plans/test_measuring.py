"""Steps that are really run: as many as are counted, within the memory that is allowed."""

import os
from dataclasses import replace

import pytest
import tiny
import torch
import yaml

from robustguide.nets import MLP
from robustguide.plans import measuring
from robustguide.plans.cost import read
from robustguide.plans.measuring import Measured, alone, largest_batch, measure, measured


@pytest.fixture
def configuration(tmp_path):
    """Reads a configuration that is written."""

    def write(document, *changes):
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(document))
        return read([str(tmp_path / "a.yaml")], changes)

    return write


@pytest.fixture
def here(monkeypatch):
    """Measures in this process."""
    monkeypatch.setattr(measuring, "alone", lambda work, *args: work(*args))


@pytest.fixture
def calls(monkeypatch):
    """Rows and dtype of each evaluation of the network, and whether it is in training."""
    seen, forward = [], MLP.forward

    def noted(self, x, *others):
        value = forward(self, x, *others)
        seen.append(
            (
                len(x),
                self.training,
                torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
            )
        )
        return value

    monkeypatch.setattr(MLP, "forward", noted)
    return seen


def small(**arguments):
    attack = tiny.pgd(steps=3, early_stop=True)
    return tiny.classification(attack=attack, **arguments)


def test_a_step_of_training_runs_the_attack_to_its_end(configuration, calls):
    """Twice, each with three steps of the attack on all rows, and the loss."""
    found = measure(configuration(small()), 5)
    assert [rows for rows, *_ in calls] == 2 * 4 * [5]
    assert (found.batch, found.device.split(",")[0]) == (5, "CPU")
    assert found.seconds > 0 and found.images_a_second == 5 / found.seconds
    assert found.step_bytes == found.peak_bytes - found.before_bytes >= 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_precision_is_the_configurations(configuration, calls, precision):
    measure(configuration(tiny.denoising(), f"--trainer.precision={precision}"), 4)
    dtype = torch.bfloat16 if precision == "bf16-mixed" else None
    assert calls == 2 * [(4, True, dtype)]


def test_a_batch_of_sampling_has_all_of_its_steps(configuration, calls, runs):
    document = tiny.generation(runs / "denoiser/denoiser.safetensors")
    found = measure(configuration(document), 6)
    assert calls == 2 * 10 * [(6, False, None)] and found.batch == 6


def test_published_networks_have_random_weights_where_there_is_no_file(configuration):
    """Also after they were counted."""
    card = tiny.spec("checkpoints.load_denoiser", card="edm-cifar10-32x32-cond-vp")
    described = {
        "model": tiny.spec("modules.Generation", denoiser=card, sampler=tiny.ancestral(2))
    }
    read_once = configuration(described)
    read_once = replace(read_once, model=measuring.drawn(read_once.model))
    assert "load_denoiser" not in str(read_once.model) and "SongUNet" in str(read_once.model)


def narrow(monkeypatch, rows):
    """Networks that have no memory for more rows."""
    forward = MLP.forward

    def refusing(self, x, *others):
        if len(x) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, x, *others)

    monkeypatch.setattr(MLP, "forward", refusing)


def test_the_largest_batch_of_a_real_step(configuration, monkeypatch, here):
    narrow(monkeypatch, 3)
    found = largest_batch(configuration(small()), limit=2**40)
    assert isinstance(found, Measured) and found.batch == 3


def test_a_peak_above_the_limit_does_not_fit(configuration, monkeypatch, here):
    """The system may hold more than it refused, such as code that was read later."""

    def needing(configuration, batch, limit):
        return Measured("CPU", batch, 1.0, 100 + 30 * batch, 100, "resident")

    monkeypatch.setattr(measuring, "measure", needing)
    assert largest_batch(configuration(small()), limit=199).batch == 3
    with pytest.raises(ValueError, match="Not even a batch of 1 fits"):
        largest_batch(configuration(small()), limit=105)


def test_what_does_not_fit_or_is_not_told(configuration, monkeypatch, here):
    narrow(monkeypatch, 63)
    told = configuration(small())
    with pytest.raises(ValueError, match="A batch of 64 does not fit"):
        measured(told)
    assert measured(told, 63).batch == 63
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="give --memory-limit"):
        largest_batch(told)
    with pytest.raises(ValueError, match=r"no data\.batch_size"):
        measured(replace(told, data=None))


@pytest.mark.check
def test_a_process_of_its_own():
    assert alone(os.getpid) != os.getpid()
    with pytest.raises(ChildProcessError, match="was ended"):
        alone(os._exit, 1)
