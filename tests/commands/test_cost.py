"""`robustguide cost`, through the door of the command line."""

import argparse
import json
from pathlib import Path

import pytest
import tiny
import yaml

from robustguide.__main__ import main
from robustguide.commands.cost import size
from robustguide.plans import measuring
from robustguide.plans.measuring import Measured

ROOT = Path(__file__).parents[2]
EDM = str(ROOT / "configs/published/edm_imagenet64_18.yaml")


@pytest.fixture
def written(tmp_path):
    """Writes a configuration; answers words that name it."""

    def write(document, name="a.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump(document))
        return ["--config", str(tmp_path / name)]

    return write


def test_sampling_of_a_published_network_without_its_weights(tmp_path, capsys):
    """Karras et al. (2022): 35 evaluations in 18 steps of Algorithm 1."""
    file = tmp_path / "cost.json"
    words = ["--num-samples=1000", "--devices=8", "--utilisation=0.5", f"--json={file}"]
    assert main(["cost", "--config", EDM, *words]) == 0
    found, shown = json.loads(file.read_text()), capsys.readouterr().out
    (part,) = found["parts"]
    assert (part["rows"], part["parameters"]) == (35, 295_899_267)
    assert found["images"] == 1000 and found["flops"] == 1000 * part["flops"]
    for gpu, peak in (("a100", 312e12), ("h100", 989e12)):
        hours = found["flops"] / (0.5 * peak) / 3600
        assert found["gpu_hours"][gpu]["bf16"] == pytest.approx(hours)
    rows = [line.split() for line in shown.splitlines()]
    hours = found["gpu_hours"]["a100"]["fp32"]
    assert ["8", "a100"] == next(row for row in rows if row[:1] == ["8"])[:2]
    assert f"{hours / 8:.3g}" in next(row for row in rows if row[:2] == ["8", "a100"])
    assert part["made_of"] == "edm-imagenet-64x64-cond-adm" and "computes in 32-true" in shown


def test_training_with_an_attack(written, tmp_path, capsys):
    """Options go over the configurations; more steps of the attack cost as many more FLOPs."""
    config, attacks = written(tiny.classification(attack=tiny.pgd(steps=2))), []
    for steps in (2, 5):
        file = tmp_path / f"{steps}.json"
        change = [f"--model.attack.steps={steps}", "--trainer.max_steps=30", f"--json={file}"]
        assert main(["cost", *config, *change, "--gpu", "h100"]) == 0
        found = json.loads(file.read_text())
        attack, *_ = found["parts"]
        attacks.append(attack["flops"])
        assert (found["steps"], found["images"]) == (30, 30 * 64)
        assert list(found["gpu_hours"]) == ["h100"]
    assert attacks[1] / attacks[0] == 2.5
    shown = capsys.readouterr().out
    assert "attack, PGD-5" in shown and "a100" not in shown
    assert "a step of 64 images" in shown


def test_later_files_go_over_earlier_ones(written, runs, tmp_path, capsys):
    """As for `robustguide test`: a term whose scale is 0 asks no classifier."""
    base = tiny.generation(runs / "denoiser/denoiser.safetensors", count=7)
    term = tiny.guided(runs / "classifier/classifier.safetensors")
    base["model"]["init_args"]["guidance"] = {"plain": term}
    config, file = written(base), tmp_path / "cost.json"
    asked = {}
    for scale in (2.0, 0.0):
        assert (
            main(["cost", *config, f"--model.guidance.plain.scale={scale}", f"--json={file}"]) == 0
        )
        found = json.loads(file.read_text())
        asked[scale] = {(part["network"], part["work"]) for part in found["parts"]}
        assert found["images"] == 7
    assert asked[0.0] == {("denoiser", "forward")}
    guiding = {("guidance.plain", "forward"), ("guidance.plain", "gradient")}
    assert asked[2.0] == asked[0.0] | guiding


def test_a_file_of_ones_own_that_is_not_there(written, tmp_path):
    document = tiny.generation(tmp_path / "mine.safetensors")
    with pytest.raises(FileNotFoundError, match=r"mine\.safetensors"):
        main(["cost", *written(document)])


@pytest.fixture
def here(monkeypatch):
    """Steps are run in this process."""
    monkeypatch.setattr(measuring, "alone", lambda work, *args: work(*args))


def test_a_step_that_is_measured(written, tmp_path, capsys, here):
    config, file = written(tiny.classification(attack=tiny.pgd(steps=2))), tmp_path / "cost.json"
    assert main(["cost", *config, "--measure", "--batch-size=7", f"--json={file}"]) == 0
    found = json.loads(file.read_text())
    took, shown = found["measured"], capsys.readouterr().out
    assert took["batch"] == 7 and took["seconds"] > 0
    assert took["images_a_second"] == pytest.approx(7 / took["seconds"])
    counted = found["flops_an_image"] * 7
    assert took["flops_a_second"] == pytest.approx(counted / took["seconds"])
    assert took["peak_bytes"] - took["before_bytes"] == took["step_bytes"]
    assert "7 images a step" in shown and "before the step" in shown


def test_the_largest_batch(written, capsys, monkeypatch, here):
    """Three images, if more than 30 MB for each are refused."""
    monkeypatch.setattr(
        measuring, "measure", lambda _, n, limit: Measured("CPU", n, 0.5, n * 3 * 10**7, 0, "held")
    )
    words = ["--measure", "--largest-batch", "--memory-limit=100MB"]
    assert main(["cost", *written(tiny.classification()), *words]) == 0
    shown = capsys.readouterr().out
    assert "Largest batch in 100 MB: 3" in shown and "6 images a second" in shown


def test_sizes():
    assert (size("8GB"), size("1.5gib"), size("12")) == (8 * 10**9, 3 * 2**29, 12)
    for word in ("0GB", "8 apples", "-1"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a size such as 8GB"):
            size(word)


def test_wrong_options(written, tmp_path, capsys):
    with pytest.raises(ValueError, match="cannot be read together"):
        main(["cost", *written(tiny.classification()), "--model.classifer=1"])
    for words, told in (
        ([], "--config"),
        (["--config", EDM, "--gpus=4"], "--gpus=4"),
        (["--config", EDM, "--utilisation=35"], "above 0 and at most 1"),
        (["--config", EDM, "--devices=0"], "at least 1"),
        (["--config", EDM, "--batch-size=2"], "--batch-size is for --measure"),
        (["--config", EDM, "--measure", "--memory-limit=2GB"], "is for --largest-batch"),
        (["--config", EDM, "--measure", "--memory-limit=much"], "such as 8GB"),
        (
            ["--config", EDM, "--measure", "--largest-batch", "--batch-size=2"],
            "leave out --batch-size",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["cost", *words])
        assert stopped.value.code == 2 and told in capsys.readouterr().err
