"""The atlas as a table, as curves, as a picture and as a page."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from robustguide.report import atlas, save
from robustguide.report.sheets import gradient_panel

LEVELS = [0.1, 1.0]


def estimate(value, error=0.01, quartiles=None):
    if value is None:
        return {"value": None, "standard_error": None, "limits": None, "quartiles": None, "n": 0}
    limits = [value - 2 * error, value + 2 * error]
    found = {"value": value, "standard_error": error, "limits": limits, "n": 20}
    return found | {"quartiles": quartiles}


def document(names=("plain", "robust"), has_direction=True):
    directions = []
    for place, name in enumerate([*names, *(["classifier-free"] if has_direction else [])]):
        compared = has_direction and place < len(names)
        measured = {
            "norm": [estimate(2.0 + place, quartiles=[1.0, 4.0 + place])] * 2,
            "cosine": [estimate(0.25 * (place + 1) if compared else None)] * 2,
            "neighbour": [estimate(0.5), estimate(None)],
            "low_share": [estimate(0.125)] * 2,
        }
        more = {
            "norm": [estimate(math.log(2), 0.0)] * 2,
            "cosine": [estimate(0.125)] * 2,
            "neighbour": [estimate(-0.5), estimate(None)],
            "low_share": [estimate(0.0)] * 2,
        }
        directions.append(
            {
                "minus_first": more,
                "name": name,
                "digest": "d",
                "asked": {"a": "<b>"},
                "measured": measured,
            }
        )
    return {
        "levels": LEVELS,
        "n": 20,
        "split": "test",
        "cutoff": 0.5,
        "white_share": 0.14,
        "has_direction": has_direction,
        "directions": directions,
        "picture": {"image": 3, "class": 1, "class_name": "<one>", "image_class_name": "zero"},
        "versions": {"torch": "2"},
    }


def drawn(channels=1, names=("plain", "robust")):
    generator = torch.Generator().manual_seed(0)
    x, *found = torch.randn(1 + len(names), 2, channels, 8, 8, generator=generator)
    return x, dict(zip(names, found, strict=True))


def test_the_table_has_a_row_a_direction_and_level():
    shown = atlas.table(document())
    assert [row[:2] for row in shown.rows[:3]] == [
        ["plain", "0.1"],
        ["plain", "1"],
        ["robust", "0.1"],
    ]
    assert shown.rows[2][2:] == [3.0, "0.500 ± 0.010", "0.500 ± 0.010", "0.125 ± 0.010"]
    assert shown.rows[4][3] is None and shown.rows[1][4] is None
    assert "20 test images" in shown.caption and "white noise has 0.140" in shown.caption
    assert "needs a --denoiser" in atlas.table(document(has_direction=False)).caption


def test_directions_are_compared_with_the_first():
    shown = atlas.compared(document())
    assert [row[0] for row in shown.rows] == ["robust"] * 2 + ["classifier-free"] * 2
    assert shown.rows[0][2:4] == ["2 [2, 2]", "0.125 ± 0.010"]
    assert shown.rows[0][4] == "-0.500 ± 0.010" and shown.rows[1][4] is None
    assert "Against plain" in shown.caption


def test_curves_have_bands_and_the_level_of_white_noise():
    figure = atlas.curves(document())
    norm, low, neighbour, cosine = figure.axes
    assert norm.get_yscale() == "log"
    plain, robust, free = norm.lines
    assert plain.get_ydata().tolist() == [2.0, 2.0] and free.get_ydata().tolist() == [4.0, 4.0]
    band = norm.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1.0, 5.0) and robust.get_color() != plain.get_color()
    assert set(low.lines[-1].get_ydata()) == {0.14} and low.get_ylim() == (0, 1)
    values = neighbour.lines[0].get_ydata()
    assert values[0] == 0.5 and math.isnan(values[1])
    assert len(cosine.lines) == 2
    assert len(atlas.curves(document(has_direction=False)).axes) == 3


def test_a_norm_of_zero_leaves_a_gap():
    said = document()
    said["directions"][0]["measured"]["norm"][0] = estimate(0.0, quartiles=[0.0, 0.0])
    assert math.isnan(atlas.curves(said).axes[0].lines[0].get_ydata()[0])


def test_the_picture_says_what_it_shows():
    figure = atlas.picture(*drawn(), document())
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[0] == "gradients of log p(<one> | x) at image 3, which shows zero"
    assert texts[1:4] == ["noisy image", "plain", "robust"]
    assert len(figure.axes[0].images) == 6


def test_channels_of_latents_are_tiles():
    x = torch.arange(5.0).reshape(1, 5, 1, 1).expand(1, 5, 2, 3)
    panel = gradient_panel(x, {"a": x}, [0.0])
    noisy, gradient = (image.get_array() for image in panel.axes[0].images)
    assert noisy.shape == gradient.shape == (4, 9)
    np.testing.assert_allclose(gradient[::2, ::3], [[0.5, 0.625, 0.75], [0.875, 1.0, 0.5]])


def test_long_titles_are_folded_and_nothing_is_cut_off(tmp_path):
    names = ("a classifier of clean images", "robust_calibrated", *"cdef")
    x, found = drawn(3, names)
    path = save(gradient_panel(x, found, LEVELS, "heading"), tmp_path / "atlas.png")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] == 700
    edges = [pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]]
    assert all((edge == 255).all() for edge in edges)


def test_the_page_escapes_what_it_is_told(tmp_path):
    text = atlas.write(
        document(), atlas.picture(*drawn(), document()), tmp_path / "a.html"
    ).read_text()
    assert "<one>" not in text and "&lt;one&gt;" in text and "<b>" not in text
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text


@pytest.mark.check
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(tmp_path, width, scheme):
    from browsing import browser, page

    path = atlas.write(document(), atlas.picture(*drawn(), document()), tmp_path / "a.html")
    with browser() as opened, page(opened, path, width, color_scheme=scheme) as shown:
        assert shown.locator("h1").inner_text() == "robustguide: gradient atlas"
        assert shown.locator("table").first.locator("tbody tr").count() == 6
        shown.locator("summary").first.focus()
        shown.keyboard.press("Enter")
        assert shown.locator("details[open] pre").count() == 1
        shown.screenshot(path=tmp_path / f"{scheme}_{width}.png", full_page=True)
