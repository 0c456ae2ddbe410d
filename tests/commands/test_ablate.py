"""The table of several methods, read against the results of every block."""

import json
import math
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from scipy import stats

from robustguide.__main__ import main
from robustguide.commands import ablate
from robustguide.main import CommandLine
from robustguide.plans import JobError

NAMES = [str(digit) for digit in range(10)]
FRECHET = "frechet/tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base with the usual metrics, and two methods."""
    place = tmp_path_factory.mktemp("ablation")
    denoiser = tiny.exported(place / "denoiser.safetensors", tiny.denoiser())
    reader = tiny.exported(place / "classifier.safetensors", tiny.classifier())
    features = tiny.spec(
        "metrics.ClassifierFeatures", network=tiny.loaded("classifier", reader), name="tiny"
    )
    measure = [
        tiny.spec("callbacks.TrajectoryCalibration"),
        tiny.spec("callbacks.ClassAccuracy", judge=tiny.classifier()),
        tiny.spec("callbacks.Quality", extractor=features),
        tiny.spec("callbacks.SampleGrid", count=10),
    ]
    observer = tiny.loaded("classifier", reader)
    base = tiny.generation(denoiser, callbacks=measure, observer=observer)
    base["trainer"]["logger"] = False
    base["data"]["init_args"]["reference"] = tiny.spec("data.Digits", fold=[0, 20])
    terms = {"guided": {"guided": tiny.guided(reader)}, "unguided": {}, "missing": {}}
    configs = {name: {"model": {"init_args": {"guidance": on}}} for name, on in terms.items()}
    configs["missing"]["model"]["init_args"]["denoiser"] = tiny.loaded("denoiser", "nowhere.pt")
    for name, config in (configs | {"base": base}).items():
        (place / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return place


def in_this_process(patch):
    """Runs jobs without processes of their own, and lists them."""
    names, known = [], CommandLine.subcommands()

    def run_jobs(jobs, logs, workers, show, failures):
        for job in jobs:
            names.append(job.name)
            try:
                main(list(job.args))
                show(job.name, "100%", 1.0, True)
            except (ValueError, OSError) as error:
                failures[job.name] = JobError(f"see {logs / job.name}.log: {error}")
        return {}

    patch.setattr(ablate, "run_jobs", run_jobs)
    for place in ("calibration", "quality", "samples"):  # figures of single runs
        patch.setattr(f"robustguide.callbacks.{place}.publish", lambda *_: None)
    # the parsers of the other subcommands would take longer than the runs
    patch.setattr(CommandLine, "subcommands", staticmethod(lambda: {"test": known["test"]}))
    return names


@pytest.fixture
def ran(monkeypatch):
    """Names of the runs."""
    return in_this_process(monkeypatch)


def words(folder, *methods, place="runs"):
    configs = [str(folder / f"{name}.yaml") for name in methods]
    return [*configs, "--base", str(folder / "base.yaml"), "--folder", str(folder / place)]


SMALL = ["--count", "24", "--blocks", "3", "--first", "10", "--set", "data.batch_size=24"]


@pytest.fixture(scope="module")
def first(folder):
    """The command, once: its runs and what it printed."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        names = in_this_process(patch)
        assert ablate.run([*words(folder, "guided", "unguided"), *SMALL]) == 0
    return names, printed.getvalue()


def blocks_of(folder, name):
    """What the runs of a method left."""
    files = (folder / "runs" / name / f"block_{block}" / "results.json" for block in range(3))
    return [json.loads(file.read_text()) for file in files]


def test_the_table_holds_what_the_blocks_measured(folder, first):
    names, printed = first
    assert len(names) == 6
    results = json.loads((folder / "runs" / "ablation.json").read_text())
    assert list(results["methods"]) == ["guided", "unguided"]
    assert (results["blocks"], results["count"], results["first"]) == (3, 24, 10)
    rows = (folder / "runs" / "ablation.md").read_text().splitlines()[2:4]
    for (name, found), row in zip(results["methods"].items(), rows, strict=True):
        blocks = blocks_of(folder, name)
        for key in ("class_accuracy", FRECHET, "integral_ece"):
            values = [block["metrics"][key]["value"] for block in blocks]
            mean = sum(values) / 3
            spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
            half = stats.t.ppf(0.975, 2) * spread / math.sqrt(3)
            assert found["metrics"][key]["values"] == values
            assert found["metrics"][key]["mean"] == pytest.approx(mean, rel=1e-9)
            assert found["metrics"][key]["half_width"] == pytest.approx(half, rel=1e-9)
            text = f"{mean:.3f} ± {half:.3f}"
            assert text in row and text in printed
            assert {block["metrics"][key]["n"] for block in blocks} == {24}
        seconds = [block["cost"]["seconds_per_image"] for block in blocks]
        assert found["cost"]["seconds_per_image"]["values"] == seconds
        assert found["cost"]["denoiser_evaluations"]["values"] == [10.0] * 3
    forward = [m["cost"]["classifier_forward"]["mean"] for m in results["methods"].values()]
    assert forward == [10, 0]


def test_blocks_share_no_seed_and_methods_share_all(folder, first):
    for name in ("guided", "unguided"):
        data = [block["run"]["config"]["data"]["init_args"] for block in blocks_of(folder, name)]
        assert [(each["first"], each["count"]) for each in data] == [(10, 24), (34, 24), (58, 24)]
        assert {each["batch_size"] for each in data} == {24}
        distances = {block["metrics"][FRECHET]["value"] for block in blocks_of(folder, name)}
        assert len(distances) == 3
    kept = [
        load_file(folder / "runs" / name / "block_1" / "samples.safetensors")["pixels"]
        for name in ("guided", "unguided")
    ]
    assert not torch.equal(*kept)
    assert (folder / "runs" / "samples.png").is_file()


def test_a_command_that_is_repeated_runs_nothing_again(folder, first, ran):
    before = (folder / "runs" / "ablation.json").read_bytes()
    assert ablate.run([*words(folder, "guided", "unguided"), *SMALL]) == 0
    assert not ran and (folder / "runs" / "ablation.json").read_bytes() == before
    with pytest.raises(ValueError, match="holds results of a run that differed in options"):
        ablate.run([*words(folder, "guided"), *SMALL[:-1], "data.batch_size=12"])
    assert not ran


def test_a_method_that_fails_leaves_the_others(folder, first, ran, capsys):
    command = [*words(folder, "missing", "unguided"), *SMALL]
    assert ablate.run(command) == 1
    assert ran == [f"missing_block_{block}" for block in range(3)]
    printed, errors = capsys.readouterr()
    assert "missing: 3 of 3 blocks failed" in errors and "nowhere.pt" in errors
    assert f"{folder}/runs/logs/missing_block_0.log" in errors
    assert "unguided" in printed and "missing" not in printed
    results = json.loads((folder / "runs" / "ablation.json").read_text())
    assert list(results["methods"]) == ["unguided"]


def test_without_any_result_there_is_no_table(folder, monkeypatch):
    def run_jobs(jobs, logs, workers, show, failures):
        failures |= {job.name: JobError("broken") for job in jobs}

    monkeypatch.setattr(ablate, "run_jobs", run_jobs)
    assert ablate.run([*words(folder, "guided", place="none"), *SMALL]) == 1
    assert not (folder / "none" / "ablation.json").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--blocks", "2"], "--blocks is 2"),
        (["--count", "0"], "--count is 0"),
        (["--workers", "0"], "--workers is 0"),
        (["--set", "data.count=5"], "set by --count"),
        (["nobody.yaml"], r"nobody\.yaml is not there"),
        (["--base", "nobase.yaml"], r"nobase\.yaml is not there"),
    ],
)
def test_commands_without_a_meaning(folder, ran, extra, message):
    command = [*extra, *words(folder, "guided", place="bad")]
    if extra[0] == "--base":
        command = [str(folder / "guided.yaml"), *extra]
    if extra[0] == "--set":
        command = [*words(folder, "guided", place="bad"), *extra]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ablate.run(command)
    assert not ran and not (folder / "bad").exists()


def test_no_method_is_a_wrong_command_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        ablate.run(["--count", "3"])
    assert stopped.value.code == 2
    assert "configs" in capsys.readouterr().err


def test_two_methods_of_one_name(folder, ran):
    with pytest.raises(ValueError, match="would both be the method 'guided'"):
        ablate.run(words(folder, "guided", "guided"))


def test_help_names_examples_and_leaves_torch_alone():
    code = (
        "import sys; from robustguide.__main__ import main\n"
        "try: main(['ablate', '--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "robustguide ablate configs/test/" in done.stdout and "--blocks" in done.stdout


@pytest.mark.check
def test_in_processes_of_its_own(folder):
    command = [*words(folder, "unguided", "missing", place="real"), *SMALL]
    done = subprocess.run(
        [sys.executable, "-m", "robustguide", "ablate", *command], capture_output=True, text=True
    )
    assert done.returncode == 1 and "unguided" in done.stdout
    assert "nowhere.pt" in done.stderr and "missing_block_0.log" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "real" / "ablation.png").is_file()
