"""The crops against those of the published data preparation."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from robustguide.data.crops import CropAndFlip, center_crop

GOLDENS = Path(__file__).parents[1] / "goldens"
CASES = json.loads((GOLDENS / "crops.json").read_text())["cases"]


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDENS / "crops.safetensors")


class Replay(np.random.Generator):
    """Gives the recorded draws: size of the shorter side, row, column."""

    def __init__(self, draws):
        super().__init__(np.random.PCG64())
        self.draws = iter(draws)

    def integers(self, *bounds, endpoint):
        (*recorded, last), value = next(self.draws)
        # Python's randrange leaves out the upper bound, and begins at 0 if it has one argument.
        assert [*recorded, last - 1] == list(bounds) and endpoint
        return value

    def random(self):
        return 0.9


@pytest.mark.parametrize("case", CASES, ids=[case["image"] for case in CASES])
def test_crops_are_those_of_the_reference(golden, case):
    name, size = case["image"], case["image_size"]
    image = Image.fromarray(golden[f"in.{name}.image_hwc"])
    cropped = np.asarray(center_crop(image, size))
    np.testing.assert_array_equal(cropped, golden[f"out.{name}.center_crop_arr"])
    for crop in case["random_crops"]:
        rng = Replay(crop["randrange_calls (arguments, value)"])
        cropped = np.asarray(CropAndFlip(0.8, 1.0)(image, size, rng))
        expected = golden[f"out.{name}.random_crop_seed{crop['python_random_seed']}"]
        np.testing.assert_array_equal(cropped, expected)


def test_images_of_the_right_size_are_untouched():
    pixels = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(center_crop(Image.fromarray(pixels), 8)), pixels)
    mirrored = CropAndFlip(1.0, flip=1.0)(Image.fromarray(pixels), 8, np.random.default_rng(0))
    np.testing.assert_array_equal(np.asarray(mirrored), pixels[:, ::-1])


@pytest.mark.parametrize("options", [{"min_fraction": 0.0}, {"max_fraction": 1.2}, {"flip": 2.0}])
def test_impossible_crops_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        CropAndFlip(**options)
