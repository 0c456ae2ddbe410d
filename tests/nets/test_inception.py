"""The Inception network, held against torch-fidelity's with the same random weights."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from robustguide.nets import FIDInception

NAMES = ["192", "768", "2048", "logits_unbiased", "logits"]


def random_weights(net):
    """Seeded; He's scale keeps activations of order one down to the logits."""
    generator = torch.Generator().manual_seed(0)

    def draw(name, tensor):
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var") or name.endswith("bn.weight"):
            return 0.75 + 0.5 * noise.abs().clamp(max=1)
        if tensor.ndim > 1:
            return noise * (2 / tensor[0].numel()) ** 0.5
        return 0.2 * noise

    return {name: draw(name, tensor) for name, tensor in net.state_dict().items()}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Ours and theirs, which reads the weights from a file."""
    net = FIDInception()
    weights = random_weights(net)
    net.load_state_dict(weights)
    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(weights, path)
    theirs = FeatureExtractorInceptionV3("theirs", NAMES, feature_extractor_weights_path=str(path))
    return net.eval(), theirs


@pytest.fixture(scope="module")
def pixels():
    """Flat regions and edges, not noise alone, which pools would average away."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(2, 3, 13, 13, generator=generator) * 255
    images = nn.functional.interpolate(coarse, (299, 299), mode="nearest")
    return (images + 8 * torch.randn(images.shape, generator=generator)).clamp(0, 255).byte()


@torch.no_grad()
def test_features_and_logits_are_theirs(both, pixels):
    ours, theirs = both
    images = (pixels.float() - 128) / 128  # as they standardise; nothing is to be resized
    want = dict(zip(NAMES, theirs(pixels), strict=True))
    early, middle, late = ours.maps(images)
    got = {"192": early.mean((2, 3)), "768": middle.mean((2, 3)), "2048": ours.features(images)}
    got["logits_unbiased"] = got["2048"] @ ours.fc.weight.T
    got["logits"] = ours(images)
    assert list(got) == NAMES
    for name in NAMES:
        assert want[name].std(0).mean() > 1e-2  # the two images are told apart
        assert_close(got[name], want[name], rtol=1e-4, atol=1e-5)
    assert_close(late.mean((2, 3)), got["2048"])


def test_parameters_are_those_of_the_published_file():
    """Torchvision's network with 1008 logits and without its auxiliary one has 23 850 960."""
    with torch.device("meta"):
        state = FIDInception().state_dict()
    counted = [t for name, t in state.items() if "running" not in name and t.ndim]
    assert sum(tensor.numel() for tensor in counted) == 23_850_960
    assert len(state) == 94 * 6 + 2  # convolutions with their normalisation, and the logits
    assert state["fc.weight"].shape == (1008, 2048)
    assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)


def test_average_pools_leave_their_padding_out():
    """A constant stays itself at the border; with the padding counted its corner is 4/9 of it."""
    from robustguide.nets.inception import average

    assert_close(average(torch.full((1, 1, 5, 5), 3.0)), torch.full((1, 1, 5, 5), 3.0))


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 1, 299, 299), (1, 3, 299, 300)])
def test_images_of_another_shape_are_refused(shape):
    with torch.device("meta"):
        net, images = FIDInception(), torch.zeros(shape)
    with pytest.raises(ValueError, match=r"reads .*\[3, 299, 299\], not .*; resize them first"):
        net(images)
