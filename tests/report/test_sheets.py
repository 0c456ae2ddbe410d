"""Sheets of images: which tile shows what, and where."""

import math

import numpy as np
import pytest
import torch

from robustguide.report import gradient_panel, grid_comparison, image_grid, save
from robustguide.report.sheets import Column, folded, level_sheet, reduced, trajectory


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
    assert folded("Pullover", 7) == "Pullover" and folded("T-shirt/top", 7) == "T-shirt/\ntop"
    assert folded("classifier-free", 11) == "classifier-\nfree"


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


def test_a_sheet_by_level_draws_images_as_they_are_and_signed_ones_around_grey():
    images = torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None].expand(3, 1, 2, 2)
    signs = torch.tensor([[1.0, -1.0], [0.0, 1.0]]).expand(3, 1, 2, 2)
    columns = [Column("a_b", images), Column("c", 1e-9 * signs, is_signed=True)]
    figure = level_sheet(columns, [0.1, 1.0, 10.0], "above")
    drawn = tiles(figure)
    assert len(drawn) == 6
    np.testing.assert_allclose([tile[0, 0] for tile in drawn[::2]], [0, 0.5, 1], atol=1e-6)
    for tile in drawn[1::2]:
        np.testing.assert_allclose(tile, [[1, 0], [0.5, 1]], atol=1e-6)
    assert texts(figure) == [
        *("above", "a b", "c"),
        *(rf"$\sigma$ = {level}" for level in ("0.1", "1", "10")),
    ]


def test_an_image_of_no_numbers_can_be_drawn(tmp_path):
    column = Column("a", torch.full((1, 1, 2, 2), math.nan), is_signed=True)
    assert save(level_sheet([column], [1.0]), tmp_path / "a.png").is_file()
