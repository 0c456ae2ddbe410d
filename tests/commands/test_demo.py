"""The demo's promises, read from the results.json that it leaves."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
METHOD_KEYS = {
    "class_accuracy",
    "frechet/digits_features",
    "integral_ece",
    "n",
    "denoiser_evaluations",
    "classifier_forward",
    "observer_forward",
    "seconds",
}


def robustguide(*words):
    return subprocess.run(
        [sys.executable, "-m", "robustguide", *words], cwd=REPO, capture_output=True, text=True
    )


def test_help_names_examples_and_leaves_torch_alone():
    code = (
        "import sys; from robustguide.__main__ import main\n"
        "try: main(['demo', '--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "robustguide demo --seed 1" in done.stdout


def test_without_configurations_it_says_what_is_missing(tmp_path):
    done = robustguide("demo", "--configs", str(tmp_path), "--folder", str(tmp_path / "runs"))
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr and "--configs" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "seed1"
    done = robustguide("demo", "--seed", "1", "--folder", str(folder))
    assert done.returncode == 0, done.stderr + done.stdout
    return folder, json.loads((folder / "results.json").read_text())


@pytest.mark.check
def test_every_key_is_there(results):
    _, found = results
    assert set(found["methods"]) == {
        "unguided",
        "plain_guided",
        "robust_guided",
        "classifier_free",
    }
    for method in found["methods"].values():
        assert set(method) >= METHOD_KEYS
        assert method["n"] >= 1000
    for classifier in found["classifiers"].values():
        lengths = {len(classifier[k]) for k in ("sigma", "accuracy", "robust_accuracy", "ece")}
        assert len(lengths) == 1 and lengths.pop() >= 5


@pytest.mark.check
def test_guidance_finds_the_class_and_brings_images_closer(results):
    _, found = results
    methods = found["methods"]
    low, high = methods["unguided"]["class_accuracy_limits"]
    assert low <= 0.1 <= high  # near chance: its own 95% limits hold 1/K
    for name in ("plain_guided", "robust_guided", "classifier_free"):
        assert methods[name]["class_accuracy"] >= 0.8
        key = "frechet/digits_features"
        assert methods[name][key] < methods["unguided"][key]


@pytest.mark.check
def test_the_robust_classifier_is_more_robust_where_the_plain_one_beats_chance(results):
    _, found = results
    plain, robust = found["classifiers"]["plain"], found["classifiers"]["robust"]
    beats = [lower > 0.1 for lower in plain["accuracy_lower"]]
    gains = [
        better - worse
        for better, worse, counts in zip(
            robust["robust_accuracy"], plain["robust_accuracy"], beats, strict=True
        )
        if counts
    ]
    assert len(gains) >= 5
    assert sum(gains) / len(gains) >= 0.05
    assert min(gains) >= 0


@pytest.mark.check
def test_costs_are_those_of_fifty_steps(results):
    _, found = results
    rows = {
        name: (m["denoiser_evaluations"], m["classifier_forward"], m["observer_forward"])
        for name, m in found["methods"].items()
    }
    assert rows == {
        "unguided": (50, 0, 10),
        "plain_guided": (50, 50, 10),
        "robust_guided": (50, 50, 10),
        "classifier_free": (100, 0, 10),
    }


@pytest.mark.check
def test_the_report_opens_offline(results):
    folder, _ = results
    sources = []

    class Pictures(HTMLParser):
        def handle_starttag(self, tag, attributes):
            sources.extend(value for name, value in attributes if name in ("src", "href"))

    page = (folder / "report.html").read_text()
    Pictures().feed(page)
    assert len(sources) >= 5
    assert all(source.startswith(("data:", "#")) for source in sources)  # in the page itself
