"""Whatever is wrong with the input: one message, with what was given, expected and the repair."""

import os
import re
import resource
import sys
from contextlib import contextmanager

import pytest
import tiny
import yaml
from PIL import Image

from robustguide.__main__ import entry
from robustguide.callbacks import results
from robustguide.complaints import explain


@contextmanager
def full_disk(size):
    """No file grows beyond a size in bytes, which is how a full disk looks to who writes it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def complaint(monkeypatch, capfd, tmp_path):
    """Runs a command line and returns its exit code and the lines of its message."""
    monkeypatch.delenv("ROBUSTGUIDE_TRACEBACK", raising=False)

    def run(command, config, *words, disk=None):
        folder = tmp_path / "run"
        config = tiny.merged(config, {"trainer": {"default_root_dir": str(folder)}})
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        words = ["robustguide", command, f"--config={tmp_path}/config.yaml", *map(str, words)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as raised, full_disk(disk):
            entry()
        out, err = capfd.readouterr()
        shown = [line for line in err.splitlines() if line.startswith("robustguide")]
        assert len(shown) == 1 and "Traceback" not in out + err
        assert len(shown[0]) < 700, shown
        assert raised.value.code in (1, 2)
        assert not list(folder.rglob("*.part")) and not list(folder.rglob("*.partial"))
        return raised.value.code, shown[0]

    return run


def changed(config, path, value):
    """A configuration with one value changed, deep inside."""
    config = tiny.merged(config)
    *outer, last = path.split(".")
    part = config
    for name in outer:
        part = part[name]
    part[last] = value
    return config


TRAINING = tiny.classification(attack=tiny.pgd())
MODEL = "model.init_args"
NET = f"{MODEL}.classifier.init_args.net"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "trainer.max_step",
            3,
            r"no option 'trainer\.max_step' \(did you mean trainer\.max_s",
        ),
        ("modle", {"a": 1}, r"no option 'modle.*' \(did you mean model"),
        (
            f"{MODEL}.atack",
            None,
            r"model: .* takes no 'atack' \(did you mean attack\?\); it takes",
        ),
        (
            f"{NET}.init_args.widht",
            3,
            r"model\.classifier\.net: .*MLP takes no 'widht' .* width",
        ),
        (
            f"{NET}.class_path",
            "robustguide.nets.MPL",
            r"robustguide\.nets has no 'MPL' \(did .*MLP",
        ),
        (
            f"{MODEL}.classifier",
            {"class_path": "torch.nn.Linear"},
            r"model\.classifier: .*nn\.Linear does",
        ),
        (
            f"{MODEL}.classifier",
            tiny.denoiser(),
            r"EpsDenoiser .* a subclass of Classifier",
        ),
        (f"{MODEL}.classifier", 3, r"model\.classifier: expected .*Classifier, got 3"),
        (
            f"{MODEL}.optimizer.init_args.lr",
            "fast",
            r"optimizer\.lr: expected float, got fast",
        ),
        (f"{MODEL}.levels", 0.3, r"model\.levels: expected Sequence, got 0\.3"),
        ("trainer.max_steps", "many", r"trainer\.max_steps: expected int, got many"),
        ("data", {"class_path": "robustguide.data.Folder"}, r"data: .*Folder does not correspond"),
    ],
)
def test_a_configuration_that_does_not_parse(complaint, path, value, said):
    code, message = complaint("fit", changed(TRAINING, path, value))
    assert code == 2 and re.search(said, message), message


def test_a_word_that_is_no_option(complaint):
    code, message = complaint("fit", TRAINING, "--trainer.max_stepz=3", "--trainer.max_steps=2")
    assert code == 2 and "'trainer.max_stepz' (did you mean trainer.max_steps" in message
    code, message = complaint("fit", TRAINING, "--trainer.max_ste=3")
    assert code == 2 and "no option 'trainer.max_ste'" in message  # nothing is guessed
    code, message = complaint("fit", TRAINING, "--config=nowhere.yaml")
    assert code == 2 and re.search("File does not exist: '.*nowhere.yaml'", message)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (f"{MODEL}.levels", [-1.0], r"noise levels of at least 0, got \[-1\.0\]"),
        (f"{MODEL}.levels", [float("nan")], r"finite noise levels .*, got \[nan\]"),
        (
            f"{MODEL}.attack.init_args.radius",
            -1.0,
            r"radius is a finite number, .*got -1",
        ),
        (f"{MODEL}.attack.init_args.steps", 0, r"at least 1 step, got steps=0"),
        (f"{MODEL}.noise", None, r"name one as model\.noise"),
        (
            f"{MODEL}.rates",
            {"net.stem": 0.1},
            r"No parameter starts with 'net\.stem'; they",
        ),
        (f"{NET}.init_args.num_logits", 7, r"num_classes 10, but its network answers with \[7\]"),
        (
            f"{NET}.init_args.shape",
            [3, 8, 8],
            r"cannot read the data's images of shape \[1, ",
        ),
        ("data.init_args.batch_size", 0, r"batch_size is 0; expected 1 or more"),
        (
            "data.init_args.batch_size",
            5000,
            r"batch of 5000 .* lower batch_size to 1259",
        ),
        ("trainer.accelerator", "cuda", r"CUDA"),
        ("trainer.max_epochs", -7, r"max_epochs"),
    ],
)
def test_a_value_that_cannot_be(complaint, path, value, said):
    code, message = complaint("fit", changed(TRAINING, path, value))
    assert code == 1 and re.search(said, message), message


def evaluation(path):
    return tiny.merged(
        tiny.classification(),
        {"model": {"init_args": {"classifier": tiny.loaded("classifier", path)}}},
    )


def test_a_checkpoint_that_is_not_there(complaint, runs):
    code, message = complaint("test", evaluation(runs / "classifier/clasifier.safetensors"))
    assert code == 1
    assert "clasifier.safetensors does not exist" in message
    assert "holds classifier.safetensors" in message and "robustguide fit" in message


def test_a_denoiser_is_no_classifier(complaint, runs):
    code, message = complaint("test", evaluation(runs / "denoiser/denoiser.safetensors"))
    assert code == 1
    assert "holds a denoiser, but a classifier was asked for; give another file" in message


def test_a_file_that_is_no_checkpoint(complaint, tmp_path, runs):
    path = tmp_path / "cut.safetensors"
    path.write_bytes((runs / "classifier/classifier.safetensors").read_bytes()[:1000])
    code, message = complaint("test", evaluation(path))
    assert code == 1 and "cut.safetensors cannot be read as a checkpoint" in message


def trainer_checkpoint(folder):
    (path,) = folder.glob("checkpoints/*.ckpt")
    return path


def test_a_trainer_s_checkpoint_of_another_shape(complaint, runs):
    config = changed(TRAINING, f"{NET}.init_args.width", 32)
    path = trainer_checkpoint(runs / "classifier")
    code, message = complaint("fit", config, f"--ckpt_path={path}")
    assert code == 1 and "of another network" in message
    assert (
        "net.enter.bias: checkpoint [16], configuration [32]" in message or "[16, 16]" in message
    )
    assert "Resume with the configuration" in message


def test_a_trainer_s_checkpoint_of_something_else(complaint, runs, tmp_path):
    code, message = complaint("fit", TRAINING, f"--ckpt_path={tmp_path}/none.ckpt")
    assert code == 1 and "none.ckpt does not exist" in message and "give a .ckpt file" in message
    path = runs / "classifier/classifier.safetensors"
    code, message = complaint("fit", TRAINING, f"--ckpt_path={path}")
    assert code == 1 and "load_classifier" in message and "--ckpt_path resumes from" in message
    whole = trainer_checkpoint(runs / "classifier").read_bytes()
    for name, content in (("cut", whole[:2000]), ("text", b"no checkpoint")):
        (tmp_path / f"{name}.ckpt").write_bytes(content)
        code, message = complaint("fit", TRAINING, f"--ckpt_path={tmp_path}/{name}.ckpt")
        assert code == 1 and "is damaged, or no checkpoint of a trainer" in message
    path = trainer_checkpoint(runs / "denoiser")
    code, message = complaint("fit", TRAINING, f"--ckpt_path={path}")
    assert code == 1 and "of another network" in message


@pytest.fixture
def sampling(runs):
    return tiny.generation(
        runs / "denoiser/denoiser.safetensors",
        guidance={"classifier": tiny.guided(runs / "classifier/classifier.safetensors")},
    )


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "guidance.classifier.init_args.scale",
            float("nan"),
            r"scale must be a finite number of at least 0, got nan; scale 0",
        ),
        ("sampler.init_args.clip", -1.0, r"clip must be a positive number or null, got -1"),
        (
            "sampler.init_args.variance",
            {"class_path": "robustguide.samplers.Learned"},
            r"learned variance, but this denoiser predicts none; use",
        ),
        ("watched_steps", 0, r"watched_steps must be at least 1, got 0"),
    ],
)
def test_a_sampling_that_cannot_be(complaint, sampling, path, value, said):
    code, message = complaint("test", changed(sampling, f"model.init_args.{path}", value))
    assert code == 1 and re.search(said, message), message


TERM = "guidance.classifier.init_args.term"
FREE = tiny.spec("guidance.ClassifierFree")
CLOSED = """
import torch
from robustguide.interfaces import Classifier

class Closed(Classifier):
    num_classes = 10

    def forward(self, x, sigma):
        with torch.no_grad():
            return torch.stack([x.mean((1, 2, 3)) * k for k in range(10)], 1)
"""


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "guidance.classifier.init_args.scale",
            -2.0,
            r"scale must be a finite number of at least 0, got -2\.0; scale 0 \(or weight 1\)",
        ),
        (
            "guidance.classifier",
            tiny.spec("guidance.Scaled", scale=1.0, weight=2.0, term=FREE),
            r"either scale .* or weight .* got scale=1\.0 and weight=2\.0",
        ),
        (
            "guidance.classifier",
            tiny.spec("guidance.Within", sigma_min=-0.1, sigma_max=2.0, term=FREE),
            r"Within needs 0 <= sigma_min < sigma_max, got -0\.1 and 2\.0",
        ),
        (
            "guidance.classifier",
            tiny.spec("guidance.Within", sigma_min=5.0, sigma_max=2.0, term=FREE),
            r"got 5\.0 and 2\.0",
        ),
        (
            "guidance.classifier",
            tiny.spec("guidance.WithinSteps", first=-1, last=4, term=FREE),
            r"Steps count from 0, got first=-1",
        ),
        (
            "guidance.guide",
            tiny.spec(
                "guidance.Autoguidance",
                reference=tiny.merged(
                    tiny.denoiser(shape=[1, 4, 4]), {"init_args": {"shape": [1, 4, 4]}}
                ),
            ),
            r"Term 'guide': the reference makes 1 x 4 x 4, the denoiser 1 x 8 x 8; give a ref",
        ),
        (
            "guidance.guide",
            tiny.spec("guidance.Autoguidance"),
            r"worse version of the network: another network as `reference`",
        ),
        (
            "guidance.stabilized",
            tiny.spec(
                "guidance.Stabilized", term=FREE, stabilizer=tiny.spec("guidance.EMA", decay=0.5)
            ),
            r"Stabilized changes a gradient, and ClassifierFree moves .*; give it a score term",
        ),
        (
            f"{TERM}.init_args.classifier",
            {"class_path": "my_classifiers.Closed"},
            r"Term 'classifier' needs a gradient of the classifier \(Closed\) .* blank one of "
            r"1 x 8 x 8 the graph .*no_grad.* or guide by robustguide\.guidance\.GradientFree",
        ),
    ],
)
def test_guidance_that_cannot_be(complaint, sampling, tmp_path, monkeypatch, path, value, said):
    """Refused before anything is sampled."""
    (tmp_path / "my_classifiers.py").write_text(CLOSED)
    monkeypatch.syspath_prepend(tmp_path)
    code, message = complaint("test", changed(sampling, f"model.init_args.{path}", value))
    assert code == 1 and re.search(said, message), message


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            f"{TERM}.class_path",
            "robustguide.guidance.ClasifierGuidance",
            r"robustguide\.guidance has no 'ClasifierGuidance' \(did you mean ClassifierGuidance",
        ),
        (
            "guidance.new",
            tiny.spec("guidance.Elucidated"),
            r"guidance: .*robustguide\.guidance has no 'Elucidated'",
        ),
        (
            f"{TERM}.init_args.view",
            tiny.spec("guidance.AtDenoise"),
            r"robustguide\.guidance has no 'AtDenoise' \(did you mean AtDenoised",
        ),
        (
            f"{TERM}.init_args.view",
            FREE,
            r"view: .*ClassifierFree .* a subclass of View",
        ),
        (
            "guidance.stabilized",
            tiny.spec("guidance.Stabilized", term=FREE, stabilizer=tiny.spec("guidance.Emma")),
            r"robustguide\.guidance has no 'Emma'",
        ),
        ("guidance.classifier.init_args.scale", "strong", r"scale: expected .*, got strong"),
    ],
)
def test_guidance_that_is_not_there(complaint, sampling, path, value, said):
    code, message = complaint("test", changed(sampling, f"model.init_args.{path}", value))
    assert code == 2 and re.search(said, message), message


def test_the_scale_may_be_changed_from_the_command_line(complaint, sampling):
    word = "--model.guidance.classifier.scale=.nan"
    code, message = complaint("test", sampling, word)
    assert code == 1 and "must be a finite number of at least 0, got nan" in message
    code, message = complaint("test", sampling, word.replace("scale", "scal"))
    assert code == 2 and "takes no 'scal' (did you mean scale?)" in message


def test_a_label_that_is_no_class(complaint, sampling):
    labels = tiny.spec("data.Listed", labels=[3, 10])
    code, message = complaint("test", changed(sampling, "data.init_args.labels", labels))
    assert code == 1 and re.search(r"10.*0\.\.9", message), message


def test_folders_of_images(complaint, tmp_path):
    """One that is not there, one without images, and one with a file that is none."""
    config = tiny.classification(classifier=tiny.classifier())
    source = tiny.spec("data.Folder", root="", size=8)
    config["data"] = tiny.spec("data.Images", source=source, batch_size=64)
    config = changed(config, f"{NET}.init_args.shape", [3, 8, 8])
    code, message = complaint(
        "fit", changed(config, "data.init_args.source.init_args.root", "none")
    )
    assert code == 1 and re.search(r"no folder .*none; expected ROOT/train/CLASS", message)
    folder = tmp_path / "images"
    config = changed(config, "data.init_args.source.init_args.root", str(folder))
    names = [str(k) for k in range(10)]
    for name in names:
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True)
    code, message = complaint("fit", config)
    assert code == 1 and "images" in message and str(folder) in message
    for name in names:
        for split in ("train", "test"):
            for i in range(8):
                Image.new("RGB", (8, 8), 20 * i).save(folder / split / name / f"{i}.png")
    (folder / "train/3/0.png").write_bytes(b"no image")
    code, message = complaint("fit", config)
    assert code == 1 and "Cannot read the image" in message and "3/0.png" in message


def briefly(config, **trainer):
    """Without other files than the one that is looked at."""
    trainer = {"max_steps": 1, "logger": False, "enable_checkpointing": False} | trainer
    return tiny.merged(config, {"trainer": trainer})


def test_a_full_disk_while_the_network_is_exported(complaint, tmp_path):
    config = changed(briefly(TRAINING), f"{NET}.init_args.width", 64)
    code, message = complaint("fit", config, disk=60_000)
    assert code == 1
    assert re.search(r"classifier\.safetensors could not be written.* free space there", message)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "lock"}


def test_a_full_disk_while_a_checkpoint_is_saved(complaint, tmp_path):
    config = briefly(TRAINING, enable_checkpointing=True, val_check_interval=1)
    code, message = complaint("fit", config, disk=10_000)
    assert code == 1 and "Free space there, or give another folder" in message
    assert not [path for path in tmp_path.glob("run/checkpoints/*") if path.stat().st_size]


@pytest.mark.parametrize("name", ["config.yaml", "results.json"])
def test_a_full_disk_while_text_is_written(complaint, tmp_path, runs, name, monkeypatch):
    """The file of an earlier run stays as it was."""
    (tmp_path / "run").mkdir()
    before = '{"earlier": "run"}'
    (tmp_path / "run" / name).write_text(before)
    monkeypatch.setattr(results, "version_of", lambda package: "9" * 100_000)
    config = briefly(evaluation(runs / "classifier/classifier.safetensors"))
    config = tiny.merged(config, {"data": {"init_args": {"eval_limit": 2}}})
    disk = {"config.yaml": 300, "results.json": 500_000}[name]
    code, message = complaint("test", config, disk=disk)
    assert code == 1 and "Free space there, or give another folder" in message
    assert (tmp_path / "run" / name).read_text() == before


def test_the_traceback_is_there_for_who_asks(monkeypatch):
    monkeypatch.setenv("ROBUSTGUIDE_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["robustguide", "demo", "--configs=nowhere"])
    with pytest.raises(FileNotFoundError, match=r"No configurations of the demo in .*nowhere"):
        entry()
    assert os.environ["ROBUSTGUIDE_TRACEBACK"] == "1"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("something that nobody foresaw", "something that nobody foresaw"),
        ('Parser key "a":\n  Parser key "a":\n    odd', "a.a: odd"),
        ("Option 'x' is not accepted", " takes no 'x'"),
    ],
)
def test_messages_that_nobody_foresaw(message, said):
    assert explain(message) == said
