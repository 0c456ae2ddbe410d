import gzip
import io
import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from robustguide.commands import doctor
from robustguide.machine import Finding, examine, packages, peak, places, processors, stock
from robustguide.machine.packages import Requirement, required


@pytest.fixture
def machine(monkeypatch):
    """Findings of our own in place of a look around."""

    def has(*findings):
        monkeypatch.setattr(doctor, "examine", lambda runs, data, weights: list(findings))

    return has


@pytest.fixture
def installed(monkeypatch):
    """Other versions than are installed."""

    def pretend(**others):
        real = packages.version_of
        found = {name.replace("_", "-"): version for name, version in others.items()}
        monkeypatch.setattr(packages, "version_of", lambda name: found.get(name, real(name)))

    return pretend


def test_this_machine_is_fit(tmp_path):
    """What runs these tests has all that is needed."""
    findings = examine(runs=str(tmp_path / "runs"))
    assert [finding for finding in findings if finding.is_fault] == []
    found = {(finding.topic, finding.name): finding.value for finding in findings}
    assert found["versions", "torch"] == torch.__version__.split("+")[0]
    assert found["versions", "robustness"].endswith("(robustness.attack_steps)")
    assert found["data sets", "digits"].startswith("1797 images")
    assert found["threads", "torch"] == str(torch.get_num_threads())
    assert "GFLOP/s" in found["devices", "cpu products"]
    assert found["devices", "cpu norms"] == "compiled"
    assert ("devices", "cpu") in found and ("SLURM", "scontrol") in found
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("found", ["2.6.2", "2.6.3"])
@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
def test_a_malicious_release_is_named_and_never_imported(monkeypatch, installed, name, found):
    installed(**{name.replace("-", "_"): found})
    monkeypatch.setattr(packages, "import_module", lambda module: imported.append(module))
    imported = []
    (finding,) = [each for each in packages.versions() if "MALICIOUS" in each.value]
    assert finding.name == name and finding.is_fault
    assert found in finding.repair and f"pip uninstall {name}" in finding.repair
    assert "torch" in imported and name not in imported and "pytorch_lightning" not in imported
    # the data sets' module imports Lightning
    assert not packages.is_safe() and list(stock.data_sets([])) == []


def test_a_package_that_is_missing_old_or_broken_is_a_fault(installed, monkeypatch):
    absent = required(Requirement("no-such-package-of-ours>=1"))
    assert absent.is_fault and "pip install 'no-such-package-of-ours>=1'" in absent.repair
    installed(rich="1.0")
    old = required(Requirement("rich>=13.7"))
    assert old.is_fault and old.value == "1.0, needs >=13.7"
    installed(broken="2.0")
    monkeypatch.setitem(sys.modules, "broken", None)
    broken = required(Requirement("broken>=1"))
    assert broken.is_fault and "`import broken` fails" in broken.value
    assert not required(Requirement("numpy>=1.26")).is_fault


def test_devices_are_tried(monkeypatch):
    assert processors.tried("cpu", "x86_64") == Finding("devices", "cpu", "x86_64")
    lost = processors.tried("no_such_device", "A GPU")
    assert lost.is_fault and lost.value.startswith("A GPU; ")
    # of ones through a kernel of ones the gradient sums to 4 x 9
    monkeypatch.setattr(torch.autograd, "grad", lambda y, x: (torch.zeros(1),))
    assert "is wrong on cpu" in processors.tried("cpu", "x86_64").repair


@pytest.mark.parametrize(("half", "pays"), [(1.4e11, False), (1.6e11, True), (None, False)])
def test_the_speed_of_products_and_what_follows_from_it(monkeypatch, half, pays):
    peaks = {torch.float32: 1e11, torch.bfloat16: half}
    monkeypatch.setattr(peak, "matmul_peak", lambda device, dtype: peaks[dtype])
    for device in ("cpu", "cuda:0"):
        found = processors.products(device)
        assert found.name == f"{device} products" and "float32 100 GFLOP/s" in found.value
        assert not found.repair and ("no bfloat16" in found.value) == (half is None)
        assert ("--trainer.precision=bf16-mixed pays" in found.value) == (pays and device == "cpu")


def test_more_threads_than_cores_are_noted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    cores, stated, found = processors.threads()
    assert cores.value.startswith("1 of") and stated.value == "64"
    assert found.repair.endswith("OMP_NUM_THREADS=1") and not found.is_fault


def test_data_sets_are_found_in_a_folder_and_below(tmp_path):
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            file = tmp_path / "fashion/FashionMNIST/raw" / f"{part}-{kind}-ubyte.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(gzip.compress(b""))
    cifar = tmp_path / "cifar/cifar-10-batches-py"
    cifar.mkdir(parents=True)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (cifar / name).touch()
    for name in ("train/n01440764", "train/n01443537", "train/other", "val/n01440764"):
        (tmp_path / "imagenet" / name).mkdir(parents=True)
    found = list(stock.data_sets([str(tmp_path)]))[-3:]
    assert [(each.name, each.value) for each in found] == [
        ("CIFAR-10", str(tmp_path / "cifar")),
        ("Fashion-MNIST", str(tmp_path / "fashion/FashionMNIST/raw")),
        ("ImageNet", f"{tmp_path / 'imagenet'}, 2 classes in train, 1 classes in val"),
    ]
    (cifar / "data_batch_3").unlink()
    (cut,) = stock.data_sets_in(tmp_path / "cifar")
    assert cut.is_fault and "data_batch_3 missing" in cut.value


def test_weights_say_what_they_are(tmp_path):
    header = {
        "format": 1, "kind": "classifier", "specification": {}, "class_names": ["a", "b"],
        "num_classes": 2, "shape": [1, 8, 8], "conditioning": "t", "weights": "ema",
        "versions": {}, "extra": {},
    }  # fmt: skip
    tensors = {"weight": torch.zeros(2)}
    (tmp_path / "below").mkdir()
    save_file(tensors, tmp_path / "below/a.safetensors", {"robustguide": json.dumps(header)})
    save_file(tensors, tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"cut")
    (tmp_path / "d.ckpt").touch()
    (tmp_path / "64x64_diffusion.pt").touch()
    save_file({"pixels": torch.zeros(1)}, tmp_path / "samples.safetensors")
    found = {each.name.rpartition("/")[2]: each for each in stock.checkpoints([str(tmp_path)])}
    assert found["a.safetensors"].value == "classifier, 2 classes, 1 x 8 x 8, ema weights"
    assert found["b.safetensors"].value == "tensors that do not say of what"
    assert found["samples.safetensors"].value == "sampled images"
    assert found["64x64_diffusion.pt"].value == "published denoiser, card adm-imagenet64"
    assert found["c.safetensors"].is_fault and "3 bytes" in found["c.safetensors"].repair
    assert not found["d.ckpt"].repair and len(found) == 6


def test_a_folder_that_was_named_and_is_not_there_is_a_fault(tmp_path):
    missing = str(tmp_path / "typo")
    (weights,) = stock.checkpoints([missing])
    *_, data = stock.data_sets([missing])
    assert weights.is_fault and data.is_fault and missing in data.repair


def test_a_folder_that_cannot_be_written_to_is_a_fault(tmp_path, monkeypatch):
    assert not places.writable("runs", tmp_path / "new/runs").repair
    file = tmp_path / "file"
    file.touch()
    assert places.writable("runs", file / "runs").is_fault
    usage = SimpleNamespace(free=5e8)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda folder: usage)
    assert "free some space" in places.writable("runs", tmp_path).repair
    runs, cache = places.folders(str(file))
    assert runs.is_fault and not cache.is_fault


def slurm_answers(monkeypatch, tmp_path, answer, code):
    script = tmp_path / "scontrol"
    script.write_text(f"#!/bin/sh\necho '{answer}'\nexit {code}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return next(places.slurm())


def test_a_cluster_is_reached_or_noted(tmp_path, monkeypatch):
    up = slurm_answers(monkeypatch, tmp_path, "Slurmctld(primary) at node1 is UP", 0)
    assert up.value == "Slurmctld(primary) at node1 is UP" and not up.repair
    down = slurm_answers(monkeypatch, tmp_path, "Slurmctld(primary) at node1 is DOWN", 1)
    assert "SLURM_CONF" in down.repair and not down.is_fault
    monkeypatch.setenv("PATH", "")
    assert not next(places.slurm()).repair


def test_exit_code_and_repairs(machine, capsys):
    fine, note = Finding("versions", "a", "1"), Finding("threads", "b", "64", "set less", False)
    machine(fine, note)
    assert doctor.run([]) == 0
    out = capsys.readouterr().out
    assert "threads, b: set less" in out and "All that is needed works." in out
    machine(fine, note, Finding("folders", "runs", "full", "free some space"))
    assert doctor.run([]) == 1
    out = capsys.readouterr().out
    assert "fault  folders, runs: free some space" in out and "1 to repair." in out
    # what must be repaired comes first
    assert out.index("free some space") < out.index("set less")


def test_values_are_shown_as_they_are():
    file = io.StringIO()
    finding = Finding("data sets", "[red]x", "a [b] c", "d [/e] f")
    doctor.show([finding], Console(file=file, width=100))
    assert all(text in file.getvalue() for text in ("[red]x", "a [b] c", "d [/e] f"))


def test_findings_as_json(machine, tmp_path, capsys):
    machine(Finding("versions", "a", "1"))
    assert doctor.run(["--json", str(tmp_path / "new/doctor.json")]) == 0
    assert json.loads((tmp_path / "new/doctor.json").read_text()) == [
        {"topic": "versions", "name": "a", "value": "1", "repair": "", "is_needed": True}
    ]
    assert os.listdir(tmp_path / "new") == ["doctor.json"]


def test_arguments(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(doctor, "examine", lambda *arguments: given.extend(arguments) or [])
    doctor.run(["--data", "a", "b", "--weights", "c", "--runs", "d"])
    assert given == ["d", ["a", "b"], ["c"]]
    with pytest.raises(SystemExit) as ended:
        doctor.run(["--help"])
    assert ended.value.code == 0
    assert "\n  robustguide doctor --data ~/datasets" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        doctor.run(["--dta", "a"])
    assert ended.value.code == 2
