"""Recipes of data preparation against those of published code and of torchvision."""

import golden_files
import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from robustguide.data.crops import center_crop
from robustguide.data.recipes import RECIPES, recipe

DESCRIPTION, GOLDEN = golden_files.load("crops")
PUBLISHED = {"adm-center-crop": "center_crop_arr", "edm": "edm_center_crop_lanczos"}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("case", DESCRIPTION["cases"], ids=lambda case: case["image"])
def test_published_pixels(name, case):
    image = Image.fromarray(GOLDEN[f"in.{case['image']}.image_hwc"].numpy())
    made = np.asarray(recipe(name)(image, case["image_size"]))
    expected = GOLDEN[f"out.{case['image']}.{PUBLISHED[name]}"].numpy()
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_torchvision_agrees(mode):
    """Larger and smaller images, square ones, and those whose margins are odd."""
    rng = np.random.default_rng(0)
    for size in (8, 17):
        theirs = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
        for width, height in ((40, 40), (40, 23), (23, 41), (9, 30), (17, 17), (5, 7), (18, 17)):
            pixels = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).convert(mode)
            made = recipe("torchvision")(image, size)
            assert made.size == (size, size)
            np.testing.assert_array_equal(np.asarray(made), np.asarray(theirs(image)))


@pytest.mark.parametrize("name", RECIPES)
def test_small_images_are_enlarged_and_fitting_ones_untouched(name):
    pixels = np.random.default_rng(1).integers(256, size=(6, 9, 3), dtype=np.uint8)
    assert recipe(name)(Image.fromarray(pixels), 20).size == (20, 20)
    grey = Image.new("RGB", (5, 9), (7, 8, 9))
    assert np.asarray(recipe(name)(grey, 16)).reshape(-1, 3).tolist() == 256 * [[7, 8, 9]]
    square = Image.fromarray(pixels[:, :6])
    np.testing.assert_array_equal(np.asarray(recipe(name)(square, 6)), pixels[:, :6])


def test_names():
    assert recipe("adm-center-crop") is center_crop
    with pytest.raises(ValueError, match="no recipe 'adm'; expected one of adm-center-crop, edm"):
        recipe("adm")
