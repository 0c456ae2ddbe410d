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


@torch.no_grad()
def test_what_evaluations_read(both, pixels):
    """Of the branch a hook sees what the network computes on its way."""
    net, theirs = both
    images = (pixels.float() - 128) / 128
    seen = []
    handle = net.Mixed_6d.branch1x1.register_forward_hook(lambda *at: seen.append(at[2]))
    net.features(images)
    handle.remove()
    (branch,) = seen
    found = net.readout(images)
    want = dict(zip(NAMES, theirs(pixels), strict=True))
    assert_close(found.pool3, want["2048"], rtol=1e-5, atol=1e-6)
    assert_close(found.logits, want["logits_unbiased"], rtol=1e-5, atol=1e-6)
    assert branch.shape == (2, 192, 17, 17)
    assert found.spatial.shape == (2, 17 * 17 * 7)
    for row, column, channel in ((0, 0, 0), (0, 0, 6), (0, 1, 2), (3, 16, 5), (16, 16, 6)):
        place = 7 * (17 * row + column) + channel  # TensorFlow's order
        assert torch.equal(found.spatial[:, place], branch[:, channel, row, column])
    assert found.spatial.min() == 0 and found.spatial.std(0).mean() > 1e-2  # rectified


def test_the_spatial_branch_is_normalised_and_rectified(both):
    """Written out with the parameters of the file: convolution, batch normalisation, maximum."""
    net, _ = both
    layer = net.Mixed_6d.branch1x1
    x = torch.randn(1, 768, 17, 17, generator=torch.Generator().manual_seed(2))
    weights = {name: tensor.double() for name, tensor in layer.state_dict().items()}
    y = torch.einsum("oc,bchw->bohw", weights["conv.weight"][..., 0, 0], x.double())
    mean, var, gain, bias = (
        weights[f"bn.{name}"].reshape(-1, 1, 1)
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    want = ((y - mean) / (var + 1e-3).sqrt() * gain + bias).clamp(min=0)
    with torch.no_grad():
        assert_close(layer(x).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 1, 299, 299), (1, 3, 299, 300)])
def test_images_of_another_shape_are_refused(shape):
    with torch.device("meta"):
        net, images = FIDInception(), torch.zeros(shape)
    with pytest.raises(ValueError, match=r"reads .*\[3, 299, 299\], not .*; resize them first"):
        net(images)
