"""What is read of run folders, whatever is left of them."""

import json

import pytest
import reported
import torch
from safetensors.torch import save_file

from robustguide.report.reading import FRAMES, SAMPLES, find, read, read_all


def test_runs_are_found_by_their_results(tmp_path):
    for name in ("b/run", "a/run", "a/other"):
        reported.leave(tmp_path / name, reported.generation())
    (tmp_path / "results.json").write_text(json.dumps({"methods": {}, "runs": {}}))
    found = find([tmp_path])
    assert list(found) == ["other", "a/run", "b/run"]
    assert found["a/run"] == tmp_path / "a/run"
    # named twice, once by the folder above it: one run
    assert list(find([tmp_path / "a/run", tmp_path / "a"])) == ["run", "other"]
    # a run is a run, whatever lies below it
    reported.leave(tmp_path / "a/run/below", reported.generation())
    assert list(find([tmp_path / "a/run"])) == ["run"]


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder; give run folders"):
        find([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"no results\.json in .* or below it"):
        find([tmp_path])


def test_what_was_run(tmp_path):
    free = reported.spec("guidance.ClassifierFree")
    guidance = {
        "robust": reported.spec("guidance.Scaled", scale=3.0, term=reported.scaled(2.0)),
        "free": reported.spec("guidance.Scaled", scale=None, weight=4.0, term=free),
        "own": free,
    }
    found = read(reported.leave(tmp_path / "run", reported.generation(guidance=guidance)))
    assert found.method == "free + own + robust" and found.name == "run"
    assert [term.scale for term in found.terms] == [3.0, None, 6.0]
    assert [term.kind for term in found.terms][2] == "ClassifierGuidance"
    assert (found.sampler, found.seeds, found.n) == ("Ancestral, 50 steps", "0 to 999", 1000)
    assert found.notes == ()
    other = read(reported.leave(tmp_path / "other", reported.classification()))
    assert (other.method, other.seeds, other.n) == ("ReportCard", "3", 359)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ('{"run": {"stage": "te', "cannot be read"),
        ("[1, 2]", "does not tell what was run"),
        ('{"metrics": {}}', "does not tell what was run"),
        ("[" * 100_000, "cannot be read"),
        ('{"run": {}}', "has no metrics"),
        ('{"run": {"config": 3, "versions": 4}, "metrics": [], "curves": 1}', "has no curves"),
    ],
)
def test_a_broken_file_becomes_a_note(tmp_path, text, note):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/results.json").write_text(text)
    found = read(tmp_path / "run")
    assert any(note in each for each in found.notes)
    assert not found.metrics and not found.curves
    assert (found.terms, found.sampler, found.n) == ((), "", None)


def test_what_is_no_number_is_no_number(tmp_path):
    metrics = {
        "frechet/toy": {"value": "inf", "n": 5},
        "huge": {"value": 0.5, "n": True, "interval": [0, 10**400]},
        "larger": {"value": 10**400},
        "text": {"n": 3},
        "flag": {"value": True},
        "list": [1],
    }
    curves = {"a": {"sigma": [1.0, 2.0], "ece": [0.5, None], "short": [1.0]}, "b": {"sigma": "x"}}
    tables = {"trajectory": {"sigma": [1.0], "count": [[1], [2]], "confidence": 3}}
    written = reported.generation(reliability=tables, metrics=metrics, curves=curves)
    found = read(reported.leave(tmp_path / "run", written))
    assert found.metrics["frechet/toy"].value is None
    assert found.metrics["huge"].interval is None and found.metrics["huge"].n is None
    assert found.metrics.keys() == {"frechet/toy", "huge"}
    assert found.curves["a"].series.keys() == {"ece"} and "b" not in found.curves
    assert len([note for note in found.notes if "no known form" in note]) == 6
    assert "trajectory" not in found.reliability


def test_seeds_and_labels_come_from_the_file_or_from_a_plain_configuration(tmp_path):
    pixels = {7: 10, 8: 20}
    found = read(reported.leave(tmp_path / "new", reported.generation(), pixels))
    assert found.samples.pairs == ((7, 1), (8, 2))
    old = {"pixels": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)}
    for name, labelled, pairs in (("old", None, ((0, 0), (1, 1))), ("listed", {}, None)):
        data = {"data": {"init_args": {"labels": labelled}}}
        folder = reported.leave(tmp_path / name, reported.generation(run={"config": data}))
        save_file(old, folder / "samples.safetensors")
        found = read(folder)
        assert (found.samples and found.samples.pairs) == pairs
        assert bool(found.notes) == (pairs is None)


def test_broken_tensors_become_notes(tmp_path):
    folder = reported.frames(reported.leave(tmp_path / "run", reported.generation(), {0: 1}))
    assert read(folder).frames.pairs == ((0, 0), (1, 1))
    for name in (SAMPLES, FRAMES):
        (folder / name).write_bytes((folder / name).read_bytes()[:30])
    found = read(folder)
    assert found.samples is None and found.frames is None and len(found.notes) == 2


def test_what_defines_a_number(tmp_path):
    """Reference, attack, grid, judge and split count; a reference's place and chance do not."""

    def identity(name, written, key):
        return read(reported.leave(tmp_path / name, written)).metrics[key].identity

    moved = {"reference": reported.REFERENCE | {"file": "elsewhere"}, "replicates": [1, 2]}
    same = {"metrics": {"frechet/toy": moved}}
    other = {"metrics": {"frechet/toy": {"reference": {"digest": "other"}}}}
    key = "frechet/toy"
    first = identity("a", reported.generation(1.0), key)
    assert first == identity("b", reported.generation(2.0, **same), key)
    assert first != identity("c", reported.generation(1.0, **other), key)
    assert first != identity("d", reported.generation(metrics={key: {"n": 10}}), key)
    attacked = identity("e", reported.classification(), "robust_accuracy")
    weaker = reported.classification(attack="L2, radius 0.5")
    assert attacked != identity("f", weaker, "robust_accuracy")
    clean = identity("g", reported.classification(0.1), "accuracy")
    assert clean == identity("h", reported.classification(0.9), "accuracy")
    levels = {"classifier": {"sigma": [0.1, 2.0]}}
    assert clean != identity("i", reported.classification(curves=levels), "accuracy")
    validated = reported.classification(run={"stage": "fit"})
    assert clean != identity("j", validated, "accuracy")


def test_judges_with_other_weights_are_told_apart(tmp_path):
    def judged(digest):
        judge = reported.spec("checkpoints.load_classifier", path="judge.safetensors")
        callback = reported.spec("callbacks.ClassAccuracy", judge=judge)
        run = {
            "config": {"trainer": {"callbacks": [None, callback]}},
            "checkpoints": {"judge.safetensors": digest},
        }
        metrics = {"class_accuracy": {"value": 0.5, "n": 1000}}
        folder = reported.leave(tmp_path / digest, reported.generation(run=run, metrics=metrics))
        return read(folder).metrics["class_accuracy"].identity

    assert dict(judged("one")[-1])["judge"] == "one" and judged("two") != judged("three")


def test_each_of_several_judges_is_told_by_its_name(tmp_path):
    judges = {"": "first", "robust": "second"}
    callbacks = [
        reported.spec(
            "callbacks.ClassAccuracy",
            name=name or None,
            judge=reported.spec("checkpoints.load_classifier", path=file),
        )
        for name, file in judges.items()
    ]
    run = {
        "config": {"trainer": {"callbacks": callbacks}},
        "checkpoints": {file: f"digest of {file}" for file in judges.values()},
    }
    keys = {"class_accuracy": "first", "class_accuracy/robust": "second"}
    metrics = {key: {"value": 0.5, "n": 1000} for key in (*keys, "class_accuracy/other")}
    found = read(reported.leave(tmp_path / "a", reported.generation(run=run, metrics=metrics)))
    for key, file in keys.items():
        assert dict(found.metrics[key].definition)["judge"] == f"digest of {file}"
    assert dict(found.metrics["class_accuracy/other"].definition)["judge"] == "unknown"


def test_all_are_read(tmp_path):
    for name in ("one", "two"):
        reported.leave(tmp_path / name, reported.generation())
    assert [run.name for run in read_all([tmp_path])] == ["one", "two"]
