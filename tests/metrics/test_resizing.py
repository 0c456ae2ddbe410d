"""Ways of resizing, held against recordings of those who defined them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from golden_files import load
from PIL import Image
from torch.testing import assert_close

from robustguide.metrics.resizing import RESIZES, resize

DESCRIPTION, TENSORS = load("resize_conventions")
IMAGES = ["up32", "down260x300", "smooth64"]
# how the recording calls a resize, our name, and the factor and tolerance between them
WAYS = {
    "pil_bicubic_224": ("pil-bicubic-224", 1, {"rtol": 0, "atol": 0}),
    "pil_mode_F_bicubic_224_div255": ("pil-bicubic-float-224", 255, "pil_mode_F"),
    "torch_bicubic_antialias_224": (
        "torch-bicubic-antialias-224",
        1,
        "torch_bicubic_antialias",
    ),
    "tf1_bilinear_299": ("tf1-bilinear-299", 1, "tf1_bilinear"),
}


def images(name):
    return TENSORS[f"in.{name}.images"]


def tolerance(said):
    return DESCRIPTION["tolerance"][said] if isinstance(said, str) else said


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", IMAGES)
def test_the_recorded_pixels(name, way):
    ours, unit, said = WAYS[way]
    got = resize(ours)(images(name))
    assert got.dtype == torch.float32
    key = f"out.{name}.{way}"
    means = TENSORS[f"{key}.channel_mean"] * unit
    assert_close(got[0].double().mean((1, 2)), means, rtol=1e-6, atol=1e-4)
    if key in TENSORS:  # of some only the means were kept
        assert_close(got[:, :1] / unit, TENSORS[key].float(), **tolerance(said))


def test_pillow_resizes_each_channel_as_it_does_colours():
    want = TENSORS["out.up32.pil_bicubic_224_all_channels"]
    assert torch.equal(resize("pil-bicubic-224")(images("up32")), want.float())


def test_overshoot_is_kept_by_torch_alone():
    low, high = DESCRIPTION["differences"]["up32"]["torch_range"]
    found = resize("torch-bicubic-antialias-224")(images("up32"))
    assert_close(torch.stack(found.aminmax()), torch.tensor([low, high]), rtol=1e-5, atol=2e-3)
    for name in ("pil-bicubic-224", "pil-bicubic-float-224", "tf1-bilinear-299"):
        found = resize(name)(images("up32"))
        assert found.min() >= 0 and found.max() <= 255


def test_names_with_the_same_side_are_different_ways():
    """The differences that were recorded, so that no two names mean one way."""
    recorded = DESCRIPTION["differences"]["down260x300"]
    pil, torchs = (
        resize(f"{way}-224")(images("down260x300"))
        for way in ("pil-bicubic", "torch-bicubic-antialias")
    )
    want = pytest.approx(recorded["max_abs_pil_minus_torch"], abs=2e-3)
    assert (pil - torchs).abs().max().item() == want
    want = pytest.approx(recorded["mean_abs_pil_minus_torch"], rel=1e-3)
    assert (pil - torchs).abs().mean().item() == want


def test_the_corner_of_tensorflow_stays():
    """Output i lies at i times the scale, not at (i + 1/2) times it minus 1/2."""
    pixels = images("up32")
    found = resize("tf1-bilinear-64")(pixels)  # every second output is an input
    assert torch.equal(found[..., ::2, ::2], pixels.float())
    inner = pixels.float()
    between = (inner[..., :, :-1] + inner[..., :, 1:]) / 2
    assert_close(found[..., ::2, 1:-1:2], between)
    assert torch.equal(found[..., ::2, -1], inner[..., :, -1])  # beyond the last it repeats


@pytest.mark.parametrize("name", [*RESIZES, "pil-bicubic-float-64"])
def test_images_do_not_see_each_other(name):
    pixels = torch.randint(256, (3, 3, 20, 24), dtype=torch.uint8)
    way = resize(name)
    together = way(pixels)
    assert_close(together, torch.cat([way(one) for one in pixels.split(1)]), rtol=0, atol=1e-4)
    grey = way(pixels[:, :1])
    assert_close(grey, together[:, :1], rtol=0, atol=1e-4)
    assert way(pixels[:0]).shape == (0, *together.shape[1:])


@pytest.mark.parametrize("name", RESIZES)
def test_the_right_size_and_none_leave_images_alone(name):
    side = 40 if name == "none" else int(name.rpartition("-")[2])
    pixels = torch.randint(256, (1, 3, side, side), dtype=torch.uint8)
    assert torch.equal(resize(name)(pixels), pixels.float())


def test_pillow_itself():
    """Colours in one image of Pillow, at a side that no publication uses."""
    pixels = torch.randint(256, (1, 3, 50, 41), dtype=torch.uint8)
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    want = np.asarray(image.resize((33, 33), Image.Resampling.BICUBIC), np.float32)
    got = resize("pil-bicubic-33")(pixels)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(dtype):
    want = {name: way(images("up32")) for name, way in RESIZES.items()}
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        found = {name: way(images("up32")) for name, way in RESIZES.items()}
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(found[name], want[name]) for name in RESIZES)


@pytest.mark.parametrize("name", RESIZES)
def test_copies_do_the_same(name):
    pixels = torch.randint(256, (1, 1, 8, 8), dtype=torch.uint8)
    for twin in (copy.deepcopy(RESIZES[name]), pickle.loads(pickle.dumps(RESIZES[name]))):
        assert torch.equal(twin(pixels), RESIZES[name](pixels))


@pytest.mark.parametrize("name", ["bicubic", "pil-bicubic", "pil-bicubic-0", "pil-bicubic-x", ""])
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(ValueError, match=r"no resize .*tf1-bilinear-299, .*none"):
        resize(name)
