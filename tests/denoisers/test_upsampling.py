import pytest
import torch
from torch.testing import assert_close

from robustguide.denoisers import EpsDenoiser, Upsampler
from robustguide.guidance import ClassifierFree, Scaled
from robustguide.nets import SuperResUNet
from robustguide.noise import ChainGrid, linear_levels
from robustguide.samplers import Ancestral, Learned, sample


@pytest.fixture(scope="module")
def upsampler():
    torch.manual_seed(0)
    net = SuperResUNet(
        image_size=8, in_channels=6, model_channels=8, out_channels=6, num_res_blocks=1,
        attention_resolutions=[], channel_mult=[1], num_heads=1, num_classes=3, num_null_labels=1,
    )  # fmt: skip
    for parameter in net.parameters():
        if not parameter.detach().any():
            parameter.data.normal_(std=0.1)
    levels = linear_levels()
    return Upsampler(net.eval(), levels, 3, [3, 8, 8], small=[3, 4, 4], learns_variance=True)


def inputs(rows):
    generator = torch.Generator().manual_seed(1)
    x, small = torch.randn(rows, 3, 8, 8, generator=generator), torch.rand(rows, 3, 4, 4)
    return x, torch.linspace(0.5, 3, rows), torch.arange(rows) % 3, small * 2 - 1


def test_the_network_sees_the_small_image_beside_the_noisy_one(upsampler):
    x, sigma, y, small = inputs(2)
    scale = (1 + sigma**2).sqrt()[:, None, None, None]
    out = upsampler.net(x / scale, upsampler.levels.t(sigma), small, y)
    predicted = upsampler.given(small).predict(x, sigma, y)
    assert_close(predicted.denoised, x - sigma[:, None, None, None] * out[:, :3])
    assert_close(predicted.fraction, (out[:, 3:] + 1) / 2)
    other = upsampler.given(-small).predict(x, sigma, y)
    assert (other.denoised - predicted.denoised).abs().amax() > 1e-4


def test_every_branch_sees_its_own_small_image(upsampler):
    """Guidance evaluates both labels in one batch; row i stays beside small image i."""
    _, _, y, small = inputs(3)
    sampler = Ancestral(ChainGrid(linear_levels(), "5"), variance=Learned(), clip=1.0)
    free = {"free": Scaled(ClassifierFree(), scale=0.5)}
    together = sample(
        upsampler.given(small), free, labels=y.tolist(), sampler=sampler, batch_size=3
    )
    for i in range(3):
        alone = sample(
            upsampler.given(small[i : i + 1]), free, labels=[int(y[i])], seeds=[i], sampler=sampler
        )
        assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_it_is_an_upsampler_only_with_small_images(upsampler):
    x, sigma, y, small = inputs(2)
    assert isinstance(upsampler.given(small), EpsDenoiser)
    with pytest.raises(ValueError, match=r"use upsampler\.given\(images\)"):
        upsampler(x, sigma, y)
    with pytest.raises(ValueError, match=r"enlarges images of shape \[3, 4, 4\], got \[3, 8, 8\]"):
        upsampler.given(x)
    with pytest.raises(ValueError, match="2 small images, but denoises 3 rows"):
        upsampler.given(small)(*inputs(3)[:3])
