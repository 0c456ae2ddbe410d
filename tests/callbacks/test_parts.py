"""Parts of a test, put together to the result of one run."""

import json
import shutil

import array_runs
import pytest
import tiny
import torch
from lightning import LightningModule, Trainer
from safetensors.torch import load_file

from robustguide.callbacks import PartWriter
from robustguide.data import SeedData
from robustguide.data.errors import DataError
from robustguide.data.generated import open_samples
from robustguide.data.parts import Part

PART = ("--trainer.logger=false", "--trainer.callbacks+=robustguide.callbacks.PartWriter")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """24 images at once, and as parts of 12, 8 and 4."""
    root = tmp_path_factory.mktemp("parts")
    config = array_runs.measured(24)
    tiny.run(root / "whole", "test", config)
    for first, count in ((0, 12), (12, 8), (20, 4)):
        words = (f"--data.first={first}", f"--data.count={count}", *PART)
        tiny.run(root / f"parts/{first:04d}", "test", config, *words)
        (root / f"parts/{first:04d}.yaml").unlink()
    tiny.run(root / "merged", "test", config, f"--data.parts={root / 'parts'}")
    return root


def test_parts_measure_what_one_run_measures(runs):
    whole, merged = (array_runs.found(runs / name) for name in ("whole", "merged"))
    assert {"class_accuracy", "integral_ece", "frechet/tiny_features"} <= whole["metrics"].keys()
    assert whole["metrics"]["frechet/tiny_features"]["n"] == 24
    assert len(whole["curves"]["trajectory"]["ece"]) == 3
    assert whole["cost"]["denoiser_evaluations"] == 4 and whole["cost"]["observer_forward"] == 3
    array_runs.same(merged, whole)


def test_images_are_the_same_bytes(runs):
    whole = load_file(runs / "whole/samples.safetensors")["pixels"]
    assert torch.equal(load_file(runs / "merged/samples.safetensors")["pixels"], whole)
    parts = [open_samples(runs / f"parts/{first:04d}/samples.tar") for first in (0, 12, 20)]
    batches = [batch for part in parts for batch in part.batches(100)]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(24))
    assert torch.equal(torch.cat([batch.pixels for batch in batches])[:7], whole)
    assert parts[0].made["method"] == "unguided"


def test_other_batches_measure_the_same_to_rounding(runs, tmp_path):
    """Labels and noise are the images' own, so a plan of another batch size makes them again."""
    for first in (0, 12):
        words = ("--data.batch_size=6", f"--data.first={first}", "--data.count=12")
        folder = tmp_path / f"parts/{first}"
        tiny.run(folder, "test", array_runs.measured(24), *words, *PART)
        folder.with_suffix(".yaml").unlink()
    parts = f"--data.parts={tmp_path / 'parts'}"
    tiny.run(tmp_path / "merged", "test", array_runs.measured(24), "--data.batch_size=6", parts)
    ours, theirs = (array_runs.found(where) for where in (tmp_path / "merged", runs / "whole"))
    assert ours["metrics"].keys() == theirs["metrics"].keys()
    for name, told in theirs["metrics"].items():
        assert ours["metrics"][name]["value"] == pytest.approx(told["value"], rel=1e-3), name
    one, other = (
        load_file(where / "samples.safetensors") for where in (tmp_path / "merged", runs / "whole")
    )
    made = [open_samples(tmp_path / f"parts/{first}/samples.tar") for first in (0, 12)]
    labels = torch.cat([batch.y for part in made for batch in part.batches(100)])
    assert torch.equal(labels, torch.arange(24) % 10)
    gap = (one["pixels"].int() - other["pixels"].int()).abs()
    assert gap.max() <= 1 and gap.float().mean() < 1e-3


def test_a_part_is_not_measured(runs):
    part = json.loads((runs / "parts/0012/results.json").read_text())
    assert part["metrics"] == {} and part["curves"] == {}
    assert not list((runs / "parts/0012").glob("*.png"))
    assert list(Part(runs / "parts/0012").numbers) == list(range(12, 20))


def test_memory_is_that_of_the_part_that_needed_most(runs):
    facts = [Part(runs / f"parts/{first:04d}").facts for first in (0, 12, 20)]
    cost = json.loads((runs / "merged/results.json").read_text())["cost"]
    assert cost["peak_memory_bytes"] == max(each["peak_memory_bytes"] for each in facts)


@pytest.fixture
def parts(runs, tmp_path):
    shutil.copytree(runs / "parts", tmp_path / "parts")
    return tmp_path / "parts"


def refused(parts, said, count=24, first=0):
    with pytest.raises(DataError, match=said):
        SeedData(count, 10, first, parts=str(parts))


def test_a_missing_part_is_named(parts):
    shutil.rmtree(parts / "0012")
    refused(parts, r"Of the images 0 to 23, 8 are missing in .*: 12 to 19; make them first")
    shutil.rmtree(parts / "0020")
    refused(parts, r"12 are missing in .*: 12 to 23")
    shutil.rmtree(parts / "0000")
    refused(parts, r"24 are missing in .*: 0 to 23")


def test_an_image_counts_once(parts):
    shutil.copytree(parts / "0012", parts / "again")
    refused(parts, r"(again|0012) holds images 12 to 19, which are there already")


def test_images_that_nobody_asked_for(parts):
    refused(parts, r"0020 holds images 20 to 23, .* not among the images 0 to 19", count=20)
    refused(parts, r"0000 holds images 0 to 11, .* not among the images 4 to 23", 20, 4)


def test_a_broken_part_is_named(parts):
    (parts / "0012/part.json").write_text("{")
    refused(parts, r"0012 holds no part of a generation .* delete it and make it again")
    (parts / "0012/part.json").unlink()
    refused(parts, r"0012 holds no part of a generation")


def test_parts_of_other_networks_are_not_mixed(parts):
    path = parts / "0012/part.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"checkpoints": {"net.safetensors": "0123"}}))
    refused(parts, r"net\.safetensors was another file when .*0012 was made than for .*0000")


def test_hidden_folders_are_under_way(parts):
    shutil.copytree(parts / "0012", parts / ".0012.task3.part")
    assert [part.first for part in SeedData(24, 10, parts=str(parts)).parts] == [0, 12, 20]


def test_a_part_is_of_a_test_of_one_process(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="parts of `robustguide test` of a generation"):
        tiny.run(tmp_path / "predict", "predict", array_runs.measured(8), *PART)
    monkeypatch.setattr(Trainer, "world_size", 2)
    with pytest.raises(ValueError, match=r"one process, got 2; set trainer\.devices"):
        PartWriter().setup(tiny.trainer(tmp_path), LightningModule(), "test")
