"""Columns are the same seed and label, or nothing is compared."""

import numpy as np
import pytest
import reported
import torch

from robustguide.report import pairing
from robustguide.report.reading import read


@pytest.fixture
def made(tmp_path):
    def make(name, greys, scale=None, **tensors):
        guidance = None if scale is None else {"robust": reported.scaled(scale)}
        written = reported.generation(guidance=guidance)
        return read(reported.leave(tmp_path / name, written, greys, **tensors))

    return make


def tiles(picture):
    """Grey level of each tile, row by row."""
    images = picture.source.axes[0].images
    place = [(round(i.get_extent()[3], 3), round(i.get_extent()[0], 3)) for i in images]
    rows = sorted({top for top, _ in place})
    found = {
        at: float(np.asarray(i.get_array())[0, 0]) for at, i in zip(place, images, strict=True)
    }
    return [[round(255 * found[at]) for at in sorted(found) if at[0] == top] for top in rows]


def names(picture):
    return [text.get_text() for text in picture.source.axes[0].texts]


def test_a_column_is_one_seed_whatever_the_order_of_the_files(made):
    first = made("first", {0: 10, 1: 20, 2: 30})
    second = made("second", {2: 130, 5: 150, 0: 110}, scale=4.0)
    (picture,), notes = pairing.pictures([second, first])
    assert tiles(picture) == [[10, 30], [110, 130]] and notes == []
    assert names(picture) == ["0", "2", "first", "second\nscale 4"]
    assert "Seeds (labels): 0 (0), 2 (2)." in picture.caption


def test_rows_are_ordered_by_method_and_scale(made):
    runs = [made("a", {0: 1}, 8.0), made("b", {0: 2}, 0.5), made("c", {0: 3})]
    (picture,), _ = pairing.pictures(runs)
    assert names(picture)[1:] == ["c", "b\nscale 0.5", "a\nscale 8"]


def test_the_same_seed_with_another_label_is_no_pair(made):
    other = made("other", {0: 10, 1: 20}, y=torch.tensor([2, 2]))
    drawn, notes = pairing.pictures([made("first", {0: 1, 1: 2}), other])
    assert [tiles(picture) for picture in drawn] == [[[1, 2]], [[10, 20]]]
    assert notes == [
        f"No other run has images of the seeds and labels of {name}."
        for name in ("first", "other")
    ]


def test_other_shapes_are_never_paired(made):
    large = made("large", {0: 10}, pixels=torch.full((1, 3, 8, 8), 10, dtype=torch.uint8))
    drawn, notes = pairing.pictures([made("small", {0: 1}), large])
    assert len(drawn) == len(notes) == 2


def test_many_runs_are_cut_into_figures_and_many_seeds_are_told(made):
    pixels = {index: index for index in range(12)}
    drawn, notes = pairing.pictures([made(f"run{i}", pixels) for i in range(13)])
    assert [len(tiles(picture)) for picture in drawn] == [12, 1] and notes == []
    assert all(len(row) == 10 for row in tiles(drawn[0]))
    assert drawn[0].caption.endswith("share 2 pairs more.")


def test_large_images_are_made_smaller(made):
    pixels = torch.randint(0, 256, (1, 3, 512, 256), dtype=torch.uint8)
    (picture,), _ = pairing.pictures([made("large", {0: 0}, pixels=pixels)])
    (image,) = picture.source.axes[0].images
    assert np.asarray(image.get_array()).shape == (64, 32, 3)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("short", "short"),
        ("18 steps of Heun with churn", "18 steps of\nHeun with churn"),
        ("without" * 4, "without" * 2 + "\n" + "without" * 2),
    ],
)
def test_long_names_have_two_lines(name, lines):
    assert pairing.in_two(name) == lines


def test_a_scale_that_all_have_is_not_repeated(made):
    (picture,), _ = pairing.pictures([made("a", {0: 1}, 4.0), made("b", {0: 2}, 4.0)])
    assert names(picture) == ["0", "a", "b"]
