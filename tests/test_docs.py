"""The documents: what they list is there, what they show as an example works."""

import importlib.util
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from worked import fenced

from robustguide import main as command_line
from robustguide.noise import ChainGrid, linear_levels
from robustguide.samplers.ancestral import posterior

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOURED = ("unguided", "plain_guided", "robust_guided", "classifier_free")


def test_every_configuration_is_listed_once():
    listed = re.findall(r"^\| `(\w+/\w+\.yaml)` \|", (ROOT / "docs/configs.md").read_text(), re.M)
    there = [path.relative_to(ROOT / "configs").as_posix() for path in ROOT.glob("configs/*/*")]
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("command", fenced("configs.md", "bash"))
def test_the_commands_of_configs_print_what_was_composed(command, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["robustguide"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    _, *words = shlex.split(command)
    assert words[-1] == "--print_config"
    with pytest.raises(SystemExit) as stopped:
        command_line.run(words)
    assert not stopped.value.code
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    if words[0] == "fit":
        assert model["attack"]["class_path"] == "robustguide.attacks.PGD"
    else:
        assert model["guidance"]["plain"]["init_args"]["scale"] == 1.0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_is_there(document):
    text = document.read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (document.parent / link).exists(), link
    for path in re.findall(r"(?<![\w/.])(?:configs|docs|slurm|tests)/[\w./-]+\.\w+", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\brobustguide(?:\.\w+)+", text):
        parent, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(parent), name), path


def test_numbers_of_the_mean_shift():
    """docs/theory.md: guidance by the variance against the same displacement of the image."""
    for spacing, least, largest in (("250", 0.96, 1.00), ("25", 0.66, 0.99)):
        by_large, by_small = [], []
        for sigma, sigma_next in pairwise(ChainGrid(linear_levels(), spacing).sigmas()):
            keep, small, large, alpha = posterior(sigma, sigma_next)
            moved = (1 - keep) * sigma**2 * alpha**0.5
            if sigma_next > 0:
                assert large / moved == pytest.approx(alpha**0.5)
                by_large.append(large / moved)
            assert small / moved == pytest.approx(keep / alpha**0.5)
            by_small.append(small / moved)
        assert (round(min(by_large), 2), round(max(by_large), 2)) == (least, largest)
        assert by_small[-1] == 0
        stated = f"{least:.2f} to {largest:.2f} in {spacing}"
        assert stated in (ROOT / "docs/theory.md").read_text()


@pytest.fixture(scope="module")
def results():
    """The script docs/results.py."""
    described = importlib.util.spec_from_file_location("results", ROOT / "docs" / "results.py")
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def demo(folder, seed):
    """What a demo leaves and docs/results.py reads."""
    method = {
        "class_accuracy": 0.9 + seed / 100,
        "frechet/digits_features": 1.0 + seed,
        "integral_ece": 0.25,
        "denoiser_evaluations": 50.0,
        "classifier_forward": 0.0,
        "seconds": 9.6,
        "n": 1000,
    }
    curve = {"sigma": [0.5, 2], "accuracy": [0.9, 0.5], "robust_accuracy": [0.8, 0.1 * seed]}
    curve |= {"ece": [0.01, 0.02], "n": 359, "attack": "L2"}
    run = {"git_commit": "abc", "device": "cpu", "versions": {"torch": "2"}, "seed": 0}
    document = {
        "methods": dict.fromkeys(TOURED, method),
        "classifiers": {"plain": curve, "robust": curve},
        "runs": {"unguided": run},
    }
    (folder / "plain").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(document))
    (folder / "plain" / "results.json").write_text(json.dumps({"run": {**run, "seed": seed}}))
    return str(folder)


def test_results_of_several_seeds_become_tables(results, tmp_path, capsys):
    results.main([demo(tmp_path / "a", 0), demo(tmp_path / "b", 1)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["* seeds: 0, 1", "* commit: abc", "* device: cpu"]
    cells = "1.00 / 2.00 | 0.900 / 0.910 | 0.250 | 50 | 0 | 10"
    assert f"| robust guided | {cells} |" in lines
    assert "| 2 | 0.50 | 0.50 | 0.05 (0.00 to 0.10) | 0.05 (0.00 to 0.10) | 0.02 | 0.02 |" in lines


def test_results_are_put_between_the_markers(results, tmp_path):
    document, folder = tmp_path / "results.md", demo(tmp_path / "a", 2)
    document.write_text("before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n")
    for _ in range(2):
        results.main([folder, "--into", str(document)])
    text = document.read_text()
    assert text.startswith("before\n<!-- results -->\n\n* seeds: 2\n")
    assert text.endswith("|\n\n<!-- end of results -->\nafter\n") and "old" not in text
    document.write_text("no markers")
    with pytest.raises(SystemExit, match="has no lines"):
        results.main([folder, "--into", str(document)])
    with pytest.raises(SystemExit, match=r"There is no .*nowhere"):
        results.main([str(tmp_path / "nowhere")])


def test_the_shipped_document_has_the_markers(results):
    text = (ROOT / "docs" / "results.md").read_text()
    assert text.index(results.BEGIN) < text.index(results.END)


def test_the_picture_of_a_demo(results, tmp_path):
    for number, name in enumerate(TOURED):
        (tmp_path / name).mkdir()
        pixels = torch.full((10, 1, 8, 8), 40 * number, dtype=torch.uint8)
        save_file({"pixels": pixels}, tmp_path / name / "samples.safetensors")
    results.main([str(tmp_path), "--picture", str(tmp_path / "demo.png")])
    sizes = []
    for path in (tmp_path / "demo.png", ROOT / "docs/images/demo.png"):
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes[0] == sizes[1] and sizes[0][0] == 700
