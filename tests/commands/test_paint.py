"""`robustguide paint` with a small trained classifier of digits."""

import json

import pytest
import tiny
import torch
import yaml
from PIL import Image

from robustguide.__main__ import main
from robustguide.checkpoints import build, export, load_classifier
from robustguide.plans import painting


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")


@pytest.fixture(scope="module")
def files(runs, tmp_path_factory):
    """The trained classifier, and one with random weights."""
    torch.manual_seed(1)
    other = tmp_path_factory.mktemp("other") / "other.safetensors"
    described = tiny.classifier()
    said = {"class_names": "0123456789", "shape": (1, 8, 8), "weights": "raw"}
    export(build(described), other, described, **said)
    return str(runs / "classifier" / "classifier.safetensors"), str(other)


def words(place, *classifiers, **options):
    more = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    data = place.parent / "data.yaml"
    data.write_text(yaml.safe_dump({"data": tiny.spec("data.Images", batch_size=50)}))
    where = (f"--config={data}", f"--folder={place}", "--device=cpu", "--steps=10")
    return ["paint", *classifiers, *where, *more]


def test_a_classifier_paints_what_it_wants_to_see(files, tmp_path, capsys):
    classifier, other = files
    place = tmp_path / "out"
    asked = words(place, f"a={classifier}", f"b={other}", start="noise", count=3, judge=other)
    with pytest.raises(ValueError, match="is one of the painting classifiers, which would judge"):
        main(asked)
    asked = words(place, f"a={classifier}", start="noise", count=3, judge=other, batch_size=4)
    assert main([*asked, "--classes", "3", "8"]) == 0
    found = json.loads((place / "painting.json").read_text())
    (row,) = found["painted"]
    network, judge = load_classifier(classifier), load_classifier(other)
    start = painting.plain_starts("noise", 0, 3, (1, 8, 8)).repeat(2, 1, 1, 1)
    y = torch.tensor([3, 3, 3, 8, 8, 8])
    made = painting.painted(network, start, y, [0, 1, 2] * 2, 0, painting.Recipe(steps=10))
    assert row["log_p_after"] == pytest.approx(float(made.after.mean()), abs=1e-4)
    assert torch.tensor(row["log_p"]["before"]).shape == (2, 3)
    assert row["log_p_after"] > row["log_p_before"] + 1
    seen = (judge(made.x_0, torch.zeros(6)).argmax(-1) == y).double()
    assert row["judge_accuracy"]["value"] == pytest.approx(float(seen.mean()))
    assert row["judge_accuracy"]["n"] == found["n"] == 6
    seen = (judge(start, torch.zeros(6)).argmax(-1) == y).double()
    assert found["start_judge_accuracy"]["value"] == pytest.approx(float(seen.mean()))
    moved = (made.x_0 - start).flatten(1).norm(dim=1)
    assert row["moved"] == pytest.approx(float(moved.mean()), rel=1e-4)
    assert [each["name"] for each in found["classes"]] == ["3", "8"]
    with Image.open(place / "painting.png") as picture:
        assert picture.width == 700
    assert "6 images" in capsys.readouterr().out


def test_starts_of_the_data_are_the_same_for_all_classifiers(files, tmp_path):
    classifier, other = files
    place = tmp_path / "out"
    asked = words(place, f"a={classifier}", f"b={other}", f"c={classifier}", start_images=20)
    main([*asked, "--classes=5", "--level", "1", "0.5"])
    a, b, c = json.loads((place / "painting.json").read_text())["painted"]
    assert a["log_p"] == c["log_p"] != b["log_p"]
    assert a["judge_accuracy"] is None


def test_what_cannot_paint_alone_is_refused(files, tmp_path):
    classifier, _ = files
    place = tmp_path / "out"
    with pytest.raises(ValueError, match="a looks at the denoised image, which nobody makes"):
        main(words(place, f"a={classifier}@denoised"))
    with pytest.raises(ValueError, match="a cannot paint alone"):
        main(words(place, f"a={classifier}@normalized"))
    with pytest.raises(ValueError, match="--level must fall"):
        main([*words(place, classifier), "--level", "0.5", "1"])
    assert not place.exists()
