"""Two processes (DDP with gloo) measure, write and train what one does.

They are forked, so nothing is imported twice; the command line is the same for both.
"""

import json
import subprocess
import sys

import latent
import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from torch.multiprocessing import ProcessRaisedException

from robustguide import load_classifier
from robustguide.checkpoints import load_codec
from robustguide.data import Digits
from robustguide.data.batches import training_batches
from robustguide.interfaces import Denoiser, Prediction
from robustguide.noise import LogNormal, expand
from robustguide.samplers.seeds import mixed

# Forked processes are what these tests are about, and one of them may have nothing to do.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fork", "ignore:Total length of", "ignore:Found .* module.s. in eval mode"
)
SHORT = {"trainer": {"max_steps": 1, "val_check_interval": 1, "log_every_n_steps": 1}}
TWO = {"trainer": {"devices": 2, "strategy": "ddp_fork"}}


def both(folder, command, config, *words):
    """Folders of a run by one process and of the same run by two."""
    tiny.run(folder / "one", command, config, *words)
    tiny.run(folder / "two", command, tiny.merged(config, TWO), *words)
    return folder / "one", folder / "two"


def numbers(value, where=""):
    """All numbers of a document by their place."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in items for k, v in numbers(part, f"{where}/{key}").items()}
    return {where: value}


def check_same(one, two):
    """The same metrics and curves, each with the same n."""
    for key in ("metrics", "curves"):
        first, second = numbers(one[key]), numbers(two[key])
        assert first.keys() == second.keys() and first
        for name, value in first.items():
            if isinstance(value, float):
                assert second[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
            else:
                assert second[name] == value, name


def test_a_classifier_is_measured_on_each_image_once(runs, tmp_path, json_of):
    """An odd number of images, in batches of one, so that each is computed in the same way."""
    path = runs / "classifier/classifier.safetensors"
    config = tiny.classification(evaluation_attack=tiny.pgd(radius=0.5))
    changes = {
        "model": {"init_args": {"classifier": tiny.loaded("classifier", path)}},
        "data": {"init_args": {"eval_batch_size": 1, "eval_limit": 11}},
    }
    one, two = map(json_of, both(tmp_path, "test", tiny.merged(config, changes)))
    check_same(one, two)
    assert one["metrics"]["accuracy"]["n"] == 11
    assert (one["run"]["world_size"], two["run"]["world_size"]) == (1, 2)


def test_a_report_card_does_not_tell_the_processes(runs, tmp_path):
    """Not in a byte, though few images give a trajectory, and one process may have none."""
    card = tiny.spec(
        "modules.ReportCard",
        classifier=tiny.loaded("classifier", runs / "classifier/classifier.safetensors"),
        denoiser=tiny.loaded("denoiser", runs / "denoiser/denoiser.safetensors"),
        views={"denoised": tiny.spec("guidance.AtDenoised")},
        levels=[1.0],
        attacks=[tiny.pgd(random_start=True)],
        reverse=tiny.spec("modules.Reverse", sampler=tiny.ancestral(3), share=0.2),
    )
    data = tiny.spec("data.Images", eval_batch_size=1, eval_limit=9)
    config = {"model": card, "data": data, "trainer": tiny.TRAINER}
    one, two = both(tmp_path, "test", config)
    documents = [(folder / "report_card.json").read_bytes() for folder in (one, two)]
    assert documents[0] == documents[1]
    assert 0 < json.loads(documents[0])["self_agreement"]["n"] < 9


def generation(runs, **data):
    path = runs / "classifier/classifier.safetensors"
    features = tiny.spec(
        "metrics.ClassifierFeatures", network=tiny.loaded("classifier", path), name="tiny_features"
    )
    callbacks = [
        tiny.spec("callbacks.TrajectoryCalibration"),
        tiny.spec("callbacks.ClassAccuracy", judge=tiny.classifier()),
        tiny.spec("callbacks.Quality", extractor=features),
        tiny.spec("callbacks.SampleGrid", count=7),
        tiny.spec("callbacks.Frames", count=3, steps=2),
    ]
    config = tiny.generation(
        runs / "denoiser/denoiser.safetensors",
        sampler=tiny.ancestral(5),
        guidance={"classifier": tiny.guided(path)},
        observer=tiny.loaded("classifier", path),
        callbacks=callbacks,
    )
    data = {"batch_size": 1, "reference": tiny.spec("data.Digits", fold=[0, 8])} | data
    return tiny.merged(config, {"data": {"init_args": data}})


def test_a_generation_is_measured_on_each_image_once(runs, tmp_path, json_of):
    folders = both(tmp_path, "test", generation(runs, count=21))
    one, two = map(json_of, folders)
    check_same(one, two)
    assert {metric["n"] for metric in two["metrics"].values()} == {21}
    rows = (
        "denoiser_evaluations",
        "classifier_forward",
        "classifier_backward",
        "observer_forward",
    )
    assert (
        [one["cost"][name] for name in rows]
        == [two["cost"][name] for name in rows]
        == [5, 5, 5, 3]
    )
    # the grid shows images 0 to 6, though each process made every other one
    grids = [load_file(folder / "samples.safetensors")["pixels"] for folder in folders]
    assert len(grids[0]) == 7 and torch.equal(*grids)
    # and so do the frames
    first, second = (load_file(folder / "frames.safetensors") for folder in folders)
    assert first["index"].tolist() == [0, 1, 2] and first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_quality_is_that_of_each_image_once(runs, tmp_path, json_of):
    """Uneven last batches: of 101 images, 4 at a time, one process has 51 and one 50.

    A denoiser that says the same of an image in whatever batch, so that the numbers may not
    differ but for the order of float64 sums; what is on disk has one order.
    """
    path = runs / "classifier/classifier.safetensors"
    quality = tiny.spec(
        "callbacks.Quality", protocol="classifier_features", weights=str(path), batch_size=1
    )
    linear = {"class_path": f"{__name__}.Scaling"}
    config = tiny.generation("", sampler=tiny.ancestral(5), denoiser=linear, callbacks=[quality])
    data = {"batch_size": 4, "count": 101, "reference": tiny.spec("data.Digits", fold=[0, 8])}
    one, two = map(
        json_of,
        both(tmp_path, "test", tiny.merged(config, {"data": {"init_args": data}})),
    )
    check_same(one, two)
    assert len(two["metrics"]) == 4
    for facts, others in zip(one["metrics"].values(), two["metrics"].values(), strict=True):
        assert facts == others and facts["n"] == 101  # to the last bit


class Scaling(Denoiser):
    """Pixel by pixel."""

    num_classes, shape = 10, (1, 8, 8)

    def predict(self, x, sigma, y):
        shown = x / (1 + expand(sigma, x) ** 2)
        return Prediction((3 * shown).clamp(-1, 1) + 0.02 * expand(y.to(x), x))


def test_a_process_without_an_image_is_refused(runs, tmp_path):
    """It would leave the loop, and the others would wait for its sums."""
    with pytest.raises(
        ProcessRaisedException, match="There are 1 images for 2 processes, and each"
    ):
        tiny.run(tmp_path / "two", "test", tiny.merged(generation(runs, count=1), TWO))
    assert not (tmp_path / "two/results.json").exists()


def test_predictions_are_written_once(runs, tmp_path, json_of):
    config = generation(runs, count=11)
    config["trainer"]["callbacks"] = [tiny.spec("callbacks.SampleWriter")]
    one, two = both(tmp_path, "predict", config)
    files = [{path.name: path.read_bytes() for path in f.glob("images/*.png")} for f in (one, two)]
    assert files[0] == files[1] and len(files[0]) == 11
    assert (one / "samples.jsonl").read_text() == (two / "samples.jsonl").read_text()
    lines = [json.loads(line) for line in (two / "samples.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(11))
    assert json_of(two)["cost"]["denoiser_evaluations"] == 5
    for name in ("images/00000003.png", "results.json"):
        (two / name).unlink()
    tiny.run(two, "predict", tiny.merged(config, TWO))  # one of them has nothing to do
    assert json_of(two)["cost"]["denoiser_evaluations"] == 5
    again = {path.name: path.read_bytes() for path in two.glob("images/*.png")}
    assert again == files[0]


def test_a_loaded_network_is_trained_by_two(runs, tmp_path):
    """With a frozen part: it must be known before the processes are joined."""
    path = runs / "classifier/classifier.safetensors"
    config = tiny.classification(
        classifier=tiny.loaded("classifier", path), rates={"net.embed": 0}, attack=tiny.pgd()
    )
    config = tiny.merged(config, TWO, SHORT)
    tiny.run(tmp_path / "run", "fit", config)
    before = load_classifier(str(path)).state_dict()
    after = load_classifier(str(tmp_path / "run/classifier.safetensors")).state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith("net.embed")}


def test_two_processes_draw_different_noise_and_share_their_gradient(tmp_path, json_of):
    """One step of SGD: the change is the rate times the mean of the two ranks' gradients."""
    config = tiny.classification(
        optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0}}
    )
    config = tiny.merged(
        config,
        SHORT,
        {"data": {"init_args": {"batch_size": 8}}},
    )
    tiny.run(tmp_path / "start", "fit", tiny.merged(config, {"trainer": {"max_steps": 0}}))
    tiny.run(tmp_path / "end", "fit", tiny.merged(config, TWO))
    start, end = (
        load_classifier(str(tmp_path / name / "classifier.safetensors"))
        for name in ("start", "end")
    )
    gradients = [by_hand(start, rank) for rank in (0, 1)]
    for name, value in start.named_parameters():
        mean = (gradients[0][name] + gradients[1][name]) / 2
        torch.testing.assert_close(end.get_parameter(name), value - mean, atol=1e-6, rtol=1e-5)
    assert not torch.equal(*(gradient["net.leave.bias"] for gradient in gradients))


def test_pictures_in_training_are_the_first_process_s_and_change_nothing(tmp_path):
    """Between two validations and behind both, with dropout and random starts of an attack."""
    attack = tiny.pgd(random_start=True)
    config = tiny.classification(classifier=tiny.classifier(dropout=0.3), attack=attack)
    often = {"trainer": {"max_steps": 6, "val_check_interval": 3, "log_every_n_steps": 3}}
    for name, words in (("with", []), ("without", ["--trainer.logger=false"])):
        tiny.run(tmp_path / name, "fit", tiny.merged(config, TWO, often), *words)
    found = [load_file(tmp_path / n / "classifier.safetensors") for n in ("with", "without")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert (tmp_path / "with/val_gradients.png").is_file()
    assert not (tmp_path / "without/val_gradients.png").exists()


def by_hand(classifier, rank):
    """Gradients of a rank's first step."""
    split = Digits().split("train")
    keys = next(training_batches(len(split), 8, 0, rank, 2))
    x_0 = torch.stack([split[row][0] for _, row in keys])
    y = torch.tensor([split[row][1] for _, row in keys])
    torch.manual_seed(mixed(0, 0, rank))
    sigma = LogNormal().sample(8, "cpu")
    x = x_0 + sigma[:, None, None, None] * torch.randn(8, 1, 8, 8)
    classifier.requires_grad_(True).zero_grad()
    torch.nn.functional.cross_entropy(classifier(x, sigma), y).backward()
    return {name: p.grad.clone() for name, p in classifier.named_parameters()}


@pytest.mark.check
def test_processes_that_lightning_starts_itself(runs, tmp_path, json_of):
    """`strategy: ddp` runs the same command again for the second process."""
    config = generation(runs, count=21)
    config = tiny.merged(config, {"trainer": {"devices": 2, "strategy": "ddp"}})
    config["trainer"]["default_root_dir"] = str(tmp_path / "two")
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "robustguide", "test", f"--config={tmp_path}/two.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    tiny.run(tmp_path / "one", "test", generation(runs, count=21))
    check_same(json_of(tmp_path / "one"), json_of(tmp_path / "two"))


@pytest.mark.filterwarnings("ignore:Grad strides do not match")  # of convolutions of one pixel
def test_the_scale_of_latents_is_measured_over_both(tmp_path):
    """The weights rest (their learning rate is 0), so the latents are the same."""
    model = tiny.spec("modules.Autoencoding", codec=latent.codec_spec(), optimizer=tiny.adamw(0.0))
    config = tiny.merged(tiny.TRAINING, SHORT, {"model": model})
    one, two = (
        load_codec(str(folder / "codec.safetensors")) for folder in both(tmp_path, "fit", config)
    )
    assert one.scale.tolist() != [1, 1] and one.shift.tolist() != [0, 0]
    torch.testing.assert_close(two.scale, one.scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(two.shift, one.shift, rtol=1e-5, atol=1e-6)
