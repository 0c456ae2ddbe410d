import json

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from robustguide import load_classifier, load_denoiser
from robustguide.callbacks import ClassAccuracy, SampleGrid, SampleWriter, samples
from robustguide.checkpoints import build, sha256_of
from robustguide.classifiers import Relabelled
from robustguide.data import Balanced, Listed, SeedData
from robustguide.data.generated import open_samples
from robustguide.guidance import ClassifierFree, ClassifierGuidance, Scaled
from robustguide.interfaces import Classifier, to_pixels
from robustguide.metrics.calibration import wilson_limits
from robustguide.modules import Generation
from robustguide.noise import ChainGrid, linear_levels
from robustguide.samplers import Ancestral

# Of a run with nothing left to do, Lightning says that its loader is empty.
pytestmark = pytest.mark.filterwarnings("ignore:Total length of .* across ranks is zero")


def generation(runs, **arguments):
    denoiser = load_denoiser(str(runs / "denoiser/denoiser.safetensors"))
    sampler = Ancestral(grid=ChainGrid(linear_levels(), "5"), clip=1.0)
    return Generation(denoiser, sampler, **arguments)


def test_accuracy_is_that_of_the_judge_on_clean_images(runs, tmp_path):
    judge = load_classifier(str(runs / "classifier/classifier.safetensors"))
    module, callback = generation(runs), ClassAccuracy(judge)
    data = SeedData(count=30, num_classes=10, batch_size=8)
    tiny.trainer(tmp_path, callback).test(module, datamodule=data, verbose=False)
    images = module.generate((torch.arange(30), data.y))["images"]
    right = int((judge(images, torch.zeros(30)).argmax(-1) == data.y).sum())
    low, high = wilson_limits(torch.tensor(right).double(), torch.tensor(30).double())
    assert callback.metrics["class_accuracy"] == {
        "value": pytest.approx(right / 30),
        "n": 30,
        "limits": [pytest.approx(float(low)), pytest.approx(float(high))],
    }


def test_several_judges_have_names(runs, tmp_path):
    judge = load_classifier(str(runs / "classifier/classifier.safetensors"))
    judges = [ClassAccuracy(judge), ClassAccuracy(build(tiny.classifier()), "other")]
    data = SeedData(count=4, num_classes=10, batch_size=4)
    tiny.trainer(tmp_path, *judges).test(generation(runs), datamodule=data, verbose=False)
    found = [name for each in judges for name in each.metrics]
    assert found == ["class_accuracy", "class_accuracy/other"]
    assert [each.state_key for each in judges] == ["ClassAccuracy", "ClassAccuracy/other"]
    with pytest.raises(ValueError, match="Two ClassAccuracy callbacks have the name 'other'"):
        tiny.trainer(tmp_path, judges[1], ClassAccuracy(judge, "other")).test(
            generation(runs), datamodule=data, verbose=False
        )


class Ensemble(Classifier):
    """Means of logits."""

    num_classes = 10

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x, sigma):
        return sum(member(x, sigma) for member in self.members) / len(self.members)


def test_the_classifier_that_guides_is_no_judge(runs, tmp_path):
    """By its weights, in whatever file or wrapper; another one of the same kind may judge."""
    path = runs / "classifier/classifier.safetensors"
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(path.read_bytes())
    guide = Relabelled(load_classifier(str(path)), list(range(10)))
    free = Scaled(ClassifierFree(), scale=0.0)
    terms = {"free": free, "plain": Scaled(ClassifierGuidance(guide), scale=1.0)}
    module, data = generation(runs, guidance=terms), SeedData(count=2, num_classes=10)
    same = load_classifier(str(copy))
    ensemble = Ensemble([build(tiny.classifier()), same])
    for judge in (same, Relabelled(same, list(range(10))), ensemble):
        with pytest.raises(
            ValueError, match=r"judge has the weights of the classifier.*term 'plain'.*independent"
        ):
            tiny.trainer(tmp_path, ClassAccuracy(judge)).test(
                module, datamodule=data, verbose=False
            )
    other = ClassAccuracy(build(tiny.classifier()))
    tiny.trainer(tmp_path, other).test(module, datamodule=data, verbose=False)
    assert other.metrics["class_accuracy"]["n"] == 2


@pytest.mark.parametrize("count", [12, 100])
def test_the_grid_shows_the_first_images(runs, tmp_path, count):
    module = generation(runs)
    data = SeedData(count=20, num_classes=10, batch_size=8, first=3)
    callback = SampleGrid(count=count, columns=4)
    tiny.trainer(tmp_path, callback).test(module, datamodule=data, verbose=False)
    shown = min(count, 20)
    images = module.generate((torch.arange(3, 3 + shown), data.y[:shown]))["images"]
    pixels = load_file(tmp_path / "samples.safetensors")["pixels"]
    assert pixels.dtype == torch.uint8 and pixels.shape == (shown, 1, 8, 8)
    assert (pixels.int() - to_pixels(images).int()).abs().max() <= 1  # batches round differently
    assert (tmp_path / "test_samples.png").is_file()


def test_a_colour_image_is_written_as_it_is(tmp_path):
    pixels = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))

    class Painted(Generation):
        def predict_step(self, batch, batch_idx):
            index, y = batch
            return {"images": (pixels[index - 7] / 127.5 - 1).float(), "y": y, "index": index}

    sampler = Ancestral(grid=ChainGrid(linear_levels(), "2"))
    data = SeedData(count=2, num_classes=10, first=7)
    trainer = tiny.trainer(tmp_path, SampleWriter())
    trainer.predict(
        Painted(build(tiny.denoiser()), sampler), datamodule=data, return_predictions=False
    )
    for row, number in enumerate((7, 8)):
        with Image.open(tmp_path / f"images/{number:08d}.png") as image:
            assert torch.equal(
                torch.from_numpy(np.array(image)).movedim(-1, 0), pixels[row].byte()
            )


def lines(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def predict(runs, folder, count=10, *words, **arguments):
    config = tiny.generation(
        runs / "denoiser/denoiser.safetensors",
        count=count,
        callbacks=[tiny.spec("callbacks.SampleWriter")],
        **{"sampler": tiny.ancestral(5)} | arguments,
    )
    return tiny.run(folder, "predict", config, *words)


@pytest.fixture(scope="module")
def predicted(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples") / "run"
    return folder, predict(runs, folder)


def test_predictions_are_images_and_lines(predicted, runs, json_of):
    folder, cli = predicted
    made = sha256_of(runs / "denoiser/denoiser.safetensors")
    told = {"method": "unguided", "scale": {}, "checkpoints": [made], "guides": []}
    assert lines(folder) == [
        {"index": i, "file": f"images/{i:08d}.png", "seed": i, "y": i, "class": str(i), **told}
        for i in range(10)
    ]
    samples = open_samples(folder)
    assert samples.count == 10 and samples.made == {"kind": "folder", **told}
    images = cli.model.generate((torch.arange(10), torch.arange(10)))["images"]
    for row, line in enumerate(lines(folder)):
        with Image.open(folder / line["file"]) as image:
            assert image.mode == "L"
            written = torch.from_numpy(np.array(image)).int()
        assert (written - to_pixels(images)[row, 0].int()).abs().max() <= 1
    files = {path.name for path in (folder / "images").iterdir()}
    assert files == {f"{i:08d}.png" for i in range(10)} | {"made_from.json"}
    results = json_of(folder)
    assert results["run"]["stage"] == "predict"
    assert results["cost"]["denoiser_evaluations"] == 5


def test_lines_tell_of_the_guidance(runs, tmp_path):
    files = [runs / "classifier/classifier.safetensors", runs / "denoiser/denoiser.safetensors"]
    plain, scaled = tiny.guided(files[0])["init_args"]["term"], tiny.guided(files[0], 2.0)
    within = tiny.spec("guidance.Within", term=scaled, sigma_max=1.0)
    twice = tiny.spec("guidance.Scaled", scale=1.5, term=within)
    free = tiny.spec("guidance.Scaled", weight=4.0, term=tiny.spec("guidance.ClassifierFree"))
    terms = {"own": plain, "robust": twice, "free": free}
    predict(runs, tmp_path / "run", 2, guidance=terms)
    hashes = [sha256_of(file) for file in files]
    for line in lines(tmp_path / "run"):
        assert line["method"] == "free + own + robust"
        assert line["scale"] == {"own": None, "robust": 3.0, "free": 3.0}
        assert line["checkpoints"] == sorted(hashes) and line["guides"] == hashes[:1]


def test_predictions_are_not_kept_in_memory(predicted):
    _, cli = predicted
    assert cli.trainer.predict_loop.return_predictions is False
    assert not cli.trainer.predict_loop.predictions


def test_what_is_there_is_not_made_again(predicted, runs):
    """A run that was killed: one image is missing, one was being written, the list is old."""
    folder, _ = predicted
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("images/*.png")}
    listed = (folder / "samples.jsonl").read_text()
    (folder / "images/00000004.png").unlink()
    half = folder / "images/.00000004.png.1.part"
    half.write_bytes(b"half")
    (folder / "samples.jsonl").write_text("half a li")
    cli = predict(runs, folder)
    assert cli.model.evaluated.images == 1
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("images/*.png")}
    assert {name for name in before if after[name] != before[name]} == {"00000004.png"}
    assert (folder / "samples.jsonl").read_text() == listed
    half.unlink()


def test_nothing_left_to_do(predicted, runs):
    folder, _ = predicted
    (folder / "samples.jsonl").unlink()
    before = (folder / "results.json").read_bytes()
    cli = predict(runs, folder)
    assert cli.model.evaluated.images == 0 and len(lines(folder)) == 10
    assert (folder / "results.json").read_bytes() == before  # of the run that made them


def test_more_of_the_same(predicted, runs):
    folder, _ = predicted
    cli = predict(runs, folder, 13)
    assert cli.model.evaluated.images == 3
    assert [line["index"] for line in lines(folder)] == list(range(13))


@pytest.mark.parametrize("other", ["sampler", "guidance", "denoiser"])
def test_images_of_something_else_are_not_mixed(predicted, runs, other, tmp_path):
    folder, _ = predicted
    arguments = {
        "sampler": {"sampler": tiny.ancestral(6)},
        "guidance": {"guidance": {"a": tiny.guided(runs / "classifier/classifier.safetensors")}},
        "denoiser": {"denoiser": tiny.spec("denoisers.Unconditional", denoiser=tiny.denoiser())},
    }[other]
    before = {path: path.read_bytes() for path in folder.rglob("images/*")}
    with pytest.raises(ValueError, match=r"holds images of other networks, guidance or labels"):
        predict(runs, folder, **arguments)
    assert {path: path.read_bytes() for path in folder.rglob("images/*")} == before


def test_the_origin_of_an_image(predicted, runs, tmp_path):
    """Weights and labels count; where they lie counts as well, and how many at a time does not."""
    _, cli = predicted
    data = [SeedData(count=count, num_classes=10, batch_size=count) for count in (4, 9)]
    described = [samples.origin(cli.model, each) for each in data]
    assert described[0] == described[1]
    path = str(runs / "denoiser/denoiser.safetensors")
    assert described[0]["checkpoints"].keys() == {path}
    labels = SeedData(count=4, num_classes=10, labels=Listed([1, 2]))
    assert samples.origin(cli.model, labels)["labels"] == ["Listed", {"labels": [1, 2]}]
    assert described[0]["labels"] == ["Balanced", vars(Balanced())]
    json.dumps(samples.origin(generation(runs), None))  # one made in Python has a description


def test_an_image_takes_its_name_when_it_is_whole(runs, tmp_path, monkeypatch):
    """The disk fills up in the fourth image."""
    saved, written = Image.Image.save, []

    def save(image, path, **arguments):
        written.append(path)
        saved(image, path, **arguments)
        if len(written) == 4:
            path.write_bytes(path.read_bytes()[:20])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="No space left"):
        predict(runs, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run/images").iterdir()}
    assert names == {f"0000000{i}.png" for i in range(3)} | {"made_from.json"}
    monkeypatch.undo()
    assert predict(runs, tmp_path / "run").model.evaluated.images == 7
    assert len(lines(tmp_path / "run")) == 10
