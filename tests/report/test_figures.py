import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from robustguide.metrics import CalibrationByNoise
from robustguide.report import (
    curves,
    gradient_panel,
    grid_comparison,
    image_grid,
    reliability_diagrams,
    save,
)
from robustguide.report.figures import plain_text, reduced, trajectory


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def tiles(figure):
    """Images in reading order."""
    images = figure.axes[0].images
    left_top = [(round(i.get_extent()[3], 3), round(i.get_extent()[0], 3)) for i in images]
    assert len(set(left_top)) == len(images), "tiles lie on each other"
    return [
        np.asarray(image.get_array()) for _, image in sorted(zip(left_top, images, strict=True))
    ]


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


def test_image_grid_draws_each_image_once_in_reading_order():
    images = torch.linspace(-1, 1, 7)[:, None, None, None].expand(7, 1, 2, 2)
    figure = image_grid(images, columns=3, titles=list("abcdefg"))
    drawn = tiles(figure)
    assert [tile.shape for tile in drawn] == [(2, 2)] * 7
    np.testing.assert_allclose([tile[0, 0] for tile in drawn], np.linspace(0, 1, 7), atol=1e-6)
    assert texts(figure) == list("abcdefg")


def test_image_grid_keeps_channels_rows_and_range():
    image = torch.zeros(1, 3, 2, 4)
    image[0, 0] = 5.0  # outside the range: clamped
    image[0, 2, 1, 3] = -1.0
    (tile,) = tiles(image_grid(image))
    assert tile.shape == (2, 4, 3)
    assert tile[1, 3].tolist() == [1, 0.5, 0] and tile[0, 0].tolist() == [1, 0.5, 0.5]


def test_grid_comparison_has_a_row_a_method_and_a_column_a_seed():
    methods = {
        name: torch.full((3, 1, 2, 2), value) + torch.tensor([0.0, 0.1, 0.2])[:, None, None, None]
        for name, value in (("unguided", -1.0), ("plain_guided", 0.0))
    }
    figure = grid_comparison(methods, titles=["0", "1", "2"])
    levels = [tile[0, 0] for tile in tiles(figure)]
    np.testing.assert_allclose(levels, [0, 0.05, 0.1, 0.5, 0.55, 0.6], atol=1e-6)
    assert texts(figure) == ["0", "1", "2", "unguided", "plain guided"]
    with pytest.raises(ValueError, match=r"\{'unguided': 3, 'plain_guided': 2\}"):
        grid_comparison({**methods, "plain_guided": methods["plain_guided"][:2]})


def test_long_titles_are_folded_where_columns_are_narrow():
    images = torch.zeros(10, 1, 4, 4)
    names = ["T-shirt/top", "Pullover", "Ankle boot", *"3456789"]
    assert texts(grid_comparison({"a": images}, names))[:3] == [
        *("T-shirt/\ntop", "Pullover", "Ankle\nboot")
    ]
    assert texts(grid_comparison({"a": images[:2]}, names[:2]))[:2] == names[:2]


def test_gradient_panel_shows_the_pattern_of_each_gradient_alone():
    gradient = torch.tensor([[1.0, -1.0], [0.0, 0.5]])[None, None]
    panel = gradient_panel(
        torch.full((1, 1, 2, 2), 2.0),
        {"plain": gradient, "robust": 1e6 * gradient},
        [math.sqrt(15)],
    )
    noisy, plain, robust = tiles(panel)
    np.testing.assert_allclose(noisy, np.full((2, 2), 0.75), atol=1e-6)  # 2 / sqrt(16) = 1/2
    np.testing.assert_allclose(plain, [[1, 0], [0.5, 0.75]], atol=1e-6)
    np.testing.assert_allclose(robust, plain, atol=1e-6)
    assert texts(panel) == ["noisy image", "plain", "robust", r"$\sigma$ = 3.87"]


def test_a_gradient_of_zero_and_one_of_three_channels_are_drawn_around_grey():
    gradients = torch.zeros(2, 3, 4, 4)
    gradients[1, 0] = -1e-30
    panel = gradient_panel(torch.zeros(2, 3, 4, 4), {"plain": gradients}, [0.1, 1.0])
    _, nothing, _, red = tiles(panel)
    assert nothing.shape == (4, 4, 3) and (nothing == 0.5).all()
    np.testing.assert_allclose(red[0, 0], [0, 0.5, 0.5], atol=1e-6)


def test_a_trajectory_has_a_column_a_step():
    steps = torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None].expand(3, 1, 2, 2)
    pushed = torch.zeros(3, 1, 2, 2)
    pushed[2, 0, 0] = 5.0
    figure = trajectory(steps, -steps, pushed, [10.0, 1.0, 0.1])
    levels = [tile[0, 0] for tile in tiles(figure)]
    np.testing.assert_allclose(levels, [0, 0.5, 1, 1, 0.5, 0, 0.5, 0.5, 1], atol=1e-6)
    assert texts(figure)[:3] == ["state", "predicted", "guidance"]


def test_latents_show_three_channels():
    latents = torch.rand(2, 4, 4, 4)
    drawn = tiles(trajectory(latents, latents[:, :3], latents, [1.0, 0.1]))
    assert {tile.shape for tile in drawn} == {(4, 4, 3)}


def test_reduced_images_keep_their_mean_and_their_form():
    images = torch.rand(2, 3, 128, 64, generator=torch.Generator().manual_seed(0))
    small = reduced(images, 32)
    assert small.shape == (2, 3, 32, 16)
    torch.testing.assert_close(small.mean(), images.mean(), atol=0.01, rtol=0)
    assert reduced(small, 32) is small


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
