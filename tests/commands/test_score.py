"""`robustguide score` and `robustguide compare`, on real digits taken for samples."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from robustguide.__main__ import main
from robustguide.checkpoints.extractors import load_extractor
from robustguide.checkpoints.references import open_reference
from robustguide.commands.score import SOURCES
from robustguide.data import Digits
from robustguide.data.generated import Real, open_samples, write_samples
from robustguide.metrics.frechet import Moments, frechet_distance
from robustguide.metrics.jackknife import groups_of
from robustguide.metrics.protocols import PROTOCOLS, protocol
from robustguide.metrics.score import Score

OWN = protocol("classifier_features")
FD = "frechet/classifier_features"


def test_the_help_lists_all_protocols():
    assert {name: each.source for name, each in PROTOCOLS.items()} == SOURCES


@pytest.fixture(scope="module")
def place(runs, tmp_path_factory):
    """Samples in three forms, other samples, and a reference by the tiny classifier's features."""
    where = tmp_path_factory.mktemp("score")
    (where / "weights").symlink_to(runs / "classifier/classifier.safetensors")
    samples = Real(Digits(), "test")
    write_samples(samples, where / "folder")
    write_samples(samples, where / "a.npz")
    write_samples(samples, where / "shards", "shards", per_shard=100)
    write_samples(Real(Digits(seed=1), "test"), where / "other.npz")
    words = [
        "--data=robustguide.data.Images",
        "--data.source=robustguide.data.Digits",
        "--protocol=classifier_features",
        f"--weights={where}/weights",
        f"--out={where}/reference",
    ]
    assert main(["stats", *words]) == 0
    return where


def score(place, samples, *words, out="score.json"):
    told = ["--protocol=classifier_features", f"--weights={place}/weights"]
    told += [f"--reference={place}/reference", f"--out={place}/{out}"]
    assert main(["score", str(place / samples), *told, *words]) == 0
    return Score.load(place / out)


@pytest.fixture(scope="module")
def features(place):
    extractor = load_extractor(OWN, str(place / "weights"))
    parts = [extractor(batch.pixels)["features"] for batch in Real(Digits(), "test").batches(400)]
    return torch.cat(parts)


def test_the_score_is_that_of_the_features(place, features, capsys):
    whole = score(place, "folder")
    found = whole.entries[FD]
    assert whole.reference["digest"] == open_reference(place / "reference", OWN).digest()
    shown = capsys.readouterr().out
    target = open_reference(place / "reference", OWN).moments["features"]
    assert found.value == pytest.approx(frechet_distance(Moments.of(features), target), rel=1e-6)
    groups = groups_of(torch.arange(359))
    without = [frechet_distance(Moments.of(features[groups != g]), target) for g in range(20)]
    assert found.replicates == pytest.approx(without, rel=1e-5)
    assert (found.n, found.shown) == (359, "FD-359@classifier_features")
    assert found.interval[0] < found.value < found.interval[1]
    assert found.infinity["value"] < found.value  # fewer images have a larger distance
    assert "FD-359@classifier_features" in shown and "Digits, train split" in shown


def test_all_forms_of_samples_have_one_score(place):
    first = score(place, "folder")
    for samples in ("a.npz", "shards"):
        other = score(place, samples, "--batch-size=50", out=f"{samples}.json")
        assert other.seeds == first.seeds
        for key, entry in first.entries.items():
            assert other.entries[key].value == pytest.approx(entry.value, rel=1e-6)


def test_blocks_of_seeds(place, features):
    found = score(place, "a.npz", "--n=357", "--blocks=3").entries[FD]
    target = open_reference(place / "reference", OWN).moments["features"]
    parts = [features[119 * block : 119 * (block + 1)] for block in range(3)]
    values = [frechet_distance(Moments.of(part), target) for part in parts]
    assert found.blocks == pytest.approx(values, rel=1e-6)
    assert found.value == pytest.approx(sum(values) / 3, rel=1e-6)
    assert (found.n, found.shown) == (119, "FD-119@classifier_features")


def test_a_score_that_was_stopped_goes_on(place, monkeypatch):
    kept = place / "kept"
    score(place, "a.npz", "--n=100", f"--features={kept}", "--batch-size=50")
    made = {file: file.stat().st_mtime_ns for file in kept.glob("chunk_*")}
    assert len(made) == 2
    found = score(place, "a.npz", f"--features={kept}", "--batch-size=50")
    assert {file: file.stat().st_mtime_ns for file in made} == made  # not made again
    assert found.entries[FD].value == pytest.approx(score(place, "a.npz").entries[FD].value)
    few = score(place, "a.npz", "--n=100", f"--features={kept}", "--batch-size=50")
    assert few.entries[FD].n == 100
    with pytest.raises(ValueError, match="features of other images"):
        score(place, "other.npz", f"--features={kept}")


def test_compare_pairs_equal_seeds(place, capsys):
    score(place, "a.npz", out="one.json")
    score(place, "other.npz", out="two.json")
    words = ["compare", f"{place}/one.json", f"{place}/two.json", f"--out={place}/difference.json"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "paired by seed" in shown and "FD-359@classifier_features" in shown
    told = json.loads((place / "difference.json").read_text())
    row = next(each for each in told["differences"] if each["key"] == FD)
    assert told["paired"] and row["difference"] == pytest.approx(row["b"] - row["a"])
    assert row["verdict"] == "seed noise"  # two halves of one data set
    score(place, "a.npz", "--n=100", out="few.json")
    with pytest.raises(ValueError, match=r"number of images 359, .*few\.json has 100"):
        main(["compare", f"{place}/one.json", f"{place}/few.json"])


def test_a_warning_where_images_are_fewer_than_features(place, capsys):
    found = score(place, "a.npz", "--n=12")
    assert "12 images are no more than the" in found.warnings[0]
    assert FD in found.entries and "KID-12@" in found.warnings[1]
    assert "Warning: FD-12@" in capsys.readouterr().out.replace("\n", " ")


def test_class_accuracy_by_a_judge_that_did_not_guide(place, runs, tmp_path, capsys):
    judge = f"--weights={place}/weights"
    words = ["score", str(place / "a.npz"), "--protocol=class-accuracy", judge]
    assert main([*words, f"--out={tmp_path}/score.json"]) == 0
    found = Score.load(tmp_path / "score.json").entries["class_accuracy/class-accuracy"]
    extractor = load_extractor(protocol("class-accuracy"), f"{place}/weights")
    right = [
        (extractor(batch.pixels)["logits"].argmax(1) == batch.y).double()
        for batch in open_samples(place / "a.npz").batches(400)
    ]
    assert found.value == pytest.approx(float(torch.cat(right).mean()))
    lines = (place / "folder/samples.jsonl").read_text().splitlines()
    guided = tmp_path / "guided"
    guided.mkdir()
    (guided / "images").symlink_to(place / "folder/images")
    digest = hashlib.sha256((place / "weights").read_bytes()).hexdigest()
    told = [json.dumps(json.loads(line) | {"guides": [digest]}) for line in lines]
    (guided / "samples.jsonl").write_text("\n".join(told) + "\n")
    with pytest.raises(ValueError, match="guided these samples"):
        main(["score", str(guided), "--protocol=class-accuracy", judge])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol=fid"], "There is no protocol 'fid'"),
        (["--protocol=classifier_features", "--weights=W"], "give --reference FILE"),
        (["--protocol=digits_features", "--weights=W", "--reference=R"], "'classifier_features'"),
        (["--protocol=classifier_features", "--weights=W", "--reference=R", "--n=360"], "359"),
        (["--protocol=classifier_features", "--weights=W", "--reference=R", "--blocks=2"], "358"),
    ],
)
def test_what_cannot_be_measured_is_refused(place, words, message):
    told = [
        word.replace("=W", f"={place}/weights").replace("=R", f"={place}/reference")
        for word in words
    ]
    with pytest.raises(ValueError, match=message):
        main(["score", str(place / "a.npz"), *told])


def test_a_reference_of_other_weights_is_refused(place, tmp_path):
    words = ["--protocol=classifier_features", f"--reference={place}/reference"]
    with safe_open(place / "weights", framework="pt") as file:
        tensors = {name: 1.01 * file.get_tensor(name) for name in file.keys()}
        other = tmp_path / "other.safetensors"
        save_file(tensors, other, file.metadata())
    with pytest.raises(ValueError, match="only equal ones are compared"):
        main(["score", str(place / "a.npz"), *words, f"--weights={other}"])


def test_images_that_are_no_samples(place, tmp_path):
    np.savez(tmp_path / "float.npz", arr_0=np.zeros((3, 8, 8, 1), np.float32))
    whole = (place / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    sizes = tmp_path / "sizes"
    sizes.mkdir()
    for side in (8, 9):
        Image.fromarray(np.zeros((side, side), np.uint8)).save(sizes / f"{side}.png")
    told = ["--protocol=classifier_features", f"--weights={place}/weights"]
    told += [f"--reference={place}/reference"]
    for name, message in (("float.npz", "uint8"), ("cut.npz", "cut"), ("sizes", "shape")):
        with pytest.raises(ValueError, match=message):
            main(["score", str(tmp_path / name), *told])
