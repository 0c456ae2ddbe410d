"""Pages of docs/ that add something of one's own: every block of them, in order."""

import os
import re
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
import worked
import yaml
from jsonargparse import ArgumentParser
from safetensors.torch import load_file

from robustguide import load_classifier, load_denoiser
from robustguide.checkpoints.references import open_reference
from robustguide.data import Digits, Folder
from robustguide.data.splits import SPLITS
from robustguide.guidance import Guidance, Scaled
from robustguide.metrics.protocols import protocol
from robustguide.modules import Denoising
from robustguide.noise import UniformT, linear_levels

BACKBONE, DATA, GUIDANCE = (f"adding-a-{name}.md" for name in ("backbone", "data-set", "guidance"))
MODULES = worked.modules(BACKBONE) | worked.modules(DATA) | worked.modules(GUIDANCE)
for _name, _module in MODULES.items():
    if _name.startswith("test_"):  # the tests of the examples, which pytest then finds here
        globals().update(worked.names_in(_module))


class Followed(NamedTuple):
    """The folder in which the commands of a page were run, and what each of them printed."""

    folder: object
    printed: list


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """Follows a page, once."""
    done = {}

    def follow(page):
        if page not in done:
            folder = worked.write(page, tmp_path_factory.mktemp(page[:-3]))
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.setattr("sys.argv", ["robustguide"])
                patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
                done[page] = Followed(folder, [worked.run(words) for words in worked.lines(page)])
        return done[page]

    return follow


def test_a_backbone_of_ones_own_is_trained_and_found_by_its_name(followed):
    runs = followed(BACKBONE).folder / "runs"
    denoiser = load_denoiser(str(runs / "my_denoiser/denoiser.safetensors"), trust=["my_nets"])
    classifier = load_classifier(
        str(runs / "my_classifier/classifier.safetensors"), trust=["my_nets"]
    )
    assert type(denoiser.net) is MODULES["my_nets"].NoiseNet
    assert type(classifier.net) is MODULES["my_nets"].LogitNet
    assert denoiser.metadata.extra["steps"] == classifier.metadata.extra["steps"] == 200


def test_the_denoiser_has_learned(followed):
    """The mean square of the noise is 1, and so is the loss of a network that predicts none."""
    path = followed(BACKBONE).folder / "runs/my_denoiser/denoiser.safetensors"
    denoiser = load_denoiser(str(path), trust=["my_nets"])
    split = Digits().split("test")
    x_0, y, _ = split.__getitems__(list(range(len(split))))
    noise = UniformT(linear_levels())
    torch.manual_seed(0)
    sigma, eps = noise.sample(len(x_0), x_0.device), torch.randn_like(x_0)
    assert Denoising(denoiser, noise).loss(x_0, y, sigma, eps) < 0.3


def shares(text):
    """Numbers of the lines that guide.py prints, by scale."""
    found = re.findall(r"^scale ([\d.]+): ([\d.]+) show their class$", text, re.MULTILINE)
    return {scale: float(share) for scale, share in found}


def test_it_guides_as_the_page_shows(followed):
    (shown,) = map(shares, worked.fenced(BACKBONE, "text"))
    printed = shares(followed(BACKBONE).printed[-1])
    assert shown.keys() == printed.keys() == {"0.0", "6.0"}
    for scale, share in shown.items():
        assert printed[scale] == pytest.approx(share, abs=0.15)
    assert printed["6.0"] - printed["0.0"] > 0.4


@pytest.mark.check
def test_another_process_guides_with_the_files(followed):
    folder, printed = followed(BACKBONE)
    done = subprocess.run(
        [sys.executable, "guide.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f".:{worked.ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert shares(done.stdout) == pytest.approx(shares(printed[-1]), abs=0.02)


def test_without_trust_it_stops_before_training(followed, tmp_path, monkeypatch):
    monkeypatch.chdir(followed(BACKBONE).folder)
    words = next(worked.lines(BACKBONE))
    at = words.index("--trust")
    del words[at : at + 2]
    with pytest.raises(ValueError, match=r"'my_nets\.NoiseNet'.*--trust my_nets"):
        worked.run([*words, f"--trainer.default_root_dir={tmp_path / 'run'}"])
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_the_guidance_is_as_short_as_promised():
    term = worked.files(GUIDANCE)["my_guidance.py"]
    lines = [line for line in term.partition("class ")[2].splitlines() if line.strip()]
    assert len(lines) <= 15


def test_the_guidance_is_built_by_its_configuration():
    described = yaml.safe_load(worked.files(GUIDANCE)["colour.yaml"])
    described = described["model"]["init_args"]["guidance"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--guidance", type=dict[str, Guidance])
    built = parser.instantiate(parser.parse_object({"guidance": described}))
    term = built.guidance["colour"]
    assert type(term) is Scaled and term.scales == (1.0,)
    assert type(term.term) is MODULES["my_guidance"].MeanColour
    assert term.term.colour.tolist() == [[[-0.25]]]


def test_images_are_as_bright_as_a_guidance_of_ones_own_wants(followed):
    pixels = load_file(followed(GUIDANCE).folder / "runs/colour/samples.safetensors")["pixels"]
    means = (pixels / 127.5 - 1).mean((1, 2, 3))
    assert len(means) == 40
    assert means.median() == pytest.approx(-0.25, abs=1e-3)  # bytes; pixels beyond them are cut
    torch.testing.assert_close(means, torch.full((40,), -0.25), rtol=0, atol=0.03)


def images_of(source):
    """All images of a source with the names of their classes, in one order."""
    found = []
    for name in SPLITS:
        split = source.split(name)
        for index in range(len(split)):
            x_0, y, _ = split[index]
            found.append((source.class_names[y], x_0.numpy().tobytes()))
    return sorted(found)


def test_a_folder_and_a_table_hold_the_same_images(followed, monkeypatch):
    monkeypatch.chdir(followed(DATA).folder)
    folder, table = Folder("shapes", 16, channels=1), MODULES["my_data"].Table("heap", 16)
    assert folder.class_names == table.class_names == ["cross", "disc", "square"]
    assert len(images_of(table)) == 300 and images_of(table) == images_of(folder)


@pytest.mark.parametrize("name", ["shapes", "table"])
def test_shapes_are_told_apart(followed, json_of, name):
    found = json_of(followed(DATA).folder / "runs" / name)["metrics"]["accuracy"]
    assert found["value"] > 0.8


@pytest.mark.parametrize("name", ["shapes", "table"])
def test_statistics_say_what_they_are_of(followed, monkeypatch, name):
    monkeypatch.chdir(followed(DATA).folder)
    source = {
        "shapes": Folder("shapes", 16, channels=1),
        "table": MODULES["my_data"].Table("heap", 16),
    }[name]
    reference = open_reference(f"runs/{name}.safetensors", protocol("classifier_features"))
    told = reference.provenance
    assert (told.data, told.split) == (type(source).__name__, "train")
    assert told.count == len(source.split("train"))
    assert "size=16" in told.recipe
    mean = reference.moments["features"].mean
    assert mean.shape == (64,) and torch.isfinite(mean).all()
