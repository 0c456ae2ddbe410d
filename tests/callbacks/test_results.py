"""`results.json`: what was run, and every number that came of it."""

import hashlib
import math
import subprocess
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest
import tiny
import yaml

import robustguide
from robustguide.__main__ import main
from robustguide.callbacks import ReportCards, Results, results
from robustguide.checkpoints import build
from robustguide.data import Images
from robustguide.modules import RobustClassification
from robustguide.modules.cost import Evaluated


@pytest.fixture(scope="module")
def generated(runs, tmp_path_factory, json_of):
    """Folder and results of a generation that is guided, observed, judged and compared."""
    path = runs / "classifier/classifier.safetensors"
    features = tiny.spec(
        "metrics.ClassifierFeatures", network=tiny.loaded("classifier", path), name="tiny_features"
    )
    callbacks = [
        tiny.spec("callbacks.TrajectoryCalibration"),
        tiny.spec("callbacks.ClassAccuracy", judge=tiny.classifier()),
        tiny.spec("callbacks.Quality", extractor=features),
    ]
    config = tiny.generation(
        runs / "denoiser/denoiser.safetensors",
        guidance={"classifier": tiny.guided(path)},
        observer=tiny.loaded("classifier", path),
        callbacks=callbacks,
    )
    reference = {"data": {"init_args": {"reference": tiny.spec("data.Digits")}}}
    folder = tmp_path_factory.mktemp("results") / "run"
    tiny.run(folder, "test", tiny.merged(config, reference, {"seed_everything": 3}))
    return folder, json_of(folder)


def test_what_was_run(generated, runs):
    folder, found = generated
    run = found["run"]
    assert run["stage"] == "test" and run["seed"] == 3 and run["world_size"] == 1
    assert run["config"] == yaml.safe_load((folder / "config.yaml").read_text())
    assert run["config"]["model"]["init_args"]["guidance"]["classifier"]["init_args"]["scale"] == 2
    assert run["versions"]["lightning"] == version("lightning")
    root = Path(robustguide.__file__).parents[1]
    head = subprocess.run(
        ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert run["git_commit"] == (head.stdout.strip() or None)
    words = ["robustguide", "test", "--config", str(folder.parent / "run.yaml")]
    assert run["command"] == words and isinstance(run["git_dirty"], bool | None)
    files = [runs / f"{name}/{name}.safetensors" for name in ("classifier", "denoiser")]
    assert run["checkpoints"] == {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def test_every_number_has_its_n(generated):
    _, found = generated
    assert found["metrics"].keys() == {"integral_ece", "class_accuracy", "frechet/tiny_features"}
    assert all(metric["n"] == 20 for metric in found["metrics"].values())
    frechet = found["metrics"]["frechet/tiny_features"]
    assert frechet["extractor"].startswith("tiny_features@") and frechet["reference_n"] == 1257 + 2
    assert found["curves"].keys() == {"trajectory", "frechet/tiny_features"}
    for curve in found["curves"].values():
        assert all(len(values) == len(curve["sigma"]) == 3 for values in curve.values())
    assert found["metrics"]["integral_ece"]["value"] == pytest.approx(
        sum(found["curves"]["trajectory"]["ece"]) / 3
    )


def test_training_leaves_its_last_validation(runs, json_of):
    found = json_of(runs / "classifier")
    assert found["run"]["stage"] == "fit" and found["cost"]["steps"] == 60
    assert found["metrics"]["accuracy"]["n"] == 60
    assert found["curves"]["classifier"]["sigma"] == [0.1, 1.0]
    assert json_of(runs / "denoiser")["metrics"] == {}


def test_cost_of_several_processes(monkeypatch):
    """Sums over sums, so that a process with more images, or dearer ones, counts as much more."""
    module = RobustClassification(build(tiny.classifier()), levels=[0.1])
    module.evaluated = Evaluated(images=3, seconds=6.0, denoiser_evaluations=90)
    other = asdict(Evaluated(images=1, seconds=1.0, denoiser_evaluations=50, decoder_calls=2))
    memory = 2**50
    monkeypatch.setattr(results, "of_all", lambda trainer, mine: [mine, (memory, other)])
    trainer = tiny.trainer(".")
    found = results.cost_of(trainer, module)
    assert found["denoiser_evaluations"] == (90 + 50) / 4 and found["decoder_calls"] == 2 / 4
    assert found["seconds_per_image"] == 7 / 4 and found["peak_memory_bytes"] == memory
    assert "images" not in found and "seconds" not in found


def test_cost_of_what_makes_no_images(runs, json_of):
    found = json_of(runs / "classifier")["cost"]
    assert found.keys() == {"seconds", "steps", "peak_memory_bytes", "peak_memory_kind"}
    assert found["peak_memory_bytes"] > 2**26 and "resident" in found["peak_memory_kind"]


class Odd(ReportCards):
    """Measures what is no number."""

    def on_test_epoch_end(self, trainer, module):
        super().on_test_epoch_end(trainer, module)
        self.measured(module, "test", "nothing", math.nan, 0, limits=(0.0, math.inf))
        self.curve(trainer, "test", "empty", [0.1], {"ece": [math.inf]})


def test_what_is_no_number_is_valid_json_all_the_same(tmp_path, json_of):
    module = RobustClassification(build(tiny.classifier()), levels=[0.1])
    trainer = tiny.trainer(tmp_path, Odd(), Results())
    trainer.test(module, datamodule=Images(eval_limit=2), verbose=False)
    found = json_of(tmp_path)  # which refuses NaN and Infinity
    assert found["metrics"]["nothing"] == {"value": None, "n": 0, "limits": [0.0, "inf"]}
    assert found["curves"]["empty"] == {"sigma": [0.1], "ece": [None]}


def test_an_endless_interval_in_a_configuration(runs, tmp_path, json_of):
    sampler = tiny.spec("samplers.Heun", grid=tiny.spec("noise.RhoGrid", steps=2))
    config = tiny.generation(runs / "denoiser/denoiser.safetensors", count=2, sampler=sampler)
    tiny.run(tmp_path / "run", "test", config)
    found = json_of(tmp_path / "run")["run"]["config"]
    assert found["model"]["init_args"]["sampler"]["init_args"]["churn_max"] == "inf"


def test_another_run_s_configuration_is_not_taken_for_ones_own(tmp_path, json_of):
    (tmp_path / "config.yaml").write_text("seed_everything: 7\n")
    module = RobustClassification(build(tiny.classifier()), levels=[0.1])
    trainer = tiny.trainer(tmp_path, ReportCards(), Results())
    trainer.test(module, datamodule=Images(eval_limit=2), verbose=False)
    run = json_of(tmp_path)["run"]
    assert run["config"] is None and run["seed"] is None and run["checkpoints"] == {}


def test_checkpoints_in_a_configuration(tmp_path):
    for name in ("a.safetensors", "b.ckpt", "statistics.safetensors"):
        (tmp_path / name).write_bytes(b"")
    config = {
        "x": [{"path": f"{tmp_path}/a.safetensors"}, 3],
        "ckpt_path": f"{tmp_path}/b.ckpt",
        "missing": f"{tmp_path}/c.ckpt",
        "folder": str(tmp_path),
        "callbacks": [{"init_args": {"reference": f"{tmp_path}/statistics.safetensors"}}],
        "term": {"reference": {"path": f"{tmp_path}/a.safetensors"}},
    }
    found = list(results.checkpoints_in(config))
    assert found == [f"{tmp_path}/{name}" for name in ("a.safetensors", "b.ckpt", "a.safetensors")]


def test_a_package_that_is_not_installed_has_no_version():
    assert results.version_of("robustguide-that-is-not") is None


def test_changes_of_the_package_are_told_and_those_beside_it_are_not(tmp_path, monkeypatch):
    package = tmp_path / "robustguide"
    package.mkdir()
    monkeypatch.setattr(results, "PACKAGE", package)
    assert results.git("rev-parse", "HEAD") is None and results.is_dirty() is None
    (package / "noise.py").write_text("LEVELS = 1")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)
    assert len(results.git("rev-parse", "HEAD")) == 40
    (tmp_path / "config.yaml").write_text("seed: 0")
    assert results.is_dirty() is False
    (package / "noise.py").write_text("LEVELS = 2")
    assert results.is_dirty() is True
    (package / "noise.py").write_text("LEVELS = 1")
    assert results.is_dirty() is False
    (package / "new.py").write_text("")
    assert results.is_dirty() is True


def test_words_are_those_that_were_typed(tmp_path, json_of):
    """With those that the configuration never sees."""
    config = tiny.merged(tiny.classification(), {"trainer": {"max_steps": 1}})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    words = ["--trust", "tests", "fit", "--config", str(path), "--seed_everything=7"]
    main([*words, f"--trainer.default_root_dir={tmp_path}/run"])
    found = json_of(tmp_path / "run")["run"]["command"]
    assert found == ["robustguide", *words, f"--trainer.default_root_dir={tmp_path}/run"]
