"""The command line: what it trains, measures and writes, and whose checkpoints it refuses."""

import contextlib
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robustguide import __main__ as door
from robustguide import load_classifier
from robustguide.__main__ import main, trusted_packages
from robustguide.callbacks import EMA, Export, ReportCards, Requeue, Results
from robustguide.checkpoints import trusting
from robustguide.data import Digits
from robustguide.guidance import Guidance
from robustguide.main import Parser, latest, plan_of, turn
from robustguide.plans.arrays import Plan, Setting, sha256
from robustguide.samplers import Sampler
from robustguide.samplers.seeds import mixed

LEVELS = [0.1, 1.0]
IMAGES = 60


def events(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


@pytest.fixture(scope="module")
def tested(runs, tmp_path_factory):
    """Folder of an evaluation of the trained classifier, and what the command line built."""
    folder = tmp_path_factory.mktemp("main") / "test"
    classifier = tiny.loaded("classifier", runs / "classifier/classifier.safetensors")
    config = tiny.classification(evaluation_attack=tiny.pgd(radius=0.5, steps=3))
    config = tiny.merged(config, {"model": {"init_args": {"classifier": classifier}}})
    return folder, tiny.run(folder, "test", config)


@pytest.mark.parametrize(
    ("words", "rest", "packages"),
    [
        (["fit", "--trust", "a", "--config", "c"], ["fit", "--config", "c"], ["a"]),
        (["--trust=a", "fit", "--trust", "b_2"], ["fit"], ["a", "b_2"]),
        (["fit", "--trusted"], ["fit", "--trusted"], []),
    ],
)
def test_trust_may_stand_anywhere(words, rest, packages):
    assert trusted_packages(words) == (rest, packages)


@pytest.mark.parametrize("words", [["--trust"], ["fit", "--trust", "a/b"], ["--trust="]])
def test_trust_needs_a_package(words):
    with pytest.raises(SystemExit, match="--trust needs the name of a package"):
        main(words)


def test_a_command_that_is_not_there(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["fitt"])
    assert raised.value.code == 2
    assert "no command 'fitt'; there are fit, validate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "code"), [(3, 3), (1, 1), (0, None), (None, None), (KeyboardInterrupt(), 130)]
)
def test_exit_codes(monkeypatch, answer, code):
    def command():
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(door, "main", command)
    with contextlib.nullcontext() if code is None else pytest.raises(SystemExit) as raised:
        door.entry()
    assert code is None or raised.value.code == code


def test_help_of_a_command(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["predict", "--help"])
    assert raised.value.code == 0
    shown = capsys.readouterr().out
    assert "--trainer.default_root_dir" in shown and "--ckpt_path" in shown
    assert "return_predictions" not in shown  # nobody could receive them
    assert "--optimizer" not in shown  # the modules have their own


def test_training_learns(runs):
    """Over 10 classes, a loss below log(10) and an accuracy above 1/10."""
    for name in ("classifier", "denoiser"):
        losses = [event.value for event in events(runs / name).Scalars("train/loss")]
        assert len(losses) == 6 and losses[-1] < 0.9 * losses[0]
    found = events(runs / "classifier")
    assert found.Scalars("train/loss")[-1].value < math.log(10) - 0.8
    assert found.Scalars("train/accuracy")[-1].value > 0.4
    assert found.Scalars("val/accuracy/sigma_0.1")[-1].value > 0.6
    assert events(runs / "denoiser").Scalars("val/loss")[-1].value < 0.9


def test_a_run_folder_holds_everything(runs):
    for name in ("classifier", "denoiser"):
        files = {path.name for path in (runs / name).iterdir()}
        assert {f"{name}.safetensors", "config.yaml", "results.json", "checkpoints"} <= files
        assert not [file for file in files if file.startswith(".")]
        config = yaml.safe_load((runs / name / "config.yaml").read_text())
        assert config["seed_everything"] == 0 and config["trainer"]["max_steps"] == 60
        assert config["trainer"]["inference_mode"] is False
        assert config["model"]["init_args"]["seed"] == 0  # a default, stated
    with Image.open(runs / "classifier/val_report_card.png") as picture:
        assert picture.width > 100


def test_the_configuration_of_a_run_repeats_it(runs, tmp_path):
    main(
        [
            "fit",
            f"--config={runs}/classifier/config.yaml",
            f"--trainer.default_root_dir={tmp_path}",
        ]
    )
    again, once = (
        load_classifier(str(folder / "classifier.safetensors")).state_dict()
        for folder in (tmp_path, runs / "classifier")
    )
    assert all(torch.equal(again[name], once[name]) for name in once)


def by_hand(folder, attacked=None):
    """Accuracy and 15-bin ECE of the test images, whose noise their numbers seed."""
    classifier = load_classifier(str(folder / "classifier/classifier.safetensors"))
    split = Digits().split("test")
    rows = [i * len(split) // IMAGES for i in range(IMAGES)]
    x_0, y = torch.stack([split[row][0] for row in rows]), [split[row][1] for row in rows]
    noise = torch.stack(
        [torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(mixed(i, 1))) for i in rows]
    )
    curves = {"accuracy": [], "ece": []}
    for sigma in LEVELS:
        p = classifier(x_0 + sigma * noise, torch.full((IMAGES,), sigma)).double().softmax(-1)
        confidence, label = p.max(-1)
        correct = [int(k) == want for k, want in zip(label, y, strict=True)]
        bins = [[] for _ in range(15)]
        for value, right in zip(confidence.tolist(), correct, strict=True):
            bins[math.ceil(value * 15) - 1].append(right - value)
        curves["accuracy"].append(sum(correct) / IMAGES)
        curves["ece"].append(sum(abs(sum(each)) for each in bins) / IMAGES)
    return curves


def test_the_curves_of_a_test_are_those_of_the_classifier(tested, runs, json_of):
    curves = json_of(tested[0])["curves"]["classifier"]
    expected = by_hand(runs)
    assert curves["sigma"] == LEVELS
    assert curves["accuracy"] == expected["accuracy"]
    assert curves["ece"] == pytest.approx(expected["ece"], abs=1e-6)


def test_attacks_have_gradients_in_a_test(tested, json_of):
    folder, cli = tested
    assert cli.trainer.test_loop.inference_mode is False
    curves = json_of(folder)["curves"]["classifier"]
    pairs = list(zip(curves["robust_accuracy"], curves["accuracy"], strict=True))
    assert all(attacked <= clean for attacked, clean in pairs)
    assert any(attacked < clean for attacked, clean in pairs)


def test_tensorboard_shows_scalars_and_pictures(tested, json_of):
    folder = tested[0]
    found, results = events(folder), json_of(folder)
    curves = results["curves"]["classifier"]
    for key in ("accuracy", "robust_accuracy", "ece"):
        for sigma, value in zip(LEVELS, curves[key], strict=True):
            (point,) = found.Scalars(f"test/{key}/sigma_{sigma:.3g}")
            assert point.value == pytest.approx(value, abs=1e-6)
        mean = sum(curves[key]) / len(LEVELS)
        name = "integral_ece" if key == "ece" else key
        assert found.Scalars(f"test/{name}")[0].value == pytest.approx(mean, abs=1e-6)
    for tag in ("report_card", "reliability_forward_x_t"):
        (picture,) = found.Images(tag)
        with Image.open(folder / f"{tag.replace('/', '_')}.png") as file:
            assert (picture.width, picture.height) == file.size


def test_a_command_without_a_folder_or_a_bar(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.yaml"
    path = runs / "classifier/classifier.safetensors"
    model = {"init_args": {"classifier": tiny.loaded("classifier", path)}}
    config.write_text(yaml.safe_dump(tiny.merged(tiny.classification(), {"model": model})))
    cli = main(["validate", f"--config={config}", "--trainer.logger=false"])
    assert cli.trainer.default_root_dir.endswith("runs/default")
    assert Path("runs/default/results.json").is_file()
    assert cli.trainer.logger is None and not list(Path("runs/default").glob("events*"))
    assert "batches" not in capsys.readouterr().out


def test_what_measures_comes_first_and_what_saves_comes_last():
    callbacks = [Requeue(), ModelCheckpoint(), EMA(0.9), ReportCards(), Export(), Results()]
    order = [type(callback).__name__ for callback in sorted(callbacks, key=turn)]
    assert order == ["ReportCards", "Export", "Results", "EMA", "ModelCheckpoint", "Requeue"]


NETWORK = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.leave = nn.Linear(64, 10)
    def forward(self, x, t):
        return self.leave(x.flatten(1))
"""


def test_a_network_of_ones_own_is_exported_if_it_is_trusted(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    classifier = tiny.classifier()
    classifier["init_args"]["net"] = {"class_path": "mynets.Net"}
    config = tiny.classification(classifier=classifier)
    config = tiny.merged(config, {"trainer": {"max_steps": 1}})
    with pytest.raises(ValueError, match="allow it with `--trust mynets`"):
        tiny.run(tmp_path / "run", "fit", config)
    assert not list((tmp_path / "run").glob("*.safetensors"))
    tiny.run(tmp_path / "run", "fit", config, "--trust", "mynets")
    with trusting(["mynets"]):
        found = load_classifier(str(tmp_path / "run/classifier.safetensors"))
    assert type(found.net).__module__ == "mynets"
    with pytest.raises(ValueError, match="--trust mynets"):
        load_classifier(str(tmp_path / "run/classifier.safetensors"))
    sys.modules.pop("mynets")


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """A task of an array, in whose run folder a requeued training has left a checkpoint."""
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    for name, value in {
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_JOB_NAME": "train",
        "SLURM_JOB_ID": "102",
        "SLURM_ARRAY_JOB_ID": "100",
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "here",
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "run"


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_evaluation_takes_no_weights_that_were_not_named(slurm, runs, command):
    """Lightning would load them, and measure another network than the one that was named."""
    slurm.mkdir()
    (slurm / "hpc_ckpt_1.ckpt").write_bytes(b"")
    path = runs / "classifier/classifier.safetensors"
    model = {"init_args": {"classifier": tiny.loaded("classifier", path)}}
    with pytest.raises(ValueError, match=r"hpc_ckpt_1.ckpt.*default_root_dir of its own"):
        tiny.run(slurm, command, tiny.merged(tiny.classification(), {"model": model}))


def test_a_training_continues_its_own_job_and_no_other(slurm, monkeypatch):
    config = tiny.merged(tiny.classification(), {"trainer": {"max_steps": 2}})
    cli = tiny.run(slurm, "fit", config)
    cli.trainer.save_checkpoint(slurm / "hpc_ckpt_1.ckpt")
    again = tiny.run(slurm, "fit", tiny.merged(config, {"trainer": {"max_steps": 5}}))
    assert again.trainer.ckpt_path == str(slurm / "hpc_ckpt_1.ckpt")
    assert again.trainer.global_step == 5
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(ValueError, match=r"hpc_ckpt_1.ckpt of SLURM job 100_2.* SLURM job 100_3"):
        tiny.run(slurm, "fit", config)


def test_a_run_folder_serves_one_run_at_a_time(runs, tmp_path):
    """Another process is in it; that it writes the same files is what matters, not the command."""
    hold = "import sys; from robustguide.files import alone\nwith alone(sys.argv[1]): input(0)"
    path = runs / "classifier/classifier.safetensors"
    model = {"init_args": {"classifier": tiny.loaded("classifier", path)}}
    config = tiny.merged(tiny.classification(), {"model": model})
    command = [sys.executable, "-c", hold, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.read(1) == b"0"
        for command in ("fit", "validate", "test"):
            with pytest.raises(ValueError, match=rf"in use by process {other.pid} on .*"):
                tiny.run(tmp_path / "run", command, config)
        assert os.listdir(tmp_path / "run") == ["lock"]
        other.communicate(b"\n")
    tiny.run(tmp_path / "run", "test", config)


def test_a_requeued_job_goes_on_from_its_newest_checkpoint(slurm, monkeypatch):
    """SLURM's signal left one, and the clock a later one, before the job was killed."""
    trainer = {"max_steps": 2, "callbacks": [tiny.saving(1)]}
    config = tiny.merged(tiny.classification(), {"trainer": trainer})
    (slurm / "checkpoints").mkdir(parents=True)
    (slurm / "checkpoints/another.ckpt").write_bytes(b"of a run that was here before")
    cli = tiny.run(slurm, "fit", config)
    os.utime(slurm / "checkpoints/another.ckpt", (1, 1))
    cli.trainer.save_checkpoint(slurm / "hpc_ckpt_1.ckpt")
    assert latest(cli.trainer) is None  # of a job that is started the first time
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert latest(cli.trainer) == slurm / "hpc_ckpt_1.ckpt"
    (periodic,) = slurm.glob("checkpoints/epoch*.ckpt")
    later = (slurm / "hpc_ckpt_1.ckpt").stat().st_mtime + 1
    os.utime(periodic, (later, later))
    part = slurm / "checkpoints/.a.checkpoint.part"
    part.touch()
    again = tiny.run(slurm, "fit", tiny.merged(config, {"trainer": {"max_steps": 5}}))
    assert again.trainer.ckpt_path == str(periodic) and again.trainer.global_step == 5
    assert not part.exists()
    for path in slurm.rglob("*.ckpt"):
        os.utime(path, (1, 1))
    assert latest(cli.trainer) is None  # all are older than this job


def test_a_training_belongs_to_a_plan_only_where_the_plan_says_so(tmp_path):
    plan = Plan(tmp_path, "fit", (Setting("lr=1", (), sha256(b"text")),), 1)
    plan.write(["text"])
    assert plan_of(tmp_path / "lr=1").told() == plan.told()
    assert plan_of(tmp_path / "by_hand") is None and plan_of(tmp_path) is None
    (tmp_path / "plan.json").write_text("{}")  # another program's, perhaps
    assert plan_of(tmp_path / "lr=1") is None


def test_an_evaluation_is_not_requeued(slurm, runs):
    """It would leave a checkpoint, which nobody may take up."""
    path = runs / "classifier/classifier.safetensors"
    model = {"init_args": {"classifier": tiny.loaded("classifier", path)}}
    cli = tiny.run(slurm, "test", tiny.merged(tiny.classification(), {"model": model}))
    assert cli.trainer._accelerator_connector.cluster_environment.auto_requeue is False


@pytest.mark.parametrize(
    ("words", "job", "is_kept"),
    [("fit --config a", "7", True), ("--trust b fit", "7", True), ("test", "7", False),
     ("fit", None, False)],
)  # fmt: skip
def test_the_signal_is_kept_while_a_training_starts(words, job, is_kept):
    """Neither lost nor deadly; a thread that begins meanwhile does not get it either."""
    code = (
        "import os, signal, sys, threading; from robustguide.__main__ import guard\n"
        "guard(sys.argv[1:])\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "masks = []\n"
        "thread = threading.Thread(target=lambda: masks.append(signal.pthread_sigmask(0, [])))\n"
        "thread.start(); thread.join()\n"
        "assert signal.SIGUSR1 in masks[0]\n"
        "told = []; signal.signal(signal.SIGUSR1, lambda *_: told.append(1))\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1]); assert told; print('kept')"
    )
    outside = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    environment = outside | ({"SLURM_JOB_ID": job} if job else {})
    command = [sys.executable, "-c", code, *words.split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    expected = (0, "kept\n") if is_kept else (-signal.SIGUSR1, "")
    assert (done.returncode, done.stdout) == expected, done.stderr


def test_terms_inside_terms_are_read_once():
    """Reading costs a number of steps that grows with the square of the depth, not by doubling."""

    class Counting(Parser):
        parsed = 0

        def _check_value_key(self, *args, **kwargs):
            Counting.parsed += 1
            return super()._check_value_key(*args, **kwargs)

    def steps(depth):
        term = {"class_path": "robustguide.guidance.ClassifierFree"}
        for _ in range(depth):
            arguments = {"scale": 1.0, "term": term}
            term = {"class_path": "robustguide.guidance.Scaled", "init_args": arguments}
        parser, before = Counting(exit_on_error=False), Counting.parsed
        parser.add_argument("--guidance", type=dict[str, Guidance])
        parser.parse_object({"guidance": {"a": term}})
        return Counting.parsed - before

    assert steps(8) < 5 * steps(4)  # by doubling 16 times


def test_what_is_read_once_has_all_defaults():
    """As jsonargparse's own parser has it, which reads it again and again."""

    set_parsing_settings(subclasses_enabled=[Sampler])  # as the command line does

    def read(parser_class):
        parser = parser_class(exit_on_error=False)
        parser.add_argument("--guidance", type=dict[str, Guidance])
        parser.add_argument("--sampler", type=Sampler)
        file = Path(__file__).parents[1] / "configs/ablation/elucd_nudge.yaml"
        config = yaml.safe_load(file.read_text())
        arguments = config["model"]["init_args"]
        return parser.dump(parser.parse_object(arguments), skip_unset=False)

    assert read(Parser) == read(LightningArgumentParser)
