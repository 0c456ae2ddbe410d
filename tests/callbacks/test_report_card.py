"""The report card of a classifier, as the callback measures and leaves it."""

import json
import math

import numpy as np
import oracles
import pytest
import tiny
import torch
from oracles import ece
from PIL import Image

from robustguide.attacks import PGD
from robustguide.callbacks import ReportCards, Results, report_card
from robustguide.checkpoints import build
from robustguide.data import Images, SeedData
from robustguide.guidance import AtDenoised
from robustguide.interfaces import Classifier, Denoiser, Prediction
from robustguide.metrics import Answers
from robustguide.modules import Generation, ReportCard, Reverse, RobustClassification
from robustguide.noise import LogNormal, RhoGrid
from robustguide.samplers import Heun

LEVELS = [0.05, 0.5, 5.0]


class Kept(ReportCards):
    """Keeps all that it is shown."""

    def __init__(self, num_bins=15):
        super().__init__(num_bins)
        self.shown = []

    def add(self, module, outputs):
        super().add(module, outputs)
        self.shown.append(outputs["cells"]["forward_x_t"])

    def all(self, key, axis=0):
        return torch.cat([each[key] for each in self.shown], axis)


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes longest."""
    monkeypatch.setattr(report_card, "publish", lambda *arguments: None)


def measured(folder, module, callback=None, stage="test", **data):
    """The callback after a test of the module on digits."""
    callback = callback or ReportCards()
    arguments = {"eval_batch_size": 32, "eval_limit": 70} | data
    run = getattr(tiny.trainer(folder, callback), stage)
    (logged,) = run(module, datamodule=Images(**arguments), verbose=False)
    return callback, logged


def test_the_numbers_are_those_of_what_was_shown(tmp_path, no_pictures):
    attack = PGD(1.0, steps=2)
    classifier = build(tiny.classifier())
    module = RobustClassification(classifier, levels=LEVELS, evaluation_attack=attack)
    kept, logged = measured(tmp_path, module, Kept(num_bins=7))
    found, y, logits = kept.curves["classifier"], kept.all("y"), kept.all("logits", 2)[0]
    assert len(y) == 70 and found["sigma"] == LEVELS
    answers = Answers.of(logits, y, kept.all("index"), num_bins=7)
    right = (kept.all("attacked", 3)[0, :, 0].argmax(-1) == y).double().mean(-1)
    expected = {
        "accuracy": (logits.argmax(-1) == y).double().mean(-1),
        "robust_accuracy": right,
        "ece": torch.tensor([ece(each, y, bins=7) for each in logits], dtype=torch.float64),
        "nll": torch.nn.functional.cross_entropy(
            logits.double().movedim(-1, 1), y.expand(3, 70), reduction="none"
        ).mean(-1),
        "brier": (logits.double().softmax(-1) - torch.eye(10)[y]).square().sum(-1).mean(-1),
        "adaptive_ece": answers.adaptive_ece,
        "classwise_ece": answers.classwise_ece,
        "smooth_ece": answers.smooth_ece,
        "confidence": logits.double().softmax(-1).amax(-1).mean(-1),
    }
    chance = answers.sampling_error()
    expected |= {"ece_if_calibrated": chance.mean, "ece_if_calibrated_upper95": chance.upper95}
    for key, curve in expected.items():
        assert found[key] == pytest.approx(curve.tolist(), abs=1e-12), key
    assert found.keys() == {*expected, "sigma", "accuracy_lower", "accuracy_upper"}
    for key in ("accuracy", "robust_accuracy", "nll", "brier"):
        metric = kept.metrics[key]
        assert metric["value"] == pytest.approx(float(expected[key].mean()), abs=1e-12)
        assert metric["n"] == 70 and logged[f"test/{key}"] == pytest.approx(metric["value"], 1e-6)
    assert kept.metrics["robust_accuracy"]["attack"] == str(attack)
    assert "gradient_norm" not in kept.metrics
    for low, value, high in zip(
        found["accuracy_lower"], found["accuracy"], found["accuracy_upper"], strict=True
    ):
        assert 0 <= low < value < high <= 1 and high - low > 0.1


def test_an_integral_error_comes_with_what_defines_it(tmp_path, no_pictures):
    module = RobustClassification(build(tiny.classifier()), levels=LEVELS)
    kept, _ = measured(tmp_path, module, Kept())
    answers = Answers.of(kept.all("logits", 2)[0], kept.all("y"), kept.all("index"))
    chance = answers.sampling_error()
    assert kept.metrics["integral_ece"] == {
        "value": pytest.approx(answers.integral_ece, abs=1e-12),
        "n": 70,
        "bins": 15,
        "grid": LEVELS,
        "biased": True,
        "interval": pytest.approx(list(answers.integral_interval(1000)), abs=1e-12),
        "resamples": 1000,
        "sampling_error": {
            "mean": pytest.approx(chance.integral_mean),
            "upper95": pytest.approx(chance.integral_upper95),
        },
    }
    for name in ("adaptive", "classwise", "smooth"):
        metric = kept.metrics[f"integral_{name}_ece"]
        curve = kept.curves["classifier"][f"{name}_ece"]
        assert metric["value"] == pytest.approx(sum(curve) / 3, abs=1e-12)
        assert metric["grid"] == LEVELS and metric["biased"] is True
        assert metric.get("bins") == (None if name == "smooth" else 15)


def test_n_counts_pairs_of_an_image_and_a_draw(tmp_path, no_pictures):
    """2,000 of them are enough; the accuracy's limits count images, whose draws go together."""
    one, many = (
        measured(tmp_path, ReportCard(Echo(), [1.0], draws=draws, gradients=False))[0]
        for draws in (1, 29)
    )
    assert one.metrics["accuracy"]["n"] == 70 and many.metrics["accuracy"]["n"] == 29 * 70
    assert one.metrics["integral_ece"]["biased"] and not many.metrics["integral_ece"]["biased"]
    widths = [
        found.curves["classifier"]["accuracy_upper"][0]
        - found.curves["classifier"]["accuracy_lower"][0]
        for found in (one, many)
    ]
    assert widths[1] == pytest.approx(widths[0], rel=0.2)


class Echo(Classifier):
    """Some of its input as logits of ten classes; no number of it depends on the batch."""

    num_classes = 10

    def forward(self, x, sigma):
        return 3 * x.flatten(1)[:, 20:30] / (1 + sigma[:, None])


class Shrinking(Denoiser):
    """Shrinks x, and moves it by the label."""

    num_classes, shape = 10, (1, 8, 8)

    def predict(self, x, sigma, y):
        scale = (1 + sigma**2).reshape(-1, 1, 1, 1)
        return Prediction((x + 0.1 * y.reshape(-1, 1, 1, 1)) / scale)


def full_card(**arguments):
    """Of the echo: both processes, both views, two attacks."""
    sampler = Heun(grid=RhoGrid(sigma_min=0.1, sigma_max=5.0, steps=3), clip=1.0)
    settings = {
        "attacks": [PGD(0.5, steps=2), PGD(1.0, steps=2, random_start=True)],
        "draws": 2,
        "reverse": Reverse(sampler, watched_steps=2, share=0.5, judge=Echo()),
        "num_bins": 9,
    }
    return ReportCard(Echo(), LEVELS, Shrinking(), **settings | arguments)


def test_no_number_depends_on_the_batches(tmp_path, no_pictures):
    """Nor does a byte of the document."""
    documents, callbacks = [], []
    for size in (7, 64):
        callbacks.append(measured(tmp_path, full_card(), eval_batch_size=size)[0])
        documents.append((tmp_path / "report_card.json").read_bytes())
    assert documents[0] == documents[1]
    assert callbacks[0].metrics == callbacks[1].metrics
    assert callbacks[0].curves == callbacks[1].curves


def test_other_cells_have_names_of_their_own(tmp_path, no_pictures):
    found, logged = measured(tmp_path, full_card())
    cells = ["classifier", "forward_denoised", "reverse_x_t", "reverse_denoised"]
    assert list(found.curves) == cells
    assert found.curves["classifier"]["sigma"] == LEVELS
    assert found.curves["reverse_x_t"]["sigma"] == pytest.approx([5.0, 0.1])
    n = found.metrics["agreement"]["n"]
    assert 20 < n < 50 and len(found.metrics["agreement"]["limits"]) == 2
    for cell, count in zip(cells, (140, 140, n, n), strict=True):
        prefix = "" if cell == "classifier" else f"{cell}_"
        for key in ("accuracy", "integral_ece", "robust_accuracy", "robust_accuracy_2", "cosine"):
            assert found.metrics[prefix + key]["n"] == count
            assert f"test/{prefix}{key}" in logged
        assert found.metrics[f"{prefix}integral_ece"]["bins"] == 9
    attacks = [found.metrics[f"robust_accuracy{end}"]["attack"] for end in ("", "_2")]
    assert "radius 0.5" in attacks[0] and "radius 1 " in attacks[1]


def test_the_document(tmp_path, no_pictures):
    found, _ = measured(tmp_path, full_card())
    text = (tmp_path / "report_card.json").read_text()
    document = json.loads(text, parse_constant=pytest.fail)
    assert document["format"] == "robustguide.report_card.1"
    assert document["agreement"] == found.metrics["agreement"]
    assert list(document["cells"]) == [
        "forward_x_t", "forward_denoised", "reverse_x_t", "reverse_denoised"
    ]  # fmt: skip
    for name, cell in document["cells"].items():
        assert {*cell["curves"]} >= {*document["definitions"]} | {"robust_accuracy_2"}
        assert (
            cell["means"]["integral_ece"]["interval"][0] <= cell["means"]["integral_ece"]["value"]
        )
        assert cell["process"] in name and cell["view"] in name and cell["bins"] == 9
        assert cell["n"] == cell["images"] * cell["noise_draws"] and cell["biased"] is True
        assert cell["labelled"] == (name == "reverse_denoised")
        moved = "what is shown, as at level 0" if "denoised" in name else "x at its level"
        assert cell["attacks_move"] == moved and len(cell["threats"]) == 2
    usual = document["cells"]["forward_x_t"]
    assert usual["curves"] | {"sigma": LEVELS} == found.curves["classifier"]
    assert usual["means"]["integral_ece"] == found.metrics["integral_ece"]


def test_what_a_test_leaves_to_be_looked_at(tmp_path, capsys):
    """One table a cell, one figure, one reliability diagram a cell."""
    measured(tmp_path, full_card(views={"denoised": AtDenoised()}), eval_limit=20)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {
        "report_card.json", "report_card.png",
        "reliability_forward_denoised.png", "reliability_reverse_denoised.png",
    }  # fmt: skip
    for name in files - {"report_card.json"}:
        with Image.open(tmp_path / name) as picture:
            assert picture.width == 700 and np.asarray(picture.convert("L")).std() > 10
    shown = capsys.readouterr().out
    for words in ("forward denoised", "reverse denoised", "sigma", "Brier", "cosine", "mean"):
        assert words in shown
    assert "Integral ECE" in shown and "interval" in shown and "too large" in shown


def test_a_validation_takes_no_interval_and_training_goes_on(tmp_path, no_pictures):
    module = RobustClassification(build(tiny.classifier()), LogNormal(), levels=LEVELS)
    callback = ReportCards()
    trainer = tiny.trainer(tmp_path, callback, max_steps=2, val_check_interval=1)
    trainer.fit(module, datamodule=Images(batch_size=32, eval_limit=30))
    assert callback.metrics["integral_ece"].keys() == {"value", "n", "bins", "grid", "biased"}
    assert not (tmp_path / "report_card.json").exists()
    assert {"smooth_ece", "nll"} <= callback.curves["classifier"].keys()
    assert trainer.callback_metrics["val/integral_ece"] > 0


class Broken(Echo):
    """Knows nothing at high noise."""

    def forward(self, x, sigma):
        return super().forward(x, sigma) + torch.where(sigma > 1, math.nan, 0.0)[:, None]


def test_logits_that_are_not_finite(tmp_path, no_pictures):
    """Training is told so and goes on; a test has no card to show."""
    module = RobustClassification(Broken(), levels=LEVELS)
    with pytest.raises(ValueError, match=r"NaN or infinite at noise levels 2 \(70\)"):
        measured(tmp_path, module)
    with pytest.warns(UserWarning, match=r"Nothing was measured\. Logits are NaN"):
        callback, _ = measured(tmp_path, module, stage="validate")
    assert callback.metrics == {} and callback.curves == {}


@pytest.mark.parametrize("num_classes", [2, 1000])
def test_any_number_of_classes_and_one_image(num_classes, tmp_path, no_pictures):
    class Any(Classifier):
        def __init__(self):
            super().__init__()
            self.num_classes = num_classes

        def forward(self, x, sigma):
            return x.flatten(1)[:, :1] * torch.linspace(-1, 1, num_classes)

    class One:
        def __iter__(self):
            yield torch.zeros(1, 1, 2, 2), torch.tensor([1]), torch.tensor([0])

    callback = ReportCards()
    module = ReportCard(Any(), [0.5, 1.0])
    tiny.trainer(tmp_path, callback).test(module, One(), verbose=False)
    assert callback.metrics["accuracy"]["n"] == 1
    assert 0 < callback.metrics["nll"]["value"] < 3 + math.log(num_classes)
    assert "cosine" not in callback.metrics


def test_no_image_gave_a_trajectory(tmp_path, no_pictures):
    """The cells of the reverse process are left out; an agreement of nothing is no number."""
    module = full_card(reverse=Reverse(Heun(grid=RhoGrid(steps=2)), share=1e-9))
    found, _ = measured(tmp_path, module, eval_limit=8)
    assert list(found.curves) == ["classifier", "forward_denoised"]
    assert found.metrics["self_agreement"] == {"value": None, "n": 0, "limits": [None, None]}


def test_a_second_run_forgets_the_first(tmp_path, no_pictures):
    callback = ReportCards()
    for limit, draws in ((30, 2), (12, 1)):
        module = ReportCard(Echo(), [0.1], draws=draws, gradients=draws > 1)
        measured(tmp_path, module, callback, eval_limit=limit)
        assert callback.metrics["accuracy"]["n"] == limit * draws
        assert ("gradient_norm" in callback.metrics) == (draws > 1)


def test_a_module_that_examines_nothing_is_left_alone(tmp_path):
    """The callback belongs to every run of the command line."""
    mixture = oracles.plane()
    module = Generation(oracles.ExactDenoiser(mixture), Heun(grid=RhoGrid(steps=2)))
    callback = ReportCards()
    data = SeedData(count=3, num_classes=3)
    tiny.trainer(tmp_path, callback).test(module, datamodule=data, verbose=False)
    assert callback.metrics == {} and callback.curves == {} and not list(tmp_path.iterdir())


def test_results_hold_the_card(tmp_path, no_pictures, json_of):
    callback = ReportCards()
    trainer = tiny.trainer(tmp_path, callback, Results())
    trainer.test(full_card(), datamodule=Images(eval_limit=20), verbose=False)
    found = json_of(tmp_path)
    assert found["metrics"] == callback.metrics and found["curves"] == callback.curves
