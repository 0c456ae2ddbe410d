"""FLOPs of runs, counted while they run, are those that are counted before they run."""

import array_runs
import pytest
import tiny
import torch
import yaml
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn

from robustguide.callbacks import meter
from robustguide.callbacks.meter import Meter, rows_of, summary
from robustguide.plans.cost import cost_of, read


@pytest.fixture(autouse=True)
def fast_peak(monkeypatch):
    """A device whose speed is known."""
    monkeypatch.setattr(meter, "matmul_peak", lambda device, dtype: 1e9)


def foretold(tmp_path, config):
    """FLOPs of an image, by `robustguide cost`."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return cost_of(read([str(tmp_path / "config.yaml")])).flops


def check(work, images):
    """What belongs together."""
    assert work["images"] == images and work["dtype"] == "float32"
    assert work["flops"] == pytest.approx(images * work["flops_per_image"])
    assert 0 < work["utilisation"] < work["flops"] / work["step_seconds"] / 1e9 * (1 + 1e-9)
    assert work["matmul_peak"] == pytest.approx(1e9)


def test_guidance_and_its_gradients_are_counted(runs, tmp_path, json_of):
    path = runs / "classifier/classifier.safetensors"
    guidance = {"classifier": tiny.guided(path)}
    config = tiny.generation(runs / "denoiser/denoiser.safetensors", count=20, guidance=guidance)
    config["data"]["init_args"]["batch_size"] = 8
    tiny.run(tmp_path / "run", "test", config)
    work = json_of(tmp_path / "run")["work"]
    check(work, 20)
    assert work["flops_per_image"] == pytest.approx(foretold(tmp_path, config))


def test_training_is_counted_and_its_validation_is_not(tmp_path, json_of):
    short = {"trainer": {"max_steps": 3, "val_check_interval": 1}}
    config = tiny.merged(tiny.classification(), short)
    tiny.run(tmp_path / "run", "fit", config)
    work = json_of(tmp_path / "run")["work"]
    check(work, 3 * 64)
    assert work["flops_per_image"] == pytest.approx(foretold(tmp_path, config))


def test_an_attack_is_counted(tmp_path, json_of):
    """Clean and attacked images take two passes; each step of the attack, one with a gradient."""
    data = {"data": {"init_args": {"eval_batch_size": 16, "eval_limit": 40}}}
    found = {}
    for name, attack in (("clean", None), ("attacked", tiny.pgd(steps=3))):
        config = tiny.merged(tiny.classification(evaluation_attack=attack), data)
        for command in ("test", "validate"):
            tiny.run(tmp_path / name / command, command, config)
            work = json_of(tmp_path / name / command)["work"]
            check(work, 40)
            found[name, command] = work["flops_per_image"]
    assert found["clean", "test"] == found["clean", "validate"]
    for command in ("test", "validate"):
        assert 2 < found["attacked", command] / found["clean", command] <= 2 + 3 * 2


@pytest.mark.filterwarnings("ignore:FD-")  # of few images
def test_parts_add_up(tmp_path, json_of):
    words = ["--data.batch_size=4", "--trainer.callbacks+=robustguide.callbacks.PartWriter"]
    tiny.run(tmp_path / "whole", "test", array_runs.measured(12))
    for first in (0, 8):
        own = [f"--data.first={first}", f"--data.count={8 if first == 0 else 4}"]
        folder = tmp_path / f"parts/{first:04d}"
        tiny.run(folder, "test", array_runs.measured(12), *own, *words)
        folder.with_suffix(".yaml").unlink()
    parts = f"--data.parts={tmp_path / 'parts'}"
    tiny.run(tmp_path / "merged", "test", array_runs.measured(12), parts)
    whole, merged = (json_of(tmp_path / name)["work"] for name in ("whole", "merged"))
    check(merged, 12)
    assert merged["flops"] == pytest.approx(whole["flops"])
    each = [json_of(tmp_path / f"parts/{first:04d}")["work"] for first in (0, 8)]
    assert merged["step_seconds"] == pytest.approx(sum(part["step_seconds"] for part in each))


MODULE = LightningModule()


def started():
    """A meter in a test, and the trainer."""
    trainer, measure = tiny.trainer("."), Meter()
    trainer.state.fn = TrainerFn.TESTING
    measure.setup(trainer, MODULE, "test")
    return trainer, measure


def stepped(*steps):
    """A meter around steps."""
    trainer, measure = started()
    for step in steps:
        batch = (torch.zeros(5, 3), torch.zeros(5))
        measure.on_test_batch_start(trainer, MODULE, batch, 0)
        step(batch[0])
        measure.on_test_batch_end(trainer, MODULE, None, batch, 0)
    return measure


def test_only_the_first_batch_is_counted():
    found = stepped(lambda x: x @ x.mT, lambda x: x @ x.mT @ x).work()
    assert found["flops"] == 2 * (2 * 5 * 3 * 5) and found["timed_flops"] == found["flops"] / 2


def test_what_is_not_known_is_null_and_named():
    with pytest.warns(UserWarning, match="FLOPs of mv are not known"):
        measure = stepped(lambda x: x @ x[0], lambda x: None)
    work = summary(measure.told())
    assert work["flops"] is None and work["utilisation"] is None and work["images"] == 10


def test_a_fault_ends_the_count():
    trainer, measure = started()
    measure.on_test_batch_start(trainer, MODULE, torch.zeros(2), 0)
    assert measure.is_counting
    measure.on_exception(trainer, MODULE, ValueError())
    torch.zeros(2, 2) @ torch.zeros(2, 2)
    assert measure.tally.flops == 0 and not measure.is_counting


def test_types_of_numbers_are_told_apart():
    def mixed(x):
        with torch.autocast("cpu", torch.bfloat16):
            return torch.nn.functional.linear(x, torch.zeros(7, 3))

    assert stepped(mixed).work()["dtype"] == "bfloat16"
    assert stepped(lambda x: x.double() @ x.double().mT).work()["dtype"] == "float64"


def test_processes_and_parts_weigh_by_their_time():
    one = {"images": 2, "flops": 8.0, "timed_flops": 4.0, "seconds": 1.0, "dtype": "float32"}
    slow, quick = one | {"device_flops": 8.0}, one | {"device_flops": 24.0}
    work = summary([slow, quick])
    assert work["flops"] == 16 and work["step_seconds"] == 2
    assert work["utilisation"] == 8 / 32 and work["matmul_peak"] == 16
    assert summary([slow, dict.fromkeys(slow)])["utilisation"] is None
    assert summary([]) is None


def test_rows_of_batches():
    assert rows_of([{"x": torch.zeros(3, 2)}, torch.zeros(2)]) == 3
    assert rows_of(torch.tensor(0)) == rows_of("nothing") == 1
