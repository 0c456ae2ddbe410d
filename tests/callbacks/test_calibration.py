import pytest
import tiny
import torch

from robustguide.attacks import PGD
from robustguide.callbacks import NoiseCurves, TrajectoryCalibration
from robustguide.checkpoints import build
from robustguide.data import Images, SeedData
from robustguide.interfaces import Classifier, Denoiser, Prediction
from robustguide.modules import Generation, RobustClassification
from robustguide.noise import RhoGrid
from robustguide.samplers import Heun


def ece(logits, y, bins=15):
    """Guo et al. (2017), eq. 3, bin by bin."""
    p = logits.double().softmax(-1)
    confidence, label = p.max(-1)
    total = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            gap = (label == y)[inside].double().mean() - confidence[inside].mean()
            total += inside.double().mean() * gap.abs()
    return float(total)


class Kept(NoiseCurves):
    """Keeps all that it is shown."""

    def __init__(self, num_bins=15):
        super().__init__(num_bins)
        self.shown = []

    def _add(self, outputs):
        super()._add(outputs)
        self.shown.append(outputs)


def test_the_curves_are_those_of_what_was_shown(tmp_path):
    module = RobustClassification(
        build(tiny.classifier()), levels=[0.05, 0.5, 5.0], evaluation_attack=PGD(1.0, steps=2)
    )
    curves = Kept(num_bins=7)
    data = Images(eval_batch_size=32, eval_limit=70)
    (logged,) = tiny.trainer(tmp_path, curves).test(module, datamodule=data, verbose=False)
    found = curves.curves["classifier"]
    y = torch.cat([outputs["y"] for outputs in curves.shown])
    assert len(y) == 70 and found["sigma"] == [0.05, 0.5, 5.0]
    means = {}
    for name, key in (("clean", "accuracy"), ("attacked", "robust_accuracy")):
        logits = torch.cat([outputs[name] for outputs in curves.shown], dim=1)
        right = (logits.argmax(-1) == y).double().mean(-1)
        assert found[key] == pytest.approx(right.tolist(), abs=1e-12)
        means[key] = float(right.mean())
        if name == "clean":
            expected = [ece(each, y, bins=7) for each in logits]
            assert found["ece"] == pytest.approx(expected, abs=1e-12)
            means["integral_ece"] = sum(expected) / 3
    for key, value in means.items():
        assert curves.metrics[key]["value"] == pytest.approx(value, abs=1e-12)
        assert curves.metrics[key]["n"] == 70
        assert logged[f"test/{key}"] == pytest.approx(value, abs=1e-6)
    assert curves.metrics["integral_ece"]["bins"] == 7
    assert curves.metrics["robust_accuracy"]["attack"] == str(PGD(1.0, steps=2))
    for low, value, high in zip(
        found["accuracy_lower"], found["accuracy"], found["accuracy_upper"], strict=True
    ):
        assert 0 <= low < value < high <= 1 and high - low > 0.1


def test_a_second_run_forgets_the_first(tmp_path):
    module = RobustClassification(build(tiny.classifier()), levels=[0.1])
    curves = NoiseCurves()
    for limit in (30, 12):
        data = Images(eval_batch_size=32, eval_limit=limit)
        tiny.trainer(tmp_path, curves).test(module, datamodule=data, verbose=False)
        assert curves.metrics["accuracy"]["n"] == limit
    assert "robust_accuracy" not in curves.curves["classifier"]


def test_a_table_is_printed(tmp_path, capsys):
    module = RobustClassification(build(tiny.classifier()), levels=[0.1, 2.5])
    data = Images(eval_limit=10)
    tiny.trainer(tmp_path, NoiseCurves()).test(module, datamodule=data, verbose=False)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("sigma", "accuracy", "ece", "0.1", "2.5"))


def test_a_module_without_levels_is_left_alone(tmp_path):
    """The callback belongs to every run of the command line."""
    module = Generation(Blank(), Heun(grid=RhoGrid(steps=2)))
    curves = NoiseCurves()
    tiny.trainer(tmp_path, curves).test(
        module, datamodule=SeedData(count=3, num_classes=4), verbose=False
    )
    assert curves.metrics == {} and curves.curves == {}


class Blank(Denoiser):
    """An image whose first pixel tells its label, whatever it sees."""

    num_classes, shape = 4, (1, 2, 2)

    def predict(self, x, sigma, y):
        return Prediction(
            torch.zeros_like(x).index_fill(2, torch.tensor([0]), 0.1) + y[:, None, None, None] / 10
        )


class Reading(Classifier):
    """Takes an odd label for the next even one."""

    num_classes = 4

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, sigma):
        y = (x[:, 0, 1, 0] * 10).round().long()
        logits = torch.zeros(len(x), 4)
        told = torch.where(y % 2 == 0, y, (y + 1) % 4)
        logits[range(len(x)), told] = 2.0
        self.calls.append((sigma, logits, y))
        return logits


def test_the_trajectory_is_held_against_the_label(tmp_path):
    observer = Reading()
    module = Generation(Blank(), Heun(grid=RhoGrid(steps=5)), observer=observer, watched_steps=3)
    callback = TrajectoryCalibration()
    trainer = tiny.trainer(tmp_path, callback)
    data = SeedData(count=22, num_classes=4, batch_size=8)
    (logged,) = trainer.test(module, datamodule=data, verbose=False)
    assert all(torch.equal(sigma, torch.zeros_like(sigma)) for sigma, *_ in observer.calls)
    found = callback.curves["trajectory"]
    assert found["sigma"] == list(module.levels)
    for level in range(3):
        _, logits, y = (torch.cat(part) for part in zip(*observer.calls[level::3], strict=True))
        assert torch.equal(y, data.y)
        assert found["ece"][level] == pytest.approx(ece(logits, y), abs=1e-12)
        assert found["label_agreement"][level] == pytest.approx(11 / 22)  # even labels
    metric = callback.metrics["integral_ece"]
    assert metric == {"value": pytest.approx(sum(found["ece"]) / 3), "n": 22, "bins": 15}
    assert logged["test/integral_ece"] == pytest.approx(metric["value"], abs=1e-6)
    assert (tmp_path / "test_trajectory.png").is_file()
    assert (tmp_path / "test_trajectory_reliability.png").is_file()


def test_somebody_has_to_read_along(tmp_path):
    module = Generation(Blank(), Heun(grid=RhoGrid(steps=2)))
    with pytest.raises(
        ValueError, match=r"needs a classifier that reads along; set model\.observer"
    ):
        tiny.trainer(tmp_path, TrajectoryCalibration()).test(
            module, datamodule=SeedData(count=3, num_classes=4), verbose=False
        )
