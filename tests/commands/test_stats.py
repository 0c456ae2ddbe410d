"""`robustguide stats`, through the door of the command line."""

import json

import pytest
import tiny
import torch
import yaml

from robustguide.__main__ import main
from robustguide.checkpoints.extractors import load_extractor
from robustguide.checkpoints.references import open_reference
from robustguide.data import Digits, write_shards
from robustguide.data.generated import Real, write_samples
from robustguide.metrics.moments import Moments
from robustguide.metrics.protocols import protocol

DATA = ["--data=robustguide.data.Images", "--data.source=robustguide.data.Digits"]
OWN = protocol("classifier_features")


@pytest.fixture(scope="module")
def stats(runs):
    """Runs the command with the tiny classifier's features."""
    weights = str(runs / "classifier/classifier.safetensors")

    def run(out, *words):
        told = ["--protocol=classifier_features", f"--weights={weights}", f"--out={out}"]
        assert main(["stats", *told, *map(str, words)]) == 0
        return open_reference(out, OWN)

    run.weights = weights
    return run


def test_statistics_of_a_data_module(stats, tmp_path, capsys):
    words = [*DATA, "--split=test", "--activations=20", "--batch-size=50"]
    found = stats(tmp_path / "a.safetensors", *words)
    shown = capsys.readouterr().out
    real, extractor = Real(Digits(), "test"), load_extractor(OWN, stats.weights)
    features = torch.cat([extractor(batch.pixels)["features"] for batch in real.batches(400)])
    expected, moments = Moments.of(features), found.moments["features"]
    torch.testing.assert_close(moments.mean, expected.mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(moments.covariance, expected.covariance, rtol=1e-5, atol=1e-7)
    assert moments.count == 359 and len(found.activations["features"]) == 20
    told = found.provenance
    assert (told.data, told.split, told.recipe) == (
        "Digits",
        "test",
        "robustguide.data.Digits(seed=0)",
    )
    assert (told.count, told.digest, told.file) == (359, real.digest(), None)
    assert found.identity == extractor.identity
    assert f"Digits (test) by classifier_features, digest {found.digest()}" in shown
    row = next(line.split() for line in shown.splitlines() if line.split()[:1] == ["features"])
    assert row[1:3] == [str(features.shape[1]), "359"] and row[-1] == "20"


def test_the_same_command_writes_the_same_bytes(stats, tmp_path):
    for name in ("a", "b"):
        stats(tmp_path / name, *DATA, "--data.source.fold=[0, 9]")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_images_are_the_same_from_anywhere(stats, tmp_path):
    """A data set, its shards and its images as samples: one digest, one set of moments."""
    source = Digits(fold=(0, 20))
    write_shards(source, str(tmp_path / "shards"))
    write_samples(Real(source, "test"), tmp_path / "folder")
    write_samples(Real(source, "test"), tmp_path / "a.npz")
    seeds = tiny.spec("data.SeedData", count=3, num_classes=10, reference=tiny.spec("data.Digits"))
    configs = [
        {"data": tiny.spec("data.Images", source=tiny.spec("data.Digits")), "model": {"a": 1}},
        {"data": seeds, "trainer": {"b": 2}},
    ]
    for place, config in enumerate(configs):
        (tmp_path / f"{place}.yaml").write_text(yaml.safe_dump(config))
    ways = [
        [*DATA, "--split=test"],
        ["--data=robustguide.data.ShardImages", f"--data.root={tmp_path}/shards", "--split=test"],
        [f"{tmp_path}/shards/test-*.tar"],
        [tmp_path / "folder"],
        [tmp_path / "a.npz", "--split=test", "--recipe=8 x 8"],
        [f"--config={tmp_path}/0.yaml", "--split=test"],
        [f"--config={tmp_path}/1.yaml", "--split=test"],
    ]
    found = [stats(tmp_path / f"{i}.safetensors", *words) for i, words in enumerate(ways)]
    for reference in found:
        assert reference.provenance.digest == found[0].provenance.digest
        assert reference.digest() == found[0].digest()
        kept = [each.activations["features"].block(0, 359) for each in (reference, found[0])]
        assert torch.equal(*kept)
    told = [(each.provenance.data, each.provenance.split) for each in found]
    assert told[0] == told[5] == told[6] == ("Digits", "test")
    assert told[1] == ("ShardImages", "test") and told[3] == (f"{tmp_path}/folder", None)
    assert found[4].provenance.recipe == "8 x 8" and found[3].provenance.recipe is None


def test_where_the_file_goes_by_default(runs, stats, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--protocol=classifier_features", f"--weights={stats.weights}", *DATA]
    assert main(["stats", *words, "--data.source.fold=[0, 100]"]) == 0
    place = tmp_path / "runs/references/Digits_train_classifier_features.safetensors"
    found = open_reference(place, OWN)
    assert found.provenance.split == "train" and found.moments["features"].count == 13
    assert found.provenance.recipe == "robustguide.data.Digits(fold=[0, 100], seed=0)"
    assert "features: no more images than features, so the cov" in capsys.readouterr().out


def test_bad_input(stats, tmp_path):
    out = tmp_path / "a"
    (tmp_path / "none.yaml").write_text(json.dumps({"model": {}}))
    seeds = json.dumps(tiny.spec("data.SeedData", count=3, num_classes=10))
    for words, said in (
        ([], "Give the real images: either DATA .* or a data module"),
        ([tmp_path, *DATA], "Give the real images: either DATA"),
        ([f"--config={tmp_path}/none.yaml"], r"none\.yaml says nothing of data"),
        ([f"--data={seeds}"], "names no real images; set data.reference"),
        ([*DATA, "--split=val"], "There is no split 'val'"),
        ([*DATA, "--protocol=class-accuracy"], "compares with no real images"),
        ([*DATA, "--protocol=amd"], "There is no protocol 'amd' .did you mean adm"),
        ([tmp_path / "nowhere"], "nowhere does not exist"),
    ):
        with pytest.raises((ValueError, OSError), match=said):
            stats(out, *words)
    assert not out.exists()


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["stats", "--help"])
    shown = capsys.readouterr().out
    assert not stopped.value.code and "robustguide stats --protocol digits_features" in shown
