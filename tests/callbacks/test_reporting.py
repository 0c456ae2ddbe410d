import math

import numpy as np
import pytest
import tiny
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robustguide.callbacks import Reporting
from robustguide.callbacks.reporting import plain, publish


@pytest.fixture
def trainer(tmp_path):
    return tiny.trainer(tmp_path, logger=TensorBoardLogger(tmp_path, name="", version=""))


def events(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def drawing():
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, 1], [1, 0])
    return figure


@pytest.mark.parametrize(
    ("value", "expected"), [(0.5, 0.5), (math.nan, None), (math.inf, None), (np.float64(2), 2.0)]
)
def test_a_number_that_json_knows(value, expected):
    assert plain(value) == expected


def test_a_figure_has_the_same_pixels_everywhere(trainer, tmp_path):
    publish(trainer, "test/curves", drawing)
    trainer.logger.experiment.flush()
    (shown,) = events(tmp_path).Images("test/curves")
    with Image.open(tmp_path / "test_curves.png") as file:
        pixels = np.asarray(file.convert("RGB"))
    path = tmp_path / "shown.png"
    path.write_bytes(shown.encoded_image_string)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels)


def test_nothing_is_drawn_in_the_sanity_check(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(type(trainer), "sanity_checking", True)
    publish(trainer, "test/curves", lambda: pytest.fail("drawn"))
    assert not list(tmp_path.glob("*.png"))


def test_other_processes_draw_nothing(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    publish(trainer, "test/curves", lambda: pytest.fail("drawn"))


def test_points_of_a_curve(trainer, tmp_path):
    callback = Reporting()
    callback.curve(trainer, "val", "some", [0.0123456, 80], {"ece": [0.25, math.nan]})
    trainer.logger.experiment.flush()
    found = events(tmp_path)
    assert found.Tags()["scalars"] == ["val/ece/sigma_0.0123"]  # NaN is no point
    assert found.Scalars("val/ece/sigma_0.0123")[0].value == 0.25
    assert callback.curves == {"some": {"sigma": [0.0123456, 80.0], "ece": [0.25, None]}}


def test_without_a_logger_a_curve_is_kept_all_the_same(tmp_path):
    callback = Reporting()
    callback.curve(tiny.trainer(tmp_path), "val", "some", [1.0], {"ece": [0.25]})
    assert callback.curves == {"some": {"sigma": [1.0], "ece": [0.25]}}
