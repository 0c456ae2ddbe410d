"""Charts: what is drawn where, and how a figure is saved."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from robustguide.metrics import CalibrationByNoise
from robustguide.report import curves, image_grid, reliability_diagrams, save
from robustguide.report.figures import plain_text


def test_curves_sort_levels_and_put_no_noise_at_the_left():
    figure = curves([1.0, 0.0, 10.0, 0.1], {"plain": [0.5, 0.9, 0.1, 0.8]}, "accuracy")
    axes = figure.axes[0]
    (line,) = [line for line in axes.lines if line.get_label() == "plain"]
    at, values = line.get_xdata(), line.get_ydata()
    assert values.tolist() == [0.9, 0.8, 0.5, 0.1]
    assert at[1:].tolist() == [0.1, 1.0, 10.0] and 0 < at[0] < 0.1
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.1", "1", "10"]
    assert axes.get_xticks().tolist() == at.tolist()
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "accuracy"


def test_curves_of_one_level_or_of_no_noise_alone_can_be_drawn(tmp_path):
    for sigmas in ([0.0], [2.0], [0.0, 2.0]):
        figure = curves(sigmas, {"plain": [0.5] * len(sigmas)}, "accuracy")
        save(figure, tmp_path / "figure.png")
        labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
        assert labels == [f"{sigma:g}" for sigma in sigmas]


def test_close_levels_share_a_tick_label():
    sigmas = torch.linspace(1, 2, 101)
    labels = curves(sigmas, {"plain": sigmas}, "y").axes[0].get_xticklabels()
    assert 5 <= len(labels) <= 15


def test_curves_show_gaps_chance_and_intervals():
    values, low, high = [0.9, math.nan, 0.5], [0.8, math.nan, 0.4], [1.0, math.nan, 0.6]
    figure = curves(
        [0.1, 1.0, 10.0],
        {"plain_attacked": torch.tensor(values).double(), "robust": [0.2, 0.3, 0.4]},
        "accuracy",
        chance=0.25,
        intervals={"plain_attacked": (low, high)},
    )
    axes = figure.axes[0]
    first, second, chance = axes.lines
    np.testing.assert_allclose(first.get_ydata(), values, rtol=1e-6)
    assert first.get_color() != second.get_color()
    assert first.get_marker() != second.get_marker()
    assert set(chance.get_ydata()) == {0.25}
    (band,) = axes.collections
    corners = np.concatenate([path.vertices for path in band.get_paths()])
    assert {0.8, 1.0, 0.4, 0.6} <= set(corners[:, 1].tolist())
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["plain attacked", "robust", "chance"]


def test_a_series_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"'plain' has 2 values for 3 noise levels"):
        curves([0.1, 1.0, 10.0], {"plain": [1.0, 2.0]}, "accuracy")


def test_reliability_diagrams_draw_the_table():
    metric = CalibrationByNoise(bands=5, num_bins=4)
    logits = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.9, 0.1]]).log()
    for band in range(4):
        metric.update(logits, torch.tensor([0, 0, 1]), band)
    figure = reliability_diagrams(metric.compute(), [0.1, 0.5, 1.0, 2.0, "other"])
    uppers = [axes for axes in figure.axes if axes.get_title()]
    lowers = [axes for axes in figure.axes if not axes.get_title()]
    assert len(uppers) == len(lowers) == 5
    assert [bar.get_height() for bar in uppers[0].patches] == [0, 0, 1, 0.5]
    assert [bar.get_height() for bar in lowers[0].patches] == [0, 0, 1, 2]
    assert [bar.get_x() + bar.get_width() / 2 for bar in lowers[0].patches] == pytest.approx(
        [0.125, 0.375, 0.625, 0.875]
    )
    ece = abs(1 - 0.6) / 3 + abs(1 - 1.8) / 3
    assert uppers[0].get_title() == f"$\\sigma$ = 0.1\nECE {ece:.3f}, n = 3"
    assert uppers[4].get_title() == "other\nno rows"
    with pytest.raises(ValueError, match="2 noise levels for 5 noise bands"):
        reliability_diagrams(metric.compute(), [0.1, 0.5])


def test_names_of_any_letters_are_plain():
    assert plain_text("a_b$x$\n\ud800") == r"a b\$x\$??"
    assert plain_text("_") == plain_text("") == "unnamed"


def test_save_writes_a_png_of_the_report_s_width_and_the_same_bytes_again(tmp_path):
    figure = image_grid(torch.zeros(4, 1, 8, 8))
    path = save(figure, tmp_path / "new" / "grid.png")
    first = path.read_bytes()
    save(figure, path)
    assert path.read_bytes() == first
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width == 700
    assert [entry.name for entry in path.parent.iterdir()] == ["grid.png"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")

    def full_disk(figure, part, **options):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(image_grid(torch.zeros(1, 1, 2, 2)), path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["grid.png"]
