import pytest
import tiny
import torch
from oracles import ece

from robustguide.callbacks import TrajectoryCalibration
from robustguide.data import SeedData
from robustguide.interfaces import Classifier, Denoiser, Prediction
from robustguide.metrics import Answers
from robustguide.modules import Generation
from robustguide.noise import RhoGrid
from robustguide.samplers import Heun


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
    logits = torch.stack([torch.cat([each[1] for each in observer.calls[i::3]]) for i in range(3)])
    answers = Answers.of(logits, data.y)
    chance = answers.sampling_error()
    assert metric == {
        "value": pytest.approx(sum(found["ece"]) / 3),
        "n": 22,
        "bins": 15,
        "grid": list(module.levels),
        "biased": True,
        "read_by": "observer",
        "view": "AtDenoised",
        "interval": pytest.approx(list(answers.integral_interval(1000))),
        "resamples": 1000,
        "sampling_error": {"mean": chance.integral_mean, "upper95": chance.integral_upper95},
    }
    assert found["ece_if_calibrated"] == pytest.approx(chance.mean.tolist())
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


class Diverged(Reading):
    """Reads what is no number any more."""

    def forward(self, x, sigma):
        return super().forward(x, sigma) / 0 * 0


def test_sampling_that_diverged_has_no_calibration(tmp_path):
    """And the run goes on, for others may measure something."""
    module = Generation(Blank(), Heun(grid=RhoGrid(steps=3)), observer=Diverged())
    callback = TrajectoryCalibration()
    trainer, data = tiny.trainer(tmp_path, callback), SeedData(count=3, num_classes=4)
    with pytest.warns(UserWarning, match=r"Nothing is known of the calibration.*Logits are NaN"):
        trainer.test(module, datamodule=data, verbose=False)
    assert callback.metrics["integral_ece"] == {"value": None, "n": 0, "bins": 15}
    assert callback.curves["trajectory"]["ece"] == [None, None, None]
