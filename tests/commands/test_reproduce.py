"""`robustguide reproduce`: a stand-in from end to end; published presets as far as they go."""

import json
from pathlib import Path

import pytest
import tiny
import yaml

from robustguide.__main__ import main
from robustguide.checkpoints.published import preset, presets
from robustguide.commands import reproduce
from robustguide.metrics.protocols import PROTOCOLS
from robustguide.metrics.score import Score
from robustguide.plans.reproduction import command, needs, preset_of_file, protocol_of

ROOT = Path(__file__).parents[2]
FD = "frechet/classifier_features"
COMPARABLE = [each for each in presets().values() if each.protocol in PROTOCOLS]


def in_this_process(jobs, logs, workers, show, failures=None):
    """Runs the command lines one after the other, without processes of their own."""
    for job in jobs:
        main([*job.args, "--trainer.enable_progress_bar=false"])
    return {}


@pytest.fixture(scope="module")
def place(runs, tmp_path_factory):
    """A configuration of samples, and the score of 400 of them as if it had been published."""
    where = tmp_path_factory.mktemp("reproduce")
    made = tiny.generation(runs / "denoiser/denoiser.safetensors", count=5)
    made["data"]["init_args"]["reference"] = tiny.spec("data.Digits", fold=[0, 4])
    (where / "samples.yaml").write_text(yaml.safe_dump(made))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robustguide.plans.run_jobs", in_this_process)
        told = preset_file(where, runs, "first", "1.0")
        words = ["--n=400", "--first=5000", f"--folder={where}/published"]
        main(["reproduce", str(told), *words])
    return where


def preset_file(where, runs, name, number):
    told = {
        "configs": [str(where / "samples.yaml")],
        "protocol": "classifier_features",
        "weights": str(runs / "classifier/classifier.safetensors"),
        "numbers": {"frechet": number, "precision": "0.5"},
        "images": 400,
        "source": "400 other seeds",
    }
    path = where / f"{name}.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


@pytest.fixture
def ran(place, monkeypatch):
    monkeypatch.setattr("robustguide.plans.run_jobs", in_this_process)
    return place


@pytest.mark.filterwarnings("ignore:Total length of")  # when all images are there
def test_other_seeds_are_consistent_and_another_number_is_not(ran, runs, capsys):
    value = Score.load(ran / "published").entries[FD].value
    right = preset_file(ran, runs, "right", f"{value:.3f}")
    words = ["--n=200", f"--folder={ran}/mine"]
    code = main(["reproduce", str(right), *words])
    told = json.loads((ran / "mine/verdict_200.json").read_text())["verdicts"]
    by_name = {each["shown"]: each for each in told}
    found = by_name["FD-200@classifier_features"]
    assert found["word"] == "consistent" and code == 0
    low, high = found["expected"]
    assert low < found["value"] < high
    assert low > value - 0.5 * (high - low)  # carried to fewer images, where distances are larger
    assert by_name["Precision-200@classifier_features"]["word"] == "not comparable"
    images = {file: file.stat().st_mtime_ns for file in (ran / "mine/images").glob("*.png")}
    wrong = preset_file(ran, runs, "wrong", f"{2 * value:.3f}")
    capsys.readouterr()
    assert main(["reproduce", str(wrong), *words]) == reproduce.INCONSISTENT
    assert "inconsistent" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in images} == images  # not sampled again


def test_what_is_missing_is_told_at_once(ran, runs, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ROBUSTGUIDE_CHECKPOINTS", str(tmp_path))
    monkeypatch.chdir(ROOT)
    assert main(["reproduce", "adm128", "--n=10", f"--folder={tmp_path}/run"]) == 1
    shown = capsys.readouterr()
    for words in (
        "here     configuration    configs/published/adm128.yaml",
        "robustguide fetch adm-imagenet128",
        "robustguide fetch adm-classifier128",
        "robustguide fetch inception-fid",
        "VIRTUAL_imagenet128_labeled.npz into",
    ):
        assert words in shown.out
    assert "4 of 5 files are missing" in shown.err
    assert not (tmp_path / "run").exists()  # nothing was begun


@pytest.mark.parametrize("found", COMPARABLE, ids=lambda each: each.name)
def test_published_presets_name_what_there_is(found, monkeypatch, tmp_path):
    monkeypatch.setenv("ROBUSTGUIDE_CHECKPOINTS", str(tmp_path))
    monkeypatch.chdir(ROOT)
    protocol = protocol_of(found)
    assert found.reference is None or protocol.images == found.images == 50_000
    files = needs(found, None, None)
    kinds = [each.what for each in files]
    assert kinds.count("configuration") == len(found.configs)
    assert all(each.there for each in files if each.what == "configuration")
    named = [each for each in files if each.what == "checkpoint"]
    assert len(named) >= len(found.cards) or not found.cards
    assert command(found, 7, 3, tmp_path)[0] == "predict"


def test_a_number_of_another_protocol_is_refused():
    odd = [each.name for each in presets().values() if each.protocol not in PROTOCOLS]
    assert odd == ["edm-imagenet64-18", "edm-imagenet64-36"]
    with pytest.raises(ValueError, match="measured by pytorch-fid, which is none of"):
        protocol_of(preset(odd[0]))


def test_presets_of_ones_own_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there"):
        preset_of_file(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="holds no mapping"):
        preset_of_file(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text(
        'configs: [x]\nprotocol: adm\nsource: s\nnumbers: {ece: "0.1"}'
    )
    with pytest.raises(ValueError, match="has ece; protocol 'adm' measures"):
        protocol_of(preset_of_file(tmp_path / "c.yaml"))


def test_the_list(capsys):
    assert main(["reproduce", "--list"]) == 0
    assert "edm2-img512-s-guid-fid" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--list shows all"):
        main(["reproduce"])
