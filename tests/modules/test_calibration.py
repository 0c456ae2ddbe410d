"""A calibration reads held-out images once, fits, and leaves a classifier like any other."""

import math
from functools import cache

import numpy as np
import pytest
import tiny
import torch
from oracles import ExactClassifier, ExactDenoiser, plane, tilted
from test_processes import TWO

from robustguide import load_classifier
from robustguide.callbacks import EMA
from robustguide.checkpoints import read_metadata
from robustguide.classifiers import (
    BandTemperature,
    Calibrated,
    SmoothTemperature,
    VectorScaling,
)
from robustguide.data import HeldOut, Images
from robustguide.data.images import ImageSource, Samples
from robustguide.guidance import AtDenoised
from robustguide.modules import Calibration, calibration_report, kept
from robustguide.noise import RhoGrid
from robustguide.samplers import SeededNoise

pytestmark = pytest.mark.filterwarnings(
    "ignore:You passed in a .val_dataloader. but have no .validation_step.",
    "ignore:.*fork",
    "ignore:The number of training batches",
)
LEVELS = [0.5, 1.0, 2.0]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """They take most of a short run; the run of the command line has drawn its own by then."""
    monkeypatch.setattr(calibration_report, "draw", lambda *arguments: None)


class Sampled(ImageSource):
    """A mixture's samples, of which only the validation split may be opened."""

    augments = False

    def __init__(self, mixture, count, labels=None):
        self.mixture, self.shape = mixture, mixture.shape
        self.class_names = [f"class {k}" for k in range(len(mixture))]
        generator = torch.Generator().manual_seed(5)
        self.x_0, self.y = mixture.sample(count, generator)
        if labels is not None:
            self.y = labels
            self.x_0 = mixture.sample_of(labels, generator)

    def open(self, name):
        if name != "validation":
            raise AssertionError(f"the {name} split was opened")
        return Drawn(self)


class Drawn(Samples):
    def __init__(self, source):
        super().__init__(source.shape, source.num_classes)
        self.source = source

    def __len__(self):
        return len(self.source.y)

    def __getitem__(self, index):
        return self.source.x_0[index].float(), int(self.source.y[index]), index

    def __getitems__(self, rows):
        return self.source.x_0[rows].float(), self.source.y[rows], torch.tensor(rows)

    def drawn(self, index, augment, rng: np.random.Generator):
        raise AssertionError("held-out images are not drawn")


@cache
def source(count):
    return Sampled(plane(), count)


class Confident(ExactClassifier):
    """Its logits are k(sigma) times too large."""

    def __init__(self, mixture, k=lambda sigma: 2.0):
        super().__init__(mixture)
        self.k = k

    def forward(self, x, sigma):
        factor = torch.as_tensor(self.k(sigma.double())).expand(len(x))
        return ExactClassifier.forward(self, x, sigma) * factor[:, None].to(x.dtype)


def run(folder, module, data, **arguments):
    """Calibrates; the trainer is as the command line makes it."""
    settings = {"max_epochs": 1, "max_steps": -1} | arguments
    trainer = tiny.trainer(folder, **settings)
    trainer.fit(module, datamodule=data)
    return module


def test_a_planted_curve_comes_back(tmp_path):
    """And the error that is left is that of a calibrated classifier."""
    classifier = Confident(plane(), lambda sigma: 2 * sigma**0.5)
    module = Calibration(classifier, SmoothTemperature([0.5, 2.0]), LEVELS)
    run(tmp_path, module, HeldOut(source(20_000), batch_size=5000))
    outcome = module.outcome
    assert type(module.classifier) is Calibrated and outcome.fit.converged
    expected = [2 * sigma**0.5 for sigma in LEVELS]
    assert outcome.temperatures == pytest.approx(expected, rel=0.02)
    _, upper, _, integral_upper = outcome.after.sampling_error(draws=60)
    assert (outcome.after.ece <= upper).all()
    assert outcome.after.integral_ece < integral_upper < outcome.before.integral_ece / 3


def test_the_classifier_and_its_modes_are_left_alone(tmp_path):
    classifier = torch.nn.Dropout(0.5)
    network = Confident(plane())
    network.dropout = classifier
    before = {name: value.clone() for name, value in network.state_dict().items()}
    module = run(tmp_path, Calibration(network, None, LEVELS), HeldOut(source(100)))
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.training and not network.dropout.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert [name for name, p in module.named_parameters() if p.requires_grad] == [
        "classifier.scaling.logs"
    ]


def test_logits_are_those_that_tests_see(tmp_path):
    """At the noise of each image, that of draw 0 in a test; rows in the order of the images."""
    network = Confident(plane())
    data = HeldOut(source(50), batch_size=7, eval_limit=20)
    module = run(tmp_path, Calibration(network, None, LEVELS, draws=2), data)
    rows = module.kept
    index = rows.index[::2]
    assert index.tolist() == [i * 50 // 20 for i in range(20)]
    assert torch.equal(rows.index[1::2], index) and rows.draw.tolist() == [0, 1] * 20
    assert torch.equal(rows.y[::2], source(50).y[index])
    noise = SeededNoise(index.tolist(), 1).draw(plane().shape)
    for level, logits in zip(LEVELS, rows.logits, strict=True):
        x = source(50).x_0[index].float() + level * noise
        expected = network(x, torch.full((20,), level))
        torch.testing.assert_close(logits[::2], expected, rtol=1e-6, atol=1e-6)
        assert not torch.equal(logits[::2], logits[1::2])


def test_neither_batches_nor_order_change_a_number(tmp_path):
    """Exactly: logits are asked a row at a time, or many, of a classifier that adds nothing up."""

    class Rowwise(Confident):
        def forward(self, x, sigma):
            return torch.stack([x[:, 0, 0, 0] * 3, x[:, 0, 0, 1], x[:, 0, 0, 0] - 1], dim=1)

    found = []
    for name, size in (("one", 1), ("some", 13), ("all", 100)):
        module = Calibration(Rowwise(plane()), VectorScaling(3), LEVELS, draws=2)
        run(tmp_path / name, module, HeldOut(source(60), batch_size=size))
        found.append(module)
    first, *others = found
    for other in others:
        assert torch.equal(first.kept.logits, other.kept.logits)
        assert torch.equal(first.classifier.scaling.shifts, other.classifier.scaling.shifts)
        assert first.metrics == other.metrics and first.curves == other.curves


def test_the_denoiser_is_not_told_the_label(tmp_path):
    """It sees the null label alone, and its image is clipped as in a sampler."""
    mixture, asked = tilted(), []

    class Listening(ExactDenoiser):
        def predict(self, x, sigma, y):
            asked.append(y)
            return super().predict(x, sigma, y)

    class Clean(ExactClassifier):
        def forward(self, x, sigma):
            return super().forward(x, torch.zeros_like(sigma))

    data = Sampled(mixture, 40)
    module = Calibration(Clean(mixture), None, LEVELS, AtDenoised(), Listening(mixture), clip=0.5)
    run(tmp_path, module, HeldOut(data, batch_size=16))
    assert all((y == 4).all() for y in asked) and len(asked) > 3
    assert module.notes["calibration"]["denoiser_is_told_the_label"] is False
    rows, exact = module.kept, ExactDenoiser(mixture)
    noise = SeededNoise(range(40), 1).draw(mixture.shape)
    x, sigma = data.x_0.float() + 1.0 * noise, torch.ones(40)
    clean = exact(x, sigma, torch.full((40,), 4)).clamp(-0.5, 0.5)
    expected = mixture.log_joint(clean, torch.zeros(40))
    torch.testing.assert_close(rows.logits[1].double(), expected, rtol=1e-4, atol=1e-4)


def test_a_denoiser_that_must_be_told_is_noted(tmp_path):
    mixture = tilted()
    denoiser = ExactDenoiser(mixture, has_null=False)
    module = Calibration(ExactClassifier(mixture), None, LEVELS, AtDenoised(), denoiser)
    run(tmp_path, module, HeldOut(Sampled(mixture, 20)))
    assert module.notes["calibration"]["denoiser_is_told_the_label"] is True


def test_a_repeated_run_asks_the_network_no_more(tmp_path, caplog):
    data = HeldOut(source(200), batch_size=64)
    network = Confident(plane())
    first = run(tmp_path, Calibration(network, None, LEVELS), data)
    asked = len(network.calls)
    with caplog.at_level("INFO"):
        again = run(tmp_path, Calibration(network, SmoothTemperature([0.5, 2.0]), LEVELS), data)
    assert "the network is not asked again" in caplog.text
    assert len(network.calls) == asked + 1  # a blank image, before anything begins
    assert torch.equal(first.kept.logits, again.kept.logits)
    alone = Calibration(network, SmoothTemperature([0.5, 2.0]), LEVELS)
    run(tmp_path / "alone", alone, data)
    assert again.metrics == alone.metrics and again.curves == alone.curves


@pytest.mark.parametrize(
    ("changes", "limit", "what"),
    [
        ({"draws": 2}, None, "draws"),
        ({"levels": [0.5, 1.0]}, None, "levels"),
        ({"clip": None}, None, "clip"),
        ({}, 50, "images"),
    ],
)
def test_other_logits_are_asked_again(changes, limit, what, tmp_path, caplog):
    network = Confident(plane())
    run(tmp_path, Calibration(network, None, LEVELS), HeldOut(source(60)))
    arguments = {"levels": LEVELS} | changes
    data = HeldOut(source(60), eval_limit=limit)
    with caplog.at_level("INFO"):
        module = run(tmp_path, Calibration(network, None, **arguments), data)
    assert f"of other logits ({what})" in caplog.text
    n = (limit or 60) * module.examination.draws
    assert module.outcome.after.n == n and module.levels == tuple(arguments["levels"])
    assert len(kept.read(tmp_path / "logits.safetensors").y) == n  # it is now that of these


def test_a_part_of_a_pass_is_not_kept(tmp_path):
    module = Calibration(Confident(plane()), None, LEVELS)
    run(tmp_path, module, HeldOut(source(60), batch_size=20), limit_train_batches=2)
    assert module.outcome.after.n == 40
    assert not (tmp_path / "logits.safetensors").exists()


@pytest.mark.parametrize("arguments", [{"max_epochs": -1}, {"max_epochs": 3}, {"max_steps": 500}])
def test_there_is_one_pass_whatever_the_trainer_is_told(arguments, tmp_path):
    network = Confident(plane())
    run(tmp_path, Calibration(network, None, LEVELS), HeldOut(source(60)), **arguments)
    assert len(network.calls) == 1 + len(LEVELS)


@pytest.mark.parametrize(
    "arguments", [{"max_steps": 0}, {"max_epochs": 0}, {"limit_train_batches": 0}]
)
def test_a_trainer_that_reads_nothing(arguments, tmp_path):
    with pytest.raises(ValueError, match="reads the held-out images once"):
        run(
            tmp_path,
            Calibration(Confident(plane()), None, LEVELS),
            HeldOut(source(60)),
            **arguments,
        )


def test_other_data_are_refused(tmp_path):
    module = Calibration(Confident(plane()), None, LEVELS)
    with pytest.raises(ValueError, match="data is Images; set data"):
        run(tmp_path, module, Images(source(60)))
    with pytest.raises(ValueError, match="data is NoneType"):
        tiny.trainer(tmp_path, max_epochs=1, max_steps=-1).fit(module, [tiny.batch()])


def test_a_moving_average_is_refused(tmp_path):
    trainer = tiny.trainer(tmp_path, EMA(0.9), max_epochs=1, max_steps=-1)
    with pytest.raises(ValueError, match="no steps to average over; leave out EMA"):
        trainer.fit(Calibration(Confident(plane()), None, LEVELS), datamodule=HeldOut(source(60)))


def test_other_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="The data has 3 classes, the classifier 4"):
        run(tmp_path, Calibration(ExactClassifier(tilted()), None, LEVELS), HeldOut(source(60)))

    class Named(Confident):
        class_names = ("class 1", "class 0", "class 2")

    with pytest.raises(ValueError, match="in another order"):
        run(tmp_path, Calibration(Named(plane()), None, LEVELS), HeldOut(source(60)))


def test_a_logit_that_is_no_number_is_named(tmp_path):
    class Broken(Confident):
        def forward(self, x, sigma):
            logits = super().forward(x, sigma)
            return logits.where(
                (sigma[:, None] < 1.5) | (torch.arange(len(x))[:, None] != 4), math.nan
            )

    with pytest.raises(FloatingPointError, match="held-out image 4 at sigma 2 are"):
        run(tmp_path, Calibration(Broken(plane()), None, LEVELS), HeldOut(source(60)))


def test_a_class_without_images(tmp_path):
    """A temperature needs none of it, a shift of its logit does."""
    data = HeldOut(Sampled(plane(), 60, torch.arange(60) % 2))
    with pytest.raises(
        ValueError, match="No held-out image is of class 2, so VectorScaling cannot"
    ):
        run(tmp_path, Calibration(Confident(plane()), VectorScaling(3), LEVELS), data)
    assert run(tmp_path, Calibration(Confident(plane()), None, LEVELS), data).outcome.fit.converged


def test_separable_data_are_told(tmp_path):
    class Sure(Confident):
        """Right everywhere."""

        def forward(self, x, sigma):
            near = (x[:, 0, 0] - torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])[:, None]).norm(
                dim=-1
            )
            return -near.T

    data = Sampled(plane(), 60, torch.arange(60) % 3)
    data.x_0 = plane().means[data.y]
    with pytest.warns(UserWarning, match="do not bound temperatures .0. .* of Temperature"):
        run(tmp_path, Calibration(Sure(plane()), None, [0.01]), HeldOut(data))


@pytest.mark.parametrize(
    ("scaling", "levels", "message"),
    [
        (BandTemperature([0.3, 1.0]), [0.5, 1.0, 2.0], r"Band 0 of the 3 .* add a level there"),
        (BandTemperature([1.0, 1.5]), [0.5, 1.0, 2.0], r"Band 1 of the 3"),
        (SmoothTemperature([0.1, 1.0]), [0.5, 1.0, 2.0], r"from 0.5 to 2, .* move the knots"),
        (SmoothTemperature([1.0, 3.0]), [0.5, 1.0, 2.0], r"Knots \[1.0, 3.0\] must lie within"),
        (SmoothTemperature([0.5, 1, 2]), [0.5, 2.0], r"and be no more than these"),
        (VectorScaling(4), [1.0], "VectorScaling scales 4 classes, the classifier has 3"),
        (None, [], "levels must be finite noise levels"),
        (None, [float("inf")], "levels must be finite noise levels"),
    ],
)
def test_what_could_not_be_known_is_refused(scaling, levels, message):
    with pytest.raises(ValueError, match=message):
        Calibration(Confident(plane()), scaling, levels)


@pytest.mark.parametrize("wrong", [{"max_iterations": 0}, {"num_bins": 0}, {"draws": 0}])
def test_numbers_that_are_none(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Calibration(Confident(plane()), None, LEVELS, **wrong)


def test_a_view_without_a_denoiser():
    with pytest.raises(ValueError, match="nobody predicts it; give a denoiser"):
        Calibration(Confident(plane()), None, LEVELS, AtDenoised())


def test_the_levels_of_a_grid():
    module = Calibration(Confident(plane()), None, RhoGrid(5, 0.02, 10.0))
    assert module.levels == RhoGrid(5, 0.02, 10.0).sigmas()[:-1] and len(module.levels) == 5


# By the command line.

TRAINER = tiny.TRAINER | {"max_epochs": 1, "enable_checkpointing": False}


def calibrating(runs, scaling=None, **init_args):
    path = runs / "classifier/classifier.safetensors"
    scaling = scaling or tiny.spec("classifiers.BandTemperature", edges=[0.5])
    arguments = {"classifier": tiny.loaded("classifier", path), "scaling": scaling}
    model = tiny.spec("modules.Calibration", **arguments | {"levels": [0.1, 1.0]} | init_args)
    return {
        "seed_everything": 0,
        "model": model,
        "data": tiny.spec("data.HeldOut", batch_size=64, eval_limit=60),
        "trainer": TRAINER,
    }


@pytest.fixture(scope="module")
def calibrated(runs, tmp_path_factory):
    """A run of the command line, at the image of a denoiser."""
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    denoiser = tiny.loaded("denoiser", runs / "denoiser/denoiser.safetensors")
    view = tiny.spec("guidance.AtDenoised")
    tiny.run(folder, "fit", calibrating(runs, denoiser=denoiser, view=view, draws=3))
    return folder


def test_what_a_run_leaves(calibrated, runs, json_of):
    assert {path.name for path in calibrated.iterdir()} >= {
        "calibration_ece.png",
        "calibration_temperature.png",
        "classifier.safetensors",
        "config.yaml",
        "logits.safetensors",
        "results.json",
    }
    assert not (calibrated / "checkpoints").exists()
    results = json_of(calibrated)
    before, after = (results["metrics"][f"nll_{when}"] for when in ("before", "after"))
    assert after["value"] < before["value"]
    assert (after["n"], after["draws"], after["split"]) == (180, 3, "validation")
    assert after["in_sample"] is after["small"] is True
    curve = results["curves"]["calibration"]
    assert curve["sigma"] == [0.1, 1.0] and len(curve["temperature"]) == 2
    integral = results["metrics"]["integral_ece_after"]
    assert integral["value"] == pytest.approx(sum(curve["ece_after"]) / 2)
    assert integral["interval"][0] <= integral["value"] <= integral["interval"][1]
    assert integral["bins"] == 15


def test_the_file_is_a_classifier_that_says_what_was_measured(calibrated, runs, json_of):
    path = str(calibrated / "classifier.safetensors")
    classifier, inner = load_classifier(path), runs / "classifier/classifier.safetensors"
    assert type(classifier) is Calibrated and type(classifier.scaling) is BandTemperature
    curve = json_of(calibrated)["curves"]["calibration"]
    found = classifier.scaling.temperature(torch.tensor([0.1, 1.0])).tolist()
    assert found == pytest.approx(curve["temperature"])
    x, sigma = torch.randn(4, 1, 8, 8), torch.tensor([0.1, 0.4, 0.6, 3.0])
    divisor = torch.tensor([found[0], found[0], found[1], found[1]])[:, None]
    expected = load_classifier(str(inner))(x, sigma) / divisor
    torch.testing.assert_close(classifier(x, sigma), expected)
    notes = read_metadata(path).extra
    assert notes["steps"] == read_metadata(inner).extra["steps"]  # of the network
    assert notes["calibration"]["integral_ece_after"]["split"] == "validation"
    assert notes["calibration"]["converged"] is True


def test_it_is_tested_and_guides_like_any_other(calibrated, runs, tmp_path, json_of):
    path = calibrated / "classifier.safetensors"
    config = tiny.classification(classifier=tiny.loaded("classifier", path))
    tiny.run(tmp_path / "test", "test", config)
    assert json_of(tmp_path / "test")["metrics"]
    term = tiny.merged(
        tiny.guided(path),
        {"init_args": {"term": {"init_args": {"view": tiny.spec("guidance.AtDenoised")}}}},
    )
    config = tiny.generation(runs / "denoiser/denoiser.safetensors", guidance={"c": term}, count=8)
    tiny.run(tmp_path / "guided", "test", config)
    assert json_of(tmp_path / "guided")["cost"]["classifier_backward"] == 10


def test_data_that_are_not_held_out(runs, tmp_path):
    config = calibrating(runs) | {"data": tiny.spec("data.Images")}
    with pytest.raises(ValueError, match="data is Images"):
        tiny.run(tmp_path / "run", "fit", config)


@pytest.mark.check
def test_two_processes_find_what_one_does(runs, tmp_path, json_of):
    """Images one at a time, so that each is computed in the same way."""
    changes = {"data": {"init_args": {"batch_size": 1, "eval_limit": 12}}}
    config = tiny.merged(calibrating(runs, draws=2), changes)
    folders = [tmp_path / "one", tmp_path / "two"]
    tiny.run(folders[0], "fit", config)
    tiny.run(folders[1], "fit", tiny.merged(config, TWO))
    one, two = map(json_of, folders)
    assert one["metrics"] == two["metrics"] and one["curves"] == two["curves"]
    assert one["metrics"]["nll_after"]["n"] == 24
    assert two["run"]["world_size"] == 2
    files = [load_classifier(str(folder / "classifier.safetensors")) for folder in folders]
    assert torch.equal(*(file.scaling.logs for file in files))
    odd = {"data": {"init_args": {"batch_size": 2, "eval_limit": 11}}}
    tiny.run(tmp_path / "odd", "fit", tiny.merged(config, odd, TWO))
    assert json_of(tmp_path / "odd")["metrics"]["nll_after"]["n"] == 22
    again = tiny.merged(config, TWO, {"model": {"init_args": {"optimizer": "adam"}}})
    tiny.run(folders[1], "fit", again)  # reads the logits, in both
    adam = json_of(folders[1])["metrics"]
    assert adam["nll_before"] == one["metrics"]["nll_before"]
